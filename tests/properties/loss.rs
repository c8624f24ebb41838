//! What the loss means: an exact softmax over items, blind to a row's offset.

use candle_core::{D, DType, Device, Tensor, Var};
use candle_trie::{
    AdaptiveStrategy, Convention, GradientTarget, MaskedSoftmaxLoss, Reduction, Row, Rows, Scope,
    Temperature, TokenSets,
};
use proptest::prelude::*;

use crate::catalogue::*;

fn logits(values: Vec<f64>, positions: usize) -> Var {
    let shape = (positions, values.len() / positions);
    let logits = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    Var::from_tensor(&logits).unwrap()
}

fn gradient(loss: &Tensor, logits: &Var) -> Vec<f64> {
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(logits).unwrap().flatten_all().unwrap();
    gradient.to_vec1().unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter()
        .zip(b)
        .fold(0.0, |largest, (a, b)| largest.max((a - b).abs()))
}

/// Cross entropy as candle composes it.
fn cross_entropy(logits: &Tensor, targets: &[u32], temperature: f64) -> Tensor {
    let scaled = (logits / temperature).unwrap();
    let maximum = scaled.max_keepdim(D::Minus1).unwrap().detach();
    let centred = scaled.broadcast_sub(&maximum).unwrap();
    let sum = centred.exp().unwrap().sum_keepdim(D::Minus1).unwrap();
    let log_probabilities = centred.broadcast_sub(&sum.log().unwrap()).unwrap();
    let targets = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu).unwrap();
    let picked = log_probabilities.gather(&targets, 1).unwrap();
    picked.mean_all().unwrap().neg().unwrap()
}

/// Logits of some positions over a vocabulary, with a target each.
fn full_batches() -> impl Strategy<Value = (Vec<f64>, Vec<u32>)> {
    (1usize..40, 1usize..6).prop_flat_map(|(vocabulary, positions)| {
        let values = prop::collection::vec(-20.0..20.0, vocabulary * positions);
        (
            values,
            prop::collection::vec(0..vocabulary as u32, positions),
        )
    })
}

/// A catalogue, with logits for every node of its trie over the tokens 0..=END.
fn node_logits() -> impl Strategy<Value = (Vec<Item>, Vec<f64>)> {
    catalogues(20).prop_flat_map(|items| {
        let count = trie(&items).node_count() * (END as usize + 1);
        (Just(items), prop::collection::vec(-15.0..15.0, count))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn over_the_full_vocabulary_it_is_cross_entropy(
        (values, targets) in full_batches(),
        temperature in 0.3..3.0,
    ) {
        let positions = targets.len();
        let logits = logits(values, positions);
        let vocabulary = logits.dims()[1] as u32;
        let expected = cross_entropy(&logits, &targets, temperature);
        let expected_gradient = gradient(&expected, &logits);
        let rows = (0..).zip(&targets).map(|(position, &target)| Row { position, set: 0, target });
        let rows = Rows::from_raw(positions, rows.collect()).unwrap();
        let listed = TokenSets::from_raw(vec![0, vocabulary], (0..vocabulary).collect()).unwrap();
        let whole = TokenSets::whole_vocabulary(vocabulary as usize).unwrap();
        for sets in [listed, whole] {
            let mut loss = MaskedSoftmaxLoss::new(&sets, Temperature::fixed(temperature)).unwrap();
            let output = loss.forward(&logits, &rows).unwrap();
            let (found, expected) = (output.loss.to_scalar::<f64>(), expected.to_scalar::<f64>());
            let (found, expected) = (found.unwrap(), expected.unwrap());
            prop_assert!((found - expected).abs() < 1e-12 * expected.max(1.0));
            let found = gradient(&output.loss, &logits);
            prop_assert!(largest_difference(&found, &expected_gradient) < 1e-12);
        }
    }

    #[test]
    fn the_probabilities_of_all_items_sum_to_one(
        (items, table) in node_logits(),
        temperature in 0.5..3.0,
    ) {
        const VOCABULARY: usize = END as usize + 1;
        let trie = trie(&items);
        let mut paths: Vec<&Vec<u32>> = items.iter().map(|(_, path)| path).collect();
        paths.sort();
        paths.dedup();
        let length = paths.iter().map(|path| path.len()).max().unwrap();
        let mut values = vec![0.0; paths.len() * length * VOCABULARY];
        for (position, row) in values.chunks_mut(VOCABULARY).enumerate() {
            let path = paths[position / length];
            let prefix = &path[..(position % length).min(path.len())];
            let node = trie.walk(prefix).unwrap() as usize;
            row.copy_from_slice(&table[node * VOCABULARY..(node + 1) * VOCABULARY]);
        }
        let labels: Vec<Vec<i64>> = paths
            .iter()
            .map(|path| path.iter().map(|&token| i64::from(token)).collect())
            .collect();
        let rows = Rows::from_shifted(&trie, &labels).unwrap();
        let convention = Convention { reduction: Reduction::None, times_temperature: false };
        let loss = MaskedSoftmaxLoss::new(&trie, Temperature::fixed(temperature)).unwrap();
        let loss = loss.with_convention(convention).unwrap();
        let output = loss.evaluate(&logits(values, paths.len() * length), &rows).unwrap();
        let losses = output.loss.to_vec1::<f64>().unwrap();
        let total: f64 = losses.chunks(length).map(|path| (-path.iter().sum::<f64>()).exp()).sum();
        prop_assert!((total - 1.0).abs() < 1e-12, "{total}");
    }

    #[test]
    fn a_constant_added_to_a_row_changes_nothing(
        (items, table) in node_logits(),
        offsets in prop::collection::vec(-50.0..50.0, 160),
    ) {
        const VOCABULARY: usize = END as usize + 1;
        let trie = trie(&items);
        let positions = trie.node_count();
        // Every node once, with its largest child for a target.
        let rows = (0..positions as u32).filter_map(|node| {
            let target = *trie.children(node).last()?;
            Some(Row { position: node, set: node, target })
        });
        let rows = Rows::from_raw(positions, rows.collect()).unwrap();
        let moved: Vec<f64> = table
            .iter()
            .enumerate()
            .map(|(entry, logit)| logit + offsets[entry / VOCABULARY % offsets.len()])
            .collect();
        let strategy = AdaptiveStrategy {
            eta: 0.9,
            alpha: 0.5,
            minimum: 0.01,
            maximum: 100.0,
            scope: Scope::Branching,
            ..AdaptiveStrategy::default()
        };
        let step = |values: Vec<f64>| {
            let mut loss = MaskedSoftmaxLoss::new(&trie, strategy).unwrap();
            let (output, gradient) = loss
                .value_and_gradient(&logits(values, positions), &rows, GradientTarget::New)
                .unwrap();
            let gradient = gradient.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            let loss_and_temperature =
                [output.loss.to_scalar::<f64>().unwrap(), output.read_temperature().unwrap()];
            (loss_and_temperature, gradient.to_vec1::<f64>().unwrap())
        };
        let (before, after) = (step(table), step(moved));
        prop_assert!(largest_difference(&before.0, &after.0) < 1e-10, "{before:?}, {after:?}");
        prop_assert!(largest_difference(&before.1, &after.1) < 1e-10);
    }
}
