//! Fingerprints of token sets, by which rows and losses that do not belong together are told.

use std::fmt;

use rayon::prelude::*;

/// A fingerprint that tells listed token sets from others. Equal sets have equal fingerprints, however they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    sets: usize,
    tokens: usize,
    hash: u64,
}

impl Fingerprint {
    /// The number of values that one thread hashes at a time.
    const CHUNK: usize = 1 << 16;

    /// Computes the fingerprint of the sets of these arrays.
    pub fn of(offsets: &[u32], tokens: &[u32]) -> Self {
        let hashes = [offsets, tokens].map(Self::hash);
        Self {
            sets: offsets.len().saturating_sub(1),
            tokens: tokens.len(),
            hash: Self::step(hashes[0], hashes[1]),
        }
    }

    /// Hashes each chunk, and then the hashes, so that the result is the same for any number of threads.
    fn hash(values: &[u32]) -> u64 {
        let of_chunk =
            |chunk: &[u32]| (chunk.iter()).fold(0, |hash, &value| Self::step(hash, value.into()));
        let chunks: Vec<u64> = values.par_chunks(Self::CHUNK).map(of_chunk).collect();
        chunks.into_iter().fold(values.len() as u64, Self::step)
    }

    /// Mixes a value into a hash. The result is one to one in the value, so that no change of one value is lost. The shift
    /// brings the product's high bits, which depend on all others, down to the low ones. A hash of 0 does not stay 0.
    fn step(hash: u64, value: u64) -> u64 {
        let mixed = (hash ^ value)
            .wrapping_add(0x9e37_79b9_7f4a_7c15)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sets, tokens, hash } = self;
        write!(
            formatter,
            "sets: {sets}, tokens: {tokens}, hash: {hash:016x}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenSets;

    #[test]
    fn equal_sets_have_equal_fingerprints_and_others_have_not() {
        let fingerprint = |offsets: &[u32], tokens: &[u32]| {
            let sets = TokenSets::from_raw(offsets.to_vec(), tokens.to_vec()).unwrap();
            assert_eq!(sets.fingerprint(), sets.clone().fingerprint());
            sets.fingerprint().unwrap()
        };
        let one = fingerprint(&[0, 2, 3], &[4, 7, 5]);
        assert_eq!(one, fingerprint(&[0, 2, 3], &[4, 7, 5]));
        for other in [
            fingerprint(&[0, 2, 3], &[4, 7, 6]),
            fingerprint(&[0, 2, 3], &[4, 8, 5]),
            fingerprint(&[0, 1, 3], &[4, 5, 7]),
            fingerprint(&[0, 2, 3, 3], &[4, 7, 5]),
            fingerprint(&[0, 0, 2, 3], &[4, 7, 5]),
        ] {
            assert_ne!(one, other);
        }
        // Zeros, of which there may be any number, and chunks that could change places.
        let many = |tokens: u32| {
            let mut offsets: Vec<u32> = (0..=tokens).collect();
            offsets.insert(0, 0);
            offsets
        };
        let chunk = Fingerprint::CHUNK;
        let first = [vec![3; chunk], vec![0; chunk]].concat();
        let second = [vec![0; chunk], vec![3; chunk]].concat();
        let offsets = many(2 * chunk as u32);
        assert_ne!(
            fingerprint(&offsets, &first),
            fingerprint(&offsets, &second)
        );
        let (short, long) = (many(chunk as u32), many(chunk as u32 + 1));
        assert_ne!(
            fingerprint(&short, &vec![0; chunk]).hash,
            fingerprint(&long, &vec![0; chunk + 1]).hash
        );
        assert_eq!(TokenSets::whole_vocabulary(9).unwrap().fingerprint(), None);
    }
}
