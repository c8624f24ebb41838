//! One batch in parts is one batch.

use candle_core::{DType, Tensor, Var};
use candle_trie::{Convention, Reduction, Scope, Statistics};

use crate::batch::*;

#[test]
fn gradients_of_micro_batches_add_up_to_that_of_the_batch() {
    let values = noise(40, 8 * VOCABULARY, 3.0);
    let all = [
        (0, 0, 2),
        (1, 1, 4),
        (2, 2, 3),
        (4, 0, 6),
        (5, 3, 0),
        (7, 1, 1),
    ];
    let weights = [0.5, 2.0, 3.0, 1.25, 0.25, 0.75];
    for scope in [Scope::Root, Scope::Branching] {
        let bias = Var::from_tensor(&tensor(&noise(41, 7, 1.0), &[7], DType::F64)).unwrap();
        let logits = |from: usize, to: usize| -> Tensor {
            let part = &values[from * VOCABULARY..to * VOCABULARY];
            let part = tensor(part, &[to - from, VOCABULARY], DType::F64);
            part.broadcast_add(&bias).unwrap()
        };
        let rows = |from: usize, to: usize| {
            let inside =
                |(row, _): &(&(u32, u32, u32), &f32)| (from..to).contains(&(row.0 as usize));
            let (rows, weights): (Vec<_>, Vec<_>) = (all.iter().zip(&weights))
                .filter(inside)
                .map(|(&(position, set, target), &weight)| {
                    ((position - from as u32, set, target), weight)
                })
                .unzip();
            rows_of(to - from, &rows).with_weights(weights).unwrap()
        };
        let mut whole = loss(&sets(), &strategy(scope).into(), Convention::adaptive());
        let mut parts = whole.clone();
        let output = whole.forward(&logits(0, 8), &rows(0, 8)).unwrap();
        let gradients = output.loss.backward().unwrap();
        let expected = f64s(gradients.get(&bias).unwrap());

        for cut in 0..=8 {
            let mut parts = parts.clone();
            let ranges = [(0, cut), (cut, 8)];
            let statistics = ranges.map(|(from, to)| {
                parts
                    .statistics(&logits(from, to), &rows(from, to))
                    .unwrap()
            });
            let merged: Statistics = statistics.iter().sum();
            let step = parts.temperature().unwrap().state().step;
            let tau = parts
                .temperature_mut()
                .unwrap()
                .step(&merged, step)
                .unwrap();
            assert!(
                (tau - whole.temperature().unwrap().value()).abs() < 1e-13,
                "τ, cut at {cut}"
            );

            let branching = (all.iter().zip(weights)).filter(|(row, _)| row.1 != 2);
            let denominator = branching.map(|(_, weight)| f64::from(weight)).sum();
            parts
                .set_reduction(Reduction::MeanOver(denominator))
                .unwrap();
            let mut value = 0.0;
            let mut gradient = vec![0.0; VOCABULARY];
            for (from, to) in ranges {
                let output = parts
                    .forward_at(&logits(from, to), &rows(from, to), tau)
                    .unwrap();
                value += f64_of(&output.loss);
                if from == to {
                    continue; // candle's broadcast_add drops the bias where there is nothing to add to
                }
                let gradients = output.loss.backward().unwrap();
                let part = f64s(gradients.get(&bias).unwrap());
                gradient
                    .iter_mut()
                    .zip(part)
                    .for_each(|(sum, part)| *sum += part);
            }
            assert!(
                (value - f64_of(&output.loss)).abs() < 1e-13,
                "loss, cut at {cut}"
            );
            assert_close(&gradient, &expected, 1e-12, &format!("cut at {cut}"));
        }
        // A lagged step uses what the last one left.
        let lagged = parts.forward_at(
            &logits(0, 8),
            &rows(0, 8),
            parts.temperature().unwrap().value(),
        );
        assert_eq!(
            lagged.unwrap().read_statistics().unwrap(),
            output.read_statistics().unwrap()
        );
        parts.forward(&logits(0, 8), &rows(0, 8)).unwrap();
        assert_eq!(parts.temperature().unwrap(), whole.temperature().unwrap());
    }
}
