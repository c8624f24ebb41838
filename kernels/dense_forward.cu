// The masked softmax loss over logits [N, V] and, optionally, dlogits [N, V], in one launch. Row t with token set C,
// target y, logits z and loss weight w has, at temperature τ,
//
//     loss_t = w·(ln Σ_{v ∈ C} exp(z_v/τ) − z_y/τ),    gradient_v = w/τ·(p_v − [v = y]) for v in C, else 0
//
// both times τ where the convention multiplies the loss by τ. The loss is the sum over the rows, or one number for each
// position.
//
//     dense_given_*:     τ is known before the launch. The statistics of the batch, if any row enters them, are written for
//                        the host to step the temperature with.
//     dense_adaptive_*:  rows depend on all rows: τ is stepped with the statistics of this batch (temperature.cuh), or loss
//                        weights are multiplied by BEAR's (selection.cuh), or both.
//
// Launch: blocks of whole warps; the adaptive kernels are cooperative. A block processes every gridDim-th row, one row
// at a time with all its threads. Dynamic shared memory holds the block's sums, the scratch of block reductions, one
// tile for each warp if there is a gradient (gradient.cuh), and a cache of `cache_capacity` logits.
//
// A block of `given`, for each of its rows:
//     1. copies the valid logits to the cache, if they fit,
//     2. adds their moments to the statistics, if the row enters them,
//     3. computes the softmax statistics and the loss, if the row has a loss, and
//     4. writes the row's dlogits, each warp a range of packets.
// It then writes the zeros of its part of the ignored positions, which is cut so that all blocks write about as much,
// and publishes its sums. The last block done adds up the sums of all.
//
// A block of `adaptive` has two phases. In the first it does steps 1 and 2 for the rows that τ depends on (all rows
// under BEAR, with their B-th largest logits), and fills the cache with as many rows as fit. The last block done steps
// τ and multiplies the loss weights. After a barrier of the grid, each block does steps 1, 3 and 4 for all its rows,
// and reads the rows in its cache from there.
//
// The gradient may overwrite the logits. This is why only one block reads the logits of a position, in both phases, and
// that block writes the position's gradient after it has read them.
//
// Bytes moved: each valid logit is read once if its row fits the cache, and otherwise once for each use (statistics,
// softmax, gradient, and under BEAR 32 times to find the B-th largest). Its token (4 bytes, none for the whole vocabulary)
// is read whenever the logit is, and once more for the gradient of a cached row.
// Each row reads 16 bytes (DenseRow), in each of two phases if it has a loss and τ depends on it, and writes 12 (Softmax)
// for the backward pass. An ignored position reads 4 for each chunk of its gradient.
// Each byte of the gradient is written once, in 16-byte stores.

#include "gradient.cuh"
#include "selection.cuh"
#include "softmax.cuh"
#include "totals.cuh"

// Mirrors launch::DenseForwardParams.
struct DenseForwardParams {
    DenseBatch batch;
    // [N, width]: dlogits for an upstream gradient of 1; null if they are not wanted. It may be the same memory as the
    // logits.
    void* gradient;
    // Row stride of `gradient`, in elements.
    uint64_t gradient_stride;
    // [loss_row_count]: saved for the backward pass.
    Softmax* softmaxes;
    // [N]: the loss of each position; null if the losses are added up.
    float* losses;
    // [1]: the sum of the losses; null if each position has its own.
    float* loss;
    // [BlockSums::length, gridDim]: the workspace for the sums of all blocks.
    double* partials;
    // [1]: the statistics of the batch.
    Statistics* statistics;
    // [1]: the temperature that the loss is computed at.
    double* temperature;
    // [1]: the temperature before this launch; null if it is `given`.
    const double* previous;
    double given;
    // [1]: the block counter, which is 0 before and after the launch.
    uint32_t* block_counter;
    TemperatureStep step;
    StatisticsSizes sizes;
    BeamWeights beam_weights;
    // [loss_row_count] each: the target's logit and the B-th largest logit of each row; null without BEAR.
    float* targets;
    float* nth_logits;
    // How many logits fit the cache in shared memory of a block.
    uint32_t cache_capacity;
    // 1 if the loss is multiplied by τ.
    uint32_t times_temperature;
    // 1 if τ takes a step with the statistics of this batch.
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
    offsetof(DenseForwardParams, cache_capacity) == 304 && offsetof(DenseForwardParams, times_temperature) == 308 &&
    offsetof(DenseForwardParams, adapts) == 312 && offsetof(DenseForwardParams, unused) == 316,
    "mirrors launch::DenseForwardParams");

