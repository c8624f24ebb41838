//! A file is a trie or an error: never a panic, an over-large allocation or a wrong trie.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;

use candle_trie::{Error, TokenTrie};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

thread_local! {
    /// The largest single allocation of this thread since it was last set to 0.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The arrays of a trie file, to be tampered with.
#[derive(Debug, Clone)]
struct Parts {
    format: String,
    version: String,
    offsets: Vec<u32>,
    tokens: Vec<u32>,
    leaves: Vec<u32>,
    item_offsets: Vec<u32>,
    items: Vec<u64>,
}

/// Nodes 0 to 7: the root, `1`, `4`, `1 2`, `1 3`, and the leaves `4 9`, `1 2 9` and `1 3 9`.
fn sound_trie() -> TokenTrie {
    let items = [
        (70, vec![1, 2, 9]),
        (71, vec![1, 3, 9]),
        (72, vec![4, 9]),
        (73, vec![4, 9]),
    ];
    TokenTrie::new(items).unwrap()
}

fn sound() -> Parts {
    Parts {
        format: "candle-trie".into(),
        version: "1".into(),
        offsets: vec![0, 2, 4, 5, 6, 7, 7, 7, 7],
        tokens: vec![1, 4, 2, 3, 9, 9, 9],
        leaves: vec![5, 6, 7],
        item_offsets: vec![0, 2, 3, 4],
        items: vec![72, 73, 70, 71],
    }
}

/// A tensor's name, type, shape and bytes.
type Array = (&'static str, Dtype, Vec<usize>, Vec<u8>);

impl Parts {
    fn arrays(&self) -> Vec<Array> {
        let u32s = |name, values: &[u32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (name, Dtype::U32, vec![values.len()], bytes.collect())
        };
        let items = self.items.iter().flat_map(|item| item.to_le_bytes());
        vec![
            u32s("offsets", &self.offsets),
            u32s("tokens", &self.tokens),
            u32s("leaves", &self.leaves),
            u32s("item_offsets", &self.item_offsets),
            ("items", Dtype::U64, vec![self.items.len()], items.collect()),
        ]
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_of(&self.arrays())
    }

    fn bytes_of(&self, arrays: &[Array]) -> Vec<u8> {
        let views = arrays.iter().map(|(name, dtype, shape, bytes)| {
            (
                *name,
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        });
        let metadata = HashMap::from([
            ("format".to_owned(), self.format.clone()),
            ("version".to_owned(), self.version.clone()),
        ]);
        serialize(views, Some(metadata)).unwrap()
    }
}

/// A file of this header and data, whatever they say.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

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

/// The sound parts after `tamper`.
fn tampered(tamper: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = sound();
    tamper(&mut parts);
    parts.bytes()
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

#[test]
fn the_parts_that_these_tests_tamper_with_are_sound() {
    assert_eq!(
        TokenTrie::from_bytes(&sound().bytes()).unwrap(),
        sound_trie()
    );
    assert_is_a_trie(&sound_trie());
}

#[test]
fn a_saved_trie_loads_as_it_was() {
    let file = tempfile::NamedTempFile::new().unwrap();
    sound_trie().save(file.path()).unwrap();
    assert_eq!(TokenTrie::load(file.path()).unwrap(), sound_trie());
    let saved = std::fs::read(file.path()).unwrap();
    assert_eq!(TokenTrie::from_bytes(&saved).unwrap(), sound_trie());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = std::path::Path::new("no/such/trie.safetensors");
    for error in [
        TokenTrie::load(path).unwrap_err(),
        sound_trie().save(path).unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::Io { path: named, .. } if named == path),
            "{error}"
        );
    }
}

#[test]
fn every_truncation() {
    let bytes = sound().bytes();
    for length in 0..bytes.len() {
        assert_refused(&bytes[..length], "");
    }
}

#[test]
fn bytes_after_the_end() {
    assert_refused(&[sound().bytes(), vec![0; 8]].concat(), "");
}

#[test]
fn another_format() {
    assert_refused(&tampered(|parts| parts.format = "gpt2".into()), "\"gpt2\"");
}

#[test]
fn another_version() {
    assert_refused(
        &tampered(|parts| parts.version = "2".into()),
        "version \"2\"",
    );
}

#[test]
fn a_safetensors_file_of_something_else() {
    let bytes = raw(
        r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        &[0; 4],
    );
    assert_refused(&bytes, "format \"\"");
}

#[test]
fn no_safetensors_file_at_all() {
    assert_refused(b"", "");
    assert_refused(b"{\"title\": \"not a trie\"}", "");
    assert_refused(&raw("{", &[]), "");
    assert_refused(&raw("[]", &[]), "");
}

#[test]
fn a_missing_tensor() {
    for missing in ["offsets", "tokens", "leaves", "item_offsets", "items"] {
        let mut arrays = sound().arrays();
        arrays.retain(|(name, ..)| *name != missing);
        assert_refused(&sound().bytes_of(&arrays), missing);
    }
}

#[test]
fn another_dtype() {
    for index in 0..5 {
        let mut arrays = sound().arrays();
        let (name, dtype, shape, bytes) = &mut arrays[index];
        *dtype = Dtype::F32;
        *shape = vec![bytes.len() / 4];
        let name = *name;
        assert_refused(&sound().bytes_of(&arrays), &format!("{name} must be"));
    }
}

#[test]
fn another_rank() {
    for index in 0..5 {
        let mut arrays = sound().arrays();
        arrays[index].2.push(1);
        let name = arrays[index].0;
        assert_refused(&sound().bytes_of(&arrays), &format!("{name} must be"));
    }
}

#[test]
fn declared_sizes_beyond_all_memory() {
    assert_refused(&u64::MAX.to_le_bytes(), "");
    assert_refused(&[&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(), "");
    for (shape, end) in [
        ("[4611686018427387904]", "16"),
        ("[4611686018427387904,4]", "0"),
        ("[1099511627776]", "4398046511104"),
        ("[18446744073709551615]", "18446744073709551615"),
    ] {
        let header = format!(
            r#"{{"__metadata__":{{"format":"candle-trie","version":"1"}},"offsets":{{"dtype":"U32","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        );
        assert_refused(&raw(&header, &[0; 16]), "");
    }
}

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
        vec![5, 6],
        vec![5, 6, 7, 8],
        vec![6, 5, 7],
        vec![5, 6, 6],
        vec![5, 6, u32::MAX],
        vec![],
    ] {
        let bytes = tampered(|parts| parts.leaves = leaves);
        assert_refused(&bytes, "nodes without children");
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
    fn flipped_bytes_give_an_error_or_a_trie(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        inside_the_data in any::<bool>(),
    ) {
        let mut bytes = sound().bytes();
        let data = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let start = if inside_the_data { data } else { 0 };
        for (index, flip) in flips {
            let range = &mut bytes[start..];
            let index = index.index(range.len());
            range[index] ^= flip;
        }
        if let Ok(trie) = TokenTrie::from_bytes(&bytes) {
            assert_is_a_trie(&trie);
        }
    }

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
