//! Heads in two parts: frozen rows, and added rows that are trained.

use candle_core::{DType, Device, Tensor, Var};
use candle_trie::{
    Error, GradientTarget, Head, MaskedSoftmaxLoss, Row, Rows, Temperature, TokenSets,
};

use crate::batch::{Batch, Options, assert_close, every_option, every_option_with_bear, f64s};

const TYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// The largest error of a gradient, relative to its largest entry.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        DType::F32 => 2e-5,
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-7),
    }
}

fn options_without_bias() -> impl Iterator<Item = Options> {
    (every_option().into_iter().chain(every_option_with_bear())).map(|options| Options {
        bias: false,
        ..options
    })
}

/// Splits the head of a batch before a token. The rows before it are tracked, which is to make no difference.
fn split(head: &Tensor, first_added: usize) -> [Var; 2] {
    let rows = head.dim(0).unwrap();
    [(0, first_added), (first_added, rows - first_added)]
        .map(|(start, length)| head.narrow(0, start, length).unwrap().contiguous().unwrap())
        .map(|part| Var::from_tensor(&part).unwrap())
}

struct Found {
    loss: Vec<f64>,
    hidden: Vec<f64>,
    added: Tensor,
}

fn found(batch: &Batch, options: &Options, hidden: &Var, [base, added]: &[Var; 2]) -> Found {
    let rows = batch.rows(options);
    let head = Head::with_added_rows(base, added);
    let output = (batch.loss(options).forward((hidden, head), &rows)).unwrap();
    let gradients = output.loss.backward().unwrap();
    assert!(
        gradients.get(base).is_none(),
        "frozen rows take no gradient"
    );
    let of_added = gradients.get(added).unwrap().clone();
    assert_eq!(
        (of_added.dims(), of_added.dtype()),
        (added.dims(), added.dtype())
    );
    Found {
        loss: f64s(&output.loss),
        hidden: f64s(gradients.get(hidden).unwrap()),
        added: of_added,
    }
}

/// The gradient of the added rows is that part of the gradient of the head.
fn check(batch: &Batch, options: &Options, dtype: DType, first_added: usize, what: &str) {
    let [hidden, head, _] = batch.tensors(dtype);
    let found = found(batch, options, &hidden, &split(&head, first_added));
    let expected = batch.expected(options);
    let tolerance = tolerance(dtype);
    assert_close(&found.loss, &expected.loss, tolerance.min(2e-5), what);
    assert_close(&found.hidden, &expected.hidden, tolerance, what);
    let of_added = &expected.head[first_added * batch.width..];
    assert_close(&f64s(&found.added), of_added, tolerance, what);
}

#[test]
fn every_option_equals_the_definition_over_the_whole_head() {
    let batch = Batch::new(40, 7);
    for dtype in TYPES {
        for (index, options) in options_without_bias().enumerate() {
            let first_added = [1, 100, 190, 210][index % 4];
            let what = format!("{dtype:?}, option {index}, {first_added} frozen rows");
            check(&batch, &options, dtype, first_added, &what);
        }
    }
}

#[test]
fn odd_widths_equal_the_definition() {
    for width in [1, 7, 16, 33] {
        let batch = Batch::new(width, width as u64);
        for (index, options) in options_without_bias().step_by(3).enumerate() {
            let first_added = [64, 150, 205][index % 3];
            check(
                &batch,
                &options,
                DType::F64,
                first_added,
                &format!("width {width}"),
            );
        }
    }
}

/// No rows before the added ones, or no added ones.
#[test]
fn a_part_may_be_empty() {
    let batch = Batch::new(24, 5);
    for dtype in TYPES {
        for options in options_without_bias().step_by(7) {
            check(&batch, &options, dtype, 0, "all rows are added");
            check(&batch, &options, dtype, batch.vocabulary, "no row is added");
        }
    }
}

/// Over listed sets the sums are the same ones in the same order. Over the whole vocabulary chunks end where the added rows begin.
#[test]
fn over_listed_sets_the_bits_are_those_of_a_head_in_one_part() {
    let batch = Batch::new(24, 5);
    for dtype in TYPES {
        for (index, options) in options_without_bias().enumerate() {
            if options.whole_vocabulary {
                continue;
            }
            let first_added = [1, 100, 190, 210][index % 4];
            let [hidden, head, _] = batch.tensors(dtype);
            let parts = found(&batch, &options, &hidden, &split(&head, first_added));
            let whole = batch.found(&options, dtype);
            let of_added = &whole.head[first_added * batch.width..];
            assert_eq!(parts.loss, whole.loss);
            assert_eq!(parts.hidden, whole.hidden);
            assert_eq!(f64s(&parts.added), of_added);
        }
    }
}

#[test]
fn added_tokens_that_are_in_no_set_take_a_gradient_of_zero() {
    let batch = Batch::new(24, 5);
    for dtype in TYPES {
        for options in options_without_bias() {
            let [hidden, head, _] = batch.tensors(dtype);
            let added = Var::ones((3, batch.width), dtype, &Device::Cpu).unwrap();
            let found = found(&batch, &options, &hidden, &[head, added]);
            assert!(f64s(&found.added).iter().all(|&entry| entry == 0.0));
            let whole = batch.found(&options, dtype);
            assert_eq!((found.loss, found.hidden), (whole.loss, whole.hidden));
        }
    }
}

