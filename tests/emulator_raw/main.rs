//! The losses over addresses in the emulator, called as a library calls them whose tensors they are: it owns results and gradients,
//! and τ stays in device memory from one pass to the next. What they give is compared with the losses over host memory.

#[path = "../linear/batch.rs"]
#[allow(dead_code)]
mod batch;
#[path = "../emulated/mod.rs"]
mod emulated;
#[path = "../emulator_dense/number.rs"]
mod number;

mod dense;
mod linear;
mod refusals;

use candle_trie::raw::{
    self, DeviceMatrix, DevicePtr, Element, ForwardResults, Pass, TokenSetsView, Upstream,
};
use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Reduction, Rows, Scope, Statistics};
use candle_trie_emulator::{Buffer, Emulator, Memory};

use batch::{Batch, Options, assert_close, every_option};
use emulated::{EmulatedStream, LIMITS, pointer};
use number::Number;

/// The results of a forward pass, in buffers of the caller.
struct Results {
    loss: Buffer<f32>,
    statistics: Buffer<f64>,
    temperature: Buffer<f64>,
}

impl Results {
    fn allocate(memory: &mut Memory, losses: usize) -> Self {
        Self {
            loss: memory.allocate("loss", losses),
            statistics: memory.allocate("statistics", Statistics::LENGTH + 1),
            temperature: memory.allocate("temperature", 1),
        }
    }

    fn addresses(&self) -> ForwardResults {
        ForwardResults {
            loss: pointer(self.loss),
            statistics: pointer(self.statistics),
            temperature: pointer(self.temperature),
        }
    }

    fn upstream(&self, memory: &mut Memory, upstream: &[f64]) -> Upstream {
        let upstream: Vec<f32> = upstream.iter().map(|&value| value as f32).collect();
        Upstream {
            loss: pointer(memory.upload("upstream", &upstream)),
            temperature: pointer(self.temperature),
        }
    }

    /// Compares them with those of a pass over host memory.
    fn assert_close(&self, memory: &mut Memory, expected: (&[f64], f64, &Statistics), what: &str) {
        let (losses, temperature, statistics) = expected;
        let close = |found: Vec<f64>, expected: &[f64], of: &str| {
            assert_close(&found, expected, 2e-5, &format!("{what}: {of}"));
        };
        let found = memory.download(self.loss).unwrap();
        close(found.into_iter().map(f64::from).collect(), losses, "loss");
        let found = memory.download(self.temperature).unwrap();
        close(found, &[temperature], "temperature");
        let fields = memory.read(self.statistics.address(), Statistics::LENGTH);
        close(
            fields.unwrap(),
            bytemuck::cast_slice(&[*statistics]),
            "statistics",
        );
    }
}

/// A fixed and an adaptive temperature, one loss and a loss for each position.
fn options() -> Vec<Options> {
    let adaptive = AdaptiveStrategy {
        scope: Scope::Branching,
        alpha: 0.5,
        minimum: 0.1,
        ..AdaptiveStrategy::default()
    };
    let mut options = every_option();
    options.retain(|options| !options.whole_vocabulary && options.temperature == 0.7.into());
    for options in &mut options {
        if options.convention.reduction != Reduction::Sum {
            options.temperature = adaptive.into();
        }
    }
    options
}

/// The gradient of the loss that autograd passes on.
fn upstream(losses: usize) -> Vec<f64> {
    (0..losses)
        .map(|index| 0.5 + 0.25 * (index % 5) as f64)
        .collect()
}

/// Uploads the tables of the sets of a loss one behind the other.
fn upload_sets(memory: &mut Memory, loss: &MaskedSoftmaxLoss) -> TokenSetsView {
    let tables = raw::set_tables(loss.sets()).unwrap();
    let first =
        tables.map(|(offsets, tokens)| pointer(memory.upload("sets", &[offsets, tokens].concat())));
    raw::sets_at(loss.sets(), first)
}

fn f64s<T: Number>(memory: &mut Memory, buffer: Buffer<T>) -> Vec<f64> {
    let values = memory.download(buffer).unwrap();
    values.into_iter().map(Number::to_f64).collect()
}

fn rounded<T: Number>(values: &[f64]) -> Vec<T> {
    values.iter().copied().map(T::from_f64).collect()
}

fn matrix<T>(buffer: Buffer<T>, width: usize) -> DeviceMatrix {
    DeviceMatrix {
        address: Some(pointer(buffer)),
        row_stride: width as u64,
    }
}
