//! Beam search over the trie.

use candle_core::Tensor;
use rayon::prelude::*;

use super::path::{check_logits, log_softmax};
use super::{Found, LeftOut, Path};
use crate::loss::{Head, valid_logits};
use crate::temperature::check_positive;
use crate::{Error, Result, TokenSets, TokenTrie};

/// A beam search for the most probable items of many users at once, constrained by a trie.
///
/// The caller owns the model; the search says what to feed it. Logits (or hidden states) come one row
/// a living beam: first one beam a user (but see [`users`](Self::users)), after its prompt and the
/// tokens of [`lead`](Self::lead); then those of the last [`Step`], in its order.
///
/// A beam from which only one item can be reached is finished, without the steps to its end, and
/// takes no place from the living ones.
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
/// assert!(search.lead().is_empty()); // not all items begin alike
/// let mut logits = model(1)?;
/// while let Some(step) = search.step(&logits)? {
///     // A real model continues beam `step.parents[i]` with the tokens `step.tokens[i]` here.
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
    rules: Rules,
    lead: Vec<u32>,
    users: Vec<Beams>,
}

/// What holds for every user's search.
#[derive(Debug, Clone)]
struct Rules {
    trie: TokenTrie,
    width: usize,
    temperature: f64,
    normalise: Normalise,
    length_penalty: f64,
}

/// What the probabilities of a step are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalise {
    /// The tokens of the node: the probabilities of items, which sum to 1 over the catalogue.
    #[default]
    Trie,
    /// The whole vocabulary, and masked afterwards: what Hugging Face's `generate` with
    /// `prefix_allowed_tokens_fn` does, whose beams this mode keeps. Every token costs a step.
    Vocabulary,
}

/// What to feed a model before the next step: one entry a living beam, those of one user together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// The row of the last logits that each beam continues.
    pub parents: Vec<u32>,
    /// The tokens that continue it, one at the least: the one that was chosen, and those after it
    /// that leave no choice.
    pub tokens: Vec<Vec<u32>>,
}

/// The paths of one user.
#[derive(Debug, Clone, Default)]
struct Beams {
    living: Vec<Path>,
    /// The best whole paths with their scores, best first.
    finished: Vec<(Path, f64)>,
    left_out: LeftOut,
}

/// A path one choice further: the row it continues, and the tokens that do so.
struct Candidate {
    path: Path,
    row: u32,
    tokens: Vec<u32>,
}

impl BeamSearch {
    /// A search that keeps the `width` best paths of each user, at the temperature of training.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a width of 0, or a temperature that is not positive and finite.
    pub fn new(trie: &TokenTrie, users: usize, width: usize, temperature: f64) -> Result<Self> {
        check_positive("temperature", temperature)?;
        check_count("beam width", width)?;
        let mut search = Self {
            rules: Rules {
                trie: trie.clone(),
                width,
                temperature,
                normalise: Normalise::Trie,
                length_penalty: 0.0,
            },
            lead: Vec::new(),
            users: vec![Beams::default(); users],
        };
        search.begin();
        Ok(search)
    }

    /// Normalises the probabilities otherwise. To be called before the first step.
    #[must_use]
    pub fn with_normalise(mut self, normalise: Normalise) -> Self {
        self.rules.normalise = normalise;
        self.begin();
        self
    }

    /// Ranks whole paths by log-probability ÷ length^`penalty`, the length in tokens, end token
    /// included: above 0 it favours longer titles. 0, the default, ranks by probability. As in Hugging
    /// Face's `generate`, a user's search then ends where the best living beam, at its present length,
    /// no longer beats the worst of `width` finished ones.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a penalty that is not finite.
    pub fn with_length_penalty(mut self, penalty: f64) -> Result<Self> {
        if !penalty.is_finite() {
            return Err(Error::OutOfRange {
                name: "length penalty",
                value: penalty,
                expected: "finite",
            });
        }
        self.rules.length_penalty = penalty;
        self.begin();
        Ok(self)
    }

    /// Leaves out items, one list a user: already seen, or not to be had. The probabilities of the
    /// others stay what they are. Items that the trie does not have are passed over.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there is not one list a user.
    pub fn leaving_out<I: AsRef<[u64]>>(mut self, items: &[I]) -> Result<Self> {
        check_users(self.users.len(), items.len())?;
        for (user, left_out) in
            (self.users.iter_mut()).zip(LeftOut::of_users(&self.rules.trie, items))
        {
            user.left_out = left_out;
        }
        self.begin();
        Ok(self)
    }

    /// The tokens that every path begins with: to be fed behind each prompt, before the first step.
    pub fn lead(&self) -> &[u32] {
        &self.lead
    }

