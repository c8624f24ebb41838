//! Cuts the examples of a step into micro-batches, and these into the shards that threads work on.

use anyhow::Result;
use candle_core::Device;
use candle_trie::{Rows, TokenTrie};

use crate::data::{
    batch::{Batch, Reading, longest_response, response_rows},
    examples::Example,
};

/// The most rows that go through the model together: few enough for the caches. Shards are the units of work for the
/// threads; their size depends on the settings alone, so that a run does not depend on how many threads there are.
const LARGEST_SHARD: usize = 16;

/// Rows of a step that are in memory together.
pub struct MicroBatch {
    /// The rows in tokens, shard by shard.
    pub shards: Vec<Shard>,
    /// The labelled rows of all shards.
    pub rows: Rows,
}

/// Rows that go through the model together.
pub struct Shard {
    /// The rows in tokens.
    pub batch: Batch,
    /// The seed of each row's dropout.
    pub seeds: Vec<u64>,
}

impl MicroBatch {
    /// Cuts examples, each with the seed of its dropout, into shards of so many rows.
    pub fn new(
        examples: &[(&Example, u64)],
        shard_size: usize,
        reading: Reading,
        trie: &TokenTrie,
        device: &Device,
    ) -> Result<Self> {
        let (examples, seeds): (Vec<&Example>, Vec<u64>) = examples.iter().copied().unzip();
        let longest = longest_response(&examples);
        let shards = examples.chunks(shard_size).zip(seeds.chunks(shard_size));
        let shard = |(examples, seeds): (&[&Example], &[u64])| {
            Ok(Shard {
                batch: Batch::new(examples, longest, reading, device)?,
                seeds: seeds.to_vec(),
            })
        };
        Ok(Self {
            shards: shards.map(shard).collect::<Result<_>>()?,
            rows: response_rows(&examples, trie)?,
        })
    }
}

/// Returns how many rows a shard has. On the processor a micro-batch has at least two shards, so that two threads have
/// something to do.
pub fn shard_size(micro_batch_size: usize, device: &Device) -> usize {
    match device.is_cpu() {
        true => (micro_batch_size.div_ceil(2)).min(LARGEST_SHARD),
        false => micro_batch_size,
    }
}
