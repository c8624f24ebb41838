//! The launch plan of a step of beam search: `kernels/decode_scores.cu` and `kernels/decode_choices.cu`.

mod beams;

pub use beams::DecodeBeams;
pub(crate) use beams::{DecodeEdge, DecodeSet, NewBeam};

use super::{
    DeviceLimits, DeviceMatrix, DevicePtr, Element, Launch, Lifetime, Stream, WARP,
    dense::check_width, kernel_params, reduction_bytes,
};
use bytemuck::cast_slice;

use crate::Result;

/// Mirrors `Rank` of `kernels/decode.cuh`.
const RANK_BYTES: usize = 16;

kernel_params! {
    /// The parameters of `kernels/decode_scores.cu`.
    pub struct DecodeScoresParams in "decode_scores.cu" for KERNEL = "decode_scores"(256, 4) {
        logits: Option<DevicePtr>, row_stride: u64, beams: Option<DevicePtr>,
        edges: Option<DevicePtr>, tokens: Option<DevicePtr>, log_probabilities: Option<DevicePtr>,
        ranks: Option<DevicePtr>, faults: Option<DevicePtr>, width: u32, beam_count: u32,
        inverse_temperature: f32, over_vocabulary: u32,
    }
}

kernel_params! {
    /// The parameters of `kernels/decode_choices.cu`.
    pub struct DecodeChoicesParams in "decode_choices.cu" {
        log_probabilities: Option<DevicePtr>, ranks: Option<DevicePtr>, segments: Option<DevicePtr>,
        choices: Option<DevicePtr>, listed: Option<DevicePtr>, width: u64,
    }
}

kernel_params! {
    /// One of the best candidates of a user.
    pub struct DecodeChoice in "decode_choices.cu" {
        /// Its index among the candidates of all beams, or [`DecodeChoice::NONE`].
        candidate: u32,
        /// The log-probability of its last token.
        log_probability: f32,
    }
}

impl DecodeChoice {
    /// The candidate of a choice that has none, because there are fewer candidates than choices.
    pub const NONE: u32 = u32::MAX;
}

kernel_params! {
    /// The first logit of a beam that is NaN or +∞.
    pub struct DecodeFault in "decode_scores.cu" {
        /// The smallest token with such a logit, or [`DecodeFault::NONE`].
        token: u32,
        /// Its logit; 0 for [`DecodeFault::NONE`].
        value: f32,
    }
}

impl DecodeFault {
    /// The token of a beam without such a logit.
    pub const NONE: u32 = u32::MAX;
}

/// A plan for one step of a beam search over logits: one launch scores every candidate, and a second chooses the best of each
/// user. It is issued to a [`Stream`].
#[derive(Debug, Clone, Copy)]
pub struct DecodePlan<'a> {
    beams: &'a DecodeBeams,
    element: Element,
    width: u32,
    blocks: u32,
}

/// Where a step writes its results in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeResults {
    /// The choices: [`DecodeBeams::choices`] of [`DecodeChoice`].
    pub choices: DevicePtr,
    /// The faults: one [`DecodeFault`] for each beam.
    pub faults: DevicePtr,
}

/// Where the scores of a step are written in device memory, if nothing is chosen from them there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeScores {
    /// [`DecodeBeams::candidates`] of f32: the log-probability of each candidate's last token, numbered as the beams number them.
    pub log_probabilities: DevicePtr,
    /// One [`DecodeFault`] for each beam.
    pub faults: DevicePtr,
}

impl<'a> DecodePlan<'a> {
    /// The threads of a block of the scores, by the largest number of logits that a beam reads. Many small blocks hide each
    /// other's latencies.
    const SCORE_THREADS: [(u32, u32); 4] = [(32, 32), (256, 64), (2048, 128), (u32::MAX, 256)];
    /// The threads of a block of the choices, by the number of candidates of the longest segment.
    const CHOICE_THREADS: [(u32, u32); 4] =
        [(64, 32), (1024, 128), (16_384, 512), (u32::MAX, 1024)];
    /// The scratch of reductions of `Exponentials::Value` (`kernels/softmax.cuh`).
    const SCORE_SHARED_BYTES: u32 = reduction_bytes(8);
    /// Mirrors `sizeof(ChoicesShared)` of `kernels/decode_choices.cu`.
    const CHOICE_SHARED_BYTES: u32 = 1552;

    /// Plans a step over logits of `width` elements a row. Returns `None` if there is no beam.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) for a vocabulary beyond 32 bits.
    pub fn new(
        beams: &'a DecodeBeams,
        element: Element,
        width: usize,
        limits: &DeviceLimits,
    ) -> Result<Option<Self>> {
        let width = check_width(width)?;
        let plan = Self {
            beams,
            element,
            width,
            blocks: 0,
        };
        let (kernel, threads) = (DecodeScoresParams::KERNEL, plan.score_threads());
        let resident = limits.resident_blocks(&kernel, threads, Self::SCORE_SHARED_BYTES);
        // More blocks than are resident cost little, and balance the load of rows of different sizes.
        let blocks = (beams.beams.len() as u32).min(resident.max(1).saturating_mul(4));
        Ok((blocks > 0).then_some(Self { blocks, ..plan }))
    }

