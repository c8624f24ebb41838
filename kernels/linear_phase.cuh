// The base of the two phases of linear_forward.cu: their parameters, the layout of shared memory, the cp.async
// pipeline, and the split-K reduction over warps and blocks.
#pragma once

#include "fragments.cuh"
#include "linear.cuh"
#include "selection.cuh"
#include "temperature.cuh"

// An item of work, which one block processes: a split-K slice of an output tile of one group. A score item computes the
// scores of rows × tokens and sums over columns of the head; a gradient item computes rows × columns of the gradient
// and sums over tokens. Mirrors launch::LinearItem.
struct LinearItem {
    // The index of the group.
    uint32_t group;
    // The rows of the tile are [first_row, first_row + rows) of the group, at most LinearShared::max_rows.
    uint32_t first_row;
    uint32_t rows;
    // The other side of the tile: tokens of the set, or columns of the gradient. `first` is a multiple of 16. A
    // gradient item whose count is 0 computes only the loss.
    uint32_t first;
    uint32_t count;
    // The slice of the sum: columns of the head, or tokens of the set.
    uint32_t inner_first;
    uint32_t inner_count;
    // The index of this slice, and the number of split-K slices of the tile.
    uint32_t slice;
    uint32_t slices;
    // The index of the tile's workspace in `partials`, in packets of f32, and of its block counter in `counters`.
    // Unused if the tile has one slice.
    uint32_t partials;
    uint32_t counter;
    uint32_t unused;
};
static_assert(sizeof(LinearItem) == 48 && offsetof(LinearItem, group) == 0 && offsetof(LinearItem, first_row) == 4
    && offsetof(LinearItem, rows) == 8 && offsetof(LinearItem, first) == 12 && offsetof(LinearItem, count) == 16 &&
    offsetof(LinearItem, inner_first) == 20 && offsetof(LinearItem, inner_count) == 24 && offsetof(LinearItem, slice) ==
    28 && offsetof(LinearItem, slices) == 32 && offsetof(LinearItem, partials) == 36 && offsetof(LinearItem, counter) ==
    40 && offsetof(LinearItem, unused) == 44, "mirrors launch::LinearItem");

// The moments of a row's scores of one tile of 64 tokens. They are written only if some row enters the statistics.
struct alignas(16) ScoreRecord {
    // The tile's first score, which is subtracted from the others before they are summed.
    float shift;
    // The mean of score − shift.
    float mean;
    // The sum of squared deviations from the mean.
    float deviations;
    float unused;
};
static_assert(sizeof(ScoreRecord) == 16, "mirrors RECORD_BYTES of the launch plan");

// Mirrors launch::LinearForwardParams.
struct LinearForwardParams {
    LinearBatch batch;
    // [score_count] and [gradient_count]; null if the count is 0.
    const LinearItem* score_items;
    const LinearItem* gradient_items;
    // The scores of all groups, as LinearGroup::scores says.
    float* scores;
    // The records of all groups, as LinearGroup::records says.
    ScoreRecord* records;
    // [row_count]: the target's score of each row.
    float* targets;
    // [row_count]: the B-th largest score of each row; null without BEAR.
    float* nth_scores;
    // [row_count]: saved for the gradient of the head.
    Softmax* softmaxes;
    // [row_count]: the loss of each row, 0 if it has none.
    double* row_losses;
    // The workspace for the sums of split-K slices, as LinearItem::partials says.
    float* partials;
    // Counters that are 0 before and after the launch: [0] counts the blocks of the grid that are done, [1] the items
    // that blocks have fetched, and the rest the slices of an item that are done, as LinearItem::counter says.
    uint32_t* counters;
    // [row_count, gradient_stride]: the unscaled gradient in f32, for linear_backward.cu; null if it is not wanted.
    float* gradient;
    // Row stride of `gradient`, in elements.
    uint64_t gradient_stride;
    // [N, width]: the gradient of the hidden states for an upstream gradient of 1; null if it is not wanted.
    void* hidden_gradient;
    // [N]: the loss of each position; null if the losses are added up.
    float* losses;
    // [1]: the sum of the losses; null if each position has its own, or if a later launch writes it.
    float* loss;
    // [1]: the statistics of the batch; null if they are not wanted, or if a later launch writes them.
    Statistics* statistics;
    // [1]: the temperature that the loss is computed at.
    double* temperature;
    // [1]: the temperature before this launch; null if it is `given`.
    const double* previous;
    double given;
    TemperatureStep step;
    StatisticsSizes sizes;
    BeamWeights beam_weights;
    // The rows of this launch are [first_row, first_row + rows) of the batch: all of them, unless the batch takes
    // several launches.
    uint32_t first_row;
    uint32_t rows;
    uint32_t score_count;
    uint32_t gradient_count;
    // The size of a pipeline stage in shared memory, in bytes.
    uint32_t stage_bytes;
    // 1 if τ takes a step with the statistics of this batch.
    uint32_t adapts;
    // 1 if the loss is multiplied by τ.
    uint32_t times_temperature;
    // 1 if the launch ends after the first phase: scores, maxima, records and what is computed from them.
    uint32_t scores_only;
};
static_assert(sizeof(LinearForwardParams) == 408 && offsetof(LinearForwardParams, batch) == 0 &&
    offsetof(LinearForwardParams, score_items) == 104 && offsetof(LinearForwardParams, gradient_items) == 112 &&
    offsetof(LinearForwardParams, scores) == 120 && offsetof(LinearForwardParams, records) == 128 &&
    offsetof(LinearForwardParams, targets) == 136 && offsetof(LinearForwardParams, nth_scores) == 144 &&
    offsetof(LinearForwardParams, softmaxes) == 152 && offsetof(LinearForwardParams, row_losses) == 160 &&
    offsetof(LinearForwardParams, partials) == 168 && offsetof(LinearForwardParams, counters) == 176 &&
    offsetof(LinearForwardParams, gradient) == 184 && offsetof(LinearForwardParams, gradient_stride) == 192 &&
    offsetof(LinearForwardParams, hidden_gradient) == 200 && offsetof(LinearForwardParams, losses) == 208 &&
    offsetof(LinearForwardParams, loss) == 216 && offsetof(LinearForwardParams, statistics) == 224 &&
    offsetof(LinearForwardParams, temperature) == 232 && offsetof(LinearForwardParams, previous) == 240 &&
    offsetof(LinearForwardParams, given) == 248 && offsetof(LinearForwardParams, step) == 256 &&
    offsetof(LinearForwardParams, sizes) == 296 && offsetof(LinearForwardParams, beam_weights) == 328 &&
    offsetof(LinearForwardParams, first_row) == 376 && offsetof(LinearForwardParams, rows) == 380 &&
    offsetof(LinearForwardParams, score_count) == 384 && offsetof(LinearForwardParams, gradient_count) == 388 &&
    offsetof(LinearForwardParams, stage_bytes) == 392 && offsetof(LinearForwardParams, adapts) == 396 &&
    offsetof(LinearForwardParams, times_temperature) == 400 && offsetof(LinearForwardParams, scores_only) == 404,
    "mirrors launch::LinearForwardParams");

