//! Models in f16 and bf16 against the same models in f32.

use candle_core::{DType, Device, Tensor};
use msl::model::{Llama, LlamaConfig, LoraSettings};

/// Qwen 3 norms its queries, which makes its attention sharp and so its roundings matter most.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// With the largest error of a rounding, relative to the number.
const TYPES: [(DType, f64); 2] = [(DType::F16, 1.0 / 2048.0), (DType::BF16, 1.0 / 256.0)];

/// A model with random weights that f16 and bf16 have too, so that it is the same in every type.
fn model(architecture: &str, dtype: DType) -> Llama {
    let config = LlamaConfig {
        model_type: architecture.into(),
        vocab_size: 97,
        hidden_size: 48,
        intermediate_size: 80,
        num_hidden_layers: 3,
        tie_word_embeddings: architecture != "qwen2",
        ..LlamaConfig::default()
    };
    let model = Llama::random(config, 5, dtype, &Device::Cpu).unwrap();
    for (place, (_, weight)) in model.parameters().iter().enumerate() {
        let values = Tensor::arange(0f32, weight.elem_count() as f32, &Device::Cpu).unwrap();
        let values = ((values * 1.7).unwrap() + place as f64).unwrap();
        let values = values.sin().unwrap().reshape(weight.shape()).unwrap();
        // Eighths; about as large as makes the layers matter.
        let eighths = (values * 2.4).unwrap().round().unwrap();
        let values = match weight.rank() {
            1 => ((eighths / 8.0).unwrap() + 1.0).unwrap(),
            _ => (eighths / 16.0).unwrap(),
        };
        weight.set(&values.to_dtype(dtype).unwrap()).unwrap();
    }
    model
}

fn adapted(architecture: &str, dtype: DType) -> Llama {
    let mut model = model(architecture, dtype);
    model.adapt(&LoraSettings::default(), 1).unwrap();
    for (_, weight) in model.parameters() {
        assert_eq!(weight.dtype(), DType::F32, "adapters keep all their digits");
        let ones = Tensor::ones(weight.shape(), DType::F32, &Device::Cpu).unwrap();
        weight
            .set(&(weight.as_tensor() + (ones * 0.01).unwrap()).unwrap())
            .unwrap();
    }
    model
}

fn tokens() -> Tensor {
    let tokens: Vec<u32> = (0..2 * 24).map(|token| token * 31 % 97).collect();
    Tensor::from_vec(tokens, (2, 24), &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::F64).unwrap()
}

/// Logits of all tokens, with products as the model's type has them.
fn logits(model: &Llama) -> Tensor {
    let hidden = model.hidden(&tokens()).unwrap().flatten_to(1).unwrap();
    assert_eq!(hidden.dtype(), model.head().dtype());
    hidden.matmul(&model.head().t().unwrap()).unwrap()
}

fn norm(tensor: &Tensor) -> f64 {
    let squares = tensor.sqr().unwrap().sum_all().unwrap();
    squares.sqrt().unwrap().to_scalar().unwrap()
}

/// The length of the difference, relative to that of what is expected.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (wide(found), wide(expected));
    norm(&(found - &expected).unwrap()) / norm(&expected)
}

#[test]
fn logits_are_those_of_f32_within_a_few_roundings() {
    for architecture in ARCHITECTURES {
        let expected = logits(&model(architecture, DType::F32));
        for (dtype, rounding) in TYPES {
            let error = error(&logits(&model(architecture, dtype)), &expected);
            println!(
                "{architecture}, {dtype:?}: {:.2} roundings",
                error / rounding
            );
            assert!(error > 0.1 * rounding, "{architecture}: not in {dtype:?}");
            assert!(error < 8.0 * rounding, "{architecture}, {dtype:?}: {error}");
        }
    }
}

#[test]
fn adapters_get_the_gradients_of_f32_within_a_few_roundings_and_in_f32() {
    for architecture in ARCHITECTURES {
        let gradients = |dtype| {
            let model = adapted(architecture, dtype);
            let logits = logits(&model).to_dtype(DType::F32).unwrap();
            let loss = logits.tanh().unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            let of = |(name, weight): &(String, candle_core::Var)| {
                let gradient = gradients.get(weight).expect(name).clone();
                assert_eq!(gradient.dtype(), DType::F32, "{name}");
                gradient.flatten_all().unwrap()
            };
            let all: Vec<Tensor> = model.parameters().iter().map(of).collect();
            Tensor::cat(&all, 0).unwrap()
        };
        let expected = gradients(DType::F32);
        for (dtype, rounding) in TYPES {
            let error = error(&gradients(dtype), &expected);
            println!(
                "{architecture}, {dtype:?}: {:.2} roundings",
                error / rounding
            );
            assert!(
                error < 12.0 * rounding,
                "{architecture}, {dtype:?}: {error}"
            );
        }
    }
}

#[test]
fn decoding_agrees_with_the_forward_pass_within_a_few_roundings() {
    for architecture in ARCHITECTURES {
        for (dtype, rounding) in TYPES {
            let model = adapted(architecture, dtype);
            let prompts = tokens().narrow(1, 0, 20).unwrap();
            let (_, mut cache) = model.read_prompts(&prompts, &[20, 20]).unwrap();
            let rest: Vec<Vec<u32>> = tokens().narrow(1, 20, 4).unwrap().to_vec2().unwrap();
            let mut sequences = cache.prompts();
            let last = model.step(&mut sequences, &rest, &mut cache).unwrap();
            let expected = model.hidden(&tokens()).unwrap();
            let expected = expected.narrow(1, 23, 1).unwrap().squeeze(1).unwrap();
            let error = error(&last, &expected);
            assert!(error < 8.0 * rounding, "{architecture}, {dtype:?}: {error}");
        }
    }
}
