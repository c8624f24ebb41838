//! Records how a run was decoded for an evaluation. Measures of two runs can be compared where that was the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{evaluate::search::SearchSettings, model::precision::Precision};

/// The options that decide the result of an evaluation of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// The step of the checkpoint.
    pub step: usize,
    /// The search of the catalogue.
    #[serde(flatten)]
    pub search: SearchSettings,
    /// The temperature of the softmax.
    pub temperature: f64,
    /// The type that the model was held and computed in.
    pub dtype: Precision,
    /// The folder of the data.
    pub data: PathBuf,
    /// The split of its rows, or the file of them.
    pub rows: String,
    /// The number of these rows that were used, chosen by the seed of training; `None` for all.
    pub samples: Option<usize>,
}

impl Decoding {
    /// Tells whether measures of two runs can be compared. Their steps, temperatures and folders of data may differ.
    pub fn is_like(&self, other: &Self) -> bool {
        self.search == other.search && self.rows == other.rows && self.samples == other.samples
    }

    /// Returns the names and the values of the options, for tables.
    pub fn named(&self) -> Vec<(String, String)> {
        let value = serde_json::to_value(self).unwrap_or_default();
        let shown = |value: &Value| match value {
            Value::Null => "all".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let values = value.as_object().into_iter().flatten();
        let named = values.map(|(name, value)| (name.replace('_', " "), shown(value)));
        named.collect()
    }
}
