//! Decoding: the step that turns logits into the next beams of a search over the trie.

use candle_core::{DType, Tensor};

use crate::temperature::check_positive;
use crate::{Error, Result, TokenTrie};

/// A beam search for the most probable items of many users at once, constrained by a trie.
///
/// The score of a path is the log-probability that the masked softmax gives it: each step is
/// normalised over the tokens of the node, at the temperature of training. Masking before the softmax
/// is what makes these the probabilities of *items*. A node with one token costs no probability, and
/// a path from which only one item can be reached is finished at once, without the steps to its end.
///
/// The caller owns the model; the search says what to feed it. Logits come one row a living beam:
/// first one beam a user, then those of the last [`Step`], in its order.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_trie::{BeamSearch, TokenTrie};
/// let trie = TokenTrie::new([(10, vec![1, 2, 0]), (11, vec![1, 3, 0]), (12, vec![4, 0])])?;
/// // A model that answers [0, ln 1, ln 3, ln 1, ln 1] to everything, for one user and two beams.
/// let row = [0.0, 0.0, 3f32.ln(), 0.0, 0.0];
/// let model = |beams: usize| Tensor::new(vec![row.to_vec(); beams], &Device::Cpu);
///
/// let mut search = BeamSearch::new(&trie, 1, 2, 1.0)?;
/// let mut logits = model(1)?;
/// while let Some(step) = search.step(&logits)? {
///     // A real model continues beam `step.parents[i]` with the token `step.tokens[i]` here.
///     logits = model(step.tokens.len())?;
/// }
/// let found = search.found(0);
/// assert_eq!(found[0].items, [12]); // 1/2, against 1/2 · 3/4 for item 10
/// assert_eq!(found[1].items, [10]);
/// assert!((found[1].log_probability - (3f64 / 8.0).ln()).abs() < 1e-6);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BeamSearch {
    trie: TokenTrie,
    width: usize,
    temperature: f64,
    users: Vec<Beams>,
}

/// What to feed a model before the next step: one entry a living beam, those of one user together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The row of the last logits that each beam continues.
    pub parents: Vec<u32>,
    /// The token that continues it.
    pub tokens: Vec<u32>,
}

/// A path that the search has found, and its items (several where items share one path).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found<'a> {
    /// The item ids, rising.
    pub items: &'a [u64],
    /// The natural logarithm of the path's probability.
    pub log_probability: f64,
}

/// The paths of one user.
#[derive(Debug, Clone, Default)]
struct Beams {
    living: Vec<Beam>,
    finished: Vec<Beam>,
}

#[derive(Debug, Clone, Copy)]
struct Beam {
    /// Where the path stands; for a finished one, its leaf.
    node: u32,
    log_probability: f64,
}

/// A beam that may live on: which row and token it came by, where it does not stand still.
struct Candidate {
    beam: Beam,
    origin: Option<(u32, u32)>,
}

impl BeamSearch {
    /// A search that keeps the `width` best paths of each user, at the temperature of training.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a width of 0, or a temperature that is not positive and finite.
    pub fn new(trie: &TokenTrie, users: usize, width: usize, temperature: f64) -> Result<Self> {
        check_positive("temperature", temperature)?;
        if width == 0 {
            return Err(Error::OutOfRange {
                name: "beam width",
                value: 0.0,
                expected: "at least 1",
            });
        }
        let root = Beam {
            node: trie.root(),
            log_probability: 0.0,
        };
        let mut beams = Beams::default();
        match only_leaf(trie, root.node) {
            Some(leaf) => beams.finished.push(Beam { node: leaf, ..root }),
            None => beams.living.push(root),
        }
        Ok(Self {
            trie: trie.clone(),
            width,
            temperature,
            users: vec![beams; users],
        })
    }

    /// How many beams live: the rows that the next logits must have.
    pub fn living(&self) -> usize {
        self.users.iter().map(|user| user.living.len()).sum()
    }

