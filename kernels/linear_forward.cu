// The masked softmax loss over hidden states [N, H] and a head [V, H], logit-free, in one launch: a grouped GEMM, a
// barrier of the grid, and a second grouped GEMM. Row t with token set C, target y, hidden state h and loss weight w
// has scores z_v = h·W_v + b_v and, at temperature τ,
//
//     loss_t = w·(ln Σ_{v ∈ C} exp(z_v/τ) − z_y/τ),    gradient_t = w/τ·(Σ_{v ∈ C} p_v W_v − W_y)
//
// both times τ where the convention multiplies the loss by τ. The gradient of the hidden states is written in their
// type, or without the factor w/τ in f32 for linear_backward.cu.
//
// Launch: cooperative, blocks of 256 threads, at most as many as are resident or there are items. The rows are grouped by token set. The host cuts
// the work of all groups into items and sorts them, the longest first, and blocks fetch them from an atomic queue. A
// block:
//
//     1. Scores (linear_scores.cuh). An item is a tile of 64 tokens × 64 rows: the head rows of the tokens, gathered by
//        cp.async into a pipeline of three stages, times the hidden states of the rows. It writes the scores in f32 and, for
//        each row, the maximum of the scores other than the target's and their moments.
//     2. Under BEAR (selection.cuh): a barrier of the grid, then the B-th largest score of each row.
//     3. The last block done adds up the statistics, steps τ if it is adaptive (temperature.cuh), and multiplies the loss
//        weights under BEAR.
//     4. A barrier of the grid.
//     5. Gradient (linear_gradient.cuh). An item is a tile of some columns × 64 rows: p from the scores, times the same head
//        rows, which are in the L2 cache by now. It writes losses and gradients.
//     6. The last block done adds up the losses.
//
// The tile of an item that takes too long is cut into split-K slices, which the last block done adds up in their order.
// Every sum has an order that depends on the batch and the device alone.
//
// Bytes moved: each phase reads the head rows and the hidden states (or scores) of an item once. A score (4 bytes) is
// written once, and read once for each tile of columns, and under BEAR 32 times more to find the B-th largest. A split-K slice writes and reads 4 bytes for each sum. A record
// takes 16 bytes for each row and 64 tokens. The unscaled gradient is 4·H bytes a row, written here and read by
// linear_backward.cu; otherwise the gradient is written once in the type of the hidden states. The target's head row is
// read once. An item is 48 bytes and a row 32.

#include "linear_gradient.cuh"
#include "linear_scores.cuh"

namespace {

template <class T>
class LinearForward : LinearPhase<T> {
public:
    using LinearPhase<T>::LinearPhase;

    __device__ __forceinline__ void run() const {
        const LinearScores<T> scores(params);
        process_all(params.score_count, [&](uint32_t i) { scores.process(params.score_items + i); });
        if (params.beam_weights.beams > 0) find_nth_scores();
        if (params.statistics) finish_first_phase();
        if (params.scores_only) return;
        // The next phase reads the scores and maxima of all blocks, the loss weights and the temperature.
        cooperative_groups::this_grid().sync();
        const LinearGradient<T> gradient(params, params.adapts ? *params.temperature : previous());
        process_all(params.gradient_count, [&](uint32_t i) { gradient.process(params.gradient_items + i); });
        write_ignored();
        if (params.loss && reduce::is_last_block(params.counters, gridDim.x)) sum_losses();
    }

private:
    using LinearPhase<T>::params;
    using LinearPhase<T>::batch;
    using LinearPhase<T>::shared;
    using LinearPhase<T>::packet;
    using LinearPhase<T>::warps;

