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


def median_seconds(run, repetitions):
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def time_pytorch(hidden, head, mask, targets, repetitions):
    """Seconds of each part, forward and backward, and the loss."""
    hidden = hidden.clone().requires_grad_()
    upstream = torch.ones(len(targets), head.shape[0])
    seconds, losses = {}, []

    def head_alone():
        hidden.grad = None
        (hidden @ head.T).backward(upstream)

    def head_and_loss():
        hidden.grad = None
        loss = published_loss(hidden @ head.T, mask, targets, TEMPERATURE)
        loss.backward()
        losses.append(loss.item())

    seconds["pytorch_head"] = median_seconds(head_alone, repetitions)
    del upstream
    seconds["pytorch"] = median_seconds(head_and_loss, repetitions)
    logits = (hidden @ head.T).detach().requires_grad_()

    def loss_alone():
        logits.grad = None
        published_loss(logits, mask, targets, TEMPERATURE).backward()

    seconds["pytorch_given_logits"] = median_seconds(loss_alone, repetitions)
    return seconds, losses[-1]


def time_ours(executable, inputs):
    output = subprocess.run(
        [executable, SHAPE, inputs], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def compare(model, executable, repetitions):
    width, vocabulary = MODELS[model]
    mask, targets = batch(SHAPE, vocabulary)
    torch.manual_seed(0)
    hidden = torch.randn(len(targets), width)
    head = torch.randn(vocabulary, width) * (2 / width**0.5)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        save_file({"hidden": hidden, "head": head}, inputs)
        ours = time_ours(executable, inputs)
    seconds, loss = time_pytorch(hidden, head, mask, targets, repetitions)
    seconds |= ours["seconds"]
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
        "relative_loss_difference": abs(ours["loss"] - loss) / abs(loss),
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
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    result = compare(arguments.model, arguments.ours, arguments.repetitions)
    print_table(result)
    if arguments.json:
        print(json.dumps(result))
    if result["relative_loss_difference"] > 1e-4:
        sys.exit("the two losses do not agree")


if __name__ == "__main__":
    main()
