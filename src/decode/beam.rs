//! Beam search over the trie.

use candle_core::Tensor;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::path::{check_logits, log_softmax};
use super::rules::{Beams, Candidate, Rules};
use super::{Excluded, Path, SearchResult};
use crate::error::check_numbered;
#[cfg(feature = "cuda")]
use crate::launch::DecodeBeams;
use crate::loss::{Head, Scores, valid_logits};
use crate::temperature::check_temperature;
use crate::{Error, Result, TokenSets, TokenTrie};

/// A beam search for the most probable items of many users at once, constrained by a trie.
///
/// The caller owns the model, and the search says which tokens to feed it. Each [`step`](Self::step) takes one row of
/// logits or hidden states for each active beam. Before the first step there is one beam for each user (but see
/// [`beam_users`](Self::beam_users)), which has read its prompt and the tokens of
/// [`common_prefix`](Self::common_prefix). Before each other step the beams are those of the last [`BeamStep`], in its
/// order.
///
/// A beam from which only one item can be reached is finished at once, without the steps to the item's end, and does not count
/// among the active beams.
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
/// assert!(search.common_prefix().is_empty()); // not all items begin with the same token
/// let mut logits = model(1)?;
/// while let Some(step) = search.step(&logits)? {
///     // A real model continues beam `step.parents[i]` with the tokens `step.tokens[i]` here.
///     logits = model(step.tokens.len())?;
/// }
/// let results = search.results(0);
/// assert_eq!(results[0].items, [12]); // 1/2, against 1/2 · 3/4 for item 10
/// assert_eq!(results[1].items, [10]);
/// assert!((results[1].log_probability - (3f64 / 8.0).ln()).abs() < 1e-6);
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BeamSearch {
    pub(super) rules: Rules,
    common_prefix: Vec<u32>,
    pub(super) users: Vec<Beams>,
}

/// The tokens that the probabilities of a step are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalisation {
    /// Probabilities are normalised over the tokens of the node. They are those of items, and sum to 1 over the catalogue.
    #[default]
    Trie,
    /// Probabilities are normalised over the whole vocabulary and masked afterwards. The beams are those of Hugging Face's
    /// `generate` with `prefix_allowed_tokens_fn`. Every token takes a step.
    Vocabulary,
}

/// The tokens to feed a model before the next step: one entry for each active beam, those of one user side by side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BeamStep {
    /// The row of the last scores that each beam continues, counted from 0.
    pub parents: Vec<u32>,
    /// The tokens that continue it, at least one: the token that was chosen, and the tokens of the unary nodes after it.
    pub tokens: Vec<Vec<u32>>,
}

impl BeamSearch {
    /// Makes a search that keeps the `width` best paths of each user. `temperature` should be that of training.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a width of 0, or a temperature that is not from 2⁻¹²⁶ to 2¹²⁶, and
    /// [`Error::TooLarge`] for more users than fit 32 bits.
    pub fn new(trie: &TokenTrie, users: usize, width: usize, temperature: f64) -> Result<Self> {
        check_temperature("temperature", temperature)?;
        check_count("beam width", width)?;
        check_numbered("users of a search", users)?;
        let mut search = Self {
            rules: Rules {
                trie: trie.clone(),
                width,
                temperature,
                normalise: Normalisation::Trie,
                length_penalty: 0.0,
            },
            common_prefix: Vec::new(),
            users: vec![Beams::default(); users],
        };
        search.begin();
        Ok(search)
    }

    /// Returns the search with another normalisation of the probabilities, at its beginning.
    #[must_use]
    pub fn with_normalisation(mut self, normalise: Normalisation) -> Self {
        self.rules.normalise = normalise;
        self.begin();
        self
    }

    /// Returns the search with a length penalty, at its beginning: items are ranked by log-probability ÷ length^`penalty`.
    ///
    /// The length is in tokens, end token included. A penalty above 0 favours longer titles, and 0, the default, ranks by
    /// probability. As in Hugging Face's `generate`, a user's search then ends when the best active beam, at its present length,
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

