//! One made-up batch, every option to run it with, and what the definition gives for it.

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::reference::{self, Reference};
use candle_trie::{
    AdaptiveStrategy, Bear, Convention, Head, MaskedSoftmaxLoss, Reduction, Row, Rows, Scope,
    Temperature, TokenSets,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Hidden states, head, bias, sets and rows of one made-up batch.
pub struct Batch {
    pub hidden: Vec<f64>,
    pub head: Vec<f64>,
    pub bias: Vec<f64>,
    pub positions: usize,
    pub vocabulary: usize,
    pub width: usize,
    pub sets: TokenSets,
    pub rows: Rows,
}

/// What to run: which sets, temperature and convention, whether there is a bias, and whether BEAR weighs the rows.
#[derive(Clone)]
pub struct Options {
    pub whole_vocabulary: bool,
    pub temperature: Temperature,
    pub convention: Convention,
    pub bias: bool,
    pub weights: bool,
    pub bear: Option<Bear>,
}

/// A loss and the gradients of hidden states, head and bias.
pub struct Outcome {
    pub loss: Vec<f64>,
    pub hidden: Vec<f64>,
    pub head: Vec<f64>,
    pub bias: Vec<f64>,
    pub temperature: f64,
}

impl Batch {
    /// One set large and common enough for a matrix product (of 150 tokens, in 40 rows), one of one
    /// token, and ragged others; positions that do not count in between.
    pub fn new(width: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (positions, vocabulary) = (97, 211);
        let sizes = [150, 1, 2, 3, 17, 40];
        let mut offsets = vec![0];
        let mut tokens = Vec::new();
        for size in sizes {
            let mut set = rand::seq::index::sample(&mut random, vocabulary, size).into_vec();
            set.sort_unstable();
            tokens.extend(set.into_iter().map(|token| token as u32));
            offsets.push(tokens.len() as u32);
        }
        let sets = TokenSets::from_raw(offsets, tokens).unwrap();
        let mut rows = Vec::new();
        for position in (0..positions as u32).filter(|position| position % 5 != 3) {
            let set = if position % 2 == 0 {
                0
            } else {
                random.random_range(0..6)
            };
            let choices: Vec<u32> = sets.get(set).unwrap().iter().collect();
            let target = choices[random.random_range(0..choices.len())];
            rows.push(Row {
                position,
                set,
                target,
            });
        }
        let mut numbers = |count: usize| -> Vec<f64> {
            // Values that bf16 holds exactly, so that every dtype sees the same input.
            (0..count)
                .map(|_| f64::from(random.random_range(-32..=32)) / 32.0)
                .collect()
        };
        Self {
            hidden: numbers(positions * width),
            head: numbers(vocabulary * width),
            bias: numbers(vocabulary),
            positions,
            vocabulary,
            width,
            sets,
            rows: Rows::from_raw(positions, rows).unwrap(),
        }
    }

    pub fn logits(&self, bias: bool) -> Vec<f64> {
        let mut logits = Vec::new();
        for hidden in self.hidden.chunks(self.width.max(1)) {
            for (token, head) in self.head.chunks(self.width.max(1)).enumerate() {
                let product: f64 = hidden.iter().zip(head).map(|(a, b)| a * b).sum();
                logits.push(product + if bias { self.bias[token] } else { 0.0 });
            }
        }
        logits
    }

    pub fn sets(&self, options: &Options) -> TokenSets {
        match options.whole_vocabulary {
            true => TokenSets::whole_vocabulary(self.vocabulary).unwrap(),
            false => self.sets.clone(),
        }
    }

    pub fn rows(&self, options: &Options) -> Rows {
        let weights = (0..self.rows.len())
            .map(|row| (row % 4) as f32 / 2.0)
            .collect();
        let marks = self
            .rows
            .as_slice()
            .iter()
            .map(|row| row.set == 4)
            .collect();
        let rows = self.rows.clone().with_marks(marks).unwrap();
        if options.weights {
            rows.with_weights(weights).unwrap()
        } else {
            rows
        }
    }

    pub fn tensors(&self, dtype: DType) -> [Var; 3] {
        let var = |values: &[f64], shape: &[usize]| {
            let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
            Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
        };
        [
            var(&self.hidden, &[self.positions, self.width]),
            var(&self.head, &[self.vocabulary, self.width]),
            var(&self.bias, &[self.vocabulary]),
        ]
    }

    /// By the definition: the reference's gradient of the logits, carried through the product.
    pub fn expected(&self, options: &Options) -> Outcome {
        let reference = self.reference(options);
        let Reference { gradient, .. } = &reference;
        let (width, vocabulary) = (self.width, self.vocabulary);
        let mut hidden = vec![0.0; self.hidden.len()];
        let mut head = vec![0.0; self.head.len()];
        let mut bias = vec![0.0; vocabulary];
        for position in 0..self.positions {
            for token in 0..vocabulary {
                let gradient = gradient[position * vocabulary + token];
                bias[token] += gradient;
                for i in 0..width {
                    hidden[position * width + i] += gradient * self.head[token * width + i];
                    head[token * width + i] += gradient * self.hidden[position * width + i];
                }
            }
        }
        let mut loss = vec![reference.loss];
        if options.convention.reduction == Reduction::None {
            loss = vec![0.0; self.positions];
            for (row, row_loss) in self.rows.as_slice().iter().zip(&reference.losses) {
                loss[row.position as usize] = *row_loss;
            }
        }
        Outcome {
            loss,
            hidden,
            head,
            bias,
            temperature: reference.temperature,
        }
    }

    pub fn reference(&self, options: &Options) -> Reference {
        reference::loss_with_bear(
            &self.logits(options.bias),
            self.vocabulary,
            &self.sets(options),
            &self.rows(options),
            &mut options.temperature.clone(),
            options.convention,
            options.bear,
        )
        .unwrap()
    }

    pub fn loss(&self, options: &Options) -> MaskedSoftmaxLoss {
        let loss = MaskedSoftmaxLoss::new(self.sets(options), options.temperature.clone()).unwrap();
        let loss = match options.bear {
            Some(bear) => loss.with_bear(bear).unwrap(),
            None => loss,
        };
        loss.with_convention(options.convention).unwrap()
    }

    pub fn found(&self, options: &Options, dtype: DType) -> Outcome {
        let [hidden, head, bias] = self.tensors(dtype);
        let mut loss = self.loss(options);
        let with_bias = Head::with_bias(&head, &bias);
        let head_argument = if options.bias {
            with_bias
        } else {
            Head::from(head.as_tensor())
        };
        let rows = self.rows(options);
        let output = loss.forward((&hidden, head_argument), &rows).unwrap();
        let gradients = output.loss.backward().unwrap();
        let again = output.loss.backward().unwrap();
        let values = |var: &Var| {
            let gradient = gradients.get(var).map_or(Vec::new(), f64s);
            assert_eq!(
                gradient,
                again.get(var).map_or(Vec::new(), f64s),
                "a second backward"
            );
            gradient
        };
        Outcome {
            loss: f64s(&output.loss),
            hidden: values(&hidden),
            head: values(&head),
            bias: values(&bias),
            temperature: output.read_temperature().unwrap(),
        }
    }
}

pub fn every_option() -> Vec<Options> {
    let mut options = Vec::new();
    let reductions = [
        Reduction::MeanOverLabelled,
        Reduction::MeanOverBranching,
        Reduction::MeanOver(17.0),
        Reduction::Sum,
        Reduction::None,
    ];
    let adaptive = |scope| {
        Temperature::from(AdaptiveStrategy {
            scope,
            alpha: 0.5,
            ..AdaptiveStrategy::default()
        })
    };
    let temperatures = [
        Temperature::fixed(0.7),
        adaptive(Scope::Root),
        adaptive(Scope::Branching),
        adaptive(Scope::Marked),
    ];
    for whole_vocabulary in [false, true] {
        for temperature in &temperatures {
            for (index, &reduction) in reductions.iter().enumerate() {
                let times_temperature = index % 2 == 1;
                options.push(Options {
                    whole_vocabulary,
                    temperature: temperature.clone(),
                    convention: Convention {
                        reduction,
                        times_temperature,
                    },
                    bias: index % 3 == 0,
                    weights: index < 2,
                    bear: None,
                });
            }
        }
    }
    options
}

/// The same under BEAR. One set of the batch has as many tokens as there are beams, others fewer.
pub fn every_option_with_bear() -> Vec<Options> {
    let bear = Bear {
        beams: 17,
        lambda: 1.5,
        xi: 0.5,
    };
    let mut options = every_option();
    options
        .iter_mut()
        .for_each(|options| options.bear = Some(bear));
    options
}

pub fn f64s(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// Within `tolerance` of the largest expected entry.
pub fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected
        .iter()
        .fold(0.0f64, |largest, entry| largest.max(entry.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * largest,
            "{what}: entry {index} is {found}, should be {expected} (largest {largest})"
        );
    }
}
