"""The Masked Softmax Loss as a module of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

from . import _cuda, _native, _ops
from ._memory import check_device, check_head
from .frozen_head import FrozenHead
from .trie import ID_BITS, TOKEN_BITS, TokenSets, TokenTrie, check_range

Reduction = Literal["mean", "mean_branching", "sum", "none"]

# The settings that the native loss is made with.
_FIXED = ("trie", "adaptive", "bear", "reduction", "times_temperature")


@dataclass(frozen=True)
class AdaptiveTemperature:
    """The settings of the Adaptive Temperature Strategy (ATS, arXiv 2504.04178, section 4.2). The defaults are the paper's.

    Each step estimates the temperature at which the target's probability is `eta`, and moves towards it by the share `alpha`.

    A forward pass that activation checkpointing computes again takes another step: keep the loss out of checkpointed functions.
    """

    scope: Literal["root", "branching"] = "root"
    """The rows that the statistics are of: the first token of each title, or every token that has alternatives."""
    eta: float = 0.25
    """The probability that the target should have."""
    alpha: float = 0.05
    """The share of a new estimate in the temperature."""
    initial: float = 1.5
    """The temperature to begin with."""
    minimum: float = 1.5
    """The smallest estimate."""
    maximum: float = 5.0
    """The largest estimate."""
    warm_up: int = 0
    """The number of steps in which the temperature stays as it begins."""
    allow_degenerate: bool = False
    """Whether the published arithmetic is computed where eta times the fan-out is 1 or less, instead of refused."""

    def __post_init__(self) -> None:
        check_range("warm_up", [self.warm_up], ID_BITS)


@dataclass(frozen=True)
class Bear:
    """The settings of BEAR's row weights (arXiv 2601.22925): w = 1 + lambda * sigmoid((ln p_y - ln q_B) / xi)."""

    beams: int = 10
    """The number B of beams that the model will be decoded with."""
    weight: float = 0.25
    """The lambda of the weights."""
    xi: float = 2.75
    """The width of the rise of the weights, in nats."""

    def __post_init__(self) -> None:
        check_range("beams of BEAR", [self.beams], TOKEN_BITS)


