// The masked softmax loss over logits [N, V], with the gradient, in one launch. Row t with token set C, target y and
// logits z, at temperature τ and with share s of the result, has
//
//     loss_t = s·(ln Σ_{v ∈ C} exp(z_v/τ) − z_y/τ),    gradient_v = s/τ·(p_v − [v = y]) for v in C, else 0
//
// both times τ where the convention says so. The loss is their sum, in the order of the rows, or one number a position.
//
//     dense_given_*:     τ is known. The statistics of the batch, if any row enters them, are written for whoever steps the
//                        temperature.
//     dense_adaptive_*:  τ is stepped with the statistics of this very batch (temperature.cuh), or rows are weighed by their
//                        B-th largest logits (BEAR, selection.cuh), or both.
//
// Launch: a block takes every gridDim-th row and one row at a time; then its part of the positions that have none, whose
// gradient is 0, so that all blocks write about as much. Shared memory holds what `block` needs, a tile for each warp
// where there is a gradient, and `kept_capacity` logits. `adaptive` is cooperative: first all blocks gather the
// statistics rows, and keep them; the last block done steps τ; all wait for it and then do every row.
//
// The gradient may replace the logits. So one block alone reads the logits of a position, for its statistics and for its
// loss, and that block writes the position's gradient when it has read them.
//
// Bytes moved: each valid logit once where the row fits the kept logits (else once for each look:
// statistics, softmax, gradient); its token (4, but not for the whole vocabulary) once and, with a gradient, once more; 16 a row;
// 4 a position without a row; each byte of the gradient once, in 16-byte stores; 12 a row for the backward pass.

#include "gradient.cuh"
#include "selection.cuh"
#include "softmax.cuh"
#include "totals.cuh"

// Mirrors launch::DenseForwardParams.
struct DenseForwardParams {
    DenseBatch batch;
    // [N, width], rows `gradient_stride` apart; or none. It may be the logits.
    void* gradient;
    uint64_t gradient_stride;
    // One for each row that has a loss.
    Softmax* softmaxes;
    // One a position; or none, where they are to be added up.
    float* losses;
    float* loss;
    // The sums of all blocks, field by field.
    double* partials;
    Statistics* statistics;
    double* temperature;
    // The temperature so far: on the device, or else as given.
    const double* previous;
    double given;
    // The block counter, 0 before and after.
    uint32_t* block_counter;
    TemperatureStep step;
    StatisticsSizes sizes;
    BeamWeights beam_weights;
    // Under BEAR the target's logit and the B-th largest of each row that has a loss.
    float* targets;
    float* nth_logits;
    uint32_t kept_capacity;
    uint32_t times_temperature;
    // Whether τ takes a step with the statistics.
    uint32_t adapts;
    uint32_t unused;
};
static_assert(sizeof(DenseForwardParams) == 320 && offsetof(DenseForwardParams, batch) == 0 &&
    offsetof(DenseForwardParams, gradient) == 80 && offsetof(DenseForwardParams, gradient_stride) == 88 &&
    offsetof(DenseForwardParams, softmaxes) == 96 && offsetof(DenseForwardParams, losses) == 104 &&
    offsetof(DenseForwardParams, loss) == 112 && offsetof(DenseForwardParams, partials) == 120 &&
    offsetof(DenseForwardParams, statistics) == 128 && offsetof(DenseForwardParams, temperature) == 136 &&
    offsetof(DenseForwardParams, previous) == 144 && offsetof(DenseForwardParams, given) == 152 &&
    offsetof(DenseForwardParams, block_counter) == 160 && offsetof(DenseForwardParams, step) == 168 &&
    offsetof(DenseForwardParams, sizes) == 208 && offsetof(DenseForwardParams, beam_weights) == 240 &&
    offsetof(DenseForwardParams, targets) == 288 && offsetof(DenseForwardParams, nth_logits) == 296 &&
    offsetof(DenseForwardParams, kept_capacity) == 304 && offsetof(DenseForwardParams, times_temperature) == 308 &&
    offsetof(DenseForwardParams, adapts) == 312 && offsetof(DenseForwardParams, unused) == 316,
    "mirrors launch::DenseForwardParams");

