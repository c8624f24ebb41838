//! The inputs of the loss over hidden states: hidden states, head and bias. They are checked once, and then viewed as slices by the
//! backend.

use std::ops::Deref;
use std::sync::Arc;

use candle_core::{CpuStorage, Device, Layout, Storage, Tensor};

use super::{HIDDEN, statistics_on_cpu};
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::{self, BaseRows, Hidden};
use crate::loss::gathered::{Gathered, check_gathered_sets};
use crate::loss::head::{BIAS, HEAD, Head, check_dtype, check_head};
use crate::loss::tensor::{Scalar, check_loss_device, check_positions, cpu, matrix};
use crate::{Error, Result, TokenSets};

/// Hidden states and a head that fit each other and a batch: [`new`](Self::new) has checked everything that the backends
/// rely on.
pub(super) struct CheckedInputs {
    /// The hidden states `[.., H]`.
    pub hidden: Tensor,
    /// The head `[V, H]` or, of a head in two parts, the added rows.
    pub weight: Tensor,
    /// The bias `[V]`. candle's op takes three tensors, so without a bias this is a tensor of 0 elements, or of 1 on a device, which
    /// has no buffers of 0 bytes.
    pub bias: Tensor,
    pub has_bias: bool,
    pub frozen: FrozenRows,
}

/// The rows of a head that take no gradient, and so are no input of candle's op.
#[derive(Clone)]
pub(super) struct FrozenRows {
    /// The rows of the tokens before the added ones; `None` for a head in one part.
    pub base: Option<Tensor>,
    /// The gathered rows of the head; `None` if it is not frozen.
    pub gathered: Option<Arc<Gathered>>,
}

