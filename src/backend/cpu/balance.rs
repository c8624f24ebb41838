//! Load balancing: work is cut into consecutive ranges of about equal cost.

use std::ops::Range;

/// The number of ranges for each thread. More than one evens out errors of the cost estimate.
const RANGES_PER_THREAD: usize = 4;
/// The smallest cost of a range, in elements touched, that is worth a task of its own.
const LEAST_COST: usize = 8192;

/// Cuts `0..count` into consecutive ranges of about equal total `cost`.
pub(super) fn balanced(count: usize, cost: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let total: usize = (0..count).map(&cost).sum();
    let ranges = RANGES_PER_THREAD * rayon::current_num_threads();
    let aim = (total / ranges).max(LEAST_COST);
    let mut ranges = Vec::new();
    let (mut start, mut gathered) = (0, 0);
    for index in 0..count {
        gathered += cost(index);
        if gathered >= aim {
            ranges.push(start..index + 1);
            (start, gathered) = (index + 1, 0);
        }
    }
    if start < count {
        ranges.push(start..count);
    }
    ranges
}

/// Cuts `values` into consecutive slices of these lengths. Elements after the last slice are not returned.
pub(super) fn split<T>(values: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut rest = values;
    lengths
        .map(|length| {
            let (piece, others) = std::mem::take(&mut rest).split_at_mut(length);
            rest = others;
            piece
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::balanced;

    #[test]
    fn ranges_cover_everything_once_and_in_order() {
        for costs in [
            vec![],
            vec![1],
            vec![100_000, 1, 1, 1, 50_000],
            vec![3000; 100],
        ] {
            let ranges = balanced(costs.len(), |index| costs[index]);
            let covered: Vec<usize> = ranges.into_iter().flatten().collect();
            assert!(covered.into_iter().eq(0..costs.len()));
        }
    }
}
