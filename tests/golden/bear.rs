//! The losses, weights and gradients of BEAR.

use candle_core::DType;
use candle_trie::reference::{self, Reference};
use candle_trie::{Bear, Convention, MaskedSoftmaxLoss, Reduction, Temperature};
use safetensors::SafeTensors;

use crate::case::{Case, f64s, folder, listed, number};
use crate::{Outcome, assert_close, assert_gradients_close};

const CONVENTION: Convention = Convention {
    reduction: Reduction::MeanOverBranching,
    times_temperature: false,
};

#[test]
fn losses_weights_and_gradients_of_bear_are_those_of_an_independent_implementation() {
    let Some(folder) = folder() else { return };
    let (index, golden) = (listed(&folder, "index.json"), listed(&folder, "bear.json"));
    for expected in golden["cases"].as_array().unwrap() {
        let mut cases = index["cases"].as_array().unwrap().iter();
        let case = cases.find(|case| case["file"] == expected["inputs"]);
        let case = Case::read(&folder, case.unwrap());
        let file = std::fs::read(folder.join(expected["file"].as_str().unwrap())).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let settings = golden["settings"].as_array().unwrap();
        let [weights, gradients] = ["bear.weights", "bear.grad"]
            .map(|name| f64s(&tensors, name))
            .map(|of_all| {
                let each = of_all.len() / settings.len();
                of_all.chunks(each).map(<[f64]>::to_vec).collect::<Vec<_>>()
            });
        for (index, setting) in settings.iter().enumerate() {
            let bear = Bear {
                beams: setting["beams"].as_u64().unwrap() as u32,
                lambda: number(&setting["weight"]),
                xi: number(&setting["xi"]),
            };
            let expected = Expected {
                loss: number(&expected["loss"][index]),
                weights: &weights[index],
                gradient: &case.dense(&gradients[index]),
            };
            let tau = number(&setting["tau"]);
            case.check_bear(bear, tau, &expected, &format!("{}, {bear:?}", case.name));
        }
    }
}

struct Expected<'a> {
    loss: f64,
    /// Of every position, adding up to 1.
    weights: &'a [f64],
    gradient: &'a [f64],
}

impl Case {
    fn check_bear(&self, bear: Bear, tau: f64, expected: &Expected, what: &str) {
        let defined = self.bear_by_the_definition(bear, tau);
        assert_close(defined.loss, expected.loss, 1e-12, what);
        assert_gradients_close(&defined.gradient, expected.gradient, 1e-12, what);
        let branches = |set: u32| self.sets.get(set).unwrap().len() > 1;
        let mut weights = vec![0.0; self.labels.len()];
        for (row, weight) in self.rows.as_slice().iter().zip(&defined.bear_weights) {
            weights[row.position as usize] = if branches(row.set) { *weight } else { 0.0 };
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        assert_gradients_close(&weights, expected.weights, 1e-12, what);

        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
            let loss = MaskedSoftmaxLoss::new(&self.sets, Temperature::fixed(tau)).unwrap();
            let loss = loss.with_bear(bear).unwrap();
            assert_eq!(loss.convention(), CONVENTION);
            let what = &format!("{what}, {dtype:?}");
            let Outcome {
                losses, gradients, ..
            } = self.run_loss(dtype, &loss).unwrap();
            for loss in losses {
                assert_close(loss, expected.loss, tolerance, what);
            }
            for gradient in &gradients {
                assert_gradients_close(gradient, expected.gradient, tolerance, what);
            }
            let logits = self.logits(dtype).unwrap();
            let output = loss.forward_at(&logits, &self.rows, tau).unwrap();
            let found = output.read_bear_weight().unwrap().unwrap();
            assert_close(found / sum, 1.0, tolerance, what);
        }
    }

    fn bear_by_the_definition(&self, bear: Bear, tau: f64) -> Reference {
        let logits: Vec<f64> = self.logits.iter().map(|&logit| f64::from(logit)).collect();
        reference::loss_with_bear(
            &logits,
            self.vocabulary,
            &self.sets,
            &self.rows,
            &mut Temperature::fixed(tau),
            CONVENTION,
            Some(bear),
        )
        .unwrap()
    }
}
