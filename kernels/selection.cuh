// Selection of the n-th largest of many numbers, and the row weights of BEAR (arXiv 2601.22925), which need it:
//
//     w_BEAR = 1 + λ·σ((ln p_y − ln q_B)/ξ),    ln p_y − ln q_B = (z_y − z_(B))/τ
//
// with z_(B) the B-th largest of the row's scores. The normaliser of the two probabilities cancels.
#pragma once

#include "reduce.cuh"

// An order-preserving bijection from floats to unsigned integers, −∞ first. NaN is treated as −∞.
__device__ __forceinline__ uint32_t ordered_bits(float number) {
    const uint32_t bits = __float_as_uint(isnan(number) ? -INFINITY : number);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_bits(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Returns the n-th largest of some numbers, or the smallest if there are fewer than n. Equal numbers count separately.
// count(bound) must return, to all threads that call together, how many of the numbers have ordered bits of at least
// `bound`. A radix search determines the bits of the answer from the highest to the lowest, with one count for each.
template <class Count>
__device__ __forceinline__ float nth_largest(uint32_t n, uint32_t numbers, Count count) {
    const uint32_t wanted = n < numbers ? n : numbers;
    uint32_t bits = 0;
#pragma unroll 1
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (count(bits | bit) >= wanted) bits |= bit;
    }
    return from_ordered_bits(bits);
}

// Mirrors launch::BeamWeights.
struct BeamWeights {
    // λ and ξ of the formula above.
    double lambda;
    double xi;
    // The sum of the weighted loss weights of the unary rows, which are not in the batch because their loss is 0.
    double unary_weight;
    // The denominator that row weights were divided by to give loss weights. The sum of the row weights, the caller's
    // times BEAR's, is that of the weighted loss weights times this.
    double denominator;
    // [1]: where that sum is written; null if it is not wanted.
    double* sum;
    // B; 0 without BEAR.
    uint32_t beams;
    // 1 if the weighted loss weights are divided by their sum.
    uint32_t normalises;

    __device__ __forceinline__ double weight(float target, float nth, double temperature) const {
        const double margin = (static_cast<double>(target) - nth) / temperature / xi;
        // Scores whose difference is NaN count as equal.
        return 1.0 + lambda / (1.0 + exp(isnan(margin) ? 0.0 : -margin));
    }
};
static_assert(sizeof(BeamWeights) == 48 && offsetof(BeamWeights, lambda) == 0 && offsetof(BeamWeights, xi) == 8 &&
    offsetof(BeamWeights, unary_weight) == 16 && offsetof(BeamWeights, denominator) == 24 && offsetof(BeamWeights, sum) == 32
    && offsetof(BeamWeights, beams) == 40 && offsetof(BeamWeights, normalises) == 44, "mirrors launch::BeamWeights");

// Multiplies the loss weights of rows by BEAR's weights and, if they are normalised, divides them by their sum, with
// all threads of one block. `targets` and `nth` [count] hold the target's and the B-th largest score of each row that
// has a loss.
template <class Row>
__device__ __forceinline__ void apply_beam_weights(const BeamWeights& weights, Row* rows, uint32_t count, const float* targets,
                                           const float* nth, double temperature, unsigned char* scratch) {
    const auto weighted = [&](uint32_t r) { return rows[r].loss_weight * weights.weight(targets[r], nth[r], temperature); };
    double sum = 0.0;
    for (uint32_t r = threadIdx.x; r < count; r += blockDim.x) {
        if (rows[r].loss_weight != 0.0f) sum += weighted(r);
    }
    sum = reduce::block(reduce::Sum<double>(), sum, scratch);
    if (threadIdx.x == 0 && weights.sum) *weights.sum = sum * weights.denominator;
    sum += weights.unary_weight;
    for (uint32_t r = threadIdx.x; r < count; r += blockDim.x) {
        if (rows[r].loss_weight == 0.0f) continue;
        // A loss weight of 0 means that a row has no loss, so this one must not round to 0.
        rows[r].loss_weight = fmaxf(static_cast<float>(weighted(r) / (weights.normalises ? sum : 1.0)), 0x1p-126f);
    }
}
