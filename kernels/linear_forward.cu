// The masked softmax loss over hidden states [N, H] and a head [V, H], without logits, in one launch. Row t with token set C,
// target y and hidden state h, at temperature τ and with share s of the result, has scores z_v = h·W_v + b_v and
//
//     loss_t = s·(ln Σ_{v ∈ C} exp(z_v/τ) − z_y/τ),    gradient_t = s/τ·(Σ_{v ∈ C} p_v W_v − W_y)
//
// both times τ where the convention says so. The gradient of the hidden states comes out as that, or unscaled, in f32, for
// linear_backward.cu: without s/τ.
//
// Launch: cooperative, blocks of 256 threads, as many as are resident. Rows are grouped by token set, and the host cuts what
// is to be done with a group into items, the longest first; a block takes one after the other, each the next that no block has.
//
//     scores (linear_scores.cuh)     64 tokens × 64 rows: head rows of the tokens, gathered where they lie, times hidden
//                                    states of the rows, through a pipeline of three stages of asynchronous copies. Writes
//                                    scores in f32 and, of each row, the largest but the target's and moments.
//     under BEAR (selection.cuh)     a barrier of the grid, and the B-th largest score of each row
//     the last block done            adds up the statistics and steps τ (temperature.cuh), where it is adaptive; under BEAR
//                                    weighs the rows
//     a barrier of the grid
//     gradient (linear_gradient.cuh) some columns × 64 rows: p from the scores, times the same head rows, which the L2 cache
//                                    has by now. Writes losses and gradient.
//     the last block done            adds up the losses
//
// An item that would keep its block for long is cut into slices of what is summed over; the last block done adds them
// up in their order. Every sum has an order that depends on the batch and the device alone.
//
// Bytes moved: each head row of an item and its hidden states once a phase; 4 a score written, and read once for each piece of
// the columns; 4 a score or gradient and slice, written and read; 16 a row and 64 tokens; 4 H of gradient a row written, read
// and written again, or its last writing in the type of the hidden states; the target's head row once; 48 an item, 32 a row.

#include "linear_gradient.cuh"
#include "linear_scores.cuh"

namespace {

template <class T>
class LinearForward : LinearPhase<T> {
public:
    using LinearPhase<T>::LinearPhase;

    __device__ __forceinline__ void run() const {
        const LinearScores<T> scores(params);
        take_all(params.score_count, [&](uint32_t i) { scores.take(params.score_items + i); });
        if (params.beam_weights.beams > 0) find_nth_scores();
        if (params.statistics) settle();
        if (params.scores_only) return;
        // The scores and records of all blocks are read next, and the temperature.
        cooperative_groups::this_grid().sync();
        const LinearGradient<T> gradient(params, params.adapts ? *params.temperature : previous());
        take_all(params.gradient_count, [&](uint32_t i) { gradient.take(params.gradient_items + i); });
        write_ignored();
        if (params.loss && reduce::is_last_block(params.counters, gridDim.x)) add_up_losses();
    }

private:
    using LinearPhase<T>::params;
    using LinearPhase<T>::batch;
    using LinearPhase<T>::shared;
    using LinearPhase<T>::packet;
    using LinearPhase<T>::warps;

    // Takes items, the longest first: each block the one of its own number, and after each whichever no block has taken. What comes
    // of an item does not depend on who takes it.
    template <class Take>
    __device__ __forceinline__ void take_all(uint32_t count, Take take) const {
        const uint32_t first = smaller(gridDim.x, count);
        uint32_t item = blockIdx.x;
#pragma unroll 1
        while (item < count) {
            uint32_t taken = 0;
            // Asked for before the item, which takes longer than the answer. There are as many questions as items, so that the counter
            // is 0 again after the last.
            if (threadIdx.x == 0) taken = atomicInc(params.counters + 1, count - 1);
            take(item);
            if (threadIdx.x == 0) shared.next = first + taken;
            // Every thread goes on with the same item.
            __syncthreads();
            item = shared.next;
        }
    }

    __device__ __forceinline__ double previous() const { return params.previous ? *params.previous : params.given; }

