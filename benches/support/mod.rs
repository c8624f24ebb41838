//! What the benchmarks share: the batch they run on, the models, inputs, and where figures that are
//! not times go.

#![allow(dead_code, reason = "every benchmark uses a part of it")]

pub mod composed;
pub mod memory;
pub mod semantic_ids;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_trie::{Row, Rows, TokenSets};
use rayon::prelude::*;
use safetensors::SafeTensors;

/// A batch of a real catalogue, as the example `shapes` of the driver writes it: token sets (set 0 is the root's) and rows.
pub struct Shape {
    pub sets: TokenSets,
    pub rows: Rows,
}

impl Shape {
    /// 128 targets of Amazon Books under SmolLM2's tokenizer, the positions of the prompts left out.
    pub fn books() -> Self {
        Self::from_bytes(include_bytes!("../shapes/books.safetensors"))
    }

    /// The same targets under Llama 3's tokenizer.
    pub fn books_of_llama_3() -> Self {
        Self::from_bytes(include_bytes!("../shapes/books-llama-3.safetensors"))
    }

    pub fn read(path: &Path) -> Self {
        Self::from_bytes(&std::fs::read(path).expect("a shape that can be read"))
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(bytes).expect("a safetensors header");
        let metadata = metadata.metadata().as_ref().expect("metadata");
        let tensors = SafeTensors::deserialize(bytes).expect("a safetensors file");
        let read = |name: &str| -> Vec<u32> {
            bytemuck::pod_collect_to_vec(tensors.tensor(name).expect(name).data())
        };
        let rows = (read("rows").chunks_exact(3))
            .map(|row| Row {
                position: row[0],
                set: row[1],
                target: row[2],
            })
            .collect();
        let positions = metadata["positions"]
            .parse()
            .expect("a number of positions");
        Self {
            sets: TokenSets::from_raw(read("offsets"), read("tokens")).expect("token sets"),
            rows: Rows::from_raw(positions, rows).expect("rows"),
        }
    }

    pub fn set_size(&self, set: u32) -> usize {
        self.sets.get(set).map_or(0, |set| set.len())
    }

    /// The rows whose sets have more than one token.
    pub fn branching_rows(&self) -> usize {
        (self.rows.as_slice().iter())
            .filter(|row| self.set_size(row.set) > 1)
            .count()
    }

    /// The valid logits of the branching rows: what there is to compute.
    pub fn branching_logits(&self) -> usize {
        (self.rows.as_slice().iter())
            .map(|row| self.set_size(row.set))
            .filter(|&size| size > 1)
            .sum()
    }