    /// Takes the logits `[living beams, vocabulary]`, keeps each user's best paths, and says how the
    /// living ones go on. `None` when all are finished.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there is not one row a beam, [`Error::TokenOutsideVocabulary`]
    /// where the vocabulary does not hold the trie's tokens, and [`Error::NonFinite`] for a logit that
    /// is NaN or +∞.
    pub fn step(&mut self, logits: &Tensor) -> Result<Option<Step>> {
        let living = self.living();
        if living == 0 {
            return Ok(None);
        }
        let (rows, vocabulary) = logits.dims2()?;
        if rows != living {
            return Err(Error::LengthMismatch {
                what: "rows of logits, one a living beam",
                expected: living,
                actual: rows,
            });
        }
        if self.trie.max_token() as usize >= vocabulary {
            return Err(Error::TokenOutsideVocabulary {
                token: self.trie.max_token(),
                vocabulary,
            });
        }
        let mut step = Step {
            parents: Vec::new(),
            tokens: Vec::new(),
        };
        let mut first_row = 0;
        for user in 0..self.users.len() {
            let candidates = self.candidates(user, first_row, logits)?;
            first_row += self.users[user].living.len() as u32;
            self.users[user] = self.keep(candidates, &mut step);
        }
        Ok((!step.tokens.is_empty()).then_some(step))
    }

    /// The paths found for a user, most probable first, equal ones by their smallest item id.
    pub fn found(&self, user: usize) -> Vec<Found<'_>> {
        let finished = self.users.get(user).map_or(&[][..], |user| &user.finished);
        let mut found: Vec<Found<'_>> = (finished.iter())
            .map(|beam| Found {
                items: self.trie.items(beam.node),
                log_probability: beam.log_probability,
            })
            .collect();
        found.sort_by(|a, b| {
            (b.log_probability.total_cmp(&a.log_probability)).then_with(|| a.items.cmp(b.items))
        });
        found
    }

    /// The finished paths of a user and all that its living ones can become.
    fn candidates(&self, user: usize, first_row: u32, logits: &Tensor) -> Result<Vec<Candidate>> {
        let user = &self.users[user];
        let mut candidates: Vec<Candidate> = (user.finished.iter())
            .map(|&beam| Candidate { beam, origin: None })
            .collect();
        for (row, beam) in (first_row..).zip(&user.living) {
            let tokens = self.trie.children(beam.node);
            let logits = logits_of(&logits.get(row as usize)?, tokens, row)?;
            let log_probabilities = log_softmax(&logits, self.temperature);
            let children = self.trie.first_child(beam.node).unwrap_or_default()..;
            for ((&token, node), log_probability) in
                tokens.iter().zip(children).zip(log_probabilities)
            {
                candidates.push(Candidate {
                    beam: Beam {
                        node,
                        log_probability: beam.log_probability + log_probability,
                    },
                    origin: Some((row, token)),
                });
            }
        }
        Ok(candidates)
    }

    /// Keeps the best; equal ones in the order of their nodes, so that a search is repeatable.
    fn keep(&self, mut candidates: Vec<Candidate>, step: &mut Step) -> Beams {
        candidates.sort_unstable_by(|a, b| {
            (b.beam.log_probability.total_cmp(&a.beam.log_probability))
                .then_with(|| a.beam.node.cmp(&b.beam.node))
        });
        candidates.truncate(self.width);
        let mut beams = Beams::default();
        for Candidate { beam, origin } in candidates {
            match (only_leaf(&self.trie, beam.node), origin) {
                (None, Some((row, token))) => {
                    step.parents.push(row);
                    step.tokens.push(token);
                    beams.living.push(beam);
                }
                (leaf, _) => beams.finished.push(Beam {
                    node: leaf.unwrap_or(beam.node),
                    ..beam
                }),
            }
        }
        beams
    }
}

/// The leaf below `node`, where there is only one.
fn only_leaf(trie: &TokenTrie, mut node: u32) -> Option<u32> {
    loop {
        match trie.children(node) {
            [] => return Some(node),
            [_] => node = trie.first_child(node)?,
            _ => return None,
        }
    }
}

