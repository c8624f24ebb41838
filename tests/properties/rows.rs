//! Labels say the same whichever way they are written.

use candle_core::{Device, Tensor};
use candle_trie::{Row, Rows};
use proptest::prelude::*;

use crate::catalogue::*;

/// For each line of a batch, the items it spells, each behind some positions that do not count.
fn lines() -> impl Strategy<Value = (Vec<Item>, Vec<Vec<i64>>)> {
    let chosen = prop::collection::vec((any::<prop::sample::Index>(), 1usize..4), 0..4);
    (catalogues(20), prop::collection::vec(chosen, 1..5)).prop_map(|(items, lines)| {
        let spell = |line: Vec<(prop::sample::Index, usize)>| -> Vec<i64> {
            let responses = line.into_iter().map(|(index, gap)| {
                let path = index.get(&items).1.iter().map(|&token| i64::from(token));
                std::iter::repeat_n(-100, gap)
                    .chain(path)
                    .collect::<Vec<_>>()
            });
            responses.flatten().collect()
        };
        let lines = lines.into_iter().map(spell).collect();
        (items, lines)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn shifted_and_unshifted_labels_give_the_same_rows((items, lines) in lines()) {
        let trie = trie(&items);
        // Shifted, each label stands one position earlier: here without the first.
        let shifted: Vec<Vec<i64>> = lines
            .iter()
            .map(|line| line.iter().copied().skip(1).chain([-100]).take(line.len()).collect())
            .collect();
        let unshifted = Rows::from_unshifted(&trie, &lines).unwrap();
        prop_assert_eq!(&unshifted, &Rows::from_shifted(&trie, &shifted).unwrap());

        // What the walk must give, one label after another.
        let length = lines.iter().map(Vec::len).max().unwrap();
        let mut expected = Vec::new();
        for (batch_row, line) in lines.iter().enumerate() {
            for (position, &label) in line.iter().enumerate().filter(|(_, label)| **label >= 0) {
                let start = line[..position].iter().rposition(|&label| label < 0).unwrap() + 1;
                let before: Vec<u32> = line[start..position].iter().map(|&t| t as u32).collect();
                expected.push(Row {
                    position: (batch_row * length + position - 1) as u32,
                    set: trie.walk(&before).unwrap(),
                    target: label as u32,
                });
            }
        }
        prop_assert_eq!(unshifted.as_slice(), expected);
        prop_assert_eq!(unshifted.positions(), lines.len() * length);
    }

    #[test]
    fn tensors_and_vectors_of_labels_give_the_same_rows((items, lines) in lines()) {
        let trie = trie(&items);
        let length = lines.iter().map(Vec::len).max().unwrap();
        let padded: Vec<i64> = lines
            .iter()
            .flat_map(|line| {
                let padding = std::iter::repeat_n(-100, length - line.len());
                line.iter().copied().chain(padding)
            })
            .collect();
        let short: Vec<i32> = padded.iter().map(|&label| label as i32).collect();
        let unsigned: Vec<u32> = padded
            .iter()
            .map(|&label| u32::try_from(label).unwrap_or(u32::MAX))
            .collect();
        let expected = Rows::from_unshifted(&trie, &lines).unwrap();
        let shape = (lines.len(), length);
        let signed = Tensor::from_slice(&padded, shape, &Device::Cpu).unwrap();
        let short = Tensor::from_slice(&short, shape, &Device::Cpu).unwrap();
        prop_assert_eq!(&Rows::from_unshifted(&trie, &short).unwrap(), &expected);
        let unsigned = Tensor::from_slice(&unsigned, shape, &Device::Cpu).unwrap();
        prop_assert_eq!(&Rows::from_unshifted(&trie, &signed).unwrap(), &expected);
        prop_assert_eq!(&Rows::from_unshifted(&trie, &unsigned).unwrap(), &expected);
    }
}

#[test]
fn labels_of_other_shapes_and_dtypes_are_refused() {
    let trie = trie(&[(0, vec![1, END])]);
    let device = Device::Cpu;
    for labels in [
        Tensor::new(1i64, &device).unwrap(),
        Tensor::new(&[[[1i64]]], &device).unwrap(),
        Tensor::new(&[1.0f32], &device).unwrap(),
    ] {
        assert!(Rows::from_shifted(&trie, &labels).is_err(), "{labels}");
    }
}
