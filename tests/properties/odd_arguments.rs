//! Whatever the arguments are, the public API returns a value or an error and never panics.

use candle_core::{DType, Device, Tensor};
use candle_trie::{
    AdaptiveStrategy, BeamSearch, Bear, ExactSearch, FrozenHead, GradientTarget, Head, Labels,
    MaskedSoftmaxLoss, Normalisation, Reduction, Rows, Scope, Scores, Statistics, Temperature,
    TemperatureState, TokenSets, TokenTrie,
};
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, rngs::StdRng};

use crate::fuzz::for_seeds;

const VOCABULARY: usize = 7;
const HIDDEN: usize = 3;

/// A number that settings seldom have.
fn number(random: &mut StdRng) -> f64 {
    let odd = [
        0.0,
        -0.0,
        -1.0,
        1e300,
        -1e300,
        1e-300,
        f64::NAN,
        f64::INFINITY,
    ];
    match random.random_bool(0.7) {
        true => random.random_range(0.1..3.0),
        false => *odd.choose(random).unwrap(),
    }
}

/// A tensor of the wanted shape and dtype, or of other ones, in one of the layouts that candle makes.
fn tensor(wanted: &[usize], random: &mut StdRng) -> Tensor {
    let dtypes = [
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::U32,
        DType::I64,
        DType::U8,
    ];
    let mut shape = wanted.to_vec();
    if random.random_bool(0.15) {
        let sizes = [0, 1, 2, HIDDEN, VOCABULARY];
        shape = (0..random.random_range(0..4))
            .map(|_| *sizes.choose(random).unwrap())
            .collect();
    }
    let dtype = match random.random_bool(0.85) {
        true => DType::F32,
        false => *dtypes.choose(random).unwrap(),
    };
    let count = shape.iter().product();
    let values = (0..count).map(|_| number(random)).collect::<Vec<_>>();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let tensor = tensor.to_dtype(dtype).unwrap();
    let rank = tensor.rank();
    match random.random_range(0..6) {
        0 if rank > 1 => tensor.transpose(rank - 2, rank - 1).unwrap(),
        1 if rank > 1 => tensor.t().unwrap().contiguous().unwrap().t().unwrap(),
        2 if rank > 0 => tensor.narrow(0, 0, tensor.dims()[0] / 2).unwrap(),
        3 if rank > 0 => tensor
            .get(0)
            .and_then(|row| row.broadcast_as(wanted))
            .unwrap_or(tensor),
        _ => tensor,
    }
}

fn trie(random: &mut StdRng) -> TokenTrie {
    let paths = (0..random.random_range(1..6)).map(|id| {
        let mut path: Vec<u32> = (0..random.random_range(1..4))
            .map(|_| random.random_range(1..VOCABULARY as u32))
            .collect();
        path.push(0);
        (id % 4, path)
    });
    TokenTrie::new(paths.collect::<Vec<_>>()).unwrap()
}

fn temperature(random: &mut StdRng) -> Temperature {
    if random.random_bool(0.5) {
        return number(random).into();
    }
    let scope = *[Scope::Root, Scope::Branching, Scope::Marked]
        .choose(random)
        .unwrap();
    let mut strategy = AdaptiveStrategy {
        scope,
        warm_up: *[0, 1, u64::MAX].choose(random).unwrap(),
        allow_degenerate: random.random(),
        ..AdaptiveStrategy::default()
    };
    let AdaptiveStrategy {
        eta,
        alpha,
        minimum,
        maximum,
        initial,
        ..
    } = &mut strategy;
    if random.random_bool(0.5) {
        **[eta, alpha, minimum, maximum, initial]
            .choose_mut(random)
            .unwrap() = number(random);
    }
    strategy.into()
}

/// Calls every method that takes scores; returns how many calls were no errors.
fn calls_of_a_loss(random: &mut StdRng) -> usize {
    let trie = trie(random);
    let sets = match random.random_range(0..4) {
        0 => TokenSets::whole_vocabulary(VOCABULARY).unwrap(),
        _ => trie.sets().clone(),
    };
    let Ok(mut loss) = MaskedSoftmaxLoss::new(&sets, temperature(random)) else {
        return 0;
    };
    let path = trie.leaves().next().map_or(vec![], |(leaf, _)| {
        let mut nodes = vec![leaf];
        while let Some(parent) = trie.parent(nodes[nodes.len() - 1]) {
            nodes.push(parent);
        }
        let token = |pair: &[u32]| {
            let first = trie.first_child(pair[1]).unwrap();
            trie.children(pair[1])[(pair[0] - first) as usize]
        };
        nodes.windows(2).map(token).rev().collect::<Vec<_>>()
    });
    let rows = Rows::from_shifted(&trie, &vec![path.clone(), path[..1].to_vec()]).unwrap();
    let mut rows = rows.clone().with_marks(vec![true; rows.len()]).unwrap();
    if random.random_bool(0.3) {
        let weights = vec![number(random) as f32; rows.len()];
        rows = rows.clone().with_weights(weights).unwrap_or(rows);
    }
    if random.random_bool(0.3) {
        let bear = Bear {
            beams: random.random_range(0..3),
            lambda: number(random),
            xi: number(random),
        };
        loss = loss.clone().with_bear(bear).unwrap_or(loss);
    }
    let reductions = [
        Reduction::Sum,
        Reduction::None,
        Reduction::MeanOver(number(random)),
    ];
    let _ = loss.set_reduction(*reductions.choose(random).unwrap());
    if random.random_bool(0.2) {
        loss = loss.check_finite();
    }
    if random.random_bool(0.3) {
        let state = TemperatureState {
            value: number(random),
            step: u64::MAX,
        };
        let _ = loss.temperature_mut().unwrap().restore(state);
    }

    let leading = [2, path.len()];
    let logits = tensor(&[leading[0], leading[1], VOCABULARY], random);
    let hidden = tensor(&[leading[0], leading[1], HIDDEN], random);
    let [head, bias] =
        [&[VOCABULARY, HIDDEN][..], &[VOCABULARY]].map(|shape| tensor(shape, random));
    let frozen = FrozenHead::with_limit(&head, Some(&bias), &sets, random.random_range(0..1000));
    let gradient = tensor(logits.dims(), random);
    let mut scores = vec![
        Scores::from(&logits),
        Scores::from((&hidden, &head)),
        Scores::from((&hidden, Head::with_bias(&head, &bias))),
    ];
    scores.extend(
        frozen
            .as_ref()
            .ok()
            .map(|head| Scores::from((&hidden, head))),
    );
    let mut fine = 0;
    for scores in scores {
        let targets = [
            GradientTarget::New,
            GradientTarget::Into(&gradient),
            GradientTarget::InPlace,
        ];
        let target = *targets.choose(random).unwrap();
        fine += usize::from(
            loss.forward(scores, &rows)
                .is_ok_and(|output| output.read_statistics().is_ok()),
        );
        fine += usize::from(loss.forward_at(scores, &rows, number(random)).is_ok());
        fine += usize::from(loss.evaluate(scores, &rows).is_ok());
        fine += usize::from(loss.statistics(scores, &rows).is_ok());
        fine += usize::from(loss.value_and_gradient(scores, &rows, target).is_ok());
    }
    let _ = loss
        .temperature_mut()
        .unwrap()
        .step(&Statistics::default(), u64::MAX);
    fine
}

