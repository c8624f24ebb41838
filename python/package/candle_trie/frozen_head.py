"""A head that is not trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _native, _ops
from ._memory import as_matrix, check_head, dtype_name, raw
from .trie import TokenSets, TokenTrie

DEFAULT_LIMIT = 64 << 20


class FrozenHead:
    """A head that is not trained, for `MaskedSoftmaxLoss.forward_linear` in the place of its weight.

    It keeps the gathered rows of the largest token sets, which every batch uses again, and takes no gradient, even if the weight
    requires one. On CUDA nothing is gathered, as the kernels read the head itself.

    Make it when the module is complete, and a new one when the head changes. A head that has been written, moved or resized since is a
    ValueError, also where the values stay, as by `DistributedDataParallel`, `load_state_dict` and `.to()`. PyTorch counts no writes through
    `weight.data`: of a weight on the CPU that was not copied, one element of every gathered row is compared too.

    >>> import torch
    >>> from candle_trie import FrozenHead, MaskedSoftmaxLoss, TokenTrie
    >>> trie = TokenTrie.from_sequences([[item, 100] for item in range(100)])
    >>> head = FrozenHead(torch.zeros(101, 8), trie)
    >>> head.gathered_sets  # the root's
    1
    >>> value = MaskedSoftmaxLoss(trie).forward_linear(torch.zeros(1, 3, 8), head, torch.tensor([[-100, 7, 100]]))
    >>> round(value.item(), 4)  # the mean of ln 100 and of 0
    2.3026

    Args:
        weight: The head [V, H]. A weight whose rows are not contiguous is copied once.
        trie: What the loss is over: the titles, token sets, or the size of the vocabulary, for which nothing is gathered.
        bias: The bias [V], if the head has one.
        limit: The most bytes that gathered rows take. The default is 64 MiB.

    Raises:
        ValueError: For a head that is too small for the tokens of the trie, that does not fit its bias, or of a dtype that the loss
            does not take.
    """

    def __init__(
        self, weight: Tensor, trie: TokenTrie | TokenSets | int, bias: Tensor | None = None, *, limit: int = DEFAULT_LIMIT
    ) -> None:
        check_head(weight.dtype, weight, bias)
        if limit < 0:
            raise ValueError(f"limit: expected a number of bytes, found {limit}")
        self._given, self._trie, self._limit = (weight, bias), trie, limit
        self._states = [_state(tensor) for tensor in self._given]
        dtype = dtype_name("head", weight)
        self._weight, self._bias = as_matrix("head", weight), None if bias is None else bias.detach()
        sets = trie if isinstance(trie, int) else trie._native
        self._rows = None if weight.is_cuda else _native.FrozenRows(dtype, raw(self._weight), sets, limit)
        self._number = _ops.register(self)

    @property
    def gathered_sets(self) -> int:
        """The number of token sets whose rows are gathered, which is 0 on CUDA."""
        return 0 if self._rows is None else self._rows.gathered_sets

    def _check_unchanged(self) -> None:
        """Refuses a head that PyTorch has written, moved or resized since."""
        for what, tensor, state in zip(("head", "bias"), self._given, self._states):
            if _state(tensor) != state:
                raise ValueError(f"{what}: it has changed since it was frozen, so make the FrozenHead anew")

    def __repr__(self) -> str:
        return f"FrozenHead({list(self._weight.shape)}, {self.gathered_sets} gathered sets)"

    def __getstate__(self):
        return *self._given, self._trie, self._limit

    def __setstate__(self, state) -> None:
        weight, bias, trie, limit = state
        self.__init__(weight, trie, bias, limit=limit)


def _state(tensor: Tensor | None) -> Any:
    """What differs when a tensor has been written or has new memory."""
    if tensor is None:
        return None
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device, tensor.shape, tensor.stride()
