//! What the published PyTorch loss gives, for every case of the folder that `CANDLE_TRIE_GOLDEN`
//! names (`index.json` and the files it explains).
//!
//! Where the published code gives inf or NaN, the mathematics decides, by the f64 reference of this
//! crate: overflow and underflow of its unshifted exponentials give way to the finite value; a label
//! outside its set to `TargetNotInSet`; a batch without branching rows to loss 0; statistics of no
//! row, and 0/0 at η·n = 1, to an unchanged temperature.
//!
//! Those of BEAR (`bear.json`) come from an independent implementation of its definition in f64.

mod bear;
mod case;
#[path = "../device/mod.rs"]
mod device;

use candle_core::{DType, Tensor, Var};
use candle_trie::reference::{self, Reference};
use candle_trie::{Convention, Error, GradientTarget, MaskedSoftmaxLoss, Temperature, TokenSets};
use serde_json::Value;

use case::{Case, for_each_case, number};
use device::device;

#[test]
fn plain_language_model_losses_are_the_published_ones() {
    for_each_case(|case| {
        let sets = TokenSets::whole_vocabulary(case.vocabulary).unwrap();
        let temperature = Temperature::fixed(case.number("tau"));
        case.check("lml", &sets, temperature, Convention::fixed());
    });
}

#[test]
fn masked_losses_at_a_fixed_temperature_are_the_published_ones() {
    for_each_case(|case| {
        let temperature = Temperature::fixed(case.number("tau"));
        case.check("msl", &case.sets, temperature, Convention::fixed());
    });
}

#[test]
fn losses_temperatures_and_statistics_of_ats_are_the_published_ones() {
    for_each_case(|case| {
        let mut strategy = case.strategy();
        let fan_out = case.number("first_valid_token_num");
        let has_statistics = case
            .first
            .iter()
            .zip(&case.labels)
            .any(|(&f, &l)| f && l >= 0);
        if strategy.eta * fan_out <= 1.0 && has_statistics {
            let refused = case.run(
                DType::F64,
                &case.sets,
                case.adaptive(strategy),
                Convention::adaptive(),
            );
            assert!(
                matches!(refused, Err(Error::DegenerateScope { .. })),
                "{}: η·n = {} must be refused",
                case.name,
                strategy.eta * fan_out
            );
            strategy.allow_degenerate = true;
        }
        case.check(
            "ats",
            &case.sets,
            case.adaptive(strategy),
            Convention::adaptive(),
        );
    });
}

/// What one run gives: the loss and the dense gradient of the logits, each through autograd, through
/// `value_and_gradient` and through `forward` over hidden states (the logits, times the identity as head),
/// the temperature and the statistics.
struct Outcome {
    losses: [f64; 3],
    gradients: [Vec<f64>; 3],
    temperature: f64,
    statistics: candle_trie::Statistics,
}

impl Case {
    fn run(
        &self,
        dtype: DType,
        sets: &TokenSets,
        temperature: Temperature,
        convention: Convention,
    ) -> Result<Outcome, Error> {
        let loss = MaskedSoftmaxLoss::new(sets, temperature)?.with_convention(convention)?;
        self.run_loss(dtype, &loss)
    }

    fn logits(&self, dtype: DType) -> Result<Tensor, Error> {
        let shape = (self.labels.len(), self.vocabulary);
        Ok(Tensor::from_slice(&self.logits, shape, &device(dtype))?.to_dtype(dtype)?)
    }

    fn run_loss(&self, dtype: DType, loss: &MaskedSoftmaxLoss) -> Result<Outcome, Error> {
        let logits = Var::from_tensor(&self.logits(dtype)?)?;
        let output = loss.clone().forward(&logits, &self.rows)?;
        let gradient = output.loss.backward()?.get(&logits).unwrap().clone();
        let (fused, fused_gradient) =
            loss.clone()
                .value_and_gradient(&logits, &self.rows, GradientTarget::New)?;
        let identity = Tensor::eye(self.vocabulary, dtype, logits.device())?;
        let linear = loss.clone().forward((&logits, &identity), &self.rows)?;
        let linear_gradient = linear.loss.backward()?.get(&logits).unwrap().clone();
        Ok(Outcome {
            temperature: output.read_temperature()?,
            statistics: output.read_statistics()?,
            losses: [output.loss, fused.loss, linear.loss].map(|loss| f64_of(&loss)),
            gradients: [gradient, fused_gradient, linear_gradient].map(|g| f64s_of(&g)),
        })
    }

