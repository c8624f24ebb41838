//! The loss over hidden states × head against the f64 reference over their product, and against the
//! dense operation, in every option that the dense operation has.

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::reference::{self, Reference};
use candle_trie::{
    AdaptiveStrategy, Convention, Error, FrozenHead, Head, MaskedSoftmaxLoss, Reduction, Row, Rows,
    Scope, Temperature, TokenSets,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Hidden states, head, bias, sets and rows of one made-up batch.
struct Batch {
    hidden: Vec<f64>,
    head: Vec<f64>,
    bias: Vec<f64>,
    positions: usize,
    vocabulary: usize,
    width: usize,
    sets: TokenSets,
    rows: Rows,
}

/// What to run: which sets, temperature, convention, and whether there is a bias.
#[derive(Clone)]
struct Options {
    whole_vocabulary: bool,
    temperature: Temperature,
    convention: Convention,
    bias: bool,
    weights: bool,
}

/// A loss and the gradients of hidden states, head and bias.
struct Outcome {
    loss: Vec<f64>,
    hidden: Vec<f64>,
    head: Vec<f64>,
    bias: Vec<f64>,
    temperature: f64,
}

impl Batch {
    /// One set large and common enough for a matrix product (of 150 tokens, in 40 rows), one of one
    /// token, and ragged others; positions that do not count in between.
    fn new(width: usize, seed: u64) -> Self {
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

    fn logits(&self, bias: bool) -> Vec<f64> {
        let mut logits = Vec::new();
        for hidden in self.hidden.chunks(self.width.max(1)) {
            for (token, head) in self.head.chunks(self.width.max(1)).enumerate() {
                let product: f64 = hidden.iter().zip(head).map(|(a, b)| a * b).sum();
                logits.push(product + if bias { self.bias[token] } else { 0.0 });
            }
        }
        logits
    }

    fn sets(&self, options: &Options) -> TokenSets {
        match options.whole_vocabulary {
            true => TokenSets::whole_vocabulary(self.vocabulary).unwrap(),
            false => self.sets.clone(),
        }
    }

    fn rows(&self, options: &Options) -> Rows {
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

    fn tensors(&self, dtype: DType) -> [Var; 3] {
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
    fn expected(&self, options: &Options) -> Outcome {
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

    fn reference(&self, options: &Options) -> Reference {
        reference::loss(
            &self.logits(options.bias),
            self.vocabulary,
            &self.sets(options),
            &self.rows(options),
            &mut options.temperature.clone(),
            options.convention,
        )
        .unwrap()
    }

    fn loss(&self, options: &Options) -> MaskedSoftmaxLoss {
        MaskedSoftmaxLoss::new(self.sets(options), options.temperature.clone())
            .and_then(|loss| loss.with_convention(options.convention))
            .unwrap()
    }

    fn found(&self, options: &Options, dtype: DType) -> Outcome {
        let [hidden, head, bias] = self.tensors(dtype);
        let mut loss = self.loss(options);
        let with_bias = Head::with_bias(&head, &bias);
        let head_argument = if options.bias {
            with_bias
        } else {
            Head::from(head.as_tensor())
        };
        let rows = self.rows(options);
        let output = loss.forward_linear(&hidden, head_argument, &rows).unwrap();
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

fn every_option() -> Vec<Options> {
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
                });
            }
        }
    }
    options
}

#[test]
fn every_option_equals_the_definition_in_f64_and_f32() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        for (index, options) in every_option().iter().enumerate() {
            check(
                options,
                dtype,
                tolerance,
                &format!("{dtype:?}, option {index}"),
            );
        }
    }
}

#[test]
fn sixteen_bit_types_equal_the_definition_within_the_rounding_of_their_gradients() {
    for (dtype, rounding) in [(DType::F16, 2f64.powi(-11)), (DType::BF16, 2f64.powi(-8))] {
        for (index, options) in every_option().iter().enumerate() {
            check(
                options,
                dtype,
                2.0 * rounding,
                &format!("{dtype:?}, option {index}"),
            );
        }
    }
}

