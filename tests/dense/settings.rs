//! Errors for settings of the loss and of its temperature that are out of range.

use candle_trie::{
    AdaptiveStrategy, Convention, Error, MaskedSoftmaxLoss, Reduction, Scope, Statistics,
    Temperature,
};

use crate::batch::*;
use crate::refusals::{fixed, logits, refused};

#[test]
fn a_fan_out_for_which_ats_has_no_solution() {
    let strategy = AdaptiveStrategy {
        eta: 0.2,
        ..strategy(Scope::Root)
    };
    let error = MaskedSoftmaxLoss::new(sets(), strategy).unwrap_err();
    assert!(
        matches!(
            error,
            Error::DegenerateScope {
                eta: 0.2,
                fan_out: 5
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("Scope::Branching"), "{error}");

    // The sets of marked rows are known with the rows alone.
    let strategy = AdaptiveStrategy {
        scope: Scope::Marked,
        ..strategy
    };
    let marked = loss(&sets(), &strategy.into(), Convention::adaptive());
    let error = refused(&marked, &logits(), &rows());
    assert!(
        matches!(error, Error::DegenerateScope { fan_out: 5, .. }),
        "{error}"
    );
}

#[test]
fn settings_out_of_range() {
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let out_of_range = |error| matches!(error, Error::OutOfRange { .. });
        let new = MaskedSoftmaxLoss::new(sets(), Temperature::fixed(wrong));
        assert!(out_of_range(new.unwrap_err()));
        let at = fixed().forward_at(&logits(), &rows(), wrong);
        assert!(out_of_range(at.unwrap_err()));
        let denominator = fixed().with_reduction(Reduction::MeanOver(wrong));
        assert!(out_of_range(denominator.unwrap_err()));
        // Settings changed behind the constructor's back.
        let mut swapped = fixed();
        *swapped.temperature_mut().unwrap() = Temperature::fixed(wrong);
        assert!(out_of_range(
            swapped.forward(&logits(), &rows()).unwrap_err()
        ));
    }
}

/// The kernels multiply by the inverse in f32, where ∞ × 0 would be a NaN for every row.
#[test]
fn temperatures_that_f32_cannot_divide_by() {
    for wrong in [1e-39, 1e39, f64::MIN_POSITIVE, f64::MAX] {
        let temperature = Temperature::fixed(wrong);
        let state = temperature.state();
        let starting = AdaptiveStrategy {
            initial: wrong,
            ..strategy(Scope::Root)
        };
        let refusals = [
            MaskedSoftmaxLoss::new(sets(), temperature.clone()).err(),
            MaskedSoftmaxLoss::new(sets(), starting).err(),
            fixed().forward_at(&logits(), &rows(), wrong).err(),
            temperature.clone().step(&fixed_statistics(), 0).err(),
            Temperature::fixed(1.0).restore(state).err(),
        ];
        for error in refusals {
            let value = match error {
                Some(Error::OutOfRange { value, .. }) => value,
                other => panic!("{wrong}: {other:?}"),
            };
            assert_eq!(value, wrong);
        }
    }
}

#[test]
fn unchecked_settings_are_refused_when_a_step_is_taken() {
    let statistics = fixed_statistics();
    for wrong in [
        AdaptiveStrategy {
            minimum: 3.0,
            maximum: 2.0,
            ..strategy(Scope::Root)
        },
        AdaptiveStrategy {
            minimum: f64::NAN,
            ..strategy(Scope::Root)
        },
        AdaptiveStrategy {
            eta: f64::NAN,
            ..strategy(Scope::Branching)
        },
        AdaptiveStrategy {
            alpha: 2.0,
            ..strategy(Scope::Branching)
        },
    ] {
        assert!(matches!(
            wrong.estimate(&statistics),
            Err(Error::OutOfRange { .. })
        ));
        let mut temperature = Temperature::from(wrong);
        assert!(temperature.step(&statistics, 0).is_err());
    }
}

fn fixed_statistics() -> Statistics {
    Statistics::of_row(&[3.0, 1.0, 0.0, -1.0, 0.5], 0)
}