    /// The user of each living beam.
    pub fn users(&self) -> Vec<u32> {
        let of_user = |(user, beams): (u32, &Beams)| vec![user; beams.living.len()];
        (0..).zip(&self.users).flat_map(of_user).collect()
    }

    /// How many beams live: the rows that the next logits must have.
    pub fn living(&self) -> usize {
        self.users.iter().map(|user| user.living.len()).sum()
    }

    /// Takes the logits `[living beams, V]`, keeps each user's best paths, and says how the living
    /// ones go on. `None` when all are finished.
    ///
    /// # Errors
    /// [`Error::PositionMismatch`] where there is not one row a beam, [`Error::TokenOutsideVocabulary`]
    /// where the vocabulary does not hold the trie's tokens, [`Error::NonFinite`] for a logit of
    /// a node's token that is NaN or +∞, and [`Error::Unsupported`] for a dtype, device or layout.
    pub fn step(&mut self, logits: &Tensor) -> Result<Option<Step>> {
        if self.living() == 0 {
            return Ok(None);
        }
        let (nodes, sets, temperature) = (self.nodes(), self.sets(), self.rules.temperature);
        let valid = valid_logits::of_logits(logits, sets, &nodes)?;
        if self.rules.normalise == Normalise::Trie {
            return self.step_in_trie(&nodes, &valid);
        }
        check_logits(&valid, &nodes, &self.rules.trie)?;
        let log_sums = valid_logits::log_sums(logits, temperature)?;
        Ok(self.advance(|row| {
            let log_sum = log_sums[row];
            valid[row]
                .iter()
                .map(move |&logit| logit / temperature - log_sum)
        }))
    }

    /// The same from hidden states `[living beams, H]` and a head `[V, H]`. Normalised over the trie,
    /// only the head rows of valid tokens are touched; otherwise all logits are made.
    ///
    /// # Errors
    /// As [`step`](Self::step), and for a head that does not fit.
    pub fn step_linear<'h>(
        &mut self,
        hidden: &Tensor,
        head: impl Into<Head<'h>>,
    ) -> Result<Option<Step>> {
        let head = head.into();
        if self.living() == 0 {
            return Ok(None);
        }
        if self.rules.normalise == Normalise::Vocabulary {
            return self.step(&head.logits(hidden)?);
        }
        let nodes = self.nodes();
        let valid = valid_logits::of_hidden(hidden, head, self.sets(), &nodes)?;
        self.step_in_trie(&nodes, &valid)
    }

    /// The paths found for a user, best first, equal ones by their smallest item id.
    pub fn found(&self, user: usize) -> Vec<Found> {
        let Some(user) = self.users.get(user) else {
            return Vec::new();
        };
        (user.finished.iter())
            .map(|(path, score)| user.left_out.found(&self.rules.trie, path, *score))
            .collect()
    }

    fn step_in_trie(&mut self, nodes: &[u32], valid: &[Vec<f64>]) -> Result<Option<Step>> {
        check_logits(valid, nodes, &self.rules.trie)?;
        let temperature = self.rules.temperature;
        Ok(self.advance(|row| log_softmax(&valid[row], temperature)))
    }

    /// The nodes of the living beams.
    fn nodes(&self) -> Vec<u32> {
        let living = self.users.iter().flat_map(|user| &user.living);
        living.map(|path| path.node).collect()
    }

    fn sets(&self) -> &TokenSets {
        self.rules.trie.sets()
    }

    /// Puts every user at the root.
    fn begin(&mut self) {
        let rules = &self.rules;
        let root = Path::root(&rules.trie);
        let (start, lead) = rules.ride(root);
        self.lead = lead;
        for user in &mut self.users {
            (user.living, user.finished) = (Vec::new(), Vec::new());
            if user.left_out.holds(&root) {
                continue;
            }
            if start.is_whole(&rules.trie) {
                user.finished.push((start, rules.score(&start)));
            } else {
                user.living.push(start);
            }
        }
    }

    /// Lets every user's beams go on; `log_probabilities` gives those of a row's tokens.
    fn advance<P: Iterator<Item = f64>>(
        &mut self,
        log_probabilities: impl Fn(usize) -> P + Sync,
    ) -> Option<Step> {
        let mut living = 0;
        let first_rows: Vec<usize> = (self.users.iter())
            .map(|user| {
                living += user.living.len();
                living - user.living.len()
            })
            .collect();
        let rules = &self.rules;
        let steps: Vec<Step> = (self.users.par_iter_mut().zip(first_rows))
            .map(|(user, first_row)| {
                let candidates = rules.candidates(user, first_row, &log_probabilities);
                rules.keep(user, candidates)
            })
            .collect();
        let mut all = Step::default();
        for step in steps {
            all.parents.extend(step.parents);
            all.tokens.extend(step.tokens);
        }
        (!all.tokens.is_empty()).then_some(all)
    }
}

