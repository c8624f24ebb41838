// The n-th largest of many numbers, and the row weights of BEAR (arXiv 2601.22925) that are made of it:
//
//     w = 1 + λ·σ((ln p_y − ln q_B)/ξ),    ln p_y − ln q_B = (z_y − z_(B))/τ
//
// with z_(B) the B-th largest of the row's scores: what both probabilities are divided by cancels.
#pragma once

#include "reduce.cuh"

// A bijection from floats to integers that keeps their order, −∞ first. NaN counts as −∞.
__device__ __forceinline__ uint32_t ordered_bits(float number) {
    const uint32_t bits = __float_as_uint(isnan(number) ? -INFINITY : number);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_bits(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// The n-th largest of some numbers, equal ones counted as often as they are there; the smallest where there are fewer.
// count(bound) is how many have ordered bits of at least `bound`, the same in all threads that call together. The answer is
// built up from its highest bit.
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
    double lambda;
    double xi;
    // What unary rows, which are not there, add to the sum of the shares.
    double others;
    // The sum of the rows' weights, the caller's in them, is that of their shares times `denominator`; it goes to `sum`, if
    // anywhere.
    double denominator;
    double* sum;
    // B; 0 where rows have no weights but the caller's.
    uint32_t beams;
    // Whether shares are divided by their sum.
    uint32_t normalises;

    __device__ __forceinline__ double weight(float target, float nth, double temperature) const {
        const double margin = (static_cast<double>(target) - nth) / temperature / xi;
        // Scores whose difference is not a number count as equal.
        return 1.0 + lambda / (1.0 + exp(isnan(margin) ? 0.0 : -margin));
    }
};
static_assert(sizeof(BeamWeights) == 48 && offsetof(BeamWeights, lambda) == 0 && offsetof(BeamWeights, xi) == 8 &&
    offsetof(BeamWeights, others) == 16 && offsetof(BeamWeights, denominator) == 24 && offsetof(BeamWeights, sum) == 32
    && offsetof(BeamWeights, beams) == 40 && offsetof(BeamWeights, normalises) == 44, "mirrors launch::BeamWeights");

// Multiplies the shares of rows by their weights and, where they are normalised, divides them by the sum of all. By all threads
// of a block. `targets` and `nth` are one a row; rows without a share have none.
template <class Row>
__device__ __forceinline__ void weigh_rows(const BeamWeights& weights, Row* rows, uint32_t count, const float* targets,
                                           const float* nth, double temperature, unsigned char* scratch) {
    const auto share = [&](uint32_t r) { return rows[r].share * weights.weight(targets[r], nth[r], temperature); };
    double sum = 0.0;
    for (uint32_t r = threadIdx.x; r < count; r += blockDim.x) {
        if (rows[r].share != 0.0f) sum += share(r);
    }
    sum = reduce::block(reduce::Sum<double>(), sum, scratch);
    if (threadIdx.x == 0 && weights.sum) *weights.sum = sum * weights.denominator;
    sum += weights.others;
    for (uint32_t r = threadIdx.x; r < count; r += blockDim.x) {
        if (rows[r].share == 0.0f) continue;
        // By its share it is told that a row has a loss: the share must not round to 0.
        rows[r].share = fmaxf(static_cast<float>(share(r) / (weights.normalises ? sum : 1.0)), 0x1p-126f);
    }
}
