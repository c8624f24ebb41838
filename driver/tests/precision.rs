//! Models in f16 and bf16, and on a GPU where there is one, against the same models on the processor in f32.

use candle_core::{DType, Device, Tensor};
use msl::model::{Llama, LlamaConfig, LoraSettings};

/// Qwen 3 norms its queries, which makes its attention sharp and so its roundings matter most.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Where a model is, in what type, and the largest error of a rounding there, relative to the number.
struct Place {
    device: Device,
    dtype: DType,
    rounding: f64,
}

fn places() -> Vec<Place> {
    let place = |device: &Device, dtype, bits| Place {
        device: device.clone(),
        dtype,
        rounding: 0.5f64.powi(bits),
    };
    let halves = |device: &Device| [place(device, DType::F16, 11), place(device, DType::BF16, 8)];
    let mut places: Vec<Place> = halves(&Device::Cpu).into();
    match Device::new_cuda(0) {
        Ok(gpu) => {
            places.extend(halves(&gpu));
            // Sums are taken in another order there.
            places.push(place(&gpu, DType::F32, 20));
        }
        Err(_) => eprintln!("skipped: there is no GPU here"),
    }
    places
}

impl Place {
    fn processor() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            rounding: 0.0,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{:?} on {:?}",
            self.dtype,
            self.device.location()
        )
    }
}

/// A model with random weights that f16 and bf16 have too, so that it is the same in every type.
fn model(architecture: &str, place: &Place) -> Llama {
    let Place { device, dtype, .. } = place;
    let config = LlamaConfig {
        model_type: architecture.into(),
        vocab_size: 97,
        hidden_size: 48,
        intermediate_size: 80,
        num_hidden_layers: 3,
        tie_word_embeddings: architecture != "qwen2",
        ..LlamaConfig::default()
    };
    let model = Llama::random(config, 5, *dtype, device).unwrap();
    for (index, (_, weight)) in model.parameters().iter().enumerate() {
        let values = Tensor::arange(0f32, weight.elem_count() as f32, &Device::Cpu).unwrap();
        let values = ((values * 1.7).unwrap() + index as f64).unwrap();
        let values = values.sin().unwrap().reshape(weight.shape()).unwrap();
        // Eighths; about as large as makes the layers matter.
        let eighths = (values * 2.4).unwrap().round().unwrap();
        let values = match weight.rank() {
            1 => ((eighths / 8.0).unwrap() + 1.0).unwrap(),
            _ => (eighths / 16.0).unwrap(),
        };
        let values = values.to_dtype(*dtype).unwrap().to_device(device).unwrap();
        weight.set(&values).unwrap();
    }
    model
}

fn adapted(architecture: &str, place: &Place) -> Llama {
    let mut model = model(architecture, place);
    model.adapt(&LoraSettings::default(), 1).unwrap();
    for (_, weight) in model.parameters() {
        assert_eq!(weight.dtype(), DType::F32, "adapters keep all their digits");
        let moved = (weight.as_tensor() + 0.01).unwrap();
        weight.set(&moved).unwrap();
    }
    model
}

fn tokens(device: &Device) -> Tensor {
    let tokens: Vec<u32> = (0..2 * 24).map(|token| token * 31 % 97).collect();
    Tensor::from_vec(tokens, (2, 24), device).unwrap()
}

fn wide(tensor: &Tensor) -> Tensor {
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    tensor.to_dtype(DType::F64).unwrap()
}

/// Logits of all tokens, with products as the model's type has them.
fn logits(model: &Llama) -> Tensor {
    let tokens = tokens(model.device());
    let hidden = model.hidden_in_training(&tokens, &[0]).unwrap();
    let hidden = hidden.flatten_to(1).unwrap();
    assert_eq!(hidden.dtype(), model.dtype());
    model.head().unwrap().logits(&hidden).unwrap()
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
        let expected = logits(&model(architecture, &Place::processor()));
        for place in places() {
            let error = error(&logits(&model(architecture, &place)), &expected) / place.rounding;
            println!("{architecture}, {place}: {error:.2} roundings");
            if place.dtype != DType::F32 {
                assert!(error > 0.1, "{architecture}: not in {place}");
            }
            assert!(error < 8.0, "{architecture}, {place}: {error} roundings");
        }
    }
}

/// Those of all adapters for some smooth function of the logits.
fn gradients(model: &Llama) -> Tensor {
    let logits = logits(model).to_dtype(DType::F32).unwrap();
    let loss = logits.tanh().unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let of = |(name, weight): &(String, candle_core::Var)| {
        let gradient = gradients.get(weight).expect(name).clone();
        assert_eq!(gradient.dtype(), DType::F32, "{name}");
        gradient.flatten_all().unwrap()
    };
    let all: Vec<Tensor> = model.parameters().iter().map(of).collect();
    Tensor::cat(&all, 0).unwrap()
}

#[test]
fn adapters_get_the_gradients_of_f32_within_a_few_roundings_and_in_f32() {
    for architecture in ARCHITECTURES {
        let expected = gradients(&adapted(architecture, &Place::processor()));
        for place in places() {
            let found = gradients(&adapted(architecture, &place));
            let error = error(&found, &expected) / place.rounding;
            println!("{architecture}, {place}: {error:.2} roundings");
            assert!(error < 12.0, "{architecture}, {place}: {error} roundings");
        }
    }
}

#[test]
fn decoding_is_as_close_to_f32_as_the_forward_pass() {
    let last_token = |model: &Llama| {
        let hidden = model.hidden(&tokens(model.device())).unwrap();
        hidden.narrow(1, 23, 1).unwrap().squeeze(1).unwrap()
    };
    for architecture in ARCHITECTURES {
        let expected = last_token(&adapted(architecture, &Place::processor()));
        for place in places() {
            let model = adapted(architecture, &place);
            let tokens = tokens(&place.device);
            let prompts: Vec<Vec<u32>> = tokens.narrow(1, 0, 20).unwrap().to_vec2().unwrap();
            let (_, mut cache) = model.read_prompts(&prompts).unwrap();
            let rest: Vec<Vec<u32>> = tokens.narrow(1, 20, 4).unwrap().to_vec2().unwrap();
            let mut sequences = cache.prompts();
            let last = model.step(&mut sequences, &rest, &mut cache).unwrap();
            let error = |found: &Tensor| error(found, &expected) / place.rounding;
            let (decoded, forward) = (error(&last), error(&last_token(&model)));
            println!("{architecture}, {place}: {decoded:.2} roundings, {forward:.2} forward");
            // A token whose attention is sharp may be some twenty roundings off in either.
            assert!(
                decoded < (2.0 * forward).max(4.0),
                "{architecture}, {place}: {decoded} roundings"
            );
        }
    }
}
