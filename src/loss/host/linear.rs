//! The loss of hidden states and a head.

use candle_core::Device;

use super::{Element, FrozenRows, Matrix, check_positions, check_vocabulary, checked_upstream};
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::{Head, HeadGradient, Hidden, Wanted};
use crate::error::check_length;
use crate::loss::MaskedSoftmaxLoss;
use crate::loss::call::{LossCall, loss_values};
use crate::loss::gathered::check_gathered_sets;
use crate::loss::linear::cpu;
use crate::loss::temperature::{Stepped, TemperatureSource};
use crate::temperature::check_temperature;
use crate::{Error, Result, Rows, Statistics};

/// Hidden states, and the head that they are multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct LinearInput<'a, T> {
    /// The hidden states `[N, H]`.
    pub hidden: Matrix<'a, T>,
    /// The head `[V, H]`.
    pub head: Matrix<'a, T>,
    /// The bias `[V]`; empty where there is none.
    pub bias: &'a [T],
    /// The gathered rows of this head; `None` for a head that is trained.
    pub frozen: Option<&'a FrozenRows>,
}

/// The slices that gradients are written to. They are overwritten whole, whatever they hold.
#[derive(Debug)]
pub struct LinearGradients<'a, T> {
    /// The gradient of the hidden states `[N, H]`; `None` where it is not wanted.
    pub hidden: Option<&'a mut [T]>,
    /// The gradient of the head `[V, H]`; `None` where it is not wanted.
    pub head: Option<&'a mut [T]>,
    /// The gradient of the bias `[V]`; `None` where it is not wanted, which it only can be together with the head's.
    pub bias: Option<&'a mut [T]>,
}

/// A forward pass over hidden states `[N, H]` and a head `[V, H]`, which does not materialise the logits.
#[derive(Debug)]
pub struct LinearForward<T: Element> {
    batch: Batch,
    saved: cpu::SavedForward<T>,
    wanted: Wanted,
    /// The shape [V, H] of the head.
    head_shape: [usize; 2],
}

impl<T: Element> LinearForward<T> {
    /// Computes the loss, and the temperature's step, as [`MaskedSoftmaxLoss::forward`] does. `hidden_gradient` and
    /// `head_gradient` say which gradients [`backward`](Self::backward) will be asked for.
    ///
    /// # Errors
    /// Those of [`MaskedSoftmaxLoss::forward`].
    pub fn new(
        loss: &mut MaskedSoftmaxLoss,
        input: LinearInput<T>,
        rows: &Rows,
        [hidden_gradient, head_gradient]: [bool; 2],
    ) -> Result<Self> {
        let source = loss.temperature.stepping(&Device::Cpu)?;
        let wanted = Wanted {
            hidden: hidden_gradient,
            head: head_gradient,
        };
        let pass = Self::with(loss, input, rows, source, wanted)?;
        let stepped = pass.saved.forward.stepped.clone();
        loss.take_step(stepped.map(Stepped::OnHost));
        Ok(pass)
    }

    /// Computes the loss at a given temperature, and takes no step.
    ///
    /// # Errors
    /// Those of [`MaskedSoftmaxLoss::forward_at`].
    pub fn at(
        loss: &MaskedSoftmaxLoss,
        input: LinearInput<T>,
        rows: &Rows,
        temperature: f64,
        [hidden_gradient, head_gradient]: [bool; 2],
    ) -> Result<Self> {
        check_temperature("temperature", temperature)?;
        let wanted = Wanted {
            hidden: hidden_gradient,
            head: head_gradient,
        };
        Self::with(
            loss,
            input,
            rows,
            TemperatureSource::Given(temperature),
            wanted,
        )
    }

    fn with(
        loss: &MaskedSoftmaxLoss,
        input: LinearInput<T>,
        rows: &Rows,
        source: TemperatureSource,
        wanted: Wanted,
    ) -> Result<Self> {
        let batch = loss.batch(rows)?;
        let (hidden, head) = input.views(&batch)?;
        let call = LossCall::new(batch, source, &loss.device_sets);
        let saved = cpu::forward(hidden, &head, &call, wanted)?;
        let LossCall { batch, .. } = call;
        Ok(Self {
            batch,
            saved,
            wanted,
            head_shape: [input.head.rows, input.head.width],
        })
    }

    /// Returns the loss: one number, or one for each position where the reduction is none.
    #[must_use]
    pub fn loss(&self) -> Vec<f64> {
        loss_values(&self.batch, &self.saved.forward)
    }

