//! The masked softmax loss for candle tensors.

use candle_core::Tensor;

use crate::backend::batch::{Batch, Denominator};
use crate::backend::launch::{DenseRows, LinearRows};
use crate::temperature::{check_positive, check_temperature};
use crate::{Bear, Result, Rows, Scope, Statistics, Temperature, TokenSets};

mod call;
mod convention;
#[cfg(feature = "cust")]
pub mod cust;
mod dense;
#[cfg(feature = "cuda")]
pub(crate) mod device;
mod device_sets;
mod gathered;
mod head;
pub mod host;
mod labels;
mod linear;
mod output;
pub mod raw;
pub mod reference;
mod scores;
mod temperature;
mod tensor;
pub(crate) mod valid_logits;

pub use convention::{Convention, Reduction};
pub use head::{FrozenHead, Head};
pub use output::LossOutput;
pub use scores::{GradientTarget, Scores};

use device_sets::DeviceSetCache;
use temperature::{CurrentTemperature, Stepped, TemperatureSource};

/// The masked softmax loss (MSL) of arXiv 2504.04178, with a fixed or an adaptive temperature.
///
/// Position t of a response that has walked to node u, with target y and logits z, has
///
/// loss = ln Σ_{v ∈ C(u)} exp(z_v/τ) − z_y/τ,  ∂loss/∂z_v = (p_v − \[v = y\])/τ for v in C(u), else 0
///
/// (equations 5 and 6), where C(u) has the tokens that continue some item at u, and p is the softmax of z/τ over them. A
/// unary row, whose C(u) has one token, has loss 0 and gradient 0. Over
/// [`TokenSets::whole_vocabulary`] it is the plain language-model loss.
///
/// Logits may be f32, f16 or bf16 (computed in f32) or f64 (computed in f64). The [`Convention`] (the
/// reduction, and whether the loss is multiplied by τ) is the published one of a fixed or of an adaptive temperature, unless
/// [`with_convention`](Self::with_convention) says otherwise.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_trie::{AdaptiveStrategy, MaskedSoftmaxLoss, Rows, Scope, TokenTrie};
///
/// let trie = TokenTrie::new([(0, [1, 2, 9]), (1, [1, 3, 9]), (2, [4, 2, 9])])?;
/// let strategy = AdaptiveStrategy { scope: Scope::Branching, ..AdaptiveStrategy::default() };
/// let mut loss = MaskedSoftmaxLoss::new(&trie, strategy)?;
///
/// let labels = Tensor::new(&[[-100i64, 1, 3, 9]], &Device::Cpu)?;
/// let rows = Rows::from_unshifted(&trie, &labels)?;
/// let logits = Var::zeros((1, 4, 10), candle_core::DType::F32, &Device::Cpu)?; // [B, T, V]
/// let output = loss.forward(&logits, &rows)?;
/// let gradients = output.loss.backward()?;
/// let gradient = gradients.get(&logits).unwrap().to_vec3::<f32>()?;
/// assert_eq!(gradient[0][0][4], 0.25); // token 4 begins an item too: (1/2 − 0) / 2 rows
/// assert_eq!(gradient[0][0][5], 0.0); // token 5 begins none
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MaskedSoftmaxLoss {
    sets: TokenSets,
    temperature: CurrentTemperature,
    convention: Convention,
    bear: Option<Bear>,
    checked: bool,
    device_sets: DeviceSetCache,
}

impl MaskedSoftmaxLoss {
    /// Makes a loss over these token sets (`&trie`, or [`TokenSets`]) at this temperature (a number, a [`Temperature`], or
    /// an [`AdaptiveStrategy`](crate::AdaptiveStrategy)).
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a setting out of range, and [`Error::DegenerateScope`](crate::Error::DegenerateScope) for the root
    /// scope of a catalogue with η·n ≤ 1, for which ATS is not defined.
    pub fn new(sets: impl Into<TokenSets>, temperature: impl Into<Temperature>) -> Result<Self> {
        let (sets, temperature) = (sets.into(), temperature.into());
        temperature.check(sets.get(0).map_or(0, |set| set.len() as u32))?;
        let convention = match temperature {
            Temperature::Fixed(_) => Convention::fixed(),
            Temperature::Adaptive(_) => Convention::adaptive(),
        };
        Ok(Self {
            sets,
            temperature: temperature.into(),
            convention,
            bear: None,
            checked: false,
            device_sets: DeviceSetCache::default(),
        })
    }