namespace {

// Packets that a warp zeroes before it looks for its next piece of work.
constexpr uint32_t chunk = 512;

template <class T>
class Forward {
public:
    __device__ __forceinline__ explicit Forward(const DenseForwardParams& params) : params(params), batch(params.batch) {
        unsigned char* shared = device::shared_memory();
        scratch = shared + BlockSums::bytes;
        totals = {reinterpret_cast<BlockSums*>(shared), params.partials, scratch, blockIdx.x, gridDim.x};
        if (threadIdx.x == 0) *totals.of_block = {};
        shared = scratch + scratch_bytes;
        if (params.gradient) {
            tile = Tile<T>::of_warp(shared);
            shared += blockDim.x / reduce::warp_size * Tile<T>::bytes;
        }
        kept_logits = reinterpret_cast<T*>(shared);
    }

    // Statistics and loss of every row, at a temperature that does not depend on them.
    __device__ __forceinline__ void given() {
        temperature = previous();
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            const DenseRow row = DenseRow::load(batch.rows + r);
            ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
            keep(logits);
            if (r >= batch.first_statistics) add_statistics(row, logits);
            if (r < batch.counting) compute(r, row, logits);
            // The next row's logits are kept where these are, and the logits of a row without a loss may be overwritten
            // when all threads have read them.
            __syncthreads();
        }
        write_zeros_of_rows();
        write_ignored();
        const bool measures = batch.first_statistics < batch.row_count;
        totals.publish(measures ? 0 : StatisticsSums::length, BlockSums::length);
        if (!reduce::is_last_block(params.block_counter, gridDim.x)) return;
        // Each as soon as it is there, so that no thread holds all of them.
        if (measures) {
            const Statistics statistics = totals.statistics(params.sizes);
            if (threadIdx.x == 0) *params.statistics = statistics;
        } else if (threadIdx.x == 0) {
            *params.statistics = {};
        }
        totals.write_loss(params.loss);
        if (threadIdx.x == 0) *params.temperature = temperature;
    }

    __device__ __forceinline__ void adaptive() {
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            if (!is_looked_at_first(r)) continue;
            const DenseRow row = DenseRow::load(batch.rows + r);
            ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
            if (keep(logits)) used += logits.kept_elements();
            if (r >= batch.first_statistics) add_statistics(row, logits);
            if (weighs() && r < batch.counting) find_nth(r, row, logits);
        }
        totals.publish(0, StatisticsSums::length);
        if (reduce::is_last_block(params.block_counter, gridDim.x)) settle();
        // No block goes on before the last has written the temperature and the shares.
        cooperative_groups::this_grid().sync();

        temperature = *params.temperature;
        uint32_t passed = 0;
        for (uint32_t r = blockIdx.x; r < batch.counting; r += gridDim.x) {
            const DenseRow row = DenseRow::load(batch.rows + r);
            ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
            const uint32_t needed = logits.kept_elements();
            if (is_looked_at_first(r) && needed <= params.kept_capacity - passed) {
                // As the first phase decided, row by row.
                logits.kept_at(kept_logits + passed);
                passed += needed;
            } else {
                keep(logits);
            }
            compute(r, row, logits);
            // The next row's logits may be kept where these are.
            __syncthreads();
        }
        write_zeros_of_rows();
        write_ignored();
        totals.publish(StatisticsSums::length, BlockSums::length);
        if (reduce::is_last_block(params.block_counter, gridDim.x)) totals.write_loss(params.loss);
    }

