"""Decoding over a trie: for `generate` of transformers, and searches over any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import _native
from ._memory import as_matrix, dtype_name, raw, raw_vector, readable
from .trie import ID_BITS, TokenTrie, check_range


class TrieLogitsProcessor:
    """Masks the scores of all tokens that do not continue an item, for `generate(logits_processor=[...])` of transformers.

    One pass over the scores of all beams takes the place of lists of allowed tokens. For tensors on a CUDA device the tokens are
    copied to the host, which waits for the stream, and the numbers of the allowed tokens back; scores stay on the device.

    Args:
        trie: The items.
        prompt_length: The number of tokens before those of the item: `input_ids.shape[1]` of a decoder-only model, 1 for the decoder of
            an encoder-decoder model, and 0 where `generate` is given `inputs_embeds`.
        end_token: The token that is allowed behind a whole item, as `generate` goes on until all beams have ended.
        normalise: "vocabulary" leaves the scores of allowed tokens as they are. "trie" makes them log-probabilities over
            the allowed tokens, which are probabilities of items.
        temperature: The temperature of those log-probabilities: that of training.
    """

    def __init__(
        self,
        trie: TokenTrie,
        prompt_length: int,
        end_token: int,
        *,
        normalise: Literal["vocabulary", "trie"] = "vocabulary",
        temperature: float = 1.0,
    ) -> None:
        if normalise not in ("vocabulary", "trie"):
            raise ValueError(f'normalise: expected "vocabulary" or "trie", found {normalise!r}')
        if not temperature > 0.0:
            raise ValueError(f"temperature: expected a positive number, found {temperature}")
        _check_token("prompt_length", prompt_length)
        _check_token("end_token", end_token)
        self.trie, self.prompt_length, self.end_token = trie, prompt_length, end_token
        self.temperature = temperature if normalise == "trie" else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores `[R, V]` for tokens `[R, T]`, in which only tokens that continue an item are finite."""
        if scores.dim() != 2 or input_ids.dim() != 2 or len(scores) != len(input_ids):
            found = f"{list(scores.shape)} and {list(input_ids.shape)}"
            raise ValueError(f"scores, input_ids: expected the shapes [R, V] and [R, T], found {found}")
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"input_ids: expected int64 or int32, found {input_ids.dtype}")
        name = dtype_name("scores", scores)
        matrix, ids = as_matrix("scores", scores), as_matrix("input_ids", readable("input_ids", input_ids).to("cpu", torch.int64))
        if scores.is_cuda:
            return self._mask_on_device(ids, matrix)
        masked = torch.full_like(matrix, -torch.inf, memory_format=torch.contiguous_format)
        _native.mask_scores(
            self.trie._native,
            raw(ids),
            self.prompt_length,
            name,
            raw(matrix),
            self.end_token,
            self.temperature,
            raw_vector(masked),
        )
        return masked

    def _mask_on_device(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Masks scores by operations of PyTorch, which leave them where they are."""
        allowed = _native.allowed_tokens(
            self.trie._native, raw(ids), self.prompt_length, scores.shape[1], self.end_token
        )
        rows, tokens = torch.frombuffer(bytearray(allowed), dtype=torch.int64).reshape(2, -1).to(scores.device)
        kept = scores[rows, tokens]
        if self.temperature is None:
            return torch.full_like(scores, -torch.inf).index_put((rows, tokens), kept)
        scaled = scores.new_full(scores.shape, -torch.inf, dtype=torch.float64)
        scaled[rows, tokens] = kept.double() / self.temperature
        # The sum of a row all of whose allowed tokens are masked already is that of nothing.
        sums = torch.logsumexp(scaled, 1, keepdim=True).clamp(min=torch.finfo(torch.float64).min)
        return (scaled - sums).to(scores.dtype)


def prefix_allowed_tokens_fn(trie: TokenTrie, prompt_length: int, end_token: int) -> Callable[[int, Tensor], list[int]]:
    """Returns the function that `generate(prefix_allowed_tokens_fn=...)` of transformers takes.

    `TrieLogitsProcessor` does the same in one pass over all beams.
    """

    _check_token("prompt_length", prompt_length)
    _check_token("end_token", end_token)

    def allowed(batch_id: int, input_ids: Tensor) -> list[int]:
        if len(input_ids) < prompt_length:
            raise ValueError(f"prompt_length: expected at most the {len(input_ids)} tokens of input_ids, found {prompt_length}")
        return trie.children(input_ids[prompt_length:].tolist()) or [end_token]

    return allowed


def _check_token(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}: expected an integer of 0 or more, found {value!r}")


@dataclass(frozen=True)
class Found:
    """A result of a search."""

    items: list[int]
    """The ids of the items that the path spells: several where items share it."""
    log_probability: float
    """The natural logarithm of the path's probability."""
    score: float
    """What results are ranked by: the log-probability after the length penalty, if there is one."""


class BeamSearch:
    """A beam search for many users at once, over any model.

    Each `step` takes the logits of the active beams, at first one for each user, behind its prompt and `common_prefix`, and
    returns which beams go on, and with which tokens. A beam from which only one item can be reached takes no more steps.

    Args:
        trie: The items.
        users: The number of users.
        width: The number of beams of each user.
        temperature: The temperature of training.
        normalise: Whether probabilities are normalised over the tokens that continue an item ("trie"), or over the whole
            vocabulary and masked afterwards, as `generate` does ("vocabulary").
        length_penalty: The exponent of a path's length that scores are divided by.
        exclude: For each user the ids of items that are not recommended.
    """

    def __init__(
        self,
        trie: TokenTrie,
        users: int,
        width: int,
        temperature: float = 1.0,
        *,
        normalise: Literal["trie", "vocabulary"] = "trie",
        length_penalty: float = 0.0,
        exclude: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if normalise not in ("vocabulary", "trie"):
            raise ValueError(f'normalise: expected "trie" or "vocabulary", found {normalise!r}')
        excluded = None if exclude is None else [check_range("exclude", list(items), ID_BITS) for items in exclude]
        over_vocabulary = normalise == "vocabulary"
        self._native = _native.BeamSearch(
            trie._native, users, width, float(temperature), over_vocabulary, length_penalty, excluded
        )

    @property
    def common_prefix(self) -> list[int]:
        """The tokens that all items begin with, which the model reads behind each prompt."""
        return self._native.common_prefix

    @property
    def beam_users(self) -> list[int]:
        """The user of each active beam."""
        return self._native.beam_users

    def step(self, logits: Tensor) -> tuple[list[int], list[list[int]]] | None:
        """Takes logits `[active beams, V]`.

        Returns for each beam that goes on the row of these logits that it continues, and the tokens that it continues it
        with: one or more. Returns None when the search has ended.
        """
        host = as_matrix("logits", logits.detach().cpu())
        return self._native.step(dtype_name("logits", host), raw(host))

    def results(self, user: int) -> list[Found]:
        """Returns the results for a user, best first."""
        return [Found(*found) for found in self._native.results(user)]


def exact_top_k(
    trie: TokenTrie, k: int, model: Callable[[list[list[int]]], Tensor], temperature: float = 1.0
) -> list[Found]:
    """Returns the k most probable paths, best first, by best-first search, which proves that there are no better ones.

    Args:
        trie: The items.
        k: The number of results.
        model: Returns the logits `[prefixes, V]` behind prefixes of an item, each a list of tokens.
        temperature: The temperature of training.
    """
    kept: list[Tensor] = []

    def call(prefixes: list[list[int]]):
        host = as_matrix("logits", model(prefixes).detach().cpu())
        kept[:] = [host]
        return dtype_name("logits", host), raw(host)

    return [Found(*found) for found in _native.exact_top_k(trie._native, k, float(temperature), call)]
