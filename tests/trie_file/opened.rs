//! Files that are mapped: what is not checked must be harmless.

use candle_core::{DType, Device, Tensor};
use candle_trie::{BeamSearch, Error, ExactSearch, MaskedSoftmaxLoss, Row, Rows, TokenTrie};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use safetensors::Dtype;

use crate::allocations::LARGEST;
use crate::fuzz::for_seeds;
use crate::mutations::{file, mutate};
use crate::parts::{Parts, raw, sound, sound_trie, tampered};

fn open(bytes: &[u8]) -> Result<TokenTrie, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    // SAFETY: nobody else knows the file. Its name goes, and the file stays while it is mapped.
    unsafe { TokenTrie::open(file.path()) }
}

/// The sound parts laid out as `save` does it: each array at a multiple of its width.
fn aligned(parts: &Parts, metadata: &str, more: &[(&str, Vec<u32>)]) -> Vec<u8> {
    let mut arrays = parts.arrays();
    arrays.rotate_right(1);
    arrays.extend(more.iter().map(|(name, values)| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        let name: &'static str = String::from(*name).leak();
        (name, Dtype::U32, vec![values.len()], bytes.collect())
    }));
    let mut header =
        format!(r#"{{"__metadata__":{{"format":"candle-trie","version":"1"{metadata}}}"#);
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in arrays {
        let (begin, end) = (data.len(), data.len() + bytes.len());
        header += &format!(
            r#","{name}":{{"dtype":"{dtype:?}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        );
        data.extend(bytes);
    }
    header.push('}');
    let padded = header.len().next_multiple_of(8);
    raw(&format!("{header:padded$}"), &data)
}

#[test]
fn an_opened_trie_is_the_one_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trie");
    sound_trie().save(&path).unwrap();
    // SAFETY: the folder is this test's own.
    let opened = unsafe { TokenTrie::open(&path) }.unwrap();
    assert_eq!(opened, sound_trie());
    assert_eq!(opened.max_token(), 9);
    crate::assert_is_a_trie(&opened);
    opened.verify().unwrap();
    for item in 69..75 {
        assert!(opened.leaves_of(item).eq(sound_trie().leaves_of(item)));
    }
    // Rows that were walked along either trie are taken by a loss over the other.
    let rows = Rows::from_shifted(&opened, &vec![vec![1, 3, 9]]).unwrap();
    let loss = MaskedSoftmaxLoss::new(&sound_trie(), 1.0).unwrap();
    let logits = Tensor::zeros((1, 3, 10), DType::F32, &Device::Cpu).unwrap();
    loss.evaluate(&logits, &rows).unwrap();
    // Saving over the file leaves what is open as it is.
    TokenTrie::new([(1, [5])]).unwrap().save(&path).unwrap();
    assert_eq!(opened, sound_trie());
    assert_eq!(TokenTrie::load(&path).unwrap().item_count(), 1);
}

#[test]
fn opening_and_using_a_large_file_allocates_little() {
    let items = (0..60_000u32).map(|item| (u64::from(item), [item % 40, item / 40, 2000]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trie");
    TokenTrie::new(items).unwrap().save(&path).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 1 << 20);
    LARGEST.set(0);
    // SAFETY: the folder is this test's own.
    let opened = unsafe { TokenTrie::open(&path) }.unwrap();
    let search = BeamSearch::new(&opened, 1, 10, 1.0).unwrap();
    let search = search.exclude_items(&[[3, 59_999]]).unwrap();
    let rows = Rows::from_shifted(&opened, &vec![vec![39, 1499, 2000]]).unwrap();
    MaskedSoftmaxLoss::new(&opened, 1.0).unwrap();
    assert_eq!((search.active_beams(), rows.len()), (1, 3));
    assert!(LARGEST.get() <= 4096, "{} bytes at once", LARGEST.get());
}

#[test]
fn a_file_without_the_largest_token_and_the_order_of_ids_opens_too() {
    let opened = open(&aligned(&sound(), "", &[])).unwrap();
    assert_eq!(opened, sound_trie());
    assert_eq!(opened.max_token(), 9);
    opened.verify().unwrap();
    let leaf = opened.walk(&[4, 9]).unwrap();
    assert!(opened.leaves_of(73).eq([leaf]));
}

#[test]
fn what_opening_looks_at_must_be_sound() {
    for (bytes, part) in [
        (tampered(|parts| parts.format = "gpt2".into()), "\"gpt2\""),
        (
            tampered(|parts| parts.offsets.truncate(8)),
            "need 9 offsets",
        ),
        (
            tampered(|parts| parts.item_offsets.truncate(3)),
            "item offsets",
        ),
        (
            aligned(&sound(), r#","max_token":"-1""#, &[]),
            "max_token is \"-1\"",
        ),
        (
            aligned(&sound(), r#","max_token":"4294967295""#, &[]),
            "max_token is",
        ),
        (
            aligned(&sound(), "", &[("items_by_id", vec![0])]),
            "4 items have 1 places",
        ),
        (vec![], ""),
    ] {
        let error = open(&bytes).unwrap_err();
        let words = error.to_string();
        assert!(matches!(error, Error::MalformedFile { .. }), "{words}");
        assert!(words.contains(part), "{words:?} should contain {part:?}");
    }
    let missing = std::path::Path::new("no/such/trie.safetensors");
    // SAFETY: there is no such file.
    let error = unsafe { TokenTrie::open(missing) }.unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path == missing));
}

#[test]
fn arrays_that_lie_at_odd_places_are_loaded_and_not_opened() {
    let mut bytes = aligned(&sound(), "", &[]);
    bytes.insert(8, b' ');
    // A header may begin with no space: the brace comes first.
    bytes.swap(8, 9);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) + 1;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    assert_eq!(TokenTrie::from_bytes(&bytes).unwrap(), sound_trie());
    let words = open(&bytes).unwrap_err().to_string();
    assert!(words.contains("can be loaded but not opened"), "{words}");
}

