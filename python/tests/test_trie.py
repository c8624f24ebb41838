"""The trie."""

import pickle

import pytest

from candle_trie import TokenTrie


def test_prefixes_and_items_are_found(trie, sequences):
    assert trie.children([]) == list(range(12))
    assert trie.children(sequences[3]) == trie.children([11, 11]) == trie.children([-100]) == trie.items([2**32]) == []
    for item, sequence in enumerate(sequences):
        assert item in trie.items(sequence)
    assert len(trie) == trie.item_count == 30
    assert trie.max_token == 39 and trie.branching_count > 0


def test_ids_are_the_callers_and_items_may_share_a_sequence():
    trie = TokenTrie.from_sequences([[1, 9], [2, 9], [1, 9]], ids=[7, 2**64 - 1, 5])
    assert trie.items([1, 9]) == [5, 7]
    assert trie.items([2, 9]) == [2**64 - 1]
    assert (trie.item_count, trie.leaf_count) == (3, 2)


def test_it_is_saved_loaded_and_pickled(trie, tmp_path):
    trie.save(tmp_path / "trie.safetensors")
    for other in (TokenTrie.load(tmp_path / "trie.safetensors"), pickle.loads(pickle.dumps(trie))):
        assert other.children([]) == trie.children([]) and other.node_count == trie.node_count


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([],), "is empty"),
        (([[1], []],), "empty"),
        (([[1, 2], [1, 2, 3]],), "item"),
        (([[1, 2]], [1, 2]), "found 2"),
        (([[1, 2], [3, -100]],), "sequence 1.* -100 at 1"),
        (([[2**32]],), "sequence 0.* 4294967296 at 0"),
        (([[1]], [-1]), "ids.* -1 at 0"),
    ],
)
def test_catalogues_that_are_none_are_value_errors(arguments, part):
    with pytest.raises(ValueError, match=part):
        TokenTrie.from_sequences(*arguments)


def test_files_that_are_none_are_errors_that_name_them(tmp_path):
    with pytest.raises(OSError, match="missing"):
        TokenTrie.load(tmp_path / "missing")
    (tmp_path / "damaged").write_bytes(b"no trie at all")
    with pytest.raises(ValueError, match="damaged"):
        TokenTrie.load(tmp_path / "damaged")
