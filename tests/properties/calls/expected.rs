//! What the definition gives for a call, and how far from it rounding may lead.

use candle_core::{DType, Tensor};
use candle_trie::reference::{self, Reference};
use candle_trie::{
    AdaptiveTemperature, LossOutput, MaskedSoftmaxLoss, Reduction, Result, Statistics, Temperature,
};

use super::case::Case;

/// The logits of a batch in f64.
pub struct Logits {
    pub values: Vec<f64>,
    /// How far off a computation from hidden states may find them.
    pub error: f64,
}

/// The gradient of the logits, and how far each entry may be off before it is rounded to the dtype.
pub struct Gradient {
    pub values: Vec<f64>,
    pub slack: Vec<f64>,
}

impl Case {
    /// The loss, or nothing where ATS is not defined for the catalogue and says so.
    pub fn loss(&self) -> Option<MaskedSoftmaxLoss> {
        let loss = match MaskedSoftmaxLoss::new(self.sets.clone(), self.temperature.clone()) {
            Ok(loss) => loss,
            Err(error) => {
                let Temperature::Adaptive(AdaptiveTemperature { strategy, .. }) = self.temperature
                else {
                    panic!("{error}");
                };
                let fan_out = self.sets.get(0).unwrap().len() as f64;
                assert!(strategy.eta * fan_out <= 1.0 && !strategy.allow_degenerate);
                return None;
            }
        };
        let loss = match self.bear {
            Some(bear) => loss.with_bear(bear).unwrap(),
            None => loss,
        };
        Some(loss.with_convention(self.convention).unwrap())
    }

    fn reference(&self, logits: &Logits, mut temperature: Temperature) -> Result<Reference> {
        let (values, sets, rows) = (&logits.values, &self.sets, &self.rows);
        reference::loss_with_bear(
            values,
            self.vocabulary,
            sets,
            rows,
            &mut temperature,
            self.convention,
            self.bear,
        )
    }

    /// The unit in the last place of what the dtype is computed in.
    pub fn epsilon(&self) -> f64 {
        match self.dtype {
            DType::F64 => f64::EPSILON,
            _ => f64::from(f32::EPSILON),
        }
    }

    /// Compares a call's output with the definition, and gives what the gradient must be. `steps` says
    /// whether it moved an adaptive temperature, which stood at `before`. Nothing where the call was to be
    /// refused, and was.
    pub fn check(
        &self,
        logits: &Logits,
        before: &Temperature,
        steps: bool,
        found: Result<&LossOutput, String>,
        loss: &MaskedSoftmaxLoss,
    ) -> Option<Gradient> {
        let stepped = self.reference(logits, before.clone());
        let output = match (found, &stepped) {
            (Ok(output), _) if !steps || stepped.is_ok() => output,
            (Err(_), Err(_)) if steps => {
                assert_eq!(loss.temperature().unwrap(), before, "after a refusal");
                return None;
            }
            (found, stepped) => panic!("{:?}, but expected {stepped:?}", found.err()),
        };
        let temperature = output.read_temperature().unwrap();
        let statistics = output.read_statistics().unwrap();
        let mut after = before.clone();
        if steps {
            self.check_statistics(logits, &statistics, &stepped.unwrap().statistics);
            let step = before.state().step;
            let expected = after.step(&statistics, step).unwrap();
            assert!((temperature / expected - 1.0).abs() < 1e-9);
        }
        let (now, after) = (loss.temperature().unwrap().state(), after.state());
        assert_eq!(now.step, after.step);
        assert!((now.value / after.value - 1.0).abs() < 1e-9);
        let reference = self.reference(logits, Temperature::fixed(temperature));
        Some(self.check_loss(logits, output, &reference.unwrap()))
    }

