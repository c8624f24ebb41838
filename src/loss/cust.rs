//! The loss over the buffers and streams of the crate [cust](https://docs.rs/cust), for programs that
//! keep their tensors there and not in candle: the feature `cust`, which needs nothing of candle's
//! CUDA.
//!
//! [`DenseLoss`] is the loss over logits, checked and typed. Below it, [`Executor`] runs any plan of
//! [`launch`](crate::launch).
//!
//! ```no_run
//! use candle_trie::cust::{DenseLoss, Executor};
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
//! let mut loss = DenseLoss::new(&executor, loss, 10)?;
//! let logits = DeviceBuffer::from_slice(&[0f32; 10])?; // [N, V]
//! let mut gradient = DeviceBuffer::from_slice(&[0f32; 10])?;
//! let output = loss.value_and_gradient(&stream, &logits, &rows, &mut gradient)?;
//! println!("{:?} {:?}", output.read_loss()?, gradient.as_host_vec()?);
//! # Ok(())
//! # }
//! ```
//!
//! # What is safe, and why
//!
//! The methods of [`DenseLoss`] return when the work is issued, and are safe all the same. They check
//! every length and index that a kernel will use. Streams that [`Stream::new`] makes wait for cust's
//! synchronous copies and are waited for by them, and freeing a [`DeviceBuffer`] waits for the device.
//! What could get between the launch and its buffers is `unsafe` in cust: work on another stream, and
//! memory allocated in a stream's order. Whoever writes that answers for its order, against these
//! launches too; memory of the second kind is to be freed by `drop_async` on the stream that was
//! passed here.

use std::fmt;
use std::rc::Rc;

use ::cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};
use ::cust::stream::Stream;

use super::MaskedSoftmaxLoss;
use crate::backend::cust::dense::{DensePass, DeviceSets, PassTemperature, Scratch};
use crate::backend::cust::driver_error;
use crate::backend::launch::{DenseRows, DenseTemperature};
use crate::temperature::check_positive;
use crate::{Error, Result, Rows, Statistics, Temperature};

pub use crate::backend::cust::{Bf16, Executor, F16, Logit};

/// A [`MaskedSoftmaxLoss`] over logits in device memory.
pub struct DenseLoss<'e> {
    executor: &'e Executor,
    loss: MaskedSoftmaxLoss,
    sets: DeviceSets,
    vocabulary: usize,
    /// τ after the last step.
    stepped: Option<Rc<DeviceBuffer<f64>>>,
}

/// What a pass leaves in device memory, to be read or used there. Reading waits for the device.
pub struct DenseOutput {
    loss: DeviceBuffer<f32>,
    losses: usize,
    temperature: Rc<DeviceBuffer<f64>>,
    statistics: DeviceBuffer<f64>,
    _scratch: Scratch,
}

impl<'e> DenseLoss<'e> {
    /// A loss over logits of a vocabulary of so many tokens, with the sets, the temperature and the
    /// convention of `loss`. Uploads the sets.
    ///
    /// # Errors
    /// Sets with a token outside the vocabulary, a loss in checked mode, and what the driver says.
    pub fn new(executor: &'e Executor, loss: MaskedSoftmaxLoss, vocabulary: usize) -> Result<Self> {
        let token = loss.sets.max_token();
        if token as usize >= vocabulary {
            return Err(Error::TokenOutsideVocabulary { token, vocabulary });
        }
        if loss.checked {
            return Err(Error::Unsupported {
                what: "loss",
                expected: "the unchecked mode on a device".into(),
                actual: "the checked mode".into(),
            });
        }
        Ok(Self {
            sets: DeviceSets::new(&loss.sets)?,
            executor,
            loss,
            vocabulary,
            stepped: None,
        })
    }

