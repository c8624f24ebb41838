//! The rules of a beam search: which paths it keeps, and which it has finished.

use super::{BeamStep, Excluded, Normalisation, Path};
use crate::TokenTrie;

/// The settings of a search, which are those of every user.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub trie: TokenTrie,
    pub width: usize,
    pub temperature: f64,
    pub normalise: Normalisation,
    pub length_penalty: f64,
}

/// The paths of one user.
#[derive(Debug, Clone, Default)]
pub(super) struct Beams {
    pub active: Vec<Path>,
    /// The best complete paths with their scores, best first.
    pub finished: Vec<(Path, f64)>,
    pub excluded: Excluded,
}

/// A path that is one token longer, and the row of the scores that it continues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub row: usize,
    pub token: u32,
    pub path: Path,
}

/// A path that is one choice longer, the row of the scores that it continues, and the tokens appended.
struct Active {
    path: Path,
    row: u32,
    tokens: Vec<u32>,
}

/// Sorts the most probable first, and equal ones in the order of their nodes, so that a search is repeatable.
pub(super) fn sort(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(|Candidate { path: a, .. }, Candidate { path: b, .. }| {
        (b.log_probability.total_cmp(&a.log_probability)).then_with(|| a.node.cmp(&b.node))
    });
}

impl Rules {
    /// Returns the continuations of a user's active beams that may be kept, sorted.
    pub fn candidates<P: Iterator<Item = f64>>(
        &self,
        user: &Beams,
        first_row: usize,
        log_probabilities: impl Fn(usize) -> P,
    ) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (row, path) in (first_row..).zip(&user.active) {
            let paths = path.continued(&self.trie, log_probabilities(row));
            let wanted = paths.filter(|(_, path)| !user.excluded.holds(path));
            candidates.extend(wanted.map(|(token, path)| Candidate { row, token, path }));
        }
        let mut candidates = self.prune(user, candidates);
        sort(&mut candidates);
        candidates
    }

    /// Drops candidates that [`keep`](Self::keep) would not keep: of those that go on all but the `width` best, and likewise of
    /// complete ones. With many beams, sorting all would take most of the time of a step. Equally probable ones stay together.
    fn prune(&self, user: &Beams, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        // A length penalty ranks complete paths by something else than their probabilities.
        if candidates.len() / 2 <= self.width || self.length_penalty != 0.0 {
            return candidates;
        }
        if self.normalise == Normalisation::Trie {
            let worst = self.worst_score(user);
            candidates.retain(|candidate| candidate.path.log_probability >= worst);
        }
        let (mut complete, mut active): (Vec<_>, Vec<_>) = (candidates.into_iter())
            .partition(|candidate| self.end_of_unary(candidate.path).is_complete(&self.trie));
        for candidates in [&mut complete, &mut active] {
            if candidates.len() > self.width {
                let rank = |a: &Candidate, b: &Candidate| {
                    (b.path.log_probability).total_cmp(&a.path.log_probability)
                };
                let (_, last, _) = candidates.select_nth_unstable_by(self.width - 1, rank);
                let least = last.path.log_probability;
                candidates.retain(|candidate| candidate.path.log_probability >= least);
            }
        }
        active.append(&mut complete);
        active
    }

    /// Keeps the best complete paths as finished ones, and the best of the others as active beams.
    pub fn keep(&self, user: &mut Beams, candidates: Vec<Candidate>) -> BeamStep {
        let mut active: Vec<Active> = Vec::with_capacity(self.width.min(candidates.len()));
        for (rank, Candidate { row, token, path }) in candidates.into_iter().enumerate() {
            if active.len() == self.width && self.is_beaten(user, rank, &path) {
                break;
            }
            let (path, unary) = self.follow_unary(path);
            if !path.is_complete(&self.trie) {
                if active.len() < self.width {
                    let tokens = [&[token], &unary[..]].concat();
                    let row = row as u32;
                    active.push(Active { path, row, tokens });
                }
            } else if self.normalise == Normalisation::Trie || rank < self.width {
                self.finish(user, path);
            }
        }
        self.end(user, &mut active);
        user.active = active.iter().map(|candidate| candidate.path).collect();
        let (parents, tokens) = (active.into_iter())
            .map(|candidate| (candidate.row, candidate.tokens))
            .unzip();
        BeamStep { parents, tokens }
    }

    /// Returns whether neither this candidate nor a later one can be among the best complete paths.
    fn is_beaten(&self, user: &Beams, rank: usize, path: &Path) -> bool {
        match self.normalise {
            // Hugging Face's `generate` only finishes paths that are among the `width` best of their step.
            Normalisation::Vocabulary => rank >= self.width,
            Normalisation::Trie => {
                self.length_penalty == 0.0 && path.log_probability < self.worst_score(user)
            }
        }
    }

    /// Drops the active beams that cannot become better than the finished ones.
    fn end(&self, user: &Beams, active: &mut Vec<Active>) {
        let worst = self.worst_score(user);
        if self.length_penalty == 0.0 {
            active.retain(|candidate| candidate.path.log_probability > worst);
        } else if (active.iter()).all(|candidate| self.score(&candidate.path) <= worst) {
            active.clear();
        }
    }

    /// Returns the score that a complete path must beat, which is that of the last of `width` finished ones, or −∞ if there are
    /// fewer.
    fn worst_score(&self, user: &Beams) -> f64 {
        (user.finished.get(self.width - 1)).map_or(f64::NEG_INFINITY, |&(_, score)| score)
    }

    /// Inserts a complete path into the finished ones. Paths of equal scores are ordered by their smallest item id.
    fn finish(&self, user: &mut Beams, path: Path) {
        let score = self.score(&path);
        let items = |path: &Path| self.trie.items(path.node);
        let index = user.finished.partition_point(|(other, other_score)| {
            let order = other_score.total_cmp(&score).reverse();
            order.then_with(|| items(other).cmp(items(&path))).is_lt()
        });
        user.finished.insert(index, (path, score));
        user.finished.truncate(self.width);
    }

    /// Extends a path along unary nodes, if these take no step. Returns it with the tokens that this appends.
    pub fn follow_unary(&self, path: Path) -> (Path, Vec<u32>) {
        match self.normalise {
            Normalisation::Trie => path.follow_unary(&self.trie),
            Normalisation::Vocabulary => (path, Vec::new()),
        }
    }

    /// Returns the end of the path that [`follow_unary`](Self::follow_unary) returns.
    pub fn end_of_unary(&self, path: Path) -> Path {
        match self.normalise {
            Normalisation::Trie => path.end_of_unary(&self.trie, |_| ()),
            Normalisation::Vocabulary => path,
        }
    }

    /// Returns the score that complete paths are ranked by: the log-probability after the length penalty.
    pub fn score(&self, path: &Path) -> f64 {
        path.log_probability / self.divisor(path)
    }

    /// Returns the divisor of a path's log-probability in its score.
    pub fn divisor(&self, path: &Path) -> f64 {
        if self.length_penalty == 0.0 {
            return 1.0;
        }
        f64::from(path.length).powf(self.length_penalty)
    }
}