impl Rules {
    /// All that a user's living beams can become, most probable first; equal ones in the order of
    /// their nodes, so that a search is repeatable.
    fn candidates<P: Iterator<Item = f64>>(
        &self,
        user: &Beams,
        first_row: usize,
        log_probabilities: impl Fn(usize) -> P,
    ) -> Vec<(usize, u32, Path)> {
        let mut candidates = Vec::new();
        for (row, path) in (first_row..).zip(&user.living) {
            let paths = path.continued(&self.trie, log_probabilities(row));
            let wanted = paths.filter(|(_, path)| !user.left_out.holds(path));
            candidates.extend(wanted.map(|(token, path)| (row, token, path)));
        }
        candidates.sort_unstable_by(|(_, _, a), (_, _, b)| {
            (b.log_probability.total_cmp(&a.log_probability)).then_with(|| a.node.cmp(&b.node))
        });
        candidates
    }

    /// Keeps the best whole paths, and the best of the others alive.
    fn keep(&self, user: &mut Beams, candidates: Vec<(usize, u32, Path)>) -> Step {
        let mut living: Vec<Candidate> = Vec::with_capacity(self.width);
        for (rank, (row, token, path)) in candidates.into_iter().enumerate() {
            if living.len() == self.width && self.is_beaten(user, rank, &path) {
                break;
            }
            let (path, rode) = self.ride(path);
            if !path.is_whole(&self.trie) {
                if living.len() < self.width {
                    let tokens = [&[token], &rode[..]].concat();
                    let row = row as u32;
                    living.push(Candidate { path, row, tokens });
                }
            } else if self.normalise == Normalise::Trie || rank < self.width {
                self.finish(user, path);
            }
        }
        self.end(user, &mut living);
        user.living = living.iter().map(|candidate| candidate.path).collect();
        let (parents, tokens) = (living.into_iter())
            .map(|candidate| (candidate.row, candidate.tokens))
            .unzip();
        Step { parents, tokens }
    }

    /// Whether no candidate from this one on can be among the best whole paths.
    fn is_beaten(&self, user: &Beams, rank: usize, path: &Path) -> bool {
        match self.normalise {
            // `generate` finishes those alone that are among the best of their step.
            Normalise::Vocabulary => rank >= self.width,
            Normalise::Trie => {
                self.length_penalty == 0.0 && path.log_probability < self.worst_score(user)
            }
        }
    }

    /// Lets go of the living beams that cannot become better than what is finished.
    fn end(&self, user: &Beams, living: &mut Vec<Candidate>) {
        let worst = self.worst_score(user);
        if self.length_penalty == 0.0 {
            living.retain(|candidate| candidate.path.log_probability > worst);
        } else if (living.iter()).all(|candidate| self.score(&candidate.path) <= worst) {
            living.clear();
        }
    }

    /// The score that a whole path must beat: that of the last of `width` finished ones.
    fn worst_score(&self, user: &Beams) -> f64 {
        (user.finished.get(self.width - 1)).map_or(f64::NEG_INFINITY, |&(_, score)| score)
    }

    /// Puts a whole path among the finished ones: equal scores by their smallest item id.
    fn finish(&self, user: &mut Beams, path: Path) {
        let score = self.score(&path);
        let items = self.trie.items(path.node);
        let place = user.finished.partition_point(|(other, other_score)| {
            let order = other_score.total_cmp(&score).reverse();
            order
                .then_with(|| self.trie.items(other.node).cmp(items))
                .is_lt()
        });
        user.finished.insert(place, (path, score));
        user.finished.truncate(self.width);
    }

    fn ride(&self, path: Path) -> (Path, Vec<u32>) {
        match self.normalise {
            Normalise::Trie => path.ride(&self.trie),
            Normalise::Vocabulary => (path, Vec::new()),
        }
    }

    fn score(&self, path: &Path) -> f64 {
        if self.length_penalty == 0.0 {
            return path.log_probability;
        }
        path.log_probability / f64::from(path.length).powf(self.length_penalty)
    }
}

/// Refuses a count of 0.
pub(super) fn check_count(name: &'static str, count: usize) -> Result<()> {
    if count > 0 {
        return Ok(());
    }
    Err(Error::OutOfRange {
        name,
        value: 0.0,
        expected: "at least 1",
    })
}

/// Refuses lists that are not one a user.
pub(super) fn check_users(expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::LengthMismatch {
        what: "lists of items left out, one a user",
        expected,
        actual,
    })
}
