//! A batch of semantic IDs: items that are named by three codes, as generative retrieval names them.

use std::collections::BTreeMap;

use candle_trie::{Row, Rows, TokenSets};

use super::{LLAMA_3_VOCABULARY, Shape};

const LEVELS: usize = 3;
const CODES: u32 = 256;
/// Tokens of all levels, which follow those of the model's own vocabulary.
pub const TOKENS: usize = LEVELS * CODES as usize;
/// Items of the catalogue.
const ITEMS: f64 = 1e7;
const RESPONSES: u64 = 512;

/// Returns the rows of 512 responses over a catalogue of 10 million random items, as if the prompts were left out.
///
/// The catalogue itself is not built. Ten million items that are drawn uniformly, with replacement, from the
/// 256³ paths leave a path empty with probability exp(−10⁷/256³), nearly independently of all others; so a path here is in the
/// catalogue where a hash of its codes is below that bound. Every code of the first two levels then has items below it
/// (each pair of codes has about 153), so their sets are whole; a third level has 115 of 256 codes on average. Only the sets that
/// rows name are made. A response is a path that is drawn uniformly from those of the catalogue.
pub fn batch() -> Shape {
    let mut rows = Vec::new();
    let mut sets = Sets::default();
    for response in 0..RESPONSES {
        let path = response_path(response);
        for level in 0..LEVELS {
            rows.push(Row {
                position: rows.len() as u32,
                set: sets.of(&path[..level]),
                target: token(level, path[level]),
            });
        }
    }
    Shape {
        rows: Rows::from_raw(rows.len(), rows).expect("positions that rise"),
        sets: TokenSets::from_raw(sets.offsets, sets.tokens).expect("tokens that rise"),
    }
}

/// The sets that have been named so far, the root's first.
struct Sets {
    by_prefix: BTreeMap<Vec<u32>, u32>,
    offsets: Vec<u32>,
    tokens: Vec<u32>,
}

impl Default for Sets {
    fn default() -> Self {
        Self {
            by_prefix: BTreeMap::new(),
            offsets: vec![0],
            tokens: Vec::new(),
        }
    }
}

impl Sets {
    /// The number of the set of codes that may follow a prefix.
    fn of(&mut self, prefix: &[u32]) -> u32 {
        if let Some(&set) = self.by_prefix.get(prefix) {
            return set;
        }
        let level = prefix.len();
        let follows = |&code: &u32| match prefix {
            &[first, second] => is_item([first, second, code]),
            _ => true,
        };
        (self.tokens).extend((0..CODES).filter(follows).map(|code| token(level, code)));
        self.offsets.push(self.tokens.len() as u32);
        let set = self.by_prefix.len() as u32;
        self.by_prefix.insert(prefix.to_vec(), set);
        set
    }
}

fn token(level: usize, code: u32) -> u32 {
    LLAMA_3_VOCABULARY as u32 + level as u32 * CODES + code
}

/// The codes of an item: the first of a sequence of random paths that is in the catalogue.
fn response_path(response: u64) -> [u32; LEVELS] {
    let path = |attempt: u64| {
        let bits = hash(1 << 40 | response << 20 | attempt);
        [0, 8, 16].map(|shift| (bits >> shift) as u32 % CODES)
    };
    (0..)
        .map(path)
        .find(|&path| is_item(path))
        .expect("endless")
}

/// Whether a path is in the catalogue.
fn is_item(path: [u32; LEVELS]) -> bool {
    let paths = f64::from(CODES).powi(LEVELS as i32);
    let share = 1.0 - (-ITEMS / paths).exp();
    let index = (path.iter()).fold(0, |index, &code| index * u64::from(CODES) + u64::from(code));
    (hash(index) as f64) < share * u64::MAX as f64
}

/// Mixes all bits of a number (the finalizer of SplitMix64).
fn hash(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
