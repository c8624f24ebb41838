// Sums of f32 numbers, in an order fixed by the launch shape.
//
//     block_sum:  partials[b] = Σ_{b·chunk ≤ i < (b+1)·chunk} values[i]
//     grid_sum:   the same, then total = Σ_b partials[b]
//
// Launch: one block a chunk, whole warps, `scratch_bytes` of shared memory. `grid_sum` is cooperative: all blocks are
// resident, and the first one adds up the partials after the grid has synchronised.
// Bytes moved: 4 a value, once, in 16-byte loads; 4 a block written, and read once more by `grid_sum`.

#include "packet.cuh"
#include "reduce.cuh"

// Mirrors launch::SumParams.
struct SumParams {
    const float* values;
    float* partials;
    float* total;
    uint64_t count;
    uint64_t chunk;
};
static_assert(sizeof(SumParams) == 40, "mirrors launch::SumParams");
static_assert(offsetof(SumParams, partials) == 8 && offsetof(SumParams, total) == 16, "mirrors launch::SumParams");
static_assert(offsetof(SumParams, count) == 24 && offsetof(SumParams, chunk) == 32, "mirrors launch::SumParams");

namespace {

using Numbers = Packet<float>;

__device__ __forceinline__ uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

// The chunk is a multiple of the packet, so only the last block has values that fill none.
__device__ float sum_of_chunk(const SumParams& params) {
    const uint64_t begin = smaller(blockIdx.x * params.chunk, params.count);
    const uint64_t end = smaller(begin + params.chunk, params.count);
    const uint64_t packed = begin + (end - begin) / Numbers::size * Numbers::size;

    float sum = 0.0f;
    for (uint64_t i = begin + threadIdx.x * Numbers::size; i < packed; i += blockDim.x * Numbers::size) {
        const Numbers numbers = Numbers::load(params.values + i);
#pragma unroll
        for (int k = 0; k < Numbers::size; ++k) sum += numbers.values[k];
    }
    if (packed + threadIdx.x < end) sum += params.values[packed + threadIdx.x];
    return reduce::block(reduce::Sum<float>(), sum, device::shared_memory());
}

}  // namespace

KERNEL(block_sum, SumParams, 1024, 1) {
    const float sum = sum_of_chunk(params);
    if (threadIdx.x == 0) params.partials[blockIdx.x] = sum;
}

KERNEL(grid_sum, SumParams, 1024, 1) {
    const float partial = sum_of_chunk(params);
    if (threadIdx.x == 0) params.partials[blockIdx.x] = partial;
    // The first block reads what all the others wrote.
    cooperative_groups::this_grid().sync();
    if (blockIdx.x != 0) return;

    float sum = 0.0f;
    for (uint32_t block = threadIdx.x; block < gridDim.x; block += blockDim.x) sum += params.partials[block];
    sum = reduce::block(reduce::Sum<float>(), sum, device::shared_memory());
    if (threadIdx.x == 0) *params.total = sum;
}
