"""The trie over a catalogue, and token sets that come from no trie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from . import _native

# Of the numbers of tokens, and of the ids of items.
TOKEN_BITS = 32
ID_BITS = 64


def check_range(what: str, values: Sequence[int], bits: int) -> Sequence[int]:
    """Returns the values, all of which are from 0 to 2**bits - 1: another is a ValueError that says which."""
    for place, value in enumerate(values):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{what}: expected numbers from 0 to 2**{bits} - 1, found {value} at {place}")
    return values


class TokenTrie:
    """An immutable trie over the token sequences of a catalogue's items.

    Each sequence is an item's title in tokens, the end token included, so that none continues another. Items may share a
    sequence.

    >>> trie = TokenTrie.from_sequences([[1, 2, 9], [1, 3, 9]])
    >>> trie.children([1])
    [2, 3]
    >>> trie.items([1, 3, 9])
    [1]
    """

    def __init__(self, native: _native.TokenTrie) -> None:
        self._native = native

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]], ids: Iterable[int] | None = None) -> TokenTrie:
        """Builds the trie.

        Args:
            sequences: The tokens of each item, the end token included.
            ids: The id of each item, an integer from 0 to 2**64 - 1. By default items are numbered from 0.

        Raises:
            ValueError: If there is no item, a sequence is empty, a sequence continues another, a token or an id is out of range,
                or there are not as many ids.
        """
        listed = [[int(token) for token in sequence] for sequence in sequences]
        numbers = None if ids is None else [int(number) for number in ids]
        try:
            return cls(_native.TokenTrie(listed, numbers))
        except OverflowError:
            for number, sequence in enumerate(listed):
                check_range(f"sequence {number}", sequence, TOKEN_BITS)
            check_range("ids", numbers or (), ID_BITS)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenTrie:
        """Reads a trie that `save`, or `msl`, wrote. A damaged file is a ValueError that says what is wrong with it."""
        return cls(_native.TokenTrie.load(os.fspath(path)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trie to one safetensors file, atomically."""
        self._native.save(os.fspath(path))

    def children(self, prefix: Sequence[int]) -> list[int]:
        """Returns the tokens that may follow a prefix, in rising order: none behind a whole item or where no item begins so."""
        return self._native.children(list(prefix)) or []

    def items(self, sequence: Sequence[int]) -> list[int]:
        """Returns the ids of the items that a whole sequence spells."""
        return self._native.items(list(sequence))

    @property
    def item_count(self) -> int:
        """The number of items."""
        return self._native.item_count

    @property
    def leaf_count(self) -> int:
        """The number of different sequences."""
        return self._native.leaf_count

    @property
    def node_count(self) -> int:
        """The number of prefixes, the empty one and whole sequences included."""
        return self._native.node_count

    @property
    def branching_count(self) -> int:
        """The number of prefixes that more than one token may follow."""
        return self._native.branching_count

    @property
    def max_token(self) -> int:
        """The largest token of any sequence."""
        return self._native.max_token

    def __len__(self) -> int:
        return self.item_count

    def __repr__(self) -> str:
        return f"TokenTrie({self.item_count} items, {self.node_count} nodes)"

    def __reduce__(self):
        return _from_bytes, (self._native.to_bytes(),)


class TokenSets:
    """Sets of tokens, numbered from 0, for masks that come from no trie: grammars, candidates of a user, slates.

    A loss over them takes the number of the set of each label.

    >>> len(TokenSets([[1, 2], [7]]))
    2
    """

    def __init__(self, sets: Iterable[Iterable[int]]) -> None:
        """Makes sets of their tokens, in any order.

        Raises:
            ValueError: If a set has a token twice, or one that is out of range.
        """
        offsets, tokens = [0], []
        for number, listed in enumerate(sets):
            tokens += check_range(f"set {number}", sorted(int(token) for token in listed), TOKEN_BITS)
            offsets.append(len(tokens))
        self._parts = offsets, tokens
        self._native = _native.TokenSets(offsets, tokens)

    @property
    def max_token(self) -> int:
        """The largest token of any set."""
        return self._native.max_token

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        return f"TokenSets({len(self)} sets)"

    def __getstate__(self):
        return self._parts

    def __setstate__(self, parts) -> None:
        self._parts, self._native = parts, _native.TokenSets(*parts)


def _from_bytes(content: bytes) -> TokenTrie:
    return TokenTrie(_native.TokenTrie.from_bytes(content))
