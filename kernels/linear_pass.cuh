// What the two phases of linear_forward.cu share: parameters, shared memory, and pieces of work that several blocks split.
#pragma once

#include "fragments.cuh"
#include "linear.cuh"
#include "temperature.cuh"

// A piece of work for a block: of a group, rows × tokens whose scores are sums over a slice of the width, or rows × columns
// of the gradient that are sums over a slice of the tokens. Mirrors launch::LinearItem.
struct LinearItem {
    uint32_t group;
    // Of the group's rows, 64 at most.
    uint32_t first_row;
    uint32_t rows;
    // Tokens of the set, or columns of the gradient: a multiple of 16. Without columns there is no gradient, but a loss.
    uint32_t first;
    uint32_t count;
    // What is summed over: columns, or tokens of the set.
    uint32_t inner_first;
    uint32_t inner_count;
    // Which of how many slices it is.
    uint32_t slice;
    uint32_t slices;
    // Where the slices' sums begin, in packets of f32, and the counter of those that are done.
    uint32_t partials;
    uint32_t counter;
    uint32_t unused;
};
static_assert(sizeof(LinearItem) == 48 && offsetof(LinearItem, group) == 0 && offsetof(LinearItem, first_row) == 4 &&
    offsetof(LinearItem, rows) == 8 && offsetof(LinearItem, first) == 12 && offsetof(LinearItem, count) == 16 &&
    offsetof(LinearItem, inner_first) == 20 && offsetof(LinearItem, inner_count) == 24 && offsetof(LinearItem, slice) ==
    28 && offsetof(LinearItem, slices) == 32 && offsetof(LinearItem, partials) == 36 && offsetof(LinearItem, counter) ==
    40 && offsetof(LinearItem, unused) == 44, "mirrors launch::LinearItem");

// What is known of a row's scores with 128 of its tokens. The moments are relative to `shift`, and there only for a row that
// is in the statistics.
struct alignas(16) ScoreRecord {
    float maximum;
    float shift;
    float mean;
    float deviations;
};
static_assert(sizeof(ScoreRecord) == 16, "the host makes room for a packet a record");

// Mirrors launch::LinearForwardParams.
struct LinearForwardParams {
    LinearBatch batch;
    const LinearItem* score_items;
    const LinearItem* gradient_items;
    float* scores;
    ScoreRecord* records;
    // One a row.
    float* targets;
    Softmax* softmaxes;
    double* row_losses;
    float* partials;
    // 0 before and after: one for the blocks of the grid, and those that items name.
    uint32_t* counters;
    // The unscaled gradient [rows, gradient_stride], or none.
    float* gradient;
    uint64_t gradient_stride;
    // The gradient of the hidden states [N, width] itself, or none.
    void* hidden_gradient;
    // One a position; or none, where they are to be added up.
    float* losses;
    // None where other rows are still to come.
    float* loss;
    // None where they are not wanted, or where rows are still to come.
    Statistics* statistics;
    double* temperature;
    // The temperature so far: on the device, or else as given.
    const double* previous;
    double given;
    TemperatureStep step;
    StatisticsSizes sizes;
    uint32_t score_count;
    uint32_t gradient_count;
    // Bytes of a stage of the pipeline.
    uint32_t stage_bytes;
    // Whether τ takes a step with the statistics.
    uint32_t adapts;
    uint32_t times_temperature;
    // Whether nothing is wanted but scores, and what statistics are made of.
    uint32_t scores_only;
};
static_assert(sizeof(LinearForwardParams) == 328 && offsetof(LinearForwardParams, batch) == 0 &&
    offsetof(LinearForwardParams, score_items) == 88 && offsetof(LinearForwardParams, gradient_items) == 96 &&
    offsetof(LinearForwardParams, scores) == 104 && offsetof(LinearForwardParams, records) == 112 &&
    offsetof(LinearForwardParams, targets) == 120 && offsetof(LinearForwardParams, softmaxes) == 128 &&
    offsetof(LinearForwardParams, row_losses) == 136 && offsetof(LinearForwardParams, partials) == 144 &&
    offsetof(LinearForwardParams, counters) == 152 && offsetof(LinearForwardParams, gradient) == 160 &&
    offsetof(LinearForwardParams, gradient_stride) == 168 && offsetof(LinearForwardParams, hidden_gradient) == 176 &&
    offsetof(LinearForwardParams, losses) == 184 && offsetof(LinearForwardParams, loss) == 192 &&
    offsetof(LinearForwardParams, statistics) == 200 && offsetof(LinearForwardParams, temperature) == 208 &&
    offsetof(LinearForwardParams, previous) == 216 && offsetof(LinearForwardParams, given) == 224 &&
    offsetof(LinearForwardParams, step) == 232 && offsetof(LinearForwardParams, sizes) == 272 &&
    offsetof(LinearForwardParams, score_count) == 304 && offsetof(LinearForwardParams, gradient_count) == 308 &&
    offsetof(LinearForwardParams, stage_bytes) == 312 && offsetof(LinearForwardParams, adapts) == 316 &&
    offsetof(LinearForwardParams, times_temperature) == 320 && offsetof(LinearForwardParams, scores_only) == 324, "mirrors launch::LinearForwardParams");