fn check(options: &Options, dtype: DType, tolerance: f64, what: &str) {
    let batch = Batch::new(40, 7);
    let (found, expected) = (batch.found(options, dtype), batch.expected(options));
    // The loss and τ are computed in f32 at least, whatever the inputs' type.
    let scalar_tolerance = tolerance.min(2e-5);
    assert_close(
        &found.loss,
        &expected.loss,
        scalar_tolerance,
        &format!("{what}: loss"),
    );
    assert_close(
        &[found.temperature],
        &[expected.temperature],
        scalar_tolerance,
        what,
    );
    assert_close(
        &found.hidden,
        &expected.hidden,
        tolerance,
        &format!("{what}: hidden"),
    );
    assert_close(
        &found.head,
        &expected.head,
        tolerance,
        &format!("{what}: head"),
    );
    if options.bias {
        assert_close(
            &found.bias,
            &expected.bias,
            tolerance,
            &format!("{what}: bias"),
        );
    }
}

#[test]
fn odd_and_tiny_widths_equal_the_definition() {
    for width in [1, 2, 7, 15, 16, 17, 33] {
        for options in every_option().iter().step_by(3) {
            let batch = Batch::new(width, width as u64);
            let (found, expected) = (batch.found(options, DType::F64), batch.expected(options));
            assert_close(&found.loss, &expected.loss, 1e-12, "loss");
            assert_close(&found.hidden, &expected.hidden, 1e-12, "hidden");
            assert_close(&found.head, &expected.head, 1e-12, "head");
        }
    }
}

#[test]
fn dense_and_linear_agree_on_losses_temperatures_and_statistics() {
    for options in every_option() {
        let batch = Batch::new(24, 3);
        let [hidden, head, bias] = batch.tensors(DType::F64);
        let mut logits = hidden.matmul(&head.t().unwrap()).unwrap();
        if options.bias {
            logits = logits.broadcast_add(&bias).unwrap();
        }
        let head = match options.bias {
            true => Head::with_bias(&head, &bias),
            false => Head::from(head.as_tensor()),
        };
        let rows = batch.rows(&options);
        let (mut dense, mut linear) = (batch.loss(&options), batch.loss(&options));
        let (a, b) = (
            dense.statistics(&logits, &rows),
            linear.statistics_linear(&hidden, head, &rows),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(
            (a.rows(), a.tokens(), a.fan_out()),
            (b.rows(), b.tokens(), b.fan_out())
        );
        let moments = |s: &candle_trie::Statistics| [s.mean(), s.deviations(), s.target_mean()];
        assert_close(&moments(&a), &moments(&b), 1e-12, "statistics");
        let dense_evaluation = dense.evaluate(&logits, &rows).unwrap();
        let linear_evaluation = linear.evaluate_linear(&hidden, head, &rows).unwrap();
        assert!(!linear_evaluation.loss.track_op());
        assert_close(
            &f64s(&linear_evaluation.loss),
            &f64s(&dense_evaluation.loss),
            1e-12,
            "evaluation",
        );
        for _ in 0..3 {
            let dense = dense.forward(&logits, &rows).unwrap();
            let linear = linear.forward_linear(&hidden, head, &rows).unwrap();
            assert_close(&f64s(&dense.loss), &f64s(&linear.loss), 1e-12, "loss");
            assert_close(
                &[dense.read_temperature().unwrap()],
                &[linear.read_temperature().unwrap()],
                1e-12,
                "temperature",
            );
        }
    }
}

#[test]
fn a_frozen_head_gives_the_same_bits_and_takes_no_gradient() {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F64] {
        for bytes in [0, 30_000, FrozenHead::DEFAULT_LIMIT] {
            for options in every_option().iter().filter(|options| !options.bias) {
                let batch = Batch::new(24, 5);
                let [hidden, head, _] = batch.tensors(dtype);
                let rows = batch.rows(options);
                let frozen = FrozenHead::within(&head, None, batch.sets(options), bytes).unwrap();
                let tracked = batch
                    .loss(options)
                    .forward_linear(&hidden, &*head, &rows)
                    .unwrap();
                let output = batch
                    .loss(options)
                    .forward_linear(&hidden, &frozen, &rows)
                    .unwrap();
                assert_eq!(f64s(&output.loss), f64s(&tracked.loss));
                let (gradients, expected) = (
                    output.loss.backward().unwrap(),
                    tracked.loss.backward().unwrap(),
                );
                assert!(gradients.get(&head).is_none());
                assert_eq!(
                    f64s(gradients.get(&hidden).unwrap()),
                    f64s(expected.get(&hidden).unwrap())
                );
            }
        }
    }
}