// The shared memory of a block: this struct, followed by the stages of the pipeline. Its size mirrors
// `BlockShape::FIXED_BYTES` of the launch plan.
struct LinearShared {
    // The rows of an item.
    static constexpr uint32_t max_rows = 64;
    // The tokens of a gradient item, if its set is listed.
    static constexpr uint32_t max_tokens = 2048;
    static constexpr uint32_t exponentials_bytes = max_rows * 144;
    // While the block computes on one stage, the copies of the next two are in flight.
    static constexpr uint32_t stages = 3;

    // The scratch of block reductions.
    unsigned char scratch[512];
    // The item that the block processes, and its group.
    LinearItem item;
    LinearGroup group;
    // [item.rows]: the largest score of each row other than the target's. Second phase only.
    float maximum[max_rows];
    // The index of the item that the block processes next.
    alignas(16) uint32_t next;
    // The tokens of the item. A gradient item over the whole vocabulary leaves them unset.
    alignas(16) uint32_t tokens[max_tokens];
    // First phase: the addresses of the rows of both operands. Second phase: the B operand [item.rows, tokens of a
    // stage].
    alignas(16) unsigned char exponentials[exponentials_bytes];

    __device__ __forceinline__ static LinearShared& get() { return *reinterpret_cast<LinearShared*>(device::shared_memory()); }
    __device__ __forceinline__ static unsigned char* stage(uint32_t index, uint32_t bytes) {
        return device::shared_memory() + sizeof(LinearShared) + index % stages * bytes;
    }
};
static_assert(sizeof(LinearShared) == 18288, "mirrors BlockShape::FIXED_BYTES of the launch plan");

// Starts the copy of a packet of a row to shared memory. A packet that is not aligned, or that is past the width, is
// loaded and stored instead.
template <class T>
__device__ __forceinline__ void copy_packet(T* to, const Vector<T>& row, uint32_t packet) {
    if (row.aligned && packet * Packet<T>::size < row.width) {
        device::copy128_async(to, row.values + packet * Packet<T>::size);
    } else {
        row.load(packet).store(to);
    }
}

// Returns the sum of `parts` packets, `stride` elements apart, in their order. The loop is unrolled so that the
// latencies of several loads overlap.
__device__ __forceinline__ Packet<float> sum_parts(const float* from, uint32_t parts, uint64_t stride) {
    Packet<float> sum = Packet<float>::load(from);
#pragma unroll 4
    for (uint32_t k = 1; k < parts; ++k) {
        const Packet<float> part = Packet<float>::load(from + k * stride);
#pragma unroll
        for (uint32_t i = 0; i < Packet<float>::size; ++i) sum.values[i] += part.values[i];
    }
    return sum;
}

