//! Files damaged in every way there is.

use candle_trie::TokenTrie;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::allocations::LARGEST;
use crate::assert_is_a_trie;
use crate::fuzz::for_seeds;

#[test]
fn mutated_files_give_an_error_or_a_trie_and_allocate_little_more_than_they_hold() {
    let sound: Vec<Vec<u8>> = [2, 7, 1000].map(file).into();
    for_seeds(5000, |random| {
        let mut bytes = sound.choose(random).unwrap().clone();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut bytes, random);
        }
        LARGEST.set(0);
        let read = TokenTrie::from_bytes(&bytes);
        let largest = LARGEST.get();
        assert!(
            largest <= 4096 + 4 * bytes.len(),
            "allocated {largest} bytes at once for a file of {}",
            bytes.len()
        );
        if let Ok(trie) = read {
            assert_is_a_trie(&trie);
        }
    });
}

/// The file of a trie over this many tokens.
pub fn file(tokens: u32) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(u64::from(tokens));
    let path = |id| {
        let length = random.random_range(0..6);
        let path = (0..length).map(|_| random.random_range(0..tokens));
        (id, path.chain([tokens]).collect::<Vec<_>>())
    };
    let trie = TokenTrie::new((0..20).map(path)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    trie.save(file.path()).unwrap();
    std::fs::read(file.path()).unwrap()
}

/// Changes bytes anywhere, or the arrays alone: few files whose header was hit come as far as these.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let header = bytes
        .first_chunk()
        .map_or(0, |&length| u64::from_le_bytes(length));
    let arrays = usize::try_from(header)
        .unwrap_or(0)
        .saturating_add(8)
        .min(bytes.len());
    let first = if random.random() { arrays } else { 0 };
    if first == bytes.len() {
        return;
    }
    let at = random.random_range(first..bytes.len());
    let length = random.random_range(0..=(bytes.len() - at).min(64));
    let piece = bytes[at..at + length].to_vec();
    match random.random_range(0..7) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = *b"0123456789[]{},:\"\\".choose(random).unwrap(),
        2 => bytes.truncate(at),
        3 => drop(bytes.splice(at..at + length, [])),
        4 => drop(bytes.splice(at..at, piece)),
        5 => bytes[at..at + length].fill(*[0, u8::MAX, 0x80].choose(random).unwrap()),
        // A number of an array, near to what it was or to the largest.
        _ => {
            let at = arrays + (at - first) / 4 * 4;
            if let Some(number) = bytes.get_mut(at..at + 4) {
                let old = u32::from_le_bytes(number.try_into().unwrap());
                let new = *[old ^ 1, old.wrapping_sub(1), old.wrapping_add(2), u32::MAX]
                    .choose(random)
                    .unwrap();
                number.copy_from_slice(&new.to_le_bytes());
            }
        }
    }
}
