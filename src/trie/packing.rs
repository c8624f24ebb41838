//! Sort keys: the first tokens of a path in one number, so that comparing numbers compares paths.

use std::ops::Range;

use rayon::prelude::*;

/// Fewer paths than this are not worth a second thread.
const PATHS_PER_CHUNK: usize = 4096;

/// Cuts so many paths into stretches, a few for each thread.
pub(super) fn chunks(paths: usize) -> Vec<Range<usize>> {
    let length = paths
        .div_ceil(4 * rayon::current_num_threads())
        .max(PATHS_PER_CHUNK);
    (0..paths)
        .step_by(length)
        .map(|start| start..(start + length).min(paths))
        .collect()
}

/// The layout of a key: tokens one after the other from the highest bit down, each as wide as
/// the depth with the widest span needs, counted from the lowest token of its depth. Where a path may
/// have ended, a zero says that it has, and sorts first.
pub(super) struct Packing {
    /// The width of a token in bits, 1 to 32.
    bits: u32,
    /// The token that is packed as a zero, for every depth that a key holds: where paths may have
    /// ended, the one below the lowest.
    zeros: Vec<u32>,
}

/// The ranges of the lengths and tokens of the paths.
pub(super) struct Survey {
    /// The length of the shortest path.
    pub shortest: usize,
    /// The lowest token of every depth that a path reaches.
    pub lowest: Vec<u32>,
    /// The highest token of every depth that a path reaches.
    pub highest: Vec<u32>,
}

/// Surveys every token. The error is the index of the first path that is none, for its offsets do not rise or exceed
/// the tokens.
pub(super) fn survey(offsets: &[usize], tokens: &[u32]) -> Result<Survey, usize> {
    let of_chunk = |chunk: Range<usize>| {
        let mut survey = Survey::none();
        for path in chunk {
            match tokens.get(offsets[path]..offsets[path + 1]) {
                None | Some([]) => return Err(path),
                Some(path) => survey.widen(path.len(), path, path),
            }
        }
        Ok(survey)
    };
    let parts: Vec<_> = (chunks(offsets.len() - 1).into_par_iter())
        .map(of_chunk)
        .collect();
    // In order, so that of several paths that are none always the same is named.
    (parts.into_iter()).try_fold(Survey::none(), |mut survey, part| {
        let part = part?;
        survey.widen(part.shortest, &part.lowest, &part.highest);
        Ok(survey)
    })
}

impl Survey {
    fn none() -> Self {
        Self {
            shortest: usize::MAX,
            lowest: Vec::new(),
            highest: Vec::new(),
        }
    }

    /// Widens the span of every depth so that it holds another.
    fn widen(&mut self, shortest: usize, lowest: &[u32], highest: &[u32]) {
        self.shortest = self.shortest.min(shortest);
        for (known, &token) in self.lowest.iter_mut().zip(lowest) {
            *known = token.min(*known);
        }
        for (known, &token) in self.highest.iter_mut().zip(highest) {
            *known = token.max(*known);
        }
        let known = self.lowest.len();
        if known < lowest.len() {
            self.lowest.extend_from_slice(&lowest[known..]);
            self.highest.extend_from_slice(&highest[known..]);
        }
    }
}

impl Packing {
    /// Makes the layout of as many leading tokens as 128 bits hold.
    pub fn new(survey: &Survey) -> Self {
        let spans = survey.lowest.iter().zip(&survey.highest).enumerate();
        let (zeros, widths): (Vec<_>, Vec<_>) = spans
            .map(|(depth, (lowest, &highest))| {
                let zero = lowest.wrapping_sub(u32::from(depth >= survey.shortest));
                // Tokens are below u32::MAX, so one more value fits.
                (zero, u32::BITS - highest.wrapping_sub(zero).leading_zeros())
            })
            .unzip();
        let bits = widths.into_iter().max().unwrap_or(0).max(1);
        let tokens = (u128::BITS / bits) as usize;
        Self {
            bits,
            zeros: zeros.into_iter().take(tokens).collect(),
        }
    }

    /// Returns the number of leading tokens that a key holds.
    pub fn tokens(&self) -> usize {
        self.zeros.len()
    }

    pub fn pack(&self, path: &[u32]) -> u128 {
        // At most 32, which the compiler does not know; a shift known to be below 64 takes half the
        // instructions.
        let bits = self.bits % u64::BITS;
        let mut key = 0;
        let mut left = u128::BITS;
        for (token, &zero) in path.iter().zip(&self.zeros) {
            key = (key << bits) | u128::from(token.wrapping_sub(zero));
            left -= bits;
        }
        key << left
    }

    /// Returns the largest number of leading tokens that the highest `bits` of a key are made of.
    pub fn tokens_in(&self, bits: u32) -> usize {
        bits.div_ceil(self.bits) as usize
    }

    /// Returns the token at `depth`, which must be below [`tokens`](Self::tokens) and the path's length.
    pub fn token(&self, key: u128, depth: usize) -> u32 {
        let above = self.bits * depth as u32;
        let highest = ((key << above) >> u64::BITS) as u64;
        ((highest >> (u64::BITS - self.bits)) as u32).wrapping_add(self.zeros[depth])
    }

    /// Returns the number of leading tokens that two keys share.
    pub fn shared(&self, a: u128, b: u128) -> usize {
        let bits = (a ^ b).leading_zeros();
        ((bits / self.bits) as usize).min(self.tokens())
    }
}
