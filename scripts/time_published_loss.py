"""Times the published loss on a GPU, on the shapes of benches/kernels: see gpu-check-run beside this file.

usage: time_published_loss.py FOLDER [dense] [linear]

FOLDER holds the files of benches/shapes.
"""

import statistics
import sys
from pathlib import Path

import torch
from published_loss import batch, published_loss

# Name, hidden size, vocabulary and batch, as benches/support has them.
BOOKS, BOOKS_OF_LLAMA_3 = "books.safetensors", "books-llama-3.safetensors"
SMOLLM2 = ("SmolLM2-135M", 576, 49_152, BOOKS)
LLAMA_3_8B = ("Llama-3-8B", 4096, 128_256, BOOKS_OF_LLAMA_3)
MODELS = [
    SMOLLM2,
    ("Qwen2.5-0.5B", 896, 151_936, BOOKS),
    ("Llama-3.2-1B", 2048, 128_256, BOOKS_OF_LLAMA_3),
    LLAMA_3_8B,
]
TEMPERATURE = 1.5
SAMPLES = 30


def plain_loss(logits, _mask, targets, temperature):
    return torch.nn.functional.cross_entropy(logits / temperature, targets)


def linear_loss(hidden, head, mask, targets, temperature):
    """The published loss from hidden states `[N, H]` and a head `[V, H]`."""
    return published_loss(hidden @ head.T, mask, targets, temperature)


def median_microseconds(run, copies, samples=SAMPLES):
    """The device's time of a run, by events: the median over samples of one run a copy."""
    times = []
    for sample in range(samples + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for copy in copies:
            run(copy)
        end.record()
        torch.cuda.synchronize()
        if sample >= 3:  # the first compile and settle clocks
            times.append(1e3 * start.elapsed_time(end) / len(copies))
    return statistics.median(times)


def ways(loss, mask, targets):
    """From logits to the loss, and to the loss and the gradient."""

    def forward(logits):
        with torch.no_grad():
            loss(logits, mask, targets, TEMPERATURE)

    def forward_and_backward(logits):
        logits.grad = None
        loss(logits, mask, targets, TEMPERATURE).backward()

    return [("loss", forward), ("loss and gradient", forward_and_backward)]


def name_of(dtype):
    return {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[dtype]


def print_dense(folder):
    _, _, vocabulary, books = SMOLLM2
    mask, targets = (tensor.cuda() for tensor in batch(folder / books, vocabulary))
    print(f"\n| {'PyTorch':<46} | {'µs':>9} |\n|{'':-<48}|{':':->11}|")
    for name, loss in [("MSL", published_loss), ("LML", plain_loss)]:
        for dtype in [torch.bfloat16, torch.float16, torch.float32]:
            # A copy of the logits is larger than the L2 of any card, so two take turns.
            shape = (len(targets), vocabulary)
            copies = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for _ in range(2)]
            for way, function in [("eager", loss), ("torch.compile", torch.compile(loss))]:
                for what, run in ways(function, mask, targets):
                    label = f"{name} {name_of(dtype)}, {what}, {way}"
                    print(f"| {label:<46} | {median_microseconds(run, copies):>9.2f} |", flush=True)
            del copies


def print_linear(folder):
    """Forward and backward to the hidden states, the head frozen. The logits are larger than the L2 of
    any card, so nothing of the head is left there from one run to the next."""
    print(f"\n| {'PyTorch, linear operation':<58} | {'µs':>9} | taken MB |\n|{'':-<60}|{':':->11}|{':':->10}|")
    for model in MODELS:
        for dtype in [torch.bfloat16, torch.float16, torch.float32]:
            # To compile takes longer than to run: the type that models are tuned in, at every width; the
            # others at the narrowest and the widest, as they stand.
            if dtype == torch.bfloat16:
                loss_of = {"eager": linear_loss, "torch.compile": compiled(linear_loss)}
            elif model in [SMOLLM2, LLAMA_3_8B]:
                loss_of = {"eager": linear_loss}
            else:
                continue
            for way, loss in loss_of.items():
                label = f"{model[0]} {name_of(dtype)}, forward and backward, {way}"
                print(f"| {label:<58} | {linear_figures(folder, model, dtype, loss)} |", flush=True)
                torch.cuda.empty_cache()


def compiled(function):
    """For one shape: of a second shape the compiler would make a kernel for all."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def linear_figures(folder, model, dtype, loss):
    """Microseconds and the megabytes beside hidden states, head, batch and hidden gradient at their
    highest, or why there are none."""
    _, width, vocabulary, books = model
    try:
        mask, targets = (tensor.cuda() for tensor in batch(folder / books, vocabulary))
        hidden = torch.randn(len(targets), width, device="cuda").to(dtype).requires_grad_()
        head = torch.randn(vocabulary, width, device="cuda", dtype=dtype) * (2 / width**0.5)

        def run(hidden):
            hidden.grad = None
            loss(hidden, head, mask, targets, TEMPERATURE).backward()

        microseconds = median_microseconds(run, [hidden], samples=10)
        hidden.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(hidden)
        taken = torch.cuda.max_memory_allocated() - before - hidden.grad.nbytes
    except torch.OutOfMemoryError as error:
        return f"not measured: {str(error).splitlines()[0]}"
    return f"{microseconds:>9.2f} | {taken / 1e6:>8.1f}"


def main():
    folder, *parts = sys.argv[1:] or sys.exit(__doc__)
    print_of = {"dense": print_dense, "linear": print_linear}
    if unknown := set(parts) - set(print_of):
        sys.exit(f"{__doc__}\nthere is no part {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    for part in parts or print_of:
        print_of[part](Path(folder))


if __name__ == "__main__":
    main()