namespace {

// The packets that a warp zeroes at a time. Mirrors CHUNK of the launch plan.
constexpr uint32_t chunk = 512;

template <class T>
class Forward {
public:
    __device__ __forceinline__ explicit Forward(const DenseForwardParams& params) : params(params), batch(params.batch) {
        unsigned char* shared = device::shared_memory();
        scratch = shared + BlockSums::bytes;
        totals = {reinterpret_cast<BlockSums*>(shared), params.partials, scratch, blockIdx.x, gridDim.x};
        if (threadIdx.x == 0) *totals.block_sums = {};
        shared = scratch + scratch_bytes;
        if (params.gradient) {
            tile = Tile<T>::of_warp(shared);
            shared += blockDim.x / reduce::warp_size * Tile<T>::bytes;
        }
        logit_cache = reinterpret_cast<T*>(shared);
    }

    // Computes the statistics and the loss of every row at a temperature that does not depend on them.
    __device__ __forceinline__ void given() {
        temperature = previous();
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            const DenseRow row = DenseRow::load(batch.rows + r);
            ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
            cache(logits);
            if (r >= batch.first_statistics) add_statistics(row, logits);
            if (r < batch.loss_row_count) compute(r, row, logits);
            // All threads must have read the logits before the next row overwrites them in the cache, and before
            // write_zeros_of_rows overwrites those of a row without a loss in global memory.
            __syncthreads();
        }
        write_zeros_of_rows();
        write_ignored();
        const bool has_statistics = batch.first_statistics < batch.row_count;
        totals.publish(has_statistics ? 0 : StatisticsSums::length, BlockSums::length);
        if (!reduce::is_last_block(params.block_counter, gridDim.x)) return;
        // Each result is written as soon as it is computed, which keeps the number of live registers low.
        if (has_statistics) {
            const Statistics statistics = totals.statistics(params.sizes);
            if (threadIdx.x == 0) *params.statistics = statistics;
        } else if (threadIdx.x == 0) {
            *params.statistics = {};
        }
        totals.write_loss(params.loss);
        if (threadIdx.x == 0) *params.temperature = temperature;
    }

    // Computes what all rows depend on, waits for the grid, and then computes the loss of every row.
    __device__ __forceinline__ void adaptive() {
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            if (!is_in_first_phase(r)) continue;
            const DenseRow row = DenseRow::load(batch.rows + r);
            ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
            if (cache(logits)) cache_used += logits.cache_elements();
            if (r >= batch.first_statistics) add_statistics(row, logits);
            if (has_beam_weights() && r < batch.loss_row_count) find_nth(r, row, logits);
        }
        totals.publish(0, StatisticsSums::length);
        if (reduce::is_last_block(params.block_counter, gridDim.x)) finish_first_phase();
        // The last block has written the temperature and the loss weights that all blocks read next.
        cooperative_groups::this_grid().sync();

