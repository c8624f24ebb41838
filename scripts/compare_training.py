"""Times LoRA training by msl and by PyTorch on the same batches: see compare-training beside this file."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import peft
import torch
import torch_beside_msl as beside
import transformers

LEARNING_RATE = 1e-4
ROWS, STEPS = 4, 5
WAYS = {
    "msl": "msl",
    "torch": "transformers + PEFT + the published loss",
    "torch-short": "… with the head on the responses alone (`logits_to_keep`)",
}


def peak_memory():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) << 10


def torch_side(arguments):
    """One process of its own, so that its memory is its own."""
    data = json.loads((arguments.scratch / "batches.json").read_text())
    model = beside.load_model(arguments.scratch / "model")
    adapted = peft.PeftModel.from_pretrained(model, arguments.scratch / "start", is_trainable=True)
    result = beside.train(adapted, data, "msl", 1.0, LEARNING_RATE, short=arguments.way == "torch-short")
    result["peak_memory"] = peak_memory()
    (arguments.scratch / f"{arguments.way}.json").write_text(json.dumps(result))


def measure(arguments, scratch):
    # As the binary msl sets it for itself: candle's own threads would spin beside those that work.
    environment = dict(os.environ, CANDLE_NUM_THREADS="1")
    ours = lambda *words: subprocess.run([arguments.example, *map(str, words)], check=True, env=environment)
    ours("export", arguments.gguf, scratch / "model")
    ours("batches", arguments.gguf, arguments.books, scratch / "batches.json", "--rows", ROWS, "--steps", STEPS)
    beside.with_adapter(beside.load_model(scratch / "model"), ["q_proj", "v_proj"]).save_pretrained(scratch / "start")
    paths = [scratch / name for name in ("model", "start", "batches.json", "msl")]
    options = ["--loss", "msl", "--batch-size", ROWS, "--clip", "1e9"]
    ours("train", *paths, "--learning-rate", LEARNING_RATE, "--", *options)
    results = {"msl": json.loads((scratch / "msl/steps.json").read_text())}
    for way in list(WAYS)[1:]:
        command = [sys.executable, __file__, "--way", way, "--scratch", scratch]
        subprocess.run(list(map(str, command)), check=True)
        results[way] = json.loads((scratch / f"{way}.json").read_text())
    return results


def report(results):
    largest = max(
        abs(ours / theirs - 1)
        for way in list(WAYS)[1:]
        for ours, theirs in zip(results["msl"]["losses"], results[way]["losses"], strict=True)
    )
    # The first step warms caches and allocators up.
    seconds = {way: statistics.median(result["seconds"][1:]) for way, result in results.items()}
    tokens = statistics.mean(results["torch"]["tokens"][1:])
    lines = []
    for way, name in WAYS.items():
        memory = results[way]["peak_memory"] / (1 << 20)
        lines.append(
            f"| {name} | {seconds[way]:.2f} | {tokens / seconds[way]:,.0f} | {memory:,.0f} | "
            f"{seconds[way] / seconds['msl']:.2f} × |"
        )
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, transformers, peft))
    return f"""# Speed of training

*How it was measured.* `scripts/compare-training` wrote this page on {date.today()}: edit that script and not this page. The machine has {os.cpu_count()} cores
({platform.machine()}) and {versions}.

SmolLM2-135M-Instruct is trained in f32 with LoRA (r = 8, q_proj and v_proj, no dropout) under the masked softmax loss at τ = 1, on
{STEPS} batches of {ROWS} rows of Amazon Books, with one step of AdamW each and on all cores. Seconds are the median of the last
{STEPS - 1} steps. Tokens are those of prompts and whole responses without padding, {tokens:,.0f} a step for all (msl does not feed the last tokens of a
response to the model, where the trie leaves no choice). Memory is the peak resident set of the process, with its weights and libraries.
Building PyTorch's masks is not timed. The losses differ by at most {largest:.0e}, relative to their size.

| way | s a step | tokens/s | peak MiB | time, of msl's |
| --- | ---: | ---: | ---: | ---: |
{chr(10).join(lines)}

[training-speed-notes.md](training-speed-notes.md) says what bounds these times, and how far to trust them.
"""


def main():
    parser = argparse.ArgumentParser()
    for name in ("--books", "--gguf", "--report", "--scratch"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--example")
    parser.add_argument("--way")
    arguments = parser.parse_args()
    if arguments.way:
        return torch_side(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        text = report(measure(arguments, Path(scratch)))
    arguments.report.write_text(text)
    print(text)


main()
