"""Tensors whose memory is not what it seems: what the native part would read or write out of bounds, or not at all."""

import multiprocessing

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from candle_trie import AdaptiveTemperature, BeamSearch, FrozenHead, MaskedSoftmaxLoss, TokenTrie, TrieLogitsProcessor, exact_top_k

VOCABULARY, WIDTH = 2001, 16


@pytest.fixture
def trie():
    return TokenTrie.from_sequences([[item, VOCABULARY - 1] for item in range(VOCABULARY - 1)])


@pytest.fixture
def loss(trie):
    return MaskedSoftmaxLoss(trie)


LABELS = torch.tensor([[-100, VOCABULARY - 2, VOCABULARY - 1]])


def inputs():
    torch.manual_seed(3)
    return torch.randn(1, 3, WIDTH, requires_grad=True), torch.randn(VOCABULARY, WIDTH)


class WithoutMemory(torch.Tensor):
    """A tensor that stands for others, as DTensor does."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        unwrapped = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        result = function(*unwrapped, **(kwargs or {}))
        return cls(result) if isinstance(result, torch.Tensor) else result


@pytest.mark.parametrize("trained", [False, True])
def test_a_module_may_be_cast_between_the_passes(loss, trained):
    hidden, weight = inputs()
    linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(trained)
    with torch.no_grad():
        linear.weight.copy_(weight)
    expected = torch.autograd.grad(loss.forward_linear(hidden, weight, LABELS), hidden)[0]
    value = loss.forward_linear(hidden, linear.weight, LABELS)
    linear.double()
    assert torch.equal(torch.autograd.grad(value, hidden)[0], expected)


def test_tensors_of_another_dtype_than_in_the_forward_pass_are_refused(loss):
    hidden, weight = inputs()
    for dtype in (torch.float16, torch.float64):
        with saved_tensors_hooks(lambda saved: saved.to(dtype), lambda saved: saved):
            value = loss.forward_linear(hidden, weight, LABELS)
        with pytest.raises(ValueError, match="the forward pass"):
            value.backward()
    operation = torch.ops.candle_trie.linear
    with pytest.raises(ValueError, match="head: expected torch.float32"):
        operation(hidden, weight.double(), None, LABELS, None, loss._number, None, True, True, False)


def test_hooks_may_copy_what_is_saved(loss):
    hidden, weight = inputs()
    logits = (hidden @ weight.T).detach().requires_grad_()
    expected = torch.autograd.grad(loss.forward_linear(hidden, weight, LABELS), hidden)[0]
    of_logits = torch.autograd.grad(loss(logits, LABELS), logits)[0]
    with saved_tensors_hooks(torch.clone, lambda saved: saved):
        values = loss.forward_linear(hidden, weight, LABELS), loss(logits, LABELS)
    assert torch.equal(torch.autograd.grad(values[0], hidden)[0], expected)
    assert torch.equal(torch.autograd.grad(values[1], logits)[0], of_logits)


def test_tensors_without_memory_are_value_errors(trie, loss):
    hidden, weight = inputs()
    scores, ids = torch.zeros(2, VOCABULARY), torch.zeros(2, 3, dtype=torch.long)
    freed = weight.clone()
    freed.untyped_storage().resize_(0)
    shrunk = weight.clone()
    shrunk.untyped_storage().resize_(64)
    labels, of_logits = LABELS.int(), torch.zeros(1, 3, VOCABULARY)
    labels.untyped_storage().resize_(0)
    ids32 = ids.int()
    ids32.untyped_storage().resize_(0)
    for call in [
        lambda: loss(of_logits, labels),
        lambda: TrieLogitsProcessor(trie, 2, 0)(ids32, scores),
        lambda: FrozenHead(WithoutMemory(weight), trie),
        lambda: TrieLogitsProcessor(trie, 2, 0)(ids, WithoutMemory(scores)),
        lambda: FrozenHead(freed, trie),
        lambda: FrozenHead(shrunk, trie),
        lambda: loss.forward_linear(hidden, shrunk, LABELS),
        lambda: loss.forward_linear(hidden, freed, LABELS),
        lambda: FrozenHead(weight.to("meta"), trie),
        lambda: loss.forward_linear(hidden.to("meta"), weight.to("meta"), LABELS),
    ]:
        with pytest.raises(ValueError, match="has none|has been freed|found one on meta"):
            call()


def test_a_masked_copy_is_made_beside_the_scores_whatever_the_default_device(trie):
    processor = TrieLogitsProcessor(trie, 3, VOCABULARY - 1)
    ids, scores = torch.zeros(2, 3, dtype=torch.long), torch.randn(2, VOCABULARY)
    expected = processor(ids, scores)
    with torch.device("meta"):
        assert torch.equal(processor(ids, scores), expected)


def test_a_negation_that_is_put_off_is_seen(trie, loss):
    hidden, weight = inputs()
    negated = torch._neg_view(weight)
    processor, ids = TrieLogitsProcessor(trie, 3, VOCABULARY - 1), torch.zeros(2, 3, dtype=torch.long)
    scores = torch.randn(2, VOCABULARY)
    assert torch.equal(processor(ids, torch._neg_view(scores)), processor(ids, -scores))
    values = [loss.forward_linear(hidden, head, LABELS) for head in (-weight, negated, FrozenHead(negated, trie))]
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_memory_that_is_not_aligned_is_copied(trie, loss):
    hidden, weight = inputs()
    content = bytearray(1) + bytearray(weight.numpy().tobytes())
    unaligned = torch.frombuffer(content, dtype=torch.float32, offset=1).reshape(weight.shape)
    assert unaligned.data_ptr() % 4
    values = [loss.forward_linear(hidden, head, LABELS) for head in (weight, unaligned, FrozenHead(unaligned, trie))]
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])


def test_tensors_of_width_0_and_of_other_shapes_are_value_errors(trie, loss):
    hidden, weight = inputs()
    for call, part in [
        (lambda: loss.forward_linear(torch.zeros(1, 3, 0), torch.zeros(VOCABULARY, 0), LABELS), "width"),
        (lambda: FrozenHead(weight[:, :0], trie), "width"),
        (lambda: FrozenHead(weight[None], trie), "head: expected the shape"),
        (lambda: loss.forward_linear(hidden, weight[None], LABELS), "head: expected the shape"),
        (lambda: loss.forward_linear(hidden, weight, LABELS, torch.zeros(7)), "bias: expected the shape"),
        (lambda: loss.forward_linear(hidden, weight, LABELS, torch.zeros(0)), "bias: expected the shape"),
        (lambda: FrozenHead(weight, trie, torch.zeros(VOCABULARY).double()), "bias: expected torch.float32"),
        (lambda: FrozenHead(weight, trie, limit=-1), "limit"),
        (lambda: TrieLogitsProcessor(trie, 4, 0)(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, VOCABULARY)), "4"),
        (lambda: TrieLogitsProcessor(trie, 0, 0)(torch.zeros(2, 3), torch.zeros(2, VOCABULARY)), "int64 or int32"),
        (lambda: TrieLogitsProcessor(trie, 0, 0)(torch.zeros(2, 3).long(), torch.zeros(2, 1, VOCABULARY)), "shapes"),
        (lambda: TrieLogitsProcessor(trie, -1, 0), "prompt_length"),
        (lambda: TrieLogitsProcessor(trie, 0, [0]), "end_token"),
        (lambda: MaskedSoftmaxLoss(trie, ignore_index=-1)(torch.zeros(1, 3, VOCABULARY), LABELS), "-100"),
    ]:
        with pytest.raises(ValueError, match=part):
            call()


def test_settings_are_fixed_when_a_loss_is_made(loss):
    with pytest.raises(AttributeError, match="reduction is fixed"):
        loss.reduction = "none"


def test_a_frozen_head_whose_parameter_has_new_memory_is_refused(trie, loss):
    hidden, weight = inputs()
    linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    head = FrozenHead(linear.weight, trie)
    loss.forward_linear(hidden, head, LABELS)
    linear.double().float()
    with pytest.raises(ValueError, match="make the FrozenHead anew"):
        loss.forward_linear(hidden, head, LABELS)
    head = FrozenHead(linear.weight, trie)
    with torch.no_grad():
        linear.weight[5] *= 2.0
    with pytest.raises(ValueError, match="make the FrozenHead anew"):
        loss.forward_linear(hidden, head, LABELS)
    # A weight that is stored transposed is copied once.
    transposed = weight.t().contiguous().t()
    head = FrozenHead(transposed, trie)
    assert head._weight.is_contiguous()
    assert torch.equal(loss.forward_linear(hidden, head, LABELS), loss.forward_linear(hidden, weight, LABELS))


def test_autocast_leaves_float64_alone(trie, loss):
    hidden, weight = inputs()
    hidden, weight = hidden.detach().double().requires_grad_(), weight.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss.forward_linear(hidden, weight, LABELS)
        of_frozen = loss.forward_linear(hidden, FrozenHead(weight, trie), LABELS)
    assert value.dtype == torch.float64 and torch.equal(value, loss.forward_linear(hidden, weight, LABELS))
    assert torch.equal(of_frozen, value)


def _in_child(expected, results):
    hidden, weight = inputs()
    trie = TokenTrie.from_sequences([[item, VOCABULARY - 1] for item in range(VOCABULARY - 1)])
    loss = MaskedSoftmaxLoss(trie, AdaptiveTemperature())
    value = loss.forward_linear(hidden, FrozenHead(weight, trie), LABELS)
    search = BeamSearch(trie, 1, 4)
    search.step(torch.zeros(1, VOCABULARY))
    best = exact_top_k(trie, 5, lambda prefixes: torch.zeros(len(prefixes), VOCABULARY))
    results.put(value.item() == expected and len(best) == 5)


def test_a_process_that_was_forked_has_threads_of_its_own(trie):
    hidden, weight = inputs()
    expected = MaskedSoftmaxLoss(trie, AdaptiveTemperature()).forward_linear(hidden, weight, LABELS).item()
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    exact_top_k(trie, 5, lambda prefixes: torch.zeros(len(prefixes), VOCABULARY))
    child = fork.Process(target=_in_child, args=(expected, results))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        pytest.fail("the forked process hangs")
    assert child.exitcode == 0 and results.get()
