//! The first tokens of a path in one number, so that comparing numbers compares paths.

use std::ops::Range;

use rayon::prelude::*;

use super::build::chunks;

/// How tokens are packed into a key: each depth has a field wide enough for the tokens found there,
/// counted from the lowest, plus 1, so that the zero of a path that has ended sorts first. The first
/// token's field is the highest.
pub(super) struct Packing {
    fields: Vec<Field>,
}

#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    mask: u32,
    lowest: u32,
}

/// The lowest and the highest token at a depth.
pub(super) type Span = (u32, u32);

/// The spans of every depth that a path reaches; or the first path that is none, for its offsets do not
/// rise or leave the tokens.
pub(super) fn spans(offsets: &[usize], tokens: &[u32]) -> Result<Vec<Span>, usize> {
    let of_chunk = |chunk: Range<usize>| {
        let mut spans = Vec::new();
        for path in chunk {
            match tokens.get(offsets[path]..offsets[path + 1]) {
                None | Some([]) => return Err(path),
                Some(path) => widen(&mut spans, path.iter().map(|&token| (token, token))),
            }
        }
        Ok(spans)
    };
    let parts: Vec<_> = (chunks(offsets.len() - 1).into_par_iter())
        .map(of_chunk)
        .collect();
    // In order, so that of several paths that are none always the same is named.
    (parts.into_iter()).try_fold(Vec::new(), |mut spans, others| {
        widen(&mut spans, others?.into_iter());
        Ok(spans)
    })
}

impl Packing {
    /// As many leading tokens as 128 bits hold.
    pub fn new(spans: &[Span]) -> Self {
        let mut left = u128::BITS;
        let mut fields = Vec::new();
        for &(lowest, highest) in spans {
            // Tokens are below u32::MAX, so one more value has room.
            let bits = u32::BITS - (highest - lowest + 1).leading_zeros();
            let Some(shift) = left.checked_sub(bits) else {
                break;
            };
            left = shift;
            fields.push(Field {
                shift,
                mask: u32::MAX >> (u32::BITS - bits),
                lowest,
            });
        }
        Self { fields }
    }

    /// How many leading tokens a key holds.
    pub fn tokens(&self) -> usize {
        self.fields.len()
    }

    pub fn pack(&self, path: &[u32]) -> u128 {
        (path.iter().zip(&self.fields)).fold(0, |key, (&token, field)| {
            key | (u128::from(token - field.lowest + 1) << field.shift)
        })
    }

    /// The highest `bits` of the key of `path`, from no more tokens than they are made of.
    pub fn highest(&self, path: &[u32], bits: u32) -> usize {
        let lowest = u128::BITS - bits;
        let mut key = 0;
        for (&token, field) in path.iter().zip(&self.fields) {
            key |= u128::from(token - field.lowest + 1) << field.shift;
            if field.shift <= lowest {
                break;
            }
        }
        (key >> lowest) as usize
    }

    /// The token at `depth`, which must be below [`tokens`](Self::tokens) and the path's length.
    pub fn token(&self, key: u128, depth: usize) -> u32 {
        let field = self.fields[depth];
        ((key >> field.shift) as u32 & field.mask) - 1 + field.lowest
    }

    /// How many leading fields two keys share.
    pub fn shared(&self, a: u128, b: u128) -> usize {
        let difference = a ^ b;
        (self.fields.iter())
            .take_while(|field| difference >> field.shift == 0)
            .count()
    }
}

/// Widens the spans at every depth so that they hold others.
#[inline(always)]
fn widen(spans: &mut Vec<Span>, mut others: impl ExactSizeIterator<Item = Span>) {
    for ((lowest, highest), (low, high)) in spans.iter_mut().zip(&mut others) {
        *lowest = low.min(*lowest);
        *highest = high.max(*highest);
    }
    spans.extend(others);
}
