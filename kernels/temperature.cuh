// The Adaptive Temperature Strategy (ATS) on the device: sums over the statistics rows, and the step of τ.
//
// With Δ the mean target logit minus the mean logit, σ² the variance of the logits and C = ln(n·η), all three either
// pooled over the rows or centred by row,
//
//     τ̂ = (Δ + √max(Δ² − 2Cσ², 0)) / 2C, clamped;  τ ← (1 − α)τ + ατ̂
//
// The host computes what does not depend on logits: the numbers of rows and tokens, C, and whether τ takes a step at
// all. Sums are in f64, because a variance near 1 must remain of logits near 1e4, whose squares are near 1e8. It is a
// handful of operations for each row.
#pragma once

#include "moments.cuh"

// Mirrors launch::TemperatureStep.
struct TemperatureStep {
    // α, the weight of the new estimate, from 0 to 1.
    double alpha;
    // The bounds that τ̂ is clamped to.
    double minimum;
    double maximum;
    // C = ln(n·η).
    double log_odds;
    // 1 if Δ and σ² are centred by row, 0 if they are pooled.
    uint64_t centred;
};
static_assert(sizeof(TemperatureStep) == 40 && offsetof(TemperatureStep, alpha) == 0 &&
    offsetof(TemperatureStep, minimum) == 8 && offsetof(TemperatureStep, maximum) == 16 &&
    offsetof(TemperatureStep, log_odds) == 24 && offsetof(TemperatureStep, centred) == 32,
    "mirrors launch::TemperatureStep");

// The fields of `Statistics` that do not depend on logits. Mirrors launch::StatisticsSizes.
struct StatisticsSizes {
    // The number of statistics rows; 0 if the batch has none.
    double rows;
    // The number of their valid logits.
    double tokens;
    // n, if it is the same for all rows; see `Statistics` of the library.
    double fan_out;
    // Σ ln n over the rows.
    double log_sizes;
};
static_assert(sizeof(StatisticsSizes) == 32 && offsetof(StatisticsSizes, rows) == 0 &&
    offsetof(StatisticsSizes, tokens) == 8 && offsetof(StatisticsSizes, fan_out) == 16 &&
    offsetof(StatisticsSizes, log_sizes) == 24, "mirrors launch::StatisticsSizes");

// The statistics of a batch, whose fields the library's `Statistics` documents and mirrors.
struct Statistics {
    double rows, tokens, mean, deviations, target_mean, fan_out, centred_targets, variances, log_sizes;
};
static_assert(sizeof(Statistics) == 72, "mirrors Statistics");

// Sums over statistics rows. Any partition of the rows among blocks gives the same statistics up to rounding.
struct StatisticsSums {
    static constexpr int length = 6;

    // With n, m, d and z_y the size, mean logit, sum of squared deviations and target logit of a row: Σ n·m, Σ n·m², Σ
    // d, Σ z_y, Σ (z_y − m) and Σ d/(n − 1).
    double logits, squares, deviations, targets, centred_targets, variances;

    // Adds a row from the moments of its logits minus the target's.
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
        // The squared deviations of the rows' means. They are added to those within the rows.
        const double between = squares - logits * mean;
        return {sizes.rows, sizes.tokens, mean, deviations + (between < 0.0 ? 0.0 : between), targets / sizes.rows,
                sizes.fan_out, centred_targets, variances, sizes.log_sizes};
    }
};

// Returns τ after a step with these statistics. It stays the same if they give no estimate.
__device__ __forceinline__ double next_temperature(const TemperatureStep& step, const Statistics& statistics, double previous) {
    const double delta =
        step.centred ? statistics.centred_targets / statistics.rows : statistics.target_mean - statistics.mean;
    const double variance = step.centred ? statistics.variances / statistics.rows
                                         : statistics.deviations / fmax(statistics.tokens - 1.0, 0.0);
    const double discriminant = delta * delta - 2.0 * step.log_odds * variance;
    if (isnan(discriminant)) return previous;
    const double root = (delta + sqrt(fmax(discriminant, 0.0))) / (2.0 * step.log_odds);
    // The published formula gives 0/0 at C = 0, which is no estimate.
    if (isnan(root)) return previous;
    const double estimate = fmin(fmax(root, step.minimum), step.maximum);
    return (1.0 - step.alpha) * previous + step.alpha * estimate;
}
