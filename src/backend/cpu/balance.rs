//! Work split into stretches of about equal cost.

use std::ops::Range;

/// Stretches a thread: more of them smooth out what the costs do not foresee.
const STRETCHES_PER_THREAD: usize = 4;
/// Less cost than this (in elements touched) is not worth handing to another thread.
const LEAST_COST: usize = 8192;

/// Cuts `0..count` into consecutive stretches of about equal total `cost`.
pub(super) fn balanced(count: usize, cost: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let total: usize = (0..count).map(&cost).sum();
    let stretches = STRETCHES_PER_THREAD * rayon::current_num_threads();
    let aim = (total / stretches).max(LEAST_COST);
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

/// Cuts `values` into consecutive pieces of these lengths, leaving what lies behind them.
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
    fn stretches_cover_everything_once_and_in_order() {
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
