"""A small catalogue, a batch, and the definition of the loss in the plainest operations of PyTorch."""

import pytest
import torch

from candle_trie import TokenTrie

VOCABULARY, WIDTH, END = 40, 16, 39


@pytest.fixture
def sequences():
    """Thirty items: their first tokens fan out widely, and half of the rest leaves no choice."""
    return [[i % 12, 12 + i % 7, 20 + i // 3, END] for i in range(30)]


@pytest.fixture
def trie(sequences):
    return TokenTrie.from_sequences(sequences)


@pytest.fixture
def labels(sequences):
    """Two prompts of three tokens, an item each, and a position that is padding."""
    return torch.tensor([[-100] * 3 + sequences[4] + [-100], [-100] * 4 + sequences[17]])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(2, 8, VOCABULARY, generator=generator, dtype=torch.float64)


@pytest.fixture
def hidden():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 8, WIDTH, generator=generator, dtype=torch.float64)


@pytest.fixture
def weight():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)


@pytest.fixture
def definition(trie):
    """Returns the losses of all labelled positions, and how many tokens each may choose from."""

    def losses(logits, labels, temperature):
        found, choices = [], []
        for batch_row, line in enumerate(labels.tolist()):
            prefix = []
            for position, label in enumerate(line):
                if label == -100:
                    continue
                allowed = torch.tensor(trie.children(prefix))
                scores = logits[batch_row, position - 1][allowed] / temperature
                target = (allowed == label).nonzero().item()
                found.append(torch.logsumexp(scores, 0) - scores[target])
                choices.append(len(allowed))
                prefix.append(label)
        return torch.stack(found), torch.tensor(choices)

    return losses