// The shared memory of a block: this, and behind it the stages of the pipeline. Mirrors launch::linear's `FIXED_BYTES`.
struct LinearShared {
    static constexpr uint32_t most_rows = 64;
    // Tokens of an item whose set is listed.
    static constexpr uint32_t most_tokens = 2048;
    static constexpr uint32_t errors_bytes = most_rows * 144;
    // While one is used, the next are loaded.
    static constexpr uint32_t stages = 3;

    unsigned char scratch[512];
    // What the block works on.
    LinearItem item;
    LinearGroup group;
    // One a row of the item.
    float maximum[most_rows];
    uint32_t positions[most_rows];
    uint32_t tokens[most_tokens];
    alignas(16) unsigned char errors[errors_bytes];

    __device__ __forceinline__ static LinearShared& get() { return *reinterpret_cast<LinearShared*>(device::shared_memory()); }
    __device__ __forceinline__ static unsigned char* stage(uint32_t index, uint32_t bytes) {
        return device::shared_memory() + sizeof(LinearShared) + index % stages * bytes;
    }
};
static_assert(sizeof(LinearShared) == 18528, "mirrors launch::linear's FIXED_BYTES");

// Sends a packet of a row on its way to shared memory. Where it cannot go by itself, it is loaded and stored.
template <class T>
__device__ __forceinline__ void copy_packet(T* to, const Vector<T>& row, uint32_t packet) {
    if (row.aligned && packet * Packet<T>::size < row.width) {
        device::copy128_async(to, row.values + packet * Packet<T>::size);
    } else {
        row.load(packet).store(to);
    }
}

// Sums of an item, of rows × (tokens or columns), that are still to be added up: those of the warps of this block, or those of
// all slices. Part k of that of row r and column i is at values[k·stride + r·pitch + i].
struct PartialSums {
    const float* values;
    uint32_t parts;
    uint32_t pitch;
    uint64_t stride;

    __device__ __forceinline__ float operator()(uint32_t r, uint32_t i) const {
        const float* at = values + r * static_cast<uint64_t>(pitch) + i;
        float sum = 0.0f;
#pragma unroll 1
        for (uint32_t k = 0; k < parts; ++k) sum += at[k * stride];
        return sum;
    }

    // Of neighbours, the first at a multiple of four.
    template <int count>
    __device__ __forceinline__ void add_up(uint32_t r, uint32_t i, float (&sums)[count]) const {
        const float* at = values + r * static_cast<uint64_t>(pitch) + i;
#pragma unroll
        for (uint32_t j = 0; j < count; ++j) sums[j] = 0.0f;
#pragma unroll 1
        for (uint32_t k = 0; k < parts; ++k) {
#pragma unroll
            for (uint32_t j = 0; j < count; j += 4) {
                const Packet<float> part = Packet<float>::load(at + k * stride + j);
#pragma unroll
                for (uint32_t l = 0; l < 4; ++l) sums[j + l] += part.values[l];
            }
        }
    }
};

