// What the two phases of linear_forward.cu share: parameters, shared memory, and pieces of work that several blocks split.
#pragma once

#include "fragments.cuh"
#include "linear.cuh"
#include "selection.cuh"
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
static_assert(sizeof(LinearItem) == 48 && offsetof(LinearItem, group) == 0 && offsetof(LinearItem, first_row) == 4
    && offsetof(LinearItem, rows) == 8 && offsetof(LinearItem, first) == 12 && offsetof(LinearItem, count) == 16 &&
    offsetof(LinearItem, inner_first) == 20 && offsetof(LinearItem, inner_count) == 24 && offsetof(LinearItem, slice) ==
    28 && offsetof(LinearItem, slices) == 32 && offsetof(LinearItem, partials) == 36 && offsetof(LinearItem, counter) ==
    40 && offsetof(LinearItem, unused) == 44, "mirrors launch::LinearItem");

// The moments of a row's scores with 64 of its tokens, relative to `shift`. There only where rows are in the statistics.
struct alignas(16) ScoreRecord {
    float shift;
    float mean;
    float deviations;
    float unused;
};
static_assert(sizeof(ScoreRecord) == 16, "the host makes room for a packet a record");

// Mirrors launch::LinearForwardParams.
struct LinearForwardParams {
    LinearBatch batch;
    const LinearItem* score_items;
    const LinearItem* gradient_items;
    float* scores;
    ScoreRecord* records;
    // One a row: the target's score and, under BEAR, the B-th largest.
    float* targets;
    float* nth_scores;
    Softmax* softmaxes;
    double* row_losses;
    float* partials;
    // Counters that are 0 before and after: one of the blocks of the grid, one of the items that are taken, and those that items name.
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
    BeamWeights beam_weights;
    // The rows of this launch: all, but where others are still to come.
    uint32_t first_row;
    uint32_t rows;
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
static_assert(sizeof(LinearForwardParams) == 392 && offsetof(LinearForwardParams, batch) == 0 &&
    offsetof(LinearForwardParams, score_items) == 88 && offsetof(LinearForwardParams, gradient_items) == 96 &&
    offsetof(LinearForwardParams, scores) == 104 && offsetof(LinearForwardParams, records) == 112 &&
    offsetof(LinearForwardParams, targets) == 120 && offsetof(LinearForwardParams, nth_scores) == 128 &&
    offsetof(LinearForwardParams, softmaxes) == 136 && offsetof(LinearForwardParams, row_losses) == 144 &&
    offsetof(LinearForwardParams, partials) == 152 && offsetof(LinearForwardParams, counters) == 160 &&
    offsetof(LinearForwardParams, gradient) == 168 && offsetof(LinearForwardParams, gradient_stride) == 176 &&
    offsetof(LinearForwardParams, hidden_gradient) == 184 && offsetof(LinearForwardParams, losses) == 192 &&
    offsetof(LinearForwardParams, loss) == 200 && offsetof(LinearForwardParams, statistics) == 208 &&
    offsetof(LinearForwardParams, temperature) == 216 && offsetof(LinearForwardParams, previous) == 224 &&
    offsetof(LinearForwardParams, given) == 232 && offsetof(LinearForwardParams, step) == 240 &&
    offsetof(LinearForwardParams, sizes) == 280 && offsetof(LinearForwardParams, beam_weights) == 312 &&
    offsetof(LinearForwardParams, first_row) == 360 && offsetof(LinearForwardParams, rows) == 364 &&
    offsetof(LinearForwardParams, score_count) == 368 && offsetof(LinearForwardParams, gradient_count) == 372 &&
    offsetof(LinearForwardParams, stage_bytes) == 376 && offsetof(LinearForwardParams, adapts) == 380 &&
    offsetof(LinearForwardParams, times_temperature) == 384 && offsetof(LinearForwardParams, scores_only) == 388,
    "mirrors launch::LinearForwardParams");

// The shared memory of a block: this, and behind it the stages of the pipeline. Mirrors `BlockShape::FIXED_BYTES` of the launch plan.
struct LinearShared {
    static constexpr uint32_t most_rows = 64;
    // Tokens of an item whose set is listed.
    static constexpr uint32_t most_tokens = 2048;
    static constexpr uint32_t exponentials_bytes = most_rows * 144;
    // While one is used, the next are loaded.
    static constexpr uint32_t stages = 3;

    unsigned char scratch[512];
    // What the block works on.
    LinearItem item;
    LinearGroup group;
    // One a row of the item.
    float maximum[most_rows];
    // The item that comes next.
    alignas(16) uint32_t next;
    alignas(16) uint32_t tokens[most_tokens];
    alignas(16) unsigned char exponentials[exponentials_bytes];

