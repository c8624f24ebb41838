// Count, mean and sum of squared deviations of f32 numbers, by Welford's and Chan's formulas. They stay precise where a
// sum of squares would cancel. `combine` is commutative only up to the last bit, so lanes may end with different bits:
// use the result of one thread.
#pragma once

#include "reduce.cuh"

struct Moments {
    struct Value {
        float count;
        float mean;
        float deviations;
    };

    __device__ __forceinline__ Value identity() const { return {0.0f, 0.0f, 0.0f}; }

    __device__ __forceinline__ Value add(Value value, float number) const {
        const float count = value.count + 1.0f;
        const float difference = number - value.mean;
        const float mean = value.mean + difference / count;
        return {count, mean, value.deviations + difference * (number - mean)};
    }

    // Adds several numbers with one division.
    template <int size>
    __device__ __forceinline__ Value add(Value value, const float (&numbers)[size]) const {
        Value added = {static_cast<float>(size), 0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < size; ++k) added.mean += numbers[k] * (1.0f / size);
#pragma unroll
        for (int k = 0; k < size; ++k) added.deviations += (numbers[k] - added.mean) * (numbers[k] - added.mean);
        return combine(value, added);
    }

    __device__ __forceinline__ Value combine(Value a, Value b) const {
        const float count = a.count + b.count;
        if (count == 0.0f) return a;
        const float difference = b.mean - a.mean;
        const float fraction = b.count / count;
        return {count, a.mean + difference * fraction, a.deviations + b.deviations + difference * difference * (a.count * fraction)};
    }

    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {__shfl_xor_sync(reduce::full_warp_mask, value.count, lanes),
                __shfl_xor_sync(reduce::full_warp_mask, value.mean, lanes),
                __shfl_xor_sync(reduce::full_warp_mask, value.deviations, lanes)};
    }
};
