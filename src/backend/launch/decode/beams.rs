//! The active beams of a step of beam search, as the decoding kernels take them.

use std::ops::Range;

use crate::backend::launch::kernel_params;
use crate::{Error, Result};

kernel_params! {
    /// An active beam: an unfinished path, and the edges that leave its node.
    pub struct DecodeBeam in "decode.cuh" {
        log_probability: f64, first_edge: u32, edges: u32, unfinished: u32, complete: u32,
        first_unfinished: u32, first_complete: u32,
    }
}

kernel_params! {
    /// The numbers that the path of an edge is ranked by besides its probability.
    pub struct DecodeEdge in "decode.cuh" {
        /// The tie-breaker: of equal scores, the smaller order comes first.
        order: u64,
        /// The length normalisation: the score is the log-probability divided by this.
        divisor: f64,
    }
}

/// The edges of a node: first those to unfinished paths, then those to complete ones, then those that are excluded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodeSet {
    /// The index of the first edge.
    pub first_edge: usize,
    /// The number of edges to unfinished paths.
    pub unfinished: usize,
    /// The number of edges to complete paths.
    pub complete: usize,
    /// The number of excluded edges, which count in the normaliser only.
    pub excluded: usize,
}

/// A beam at a node with these edges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewBeam {
    /// ln p of the path so far.
    pub log_probability: f64,
    pub set: DecodeSet,
}

/// The active beams of a [`BeamSearch`](crate::BeamSearch), as the decoding kernels take them.
///
/// [`BeamSearch::decode_beams`](crate::BeamSearch::decode_beams) makes them, and
/// [`BeamSearch::apply_choices`](crate::BeamSearch::apply_choices) goes on with what the kernels have chosen.
#[derive(Debug, Clone)]
pub struct DecodeBeams {
    pub(crate) beams: Vec<DecodeBeam>,
    pub(crate) edges: Vec<DecodeEdge>,
    /// The column of the logits of each edge's token.
    pub(crate) tokens: Vec<u32>,
    /// The index of the first candidate of each segment, and the number of all candidates. A user has two segments: unfinished
    /// paths, then complete ones.
    pub(crate) segments: Vec<u32>,
    /// The node that each edge leads to.
    pub(crate) nodes: Vec<u32>,
    /// The token of each column of the logits; `None` if column v is token v.
    columns: Option<Vec<u32>>,
    pub(super) over_vocabulary: bool,
    pub(super) temperature: f64,
    width: usize,
}

impl DecodeBeams {
    /// Returns no beams yet, for a search that keeps `width` of them for each user.
    pub(crate) fn new(width: usize, temperature: f64, over_vocabulary: bool) -> Self {
        Self {
            beams: Vec::new(),
            edges: Vec::new(),
            tokens: Vec::new(),
            segments: vec![0],
            nodes: Vec::new(),
            columns: None,
            over_vocabulary,
            temperature,
            width,
        }
    }

    /// Adds an edge, to be named by a [`DecodeSet`].
    pub(crate) fn push_edge(&mut self, token: u32, node: u32, edge: DecodeEdge) {
        self.tokens.push(token);
        self.nodes.push(node);
        self.edges.push(edge);
    }

    /// Adds a user's beams.
    pub(crate) fn push_user(&mut self, beams: &[NewBeam]) -> Result<()> {
        let all = |count: fn(&DecodeSet) -> usize| -> usize {
            beams.iter().map(|beam| count(&beam.set)).sum()
        };
        let first_unfinished = self.candidates();
        let first_complete = first_unfinished + all(|set| set.unfinished);
        let end = first_complete + all(|set| set.complete);
        // u32::MAX is DecodeChoice::NONE.
        let limit = u32::MAX as usize - 1;
        if end.max(self.edges.len()) > limit {
            return Err(Error::TooLarge {
                what: "candidates of a step",
                size: end.max(self.edges.len()) as u64,
                limit: limit as u64,
            });
        }
        let [mut unfinished, mut complete] = [first_unfinished as u32, first_complete as u32];
        for NewBeam {
            log_probability,
            set,
        } in beams
        {
            let beam = DecodeBeam {
                log_probability: *log_probability,
                first_edge: set.first_edge as u32,
                edges: (set.unfinished + set.complete + set.excluded) as u32,
                unfinished: set.unfinished as u32,
                complete: set.complete as u32,
                first_unfinished: unfinished,
                first_complete: complete,
            };
            unfinished += beam.unfinished;
            complete += beam.complete;
            self.beams.push(beam);
        }
        self.segments.extend([first_complete as u32, end as u32]);
        Ok(())
    }