        temperature = *params.temperature;
        uint32_t cache_offset = 0;
        for (uint32_t r = blockIdx.x; r < batch.loss_row_count; r += gridDim.x) {
            const DenseRow row = DenseRow::load(batch.rows + r);
            ValidLogits<T> logits = ValidLogits<T>::of(batch, row);
            const uint32_t needed = logits.cache_elements();
            if (is_in_first_phase(r) && needed <= params.cache_capacity - cache_offset) {
                // The first phase cached this row. It saw the same rows in the same order, so the same ones fit.
                logits.use_cache(logit_cache + cache_offset);
                cache_offset += needed;
            } else {
                cache(logits);
            }
            compute(r, row, logits);
            // The next row's logits may overwrite these in the cache.
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
    // [cache_capacity] in shared memory, the first `cache_used` of which hold rows that the second phase reads again.
    T* logit_cache;
    uint32_t cache_used = 0;
    double temperature;

    __device__ __forceinline__ double previous() const { return params.previous ? *params.previous : params.given; }

    __device__ __forceinline__ bool has_beam_weights() const { return params.beam_weights.beams > 0; }

    // Whether the temperature or BEAR's weights depend on the logits of row r.
    __device__ __forceinline__ bool is_in_first_phase(uint32_t r) const {
        return has_beam_weights() || r >= batch.first_statistics;
    }

    // Writes the statistics, the temperature and, under BEAR, the loss weights, by the last block done.
    __device__ __forceinline__ void finish_first_phase() {
        Statistics statistics = {};
        if (batch.first_statistics < batch.row_count) statistics = totals.statistics(params.sizes);
        if (threadIdx.x == 0) {
            *params.statistics = statistics;
            *params.temperature = params.adapts ? next_temperature(params.step, statistics, previous()) : previous();
        }
        if (!has_beam_weights()) return;
        // Every thread reads the temperature that thread 0 wrote.
        __syncthreads();
        apply_beam_weights(params.beam_weights, batch.rows, batch.loss_row_count, params.targets, params.nth_logits,
                           *params.temperature, scratch);
    }

    // Writes the target's and the B-th largest logit of a row, with all threads of the block.
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

    // Copies the logits of a row to the free part of the cache, with all threads of the block. Returns whether they
    // fit.
    __device__ __forceinline__ bool cache(ValidLogits<T>& logits) const {
        if (logits.cache_elements() > params.cache_capacity - cache_used) return false;
        logits.cache(logit_cache + cache_used);
        // Every thread may read logits that others have copied.
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
        if (threadIdx.x == 0) totals.block_sums->statistics.add(moments, target);
    }

    // Computes the softmax of a row, its loss and its gradient, with all threads of the block.
    __device__ __forceinline__ void compute(uint32_t r, const DenseRow& row, const ValidLogits<T>& logits) {
        const Exponentials exponentials = {static_cast<float>(1.0 / temperature)};
        Exponentials::Value others = exponentials.identity();
        logits.visit([&](uint32_t index, auto& logits) {
            // exp(−∞) adds 0: the target is not one of the others.
            set_element(logits, row.rank - index, -INFINITY);
            others = exponentials.add(others, logits);
        });
        const float target = logits[row.rank];
        others = reduce::block(exponentials, others, scratch);
        const Softmax softmax = Softmax::of(others, target, exponentials.inverse_temperature);

        if (threadIdx.x == 0) {
            params.softmaxes[r] = softmax;
            const double factor = row.loss_weight * (params.times_temperature ? temperature : 1.0);
            const double value = factor * softmax.loss();
            if (params.losses) {
                params.losses[row.position] = static_cast<float>(value);
            } else {
                totals.block_sums->loss += value;
            }
        }
        if (params.gradient) write_row(row, logits, softmax, exponentials.inverse_temperature);
    }

    __device__ __forceinline__ GradientRow<T> gradient_of(uint32_t position) const {
        return GradientRow<T>(static_cast<T*>(params.gradient) + position * params.gradient_stride,
                              static_cast<uint32_t>(batch.width));
    }

    // Splits the packets of a row among the warps of the block, at multiples of 128 bytes, and calls write(begin, end)
    // for this warp's range.
    template <class Write>
    __device__ __forceinline__ void for_each_warp_range(const GradientRow<T>& gradient, Write write) const {
        const uint32_t packets = gradient.packets(), warps = blockDim.x / reduce::warp_size;
        const uint32_t length = ((packets + warps - 1) / warps + 7) / 8 * 8;
        const uint32_t begin = smaller(threadIdx.x / reduce::warp_size * length, packets);
        write(begin, smaller(begin + length, packets));
    }

    __device__ __forceinline__ void write_row(const DenseRow& row, const ValidLogits<T>& logits, const Softmax& softmax,
                                              float inverse_temperature) const {
        const RowGradient<T> value(logits, softmax, inverse_temperature, row.rank,
                                      row.loss_weight * (params.times_temperature ? 1.0f : inverse_temperature));
        const GradientRow<T> gradient = gradient_of(row.position);
        for_each_warp_range(gradient, [&](uint32_t begin, uint32_t end) { write_gradient(gradient, begin, end, tile, value); });
    }

    // Writes loss 0 and gradient 0 of the rows that only enter the statistics. The block that read a row's logits does
    // it, because no other block knows when they may be overwritten.
    __device__ __forceinline__ void write_zeros_of_rows() const {
        for (uint32_t r = blockIdx.x; r < batch.row_count; r += gridDim.x) {
            if (r < batch.loss_row_count) continue;
            const uint32_t position = batch.rows[r].position;
            if (params.losses && threadIdx.x == 0) params.losses[position] = 0.0f;
            if (!params.gradient) continue;
            const GradientRow<T> gradient = gradient_of(position);
            for_each_warp_range(gradient, [&](uint32_t begin, uint32_t end) { write_zeros(gradient, begin, end); });
        }
    }

    // Writes loss 0 and gradient 0 of the ignored positions: losses by thread, gradients by warp in chunks of packets.
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

    // Returns the first of the ignored chunks that a block zeroes. Every block writes about `per_block` chunks in all,
    // so those that had one row less zero as many chunks more.
    __device__ __forceinline__ int64_t first_ignored_chunk(int64_t block, int64_t chunks) const {
        const int64_t rows = batch.row_count, blocks = gridDim.x, all = batch.ignored_count * chunks;
        const int64_t per_block = (rows * chunks + all + blocks - 1) / blocks;
        const int64_t rows_before = block * (rows / blocks) + (block < rows % blocks ? block : rows % blocks);
        const int64_t first = block * per_block - rows_before * chunks;
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
