//! Files laid out as they should be, whose arrays are no trie.

use candle_trie::TokenTrie;
use proptest::prelude::*;

use crate::parts::{Parts, sound, tampered};
use crate::{assert_is_a_trie, assert_refused};

#[test]
fn no_node_at_all() {
    let nothing = tampered(|parts| {
        *parts = Parts {
            offsets: vec![0, 0],
            tokens: vec![],
            leaves: vec![0],
            item_offsets: vec![0, 1],
            items: vec![70],
            ..sound()
        }
    });
    assert_refused(&nothing, "no edge");
    let empty = tampered(|parts| {
        parts.offsets.clear();
        parts.tokens.clear();
    });
    assert_refused(&empty, "no edge");
}

#[test]
fn offsets_that_fall() {
    let bytes = tampered(|parts| parts.offsets[2] = 1);
    assert_refused(&bytes, "2 is followed by 1 at index 2");
}

#[test]
fn offsets_past_the_end() {
    let bytes = tampered(|parts| parts.offsets[3] = u32::MAX);
    assert_refused(&bytes, "4294967295 is followed by");
    let bytes = tampered(|parts| parts.offsets[8] = u32::MAX);
    assert_refused(&bytes, "from 0 to 4294967295");
}

#[test]
fn offsets_that_do_not_begin_at_zero() {
    assert_refused(&tampered(|parts| parts.offsets[0] = 1), "from 1 to 7");
}

#[test]
fn too_few_offsets_for_the_edges() {
    let bytes = tampered(|parts| {
        parts.offsets.pop();
    });
    assert_refused(&bytes, "need 9 offsets");
}

#[test]
fn a_node_that_is_its_own_child() {
    // Edge 1 leads to node 2; here node 2 owns it.
    let bytes = tampered(|parts| parts.offsets[1..=2].copy_from_slice(&[1, 1]));
    assert_refused(&bytes, "node 2 has node 2 for a child");
}

#[test]
fn a_node_whose_child_came_before_it() {
    let bytes = tampered(|parts| parts.offsets[1..=3].copy_from_slice(&[1, 1, 1]));
    assert_refused(&bytes, "node 3 has node 2 for a child");
}

#[test]
fn a_root_without_children() {
    let bytes = tampered(|parts| parts.offsets[1] = 0);
    assert_refused(&bytes, "node 1 has node 1 for a child");
}

#[test]
fn tokens_that_do_not_rise() {
    assert_refused(&tampered(|parts| parts.tokens[1] = 1), "1 is followed by 1");
    assert_refused(&tampered(|parts| parts.tokens[2] = 8), "8 is followed by 3");
}

#[test]
fn a_token_that_means_ignore() {
    assert_refused(
        &tampered(|parts| parts.tokens[6] = u32::MAX),
        "4294967295 is no token",
    );
}

#[test]
fn leaves_that_are_not_the_childless_nodes() {
    for leaves in [
        vec![4, 6, 7],
        vec![6, 5, 7],
        vec![5, 6, 6],
        vec![5, 6, u32::MAX],
    ] {
        let bytes = tampered(|parts| parts.leaves = leaves);
        assert_refused(&bytes, "nodes without children");
    }
    for leaves in [vec![5, 6], vec![5, 6, 7, 8], vec![]] {
        let bytes = tampered(|parts| parts.leaves = leaves);
        assert_refused(&bytes, "item offsets");
    }
}

#[test]
fn item_offsets_that_do_not_fit() {
    for (offsets, part) in [
        (vec![0, 2, 4], "need 4 item offsets"),
        (vec![0, 2, 3, 5], "from 0 to 5"),
        (vec![1, 2, 3, 4], "from 1 to 4"),
        (vec![0, 3, 2, 4], "3 is followed by 2"),
        (vec![0, u32::MAX, 3, 4], "4294967295 is followed by 3"),
        (vec![0, 2, 2, 4], "leaf 6"),
        (vec![], "need 4 item offsets"),
    ] {
        assert_refused(&tampered(|parts| parts.item_offsets = offsets), part);
    }
}

#[test]
fn items_that_do_not_rise() {
    assert_refused(&tampered(|parts| parts.items[0] = 99), "leaf 5");
    let many = tampered(|parts| {
        parts.items.splice(..2, (0..10_000).rev());
        parts.item_offsets = vec![0, 10_000, 10_001, 10_002];
    });
    assert_refused(&many, "leaf 5");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arrays_of_small_numbers_give_an_error_or_a_trie(
        offsets in prop::collection::vec(0u32..4, 0..6),
        tokens in prop::collection::vec(0u32..3, 0..5),
        items in prop::collection::vec(0u64..3, 0..5),
        item_offsets in prop::collection::vec(0u32..4, 0..5),
        sorted in any::<bool>(),
    ) {
        let mut parts = Parts { offsets, tokens, items, item_offsets, ..sound() };
        if sorted {
            // Likely enough to be sound that both outcomes are seen.
            parts.offsets.resize(parts.tokens.len() + 1, 0);
            parts.offsets.push(parts.tokens.len() as u32);
            parts.offsets[0] = 0;
            parts.offsets.sort_unstable();
            let childless = parts.offsets.windows(2).enumerate().filter(|(_, o)| o[0] == o[1]);
            parts.leaves = childless.map(|(node, _)| node as u32).collect();
            parts.items = parts.leaves.iter().map(|&leaf| u64::from(leaf)).collect();
            parts.item_offsets = (0..=parts.leaves.len() as u32).collect();
        }
        if let Ok(trie) = TokenTrie::from_bytes(&parts.bytes()) {
            assert_is_a_trie(&trie);
        }
    }
}
