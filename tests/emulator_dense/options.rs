//! Every option with every other, on one small batch that has rows of every kind.

use candle_trie::{Convention, Scope, Temperature, TemperatureState};
use half::{bf16, f16};

use crate::batch::{
    SHAPE, VOCABULARY, conventions, each_with_bears, noise, rows, sets, strategy, temperatures,
    weighted_rows,
};
use crate::device::{Case, GRADIENTS, Gradient};
use crate::number::Number;

fn every_option<T: Number>() {
    let sets = sets();
    let logits = noise(3, SHAPE.iter().product(), 6.0);
    for rows in [rows(), weighted_rows()] {
        for convention in conventions() {
            for temperature in temperatures() {
                for gradient in GRADIENTS {
                    let case = Case::<T> {
                        temperature: temperature.clone(),
                        convention,
                        gradient,
                        ..Case::new(&sets, &rows, VOCABULARY, &logits)
                    };
                    case.assert_correct(&format!("{temperature:?}, {convention:?}"));
                }
            }
        }
    }
}

fn every_option_in_f32() {
    every_option::<f32>();
}

fn every_option_in_f16() {
    every_option::<f16>();
}

fn every_option_in_bf16() {
    every_option::<bf16>();
}

/// In turn every type and every kind of gradient.
fn every_option_with_row_weights() {
    let (sets, logits) = (sets(), noise(3, SHAPE.iter().product(), 6.0));
    let mut index = 0;
    for rows in [rows(), weighted_rows()] {
        for convention in conventions() {
            for (temperature, bear) in each_with_bears(temperatures()) {
                let gradient = GRADIENTS[index % GRADIENTS.len()];
                let what = format!("{temperature:?}, {convention:?}, {bear:?}");
                if bear.is_some() && index % 2 == 0 {
                    let case = Case::<f32> {
                        temperature,
                        convention,
                        bear,
                        gradient,
                        ..Case::new(&sets, &rows, VOCABULARY, &logits)
                    };
                    case.assert_correct(&what);
                } else if bear.is_some() {
                    let case = Case::<bf16> {
                        temperature,
                        convention,
                        bear,
                        gradient,
                        ..Case::new(&sets, &rows, VOCABULARY, &logits)
                    };
                    case.assert_correct(&what);
                }
                index += 1;
            }
        }
    }
}

fn a_temperature_that_lives_on_the_device_goes_on_from_there() {
    let (sets, rows) = (sets(), rows());
    let logits = noise(4, SHAPE.iter().product(), 4.0);
    for scope in [Scope::Root, Scope::Branching, Scope::Marked] {
        let warm_up = candle_trie::AdaptiveStrategy {
            warm_up: 3,
            ..strategy(scope)
        };
        // The host knows which step it is, and what τ was when it last looked.
        for step in [1, 2, 3, 4] {
            let mut temperature = Temperature::from(warm_up);
            let state = TemperatureState { value: 0.7, step };
            temperature.restore(state).unwrap();
            let case = Case::<f32> {
                temperature,
                resident: true,
                convention: Convention::adaptive(),
                ..Case::new(&sets, &rows, VOCABULARY, &logits)
            };
            case.assert_correct(&format!("{scope:?}, step {step}"));
        }
    }
}

/// A row that weighs nothing has a gradient of zeros, but its logits enter the statistics. Where the temperature does
/// not wait for the statistics, no barrier parts the one from the other.
fn rows_of_statistics_alone_are_read_before_their_gradient_replaces_them() {
    let (sets, rows) = (sets(), weighted_rows());
    let logits = noise(7, SHAPE.iter().product(), 4.0);
    for scope in [Scope::Root, Scope::Branching, Scope::Marked] {
        // In the warm-up, after it, and where C ≤ 0 (or, pooled, where the arithmetic goes on all the same).
        let warm_up = candle_trie::AdaptiveStrategy {
            warm_up: 1,
            ..strategy(scope)
        };
        let degenerate = candle_trie::AdaptiveStrategy {
            eta: 0.1,
            allow_degenerate: true,
            ..strategy(scope)
        };
        for strategy in [warm_up, strategy(scope), degenerate] {
            // Whether the loss is one number or one a position.
            for convention in [conventions()[0], conventions()[8]] {
                for gradient in GRADIENTS {
                    let case = Case::<f32> {
                        temperature: Temperature::from(strategy),
                        convention,
                        gradient,
                        ..Case::new(&sets, &rows, VOCABULARY, &logits)
                    };
                    case.assert_correct(&format!("{strategy:?}, {convention:?}"));
                }
            }
        }
    }
}

fn a_batch_without_statistics_leaves_the_temperature() {
    let sets = sets();
    // No row at the root.
    let rows = crate::batch::rows_of(4, &[(0, 1, 4), (2, 3, 5)]);
    let logits = noise(5, 4 * VOCABULARY, 4.0);
    for resident in [false, true] {
        let case = Case::<f32> {
            temperature: Temperature::from(strategy(Scope::Root)),
            resident,
            convention: Convention::adaptive(),
            ..Case::new(&sets, &rows, VOCABULARY, &logits)
        };
        case.assert_correct("no root");
    }
}

fn degenerate_fan_outs_give_the_published_arithmetic_where_allowed() {
    let sets = candle_trie::TokenSets::from_raw(vec![0, 2, 6], vec![1, 4, 0, 2, 3, 5]).unwrap();
    for (set, targets) in [(0, [1, 4]), (1, [2, 3])] {
        let rows = crate::batch::rows_of(2, &[(0, set, targets[0]), (1, set, targets[1])]);
        let rows = rows.with_marks(vec![true; 2]).unwrap();
        let allowed = candle_trie::AdaptiveStrategy {
            // η·n is 1/2 and 1.
            eta: 0.25,
            allow_degenerate: true,
            ..strategy(Scope::Marked)
        };
        let branching = candle_trie::AdaptiveStrategy {
            scope: Scope::Branching,
            ..allowed
        };
        for strategy in [allowed, branching] {
            for seed in 0..4 {
                let logits = noise(seed, 2 * VOCABULARY, 4.0);
                let case = Case::<f32> {
                    temperature: Temperature::from(strategy),
                    convention: Convention::adaptive(),
                    gradient: Gradient::None,
                    ..Case::new(&sets, &rows, VOCABULARY, &logits)
                };
                case.assert_correct(&format!("{strategy:?}, set {set}, seed {seed}"));
            }
        }
    }
}

candle_trie_emulator::emulated_tests! {
    every_option_in_f32,
    every_option_in_f16,
    every_option_in_bf16,
    every_option_with_row_weights,
    a_temperature_that_lives_on_the_device_goes_on_from_there,
    rows_of_statistics_alone_are_read_before_their_gradient_replaces_them,
    a_batch_without_statistics_leaves_the_temperature,
    degenerate_fan_outs_give_the_published_arithmetic_where_allowed,
}
