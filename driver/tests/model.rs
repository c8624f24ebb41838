//! The models' gradients against finite differences, and their decoding against their forward pass.

use candle_core::{DType, Device, Tensor};
use msl::model::{AddedRows, Llama, LlamaConfig, LoraSettings, NamedText, RopeParameters, TARGETS};

const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

fn model(architecture: &str) -> Llama {
    let config = LlamaConfig {
        model_type: architecture.into(),
        vocab_size: 11,
        hidden_size: 8,
        intermediate_size: 12,
        // A width that does not follow from the hidden size.
        head_dim: (architecture == "qwen3").then_some(6),
        tie_word_embeddings: architecture != "qwen2",
        rope_scaling: (architecture == "llama").then(|| RopeParameters {
            rope_type: Some("llama3".into()),
            factor: Some(8.0),
            low_freq_factor: Some(1.0),
            high_freq_factor: Some(4.0),
            original_max_position_embeddings: Some(16.0),
            ..RopeParameters::default()
        }),
        ..LlamaConfig::default()
    };
    let model = Llama::random(config, 5, DType::F64, &Device::Cpu).unwrap();
    // Larger weights than a fresh model's, so that no gradient is too small to measure; and biases that are not 0.
    for (_, weight) in model.parameters() {
        let spread = match weight.rank() {
            2 => (weight.as_tensor() * 12.0).unwrap(),
            _ => weight.add(&wave(weight.as_tensor(), 0.3)).unwrap(),
        };
        weight.set(&spread).unwrap();
    }
    model
}

/// Any values of the same shape.
fn wave(like: &Tensor, size: f64) -> Tensor {
    let values = Tensor::arange(0.0, like.elem_count() as f64, &Device::Cpu).unwrap();
    let values = (values.sin().unwrap() * size).unwrap();
    values.reshape(like.shape()).unwrap()
}

/// A model with adapters that are not new any more.
fn adapted(architecture: &str, dropout: f64, targets: &[&str]) -> Llama {
    let mut model = model(architecture);
    let settings = LoraSettings {
        rank: 3,
        alpha: 5.0,
        dropout,
        targets: targets.iter().map(|target| target.to_string()).collect(),
    };
    model.adapt(&settings, 1).unwrap();
    for (_, weight) in model.parameters() {
        weight.set(&wave(weight, 0.4)).unwrap();
    }
    model
}

/// An adapted model whose last tokens, from this one on, are added to the others.
fn with_added_tokens(architecture: &str, first: usize) -> Llama {
    let mut model = adapted(architecture, 0.0, &["q_proj", "v_proj"]);
    let added = 11 - first;
    let rows = |from: f64| {
        let rows = Tensor::zeros((added, 8), DType::F64, &Device::Cpu).unwrap();
        (wave(&rows, 0.5) + from).unwrap()
    };
    let rows = AddedRows {
        embedding: rows(0.1),
        head: (architecture == "qwen2").then(|| rows(-0.2)),
    };
    model.add_tokens(first..11, rows).unwrap();
    model
}

fn tokens() -> Tensor {
    Tensor::new(&[[1u32, 4, 9, 2, 7], [3, 3, 10, 5, 8]], &Device::Cpu).unwrap()
}

/// Any smooth function of all hidden states and of the head will do.
fn objective(model: &Llama) -> Tensor {
    let hidden = model.hidden_in_training(&tokens(), &[77, 78]).unwrap();
    let hidden = hidden.flatten_to(1).unwrap();
    let logits = model.head().unwrap().logits(&hidden).unwrap();
    (logits.tanh().unwrap() * wave(&logits, 1.0))
        .unwrap()
        .sum_all()
        .unwrap()
}

#[test]
fn every_parameter_has_its_true_gradient() {
    for architecture in ARCHITECTURES {
        let (layers, others) = match architecture {
            "llama" => (9, 2),
            "qwen2" => (12, 3),
            _ => (11, 2),
        };
        let model = model(architecture);
        assert_eq!(model.parameters().len(), 2 * layers + others);
        assert_true_gradients(&model, architecture);
    }
}

