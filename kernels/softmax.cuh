// The softmax of one row of logits z with target y at temperature τ. The target's exponential is kept separate from the
// sum of the others, so that neither a small loss nor 1 − p_y is computed as the difference of two numbers near 1.
#pragma once

#include "reduce.cuh"

// exp((z − m)/τ) with the row maximum m. It subtracts before it scales: the difference of close logits is exact, the
// difference of their scaled values is not.
struct Exponential {
    float maximum;
    // log2(e)/τ
    float scale;

    __device__ __forceinline__ Exponential(float maximum, float inverse_temperature)
        : maximum(maximum), scale(inverse_temperature * 1.44269504f) {}

    __device__ __forceinline__ float operator()(float logit) const { return device::exp2((logit - maximum) * scale); }
};

// The online softmax reduction: the running maximum m and Σ exp((z_v − m)/τ), which cannot overflow.
struct Exponentials {
    float inverse_temperature;

    struct Value {
        float maximum;
        float sum;
    };

    __device__ __forceinline__ Value identity() const { return {-INFINITY, 0.0f}; }

    // Adds several logits with one rescaling of the sum, so that their exponentials are independent of each other. The
    // sum of logits that are all −∞ is rescaled to 0 by the first finite logit. A NaN stays in the sum.
    template <int count>
    __device__ __forceinline__ Value add(Value value, const float (&logits)[count]) const {
        float maximum = value.maximum;
#pragma unroll
        for (int k = 0; k < count; ++k) maximum = fmaxf(maximum, logits[k]);
        float sum = value.sum;
        if (maximum == -INFINITY) {
            // exp(−∞ − (−∞)) would be NaN, so each −∞ is counted as exp(0). fmaxf ignores NaN, so a NaN logit is added
            // as it is, to keep the sum NaN.
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

    // Adds one logit with one exponential.
    __device__ __forceinline__ Value add(Value value, float logit) const {
        if (logit == value.maximum) return {value.maximum, value.sum + 1.0f};
        const float ratio = Exponential(0.0f, inverse_temperature)(-fabsf(logit - value.maximum));
        if (logit > value.maximum) return {logit, value.sum * ratio + 1.0f};
        return {value.maximum, value.sum + ratio};
    }

    __device__ __forceinline__ Value combine(Value a, Value b) const {
        if (a.maximum == b.maximum) return {a.maximum, a.sum + b.sum};
        const bool a_is_larger = a.maximum > b.maximum;
        const Value larger = a_is_larger ? a : b, smaller = a_is_larger ? b : a;
        const float ratio = expf((smaller.maximum - larger.maximum) * inverse_temperature);
        return {larger.maximum, larger.sum + smaller.sum * ratio};
    }

    __device__ __forceinline__ Value shuffle(Value value, int lanes) const {
        return {__shfl_xor_sync(reduce::full_warp_mask, value.maximum, lanes),
                __shfl_xor_sync(reduce::full_warp_mask, value.sum, lanes)};
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
        // There is no shortcut for equal maxima: at +∞ the difference must give NaN and not a ratio of 1.
        const float ratio = expf((others.maximum - maximum) * inverse_temperature);
        return {maximum, others.sum * ratio, (target - maximum) * inverse_temperature};
    }

    // −ln p_y
    __device__ __forceinline__ float loss() const {
        return target == 0.0f ? log1pf(others) : logf(others + expf(target)) - target;
    }

    // The factor that turns exp((z_v − m)/τ) into p_v.
    __device__ __forceinline__ float inverse_sum() const { return 1.0f / (others + expf(target)); }

    // p_y − 1
    __device__ __forceinline__ float target_gradient() const { return -others * inverse_sum(); }
};
static_assert(sizeof(Softmax) == 12, "mirrors SOFTMAX_BYTES of the launch plan");