#[test]
fn a_wrong_largest_token_or_order_of_ids_is_found_by_load_and_verify() {
    let by_id = |order: [u32; 4]| vec![("items_by_id", order.to_vec())];
    let sound_order = [2, 3, 0, 1];
    assert!(TokenTrie::from_bytes(&aligned(&sound(), "", &by_id(sound_order))).is_ok());
    for bytes in [
        aligned(&sound(), r#","max_token":"8""#, &[]),
        aligned(&sound(), r#","max_token":"10""#, &[]),
        aligned(&sound(), "", &by_id([2, 3, 1, 0])),
        aligned(&sound(), "", &by_id([2, 3, 0, 0])),
        aligned(&sound(), "", &by_id([2, 3, 0, 4])),
        aligned(&sound(), "", &by_id([u32::MAX, 3, 0, 1])),
    ] {
        TokenTrie::from_bytes(&bytes).unwrap_err();
        open(&bytes).unwrap().verify().unwrap_err();
    }
}

#[test]
fn a_set_that_is_damaged_is_empty() {
    for damaged in [
        // Tokens that do not rise, one beyond the largest, a node above itself, bounds out of the file.
        tampered(|parts| parts.tokens[2] = 8),
        aligned(&sound(), r#","max_token":"2""#, &[]),
        tampered(|parts| parts.offsets[1..=2].copy_from_slice(&[1, 1])),
        tampered(|parts| parts.offsets[2] = u32::MAX),
    ] {
        // The parts of these tests are in another order.
        let trie = match open(&damaged) {
            Ok(trie) => trie,
            Err(_) => continue,
        };
        assert!(trie.verify().is_err());
        use_all(&trie);
    }
    let trie = open(&aligned(&sound(), r#","max_token":"2""#, &[])).unwrap();
    assert!(trie.children(0).is_empty()); // 1 and 4
    let after_one = sound_trie().walk(&[1]).unwrap();
    assert!(trie.children(after_one).is_empty()); // 2 and 3
}

#[test]
fn damaged_files_that_open_are_harmless_and_verify_says_what_load_says() {
    let sound: Vec<Vec<u8>> = [2, 7, 1000].map(file).into();
    for_seeds(1000, |random| {
        let mut bytes = sound.choose(random).unwrap().clone();
        for _ in 0..rand::Rng::random_range(random, 1..4) {
            mutate(&mut bytes, random);
        }
        LARGEST.set(0);
        let opened = open(&bytes);
        let largest = LARGEST.get();
        assert!(largest <= 4096 + 4 * bytes.len(), "allocated {largest}");
        let loaded = TokenTrie::from_bytes(&bytes);
        match opened {
            Ok(trie) => {
                assert_eq!(trie.verify().is_ok(), loaded.is_ok());
                use_all(&trie);
            }
            // What is loaded may lie where it cannot be mapped.
            Err(error) => assert!(
                loaded.is_err() || error.to_string().contains("not opened"),
                "{error}"
            ),
        }
    });
}

/// Calls all that takes a trie. Results may be wrong.
fn use_all(trie: &TokenTrie) {
    let nodes = trie.node_count() as u32;
    for node in (0..nodes).chain([nodes, u32::MAX]) {
        for &token in trie.children(node) {
            assert!(token <= trie.max_token());
            assert!(trie.child(node, token).unwrap() > node);
        }
        assert!(trie.parent(node).is_none_or(|parent| parent < node));
        trie.items(node);
    }
    trie.branching_count();
    let items: Vec<u64> = trie
        .leaves()
        .flat_map(|(_, items)| items.to_vec())
        .collect();
    for &item in items.iter().take(20) {
        trie.leaves_of(item).count();
    }
    // A vocabulary that no machine could hold in logits is refused before there are any.
    if trie.max_token() > 10_000 {
        return;
    }
    let width = trie.max_token() as usize + 1;
    let scores = |rows: usize| Tensor::zeros((rows, width), DType::F32, &Device::Cpu).unwrap();
    let excluded = [items[..items.len().min(10)].to_vec(), vec![]];
    let search = BeamSearch::new(trie, 2, 3, 1.0).unwrap();
    let mut search = search.exclude_items(&excluded).unwrap();
    while search
        .step(&scores(search.active_beams()))
        .unwrap()
        .is_some()
    {}
    search.results(0);
    let search = ExactSearch::new(trie, 2, 3, 1.0).unwrap();
    let mut search = search.exclude_items(&excluded).unwrap();
    while let Some(expansion) = search.next_expansion() {
        search.step(&scores(expansion.users.len())).unwrap();
    }
    search.results(1);
    let rows = (0..nodes.min(50)).map(|node| Row {
        position: node,
        set: node,
        target: trie.children(node).first().copied().unwrap_or(0),
    });
    let rows: Vec<Row> = rows.collect();
    let rows = Rows::from_raw(rows.len(), rows).unwrap();
    let loss = MaskedSoftmaxLoss::new(trie, 1.0).unwrap();
    // An empty set is an error, as its row has no target.
    let _ = loss.evaluate(&scores(rows.len()), &rows);
}

#[test]
fn the_fuzzed_files_are_sound_before_they_are_damaged() {
    let bytes = file(7);
    let random = &mut StdRng::seed_from_u64(0);
    assert!(open(&bytes).unwrap().verify().is_ok());
    let mut damaged = bytes.clone();
    mutate(&mut damaged, random);
    assert_ne!(damaged, bytes);
    use_all(&open(&bytes).unwrap());
}
