//! The parts of a trie file, to be tampered with.

use std::collections::HashMap;

use candle_trie::TokenTrie;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

/// The arrays of a trie file.
#[derive(Debug, Clone)]
pub struct Parts {
    pub format: String,
    pub version: String,
    pub offsets: Vec<u32>,
    pub tokens: Vec<u32>,
    pub leaves: Vec<u32>,
    pub item_offsets: Vec<u32>,
    pub items: Vec<u64>,
}

/// Nodes 0 to 7: the root, `1`, `4`, `1 2`, `1 3`, and the leaves `4 9`, `1 2 9` and `1 3 9`.
pub fn sound_trie() -> TokenTrie {
    let items = [
        (70, vec![1, 2, 9]),
        (71, vec![1, 3, 9]),
        (72, vec![4, 9]),
        (73, vec![4, 9]),
    ];
    TokenTrie::new(items).unwrap()
}

pub fn sound() -> Parts {
    Parts {
        format: "candle-trie".into(),
        version: "1".into(),
        offsets: vec![0, 2, 4, 5, 6, 7, 7, 7, 7],
        tokens: vec![1, 4, 2, 3, 9, 9, 9],
        leaves: vec![5, 6, 7],
        item_offsets: vec![0, 2, 3, 4],
        items: vec![72, 73, 70, 71],
    }
}

/// A tensor's name, type, shape and bytes.
pub type Array = (&'static str, Dtype, Vec<usize>, Vec<u8>);

impl Parts {
    pub fn arrays(&self) -> Vec<Array> {
        let u32s = |name, values: &[u32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (name, Dtype::U32, vec![values.len()], bytes.collect())
        };
        let items = self.items.iter().flat_map(|item| item.to_le_bytes());
        vec![
            u32s("offsets", &self.offsets),
            u32s("tokens", &self.tokens),
            u32s("leaves", &self.leaves),
            u32s("item_offsets", &self.item_offsets),
            ("items", Dtype::U64, vec![self.items.len()], items.collect()),
        ]
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_of(&self.arrays())
    }

    pub fn bytes_of(&self, arrays: &[Array]) -> Vec<u8> {
        let views = arrays.iter().map(|(name, dtype, shape, bytes)| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        });
        let metadata = HashMap::from([
            ("format".to_owned(), self.format.clone()),
            ("version".to_owned(), self.version.clone()),
        ]);
        serialize(views, Some(metadata)).unwrap()
    }
}

/// A file of this header and data, whatever they say.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

/// The sound parts after `tamper`.
pub fn tampered(tamper: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = sound();
    tamper(&mut parts);
    parts.bytes()
}
