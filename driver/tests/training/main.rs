//! Ways of training that must come to the same.

#[cfg(feature = "nccl")]
mod nccl;
mod ranks;
mod threads;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use candle_trie::{AdaptiveStrategy, Statistics, Temperature};
use msl::{
    data::{
        catalogue::quoted,
        examples::examples,
        prompt::{Prompt, PromptStyle},
        responses::Responses,
        synthetic::World,
        tokenizer::TextTokenizer,
    },
    exchange::{Alone, Exchange},
    model::{AddedRows, Llama, LlamaConfig, LoraSettings, ModelSettings, TARGETS},
    train::{
        Trainer,
        loss_settings::{LossKind, LossSettings, StatisticsScope},
        metrics::StepMetrics,
        settings::{Decay, TrainingSettings},
        training_run::train as train_all,
    },
};

const STEPS: usize = 20;
const BATCH_SIZE: usize = 8;
const LOSSES: [LossKind; 5] = [
    LossKind::Lml,
    LossKind::Msl,
    LossKind::Ats,
    LossKind::Bear,
    LossKind::BearAts,
];

#[test]
fn losses_temperatures_and_statistics_of_the_dense_and_the_linear_path_agree_step_by_step() {
    for kind in LOSSES {
        for scope in [StatisticsScope::Root, StatisticsScope::Branching] {
            let loss = loss(kind, scope);
            let linear = train(&loss, &training());
            let dense = TrainingSettings {
                dense: true,
                ..training()
            };
            let dense = train(&loss, &dense);
            assert_same_steps(&linear, &dense, &format!("{kind:?}, {scope:?}"));
        }
    }
}

#[test]
fn the_dense_and_the_linear_path_agree_where_tokens_were_added_to_the_model() {
    for kind in LOSSES {
        let loss = loss(kind, StatisticsScope::Branching);
        let [linear, dense] = [false, true].map(|dense| {
            let training = TrainingSettings {
                dense,
                learning_rate: Some(1e-2),
                ..training()
            };
            train_model(&loss, &training, |config| adapted(config, DType::F32, 0.0)).0
        });
        assert_same_steps(&linear, &dense, &format!("{kind:?}"));
    }
}

#[test]
fn leaving_the_unary_tail_unread_changes_no_loss_and_no_gradient_under_a_mask() {
    for kind in LOSSES {
        let loss = loss(kind, StatisticsScope::Root);
        let short = train(&loss, &training());
        let whole = TrainingSettings {
            read_unary_tail: true,
            ..training()
        };
        let whole = train(&loss, &whole);
        assert_same_steps(&short, &whole, &format!("{kind:?}"));
        let tokens = |steps: &[StepMetrics]| steps.iter().map(|step| step.tokens).sum::<usize>();
        if kind == LossKind::Lml {
            assert_eq!(
                tokens(&short),
                tokens(&whole),
                "every row of the plain loss counts"
            );
        } else {
            assert!(tokens(&short) < tokens(&whole), "{kind:?}");
        }
    }
}

#[test]
fn unequal_micro_batches_give_the_gradient_of_the_whole_batch() {
    for kind in LOSSES {
        // The temperature of ats comes a step later with micro-batches: here it stays where it is.
        let loss = LossSettings {
            alpha: Some(0.0),
            ..loss(kind, StatisticsScope::Branching)
        };
        let whole = train(&loss, &training());
        for micro_batch_size in [1, 3, 7] {
            let pieces = TrainingSettings {
                micro_batch_size: Some(micro_batch_size),
                ..training()
            };
            let pieces = train(&loss, &pieces);
            assert_same_steps(&pieces, &whole, &format!("{kind:?} by {micro_batch_size}"));
        }
    }
}

/// So far does ξ spread the rise that every row weighs 1 + λ/2: by these the mean must be divided.
#[test]
fn weights_of_bear_that_are_all_alike_change_nothing() {
    let settings = |kind| LossSettings {
        alpha: Some(0.0),
        bear_xi: Some(1e9),
        ..loss(kind, StatisticsScope::Branching)
    };
    for micro_batch_size in [None, Some(3)] {
        let training = TrainingSettings {
            micro_batch_size,
            ..training()
        };
        let [with, without] =
            [LossKind::BearAts, LossKind::Ats].map(|kind| train(&settings(kind), &training));
        assert_same_steps(&with, &without, &format!("pieces of {micro_batch_size:?}"));
    }
}