impl CheckedInputs {
    /// Refuses inputs that do not fit each other or the batch, before any work.
    pub fn new(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<Self> {
        check(hidden, head, batch)?;
        let bias = match head.bias {
            Some(bias) => bias.clone(),
            None => {
                let device = head.weight.device();
                let length = usize::from(!device.is_cpu());
                Tensor::zeros(length, head.weight.dtype(), device)?
            }
        };
        let inputs = Self {
            hidden: hidden.clone(),
            weight: head.weight.clone(),
            bias,
            has_bias: head.bias.is_some(),
            frozen: FrozenRows {
                base: head.base.map(Tensor::detach),
                gathered: head.gathered.cloned(),
            },
        };
        if batch.checked && !hidden.device().is_cpu() {
            // The user has asked for the check, which needs a copy on the host to name the first score that is not finite.
            let mut copied = inputs.map(|tensor| tensor.to_device(&Device::Cpu))?;
            copied.frozen.gathered = None;
            statistics_on_cpu(&copied, batch)?;
        }
        Ok(inputs)
    }

    /// Returns the same inputs, detached from autograd.
    pub fn detached(&self) -> Result<Self> {
        self.map(|tensor| Ok(tensor.detach()))
    }

    fn map(&self, of: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        Ok(Self {
            hidden: of(&self.hidden)?,
            weight: of(&self.weight)?,
            bias: of(&self.bias)?,
            has_bias: self.has_bias,
            frozen: FrozenRows {
                base: self.frozen.base.as_ref().map(of).transpose()?,
                gathered: self.frozen.gathered.clone(),
            },
        })
    }

    /// Calls `compute` with the slices of hidden states and head.
    pub fn viewed<T: Scalar, R>(
        &self,
        compute: impl FnOnce(Hidden<T>, &linear::Head<T>) -> Result<R>,
    ) -> Result<R> {
        let [hidden, weight, bias] =
            [&self.hidden, &self.weight, &self.bias].map(Tensor::storage_and_layout);
        let base = self.frozen.base();
        let head = head_view::<T>(
            (cpu(HEAD, &weight.0)?, weight.1),
            (cpu(BIAS, &bias.0)?, bias.1),
            base.as_ref(),
            self.frozen.gathered.as_ref(),
        )?;
        compute(hidden_view::<T>(cpu(HIDDEN, &hidden.0)?, hidden.1)?, &head)
    }
}

impl FrozenRows {
    /// Locks the rows of the tokens before the added ones.
    pub fn base(&self) -> Option<(impl Deref<Target = Storage>, &Layout)> {
        self.base.as_ref().map(Tensor::storage_and_layout)
    }
}

fn check(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<()> {
    check_loss_device(HIDDEN, hidden)?;
    check_positions(hidden, batch.positions)?;
    check_fit(hidden, head, &batch.sets)?;
    match head.gathered_sets {
        Some(sets) => check_gathered_sets(sets, batch),
        None => Ok(()),
    }
}

/// Refuses a head that does not fit these hidden states, or does not have all tokens of these sets.
pub(crate) fn check_fit(hidden: &Tensor, head: &Head, sets: &TokenSets) -> Result<()> {
    head.check_parts()?;
    check_same_device(hidden, head)?;
    check_width(hidden, head.weight)?;
    check_head(head, sets)?;
    check_dtype(hidden, head.weight)
}

/// Refuses a head that is not as wide as the hidden states. It is checked before the vocabulary, so that the message for a transposed
/// head is about its width.
fn check_width(hidden: &Tensor, head: &Tensor) -> Result<()> {
    let width = |tensor: &Tensor| tensor.dims().last().copied().unwrap_or(0);
    match (width(hidden), width(head)) {
        (0, _) => Err(Error::Unsupported {
            what: HIDDEN,
            expected: "a width of at least 1".into(),
            actual: format!("shape {:?}", hidden.dims()),
        }),
        (expected, actual) if expected != actual => Err(Error::LengthMismatch {
            what: "width H of the head [V, H], which is that of the hidden states [.., H]",
            expected,
            actual,
        }),
        _ => Ok(()),
    }
}

fn check_same_device(hidden: &Tensor, head: &Head) -> Result<()> {
    let others = [Some(head.weight), head.bias];
    let elsewhere =
        (others.into_iter().flatten()).find(|tensor| !tensor.device().same_device(hidden.device()));
    match elsewhere {
        None => Ok(()),
        Some(tensor) => Err(Error::Unsupported {
            what: HEAD,
            expected: format!(
                "a head on {:?}, as the hidden states",
                hidden.device().location()
            ),
            actual: format!("one on {:?}", tensor.device().location()),
        }),
    }
}

pub(super) fn hidden_view<'a, T: Scalar>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<Hidden<'a, T>> {
    let matrix = matrix(HIDDEN, T::cpu_storage_as_slice(storage)?, layout)?;
    Ok(Hidden {
        values: matrix.values,
        stride: matrix.stride,
        width: matrix.width,
    })
}

pub(super) fn head_view<'a, T: Scalar>(
    (head, head_layout): (&'a CpuStorage, &Layout),
    (bias, bias_layout): (&'a CpuStorage, &Layout),
    base: Option<&'a (impl Deref<Target = Storage>, &Layout)>,
    gathered: Option<&'a Arc<Gathered>>,
) -> Result<linear::Head<'a, T>> {
    let view = |storage, layout| matrix(HEAD, T::cpu_storage_as_slice(storage)?, layout);
    let rows = view(head, head_layout)?;
    let bias = T::cpu_storage_as_slice(bias)?;
    let base = base
        .map(|(storage, layout)| {
            let base = view(cpu(HEAD, storage)?, layout)?;
            Ok::<_, Error>(BaseRows {
                values: base.values,
                stride: base.stride,
                rows: layout.dims()[0],
            })
        })
        .transpose()?;
    let (start, end) = bias_layout.contiguous_offsets().unwrap_or((0, 0));
    Ok(linear::Head {
        values: rows.values,
        stride: rows.stride,
        width: rows.width,
        base,
        bias: bias.get(start..end).unwrap_or(&[]),
        frozen: gathered.and_then(|gathered| gathered.rows()),
    })
}
