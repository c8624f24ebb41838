//! Loops over one row, written so that the compiler vectorises them. The instruction set is chosen at run time.

use super::element::{Element, Real};
use super::vectorized;

/// The number of independent partial results of a loop. It is enough to fill the widest registers and to hide the latency of
/// their additions, and it is fixed, so that results do not depend on the width of the machine's registers.
const LANES: usize = 16;

/// Returns the largest value, and −∞ for no value. NaN is ignored, as the exponentials will be NaN.
pub(super) fn maximum<R: Real>(values: &[R]) -> R {
    vectorized(
        #[inline(always)]
        || {
            let larger = |a: R, b: R| if b > a { b } else { a };
            lanes(values, R::NEG_INFINITY, larger, |largest, value| {
                larger(largest, value)
            })
        },
    )
}

/// Returns the smallest of the values and `start`. NaN is ignored.
pub(super) fn minimum<R: Real>(values: &[R], start: R) -> R {
    vectorized(
        #[inline(always)]
        || {
            let smaller = |a: R, b: R| if b < a { b } else { a };
            lanes(values, start, smaller, smaller)
        },
    )
}

/// Returns whether any value is above `bound`. NaN is not.
pub(super) fn any_above<R: Real>(values: &[R], bound: R) -> bool {
    vectorized(
        #[inline(always)]
        || {
            lanes(
                values,
                false,
                |a, b| a | b,
                |any, value| any | (value > bound),
            )
        },
    )
}

/// Replaces every value by `exp((value − maximum)·inverse_temperature)` and returns their sum.
pub(super) fn exponentials<R: Real>(
    values: &mut [R],
    maximum: f64,
    inverse_temperature: f64,
) -> f64 {
    let (maximum, inverse) = (R::from_f64(maximum), R::from_f64(inverse_temperature));
    vectorized(
        #[inline(always)]
        || {
            for value in values.iter_mut() {
                *value = ((*value - maximum) * inverse).exponential();
            }
            sum(values)
        },
    )
}

/// Returns the sum. Blocks are summed in the type of the values, and the blocks' sums in f64, so that rows of a whole
/// vocabulary are as precise as short ones.
#[inline(always)]
fn sum<R: Real>(values: &[R]) -> f64 {
    const BLOCK: usize = 1024;
    (values.chunks(BLOCK))
        .map(|block| lanes(block, R::ZERO, |a, b| a + b, |sum, value| sum + value).into())
        .sum()
}

/// Returns the mean and the sum of squared deviations from it, in f64. Values are shifted by the first one, so that a common
/// offset costs no precision.
pub(super) fn moments<R: Real>(values: &[R]) -> (f64, f64) {
    let Some(&shift) = values.first() else {
        return (0.0, 0.0);
    };
    let shift: f64 = shift.into();
    let count = values.len() as f64;
    let [sum, squares] = vectorized(
        #[inline(always)]
        || {
            let add = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
            lanes(values, [0.0; 2], add, |sums, value: R| {
                let difference: f64 = value.into() - shift;
                add(sums, [difference, difference * difference])
            })
        },
    );
    let shifted_mean = sum / count;
    let deviations = squares - sum * shifted_mean;
    // Rounding may make it negative. `max` is not used, because it would turn NaN into 0.
    let deviations = if deviations < 0.0 { 0.0 } else { deviations };
    (shift + shifted_mean, deviations)
}

/// Writes every value times `factor` to `target`, rounded once.
pub(super) fn scale_into<T: Element>(values: &[T::Real], factor: f64, target: &mut [T]) {
    let factor = T::Real::from_f64(factor);
    vectorized(
        #[inline(always)]
        || {
            for (target, &value) in target.iter_mut().zip(values) {
                *target = T::narrow(value * factor);
            }
        },
    );
}

/// Multiplies every value by `factor`.
pub(super) fn scale<R: Real>(values: &mut [R], factor: f64) {
    if factor == 1.0 {
        return;
    }
    let factor = R::from_f64(factor);
    vectorized(
        #[inline(always)]
        || {
            for value in values.iter_mut() {
                *value = *value * factor;
            }
        },
    );
}

/// Returns Σ a·b over two rows of the same length.
pub(super) fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    vectorized(
        #[inline(always)]
        || {
            let mut partial = [R::ZERO; LANES];
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    partial[lane] += a[lane] * b[lane];
                }
            }
            for (lane, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
                partial[lane] += a * b;
            }
            lanes(&partial, R::ZERO, |a, b| a + b, |sum, value| sum + value)
        },
    )
}

/// Adds `factor` times `source` to `target`.
pub(super) fn add_scaled<R: Real>(target: &mut [R], factor: R, source: &[R]) {
    vectorized(
        #[inline(always)]
        || {
            for (target, &source) in target.iter_mut().zip(source) {
                *target += factor * source;
            }
        },
    );
}

/// Folds `values` in LANES independent lanes, and then the lanes pairwise in a fixed order.
#[inline(always)]
fn lanes<R: Copy, A: Copy>(
    values: &[R],
    start: A,
    join: impl Fn(A, A) -> A,
    fold: impl Fn(A, R) -> A,
) -> A {
    let mut partial = [start; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            partial[lane] = fold(partial[lane], chunk[lane]);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        partial[lane] = fold(partial[lane], value);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            partial[lane] = join(partial[lane], partial[lane + width]);
        }
    }
    partial[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_ulp_down_to_the_smallest_normal() {
        for step in 0..873_000 {
            let x = -1e-4 * step as f32;
            let expected = f64::from(x).exp();
            let error = (f64::from(x.exponential()) - expected).abs() / expected;
            assert!(
                error < 2.0 * f64::from(f32::EPSILON),
                "exp({x}) is off by {error}"
            );
        }
    }

    #[test]
    fn exponentials_of_the_extremes_are_zero_one_or_nan() {
        assert_eq!(0.0f32.exponential(), 1.0);
        assert_eq!(f32::NEG_INFINITY.exponential(), 0.0);
        assert_eq!((-1e30f32).exponential(), 0.0);
        assert!(f32::NAN.exponential().is_nan());
    }

    #[test]
    fn folds_agree_with_plain_loops_at_every_odd_length() {
        for length in 0..70 {
            let values: Vec<f32> = (0..length).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
            assert_eq!(
                f64::from(maximum(&values)),
                (values.iter())
                    .map(|&v| f64::from(v))
                    .fold(f64::NEG_INFINITY, f64::max)
            );
            assert_eq!(
                sum(&values),
                values.iter().map(|&v| f64::from(v)).sum::<f64>()
            );
            let smallest = values.iter().copied().fold(1e9, f32::min);
            assert_eq!(minimum(&values, 1e9), smallest);
            let largest = maximum(&values);
            assert!(
                !any_above(&values, largest) && (length == 0 || any_above(&values, largest - 0.5))
            );
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / length.max(1) as f64;
            let deviations: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
            let (found_mean, found) = moments(&values);
            assert!((found_mean - mean).abs() < 1e-12 && (found - deviations).abs() < 1e-9);
        }
    }
}
