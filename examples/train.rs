//! Trains a small Llama block as a recommender: the title of the item that a user chose last is the prompt, and the title of the next
//! item is the response.
//!
//! candle's fast operations (`candle_nn::RmsNorm::forward`, `ops::softmax_last_dim`, `rotary_emb::rope` and their like) have no
//! backward pass. `backward()` succeeds all the same, and every variable below such an operation is left without a gradient, without
//! an error. The models of candle-transformers use them: of 26 variables of such a model one gets a gradient. Train a model that uses the
//! differentiable operations instead, as `Operations::Differentiable` does here, and count the gradients once, as `main` does.
//!
//! ```sh
//! cargo run --release --example train
//! ```

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{AdamW, Embedding, Linear, Module, Optimizer, ParamsAdamW, RmsNorm};
use candle_nn::{VarBuilder, VarMap, embedding, linear_no_bias, ops, rms_norm, rotary_emb};
use candle_trie::{
    AdaptiveStrategy, Convention, FrozenHead, MaskedSoftmaxLoss, Reduction, Rows, Scope, TokenTrie,
};

const ITEMS: u32 = 60;
/// Ten tokens begin a title, ten go on, ten distinguish, and the last ends it.
const VOCABULARY: usize = 31;
const END: u32 = 30;
const WIDTH: usize = 32;
const HEADS: usize = 4;

#[derive(Clone, Copy)]
enum Operations {
    /// Fast, and without a backward pass.
    Fused,
    /// The same arithmetic in operations that candle can differentiate.
    Differentiable,
}

/// A block of a Llama model between an embedding and a last norm. The head is not part of it: the loss multiplies by the head's rows.
struct Block {
    operations: Operations,
    embedding: Embedding,
    norms: [RmsNorm; 3],
    /// Query, key, value and output projections of the attention.
    attention: [Linear; 4],
    /// Gate, up and down projections of the feed-forward layer.
    feed_forward: [Linear; 3],
}

impl Block {
    fn new(variables: VarBuilder, operations: Operations) -> Result<Self> {
        let norm = |name| rms_norm(WIDTH, 1e-5, variables.pp(name));
        let linear = |from, to, name| linear_no_bias(from, to, variables.pp(name));
        Ok(Self {
            operations,
            embedding: embedding(VOCABULARY, WIDTH, variables.pp("embedding"))?,
            norms: [norm("norm1")?, norm("norm2")?, norm("norm3")?],
            attention: [
                linear(WIDTH, WIDTH, "q")?,
                linear(WIDTH, WIDTH, "k")?,
                linear(WIDTH, WIDTH, "v")?,
                linear(WIDTH, WIDTH, "o")?,
            ],
            feed_forward: [
                linear(WIDTH, 2 * WIDTH, "gate")?,
                linear(WIDTH, 2 * WIDTH, "up")?,
                linear(2 * WIDTH, WIDTH, "down")?,
            ],
        })
    }

    /// Returns the hidden states `[B, T, H]` of tokens `[B, T]`.
    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let embedded = self.embedding.forward(tokens)?;
        let normed = self.norm(0, &embedded)?;
        let hidden = (embedded + self.attend(&normed)?)?;
        let normed = self.norm(1, &hidden)?;
        let [gate, up, down] = &self.feed_forward;
        let gated = (gate.forward(&normed)?.silu()? * up.forward(&normed)?)?;
        self.norm(2, &(hidden + down.forward(&gated)?)?)
    }

    fn norm(&self, index: usize, hidden: &Tensor) -> Result<Tensor> {
        match self.operations {
            Operations::Fused => self.norms[index].forward(hidden),
            Operations::Differentiable => self.norms[index].forward_diff(hidden),
        }
    }

    /// Causal self-attention with rotary position embeddings.
    fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let (batch, length, _) = hidden.dims3()?;
        let [query, key, value, output] = &self.attention;
        let heads = |projection: &Linear| {
            projection
                .forward(hidden)?
                .reshape((batch, length, HEADS, WIDTH / HEADS))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (cos, sin) = rotation(length, hidden.device())?;
        let rotated = |states: Tensor| match self.operations {
            Operations::Fused => rotary_emb::rope(&states, &cos, &sin),
            Operations::Differentiable => rotary_emb::rope_slow(&states, &cos, &sin),
        };
        let (query, key) = (rotated(heads(query)?)?, rotated(heads(key)?)?);
        let scale = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?.broadcast_add(&causal_mask(length)?)?;
        let weights = match self.operations {
            Operations::Fused => ops::softmax_last_dim(&scores)?,
            Operations::Differentiable => ops::softmax(&scores, D::Minus1)?,
        };
        let attended = weights.matmul(&heads(value)?)?;
        output.forward(&attended.transpose(1, 2)?.reshape((batch, length, WIDTH))?)
    }
}

