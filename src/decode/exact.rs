//! Best-first search: the true top of the catalogue, with a proof.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use candle_core::Tensor;

use super::beam::{check_count, check_rows, check_users};
#[cfg(feature = "cuda")]
use super::cuda;
use super::path::{check_logits, log_softmax};
use super::{Excluded, Path, SearchResult};
use crate::error::check_numbered;
use crate::loss::{Scores, valid_logits};
use crate::temperature::check_temperature;
use crate::{Result, TokenTrie};

/// An exact search for the most probable items of many users at once.
///
/// The probability of a path never rises as it gets longer. So the most probable prefix that is not yet expanded is a bound for all
/// items that are not yet found, and the search ends when the `k` best items found are at least as probable. It misses no item,
/// where a beam search may drop the beginning of a good title.
///
/// The caller owns the model. Each [`step`](Self::step) takes one row of logits or hidden states for each entry of
/// [`next_expansion`](Self::next_expansion), for which the model has read the prompt, the tokens of
/// [`common_prefix`](Self::common_prefix) and those of the entry. [`exact_top_k`] is the short way, for a model without
/// a cache.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_trie::{ExactSearch, TokenTrie};
/// // The first token of items 0 and 1 is the more probable, but each of them less so than item 2.
/// let trie = TokenTrie::new([(0, vec![1, 1, 0]), (1, vec![1, 2, 0]), (2, vec![2, 0])])?;
/// let mut search = ExactSearch::new(&trie, 1, 1, 1.0)?;
/// while let Some(expansion) = search.next_expansion() {
///     // A real model continues the cache of row `parents[i]` with the tokens `tokens[i]` here.
///     let row = |parent: &Option<u32>| match parent {
///         None => vec![0.0, 0.55f32.ln(), 0.45f32.ln()],
///         Some(_) => vec![0.0; 3],
///     };
///     let logits: Vec<_> = expansion.parents.iter().map(row).collect();
///     search.step(&Tensor::new(logits, &Device::Cpu)?)?;
/// }
/// let results = search.results(0);
/// assert_eq!(results[0].items, [2]); // a beam of one would have kept token 1 alone
/// assert!(search.bound(0) <= results[0].log_probability); // the proof
/// # Ok::<(), candle_trie::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ExactSearch {
    pub(super) trie: TokenTrie,
    k: usize,
    pub(super) temperature: f64,
    at_once: usize,
    common_prefix: Vec<u32>,
    /// The number of rows of all expansions before the next one.
    rows: u32,
    users: Vec<Frontier>,
}

/// The prefixes that a search expands next, those of one user side by side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expansion {
    /// The user of each prefix, counted from 0.
    pub users: Vec<u32>,
    /// The row of the scores that each prefix continues, counted from 0 over all expansions so far, or `None` for the
    /// prompt with [`ExactSearch::common_prefix`] alone.
    pub parents: Vec<Option<u32>>,
    /// The tokens that continue that row: at least one, but none after the prompt.
    pub tokens: Vec<Vec<u32>>,
}

/// The state of one user's search.
#[derive(Debug, Clone, Default)]
struct Frontier {
    open: BinaryHeap<Open>,
    /// The open prefixes that are expanded next.
    expanding: Vec<Open>,
    /// The best complete paths, best first.
    found: Vec<Path>,
    excluded: Excluded,
}

/// An open prefix, which is not yet expanded.
#[derive(Debug, Clone)]
struct Open {
    path: Path,
    /// The row of the scores that it continues; `None` for the prompt.
    parent: Option<u32>,
    /// The tokens that continue that row.
    tokens: Vec<u32>,
}

impl ExactSearch {
    /// The default number of prefixes of a user that are expanded in one step. With more, the model is called less often
    /// and reads more prefixes that turn out not to matter.
    pub const DEFAULT_PREFIXES_PER_STEP: usize = 4;

    /// Makes a search for the `k` most probable paths of each user. `temperature` should be that of training.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for a `k` of 0, or a temperature that is not
    /// from 2⁻¹²⁶ to 2¹²⁶, and [`Error::TooLarge`](crate::Error::TooLarge) for more users than 32 bits number.
    pub fn new(trie: &TokenTrie, users: usize, k: usize, temperature: f64) -> Result<Self> {
        check_temperature("temperature", temperature)?;
        check_count("k", k)?;
        check_numbered("users of a search", users)?;
        let mut search = Self {
            trie: trie.clone(),
            k,
            temperature,
            at_once: Self::DEFAULT_PREFIXES_PER_STEP,
            common_prefix: Vec::new(),
            rows: 0,
            users: vec![Frontier::default(); users],
        };
        search.begin();
        Ok(search)
    }

    /// Expands up to `at_once` prefixes of a user in one step.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for 0.
    pub fn with_prefixes_per_step(mut self, at_once: usize) -> Result<Self> {
        check_count("prefixes at once", at_once)?;
        self.at_once = at_once;
        Ok(self)
    }

