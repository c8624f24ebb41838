//! The loss over hidden states and a head on a GPU gives what it gives on the CPU.

use std::slice;

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::cuda::Executor;
use candle_trie::launch::{Element, LinearGradients, LinearPlan};
use candle_trie::{FrozenHead, GradientTarget, Head, Row, Rows, Temperature, TokenSets};

use crate::batch::noise;
use crate::cuda;
use crate::linear_batch::{Batch, Options, assert_close, every_option, f64s};

/// Loss, τ, statistics, evaluation, the gradients of hidden states, head and bias, those twice, and loss and gradient of the
/// hidden states by a pass that makes both. A frozen head has no gradient.
fn everything(
    batch: &Batch,
    options: &Options,
    dtype: DType,
    device: &Device,
    frozen: bool,
) -> [Vec<f64>; 12] {
    let moved = |values: &Var| values.to_dtype(dtype).unwrap().to_device(device).unwrap();
    let variables = batch.tensors(dtype);
    let [hidden, weight, bias] = variables.map(|tensor| Var::from_tensor(&moved(&tensor)).unwrap());
    let bias_or_none = options.bias.then_some(bias.as_tensor());
    let sets = batch.sets(options);
    let frozen_head = FrozenHead::with_limit(&weight, bias_or_none, sets, 1 << 20).unwrap();
    let head = match (frozen, bias_or_none) {
        (true, _) => Head::from(&frozen_head),
        (false, Some(bias)) => Head::with_bias(&weight, bias),
        (false, None) => Head::from(weight.as_tensor()),
    };
    let rows = batch.rows(options);
    let mut loss = batch.loss(options);
    let evaluated = f64s(&loss.evaluate((&hidden, head), &rows).unwrap().loss);
    let statistics = loss.statistics((&hidden, head), &rows).unwrap();
    // The second step goes on from a temperature that may be on the device.
    loss.forward((&hidden, head), &rows).unwrap();
    let in_one_pass = loss
        .clone()
        .value_and_gradient((&hidden, head), &rows, GradientTarget::New);
    let (value, gradient) = in_one_pass.unwrap();
    let output = loss.forward((&hidden, head), &rows).unwrap();
    let gradients = || {
        let gradients = output.loss.sum_all().unwrap().backward().unwrap();
        [&hidden, &weight, &bias].map(|of| gradients.get(of).map_or(Vec::new(), f64s))
    };
    let ([hidden_gradient, head_gradient, bias_gradient], again) = (gradients(), gradients());
    assert_eq!(head_gradient.is_empty(), frozen);
    assert_eq!(bias_gradient.is_empty(), frozen || !options.bias);
    let [hidden_again, head_again, bias_again] = again;
    [
        f64s(&output.loss),
        vec![
            loss.temperature().unwrap().value(),
            output.read_temperature().unwrap(),
        ],
        bytemuck::cast_slice(&[statistics]).to_vec(),
        evaluated,
        hidden_gradient,
        head_gradient,
        bias_gradient,
        hidden_again,
        head_again,
        bias_again,
        f64s(&value.loss),
        f64s(&gradient),
    ]
}

/// The types, each with what it may be off.
const F32: (DType, f64) = (DType::F32, 2e-5);
const F16: (DType, f64) = (DType::F16, 2e-3);
const BF16: (DType, f64) = (DType::BF16, 1.6e-2);

