//! Building a trie takes memory for the tokens of its paths, however long the longest of them is.

use candle_trie::TokenTrie;

use crate::{alone, peak_of};

/// The bytes held at most, and the tokens of the paths: as many short ones as several chunks of the parallel stages
/// hold, and one of `longest` tokens.
fn peak(longest: usize) -> (usize, usize) {
    const SHORT: u32 = 40_000;
    let mut tokens: Vec<u32> = Vec::new();
    let mut offsets = vec![0];
    for item in 0..SHORT {
        tokens.extend([item % 200, item / 200, 300]);
        offsets.push(tokens.len());
    }
    tokens.extend((0..longest as u32).map(|depth| 200 + depth % 7));
    offsets.push(tokens.len());
    let ids: Vec<u64> = (1..offsets.len() as u64).collect();
    let (peak, trie) = peak_of(|| TokenTrie::from_paths(&ids, &offsets, &tokens).unwrap());
    assert_eq!(trie.leaf_count(), ids.len());
    (peak, tokens.len())
}

#[test]
fn one_long_path_among_many_short_ones_costs_memory_for_its_own_tokens() {
    let _alone = alone();
    for threads in [1, 16] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        let (short, short_tokens) = pool.install(|| peak(3));
        let (long, tokens) = pool.install(|| peak(300_000));
        let bytes = (long - short) / (tokens - short_tokens);
        assert!(bytes < 250, "{bytes} bytes a token with {threads} threads");
    }
}
