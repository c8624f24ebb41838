//! A file is a trie or an error: never a panic, an over-large allocation or a wrong trie.

mod allocations;
mod container;
mod contents;
mod mutations;
mod opened;
mod parts;

#[path = "../fuzz/mod.rs"]
mod fuzz;

use allocations::LARGEST;
use candle_trie::{Error, TokenTrie};

#[track_caller]
fn assert_refused(bytes: &[u8], part: &str) {
    LARGEST.set(0);
    let error = TokenTrie::from_bytes(bytes).unwrap_err();
    let largest = LARGEST.get();
    assert!(
        largest <= 4096 + bytes.len(),
        "allocated {largest} bytes at once for a file of {}",
        bytes.len()
    );
    let words = error.to_string();
    assert!(matches!(error, Error::Malformed { .. }), "{words}");
    assert!(words.contains(part), "{words:?} should contain {part:?}");
    assert!(
        words.len() < 1000,
        "a message, not a dump: {} bytes",
        words.len()
    );
}

/// Every node is reached from the root once, children come after their parents, and the leaves are
/// what they must be.
fn assert_is_a_trie(trie: &TokenTrie) {
    let nodes = trie.node_count() as u32;
    let mut reached = vec![0; nodes as usize];
    reached[0] = 1;
    let mut leaves = Vec::new();
    for node in 0..nodes {
        let children = trie.children(node);
        assert!(children.is_sorted_by(|a, b| a < b) && !children.contains(&u32::MAX));
        for &token in children {
            let child = trie.child(node, token).unwrap();
            assert!(child > node && child < nodes);
            reached[child as usize] += 1;
        }
        assert_eq!(children.is_empty(), !trie.items(node).is_empty());
        if children.is_empty() {
            leaves.push(node);
        }
    }
    assert!(reached.iter().all(|&times| times == 1), "{reached:?}");
    assert!(trie.leaves().map(|(node, _)| node).eq(leaves));
    let items: usize = trie.leaves().map(|(_, items)| items.len()).sum();
    assert_eq!(items, trie.item_count());
    assert!(trie.node_count() > 1);
}
