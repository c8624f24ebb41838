//! Statistics merge: the parts in any grouping are the whole.

use candle_trie::Statistics;
use proptest::prelude::*;

/// Rows of valid logits, each with the index of its target.
fn rows() -> impl Strategy<Value = Vec<(Vec<f64>, usize)>> {
    let row = prop::collection::vec(-30.0..30.0, 1..20);
    let row = (row, any::<prop::sample::Index>());
    prop::collection::vec(
        row.prop_map(|(logits, target)| {
            let target = target.index(logits.len());
            (logits, target)
        }),
        1..30,
    )
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.count() as f64
}

fn variance(values: &[f64]) -> f64 {
    let mean = mean(values.iter().copied());
    let squares = values.iter().map(|value| (value - mean).powi(2));
    squares.sum::<f64>() / (values.len() as f64 - 1.0)
}

fn near(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-11 * expected.abs().max(1.0)
        || (found.is_nan() && expected.is_nan())
}

/// What is visible of statistics.
fn visible(statistics: &Statistics) -> [f64; 9] {
    [
        statistics.rows() as f64,
        statistics.tokens() as f64,
        statistics.mean(),
        statistics.variance(),
        statistics.target_mean(),
        statistics.fan_out().map_or(-1.0, f64::from),
        statistics.centred_target_mean(),
        statistics.mean_row_variance(),
        statistics.mean_log_size(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_split_merges_to_what_the_rows_give_at_once(
        rows in rows(),
        offset in prop::sample::select(vec![0.0, -1e4]),
        groups in prop::collection::vec(0usize..5, 30),
    ) {
        let rows: Vec<(Vec<f64>, usize)> = rows
            .into_iter()
            .map(|(logits, target)| (logits.iter().map(|z| z + offset).collect(), target))
            .collect();
        let of_row = |(logits, target): &(Vec<f64>, usize)| Statistics::of_row(logits, *target);
        let split: Vec<Statistics> = (0..5)
            .map(|group| {
                let inside = rows.iter().zip(&groups).filter(|(_, of)| **of == group);
                let parts: Vec<Statistics> = inside.map(|(row, _)| of_row(row)).collect();
                parts.iter().sum()
            })
            .collect();
        let merged: Statistics = split.iter().sum();
        let nested = split[4].merge(&split[3].merge(&split[2].merge(&split[1].merge(&split[0]))));

        // The definitions, at once over all rows.
        let pooled: Vec<f64> = rows.iter().flat_map(|(logits, _)| logits).copied().collect();
        let size = rows[0].0.len();
        let equal = rows.iter().all(|(logits, _)| logits.len() == size);
        let expected = [
            rows.len() as f64,
            pooled.len() as f64,
            mean(pooled.iter().copied()),
            variance(&pooled),
            mean(rows.iter().map(|(logits, target)| logits[*target])),
            if equal { size as f64 } else { -1.0 },
            mean(rows.iter().map(|(logits, y)| logits[*y] - mean(logits.iter().copied()))),
            // A row of one token has no spread of its own.
            mean(rows.iter().map(|(z, _)| if z.len() > 1 { variance(z) } else { 0.0 })),
            mean(rows.iter().map(|(logits, _)| (logits.len() as f64).ln())),
        ];
        for found in [visible(&merged), visible(&nested)] {
            for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                prop_assert!(near(found, expected), "field {index}: {found}, not {expected}");
            }
        }
    }
}