template <class T>
struct LinearPass {
    static constexpr uint32_t packet = Packet<T>::size;
    static constexpr uint32_t warps = BlockProduct<T>::warps;

    const LinearForwardParams& params;
    const LinearBatch& batch;
    LinearShared& shared;

    __device__ __forceinline__ explicit LinearPass(const LinearForwardParams& params)
        : params(params), batch(params.batch), shared(LinearShared::get()) {}

    __device__ __forceinline__ T* stage(uint32_t index) const {
        return reinterpret_cast<T*>(LinearShared::stage(index, params.stage_bytes));
    }

    // Keeps an item and its group where all threads look.
    __device__ __forceinline__ void keep(const LinearItem* item) const {
        constexpr uint32_t of_item = sizeof(LinearItem) / sizeof(uint4), of_group = sizeof(LinearGroup) / sizeof(uint4);
        const uint4* from = reinterpret_cast<const uint4*>(item);
        uint4* to = reinterpret_cast<uint4*>(&shared.item);
        uint32_t index = threadIdx.x;
        if (index >= of_item) {
            from = reinterpret_cast<const uint4*>(batch.groups + item->group);
            to = reinterpret_cast<uint4*>(&shared.group);
            index -= of_item;
        }
        // The one before is no longer looked at.
        __syncthreads();
        if (threadIdx.x < of_item + of_group) device::store128(to + index, device::load128(from + index));
        __syncthreads();
    }

    // The rows of the item, by index in the batch.
    __device__ __forceinline__ uint32_t row_index(uint32_t r) const { return shared.group.first_row + shared.item.first_row + r; }

    // Where the sums of the block's warps go: over the stages, which are used up.
    __device__ __forceinline__ float* tile() const { return reinterpret_cast<float*>(stage(0)); }

    // What the warps of this block have stored in `tile`, or that of all slices of the item, for all threads of the block
    // that comes last to read; no parts in any other. Behind its columns a row may have one number `more`.
    __device__ __forceinline__ PartialSums sums(const BlockProduct<T>& product, bool more) const {
        // Every thread reads what others have stored.
        __syncthreads();
        const LinearItem& item = shared.item;
        const uint32_t pitch = product.pitch(), columns = pitch - 4 + more;
        const PartialSums of_block = {tile(), product.layers(), pitch, product.layer()};
        if (item.slices == 1) return of_block;
        const uint64_t stride = item.rows * static_cast<uint64_t>(pitch);
        float* slices = params.partials + 4 * static_cast<uint64_t>(item.partials);
        for (uint32_t i = threadIdx.x; i < item.rows * columns; i += blockDim.x) {
            const uint32_t r = i / columns, column = i % columns;
            slices[item.slice * stride + r * pitch + column] = of_block(r, column);
        }
        const bool last = reduce::is_last_block(params.counters + item.counter, item.slices);
        return {slices, last ? item.slices : 0, pitch, stride};
    }

    // Keeps copies for the next stages under way while a stage is used: calls load(s) for every stage, and use(s) when all
    // that load(s) has sent is there.
    template <class Load, class Use>
    __device__ __forceinline__ static void pipeline(uint32_t stages, Load load, Use use) {
        constexpr uint32_t ahead = LinearShared::stages - 1;
#pragma unroll 1
        for (uint32_t s = 0; s < stages + ahead; ++s) {
            if (s >= ahead) {
                device::await_copies<ahead - 1>();
                // Each thread has awaited its own copies; and all have used the stage that is loaded over next.
                __syncthreads();
            }
            if (s < stages) load(s);
            // A group a stage, be it an empty one, so that groups can be counted.
            device::commit_copies();
            if (s >= ahead) use(s - ahead);
        }
        // No thread may write over the last stage before all have used it.
        __syncthreads();
    }
};