fn assert_as_on_the_cpu(batch: &Batch, options: &[Options], (dtype, tolerance): (DType, f64)) {
    let device = cuda();
    for (index, options) in options.iter().enumerate() {
        for frozen in [false, true] {
            let on_cpu = everything(batch, options, dtype, &Device::Cpu, frozen);
            let on_gpu = everything(batch, options, dtype, &device, frozen);
            for (part, (found, expected)) in on_gpu.iter().zip(&on_cpu).enumerate() {
                let what = format!("{}, {dtype:?}, option {index}, part {part}", batch.width);
                assert_close(found, expected, tolerance, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn every_option_gives_what_it_gives_on_the_cpu() {
    for width in [40, 33] {
        for number in [F32, F16, BF16] {
            assert_as_on_the_cpu(&Batch::new(width, 7), &every_option(), number);
        }
    }
}

/// So wide that blocks share the sums of a score among them.
fn assert_slices_as_on_the_cpu(number: (DType, f64)) {
    let listed = (every_option().into_iter()).filter(|options| !options.whole_vocabulary);
    let options: Vec<_> = listed.step_by(3).collect();
    assert_as_on_the_cpu(&Batch::new(8192, 7), &options, number);
}

#[test]
#[ignore = "needs a GPU"]
fn slices_give_what_they_give_on_the_cpu_in_f32() {
    assert_slices_as_on_the_cpu(F32);
}

#[test]
#[ignore = "needs a GPU"]
fn slices_give_what_they_give_on_the_cpu_in_f16() {
    assert_slices_as_on_the_cpu(F16);
}

#[test]
#[ignore = "needs a GPU"]
fn slices_give_what_they_give_on_the_cpu_in_bf16() {
    assert_slices_as_on_the_cpu(BF16);
}

/// Sets of 1 to 5,000 tokens in 1 to 300 rows.
#[test]
#[ignore = "needs a GPU"]
fn large_sets_and_many_rows_give_what_they_give_on_the_cpu() {
    let (vocabulary, width) = (6000, 136);
    let of_set: [(u32, u32); 7] = [
        (5000, 3),
        (1000, 64),
        (257, 300),
        (128, 9),
        (65, 1),
        (2, 40),
        (1, 5),
    ];
    let (mut offsets, mut tokens, mut rows) = (vec![0], Vec::new(), Vec::new());
    for (set, (size, count)) in (0..).zip(of_set) {
        let first = vocabulary as u32 - 97 * (set + 1) - size;
        tokens.extend(first..first + size);
        offsets.push(tokens.len() as u32);
        rows.extend((0..count).map(|row| Row {
            position: 0,
            set,
            target: first + 31 * row % size,
        }));
    }
    // Every fifth position is ignored.
    let positions = rows.len() + rows.len() / 4 + 1;
    let labelled = (0..positions as u32).filter(|position| position % 5 != 4);
    (rows.iter_mut().zip(labelled)).for_each(|(row, position)| row.position = position);
    let batch = Batch {
        hidden: noise(1, positions * width, 1.0),
        head: noise(2, vocabulary * width, 1.0),
        bias: noise(3, vocabulary, 1.0),
        positions,
        vocabulary,
        width,
        sets: TokenSets::from_raw(offsets, tokens).unwrap(),
        rows: Rows::from_raw(positions, rows).unwrap(),
    };
    let listed = (every_option().into_iter()).filter(|options| !options.whole_vocabulary);
    let options: Vec<_> = listed.step_by(7).collect();
    for number in [F32, F16, BF16] {
        assert_as_on_the_cpu(&batch, &options, number);
    }
}

/// More scores than are in memory at a time: chunks of 64 rows and of 6.
#[test]
#[ignore = "needs a GPU"]
fn a_large_whole_vocabulary_gives_in_chunks_what_it_gives_on_the_cpu() {
    let (positions, vocabulary, width) = (75, 1 << 19, 8);
    let rows = (0..positions as u32)
        .filter(|position| position % 15 != 3)
        .map(|position| Row {
            position,
            set: 0,
            target: 6007 * position,
        });
    let batch = Batch {
        hidden: noise(1, positions * width, 1.0),
        head: noise(2, vocabulary * width, 1.0),
        bias: noise(3, vocabulary, 1.0),
        positions,
        vocabulary,
        width,
        sets: TokenSets::whole_vocabulary(vocabulary).unwrap(),
        rows: Rows::from_raw(positions, rows.collect()).unwrap(),
    };
    let adapts = |options: &Options| matches!(options.temperature, Temperature::Adaptive(_));
    let options = (every_option().into_iter())
        .find(|options| options.whole_vocabulary && options.bias && adapts(options))
        .unwrap();
    let executor = Executor::new(cuda().as_cuda_device().unwrap()).unwrap();
    let rows = (batch.loss(&options)).linear_rows(&batch.rows(&options));
    let pass = LinearPlan::new(
        rows.unwrap(),
        Element::F32,
        width,
        LinearGradients::Hidden,
        executor.limits(),
        LinearPlan::MOST_SCORES,
    );
    assert_eq!(pass.unwrap().forward_launches_count(false), 2);
    for number in [F32, BF16] {
        assert_as_on_the_cpu(&batch, slice::from_ref(&options), number);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn each_gradient_is_made_alone_and_comes_to_the_same_bits() {
    let (device, batch) = (cuda(), Batch::new(40, 7));
    let options = &every_option()[0];
    assert!(options.bias && !options.whole_vocabulary);
    let tensors = batch.tensors(DType::BF16);
    let tensors = tensors.map(|tensor| tensor.to_device(&device).unwrap().detach());
    let gradients = |tracked: [bool; 3]| {
        let variables = tensors
            .each_ref()
            .map(|tensor| Var::from_tensor(tensor).unwrap());
        let of = |index: usize| match tracked[index] {
            true => variables[index].as_tensor().clone(),
            false => variables[index].detach(),
        };
        let (hidden, weight, bias) = (of(0), of(1), of(2));
        let head = Head::with_bias(&weight, &bias);
        let output = (batch.loss(options)).forward((&hidden, head), &batch.rows(options));
        let gradients = output.unwrap().loss.backward().unwrap();
        variables.map(|of| gradients.get(&of).map(f64s))
    };
    let all = gradients([true; 3]);
    assert_eq!(gradients([true; 3]), all);
    for alone in 0..3 {
        let found = gradients([0, 1, 2].map(|index| index == alone));
        for index in 0..3 {
            let expected = (index == alone).then(|| all[index].clone().unwrap());
            assert_eq!(found[index], expected, "{index} of {alone} alone");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn the_rows_of_a_head_may_lie_apart() {
    let (device, batch) = (cuda(), Batch::new(40, 7));
    let options = every_option()
        .into_iter()
        .find(|options| options.whole_vocabulary);
    let options = options.unwrap();
    let tensors = batch.tensors(DType::F32);
    let [hidden, weight, _] = tensors.map(|tensor| tensor.to_device(&device).unwrap().detach());
    let wide = Tensor::cat(&[&weight, &weight], 1).unwrap();
    let strided = wide.narrow(1, 0, 40).unwrap();
    let of = |head: &Tensor| {
        let hidden = Var::from_tensor(&hidden).unwrap();
        let output = batch
            .loss(&options)
            .forward((&hidden, head), &batch.rows(&options));
        let gradients = output.unwrap().loss.backward().unwrap();
        f64s(gradients.get(&hidden).unwrap())
    };
    assert_eq!(of(&strided), of(&weight));
}

/// Loss, evaluation, and the gradients of hidden states and of the added rows. The rows before `first_added` are frozen.
fn in_two_parts(
    batch: &Batch,
    options: &Options,
    dtype: DType,
    device: &Device,
    first_added: usize,
) -> [Vec<f64>; 4] {
    let [hidden, head, _] = batch.tensors(dtype).map(|tensor| {
        let moved = tensor.to_device(device).unwrap();
        Var::from_tensor(&moved).unwrap()
    });
    let base = head.narrow(0, 0, first_added).unwrap();
    let added = head.narrow(0, first_added, batch.vocabulary - first_added);
    let added = Var::from_tensor(&added.unwrap().contiguous().unwrap()).unwrap();
    let (scores, rows) = (
        (&hidden, Head::with_added_rows(&base, &added)),
        batch.rows(options),
    );
    let mut loss = batch.loss(options).check_finite();
    let evaluated = f64s(&loss.evaluate(scores, &rows).unwrap().loss);
    let output = loss.forward(scores, &rows).unwrap();
    let gradients = output.loss.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&head).is_none());
    let of_added = gradients.get(&added).unwrap();
    assert_eq!(of_added.dims(), added.dims());
    let of_hidden = f64s(gradients.get(&hidden).unwrap());
    [f64s(&output.loss), evaluated, of_hidden, f64s(of_added)]
}

#[test]
#[ignore = "needs a GPU"]
fn a_head_in_two_parts_gives_what_it_gives_on_the_cpu() {
    let (device, batch) = (cuda(), Batch::new(40, 7));
    for (dtype, tolerance) in [F32, F16, BF16] {
        for (index, options) in every_option().into_iter().enumerate() {
            let options = Options {
                bias: false,
                ..options
            };
            let first_added = [1, 100, 150, 208][index % 4];
            let [on_cpu, on_gpu] = [&Device::Cpu, &device]
                .map(|device| in_two_parts(&batch, &options, dtype, device, first_added));
            for (part, (found, expected)) in on_gpu.iter().zip(&on_cpu).enumerate() {
                let what = format!("{dtype:?}, option {index}, part {part}");
                assert_close(found, expected, tolerance, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_head_elsewhere_is_refused() {
    let device = cuda();
    let batch = Batch::new(8, 1);
    let options = &every_option()[0];
    let [hidden, head, _] = batch.tensors(DType::F32);
    let hidden = hidden.to_device(&device).unwrap();
    let (rows, mut loss) = (batch.rows(options), batch.loss(options));
    let error = loss.forward((&hidden, &head.detach()), &rows).unwrap_err();
    assert!(error.to_string().contains("as the hidden states"));
}
