use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
};

use anyhow::{Context, Result, ensure};
use candle_trie::{Rows, TokenTrie};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Serialize;
use serde_json::Value;

use super::responses;
use crate::{
    commands::{
        arguments::ShapesArguments,
        console::{print, print_json, table},
    },
    data::{dataset::Dataset, tokenizer::TextTokenizer},
    run::output::{OutputFile, check_apart},
};

/// The sizes of what was written.
#[derive(Serialize)]
struct Report {
    command: &'static str,
    responses: usize,
    rows: usize,
    branching_rows: usize,
    sets: usize,
    valid_logits: usize,
    distinct_tokens: usize,
    vocabulary: usize,
}

/// `msl shapes`
pub fn shapes(arguments: &ShapesArguments) -> Result<()> {
    let inputs = [arguments.data.data.as_path(), &arguments.tokenizer];
    check_apart("--output", &arguments.output, &inputs)?;
    let output = OutputFile::create(&arguments.output)?;
    let data = arguments.data.clone().with_defaults()?;
    let Dataset {
        catalogue,
        training,
        ..
    } = Dataset::read(&data, 0)?;
    ensure!(
        arguments.responses > 0,
        "--responses is 0, expected at least 1"
    );
    ensure!(
        training.len() >= arguments.responses,
        "{} has {} training rows, fewer than the {} responses asked for",
        arguments.data.data.display(),
        training.len(),
        arguments.responses
    );
    let tokenizer = TextTokenizer::load(&arguments.tokenizer, arguments.end_token.as_deref())?;
    let responses = responses(&catalogue, &tokenizer, None)?;
    // Packed without padding: the head is wanted at labelled positions alone.
    let mut packed: Vec<Vec<i64>> = Vec::new();
    for interaction in &training[..arguments.responses] {
        let response = responses.path(interaction.target)?;
        packed.push(response.iter().map(|&token| token.into()).collect());
    }
    let batch = Batch::new(responses.trie(), &packed)?;
    batch.write(output, arguments, tokenizer.vocabulary())?;
    batch.report(arguments, tokenizer.vocabulary())
}

/// The rows of a batch, and the sets that they name, numbered anew with the root first.
struct Batch {
    offsets: Vec<u32>,
    tokens: Vec<u32>,
    /// Position, set and target of each row.
    rows: Vec<[u32; 3]>,
}

impl Batch {
    fn new(trie: &TokenTrie, responses: &[Vec<i64>]) -> Result<Self> {
        let mut rows = Vec::new();
        for response in responses {
            let walked = Rows::from_shifted(trie, std::slice::from_ref(response))?;
            for row in walked.as_slice() {
                rows.push([rows.len() as u32, row.set, row.target]);
            }
        }
        let nodes: BTreeSet<u32> = rows.iter().map(|row| row[1]).chain([trie.root()]).collect();
        let mut offsets = vec![0];
        let mut tokens = Vec::new();
        let mut numbers = HashMap::new();
        for (number, &node) in nodes.iter().enumerate() {
            numbers.insert(node, number as u32);
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

    fn write(
        &self,
        mut output: OutputFile,
        arguments: &ShapesArguments,
        vocabulary: usize,
    ) -> Result<()> {
        let bytes = |values: &[u32]| -> Vec<u8> {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        };
        let arrays = [
            ("offsets", vec![self.offsets.len()], bytes(&self.offsets)),
            ("tokens", vec![self.tokens.len()], bytes(&self.tokens)),
            (
                "rows",
                vec![self.rows.len(), 3],
                bytes(self.rows.as_flattened()),
            ),
        ];
        let views = arrays
            .iter()
            .map(|(name, shape, bytes)| {
                Ok((*name, TensorView::new(Dtype::U32, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let name =
            |path: &std::path::Path| path.file_name().unwrap_or_default().display().to_string();
        let metadata = [
            ("format", "candle-trie-shape".to_owned()),
            ("version", "1".to_owned()),
            ("catalogue", name(&arguments.data.data)),
            ("tokenizer", name(&arguments.tokenizer)),
            ("vocabulary", vocabulary.to_string()),
            ("positions", self.rows.len().to_string()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let bytes = in_one_order(serialize(views, Some(HashMap::from(metadata)))?)?;
        (output.write_all(&bytes))
            .with_context(|| format!("cannot write {}", arguments.output.display()))?;
        output.finish()
    }

    fn report(&self, arguments: &ShapesArguments, vocabulary: usize) -> Result<()> {
        let size = |row: &[u32; 3]| {
            let set = row[1] as usize;
            (self.offsets[set + 1] - self.offsets[set]) as usize
        };
        let report = Report {
            command: "shapes",
            responses: arguments.responses,
            rows: self.rows.len(),
            branching_rows: self.rows.iter().filter(|row| size(row) > 1).count(),
            sets: self.offsets.len() - 1,
            valid_logits: self.rows.iter().map(size).sum(),
            distinct_tokens: self.tokens.iter().collect::<BTreeSet<_>>().len(),
            vocabulary,
        };
        if arguments.json {
            return print_json(&report);
        }
        let mut table = table(&[
            "responses",
            "rows",
            "branching",
            "sets",
            "valid logits",
            "tokens",
            "vocabulary",
        ]);
        table.add_row([
            report.responses,
            report.rows,
            report.branching_rows,
            report.sets,
            report.valid_logits,
            report.distinct_tokens,
            report.vocabulary,
        ]);
        print(&table)
    }
}

/// A safetensors file whose header has its keys in the order of their names, where the format's own crate leaves them in
/// the random order of a hash map.
fn in_one_order(mut file: Vec<u8>) -> Result<Vec<u8>> {
    let (length, rest) = file.split_at_mut(8);
    let length = u64::from_le_bytes(length.try_into()?) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&rest[..length])?;
    let header = format!("{:length$}", serde_json::to_string(&header)?);
    rest[..length].copy_from_slice(header.as_bytes());
    Ok(file)
}
