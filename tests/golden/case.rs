//! Reads the golden cases of the folder that `CANDLE_TRIE_GOLDEN` names (`index.json` and the files it
//! explains).

use std::path::{Path, PathBuf};

use candle_trie::{AdaptiveStrategy, Row, Rows, Scope, Temperature, TemperatureState, TokenSets};
use safetensors::SafeTensors;
use serde_json::Value;

pub struct Case {
    pub name: String,
    pub index: Value,
    file: Vec<u8>,
    pub vocabulary: usize,
    pub logits: Vec<f32>,
    pub labels: Vec<i64>,
    pub first: Vec<bool>,
    /// One set for each row of logits.
    pub sets: TokenSets,
    pub rows: Rows,
}

pub fn for_each_case(check: impl Fn(&Case)) {
    let Some(folder) = folder() else { return };
    for case in listed(&folder, "index.json")["cases"].as_array().unwrap() {
        check(&Case::read(&folder, case));
    }
}

/// The folder of the golden cases, if there is one.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CANDLE_TRIE_GOLDEN").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: CANDLE_TRIE_GOLDEN names no folder of golden cases");
    }
    folder
}

/// A list of cases.
pub fn listed(folder: &Path, name: &str) -> Value {
    let list = std::fs::read(folder.join(name)).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    let cases = list["cases"].as_array().unwrap();
    assert!(!cases.is_empty(), "{} lists no case", folder.display());
    list
}

impl Case {
    pub fn read(folder: &Path, index: &Value) -> Self {
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

    pub fn number(&self, key: &str) -> f64 {
        number(&self.index[key])
    }

    pub fn strategy(&self) -> AdaptiveStrategy {
        AdaptiveStrategy {
            eta: self.number("eta"),
            alpha: self.number("alpha"),
            initial: self.number("tau"),
            warm_up: self.number("warm_up").max(0.0) as u64,
            scope: Scope::Marked,
            ..AdaptiveStrategy::default()
        }
    }

    pub fn adaptive(&self, strategy: AdaptiveStrategy) -> Temperature {
        let mut temperature = Temperature::from(strategy);
        temperature
            .restore(TemperatureState {
                value: self.number("prev_ada_tau"),
                step: self.number("step") as u64,
            })
            .unwrap();
        temperature
    }

    pub fn has_label_outside_its_set(&self) -> bool {
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
    pub fn is_comparable(&self, kind: &str, published: &Value) -> bool {
        let finite = |key: &str| {
            published
                .get(key)
                .is_none_or(|value| number(value).is_finite())
        };
        let same_rows = kind != "ats" || self.index["first_rows_equal_is_first"] == true;
        let no_nan = published["grad_has_nan"] == false;
        same_rows && no_nan && finite("loss") && finite("new_ada_tau") && finite("tau_used")
    }

    /// The published gradient, dense: under a mask it is stored at the valid entries alone.
    pub fn published_gradient(&self, kind: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
        let stored = f64s(&tensors, &format!("{kind}.grad.f64"));
        if kind == "lml" {
            return stored;
        }
        self.dense(&stored)
    }

    /// What is stored at the valid entries, with zeros between them.
    pub fn dense(&self, stored: &[f64]) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.file).unwrap();
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

/// The index writes numbers that JSON has no word for as strings.
pub fn number(value: &Value) -> f64 {
    match value {
        Value::String(word) => word.parse().unwrap(),
        value => value.as_f64().unwrap(),
    }
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

pub fn f64s(tensors: &SafeTensors, name: &str) -> Vec<f64> {
    bytes(tensors, name)
        .as_chunks()
        .0
        .iter()
        .map(|&b| f64::from_le_bytes(b))
        .collect()
}
