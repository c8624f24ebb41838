"""Times the loss and its backward pass beside the published loss in PyTorch, on the titles of a real catalogue.

    python python/benchmark.py [DATA]

DATA is a folder with the paper's files (default: shared/data/Amazon_Books beside the clone). The tokenizer is that of
SmolLM2 (scripts/get-smollm2). Hidden states and head are random, in the sizes of three models, and all ways compute the
gradient of the hidden states of 128 responses. Prints the medians of several runs, made in turns, as a table. The last column is
the way with a weight once more, each time directly behind a matmul of PyTorch, which is not timed: see what OMP_WAIT_POLICY=passive
changes.
"""

import ast
import csv
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from candle_trie import FrozenHead, MaskedSoftmaxLoss, TokenTrie

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from published_loss import published_loss  # noqa: E402

MODELS = {"SmolLM2-135M": (576, 49_152), "Qwen2.5-0.5B": (896, 151_936), "Llama-3.2-1B": (2048, 128_256)}
RESPONSES = 128


def catalogue(data):
    """The trie of all titles, and the tokens of the next item of the first training rows."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    names = json.loads((data / "id2name4Rec.json").read_text())
    titles = {int(item): name for item, name in names.items() if name and name.strip()}
    encoded = tokenizer([f' "{title}"' for title in titles.values()])["input_ids"]
    tokens = {item: ids + [tokenizer.eos_token_id] for item, ids in zip(titles, encoded)}
    start = time.perf_counter()
    trie = TokenTrie.from_sequences(tokens.values(), ids=tokens.keys())
    print(f"{trie!r}, built in {time.perf_counter() - start:.3f} s")
    with next(data.glob("train*.csv")).open() as rows:
        targets = [ast.literal_eval(row["item_ids"])[-1] for row in csv.DictReader(rows)]
    return trie, [tokens[item] for item in targets if item in tokens][:RESPONSES]


def main():
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "../shared/data/Amazon_Books"
    trie, responses = catalogue(data)
    labels = torch.tensor([token for response in responses for token in response])
    # Each position predicts its label, and responses are apart: an ignored position ends each.
    lines = max(map(len, responses))
    padded = torch.tensor([response + [-100] * (lines - len(response)) for response in responses])
    loss = MaskedSoftmaxLoss(trie, labels_are_shifted=True)
    mask_rows = [trie.children(response[:length]) for response in responses for length in range(len(response))]

    print(f"{len(labels)} rows\n| | with a FrozenHead | with a weight | PyTorch and the published loss | with a weight, behind a matmul |")
    print("|---|---:|---:|---:|---:|")
    for model, (width, vocabulary) in MODELS.items():
        torch.manual_seed(0)
        hidden = torch.randn(RESPONSES, lines, width).requires_grad_()
        head = torch.randn(vocabulary, width) / width**0.5
        mask = torch.zeros(len(labels), vocabulary, dtype=torch.bool)
        for row, allowed in enumerate(mask_rows):
            mask[row, allowed] = True
        there = padded.flatten() != -100

        frozen = FrozenHead(head, trie)

        def with_head(of):
            value = loss.forward_linear(hidden, of, padded)
            return value, torch.autograd.grad(value, hidden)[0]

        def published():
            value = published_loss(hidden.flatten(0, 1)[there] @ head.T, mask, labels, 1.0)
            return value, torch.autograd.grad(value, hidden)[0]

        square = torch.randn(width, width)
        nothing, matmul = lambda: None, lambda: hidden.detach() @ square
        # What comes before each run, the run, and the runs in a turn.
        ways = {
            "a FrozenHead": (nothing, lambda: with_head(frozen), 20),
            "a weight": (nothing, lambda: with_head(head), 20),
            "PyTorch and the published loss": (nothing, published, 1),
            "a weight, behind a matmul": (matmul, lambda: with_head(head), 20),
        }
        expected_value, expected_gradient = published()
        for _, way, _ in ways.values():
            value, gradient = way()
            torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=0)
            torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-5)
        times = {name: [] for name in ways}
        for turn in range(3):
            for name, (before, way, count) in ways.items():
                for _ in range(count):
                    before()
                    start = time.perf_counter()
                    way()
                    times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(taken) * 1000 for name, taken in times.items()}
        slow = medians["PyTorch and the published loss"]
        cells = (f"{taken:,.2f} ms ({slow / taken:,.0f} ×)" for taken in medians.values())
        print(f"| {model} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
