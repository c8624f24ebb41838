//! Checks an implementation of the loss of your own, a CUDA kernel for example, against the definition in f64.
//!
//! [`candle_trie::reference`] works on logits in f64. Give it the inputs as your dtype holds them, that is rounded and then widened, so
//! that only what your code does is measured. Two errors then remain: that of the arithmetic, relative to each value, and that of
//! rounding the result once to your dtype. With f32 accumulators the tolerances below hold for this crate's own kernels.
//!
//! ```sh
//! cargo run --release --example check_a_kernel
//! ```

use candle_core::{DType, Device, Result, Tensor};
use candle_trie::reference::{self, Reference};
use candle_trie::{Convention, GradientTarget, MaskedSoftmaxLoss, Rows, Temperature, TokenTrie};

const VOCABULARY: usize = 24;
const WIDTH: usize = 16;
const TEMPERATURE: f64 = 0.8;

/// What a value may be off by: `relative` to itself, and `absolute`, which is for values near 0.
struct Tolerance {
    relative: f64,
    absolute: f64,
}

/// Returns the tolerance of a gradient: some roundings of the arithmetic, and half a unit in the last place of the result.
fn tolerance(dtype: DType) -> Tolerance {
    let (relative, absolute) = match dtype {
        DType::F64 => (1e-11, 1e-14),
        DType::F32 => (3e-6, 1e-8),
        DType::F16 => (f64::exp2(-11.0) + 3e-6, f64::exp2(-25.0)), // numbers below 2⁻¹⁴ are subnormal
        DType::BF16 => (f64::exp2(-8.0) + 3e-6, 1e-8),
        _ => (0.0, 0.0),
    };
    Tolerance { relative, absolute }
}

/// Returns the largest error of `found`, in units of the tolerance: above 1 it is wrong. `sizes` is what an error is relative to, besides
/// the value itself.
fn error(found: &[f64], expected: &[f64], sizes: &[f64], tolerance: &Tolerance) -> f64 {
    let errors = found
        .iter()
        .zip(expected)
        .zip(sizes)
        .map(|((found, expected), size)| {
            let allowed = tolerance.relative * (expected.abs() + size);
            (found - expected).abs() / (tolerance.absolute + allowed)
        });
    // Unlike f64::max, this keeps NaN.
    errors.fold(
        0.0,
        |worst, error| if error <= worst { worst } else { error },
    )
}

/// Returns numbers between -`size` and `size` that look random and are the same in each run.
fn numbers(shape: (usize, usize), size: f64, seed: f64) -> Result<Tensor> {
    let count = shape.0 * shape.1;
    let values: Vec<f64> = (0..count)
        .map(|index| size * (seed + 12.9898 * index as f64 * (1.0 + index as f64)).sin())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn f64s(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The code under test: put yours here. Returns the loss and the gradient `[N, V]` of logits `[N, V]`.
fn your_loss(logits: &Tensor, trie: &TokenTrie, rows: &Rows) -> candle_trie::Result<(f64, Tensor)> {
    let mut loss = MaskedSoftmaxLoss::new(trie, TEMPERATURE)?;
    let (output, gradient) = loss.value_and_gradient(logits, rows, GradientTarget::New)?;
    Ok((output.loss.to_dtype(DType::F64)?.to_scalar()?, gradient))
}

/// The same from hidden states `[N, H]` and a head `[V, H]`. Returns the loss and the gradient `[N, H]`.
fn your_linear_loss(
    hidden: &Tensor,
    head: &Tensor,
    trie: &TokenTrie,
    rows: &Rows,
) -> candle_trie::Result<(f64, Tensor)> {
    let mut loss = MaskedSoftmaxLoss::new(trie, TEMPERATURE)?;
    let (output, gradient) = loss.value_and_gradient((hidden, head), rows, GradientTarget::New)?;
    Ok((output.loss.to_dtype(DType::F64)?.to_scalar()?, gradient))
}

/// Returns what the definition gives for logits `[N, V]`.
fn expected(logits: &[f64], trie: &TokenTrie, rows: &Rows) -> candle_trie::Result<Reference> {
    let temperature = &mut Temperature::fixed(TEMPERATURE);
    reference::loss(
        logits,
        VOCABULARY,
        trie.sets(),
        rows,
        temperature,
        Convention::fixed(),
    )
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let trie =
        TokenTrie::new((0..50u32).map(|item| (u64::from(item), [item % 10, 10 + item / 5, 23])))?;
    let labels: Vec<Vec<i64>> = (0..16)
        .map(|item| vec![item % 10, 10 + item / 5, 23])
        .collect();
    let rows = Rows::from_shifted(&trie, &labels)?;
    let count = rows.positions();

    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let tolerance = tolerance(dtype);
        let logits = numbers((count, VOCABULARY), 6.0, 1.0)?.to_dtype(dtype)?;
        let reference = expected(&f64s(&logits)?, &trie, &rows)?;
        let (loss, gradient) = your_loss(&logits, &trie, &rows)?;
        let found = f64s(&gradient)?;
        let of_logits = error(
            &found,
            &reference.gradient,
            &vec![0.0; found.len()],
            &tolerance,
        );
        // The loss is f32 but for f64 logits, and is a sum over rows.
        assert!((loss - reference.loss).abs() <= 1e-5 * reference.loss);

        // Over hidden states × head the definition is applied to the exact logits, and the chain rule gives the rest:
        // ∂loss/∂hidden = ∂loss/∂logits × head, and ∂loss/∂head = (∂loss/∂logits)ᵀ × hidden.
        let hidden = numbers((count, WIDTH), 2.0, 2.0)?.to_dtype(dtype)?;
        let head = numbers((VOCABULARY, WIDTH), 2.0, 3.0)?.to_dtype(dtype)?;
        let (wide_hidden, wide_head) = (hidden.to_dtype(DType::F64)?, head.to_dtype(DType::F64)?);
        let logits = wide_hidden.matmul(&wide_head.t()?)?;
        let reference = expected(&f64s(&logits)?, &trie, &rows)?;
        let of_logits_then =
            Tensor::new(reference.gradient, &Device::Cpu)?.reshape((count, VOCABULARY))?;
        let expected_gradient = of_logits_then.matmul(&wide_head)?;
        let (_, gradient) = your_linear_loss(&hidden, &head, &trie, &rows)?;
        // An entry is a sum of V products of either sign, and its error is relative to their size. An implementation may round the gradient
        // of the logits to the dtype before it multiplies by the head, whose entries are below 2 here.
        let sizes = (of_logits_then.abs()?.matmul(&wide_head.abs()?)? * 4.0)?;
        let tolerance = Tolerance {
            absolute: tolerance.absolute * (1.0 + 2.0 * VOCABULARY as f64),
            ..tolerance
        };
        let of_hidden = error(
            &f64s(&gradient)?,
            &f64s(&expected_gradient)?,
            &f64s(&sizes)?,
            &tolerance,
        );
        println!(
            "{dtype:?}: error ÷ tolerance {of_logits:.3} of logits, {of_hidden:.3} of hidden states"
        );
        assert!(of_logits <= 1.0 && of_hidden <= 1.0);
    }
    Ok(())
}