/// A unary row that statistics are taken from, and a row of weight 0, with scores that are NaN.
#[test]
fn rows_that_do_not_count_cannot_spoil_the_result() {
    let sets = TokenSets::from_raw(vec![0, 1, 3], vec![3, 1, 2]).unwrap();
    let strategy = AdaptiveStrategy {
        allow_degenerate: true,
        ..AdaptiveStrategy::default()
    };
    let head = Tensor::new(&[[1.0f32], [2.0], [3.0], [f32::NAN]], &Device::Cpu).unwrap();
    let hidden = Var::new(&[[1.0f32], [f32::NAN], [1.0]], &Device::Cpu).unwrap();
    let row = |position, set, target| Row {
        position,
        set,
        target,
    };
    let all = vec![row(0, 0, 3), row(1, 1, 2), row(2, 1, 1)];
    for (rows, weights) in [
        (all.clone(), vec![1.0, 0.0, 1.0]),
        (all[..2].to_vec(), vec![1.0, 0.0]),
    ] {
        let rows = Rows::from_raw(3, rows)
            .unwrap()
            .with_weights(weights)
            .unwrap();
        let mut loss = MaskedSoftmaxLoss::new(&sets, strategy).unwrap();
        let output = loss.forward_linear(&hidden, &head, &rows).unwrap();
        let gradients = output.loss.backward().unwrap();
        let found = [f64s(&output.loss), f64s(gradients.get(&hidden).unwrap())].concat();
        assert!(found.iter().all(|number| number.is_finite()), "{found:?}");
        assert_eq!(found[1..3], [0.0; 2]);
        assert_eq!(found[3] != 0.0, rows.len() == 3);
    }
}

/// Its gathered rows belong to set numbers, which mean other tokens elsewhere.
#[test]
fn a_head_frozen_for_other_sets_is_refused() {
    let sets = |size: u32| TokenSets::from_raw(vec![0, size], (0..size).collect()).unwrap();
    let head = Tensor::ones((1100, 4), DType::F32, &Device::Cpu).unwrap();
    let hidden = Tensor::ones((8, 4), DType::F32, &Device::Cpu).unwrap();
    let frozen = FrozenHead::new(&head, sets(1000)).unwrap();
    assert_eq!(frozen.gathered_sets(), 1);
    let row = |position| Row {
        position,
        set: 0,
        target: 1,
    };
    let rows = Rows::from_raw(8, (0..8).map(row).collect()).unwrap();
    let run = |sets: TokenSets| {
        let mut loss = MaskedSoftmaxLoss::new(sets, Temperature::fixed(1.0)).unwrap();
        loss.forward_linear(&hidden, &frozen, &rows)
    };
    let error = run(sets(1100)).unwrap_err();
    assert!(
        matches!(error, Error::Unsupported { what: "head", .. }),
        "{error}"
    );
    run(sets(1000)).unwrap();
    run(TokenSets::whole_vocabulary(1100).unwrap()).unwrap();
}

#[test]
fn the_gathered_rows_stay_within_their_bytes() {
    let batch = Batch::new(24, 5);
    let [_, head, _] = batch.tensors(DType::F32);
    let gathered = |bytes| {
        FrozenHead::within(&head, None, &batch.sets, bytes)
            .unwrap()
            .gathered_sets()
    };
    let row = (24 + 16) * 4;
    assert_eq!(gathered(40 * row - 1), 0);
    assert_eq!(
        gathered(40 * row),
        1,
        "the smaller of the two sets of 32 tokens or more"
    );
    assert_eq!(gathered(190 * row), 2);
}

#[test]
fn tied_embeddings_receive_the_gradients_of_both_their_uses() {
    let batch = Batch::new(8, 11);
    let options = &every_option()[0];
    let [_, head, _] = batch.tensors(DType::F64);
    let tokens = Tensor::from_vec(
        (0..batch.positions as u32).collect::<Vec<_>>(),
        batch.positions,
        &Device::Cpu,
    )
    .unwrap();
    let gradient = |linear: bool| {
        let hidden = head.index_select(&tokens, 0).unwrap();
        let rows = batch.rows(options);
        let output = match linear {
            true => batch.loss(options).forward_linear(&hidden, &*head, &rows),
            false => {
                let logits = hidden.matmul(&head.t().unwrap()).unwrap();
                batch.loss(options).forward(&logits, &rows)
            }
        };
        f64s(output.unwrap().loss.backward().unwrap().get(&head).unwrap())
    };
    assert_close(&gradient(true), &gradient(false), 1e-12, "tied embedding");
}