class MaskedSoftmaxLoss(torch.nn.Module):
    """The cross entropy of the next token of a title, with a softmax over the tokens that continue a title.

    It takes float32, float64, float16 or bfloat16 and has a backward pass. Positions whose label is `ignore_index` have loss
    and gradient 0. A label that continues no title is a ValueError that names its place.

    Args:
        trie: The titles. With an int in its place, the vocabulary's size, the softmax is over the whole vocabulary: the plain
            loss of a language model. With `TokenSets`, each call takes the numbers of the sets of its labels.
        temperature: The temperature, or an `AdaptiveTemperature`, which takes a step in each forward pass of a module in
            training, with the statistics of its rows: with those of all processes where `torch.distributed` is initialised.
        bear: The row weights of BEAR; None for none.
        reduction: "mean" over the labelled positions, "mean_branching" over those that have alternatives, "sum", "none" (a
            loss for each position), or a number that the sum is divided by. By default the published convention: "mean" at a
            fixed temperature, "mean_branching" at an adaptive one and under BEAR.
        times_temperature: Whether the loss is multiplied by the temperature. By default it is at an adaptive one.
        ignore_index: The label of positions without one.
        labels_are_shifted: Whether position t predicts the label at t. By default the label at t is the token at t, which
            position t - 1 predicts, as in transformers.

    Raises:
        ValueError: For settings out of range, and for the root scope of a catalogue for which ATS is not defined.
    """

    def __init__(
        self,
        trie: TokenTrie | TokenSets | int,
        temperature: float | AdaptiveTemperature = 1.0,
        *,
        bear: Bear | None = None,
        reduction: Reduction | float | None = None,
        times_temperature: bool | None = None,
        ignore_index: int = -100,
        labels_are_shifted: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(trie, int) and (isinstance(trie, bool) or trie < 1):
            raise ValueError(f"trie: expected titles, token sets, or the size of the vocabulary, found {trie}")
        self.trie = trie
        self.adaptive = temperature if isinstance(temperature, AdaptiveTemperature) else None
        self.bear = bear
        self.reduction = reduction
        self.times_temperature = times_temperature
        self.ignore_index = ignore_index
        self.labels_are_shifted = labels_are_shifted
        self._fixed = 1.0 if self.adaptive else float(temperature)
        self._open()

    def _open(self) -> None:
        """Makes the native loss, and registers it for the operations to find."""
        named = self.reduction
        if named is not None and not isinstance(named, str):
            named = ("mean_over", float(named))
        elif named is not None:
            named = (named, 1.0)
        self._native = _native.Loss(
            self._native_sets,
            self._fixed,
            astuple(self.adaptive) if self.adaptive else None,
            astuple(self.bear) if self.bear else None,
            named,
            self.times_temperature,
        )
        self._on_devices = _cuda.DeviceState(self._native)
        self._number = _ops.register(self)

    @property
    def temperature(self) -> float:
        """The temperature as it stands. After a step on a CUDA device this waits for the device."""
        self._on_devices.settle()
        return self._native.state[0]

    @property
    def _native_sets(self) -> _native.TokenTrie | _native.TokenSets | int:
        """What the native part takes for the token sets."""
        return self.trie if isinstance(self.trie, int) else self.trie._native

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and "_number" in self.__dict__:
            raise AttributeError(f"{name} is fixed when a loss is made: make another one")
        super().__setattr__(name, value)

    def forward(self, logits: Tensor, labels: Tensor, *, sets: Tensor | None = None) -> Tensor:
        """Returns the loss of logits `[.., V]` for labels `[..]` of an integer type.

        Logits may be `[T, V]` or `[B, T, V]`. The loss is float32, or float64 for float64 logits. A loss over `TokenSets` takes the
        number of the set of each label, of the labels' shape.
        """
        self._check(labels, sets, logits)
        return _ops.dense(logits, labels, sets, self._number, self.training, _wants_gradient(logits))[0]

    def forward_linear(
        self,
        hidden: Tensor,
        weight: Tensor | FrozenHead,
        labels: Tensor,
        bias: Tensor | None = None,
        *,
        sets: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss of hidden states `[.., H]` and a head `weight` `[V, H]` with an optional bias `[V]`.

        The logits `[.., V]` are not materialised: only the head rows of valid tokens are read. A head that is not trained may be a
        `FrozenHead`, which has its own bias and saves gathering rows anew. Under autocast the inputs are cast as
        `torch.nn.functional.linear` casts them, but for a frozen head, which must have autocast's dtype.
        """
        # The operation finds the frozen head by its number, so it must live until then.
        head, frozen = weight, None
        if isinstance(head, FrozenHead):
            if bias is not None:
                raise ValueError("bias: expected None beside a FrozenHead, which has its own")
            frozen, weight, bias = head._number, head._weight, head._bias
        check_device("hidden states", hidden)
        if weight.device != hidden.device:
            raise ValueError(f"head: expected it on {hidden.device}, as the hidden states, found it on {weight.device}")
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            if frozen is not None and weight.dtype not in (dtype, torch.float64):
                raise ValueError(f"head: expected a FrozenHead of {dtype}, autocast's dtype, found one of {weight.dtype}")
            # autocast leaves float64 alone.
            hidden, weight, bias = (
                tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
                for tensor in (hidden, weight, bias)
            )
        check_head(hidden.dtype, weight, bias)
        self._check(labels, sets, hidden)
        wanted = _wants_gradient(hidden), _wants_gradient(weight) or (bias is not None and _wants_gradient(bias))
        return _ops.linear(hidden, weight, bias, labels, sets, self._number, frozen, self.training, *wanted)[0]

    def extra_repr(self) -> str:
        temperature = self.adaptive or self._fixed
        return f"{self.trie!r}, temperature={temperature}, bear={self.bear}, reduction={self.reduction!r}"

    def get_extra_state(self) -> dict[str, Any]:
        self._on_devices.settle()
        value, step = self._native.state
        return {"temperature": value, "step": step}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._on_devices.forget()
        self._native.restore(state["temperature"], state["step"])

    def _temperature_of_pass(self, training: bool, statistics: Callable[[], list[float]]) -> float | None:
        """Returns the temperature of a pass, and None where it is fixed, or the pass takes a step of its own."""
        if not self.adaptive:
            return None
        if not training:
            return self.temperature
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return None
        # The step needs the statistics of the batch of all processes.
        return self._native.step(_merged_over_processes(statistics()))

    def _check(self, labels: Tensor, sets: Tensor | None, scores: Tensor) -> None:
        if (sets is not None) != isinstance(self.trie, TokenSets):
            expected = "their numbers, as the loss is over TokenSets" if sets is None else "None, as the loss is not over TokenSets"
            raise ValueError(f"sets: expected {expected}")
        if sets is not None and (sets.shape != labels.shape or not _is_integer(sets.dtype)):
            raise ValueError(
                f"sets: expected integers of the shape {list(labels.shape)}, found {sets.dtype} of {list(sets.shape)}"
            )
        if labels.device.type != "cpu" and labels.device != scores.device:
            raise ValueError(f"labels: expected them on the CPU or on {scores.device}, as the scores, found {labels.device}")
        if not _is_integer(labels.dtype):
            raise ValueError(f"labels: expected an integer dtype, found {labels.dtype}")
        if labels.shape != scores.shape[:-1]:
            raise ValueError(f"labels: expected the shape {list(scores.shape[:-1])}, found {list(labels.shape)}")

    def __getstate__(self) -> dict[str, Any]:
        self._on_devices.settle()
        state = self.__dict__ | {"_state": self._native.state}
        del state["_native"], state["_number"], state["_on_devices"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        value, step = state.pop("_state")
        super().__setstate__(state)
        self._open()
        self._native.restore(value, step)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _wants_gradient(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _merged_over_processes(statistics: list[float]) -> list[float]:
    """Merges statistics in the order of the ranks, so that all processes get the same bits."""
    own = torch.tensor(statistics, dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        own = own.cuda()
    everyone = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, own)
    merged, *others = (tensor.tolist() for tensor in everyone)
    for other in others:
        merged = _native.merge_statistics(merged, other)
    return merged