    fn choice_threads(&self) -> u32 {
        threads(Self::CHOICE_THREADS, self.beams.longest_segment())
    }

    fn score_threads(&self) -> u32 {
        let longest = match self.beams.over_vocabulary {
            true => self.width,
            false => self.beams.longest_set(),
        };
        threads(Self::SCORE_THREADS, longest)
    }

    /// Issues the step over `logits` `[beams, V]`.
    ///
    /// # Safety
    /// The tokens of the beams must be below the width. The addresses must be of buffers of the documented sizes on the device of
    /// `stream`. Nothing else may read, write or free them until the launches are done.
    ///
    /// # Errors
    /// Those of `stream`.
    pub unsafe fn issue<S: Stream>(
        &self,
        stream: &mut S,
        logits: DeviceMatrix,
        results: &DecodeResults,
    ) -> Result<(), S::Error> {
        let [beams, edges, tokens, segments] = self.upload(stream)?;
        let tables = [beams, edges, tokens];
        let [log_probabilities, ranks, listed] = stream.allocate(
            Lifetime::Scratch,
            [
                (
                    "log-probabilities",
                    self.beams.candidates() * size_of::<f32>(),
                ),
                self.ranks(),
                (
                    "list of the choices",
                    self.beams.choices() * size_of::<u32>(),
                ),
            ],
        )?;
        let scores = self.scores(logits, tables, [log_probabilities, ranks], results.faults);
        let choices = Launch {
            kernel: "decode_choices",
            grid: [(self.beams.segments.len() as u32).saturating_sub(1), 1, 1],
            block: [self.choice_threads(), 1, 1],
            shared_bytes: Self::CHOICE_SHARED_BYTES,
            cooperative: false,
            params: DecodeChoicesParams {
                log_probabilities,
                ranks,
                segments,
                choices: Some(results.choices),
                listed,
                width: self.beams.width() as u64,
            },
        };
        // SAFETY: the parameters are those of the kernels, and the plan's own buffers have the sizes that it needs. The caller
        // promises the same of its buffers.
        unsafe {
            stream.launch(&scores)?;
            stream.launch(&choices)
        }
    }

    /// Issues the scores of the step alone: what each candidate of `logits` `[beams, V]` is worth.
    ///
    /// # Safety
    /// That of [`issue`](Self::issue).
    ///
    /// # Errors
    /// What `stream` says.
    pub unsafe fn issue_scores<S: Stream>(
        &self,
        stream: &mut S,
        logits: DeviceMatrix,
        results: &DecodeScores,
    ) -> Result<(), S::Error> {
        let [beams, edges, tokens, _] = self.upload(stream)?;
        let tables = [beams, edges, tokens];
        let [ranks] = stream.allocate(Lifetime::Scratch, [self.ranks()])?;
        let scored = [Some(results.log_probabilities), ranks];
        let scores = self.scores(logits, tables, scored, results.faults);
        // SAFETY: as in `issue`.
        unsafe { stream.launch(&scores) }
    }

    /// Uploads the beams, their edges, the tokens of these and the segments.
    fn upload<S: Stream>(&self, stream: &mut S) -> Result<[Option<DevicePtr>; 4], S::Error> {
        // Tables with 64-bit fields come first, because each table begins where the previous one ends.
        stream.upload([
            ("beams", cast_slice(&self.beams.beams)),
            ("edges", cast_slice(&self.beams.edges)),
            ("tokens", &self.beams.tokens),
            ("segments", &self.beams.segments),
        ])
    }

    fn ranks(&self) -> (&'static str, usize) {
        ("ranks", self.beams.candidates() * RANK_BYTES)
    }

    /// Returns the launch that writes the log-probabilities and ranks of the candidates.
    fn scores(
        &self,
        logits: DeviceMatrix,
        [beams, edges, tokens]: [Option<DevicePtr>; 3],
        [log_probabilities, ranks]: [Option<DevicePtr>; 2],
        faults: DevicePtr,
    ) -> Launch<DecodeScoresParams> {
        Launch {
            kernel: DecodeScoresParams::KERNEL.name(self.element),
            grid: [self.blocks, 1, 1],
            block: [self.score_threads(), 1, 1],
            shared_bytes: Self::SCORE_SHARED_BYTES,
            cooperative: false,
            params: DecodeScoresParams {
                logits: logits.address,
                row_stride: logits.row_stride,
                beams,
                edges,
                tokens,
                log_probabilities,
                ranks,
                faults: Some(faults),
                width: self.width,
                beam_count: self.beams.beams.len() as u32,
                inverse_temperature: self.beams.temperature.recip() as f32,
                over_vocabulary: self.beams.over_vocabulary.into(),
            },
        }
    }
}

/// Returns the threads of a block for this length from a table of (largest length, threads).
fn threads(table: [(u32, u32); 4], longest: u32) -> u32 {
    let fits = table.iter().find(|(limit, _)| longest <= *limit);
    fits.map_or(WARP, |(_, threads)| *threads)
}