    __device__ __forceinline__ static LinearShared& get() { return *reinterpret_cast<LinearShared*>(device::shared_memory()); }
    __device__ __forceinline__ static unsigned char* stage(uint32_t index, uint32_t bytes) {
        return device::shared_memory() + sizeof(LinearShared) + index % stages * bytes;
    }
};
static_assert(sizeof(LinearShared) == 18288, "mirrors BlockShape::FIXED_BYTES of the launch plan");

// Sends a packet of a row on its way to shared memory. Where it cannot go by itself, it is loaded and stored.
template <class T>
__device__ __forceinline__ void copy_packet(T* to, const Vector<T>& row, uint32_t packet) {
    if (row.aligned && packet * Packet<T>::size < row.width) {
        device::copy128_async(to, row.values + packet * Packet<T>::size);
    } else {
        row.load(packet).store(to);
    }
}

// Adds up, for four neighbours, parts that are `stride` numbers apart, in their order. Several are loaded at a time: in global
// memory each takes as long as all of them.
__device__ __forceinline__ Packet<float> add_up(const float* from, uint32_t parts, uint64_t stride) {
    Packet<float> sum = Packet<float>::load(from);
#pragma unroll 4
    for (uint32_t k = 1; k < parts; ++k) {
        const Packet<float> part = Packet<float>::load(from + k * stride);
#pragma unroll
        for (uint32_t i = 0; i < Packet<float>::size; ++i) sum.values[i] += part.values[i];
    }
    return sum;
}

// The threads of a block shared out among the rows of an item: neighbours in one warp have the same.
struct RowLanes {
    uint32_t lanes;
    uint32_t row;
    uint32_t lane;

    __device__ __forceinline__ RowLanes(uint32_t rows, uint32_t threads) {
        lanes = reduce::warp_size;
        while (lanes * rows > threads) lanes /= 2;
        row = threadIdx.x / lanes;
        lane = threadIdx.x % lanes;
    }

    // By all threads of a warp, each of which gets that of its row.
    template <class Operation>
    __device__ __forceinline__ typename Operation::Value reduce(Operation operation, typename Operation::Value value) const {
        for (uint32_t apart = lanes / 2; apart > 0; apart /= 2) {
            value = operation.combine(value, operation.shuffle(value, static_cast<int>(apart)));
        }
        return value;
    }
};

template <class T>
struct LinearPhase {
    static constexpr uint32_t packet = Packet<T>::size;
    static constexpr uint32_t warps = BlockGemm<T>::warps;

    const LinearForwardParams& params;
    const LinearBatch& batch;
    LinearShared& shared;

    __device__ __forceinline__ explicit LinearPhase(const LinearForwardParams& params)
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

    // Adds up what the warps of this block have stored in `tile` and, of an item in slices, what all of its blocks have.
    // Whether the sums are in `tile` now, for all threads of the block: that of the last slice to be done, if there are several.
    // Each of the item's rows has a whole pitch, all of which must be there.
    __device__ __forceinline__ bool add_up_tile(const BlockGemm<T>& gemm) const {
        // Every thread reads what others have stored.
        __syncthreads();
        const LinearItem& item = shared.item;
        const uint32_t count = item.rows * gemm.pitch();
        float* slices = params.partials + 4 * static_cast<uint64_t>(item.partials);
        float* own = item.slices == 1 ? tile() : slices + item.slice * static_cast<uint64_t>(count);
        if (own != tile() || gemm.layers() > 1) {
            for (uint32_t i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
                add_up(tile() + i, gemm.layers(), gemm.layer()).store(own + i);
            }
        }
        if (item.slices > 1) {
            if (!reduce::is_last_block(params.counters + item.counter, item.slices)) return false;
#pragma unroll 2
            for (uint32_t i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
                add_up(slices + i, item.slices, count).store(tile() + i);
            }
        }
        // Whoever needs a sum next is not whoever has made it.
        __syncthreads();
        return true;
    }

    // Calls use(row, packet) for as many packets of each of so many rows, by all threads of the block in turn.
    template <class Use>
    __device__ __forceinline__ static void for_each_packet(uint32_t rows, uint32_t packets, Use use) {
        if (packets == 0) return;
        const uint32_t of_rows = blockDim.x / packets, of_packets = blockDim.x % packets;
        uint32_t row = threadIdx.x / packets, packet = threadIdx.x % packets;
#pragma unroll 1
        while (row < rows) {
            use(row, packet);
            row += of_rows;
            packet += of_packets;
            if (packet >= packets) {
                packet -= packets;
                ++row;
            }
        }
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
