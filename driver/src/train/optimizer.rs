//! Implements AdamW with a state that can be saved. candle's keeps its moments private.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};

/// β₁ and β₂: the decays of the two moments in a step.
const DECAYS: (f64, f64) = (0.9, 0.999);
/// Added to the root of the second moment, to avoid a division by 0.
const EPSILON: f64 = 1e-8;

/// Adam with decoupled weight decay, over named weights.
pub struct AdamW {
    weights: Vec<Weight>,
    weight_decay: f64,
    steps: usize,
}

struct Weight {
    name: String,
    value: Var,
    first_moment: Tensor,
    second_moment: Tensor,
}

impl AdamW {
    /// Builds an optimizer that has taken no step.
    pub fn new(weights: &[(String, Var)], weight_decay: f64) -> Result<Self> {
        let weight = |(name, value): &(String, Var)| {
            Ok(Weight {
                name: name.clone(),
                value: value.clone(),
                first_moment: value.zeros_like()?,
                second_moment: value.zeros_like()?,
            })
        };
        Ok(Self {
            weights: weights.iter().map(weight).collect::<Result<_>>()?,
            weight_decay,
            steps: 0,
        })
    }

    /// Returns the number of steps taken so far.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Updates every weight. Gradients are in the order of the weights.
    pub fn step(&mut self, gradients: &[Tensor], learning_rate: f64) -> Result<()> {
        ensure!(
            gradients.len() == self.weights.len(),
            "{} gradients for {} weights",
            gradients.len(),
            self.weights.len()
        );
        self.steps += 1;
        let (decay_1, decay_2) = DECAYS;
        let unbiased = |decay: f64| 1.0 / (1.0 - decay.powi(self.steps as i32));
        for (weight, gradient) in self.weights.iter_mut().zip(gradients) {
            let first = ((&weight.first_moment * decay_1)? + (gradient * (1.0 - decay_1))?)?;
            let second =
                ((&weight.second_moment * decay_2)? + (gradient.sqr()? * (1.0 - decay_2))?)?;
            let mean = (&first * unbiased(decay_1))?;
            let deviation = (&second * unbiased(decay_2))?.sqrt()?;
            let direction = (mean / (deviation + EPSILON)?)?;
            let shrunk = (weight.value.as_tensor() * (1.0 - learning_rate * self.weight_decay))?;
            weight
                .value
                .set(&(shrunk - (direction * learning_rate)?)?)?;
            (weight.first_moment, weight.second_moment) = (first, second);
        }
        Ok(())
    }

    /// Returns the moments under the names of their weights.
    pub fn moments(&self) -> HashMap<String, Tensor> {
        let named = |weight: &Weight| {
            [
                (
                    format!("{}.{FIRST}", weight.name),
                    weight.first_moment.clone(),
                ),
                (
                    format!("{}.{SECOND}", weight.name),
                    weight.second_moment.clone(),
                ),
            ]
        };
        self.weights.iter().flat_map(named).collect()
    }

    /// Restores the number of steps and the moments of a checkpoint.
    pub fn restore(&mut self, steps: usize, mut moments: HashMap<String, Tensor>) -> Result<()> {
        for weight in &mut self.weights {
            for (moment, which) in [
                (&mut weight.first_moment, FIRST),
                (&mut weight.second_moment, SECOND),
            ] {
                let name = format!("{}.{which}", weight.name);
                let saved = moments
                    .remove(&name)
                    .with_context(|| format!("there is no tensor {name}"))?;
                ensure!(
                    saved.shape() == moment.shape() && saved.dtype() == moment.dtype(),
                    "{name} is {:?} of {:?}, expected {:?} of {:?}",
                    saved.dtype(),
                    saved.dims(),
                    moment.dtype(),
                    moment.dims()
                );
                *moment = saved;
            }
        }
        if let Some(name) = moments.keys().min() {
            anyhow::bail!("there is no trained weight for {name}");
        }
        self.steps = steps;
        Ok(())
    }
}

