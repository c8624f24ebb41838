use std::convert::Infallible;

/// An error of this crate, with the numbers that say where it is.
///
/// It converts into [`candle_core::Error`] and from it, so `?` works on either side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The catalogue holds no item.
    #[error("the catalogue is empty: a trie needs at least one item")]
    EmptyCatalogue,

    /// An item's path holds no token.
    #[error("item {item} has an empty token path: every item needs at least one token")]
    EmptyPath {
        /// The item's id.
        item: u64,
    },

    /// The path of an item is a prefix of another's, so that decoding could not tell the two apart.
    #[error(
        "the path of item {item} ({length} tokens) is a prefix of the path of item {other} \
         ({other_length} tokens): append an end token to every path"
    )]
    PathIsPrefix {
        /// The item with the shorter path.
        item: u64,
        /// The length of its path in tokens.
        length: usize,
        /// The item with the longer path.
        other: u64,
        /// The length of the longer path in tokens.
        other_length: usize,
    },

    /// Arrays that describe one thing do not fit together.
    #[error("{what}: {detail}")]
    Malformed {
        /// The thing that was being read or built.
        what: &'static str,
        /// The first thing found wrong, with its numbers.
        detail: String,
    },

    /// A file is not what it should be.
    #[error("{path} is no valid {what}: {detail}")]
    MalformedFile {
        /// The path of the file.
        path: std::path::PathBuf,
        /// The kind of file that was expected.
        what: &'static str,
        /// The first thing found wrong, with its numbers.
        detail: String,
    },

    /// A size exceeds what an index of this crate can address.
    #[error("{what}: {size} exceeds the limit of {limit}")]
    TooLarge {
        /// The thing that is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The largest size supported.
        limit: u64,
    },

    /// A response names a token that does not continue any item.
    #[error(
        "batch row {batch_row}, position {position}: token {token} does not continue any item \
         after the prefix {prefix:?} ({choices} tokens do)"
    )]
    NotInTrie {
        /// The row of the label matrix.
        batch_row: usize,
        /// The position in that row.
        position: usize,
        /// The label found there.
        token: u32,
        /// The tokens of the response before it.
        prefix: Vec<u32>,
        /// The number of tokens that would have continued the prefix.
        choices: usize,
    },

    /// A label is neither a token id nor one of the values that mean "ignore".
    #[error(
        "batch row {batch_row}, position {position}: label {label} is neither a token id nor one that is \
         ignored (-100 or 4294967295)"
    )]
    InvalidLabel {
        /// The row of the label matrix.
        batch_row: usize,
        /// The position in that row.
        position: usize,
        /// The label found there.
        label: i64,
    },

    /// A row's target is not among the tokens of its set.
    #[error(
        "row {row} (position {position}): target {target} is not among the {size} tokens of set {set}"
    )]
    TargetNotInSet {
        /// The index of the row in its `Rows`.
        row: usize,
        /// The flattened position that the row predicts from.
        position: u32,
        /// The target token.
        target: u32,
        /// The number of the token set.
        set: u32,
        /// The number of tokens in the set.
        size: usize,
    },

    /// A row names a token set that does not exist.
    #[error("row {row}: token set {set} does not exist, there are {sets} sets, counted from 0")]
    UnknownSet {
        /// The index of the row in its `Rows`.
        row: usize,
        /// The number of the set that it names.
        set: u32,
        /// The number of sets.
        sets: usize,
    },

    /// A token id lies outside the vocabulary of the logits or the head.
    #[error(
        "token {token} is outside the vocabulary of {vocabulary} tokens (logits have shape [.., V], a \
         head has shape [V, H])"
    )]
    TokenOutsideVocabulary {
        /// The token id.
        token: u32,
        /// The size of the vocabulary, in tokens.
        vocabulary: usize,
    },

    /// Rows were made for another number of positions than the tensor has.
    #[error(
        "the rows were made for {rows} positions, but the tensor of shape {shape:?} has {positions}"
    )]
    PositionMismatch {
        /// The number of positions that the rows were made for.
        rows: usize,
        /// The number of positions that the tensor has: the product of all its dimensions but the last.
        positions: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },

    /// Two things that must have the same length do not.
    #[error("{what}: expected {expected}, got {actual}")]
    LengthMismatch {
        /// The thing whose length it is.
        what: &'static str,
        /// The length that was needed.
        expected: usize,
        /// The length that was given.
        actual: usize,
    },

    /// A tensor has a shape, a layout, a dtype or a device that the operation does not take.
    #[error("{what}: expected {expected}, got {actual}")]
    Unsupported {
        /// The argument that is not supported.
        what: &'static str,
        /// The form that it may have.
        expected: String,
        /// The form that it has.
        actual: String,
    },

    /// A number that must lie in a range does not.
    #[error("{name} = {} must be {expected}", in_few_digits(*value))]
    OutOfRange {
        /// The name of the setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range that it must lie in, in words.
        expected: &'static str,
    },

    /// The published ATS has no solution for this fan-out: `η·n ≤ 1`.
    #[error(
        "ATS is undefined here: η·n = {eta} × {fan_out} = {} ≤ 1, so no temperature gives the target \
         a probability of η. Use Scope::Branching, {}or set allow_degenerate for the published \
         arithmetic",
        eta * f64::from(*fan_out), higher_eta(*fan_out)
    )]
    DegenerateScope {
        /// The target probability η.
        eta: f64,
        /// The fan-out n of the statistics rows.
        fan_out: u32,
    },

    /// Statistics rows that are pooled have sets of different sizes.
    #[error(
        "the pooled statistics of the {scope} scope need sets of one size, but the {rows} rows have \
         sets of different sizes ({tokens} tokens in all): mark other rows or use Scope::Branching"
    )]
    UnequalFanOut {
        /// The scope's name.
        scope: &'static str,
        /// The number of statistics rows.
        rows: u64,
        /// The number of tokens in their sets, those of each row counted.
        tokens: u64,
    },

    /// A valid logit is infinite or NaN, as found by
    /// [`check_finite`](crate::MaskedSoftmaxLoss::check_finite) or by a search.
    #[error("row {row} (position {position}): the logit of token {token} is {value}")]
    NonFinite {
        /// The index of the row in its `Rows`.
        row: usize,
        /// The flattened position that the row predicts from.
        position: u32,
        /// The token whose logit it is.
        token: u32,
        /// The logit.
        value: f64,
    },

    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path of the file.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// An operation of candle failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A `Result` whose error is this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Writes a number that a user gave, which may be as large as 1e300 or as small.