/// Returns the cosines and sines `[T, H / heads / 2]` by which position and channel rotate queries and keys.
fn rotation(length: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let half = WIDTH / HEADS / 2;
    let angle = |i: usize| (i / half) as f32 * 1e4f32.powf(-((i % half) as f32) / half as f32);
    let angles = Tensor::from_iter((0..length * half).map(angle), device)?;
    let angles = angles.reshape((length, half))?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Returns what is added to the scores `[T, T]`: −∞ where a position would see a later one.
fn causal_mask(length: usize) -> Result<Tensor> {
    let mask = |i: usize| {
        if i % length > i / length {
            f32::NEG_INFINITY
        } else {
            0.0
        }
    };
    Tensor::from_iter((0..length * length).map(mask), &Device::Cpu)?.reshape((length, length))
}

/// The tokens of an item's title, the end token last.
fn title(item: u32) -> [u32; 4] {
    [item % 10, 10 + item / 7 % 10, 20 + item / 6, END]
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let trie = TokenTrie::new((0..ITEMS).map(|item| (u64::from(item), title(item))))?;

    // Users choose the item seven further on. The last token of a response is predicted, and not read.
    let pairs: Vec<_> = (0..ITEMS).map(|item| (item, (item + 7) % ITEMS)).collect();
    let batch = pairs
        .iter()
        .flat_map(|&(last, next)| [title(last), title(next)].concat());
    let tokens = Tensor::from_iter(batch, &device)?.reshape((pairs.len(), 8))?;
    // Labels as Hugging Face has them, one for each token: -100 is ignored.
    let labels = pairs.iter().flat_map(|&(_, next)| {
        let response = title(next).map(i64::from);
        [[-100; 4], response].concat()
    });
    let labels = Tensor::from_iter(labels, &device)?.reshape((pairs.len(), 8))?;
    let rows = Rows::from_unshifted(&trie, &labels)?;

    let head = Tensor::randn(0f32, 0.3, (VOCABULARY, WIDTH), &device)?; // [V, H], not trained
    let head = FrozenHead::new(&head, &trie)?;
    let strategy = AdaptiveStrategy {
        scope: Scope::Branching,
        ..Default::default()
    };

    for operations in [Operations::Fused, Operations::Differentiable] {
        let mut loss = MaskedSoftmaxLoss::new(&trie, strategy)?;
        let variables = VarMap::new();
        let model = Block::new(
            VarBuilder::from_varmap(&variables, DType::F32, &device),
            operations,
        )?;
        let output = loss.forward((&model.forward(&tokens)?, &head), &rows)?;
        let gradients = output.loss.backward()?;
        let all = variables.all_vars();
        let trained = all
            .iter()
            .filter(|variable| gradients.get(variable).is_some())
            .count();
        let name = match operations {
            Operations::Fused => "fused",
            Operations::Differentiable => "differentiable",
        };
        println!(
            "{name} operations: {trained} of {} variables get a gradient",
            all.len()
        );
        if trained < all.len() {
            continue;
        }
        let parameters = ParamsAdamW {
            lr: 1e-2,
            ..Default::default()
        };
        let mut optimizer = AdamW::new(all, parameters)?;
        for step in 0..=200 {
            let output = loss.forward((&model.forward(&tokens)?, &head), &rows)?;
            optimizer.backward_step(&output.loss)?;
            if step % 50 == 0 {
                // The sum over the tokens of a title is −ln p of the item. A guess has ln 60 = 4.09.
                let sum = Convention {
                    reduction: Reduction::Sum,
                    times_temperature: false,
                };
                let measure = loss.clone().with_convention(sum)?;
                let output = measure.evaluate((&model.forward(&tokens)?, &head), &rows)?;
                let item_nll = output.loss.to_scalar::<f32>()? / pairs.len() as f32;
                let temperature = output.read_temperature()?;
                println!(
                    "step {step}: item NLL {item_nll:.3} nats at temperature {temperature:.3}"
                );
            }
        }
    }
    Ok(())
}