#[test]
fn the_temperature_takes_one_step_a_batch_which_micro_batches_use_in_the_next() {
    let loss = loss(LossKind::Ats, StatisticsScope::Root);
    for (micro_batch_size, lag) in [(None, 0), (Some(3), 1)] {
        let settings = TrainingSettings {
            micro_batch_size,
            ..training()
        };
        let (steps, fan_out) = train_with_fan_out(&loss, &settings);
        let mut temperature = Temperature::from(AdaptiveStrategy {
            alpha: loss.alpha.unwrap(),
            initial: loss.initial_temperature.unwrap(),
            warm_up: loss.temperature_warm_up.unwrap(),
            ..AdaptiveStrategy::default()
        });
        let mut expected = vec![temperature.value(); lag];
        for (step, metrics) in (0..).zip(&steps) {
            let deviations = statistic(metrics.variance) * (fan_out - 1) as f64;
            let statistics = Statistics::of_moments(
                fan_out,
                statistic(metrics.mean),
                deviations,
                statistic(metrics.positive_mean),
            );
            expected.push(temperature.step(&statistics, step).unwrap());
        }
        assert_ne!(Some(expected[STEPS - 1]), loss.initial_temperature);
        for (metrics, expected) in steps.iter().zip(expected) {
            let error = (metrics.temperature - expected).abs();
            assert!(error < 1e-9, "step {}, lag {lag}: {error}", metrics.step);
        }
    }
}

#[test]
fn adapters_and_added_tokens_learn_in_every_type_as_they_do_in_f32() {
    let loss = loss(LossKind::Ats, StatisticsScope::Branching);
    let learn = |dtype, settings: &TrainingSettings| {
        train_model(&loss, settings, |config| adapted(config, dtype, 0.0)).0
    };
    let settings = TrainingSettings {
        learning_rate: Some(2e-2),
        ..training()
    };
    let expected = learn(DType::F32, &settings);
    let mean = |steps: &[StepMetrics]| steps.iter().map(|step| step.loss).sum::<f64>() / 5.0;
    let whole = (mean(&expected[..5]), mean(&expected[STEPS - 5..]));
    for (dtype, rounding) in [(DType::F16, 1.0 / 2048.0), (DType::BF16, 1.0 / 256.0)] {
        for (micro_batch_size, dense) in [(None, false), (Some(3), false), (None, true)] {
            let settings = TrainingSettings {
                micro_batch_size,
                dense,
                ..settings.clone()
            };
            let found = learn(dtype, &settings);
            let what = format!("{dtype:?}, pieces of {micro_batch_size:?}, dense: {dense}");
            for (found, expected, name) in [
                (found[0].loss, expected[0].loss, "loss"),
                (
                    found[0].gradient_norm,
                    expected[0].gradient_norm,
                    "gradient norm",
                ),
            ] {
                let error = (found / expected - 1.0).abs();
                println!("{what}: {name} {:.2} roundings", error / rounding);
                assert!(
                    error < 4.0 * rounding,
                    "{what}: {name} {found}, expected {expected}"
                );
            }
            // Roundings grow from step to step, but lead to the same place.
            let (first, last) = (mean(&found[..5]), mean(&found[STEPS - 5..]));
            println!("{what}: {first} went to {last}, in f32 {whole:?}");
            assert!(last < 0.9 * first, "{what}: {first} went to {last}");
            assert!(
                (last / whole.1 - 1.0).abs() < 0.05,
                "{what}: {last}, in f32 {}",
                whole.1
            );
        }
    }
}

fn assert_same_steps(found: &[StepMetrics], expected: &[StepMetrics], what: &str) {
    assert_eq!((found.len(), expected.len()), (STEPS, STEPS));
    for (found, expected) in found.iter().zip(expected) {
        let step = found.step;
        assert_eq!(found.rows, expected.rows);
        for (found, expected, name) in [
            (found.loss, expected.loss, "loss"),
            (found.temperature, expected.temperature, "temperature"),
            (found.gradient_norm, expected.gradient_norm, "gradient norm"),
            (
                statistic(found.positive_mean),
                statistic(expected.positive_mean),
                "μ⁺",
            ),
            (statistic(found.mean), statistic(expected.mean), "μ"),
            (
                statistic(found.variance),
                statistic(expected.variance),
                "σ²",
            ),
        ] {
            // Two roundings of one computation, carried through up to twenty steps of f32 training.
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(
                error < 2e-4,
                "{what}, step {step}: {name} is {found}, expected {expected}"
            );
        }
    }
    let (first, last) = (&found[0], &found[STEPS - 1]);
    assert_ne!(first.loss, last.loss, "{what}: nothing was trained");
}

