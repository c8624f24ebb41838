//! The labelled positions of a batch, each with its token set and target.

mod labels;

use bytemuck::{Pod, Zeroable};

pub use labels::Labels;

use crate::error::check_numbered;
use crate::{Error, Result, TokenSets, TokenTrie};

/// A labelled position: what it predicts, and from which tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Row {
    /// The position that it predicts from: an index into the flattened leading dimensions of the logits
    /// or hidden states.
    pub position: u32,
    /// The number of the token set that its softmax ranges over. For a trie this is the node walked to.
    pub set: u32,
    /// The token that it must predict.
    pub target: u32,
}

/// The labelled positions of a batch, each with its token set and target.
///
/// Positions that are not listed are ignored: they have loss 0 and gradient 0. Rows whose set has one token (*unary*)
/// may be listed and cost nothing.
///
/// ```
/// use candle_trie::{Rows, TokenTrie};
/// let trie = TokenTrie::new([(0, [5, 6, 9]), (1, [5, 7, 9])])?;
/// // Two responses behind prompts of different lengths, as Hugging Face labels them.
/// let labels: Vec<Vec<i64>> = vec![vec![-100, -100, 5, 6, 9], vec![-100, 5, 7, 9]];
/// let rows = Rows::from_unshifted(&trie, &labels)?;
/// assert_eq!(rows.positions(), 2 * 5);
/// assert_eq!(rows.len(), 6);
/// assert_eq!(rows.as_slice()[0].position, 1); // token 5 is at position 2 and is predicted at 1
/// assert_eq!(rows.as_slice()[0].set, trie.root());
/// # Ok::<(), candle_trie::Error>(())
/// ```
///
/// Rows that were walked along a trie know which: a loss over other token sets refuses them, as its
/// sets have other numbers. Rows [from raw parts](Self::from_raw) and [`unconstrained`](Self::unconstrained) ones
/// are taken by any loss whose sets hold their targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    positions: usize,
    rows: Vec<Row>,
    /// The token sets that they were walked along.
    made_with: Option<TokenSets>,
    marks: Option<Vec<bool>>,
    weights: Option<Vec<f32>>,
}

impl Rows {
    /// Makes rows of labels as Hugging Face has them: `labels[b][t]` is the token *at* `t`, so position
    /// `t - 1` predicts it.
    ///
    /// [`Labels`] are made from a tensor, from vectors, which may differ in length, or given as they are.
    ///
    /// Every run of labels that are not ignored is one response, walked from the trie's root. A label at
    /// position 0 is walked but predicted by nothing, as there is no position before it.
    ///
    /// # Errors
    /// [`Error::NotInTrie`] with the batch row, position, token and prefix of the first label that
    /// continues no item, [`Error::InvalidLabel`], [`Error::TooLarge`] for 2³² positions or more, and those of making [`Labels`].
    pub fn from_unshifted<L>(trie: &TokenTrie, labels: L) -> Result<Self>
    where
        L: TryInto<Labels>,
        Error: From<L::Error>,
    {
        Self::walk(Some(trie), &labels.try_into()?, 1)
    }

    /// Makes rows of labels that stand where they are predicted: position `t` predicts `labels[b][t]`.
    ///
    /// # Errors
    /// Those of [`Rows::from_unshifted`].
    pub fn from_shifted<L>(trie: &TokenTrie, labels: L) -> Result<Self>
    where
        L: TryInto<Labels>,
        Error: From<L::Error>,
    {
        Self::walk(Some(trie), &labels.try_into()?, 0)
    }

    /// Makes rows of labels that no trie constrains, and that stand where they are predicted. Every row has set 0.
    ///
    /// They serve the plain language-model loss over
    /// [`TokenSets::whole_vocabulary`](crate::TokenSets::whole_vocabulary) on text that is no item.
    /// Rows walked along a trie serve that loss too. Labels as Hugging Face has them go through
    /// [`Labels::shifted`] first.
    ///
    /// # Errors
    /// [`Error::InvalidLabel`], [`Error::TooLarge`] for 2³² positions or more, and those of making [`Labels`].
    pub fn unconstrained<L>(labels: L) -> Result<Self>
    where
        L: TryInto<Labels>,
        Error: From<L::Error>,
    {
        Self::walk(None, &labels.try_into()?, 0)
    }

    /// Makes rows from their parts, for token sets that come from no trie. `positions` is the product of
    /// the leading dimensions of the logits or hidden states.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the positions of `rows` do not rise strictly or reach `positions`, and [`Error::TooLarge`] for 2³²
    /// positions or more. Whether each target is in its set is checked by the loss, which knows the sets.
    pub fn from_raw(positions: usize, rows: Vec<Row>) -> Result<Self> {
        check_numbered("positions", positions)?;
        let malformed = |detail| Error::Malformed {
            what: "rows",
            detail,
        };
        if let Some(pair) = rows
            .windows(2)
            .find(|pair| pair[0].position >= pair[1].position)
        {
            return Err(malformed(format!(
                "positions must rise strictly, but {} is followed by {}",
                pair[0].position, pair[1].position
            )));
        }
        match rows.last() {
            Some(last) if last.position as usize >= positions => Err(malformed(format!(
                "position {} does not exist, there are {positions}",
                last.position
            ))),
            _ => Ok(Self {
                positions,
                rows,
                made_with: None,
                marks: None,
                weights: None,
            }),
        }
    }