    /// The loss of `logits` `[N, V]`. An adaptive temperature takes a step with the statistics of
    /// these rows first, on the device, and the new τ is used.
    ///
    /// # Errors
    /// Rows that do not fit the token sets, logits that are not as many as the rows' positions × V,
    /// statistics that ATS cannot use, and what the driver says. The temperature then stays as it was.
    pub fn forward<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
    ) -> Result<DenseOutput> {
        self.stepping(stream, logits, rows, None)
    }

    /// The loss at a given temperature; takes no step.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::OutOfRange`] for `temperature`.
    pub fn forward_at<T: Logit>(
        &self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<DenseOutput> {
        check_positive("temperature", temperature)?;
        let dense = self.loss.dense_rows(rows)?;
        let temperature = PassTemperature {
            plan: DenseTemperature::at(temperature),
            previous: None,
        };
        self.pass(stream, logits, (rows, &dense), &temperature, None)
    }

    /// The loss, and the gradient of the logits (of the loss's sum where the reduction is none),
    /// written over all of `gradient` `[N, V]`. Steps the temperature as [`forward`](Self::forward)
    /// does.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and for a gradient of another length than the logits.
    pub fn value_and_gradient<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        gradient: &mut DeviceSlice<T>,
    ) -> Result<DenseOutput> {
        check_length("gradient", logits.len(), gradient.len())?;
        self.stepping(stream, logits, rows, Some(gradient))
    }

    /// The temperature as it stands. After a step this waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn temperature(&self) -> Result<Temperature> {
        let known = self.loss.temperature();
        match &self.stepped {
            Some(stepped) => Ok(known.at(read(stepped)?[0])),
            None => Ok(known.clone()),
        }
    }

    fn stepping<T: Logit>(
        &mut self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        rows: &Rows,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<DenseOutput> {
        let dense = self.loss.dense_rows(rows)?;
        let temperature = PassTemperature {
            plan: DenseTemperature::next(self.loss.temperature(), &dense)?,
            previous: self.stepped.as_deref(),
        };
        let output = self.pass(stream, logits, (rows, &dense), &temperature, gradient)?;
        if let Temperature::Adaptive(_) = self.loss.temperature() {
            self.loss.temperature_mut().count_step();
            self.stepped = Some(output.temperature.clone());
        }
        Ok(output)
    }

    fn pass<T: Logit>(
        &self,
        stream: &Stream,
        logits: &DeviceSlice<T>,
        (rows, dense): (&Rows, &DenseRows),
        temperature: &PassTemperature,
        gradient: Option<&mut DeviceSlice<T>>,
    ) -> Result<DenseOutput> {
        let expected = rows.positions().saturating_mul(self.vocabulary);
        check_length("logits", expected, logits.len())?;
        let pass = DensePass {
            executor: self.executor,
            stream,
            sets: &self.sets,
            rows: dense,
            width: self.vocabulary,
        };
        // SAFETY: the rows were resolved against the loss's own sets, whose tokens `new` has compared
        // with the vocabulary; the lengths have been compared just now, the gradient's by the caller;
        // and whoever works on these buffers in another stream answers for the order (see the module).
        let left = unsafe { pass.forward(logits, temperature, gradient) }?;
        Ok(DenseOutput {
            loss: left.loss,
            losses: dense.losses(),
            temperature: left.temperature.into(),
            statistics: left.statistics,
            _scratch: left.scratch,
        })
    }
}

impl DenseOutput {
    /// The loss on the device, as [`read_loss`](Self::read_loss) has it; a buffer of one element
    /// where there is no position.
    #[must_use]
    pub fn loss(&self) -> &DeviceSlice<f32> {
        &self.loss
    }

    /// The loss: one number, or one a position where the reduction is none.
    ///
    /// # Errors
    /// What the driver says, of the work before too.
    pub fn read_loss(&self) -> Result<Vec<f32>> {
        let mut loss = read(&self.loss)?;
        loss.truncate(self.losses);
        Ok(loss)
    }

    /// τ as the pass used it.
    ///
    /// # Errors
    /// As [`read_loss`](Self::read_loss).
    pub fn read_temperature(&self) -> Result<f64> {
        Ok(read(&self.temperature)?[0])
    }

    /// The statistics of the rows.
    ///
    /// # Errors
    /// As [`read_loss`](Self::read_loss).
    pub fn read_statistics(&self) -> Result<Statistics> {
        let mut fields = [0.0; Statistics::LENGTH];
        fields.copy_from_slice(&read(&self.statistics)?);
        Ok(bytemuck::cast(fields))
    }
}

impl fmt::Debug for DenseLoss<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DenseLoss")
            .field("loss", &self.loss)
            .field("vocabulary", &self.vocabulary)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DenseOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DenseOutput")
            .field("losses", &self.losses)
            .finish_non_exhaustive()
    }
}

fn read<T: DeviceCopy + Default>(buffer: &DeviceSlice<T>) -> Result<Vec<T>> {
    buffer.as_host_vec().map_err(driver_error)
}

fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    match expected == actual {
        true => Ok(()),
        false => Err(Error::LengthMismatch {
            what,
            expected,
            actual,
        }),
    }
}