    /// Returns the τ that the pass used.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        self.saved.forward.temperature
    }

    /// Returns the statistics of the rows, which an adaptive temperature takes a step with.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.saved.forward.statistics
    }

    /// Returns the sum of the row weights under BEAR, as
    /// [`LossOutput::bear_weight`](crate::LossOutput::bear_weight) has it.
    #[must_use]
    pub fn bear_weight(&self) -> Option<f64> {
        self.saved.forward.bear_weight
    }

    /// Writes the gradients that are wanted. The input must be that of the forward pass. `upstream` is the gradient of the
    /// loss, as many numbers as [`loss`](Self::loss) returns.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::PositionMismatch`] and [`Error::TokenOutsideVocabulary`] where the arguments do not fit each other
    /// or the forward pass, and
    /// [`Error::Unsupported`] for a gradient that the forward pass was not made for, and for a head that has changed since its rows
    /// were gathered.
    pub fn backward(
        &self,
        input: LinearInput<T>,
        upstream: &[f64],
        gradients: LinearGradients<T>,
    ) -> Result<()> {
        let (hidden, head) = input.views(&self.batch)?;
        let [vocabulary, width] = self.head_shape;
        check_length("rows of the head", input.head.rows, [vocabulary, 1])?;
        check_length("width of the head", input.head.width, [width, 1])?;
        let upstream = checked_upstream(&self.batch, upstream)?;
        if let Some(gradient) = gradients.hidden {
            self.check_wanted("gradient of the hidden states", self.wanted.hidden)?;
            check_length(
                "gradient of the hidden states",
                gradient.len(),
                [input.hidden.rows, hidden.width],
            )?;
            (self.saved).write_hidden_gradient(&head, &self.batch, &upstream, gradient)?;
        }
        if let Some(gradient) = gradients.head {
            self.check_wanted("gradient of the head", self.wanted.head)?;
            check_length(
                "gradient of the head",
                gradient.len(),
                [vocabulary, head.width],
            )?;
            let bias = gradients.bias.unwrap_or_default();
            if !bias.is_empty() {
                check_length("gradient of the head bias", bias.len(), [vocabulary, 1])?;
            }
            gradient.fill(T::zeroed());
            bias.fill(T::zeroed());
            let to = HeadGradient {
                head: gradient,
                bias,
                width: head.width,
                first_token: 0,
            };
            (self.saved).add_head_gradient(hidden, &head, &self.batch, &upstream, to);
        } else if gradients.bias.is_some_and(|bias| !bias.is_empty()) {
            return Err(Error::Unsupported {
                what: "gradient of the head bias",
                expected: "the gradient of the head beside it, which is computed with it".into(),
                actual: "none".into(),
            });
        }
        Ok(())
    }

    fn check_wanted(&self, what: &'static str, wanted: bool) -> Result<()> {
        match wanted {
            true => Ok(()),
            false => Err(Error::Unsupported {
                what,
                expected: "a forward pass that was made for it".into(),
                actual: "one that was not".into(),
            }),
        }
    }
}

impl<'a, T: Element> LinearInput<'a, T> {
    /// Returns the views of the backend, which fit each other and the batch.
    fn views(&self, batch: &Batch) -> Result<(Hidden<'a, T>, Head<'a, T>)> {
        let Self {
            hidden,
            head,
            bias,
            frozen,
        } = *self;
        check_positions(batch, hidden.rows, hidden.width)?;
        check_vocabulary(batch, head.rows)?;
        if hidden.width == 0 {
            return Err(Error::Unsupported {
                what: "hidden states",
                expected: "a width of at least 1".into(),
                actual: "width 0".into(),
            });
        }
        if hidden.width != head.width {
            return Err(Error::LengthMismatch {
                what: "width H of the head [V, H], which is that of the hidden states [N, H]",
                expected: hidden.width,
                actual: head.width,
            });
        }
        if !bias.is_empty() {
            check_length("head bias", bias.len(), [head.rows, 1])?;
        }
        if let Some(frozen) = frozen {
            check_gathered_sets(&frozen.sets, batch)?;
            let shape = [head.rows, head.width];
            if shape != frozen.head_shape {
                return Err(Error::Unsupported {
                    what: "head",
                    expected: format!(
                        "the head that its rows were frozen from, of shape {:?}",
                        frozen.head_shape
                    ),
                    actual: format!("one of shape {shape:?}"),
                });
            }
        }
        let hidden = Hidden {
            values: hidden.values,
            stride: hidden.stride,
            width: hidden.width,
        };
        let head = Head {
            values: head.values,
            stride: head.stride,
            width: head.width,
            base: None,
            bias,
            frozen: frozen.and_then(|frozen| frozen.gathered.rows()),
        };
        Ok((hidden, head))
    }
}