private:
    const DenseForwardParams& params;
    const DenseBatch& batch;
    Totals totals;
    unsigned char* scratch;
    Tile<T> tile;
    // Shared memory for `kept_capacity` logits, `used` of which are taken.
    T* kept_logits;
    uint32_t used = 0;
    double temperature;

    __device__ __forceinline__ double previous() const { return params.previous ? *params.previous : params.given; }

    __device__ __forceinline__ bool weighs() const { return params.beam_weights.beams > 0; }

    // Whether all rows wait for something of this one.
    __device__ __forceinline__ bool is_looked_at_first(uint32_t r) const { return weighs() || r >= batch.first_statistics; }

    // The statistics, the temperature and the shares of rows. By the last block.
    __device__ __forceinline__ void settle() {
        Statistics statistics = {};
        if (batch.first_statistics < batch.row_count) statistics = totals.statistics(params.sizes);
        if (threadIdx.x == 0) {
            *params.statistics = statistics;
            *params.temperature = params.adapts ? stepped(params.step, statistics, previous()) : previous();
        }
        if (!weighs()) return;
        // Every thread weighs rows at the temperature.
        __syncthreads();
        weigh_rows(params.beam_weights, batch.rows, batch.counting, params.targets, params.nth_logits, *params.temperature,
                   scratch);
    }

    // By all threads of the block.
    __device__ __forceinline__ void find_nth(uint32_t r, const DenseRow& row, const ValidLogits<T>& logits) const {
        const float nth = nth_largest(params.beam_weights.beams, logits.size, [&](uint32_t bound) {
            uint32_t count = 0;
            logits.visit([&](uint32_t, auto& logits) {
                for (float& logit : logits) count += ordered_bits(logit) >= bound;
            });
            return reduce::block(reduce::Sum<uint32_t>(), count, scratch);
        });
        if (threadIdx.x != 0) return;
        params.targets[r] = logits[row.rank];
        params.nth_logits[r] = nth;
    }

    __device__ __forceinline__ bool keep(ValidLogits<T>& logits) const {
        if (logits.kept_elements() > params.kept_capacity - used) return false;
        logits.keep(kept_logits + used);
        // Whoever looks at the logits from here on looks at what any thread has kept.
        __syncthreads();
        return true;
    }

    __device__ __forceinline__ void add_statistics(const DenseRow& row, const ValidLogits<T>& logits) const {
        const float target = logits[row.rank];
        Moments::Value moments = Moments().identity();
        logits.visit([&](uint32_t, auto& logits) {
            for (float& logit : logits) logit -= target;
            moments = Moments().add(moments, logits);
        });
        moments = reduce::block(Moments(), moments, scratch);
        if (threadIdx.x == 0) totals.of_block->statistics.add(moments, target);
    }

    // The softmax of a row, its loss and its gradient.
    __device__ __forceinline__ void compute(uint32_t r, const DenseRow& row, const ValidLogits<T>& logits) {
        const Exponentials exponentials = {static_cast<float>(1.0 / temperature)};
        Exponentials::Value others = exponentials.identity();
        logits.visit([&](uint32_t index, auto& logits) {
            // As good as not there.
            put(logits, row.rank - index, -INFINITY);
            others = exponentials.add(others, logits);
        });
        const float target = logits[row.rank];
        others = reduce::block(exponentials, others, scratch);
        const Softmax softmax = Softmax::of(others, target, exponentials.inverse_temperature);

        if (threadIdx.x == 0) {
            params.softmaxes[r] = softmax;
            const double factor = row.share * (params.times_temperature ? temperature : 1.0);
            const double value = factor * softmax.loss();
            if (params.losses) {
                params.losses[row.position] = static_cast<float>(value);
            } else {
                totals.of_block->loss += value;
            }
        }
        if (params.gradient) write_row(row, logits, softmax, exponentials.inverse_temperature);
    }

    __device__ __forceinline__ GradientRow<T> gradient_of(uint32_t position) const {
        return GradientRow<T>(static_cast<T*>(params.gradient) + position * params.gradient_stride,
                              static_cast<uint32_t>(batch.width));
    }

    // Each warp writes a stretch of the row, of whole lines of memory: as write(first packet, end).
    template <class Write>
    __device__ __forceinline__ void write_stretches(const GradientRow<T>& gradient, Write write) const {
        const uint32_t packets = gradient.packets(), warps = blockDim.x / reduce::warp_size;
        const uint32_t stretch = ((packets + warps - 1) / warps + 7) / 8 * 8;
        const uint32_t begin = smaller(threadIdx.x / reduce::warp_size * stretch, packets);
        write(begin, smaller(begin + stretch, packets));
    }

    __device__ __forceinline__ void write_row(const DenseRow& row, const ValidLogits<T>& logits, const Softmax& softmax,
                                              float inverse_temperature) const {
        const RowGradient<T> value(logits, softmax, inverse_temperature, row.rank,
                                      row.share * (params.times_temperature ? 1.0f : inverse_temperature));
        const GradientRow<T> gradient = gradient_of(row.position);
        write_stretches(gradient, [&](uint32_t begin, uint32_t end) { write_gradient(gradient, begin, end, tile, value); });
    }

    // The loss and the gradient of the rows that have statistics alone, by the blocks that have read their logits: no
    // other knows when they may be overwritten.
    __device__ __forceinline__ void write_zeros_of_rows() const {
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            if (r < batch.counting) continue;
            const uint32_t position = batch.rows[r].position;
            if (params.losses && threadIdx.x == 0) params.losses[position] = 0.0f;
            if (!params.gradient) continue;
            const GradientRow<T> gradient = gradient_of(position);
            write_stretches(gradient, [&](uint32_t begin, uint32_t end) { write_zeros(gradient, begin, end); });
        }
    }

    // What no row writes: zeros.
    __device__ __forceinline__ void write_ignored() const {
        if (params.losses) {
            for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < batch.ignored_count; i += gridDim.x * blockDim.x) {
                params.losses[batch.ignored[i]] = 0.0f;
            }
        }
        if (!params.gradient) return;
        const uint32_t warps = blockDim.x / reduce::warp_size, warp = threadIdx.x / reduce::warp_size;
        const int64_t chunks = (batch.width + 2 * Packet<T>::size - 2) / Packet<T>::size / chunk + 1;
        const int64_t end = first_ignored_chunk(blockIdx.x + 1, chunks);
        for (int64_t i = first_ignored_chunk(blockIdx.x, chunks) + warp; i < end; i += warps) {
            const GradientRow<T> gradient = gradient_of(batch.ignored[i / chunks]);
            const uint32_t begin = static_cast<uint32_t>(i % chunks) * chunk;
            write_zeros(gradient, begin, smaller(begin + chunk, gradient.packets()));
        }
    }

    // Where a block's part of the ignored chunks begins: blocks that had a row less take as many chunks more.
    __device__ __forceinline__ int64_t first_ignored_chunk(int64_t block, int64_t chunks) const {
        const int64_t rows = batch.row_count, blocks = gridDim.x, all = batch.ignored_count * chunks;
        const int64_t share = (rows * chunks + all + blocks - 1) / blocks;
        const int64_t rows_before = block * (rows / blocks) + (block < rows % blocks ? block : rows % blocks);
        const int64_t first = block * share - rows_before * chunks;
        return first < 0 ? 0 : first < all ? first : all;
    }

    __device__ __forceinline__ static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
};

}  // namespace

KERNEL(dense_given_f32, DenseForwardParams, 512, 2) { Forward<float>(params).given(); }
KERNEL(dense_given_f16, DenseForwardParams, 512, 2) { Forward<__half>(params).given(); }
KERNEL(dense_given_bf16, DenseForwardParams, 512, 2) { Forward<__nv_bfloat16>(params).given(); }

KERNEL(dense_adaptive_f32, DenseForwardParams, 512, 2) { Forward<float>(params).adaptive(); }
KERNEL(dense_adaptive_f16, DenseForwardParams, 512, 2) { Forward<__half>(params).adaptive(); }
KERNEL(dense_adaptive_bf16, DenseForwardParams, 512, 2) { Forward<__nv_bfloat16>(params).adaptive(); }
