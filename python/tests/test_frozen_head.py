"""A head that is not trained."""

import gc
import pickle
import weakref

import pytest
import torch

from candle_trie import AdaptiveTemperature, FrozenHead, MaskedSoftmaxLoss, TokenSets, TokenTrie, _ops

WIDTH, END = 12, 200
# 200 first tokens, of which 40 have 35 second ones each.
TITLES = [[first, END] for first in range(40, 200)] + [[first, second, END] for first in range(40) for second in range(35)]


@pytest.fixture
def trie():
    return TokenTrie.from_sequences(TITLES)


@pytest.fixture
def labels():
    return torch.tensor([[-100, 3, 17, END, -100], [-100, 120, END, -100, -100], [-100, 3, 30, END, 5]][:2] * 9)


def inputs(dtype):
    torch.manual_seed(1)
    hidden, weight = torch.randn(18, 5, WIDTH), torch.randn(END + 1, WIDTH)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("limit", [0, 10_000, 64 << 20])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_gives_the_bits_of_its_weight_and_takes_no_gradient(trie, labels, dtype, limit, with_bias):
    hidden, weight = inputs(dtype)
    bias = torch.linspace(-1, 1, END + 1).to(dtype) if with_bias else None
    trained = weight.clone().requires_grad_()
    head = FrozenHead(trained, trie, bias, limit=limit)
    # Rows are padded by 16 elements, and those of half precision are kept in float32.
    assert head.gathered_sets == {0: 0, 10_000: 1 if dtype == torch.float64 else 2, 64 << 20: 41}[limit]
    loss = MaskedSoftmaxLoss(trie)
    found, expected = loss.forward_linear(hidden, head, labels), loss.forward_linear(hidden, weight, labels, bias)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, hidden)[0], torch.autograd.grad(expected, hidden)[0])
    assert trained.grad is None


def test_an_adaptive_temperature_takes_the_same_steps(trie, labels):
    hidden, weight = inputs(torch.float32)
    ways = [MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="branching")) for _ in range(2)]
    for _ in range(3):
        losses = [loss.forward_linear(hidden, head, labels) for loss, head in zip(ways, (weight, FrozenHead(weight, trie)))]
        assert torch.equal(*losses)
    assert ways[0].temperature == ways[1].temperature != 1.5


def test_a_head_that_has_changed_is_refused_in_both_passes(trie, labels):
    hidden, weight = inputs(torch.float32)
    head, loss = FrozenHead(weight, trie), MaskedSoftmaxLoss(trie)
    value = loss.forward_linear(hidden, head, labels)
    weight.data.add_(1.0)  # PyTorch notices a change that does not go through `data`
    for use in (lambda: loss.forward_linear(hidden, head, labels), value.backward):
        with pytest.raises(ValueError, match="has changed since"):
            use()
    loss.forward_linear(hidden, FrozenHead(weight, trie), labels).backward()


def test_heads_that_do_not_fit_are_value_errors(trie, labels):
    hidden, weight = inputs(torch.float32)
    head, loss = FrozenHead(weight, trie), MaskedSoftmaxLoss(trie)
    other = MaskedSoftmaxLoss(TokenTrie.from_sequences(TITLES[:-1]))
    with pytest.raises(ValueError, match="token sets of this loss"):
        other.forward_linear(hidden, head, labels)
    with pytest.raises(ValueError, match="bias: expected None beside a FrozenHead"):
        loss.forward_linear(hidden, head, labels, torch.zeros(END + 1))
    with pytest.raises(ValueError, match="200.*100"):
        FrozenHead(weight[:100], trie)
    with pytest.raises(ValueError, match="int32"):
        FrozenHead(weight.to(torch.int32), trie)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="torch.bfloat16.*torch.float32"):
        loss.forward_linear(hidden, head, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.forward_linear(hidden, FrozenHead(weight.bfloat16(), trie), labels).backward()


def test_it_serves_token_sets_and_the_whole_vocabulary():
    hidden, weight = inputs(torch.float32)
    labels = torch.arange(90).reshape(18, 5) % 50
    sets = TokenSets([range(60), range(50, END)])
    head = FrozenHead(weight, sets)
    assert head.gathered_sets == 2
    chosen = MaskedSoftmaxLoss(sets, labels_are_shifted=True)
    numbers = torch.zeros_like(labels)
    assert torch.equal(*(chosen.forward_linear(hidden, of, labels, sets=numbers) for of in (weight, head)))
    plain = MaskedSoftmaxLoss(END + 1)
    assert torch.equal(*(plain.forward_linear(hidden, of, labels) for of in (weight, head)))


def test_it_is_compiled_and_pickled(trie, labels):
    hidden, weight = inputs(torch.float32)
    head, loss = FrozenHead(weight, trie), MaskedSoftmaxLoss(trie)
    expected = loss.forward_linear(hidden, head, labels)
    compiled = torch.compile(lambda hidden: loss.forward_linear(hidden, head, labels), fullgraph=True, backend="aot_eager")
    found = compiled(hidden)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found, hidden)[0], torch.autograd.grad(expected, hidden)[0])
    restored = pickle.loads(pickle.dumps(head))
    assert torch.equal(loss.forward_linear(hidden, restored, labels), expected)


def test_its_rows_live_until_the_backward_pass_and_no_longer(trie, labels):
    hidden, weight = inputs(torch.float32)
    loss = MaskedSoftmaxLoss(trie)
    before = len(_ops._saved)
    head = FrozenHead(weight, trie)
    value, gone = loss.forward_linear(hidden, head, labels), weakref.ref(head)
    expected = torch.autograd.grad(loss.forward_linear(hidden, weight, labels), hidden)[0]
    del head
    gc.collect()
    assert gone() is None
    value.backward()
    assert torch.equal(hidden.grad, expected)
    del value
    gc.collect()
    assert len(_ops._saved) == before
