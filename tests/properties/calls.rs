//! Random calls of the loss, one after another, each compared with its definition in f64.

mod case;
mod expected;

use candle_core::{Device, Tensor, Var};
use candle_trie::{FrozenHead, GradientTarget, Head, MaskedSoftmaxLoss};
use rand::seq::IndexedRandom;
use rand::{Rng, rngs::StdRng};

use crate::fuzz::for_seeds;
use case::Case;
use expected::{Gradient, Logits, f64s};

#[test]
fn every_call_over_logits_gives_what_the_definition_gives() {
    calls(1000, call_over_logits);
}

#[test]
fn every_call_over_hidden_states_gives_what_the_definition_gives() {
    calls(1000, call_over_hidden_states);
}

/// Some calls of one loss, so that an adaptive temperature takes several steps.
fn calls(cases: u64, call: impl Fn(&Case, &mut MaskedSoftmaxLoss, &mut StdRng)) {
    for_seeds(cases, |random| {
        let case = Case::new(random);
        if let Some(mut loss) = case.loss() {
            for _ in 0..random.random_range(1..4) {
                call(&case, &mut loss, random);
            }
        }
    });
}

fn call_over_logits(case: &Case, loss: &mut MaskedSoftmaxLoss, random: &mut StdRng) {
    let (logits, values) = logits(case, random);
    let before = loss.temperature().unwrap().clone();
    let upstream = *[1.0, 0.25, 3.0].choose(random).unwrap();
    let var = Var::from_tensor(&logits).unwrap();
    let call = random.random_range(0..6);
    let found = match call {
        0 => loss.forward(&var, &case.rows).map(|output| (output, None)),
        1 => (loss.value_and_gradient(&logits, &case.rows, GradientTarget::New))
            .map(|(output, gradient)| (output, Some(gradient))),
        2 => {
            let gradient = (logits.ones_like().unwrap() * 7.0).unwrap();
            (loss.value_and_gradient(&logits, &case.rows, GradientTarget::Into(&gradient)))
                .map(|(output, _)| (output, Some(gradient)))
        }
        3 => {
            let gradient = logits.copy().unwrap();
            (loss.value_and_gradient(&gradient, &case.rows, GradientTarget::InPlace))
                .map(|(output, _)| (output, Some(gradient)))
        }
        4 => (loss.forward_at(&var, &case.rows, before.value())).map(|output| (output, None)),
        _ => (loss.evaluate(&var, &case.rows)).map(|output| (output, None)),
    };
    let output = found
        .as_ref()
        .map(|(output, _)| output)
        .map_err(|error| error.to_string());
    let Some(expected) = case.check(&values, &before, call < 4, output, loss) else {
        return;
    };
    match found.unwrap() {
        (_, Some(gradient)) => case.check_gradient(&gradient, &expected, 1.0),
        (output, None) if call < 5 => {
            let loss = (output.loss * upstream).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            case.check_gradient(gradients.get(&var).unwrap(), &expected, upstream);
        }
        (output, None) => assert!(!output.loss.track_op()),
    }
}

/// Logits `[N, V]` in the dtype of the case, and the same in f64. What no row looks at may be anything.
fn logits(case: &Case, random: &mut StdRng) -> (Tensor, Logits) {
    let (scale, offset) = *[(1.0, 0.0), (8.0, 0.0), (300.0, 0.0), (4.0, -1e4)]
        .choose(random)
        .unwrap();
    let mut values: Vec<f64> = (0..case.rows.positions() * case.vocabulary)
        .map(|_| offset + scale * random.random_range(-1.0..1.0))
        .collect();
    if random.random_bool(0.3) {
        let mut valid = vec![false; values.len()];
        for row in case.rows.as_slice() {
            for token in case.sets.get(row.set).unwrap().iter() {
                valid[row.position as usize * case.vocabulary + token as usize] = true;
            }
        }
        let anything = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 6e4];
        let masked = values.iter_mut().zip(valid).filter(|(_, valid)| !valid);
        masked.for_each(|(value, _)| *value = *anything.choose(random).unwrap());
    }
    let logits = tensor(case, &values, (case.rows.positions(), case.vocabulary));
    let values = f64s(&logits);
    (logits, Logits { values, error: 0.0 })
}