#[test]
fn every_adapter_has_its_true_gradient() {
    for architecture in ARCHITECTURES {
        for targets in [
            &TARGETS[..],
            &["q_proj", "v_proj"],
            &["k_proj", "down_proj"],
        ] {
            for dropout in [0.0, 0.3] {
                let model = adapted(architecture, dropout, targets);
                assert_eq!(model.parameters().len(), 2 * 2 * targets.len());
                let what = format!("{architecture}, {targets:?}, dropout {dropout}");
                assert_true_gradients(&model, &what);
            }
        }
    }
}

#[test]
fn rows_of_added_tokens_have_their_true_gradient_tied_and_untied() {
    for architecture in ARCHITECTURES {
        let model = with_added_tokens(architecture, 7);
        let rows = if architecture == "qwen2" { 2 } else { 1 };
        let names: Vec<&String> = (model.parameters().iter())
            .map(|(name, _)| name)
            .filter(|name| name.ends_with("token_adapter.trainable_tokens_delta"))
            .collect();
        assert_eq!(names.len(), rows, "{architecture}: {names:?}");
        assert_eq!(model.parameters().len(), 2 * 2 * 2 + rows);
        assert_true_gradients(&model, &format!("{architecture} with added tokens"));
    }
}

#[test]
fn nothing_frozen_gets_a_gradient() {
    for architecture in ARCHITECTURES {
        for (model, untouched) in [
            (adapted(architecture, 0.0, &["q_proj", "v_proj"]), 0),
            // Rows of an untied head have no part in the hidden states.
            (
                with_added_tokens(architecture, 7),
                usize::from(architecture == "qwen2"),
            ),
        ] {
            let hidden = model.hidden_in_training(&tokens(), &[77, 78]).unwrap();
            let gradients = hidden.sum_all().unwrap().backward().unwrap();
            // The store also keeps what was given to a tensor that nothing trained leads to.
            let trained = model.parameters().len() - untouched;
            assert_eq!(gradients.get_ids().count(), trained);
            for (name, weight) in &model.parameters()[..trained] {
                assert!(gradients.get(weight).is_some(), "{name}");
            }
        }
    }
}

