//! The items of a plan cover every score, and every number of the gradient, once; and fit into what a block
//! has.

use std::collections::BTreeMap;

use candle_trie::launch::{DeviceLimits, Element, LinearGradients, LinearRows};
use candle_trie::{MaskedSoftmaxLoss, Row, Rows, Temperature, TokenSets};

use crate::plan::{Item, Plan};

const TOKENS: [u32; 14] = [
    2, 15, 16, 17, 63, 64, 65, 128, 1000, 2047, 2048, 2049, 5000, 20_000,
];
const ROWS: [u32; 11] = [1, 7, 8, 9, 16, 17, 63, 64, 65, 128, 300];
const WIDTHS: [usize; 15] = [
    1, 8, 15, 16, 17, 63, 64, 65, 100, 576, 1000, 1024, 1025, 4096, 16_384,
];

/// The least that plans accept, an RTX 4090, an H100, and one multiprocessor of each.
fn devices() -> impl Iterator<Item = DeviceLimits> {
    [(61_312, 4), (99 << 10, 128), (227 << 10, 132)]
        .into_iter()
        .flat_map(|(bytes, multiprocessors)| {
            [1, multiprocessors].map(|multiprocessors| DeviceLimits {
                multiprocessors,
                shared_bytes_per_block: bytes,
                shared_bytes_per_multiprocessor: bytes + (1 << 10),
            })
        })
}

/// So many rows of one set, of the whole vocabulary or not.
fn rows_of(tokens: u32, rows: u32, is_whole: bool) -> LinearRows {
    let sets = if is_whole {
        TokenSets::whole_vocabulary(tokens as usize).unwrap()
    } else {
        TokenSets::from_raw(vec![0, tokens], (0..tokens).collect()).unwrap()
    };
    let row = |position| Row {
        position,
        set: 0,
        target: position % tokens,
    };
    let rows = Rows::from_raw(rows as usize, (0..rows).map(row).collect()).unwrap();
    let loss = MaskedSoftmaxLoss::new(sets, Temperature::fixed(1.0)).unwrap();
    loss.linear_rows(&rows).unwrap()
}

/// That pieces lie one behind the other from 0 to `end`, each of `most` at the most, and begin at multiples
/// of `step`.
fn assert_cut(mut pieces: Vec<(u32, u32)>, end: u32, most: u32, step: u32, what: &str) {
    pieces.sort_unstable();
    pieces.dedup();
    let mut reached = 0;
    for (first, count) in pieces {
        assert_eq!((first, first % step), (reached, 0), "{what}");
        assert!(count > 0 && count <= most, "{what}: {count} of {most}");
        reached += count;
    }
    assert_eq!(reached, end, "{what}");
}

/// What a phase cuts work into.
struct Phase {
    rows: u32,
    outer: u32,
    inner: u32,
    most_outer: u32,
    outer_step: u32,
    most_inner: u32,
    inner_step: u32,
    /// Packets of partial sums, and counters, of the launch.
    partials: usize,
    counters: usize,
    /// Behind the columns of a row's partial sums.
    what: String,
}

impl Phase {
    fn assert_covered(&self, items: &[Item]) {
        let what = &self.what;
        let mut tiles = BTreeMap::<_, Vec<&Item>>::new();
        for item in items {
            let tile = (item.first_row, item.rows, item.first, item.count);
            tiles.entry(tile).or_default().push(item);
        }
        let mut outer = BTreeMap::<_, Vec<_>>::new();
        for &(first_row, rows, first, count) in tiles.keys() {
            outer
                .entry((first_row, rows))
                .or_default()
                .push((first, count));
        }
        assert_cut(outer.keys().copied().collect(), self.rows, 64, 8, what);
        // Fewer rows may have more columns to an item.
        for outer in outer.into_values().filter(|_| self.outer > 0) {
            assert_cut(outer, self.outer, self.most_outer, self.outer_step, what);
        }
        let mut counters = vec![0];
        let mut partials = Vec::new();
        for (tile, mut slices) in tiles {
            slices.sort_by_key(|item| item.slice);
            let first = slices[0];
            let cuts = slices
                .iter()
                .map(|item| (item.inner_first, item.inner_count));
            assert_cut(
                cuts.collect(),
                self.inner,
                self.most_inner,
                self.inner_step,
                what,
            );
            for (index, item) in slices.iter().enumerate() {
                assert_eq!(item.slice as usize, index, "{what}");
                assert_eq!(item.slices as usize, slices.len(), "{what}");
                assert_eq!(
                    (item.partials, item.counter),
                    (first.partials, first.counter)
                );
            }
            if slices.len() > 1 {
                counters.push(first.counter);
                let pitch = tile.3.next_multiple_of(16) + 4;
                partials.push((first.partials, slices.len() as u32 * tile.1 * pitch / 4));
            }
        }
        counters.sort_unstable();
        let distinct = counters.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(distinct, "{what}: {counters:?}");
        assert!(
            (*counters.last().unwrap() as usize) < self.counters,
            "{what}"
        );
        let end = partials.iter().map(|&(_, count)| count).sum();
        assert_cut(partials, end, u32::MAX, 1, what);
        assert!(end as usize <= self.partials, "{what}");
    }
}