fn in_few_digits(value: f64) -> String {
    let (size, ordinary) = (value.abs(), 1e-5..1e16);
    if size.is_finite() && size > 0.0 && !ordinary.contains(&size) {
        return format!("{value:e}");
    }
    value.to_string()
}

/// Refuses memory of `actual` elements for a matrix of this shape. A vector is a matrix of one column.
pub(crate) fn check_length(
    what: &'static str,
    actual: usize,
    [rows, columns]: [usize; 2],
) -> Result<()> {
    let expected = rows.saturating_mul(columns);
    match expected == actual {
        true => Ok(()),
        false => Err(Error::LengthMismatch {
            what,
            expected,
            actual,
        }),
    }
}

/// Refuses a size that 32 bits cannot count.
pub(crate) fn check_numbered(what: &'static str, size: usize) -> Result<()> {
    if u32::try_from(size).is_ok() {
        return Ok(());
    }
    Err(Error::TooLarge {
        what,
        size: size as u64,
        limit: u64::from(u32::MAX),
    })
}

/// Returns an advice that only a fan-out of more than one token can follow, η being a probability.
fn higher_eta(fan_out: u32) -> String {
    match fan_out {
        0 | 1 => String::new(),
        _ => format!("raise η above {}, ", 1.0 / f64::from(fan_out)),
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => candle_core::Error::wrap(error),
        }
    }
}

impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_written_in_few_digits() {
        for (value, expected) in [
            (1e40, "1e40"),
            (-2.5e300, "-2.5e300"),
            (1e-39, "1e-39"),
            (0.0, "0"),
            (-0.1, "-0.1"),
            (7.0, "7"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(in_few_digits(value), expected);
        }
    }
}
