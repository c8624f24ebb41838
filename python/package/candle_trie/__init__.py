"""Trie-masked softmax losses for tuning language models as recommenders.

A language model recommends an item by writing its title. `MaskedSoftmaxLoss` trains it with a softmax over the tokens that
continue a title, which a `TokenTrie` over the catalogue knows (MSL, arXiv 2504.04178), at a fixed or an adaptive temperature
(ATS), with or without BEAR's row weights (arXiv 2601.22925). `TrieLogitsProcessor`, `prefix_allowed_tokens_fn`, `BeamSearch`
and `exact_top_k` decode over the same trie.

>>> import torch
>>> from candle_trie import MaskedSoftmaxLoss, TokenTrie
>>> trie = TokenTrie.from_sequences([[1, 2, 9], [1, 3, 9], [4, 2, 9]])  # token 9 ends a title
>>> loss = MaskedSoftmaxLoss(trie)
>>> logits = torch.zeros(1, 5, 10, requires_grad=True)  # [B, T, V]
>>> labels = torch.tensor([[-100, -100, 1, 3, 9]])  # as transformers has them
>>> value = loss(logits, labels)
>>> value.backward()
>>> round(value.item(), 4)  # two tokens may begin a title, two may follow 1, and 9 is the only one to end it
0.4621
"""

from .frozen_head import FrozenHead
from .generation import BeamSearch, Found, TrieLogitsProcessor, exact_top_k, prefix_allowed_tokens_fn
from .loss import AdaptiveTemperature, Bear, MaskedSoftmaxLoss
from .trie import TokenSets, TokenTrie

__all__ = [
    "AdaptiveTemperature",
    "Bear",
    "BeamSearch",
    "Found",
    "FrozenHead",
    "MaskedSoftmaxLoss",
    "TokenSets",
    "TokenTrie",
    "TrieLogitsProcessor",
    "exact_top_k",
    "prefix_allowed_tokens_fn",
]
