"""The published loss in PyTorch against ours: see compare-with-pytorch beside this file."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from published_loss import batch, published_loss
from safetensors.torch import save_file

SHAPE = Path(__file__).parent.parent / "benches/shapes/books.safetensors"
MODELS = {
    "SmolLM2-135M": (576, 49_152),
    "Qwen2.5-0.5B": (896, 151_936),
    "Llama-3.2-1B": (2048, 128_256),
}
TEMPERATURE = 1.0


class Ours:
    """benches/pytorch.rs, running and waiting to be asked."""

    def __init__(self, executable, inputs):
        self.process = subprocess.Popen(
            [executable, SHAPE, inputs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loss = float(self.process.stdout.readline())

    def seconds(self, way):
        print(way, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.communicate()


class PyTorch:
    """The published arithmetic on the same inputs, forward and backward."""

    def __init__(self, hidden, head, mask, targets):
        self.hidden = hidden.clone().requires_grad_()
        self.head, self.mask, self.targets = head, mask, targets
        self.loss = None

    def seconds(self, way):
        run = getattr(self, way)
        arguments = self.prepare(way)
        start = time.perf_counter()
        run(*arguments)
        return time.perf_counter() - start

    def prepare(self, way):
        """What a way is given, made outside its time."""
        self.hidden.grad = None
        if way == "head_alone":
            return [torch.ones(len(self.targets), self.head.shape[0])]
        if way == "loss_alone":
            return [(self.hidden @ self.head.T).detach().requires_grad_()]
        return []

    def head_alone(self, upstream):
        (self.hidden @ self.head.T).backward(upstream)

    def head_and_loss(self):
        loss = published_loss(self.hidden @ self.head.T, self.mask, self.targets, TEMPERATURE)
        loss.backward()
        self.loss = loss.item()

    def loss_alone(self, logits):
        published_loss(logits, self.mask, self.targets, TEMPERATURE).backward()


# The name of a figure, and whose way it is the time of.
FIGURES = {
    "pytorch_head": (PyTorch, "head_alone"),
    "pytorch": (PyTorch, "head_and_loss"),
    "linear": (Ours, "linear"),
    "pytorch_given_logits": (PyTorch, "loss_alone"),
    "given_logits": (Ours, "given_logits"),
    "dense": (Ours, "dense"),
}


def median_seconds(ours, pytorch, rounds):
    """All in turn, so that a slower minute of the machine is everyone's."""
    sides = {Ours: ours, PyTorch: pytorch}
    # The first round warms up.
    timed = [
        {name: sides[side].seconds(way) for name, (side, way) in FIGURES.items()}
        for _ in range(1 + rounds)
    ][1:]
    return {name: statistics.median(each[name] for each in timed) for name in FIGURES}


def compare(model, executable, rounds):
    width, vocabulary = MODELS[model]
    mask, targets = batch(SHAPE, vocabulary)
    torch.manual_seed(0)
    hidden = torch.randn(len(targets), width)
    head = torch.randn(vocabulary, width) * (2 / width**0.5)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        save_file({"hidden": hidden, "head": head}, inputs)
        ours = Ours(executable, inputs)
    pytorch = PyTorch(hidden, head, mask, targets)
    seconds = median_seconds(ours, pytorch, rounds)
    ours.close()
    return {
        "model": model,
        "rows": len(targets),
        "hidden": width,
        "vocabulary": vocabulary,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": seconds,
        "ratio_linear": seconds["pytorch"] / seconds["linear"],
        "ratio_linear_to_head_alone": seconds["pytorch_head"] / seconds["linear"],
        "ratio_dense": seconds["pytorch"] / seconds["dense"],
        "ratio_given_logits": seconds["pytorch_given_logits"] / seconds["given_logits"],
        "relative_loss_difference": abs(ours.loss - pytorch.loss) / abs(pytorch.loss),
    }


def print_table(result):
    seconds = result["seconds"]
    print(
        f"{result['model']}: {result['rows']} rows, H = {result['hidden']}, "
        f"V = {result['vocabulary']}, f32, {result['threads']} threads, "
        f"PyTorch {result['torch']}; medians of forward + backward, in milliseconds\n"
    )
    print("| from | PyTorch | ours | ratio |")
    print("|---|---:|---:|---:|")
    for label, theirs, ours in [
        ("hidden states: head + published loss / linear", "pytorch", "linear"),
        ("hidden states: head alone / linear", "pytorch_head", "linear"),
        ("hidden states: head + published loss / head + dense", "pytorch", "dense"),
        ("logits: published loss / dense", "pytorch_given_logits", "given_logits"),
    ]:
        print(
            f"| {label} | {seconds[theirs] * 1e3:,.1f} | {seconds[ours] * 1e3:,.2f} "
            f"| {seconds[theirs] / seconds[ours]:,.1f} |"
        )
    print(f"\nrelative difference of the losses: {result['relative_loss_difference']:.1e}")


def main():
    parser = argparse.ArgumentParser(prog="compare-with-pytorch")
    parser.add_argument("--ours", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    parser.add_argument("--model", choices=MODELS, default="SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    result = compare(arguments.model, arguments.ours, arguments.rounds)
    print_table(result)
    if arguments.json:
        print(json.dumps(result))
    if result["relative_loss_difference"] > 1e-4:
        sys.exit("the two losses do not agree")


if __name__ == "__main__":
    main()
