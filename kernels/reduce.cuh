// Deterministic reductions over a warp, a block and a grid. Their order depends on the launch shape alone, so the same
// input gives the same bits.
//
// An operation has a `Value`, an `identity()`, a commutative `combine(a, b)` and a `shuffle(value, lanes)`, which
// returns the value of lane (own lane XOR lanes).
#pragma once

#include "device.cuh"

namespace reduce {

constexpr int warp_size = 32;
constexpr unsigned full_warp_mask = 0xffffffffu;
constexpr int largest_block = 1024;

template <class Number>
struct Sum {
    using Value = Number;
    __device__ __forceinline__ Value identity() const { return 0; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return a + b; }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return __shfl_xor_sync(full_warp_mask, value, lanes);
    }
};

// The maximum, which ignores NaN.
struct Maximum {
    using Value = float;
    __device__ __forceinline__ Value identity() const { return -INFINITY; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return fmaxf(a, b); }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return __shfl_xor_sync(full_warp_mask, value, lanes);
    }
};

// A butterfly reduction. Lanes that exchange values combine the same two, so all lanes get the same bits.
template <class Operation>
__device__ __forceinline__ typename Operation::Value warp(Operation operation, typename Operation::Value value) {
#pragma unroll
    for (int lanes = warp_size / 2; lanes > 0; lanes /= 2) {
        value = operation.combine(value, operation.shuffle(value, lanes));
    }
    return value;
}

// The bytes of shared memory that `block` needs: one value for each warp of the largest block.
template <class Operation>
constexpr int scratch_bytes() {
    return largest_block / warp_size * static_cast<int>(sizeof(typename Operation::Value));
}

// Reduces over all threads of the block, whose number must be a multiple of 32, and returns the result to each of them.
// The scratch may be reused without another barrier.
template <class Operation>
__device__ __forceinline__ typename Operation::Value block(Operation operation, typename Operation::Value value,
                                                           unsigned char* shared) {
    using Value = typename Operation::Value;
    Value* scratch = reinterpret_cast<Value*>(shared);
    const int lane = threadIdx.x % warp_size;
    const int warps = blockDim.x / warp_size;

    value = warp(operation, value);
    if (lane == 0) scratch[threadIdx.x / warp_size] = value;
    // Every warp reads the partial results that lane 0 of the other warps wrote.
    __syncthreads();
    value = warp(operation, lane < warps ? scratch[lane] : operation.identity());
    // A slower warp may still be reading the scratch, which the next use overwrites.
    __syncthreads();
    return value;
}

// Returns whether this block is the last of `blocks` to increment the block counter ("last block done", as in CUDA's
// threadFenceReduction sample). The last block sees all that the others wrote before their increment, so it can reduce
// their partial results while no block waits. The blocks may belong to several launches of a stream. The counter must
// be 0 at first, and is 0 again after the last block.
__device__ __forceinline__ bool is_last_block(uint32_t* counter, uint32_t blocks) {
    // Thread 0 issues the fence for the whole block, so the writes of all other threads must come before it.
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(counter, blocks - 1) == blocks - 1;
        // Acquire: what this block reads from here on includes the writes of all blocks that incremented the counter
        // before.
        __threadfence();
    }
    return __syncthreads_or(last);
}

}  // namespace reduce
