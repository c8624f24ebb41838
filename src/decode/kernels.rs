//! A step of a search by kernels: the active beams or the prefixes in the form that kernels take, and the continuation of the
//! search with the candidates that they choose or score.

use std::collections::HashMap;

use super::rules::{self, Beams, Candidate, Rules};
use super::{Excluded, Normalisation, Path};
use crate::launch::{DecodeBeams, DecodeChoice, DecodeEdge, DecodeFault, DecodeSet, NewBeam};
use crate::{BeamSearch, BeamStep, Error, ExactSearch, Result};

impl BeamSearch {
    /// Returns the active beams as the kernels over logits take them.
    ///
    /// Excluded items and the length penalty are resolved here. The kernels get edges that are not candidates, and for each
    /// complete path a divisor of its log-probability.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more candidates than fit 32 bits.
    #[doc(hidden)]
    pub fn decode_beams(&self) -> Result<DecodeBeams> {
        let rules = &self.rules;
        let over_vocabulary = rules.normalise == Normalisation::Vocabulary;
        let mut beams = DecodeBeams::new(rules.width, rules.temperature, over_vocabulary);
        // The beams of all users at a node share its edges, unless one of these edges is excluded for the user.
        let mut shared: HashMap<u32, DecodeSet> = HashMap::new();
        let no_exclusions = Excluded::default();
        for user in &self.users {
            let mut user_beams = Vec::with_capacity(user.active.len());
            for path in &user.active {
                let set = if rules.excludes_an_edge(path, &user.excluded) {
                    rules.push_edges(&mut beams, path, &user.excluded)
                } else {
                    let shared_set = shared.entry(path.node);
                    *shared_set
                        .or_insert_with(|| rules.push_edges(&mut beams, path, &no_exclusions))
                };
                user_beams.push(NewBeam {
                    log_probability: path.log_probability,
                    set,
                });
            }
            beams.push_user(&user_beams)?;
        }
        Ok(beams)
    }

