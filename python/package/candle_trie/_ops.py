"""The operations of PyTorch that the loss is made of: opaque to `torch.compile`, with backward passes of their own.

An operation takes tensors and numbers alone. Losses and frozen heads are passed by their numbers, and what a forward pass saves for the backward
pass is an object of the native part, which lives as long as the storage of a tensor of one element that holds its number.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _cuda, _native
from ._memory import Inputs, as_matrix, dtype_name, raw, raw_vector, readable

if TYPE_CHECKING:
    from .frozen_head import FrozenHead
    from .loss import MaskedSoftmaxLoss

_numbers = itertools.count()
_registered: weakref.WeakValueDictionary[int, MaskedSoftmaxLoss | FrozenHead] = weakref.WeakValueDictionary()
_saved: dict[int, _native.DenseForward | _native.LinearForward | _cuda.Forward] = {}


def register(owner: MaskedSoftmaxLoss | FrozenHead) -> int:
    """Returns the number by which operations find a loss or a frozen head."""
    number = next(_numbers)
    _registered[number] = owner
    return number


def _frozen_rows(number: int | None) -> _native.FrozenRows | None:
    """Returns the gathered rows of a frozen head, which must not have changed."""
    if number is None:
        return None
    _registered[number]._check_unchanged()
    return _registered[number]._rows


def rows(loss: MaskedSoftmaxLoss, labels: Tensor, sets: Tensor | None) -> _native.Rows:
    """Walks the labels along the trie, or takes the numbers of their token sets, on the host."""
    lines, numbers = _lines(labels), None if sets is None else _lines(sets)
    numbered = None if numbers is None else raw(numbers)
    return _native.Rows(loss._native_sets, raw(lines), numbered, loss.ignore_index, loss.labels_are_shifted)


def _lines(labels: Tensor) -> Tensor:
    labels = readable("labels", labels).to("cpu", torch.int64)
    return as_matrix("labels", labels if labels.dim() else labels.reshape(1)).contiguous()


def dense_statistics(loss: MaskedSoftmaxLoss, logits: Tensor, labels: Tensor, sets: Tensor | None) -> list[float]:
    """Returns the statistics of the rows, by which a temperature that all processes share takes a step."""
    if logits.is_cuda:
        return _cuda.dense(loss, logits, rows(loss, labels, sets), labels.shape, loss.temperature).statistics
    matrix = as_matrix("logits", logits)
    forward = loss._native.dense(dtype_name("logits", logits), raw(matrix), rows(loss, labels, sets), loss.temperature)
    return forward.statistics


def linear_statistics(
    loss: MaskedSoftmaxLoss, inputs: Inputs, labels: Tensor, sets: Tensor | None, frozen: int | None
) -> list[float]:
    """Returns the statistics of the rows, from hidden states and a head."""
    wanted = [False, False]
    if inputs.hidden.is_cuda:
        return _cuda.linear(loss, inputs, rows(loss, labels, sets), labels.shape, loss.temperature, wanted).statistics
    of_batch, gathered = rows(loss, labels, sets), _frozen_rows(frozen)
    return loss._native.linear(inputs.dtype, inputs.raw, of_batch, gathered, loss.temperature, wanted).statistics


def _save(forward: _native.DenseForward | _native.LinearForward | _cuda.Forward, wanted: bool) -> Tensor:
    """Returns the tensor that holds the number of what is saved, on the CPU. It is forgotten when the tensor's storage is freed."""
    if not wanted:
        return torch.full((1,), -1, dtype=torch.int64, device="cpu")
    number = next(_numbers)
    _saved[number] = forward
    handle = torch.full((1,), number, dtype=torch.int64, device="cpu")
    weakref.finalize(handle.untyped_storage(), _saved.pop, number, None)
    return handle


def _found(handle: Tensor) -> _native.DenseForward | _native.LinearForward | _cuda.Forward:
    try:
        return _saved[handle.item()]
    except KeyError:
        raise RuntimeError(
            "what the forward pass saved is gone: hooks of saved tensors must not copy those of a compiled loss"
        ) from None