const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_nn::{Optimizer, ParamsAdamW};

    use super::*;

    fn weights() -> Vec<(String, Var)> {
        let values = [0.5f32, -1.0, 2.0, 0.0, 3.5, -0.25];
        let matrix = Tensor::from_slice(&values, (2, 3), &Device::Cpu).unwrap();
        let vector = Tensor::from_slice(&values[..5], 5, &Device::Cpu).unwrap();
        [("matrix", matrix), ("vector", vector)]
            .map(|(name, value)| (name.to_owned(), Var::from_tensor(&value).unwrap()))
            .into()
    }

    /// Computes a loss whose gradient changes from step to step.
    fn loss(weights: &[(String, Var)], step: usize) -> Tensor {
        let term = |weight: &Var| {
            let shifted = (weight.as_tensor() - step as f64 * 0.1).unwrap();
            shifted.sqr().unwrap().tanh().unwrap().sum_all().unwrap()
        };
        (term(&weights[0].1) + term(&weights[1].1)).unwrap()
    }

    fn run(optimizer: &mut AdamW, weights: &[(String, Var)], steps: std::ops::Range<usize>) {
        for step in steps {
            let gradients = loss(weights, step).backward().unwrap();
            let gradients: Vec<Tensor> = weights
                .iter()
                .map(|(_, weight)| gradients.get(weight).unwrap().clone())
                .collect();
            optimizer.step(&gradients, 0.1 / (step + 1) as f64).unwrap();
        }
    }

    fn values(weights: &[(String, Var)]) -> Vec<Vec<f32>> {
        let flat = |(_, weight): &(String, Var)| weight.flatten_all().unwrap().to_vec1().unwrap();
        weights.iter().map(flat).collect()
    }

    #[test]
    fn its_steps_are_those_of_candle_bit_for_bit() {
        for weight_decay in [0.0, 0.1] {
            let (ours, theirs) = (weights(), weights());
            run(&mut AdamW::new(&ours, weight_decay).unwrap(), &ours, 0..9);
            let variables = theirs.iter().map(|(_, weight)| weight.clone()).collect();
            let parameters = ParamsAdamW {
                weight_decay,
                ..ParamsAdamW::default()
            };
            let mut reference = candle_nn::AdamW::new(variables, parameters).unwrap();
            for step in 0..9 {
                reference.set_learning_rate(0.1 / (step + 1) as f64);
                let gradients = loss(&theirs, step).backward().unwrap();
                reference.step(&gradients).unwrap();
            }
            assert_eq!(values(&ours), values(&theirs));
            assert_ne!(values(&ours), values(&weights()));
        }
    }

    #[test]
    fn what_is_restored_goes_on_as_if_never_interrupted() {
        let (whole, broken) = (weights(), weights());
        run(&mut AdamW::new(&whole, 0.01).unwrap(), &whole, 0..7);
        let mut first = AdamW::new(&broken, 0.01).unwrap();
        run(&mut first, &broken, 0..3);
        let mut second = AdamW::new(&broken, 0.01).unwrap();
        second.restore(first.steps(), first.moments()).unwrap();
        run(&mut second, &broken, 3..7);
        assert_eq!(values(&whole), values(&broken));
    }

    #[test]
    fn moments_of_other_weights_are_refused() {
        let weights = weights();
        let mut optimizer = AdamW::new(&weights, 0.0).unwrap();
        let mut moments = optimizer.moments();
        moments.remove("vector.first_moment");
        let error = optimizer.restore(1, moments).unwrap_err();
        assert!(error.to_string().contains("vector.first_moment"), "{error}");
        let moments = AdamW::new(&weights, 0.0).unwrap().moments();
        let mut smaller = AdamW::new(&weights[..1], 0.0).unwrap();
        assert!(smaller.restore(1, moments).is_err());
    }
}
