//! The model's gradients against finite differences, and its decoding against its forward pass.

use candle_core::{DType, Device, Tensor};
use msl::model::{Llama, LlamaConfig};

fn model() -> Llama {
    let config = LlamaConfig {
        vocab_size: 11,
        hidden_size: 8,
        intermediate_size: 12,
        ..LlamaConfig::default()
    };
    let model = Llama::random(config, 5, DType::F64).unwrap();
    // Larger weights than a fresh model's, so that no gradient is too small to measure.
    for (_, weight) in model.parameters() {
        let spread = (weight.as_tensor() * 12.0).unwrap();
        if weight.rank() == 2 {
            weight.set(&spread).unwrap();
        }
    }
    model
}

fn tokens() -> Tensor {
    Tensor::new(&[[1u32, 4, 9, 2, 7], [3, 3, 10, 5, 8]], &Device::Cpu).unwrap()
}

/// Any smooth function of all hidden states and of the head will do.
fn objective(model: &Llama) -> Tensor {
    let hidden = model.hidden(&tokens()).unwrap().flatten_to(1).unwrap();
    let logits = hidden.matmul(&model.head().t().unwrap()).unwrap();
    let weights = Tensor::arange(0.0, logits.elem_count() as f64, &Device::Cpu).unwrap();
    let weights = weights.sin().unwrap().reshape(logits.shape()).unwrap();
    (logits.tanh().unwrap() * weights)
        .unwrap()
        .sum_all()
        .unwrap()
}

#[test]
fn every_parameter_has_its_true_gradient() {
    let model = model();
    let gradients = objective(&model).backward().unwrap();
    for (name, weight) in model.parameters() {
        let gradient = gradients
            .get(weight)
            .unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f64> = weight.flatten_all().unwrap().to_vec1().unwrap();
        let largest = gradient
            .iter()
            .fold(0f64, |largest, g| largest.max(g.abs()));
        assert!(largest > 1e-6, "the gradient of {name} vanishes");
        for place in (0..values.len()).step_by(values.len().div_ceil(24)) {
            let at = |shift: f64| {
                let mut moved = values.clone();
                moved[place] += shift;
                weight
                    .set(&Tensor::from_vec(moved, weight.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                objective(&model).to_scalar::<f64>().unwrap()
            };
            let step = 1e-5;
            let measured = (at(step) - at(-step)) / (2.0 * step);
            at(0.0);
            let error = (measured - gradient[place]).abs();
            assert!(
                error < 1e-7 * largest.max(1.0),
                "{name}[{place}]: {} but measured {measured}",
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
    let model = model();
    let tokens: Vec<Vec<u32>> = tokens().to_vec2().unwrap();
    // Prompts of three and two tokens, the shorter one padded; then beams of both users, one of them twice.
    let prompts = Tensor::new(
        &[
            [tokens[0][0], tokens[0][1], tokens[0][2]],
            [tokens[1][0], tokens[1][1], 6],
        ],
        &Device::Cpu,
    )
    .unwrap();
    let (last, mut cache) = model.read_prompts(&prompts, &[3, 2]).unwrap();
    let sequence = |tokens: &[u32]| {
        let hidden = model
            .hidden(
                &Tensor::new(tokens, &Device::Cpu)
                    .unwrap()
                    .unsqueeze(0)
                    .unwrap(),
            )
            .unwrap();
        hidden.get(0).unwrap().get(tokens.len() - 1).unwrap()
    };
    assert!(difference(&last.get(0).unwrap(), &sequence(&tokens[0][..3])) < 1e-12);
    assert!(difference(&last.get(1).unwrap(), &sequence(&tokens[1][..2])) < 1e-12);

    cache.continue_from(&[0, 1, 1]).unwrap();
    model.step(&[2, 10, 4], &mut cache).unwrap();
    cache.continue_from(&[2, 0]).unwrap();
    let hidden = model.step(&[5, 7], &mut cache).unwrap();
    assert!(difference(&hidden.get(0).unwrap(), &sequence(&[3, 3, 4, 5])) < 1e-12);
    assert!(difference(&hidden.get(1).unwrap(), &sequence(&[1, 4, 9, 2, 7])) < 1e-12);
}
