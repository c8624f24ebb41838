// The softmax of one row of logits z with target y at temperature τ, kept in a form that loses nothing: the target apart
// from the others, so that neither a small loss nor 1 − p_y is the difference of two numbers near 1.
#pragma once

#include "reduce.cuh"

// exp((z − m)/τ) of logits z relative to the largest, m: the difference is taken first, so that large logits lose nothing.
struct Exponential {
    float maximum;
    // log2(e)/τ
    float scale;

    __device__ __forceinline__ Exponential(float maximum, float inverse_temperature)
        : maximum(maximum), scale(inverse_temperature * 1.44269504f) {}

    __device__ __forceinline__ float operator()(float logit) const { return device::exp2((logit - maximum) * scale); }
};

// Σ exp((z_v − m)/τ) and the largest logit m, which no logit can overflow.
struct Exponentials {
    float inverse_temperature;

    struct Value {
        float maximum;
        float sum;
    };

    __device__ __forceinline__ Value identity() const { return {-INFINITY, 0.0f}; }

    // More logits, of which none waits for another. A sum over logits that are all −∞ gives way to the first finite one,
    // NaN to nothing.
    template <int count>
    __device__ __forceinline__ Value add(Value value, const float (&logits)[count]) const {
        float maximum = value.maximum;
#pragma unroll
        for (int k = 0; k < count; ++k) maximum = fmaxf(maximum, logits[k]);
        float sum = value.sum;
        if (maximum == -INFINITY) {
            // −∞ apart from −∞ is no number. NaN, which fmaxf passes over, stays NaN.
#pragma unroll
            for (int k = 0; k < count; ++k) sum += logits[k] == maximum ? 1.0f : logits[k];
            return {maximum, sum};
        }
        const Exponential exponential(maximum, inverse_temperature);
        sum *= exponential(value.maximum);
#pragma unroll
        for (int k = 0; k < count; ++k) sum += exponential(logits[k]);
        return {maximum, sum};
    }

    // One more.
    __device__ __forceinline__ Value add(Value value, float logit) const {
        if (logit == value.maximum) return {value.maximum, value.sum + 1.0f};
        const float apart = Exponential(0.0f, inverse_temperature)(-fabsf(logit - value.maximum));
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
        // Not 1 where they are the same: a logit at +∞ gives no number.
        const float apart = expf((others.maximum - maximum) * inverse_temperature);
        return {maximum, others.sum * apart, (target - maximum) * inverse_temperature};
    }

    // −ln p_y
    __device__ __forceinline__ float loss() const {
        return target == 0.0f ? log1pf(others) : logf(others + expf(target)) - target;
    }

    // What exp((z_v − m)/τ) is multiplied by to be p_v.
    __device__ __forceinline__ float inverse_sum() const { return 1.0f / (others + expf(target)); }

    // p_y − 1
    __device__ __forceinline__ float target_gradient() const { return -others * inverse_sum(); }
};
static_assert(sizeof(Softmax) == 12, "the host makes room for three f32 a row");
