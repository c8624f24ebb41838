"""The loss against its definition, and as a citizen of PyTorch."""

import copy
import gc
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from candle_trie import AdaptiveTemperature, Bear, MaskedSoftmaxLoss, TokenSets, TokenTrie, _ops

from conftest import END, VOCABULARY, WIDTH


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, retain_graph=True)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_the_loss_and_its_gradient_are_those_of_the_definition(trie, logits, labels, definition, temperature):
    logits.requires_grad_()
    losses, choices = definition(logits, labels, temperature)
    for reduction, expected in [
        (None, losses.mean()),
        ("mean", losses.mean()),
        ("sum", losses.sum()),
        ("mean_branching", losses[choices > 1].mean()),
        (7.0, losses.sum() / 7),
    ]:
        value = MaskedSoftmaxLoss(trie, temperature, reduction=reduction)(logits, labels)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients(value, logits), gradients(expected, logits), rtol=1e-10, atol=1e-14)


def test_without_a_reduction_there_is_a_loss_for_each_position(trie, logits, labels, definition):
    logits.requires_grad_()
    value = MaskedSoftmaxLoss(trie, reduction="none")(logits, labels)
    losses, _ = definition(logits, labels, 1.0)
    assert value.shape == labels.shape
    # The position before a label predicts it.
    predicting = labels.roll(-1, 1) != -100
    predicting[:, -1] = False
    torch.testing.assert_close(value[predicting], losses, rtol=1e-12, atol=0)
    assert (value[~predicting] == 0).all()
    upstream = torch.arange(16.0, dtype=torch.float64).reshape(2, 8)
    found = torch.autograd.grad(value, logits, upstream, retain_graph=True)
    expected = torch.autograd.grad(losses, logits, upstream[predicting])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bias", [False, True])
def test_hidden_states_and_a_head_give_the_loss_of_their_logits(trie, hidden, weight, labels, definition, bias):
    tensors = [hidden.requires_grad_(), weight.requires_grad_()]
    tensors += [torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64).requires_grad_()] if bias else []
    value = MaskedSoftmaxLoss(trie, 0.8).forward_linear(hidden, weight, labels, *tensors[2:])
    logits = torch.nn.functional.linear(*tensors)
    expected = definition(logits, labels, 0.8)[0].mean()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(value, *tensors), gradients(expected, *tensors), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("wanted", range(8))
def test_only_the_gradients_that_are_wanted_are_computed(trie, hidden, weight, labels, wanted):
    bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    tensors = [hidden, weight, bias]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(wanted >> index & 1))
    value = MaskedSoftmaxLoss(trie).forward_linear(hidden, weight, labels, bias)
    assert value.requires_grad == (wanted > 0)
    if wanted:
        value.backward()
    full = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    MaskedSoftmaxLoss(trie).forward_linear(full[0], full[1], labels, full[2]).backward()
    for index, (tensor, reference) in enumerate(zip(tensors, full)):
        if wanted >> index & 1:
            torch.testing.assert_close(tensor.grad, reference.grad, rtol=0, atol=0)
        else:
            assert tensor.grad is None


