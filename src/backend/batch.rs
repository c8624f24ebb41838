//! A batch resolved against its token sets: the rows that need arithmetic, and the weight of each in the loss.

use crate::{Bear, Error, Result, Rows, Scope, Statistics, TokenSet, TokenSets};

/// The rows of a batch that have a loss or enter the statistics.
#[derive(Debug)]
pub(crate) struct Batch {
    pub sets: TokenSets,
    /// N, the number of flattened positions.
    pub positions: usize,
    pub rows: Vec<BatchRow>,
    /// Whether the loss is multiplied by τ.
    pub times_temperature: bool,
    /// Whether infinite and NaN logits are an error.
    pub checked: bool,
    /// Whether the result is one number; otherwise there is one for each position.
    pub reduced: bool,
    /// The number of labelled rows.
    pub labelled_rows: usize,
    /// The number of branching rows.
    pub branching_rows: usize,
    /// The denominator of the reduction: a row's loss weight is its row weight divided by this.
    pub denominator: f64,
    /// The sum of the loss weights of the unary rows; `None` if the reduction has no mean of row weights.
    pub unary_loss_weight: Option<f64>,
    /// The settings of BEAR, whose weights multiply the loss weights once the scores are known; `None` without BEAR.
    pub bear: Option<Bear>,
}

/// A row that has a loss, or whose logits enter the statistics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRow {
    /// The index in the caller's `Rows`, for messages.
    pub row: u32,
    pub position: u32,
    pub set: u32,
    /// The rank of the target in its set.
    pub rank: u32,
    /// The factor of the row's loss in the result: its row weight divided by the denominator of the reduction. 0 for a row
    /// without a loss, which is unary or has row weight 0, and only enters the statistics.
    pub loss_weight: f64,
    /// Whether its logits enter the statistics.
    pub in_statistics: bool,
}

impl BatchRow {
    /// Returns whether the row has a loss and a gradient. The logits of a row without a loss may be NaN, and must not reach the
    /// result.
    pub fn has_loss(&self) -> bool {
        self.loss_weight != 0.0
    }
}

/// The denominator of a reduction: the sum of the weights of labelled rows, that of branching rows, or a given number.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Denominator {
    LabelledWeight,
    BranchingWeight,
    Given(f64),
}

/// Refuses rows without marks if the statistics are those of marked rows.
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
    /// Resolves rows against their sets. `scope` is that of an adaptive temperature, and `None` if no statistics are wanted.
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
            // Without a row that has a loss the denominator may be 0, and 0/0 would be NaN.
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

    /// Returns the size of the vocabulary if the token sets are the whole vocabulary, and `None` if they are listed.
    pub fn whole_vocabulary(&self) -> Option<usize> {
        match self.sets.get(0) {
            Some(TokenSet::All { size }) => Some(size as usize),
            _ => None,
        }
    }

    /// Returns the tokens of a row whose set is listed. The slice is empty for the whole vocabulary.
    pub fn listed(&self, row: &BatchRow) -> &[u32] {
        match self.set(row) {
            TokenSet::Listed(tokens) => tokens,
            TokenSet::All { .. } => &[],
        }
    }

    /// Returns the number of tokens of the row's set.
    pub fn size(&self, row: &BatchRow) -> usize {
        self.set(row).len()
    }

    /// Returns the positions without a row, ascending. Their logits or hidden states are never read.
    pub fn ignored(&self) -> Vec<u32> {
        let mut found = self.rows.iter().peekable();
        (0..self.positions as u32)
            .filter(|&position| found.next_if(|row| row.position == position).is_none())
            .collect()
    }

    /// Returns the statistics with 0 in the fields that depend on logits.
    pub fn statistics_sizes(&self) -> Statistics {
        (self.rows.iter().filter(|row| row.in_statistics))
            .map(|row| Statistics::of_moments(self.size(row), 0.0, 0.0, 0.0))
            .fold(Statistics::default(), |sum, row| sum.merge(&row))
    }

    /// Returns the factor of a row's loss in the result, without BEAR's weight.
    pub fn loss_factor(&self, row: &BatchRow, temperature: f64) -> f64 {
        let factor = if self.times_temperature {
            temperature
        } else {
            1.0
        };
        row.loss_weight * factor
    }

    /// Returns the factor of p − [v = y] in the gradient of the result, without BEAR's weight. If the loss is multiplied by τ,
    /// this cancels the 1/τ of the chain rule.
    pub fn gradient_factor(&self, row: &BatchRow, temperature: f64) -> f64 {
        let factor = if self.times_temperature {
            1.0
        } else {
            temperature.recip()
        };
        row.loss_weight * factor
    }
}
