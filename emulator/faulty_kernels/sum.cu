// Sums of f32 numbers, in an order that depends on the launch shape alone. It is a kernel in the style of the library, for the example
// in the emulator's documentation.
//
//     partials[b] = Σ_{b·chunk ≤ i < (b+1)·chunk} values[i]
//
// Launch: one block of whole warps for each chunk, with 4 bytes of shared memory for each warp.
// Bytes moved: each value (4 bytes) is read once, in 16-byte loads, and each block writes 4 bytes.

#include "packet.cuh"
#include "reduce.cuh"

struct SumParams {
    const float* values;
    float* partials;
    uint64_t count;
    uint64_t chunk;
};

namespace {

using Numbers = Packet<float>;

__device__ __forceinline__ uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

// The chunk is a multiple of a packet, so only the last block has values that do not fill a packet.
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
