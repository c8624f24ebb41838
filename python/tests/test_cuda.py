"""CUDA tensors. With a GPU: what they give is what the CPU gives. Without one: what can be known without it."""

import contextlib
import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from candle_trie import AdaptiveTemperature, Bear, FrozenHead, MaskedSoftmaxLoss, TrieLogitsProcessor, _native, _ops

from conftest import END, VOCABULARY

HAS_KERNELS = hasattr(_native, "CudaDense")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
DTYPES = [(torch.float32, 3e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
ADAPTIVE = AdaptiveTemperature(scope="branching", alpha=0.5, minimum=0.1)
OPTIONS = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "times_temperature": True},
    {"bear": Bear(beams=2, weight=1.5, xi=0.5)},
    {"temperature": ADAPTIVE},
    {"temperature": ADAPTIVE, "reduction": "none"},
    {"temperature": AdaptiveTemperature(alpha=0.5, minimum=0.1), "bear": Bear(beams=3)},
]


def run(call, tensors, labels, device, upstream=None):
    """Returns the loss and the gradients of tensors that were moved to a device, on the CPU."""
    tensors = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    value = call(*tensors, labels.to(device))
    assert value.device.type == torch.device(device).type
    upstream = torch.ones_like(value) if upstream is None else upstream.to(device)
    gradients = torch.autograd.grad(value, tensors, upstream)
    return [tensor.cpu() for tensor in (value, *gradients)]


def assert_same(found, expected, tolerance, what=""):
    assert len(found) == len(expected)
    for index, (one, other) in enumerate(zip(found, expected)):
        assert one.dtype == other.dtype and one.shape == other.shape, what
        largest = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * largest, msg=lambda m: f"{what} {index}: {m}")


class TestWithoutAGpu:
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_the_message_says_what_is_missing(self):
        with pytest.raises(RuntimeError) as error:
            _native.CudaStream(0, 0, lambda kept, size: 0)
        missing = ["driver", "device 0"] if HAS_KERNELS else ["no kernels for CUDA tensors"]
        assert any(part in str(error.value) for part in missing)

    def test_compilers_see_tensors_of_the_device_and_a_handle_on_the_host(self, trie):
        loss, each = MaskedSoftmaxLoss(trie), MaskedSoftmaxLoss(trie, reduction="none")
        with FakeTensorMode():
            logits = torch.empty(2, 8, VOCABULARY, dtype=torch.bfloat16, device="cuda")
            labels = torch.empty(2, 8, dtype=torch.int64, device="cuda")
            value, handle = _ops.dense(logits, labels, None, loss._number, True, True)
            assert (value.device.type, value.dtype, value.shape) == ("cuda", torch.float32, ())
            assert handle.device.type == "cpu"
            assert _ops.dense(logits, labels, None, each._number, True, True)[0].shape == labels.shape
            gradient = _ops.dense_backward(value, logits, handle)
            assert (gradient.device, gradient.dtype, gradient.shape) == (logits.device, logits.dtype, logits.shape)

    def test_kernels_are_registered_for_cuda(self):
        for name in ("dense", "dense_backward", "linear", "linear_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"candle_trie::{name}", "CUDA")

    @pytest.mark.parametrize("normalise", ["vocabulary", "trie"])
    @pytest.mark.parametrize("dtype", [torch.float64, *(dtype for dtype, _ in DTYPES)])
    def test_scores_that_stay_on_a_device_are_masked_as_those_of_the_host(self, trie, sequences, dtype, normalise):
        ids = torch.tensor([[7, *sequences[5][:2]], [7, *sequences[9][:2]], [7, 11, 11]])
        scores = torch.randn(3, VOCABULARY).to(dtype)
        masked = TrieLogitsProcessor(trie, 1, END, normalise=normalise, temperature=2.0)
        expected = masked(ids, scores)
        found = masked._mask_on_device(ids, scores)
        assert found.dtype == dtype and (found.isfinite() == expected.isfinite()).all()
        torch.testing.assert_close(found, expected)

    @pytest.mark.skipif(not HAS_KERNELS, reason="this build has no kernels for CUDA tensors")
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
    @pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler on Linux")
    def test_what_the_driver_is_asked_for(self, tmp_path):
        stub, launches = Path(__file__).parent / "stub", tmp_path / "launches"
        library = tmp_path / "libcuda.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, stub / "libcuda.c"], check=True)
        environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "LAUNCHES": str(launches)}
        subprocess.run([sys.executable, stub / "passes.py"], check=True, env=environment)
        issued = [line.split() for line in launches.read_text().splitlines()]
        for kind, name, *_ in issued:
            assert kind == ("cooperative" if name.startswith(("dense_adaptive", "linear_forward")) else "plain"), name
        assert {stream for *_, stream in issued} == {"77"}
        each = ["dense_adaptive", "dense_backward"]
        each += ["linear_forward", "linear_backward", "linear_forward", "linear_head_gradient"]
        each += ["linear_forward", "linear_backward", "linear_head_gradient", "linear_forward"]
        names = [name for _, name, *_ in issued]
        assert names == [f"{name}_{dtype}" for dtype in ("f32", "f16", "bf16") for name in each]


