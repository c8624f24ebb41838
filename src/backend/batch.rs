//! A batch resolved against its token sets: the rows that need any arithmetic, and what each is
//! worth.

use crate::{Bear, Error, Result, Rows, Scope, Statistics, TokenSet, TokenSets};

/// The rows of a batch that have something to compute: the branching ones, and those whose logits
/// the statistics are taken from.
#[derive(Debug)]
pub(crate) struct Batch {
    pub sets: TokenSets,
    /// The flattened leading dimensions.
    pub positions: usize,
    pub rows: Vec<BatchRow>,
    /// Whether the loss is multiplied by τ.
    pub times_temperature: bool,
    /// Whether infinite and NaN logits are an error.
    pub checked: bool,
    /// Whether the result is one number, or one for each position.
    pub reduced: bool,
    /// How many rows were labelled.
    pub labelled_rows: usize,
    /// How many of them branch.
    pub branching_rows: usize,
    /// The number that the weights of the rows were divided by to give their shares.
    pub denominator: f64,
    /// The share of all unary rows in the mean; `None` under another reduction.
    pub unary_loss_weight: Option<f64>,
    /// The weights of BEAR, by which a row's share is multiplied once its scores are known.
    pub bear: Option<Bear>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRow {
    /// The index in the caller's `Rows`, for messages.
    pub row: u32,
    pub position: u32,
    pub set: u32,
    /// The rank of the target in its set.
    pub rank: u32,
    /// What the row's loss counts in the result: its weight over the mean's denominator. 0 for a row
    /// that is unary or weighs nothing and has nothing but statistics.
    pub loss_weight: f64,
    /// Whether its logits enter the statistics.
    pub in_statistics: bool,
}

impl BatchRow {
    /// Returns whether the row has a loss and a gradient. Where it has none its logits may be anything, NaN
    /// too, and must not reach the result.
    pub fn has_loss(&self) -> bool {
        self.loss_weight != 0.0
    }
}

/// The denominator of a mean.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Denominator {
    LabelledWeight,
    BranchingWeight,
    Given(f64),
}

/// Refuses rows without marks where the statistics are those of marked rows.
pub(crate) fn check_marks(scope: Scope, rows: &Rows) -> Result<()> {
    if scope != Scope::Marked || rows.marks().is_some() {
        return Ok(());
    }
    Err(Error::Malformed {
        what: "rows",
        detail: "Scope::Marked takes its statistics from marked rows, but none were marked: see \
                 Rows::with_marks"
            .into(),
    })
}

impl Batch {
    /// Resolves rows against their sets. `scope` is that of an adaptive temperature, `None` where no statistics are wanted.
    pub fn new(
        sets: &TokenSets,
        rows: &Rows,
        scope: Option<Scope>,
        denominator: Denominator,
    ) -> Result<Self> {
        rows.check_sets(sets)?;
        if let Some(scope) = scope {
            check_marks(scope, rows)?;
        }
        let mut unary_weight = 0.0;
        let mut labelled_weight = 0.0;
        let mut branching_weight = 0.0;
        let mut branching_rows = 0;
        let mut resolved = Vec::with_capacity(rows.len());
        for (index, row) in rows.as_slice().iter().enumerate() {
            let set = sets.get(row.set).ok_or_else(|| Error::UnknownSet {
                row: index,
                set: row.set,
                sets: sets.count().unwrap_or(0),
            })?;
            let rank = set.position(row.target).ok_or(Error::TargetNotInSet {
                row: index,
                position: row.position,
                target: row.target,
                set: row.set,
                size: set.len(),
            })?;
            let branching = set.len() > 1;
            let weight = f64::from(rows.weight(index));
            labelled_weight += weight;
            if branching {
                branching_weight += weight;
                branching_rows += 1;
            } else {
                unary_weight += weight;
            }
            let in_statistics = match scope {
                None => false,
                Some(Scope::Root) => row.set == 0,
                Some(Scope::Branching) => branching,
                Some(Scope::Marked) => rows.marks().is_some_and(|marks| marks[index]),
            };
            let has_loss = branching && weight > 0.0;
            if has_loss || in_statistics {
                resolved.push(BatchRow {
                    row: index as u32,
                    position: row.position,
                    set: row.set,
                    rank: rank as u32,
                    loss_weight: if has_loss { weight } else { 0.0 },
                    in_statistics,
                });
            }
        }
        let (denominator, unary_loss_weight) = match denominator {
            Denominator::LabelledWeight => (labelled_weight, Some(unary_weight / labelled_weight)),
            Denominator::BranchingWeight => (branching_weight, Some(0.0)),
            Denominator::Given(denominator) => (denominator, None),
        };
        for row in &mut resolved {
            // Where no row counts the denominator may be 0, and 0/0 is no share.
            if row.has_loss() {
                row.loss_weight /= denominator;
            }
        }
        Ok(Self {
            sets: sets.clone(),
            positions: rows.positions(),
            rows: resolved,
            times_temperature: false,
            checked: false,
            reduced: true,
            labelled_rows: rows.len(),
            branching_rows,
            denominator,
            unary_loss_weight,
            bear: None,
        })
    }

    pub fn set(&self, row: &BatchRow) -> TokenSet<'_> {
        self.sets.get(row.set).unwrap_or(TokenSet::Listed(&[]))
    }

    /// Returns the vocabulary's size, where every row ranges over all of it.
    pub fn whole_vocabulary(&self) -> Option<usize> {
        match self.sets.get(0) {
            Some(TokenSet::All { size }) => Some(size as usize),
            _ => None,
        }
    }

    /// Returns the tokens of a row whose set is listed, and none for the whole vocabulary.
    pub fn listed(&self, row: &BatchRow) -> &[u32] {
        match self.set(row) {
            TokenSet::Listed(tokens) => tokens,
            TokenSet::All { .. } => &[],
        }
    }

    /// Returns how many tokens the row's softmax ranges over.
    pub fn size(&self, row: &BatchRow) -> usize {
        self.set(row).len()
    }

    /// Returns the positions without a row, rising: neither loss nor statistics read what is there.
    pub fn ignored(&self) -> Vec<u32> {
        let mut found = self.rows.iter().peekable();
        (0..self.positions as u32)
            .filter(|&position| found.next_if(|row| row.position == position).is_none())
            .collect()
    }

    /// Returns the statistics as far as they do not depend on logits.
    pub fn statistics_sizes(&self) -> Statistics {
        (self.rows.iter().filter(|row| row.in_statistics))
            .map(|row| Statistics::of_moments(self.size(row), 0.0, 0.0, 0.0))
            .fold(Statistics::default(), |sum, row| sum.merge(&row))
    }

    /// Returns what a row's loss is multiplied by in the result, besides its weight by BEAR.
    pub fn loss_factor(&self, row: &BatchRow, temperature: f64) -> f64 {
        let factor = if self.times_temperature {
            temperature
        } else {
            1.0
        };
        row.loss_weight * factor
    }

    /// Returns what p − [v = y] is multiplied by to give the gradient of the result, besides the row's weight by
    /// BEAR: τ cancels the 1/τ of the chain rule where the loss is multiplied by it.
    pub fn gradient_factor(&self, row: &BatchRow, temperature: f64) -> f64 {
        let factor = if self.times_temperature {
            1.0
        } else {
            temperature.recip()
        };
        row.loss_weight * factor
    }
}