    // Processes `count` items in their order, with all blocks of the grid: block i starts with item i, and then fetches
    // the next item from the queue until there is none. The results of an item do not depend on the block that
    // processes it.
    template <class Process>
    __device__ __forceinline__ void process_all(uint32_t count, Process process) const {
        const uint32_t first = smaller(gridDim.x, count);
        uint32_t item = blockIdx.x;
#pragma unroll 1
        while (item < count) {
            uint32_t fetched = 0;
            // The fetch is issued before the item is processed, which hides its latency. There are as many fetches as
            // items, so atomicInc wraps the counter to 0 at the last.
            if (threadIdx.x == 0) fetched = atomicInc(params.counters + 1, count - 1);
            process(item);
            if (threadIdx.x == 0) shared.next = first + fetched;
            // Every thread reads the index of the next item.
            __syncthreads();
            item = shared.next;
        }
    }

    __device__ __forceinline__ double previous() const { return params.previous ? *params.previous : params.given; }

    // Writes the statistics of all rows, the temperature and, under BEAR, the loss weights. The last block done does
    // it, or block 0 at once if none of these depends on scores.
    __device__ __forceinline__ void finish_first_phase() const {
        const bool has_beam_weights = params.beam_weights.beams > 0;
        Statistics statistics = {};
        if (params.sizes.rows == 0.0 && !has_beam_weights) {
            if (blockIdx.x != 0) return;
        } else {
            if (!reduce::is_last_block(params.counters, gridDim.x)) return;
            if (params.sizes.rows > 0.0) statistics = sum_statistics();
        }
        // Only thread 0 has the statistics, so it computes the temperature for all threads.
        double* shared_temperature = reinterpret_cast<double*>(shared.scratch);
        if (threadIdx.x == 0) {
            *shared_temperature = params.adapts ? next_temperature(params.step, statistics, previous()) : previous();
            *params.statistics = statistics;
            *params.temperature = *shared_temperature;
        }
        if (!has_beam_weights) return;
        // Every thread reads the temperature.
        __syncthreads();
        const double temperature = *shared_temperature;
        // The reduction in apply_beam_weights overwrites the temperature.
        __syncthreads();
        apply_beam_weights(params.beam_weights, batch.rows, batch.row_count, params.targets, params.nth_scores, temperature,
                           shared.scratch);
    }

    // Writes the B-th largest score of each row of the launch, one warp for each row.
    __device__ __forceinline__ void find_nth_scores() const {
        // Several blocks have written the scores of a row.
        cooperative_groups::this_grid().sync();
        const uint32_t lane = threadIdx.x % reduce::warp_size;
#pragma unroll 1
        for (uint32_t i = blockIdx.x * warps + threadIdx.x / reduce::warp_size; i < params.rows; i += gridDim.x * warps) {
            const uint32_t index = params.first_row + i;
            const LinearGroup group = LinearGroup::load(batch.groups + batch.rows[index].group);
            // Over the whole vocabulary `scores` holds only the rows of this launch.
            const uint64_t row = index - (batch.tokens ? group.first_row : params.first_row);
            const float* scores = params.scores + group.scores + row * group.stride();
            const float nth = nth_largest(params.beam_weights.beams, group.tokens, [&](uint32_t bound) {
                uint32_t count = 0;
#pragma unroll 4
                for (uint32_t k = lane; k < group.tokens; k += reduce::warp_size) count += ordered_bits(scores[k]) >= bound;
                return reduce::warp(reduce::Sum<uint32_t>(), count);
            });
            if (lane == 0) params.nth_scores[index] = nth;
        }
    }