@gpu
class TestOnAGpu:
    @pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
    @pytest.mark.parametrize("options", OPTIONS)
    def test_loss_gradients_and_temperature_are_those_of_the_cpu(
        self, trie, logits, hidden, weight, labels, options, dtype, tolerance
    ):
        bias = torch.linspace(-1, 1, VOCABULARY)
        for catalogue in (trie, VOCABULARY):
            if catalogue == VOCABULARY and "temperature" in options:
                continue
            on_cpu, on_gpu = MaskedSoftmaxLoss(catalogue, **options), MaskedSoftmaxLoss(catalogue, **options)
            upstream = torch.linspace(0.5, 2, 16).reshape(2, 8) if options.get("reduction") == "none" else torch.tensor(0.75)
            for step in range(3):
                for call, tensors in [
                    (lambda loss: loss, [logits]),
                    (lambda loss: lambda h, w, l: loss.forward_linear(h, w, l), [hidden, weight]),
                    (lambda loss: lambda h, w, b, l: loss.forward_linear(h, w, l, b), [hidden, weight, bias]),
                ]:
                    tensors = [tensor.to(dtype) for tensor in tensors]
                    expected = run(call(on_cpu), tensors, labels, "cpu", upstream)
                    found = run(call(on_gpu), tensors, labels, "cuda", upstream)
                    assert_same(found, expected, tolerance, f"step {step}")
            assert on_gpu.get_extra_state()["step"] == on_cpu.get_extra_state()["step"]
            assert on_gpu.temperature == pytest.approx(on_cpu.temperature, rel=1e-4)

    def test_a_frozen_head_gives_what_its_weight_gives_and_notices_writes(self, trie, hidden, weight, labels):
        loss, hidden, weight = MaskedSoftmaxLoss(trie), hidden.float().cuda().requires_grad_(), weight.float().cuda()
        head = FrozenHead(weight, trie)
        assert head.gathered_sets == 0
        values = [loss.forward_linear(hidden, of, labels) for of in (weight, head)]
        gradients = [torch.autograd.grad(value, hidden)[0] for value in values]
        torch.testing.assert_close(*values, rtol=0, atol=0)
        torch.testing.assert_close(*gradients, rtol=0, atol=0)
        weight.mul_(2.0)
        with pytest.raises(ValueError, match="make the FrozenHead anew"):
            loss.forward_linear(hidden, head, labels)

    @pytest.mark.parametrize("wanted", range(1, 8))
    def test_only_the_gradients_that_are_wanted_are_computed(self, trie, hidden, weight, labels, wanted):
        given = [hidden.float().cuda(), weight.float().cuda(), torch.zeros(VOCABULARY, device="cuda")]
        full = [tensor.detach().clone().requires_grad_() for tensor in given]
        MaskedSoftmaxLoss(trie).forward_linear(full[0], full[1], labels, full[2]).backward()
        for index, tensor in enumerate(given):
            tensor.requires_grad_(bool(wanted >> index & 1))
        MaskedSoftmaxLoss(trie).forward_linear(given[0], given[1], labels, given[2]).backward()
        for index, (tensor, reference) in enumerate(zip(given, full)):
            if wanted >> index & 1:
                torch.testing.assert_close(tensor.grad, reference.grad)
            else:
                assert tensor.grad is None

    def test_gradients_are_those_of_finite_differences(self, trie, logits, labels):
        loss = MaskedSoftmaxLoss(trie, 0.7, reduction="sum")
        given = logits.float().cuda().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(given, labels), given)
        torch.manual_seed(0)
        direction = torch.randn_like(given)
        up, down = (loss(given.detach() + sign * 0.05 * direction, labels).item() for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx((up - down) / 0.1, rel=1e-2)

    def test_streams_are_kept(self, trie, logits, labels):
        expected, loss = MaskedSoftmaxLoss(trie, ADAPTIVE), MaskedSoftmaxLoss(trie, ADAPTIVE)
        logits = logits.float()
        for step in range(4):
            stream = torch.cuda.Stream() if step % 2 else contextlib.nullcontext()
            with torch.cuda.stream(stream) if step % 2 else stream:
                late = torch.full_like(logits, torch.nan, device="cuda")
                torch.cuda._sleep(50_000_000)
                late.copy_(logits * (step + 1))
                late.requires_grad_()
                value = loss(late, labels)
                (gradient,) = torch.autograd.grad(value, late)
                found = [value.detach().cpu(), gradient.cpu()]
            assert_same(found, run(expected, [logits * (step + 1)], labels, "cpu"), 1e-5)
        assert loss.temperature == pytest.approx(expected.temperature, rel=1e-5)

    def test_the_temperature_goes_on_between_devices_and_in_copies(self, trie, logits, labels):
        expected, loss = MaskedSoftmaxLoss(trie, ADAPTIVE), MaskedSoftmaxLoss(trie, ADAPTIVE)
        logits = logits.float()
        for device in ("cuda", "cuda", "cpu", "cuda", "cpu"):
            expected(logits, labels)
            loss(logits.to(device), labels)
        for other in (loss, copy.deepcopy(loss), MaskedSoftmaxLoss(trie, ADAPTIVE)):
            other.load_state_dict(loss.state_dict())
            assert other.temperature == pytest.approx(expected.temperature, rel=1e-5)
            assert other.get_extra_state()["step"] == 5

    def test_autocast_casts_as_linear_does(self, trie, hidden, weight, labels):
        hidden, weight = hidden.float().cuda().requires_grad_(), weight.float().cuda().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            value = MaskedSoftmaxLoss(trie).forward_linear(hidden, weight, labels)
        value.backward()
        rounded = MaskedSoftmaxLoss(trie).forward_linear(hidden.bfloat16(), weight.bfloat16(), labels)
        torch.testing.assert_close(value, rounded, rtol=0, atol=0)
        assert hidden.grad.dtype == weight.grad.dtype == torch.float32

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_it_compiles_into_one_graph(self, trie, hidden, weight, labels, backend):
        loss = MaskedSoftmaxLoss(trie)
        labels = labels.cuda()

        def step(hidden, weight):
            return loss.forward_linear(hidden * 2, weight, labels) + loss(hidden @ weight.T, labels)

        hidden, weight = hidden.float().cuda().requires_grad_(), weight.float().cuda()
        expected = step(hidden, weight)
        found = torch.compile(step, fullgraph=True, backend=backend)(hidden, weight)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, hidden), torch.autograd.grad(expected, hidden))

    def test_inputs_may_move_between_the_passes(self, trie, hidden, weight, labels):
        for catalogue in (trie, VOCABULARY):
            loss = MaskedSoftmaxLoss(catalogue)
            tensors = [hidden.float(), weight.float()]
            expected = run(lambda h, w, l: loss.forward_linear(h, w, l) + loss(h @ w.T, l), tensors, labels, "cuda")
            with torch.autograd.graph.save_on_cpu():
                found = run(lambda h, w, l: loss.forward_linear(h, w, l) + loss(h @ w.T, l), tensors, labels, "cuda")
            assert_same(found, expected, 0)

    def test_any_strides_and_empty_batches_are_taken(self, trie, logits, labels):
        logits = logits.float().cuda()
        expected = MaskedSoftmaxLoss(trie)(logits, labels)
        wide = torch.cat([logits, logits], -1)[..., :VOCABULARY]
        for view in (wide, logits.transpose(0, 2).contiguous().transpose(0, 2)):
            view = view.detach().requires_grad_()
            value = MaskedSoftmaxLoss(trie)(view, labels.cuda())
            torch.testing.assert_close(value, expected, rtol=0, atol=0)
            value.backward()
        for reduction in ("mean", "none"):
            for shape in [(0, 8), (2, 0), (2, 8)]:
                logits = torch.zeros(*shape, VOCABULARY, device="cuda", requires_grad=True)
                value = MaskedSoftmaxLoss(trie, reduction=reduction)(logits, torch.full(shape, -100))
                value.sum().backward()
                assert (value == 0).all() and (logits.grad == 0).all()

    def test_steps_leave_nothing_behind(self, trie, labels):
        loss = MaskedSoftmaxLoss(trie, ADAPTIVE)
        logits = torch.zeros(2, 8, VOCABULARY, device="cuda", requires_grad=True)
        for step in range(1_000):
            value = loss(logits, labels)
            if step % 3:
                value.backward()
            del value
            if step == 100:
                before = torch.cuda.memory_allocated()
        assert torch.cuda.memory_allocated() <= before + 4096

    def test_statistics_are_merged_over_processes(self, trie, logits, labels, tmp_path):
        if not torch.distributed.is_nccl_available():
            pytest.skip("PyTorch has no NCCL")
        expected, loss = MaskedSoftmaxLoss(trie, ADAPTIVE), MaskedSoftmaxLoss(trie, ADAPTIVE)
        torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            for _ in range(2):
                loss(logits.float().cuda(), labels)
        finally:
            torch.distributed.destroy_process_group()
        for _ in range(2):
            expected(logits.float(), labels)
        assert loss.temperature == pytest.approx(expected.temperature, rel=1e-5)

    @pytest.mark.parametrize("normalise", ["vocabulary", "trie"])
    def test_scores_are_masked_as_on_the_cpu(self, trie, sequences, normalise):
        ids, scores = torch.tensor([[7, *sequences[5][:2]], [7, 11, 11]]), torch.randn(2, VOCABULARY)
        masked = TrieLogitsProcessor(trie, 1, END, normalise=normalise, temperature=2.0)
        torch.testing.assert_close(masked(ids.cuda(), scores.cuda()).cpu(), masked(ids, scores))

    def test_what_does_not_fit_is_a_value_error(self, trie, hidden, weight, logits, labels):
        loss = MaskedSoftmaxLoss(trie)
        for call, part in [
            (lambda: loss(logits.cuda(), labels), "float64"),
            (lambda: loss(logits.float(), labels.cuda()), "CPU"),
            (lambda: loss.forward_linear(hidden.float().cuda(), weight.float(), labels), "cuda"),
            (lambda: loss(logits.float()[..., :20].cuda(), labels), "39"),
        ]:
            with pytest.raises(ValueError, match=part):
                call()