// The distribution of the threads of a block over the rows of an item: `lanes` consecutive threads, a power of two up
// to a warp, work on each row.
struct RowLanes {
    uint32_t lanes;
    // The row of this thread, and its index among the threads of that row. The row may be past the last of the item.
    uint32_t row;
    uint32_t lane;

    __device__ __forceinline__ RowLanes(uint32_t rows, uint32_t threads) {
        lanes = reduce::warp_size;
        while (lanes * rows > threads) lanes /= 2;
        row = threadIdx.x / lanes;
        lane = threadIdx.x % lanes;
    }

    // Reduces over the threads of each row, with all lanes of the warp, and returns the result to each of these
    // threads.
    template <class Operation>
    __device__ __forceinline__ typename Operation::Value reduce(Operation operation, typename Operation::Value value) const {
        for (uint32_t distance = lanes / 2; distance > 0; distance /= 2) {
            value = operation.combine(value, operation.shuffle(value, static_cast<int>(distance)));
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

    // Copies an item and its group to shared memory, with all threads of the block.
    __device__ __forceinline__ void load_item(const LinearItem* item) const {
        constexpr uint32_t of_item = sizeof(LinearItem) / sizeof(uint4), of_group = sizeof(LinearGroup) / sizeof(uint4);
        const uint4* from = reinterpret_cast<const uint4*>(item);
        uint4* to = reinterpret_cast<uint4*>(&shared.item);
        uint32_t index = threadIdx.x;
        if (index >= of_item) {
            from = reinterpret_cast<const uint4*>(batch.groups + item->group);
            to = reinterpret_cast<uint4*>(&shared.group);
            index -= of_item;
        }
        // All threads must have finished reading the previous item.
        __syncthreads();
        if (threadIdx.x < of_item + of_group) device::store128(to + index, device::load128(from + index));
        // All threads read the item next.
        __syncthreads();
    }

    // Returns the index in the batch of row r of the item.
    __device__ __forceinline__ uint32_t row_index(uint32_t r) const {
        return shared.group.first_row + shared.item.first_row + r;
    }

    // Where BlockGemm::store writes, and where the reduced output tile is: the stages, which are no longer needed then.
    __device__ __forceinline__ float* tile() const { return reinterpret_cast<float*>(stage(0)); }

    // Reduces the partial sums of an output tile, with all threads of the block:
    //
    //     1. Add up the split-K slices of the block's warps, which BlockGemm::store wrote to `tile`.
    //     2. If the item is one of several slices, write the result to the workspace, and increment the tile's block counter.
    //     3. The last block done adds up all slices in their order, so that the sum does not depend on which block is the last.
    //
    // Returns whether the reduced tile is in `tile` of this block, visible to all its threads. The padding of each of
    // the item's rows is summed too, and must be initialised.
    __device__ __forceinline__ bool reduce_tile(const BlockGemm<T>& gemm) const {
        // Every thread reads sums that other warps have stored.
        __syncthreads();
        const LinearItem& item = shared.item;
        const uint32_t count = item.rows * gemm.pitch();
        float* slices = params.partials + 4 * static_cast<uint64_t>(item.partials);
        float* own = item.slices == 1 ? tile() : slices + item.slice * static_cast<uint64_t>(count);
        if (own != tile() || gemm.k_warps() > 1) {
            for (uint32_t i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
                sum_parts(tile() + i, gemm.k_warps(), gemm.slice_size()).store(own + i);
            }
        }
        if (item.slices > 1) {
            if (!reduce::is_last_block(params.counters + item.counter, item.slices)) return false;
#pragma unroll 2
            for (uint32_t i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
                sum_parts(slices + i, item.slices, count).store(tile() + i);
            }
        }
        // Threads read sums next that other threads have written.
        __syncthreads();
        return true;
    }

    // Distributes rows × packets over the threads of the block, and calls use(row, packet) for each. It steps through
    // the pairs by additions, because a division for each would be slow.
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

    // A software pipeline of cp.async copies. Calls load(s) for every stage s, with the copies of the next stages in
    // flight during use(s), and calls use(s) once the copies of load(s) are visible to all threads of the block.
    template <class Load, class Use>
    __device__ __forceinline__ static void pipeline(uint32_t stages, Load load, Use use) {
        constexpr uint32_t ahead = LinearShared::stages - 1;
#pragma unroll 1
        for (uint32_t s = 0; s < stages + ahead; ++s) {
            if (s >= ahead) {
                device::await_copies<ahead - 1>();
                // Each thread has awaited only its own copies. The barrier makes those of all threads visible, and says
                // that all threads have used the stage that load(s) overwrites.
                __syncthreads();
            }
            if (s < stages) load(s);
            // One commit group for each stage, which may be empty, so that await_copies can count stages.
            device::commit_copies();
            if (s >= ahead) use(s - ahead);
        }
        // All threads must have used the last stages before they are overwritten.
        __syncthreads();
    }
};