    fn check_loss(&self, logits: &Logits, output: &LossOutput, reference: &Reference) -> Gradient {
        let rows = self.rows.as_slice();
        assert_eq!(output.labelled_rows, rows.len());
        assert_eq!(output.branching_rows, self.branching().count());
        let tau = reference.temperature;
        let weights: Vec<f64> = (0..rows.len())
            .map(|row| f64::from(self.rows.weight(row)) * reference.bear_weights[row])
            .collect();
        let branching_weight: f64 = self.branching().map(|(row, _)| weights[row]).sum();
        let denominator = match self.convention.reduction {
            Reduction::MeanOverLabelled => weights.iter().sum(),
            Reduction::MeanOverBranching => branching_weight,
            Reduction::MeanOver(denominator) => denominator,
            Reduction::Sum | Reduction::None => 1.0,
        };
        let bear = self.bear.map_or(1.0, |bear| 1.0 + bear.lambda / bear.xi);
        let relative = (4.0 * self.epsilon() * (1.0 + self.spread(logits) / tau)
            + 2.0 * logits.error / tau)
            * bear;
        match (self.bear, output.read_bear_weight().unwrap()) {
            (None, None) => {}
            (Some(_), Some(found)) => {
                assert!((found - branching_weight).abs() <= relative * branching_weight.max(1.0));
            }
            (_, found) => panic!("{found:?} for {:?}", self.bear),
        }
        let factor = if self.convention.times_temperature {
            tau
        } else {
            1.0
        };
        let slack = |row: usize| relative * (reference.losses[row].abs() + weights[row] * factor);
        let losses = f64s(&output.loss);
        if self.convention.reduction == Reduction::None {
            let mut expected = vec![(0.0, 0.0); self.rows.positions()];
            for (row, place) in self.branching() {
                expected[place.position as usize] = (reference.losses[row], slack(row));
            }
            assert_eq!(losses.len(), expected.len());
            for (found, (expected, slack)) in losses.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= slack,
                    "{found} for {expected} ± {slack}"
                );
            }
        } else {
            let slack: f64 = self.branching().map(|(row, _)| slack(row)).sum();
            let (found, slack) = (
                losses[0],
                if slack == 0.0 {
                    0.0
                } else {
                    slack / denominator
                },
            );
            let difference = (found - reference.loss).abs();
            assert!(
                difference <= slack,
                "{found} for {} ± {slack}",
                reference.loss
            );
        }
        let mut slack = vec![0.0; reference.gradient.len()];
        for (row, place) in self.branching().filter(|(row, _)| weights[*row] > 0.0) {
            let largest = weights[row] * factor / tau / denominator;
            for token in self.sets.get(place.set).unwrap().iter() {
                let entry = place.position as usize * self.vocabulary + token as usize;
                let of_target = if token == place.target { largest } else { 0.0 };
                // A probability is as far off, relatively, as its logit absolutely. Where f32's range ends it is 0.
                let gradient = reference.gradient[entry];
                let probability = (gradient + of_target).abs() + gradient.abs();
                slack[entry] =
                    relative * probability + largest * 2.0 * f64::from(f32::MIN_POSITIVE);
            }
        }
        Gradient {
            values: reference.gradient.clone(),
            slack,
        }
    }

    /// The widest span of a row's valid logits.
    fn spread(&self, logits: &Logits) -> f64 {
        let spread = |row: &candle_trie::Row| {
            let line = &logits.values[row.position as usize * self.vocabulary..];
            let tokens = self.sets.get(row.set).unwrap().iter();
            let (least, most) = tokens.map(|token| line[token as usize]).fold(
                (f64::INFINITY, f64::NEG_INFINITY),
                |(least, most), logit| (logit.min(least), logit.max(most)),
            );
            most - least
        };
        self.rows.as_slice().iter().map(spread).fold(0.0, f64::max)
    }

    fn check_statistics(&self, logits: &Logits, found: &Statistics, expected: &Statistics) {
        assert_eq!(found.rows(), expected.rows());
        assert_eq!(found.tokens(), expected.tokens());
        assert_eq!(found.fan_out(), expected.fan_out());
        let spread = self.spread(logits);
        let near = |found: f64, expected: f64, slack: f64| {
            let same = found.is_nan() && expected.is_nan() || found == expected;
            assert!(
                same || (found - expected).abs() <= slack,
                "{found} for {expected} ± {slack}"
            );
        };
        if expected.rows() == 0 {
            return;
        }
        let size = expected.mean().abs().max(expected.target_mean().abs()) + spread;
        let slack = 8.0 * self.epsilon() * size + 2.0 * logits.error;
        near(found.mean(), expected.mean(), slack);
        near(found.target_mean(), expected.target_mean(), slack);
        let (centred, log_size) = (expected.centred_target_mean(), expected.mean_log_size());
        near(found.centred_target_mean(), centred, slack);
        near(found.mean_log_size(), log_size, 1e-9);
        // Of a single logit the variance is not a number.
        let slack = slack * (expected.variance().max(0.0).sqrt() + spread);
        near(found.variance(), expected.variance(), slack);
        near(
            found.mean_row_variance(),
            expected.mean_row_variance(),
            slack,
        );
    }

    /// Compares a gradient that was found, in the dtype, with what it must be times `upstream`.
    pub fn check_gradient(&self, found: &Tensor, expected: &Gradient, upstream: f64) {
        assert_eq!(found.dtype(), self.dtype);
        let (unit, least) = match self.dtype {
            DType::F64 => (f64::EPSILON, 0.0),
            DType::F32 => (2f64.powi(-23), 2f64.powi(-126)),
            DType::F16 => (2f64.powi(-11), 2f64.powi(-24)),
            _ => (2f64.powi(-8), 2f64.powi(-126)),
        };
        let found = f64s(found);
        assert_eq!(found.len(), expected.values.len());
        for (index, found) in found.iter().enumerate() {
            let (value, slack) = (
                expected.values[index] * upstream,
                expected.slack[index] * upstream,
            );
            let slack = if slack == 0.0 {
                0.0
            } else {
                slack + value.abs() * unit + least
            };
            let difference = (found - value).abs();
            assert!(
                difference <= slack,
                "gradient {index}: {found} for {value} ± {slack}"
            );
        }
    }
}

pub fn f64s(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