    /// Returns the loss with another reduction. Whether the result is multiplied by τ stays as it was.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a [`Reduction::MeanOver`] of a number that is not positive and finite.
    pub fn with_reduction(mut self, reduction: Reduction) -> Result<Self> {
        self.set_reduction(reduction)?;
        Ok(self)
    }

    /// Changes the reduction, as a [`Reduction::MeanOver`] may need from batch to batch. Whether the result is multiplied
    /// by τ stays as it was.
    ///
    /// # Errors
    /// Those of [`with_reduction`](Self::with_reduction).
    pub fn set_reduction(&mut self, reduction: Reduction) -> Result<()> {
        if let Reduction::MeanOver(denominator) = reduction {
            check_positive("denominator", denominator)?;
        }
        self.convention.reduction = reduction;
        Ok(())
    }

    /// Returns the loss with another convention: a reduction, and whether its result is multiplied by τ.
    ///
    /// # Errors
    /// Those of [`with_reduction`](Self::with_reduction).
    pub fn with_convention(mut self, convention: Convention) -> Result<Self> {
        self.convention.times_temperature = convention.times_temperature;
        self.with_reduction(convention.reduction)
    }

    /// Returns the loss with BEAR's row weights: every branching row's loss and gradient are multiplied by its weight w
    /// (see [`Bear`]) and by the weight that the caller gave the row, if any.
    ///
    /// Sets the reduction to [`Reduction::MeanOverBranching`], under which the loss is BEAR's: the sum over the branching
    /// rows divided by the sum of their weights. Whether it is multiplied by τ stays as it was. Other reductions may be
    /// chosen afterwards: [`Reduction::MeanOverLabelled`] counts a unary row, where p_y = q_B, with the weight 1 + λ/2,
    /// and the others divide by what they are given, or not at all.
    ///
    /// [`evaluate`](Self::evaluate) has the same weights, reduction and factor τ. For a plain mean of −ln p_y, evaluate a loss without BEAR
    /// and with [`Convention::fixed`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a setting out of range.
    pub fn with_bear(mut self, bear: Bear) -> Result<Self> {
        bear.check()?;
        self.convention.reduction = Reduction::MeanOverBranching;
        self.bear = Some(bear);
        Ok(self)
    }

    /// Returns the loss with a check that values are finite: an infinite or NaN valid logit of a row that has a loss or
    /// statistics is then an [`Error::NonFinite`](crate::Error::NonFinite) that names its row and token.
    ///
    /// The check reads every valid logit once more. On a GPU the scores are copied to the host for it. Without the check
    /// NaN comes out as NaN.
    #[must_use]
    pub fn check_finite(mut self) -> Self {
        self.checked = true;
        self
    }

    /// Returns the token sets.
    pub fn sets(&self) -> &TokenSets {
        &self.sets
    }

    /// Returns the convention.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// Returns the settings of the row weights, if there are some.
    pub fn bear(&self) -> Option<Bear> {
        self.bear
    }

    /// Returns the temperature as it stands. After a step on a CUDA device the first call waits for the device.
    ///
    /// # Errors
    /// Those that candle reports of the transfer from a CUDA device.
    pub fn temperature(&self) -> Result<&Temperature> {
        self.temperature.get()
    }

    /// Returns the temperature, to be stepped or restored by the caller. The convention was chosen for the
    /// temperature that the loss was made with, and stays.
    ///
    /// # Errors
    /// Those of [`temperature`](Self::temperature).
    pub fn temperature_mut(&mut self) -> Result<&mut Temperature> {
        self.temperature.get_mut()
    }

