"""Times the published loss on a GPU, on the shapes of benches/kernels: see gpu-check-run beside this file.

usage: time_published_loss.py BATCH.safetensors
"""

import statistics
import sys

import torch
from published_loss import batch, published_loss

VOCABULARY = 49_152
TEMPERATURE = 1.5
SAMPLES = 30


def plain_loss(logits, _mask, targets, temperature):
    return torch.nn.functional.cross_entropy(logits / temperature, targets)


def median_microseconds(run, copies):
    """The device's time of a run, by events: the median over samples of one run a copy."""
    samples = []
    for sample in range(SAMPLES + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for copy in copies:
            run(copy)
        end.record()
        torch.cuda.synchronize()
        if sample >= 3:  # the first compile and settle clocks
            samples.append(1e3 * start.elapsed_time(end) / len(copies))
    return statistics.median(samples)


def ways(loss, mask, targets):
    """From logits to the loss, and to the loss and the gradient."""

    def forward(logits):
        with torch.no_grad():
            loss(logits, mask, targets, TEMPERATURE)

    def forward_and_backward(logits):
        logits.grad = None
        loss(logits, mask, targets, TEMPERATURE).backward()

    return [("loss", forward), ("loss and gradient", forward_and_backward)]


def main():
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    mask, targets = batch(sys.argv[1], VOCABULARY)
    mask, targets = mask.cuda(), targets.cuda()
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    print(f"| {'PyTorch':<46} | {'µs':>9} |\n|{'':-<48}|{':':->11}|")
    for name, loss in [("MSL", published_loss), ("LML", plain_loss)]:
        for dtype in [torch.bfloat16, torch.float16, torch.float32]:
            # A copy of the logits is larger than the L2 of any card, so two take turns.
            shape = (len(targets), VOCABULARY)
            copies = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for _ in range(2)]
            for way, function in [("eager", loss), ("torch.compile", torch.compile(loss))]:
                for what, run in ways(function, mask, targets):
                    label = f"{name} {str(dtype).removeprefix('torch.')}, {what}, {way}"
                    print(f"| {label:<46} | {median_microseconds(run, copies):>9.2f} |", flush=True)
            del copies


if __name__ == "__main__":
    main()
