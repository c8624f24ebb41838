// Reductions over a warp, a block and a grid, in an order that depends on nothing but the launch shape:
// the same input gives the same bits.
//
// An operation has a `Value`, an `identity()`, a commutative `combine(a, b)` and a `shuffle(value, lanes)` that
// fetches the value of the lane whose number differs in the bits of `lanes`.
#pragma once

#include "device.cuh"

namespace reduce {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xffffffffu;
constexpr int largest_block = 1024;

template <class Number>
struct Sum {
    using Value = Number;
    __device__ __forceinline__ Value identity() const { return 0; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return a + b; }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return __shfl_xor_sync(whole_warp, value, lanes);
    }
};

// NaN is passed over.
struct Maximum {
    using Value = float;
    __device__ __forceinline__ Value identity() const { return -INFINITY; }
    __device__ __forceinline__ Value combine(Value a, Value b) const { return fmaxf(a, b); }
    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return __shfl_xor_sync(whole_warp, value, lanes);
    }
};

// A butterfly: lanes that exchange values combine the same two, so all of them end with the same bits.
template <class Operation>
__device__ __forceinline__ typename Operation::Value warp(Operation operation, typename Operation::Value value) {
#pragma unroll
    for (int lanes = warp_size / 2; lanes > 0; lanes /= 2) {
        value = operation.combine(value, operation.shuffle(value, lanes));
    }
    return value;
}

// What `block` needs of shared memory: a value for each warp.
template <class Operation>
constexpr int scratch_bytes() {
    return largest_block / warp_size * static_cast<int>(sizeof(typename Operation::Value));
}

// All threads of the block take part, and each receives the result; their number is a multiple of 32. The scratch may
// be used again at once.
template <class Operation>
__device__ __forceinline__ typename Operation::Value block(Operation operation, typename Operation::Value value,
                                                           unsigned char* shared) {
    using Value = typename Operation::Value;
    Value* scratch = reinterpret_cast<Value*>(shared);
    const int lane = threadIdx.x % warp_size;
    const int warps = blockDim.x / warp_size;

    value = warp(operation, value);
    if (lane == 0) scratch[threadIdx.x / warp_size] = value;
    // Every warp reads what the first lanes of the others wrote.
    __syncthreads();
    value = warp(operation, lane < warps ? scratch[lane] : operation.identity());
    // The next use of the scratch must not overwrite what a slower warp has yet to read.
    __syncthreads();
    return value;
}

// Returns whether this block is the last of so many to come here, those of the grid or of several launches: it alone sees
// what all the others wrote before, and can reduce it without anyone waiting. The block counter is 0 at first, and 0 again
// when the last block is done.
__device__ __forceinline__ bool is_last_block(uint32_t* counter, uint32_t blocks) {
    // The fence below is one thread's: it covers what the others have written by now.
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(counter, blocks - 1) == blocks - 1;
        // What the last block reads from here on is what the others wrote before they counted themselves.
        __threadfence();
    }
    return __syncthreads_or(last);
}

}  // namespace reduce
