"""Times `generate` of transformers with TrieLogitsProcessor beside prefix_allowed_tokens_fn, on the titles of a real catalogue.

    python python/benchmark_generate.py [DATA] [--users 8] [--beams 10 50]

DATA is a folder with the paper's files (default: shared/data/Amazon_Books beside the clone). The model is SmolLM2-135M
(scripts/get-smollm2), untuned. The peer is what published code does: the titles in nested dictionaries, in which each beam's
tokens are looked up from the root at every step. All ways must find the same sequences. The masks are timed by themselves too.
"""

import argparse
import ast
import csv
import json
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrefixConstrainedLogitsProcessor
from transformers.utils import logging

from candle_trie import TokenTrie, TrieLogitsProcessor, prefix_allowed_tokens_fn

ROOT = Path(__file__).resolve().parent.parent
MODEL = {"pretrained_model_name_or_path": ROOT / "data/smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def dictionaries(paths, end):
    """prefix_allowed_tokens_fn over nested dictionaries."""
    root = {}
    for path in paths:
        node = root
        for token in path:
            node = node.setdefault(token, {})

    def of_prompt(length):
        def allowed(_, tokens):
            node = root
            for token in tokens[length:].tolist():
                node = node.get(token, {})
            return list(node) or [end]

        return allowed

    return of_prompt


class Timed:
    """A logits processor that adds up its time."""

    def __init__(self, processor):
        self.processor, self.seconds, self.calls = processor, 0.0, 0

    def __call__(self, tokens, scores):
        start = time.perf_counter()
        masked = self.processor(tokens, scores)
        self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1
        return masked


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=ROOT / "../shared/data/Amazon_Books")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50])
    options = parser.parse_args()
    logging.set_verbosity_error()
    tokenizer, model = AutoTokenizer.from_pretrained(**MODEL), AutoModelForCausalLM.from_pretrained(**MODEL, dtype=torch.float32)
    end = tokenizer.eos_token_id
    names = json.loads((options.data / "id2name4Rec.json").read_text())
    titles = {int(item): name for item, name in names.items() if name and name.strip()}
    paths = [ids + [end] for ids in tokenizer([f' "{title}"' for title in titles.values()])["input_ids"]]
    trie, peer = TokenTrie.from_sequences(paths, ids=titles), dictionaries(paths, end)
    with (options.data / "test.csv").open() as rows:
        histories = [ast.literal_eval(row["item_ids"])[:-1] for row in csv.DictReader(rows)][: options.users]
    prompts = [
        tokenizer("Books: " + ", ".join(f'"{titles[item]}"' for item in history if item in titles) + ".", return_tensors="pt")
        for history in histories
    ]
    of_function = PrefixConstrainedLogitsProcessor
    ways = {
        "nested dictionaries": lambda length, beams: of_function(peer(length), beams),
        "prefix_allowed_tokens_fn": lambda length, beams: of_function(prefix_allowed_tokens_fn(trie, length, end), beams),
        "TrieLogitsProcessor": lambda length, _: TrieLogitsProcessor(trie, length, end),
    }
    print("| | beams | users/s | ratio | mask, ms a step | ratio |\n|---|---:|---:|---:|---:|---:|")
    for beams in options.beams:
        found, first = {}, None
        for name, way in ways.items():
            start = time.perf_counter()
            masks = [Timed(way(prompt["input_ids"].shape[1], beams)) for prompt in prompts]
            found[name] = [
                model.generate(
                    **prompt,
                    num_beams=beams,
                    num_return_sequences=beams,
                    do_sample=False,
                    max_new_tokens=64,
                    pad_token_id=end,
                    logits_processor=[mask],
                ).tolist()
                for prompt, mask in zip(prompts, masks)
            ]
            speed = len(prompts) / (time.perf_counter() - start)
            mask = 1000 * sum(mask.seconds for mask in masks) / sum(mask.calls for mask in masks)
            first = first or (speed, mask)
            assert found[name] == found["nested dictionaries"], name
            print(f"| {name} | {beams} | {speed:.3f} | {speed / first[0]:.2f} | {mask:.2f} | {first[1] / mask:.1f} |")


if __name__ == "__main__":
    main()
