//! Which tokens may come next: the sets that a softmax is restricted to.

use std::sync::Arc;

use crate::{Error, Result};

/// A family of token sets, numbered from 0: for each, the tokens that a row's softmax ranges over.
///
/// Stored in compressed sparse rows (`offsets[s]..offsets[s + 1]` index `tokens`, strictly rising
/// inside a set), or as "the whole vocabulary", which is not stored and answers to every set number.
/// A [`TokenTrie`](crate::TokenTrie) is one maker of token sets (the set of a node is the set of
/// its children); masks from anywhere else come in through [`TokenSets::from_raw`].
///
/// Cloning is cheap: the arrays are shared.
///
/// ```
/// use candle_trie::TokenSets;
/// let sets = TokenSets::from_raw(vec![0, 2, 3], vec![4, 7, 5])?;
/// assert_eq!(sets.get(0).unwrap().iter().collect::<Vec<_>>(), [4, 7]);
/// assert_eq!(sets.get(1).unwrap().len(), 1);
/// assert!(sets.get(2).is_none());
///
/// let everything = TokenSets::whole_vocabulary(50_000)?;
/// assert_eq!(everything.get(9).unwrap().len(), 50_000);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSets(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Listed {
        offsets: Arc<Vec<u32>>,
        tokens: Arc<Vec<u32>>,
        max_token: u32,
    },
    WholeVocabulary {
        size: u32,
    },
}

impl TokenSets {
    /// Sets from their raw parts: `offsets` starts at 0, never falls and ends at `tokens.len()`;
    /// the tokens of a set rise strictly.
    ///
    /// # Errors
    /// [`Error::Malformed`] names the first place where that does not hold.
    pub fn from_raw(offsets: Vec<u32>, tokens: Vec<u32>) -> Result<Self> {
        check_offsets("token sets", &offsets, tokens.len())?;
        for (set, bounds) in offsets.windows(2).enumerate() {
            let tokens = &tokens[bounds[0] as usize..bounds[1] as usize];
            if let Some(pair) = tokens.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(malformed(format!(
                    "the tokens of set {set} must rise strictly, but {} is followed by {}",
                    pair[0], pair[1]
                )));
            }
        }
        let max_token = tokens.iter().copied().max().unwrap_or(0);
        Ok(Self::from_checked(offsets, tokens, max_token))
    }

    /// The set of all tokens `0..size`, without storing it: the plain language-model loss.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when `size` does not fit 32 bits; [`Error::OutOfRange`] when it is 0.
    pub fn whole_vocabulary(size: usize) -> Result<Self> {
        if size == 0 {
            return Err(Error::OutOfRange {
                name: "vocabulary size",
                value: 0.0,
                expected: "at least 1",
            });
        }
        let size = u32::try_from(size).map_err(|_| Error::TooLarge {
            what: "vocabulary size",
            size: size as u64,
            limit: u64::from(u32::MAX),
        })?;
        Ok(Self(Kind::WholeVocabulary { size }))
    }

    /// Sets whose parts the caller has checked, or has built so that they need no check, with the
    /// largest token in them.
    pub(crate) fn from_checked(offsets: Vec<u32>, tokens: Vec<u32>, max_token: u32) -> Self {
        Self(Kind::Listed {
            offsets: Arc::new(offsets),
            tokens: Arc::new(tokens),
            max_token,
        })
    }

    /// The tokens of set `set`, or `None` where there is no such set.
    pub fn get(&self, set: u32) -> Option<TokenSet<'_>> {
        match &self.0 {
            Kind::Listed {
                offsets, tokens, ..
            } => {
                let start = *offsets.get(set as usize)? as usize;
                let end = *offsets.get(set as usize + 1)? as usize;
                tokens.get(start..end).map(TokenSet::Listed)
            }
            Kind::WholeVocabulary { size } => Some(TokenSet::All { size: *size }),
        }
    }

    /// How many sets there are; `None` when every number means the whole vocabulary.
    pub fn count(&self) -> Option<usize> {
        match &self.0 {
            Kind::Listed { offsets, .. } => Some(offsets.len() - 1),
            Kind::WholeVocabulary { .. } => None,
        }
    }

    /// The largest token in any set (0 where all sets are empty).
    pub fn max_token(&self) -> u32 {
        match &self.0 {
            Kind::Listed { max_token, .. } => *max_token,
            Kind::WholeVocabulary { size } => size - 1,
        }
    }

    /// The arrays `(offsets, tokens)`, or `None` for the whole vocabulary.
    pub fn as_raw(&self) -> Option<(&[u32], &[u32])> {
        match &self.0 {
            Kind::Listed {
                offsets, tokens, ..
            } => Some((offsets, tokens)),
            Kind::WholeVocabulary { .. } => None,
        }
    }
}