    /// Marks the statistics rows for [`Scope::Marked`](crate::Scope::Marked), with one flag for each row.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there are not as many flags as rows.
    pub fn with_marks(mut self, marks: Vec<bool>) -> Result<Self> {
        self.check_length("statistics marks", marks.len())?;
        self.marks = Some(marks);
        Ok(self)
    }

    /// Gives every row a weight, which is 1 by default. A row's loss is multiplied by it, and means divide by the sum of
    /// the weights. Statistics ignore weights.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there are not as many weights as rows;
    /// [`Error::OutOfRange`] for a weight that is negative or not finite.
    pub fn with_weights(mut self, weights: Vec<f32>) -> Result<Self> {
        self.check_length("row weights", weights.len())?;
        if let Some(&weight) = weights
            .iter()
            .find(|weight| !(**weight >= 0.0 && weight.is_finite()))
        {
            return Err(Error::OutOfRange {
                name: "row weight",
                value: f64::from(weight),
                expected: "finite and not negative",
            });
        }
        self.weights = Some(weights);
        Ok(self)
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the number of flattened positions that the rows were made for, ignored ones included.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Returns the rows in the order of their positions.
    pub fn as_slice(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the marks of the statistics rows, one for each row, if the caller gave some.
    pub fn marks(&self) -> Option<&[bool]> {
        self.marks.as_deref()
    }

    /// Returns the weights, one for each row, if the caller gave some.
    pub fn weights(&self) -> Option<&[f32]> {
        self.weights.as_deref()
    }

    /// Returns the weight of row `row`, which is 1 where the caller gave none.
    pub fn weight(&self, row: usize) -> f32 {
        (self.weights.as_ref()).map_or(1.0, |weights| weights.get(row).copied().unwrap_or(0.0))
    }

    /// Returns the number of rows whose set has more than one token.
    pub fn branching_count(&self, sets: &TokenSets) -> usize {
        (self.rows.iter())
            .filter(|row| sets.get(row.set).is_some_and(|set| set.len() > 1))
            .count()
    }

    /// Refuses sets that are not those of the trie that the rows were walked along. The whole vocabulary is
    /// the same set whatever number a row has for it.
    pub(crate) fn check_sets(&self, sets: &TokenSets) -> Result<()> {
        // Fingerprints read all sets, and are needed only for tries that were read or built twice.
        let made_with = self.made_with.as_ref().filter(|made| !made.is_same(sets));
        let fingerprint = made_with.and_then(TokenSets::fingerprint);
        let (Some(made_with), Some(expected)) = (fingerprint, sets.fingerprint()) else {
            return Ok(());
        };
        if made_with == expected {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "rows",
            expected: format!(
                "rows made with the trie of this loss ({expected}), or by Rows::from_raw for sets that \
                 are no trie's"
            ),
            actual: format!("rows made with another trie ({made_with})"),
        })
    }

    fn check_length(&self, what: &'static str, actual: usize) -> Result<()> {
        if actual == self.rows.len() {
            return Ok(());
        }
        Err(Error::LengthMismatch {
            what,
            expected: self.rows.len(),
            actual,
        })
    }

    /// Walks the labels. A row predicts from `shift` positions before its label.
    fn walk(trie: Option<&TokenTrie>, labels: &Labels, shift: usize) -> Result<Self> {
        check_numbered("positions", labels.tokens.len())?;
        let mut rows = Vec::new();
        for (batch_row, line) in labels.lines().enumerate() {
            let mut node = 0;
            let mut response = 0;
            for (position, &label) in line.iter().enumerate() {
                let Some(target) = label else {
                    (node, response) = (0, position + 1);
                    continue;
                };
                if position >= shift {
                    rows.push(Row {
                        position: (batch_row * labels.length + position - shift) as u32,
                        set: node,
                        target,
                    });
                }
                if let Some(trie) = trie {
                    node = trie.child(node, target).ok_or_else(|| Error::NotInTrie {
                        batch_row,
                        position,
                        token: target,
                        prefix: line[response..position].iter().copied().flatten().collect(),
                        choices: trie.children(node).len(),
                    })?;
                }
            }
        }
        Ok(Self {
            positions: labels.tokens.len(),
            rows,
            made_with: trie.map(|trie| trie.sets().clone()),
            marks: None,
            weights: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie() -> TokenTrie {
        TokenTrie::new([(0, vec![5, 6, 9]), (1, vec![5, 7, 8, 9])]).unwrap()
    }

    fn row(position: u32, set: u32, target: u32) -> Row {
        Row {
            position,
            set,
            target,
        }
    }

    #[test]
    fn unshifted_labels_are_predicted_one_position_earlier() {
        let trie = trie();
        let labels = vec![vec![-100, 5, 6, 9], vec![-100, -100, 5, 7]];
        let rows = Rows::from_unshifted(&trie, &labels).unwrap();
        let after_five = trie.walk(&[5]).unwrap();
        let expected = [
            row(0, 0, 5),
            row(1, after_five, 6),
            row(2, trie.walk(&[5, 6]).unwrap(), 9),
            row(5, 0, 5),
            row(6, after_five, 7),
        ];
        assert_eq!(rows.as_slice(), expected);
        assert_eq!(rows.branching_count(trie.sets()), 2);
    }

    #[test]
    fn a_label_at_position_zero_is_walked_but_not_predicted() {
        let trie = trie();
        let rows = Rows::from_unshifted(&trie, &vec![vec![5, 6, 9]]).unwrap();
        assert_eq!(rows.as_slice()[0], row(0, trie.walk(&[5]).unwrap(), 6));
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn ignored_labels_part_two_responses_of_one_batch_row() {
        let trie = trie();
        let rows = Rows::from_shifted(&trie, &vec![vec![5, 6, 9, -100, 5, 7]]).unwrap();
        let sets: Vec<u32> = rows.as_slice().iter().map(|row| row.set).collect();
        assert_eq!((sets[0], sets[3]), (0, 0));
        assert_eq!(sets[1], sets[4]);
    }

    #[test]
    fn a_label_outside_the_trie_is_an_error_with_its_prefix() {
        let labels = vec![vec![-100, -100, -100], vec![-100, 5, 8]];
        let error = Rows::from_unshifted(&trie(), &labels).unwrap_err();
        assert!(
            matches!(
                &error,
                Error::NotInTrie { batch_row: 1, position: 2, token: 8, prefix, choices: 2 }
                    if prefix == &[5]
            ),
            "{error}"
        );
        let after_the_end = Rows::from_shifted(&trie(), &vec![vec![5, 6, 9, 5]]).unwrap_err();
        assert!(matches!(after_the_end, Error::NotInTrie { choices: 0, .. }));
    }

    #[test]
    fn shifted_labels_stand_where_they_are_predicted() {
        let labels = Labels::new(&[7, -100, 5, 6, 4, 3], 3).unwrap().shifted();
        let rows = Rows::unconstrained(labels).unwrap();
        assert_eq!(rows.as_slice(), [row(1, 0, 5), row(3, 0, 4), row(4, 0, 3)]);
    }

    #[test]
    fn labels_of_every_integer_type_and_by_reference_give_the_same_rows() {
        let trie = trie();
        let expected = Rows::from_shifted(&trie, &vec![vec![5i64, 7], vec![5, 6]]).unwrap();
        let ignored = u32::MAX;
        let lines = vec![vec![5u32, 7, ignored], vec![5, 6]];
        let unsigned = Rows::from_shifted(&trie, &lines).unwrap();
        assert_eq!(unsigned.as_slice()[..2], expected.as_slice()[..2]);
        let signed = Rows::from_shifted(&trie, &vec![vec![5i32, 7], vec![5, 6]]).unwrap();
        assert_eq!(signed, expected);
        let labels = Labels::new(&[5, 7, 5, 6], 2).unwrap();
        assert_eq!(Rows::from_shifted(&trie, &labels).unwrap(), expected);
        assert_eq!(Rows::from_shifted(&trie, labels).unwrap(), expected);
    }

    #[test]
    fn empty_batches_give_no_rows() {
        for labels in [vec![], vec![vec![]], vec![vec![-100; 3]]] {
            assert!(Rows::from_unshifted(&trie(), &labels).unwrap().is_empty());
        }
    }

    #[test]
    fn raw_rows_must_rise_and_stay_inside_the_batch() {
        assert!(Rows::from_raw(3, vec![row(0, 0, 5), row(2, 0, 5)]).is_ok());
        assert!(Rows::from_raw(2, vec![row(2, 0, 5)]).is_err());
        assert!(Rows::from_raw(3, vec![row(1, 0, 5), row(1, 0, 5)]).is_err());
    }

    #[test]
    fn weights_and_marks_must_fit_the_rows() {
        let rows = || Rows::from_raw(3, vec![row(0, 0, 5), row(2, 0, 5)]).unwrap();
        assert!(rows().with_weights(vec![1.0]).is_err());
        assert!(rows().with_weights(vec![1.0, f32::NAN]).is_err());
        assert!(rows().with_weights(vec![1.0, -1.0]).is_err());
        assert!(rows().with_marks(vec![true; 3]).is_err());
        assert_eq!(rows().with_weights(vec![0.5, 2.0]).unwrap().weight(1), 2.0);
    }
}
