"""A head that is not trained."""

from __future__ import annotations

from torch import Tensor

from . import _native, _ops
from ._memory import as_matrix, dtype_name, raw
from .trie import TokenSets, TokenTrie

DEFAULT_LIMIT = 64 << 20


class FrozenHead:
    """A head that is not trained, for `MaskedSoftmaxLoss.forward_linear` in the place of its weight.

    It keeps the gathered rows of the largest token sets, which every batch uses again, and takes no gradient. Make a new one when
    the head changes: on the CPU each use compares one element of every gathered row that it needs, and a head that differs is a
    ValueError. A change that leaves these elements alone is not noticed. On CUDA nothing is gathered, as the kernels read the head
    itself.

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
        weight: The head [V, H].
        trie: The titles, or the token sets, of the loss.
        bias: The bias [V]; None for none.
        limit: The most bytes that gathered rows take. The default is 64 MiB.

    Raises:
        ValueError: For a head that is too small for the tokens of the trie, or of a dtype that the loss does not take.
    """

    def __init__(
        self, weight: Tensor, trie: TokenTrie | TokenSets, bias: Tensor | None = None, *, limit: int = DEFAULT_LIMIT
    ) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self._trie, self._limit = trie, limit
        dtype, matrix = dtype_name("head", weight), as_matrix("head", weight)
        self.native = None if weight.is_cuda else _native.FrozenRows(dtype, raw(matrix), trie._native, limit)
        self.number = _ops.register(self)

    @property
    def gathered_sets(self) -> int:
        """The number of token sets whose rows are gathered, which is 0 on CUDA."""
        return 0 if self.native is None else self.native.gathered_sets

    def __repr__(self) -> str:
        return f"FrozenHead({list(self.weight.shape)}, {self.gathered_sets} gathered sets)"

    def __getstate__(self):
        return self.weight, self._trie, self.bias, self._limit

    def __setstate__(self, state) -> None:
        weight, trie, bias, limit = state
        self.__init__(weight, trie, bias, limit=limit)