#[test]
fn hidden_states_of_a_narrowed_view_are_read_where_they_lie() {
    let batch = Batch::new(16, 2);
    let options = &every_option()[6];
    let [hidden, head, _] = batch.tensors(DType::F64);
    let padding = Tensor::ones((batch.positions, 5), DType::F64, &Device::Cpu).unwrap();
    let wide = Tensor::cat(&[&padding, &hidden, &padding], 1).unwrap();
    let view = wide.narrow(1, 5, 16).unwrap();
    let rows = batch.rows(options);
    let plain = batch
        .loss(options)
        .forward_linear(&hidden, &*head, &rows)
        .unwrap();
    let viewed = batch
        .loss(options)
        .forward_linear(&view, &*head, &rows)
        .unwrap();
    assert_eq!(f64s(&plain.loss), f64s(&viewed.loss));
}

#[test]
fn empty_batches_give_loss_zero_and_gradient_zero() {
    let batch = Batch::new(8, 1);
    for options in every_option() {
        let [hidden, head, _] = batch.tensors(DType::F32);
        let rows = Rows::from_raw(batch.positions, vec![]).unwrap();
        let rows = rows.with_marks(vec![]).unwrap();
        let mut loss = batch.loss(&options);
        let before = loss.temperature().value();
        let output = loss.forward_linear(&hidden, &*head, &rows).unwrap();
        assert!(f64s(&output.loss).iter().all(|&loss| loss == 0.0));
        assert_eq!(output.read_temperature().unwrap(), before);
        let gradients = output.loss.backward().unwrap();
        assert!(
            f64s(gradients.get(&hidden).unwrap())
                .iter()
                .all(|&entry| entry == 0.0)
        );
        assert!(
            f64s(gradients.get(&head).unwrap())
                .iter()
                .all(|&entry| entry == 0.0)
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let batch = Batch::new(8, 1);
    let options = &every_option()[0];
    let rows = batch.rows(options);
    let tensor = |rows: usize, width: usize, dtype| {
        Tensor::zeros((rows, width), dtype, &Device::Cpu).unwrap()
    };
    let run = |hidden: &Tensor, head: &Tensor| {
        batch
            .loss(options)
            .forward_linear(hidden, head, &rows)
            .map(|_| ())
            .unwrap_err()
    };
    let (hidden, head) = (tensor(97, 8, DType::F32), tensor(211, 8, DType::F32));
    let error = run(&hidden, &tensor(211, 9, DType::F32));
    assert!(
        matches!(
            error,
            Error::LengthMismatch {
                expected: 9,
                actual: 8,
                ..
            }
        ),
        "{error}"
    );
    let error = run(&hidden, &tensor(100, 8, DType::F32));
    assert!(
        matches!(
            error,
            Error::TokenOutsideVocabulary {
                vocabulary: 100,
                ..
            }
        ),
        "{error}"
    );
    let error = run(&hidden, &tensor(211, 8, DType::BF16));
    assert!(
        matches!(error, Error::Unsupported { what: "head", .. }),
        "{error}"
    );
    let error = run(&tensor(96, 8, DType::F32), &head);
    assert!(
        matches!(
            error,
            Error::PositionMismatch {
                rows: 97,
                positions: 96,
                ..
            }
        ),
        "{error}"
    );
    let error = run(&tensor(97, 8, DType::U32), &tensor(211, 8, DType::U32));
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let error = run(&hidden, &tensor(8, 211, DType::F32).t().unwrap());
    assert!(
        matches!(error, Error::Unsupported { what: "head", .. }),
        "{error}"
    );
    let short_bias = Tensor::zeros(210, DType::F32, &Device::Cpu).unwrap();
    let with_bias = Head::with_bias(&head, &short_bias);
    let error = batch
        .loss(options)
        .forward_linear(&hidden, with_bias, &rows)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unsupported {
                what: "head bias",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_checked_mode_names_the_row_whose_score_is_not_finite() {
    let batch = Batch::new(8, 1);
    for options in [&every_option()[0], &every_option()[20]] {
        let [hidden, head, _] = batch.tensors(DType::F32);
        let mut values = hidden.to_vec2::<f32>().unwrap();
        values[2][0] = f32::NAN;
        let hidden = Tensor::new(values, &Device::Cpu).unwrap();
        let rows = batch.rows(options);
        let error = batch
            .loss(options)
            .checked()
            .forward_linear(&hidden, &*head, &rows);
        assert!(matches!(error, Err(Error::NonFinite { position: 2, .. })));
        let output = batch
            .loss(options)
            .forward_linear(&hidden, &*head, &rows)
            .unwrap();
        assert!(f64s(&output.loss)[0].is_nan());
    }
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// Within `tolerance` of the largest expected entry.
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
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