fn calls_of_searches(random: &mut StdRng) -> usize {
    let trie = trie(random);
    let (users, width) = (
        random.random_range(0..3),
        *[0, 1, 2, usize::MAX].choose(random).unwrap(),
    );
    let temperature = number(random);
    let excluded = vec![vec![random.random_range(0..5)]; random.random_range(0..3)];
    let hidden_and_head = |rows: usize, random: &mut StdRng| {
        (
            tensor(&[rows, HIDDEN], random),
            tensor(&[VOCABULARY, HIDDEN], random),
        )
    };
    let mut fine = 0;
    if let Ok(search) = BeamSearch::new(&trie, users, width, temperature) {
        let search = search.with_normalisation(
            *[Normalisation::Trie, Normalisation::Vocabulary]
                .choose(random)
                .unwrap(),
        );
        let search = search
            .clone()
            .with_length_penalty(number(random))
            .unwrap_or(search);
        let mut search = search.clone().exclude_items(&excluded).unwrap_or(search);
        for _ in 0..4 {
            let logits = tensor(&[search.active_beams(), VOCABULARY], random);
            let (hidden, head) = hidden_and_head(search.active_beams(), random);
            fine += usize::from(search.step(&logits).is_ok());
            fine += usize::from(search.step((&hidden, &head)).is_ok());
        }
        let _ = (
            search.results(0),
            search.results(usize::MAX),
            search.beam_users(),
            search.common_prefix(),
        );
    }
    if let Ok(search) = ExactSearch::new(&trie, users, width, temperature) {
        let search = search
            .clone()
            .with_prefixes_per_step(width)
            .unwrap_or(search);
        let mut search = search.clone().exclude_items(&excluded).unwrap_or(search);
        for _ in 0..4 {
            let rows = search
                .next_expansion()
                .map_or(0, |expansion| expansion.users.len());
            let logits = tensor(&[rows, VOCABULARY], random);
            let (hidden, head) = hidden_and_head(rows, random);
            fine += usize::from(search.step(&logits).is_ok());
            fine += usize::from(search.step((&hidden, &head)).is_ok());
        }
        let _ = (
            search.results(0),
            search.results(usize::MAX),
            search.bound(usize::MAX),
        );
    }
    fine
}

#[test]
fn a_loss_returns_an_error_for_what_it_cannot_compute() {
    let fine = std::cell::Cell::new(0);
    for_seeds(2000, |random| {
        fine.set(fine.get() + calls_of_a_loss(random))
    });
    assert!(fine.get() > 1000, "{} calls were no errors", fine.get());
}

#[test]
fn searches_return_an_error_for_what_they_cannot_take() {
    let fine = std::cell::Cell::new(0);
    for_seeds(2000, |random| {
        fine.set(fine.get() + calls_of_searches(random))
    });
    assert!(fine.get() > 1000, "{} calls were no errors", fine.get());
}

#[test]
fn an_iterator_that_promises_more_items_than_memory_holds_makes_a_trie() {
    struct Promising(std::vec::IntoIter<(u64, [u32; 2])>);
    impl Iterator for Promising {
        type Item = (u64, [u32; 2]);
        fn next(&mut self) -> Option<Self::Item> {
            self.0.next()
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (usize::MAX, None)
        }
    }
    let items = Promising(vec![(0, [1, 0]), (1, [2, 0])].into_iter());
    assert_eq!(TokenTrie::new(items).unwrap().leaf_count(), 2);
}

#[test]
fn labels_of_every_shape_and_dtype_are_labels_or_an_error() {
    for_seeds(500, |random| {
        let labels = tensor(&[2, 3], random);
        let _ = Labels::try_from(&labels).map(|labels| Rows::unconstrained(labels.shifted()));
    });
}
