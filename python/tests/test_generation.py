"""Decoding over the trie."""

import itertools
import threading

import pytest
import torch

from candle_trie import BeamSearch, TrieLogitsProcessor, exact_top_k, prefix_allowed_tokens_fn

from conftest import END, VOCABULARY


class Bigrams:
    """A language model whose next token depends on the last one."""

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.logits = 2 * torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    def __call__(self, prefixes):
        return torch.stack([self.logits[prefix[-1] if prefix else 0] for prefix in prefixes])

    def probabilities(self, trie, sequences, temperature):
        """The log-probability of every item, by walking it."""
        found = []
        for sequence in sequences:
            total = 0.0
            for length in range(len(sequence)):
                allowed = trie.children(sequence[:length])
                scores = self([sequence[:length]])[0][allowed] / temperature
                total += torch.log_softmax(scores, 0)[allowed.index(sequence[length])].item()
            found.append(total)
        return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_exact_and_wide_beam_search_find_the_most_probable_items(trie, sequences, temperature):
    model = Bigrams()
    probabilities = model.probabilities(trie, sequences, temperature)
    best = sorted(range(30), key=lambda item: -probabilities[item])[:5]

    exact = exact_top_k(trie, 5, model, temperature)
    search = BeamSearch(trie, 1, 30, temperature)
    prefixes = [search.common_prefix]
    while step := search.step(model(prefixes)):
        prefixes = [prefixes[parent] + tokens for parent, tokens in zip(*step)]
    beams = search.results(0)

    for found in (exact, beams[:5]):
        assert [item for result in found for item in result.items] == best
        for result in found:
            assert abs(result.log_probability - probabilities[result.items[0]]) < 1e-5


def test_excluded_items_are_not_found(trie):
    model = Bigrams()
    first = exact_top_k(trie, 1, model)[0].items[0]
    search = BeamSearch(trie, 1, 30, exclude=[[first]])
    prefixes = [search.common_prefix]
    while step := search.step(model(prefixes)):
        prefixes = [prefixes[parent] + tokens for parent, tokens in zip(*step)]
    found = list(itertools.chain(*(result.items for result in search.results(0))))
    assert first not in found and len(found) == 29


def test_exceptions_of_a_model_come_through(trie):
    def model(prefixes):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        exact_top_k(trie, 1, model)


def test_a_model_is_called_on_the_callers_thread(trie):
    seen = set()

    def model(prefixes):
        seen.add((threading.get_ident(), torch.is_grad_enabled()))
        return torch.zeros(len(prefixes), VOCABULARY)

    with torch.no_grad():
        exact_top_k(trie, 1, model)
    assert seen == {(threading.get_ident(), False)}


def test_only_tokens_that_continue_an_item_keep_their_scores(trie, sequences):
    prompt = [[31, 32], [33, 34], [35, 36], [37, 38]]
    prefixes = [sequences[5][:2], sequences[9][:3], sequences[7][:2], [11, 11]]
    # The third is a whole item, and the last begins none.
    ids = torch.tensor([p + (s + [0, 0])[:4] for p, s in zip(prompt, prefixes)])
    ids[2, 2:] = torch.tensor(sequences[7])
    scores = torch.randn(4, VOCABULARY)
    for length, allowed in [
        (4, [trie.children(sequences[5][:2]), trie.children(sequences[9][:2]), trie.children(sequences[7][:2]), [END]]),
        (6, [[END], [END], [END], [END]]),
    ]:
        masked = TrieLogitsProcessor(trie, 2, END)(ids[:, :length], scores)
        lists = [prefix_allowed_tokens_fn(trie, 2, END)(0, row) for row in ids[:, :length]]
        for row, tokens in enumerate(allowed):
            assert masked[row].isfinite().nonzero().flatten().tolist() == tokens == lists[row]
            assert (masked[row][tokens] == scores[row][tokens]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_scores_are_normalised_over_the_trie_at_the_temperature_of_training(trie, dtype):
    scores = torch.randn(3, VOCABULARY).to(dtype)
    ids = torch.tensor([[7, 1], [7, 2], [7, 3]])
    masked = TrieLogitsProcessor(trie, 1, END, normalise="trie", temperature=2.0)(ids, scores)
    assert masked.dtype == dtype
    for row, token in enumerate([1, 2, 3]):
        allowed = trie.children([token])
        expected = torch.log_softmax(scores[row][allowed].double() / 2.0, 0)
        torch.testing.assert_close(masked[row][allowed].double(), expected, rtol=0, atol=0.01)


def test_arguments_that_do_not_fit_are_value_errors(trie):
    ids, scores = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, VOCABULARY)
    for call, part in [
        (lambda: TrieLogitsProcessor(trie, 3, END)(ids, scores[:1]), "found \\[1, 40\\] and \\[2, 3\\]"),
        (lambda: TrieLogitsProcessor(trie, 3, END)(ids, scores[:, :20]), "39"),
        (lambda: TrieLogitsProcessor(trie, 3, END, normalise="beam"), "beam"),
        (lambda: BeamSearch(trie, 1, 0), "beam"),
        (lambda: BeamSearch(trie, 1, 4).step(torch.zeros(3, VOCABULARY)), "3"),
    ]:
        with pytest.raises(ValueError, match=part):
            call()


def test_transformers_generate_recommends_items_alone(trie, sequences):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    prompt = torch.tensor([[31, 32, 33]])
    options = dict(
        attention_mask=torch.ones_like(prompt),
        num_beams=10,
        num_return_sequences=10,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=END,
    )
    masked = model.generate(prompt, logits_processor=[TrieLogitsProcessor(trie, 3, END)], **options)
    listed = model.generate(prompt, prefix_allowed_tokens_fn=prefix_allowed_tokens_fn(trie, 3, END), **options)
    assert masked.tolist() == listed.tolist()
    assert all(trie.items(row[3:]) for row in masked.tolist())
