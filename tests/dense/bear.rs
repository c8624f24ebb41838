//! BEAR's row weights: what they are, and that they are constants to the gradient.

use candle_core::{DType, Tensor, Var};
use candle_trie::{
    Bear, Convention, Error, GradientTarget, MaskedSoftmaxLoss, Reduction, Rows, Scope,
    Temperature, TokenSets,
};

use crate::batch::*;

const PLAIN_MEAN: Convention = Convention {
    reduction: Reduction::MeanOverBranching,
    times_temperature: false,
};

/// The weight of every row by the definition.
fn weights(values: &[f64], sets: &TokenSets, rows: &Rows, bear: Bear, tau: f64) -> Vec<f64> {
    let width = values.len() / rows.positions();
    let weight = |row: &candle_trie::Row| {
        let logit = |token: u32| values[row.position as usize * width + token as usize];
        let exponential = |token: u32| (logit(token) / tau).exp();
        let tokens: Vec<u32> = sets.get(row.set).unwrap().iter().collect();
        let sum: f64 = tokens.iter().map(|&token| exponential(token)).sum();
        let mut probabilities: Vec<f64> = (tokens.iter())
            .map(|&token| exponential(token) / sum)
            .collect();
        probabilities.sort_by(|a, b| b.total_cmp(a));
        let last = probabilities[tokens.len().min(bear.beams as usize) - 1];
        let margin = (exponential(row.target) / sum).ln() - last.ln();
        1.0 + bear.lambda / (1.0 + (-margin / bear.xi).exp())
    };
    rows.as_slice().iter().map(weight).collect()
}

/// The loss at the weights of `at`, whatever the logits are.
struct AtConstantWeights<'a> {
    rows: &'a Rows,
    convention: Convention,
    bear_weights: Vec<f64>,
    tau: f64,
}

impl AtConstantWeights<'_> {
    fn weight(&self, row: usize) -> f64 {
        f64::from(self.rows.weight(row)) * self.bear_weights[row]
    }

    fn denominator(&self) -> f64 {
        let branches = |row: usize| sets().get(self.rows.as_slice()[row].set).unwrap().len() > 1;
        let indices = 0..self.rows.len();
        match self.convention.reduction {
            Reduction::MeanOverLabelled => indices.map(|row| self.weight(row)).sum(),
            Reduction::MeanOverBranching => indices
                .filter(|&row| branches(row))
                .map(|row| self.weight(row))
                .sum(),
            Reduction::MeanOver(denominator) => denominator,
            Reduction::Sum | Reduction::None => 1.0,
        }
    }

    /// One number, or one for every position.
    fn losses(&self, logits: &Tensor) -> Vec<f64> {
        let unreduced = Convention {
            reduction: Reduction::None,
            ..self.convention
        };
        let plain = loss(&sets(), &Temperature::fixed(1.0), unreduced);
        let unweighted = Rows::from_raw(self.rows.positions(), self.rows.as_slice().to_vec());
        let output = plain.forward_at(logits, &unweighted.unwrap(), self.tau);
        let mut losses = f64s(&output.unwrap().loss);
        for (index, row) in self.rows.as_slice().iter().enumerate() {
            losses[row.position as usize] *= self.weight(index) / self.denominator();
        }
        match self.convention.reduction {
            Reduction::None => losses,
            _ => vec![losses.into_iter().sum()],
        }
    }
}

#[test]
fn the_gradient_is_the_slope_at_constant_weights() {
    const STEP: f64 = 1e-5;
    let values = noise(70, 8 * VOCABULARY, 3.0);
    for (temperature, bear) in each_with_bears(temperatures()) {
        let Some(bear) = bear else { continue };
        for convention in conventions() {
            for rows in [rows(), weighted_rows()] {
                let mut loss = loss_with_bear(&sets(), &temperature, convention, Some(bear));
                let logits = Var::from_tensor(&tensor(&values, &SHAPE, DType::F64)).unwrap();
                let output = loss.forward(&logits, &rows).unwrap();
                let tau = output.read_temperature().unwrap();
                let constant = AtConstantWeights {
                    rows: &rows,
                    convention,
                    bear_weights: weights(&values, &sets(), &rows, bear, tau),
                    tau,
                };
                let what = format!("{convention:?} at {temperature:?}, {bear:?}");
                let expected = constant.losses(&logits);
                assert_close(&f64s(&output.loss), &expected, 1e-12, &what);

                let upstream = noise(71, expected.len(), 1.0);
                let shaped = tensor(&upstream, output.loss.dims(), DType::F64);
                let weighted = (&output.loss * &shaped).unwrap().sum_all().unwrap();
                let gradients = weighted.backward().unwrap();
                let at = |entry: usize, step: f64| -> f64 {
                    let mut moved = values.clone();
                    moved[entry] += step;
                    let losses = constant.losses(&tensor(&moved, &SHAPE, DType::F64));
                    losses.iter().zip(&upstream).map(|(a, b)| a * b).sum()
                };
                let slope = |entry| (at(entry, STEP) - at(entry, -STEP)) / (2.0 * STEP);
                let expected: Vec<f64> = (0..values.len()).map(slope).collect();
                let found = f64s(gradients.get(&logits).unwrap());
                assert_close(&found, &expected, 1e-7, &what);
            }
        }
    }
}

