// Accesses that no synchronisation orders. Each correct kernel is the faulty one with the missing synchronisation.

#include "params.cuh"

namespace {

__device__ __forceinline__ float* staged() { return reinterpret_cast<float*>(device::shared_memory()); }
__device__ __forceinline__ uint32_t neighbour() { return (threadIdx.x + 1) % blockDim.x; }

}  // namespace

KERNEL(race_sound_barrier, TestParams, 1024, 1) {
    staged()[threadIdx.x] = params.input[threadIdx.x];
    __syncthreads();
    const float value = staged()[neighbour()];
    __syncthreads();
    staged()[threadIdx.x] = value;
    params.output[blockIdx.x * blockDim.x + threadIdx.x] = staged()[threadIdx.x];
}

KERNEL(race_load_after_store, TestParams, 1024, 1) {
    if (threadIdx.x == 0) staged()[0] = 1.0f;
    __syncthreads();
    if (threadIdx.x == 40) staged()[0] = 2.0f;
    params.output[threadIdx.x] = staged()[0];
}

KERNEL(race_store_after_load, TestParams, 1024, 1) {
    staged()[threadIdx.x] = params.input[threadIdx.x];
    __syncthreads();
    const float value = staged()[neighbour()];
    staged()[threadIdx.x] = value;
    params.output[threadIdx.x] = value;
}

KERNEL(race_two_stores, TestParams, 1024, 1) {
    params.output[0] = static_cast<float>(threadIdx.x);  // fault: stores
}

// The halves of a word are different locations.
KERNEL(race_sound_halves, TestParams, 1024, 1) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(params.output);
    halves[threadIdx.x] = static_cast<uint16_t>(threadIdx.x);
}

KERNEL(race_sound_warp, TestParams, 32, 32) {
    staged()[threadIdx.x] = params.input[threadIdx.x];
    __syncwarp();
    params.output[threadIdx.x] = staged()[neighbour()];
}

KERNEL(race_warp_in_lockstep, TestParams, 32, 32) {
    staged()[threadIdx.x] = 0.0f;
    __syncwarp();
    staged()[threadIdx.x] = params.input[threadIdx.x];
    params.output[threadIdx.x] = staged()[neighbour()];
}

// A shuffle does not order memory.
KERNEL(race_shuffle_for_barrier, TestParams, 32, 32) {
    staged()[threadIdx.x] = 0.0f;
    __syncwarp();
    staged()[threadIdx.x] = params.input[threadIdx.x];
    const float lane = __shfl_sync(0xffffffffu, static_cast<float>(threadIdx.x), 0);
    params.output[threadIdx.x] = staged()[neighbour()] + lane;
}

// The barrier of one half of a warp orders only that half.
KERNEL(race_half_a_warp, TestParams, 32, 32) {
    staged()[threadIdx.x] = 0.0f;
    __syncwarp();
    staged()[threadIdx.x] = params.input[threadIdx.x];
    __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
    params.output[threadIdx.x] = staged()[threadIdx.x ^ 16];
}

KERNEL(race_sound_half_a_warp, TestParams, 32, 32) {
    staged()[threadIdx.x] = params.input[threadIdx.x];
    __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
    params.output[threadIdx.x] = staged()[threadIdx.x ^ 8];
}

KERNEL(race_sound_grid, TestParams, 1024, 1) {
    if (threadIdx.x == 0) params.output[blockIdx.x] = params.input[blockIdx.x];
    cooperative_groups::this_grid().sync();
    const float other = params.output[(blockIdx.x + 1) % gridDim.x];
    cooperative_groups::this_grid().sync();
    if (threadIdx.x == 0) params.output[blockIdx.x] = other;
}

KERNEL(race_between_blocks, TestParams, 1024, 1) {
    if (threadIdx.x == 0) params.output[blockIdx.x] = params.input[blockIdx.x];
    __syncthreads();
    if (blockIdx.x == 1 && threadIdx.x == 0) params.output[0] += 1.0f;
}

// A location that every block reads must not be written by any block, not even by one that has read it.
KERNEL(race_reader_writes, TestParams, 1024, 1) {
    const float value = params.input[0];
    if (blockIdx.x == 2 && threadIdx.x == 0) params.input[0] = value + 1.0f;
}

// The last block done reads what the others wrote. It takes a fence on either side of the block counter.
KERNEL(race_sound_last_block, TestParams, 1024, 1) {
    bool* last = reinterpret_cast<bool*>(device::shared_memory());
    params.output[blockIdx.x * blockDim.x + threadIdx.x] = params.input[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        *last = atomicAdd(params.counter, 1u) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!*last) return;
    const uint64_t other = (blockIdx.x + 1) % gridDim.x;
    params.output[blockIdx.x * blockDim.x + threadIdx.x] += params.output[other * blockDim.x + threadIdx.x];
}

KERNEL(race_last_block_without_fence, TestParams, 1024, 1) {
    bool* last = reinterpret_cast<bool*>(device::shared_memory());
    params.output[blockIdx.x * blockDim.x + threadIdx.x] = params.input[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) *last = atomicAdd(params.counter, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!*last) return;
    const uint64_t other = (blockIdx.x + 1) % gridDim.x;
    params.output[blockIdx.x * blockDim.x + threadIdx.x] += params.output[other * blockDim.x + threadIdx.x];
}

KERNEL(race_sound_atomics, TestParams, 1024, 1) { atomicAdd(params.counter, threadIdx.x); }

KERNEL(race_atomic_and_load, TestParams, 1024, 1) {
    if (threadIdx.x % 2 == 0) atomicAdd(params.counter, 1u);
    else params.output[threadIdx.x] = static_cast<float>(*params.counter);
}
