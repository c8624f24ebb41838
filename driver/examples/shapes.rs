//! Writes the token sets and rows of a batch of a real catalogue, for the benchmarks: see `benches/shapes`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use candle_trie::{Rows, TokenTrie};
use clap::Parser;
use msl::{
    data::{
        arguments::DataArguments, dataset::Dataset, responses::Responses, tokenizer::TextTokenizer,
    },
    io::{file_name, output::OutputFile},
};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::Value;

/// Write the token sets and rows of a batch of a real catalogue, for benchmarks to run on anywhere
#[derive(Parser)]
struct Arguments {
    /// A tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,

    /// The token that ends a response [default: one that is usual]
    #[arg(long, value_name = "TOKEN")]
    end_token: Option<String>,

    /// Responses in the batch: those of the first training rows
    #[arg(long, default_value_t = 128)]
    responses: usize,

    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    #[command(flatten)]
    data: DataArguments,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let dataset = Dataset::read(&arguments.data.clone().with_defaults()?, 0)?;
    let rows = &dataset.training;
    ensure!(
        (1..=rows.len()).contains(&arguments.responses),
        "--responses is {}, expected 1 to {}, the training rows of {}",
        arguments.responses,
        rows.len(),
        arguments.data.data.display()
    );
    let tokenizer = TextTokenizer::load(&arguments.tokenizer, arguments.end_token.as_deref())?;
    let responses = Responses::open(&dataset.catalogue, &tokenizer, None)?;
    let mut batch = Vec::new();
    for row in &rows[..arguments.responses] {
        batch.push(responses.path(row.target)?);
    }
    let batch = Batch::new(responses.trie(), &batch)?;
    OutputFile::write_whole(
        &arguments.output,
        &batch.file(&arguments, tokenizer.vocabulary())?,
    )?;
    println!("{}", batch.described());
    Ok(())
}

/// The rows of a batch, and the sets that they name, numbered anew with the root first.
struct Batch {
    offsets: Vec<u32>,
    tokens: Vec<u32>,
    /// Position, set and target of each row. Rows are packed without padding: the head is computed at labelled positions
    /// alone.
    rows: Vec<[u32; 3]>,
}

impl Batch {
    fn new(trie: &TokenTrie, responses: &[Vec<u32>]) -> Result<Self> {
        let mut rows = Vec::new();
        for response in responses {
            let labels: Vec<i64> = response.iter().map(|&token| token.into()).collect();
            for row in Rows::from_shifted(trie, std::slice::from_ref(&labels))?.as_slice() {
                rows.push([rows.len() as u32, row.set, row.target]);
            }
        }
        let nodes: BTreeSet<u32> = rows.iter().map(|row| row[1]).chain([trie.root()]).collect();
        let (mut offsets, mut tokens, mut numbers) = (vec![0], Vec::new(), HashMap::new());
        for (number, &node) in (0..).zip(&nodes) {
            numbers.insert(node, number);
            tokens.extend_from_slice(trie.children(node));
            offsets.push(tokens.len() as u32);
        }
        for row in &mut rows {
            row[1] = numbers[&row[1]];
        }
        Ok(Self {
            offsets,
            tokens,
            rows,
        })
    }

    /// Returns the bytes of a safetensors file.
    fn file(&self, arguments: &Arguments, vocabulary: usize) -> Result<Vec<u8>> {
        let bytes = |values: &[u32]| -> Vec<u8> {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            bytes.collect()
        };
        let (sets, rows) = (self.offsets.len(), self.rows.len());
        let arrays = [
            ("offsets", vec![sets], bytes(&self.offsets)),
            ("tokens", vec![self.tokens.len()], bytes(&self.tokens)),
            ("rows", vec![rows, 3], bytes(self.rows.as_flattened())),
        ];
        let mut views = Vec::new();
        for (name, shape, bytes) in &arrays {
            views.push((*name, TensorView::new(Dtype::U32, shape.clone(), bytes)?));
        }
        let name = |path: &Path| file_name(path);
        let metadata = [
            ("format", "candle-trie-shape".to_owned()),
            ("version", "1".to_owned()),
            ("catalogue", name(&arguments.data.data)),
            ("tokenizer", name(&arguments.tokenizer)),
            ("vocabulary", vocabulary.to_string()),
            ("positions", rows.to_string()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        in_one_order(serialize(views, Some(HashMap::from(metadata)))?)
    }

    fn described(&self) -> String {
        let size = |row: &[u32; 3]| {
            let set = row[1] as usize;
            (self.offsets[set + 1] - self.offsets[set]) as usize
        };
        format!(
            "{} rows, {} of them branching; {} sets, {} valid logits, {} distinct tokens",
            self.rows.len(),
            self.rows.iter().filter(|row| size(row) > 1).count(),
            self.offsets.len() - 1,
            self.rows.iter().map(size).sum::<usize>(),
            self.tokens.iter().collect::<BTreeSet<_>>().len()
        )
    }
}

/// Puts the keys of a safetensors header in the order of their names, where the format's own crate leaves them in the
/// random order of a hash map.
fn in_one_order(mut file: Vec<u8>) -> Result<Vec<u8>> {
    let (length, rest) = file.split_at_mut(8);
    let length = u64::from_le_bytes(length.try_into()?) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&rest[..length])?;
    let header = format!("{:length$}", serde_json::to_string(&header)?);
    rest[..length].copy_from_slice(header.as_bytes());
    Ok(file)
}