/// The loss and the sum of the weights of one row over these logits, whose target is the first.
fn one_row(logits: &[f64], bear: Bear) -> [f64; 2] {
    let size = logits.len() as u32;
    let sets = TokenSets::from_raw(vec![0, size], (0..size).collect()).unwrap();
    let sum = Convention {
        reduction: Reduction::Sum,
        times_temperature: false,
    };
    let loss = loss_with_bear(&sets, &Temperature::fixed(1.0), sum, Some(bear));
    let logits = tensor(logits, &[1, logits.len()], DType::F64);
    let output = loss.evaluate(&logits, &rows_of(1, &[(0, 0, 0)])).unwrap();
    let weight = output.read_bear_weight().unwrap().unwrap();
    [f64_of(&output.loss), weight]
}

#[test]
fn the_weight_is_that_of_the_margin_to_the_last_token_that_beam_search_keeps() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let bear = |beams| Bear {
        beams,
        lambda: 0.5,
        xi: 2.0,
    };
    let minus_infinity = f64::NEG_INFINITY;
    for (logits, beams, margin) in [
        // The target's rank does not matter, the B-th logit does.
        (vec![1.0, 5.0, 3.0, 2.0, 0.0], 2, -2.0),
        (vec![4.0, 5.0, 3.0, 2.0, 0.0], 3, 1.0),
        (vec![9.0, 5.0, 3.0, 2.0, 0.0], 4, 7.0),
        // One beam: the target itself, or what is above it.
        (vec![6.0, 5.0, 3.0], 1, 0.0),
        (vec![4.0, 5.0, 3.0], 1, -1.0),
        // Fewer tokens than beams, or as many: the smallest.
        (vec![4.0, 5.0, 3.0], 3, 1.0),
        (vec![4.0, 5.0, 3.0], 4, 1.0),
        (vec![3.0, 4.0, 5.0], u32::MAX, 0.0),
        // Equal logits are counted as often as they occur, the target's too.
        (vec![1.0, 5.0, 5.0, 5.0, 2.0], 3, -4.0),
        (vec![1.0, 5.0, 5.0, 5.0, 2.0], 4, -1.0),
        (vec![5.0, 5.0, 5.0, 1.0, 2.0], 3, 0.0),
        // Tokens without any probability are the last.
        (vec![1.0, 5.0, minus_infinity, minus_infinity], 2, 0.0),
        (
            vec![1.0, 5.0, minus_infinity, minus_infinity],
            3,
            f64::INFINITY,
        ),
        // Logits of any size.
        (vec![1e4, 1e4 + 3.0, 1e4 - 1.0, -1e5], 3, 1.0),
        (vec![-1e4, 1e4, 2e4], 2, minus_infinity),
    ] {
        let weight = 1.0 + 0.5 * sigmoid(margin / 2.0);
        let [loss, found] = one_row(&logits, bear(beams));
        let what = format!("{logits:?}, {beams} beams");
        assert!(
            (found - weight).abs() < 1e-14,
            "{what}: {found}, not {weight}"
        );
        let [plain, one] = one_row(
            &logits,
            Bear {
                lambda: 0.0,
                ..bear(beams)
            },
        );
        assert_eq!(one, 1.0, "{what}");
        assert!(
            (loss - plain * weight).abs() <= 1e-14 * loss,
            "{what}: {loss}"
        );
    }
    // Where target and B-th token have no probability, they are a tie; the loss is infinite in any case.
    let [loss, weight] = one_row(&[minus_infinity, 5.0, minus_infinity], bear(2));
    assert_eq!([loss, weight], [f64::INFINITY, 1.25]);
}