def test_gradients_are_those_of_finite_differences(trie, logits, hidden, weight, labels):
    fixed = MaskedSoftmaxLoss(trie, 0.7)
    assert torch.autograd.gradcheck(lambda z: fixed(z, labels), logits.requires_grad_())
    linear = lambda h, w: fixed.forward_linear(h, w, labels)  # noqa: E731
    assert torch.autograd.gradcheck(linear, (hidden.requires_grad_(), weight.requires_grad_()))
    each = MaskedSoftmaxLoss(trie, 0.7, reduction="none")
    assert torch.autograd.gradcheck(lambda z: each(z, labels), logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_every_dtype_is_taken_and_returned(trie, logits, hidden, weight, labels, dtype, tolerance):
    loss = MaskedSoftmaxLoss(trie)
    logits, hidden, weight = (tensor.to(dtype).requires_grad_() for tensor in (logits, hidden, weight))
    exact = [tensor.detach().double().requires_grad_() for tensor in (logits, hidden, weight)]
    for found, expected, inputs, wide in [
        (loss(logits, labels), loss(exact[0], labels), [logits], exact[:1]),
        (loss.forward_linear(hidden, weight, labels), loss.forward_linear(*exact[1:], labels), [hidden, weight], exact[1:]),
    ]:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        for gradient, reference in zip(gradients(found, *inputs), gradients(expected, *wide)):
            assert gradient.dtype == dtype
            largest = reference.abs().max().item()
            torch.testing.assert_close(gradient.double(), reference, rtol=0, atol=tolerance * largest)


def test_a_loss_scale_reaches_half_precision_before_rounding(trie, labels):
    """Gradients far below the smallest half are lost unscaled, and kept with a scale, as mixed precision relies on."""
    logits = torch.zeros(2, 8, VOCABULARY, dtype=torch.float16)
    logits[..., 4] = 18.0
    logits.requires_grad_()
    value = MaskedSoftmaxLoss(trie)(logits, labels)
    count = lambda scale: (torch.autograd.grad(value * scale, logits, retain_graph=True)[0] != 0).sum()  # noqa: E731
    assert count(65536.0) > count(1.0)


def test_autocast_casts_as_linear_does(trie, hidden, weight, labels):
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = MaskedSoftmaxLoss(trie).forward_linear(hidden, weight, labels)
    value.backward()
    rounded = MaskedSoftmaxLoss(trie).forward_linear(hidden.bfloat16(), weight.bfloat16(), labels)
    torch.testing.assert_close(value, rounded, rtol=0, atol=0)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_any_strides_are_taken(trie, logits, labels):
    expected = MaskedSoftmaxLoss(trie)(logits, labels)
    wide = torch.cat([logits, logits], -1)[..., :VOCABULARY]
    transposed = logits.transpose(0, 2).contiguous().transpose(0, 2)
    spread = torch.stack([labels, labels], -1)[..., 0]
    for view in (wide, transposed, logits.transpose(0, 1).contiguous().transpose(0, 1)):
        view = view.detach().requires_grad_()
        value = MaskedSoftmaxLoss(trie)(view, spread)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
        value.backward()
        assert view.grad.shape == logits.shape
    int32 = MaskedSoftmaxLoss(trie)(logits, labels.int())
    torch.testing.assert_close(int32, expected, rtol=0, atol=0)


def test_empty_batches_and_batches_without_a_label_have_the_loss_0(trie):
    loss = MaskedSoftmaxLoss(trie)
    for shape in [(0, 8), (2, 0), (2, 8)]:
        logits = torch.zeros(*shape, VOCABULARY, requires_grad=True)
        value = loss(logits, torch.full(shape, -100))
        value.backward()
        assert value == 0 and (logits.grad == 0).all()


def test_ignore_index_and_shifted_labels_are_options(trie, logits, labels):
    expected = MaskedSoftmaxLoss(trie)(logits, labels)
    other = labels.masked_fill(labels == -100, -1)
    torch.testing.assert_close(MaskedSoftmaxLoss(trie, ignore_index=-1)(logits, other), expected)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    torch.testing.assert_close(MaskedSoftmaxLoss(trie, labels_are_shifted=True)(logits, shifted), expected)


def test_over_the_whole_vocabulary_it_is_cross_entropy(logits, labels):
    value = MaskedSoftmaxLoss(VOCABULARY)(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_sets_that_come_from_no_trie_are_named_by_their_numbers(trie, sequences, logits, hidden, weight, labels):
    prefixes = sorted({tuple(sequence[:length]) for sequence in sequences for length in range(4)})
    sets = TokenSets([reversed(trie.children(prefix)) for prefix in prefixes])
    numbers = torch.full((2, 8), -1)
    for line, first, item in [(0, 3, 4), (1, 4, 17)]:
        for length in range(4):
            numbers[line, first + length] = prefixes.index(tuple(sequences[item][:length]))
    for loss in (MaskedSoftmaxLoss(sets, 0.8), pickle.loads(pickle.dumps(MaskedSoftmaxLoss(sets, 0.8)))):
        expected = MaskedSoftmaxLoss(trie, 0.8)
        assert loss(logits, labels, sets=numbers) == expected(logits, labels)
        linear = loss.forward_linear(hidden, weight, labels, sets=numbers)
        assert linear == expected.forward_linear(hidden, weight, labels)
    for wrong, part in [(None, "numbers"), (numbers[:1], "[1, 8]"), (numbers.float(), "float32"), (numbers - 1, "-1"),
                        (numbers * 0 + 99, "99")]:
        with pytest.raises(ValueError, match=re.escape(part)):
            MaskedSoftmaxLoss(sets)(logits, labels, sets=wrong)
    with pytest.raises(ValueError, match="None"):
        MaskedSoftmaxLoss(trie)(logits, labels, sets=numbers)
    with pytest.raises(ValueError, match="5 is followed by 5"):
        TokenSets([[5, 5]])


def test_bear_weighs_rows_by_whether_beam_search_would_keep_their_targets(trie, logits, labels, definition):
    logits.requires_grad_()
    value = MaskedSoftmaxLoss(trie, bear=Bear(beams=2, weight=1.5, xi=0.5))(logits, labels)
    losses, choices = definition(logits, labels, 1.0)
    weights, row = [], 0
    for batch_row, line in enumerate(labels.tolist()):
        prefix = []
        for position, label in enumerate(line):
            if label == -100:
                continue
            allowed = torch.tensor(trie.children(prefix))
            log_p = torch.log_softmax(logits[batch_row, position - 1][allowed], 0).detach()
            nth = log_p.topk(min(2, len(allowed))).values[-1]
            weights.append(1 + 1.5 * torch.sigmoid((-losses[row].detach() - nth) / 0.5))
            prefix.append(label)
            row += 1
    weights = torch.stack(weights)[choices > 1]
    expected = (weights * losses[choices > 1]).sum() / weights.sum()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(value, logits), gradients(expected, logits), rtol=1e-10, atol=1e-14)


class TestAdaptiveTemperature:
    def test_it_steps_in_training_alone_and_its_state_is_saved(self, trie, logits, labels):
        loss = MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="branching", alpha=0.5, minimum=0.1))
        assert loss.temperature == 1.5
        loss(logits, labels)
        stepped = loss.temperature
        assert stepped != 1.5
        loss.eval()
        loss(logits, labels)
        assert loss.temperature == stepped

        other = MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="branching", alpha=0.5, minimum=0.1))
        other.load_state_dict(loss.state_dict())
        for copied in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert copied.temperature == stepped
            assert copied.train()(logits, labels) == copy.deepcopy(loss).train()(logits, labels)

    def test_it_is_the_estimate_of_the_paper(self, trie, logits, labels):
        loss = MaskedSoftmaxLoss(trie, AdaptiveTemperature(alpha=1.0, minimum=0.01, maximum=100.0))
        loss(logits, labels)
        # The rows that predict a first token.
        valid = torch.stack([logits[0, 2, :12], logits[1, 3, :12]])
        targets = torch.stack([logits[0, 2, labels[0, 3]], logits[1, 3, labels[1, 4]]])
        delta, variance = targets.mean() - valid.mean(), valid.var()
        c = torch.log(torch.tensor(12 * 0.25, dtype=torch.float64))
        root = torch.sqrt(torch.clamp(delta**2 - 2 * c * variance, min=0))
        expected = torch.clamp((delta + root) / (2 * c), 0.01, 100)
        assert abs(loss.temperature - expected.item()) < 1e-10

    def test_a_scope_for_which_it_is_not_defined_is_refused(self):
        few = TokenTrie.from_sequences([[1, 9], [2, 9]])
        with pytest.raises(ValueError, match="0.25"):
            MaskedSoftmaxLoss(few, AdaptiveTemperature())
        MaskedSoftmaxLoss(few, AdaptiveTemperature(allow_degenerate=True))


