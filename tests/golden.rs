//! What the published PyTorch loss gives, for every case of the folder that `CANDLE_TRIE_GOLDEN`
//! names (`index.json` and the files it explains).
//!
//! Where the published code gives inf or NaN, the mathematics decides, by the f64 reference of this
//! crate: overflow and underflow of its unshifted exponentials give way to the finite value; a label
//! outside its set to `TargetNotInSet`; a batch without branching rows to loss 0; statistics of no
//! row, and 0/0 at η·n = 1, to an unchanged temperature.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::reference::{self, Reference};
use candle_trie::{
    AdaptiveStrategy, Convention, Error, MaskedSoftmaxLoss, Row, Rows, Scope, Temperature,
    TemperatureState, TokenSets,
};
use safetensors::SafeTensors;
use serde_json::Value;

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

struct Case {
    name: String,
    index: Value,
    file: Vec<u8>,
    vocabulary: usize,
    logits: Vec<f32>,
    labels: Vec<i64>,
    first: Vec<bool>,
    /// One set for each row of logits.
    sets: TokenSets,
    rows: Rows,
}

/// What one run gives: the loss and the dense gradient of the logits, each through autograd, through
/// `value_and_gradient` and through `forward_linear` (the logits as hidden states, times the identity),
/// the temperature and the statistics.
struct Outcome {
    losses: [f64; 3],
    gradients: [Vec<f64>; 3],
    temperature: f64,
    statistics: candle_trie::Statistics,
}

