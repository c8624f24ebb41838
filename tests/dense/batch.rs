//! The batch that most of these tests run on, and ways to vary it.

use candle_core::{DType, Device, Tensor};
use candle_trie::{
    AdaptiveStrategy, Bear, Convention, MaskedSoftmaxLoss, Reduction, Row, Rows, Scope,
    Temperature, TokenSets,
};

#[path = "../device/mod.rs"]
mod device;
pub use device::device;

pub const VOCABULARY: usize = 7;
pub const SHAPE: [usize; 3] = [2, 4, VOCABULARY];
pub const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// Sets of 5, 2, 1 and all 7 tokens.
pub fn sets() -> TokenSets {
    let tokens = vec![0, 2, 3, 5, 6, 1, 4, 3, 0, 1, 2, 3, 4, 5, 6];
    TokenSets::from_raw(vec![0, 5, 7, 8, 15], tokens).unwrap()
}

/// Six of eight positions count; one is unary; those of set 0 are marked.
pub fn rows() -> Rows {
    let rows = [
        (0, 0, 2),
        (1, 1, 4),
        (2, 2, 3),
        (4, 0, 6),
        (5, 3, 0),
        (7, 1, 1),
    ];
    rows_of(8, &rows)
        .with_marks(rows.map(|(_, set, _)| set == 0).to_vec())
        .unwrap()
}

/// One row without weight, others of unequal weight.
pub fn weighted_rows() -> Rows {
    rows()
        .with_weights(vec![0.5, 2.0, 3.0, 1.25, 0.0, 0.75])
        .unwrap()
}

/// Rows from (position, set, target).
pub fn rows_of(positions: usize, rows: &[(u32, u32, u32)]) -> Rows {
    let row = |&(position, set, target): &_| Row {
        position,
        set,
        target,
    };
    Rows::from_raw(positions, rows.iter().map(row).collect()).unwrap()
}

/// Both presets, and every reduction with and without the factor τ.
pub fn conventions() -> Vec<Convention> {
    let reductions = [
        Reduction::MeanOverLabelled,
        Reduction::MeanOverBranching,
        Reduction::MeanOver(3.7),
        Reduction::Sum,
        Reduction::None,
    ];
    let convention = |reduction| {
        [false, true].map(|times_temperature| Convention {
            reduction,
            times_temperature,
        })
    };
    reductions.into_iter().flat_map(convention).collect()
}

/// A fixed temperature, and an adaptive one of every scope.
pub fn temperatures() -> Vec<Temperature> {
    let scopes = [Scope::Root, Scope::Branching, Scope::Marked];
    let adaptive = scopes.map(|scope| Temperature::from(strategy(scope)));
    [Temperature::fixed(0.8)]
        .into_iter()
        .chain(adaptive)
        .collect()
}

/// Settings at which the estimate of a batch of noise is seldom clamped.
pub fn strategy(scope: Scope) -> AdaptiveStrategy {
    AdaptiveStrategy {
        eta: 0.5,
        alpha: 0.5,
        minimum: 0.1,
        maximum: 20.0,
        initial: 0.9,
        scope,
        ..AdaptiveStrategy::default()
    }
}

pub fn loss(sets: &TokenSets, temperature: &Temperature, by: Convention) -> MaskedSoftmaxLoss {
    loss_with_bear(sets, temperature, by, None)
}

pub fn loss_with_bear(
    sets: &TokenSets,
    temperature: &Temperature,
    by: Convention,
    bear: Option<Bear>,
) -> MaskedSoftmaxLoss {
    let loss = MaskedSoftmaxLoss::new(sets, temperature.clone()).unwrap();
    let loss = match bear {
        Some(bear) => loss.with_bear(bear).unwrap(),
        None => loss,
    };
    loss.with_convention(by).unwrap()
}

/// Row weights of all kinds. With 3 beams some sets have more tokens than beams, and some have fewer.
pub fn bears() -> [Option<Bear>; 3] {
    let strong = Bear {
        beams: 3,
        lambda: 1.5,
        xi: 0.5,
    };
    let greedy = Bear {
        beams: 1,
        ..Bear::default()
    };
    [None, Some(strong), Some(greedy)]
}

/// Each option with each of those.
pub fn each_with_bears<O: Clone>(
    options: impl IntoIterator<Item = O>,
) -> impl Iterator<Item = (O, Option<Bear>)> {
    let with_bears = |option: O| bears().map(|bear| (option.clone(), bear));
    options.into_iter().flat_map(with_bears)
}

/// `count` numbers between −`spread` and `spread`, the same for the same seed (splitmix64).
pub fn noise(seed: u64, count: usize, spread: f64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) as f64 / u64::MAX as f64
    };
    (0..count).map(|_| (2.0 * next() - 1.0) * spread).collect()
}

pub fn tensor(values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    let tensor = tensor.to_dtype(dtype).unwrap();
    tensor.to_device(&device(dtype)).unwrap()
}

pub fn f64s(tensor: &Tensor) -> Vec<f64> {
    // On the CPU: candle's CUDA operations take no tensor without elements.
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    let flat = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

pub fn f64_of(scalar: &Tensor) -> f64 {
    scalar.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Every entry within `tolerance` of the largest expected one, with a floor for a gradient of zeros.
pub fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |a, b| a.max(b.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance * largest,
            "{what}: entry {index} is {found}, should be {expected}"
        );
    }
}
