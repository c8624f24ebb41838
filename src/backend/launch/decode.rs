//! Plans for `kernels/decode_scores.cu` and `kernels/decode_choices.cu`: a step of beam search.

mod beams;

pub use beams::DecodeBeams;
pub(crate) use beams::{DecodeEdge, DecodeSet, NewBeam};

use super::{
    DeviceLimits, DevicePtr, Element, Launch, WARP, dense::check_width, kernel_params,
    reduction_bytes,
};
use crate::Result;

kernel_params! {
    /// What `kernels/decode_scores.cu` is given.
    pub struct DecodeScoresParams in "decode_scores.cu" for KERNEL = "decode_scores"(256, 4) {
        logits: Option<DevicePtr>, row_stride: u64, beams: Option<DevicePtr>,
        edges: Option<DevicePtr>, tokens: Option<DevicePtr>, log_probabilities: Option<DevicePtr>,
        ranks: Option<DevicePtr>, faults: Option<DevicePtr>, width: u32, beam_count: u32,
        inverse_temperature: f32, over_vocabulary: u32,
    }
}

kernel_params! {
    /// What `kernels/decode_choices.cu` is given.
    pub struct DecodeChoicesParams in "decode_choices.cu" {
        log_probabilities: Option<DevicePtr>, ranks: Option<DevicePtr>, segments: Option<DevicePtr>,
        choices: Option<DevicePtr>, width: u64,
    }
}

kernel_params! {
    /// A candidate that a user's search may go on with.
    pub struct DecodeChoice in "decode_choices.cu" {
        /// Its number among all candidates, or [`DecodeChoice::NONE`].
        candidate: u32,
        /// Of its last token.
        log_probability: f32,
    }
}

impl DecodeChoice {
    /// Where there are fewer candidates than choices.
    pub const NONE: u32 = u32::MAX;
}

kernel_params! {
    /// A logit that is NaN or +∞.
    pub struct DecodeFault in "decode_scores.cu" {
        /// The smallest such token of a beam's row, or [`DecodeFault::NONE`].
        token: u32,
        /// Its logit.
        value: f32,
    }
}

impl DecodeFault {
    /// Where the beam's logits are sound.
    pub const NONE: u32 = u32::MAX;
}

/// One step of a beam search over logits: first every candidate's score, then each user's best.
#[derive(Debug, Clone, Copy)]
pub struct Decode<'a> {
    beams: &'a DecodeBeams,
    element: Element,
    width: u32,
    blocks: u32,
}

/// Where a step's inputs are in device memory: `None` for those without elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeInputs {
    /// The logits `[beams, V]`.
    pub logits: Option<DevicePtr>,
    /// How many elements lie between the beginnings of two rows.
    pub row_stride: u64,
    /// [`DecodeBeams::beams`].
    pub beams: Option<DevicePtr>,
    /// [`DecodeBeams::edges`].
    pub edges: Option<DevicePtr>,
    /// [`DecodeBeams::tokens`].
    pub tokens: Option<DevicePtr>,
    /// [`DecodeBeams::segments`].
    pub segments: Option<DevicePtr>,
}

/// What a step writes, in device memory: `None` for what has no elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeBuffers {
    /// One f32 for each of [`DecodeBeams::candidates`].
    pub log_probabilities: Option<DevicePtr>,
    /// [`DecodeBeams::RANK_BYTES`] for each of them.
    pub ranks: Option<DevicePtr>,
    /// [`DecodeBeams::choices`] of [`DecodeChoice`].
    pub choices: Option<DevicePtr>,
    /// One [`DecodeFault`] a beam.
    pub faults: Option<DevicePtr>,
}

impl<'a> Decode<'a> {
    /// Threads of a block of the scores where the longest row that is looked at has up to so many
    /// logits: many short rows under way make up for the waits of each.
    const SCORE_THREADS: [(u32, u32); 4] = [(32, 32), (256, 64), (2048, 128), (u32::MAX, 256)];
    /// The same for the choices, by the candidates of the longest segment.
    const CHOICE_THREADS: [(u32, u32); 4] =
        [(64, 32), (1024, 128), (16_384, 512), (u32::MAX, 1024)];
    /// Mirrors `Exponentials::Value` of `kernels/softmax.cuh`.
    const SCORE_SHARED_BYTES: u32 = reduction_bytes(8);
    /// Mirrors `Ranked` of `kernels/decode_choices.cu`.
    const CHOICE_SHARED_BYTES: u32 = reduction_bytes(24);

    /// A step over logits of `width` elements a row. `None` where no beam lives.
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
        let [threads, shared_bytes] = plan.score_shape();
        let resident = limits.resident_blocks(&DecodeScoresParams::KERNEL, threads, shared_bytes);
        // Blocks that wait for their turn cost little, and even out what rows differ in.
        let blocks = (beams.beams.len() as u32).min(resident.max(1).saturating_mul(4));
        Ok((blocks > 0).then_some(Self { blocks, ..plan }))
    }

    /// Threads and bytes of shared memory of a block that scores.
    #[must_use]
    pub fn score_shape(&self) -> [u32; 2] {
        [self.score_threads(), Self::SCORE_SHARED_BYTES]
    }

    /// Threads and bytes of shared memory of a block that chooses.
    #[must_use]
    pub fn choice_shape(&self) -> [u32; 2] {
        [self.choice_threads(), Self::CHOICE_SHARED_BYTES]
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

    /// The launch that scores every candidate.
    #[must_use]
    pub fn scores(
        &self,
        inputs: &DecodeInputs,
        buffers: &DecodeBuffers,
    ) -> Launch<DecodeScoresParams> {
        Launch {
            kernel: DecodeScoresParams::KERNEL.name(self.element),
            grid: [self.blocks, 1, 1],
            block: [self.score_threads(), 1, 1],
            shared_bytes: Self::SCORE_SHARED_BYTES,
            cooperative: false,
            params: DecodeScoresParams {
                logits: inputs.logits,
                row_stride: inputs.row_stride,
                beams: inputs.beams,
                edges: inputs.edges,
                tokens: inputs.tokens,
                log_probabilities: buffers.log_probabilities,
                ranks: buffers.ranks,
                faults: buffers.faults,
                width: self.width,
                beam_count: self.beams.beams.len() as u32,
                inverse_temperature: self.beams.temperature.recip() as f32,
                over_vocabulary: self.beams.over_vocabulary.into(),
            },
        }
    }

    /// The launch that then chooses each user's best.
    #[must_use]
    pub fn choices(
        &self,
        inputs: &DecodeInputs,
        buffers: &DecodeBuffers,
    ) -> Launch<DecodeChoicesParams> {
        Launch {
            kernel: "decode_choices",
            grid: [(self.beams.segments.len() as u32).saturating_sub(1), 1, 1],
            block: [self.choice_threads(), 1, 1],
            shared_bytes: Self::CHOICE_SHARED_BYTES,
            cooperative: false,
            params: DecodeChoicesParams {
                log_probabilities: buffers.log_probabilities,
                ranks: buffers.ranks,
                segments: inputs.segments,
                choices: buffers.choices,
                width: self.beams.width() as u64,
            },
        }
    }
}

fn threads(table: [(u32, u32); 4], longest: u32) -> u32 {
    let fits = table.iter().find(|(limit, _)| longest <= *limit);
    fits.map_or(WARP, |(_, threads)| *threads)
}