#[test]
fn sets_too_long_to_keep_are_selected_from_too() {
    const VOCABULARY: usize = 40_000;
    let sets = TokenSets::whole_vocabulary(VOCABULARY).unwrap();
    let rows = rows_of(3, &[(0, 0, 7), (2, 0, 39_999)]);
    let values = noise(72, 3 * VOCABULARY, 6.0);
    for beams in [1, 10, 500, 39_999, 40_000] {
        let bear = Bear {
            beams,
            lambda: 2.0,
            xi: 4.0,
        };
        let loss = loss_with_bear(&sets, &Temperature::fixed(0.7), PLAIN_MEAN, Some(bear));
        let logits = tensor(&values, &[3, VOCABULARY], DType::F64);
        let output = loss.evaluate(&logits, &rows).unwrap();
        let expected: f64 = weights(&values, &sets, &rows, bear, 0.7).iter().sum();
        let found = output.read_bear_weight().unwrap().unwrap();
        assert!(
            (found - expected).abs() < 1e-12,
            "{beams} beams: {found}, not {expected}"
        );
    }
}

/// The head is worked through in chunks of tokens, each of which may hold some of the largest scores.
#[test]
fn scores_that_come_in_chunks_are_selected_from_as_a_whole() {
    const VOCABULARY: usize = 1_500_000;
    let sets = TokenSets::whole_vocabulary(VOCABULARY).unwrap();
    let rows = rows_of(2, &[(0, 0, 7), (1, 0, VOCABULARY as u32 - 1)]);
    let scores = noise(73, VOCABULARY, 6.0);
    let head = tensor(&scores, &[VOCABULARY, 1], DType::F64);
    let hidden = tensor(&[1.0, -0.5], &[2, 1], DType::F64);
    let logits: Vec<f64> = [1.0, -0.5]
        .iter()
        .flat_map(|hidden| scores.iter().map(move |score| hidden * score))
        .collect();
    for beams in [1, 10, 700_000, VOCABULARY as u32] {
        let bear = Bear {
            beams,
            lambda: 2.0,
            xi: 4.0,
        };
        let loss = loss_with_bear(&sets, &Temperature::fixed(0.7), PLAIN_MEAN, Some(bear));
        let output = loss.evaluate((&hidden, &head), &rows).unwrap();
        let expected: f64 = weights(&logits, &sets, &rows, bear, 0.7).iter().sum();
        let found = output.read_bear_weight().unwrap().unwrap();
        assert!(
            (found - expected).abs() < 1e-9,
            "{beams} beams: {found}, not {expected}"
        );
    }
}

#[test]
fn unary_rows_count_in_the_mean_over_labelled_rows_alone_as_ties() {
    let values = noise(74, 8 * VOCABULARY, 3.0);
    let logits = tensor(&values, &SHAPE, DType::F64);
    let Some(bear) = bears()[1] else { return };
    let loss_by = |reduction| {
        let convention = Convention {
            reduction,
            ..PLAIN_MEAN
        };
        let loss = loss_with_bear(&sets(), &Temperature::fixed(1.0), convention, Some(bear));
        f64_of(&loss.evaluate(&logits, &weighted_rows()).unwrap().loss)
    };
    let weights = weights(&values, &sets(), &weighted_rows(), bear, 1.0);
    assert_eq!(weights[2], 1.75, "a unary row");
    let all = [0.5, 2.0, 3.0, 1.25, 0.0, 0.75];
    let labelled: f64 = all.iter().zip(&weights).map(|(a, b)| a * b).sum();
    let branching = labelled - 3.0 * 1.75;
    let sum = loss_by(Reduction::Sum);
    for (reduction, denominator) in [
        (Reduction::MeanOverLabelled, labelled),
        (Reduction::MeanOverBranching, branching),
        (Reduction::MeanOver(5.0), 5.0),
    ] {
        let found = loss_by(reduction) * denominator;
        assert!(
            (found / sum - 1.0).abs() < 1e-13,
            "{reduction:?}: {found}, not {sum}"
        );
    }
}