/// The logits of `tokens` in one row, in f64.
fn logits_of(row: &Tensor, tokens: &[u32], index: u32) -> Result<Vec<f64>> {
    let values: Vec<f64> = match row.dtype() {
        DType::F64 => pick(&row.to_vec1::<f64>()?, tokens),
        _ => pick(&row.to_dtype(DType::F32)?.to_vec1::<f32>()?, tokens),
    };
    match values
        .iter()
        .position(|&value| value.is_nan() || value == f64::INFINITY)
    {
        Some(bad) => Err(Error::NonFinite {
            row: index as usize,
            position: index,
            token: tokens[bad],
            value: values[bad],
        }),
        None => Ok(values),
    }
}

fn pick<T: Copy + Into<f64>>(row: &[T], tokens: &[u32]) -> Vec<f64> {
    tokens
        .iter()
        .map(|&token| row[token as usize].into())
        .collect()
}

fn log_softmax(logits: &[f64], temperature: f64) -> impl Iterator<Item = f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // A set whose every logit is −∞ says nothing: its tokens are equally probable.
    let scaled = move |logit: f64| match largest == f64::NEG_INFINITY {
        true => 0.0,
        false => (logit - largest) / temperature,
    };
    let log_sum = logits
        .iter()
        .map(|&logit| scaled(logit).exp())
        .sum::<f64>()
        .ln();
    logits.iter().map(move |&logit| scaled(logit) - log_sum)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    const VOCABULARY: usize = 6;

    /// A model without weights: logits that depend on the whole prefix, in a reproducible way.
    fn logits(prefix: &[u32]) -> Vec<f64> {
        (0..VOCABULARY)
            .map(|token| {
                let mixed = (prefix.iter()).fold(token as u64 + 1, |mixed, &token| {
                    mixed
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(u64::from(token) + 17)
                });
                (mixed >> 40) as f64 / (1 << 22) as f64 - 2.0
            })
            .collect()
    }

    fn search(trie: &TokenTrie, width: usize, temperature: f64) -> Vec<(Vec<u64>, f64)> {
        let mut search = BeamSearch::new(trie, 1, width, temperature).unwrap();
        let mut prefixes = vec![vec![]];
        loop {
            let rows: Vec<Vec<f64>> = prefixes.iter().map(|prefix| logits(prefix)).collect();
            let Some(step) = search
                .step(&Tensor::new(rows, &Device::Cpu).unwrap())
                .unwrap()
            else {
                break;
            };
            prefixes = (step.parents.iter().zip(&step.tokens))
                .map(|(&parent, &token)| [&prefixes[parent as usize][..], &[token]].concat())
                .collect();
        }
        (search.found(0).iter())
            .map(|found| (found.items.to_vec(), found.log_probability))
            .collect()
    }

    /// Every path's log-probability, by walking it.
    fn all(
        items: &[(u64, Vec<u32>)],
        trie: &TokenTrie,
        temperature: f64,
    ) -> BTreeMap<Vec<u64>, f64> {
        let mut paths: BTreeMap<&[u32], Vec<u64>> = BTreeMap::new();
        for (id, path) in items {
            paths.entry(path).or_default().push(*id);
        }
        let log_probability = |path: &[u32]| {
            let step = |length: usize| {
                let logits = logits(&path[..length]);
                let exponential = |token: u32| (logits[token as usize] / temperature).exp();
                let node = trie.walk(&path[..length]).unwrap();
                let sum: f64 = trie
                    .children(node)
                    .iter()
                    .map(|&token| exponential(token))
                    .sum();
                (exponential(path[length]) / sum).ln()
            };
            (0..path.len()).map(step).sum()
        };
        (paths.into_iter())
            .map(|(path, items)| (items, log_probability(path)))
            .collect()
    }

    prop_compose! {
        fn catalogue()(paths in prop::collection::vec(prop::collection::vec(1..VOCABULARY as u32, 0..5), 1..30)) -> Vec<(u64, Vec<u32>)> {
            paths.into_iter().enumerate().map(|(id, mut path)| {
                path.push(0);
                (id as u64, path)
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn a_wide_beam_finds_every_item(items in catalogue(), temperature in 0.5..3.0) {
            let trie = TokenTrie::new(items.clone()).unwrap();
            let found = search(&trie, items.len(), temperature);
            prop_assert_eq!(found.len(), trie.leaf_count());
            let total: f64 = found.iter().map(|found| found.1.exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-9);
        }

        #[test]
        fn a_beam_finds_true_probabilities_best_first(
            items in catalogue(), width in 1usize..30, temperature in 0.5..3.0,
        ) {
            let trie = TokenTrie::new(items.clone()).unwrap();
            let found = search(&trie, width, temperature);
            let expected = all(&items, &trie, temperature);
            prop_assert!(found.len() <= width && !found.is_empty());
            prop_assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            for (items, log_probability) in found {
                prop_assert!((expected[&items] - log_probability).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn users_do_not_disturb_each_other() {
        let trie =
            TokenTrie::new([(0, vec![1, 2, 0]), (1, vec![1, 3, 0]), (2, vec![4, 0])]).unwrap();
        let mut search = BeamSearch::new(&trie, 2, 3, 1.0).unwrap();
        let rows = |rows: [[f32; 5]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let step = search
            .step(&rows([
                [0.0, 9.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, 0.0, 0.0, 9.0],
            ]))
            .unwrap()
            .unwrap();
        assert_eq!((step.parents, step.tokens), (vec![0, 1], vec![1, 1]));
        let tied = rows([[0.0, 0.0, 5.0, 0.0, 0.0], [0.0; 5]]);
        assert_eq!(search.step(&tied).unwrap(), None);
        let items = |user| {
            search
                .found(user)
                .iter()
                .map(|found| found.items[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(items(0), [0, 1, 2]);
        assert_eq!(items(1), [2, 0, 1]);
        assert!(search.found(2).is_empty());
    }

    #[test]
    fn one_item_needs_no_step() {
        let trie = TokenTrie::new([(7, vec![1, 2, 0])]).unwrap();
        let mut search = BeamSearch::new(&trie, 1, 5, 1.0).unwrap();
        assert_eq!(search.living(), 0);
        assert_eq!(
            search
                .step(&Tensor::new(&[0f32], &Device::Cpu).unwrap())
                .unwrap(),
            None
        );
        assert_eq!(
            search.found(0),
            [Found {
                items: &[7],
                log_probability: 0.0
            }]
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let trie = TokenTrie::new([(0, vec![1, 0]), (1, vec![2, 0])]).unwrap();
        assert!(BeamSearch::new(&trie, 1, 0, 1.0).is_err());
        assert!(BeamSearch::new(&trie, 1, 1, 0.0).is_err());
        let mut search = BeamSearch::new(&trie, 1, 1, 1.0).unwrap();
        let mut step = |rows: Vec<Vec<f64>>| search.step(&Tensor::new(rows, &Device::Cpu).unwrap());
        assert!(matches!(
            step(vec![vec![0.0; 3]; 2]),
            Err(Error::LengthMismatch { .. })
        ));
        assert!(matches!(
            step(vec![vec![0.0, f64::NAN, 0.0]]),
            Err(Error::NonFinite { token: 1, .. })
        ));
        assert!(
            step(vec![vec![f64::NAN, f64::NEG_INFINITY, f64::NEG_INFINITY]])
                .unwrap()
                .is_none()
        );
        let narrow = Tensor::new(&[[0f32; 2]], &Device::Cpu).unwrap();
        let mut search = BeamSearch::new(&trie, 1, 1, 1.0).unwrap();
        assert!(matches!(
            search.step(&narrow),
            Err(Error::TokenOutsideVocabulary { token: 2, .. })
        ));
    }
}
