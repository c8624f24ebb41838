//! What the linear loss is given: hidden states, head and bias, looked over once and then seen as the
//! backend's slices.

use std::sync::Arc;

use candle_core::{CpuStorage, Layout, Tensor};

use super::HIDDEN;
use crate::backend::batch::Batch;
use crate::backend::cpu::linear::{self, Hidden};
use crate::loss::head::{BIAS, Gathered, HEAD, Head, check_dtype, check_head};
use crate::loss::tensor::{Scalar, check_loss_device, check_positions, cpu, matrix};
use crate::{Error, Result, TokenSets};

/// Everything that the slices of the backend rely on, refused in words before any work.
pub(super) fn check(hidden: &Tensor, head: &Head, batch: &Batch) -> Result<()> {
    check_loss_device(HIDDEN, hidden)?;
    check_same_device(hidden, head)?;
    check_positions(hidden, batch.positions)?;
    check_width(hidden, head.weight)?;
    check_head(head.weight, head.bias, &batch.sets)?;
    check_dtype(hidden, head.weight)?;
    let other_sets = (head.gathered_sets).filter(|&sets| *sets != batch.sets);
    // The whole vocabulary needs no gathered rows, and takes a head frozen for any sets.
    if let (Some(other), None) = (other_sets, batch.whole_vocabulary()) {
        return Err(Error::Unsupported {
            what: HEAD,
            expected: format!(
                "a FrozenHead made for the token sets of this loss ({})",
                sizes(&batch.sets)
            ),
            actual: format!("one made for others ({})", sizes(other)),
        });
    }
    Ok(())
}

/// Refuses a head that is not as wide as the hidden states. It comes before the vocabulary, so that a transposed head
/// is called that.
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

/// How many sets there are, and how many tokens.
fn sizes(sets: &TokenSets) -> String {
    match sets.as_raw() {
        Some((offsets, tokens)) => format!("sets: {}, tokens: {}", offsets.len() - 1, tokens.len()),
        None => format!("the whole vocabulary of {}", sets.max_token() + 1),
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

/// What `look` sees in hidden states and a head.
pub(super) fn viewed<T: Scalar, R>(
    hidden: &Tensor,
    head: &Head,
    look: impl FnOnce(Hidden<T>, &linear::Head<T>) -> Result<R>,
) -> Result<R> {
    let bias = bias_or_none(head)?;
    let (hidden, weight) = (
        hidden.storage_and_layout(),
        head.weight.storage_and_layout(),
    );
    let bias = bias.storage_and_layout();
    let view = head_view::<T>(
        cpu(HEAD, &weight.0)?,
        weight.1,
        cpu(BIAS, &bias.0)?,
        bias.1,
        head.gathered,
    )?;
    look(hidden_view::<T>(cpu(HIDDEN, &hidden.0)?, hidden.1)?, &view)
}

/// candle's op takes three tensors; an empty one stands for no bias. (A device has no buffer without
/// elements.)
pub(super) fn bias_or_none(head: &Head) -> Result<Tensor> {
    match head.bias {
        Some(bias) => Ok(bias.clone()),
        None => {
            let device = head.weight.device();
            let length = usize::from(!device.is_cpu());
            Ok(Tensor::zeros(length, head.weight.dtype(), device)?)
        }
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
    head: &'a CpuStorage,
    head_layout: &Layout,
    bias: &'a CpuStorage,
    bias_layout: &Layout,
    gathered: Option<&'a Arc<Gathered>>,
) -> Result<linear::Head<'a, T>> {
    let matrix = matrix(HEAD, T::cpu_storage_as_slice(head)?, head_layout)?;
    let bias = T::cpu_storage_as_slice(bias)?;
    let (start, end) = bias_layout.contiguous_offsets().unwrap_or((0, 0));
    Ok(linear::Head {
        values: matrix.values,
        stride: matrix.stride,
        width: matrix.width,
        bias: bias.get(start..end).unwrap_or(&[]),
        frozen: gathered.and_then(|gathered| T::unwrap(gathered)),
    })
}
