//! Files that are not laid out as a trie file is.

use candle_trie::{Error, TokenTrie};
use safetensors::Dtype;

use crate::parts::{raw, sound, sound_trie, tampered};
use crate::{assert_is_a_trie, assert_refused};

#[test]
fn the_parts_that_these_tests_tamper_with_are_sound() {
    assert_eq!(
        TokenTrie::from_bytes(&sound().bytes()).unwrap(),
        sound_trie()
    );
    assert_is_a_trie(&sound_trie());
}

#[test]
fn the_same_trie_is_saved_as_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let saved = |name: &str| {
        let path = folder.path().join(name);
        sound_trie().save(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    let first = saved("0");
    // Of two keys of metadata, each order is as likely where it is left to a hash map.
    for attempt in 1..12 {
        assert!(saved(&attempt.to_string()) == first, "attempt {attempt}");
    }
    // Other readers of safetensors map the arrays: they begin at a multiple of their width.
    let header = u64::from_le_bytes(first[..8].try_into().unwrap());
    assert!(header.is_multiple_of(8));
}

#[test]
fn a_saved_trie_loads_as_it_was() {
    let file = tempfile::NamedTempFile::new().unwrap();
    sound_trie().save(file.path()).unwrap();
    assert_eq!(TokenTrie::load(file.path()).unwrap(), sound_trie());
    let saved = std::fs::read(file.path()).unwrap();
    assert_eq!(TokenTrie::from_bytes(&saved).unwrap(), sound_trie());
    assert!(sound_trie().to_bytes() == saved);
}

/// The writers of a path do not meet in one temporary file, and a save that fails leaves none.
#[test]
fn a_file_that_several_save_at_a_time_is_whole_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trie.safetensors");
    sound_trie().save(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    sound_trie().save(&path).unwrap();
                    assert_eq!(TokenTrie::load(&path).unwrap(), sound_trie());
                }
            });
        }
    });
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    sound_trie().save(folder.path().join("folder")).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
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
fn a_file_that_is_no_trie_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"not a trie").unwrap();
    let error = TokenTrie::load(file.path()).unwrap_err();
    assert!(
        matches!(&error, Error::MalformedFile { path, .. } if path == file.path()),
        "{error}"
    );
    let words = error.to_string();
    assert!(
        words.starts_with(&format!(
            "{} is no valid trie file: ",
            file.path().display()
        )),
        "{words}"
    );
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