fn call_over_hidden_states(case: &Case, loss: &mut MaskedSoftmaxLoss, random: &mut StdRng) {
    let batch = Linear::new(case, random);
    let logits = batch.logits(case);
    let before = loss.temperature().unwrap().clone();
    let upstream = *[1.0, 0.25, 3.0].choose(random).unwrap();
    let [hidden, weight, bias] =
        [&batch.hidden, &batch.weight, &batch.bias].map(|tensor| Var::from_tensor(tensor).unwrap());
    let with_bias = batch.with_bias;
    let head = || match with_bias {
        true => Head::with_bias(&weight, &bias),
        false => Head::from(weight.as_tensor()),
    };
    let limit = random.random_range(0..1 << 16);
    let frozen =
        || FrozenHead::with_limit(&weight, with_bias.then_some(&*bias), &case.sets, limit).unwrap();
    let call = random.random_range(0..6);
    let found = match call {
        0 => (loss.forward((&hidden, head()), &case.rows)).map(|output| (output, None)),
        1 => (loss.forward((&hidden, &frozen()), &case.rows)).map(|output| (output, None)),
        2 => (loss.value_and_gradient((&hidden, head()), &case.rows, GradientTarget::New))
            .map(|(output, gradient)| (output, Some(gradient))),
        3 => (loss.value_and_gradient((&hidden, &frozen()), &case.rows, GradientTarget::New))
            .map(|(output, gradient)| (output, Some(gradient))),
        4 => (loss.forward_at((&hidden, head()), &case.rows, before.value()))
            .map(|output| (output, None)),
        _ => (loss.evaluate((&hidden, head()), &case.rows)).map(|output| (output, None)),
    };
    let output = found
        .as_ref()
        .map(|(output, _)| output)
        .map_err(|error| error.to_string());
    let Some(expected) = case.check(&logits, &before, call < 4, output, loss) else {
        return;
    };
    let of_hidden = batch.gradient_of_hidden(case, &expected);
    match found.unwrap() {
        (_, Some(gradient)) => case.check_gradient(&gradient, &of_hidden, 1.0),
        (output, None) if call < 5 => {
            let loss = (output.loss * upstream).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            case.check_gradient(gradients.get(&hidden).unwrap(), &of_hidden, upstream);
            if call != 1 {
                let [of_weight, of_bias] = batch.gradients_of_head(case, &expected);
                case.check_gradient(gradients.get(&weight).unwrap(), &of_weight, upstream);
                if with_bias {
                    case.check_gradient(gradients.get(&bias).unwrap(), &of_bias, upstream);
                }
            }
        }
        (output, None) => assert!(!output.loss.track_op()),
    }
}

/// Hidden states and a head in the dtype of the case.
struct Linear {
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    with_bias: bool,
    width: usize,
}

impl Linear {
    fn new(case: &Case, random: &mut StdRng) -> Self {
        let width = *[1, 3, 8, 17, 32].choose(random).unwrap();
        let mut numbers = |lines: usize, width: usize| {
            let values: Vec<f64> = (0..lines * width)
                .map(|_| random.random_range(-2.0..2.0))
                .collect();
            tensor(case, &values, (lines, width))
        };
        Self {
            hidden: numbers(case.rows.positions(), width),
            weight: numbers(case.vocabulary, width),
            bias: numbers(1, case.vocabulary).get(0).unwrap(),
            with_bias: random.random(),
            width,
        }
    }

    fn logits(&self, case: &Case) -> Logits {
        let [hidden, weight, bias] = [&self.hidden, &self.weight, &self.bias].map(f64s);
        let mut values = Vec::new();
        let mut largest: f64 = 0.0;
        for hidden in hidden.chunks(self.width) {
            for (weight, bias) in weight.chunks(self.width).zip(&bias) {
                let bias = if self.with_bias { *bias } else { 0.0 };
                let products = hidden.iter().zip(weight).map(|(a, b)| a * b);
                values.push(products.clone().sum::<f64>() + bias);
                largest = largest.max(products.map(f64::abs).sum::<f64>() + bias.abs());
            }
        }
        let error = case.epsilon() * largest;
        Logits { values, error }
    }

    fn gradient_of_hidden(&self, case: &Case, logits: &Gradient) -> Gradient {
        let weight = f64s(&self.weight);
        let mut of = Gradient::zeros(case.rows.positions() * self.width);
        for (place, (value, slack)) in logits.entries() {
            let (position, token) = (place / case.vocabulary, place % case.vocabulary);
            for i in 0..self.width {
                let weight = weight[token * self.width + i];
                of.add(position * self.width + i, case, value, slack, weight);
            }
        }
        of
    }

    /// The gradients of the weight and of the bias.
    fn gradients_of_head(&self, case: &Case, logits: &Gradient) -> [Gradient; 2] {
        let hidden = f64s(&self.hidden);
        let mut of_weight = Gradient::zeros(case.vocabulary * self.width);
        let mut of_bias = Gradient::zeros(case.vocabulary);
        for (place, (value, slack)) in logits.entries() {
            let (position, token) = (place / case.vocabulary, place % case.vocabulary);
            of_bias.add(token, case, value, slack, 1.0);
            for i in 0..self.width {
                let hidden = hidden[position * self.width + i];
                of_weight.add(token * self.width + i, case, value, slack, hidden);
            }
        }
        [of_weight, of_bias]
    }
}

impl Gradient {
    fn zeros(length: usize) -> Self {
        Self {
            values: vec![0.0; length],
            slack: vec![0.0; length],
        }
    }

    /// The entries that are not exactly 0, each with its place.
    fn entries(&self) -> impl Iterator<Item = (usize, (f64, f64))> {
        let entries = self.values.iter().copied().zip(self.slack.iter().copied());
        entries.enumerate().filter(|(_, (_, slack))| *slack > 0.0)
    }

    /// Adds a product of an entry and `by`, and the rounding of a sum that it takes part in.
    fn add(&mut self, at: usize, case: &Case, value: f64, slack: f64, by: f64) {
        self.values[at] += value * by;
        self.slack[at] += (slack + 16.0 * case.epsilon() * value.abs()) * by.abs();
    }
}

fn tensor(case: &Case, values: &[f64], shape: (usize, usize)) -> Tensor {
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(case.dtype).unwrap()
}
