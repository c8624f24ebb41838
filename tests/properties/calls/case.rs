//! A random catalogue, a batch over it and settings of a loss.

use candle_core::DType;
use candle_trie::{
    AdaptiveStrategy, Bear, Convention, Reduction, Row, Rows, Scope, Temperature, TokenSets,
    TokenTrie,
};
use rand::seq::IndexedRandom;
use rand::{Rng, rngs::StdRng};

/// What every call of a case has in common.
#[derive(Debug)]
pub struct Case {
    pub sets: TokenSets,
    pub rows: Rows,
    pub vocabulary: usize,
    pub dtype: DType,
    pub temperature: Temperature,
    pub convention: Convention,
    pub bear: Option<Bear>,
}

impl Case {
    pub fn new(random: &mut StdRng) -> Self {
        let trie = trie(random);
        let vocabulary = trie.max_token() as usize + 1 + random.random_range(0..4);
        let (sets, rows) = match random.random_range(0..6) {
            0 => {
                let whole = TokenSets::whole_vocabulary(vocabulary).unwrap();
                (whole, walked(&trie, random))
            }
            1 => {
                let (offsets, tokens) = trie.sets().as_raw().unwrap();
                let sets = TokenSets::from_raw(offsets.to_vec(), tokens.to_vec()).unwrap();
                let rows = raw(&sets, random);
                (sets, rows)
            }
            2 => (trie.sets().clone(), raw(trie.sets(), random)),
            _ => (trie.sets().clone(), walked(&trie, random)),
        };
        let rows = marked(&sets, weighted(rows, random), random);
        let dtypes = [DType::F64, DType::F32, DType::F16, DType::BF16];
        Self {
            dtype: *dtypes.choose(random).unwrap(),
            temperature: temperature(random),
            convention: convention(random),
            bear: random.random_bool(0.3).then(|| Bear {
                beams: random.random_range(1..12),
                lambda: random.random_range(0.0..3.0),
                xi: random.random_range(0.2..4.0),
            }),
            sets,
            rows,
            vocabulary,
        }
    }

    /// The rows that have a loss, by their index.
    pub fn branching(&self) -> impl Iterator<Item = (usize, &Row)> {
        let rows = self.rows.as_slice().iter().enumerate();
        rows.filter(|(_, row)| self.sets.get(row.set).unwrap().len() > 1)
    }
}

/// Paths that share beginnings; some catalogues have a root so wide that matrix products pay.
fn trie(random: &mut StdRng) -> TokenTrie {
    let tokens = *[2, 6, 60, 300].choose(random).unwrap();
    let items = random.random_range(1..=2 * tokens as usize);
    let longest = random.random_range(1..7);
    let path = |_| -> Vec<u32> {
        let length = random.random_range(0..longest);
        let token = |depth: usize| random.random_range(0..(tokens >> depth).max(2));
        (0..length).map(token).chain([tokens]).collect()
    };
    let paths: Vec<_> = (0..items).map(path).collect();
    TokenTrie::new((0..).zip(paths)).unwrap()
}

/// A batch of responses behind prompts, as labels spell them.
fn walked(trie: &TokenTrie, random: &mut StdRng) -> Rows {
    let nodes = trie.node_count() as u32;
    let parent = |node| {
        let parent = trie.parent(node)?;
        let rank = node - trie.first_child(parent)?;
        Some((parent, trie.children(parent)[rank as usize]))
    };
    let lines = random.random_range(0..20);
    let labels: Vec<Vec<i64>> = (0..lines)
        .map(|_| {
            let mut line = Vec::new();
            for _ in 0..random.random_range(0..3) {
                line.extend(std::iter::repeat_n(-100, random.random_range(1..4)));
                let mut node = random.random_range(0..nodes);
                let start = line.len();
                while let Some((before, token)) = parent(node) {
                    line.insert(start, i64::from(token));
                    node = before;
                }
            }
            line
        })
        .collect();
    let rows = if random.random() {
        Rows::from_shifted(trie, &labels)
    } else {
        Rows::from_unshifted(trie, &labels)
    };
    rows.unwrap()
}

/// Rows at any position, of any set that has a token.
fn raw(sets: &TokenSets, random: &mut StdRng) -> Rows {
    let positions = random.random_range(0..60);
    let mut rows = Vec::new();
    // Few sets have many rows where all have one token for a target.
    let few = random.random_bool(0.5);
    for position in 0..positions as u32 {
        let last = if few { 2 } else { sets.count().unwrap() as u32 };
        let set = random.random_range(0..last);
        let tokens: Vec<u32> = sets.get(set).unwrap().iter().collect();
        if let Some(&target) = tokens.choose(random).filter(|_| random.random_bool(0.8)) {
            rows.push(Row {
                position,
                set,
                target,
            });
        }
    }
    Rows::from_raw(positions, rows).unwrap()
}

fn weighted(rows: Rows, random: &mut StdRng) -> Rows {
    if random.random_bool(0.6) {
        return rows;
    }
    let weight = |_| *[0.0, 0.5, 1.0, 3.25].choose(random).unwrap();
    let weights = (0..rows.len()).map(weight).collect();
    rows.with_weights(weights).unwrap()
}

/// Mostly marks of rows whose sets have one size, as they must.
fn marked(sets: &TokenSets, rows: Rows, random: &mut StdRng) -> Rows {
    let size = |row: &Row| sets.get(row.set).unwrap().len();
    let chosen = rows.as_slice().choose(random).map(size);
    let anything = random.random_bool(0.1);
    let marks = (rows.as_slice().iter())
        .map(|row| anything && random.random() || Some(size(row)) == chosen)
        .collect();
    rows.with_marks(marks).unwrap()
}

fn temperature(random: &mut StdRng) -> Temperature {
    if random.random_bool(0.4) {
        return Temperature::fixed(random.random_range(0.2..4.0));
    }
    let minimum = random.random_range(0.1..2.0);
    AdaptiveStrategy {
        eta: random.random_range(0.05..=1.0),
        alpha: random.random_range(0.0..=1.0),
        minimum,
        maximum: minimum + random.random_range(0.0..5.0),
        initial: random.random_range(0.2..3.0),
        warm_up: random.random_range(0..3),
        scope: *[Scope::Root, Scope::Branching, Scope::Marked]
            .choose(random)
            .unwrap(),
        allow_degenerate: random.random(),
    }
    .into()
}

fn convention(random: &mut StdRng) -> Convention {
    let reductions = [
        Reduction::MeanOverLabelled,
        Reduction::MeanOverBranching,
        Reduction::MeanOver(random.random_range(0.5..50.0)),
        Reduction::Sum,
        Reduction::None,
    ];
    Convention {
        reduction: *reductions.choose(random).unwrap(),
        times_temperature: random.random(),
    }
}
