//! Ways of training that must come to the same.

use candle_core::DType;
use msl::{
    metrics::StepMetrics,
    model::Llama,
    prompt::{Prompt, PromptStyle},
    responses::Responses,
    settings::{LossKind, LossSettings, ModelSettings, StatisticsScope, TrainingSettings},
    synthetic::World,
    tokenizer::TextTokenizer,
    train::Trainer,
};

const STEPS: usize = 20;
const BATCH_SIZE: usize = 8;
const LOSSES: [LossKind; 3] = [LossKind::Lml, LossKind::Msl, LossKind::Ats];

#[test]
fn losses_temperatures_and_statistics_of_the_dense_and_the_linear_path_agree_step_by_step() {
    for kind in LOSSES {
        for scope in [StatisticsScope::Root, StatisticsScope::Branching] {
            let linear = train(kind, scope, false, false);
            let dense = train(kind, scope, true, false);
            assert_same_steps(&linear, &dense, &format!("{kind:?}, {scope:?}"));
        }
    }
}

#[test]
fn leaving_the_unary_tail_unread_changes_no_loss_and_no_gradient_under_a_mask() {
    for kind in LOSSES {
        let short = train(kind, StatisticsScope::Root, false, false);
        let whole = train(kind, StatisticsScope::Root, false, true);
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

fn train(
    kind: LossKind,
    scope: StatisticsScope,
    dense: bool,
    read_unary_tail: bool,
) -> Vec<StepMetrics> {
    let world = World::new(7, STEPS * BATCH_SIZE, 1).unwrap();
    let prompt = Prompt {
        style: PromptStyle::Titles,
        noun: "book".into(),
        verb: "read".into(),
    };
    let titles = world
        .catalogue
        .items()
        .iter()
        .map(|item| Prompt::response(&item.title));
    let texts: Vec<String> = titles.collect();
    let tokenizer = TextTokenizer::train(texts.iter().map(String::as_str), 600).unwrap();
    let responses = Responses::new(&world.catalogue, &tokenizer).unwrap();
    let examples: Vec<_> = (world.training.iter())
        .map(|row| {
            responses
                .example(row, &world.catalogue, &prompt, &tokenizer)
                .unwrap()
        })
        .collect();
    let sizes = ModelSettings {
        hidden: 32,
        intermediate: 48,
        layers: 1,
        heads: 2,
        key_value_heads: 1,
    };
    let config = sizes.config(tokenizer.vocabulary(), tokenizer.end());
    let model = Llama::random(config, 7, DType::F32).unwrap();
    let loss = LossSettings {
        loss: kind,
        temperature: 1.0,
        eta: 0.25,
        alpha: 0.3,
        clamp: vec![1.5, 5.0],
        initial_temperature: 2.0,
        temperature_warm_up: 2,
        scope,
        allow_degenerate: false,
    };
    let training = TrainingSettings {
        epochs: 1,
        batch_size: BATCH_SIZE,
        learning_rate: 1e-3,
        learning_rate_warm_up: 2,
        clip: 1.0,
        seed: 7,
        dense,
        read_unary_tail,
    };
    let mut trainer = Trainer::new(&model, responses.trie(), &loss, &training).unwrap();
    let mut steps = Vec::new();
    trainer
        .train("test", &examples, |step| {
            steps.push(step.clone());
            Ok(())
        })
        .unwrap();
    steps
}
