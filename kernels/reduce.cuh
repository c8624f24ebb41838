// Reductions over a warp and over a block, in an order that depends on nothing but the number of threads:
// the same input gives the same bits. Every thread receives the result.
//
// An operation has a `Value`, an `identity()`, a commutative `combine(a, b)` and a `shuffle(value, lanes)` that
// fetches the value of the lane whose number differs in the bits of `lanes`.
#pragma once

#include "device.cuh"

namespace reduce {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xffffffffu;
constexpr int largest_block = 1024;

struct Sum {
    using Value = float;
    __device__ __forceinline__ static Value identity() { return 0.0f; }
    __device__ __forceinline__ static Value combine(Value a, Value b) { return a + b; }
    __device__ __forceinline__ static Value shuffle(Value value, int lanes) {
        return __shfl_xor_sync(whole_warp, value, lanes);
    }
};

// ln Σ exp(x) as a maximum and Σ exp(x − maximum), which no logit can overflow.
struct LogSumExp {
    struct Value {
        float maximum;
        float sum;
        __device__ __forceinline__ float logarithm() const { return maximum + logf(sum); }
    };

    __device__ __forceinline__ static Value identity() { return {-INFINITY, 0.0f}; }
    __device__ __forceinline__ static Value of(float x) { return {x, 1.0f}; }

    __device__ __forceinline__ static Value combine(Value a, Value b) {
        const float maximum = fmaxf(a.maximum, b.maximum);
        // −∞ − −∞ is not a number: two empty sums stay empty.
        if (maximum == -INFINITY) return identity();
        return {maximum, a.sum * expf(a.maximum - maximum) + b.sum * expf(b.maximum - maximum)};
    }

    __device__ __forceinline__ static Value shuffle(Value value, int lanes) {
        return {__shfl_xor_sync(whole_warp, value.maximum, lanes), __shfl_xor_sync(whole_warp, value.sum, lanes)};
    }
};

// A butterfly: lanes that exchange values combine the same two, so all of them end with the same bits.
template <class Operation>
__device__ __forceinline__ typename Operation::Value warp(typename Operation::Value value) {
#pragma unroll
    for (int lanes = warp_size / 2; lanes > 0; lanes /= 2) {
        value = Operation::combine(value, Operation::shuffle(value, lanes));
    }
    return value;
}

// What `block` needs of shared memory: a value for each warp.
template <class Operation>
constexpr int scratch_bytes() {
    return largest_block / warp_size * static_cast<int>(sizeof(typename Operation::Value));
}

// All threads of the block take part; their number is a multiple of 32. The scratch may be used again at once.
template <class Operation>
__device__ __forceinline__ typename Operation::Value block(typename Operation::Value value, unsigned char* shared) {
    using Value = typename Operation::Value;
    Value* scratch = reinterpret_cast<Value*>(shared);
    const int lane = threadIdx.x % warp_size;
    const int warps = blockDim.x / warp_size;

    value = warp<Operation>(value);
    if (lane == 0) scratch[threadIdx.x / warp_size] = value;
    // Every warp reads what the first lanes of the others wrote.
    __syncthreads();
    value = warp<Operation>(lane < warps ? scratch[lane] : Operation::identity());
    // The next use of the scratch must not overwrite what a slower warp has yet to read.
    __syncthreads();
    return value;
}

}  // namespace reduce
