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
mod head;
mod labels;
mod linear;
mod output;
pub mod reference;
mod temperature;
mod tensor;
pub(crate) mod valid_logits;

pub use convention::{Convention, Reduction};
pub use head::{FrozenHead, Head};
pub use output::LossOutput;

use device_sets::DeviceSetCache;
use temperature::{CurrentTemperature, Stepped, TemperatureSource};

/// The masked softmax loss (MSL) of arXiv 2504.04178, with a fixed or an adaptive temperature.
///
/// Position t of a response that has walked to node u, with target y and logits z, has
///
/// loss = ln Σ_{v ∈ C(u)} exp(z_v/τ) − z_y/τ,  ∂loss/∂z_v = (p_v − \[v = y\])/τ for v in C(u), else 0
///
/// (equations 5 and 6). A unary row, whose C(u) has one token, has loss 0 and gradient 0. Over
/// [`TokenSets::whole_vocabulary`] it is the plain language-model loss.
///
/// Logits may be f32, f16 or bf16 (computed in f32) or f64 (computed in f64). The convention follows
/// the temperature, as published, unless [`with_convention`](Self::with_convention) says otherwise.
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
/// assert_eq!(gradient[0][0][4], 0.25); // 4 could have been written at the root: (1/2 − 0) / 2 rows
/// assert_eq!(gradient[0][0][5], 0.0); // 5 could not
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
    /// A loss over these token sets (`&trie`, or sets from elsewhere) at this temperature.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a setting out of range; [`Error::DegenerateScope`](crate::Error::DegenerateScope) for the root
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

    /// The same loss under another convention.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a denominator that is not positive and finite.
    pub fn with_convention(mut self, convention: Convention) -> Result<Self> {
        self.set_convention(convention)?;
        Ok(self)
    }

    /// Changes the convention, as a [`Reduction::MeanOver`] may need from batch to batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a denominator that is not positive and finite.
    pub fn set_convention(&mut self, convention: Convention) -> Result<()> {
        if let Reduction::MeanOver(denominator) = convention.reduction {
            check_positive("denominator", denominator)?;
        }
        self.convention = convention;
        Ok(())
    }

    /// The same loss with BEAR's row weights: every branching row's loss and gradient are multiplied by its weight w
    /// (see [`Bear`]) and by the weight that the caller gave the row, if any.
    ///
    /// Sets the reduction to [`Reduction::MeanOverBranching`], under which the loss is BEAR's: the sum over the branching
    /// rows divided by the sum of their weights. Whether it is multiplied by τ stays as it was. Other reductions may be
    /// chosen afterwards: [`Reduction::MeanOverLabelled`] counts a unary row, where p_y = q_B, with the weight 1 + λ/2,
    /// and the others divide by what they are given, or not at all.
    ///
    /// [`evaluate`](Self::evaluate) has the same weights. A loss without BEAR evaluates the plain mean of −ln p_y.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a setting out of range.
    pub fn with_bear(mut self, bear: Bear) -> Result<Self> {
        bear.check()?;
        self.convention.reduction = Reduction::MeanOverBranching;
        self.bear = Some(bear);
        Ok(self)
    }

    /// The same loss in checked mode: an infinite or NaN valid logit of a row that has a loss or
    /// statistics is an [`Error::NonFinite`](crate::Error::NonFinite) that names its row and token,
    /// at the price of one more look at every valid logit. Unchecked, NaN comes out as NaN.
    #[must_use]
    pub fn checked(mut self) -> Self {
        self.checked = true;
        self
    }

    /// The token sets.
    pub fn sets(&self) -> &TokenSets {
        &self.sets
    }

    /// The convention.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// The settings of the row weights, where there are some.
    pub fn bear(&self) -> Option<Bear> {
        self.bear
    }

    /// The temperature as it stands. After a step on a CUDA device the first call waits for it.
    ///
    /// # Errors
    /// What candle reports of the transfer from a CUDA device.
    pub fn temperature(&self) -> Result<&Temperature> {
        self.temperature.get()
    }

    /// The temperature, to be stepped or restored by the caller. The convention was chosen for the
    /// temperature that the loss was made with, and stays.
    ///
    /// # Errors
    /// As [`temperature`](Self::temperature).
    pub fn temperature_mut(&mut self) -> Result<&mut Temperature> {
        self.temperature.get_mut()
    }

    /// The loss of `logits` `[.., V]`, differentiable. An adaptive temperature takes a step with the
    /// statistics of these rows first, and the new τ is used: the shortcut for a step that is one
    /// batch on one device.
    ///
    /// The last dimension of `logits` must be contiguous and the leading ones must flatten to the
    /// positions that `rows` was made for.
    ///
    /// # Errors
    /// Rows that do not fit the logits or the token sets, a dtype, device or layout that is not
    /// supported, and statistics that ATS cannot use. The temperature then stays as it was.
    pub fn forward(&mut self, logits: &Tensor, rows: &Rows) -> Result<LossOutput> {
        let source = self.temperature.stepping(logits.device())?;
        let batch = self.batch(rows)?;
        let (output, stepped) = dense::forward(logits, batch, source, &self.device_sets)?;
        self.take_step(stepped);
        Ok(output)
    }

    /// The loss at a given temperature, differentiable; takes no step. The output's statistics are
    /// those of these rows, to be merged over micro-batches, devices or processes before
    /// [`Temperature::step`].
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::OutOfRange`](crate::Error::OutOfRange) for `temperature`.
    pub fn forward_at(&self, logits: &Tensor, rows: &Rows, temperature: f64) -> Result<LossOutput> {
        check_temperature("temperature", temperature)?;
        let source = TemperatureSource::Given(temperature);
        Ok(dense::forward(logits, self.batch(rows)?, source, &self.device_sets)?.0)
    }

    /// The loss at the temperature as it stands, without a gradient, a step or statistics. Under BEAR the rows have
    /// the weights that they have in training.
    ///
    /// # Errors
    /// As [`forward_at`](Self::forward_at).
    pub fn evaluate(&self, logits: &Tensor, rows: &Rows) -> Result<LossOutput> {
        let source = self.temperature_as_it_stands()?;
        let batch = self.batch_in_scope(rows, None)?;
        Ok(dense::forward(&logits.detach(), batch, source, &self.device_sets)?.0)
    }

    /// The statistics that an adaptive temperature looks at; those of no row for a fixed one.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn statistics(&self, logits: &Tensor, rows: &Rows) -> Result<Statistics> {
        dense::statistics(logits, self.batch(rows)?, &self.device_sets)
    }

    /// The loss and the gradient of the logits (of the loss's sum under [`Reduction::None`]) in one
    /// pass, without autograd. Steps the temperature as [`forward`](Self::forward) does. The
    /// gradient has the shape and dtype of the logits.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn value_and_gradient(
        &mut self,
        logits: &Tensor,
        rows: &Rows,
    ) -> Result<(LossOutput, Tensor)> {
        let source = self.temperature.stepping(logits.device())?;
        let batch = self.batch(rows)?;
        let (output, gradient, stepped) =
            dense::value_and_gradient(logits, batch, source, &self.device_sets)?;
        self.take_step(stepped);
        Ok((output, gradient))
    }

    /// As [`value_and_gradient`](Self::value_and_gradient), writing the gradient over `gradient`: a
    /// contiguous tensor of the shape and dtype of the logits, kept from step to step.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and for a `gradient` that does not fit or shares the memory of
    /// `logits`.
    pub fn value_and_gradient_into(
        &mut self,
        logits: &Tensor,
        rows: &Rows,
        gradient: &Tensor,
    ) -> Result<LossOutput> {
        let source = self.temperature.stepping(logits.device())?;
        let batch = self.batch(rows)?;
        let (output, stepped) =
            dense::value_and_gradient_into(logits, batch, source, &self.device_sets, gradient)?;
        self.take_step(stepped);
        Ok(output)
    }

    /// As [`value_and_gradient`](Self::value_and_gradient), writing the gradient over the logits
    /// themselves, which nothing may need any more (an op that keeps its result for its own backward
    /// pass would get the gradient instead). On CUDA this saves the memory of a second `[N, V]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and for logits whose rows share memory.
    pub fn value_and_gradient_over(&mut self, logits: &Tensor, rows: &Rows) -> Result<LossOutput> {
        let source = self.temperature.stepping(logits.device())?;
        let batch = self.batch(rows)?;
        let (output, stepped) =
            dense::value_and_gradient_over(logits, batch, source, &self.device_sets)?;
        self.take_step(stepped);
        Ok(output)
    }

    /// The loss of `hidden` `[.., H]` × `head` `[V, H]`, without ever making the logits: only the head
    /// rows of valid tokens are touched. Otherwise as [`forward`](Self::forward). Hidden states, head and
    /// its bias (contiguous) share a dtype, f64 on the CPU alone, and a device.
    ///
    /// The gradient of the head is made only where it is tracked: pass `&head.detach()` or a
    /// [`FrozenHead`] when it is not trained. Like candle's own operations, the backward pass reads
    /// hidden states and head again: set neither anew before it has run.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), for hidden states of width 0, and for a head that does not fit them.
    pub fn forward_linear<'h>(
        &mut self,
        hidden: &Tensor,
        head: impl Into<Head<'h>>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        let source = self.temperature.stepping(hidden.device())?;
        let batch = self.batch(rows)?;
        let (output, stepped) =
            linear::forward(hidden, head.into(), batch, source, &self.device_sets)?;
        self.take_step(stepped);
        Ok(output)
    }

    /// The loss and the gradient of the hidden states (of the loss's sum under [`Reduction::None`]) in one
    /// pass, without autograd; on a CUDA device in one launch. Steps the temperature as
    /// [`forward`](Self::forward) does. The gradient has the shape and dtype of the hidden states; the head
    /// gets none.
    ///
    /// # Errors
    /// As [`forward_linear`](Self::forward_linear).
    pub fn value_and_gradient_linear<'h>(
        &mut self,
        hidden: &Tensor,
        head: impl Into<Head<'h>>,
        rows: &Rows,
    ) -> Result<(LossOutput, Tensor)> {
        let source = self.temperature.stepping(hidden.device())?;
        let batch = self.batch(rows)?;
        let head = head.into();
        let (weight, bias) = (head.weight.detach(), head.bias.map(Tensor::detach));
        let head = head.with(&weight, bias.as_ref());
        let (output, gradient, stepped) =
            linear::value_and_gradient(hidden, head, batch, source, &self.device_sets)?;
        self.take_step(stepped);
        Ok((output, gradient))
    }

    /// As [`forward_at`](Self::forward_at), from hidden states and head.
    ///
    /// # Errors
    /// As [`forward_linear`](Self::forward_linear).
    pub fn forward_linear_at<'h>(
        &self,
        hidden: &Tensor,
        head: impl Into<Head<'h>>,
        rows: &Rows,
        temperature: f64,
    ) -> Result<LossOutput> {
        check_temperature("temperature", temperature)?;
        let source = TemperatureSource::Given(temperature);
        Ok(linear::forward(
            hidden,
            head.into(),
            self.batch(rows)?,
            source,
            &self.device_sets,
        )?
        .0)
    }

    /// As [`evaluate`](Self::evaluate), from hidden states and head.
    ///
    /// # Errors
    /// As [`forward_linear`](Self::forward_linear).
    pub fn evaluate_linear<'h>(
        &self,
        hidden: &Tensor,
        head: impl Into<Head<'h>>,
        rows: &Rows,
    ) -> Result<LossOutput> {
        let head = head.into();
        let (weight, bias) = (head.weight.detach(), head.bias.map(Tensor::detach));
        let head = head.with(&weight, bias.as_ref());
        let source = self.temperature_as_it_stands()?;
        let batch = self.batch_in_scope(rows, None)?;
        Ok(linear::forward(&hidden.detach(), head, batch, source, &self.device_sets)?.0)
    }

    /// As [`statistics`](Self::statistics), from hidden states and head.
    ///
    /// # Errors
    /// As [`forward_linear`](Self::forward_linear).
    pub fn statistics_linear<'h>(
        &self,
        hidden: &Tensor,
        head: impl Into<Head<'h>>,
        rows: &Rows,
    ) -> Result<Statistics> {
        linear::statistics(hidden, head.into(), self.batch(rows)?, &self.device_sets)
    }

    /// The rows as the kernels over logits take them.
    ///
    /// # Errors
    /// Rows that do not fit the token sets.
    #[doc(hidden)]
    pub fn dense_rows(&self, rows: &Rows) -> Result<DenseRows> {
        Ok(DenseRows::new(&self.batch(rows)?))
    }

    /// The rows as the kernels over hidden states and a head take them.
    ///
    /// # Errors
    /// Rows that do not fit the token sets.
    #[doc(hidden)]
    pub fn linear_rows(&self, rows: &Rows) -> Result<LinearRows> {
        Ok(LinearRows::new(&self.batch(rows)?))
    }

    fn temperature_as_it_stands(&self) -> Result<TemperatureSource> {
        let value = self.temperature()?.value();
        check_temperature("temperature", value)?;
        Ok(TemperatureSource::Given(value))
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