/// That a stage of an item holds whole fragments of both operands.
fn assert_stages(scores: &[Item], gradient: &[Item], stage_bytes: u32, element: Element) {
    let (fragments, padded) = (
        |rows: u32| rows.next_multiple_of(8),
        |count: u32| count.next_multiple_of(16),
    );
    for item in scores {
        let lines = padded(item.count) + fragments(item.rows);
        // Two packets of each, and one between two lines.
        assert!(lines * 48 <= stage_bytes, "{item:?}");
    }
    for item in gradient {
        // Behind each head row, and each row of scores, a packet.
        let of_token = padded(item.count) * element.bytes() + 16 + 4 * item.rows;
        assert!(16 * (of_token + item.rows) <= stage_bytes, "{item:?}");
        // In registers: eight fragments of each of eight warps.
        let columns = item.count.div_ceil(16).next_power_of_two().max(8);
        let rows = item.rows.div_ceil(8).next_power_of_two();
        assert!(columns * rows <= 64, "{item:?}");
    }
}

/// `most` is the largest number of tokens of a gradient item.
fn check(rows: &LinearRows, (tokens, count): (u32, u32), width: usize, most: u32) {
    for (limits, element) in
        devices().flat_map(|limits| [Element::F32, Element::Bf16].map(|element| (limits, element)))
    {
        for gradients in [LinearGradients::Hidden, LinearGradients::None] {
            let temperature = rows.totals.next(&Temperature::fixed(1.0)).unwrap();
            let plan = Plan::new(
                rows.clone(),
                element,
                width,
                gradients,
                &limits,
                temperature,
            );
            let what = format!(
                "{tokens} tokens, {count} rows, width {width}, {element:?}, {gradients:?}, {limits:?}"
            );
            let (scores, gradient) = plan.phases();
            let bytes = |wanted| {
                let mut named = plan
                    .recorder
                    .allocated
                    .iter()
                    .filter(|(name, _)| *name == wanted);
                named.next().map_or(0, |&(_, bytes)| bytes)
            };
            let (partials, counters) = (bytes("partials") / 16, plan.tables.counters);
            let of_scores = Phase {
                rows: count,
                outer: tokens,
                inner: width as u32,
                most_outer: 64,
                outer_step: 64,
                most_inner: u32::MAX,
                inner_step: 64,
                partials,
                counters,
                what: format!("scores: {what}"),
            };
            of_scores.assert_covered(scores);
            let columns = if gradients == LinearGradients::None {
                0
            } else {
                width as u32
            };
            let of_gradient = Phase {
                outer: columns,
                inner: tokens,
                most_outer: 1024,
                outer_step: 16,
                most_inner: most,
                inner_step: 16,
                what: format!("gradient: {what}"),
                ..of_scores
            };
            of_gradient.assert_covered(gradient);
            let stage_bytes = (plan.recorder.launches[0].shared_bytes - 18_288) / 3;
            assert_stages(scores, gradient, stage_bytes, element);
            // No more than a few slices a block.
            let blocks = 2 * limits.multiprocessors as usize;
            let tiles = |items: &[Item]| items.iter().filter(|item| item.slice == 0).count();
            for items in [scores, gradient] {
                let least = tokens.div_ceil(most) as usize * tiles(items);
                assert!(items.len() <= least + 4 * blocks + tiles(items), "{what}");
            }
        }
    }
}

#[test]
fn items_cover_all_work_once_and_fit_into_a_block() {
    for tokens in TOKENS {
        for count in ROWS {
            let rows = rows_of(tokens, count, false);
            for width in WIDTHS {
                check(&rows, (tokens, count), width, 2048);
            }
        }
    }
}

/// In one chunk.
#[test]
fn items_over_the_whole_vocabulary_do_too() {
    for (tokens, count) in [
        (2, 300),
        (129, 64),
        (5000, 9),
        (49_152, 300),
        (128_256, 261),
    ] {
        let rows = rows_of(tokens, count, true);
        for width in [1, 65, 576, 4096] {
            check(&rows, (tokens, count), width, 16_384);
        }
    }
}