def test_it_compiles_into_one_graph(trie, logits, hidden, weight, labels):
    loss = MaskedSoftmaxLoss(trie)

    def step(hidden, weight):
        return loss.forward_linear(hidden * 2, weight, labels) + loss(hidden @ weight.T, labels)

    hidden.requires_grad_()
    expected = step(hidden, weight)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = compiled(hidden, weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, hidden), gradients(expected, hidden))
    # The handles of two calls differ, which is all that the fourth test of opcheck would find.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_ops.dense, (logits.requires_grad_(), labels, None, loss._number, True, True), test_utils=tests)


def test_ten_thousand_steps_leave_nothing_behind(trie, labels):
    loss = MaskedSoftmaxLoss(trie)
    logits = torch.zeros(2, 8, VOCABULARY, requires_grad=True)
    hidden = torch.zeros(2, 8, WIDTH, requires_grad=True)
    weight = torch.zeros(VOCABULARY, WIDTH, requires_grad=True)
    before = None
    for step in range(10_000):
        value = loss(logits, labels) if step % 2 else loss.forward_linear(hidden, weight, labels)
        # Every third has no backward pass.
        if step % 3:
            value.backward()
        if step == 1_000:
            gc.collect()
            before = _resident_bytes()
    del value
    gc.collect()
    assert not _ops._saved
    assert _resident_bytes() - before < 16 << 20