    /// The distinct tokens of the branching rows: the head rows that must be read.
    pub fn distinct_tokens(&self) -> Vec<u32> {
        let mut tokens: Vec<u32> = (self.rows.as_slice().iter())
            .filter_map(|row| self.sets.get(row.set))
            .filter(|set| set.len() > 1)
            .flat_map(|set| set.iter())
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

/// The sizes of a model that the loss layer sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Model {
    pub name: &'static str,
    pub hidden: usize,
    pub vocabulary: usize,
}

impl Model {
    /// The batch that the kernels are measured on: Books under the tokenizer of Llama 3 for its models, semantic IDs for a model
    /// that has tokens for them, and Books under SmolLM2's tokenizer for all others.
    pub fn batch(&self) -> Shape {
        match self.vocabulary {
            LLAMA_3_VOCABULARY => Shape::books_of_llama_3(),
            SEMANTIC_ID_VOCABULARY => semantic_ids::batch(),
            _ => Shape::books(),
        }
    }
}

/// Of Llama 3, 3.1, 3.2 and 3.3 alike.
const LLAMA_3_VOCABULARY: usize = 128_256;
const SEMANTIC_ID_VOCABULARY: usize = LLAMA_3_VOCABULARY + semantic_ids::TOKENS;

pub const SMOLLM2: Model = Model {
    name: "SmolLM2-135M",
    hidden: 576,
    vocabulary: 49_152,
};

pub const MODELS: [Model; 3] = [
    SMOLLM2,
    Model {
        name: "Qwen2.5-0.5B",
        hidden: 896,
        vocabulary: 151_936,
    },
    Model {
        name: "Llama-3.2-1B",
        hidden: 2048,
        vocabulary: LLAMA_3_VOCABULARY,
    },
];

/// The paper's model.
pub const LLAMA_3_8B: Model = Model {
    name: "Llama-3-8B",
    hidden: 4096,
    vocabulary: LLAMA_3_VOCABULARY,
};

/// A model of Llama-3.2-1B's width whose vocabulary semantic IDs have been added to.
pub const SEMANTIC_IDS: Model = Model {
    name: "Semantic IDs",
    hidden: 2048,
    vocabulary: SEMANTIC_ID_VOCABULARY,
};

/// What the kernels over hidden states and a head are measured at.
pub fn kernel_models() -> impl Iterator<Item = Model> {
    MODELS.into_iter().chain([LLAMA_3_8B, SEMANTIC_IDS])
}

/// Where the benchmarks run: on the CPU, or with the feature `cuda` on the first GPU. Where there is
/// none this ends the benchmark: a figure of another machine's is none.
pub fn device() -> Device {
    if !cfg!(feature = "cuda") {
        return Device::Cpu;
    }
    Device::new_cuda(0).unwrap_or_else(|error| {
        // The rest is a backtrace.
        let error = error.to_string();
        let reason = error.lines().next().unwrap_or_default();
        eprintln!("The feature cuda is on and there is no GPU: nothing was measured. {reason}");
        std::process::exit(1)
    })
}

/// Ends a benchmark of what only the host does, where those of a GPU were asked for.
pub fn of_the_host(what: &str) {
    if cfg!(feature = "cuda") {
        println!("{what}: the host's work; measured without the feature cuda.");
        std::process::exit(0);
    }
}

/// `count` numbers, uniform in ±`bound` and always the same.
pub fn uniform(count: usize, bound: f32, seed: u64) -> Vec<f32> {
    const BLOCK: usize = 1 << 16;
    let mut values = vec![0.0; count];
    (values.par_chunks_mut(BLOCK).enumerate()).for_each(|(block, values)| {
        let mut state = seed ^ (block as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for value in values {
            // The top 24 bits of a linear congruential generator.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *value = ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * bound;
        }
    });
    values
}

/// Hidden states of variance 1.
pub fn hidden_states(rows: usize, width: usize, device: &Device) -> Tensor {
    let bound = 3f32.sqrt();
    Tensor::from_vec(uniform(rows * width, bound, 1), (rows, width), device).expect("a tensor")
}

/// A head that gives logits of variance 4.
pub fn head(model: &Model, device: &Device) -> Tensor {
    let shape = (model.vocabulary, model.hidden);
    let bound = (12.0 / model.hidden as f32).sqrt();
    Tensor::from_vec(uniform(shape.0 * shape.1, bound, 2), shape, device).expect("a tensor")
}

/// Runs something to its end, which on a GPU comes after it returns.
pub fn to_the_end<T>(device: &Device, run: impl FnOnce() -> T) -> T {
    let result = run();
    device.synchronize().expect("a device that runs");
    result
}

/// Leaves the allocator as a training step does, which frees blocks of many sizes. One that has never
/// freed a large block hands every one back to the system, and the page faults of taking it again
/// cost more than the loss layer.
pub fn settle_allocator() {
    drop(std::hint::black_box(vec![1u8; 31 << 20]));
}

/// Keeps a figure that criterion does not measure for the report: see scripts/benchmarks.
pub fn record(name: &str, value: f64) {
    println!("{name}: {value}");
    if let Ok(path) = std::env::var("BENCHMARK_FIGURES") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.expect("BENCHMARK_FIGURES names a file that can be written");
        writeln!(file, "{name}\t{value}").expect("the figure is written");
    }
}