    // Adds up the statistics of all rows, with all threads of the block. Only thread 0 gets the result.
    __device__ __forceinline__ Statistics sum_statistics() const {
        constexpr int length = StatisticsSums::length;
        static_assert(sizeof(StatisticsSums) * warps <= sizeof(shared.scratch), "scratch for the sums of all warps");
        StatisticsSums sums = {};
        for (uint32_t r = threadIdx.x; r < batch.row_count; r += blockDim.x) {
            const LinearRow row = LinearRow::load(batch.rows + r);
            if (row.in_statistics) sums.add(moments(r, row), params.targets[r]);
        }
        // One pass reduces all fields at once, with one barrier instead of one for each field.
        double* fields = reinterpret_cast<double*>(&sums);
        double* warp_sums = reinterpret_cast<double*>(shared.scratch);
#pragma unroll
        for (int k = 0; k < length; ++k) {
            fields[k] = reduce::warp(reduce::Sum<double>(), fields[k]);
            if (threadIdx.x % reduce::warp_size == 0) warp_sums[threadIdx.x / reduce::warp_size * length + k] = fields[k];
        }
        // Thread 0 reads the sums of all warps.
        __syncthreads();
        if (threadIdx.x != 0) return {};
#pragma unroll
        for (int k = 0; k < length; ++k) {
#pragma unroll
            for (uint32_t w = 1; w < warps; ++w) fields[k] += warp_sums[w * length + k];
        }
        return sums.statistics(params.sizes);
    }

    // Returns the moments of a row's scores minus the target's, from its records. The mean comes first and then the
    // deviations from it, because the terms of these two sums are independent, where Chan's formula would be a chain
    // over the tiles.
    __device__ __forceinline__ Moments::Value moments(uint32_t index, const LinearRow& row) const {
        const LinearGroup group = LinearGroup::load(batch.groups + row.group);
        const uint32_t tiles = group.tiles();
        const float target = params.targets[index];
        const ScoreRecord* records = params.records + group.records + (index - group.first_row) * static_cast<uint64_t>(tiles);
        const auto count = [&](uint32_t i) {
            return static_cast<float>(smaller(LinearGroup::tile, group.tokens - i * LinearGroup::tile));
        };
        const auto mean_of = [&](uint32_t i) { return records[i].mean + (records[i].shift - target); };
        double sum = 0.0;
#pragma unroll 4
        for (uint32_t i = 0; i < tiles; ++i) sum += count(i) * mean_of(i);
        const float mean = static_cast<float>(sum / group.tokens);
        double deviations = 0.0;
#pragma unroll 4
        for (uint32_t i = 0; i < tiles; ++i) {
            const float difference = mean_of(i) - mean;
            deviations += records[i].deviations + count(i) * difference * difference;
        }
        return {static_cast<float>(group.tokens), mean, static_cast<float>(deviations)};
    }

    __device__ __forceinline__ void sum_losses() const {
        double sum = 0.0;
        for (uint32_t r = threadIdx.x; r < batch.row_count; r += blockDim.x) sum += params.row_losses[r];
        sum = reduce::block(reduce::Sum<double>(), sum, shared.scratch);
        if (threadIdx.x == 0) *params.loss = static_cast<float>(sum);
    }

    // Writes loss 0 and gradient 0 of the ignored positions, one warp for each.
    __device__ __forceinline__ void write_ignored() const {
        const uint32_t lane = threadIdx.x % reduce::warp_size;
        const uint32_t first = blockIdx.x * warps + threadIdx.x / reduce::warp_size;
        for (uint32_t i = first; i < batch.ignored_count; i += gridDim.x * warps) {
            const uint32_t position = batch.ignored[i];
            if (params.losses && lane == 0) params.losses[position] = 0.0f;
            if (!params.hidden_gradient) continue;
            T* row = static_cast<T*>(params.hidden_gradient) + position * static_cast<uint64_t>(batch.width);
            for (uint32_t p = lane; p < Vector<T>::packets(batch.width); p += reduce::warp_size) {
                store_packet(row, batch.width, p, Packet<T>::from_bits(uint4{0, 0, 0, 0}));
            }
        }
    }
};

}  // namespace

KERNEL(linear_forward_f32, LinearForwardParams, 256, 2) { LinearForward<float>(params).run(); }
KERNEL(linear_forward_f16, LinearForwardParams, 256, 2) { LinearForward<__half>(params).run(); }
KERNEL(linear_forward_bf16, LinearForwardParams, 256, 2) { LinearForward<__nv_bfloat16>(params).run(); }