fn statistic(value: Option<f64>) -> f64 {
    value.expect("every step of this catalogue has statistics")
}

fn loss(loss: LossKind, scope: StatisticsScope) -> LossSettings {
    LossSettings {
        loss,
        alpha: Some(0.3),
        initial_temperature: Some(2.0),
        temperature_warm_up: Some(2),
        scope,
        bear_lambda: Some(1.5),
        bear_xi: Some(0.5),
        ..LossSettings::default()
    }
}

fn training() -> TrainingSettings {
    TrainingSettings {
        epochs: 1,
        batch_size: BATCH_SIZE,
        micro_batch_size: None,
        learning_rate: Some(1e-3),
        learning_rate_warm_up: 2,
        decay: Decay::Linear,
        weight_decay: 0.0,
        clip: 1.0,
        seed: 7,
        dense: false,
        read_unary_tail: false,
    }
}

fn train(loss: &LossSettings, training: &TrainingSettings) -> Vec<StepMetrics> {
    train_with_fan_out(loss, training).0
}

/// The steps of a training, and how many tokens a title can begin with.
fn train_with_fan_out(
    loss: &LossSettings,
    training: &TrainingSettings,
) -> (Vec<StepMetrics>, usize) {
    train_model(loss, training, |config| {
        Llama::random(config, 7, DType::F32, &Device::Cpu).unwrap()
    })
}

/// A model with adapters everywhere, the second half of whose tokens counts as added.
fn adapted(config: LlamaConfig, dtype: DType, dropout: f64) -> Llama {
    let tokens = config.vocab_size;
    let mut model = Llama::random(config, 7, dtype, &Device::Cpu).unwrap();
    let adapters = LoraSettings {
        targets: TARGETS.map(str::to_owned).into(),
        dropout,
        ..LoraSettings::default()
    };
    model.adapt(&adapters, 1).unwrap();
    let all = model.own_rows(tokens).unwrap();
    let first = tokens / 2;
    let later = |rows: Tensor| rows.narrow(0, first, tokens - first).unwrap();
    let rows = AddedRows {
        embedding: later(all.embedding),
        head: all.head.map(later),
    };
    model.add_tokens(first..tokens, rows).unwrap();
    model
}

/// The same of another model.
fn train_model(
    loss: &LossSettings,
    training: &TrainingSettings,
    model: impl FnOnce(LlamaConfig) -> Llama,
) -> (Vec<StepMetrics>, usize) {
    let (steps, fan_out, _) = train_as(&Alone, loss, training, model);
    (steps, fan_out)
}

/// The same as one of several ranks, with the weights that come of it. The last batch lacks three rows.
fn train_as(
    exchange: &dyn Exchange,
    loss: &LossSettings,
    training: &TrainingSettings,
    model: impl FnOnce(LlamaConfig) -> Llama,
) -> (Vec<StepMetrics>, usize, Vec<f64>) {
    let world = World::new(7, STEPS * BATCH_SIZE - 3, 1).unwrap();
    let prompt = Prompt::new(PromptStyle::Titles);
    let titles = world
        .catalogue
        .items()
        .iter()
        .map(|item| quoted(&item.title));
    let texts: Vec<String> = titles.collect();
    let tokenizer = TextTokenizer::train(texts.iter().map(String::as_str), 600).unwrap();
    let responses = Responses::new(&world.catalogue, &tokenizer).unwrap();
    let rows = &world.training;
    let examples = examples(rows, &world.catalogue, &prompt, &tokenizer, &responses).unwrap();
    let sizes = ModelSettings {
        hidden: 32,
        intermediate: 48,
        layers: 1,
        heads: 2,
        key_value_heads: 1,
    };
    let config = sizes.config(tokenizer.vocabulary(), tokenizer.end());
    let model = model(config);
    let mut trainer = Trainer::new(&model, responses.trie(), loss, training, exchange).unwrap();
    let mut steps = Vec::new();
    let after = |_: &Trainer, step, _| {
        steps.push(step);
        Ok(ControlFlow::Continue(()))
    };
    train_all("test", &mut trainer, training, &examples, after).unwrap();
    let weights = model.parameters().iter().flat_map(|(_, weight)| {
        let flat = weight.flatten_all().unwrap().to_dtype(DType::F64);
        flat.unwrap().to_vec1::<f64>().unwrap()
    });
    (steps, responses.trie().children(0).len(), weights.collect())
}
