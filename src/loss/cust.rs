//! The loss over the buffers and streams of the crate [cust](https://docs.rs/cust), for programs that
//! keep their tensors there and not in candle: the feature `cust`, which needs nothing of candle's
//! CUDA, and of NVIDIA's libraries the driver's alone.
//!
//! [`DenseLoss`] is the loss over logits, [`LinearLoss`] the one over hidden states × head, both checked
//! and typed. Both run on an [`Executor`], which holds the kernels of a CUDA context.
//!
//! ```no_run
//! use candle_trie::cust::{Executor, LinearGradients, LinearInput, LinearLoss};
//! use candle_trie::{MaskedSoftmaxLoss, Row, Rows, Temperature, TokenTrie};
//! use cust::memory::DeviceBuffer;
//! use cust::stream::{Stream, StreamFlags};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let trie = TokenTrie::new([(0, [1, 2, 9]), (1, [1, 3, 9]), (2, [4, 2, 9])])?;
//! let rows = Rows::from_raw(1, vec![Row { position: 0, set: 0, target: 4 }])?;
//! let loss = MaskedSoftmaxLoss::new(&trie, Temperature::fixed(1.0))?;
//!
//! let _context = cust::quick_init()?;
//! let stream = Stream::new(StreamFlags::DEFAULT, None)?;
//! let executor = Executor::new()?;
//! let mut loss = LinearLoss::new(&executor, loss, 10, 8)?; // V, H
//! let hidden = DeviceBuffer::from_slice(&[0.5f32; 8])?; // [N, H]
//! let head = DeviceBuffer::from_slice(&[0.5f32; 10 * 8])?; // [V, H]
//! let mut gradient = DeviceBuffer::from_slice(&[0f32; 8])?;
//! let input = LinearInput { hidden: &hidden, head: &head, bias: None };
//! let wanted = LinearGradients { hidden: &mut gradient, head: None, bias: None };
//! let output = loss.value_and_gradients(&stream, input, &rows, wanted)?;
//! println!("{:?} {:?}", output.read_loss()?, gradient.as_host_vec()?);
//! # Ok(())
//! # }
//! ```
//!
//! # What is safe, and why
//!
//! The methods of the losses do not wait for what they issue (but for what came before: their uploads,
//! and freeing the temperature before a step), and are safe all the same. They check every length and
//! index that a kernel will use. Streams that [`Stream::new`](::cust::stream::Stream::new) makes wait
//! for cust's synchronous copies and are waited for by them, and freeing a
//! [`DeviceBuffer`](::cust::memory::DeviceBuffer) waits for the device. Work on another stream, and
//! memory allocated in a stream's order, are `unsafe` in cust: whoever writes that answers for its order,
//! against these launches too.
//!
//! Two things cust lets safe code do, and nothing here can see. A
//! [`DeviceSlice`](::cust::memory::DeviceSlice) can be copied and has no lifetime: a copy must not outlive
//! its buffer, nor a gradient overlap an input. And `drop_async` must be given the stream that was passed
//! here.

mod dense;
mod device_loss;
mod linear;
mod output;

pub use crate::backend::cust::{Bf16, Executor, F16, Logit};
pub use dense::DenseLoss;
pub use linear::{LinearGradients, LinearInput, LinearLoss};
pub use output::LossOutput;