    /// Returns the tokens that the beams need, ascending. From now on the logits must have columns for these tokens only, in
    /// this order.
    pub fn gather(&mut self) -> &[u32] {
        let token = |&column: &u32| self.token(column);
        let all: Vec<u32> = self.tokens.iter().map(token).collect();
        let mut columns = all.clone();
        columns.sort_unstable();
        columns.dedup();
        let column = |token| columns.partition_point(|&other| other < token) as u32;
        self.tokens = all.into_iter().map(column).collect();
        self.columns.insert(columns)
    }

    /// Returns the active beams of all users.
    #[must_use]
    pub fn beams(&self) -> &[DecodeBeam] {
        &self.beams
    }

    /// Returns the token of a column.
    pub(crate) fn token(&self, column: u32) -> u32 {
        let named = self.columns.as_ref();
        let token = named.and_then(|columns| columns.get(column as usize));
        token.copied().unwrap_or(column)
    }

    /// Returns the number of candidates, the paths that extend the beams by one token.
    #[must_use]
    pub fn candidates(&self) -> usize {
        self.segments.last().map_or(0, |&end| end as usize)
    }

    /// Returns the number of choices: for each user [`DecodeBeams::width`] unfinished paths, then as many complete ones.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.segments.len().saturating_sub(1) * self.width()
    }

    /// Returns the number of choices for each user and kind: the width of the search, or less if no user has as many
    /// candidates.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width.min(self.longest_segment() as usize)
    }

    /// Returns the row and the edge of a candidate, which is searched among the beams of a user's rows.
    pub(crate) fn find(&self, candidate: u32, rows: Range<usize>) -> Option<(usize, usize)> {
        let beams = self.beams.get(rows.clone())?;
        let of_kind = |first: fn(&DecodeBeam) -> u32, count: fn(&DecodeBeam) -> u32| {
            // Beams without candidates of the kind begin where the next one does: the last that begins there has some.
            let after = beams.partition_point(|beam| first(beam) <= candidate);
            let beam = after.checked_sub(1)?;
            let place = candidate - first(&beams[beam]);
            (place < count(&beams[beam])).then_some((beam, place))
        };
        let unfinished = of_kind(|beam| beam.first_unfinished, |beam| beam.unfinished);
        let complete = || of_kind(|beam| beam.first_complete, |beam| beam.complete);
        let (beam, edge) = unfinished
            .or_else(|| complete().map(|(beam, place)| (beam, beams[beam].unfinished + place)))?;
        Some((rows.start + beam, (beams[beam].first_edge + edge) as usize))
    }

    /// Returns the numbers of a beam's candidates that lead to unfinished paths, in the order of its edges.
    pub(crate) fn of_beam(&self, beam: usize) -> Range<usize> {
        (self.beams.get(beam)).map_or(0..0, |beam| {
            let first = beam.first_unfinished as usize;
            first..first + beam.unfinished as usize
        })
    }

    pub(super) fn longest_set(&self) -> u32 {
        let sizes = self.beams.iter().map(|beam| beam.edges);
        sizes.max().unwrap_or(0)
    }

    pub(super) fn longest_segment(&self) -> u32 {
        let sizes = self
            .segments
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]));
        sizes.max().unwrap_or(0)
    }
}