def _resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("linear", [False, True])
def test_threads_share_a_loss(linear):
    """With so many rows that the native part splits them over its threads, which must not wait for each other."""
    trie = TokenTrie.from_sequences([[i % 1000, 1000 + i // 1000, 3000] for i in range(5000)])
    loss, head = MaskedSoftmaxLoss(trie), torch.randn(3001, 16)
    hidden, labels = torch.randn(64, 4, 16), torch.full((64, 4), -100)
    labels[:, 1], labels[:, 2], labels[:, 3] = torch.arange(64), 1000, 3000
    logits = hidden @ head.T
    call = (lambda: loss.forward_linear(hidden, head, labels)) if linear else (lambda: loss(logits, labels))
    expected = call()
    pool = ThreadPoolExecutor(4)
    values = list(pool.map(lambda _: call(), range(400), timeout=100))
    pool.shutdown()
    assert all(value == expected for value in values)


@pytest.mark.parametrize("linear", [False, True])
def test_what_a_pass_saves_lives_as_long_as_autograd_keeps_it(trie, logits, hidden, weight, labels, linear):
    loss, before = MaskedSoftmaxLoss(trie), len(_ops._saved)
    tensor = (hidden if linear else logits).requires_grad_()
    call = (lambda: loss.forward_linear(hidden, weight, labels)) if linear else (lambda: loss(logits, labels))
    value = call()
    assert len(_ops._saved) == before + 1
    first = torch.autograd.grad(value, tensor, retain_graph=True)[0]
    assert len(_ops._saved) == before + 1
    assert torch.equal(torch.autograd.grad(value, tensor)[0], first)
    # The loss itself may be kept, as for a log.
    assert len(_ops._saved) == before
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
    unused = call()
    del unused
    assert len(_ops._saved) == before


@pytest.mark.parametrize("tracked", ["hidden", "weight", "bias"])
def test_a_second_derivative_is_an_error(trie, hidden, weight, labels, tracked):
    tensors = {"hidden": hidden, "weight": weight, "bias": torch.zeros(VOCABULARY, dtype=torch.float64)}
    given = tensors[tracked].requires_grad_()
    value = MaskedSoftmaxLoss(trie).forward_linear(hidden, weight, labels, tensors["bias"])
    (gradient,) = torch.autograd.grad(value, given, create_graph=True)
    with pytest.raises(RuntimeError, match="candle_trie.linear_backward"):
        gradient.pow(2).sum().backward()


def test_a_compiled_loss_is_evaluated_at_any_temperature(trie, logits, labels):
    loss = MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="branching", alpha=0.5, minimum=0.1))
    compiled = torch.compile(lambda logits: loss(logits, labels), fullgraph=True, backend="aot_eager")
    temperatures = set()
    for step in range(12):
        loss.eval()
        assert torch.equal(compiled(logits), loss(logits, labels))
        loss.train()
        compiled(logits * (1 + step))
        temperatures.add(loss.temperature)
    assert len(temperatures) == 12


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            (dict(labels=torch.zeros(2, 7, dtype=torch.long)), ["[2, 8]", "[2, 7]"]),
            (dict(labels=torch.zeros(2, 8)), ["labels", "float32"]),
            (dict(labels=torch.tensor([[-100, 4, 12, 5, END, -100, -100, -100]] * 2)), ["12", "4"]),
            (dict(logits=torch.zeros(2, 8, VOCABULARY, dtype=torch.int64)), ["int64"]),
            (dict(logits=torch.zeros(2, 8, 20)), ["39", "20"]),
        ],
    )
    def test_arguments_that_do_not_fit_are_value_errors_with_numbers(self, trie, logits, labels, change, parts):
        arguments = {"logits": logits, "labels": labels} | change
        with pytest.raises(ValueError) as error:
            MaskedSoftmaxLoss(trie)(**arguments)
        for part in parts:
            assert part in str(error.value)

    def test_heads_that_do_not_fit_are_value_errors(self, trie, hidden, weight, labels):
        loss = MaskedSoftmaxLoss(trie)
        for head, part in [(weight.T.contiguous(), "16"), (weight.float(), "float32"), (weight[:30], "30")]:
            with pytest.raises(ValueError, match=part):
                loss.forward_linear(hidden, head, labels)

    def test_settings_out_of_range_are_value_errors(self, trie):
        for make in [
            lambda: MaskedSoftmaxLoss(trie, 0.0),
            lambda: MaskedSoftmaxLoss(-1),
            lambda: MaskedSoftmaxLoss(True),
            lambda: MaskedSoftmaxLoss(trie, reduction="average"),
            lambda: MaskedSoftmaxLoss(trie, reduction=-1.0),
            lambda: MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="leaf")),
            lambda: MaskedSoftmaxLoss(trie, bear=Bear(beams=0)),
            lambda: Bear(beams=-1),
            lambda: AdaptiveTemperature(warm_up=-1),
        ]:
            with pytest.raises(ValueError):
                make()

    def test_tensors_elsewhere_are_refused(self, trie, logits, labels):
        with pytest.raises(ValueError, match="meta"):
            MaskedSoftmaxLoss(trie)(logits, labels.to("meta"))