def _taken(ctx) -> Tensor:
    """Returns the handle in a backward pass, and lets it go where autograd lets go of what is saved."""
    handle = ctx.handle
    if not _keeps_graph():
        ctx.handle = None
    return handle


# Without this function of PyTorch, what is saved lives as long as the loss.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _loss_of(loss: MaskedSoftmaxLoss, forward, labels: Tensor, dtype: torch.dtype) -> Tensor:
    values = torch.empty(labels.shape if loss.reduction == "none" else (), dtype=torch.float64, device="cpu")
    forward.write_loss(values.data_ptr(), values.numel())
    return values.to(_loss_dtype(dtype))


def _upstream(gradient: Tensor) -> Tensor:
    return readable("upstream gradient", gradient).to(torch.float64).contiguous()


def _loss_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_loss(labels: Tensor, number: int, scores: Tensor) -> tuple[Tensor, Tensor]:
    shape = labels.shape if _registered[number].reduction == "none" else ()
    handle = torch.empty((1,), dtype=torch.int64, device="cpu")
    return scores.new_empty(shape, dtype=_loss_dtype(scores.dtype)), handle


@torch.library.custom_op("candle_trie::dense", mutates_args=(), device_types="cpu")
def dense(
    logits: Tensor, labels: Tensor, sets: Tensor | None, number: int, training: bool, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Returns the loss of logits, and the handle of what is saved for the backward pass."""
    loss, matrix = _registered[number], as_matrix("logits", logits)
    temperature = loss._temperature_of_pass(training, lambda: dense_statistics(loss, logits, labels, sets))
    loss._on_devices.settle()
    forward = loss._native.dense(dtype_name("logits", logits), raw(matrix), rows(loss, labels, sets), temperature)
    return _loss_of(loss, forward, labels, logits.dtype), _save(forward, wanted)


@dense.register_kernel("cuda")
def _(logits, labels, sets, number, training, wanted):
    loss = _registered[number]
    temperature = loss._temperature_of_pass(training, lambda: dense_statistics(loss, logits, labels, sets))
    forward = _cuda.dense(loss, logits, rows(loss, labels, sets), labels.shape, temperature)
    return forward.loss, _save(forward, wanted)


@dense.register_fake
def _(logits, labels, sets, number, training, wanted):
    return _fake_loss(labels, number, logits)


@torch.library.custom_op("candle_trie::dense_backward", mutates_args=(), device_types="cpu")
def dense_backward(upstream: Tensor, logits: Tensor, handle: Tensor) -> Tensor:
    """Returns the gradient of the logits."""
    matrix, upstream = as_matrix("logits", logits), _upstream(upstream)
    gradient = logits.new_empty(logits.shape)
    forward = _found(handle)
    forward.backward(dtype_name("logits", logits), raw(matrix), raw_vector(upstream), raw_vector(gradient))
    return gradient


@dense_backward.register_kernel("cuda")
def _(upstream, logits, handle):
    return _cuda.dense_backward(_found(handle), upstream, logits)


@dense_backward.register_fake
def _(upstream, logits, handle):
    return logits.new_empty(logits.shape)


def _save_dense(ctx, inputs, output) -> None:
    # Hooks of saved tensors may replace them by copies, by which what is saved would not be found.
    ctx.handle = output[1]
    ctx.save_for_backward(inputs[0])
    ctx.set_materialize_grads(False)


def _backward_dense(ctx, upstream, _):
    if upstream is None:
        return (None,) * 6
    (logits,) = ctx.saved_tensors
    return dense_backward(upstream, logits, _taken(ctx)), *(None,) * 5


dense.register_autograd(_backward_dense, setup_context=_save_dense)


@torch.library.custom_op("candle_trie::linear", mutates_args=(), device_types="cpu")
def linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    sets: Tensor | None,
    number: int,
    frozen: int | None,
    training: bool,
    hidden_wanted: bool,
    head_wanted: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the loss of hidden states and a head, and the handle of what is saved for the backward pass."""
    loss, inputs, wanted = _registered[number], Inputs(hidden, weight, bias), [hidden_wanted, head_wanted]
    statistics = lambda: linear_statistics(loss, inputs, labels, sets, frozen)  # noqa: E731
    temperature = loss._temperature_of_pass(training, statistics)
    loss._on_devices.settle()
    of_batch, gathered = rows(loss, labels, sets), _frozen_rows(frozen)
    forward = loss._native.linear(inputs.dtype, inputs.raw, of_batch, gathered, temperature, wanted)
    return _loss_of(loss, forward, labels, hidden.dtype), _save(forward, any(wanted))


@linear.register_kernel("cuda")
def _(hidden, weight, bias, labels, sets, number, frozen, training, hidden_wanted, head_wanted):
    loss, inputs, wanted = _registered[number], Inputs(hidden, weight, bias), [hidden_wanted, head_wanted]
    _frozen_rows(frozen)
    statistics = lambda: linear_statistics(loss, inputs, labels, sets, frozen)  # noqa: E731
    temperature = loss._temperature_of_pass(training, statistics)
    forward = _cuda.linear(loss, inputs, rows(loss, labels, sets), labels.shape, temperature, wanted)
    return forward.loss, _save(forward, any(wanted))


@linear.register_fake
def _(hidden, weight, bias, labels, sets, number, frozen, training, hidden_wanted, head_wanted):
    return _fake_loss(labels, number, hidden)


@torch.library.custom_op("candle_trie::linear_backward", mutates_args=(), device_types="cpu")
def linear_backward(
    upstream: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, handle: Tensor, wanted: list[bool]
) -> list[Tensor]:
    """Returns the gradients of hidden states, head and bias, each an empty tensor where it is not wanted."""
    inputs, upstream = Inputs(hidden, weight, bias), _upstream(upstream)
    gradients = _new_gradients(hidden, weight, bias, wanted)
    to = [raw_vector(gradient) if given else None for gradient, given in zip(gradients, wanted)]
    if wanted[2] and not wanted[1]:
        # The sums of the bias are a by-product of those of the head.
        of_head = torch.empty_like(weight, memory_format=torch.contiguous_format)
        to[1] = raw_vector(of_head)
    _found(handle).backward(inputs.dtype, inputs.raw, raw_vector(upstream), to)
    return gradients


@linear_backward.register_kernel("cuda")
def _(upstream, hidden, weight, bias, handle, wanted):
    gradients = _new_gradients(hidden, weight, bias, wanted)
    _cuda.linear_backward(_found(handle), upstream, Inputs(hidden, weight, bias), gradients, wanted)
    return gradients


@linear_backward.register_fake
def _(upstream, hidden, weight, bias, handle, wanted):
    return _new_gradients(hidden, weight, bias, wanted)


def _new_gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]) -> list[Tensor]:
    inputs = zip((hidden, weight, weight if bias is None else bias), wanted)
    return [tensor.new_empty(tensor.shape if given else (0,)) for tensor, given in inputs]


def _save_linear(ctx, inputs, output) -> None:
    hidden, weight, bias, *_ = inputs
    ctx.handle = output[1]
    # A module that is cast to another dtype gives its parameters new memory, and detached ones keep the old.
    of_head = weight.detach(), None if bias is None else bias.detach()
    ctx.save_for_backward(hidden, weight, bias, *of_head)
    ctx.set_materialize_grads(False)


def _backward_linear(ctx, upstream, _):
    none = (None,) * 10
    if upstream is None:
        return none
    wanted = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    hidden, weight, bias, *of_head = ctx.saved_tensors
    # Of gradients that are differentiated in turn, PyTorch says that there are none, if they follow from what is tracked.
    head = (weight, bias) if torch.is_grad_enabled() else of_head
    gradients = linear_backward(upstream, hidden, *head, _taken(ctx), wanted)
    return *(gradient if given else None for gradient, given in zip(gradients, wanted)), *none[3:]


linear.register_autograd(_backward_linear, setup_context=_save_linear)
