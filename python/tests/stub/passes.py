"""Runs passes over tensors of the host as if they were on a CUDA device, with the stand-in for NVIDIA's driver."""

import contextlib
import gc
import sys
import types
import weakref

import torch

from candle_trie import AdaptiveTemperature, MaskedSoftmaxLoss, TokenTrie, _cuda, _native, _ops
from candle_trie._memory import Inputs

STREAM = 77
torch.cuda.device = lambda device: contextlib.nullcontext()
torch.cuda.current_stream = lambda device: types.SimpleNamespace(cuda_stream=STREAM)
torch.cuda.Event = lambda: types.SimpleNamespace(record=lambda: None, wait=lambda: None, synchronize=lambda: None)
torch.Tensor.record_stream = lambda tensor, stream: None
native_stream = _native.CudaStream
_native.CudaStream = lambda device, handle, allocate: native_stream(0, handle, allocate)

# Memory goes when the last reference to it does, and does not wait for the collector.
gc.disable()
memories = []
make = _cuda.Memory.__init__


def made(memory, device):
    make(memory, device)
    memories.append(weakref.ref(memory))


_cuda.Memory.__init__ = made

trie = TokenTrie.from_sequences([[i % 12, 12 + i % 7, 20 + i // 3, 39] for i in range(30)])
labels = torch.tensor([[-100, -100, 4, 16, 21, 39]])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    loss = MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="branching"))
    rows, shape = _ops.rows(loss, labels, None), labels.shape
    logits, hidden = torch.zeros(1, 6, 40, dtype=dtype), torch.zeros(1, 6, 16, dtype=dtype)
    weight, bias = torch.zeros(40, 16, dtype=dtype), torch.zeros(40, dtype=dtype)

    forward = _cuda.dense(loss, logits, rows, shape, None)
    assert forward.loss.shape == () and forward.loss.dtype == torch.float32 and len(forward.statistics) == 9
    upstream = torch.ones((), dtype=torch.float64)
    assert _cuda.dense_backward(forward, upstream, logits).shape == logits.shape

    # The step is counted, and the temperature is read from the device.
    forward.results[0] = 2.5
    assert loss.get_extra_state() == {"temperature": 2.5, "step": 1}

    inputs = Inputs(hidden, weight, bias)
    for wanted in ([True, False, False], [False, False, True], [True, True, True], [False, False, False]):
        forward = _cuda.linear(loss, inputs, rows, shape, 1.5, [wanted[0], any(wanted[1:])])
        gradients = [torch.empty_like(tensor) for tensor in (hidden, weight, bias)]
        _cuda.linear_backward(forward, upstream, inputs, gradients, wanted)
    assert loss.get_extra_state()["step"] == 1

del forward
assert memories and not any(memory() for memory in memories)

for wrong, part in [(lambda: _cuda.dense(loss, logits[..., :20], rows, shape, None), "39"),
                    (lambda: _cuda.linear(loss, Inputs(hidden, weight[:, :8], None), rows, shape, None, [True, False]), "16"),
                    (lambda: _cuda.linear(loss, Inputs(hidden, weight, bias[:5]), rows, shape, None, [True, False]), "5")]:
    try:
        wrong()
    except ValueError as error:
        assert part in str(error), error
    else:
        sys.exit(f"not refused: {part}")


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("no memory is left")


_cuda.Memory.allocate = out_of_memory
try:
    _cuda.dense(loss, logits, rows, shape, None)
except torch.OutOfMemoryError as error:
    assert "no memory is left" in str(error)
else:
    sys.exit("an exception of the allocator was lost")
try:
    native_stream(1, 0, out_of_memory)
except RuntimeError as error:
    assert "device 1" in str(error), error
else:
    sys.exit("there is no device 1")
