use std::{ops::ControlFlow, time::Duration};

use anyhow::Result;
use candle_core::{DType, Device};

use super::{ERRORS_NOTE, baselines, examples, train_tokenizer};
use crate::{
    arguments::DemoArguments,
    comparison::{Comparison, Line},
    evaluate::Evaluator,
    model::Llama,
    prompt::{Prompt, PromptStyle},
    ranking::Measures,
    responses::{Example, Responses},
    search::SearchSettings,
    settings::{Decay, LossKind, LossSettings, ModelSettings, StatisticsScope, TrainingSettings},
    synthetic::World,
    tokenizer::TextTokenizer,
    train::Trainer,
    training_run::{self, Trained},
};

/// The most tokens of the demo's tokenizer.
const VOCABULARY: usize = 1_024;
const BATCH_SIZE: usize = 32;
const LEARNING_RATE: f64 = 4e-3;
const BEAMS: usize = 10;
const USERS_SIDE_BY_SIDE: usize = 50;

const MODEL: ModelSettings = ModelSettings {
    hidden: 96,
    intermediate: 192,
    layers: 2,
    heads: 4,
    key_value_heads: 2,
};

/// All that the three models share.
struct Demo {
    seed: u64,
    training: TrainingSettings,
    tokenizer: TextTokenizer,
    responses: Responses,
    training_examples: Vec<Example>,
    test_examples: Vec<Example>,
}

/// `msl demo`
pub fn demo(arguments: &DemoArguments, device: &Device) -> Result<()> {
    let world = World::new(arguments.seed, arguments.training_rows, arguments.test_rows)?;
    let prompt = Prompt {
        style: PromptStyle::Titles,
        noun: "book".into(),
        verb: "read".into(),
    };
    let tokenizer = train_tokenizer(&world.catalogue, &prompt, VOCABULARY)?;
    let responses = Responses::new(&world.catalogue, &tokenizer)?;
    let tokenize = |rows| examples(rows, &world.catalogue, &prompt, &tokenizer, &responses);
    let demo = Demo {
        seed: arguments.seed,
        training: TrainingSettings {
            epochs: arguments.epochs,
            batch_size: BATCH_SIZE,
            micro_batch_size: None,
            learning_rate: Some(LEARNING_RATE),
            learning_rate_warm_up: 20,
            decay: Decay::Linear,
            weight_decay: 0.0,
            clip: 1.0,
            seed: arguments.seed,
            dense: false,
            read_unary_tail: false,
        },
        training_examples: tokenize(&world.training)?,
        test_examples: tokenize(&world.test)?,
        tokenizer,
        responses,
    };
    let mut rows = baselines(&world.training, &world.test, &demo.responses)?;
    for (name, loss) in [
        ("LML", LossKind::Lml),
        ("MSL τ=1", LossKind::Msl),
        ("MSL+ATS", LossKind::Ats),
    ] {
        rows.push(demo.train_and_evaluate(name, loss, device)?);
    }
    Comparison {
        command: "demo".into(),
        seed: arguments.seed,
        users: demo.test_examples.len(),
        evaluated_on: None,
        decoding: None,
        rows,
        notes: vec![
            format!(
                "{} items, {} training rows, {} epochs, {} users, {BEAMS} beams; a title begins with one of {} tokens.",
                world.catalogue.items().len(),
                demo.training_examples.len(),
                arguments.epochs,
                demo.test_examples.len(),
                demo.responses.trie().children(0).len(),
            ),
            ERRORS_NOTE.into(),
        ],
    }
    .print(arguments.json)
}

impl Demo {
    fn train_and_evaluate(&self, name: &str, kind: LossKind, device: &Device) -> Result<Line> {
        let trie = self.responses.trie();
        let config = MODEL.config(self.tokenizer.vocabulary(), self.tokenizer.end());
        let model = Llama::random(config, self.seed, DType::F32, device)?;
        let mut trainer = Trainer::new(&model, trie, &loss_settings(kind), &self.training)?;
        let mut metrics = Vec::new();
        let mut seconds = 0.0;
        let after = |_: &Trainer, step, elapsed: Duration| {
            metrics.push(step);
            seconds = elapsed.as_secs_f64();
            Ok(ControlFlow::Continue(()))
        };
        training_run::train(
            &format!("training {name}"),
            &mut trainer,
            &self.training,
            &self.training_examples,
            after,
        )?;
        let trained = Trained::of(&metrics, trainer.temperature()?.value, seconds);
        let evaluator = Evaluator {
            trie,
            search: SearchSettings {
                beams: BEAMS,
                ..SearchSettings::default()
            },
            batch_size: USERS_SIDE_BY_SIDE,
            temperature: trained.temperature,
        };
        let evaluation =
            evaluator.evaluate(&format!("evaluating {name}"), &model, &self.test_examples)?;
        let line = Line {
            temperature: Some(trained.temperature),
            users_per_second: Some(evaluation.users_per_second),
            ..Line::new(name, Measures::of(&evaluation.users, BEAMS))
        };
        Ok(line.trained(&trained))
    }
}

fn loss_settings(loss: LossKind) -> LossSettings {
    LossSettings {
        loss,
        temperature: None,
        eta: 0.25,
        alpha: 0.05,
        clamp: vec![1.5, 5.0],
        initial_temperature: 1.5,
        temperature_warm_up: 0,
        scope: StatisticsScope::Root,
        allow_degenerate: false,
        bear_beams: None,
        bear_lambda: None,
        bear_xi: None,
    }
}