fn for_each_case(check: impl Fn(&Case)) {
    let Some(folder) = std::env::var_os("CANDLE_TRIE_GOLDEN").map(PathBuf::from) else {
        eprintln!("skipped: CANDLE_TRIE_GOLDEN names no folder of golden cases");
        return;
    };
    let index = std::fs::read(folder.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let cases = index["cases"].as_array().unwrap();
    assert!(!cases.is_empty(), "{} lists no case", folder.display());
    for case in cases {
        check(&Case::read(&folder, case));
    }
}

impl Case {
    fn read(folder: &Path, index: &Value) -> Self {
        let file = std::fs::read(folder.join(index["file"].as_str().unwrap())).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let vocabulary = index["V"].as_u64().unwrap() as usize;
        let labels = i64s(&tensors, "labels");
        let full = bytes(&tensors, "valid_full");
        let first: Vec<bool> = bytes(&tensors, "is_first")
            .iter()
            .map(|&f| f != 0)
            .collect();
        let (starts, valid) = (i64s(&tensors, "valid_off"), i32s(&tensors, "valid_idx"));
        let mut offsets = vec![0];
        let mut tokens: Vec<u32> = Vec::new();
        for row in 0..labels.len() {
            if full[row] == 0 {
                let listed = &valid[starts[row] as usize..starts[row + 1] as usize];
                tokens.extend(listed.iter().map(|&token| token as u32));
            } else if labels[row] >= 0 {
                tokens.extend(0..vocabulary as u32);
            }
            offsets.push(tokens.len() as u32);
        }
        let counted = labels.iter().enumerate().filter(|(_, label)| **label >= 0);
        let rows: Vec<Row> = counted
            .map(|(row, &label)| Row {
                position: row as u32,
                set: row as u32,
                target: label as u32,
            })
            .collect();
        let marks = rows
            .iter()
            .map(|row| first[row.position as usize])
            .collect();
        Self {
            name: format!("case {} ({})", index["id"], index["name"].as_str().unwrap()),
            vocabulary,
            logits: f32s(&tensors, "logits"),
            rows: Rows::from_raw(labels.len(), rows)
                .unwrap()
                .with_marks(marks)
                .unwrap(),
            sets: TokenSets::from_raw(offsets, tokens).unwrap(),
            index: index.clone(),
            labels,
            first,
            file,
        }
    }

    fn number(&self, key: &str) -> f64 {
        number(&self.index[key])
    }

    fn strategy(&self) -> AdaptiveStrategy {
        AdaptiveStrategy {
            eta: self.number("eta"),
            alpha: self.number("alpha"),
            initial: self.number("tau"),
            warm_up: self.number("warm_up").max(0.0) as u64,
            scope: Scope::Marked,
            ..AdaptiveStrategy::default()
        }
    }

    fn adaptive(&self, strategy: AdaptiveStrategy) -> Temperature {
        let mut temperature = Temperature::from(strategy);
        temperature
            .restore(TemperatureState {
                value: self.number("prev_ada_tau"),
                step: self.number("step") as u64,
            })
            .unwrap();
        temperature
    }

    fn run(
        &self,
        dtype: DType,
        sets: &TokenSets,
        temperature: Temperature,
        convention: Convention,
    ) -> Result<Outcome, Error> {
        let shape = (self.labels.len(), self.vocabulary);
        let logits = Tensor::from_slice(&self.logits, shape, &Device::Cpu)?.to_dtype(dtype)?;
        let logits = Var::from_tensor(&logits)?;
        let loss = MaskedSoftmaxLoss::new(sets, temperature)?.with_convention(convention)?;
        let output = loss.clone().forward(&logits, &self.rows)?;
        let gradient = output.loss.backward()?.get(&logits).unwrap().clone();
        let (fused, fused_gradient) = loss.clone().value_and_gradient(&logits, &self.rows)?;
        let identity = Tensor::eye(self.vocabulary, dtype, &Device::Cpu)?;
        let linear = loss
            .clone()
            .forward_linear(&logits, &identity, &self.rows)?;
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

    fn has_label_outside_its_set(&self) -> bool {
        let outside = |row: &Row| {
            self.sets
                .get(row.set)
                .unwrap()
                .position(row.target)
                .is_none()
        };
        self.rows.as_slice().iter().any(outside)
    }

    /// Whether the published result is finite and of the rows that ours is of.
    fn is_comparable(&self, kind: &str, published: &Value) -> bool {
        let finite = |key: &str| {
            published
                .get(key)
                .is_none_or(|value| number(value).is_finite())
        };
        let same_rows = kind != "ats" || self.index["first_rows_equal_is_first"] == true;
        let no_nan = published["grad_has_nan"] == false;
        same_rows && no_nan && finite("loss") && finite("new_ada_tau") && finite("tau_used")
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

    /// The published gradient, dense: under a mask it is stored at the valid entries alone.
    fn published_gradient(&self, kind: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let stored = f64s(&tensors, &format!("{kind}.grad.f64"));
        if kind == "lml" {
            return stored;
        }
        let mut dense = vec![0.0; self.labels.len() * self.vocabulary];
        let (starts, valid) = (i64s(&tensors, "valid_off"), i32s(&tensors, "valid_idx"));
        for row in 0..self.labels.len() {
            for entry in starts[row] as usize..starts[row + 1] as usize {
                dense[row * self.vocabulary + valid[entry] as usize] = stored[entry];
            }
        }
        dense
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

/// The index writes numbers that JSON has no word for as strings.
fn number(value: &Value) -> f64 {
    match value {
        Value::String(word) => word.parse().unwrap(),
        value => value.as_f64().unwrap(),
    }
}

fn f64_of(scalar: &Tensor) -> f64 {
    scalar.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn f64s_of(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

fn bytes<'a>(tensors: &SafeTensors<'a>, name: &str) -> &'a [u8] {
    tensors.tensor(name).unwrap().data()
}

fn i64s(tensors: &SafeTensors, name: &str) -> Vec<i64> {
    bytes(tensors, name)
        .as_chunks()
        .0
        .iter()
        .map(|&b| i64::from_le_bytes(b))
        .collect()
}

fn i32s(tensors: &SafeTensors, name: &str) -> Vec<i32> {
    bytes(tensors, name)
        .as_chunks()
        .0
        .iter()
        .map(|&b| i32::from_le_bytes(b))
        .collect()
}

fn f32s(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    bytes(tensors, name)
        .as_chunks()
        .0
        .iter()
        .map(|&b| f32::from_le_bytes(b))
        .collect()
}

fn f64s(tensors: &SafeTensors, name: &str) -> Vec<f64> {
    bytes(tensors, name)
        .as_chunks()
        .0
        .iter()
        .map(|&b| f64::from_le_bytes(b))
        .collect()
}
