//! The living beams of a step in the order in which the kernels take them.

use std::ops::Range;

use crate::backend::launch::kernel_params;
use crate::{Error, Result};

kernel_params! {
    /// A living path, and the edges that leave its node.
    pub struct DecodeBeam in "decode.cuh" {
        log_probability: f64, first_edge: u32, edges: u32, living: u32, whole: u32,
        first_living: u32, first_whole: u32,
    }
}

kernel_params! {
    /// The numbers that an edge's path is ranked by besides its probability.
    pub struct DecodeEdge in "decode.cuh" {
        /// The order among paths of equal scores: the smaller comes first.
        order: u64,
        /// The number that the log-probability is divided by to give the score.
        divisor: f64,
    }
}

/// The edges of some node: those to living paths, those to whole ones, and those that are excluded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodeSet {
    pub first_edge: usize,
    pub living: usize,
    pub whole: usize,
    pub left_out: usize,
}

/// A beam at a node with these edges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewBeam {
    pub log_probability: f64,
    pub set: DecodeSet,
}

/// The living beams of a [`BeamSearch`](crate::BeamSearch) as the kernels take them.
///
/// [`BeamSearch::decode_beams`](crate::BeamSearch::decode_beams) makes them, and
/// [`BeamSearch::apply_choices`](crate::BeamSearch::apply_choices) goes on with what the kernels have chosen.
#[derive(Debug, Clone)]
pub struct DecodeBeams {
    pub(crate) beams: Vec<DecodeBeam>,
    pub(crate) edges: Vec<DecodeEdge>,
    /// The column of the logits that each edge's token has.
    pub(crate) tokens: Vec<u32>,
    /// Where the candidates of each user begin, the living before the whole, and where the last end.
    pub(crate) segments: Vec<u32>,
    /// The node that each edge leads to.
    pub(crate) nodes: Vec<u32>,
    /// The token of each column, where not all have one.
    columns: Option<Vec<u32>>,
    pub(super) over_vocabulary: bool,
    pub(super) temperature: f64,
    width: usize,
}

impl DecodeBeams {
    /// Makes the beams of a search that keeps `width` for each user, without a beam yet.
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
        let first_living = self.candidates();
        let first_whole = first_living + all(|set| set.living);
        let end = first_whole + all(|set| set.whole);
        // The last number means that there is none.
        let limit = u32::MAX as usize - 1;
        if end.max(self.edges.len()) > limit {
            return Err(Error::TooLarge {
                what: "candidates of a step",
                size: end.max(self.edges.len()) as u64,
                limit: limit as u64,
            });
        }
        let [mut living, mut whole] = [first_living as u32, first_whole as u32];
        for NewBeam {
            log_probability,
            set,
        } in beams
        {
            let beam = DecodeBeam {
                log_probability: *log_probability,
                first_edge: set.first_edge as u32,
                edges: (set.living + set.whole + set.left_out) as u32,
                living: set.living as u32,
                whole: set.whole as u32,
                first_living: living,
                first_whole: whole,
            };
            living += beam.living;
            whole += beam.whole;
            self.beams.push(beam);
        }
        self.segments.extend([first_whole as u32, end as u32]);
        Ok(())
    }

    /// Returns the tokens that any beam needs, rising. From now on the logits are to have a column for these tokens only.
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

    /// Returns the living beams of all users.
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

    /// Returns how many paths the beams can become.
    #[must_use]
    pub fn candidates(&self) -> usize {
        self.segments.last().map_or(0, |&end| end as usize)
    }

    /// Returns how many choices are made in all: [`DecodeBeams::width`] living paths of each user, then as
    /// many whole ones.
    #[must_use]
    pub fn choices(&self) -> usize {
        self.segments.len().saturating_sub(1) * self.width()
    }

    /// Returns how many paths are kept of each kind: the width of the search, or what its users have at the most.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width.min(self.longest_segment() as usize)
    }

    /// Returns the row and the edge of a candidate among those of a user's rows.
    pub(crate) fn find(&self, candidate: u32, rows: Range<usize>) -> Option<(usize, usize)> {
        let beams = self.beams.get(rows.clone())?;
        let of_kind = |first: fn(&DecodeBeam) -> u32, count: fn(&DecodeBeam) -> u32| {
            // Beams without candidates of the kind begin where the next one does: the last that begins there has some.
            let after = beams.partition_point(|beam| first(beam) <= candidate);
            let beam = after.checked_sub(1)?;
            let place = candidate - first(&beams[beam]);
            (place < count(&beams[beam])).then_some((beam, place))
        };
        let living = of_kind(|beam| beam.first_living, |beam| beam.living);
        let whole = || of_kind(|beam| beam.first_whole, |beam| beam.whole);
        let (beam, edge) =
            living.or_else(|| whole().map(|(beam, place)| (beam, beams[beam].living + place)))?;
        Some((rows.start + beam, (beams[beam].first_edge + edge) as usize))
    }

    /// Returns the numbers of a beam's candidates that lead to living paths, in the order of its edges.
    pub(crate) fn of_beam(&self, beam: usize) -> Range<usize> {
        (self.beams.get(beam)).map_or(0..0, |beam| {
            let first = beam.first_living as usize;
            first..first + beam.living as usize
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