impl From<&TokenSets> for TokenSets {
    fn from(sets: &TokenSets) -> Self {
        sets.clone()
    }
}

/// One token set: a sorted list, or all tokens below a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSet<'a> {
    /// These tokens, strictly rising.
    Listed(&'a [u32]),
    /// The tokens `0..size`.
    All {
        /// The vocabulary's size.
        size: u32,
    },
}

impl<'a> TokenSet<'a> {
    /// How many tokens the set has.
    pub fn len(self) -> usize {
        match self {
            Self::Listed(tokens) => tokens.len(),
            Self::All { size } => size as usize,
        }
    }

    /// Whether the set has no token.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The rank of `token` in the set, or `None` where it is not in it.
    pub fn position(self, token: u32) -> Option<usize> {
        match self {
            Self::Listed(tokens) => tokens.binary_search(&token).ok(),
            Self::All { size } => (token < size).then_some(token as usize),
        }
    }

    /// The tokens in rising order.
    pub fn iter(self) -> impl Iterator<Item = u32> + 'a {
        let (listed, all) = match self {
            Self::Listed(tokens) => (tokens, 0..0),
            Self::All { size } => (&[][..], 0..size),
        };
        listed.iter().copied().chain(all)
    }
}

fn malformed(detail: String) -> Error {
    Error::Malformed {
        what: "token sets",
        detail,
    }
}

/// Checks that `offsets` starts at 0, never falls, and ends at `end`.
pub(crate) fn check_offsets(what: &'static str, offsets: &[u32], end: usize) -> Result<()> {
    let malformed = |detail| Error::Malformed { what, detail };
    match (offsets.first(), offsets.last()) {
        (Some(0), Some(&last)) if last as usize == end => {}
        (Some(&first), Some(&last)) => {
            return Err(malformed(format!(
                "offsets must run from 0 to {end}, but run from {first} to {last}"
            )));
        }
        _ => return Err(malformed("offsets must hold at least one entry".into())),
    }
    match offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        Some(index) => Err(malformed(format!(
            "offsets must not fall, but {} is followed by {} at index {}",
            offsets[index],
            offsets[index + 1],
            index + 1
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_parts_are_refused_with_their_numbers() {
        for (offsets, tokens, part) in [
            (vec![], vec![], "at least one"),
            (vec![1, 1], vec![4], "from 1 to 1"),
            (vec![0, 2], vec![4], "from 0 to 2"),
            (
                vec![0, 2, 1, 2],
                vec![4, 5],
                "2 is followed by 1 at index 2",
            ),
            (vec![0, 2], vec![5, 5], "5 is followed by 5"),
            (vec![0, 0, 2], vec![6, 5], "set 1 must rise strictly"),
        ] {
            let error = TokenSets::from_raw(offsets, tokens)
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn empty_sets_and_no_sets_are_sets() {
        assert_eq!(
            TokenSets::from_raw(vec![0], vec![]).unwrap().count(),
            Some(0)
        );
        let sets = TokenSets::from_raw(vec![0, 0, 1], vec![9]).unwrap();
        assert!(sets.get(0).unwrap().is_empty());
        assert_eq!(sets.get(1).unwrap().position(9), Some(0));
        assert_eq!(sets.get(1).unwrap().position(8), None);
        assert_eq!(sets.max_token(), 9);
    }

    #[test]
    fn the_whole_vocabulary_holds_each_token_once() {
        let sets = TokenSets::whole_vocabulary(3).unwrap();
        let set = sets.get(7).unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((set.position(2), set.position(3)), (Some(2), None));
        assert!(TokenSets::whole_vocabulary(0).is_err());
    }
}
