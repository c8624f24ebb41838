//! The sets of tokens that a softmax is restricted to.

mod fingerprint;

use std::sync::{Arc, OnceLock};

use crate::array::Array;
use crate::{Error, Result};

pub(crate) use fingerprint::Fingerprint;

/// Token sets, numbered from 0, each with the tokens that a row's softmax ranges over.
///
/// They are stored as compressed sparse rows (`offsets[s]..offsets[s + 1]` index `tokens`, strictly rising
/// inside a set), or as the whole vocabulary, which is not stored: every set number then stands for all tokens.
/// A [`TokenTrie`](crate::TokenTrie) has a token set for each node, with the tokens of its children. Custom masks are made
/// by [`TokenSets::from_raw`].
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
    Listed(Arc<Listed>),
    WholeVocabulary { size: u32 },
}

#[derive(Debug)]
struct Listed {
    offsets: Array<u32>,
    tokens: Array<u32>,
    max_token: u32,
    /// Whether the arrays are known to be sound. Those of a mapped file are not, and each set is checked when it is asked for.
    checked: bool,
    /// The fingerprint of the arrays, computed when it is first asked for.
    fingerprint: OnceLock<Fingerprint>,
}

impl Listed {
    /// Returns where the tokens of a set begin among those of all sets, and the tokens.
    fn get(&self, set: u32) -> Option<(u32, &[u32])> {
        let offsets: &[u32] = &self.offsets;
        let start = *offsets.get(set as usize)?;
        let end = *offsets.get(set as usize + 1)?;
        let tokens = self.tokens.get(start as usize..end as usize);
        let sound = tokens.filter(|tokens| self.checked || self.is_sound(set, start, tokens));
        Some((start, sound.unwrap_or(&[])))
    }

    /// Returns the size of a set by its bounds alone, or 0 where there is no such set.
    fn size(&self, set: u32) -> u32 {
        let bounds = self
            .offsets
            .get(set as usize..)
            .and_then(<[u32]>::first_chunk);
        bounds.map_or(0, |[start, end]| end.saturating_sub(*start))
    }

    /// Returns whether the tokens rise and are no larger than they may be, and whether the nodes that they lead to come after
    /// the set's own, as they do in a trie. Nobody can then index beyond the vocabulary, or walk in a circle.
    fn is_sound(&self, set: u32, start: u32, tokens: &[u32]) -> bool {
        let Some(&last) = tokens.last() else {
            return true;
        };
        // Without an early end it is several comparisons an instruction.
        let pairs = tokens.iter().zip(&tokens[1..]);
        let rise = pairs.fold(true, |rise, (a, b)| rise & (a < b));
        start >= set && last <= self.max_token && rise
    }

    fn check(&self) -> Result<()> {
        let (offsets, tokens) = (&*self.offsets, &*self.tokens);
        check_offsets("token sets", offsets, tokens.len())?;
        for (set, bounds) in offsets.windows(2).enumerate() {
            let tokens = &tokens[bounds[0] as usize..bounds[1] as usize];
            if let Some(pair) = tokens.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(malformed(format!(
                    "the tokens of set {set} must rise strictly, but {} is followed by {}",
                    pair[0], pair[1]
                )));
            }
        }
        match max_token(tokens) {
            largest if largest == self.max_token => Ok(()),
            largest => Err(malformed(format!(
                "the largest token must be {}, but is {largest}",
                self.max_token
            ))),
        }
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Self) -> bool {
        (&self.offsets, &self.tokens) == (&other.offsets, &other.tokens)
    }
}

impl Eq for Listed {}

impl TokenSets {
    /// Makes sets from their raw parts. `offsets` starts at 0, never falls and ends at `tokens.len()`, and
    /// the tokens of a set rise strictly.
    ///
    /// # Errors
    /// [`Error::Malformed`] names the first place where that does not hold.
    pub fn from_raw(offsets: Vec<u32>, tokens: Vec<u32>) -> Result<Self> {
        let max_token = max_token(&tokens);
        let sets = Self::from_checked(offsets, tokens, max_token);
        sets.check()?;
        Ok(sets)
    }

    /// Makes the set of all tokens `0..size`, which the plain language-model loss has, without storing it.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when `size` does not fit 32 bits, and [`Error::OutOfRange`] when it is 0.
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

    /// Makes sets whose parts the caller has checked, or has built so that they need no check, given the
    /// largest token in them.
    pub(crate) fn from_checked(offsets: Vec<u32>, tokens: Vec<u32>, max_token: u32) -> Self {
        Self::new(offsets.into(), tokens.into(), max_token, true)
    }

    /// Makes sets of arrays, and says whether they were checked.
    pub(crate) fn new(
        offsets: Array<u32>,
        tokens: Array<u32>,
        max_token: u32,
        checked: bool,
    ) -> Self {
        Self(Kind::Listed(Arc::new(Listed {
            offsets,
            tokens,
            max_token,
            checked,
            fingerprint: OnceLock::new(),
        })))
    }