    fn check(
        &self,
        kind: &str,
        sets: &TokenSets,
        temperature: Temperature,
        convention: Convention,
    ) {
        let published = &self.index["out"][kind]["f64"];
        if kind != "lml" && self.has_label_outside_its_set() {
            let refused = self.run(DType::F64, sets, temperature, convention);
            assert!(
                matches!(refused, Err(Error::TargetNotInSet { .. })),
                "{}: a label outside its set must be refused",
                self.name
            );
            return;
        }
        let logits: Vec<f64> = self.logits.iter().map(|&logit| f64::from(logit)).collect();
        let expected = reference::loss(
            &logits,
            self.vocabulary,
            sets,
            &self.rows,
            &mut temperature.clone(),
            convention,
        )
        .unwrap();
        let comparable = self.is_comparable(kind, published);
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
            let outcome = self
                .run(dtype, sets, temperature.clone(), convention)
                .unwrap();
            let what = format!("{}, {kind}, {dtype:?}", self.name);
            if comparable {
                self.check_published(kind, published, &outcome, tolerance, &what);
            }
            check_reference(&expected, &outcome, tolerance, &what);
        }
    }

    fn check_published(
        &self,
        kind: &str,
        published: &Value,
        outcome: &Outcome,
        tolerance: f64,
        what: &str,
    ) {
        for loss in outcome.losses {
            let published = number(&published["loss"]);
            assert_close(loss, published, tolerance, &format!("{what}: loss"));
        }
        let gradient = self.published_gradient(kind);
        for ours in &outcome.gradients {
            assert_gradients_close(ours, &gradient, tolerance, what);
        }
        if kind != "ats" {
            return;
        }
        let statistics = &outcome.statistics;
        assert_close(
            outcome.temperature,
            number(&published["new_ada_tau"]),
            tolerance,
            what,
        );
        for (ours, key) in [
            (statistics.target_mean(), "pos_mu"),
            (statistics.mean(), "neg_mu"),
            (statistics.variance(), "neg_var"),
            (statistics.target_mean() - statistics.mean(), "diff_mu"),
        ] {
            let published = number(&published[key]);
            if published.is_finite() {
                assert_close(ours, published, tolerance, &format!("{what}: {key}"));
            }
        }
    }
}

fn check_reference(expected: &Reference, outcome: &Outcome, tolerance: f64, what: &str) {
    for loss in outcome.losses {
        assert_close(
            loss,
            expected.loss,
            tolerance,
            &format!("{what}: reference loss"),
        );
    }
    assert_close(outcome.temperature, expected.temperature, tolerance, what);
    for ours in &outcome.gradients {
        assert_gradients_close(ours, &expected.gradient, tolerance, what);
    }
}

/// Relative, with an absolute floor of the same size.
fn assert_close(ours: f64, expected: f64, tolerance: f64, what: &str) {
    let error = (ours - expected).abs() / expected.abs().max(1.0);
    assert!(
        error <= tolerance,
        "{what}: {ours} should be {expected}, off by {error:e}"
    );
}

/// Within `tolerance` of the largest entry; exactly zero where the expected gradient is.
fn assert_gradients_close(ours: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected
        .iter()
        .fold(0.0f64, |largest, entry| largest.max(entry.abs()));
    for (index, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let error = (ours - expected).abs();
        assert!(
            error <= tolerance * largest,
            "{what}: gradient entry {index} is {ours}, should be {expected} (largest {largest})"
        );
    }
}

fn f64_of(scalar: &Tensor) -> f64 {
    scalar.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn f64s_of(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}
