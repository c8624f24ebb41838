// The softmax of one row of logits z with target y at temperature τ, kept in a form that loses nothing: the target apart
// from the others, so that neither a small loss nor 1 − p_y is the difference of two numbers near 1.
#pragma once

#include "reduce.cuh"

// Σ exp((z_v − m)/τ) and the largest logit m, which no logit can overflow.
struct Exponentials {
    float inverse_temperature;

    struct Value {
        float maximum;
        float sum;
    };

    __device__ __forceinline__ Value identity() const { return {-INFINITY, 0.0f}; }

    // One more logit. A sum over logits that are all −∞ gives way to the first finite one, NaN to nothing.
    __device__ __forceinline__ Value add(Value value, float logit) const {
        if (logit == value.maximum) return {value.maximum, value.sum + 1.0f};
        const float apart = expf(-fabsf(logit - value.maximum) * inverse_temperature);
        if (logit > value.maximum) return {logit, value.sum * apart + 1.0f};
        return {value.maximum, value.sum + apart};
    }

    __device__ __forceinline__ Value combine(Value a, Value b) const {
        if (a.maximum == b.maximum) return {a.maximum, a.sum + b.sum};
        const bool a_is_larger = a.maximum > b.maximum;
        const Value larger = a_is_larger ? a : b, smaller = a_is_larger ? b : a;
        const float apart = expf((smaller.maximum - larger.maximum) * inverse_temperature);
        return {larger.maximum, larger.sum + smaller.sum * apart};
    }

    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {__shfl_xor_sync(reduce::whole_warp, value.maximum, lanes),
                __shfl_xor_sync(reduce::whole_warp, value.sum, lanes)};
    }
};

struct Softmax {
    // The largest logit m.
    float maximum;
    // Σ exp((z_v − m)/τ) over the tokens other than the target.
    float others;
    // (z_y − m)/τ.
    float target;

    __device__ __forceinline__ static Softmax of(Exponentials::Value others, float target, float inverse_temperature) {
        const float maximum = target > others.maximum ? target : others.maximum;
        const float apart =
            others.maximum == maximum ? 1.0f : expf((others.maximum - maximum) * inverse_temperature);
        return {maximum, others.sum * apart, (target - maximum) * inverse_temperature};
    }

    // −ln p_y
    __device__ __forceinline__ float loss() const {
        return target == 0.0f ? log1pf(others) : logf(others + expf(target)) - target;
    }

    // What exp((z_v − m)/τ) is multiplied by to be p_v.
    __device__ __forceinline__ float inverse_sum() const { return 1.0f / (others + expf(target)); }

    // p_y − 1
    __device__ __forceinline__ float target_error() const { return -others * inverse_sum(); }
};
static_assert(sizeof(Softmax) == 12, "the host makes room for three f32 a row");
