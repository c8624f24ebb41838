//! Every dtype agrees with the definition in f64 as closely as it can.

use candle_core::{DType, Tensor, Var};
use candle_trie::{
    Bear, Convention, GradientTarget, Reduction, Rows, Scope, Temperature, TokenSets, reference,
};

use crate::batch::*;

/// The relative error of rounding once, and the absolute one where the result is subnormal.
fn rounding(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::BF16 => (f64::exp2(-8.0), f64::exp2(-134.0)),
        DType::F16 => (f64::exp2(-11.0), f64::exp2(-25.0)),
        DType::F32 => (0.0, f64::exp2(-150.0)),
        _ => (0.0, 0.0),
    }
}

/// What the arithmetic before that rounding may be off by. An adaptive temperature multiplies the
/// rounding of its statistics where its discriminant is small.
fn arithmetic(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-11 } else { 3e-6 }
}

/// Compares loss, temperature and every single gradient entry with the definition, which is given
/// the logits as the dtype holds them.
fn check(
    values: &[f64],
    vocabulary: usize,
    sets: &TokenSets,
    rows: &Rows,
    temperature: &Temperature,
    convention: Convention,
) {
    for dtype in DTYPES {
        let logits = tensor(values, &[rows.positions(), vocabulary], dtype);
        for bear in bears() {
            check_one(
                &logits,
                vocabulary,
                sets,
                rows,
                temperature,
                convention,
                bear,
            );
        }
    }
}

fn check_one(
    logits: &Tensor,
    vocabulary: usize,
    sets: &TokenSets,
    rows: &Rows,
    temperature: &Temperature,
    convention: Convention,
    bear: Option<Bear>,
) {
    let dtype = logits.dtype();
    let expected = reference::loss_with_bear(
        &f64s(logits),
        vocabulary,
        sets,
        rows,
        &mut temperature.clone(),
        convention,
        bear,
    )
    .unwrap();
    let mut loss = loss_with_bear(sets, temperature, convention, bear);
    let (output, gradient) = loss
        .value_and_gradient(logits, rows, GradientTarget::New)
        .unwrap();
    let what = format!("{dtype:?}, {convention:?} at {temperature:?}, {bear:?}");
    let relative = arithmetic(dtype);
    if convention.reduction != Reduction::None {
        assert_near(f64_of(&output.loss), expected.loss, relative, 1e-7, &what);
    }
    let tau = output.read_temperature().unwrap();
    assert_near(tau, expected.temperature, relative, 0.0, &what);
    let (unit, least) = rounding(dtype);
    for (found, expected) in f64s(&gradient).into_iter().zip(expected.gradient) {
        // A probability's relative error is its logit's absolute error; noise stays below 20.
        assert_near(found, expected, unit + relative, least, &what);
    }
}

fn assert_near(found: f64, expected: f64, relative: f64, absolute: f64, what: &str) {
    let error = (found - expected).abs();
    assert!(
        error <= relative * expected.abs() + absolute,
        "{what}: {found} should be {expected}, off by {error:e}"
    );
}

#[test]
fn every_dtype_agrees_with_the_definition_within_its_rounding() {
    let values = noise(10, 8 * VOCABULARY, 6.0);
    for temperature in temperatures() {
        for convention in conventions() {
            for rows in [rows(), weighted_rows()] {
                check(
                    &values,
                    VOCABULARY,
                    &sets(),
                    &rows,
                    &temperature,
                    convention,
                );
            }
        }
    }
}

#[test]
fn whole_vocabularies_of_any_size_agree_with_the_definition() {
    for vocabulary in [1, 2, 15, 16, 17, 33, 1003] {
        let sets = TokenSets::whole_vocabulary(vocabulary).unwrap();
        let last = vocabulary as u32 - 1;
        let rows = rows_of(4, &[(0, 0, 0), (1, 7, last / 2), (3, 0, last)]);
        let values = noise(11, 4 * vocabulary, 6.0);
        for convention in [Convention::fixed(), Convention::adaptive()] {
            let fixed = Temperature::fixed(1.3);
            check(&values, vocabulary, &sets, &rows, &fixed, convention);
            let adaptive = strategy(Scope::Branching).into();
            check(&values, vocabulary, &sets, &rows, &adaptive, convention);
        }
    }
}

#[test]
fn a_vocabulary_smaller_than_the_logits_leaves_the_padding_alone() {
    let sets = TokenSets::whole_vocabulary(13).unwrap();
    let rows = rows_of(3, &[(0, 0, 12), (2, 0, 3)]);
    let values = noise(12, 3 * 16, 6.0);
    let temperature = Temperature::fixed(1.0);
    check(&values, 16, &sets, &rows, &temperature, Convention::fixed());
}

#[test]
fn sets_too_long_to_keep_agree_with_the_definition() {
    const VOCABULARY: usize = 20_011;
    let long = (0..VOCABULARY as u32).filter(|token| token % 7 != 0);
    let mut tokens: Vec<u32> = long.collect();
    let offsets = vec![0, tokens.len() as u32, tokens.len() as u32 + 3];
    tokens.extend([5, 6, 7]);
    assert!(offsets[1] > 16_384, "longer than what is kept");
    let sets = TokenSets::from_raw(offsets, tokens).unwrap();
    let rows = rows_of(5, &[(0, 0, 1), (1, 1, 6), (2, 0, 20_010), (4, 1, 7)]);
    let values = noise(13, 5 * VOCABULARY, 6.0);
    for convention in [Convention::fixed(), Convention::adaptive()] {
        let temperature = strategy(Scope::Branching).into();
        check(&values, VOCABULARY, &sets, &rows, &temperature, convention);
    }
}

#[test]
fn a_confident_target_keeps_its_gradient() {
    let sets = TokenSets::from_raw(vec![0, 2], vec![1, 3]).unwrap();
    let rows = rows_of(1, &[(0, 0, 1)]);
    let values = [0.0, f64::ln(999.0), 0.0, 0.0];
    for dtype in DTYPES {
        let logits = tensor(&values, &[1, 4], dtype);
        let mut loss = loss(&sets, &Temperature::fixed(1.0), Convention::fixed());
        let (_, gradient) = loss
            .value_and_gradient(&logits, &rows, GradientTarget::New)
            .unwrap();
        let expected = -1.0 / (f64s(&logits)[1].exp() + 1.0);
        let (unit, least) = rounding(dtype);
        assert!(expected.abs() < 1.1e-3, "p_y is about 0.999");
        assert_near(f64s(&gradient)[1], expected, unit + 1e-6, least, "p_y − 1");
    }
}

#[test]
fn a_gradient_is_scaled_before_it_is_rounded() {
    const SCALE: f64 = 1e7;
    let logits = Var::from_tensor(&tensor(&noise(14, 56, 3.0), &SHAPE, DType::F16)).unwrap();
    let convention = |reduction| Convention {
        reduction,
        times_temperature: false,
    };
    let gradient = |reduction, scale: f64| {
        let mut loss = loss(&sets(), &Temperature::fixed(1.0), convention(reduction));
        let output = loss.forward(&logits, &rows()).unwrap();
        let scaled = (output.loss * scale).unwrap();
        f64s(scaled.backward().unwrap().get(&logits).unwrap())
    };
    let rounded = gradient(Reduction::MeanOver(1e2 * SCALE), 1.0);
    assert!(rounded.iter().all(|&entry| entry == 0.0), "f16 holds none");
    let scaled = gradient(Reduction::MeanOver(SCALE), SCALE);
    assert_close(&scaled, &gradient(Reduction::Sum, 1.0), 1e-3, "scaled");
}