    /// Excludes items from the results, at the beginning of the search, for example those that a user has seen. There is one list for
    /// each user. The probabilities of the other items do not change. Ids that the trie does not have are ignored.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there is not one list for each user.
    pub fn exclude_items<I: AsRef<[u64]>>(mut self, items: &[I]) -> Result<Self> {
        check_users(self.users.len(), items.len())?;
        for (user, items) in self.users.iter_mut().zip(items) {
            user.excluded = Excluded::new(&self.rules.trie, items.as_ref());
        }
        self.begin();
        Ok(self)
    }

    /// Returns the tokens that every path begins with. The model must read them after each prompt, before the first step.
    pub fn common_prefix(&self) -> &[u32] {
        &self.common_prefix
    }

    /// Returns the user of each active beam, counted from 0.
    pub fn beam_users(&self) -> Vec<u32> {
        let of_user = |(user, beams): (u32, &Beams)| vec![user; beams.active.len()];
        (0..).zip(&self.users).flat_map(of_user).collect()
    }

    /// Returns the number of active beams, which is that of rows that the next scores must have.
    pub fn active_beams(&self) -> usize {
        self.users.iter().map(|user| user.active.len()).sum()
    }

    /// Takes the scores of the active beams, keeps each user's best paths, and returns the tokens with which the active ones
    /// continue. Returns `None` when all are finished.
    ///
    /// The scores are logits `[beams, V]`, or hidden states `[beams, H]` with a head `[V, H]`, one row for each active
    /// beam. With hidden states and [`Normalisation::Trie`], only the head rows of valid tokens are read. With
    /// [`Normalisation::Vocabulary`], all logits are computed.
    ///
    /// On a CUDA device, kernels choose each user's best candidates, and only these are copied to the host. The log-probabilities of
    /// a step are then computed in f32. Each head row that any beam needs is gathered once a step, for one GEMM with all beams.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where there is not one row for each active beam, [`Error::TokenOutsideVocabulary`]
    /// where the vocabulary does not hold the trie's tokens, [`Error::NonFinite`] for a logit of
    /// a node's token (over the vocabulary: of any token) that is NaN or +∞, and
    /// [`Error::Unsupported`] for a dtype, device or layout, or a head that does not fit.
    pub fn step<'a>(&mut self, scores: impl Into<Scores<'a>>) -> Result<Option<BeamStep>> {
        if self.active_beams() == 0 {
            return Ok(None);
        }
        let scores = scores.into();
        check_rows(
            "rows of the scores, one for each active beam",
            &scores,
            self.active_beams(),
        )?;
        match scores {
            Scores::Logits(logits) => self.step_over_logits(logits),
            Scores::Hidden(hidden, head) => self.step_over_hidden(hidden, head),
        }
    }

    /// Returns the results for a user, best first, those of equal score by their smallest item id.
    pub fn results(&self, user: usize) -> Vec<SearchResult> {
        let Some(user) = self.users.get(user) else {
            return Vec::new();
        };
        (user.finished.iter())
            .map(|(path, score)| user.excluded.found(&self.rules.trie, path, *score))
            .collect()
    }

    fn step_over_logits(&mut self, logits: &Tensor) -> Result<Option<BeamStep>> {
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            valid_logits::check_vocabulary(logits.dims().last(), self.sets())?;
            return self.step_by_kernels(logits, &self.decode_beams()?);
        }
        let nodes = self.nodes();
        let valid = valid_logits::of_logits(logits, self.sets(), &nodes)?;
        match self.rules.normalise {
            Normalisation::Trie => self.step_in_trie(&nodes, &valid),
            Normalisation::Vocabulary => self.step_in_vocabulary(logits, &valid),
        }
    }

    fn step_over_hidden(&mut self, hidden: &Tensor, head: Head) -> Result<Option<BeamStep>> {
        if self.rules.normalise == Normalisation::Vocabulary {
            valid_logits::check_fit(hidden, &head, self.sets())?;
            return self.step_over_logits(&head.logits(hidden)?);
        }
        #[cfg(feature = "cuda")]
        if hidden.device().is_cuda() {
            let mut beams = self.decode_beams()?;
            let logits = valid_logits::in_columns(hidden, head, self.sets(), beams.gather())?;
            return self.step_by_kernels(&logits, &beams);
        }
        let nodes = self.nodes();
        let valid = valid_logits::of_hidden(hidden, head, self.sets(), &nodes)?;
        self.step_in_trie(&nodes, &valid)
    }

    fn step_in_trie(&mut self, nodes: &[u32], valid: &[Vec<f64>]) -> Result<Option<BeamStep>> {
        check_logits(valid, nodes, &self.rules.trie)?;
        let rules = self.rules.clone();
        Ok(self.advance(|_, user, first_row| {
            rules.candidates(user, first_row, |row| {
                log_softmax(&valid[row], rules.temperature)
            })
        }))
    }

    fn step_in_vocabulary(
        &mut self,
        logits: &Tensor,
        valid: &[Vec<f64>],
    ) -> Result<Option<BeamStep>> {
        let rules = self.rules.clone();
        let log_sums = valid_logits::log_sums(logits, rules.temperature)?;
        let even = -(logits.dims().last().map_or(1.0, |&size| size as f64)).ln();
        Ok(self.advance(|_, user, first_row| {
            rules.candidates(user, first_row, |row| {
                let (temperature, log_sum) = (rules.temperature, log_sums[row]);
                valid[row].iter().map(move |logit| match log_sum {
                    Some(log_sum) => logit / temperature - log_sum,
                    None => even,
                })
            })
        }))
    }

    #[cfg(feature = "cuda")]
    fn step_by_kernels(
        &mut self,
        logits: &Tensor,
        beams: &DecodeBeams,
    ) -> Result<Option<BeamStep>> {
        valid_logits::check_for_kernels(logits)?;
        let (choices, faults) = cuda::decode(logits, beams)?;
        self.apply_choices(beams, &choices, &faults)
    }

    /// Returns the nodes of the active beams.
    fn nodes(&self) -> Vec<u32> {
        let active = self.users.iter().flat_map(|user| &user.active);
        active.map(|path| path.node).collect()
    }

    fn sets(&self) -> &TokenSets {
        self.rules.trie.sets()
    }

    /// Starts every user's search at the root.
    fn begin(&mut self) {
        let rules = &self.rules;
        let root = Path::root(&rules.trie);
        let (start, common_prefix) = rules.follow_unary(root);
        self.common_prefix = common_prefix;
        for user in &mut self.users {
            (user.active, user.finished) = (Vec::new(), Vec::new());
            if user.excluded.holds(&root) {
                continue;
            }
            if start.is_complete(&rules.trie) {
                user.finished.push((start, rules.score(&start)));
            } else {
                user.active.push(start);
            }
        }
    }

    /// Continues every user's beams with the best of their candidates. `candidates_of` returns those of a
    /// user, given its number, its beams and the row of the first of them.
    pub(super) fn advance(
        &mut self,
        candidates_of: impl Fn(usize, &Beams, usize) -> Vec<Candidate> + Sync,
    ) -> Option<BeamStep> {
        let first_rows = self.first_rows();
        let rules = &self.rules;
        let steps: Vec<BeamStep> = (self.users.par_iter_mut().zip(first_rows).enumerate())
            .map(|(number, (user, first_row))| {
                let candidates = candidates_of(number, user, first_row);
                rules.keep(user, candidates)
            })
            .collect();
        let mut all = BeamStep::default();
        for step in steps {
            all.parents.extend(step.parents);
            all.tokens.extend(step.tokens);
        }
        (!all.tokens.is_empty()).then_some(all)
    }

    /// Returns the row of each user's first active beam.
    pub(super) fn first_rows(&self) -> Vec<usize> {
        let mut active = 0;
        let first_row = |user: &Beams| {
            active += user.active.len();
            active - user.active.len()
        };
        self.users.iter().map(first_row).collect()
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

/// Refuses scores with another number of rows than a search has beams or prefixes.
pub(super) fn check_rows(what: &'static str, scores: &Scores, expected: usize) -> Result<()> {
    let actual = match scores.tensor().dims().split_last() {
        Some((_, leading)) => leading.iter().product(),
        None => 0,
    };
    if actual == expected {
        return Ok(());
    }
    Err(Error::LengthMismatch {
        what,
        expected,
        actual,
    })
}

/// Refuses another number of lists than one for each user.
pub(super) fn check_users(expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::LengthMismatch {
        what: "lists of excluded items, one for each user",
        expected,
        actual,
    })
}