    /// Continues the search, as [`step`](Self::step) does, with the candidates that the kernels chose for
    /// [`decode_beams`](Self::decode_beams) of this search.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for the first fault, and [`Error::LengthMismatch`] or [`Error::Malformed`] for choices or faults that
    /// are not those of these beams.
    #[doc(hidden)]
    pub fn apply_choices(
        &mut self,
        beams: &DecodeBeams,
        choices: &[DecodeChoice],
        faults: &[DecodeFault],
    ) -> Result<Option<BeamStep>> {
        check_length("beams", self.active_beams(), beams.beams.len())?;
        check_length(
            "choices",
            2 * self.users.len() * beams.width(),
            choices.len(),
        )?;
        check_faults(beams, faults)?;
        // The width is 0 if no user has a candidate.
        let mut choices_by_user = choices.chunks((2 * beams.width()).max(1));
        let candidates = (self.users.iter().zip(self.first_rows()))
            .map(|(user, first_row)| {
                let choices = choices_by_user.next().unwrap_or(&[]);
                chosen(user, first_row, beams, choices)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(self.advance(|number, _, _| candidates[number].clone()))
    }
}

impl ExactSearch {
    /// Returns the prefixes of the next expansion as the kernels over logits take them. Every edge of a prefix is a candidate
    /// that leads to an unfinished path: what is complete or excluded is told apart when the scores are there.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for more candidates than 32 bits count.
    #[doc(hidden)]
    pub fn decode_prefixes(&self) -> Result<DecodeBeams> {
        let mut beams = DecodeBeams::new(1, self.temperature, false);
        // Prefixes of all users that are at one node share its edges.
        let mut shared: HashMap<u32, DecodeSet> = HashMap::new();
        let mut prefixes = Vec::new();
        for node in self.nodes() {
            let set = *shared.entry(node).or_insert_with(|| {
                let tokens = self.trie.children(node);
                let set = DecodeSet {
                    first_edge: beams.edges.len(),
                    unfinished: tokens.len(),
                    complete: 0,
                    excluded: 0,
                };
                let edge = DecodeEdge {
                    order: 0,
                    divisor: 1.0,
                };
                let children = self.trie.first_child(node).unwrap_or_default()..;
                for (&token, child) in tokens.iter().zip(children) {
                    beams.push_edge(token, child, edge);
                }
                set
            });
            prefixes.push(NewBeam {
                log_probability: 0.0,
                set,
            });
        }
        beams.push_user(&prefixes)?;
        Ok(beams)
    }

    /// Goes on with the scores of the kernels for [`decode_prefixes`](Self::decode_prefixes) of this search, as
    /// [`step`](Self::step) does: the log-probability of each candidate.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for the first fault, and [`Error::LengthMismatch`] where scores or faults are not of these prefixes.
    #[doc(hidden)]
    pub fn apply_scores(
        &mut self,
        beams: &DecodeBeams,
        log_probabilities: &[f32],
        faults: &[DecodeFault],
    ) -> Result<()> {
        let prefixes = self.nodes().len();
        check_length("prefixes", prefixes, beams.beams.len())?;
        check_length("scores", beams.candidates(), log_probabilities.len())?;
        check_faults(beams, faults)?;
        self.expand(|row| {
            let scores = log_probabilities.get(beams.of_beam(row)).unwrap_or(&[]);
            scores.iter().map(|&score| f64::from(score))
        });
        Ok(())
    }
}

/// Refuses the faults of other beams, and names the first fault.
fn check_faults(beams: &DecodeBeams, faults: &[DecodeFault]) -> Result<()> {
    check_length("faults", beams.beams.len(), faults.len())?;
    let found = |fault: &DecodeFault| fault.token != DecodeFault::NONE;
    match faults.iter().position(found) {
        None => Ok(()),
        Some(row) => Err(Error::NonFinite {
            row,
            position: row as u32,
            token: beams.token(faults[row].token),
            value: faults[row].value.into(),
        }),
    }
}

impl Rules {
    /// Returns whether any edge that leaves the path's node is excluded.
    fn excludes_an_edge(&self, path: &Path, excluded: &Excluded) -> bool {
        let children = self.trie.first_child(path.node).unwrap_or_default()..;
        !excluded.is_empty()
            && (children.zip(self.trie.children(path.node)))
                .any(|(child, _)| excluded.holds_node(child))
    }

    /// Adds the edges that leave the path's node.
    fn push_edges(&self, beams: &mut DecodeBeams, path: &Path, excluded: &Excluded) -> DecodeSet {
        let mut set = DecodeSet {
            first_edge: beams.edges.len(),
            unfinished: 0,
            complete: 0,
            excluded: 0,
        };
        let (mut complete, mut excluded_edges) = (Vec::new(), Vec::new());
        let zeros = self.trie.children(path.node).iter().map(|_| 0.0);
        for (token, next) in path.continued(&self.trie, zeros) {
            let end = self.end_of_unary(next);
            if excluded.holds(&next) {
                excluded_edges.push((token, next.node, self.edge(&next, false)));
            } else if end.is_complete(&self.trie) {
                complete.push((token, next.node, self.edge(&end, true)));
            } else {
                beams.push_edge(token, next.node, self.edge(&next, false));
                set.unfinished += 1;
            }
        }
        (set.complete, set.excluded) = (complete.len(), excluded_edges.len());
        for (token, node, edge) in complete.into_iter().chain(excluded_edges) {
            beams.push_edge(token, node, edge);
        }
        set
    }

    /// Returns the numbers that a path is ranked by among those of its kind, in the order of [`keep`](Self::keep).
    fn edge(&self, path: &Path, complete: bool) -> DecodeEdge {
        // Over the vocabulary, `keep` ranks complete paths by probability among the candidates of their step.
        if !complete || self.normalise == Normalisation::Vocabulary {
            return DecodeEdge {
                order: path.node.into(),
                divisor: 1.0,
            };
        }
        DecodeEdge {
            order: self.trie.items(path.node).first().copied().unwrap_or(0),
            divisor: self.divisor(path),
        }
    }
}

/// Returns the chosen candidates of a user, sorted as [`Rules::keep`] expects.
fn chosen(
    user: &Beams,
    first_row: usize,
    beams: &DecodeBeams,
    choices: &[DecodeChoice],
) -> Result<Vec<Candidate>> {
    let rows = first_row..first_row + user.active.len();
    let mut candidates = (choices.iter())
        .filter(|choice| choice.candidate != DecodeChoice::NONE)
        .map(|choice| {
            let found = beams.find(choice.candidate, rows.clone());
            let (row, edge) = found.ok_or_else(|| Error::Malformed {
                what: "choices",
                detail: format!(
                    "candidate {} is none of the beams {rows:?}",
                    choice.candidate
                ),
            })?;
            let parent = user.active[row - first_row];
            Ok(Candidate {
                row,
                token: beams.token(beams.tokens[edge]),
                path: Path {
                    node: beams.nodes[edge],
                    log_probability: parent.log_probability + f64::from(choice.log_probability),
                    length: parent.length + 1,
                },
            })
        })
        .collect::<Result<Vec<_>>>()?;
    rules::sort(&mut candidates);
    Ok(candidates)
}

fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::LengthMismatch {
        what,
        expected,
        actual,
    })
}
