// The Adaptive Temperature Strategy on the device: sums over the statistics rows, and the step that τ takes with them.
//
// With Δ the mean target logit less the mean logit, σ² the variance and C = ln(n·η), all pooled or all centred by row,
//
//     τ̂ = (Δ + √max(Δ² − 2Cσ², 0)) / 2C, clamped;  τ ← (1 − α)τ + ατ̂
//
// What does not depend on logits (how many rows and tokens, C, whether there is a step at all) is the host's.
// In f64, for a mean of squares near 1e8 must leave a variance near 1; it is a handful of operations a row.
#pragma once

#include "moments.cuh"

// Mirrors launch::TemperatureStep.
struct TemperatureStep {
    double alpha;
    double minimum;
    double maximum;
    double log_odds;
    // Whether Δ and σ² are centred by row; else pooled.
    uint64_t centred;
};
static_assert(sizeof(TemperatureStep) == 40 && offsetof(TemperatureStep, alpha) == 0 &&
    offsetof(TemperatureStep, minimum) == 8 && offsetof(TemperatureStep, maximum) == 16 &&
    offsetof(TemperatureStep, log_odds) == 24 && offsetof(TemperatureStep, centred) == 32,
    "mirrors launch::TemperatureStep");

// Mirrors launch::StatisticsSizes: the fields of `Statistics` that the host knows.
struct StatisticsSizes {
    double rows;
    double tokens;
    double fan_out;
    double log_sizes;
};
static_assert(sizeof(StatisticsSizes) == 32 && offsetof(StatisticsSizes, rows) == 0 &&
    offsetof(StatisticsSizes, tokens) == 8 && offsetof(StatisticsSizes, fan_out) == 16 &&
    offsetof(StatisticsSizes, log_sizes) == 24, "mirrors launch::StatisticsSizes");

// Mirrors the library's `Statistics`.
struct Statistics {
    double rows, tokens, mean, deviations, target_mean, fan_out, centred_targets, variances, log_sizes;
};
static_assert(sizeof(Statistics) == 72, "mirrors Statistics");

// What rows add up: any split of them gives the same statistics, up to rounding.
struct StatisticsSums {
    static constexpr int length = 6;

    double logits, squares, deviations, targets, centred_targets, variances;

    // A row of `moments.count` logits, given relative to the target's.
    __device__ __forceinline__ void add(Moments::Value moments, float target) {
        const double count = moments.count, mean = static_cast<double>(target) + moments.mean;
        logits += count * mean;
        squares += count * mean * mean;
        deviations += moments.deviations;
        targets += target;
        centred_targets -= moments.mean;
        variances += moments.deviations / fmax(count - 1.0, 1.0);
    }

    __device__ __forceinline__ Statistics statistics(const StatisticsSizes& sizes) const {
        if (sizes.rows == 0.0) return {};
        const double mean = logits / sizes.tokens;
        // The deviations inside the rows, and those of the rows' means.
        const double between = squares - logits * mean;
        return {sizes.rows, sizes.tokens, mean, deviations + (between < 0.0 ? 0.0 : between), targets / sizes.rows,
                sizes.fan_out, centred_targets, variances, sizes.log_sizes};
    }
};

__device__ __forceinline__ double stepped(const TemperatureStep& step, const Statistics& statistics, double previous) {
    const double delta =
        step.centred ? statistics.centred_targets / statistics.rows : statistics.target_mean - statistics.mean;
    const double variance = step.centred ? statistics.variances / statistics.rows
                                         : statistics.deviations / fmax(statistics.tokens - 1.0, 0.0);
    const double discriminant = delta * delta - 2.0 * step.log_odds * variance;
    if (isnan(discriminant)) return previous;
    const double root = (delta + sqrt(fmax(discriminant, 0.0))) / (2.0 * step.log_odds);
    // 0/0, which the published arithmetic reaches at C = 0, is no estimate.
    if (isnan(root)) return previous;
    const double estimate = fmin(fmax(root, step.minimum), step.maximum);
    return (1.0 - step.alpha) * previous + step.alpha * estimate;
}
