//! The loss over buffers and streams of the crate [cust](https://docs.rs/cust), for programs that use CUDA without candle. It
//! needs the feature `cust`, which does not enable candle's CUDA backend. Of NVIDIA's libraries it needs only the driver.
//!
//! [`DenseLoss`] is the loss over logits, and [`LinearLoss`] the one over hidden states × head. Both have typed buffers and
//! check their inputs. Both run on an [`Executor`], which holds the kernels of a CUDA context.
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
//! # Safety
//!
//! The methods of the losses are asynchronous and safe. They do not wait for the launches that they issue, but they may wait
//! for earlier work, when they upload tables and when they free the temperature of the previous step. They check every length
//! and index that a kernel uses. Streams made by [`Stream::new`](::cust::stream::Stream::new) are ordered with cust's
//! synchronous copies, and freeing a [`DeviceBuffer`](::cust::memory::DeviceBuffer) waits for the device. Work on other streams
//! and stream-ordered memory are `unsafe` in cust: code that uses them must order them with these launches.
//!
//! cust lets safe code do two things that the losses cannot check. A [`DeviceSlice`](::cust::memory::DeviceSlice) can be copied
//! and has no lifetime, so a copy must not outlive its buffer, and a gradient must not overlap an input. And `drop_async` must
//! be given the stream that was passed here.

mod dense;
mod device_loss;
mod linear;
mod output;

pub use crate::backend::cust::{Bf16, Executor, F16, Logit};
pub use dense::DenseLoss;
pub use linear::{LinearGradients, LinearInput, LinearLoss};
pub use output::LossOutput;