#[test]
fn without_strength_bear_is_the_plain_mean_over_branching_rows() {
    let plain = Bear {
        lambda: 0.0,
        ..Bear::default()
    };
    for temperature in temperatures() {
        let mut with = MaskedSoftmaxLoss::new(sets(), temperature.clone()).unwrap();
        let times_temperature = with.convention().times_temperature;
        with = with.with_bear(plain).unwrap();
        let convention = with.convention();
        assert_eq!(convention.reduction, Reduction::MeanOverBranching);
        assert_eq!(convention.times_temperature, times_temperature);
        assert_eq!(with.bear(), Some(plain));
        let mut without = loss(&sets(), &temperature, convention);
        assert_eq!(without.bear(), None);
        let logits = tensor(&noise(75, 8 * VOCABULARY, 3.0), &SHAPE, DType::F64);
        let (with, gradient) = with
            .value_and_gradient(&logits, &weighted_rows(), GradientTarget::New)
            .unwrap();
        let (without, expected) = without
            .value_and_gradient(&logits, &weighted_rows(), GradientTarget::New)
            .unwrap();
        assert_close(&f64s(&gradient), &f64s(&expected), 1e-15, "gradient");
        assert_close(&f64s(&with.loss), &f64s(&without.loss), 1e-15, "loss");
        assert_eq!(without.read_bear_weight().unwrap(), None);
        assert_eq!(with.read_bear_weight().unwrap(), Some(4.5));
    }
}

#[test]
fn sums_of_micro_batches_over_the_sum_of_their_weights_are_the_mean_of_the_batch() {
    let values = noise(76, 8 * VOCABULARY, 3.0);
    let all = [
        (0, 0, 2),
        (1, 1, 4),
        (2, 2, 3),
        (4, 0, 6),
        (5, 3, 0),
        (7, 1, 1),
    ];
    for (scope, bear) in each_with_bears([Scope::Root, Scope::Branching]) {
        let Some(bear) = bear else { continue };
        let temperature = Temperature::from(strategy(scope));
        let whole = MaskedSoftmaxLoss::new(sets(), temperature).unwrap();
        let whole = whole.with_bear(bear).unwrap();
        let parts = whole.clone().with_reduction(Reduction::Sum);
        let parts = parts.unwrap();
        for cut in 0..=8 {
            let (mut sum, mut weight, mut gradient) = (0.0, 0.0, Vec::new());
            for (from, to) in [(0, cut), (cut, 8)] {
                let inside = all.iter().filter(|row| (from..to).contains(&row.0));
                let rows: Vec<_> = inside.map(|row| (row.0 - from, row.1, row.2)).collect();
                let length = (to - from) as usize;
                let part = &values[from as usize * VOCABULARY..to as usize * VOCABULARY];
                let logits = Var::from_tensor(&tensor(part, &[length, VOCABULARY], DType::F64));
                let logits = logits.unwrap();
                let output = parts
                    .forward_at(&logits, &rows_of(length, &rows), 1.3)
                    .unwrap();
                sum += f64_of(&output.loss);
                weight += output.read_bear_weight().unwrap().unwrap();
                let gradients = output.loss.backward().unwrap();
                gradient.extend(f64s(gradients.get(&logits).unwrap()));
            }
            let logits = Var::from_tensor(&tensor(&values, &[8, VOCABULARY], DType::F64)).unwrap();
            let expected = whole.forward_at(&logits, &rows_of(8, &all), 1.3).unwrap();
            let gradients = expected.loss.backward().unwrap();
            gradient.iter_mut().for_each(|entry| *entry /= weight);
            let what = format!("cut at {cut}");
            assert_close(&[sum / weight], &f64s(&expected.loss), 1e-14, &what);
            assert_close(
                &gradient,
                &f64s(gradients.get(&logits).unwrap()),
                1e-14,
                &what,
            );
        }
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let plain = || loss(&sets(), &Temperature::fixed(1.0), PLAIN_MEAN);
    let defaults = Bear::default();
    for (wrong, name) in [
        (
            Bear {
                beams: 0,
                ..defaults
            },
            "BEAR's beams",
        ),
        (
            Bear {
                lambda: -1.0,
                ..defaults
            },
            "BEAR's lambda",
        ),
        (
            Bear {
                xi: 0.0,
                ..defaults
            },
            "BEAR's xi",
        ),
    ] {
        let error = plain().with_bear(wrong).unwrap_err();
        assert!(
            matches!(error, Error::OutOfRange { name: found, .. } if found == name),
            "{error}"
        );
    }
}