#[test]
fn finite_differences_of_the_added_rows_agree() {
    const FIRST_ADDED: usize = 170;
    let batch = Batch::new(5, 3);
    for whole_vocabulary in [false, true] {
        let options = options_without_bias()
            .find(|options| options.whole_vocabulary == whole_vocabulary)
            .unwrap();
        let [hidden, head, _] = batch.tensors(DType::F64);
        let parts @ [base, added] = &split(&head, FIRST_ADDED);
        let gradient = f64s(&found(&batch, &options, &hidden, parts).added);
        let (rows, values) = (batch.rows(&options), f64s(added));
        let loss_of = |values: Vec<f64>| {
            let added = Tensor::from_vec(values, added.shape(), &Device::Cpu).unwrap();
            let head = Head::with_added_rows(base, &added);
            let output = batch.loss(&options).evaluate((&hidden, head), &rows);
            f64s(&output.unwrap().loss)[0]
        };
        for index in (0..values.len()).step_by(11) {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[index] += by;
                loss_of(values)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - gradient[index]).abs() < 1e-8, "entry {index}");
        }
    }
}

#[test]
fn every_other_method_takes_a_head_in_two_parts() {
    let batch = Batch::new(24, 5);
    for (index, options) in options_without_bias().enumerate() {
        let first_added = [1, 100, 150, 190][index % 4];
        let [hidden, head, _] = batch.tensors(DType::F64);
        let [base, added] = split(&head, first_added);
        let rows = batch.rows(&options);
        let loss = batch.loss(&options);
        let [whole, parts] = [Head::from(&head), Head::with_added_rows(&base, &added)];
        let [whole, parts] = [whole, parts].map(|head| {
            let statistics = loss.statistics((&hidden, head), &rows).unwrap();
            let evaluation = loss.evaluate((&hidden, head), &rows).unwrap();
            let (output, gradient) = (batch.loss(&options))
                .value_and_gradient((&hidden, head), &rows, GradientTarget::New)
                .unwrap();
            let numbers = [
                statistics.mean(),
                statistics.deviations(),
                statistics.target_mean(),
            ];
            let losses = [f64s(&evaluation.loss), f64s(&output.loss)].concat();
            [numbers.to_vec(), losses, f64s(&gradient)]
        });
        for (parts, whole) in parts.iter().zip(&whole) {
            assert_close(parts, whole, 1e-12, &format!("option {index}"));
        }
        let nan = added.as_tensor().affine(0.0, f64::NAN).unwrap();
        let mut checked = loss.check_finite();
        let error = checked.forward((&hidden, Head::with_added_rows(&base, &nan)), &rows);
        assert!(
            matches!(error, Err(Error::NonFinite { token, .. }) if token as usize >= first_added)
        );
    }
}

/// Rows of either part may lie apart, as they do in a view of a wider matrix.
#[test]
fn parts_are_read_where_they_lie() {
    let batch = Batch::new(16, 2);
    for options in options_without_bias().step_by(5) {
        let [hidden, head, _] = batch.tensors(DType::F64);
        let parts = split(&head, 120);
        let rows = batch.rows(&options);
        let [base, added] = parts.clone().map(|part| {
            let padding =
                Tensor::ones((part.dim(0).unwrap(), 5), DType::F64, &Device::Cpu).unwrap();
            Tensor::cat(&[&padding, &part, &padding], 1).unwrap()
        });
        let [base, added] = [&base, &added].map(|wide| wide.narrow(1, 5, 16).unwrap());
        let viewed = (batch.loss(&options))
            .forward((&hidden, Head::with_added_rows(&base, &added)), &rows)
            .unwrap();
        let expected = found(&batch, &options, &hidden, &parts);
        assert_eq!(f64s(&viewed.loss), expected.loss);
        let gradients = viewed.loss.backward().unwrap();
        assert_eq!(f64s(gradients.get(&hidden).unwrap()), expected.hidden);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_with_their_numbers() {
    let sets = TokenSets::from_raw(vec![0, 2], vec![1, 6]).unwrap();
    let row = Row {
        position: 0,
        set: 0,
        target: 6,
    };
    let rows = Rows::from_raw(1, vec![row]).unwrap();
    let tensor = |rows: usize, width: usize, dtype| {
        Tensor::zeros((rows, width), dtype, &Device::Cpu).unwrap()
    };
    let run = |hidden: &Tensor, base: &Tensor, added: &Tensor| {
        let loss = MaskedSoftmaxLoss::new(&sets, Temperature::fixed(1.0)).unwrap();
        let head = Head::with_added_rows(base, added);
        loss.evaluate((hidden, head), &rows).map(|_| ())
    };
    let refused = |base: &Tensor, added: &Tensor, numbers: [&str; 2]| {
        let error = run(&tensor(1, 8, DType::F32), base, added).unwrap_err();
        let words = error.to_string();
        assert!(
            numbers.iter().all(|number| words.contains(number)),
            "{words}"
        );
    };
    let base = tensor(5, 8, DType::F32);
    assert!(run(&tensor(1, 8, DType::F32), &base, &tensor(2, 8, DType::F32)).is_ok());
    refused(&base, &tensor(2, 9, DType::F32), ["[5, 8]", "[2, 9]"]);
    refused(&base, &tensor(2, 8, DType::BF16), ["F32", "BF16"]);
    refused(
        &base,
        &tensor(2, 8, DType::F32).flatten_all().unwrap(),
        ["[5, 8]", "[16]"],
    );
    refused(
        &base.flatten_all().unwrap(),
        &tensor(2, 8, DType::F32),
        ["[V, H]", "[40]"],
    );
    // Both parts fit each other, but not the hidden states or the tokens.
    let both = |width, dtype| [tensor(5, width, dtype), tensor(2, width, dtype)];
    let [base, added] = both(9, DType::F32);
    refused(&base, &added, ["8", "9"]);
    let [base, added] = both(8, DType::F64);
    refused(&base, &added, ["F32", "F64"]);
    refused(
        &tensor(5, 8, DType::F32),
        &tensor(1, 8, DType::F32),
        ["token 6", "6"],
    );
}