#[test]
fn tokens_are_added_where_they_fit_and_refused_with_numbers_elsewhere() {
    let rows = |tokens: usize, head: bool| {
        let rows = Tensor::zeros((tokens, 8), DType::F64, &Device::Cpu).unwrap();
        AddedRows {
            embedding: rows.clone(),
            head: head.then_some(rows),
        }
    };
    for (tokens, rows, expected) in [
        (0..3, rows(3, false), "tokens are added from 0 on"),
        (12..14, rows(2, false), "from 12 on, and the model has 11"),
        (9..12, rows(2, false), "the shape [2, 8], expected [3, 8]"),
        (11..11, rows(0, false), "the rows of 0 added tokens"),
        (9..12, rows(3, true), "and nowhere else"),
    ] {
        let mut model = adapted("llama", 0.0, &["q_proj"]);
        let refused = model.add_tokens(tokens, rows).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    let mut twice = with_added_tokens("llama", 7);
    assert!(twice.add_tokens(11..12, rows(1, false)).is_err());
    assert!(twice.adapt(&LoraSettings::default(), 1).is_err());
    assert!(model("llama").add_tokens(11..12, rows(1, false)).is_err());
}

#[test]
fn rows_of_added_tokens_begin_as_the_mean_of_the_texts_that_they_stand_for_or_of_all_tokens() {
    for architecture in ["llama", "qwen2"] {
        let model = adapted(architecture, 0.0, &["q_proj"]);
        let text = |text: &[u32], added: &[u32]| NamedText {
            text: text.to_vec(),
            added: added.to_vec(),
        };
        let texts = [text(&[1, 2], &[0, 1]), text(&[3], &[1]), text(&[], &[2])];
        let rows = model.initial_rows(10..13, &texts).unwrap();
        let own = model.own_rows(10).unwrap();
        let mean = |weight: &Tensor, tokens: &[u32]| {
            let tokens = Tensor::new(tokens, &Device::Cpu).unwrap();
            weight.index_select(&tokens, 0).unwrap().mean(0).unwrap()
        };
        assert_eq!(rows.head.is_some(), architecture == "qwen2");
        let of_head = rows.head.iter().zip(&own.head);
        for (rows, own) in of_head.chain([(&rows.embedding, &own.embedding)]) {
            assert_eq!(rows.dims(), [3, 8]);
            let first = mean(own, &[1, 2]);
            let second = ((&first + mean(own, &[3])).unwrap() / 2.0).unwrap();
            let all: Vec<u32> = (0..10).collect();
            for (row, expected) in [first, second, mean(own, &all)].iter().enumerate() {
                assert!(
                    difference(&rows.get(row).unwrap(), expected) < 1e-6,
                    "{row}"
                );
            }
        }
    }
}

fn assert_true_gradients(model: &Llama, what: &str) {
    let gradients = objective(model).backward().unwrap();
    for (name, weight) in model.parameters() {
        let gradient = gradients
            .get(weight)
            .unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f64> = weight.flatten_all().unwrap().to_vec1().unwrap();
        let largest = gradient
            .iter()
            .fold(0f64, |largest, g| largest.max(g.abs()));
        // A constant added to all scores of a query changes nothing, so a key's bias matters only as it is turned.
        assert!(largest > 1e-6, "{what}: the gradient of {name} vanishes");
        for place in (0..values.len()).step_by(values.len().div_ceil(24)) {
            let at = |shift: f64| {
                let mut moved = values.clone();
                moved[place] += shift;
                weight
                    .set(&Tensor::from_vec(moved, weight.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                objective(model).to_scalar::<f64>().unwrap()
            };
            let step = 1e-5;
            let measured = (at(step) - at(-step)) / (2.0 * step);
            at(0.0);
            let error = (measured - gradient[place]).abs();
            assert!(
                error < 1e-7 * largest.max(1.0),
                "{what}: {name}[{place}]: {} but measured {measured}",
                gradient[place]
            );
        }
    }
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b)
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap()
        .to_scalar()
        .unwrap()
}

#[test]
fn decoding_gives_the_hidden_states_of_the_forward_pass() {
    for architecture in ARCHITECTURES {
        assert_decoding_agrees(&model(architecture));
        assert_decoding_agrees(&adapted(architecture, 0.3, &TARGETS));
        assert_decoding_agrees(&with_added_tokens(architecture, 7));
    }
}

fn assert_decoding_agrees(model: &Llama) {
    let tokens: Vec<Vec<u32>> = tokens().to_vec2().unwrap();
    // Prompts of three and two tokens, the shorter one padded; then beams of both users, one of them twice.
    let prompts = [tokens[0][..3].to_vec(), tokens[1][..2].to_vec()];
    let (last, mut cache) = model.read_prompts(&prompts).unwrap();
    let sequence = |tokens: &[u32]| alone(model, tokens);
    assert!(difference(&last.get(0).unwrap(), &sequence(&tokens[0][..3])) < 1e-12);
    assert!(difference(&last.get(1).unwrap(), &sequence(&tokens[1][..2])) < 1e-12);

    // Stretches of one and two tokens; what was read before can be continued later, and by two.
    let prompts = cache.prompts();
    let mut first = [prompts[0].clone(), prompts[1].clone(), prompts[1].clone()];
    let fed = [vec![2], vec![10, 8], vec![4]];
    let hidden = model.step(&mut first, &fed, &mut cache).unwrap();
    assert!(difference(&hidden.get(1).unwrap(), &sequence(&[3, 3, 10, 8])) < 1e-12);
    let mut second = [first[2].clone(), first[2].clone(), prompts[0].clone()];
    model
        .step(&mut second, &[vec![1], vec![5, 6], vec![2]], &mut cache)
        .unwrap();
    let mut third = [second[1].clone(), first[0].clone()];
    let hidden = model
        .step(&mut third, &[vec![9], vec![7, 5, 1]], &mut cache)
        .unwrap();
    assert!(difference(&hidden.get(0).unwrap(), &sequence(&[3, 3, 4, 5, 6, 9])) < 1e-12);
    assert!(difference(&hidden.get(1).unwrap(), &sequence(&[1, 4, 9, 2, 7, 5, 1])) < 1e-12);
}

/// The hidden state of the last token of a sequence that the model reads whole.
fn alone(model: &Llama, tokens: &[u32]) -> Tensor {
    let tokens = Tensor::new(tokens, &Device::Cpu).unwrap();
    let hidden = model.hidden(&tokens.unsqueeze(0).unwrap()).unwrap();
    hidden.get(0).unwrap().get(tokens.elem_count() - 1).unwrap()
}

#[test]
fn prompts_that_begin_alike_are_read_and_continued_as_each_alone() {
    // More than are read at once, of several lengths, one of them what another begins with.
    let alike: &[&[u32]] = &[
        &[1, 4, 9, 2, 7],
        &[1, 4, 9],
        &[1, 4, 10, 5, 8, 3, 3],
        &[1, 4, 2, 2],
        &[1, 4, 9, 2],
        &[1, 4, 9],
        &[1, 4, 0],
    ];
    let equal: &[&[u32]] = &[&[1, 4, 9], &[1, 4, 9]];
    // Of each: what is read, what they share once.
    for (prompts, read) in [(alike, 2 + 15), (equal, 2 + 2), (&alike[..1], 5)] {
        for architecture in ARCHITECTURES {
            let model = adapted(architecture, 0.0, &TARGETS);
            let mut whole: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
            let (last, mut cache) = model.read_prompts(&whole).unwrap();
            assert_eq!(cache.prompt_tokens(), read);
            let fed: Vec<Vec<u32>> = (0..prompts.len() as u32)
                .map(|user| [5, user % 11, 6][user as usize % 3..].to_vec())
                .collect();
            let mut sequences = cache.prompts();
            let next = model.step(&mut sequences, &fed, &mut cache).unwrap();
            for (user, whole) in whole.iter_mut().enumerate() {
                assert!(
                    difference(&last.get(user).unwrap(), &alone(&model, whole)) < 1e-12,
                    "{architecture}: {whole:?}"
                );
                whole.extend(&fed[user]);
                assert!(
                    difference(&next.get(user).unwrap(), &alone(&model, whole)) < 1e-12,
                    "{architecture}: {whole:?}"
                );
            }
        }
    }
    let model = model("llama");
    assert!(model.read_prompts(&[]).is_err());
    assert!(model.read_prompts(&[vec![1], vec![]]).is_err());
}

#[test]
fn a_merged_model_is_the_adapted_one() {
    for architecture in ARCHITECTURES {
        assert_merged_is_the_same(architecture, adapted(architecture, 0.3, &TARGETS));
        assert_merged_is_the_same(architecture, with_added_tokens(architecture, 7));
    }
}

fn assert_merged_is_the_same(architecture: &str, mut adapted: Llama) {
    let merged = model(architecture);
    let weights = adapted.merged_weights().unwrap();
    assert_eq!(weights.len(), merged.parameters().len());
    for ((name, weight), (_, value)) in merged.parameters().iter().zip(&weights) {
        assert_eq!(weight.dims(), value.dims(), "{name}");
        weight.set(value).unwrap();
    }
    let (a, b) = (
        adapted.hidden(&tokens()).unwrap(),
        merged.hidden(&tokens()).unwrap(),
    );
    assert!(difference(&a, &b) < 1e-12, "{architecture}");
    let plain = model(architecture).hidden(&tokens()).unwrap();
    assert!(
        difference(&a, &plain) > 1e-3,
        "{architecture}: the adapters change nothing"
    );
}
