//! Same input, same bits.

use candle_core::{DType, Var};
use candle_trie::{Bear, GradientTarget, Rows, Scope, TokenSets};

use crate::batch::*;

const POSITIONS: usize = 900;
const VOCABULARY: usize = 400;

/// Enough work for several threads, in sets of very unequal sizes.
fn problem() -> (TokenSets, Rows) {
    let mut offsets = vec![0];
    let mut tokens = Vec::new();
    for size in [300, 2, 50, 1, 9] {
        tokens.extend(VOCABULARY as u32 - size..VOCABULARY as u32);
        offsets.push(tokens.len() as u32);
    }
    let counts = (0..POSITIONS as u32).filter(|position| position % 10 != 3);
    let rows: Vec<_> = counts
        .map(|position| (position, position % 7 % 5, VOCABULARY as u32 - 1))
        .collect();
    (
        TokenSets::from_raw(offsets, tokens).unwrap(),
        rows_of(POSITIONS, &rows),
    )
}

/// Everything that a step gives, as bits; on as many threads as asked for.
fn step(
    threads: usize,
    logits: &[f64],
    dtype: DType,
    scope: Scope,
    bear: Option<Bear>,
) -> Vec<Vec<u64>> {
    let (sets, rows) = problem();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(|| {
        // Here: on a GPU another thread's uploads are on a stream that this one does not wait for.
        let logits = &tensor(logits, &[POSITIONS, VOCABULARY], dtype);
        let temperature = strategy(scope).into();
        let loss = loss_with_bear(&sets, &temperature, conventions()[0], bear);
        let (output, gradient) = loss
            .clone()
            .value_and_gradient(logits, &rows, GradientTarget::New)
            .unwrap();
        let kept = gradient.zeros_like().unwrap();
        let (into, _) = loss
            .clone()
            .value_and_gradient(logits, &rows, GradientTarget::Into(&kept))
            .unwrap();
        let statistics = loss.statistics(logits, &rows).unwrap();
        assert_eq!(output.read_statistics().unwrap(), statistics);
        [
            &output.loss,
            &output.temperature,
            &output.statistics,
            &gradient,
            &into.loss,
            &into.temperature,
            &kept,
        ]
        .map(|tensor| f64s(tensor).into_iter().map(f64::to_bits).collect())
        .to_vec()
    })
}

#[test]
fn neither_threads_nor_repetition_nor_the_way_it_is_called_change_a_bit() {
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let logits = noise(30, POSITIONS * VOCABULARY, 3.0);
        for (scope, bear) in each_with_bears([Scope::Root, Scope::Branching]) {
            let alone = step(1, &logits, dtype, scope, bear);
            assert_eq!(alone[..3], [&alone[4..6], &alone[2..3]].concat());
            assert_eq!(alone[3], alone[6]);
            for threads in [1, 2, 3, 8] {
                assert!(
                    step(threads, &logits, dtype, scope, bear) == alone,
                    "{dtype:?}, {scope:?}, {bear:?}: {threads} threads differ from one"
                );
            }
        }
    }
}

/// The linear operation's scores come from matrix products and dot products, divided among threads.
#[test]
fn threads_do_not_change_a_bit_of_the_linear_operation_either() {
    const WIDTH: usize = 40;
    let (sets, rows) = problem();
    let hidden = noise(31, POSITIONS * WIDTH, 1.0);
    let head = noise(32, VOCABULARY * WIDTH, 1.0);
    let step = |threads: usize, sets: &TokenSets, bear: Option<Bear>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let variable = |values: &[f64], rows: usize| {
                Var::from_tensor(&tensor(values, &[rows, WIDTH], DType::F32)).unwrap()
            };
            let (hidden, head) = (variable(&hidden, POSITIONS), variable(&head, VOCABULARY));
            let strategy = strategy(Scope::Branching).into();
            let mut loss = loss_with_bear(sets, &strategy, conventions()[0], bear);
            let output = loss.forward((&hidden, &*head), &rows).unwrap();
            let gradients = output.loss.backward().unwrap();
            [
                &output.loss,
                &output.temperature,
                gradients.get(&hidden).unwrap(),
                gradients.get(&head).unwrap(),
            ]
            .map(f64s)
        })
    };
    for sets in [sets, TokenSets::whole_vocabulary(VOCABULARY).unwrap()] {
        for bear in bears() {
            let alone = step(1, &sets, bear);
            for threads in [2, 3, 8] {
                assert!(
                    step(threads, &sets, bear) == alone,
                    "{bear:?}: {threads} threads differ from one"
                );
            }
        }
    }
}