    // Writes the statistics of all rows, the temperature and, under BEAR, the shares of rows: by the last block, or by any
    // where nothing depends on scores.
    __device__ __forceinline__ void settle() const {
        const bool weighs = params.beam_weights.beams > 0;
        Statistics statistics = {};
        if (params.sizes.rows == 0.0 && !weighs) {
            if (blockIdx.x != 0) return;
        } else {
            if (!reduce::is_last_block(params.counters, gridDim.x)) return;
            if (params.sizes.rows > 0.0) statistics = add_up_statistics();
        }
        // The statistics are the first thread's; with them all threads compute the same.
        double* shared_temperature = reinterpret_cast<double*>(shared.scratch);
        if (threadIdx.x == 0) {
            *shared_temperature = params.adapts ? stepped(params.step, statistics, previous()) : previous();
            *params.statistics = statistics;
            *params.temperature = *shared_temperature;
        }
        if (!weighs) return;
        // Every thread weighs rows at the temperature.
        __syncthreads();
        const double temperature = *shared_temperature;
        // Sums go where the temperature was.
        __syncthreads();
        weigh_rows(params.beam_weights, batch.rows, batch.row_count, params.targets, params.nth_scores, temperature,
                   shared.scratch);
    }

    // A warp takes a row.
    __device__ __forceinline__ void find_nth_scores() const {
        // The scores of a row come from several blocks.
        cooperative_groups::this_grid().sync();
        const uint32_t lane = threadIdx.x % reduce::warp_size;
#pragma unroll 1
        for (uint32_t i = blockIdx.x * warps + threadIdx.x / reduce::warp_size; i < params.rows; i += gridDim.x * warps) {
            const uint32_t index = params.first_row + i;
            const LinearGroup group = LinearGroup::load(batch.groups + batch.rows[index].group);
            // Over the whole vocabulary the scores are those of this launch's rows.
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

    // For the first thread.
    __device__ __forceinline__ Statistics add_up_statistics() const {
        constexpr int length = StatisticsSums::length;
        static_assert(sizeof(StatisticsSums) * warps <= sizeof(shared.scratch), "room for the sums of all warps");
        StatisticsSums sums = {};
        for (uint32_t r = threadIdx.x; r < batch.row_count; r += blockDim.x) {
            const LinearRow row = LinearRow::load(batch.rows + r);
            if (row.in_statistics) sums.add(moments(r, row), params.targets[r]);
        }
        // All fields side by side: none waits for another.
        double* fields = reinterpret_cast<double*>(&sums);
        double* of_warps = reinterpret_cast<double*>(shared.scratch);
#pragma unroll
        for (int k = 0; k < length; ++k) {
            fields[k] = reduce::warp(reduce::Sum<double>(), fields[k]);
            if (threadIdx.x % reduce::warp_size == 0) of_warps[threadIdx.x / reduce::warp_size * length + k] = fields[k];
        }
        // The first thread reads what the others have written.
        __syncthreads();
        if (threadIdx.x != 0) return {};
#pragma unroll
        for (int k = 0; k < length; ++k) {
#pragma unroll
            for (uint32_t w = 1; w < warps; ++w) fields[k] += of_warps[w * length + k];
        }
        return sums.statistics(params.sizes);
    }

    // Of a row's scores relative to the target's: first their mean, then what they deviate from it, so that the numbers of no
    // tile wait for those of another.
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
            const float apart = mean_of(i) - mean;
            deviations += records[i].deviations + count(i) * apart * apart;
        }
        return {static_cast<float>(group.tokens), mean, static_cast<float>(deviations)};
    }

    __device__ __forceinline__ void add_up_losses() const {
        double sum = 0.0;
        for (uint32_t r = threadIdx.x; r < batch.row_count; r += blockDim.x) sum += params.row_losses[r];
        sum = reduce::block(reduce::Sum<double>(), sum, shared.scratch);
        if (threadIdx.x == 0) *params.loss = static_cast<float>(sum);
    }

    // The zeros of positions that are no row's. A warp takes a position.
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
