"""What the published loss gives in PyTorch, for the cases of the folder that CANDLE_TRIE_GOLDEN names. tests/golden has the same for Rust,
and says which cases cannot be compared."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from candle_trie import AdaptiveTemperature, Bear, MaskedSoftmaxLoss, TokenSets

FOLDER = Path(os.environ.get("CANDLE_TRIE_GOLDEN", "no folder"))
CASES = json.loads((FOLDER / "index.json").read_text())["cases"] if FOLDER.is_dir() else []
pytestmark = pytest.mark.skipif(not CASES, reason="CANDLE_TRIE_GOLDEN names no folder of golden cases")
DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


class Case:
    """The tensors of a case. Its rows stand where they are predicted, and each has a set of its own."""

    def __init__(self, index):
        safetensors = pytest.importorskip("safetensors.torch")
        self.index, self.tensors = index, safetensors.load_file(FOLDER / index["file"])
        self.labels, self.vocabulary = self.tensors["labels"], index["V"]
        starts, valid = self.tensors["valid_off"].tolist(), self.tensors["valid_idx"].tolist()
        full = self.tensors["valid_full"].tolist()
        whole = list(range(self.vocabulary))
        self.sets = [
            (whole if full[row] and label >= 0 else valid[starts[row] : starts[row + 1]])
            for row, label in enumerate(self.labels.tolist())
        ]

    def published(self, kind):
        """The loss and the gradient, and None where overflow or a label outside of its set has made them no numbers."""
        published = self.index["out"][kind]["f64"]
        inside = kind == "lml" or all(
            label < 0 or label in listed for label, listed in zip(self.labels.tolist(), self.sets)
        )
        if not inside or published["grad_has_nan"] or not math.isfinite(float(published["loss"] or "nan")):
            return None
        found = self.tensors[f"{kind}.grad.f64"]
        gradient = found if kind == "lml" else self.dense(found)
        return float(published["loss"]), gradient

    def dense(self, valid):
        """The gradient of all logits from that of the valid ones, row by row."""
        gradient = torch.zeros(len(self.labels), self.vocabulary, dtype=torch.float64)
        rows = torch.repeat_interleave(torch.arange(len(self.labels)), self.tensors["valid_off"].diff())
        gradient[rows, self.tensors["valid_idx"].long()] = valid
        return gradient

    def check(self, kind, loss, sets, numbers):
        """Compares a loss with the published one, where there is a published one."""
        published = self.published(kind)
        if published is not None:
            self.check_against(*published, loss, numbers, f"{self.index['name']}, {kind}")
        return published is not None

    def check_against(self, expected, expected_gradient, loss, numbers, what):
        """Compares logits, and hidden states with the identity as head, in both dtypes."""
        state = loss.get_extra_state()
        for dtype, tolerance in DTYPES:
            for call in (lambda z: loss(z, self.labels, sets=numbers), self.through_head(loss, numbers)):
                loss.set_extra_state(state)
                logits = self.tensors["logits"].to(dtype).requires_grad_()
                value = call(logits)
                (gradient,) = torch.autograd.grad(value, logits)
                assert abs(value.item() - expected) <= tolerance * max(1, abs(expected)), (what, dtype)
                largest = expected_gradient.abs().max()
                assert ((gradient - expected_gradient).abs() <= tolerance * largest).all(), (what, dtype)

    def through_head(self, loss, numbers):
        identity = lambda dtype: torch.eye(self.vocabulary, dtype=dtype)  # noqa: E731
        return lambda z: loss.forward_linear(z, identity(z.dtype), self.labels, sets=numbers)


def compared(kind, make):
    """Checks all cases that can be compared, of which there must be some."""
    count = 0
    for index in CASES:
        case = Case(index)
        made = make(case)
        count += made is not None and case.check(kind, *made)
    assert count > len(CASES) // 4


def test_plain_language_model_losses_are_the_published_ones():
    options = dict(labels_are_shifted=True)
    compared("lml", lambda case: (MaskedSoftmaxLoss(case.vocabulary, case.index["tau"], **options), None, None))


def test_masked_losses_at_a_fixed_temperature_are_the_published_ones():
    def make(case):
        sets = TokenSets(case.sets)
        loss = MaskedSoftmaxLoss(sets, case.index["tau"], labels_are_shifted=True)
        return loss, sets, torch.arange(len(case.labels))

    compared("msl", make)


def test_losses_and_temperatures_of_ats_are_the_published_ones():
    """Those whose statistics rows have one set, as the rows at the root of a trie have."""

    def make(case):
        first = [row for row, marked in enumerate(case.tensors["is_first"].tolist()) if marked]
        roots = [case.sets[row] for row in first if case.labels[row] >= 0]
        index = case.index
        if not roots or any(root != roots[0] for root in roots) or index["eta"] * len(roots[0]) <= 1:
            return None
        numbers = torch.arange(len(case.labels)) + 1
        numbers[first] = 0
        temperature = AdaptiveTemperature(
            eta=index["eta"], alpha=index["alpha"], initial=index["tau"], warm_up=max(index["warm_up"], 0)
        )
        sets = TokenSets([roots[0], *case.sets])
        loss = MaskedSoftmaxLoss(sets, temperature, labels_are_shifted=True)
        loss.set_extra_state({"temperature": index["prev_ada_tau"], "step": index["step"]})
        return loss, sets, numbers

    compared("ats", make)


def test_bear_gives_the_losses_and_gradients_of_an_independent_implementation():
    safetensors = pytest.importorskip("safetensors.torch")
    golden, indices = json.loads((FOLDER / "bear.json").read_text()), {index["file"]: index for index in CASES}
    for expected in golden["cases"]:
        case = Case(indices[expected["inputs"]])
        gradients = safetensors.load_file(FOLDER / expected["file"])["bear.grad"].reshape(len(golden["settings"]), -1)
        for setting, value, gradient in zip(golden["settings"], expected["loss"], gradients):
            bear = Bear(setting["beams"], setting["weight"], setting["xi"])
            loss = MaskedSoftmaxLoss(TokenSets(case.sets), setting["tau"], bear=bear, labels_are_shifted=True)
            what = f"{case.index['name']}, {bear}, temperature {setting['tau']}"
            case.check_against(value, case.dense(gradient), loss, torch.arange(len(case.labels)), what)
