// Mean and sum of squared deviations of f32 numbers (Welford's and Chan's formulas): precise where the squares of the
// numbers are not. Combining is commutative but for the last bit: let one thread use the result.
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
        const float apart = number - value.mean;
        const float mean = value.mean + apart / count;
        return {count, mean, value.deviations + apart * (number - mean)};
    }

    // Several at once: one division for all.
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
        const float apart = b.mean - a.mean;
        const float share = b.count / count;
        return {count, a.mean + apart * share, a.deviations + b.deviations + apart * apart * (a.count * share)};
    }

    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {__shfl_xor_sync(reduce::whole_warp, value.count, lanes),
                __shfl_xor_sync(reduce::whole_warp, value.mean, lanes),
                __shfl_xor_sync(reduce::whole_warp, value.deviations, lanes)};
    }
};