    /// Checks all sets, as [`from_raw`](Self::from_raw) does.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.0 {
            Kind::Listed(listed) => listed.check(),
            Kind::WholeVocabulary { .. } => Ok(()),
        }
    }

    /// Returns the arrays for a device, whose kernels look at no bounds: those that were not checked are checked now.
    pub(crate) fn to_upload(&self) -> Result<Option<(&[u32], &[u32])>> {
        match &self.0 {
            Kind::Listed(listed) if !listed.checked => listed.check()?,
            _ => {}
        }
        Ok(self.as_raw())
    }

    /// Returns whether both are the same sets in memory, and not only equal ones.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::Listed(a), Kind::Listed(b)) => Arc::ptr_eq(a, b),
            _ => self == other,
        }
    }

    /// Returns the size of a listed set by its bounds alone. A set that is damaged has fewer tokens: none.
    pub(crate) fn listed_size(&self, set: u32) -> u32 {
        match &self.0 {
            Kind::Listed(listed) => listed.size(set),
            Kind::WholeVocabulary { .. } => 0,
        }
    }

    /// Returns where the tokens of a listed set begin among those of all sets, and the tokens.
    pub(crate) fn listed(&self, set: u32) -> Option<(u32, &[u32])> {
        match &self.0 {
            Kind::Listed(listed) => listed.get(set),
            Kind::WholeVocabulary { .. } => None,
        }
    }

    /// Returns the tokens of set `set`, or `None` where there is no such set.
    pub fn get(&self, set: u32) -> Option<TokenSet<'_>> {
        match &self.0 {
            Kind::Listed(listed) => listed.get(set).map(|(_, tokens)| TokenSet::Listed(tokens)),
            Kind::WholeVocabulary { size } => Some(TokenSet::All { size: *size }),
        }
    }

    /// Returns the number of sets, or `None` when every number means the whole vocabulary.
    pub fn count(&self) -> Option<usize> {
        match &self.0 {
            Kind::Listed(listed) => Some(listed.offsets.len() - 1),
            Kind::WholeVocabulary { .. } => None,
        }
    }

    /// Returns the largest token in any set, or 0 where all sets are empty.
    pub fn max_token(&self) -> u32 {
        match &self.0 {
            Kind::Listed(listed) => listed.max_token,
            Kind::WholeVocabulary { size } => size - 1,
        }
    }

    /// Returns the arrays `(offsets, tokens)`, or `None` for the whole vocabulary.
    ///
    /// Those of [`TokenTrie::open`](crate::TokenTrie::open) are as they are in the file, which nobody has checked.
    pub fn as_raw(&self) -> Option<(&[u32], &[u32])> {
        match &self.0 {
            Kind::Listed(listed) => Some((&listed.offsets, &listed.tokens)),
            Kind::WholeVocabulary { .. } => None,
        }
    }

    /// Returns what tells these sets from others, or `None` for the whole vocabulary, whose set has every number.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        match &self.0 {
            Kind::Listed(listed) => {
                let of_arrays = || Fingerprint::of(&listed.offsets, &listed.tokens);
                Some(*listed.fingerprint.get_or_init(of_arrays))
            }
            Kind::WholeVocabulary { .. } => None,
        }
    }
}

impl From<&TokenSets> for TokenSets {
    fn from(sets: &TokenSets) -> Self {
        sets.clone()
    }
}

/// A token set: a sorted list, or all tokens below a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSet<'a> {
    /// The set has these tokens, which rise strictly.
    Listed(&'a [u32]),
    /// The set has the tokens `0..size`.
    All {
        /// The size of the vocabulary, in tokens.
        size: u32,
    },
}

impl<'a> TokenSet<'a> {
    /// Returns the number of tokens in the set.
    pub fn len(self) -> usize {
        match self {
            Self::Listed(tokens) => tokens.len(),
            Self::All { size } => size as usize,
        }
    }

    /// Returns whether the set has no token.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Returns the rank of `token` in the set, counted from 0, or `None` where the set does not have it.
    pub fn position(self, token: u32) -> Option<usize> {
        match self {
            Self::Listed(tokens) => tokens.binary_search(&token).ok(),
            Self::All { size } => (token < size).then_some(token as usize),
        }
    }

    /// Iterates over the tokens in rising order.
    pub fn iter(self) -> impl Iterator<Item = u32> + 'a {
        let (listed, all) = match self {
            Self::Listed(tokens) => (tokens, 0..0),
            Self::All { size } => (&[][..], 0..size),
        };
        listed.iter().copied().chain(all)
    }
}

fn max_token(tokens: &[u32]) -> u32 {
    tokens.iter().copied().max().unwrap_or(0)
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