    /// Returns the loss of these scores, which `backward()` works on.
    ///
    /// The scores are logits `[.., V]`, or hidden states `[.., H]` with a head `[V, H]`: see [`Scores`]. The last
    /// dimension must be contiguous, and the leading ones must flatten to the positions that `rows` was made for.
    ///
    /// An adaptive temperature first takes a step with the statistics of these rows, and the loss has the new τ. This
    /// is the short way where a step is one batch on one device, and why the method takes `&mut self`. A fixed
    /// temperature stays: [`forward_at`](Self::forward_at) gives the same loss with `&self`.
    ///
    /// # Hidden states and a head
    ///
    /// Hidden states, head and its bias (contiguous) share a device and a dtype, which may be f64 on the CPU only. The
    /// gradient of the head is computed only where the head is tracked: pass `&head.detach()` or a [`FrozenHead`] when
    /// it is not trained, and [`Head::with_added_rows`] when only the rows of new tokens are. Like candle's own
    /// operations, the backward pass reads hidden states and head again: do not overwrite them before it has run.
    ///
    /// # What autograd costs
    ///
    /// candle adds every gradient that an operation returns to a new tensor of zeros. For logits, whose gradient is as
    /// large as they are, this is most of the time. On the CPU, with 1,734 positions and a vocabulary of 49,152,
    /// `forward` and `backward()` take 179 ms, and [`value_and_gradient`](Self::value_and_gradient) takes 15 ms. The
    /// gradient of hidden states is small, and costs little either way.
    ///
    /// # Errors
    /// In all cases the temperature stays as it was.
    /// - [`PositionMismatch`](crate::Error::PositionMismatch): the rows were made for another number of positions.
    /// - [`UnknownSet`](crate::Error::UnknownSet), [`TargetNotInSet`](crate::Error::TargetNotInSet) and
    ///   [`TokenOutsideVocabulary`](crate::Error::TokenOutsideVocabulary): the rows do not fit the token sets, or these the vocabulary.
    /// - [`Unsupported`](crate::Error::Unsupported): a dtype, device or layout that there is no code for, hidden states of width 0, or
    ///   rows or a frozen head made for other token sets.
    /// - [`LengthMismatch`](crate::Error::LengthMismatch): a head or bias that does not fit the hidden states.
    /// - [`TooLarge`](crate::Error::TooLarge): on a GPU, a width beyond 2²⁴ or rows whose partial sums take more than 64 GiB.
    /// - [`Malformed`](crate::Error::Malformed): a scope of marked rows where none is marked.
    /// - [`DegenerateScope`](crate::Error::DegenerateScope) and [`UnequalFanOut`](crate::Error::UnequalFanOut): statistics that ATS cannot
    ///   use.
    /// - [`NonFinite`](crate::Error::NonFinite): an infinite or NaN logit, if [`check_finite`](Self::check_finite) was called.
    pub fn forward<'a>(
        &mut self,
        scores: impl Into<Scores<'a>>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        let scores = scores.into();
        let source = self.temperature.stepping(scores.tensor().device())?;
        let (output, stepped) = scores.loss(self.batch(rows)?, source, &self.device_sets)?;
        self.take_step(stepped);
        Ok(output)
    }

    /// Returns the loss at a given temperature, which `backward()` works on, and takes no step.
    ///
    /// The output's statistics are those of these rows, to be merged over micro-batches, devices or processes before
    /// [`Temperature::step`].
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), and [`Error::OutOfRange`](crate::Error::OutOfRange) for `temperature`.
    pub fn forward_at<'a>(
        &self,
        scores: impl Into<Scores<'a>>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<LossOutput> {
        check_temperature("temperature", temperature)?;
        let source = TemperatureSource::Given(temperature);
        let (output, _) = (scores.into()).loss(self.batch(rows)?, source, &self.device_sets)?;
        Ok(output)
    }

    /// Returns the loss at the temperature as it stands, without a gradient, a step or statistics. Under BEAR the rows
    /// have the weights that they have in training.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn evaluate<'a>(&self, scores: impl Into<Scores<'a>>, rows: &Rows) -> Result<LossOutput> {
        let value = self.temperature()?.value();
        check_temperature("temperature", value)?;
        let batch = self.batch_in_scope(rows, None)?;
        (scores.into())
            .detached(|scores| {
                scores.loss(batch, TemperatureSource::Given(value), &self.device_sets)
            })
            .map(|(output, _)| output)
    }

    /// Returns the statistics that an adaptive temperature is computed from. For a fixed temperature they are those of
    /// no row.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn statistics<'a>(&self, scores: impl Into<Scores<'a>>, rows: &Rows) -> Result<Statistics> {
        (scores.into()).statistics(self.batch(rows)?, &self.device_sets)
    }

    /// Returns the loss and, computed in the same pass without autograd, the gradient of the logits or hidden states.
    ///
    /// The gradient has their shape and dtype, and is written where `target` says. Under [`Reduction::None`] it is the
    /// gradient of the sum of the losses. The head of hidden states gets no gradient. An adaptive temperature takes a
    /// step as in [`forward`](Self::forward).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_trie::{GradientTarget, MaskedSoftmaxLoss, Rows, TokenTrie};
    ///
    /// let trie = TokenTrie::new([(0, [1, 9]), (1, [2, 9])])?;
    /// let mut loss = MaskedSoftmaxLoss::new(&trie, 1.0)?;
    /// let rows = Rows::from_shifted(&trie, &vec![vec![2, 9]])?;
    /// let logits = Tensor::zeros((1, 2, 10), DType::F32, &Device::Cpu)?;
    ///
    /// let (_, gradient) = loss.value_and_gradient(&logits, &rows, GradientTarget::New)?;
    /// // From here on no step allocates a gradient.
    /// loss.value_and_gradient(&logits, &rows, GradientTarget::Into(&gradient))?;
    /// assert_eq!(gradient.to_vec3::<f32>()?[0][0][..3], [0.0, 0.25, -0.25]);
    /// # Ok::<(), candle_trie::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward), and [`Error::Unsupported`](crate::Error::Unsupported) for a target that does not fit, that shares the
    /// memory of the logits, or that is not [`GradientTarget::New`] for hidden states, and for logits to be overwritten
    /// whose rows share memory.
    pub fn value_and_gradient<'a>(
        &mut self,
        scores: impl Into<Scores<'a>>,
        rows: &Rows,
        target: GradientTarget,
    ) -> Result<(LossOutput, Tensor)> {
        let scores = scores.into();
        let source = self.temperature.stepping(scores.tensor().device())?;
        let batch = self.batch(rows)?;
        let (output, gradient, stepped) = scores.detached(|scores| {
            scores.loss_and_gradient(batch, source, &self.device_sets, target)
        })?;
        self.take_step(stepped);
        Ok((output, gradient))
    }

    /// Returns the rows as the kernels over logits take them.
    ///
    /// # Errors
    /// Rows that do not fit the token sets.
    #[doc(hidden)]
    pub fn dense_rows(&self, rows: &Rows) -> Result<DenseRows> {
        Ok(DenseRows::new(&self.batch(rows)?))
    }

    /// Returns the rows as the kernels over hidden states and a head take them.
    ///
    /// # Errors
    /// Rows that do not fit the token sets.
    #[doc(hidden)]
    pub fn linear_rows(&self, rows: &Rows) -> Result<LinearRows> {
        Ok(LinearRows::new(&self.batch(rows)?))
    }

    fn take_step(&mut self, stepped: Option<Stepped>) {
        if let Some(stepped) = stepped {
            self.temperature.take(stepped);
        }
    }

    fn batch(&self, rows: &Rows) -> Result<Batch> {
        let scope = match self.temperature.known() {
            Temperature::Fixed(_) => None,
            Temperature::Adaptive(adaptive) => Some(adaptive.strategy.scope),
        };
        self.batch_in_scope(rows, scope)
    }

    fn batch_in_scope(&self, rows: &Rows, scope: Option<Scope>) -> Result<Batch> {
        let denominator = match self.convention.reduction {
            Reduction::MeanOverLabelled => Denominator::LabelledWeight,
            Reduction::MeanOverBranching => Denominator::BranchingWeight,
            Reduction::MeanOver(denominator) => Denominator::Given(denominator),
            Reduction::Sum | Reduction::None => Denominator::Given(1.0),
        };
        let mut batch = Batch::new(&self.sets, rows, scope, denominator)?;
        batch.times_temperature = self.convention.times_temperature;
        batch.bear = self.bear;
        batch.checked = self.checked;
        batch.reduced = self.convention.reduction != Reduction::None;
        Ok(batch)
    }
}