    /// Excludes items from the results, as [`BeamSearch::exclude_items`](crate::BeamSearch::exclude_items) does.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`](crate::Error::LengthMismatch) where there is not one list for each user.
    pub fn exclude_items<I: AsRef<[u64]>>(mut self, items: &[I]) -> Result<Self> {
        check_users(self.users.len(), items.len())?;
        for (user, items) in self.users.iter_mut().zip(items) {
            user.excluded = Excluded::new(&self.trie, items.as_ref());
        }
        self.begin();
        Ok(self)
    }

    /// Returns the tokens that every path begins with. They are to be fed after each prompt.
    pub fn common_prefix(&self) -> &[u32] {
        &self.common_prefix
    }

    /// Returns the prefixes that the next scores must be of, or `None` when every user's search has ended.
    pub fn next_expansion(&self) -> Option<Expansion> {
        let mut wanted = Expansion::default();
        for (user, frontier) in self.users.iter().enumerate() {
            for open in &frontier.expanding {
                wanted.users.push(user as u32);
                wanted.parents.push(open.parent);
                wanted.tokens.push(open.tokens.clone());
            }
        }
        (!wanted.users.is_empty()).then_some(wanted)
    }

    /// Takes the scores of the prefixes of [`next_expansion`](Self::next_expansion), one row for each: logits
    /// `[prefixes, V]`, or hidden states `[prefixes, H]` with a head `[V, H]`, of which only the rows of valid tokens are read.
    ///
    /// On a CUDA device a kernel computes the log-probabilities of the valid tokens, in f32, and only these come to the host,
    /// where the frontier is. The results are then exact for these log-probabilities.
    ///
    /// # Errors
    /// Those of [`BeamSearch::step`](crate::BeamSearch::step).
    pub fn step<'a>(&mut self, scores: impl Into<Scores<'a>>) -> Result<()> {
        let scores = scores.into();
        let nodes = self.nodes();
        check_rows(
            "rows of the scores, one for each prefix",
            &scores,
            nodes.len(),
        )?;
        #[cfg(feature = "cuda")]
        if scores.tensor().device().is_cuda() {
            return self.step_by_kernels(scores);
        }
        let sets = self.trie.sets();
        let valid = match scores {
            Scores::Logits(logits) => valid_logits::of_logits(logits, sets, &nodes)?,
            Scores::Hidden(hidden, head) => valid_logits::of_hidden(hidden, head, sets, &nodes)?,
        };
        check_logits(&valid, &nodes, &self.trie)?;
        let temperature = self.temperature;
        self.expand(|row| log_softmax(&valid[row], temperature));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn step_by_kernels(&mut self, scores: Scores) -> Result<()> {
        let sets = self.trie.sets();
        let mut prefixes = self.decode_prefixes()?;
        let gathered;
        let logits = match scores {
            Scores::Logits(logits) => {
                valid_logits::check_vocabulary(logits.dims().last(), sets)?;
                logits
            }
            Scores::Hidden(hidden, head) => {
                gathered = valid_logits::in_columns(hidden, head, sets, prefixes.gather())?;
                &gathered
            }
        };
        valid_logits::check_for_kernels(logits)?;
        let (log_probabilities, faults) = cuda::scores(logits, &prefixes)?;
        self.apply_scores(&prefixes, &log_probabilities, &faults)
    }

    /// Returns the results for a user, best first, those of equal score by their smallest item id. When the search
    /// has ended they are the most probable paths of the catalogue: `k` of them, or all that there are.
    pub fn results(&self, user: usize) -> Vec<SearchResult> {
        let Some(user) = self.users.get(user) else {
            return Vec::new();
        };
        (user.found.iter())
            .map(|path| user.excluded.found(&self.trie, path, path.log_probability))
            .collect()
    }

    /// Returns the bound, in nats, that proves the results: no path behind a prefix that is not expanded yet has a higher
    /// log-probability. It is −∞ where no prefix is left. Paths that were dropped before are no better than the last of `k` results.
    pub fn bound(&self, user: usize) -> f64 {
        let Some(user) = self.users.get(user) else {
            return f64::NEG_INFINITY;
        };
        (user.open.peek().into_iter().chain(&user.expanding))
            .map(|open| open.path.log_probability)
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// Starts every user's search at the root.
    fn begin(&mut self) {
        let root = Path::root(&self.trie);
        let (path, common_prefix) = root.follow_unary(&self.trie);
        self.common_prefix = common_prefix;
        self.rows = 0;
        for user in &mut self.users {
            user.open.clear();
            (user.expanding, user.found) = (Vec::new(), Vec::new());
            if user.excluded.holds(&root) {
                continue;
            }
            if path.is_complete(&self.trie) {
                user.found.push(path);
            } else {
                user.expanding.push(Open {
                    path,
                    parent: None,
                    tokens: Vec::new(),
                });
            }
        }
    }

    /// Returns the nodes of the prefixes that are expanded next.
    pub(super) fn nodes(&self) -> Vec<u32> {
        let expanding = self.users.iter().flat_map(|user| &user.expanding);
        expanding.map(|open| open.path.node).collect()
    }

    /// Expands the prefixes that are being expanded. `log_probabilities` gives those of the tokens of a row's node.
    pub(super) fn expand<P: Iterator<Item = f64>>(
        &mut self,
        log_probabilities: impl Fn(usize) -> P,
    ) {
        let mut row = 0;
        for user in &mut self.users {
            for open in std::mem::take(&mut user.expanding) {
                let number = self.rows + row as u32;
                user.follow(
                    &self.trie,
                    open.path,
                    number,
                    log_probabilities(row),
                    self.k,
                );
                row += 1;
            }
            user.select_open(self.k, self.at_once);
        }
        self.rows += row as u32;
    }
}

impl Frontier {
    /// Adds the continuations of an expanded prefix, whose scores are in `row`.
    fn follow(
        &mut self,
        trie: &TokenTrie,
        path: Path,
        row: u32,
        log_probabilities: impl Iterator<Item = f64>,
        k: usize,
    ) {
        for (token, path) in path.continued(trie, log_probabilities) {
            if self.excluded.holds(&path) || path.log_probability < self.threshold(k) {
                continue;
            }
            let (path, unary) = path.follow_unary(trie);
            if path.is_complete(trie) {
                self.insert(trie, path, k);
            } else {
                self.open.push(Open {
                    path,
                    parent: Some(row),
                    tokens: [&[token], &unary[..]].concat(),
                });
            }
        }
    }

    /// Selects the most probable open prefixes to be expanded next, as long as they may lead to an item of the top `k`.
    fn select_open(&mut self, k: usize, at_once: usize) {
        let threshold = self.threshold(k);
        while self.expanding.len() < at_once {
            match self.open.pop() {
                Some(open) if open.path.log_probability >= threshold => self.expanding.push(open),
                Some(open) => return self.open.push(open),
                None => return,
            }
        }
    }

    /// Returns the smallest log-probability with which a path may be among the top `k`.
    fn threshold(&self, k: usize) -> f64 {
        (self.found.get(k - 1)).map_or(f64::NEG_INFINITY, |path| path.log_probability)
    }

    fn insert(&mut self, trie: &TokenTrie, path: Path, k: usize) {
        let items = |path: &Path| trie.items(path.node);
        let index = self.found.partition_point(|other| {
            let order = other.log_probability.total_cmp(&path.log_probability);
            (order.reverse())
                .then_with(|| items(other).cmp(items(&path)))
                .is_lt()
        });
        self.found.insert(index, path);
        self.found.truncate(k);
    }
}

impl Ord for Open {
    /// Compares by probability. Of equal ones, the one at the smaller node is the greater, so that the heap returns it first.
    fn cmp(&self, other: &Self) -> Ordering {
        (self
            .path
            .log_probability
            .total_cmp(&other.path.log_probability))
        .then_with(|| other.path.node.cmp(&self.path.node))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Open {}

/// Returns the `k` most probable items of one user, as [`ExactSearch`] finds them. `model` computes the logits
/// `[prefixes, V]` that follow some prefixes of a response.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_trie::{TokenTrie, exact_top_k};
/// let trie = TokenTrie::new([(7, [1, 0]), (8, [2, 0]), (9, [3, 0])])?;
/// let model = |prefixes: &[Vec<u32>]| {
///     Ok(Tensor::new(&[0f32, 1.0, 3.0, 2.0], &Device::Cpu)?.repeat((prefixes.len(), 1))?)
/// };
/// let results = exact_top_k(&trie, 2, 1.0, model)?;
/// assert_eq!((results[0].items[0], results[1].items[0]), (8, 9));
/// # Ok::<(), candle_trie::Error>(())
/// ```
///
/// # Errors
/// Those of [`ExactSearch::new`] and [`ExactSearch::step`], and those of `model`.
pub fn exact_top_k(
    trie: &TokenTrie,
    k: usize,
    temperature: f64,
    mut model: impl FnMut(&[Vec<u32>]) -> Result<Tensor>,
) -> Result<Vec<SearchResult>> {
    let mut search = ExactSearch::new(trie, 1, k, temperature)?;
    let mut read: Vec<Vec<u32>> = Vec::new();
    while let Some(Expansion {
        parents, tokens, ..
    }) = search.next_expansion()
    {
        let prefix = |(parent, tokens): (&Option<u32>, &Vec<u32>)| {
            let read = parent.map_or(search.common_prefix(), |row| &read[row as usize]);
            [read, tokens].concat()
        };
        let prefixes: Vec<_> = parents.iter().zip(&tokens).map(prefix).collect();
        let logits = model(&prefixes)?;
        read.extend(prefixes);
        search.step(&logits)?;
    }
    Ok(search.results(0))
}
