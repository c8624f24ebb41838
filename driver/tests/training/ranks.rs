//! Several ranks come to what one process comes to.

use candle_core::{DType, Device, Tensor};
use msl::{
    exchange::{self, Alone, share},
    model::Llama,
    train::{
        loss_settings::{LossKind, LossSettings, StatisticsScope},
        metrics::StepMetrics,
        settings::TrainingSettings,
    },
};

use super::{LOSSES, adapted, threads::run_ranks, train_as, training};

/// A loss whose adaptive temperature follows the statistics, as no estimate reaches the ends of its clamp.
fn loss(kind: LossKind, scope: StatisticsScope) -> LossSettings {
    LossSettings {
        clamp: Some(vec![1e-3, 1e3]),
        ..super::loss(kind, scope)
    }
}

#[test]
fn every_loss_on_several_ranks_has_the_steps_and_the_weights_of_one_process() {
    for kind in LOSSES {
        for scope in [StatisticsScope::Root, StatisticsScope::Branching] {
            for (micro_batch_size, ranks) in [(None, 2), (None, 3), (Some(2), 4)] {
                let training = TrainingSettings {
                    micro_batch_size,
                    ..training()
                };
                // Temperatures of micro-batches come a step later, on one process too.
                let what = format!("{kind:?}, {scope:?}, {ranks} ranks");
                assert_same_as_one_process(&loss(kind, scope), &training, None, ranks, &what);
            }
        }
    }
}

#[test]
fn ranks_without_a_row_take_part() {
    for kind in [LossKind::Msl, LossKind::BearAts] {
        for micro_batch_size in [None, Some(1)] {
            let training = TrainingSettings {
                micro_batch_size,
                ..training()
            };
            let loss = loss(kind, StatisticsScope::Branching);
            let what = format!("{kind:?}, {micro_batch_size:?}");
            assert_same_as_one_process(&loss, &training, None, 9, &what);
        }
    }
}

#[test]
fn the_same_elements_drop_out_and_added_tokens_learn_the_same_however_a_batch_is_shared() {
    let loss = loss(LossKind::Ats, StatisticsScope::Branching);
    for ranks in [2, 3] {
        assert_same_as_one_process(
            &loss,
            &training(),
            Some(0.3),
            ranks,
            &format!("{ranks} ranks"),
        );
    }
}

#[test]
fn in_f32_ranks_agree_bit_for_bit_and_with_one_process_within_rounding() {
    let loss = loss(LossKind::Ats, StatisticsScope::Root);
    let (expected, _) = trained(DType::F32, &loss, &training(), None, 1).swap_remove(0);
    let ranks = trained(DType::F32, &loss, &training(), None, 3);
    let again = trained(DType::F32, &loss, &training(), None, 3);
    for (steps, weights) in ranks.iter().chain(&again) {
        assert_eq!(*weights, ranks[0].1);
        for (found, expected) in steps.iter().zip(&expected) {
            let error = (found.loss / expected.loss - 1.0).abs();
            assert!(error < 1e-6, "step {}: {error}", found.step);
        }
    }
}

/// Trains in f64, where rounding is no excuse.
fn assert_same_as_one_process(
    loss: &LossSettings,
    training: &TrainingSettings,
    dropout: Option<f64>,
    ranks: usize,
    what: &str,
) {
    let (expected, weights) = trained(DType::F64, loss, training, dropout, 1).swap_remove(0);
    let all = trained(DType::F64, loss, training, dropout, ranks);
    for (found, its_weights) in &all {
        assert_eq!(*its_weights, all[0].1, "{what}: ranks have other weights");
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(
                (found.rows, found.tokens),
                (expected.rows, expected.tokens),
                "{what}"
            );
            for (found, expected, name) in [
                (found.loss, expected.loss, "loss"),
                (found.temperature, expected.temperature, "temperature"),
                (found.gradient_norm, expected.gradient_norm, "gradient norm"),
                (found.mean.unwrap(), expected.mean.unwrap(), "mean logit"),
            ] {
                let error = (found - expected).abs() / expected.abs().max(1.0);
                assert!(error < 1e-12, "{what}: {name} {found}, expected {expected}");
            }
        }
    }
    for (found, expected) in all[0].1.iter().zip(&weights) {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(
            error < 1e-11,
            "{what}: a weight is {found}, expected {expected}"
        );
    }
}

/// The steps and the weights of every rank; with dropout, adapters and added tokens are trained.
fn trained(
    dtype: DType,
    loss: &LossSettings,
    training: &TrainingSettings,
    dropout: Option<f64>,
    ranks: usize,
) -> Vec<(Vec<StepMetrics>, Vec<f64>)> {
    let model = |config| match dropout {
        None => Llama::random(config, 7, dtype, &Device::Cpu).unwrap(),
        Some(dropout) => adapted(config, dtype, dropout),
    };
    if ranks == 1 {
        let (steps, _, weights) = train_as(&Alone, loss, training, model);
        return vec![(steps, weights)];
    }
    run_ranks(ranks, |exchange| {
        let (steps, _, weights) = train_as(exchange, loss, training, model);
        (steps, weights)
    })
}

#[test]
fn sums_and_gathered_values_are_the_same_on_every_rank_in_the_order_of_the_ranks() {
    // Every other order of these three has another sum.
    let terms = [5e15, -4e15, 0.3];
    let results = run_ranks(3, |exchange| {
        let own = Tensor::new(&[terms[exchange.rank()]], &Device::Cpu).unwrap();
        let sum: Vec<f64> = exchange.sum(&own).unwrap().to_vec1().unwrap();
        let numbers = exchange::gather(exchange, &exchange.rank()).unwrap();
        let names = exchange::gather_json(exchange, exchange.rank().to_string()).unwrap();
        (sum, numbers, names)
    });
    for (sum, numbers, names) in results {
        assert_eq!(sum, [(5e15 - 4e15) + 0.3]);
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(names, ["0", "1", "2"]);
    }
}

#[test]
fn shares_are_disjoint_whole_and_of_like_sizes() {
    for (ranks, count) in [(1, 5), (3, 8), (4, 2), (2, 0)] {
        let all: Vec<usize> = (0..count).collect();
        let shares = run_ranks(ranks, |exchange| {
            share(exchange, &all).copied().collect::<Vec<_>>()
        });
        let largest = shares.iter().map(Vec::len).max().unwrap();
        assert!(shares.iter().all(|share| share.len() + 1 >= largest));
        let mut together = shares.concat();
        together.sort_unstable();
        assert_eq!(together, all);
    }
}
