"""Passes over CUDA tensors, issued to PyTorch's current stream, in memory that PyTorch allocates.

Kernels run after the functions here have returned, in the order of the stream. PyTorch gives memory that was freed to later work
of the same stream alone, so a tensor that only kernels need may be dropped once they are issued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _native
from ._memory import Inputs, address, as_matrix, dtype_name, raw

if TYPE_CHECKING:
    from .loss import MaskedSoftmaxLoss


class DeviceState:
    """What a loss has on devices: its token sets, and the temperature after a step that was taken there."""

    def __init__(self, native: _native.Loss) -> None:
        self._native = native
        self._sets: dict[torch.device, Tensor | None] = {}
        self._stepped: tuple[Tensor, torch.cuda.Event] | None = None
        # Each step begins with the temperature of the last one.
        self.lock = threading.RLock()

    def sets(self, device: torch.device) -> Tensor | None:
        """Returns the tables of the token sets; None for a whole vocabulary. The first call copies them, and waits for it."""
        if device not in self._sets:
            tables = self._native.set_tables()
            self._sets[device] = None if tables is None else torch.frombuffer(bytearray(tables), dtype=torch.int32).to(device)
        return _used_by_current_stream(self._sets[device])

    def previous(self, device: torch.device) -> Tensor | None:
        """Returns the temperature after the last step where it is on this device, in the order of the current stream."""
        if self._stepped is None or self._stepped[0].device != device:
            self.settle()
            return None
        value, written = self._stepped
        written.wait()
        return _used_by_current_stream(value)

    def step(self, value: Tensor) -> None:
        """Takes the temperature that kernels of the current stream write."""
        written = torch.cuda.Event()
        written.record()
        self._stepped = value, written

    def settle(self) -> None:
        """Reads the temperature after the last step where it is on a device, for which it waits."""
        if self._stepped is None:
            return
        with self.lock:
            # Another thread may have read it since.
            if self._stepped is not None:
                value, written = self._stepped
                written.synchronize()
                self._native.restore(value[0].item(), self._native.state[1])
                self._stepped = None

    def forget(self) -> None:
        """Forgets the temperature on a device, as another is given."""
        with self.lock:
            self._stepped = None


class Memory:
    """The memory that the launches of one native call need."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kept: list[Tensor] = []
        self._scratch: list[Tensor] = []

    def allocate(self, kept: bool, size: int) -> int:
        """Returns the address of new memory."""
        memory = torch.empty(size, dtype=torch.uint8, device=self._device)
        (self.kept if kept else self._scratch).append(memory)
        return memory.data_ptr()

    def stream(self) -> _native.CudaStream:
        """Returns PyTorch's current stream with this memory. The memory must not own the stream, which owns it."""
        handle = torch.cuda.current_stream(self._device).cuda_stream
        return _native.CudaStream(self._device.index, handle, self.allocate)


class Forward:
    """A forward pass, with what it saves for the backward pass."""

    def __init__(
        self,
        loss: MaskedSoftmaxLoss,
        shape: torch.Size,
        device: torch.device,
        dtype: str,
        temperature: float | None,
        issue: Callable[[_native.CudaStream, tuple], _native.CudaDense | _native.CudaLinear],
    ) -> None:
        with torch.cuda.device(device), loss._on_devices.lock:
            state, memory = loss._on_devices, Memory(device)
            self.loss = torch.empty(shape if loss.reduction == "none" else (), dtype=torch.float32, device=device)
            # τ, the statistics, and the sum of BEAR's weights.
            self.results = torch.empty(_native.STATISTICS + 2, dtype=torch.float64, device=device)
            previous = state.previous(device) if temperature is None else None
            tables = state.sets(device)
            # Without a position no loss is written.
            to = address(self.loss) or address(self.results)
            addresses = (temperature, address(tables), address(previous), to, address(self.results))
            self._native = issue(memory.stream(), addresses)
            if temperature is None and loss.adaptive:
                state.step(self.results[:1])
        self._kept = [*memory.kept, tables, self.results]
        self._dtype = dtype

    @property
    def statistics(self) -> list[float]:
        """The statistics of the rows, for which it waits."""
        return self.results[1 : 1 + _native.STATISTICS].tolist()

    def backward(self, dtype: str, upstream: Tensor, inputs: tuple, gradients: int | list[int | None]) -> None:
        """Writes gradients to addresses. The inputs are those of the native pass, and must have its dtype."""
        if dtype != self._dtype:
            raise ValueError(f"expected tensors of {self._dtype}, as in the forward pass, found {dtype}")
        with torch.cuda.device(self.results.device):
            for kept in self._kept:
                _used_by_current_stream(kept)
            upstream, results = upstream.to(torch.float32).contiguous(), address(self.results)
            stream = Memory(self.results.device).stream()
            # Without a position there is no upstream gradient to be read.
            self._native.backward(stream, inputs, address(upstream) or results, results, gradients)


def dense(
    loss: MaskedSoftmaxLoss, logits: Tensor, rows: _native.Rows, shape: torch.Size, temperature: float | None
) -> Forward:
    """Issues the forward pass over logits, for rows of labels of this shape."""
    matrix, dtype = as_matrix("logits", logits), dtype_name("logits", logits)

    def issue(stream, addresses):
        return _native.CudaDense(stream, loss._native, rows, dtype, raw(matrix), addresses)

    return Forward(loss, shape, logits.device, dtype, temperature, issue)


def dense_backward(forward: Forward, upstream: Tensor, logits: Tensor) -> Tensor:
    """Issues the backward pass to the logits, and returns their gradient."""
    matrix = as_matrix("logits", logits)
    gradient = logits.new_empty(logits.shape)
    forward.backward(dtype_name("logits", logits), upstream, raw(matrix), address(gradient))
    return gradient


def linear(
    loss: MaskedSoftmaxLoss,
    inputs: Inputs,
    rows: _native.Rows,
    shape: torch.Size,
    temperature: float | None,
    wanted: list[bool],
) -> Forward:
    """Issues the forward pass over hidden states and a head, for rows of labels of this shape."""

    def issue(stream, addresses):
        return _native.CudaLinear(stream, loss._native, rows, inputs.dtype, inputs.raw, wanted, addresses)

    return Forward(loss, shape, inputs.hidden.device, inputs.dtype, temperature, issue)


def linear_backward(forward: Forward, upstream: Tensor, inputs: Inputs, gradients: list[Tensor], wanted: list[bool]) -> None:
    """Issues the backward pass that writes the gradients that are wanted."""
    # Kernels write the rows of valid tokens alone.
    for gradient, given in zip(gradients[1:], wanted[1:]):
        if given:
            gradient.zero_()
    to = [address(gradient) if given else None for gradient, given in zip(gradients, wanted)]
    forward.backward(inputs.dtype, upstream, inputs.raw, to)


def _used_by_current_stream(tensor: Tensor | None) -> Tensor | None:
    """Keeps the memory of a tensor until the work of the current stream is done, which may be another than it was made for."""
    if tensor is not None:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor
