//! What is issued over a batch, one thing after the other. Rows over the whole vocabulary (the plain
//! language-model loss) come chunk by chunk, each with its scores over all tokens, and never more than
//! one chunk of scores in memory; all other rows are one chunk.

use super::{
    LinearForward, LinearForwardBuffers, LinearForwardParams, LinearHeadBuffers,
    LinearHeadGradient, LinearInputs, LinearRow, LinearRows, Product, check_width, gradient_stride,
};
use crate::Result;
use crate::backend::launch::{DeviceLimits, Element, Launch, TemperaturePlan};

/// The passes over a batch, chunk by chunk.
#[derive(Debug, Clone)]
pub(super) struct LinearChunks {
    chunks: Vec<LinearRows>,
    element: Element,
    width: u32,
    temperature: TemperaturePlan,
    with_gradient: bool,
    limits: DeviceLimits,
}

/// What is issued next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LinearStep {
    /// A matrix product.
    Product(Product),
    /// A launch of `kernels/linear_statistics.cu` or `kernels/linear_forward.cu`.
    Launch(Box<Launch<LinearForwardParams>>),
}

/// A chunk with its part of what the batch has.
struct Part<'a> {
    plan: LinearForward<'a>,
    inputs: LinearInputs,
    buffers: LinearForwardBuffers,
}

impl LinearChunks {
    /// Passes over hidden states of `width` elements; for rows over the whole vocabulary, the rows of the
    /// head lie behind one another.
    ///
    /// # Errors
    /// As [`LinearForward::new`].
    pub fn new(
        rows: &LinearRows,
        element: Element,
        width: usize,
        temperature: TemperaturePlan,
        with_gradient: bool,
        limits: &DeviceLimits,
    ) -> Result<Self> {
        Ok(Self {
            chunks: rows.chunks(),
            element,
            width: check_width(width)?,
            temperature,
            with_gradient,
            limits: *limits,
        })
    }

    /// How many scores there is room for.
    pub fn scores(&self) -> usize {
        self.plan(&self.chunks[0]).scores()
    }

    /// How many errors are rounded for the products of a chunk.
    pub fn errors(&self) -> usize {
        self.plan(&self.chunks[0]).errors()
    }

    /// The f32 of the unscaled gradient, of rows and of parts of rows.
    pub fn gradient(&self) -> usize {
        (self.chunks.iter())
            .map(|chunk| self.plan(chunk).gradient())
            .sum()
    }

    /// How many f64 of scratch the launches need.
    pub fn partials(&self) -> usize {
        let blocks = self.blocks();
        self.plan(&self.chunks[0]).among(0, blocks).partials()
    }

    /// How many counters the launches need.
    pub fn arrived(&self) -> usize {
        self.plan(&self.chunks[0]).arrived()
    }

    /// Statistics, temperature, loss and what the gradient of the hidden states is made of: after the
    /// gathering of the hidden states. Where the temperature waits for statistics, and where there is
    /// more than one chunk, scores are made twice.
    pub fn forward_steps(
        &self,
        inputs: &LinearInputs,
        buffers: &LinearForwardBuffers,
    ) -> Vec<LinearStep> {
        let mut steps = Vec::new();
        let parts = self.parts(inputs, buffers);
        if self.temperature.adapts() {
            for part in &parts {
                steps.extend(part.scores());
                let launch = part.plan.statistics_launch(&part.inputs, &part.buffers);
                steps.extend(launch.map(LinearStep::of));
            }
        }
        let scored = self.temperature.adapts() && parts.len() == 1;
        for part in &parts {
            if !scored {
                steps.extend(part.scores());
            }
            let launch = part.plan.launch(&part.inputs, &part.buffers);
            steps.push(LinearStep::of(launch));
            let products = part.plan.gradient_products(&part.buffers);
            steps.extend(products.map(LinearStep::Product));
        }
        steps
    }

    /// Over the whole vocabulary, between the launches of [`LinearHeadGradient`]: what each token has of
    /// all rows. The errors are made once more, for which of `buffers` the gathered hidden states, scores,
    /// partial sums, temperature and counter are needed.
    pub fn head_steps(
        &self,
        inputs: &LinearInputs,
        buffers: &LinearForwardBuffers,
        head: &LinearHeadBuffers,
    ) -> Vec<LinearStep> {
        let mut steps = Vec::new();
        let stride = LinearHeadGradient::stride_of(self.width);
        let mut scaled = head.scaled;
        for (index, part) in self.parts(inputs, buffers).iter().enumerate() {
            steps.extend(part.scores());
            let launch = part.plan.errors_launch(&part.inputs, &part.buffers);
            steps.push(LinearStep::of(launch));
            let products = part
                .plan
                .score_products(&part.buffers)
                .map(|scores| Product {
                    element: Element::F32,
                    rows: scores.columns,
                    columns: stride as u32,
                    inner: scores.rows,
                    left: scores.result,
                    left_stride: scores.result_stride,
                    left_transposed: true,
                    right: scaled,
                    right_stride: stride,
                    right_transposed: false,
                    result: head.products,
                    result_stride: stride,
                    accumulates: index > 0,
                });
            steps.extend(products.map(LinearStep::Product));
            scaled += 4 * self.chunks[index].rows.len() as u64 * stride;
        }
        steps
    }

    fn plan<'a>(&self, chunk: &'a LinearRows) -> LinearForward<'a> {
        LinearForward::of_width(
            chunk,
            self.element,
            self.width,
            self.temperature,
            self.with_gradient,
            &self.limits,
        )
    }

    fn blocks(&self) -> u32 {
        (self.chunks.iter())
            .map(|chunk| self.plan(chunk).blocks())
            .sum()
    }

    fn parts(&self, inputs: &LinearInputs, buffers: &LinearForwardBuffers) -> Vec<Part<'_>> {
        let all_blocks = self.blocks();
        let (mut first_row, mut first_block) = (0, 0);
        let mut parts = Vec::with_capacity(self.chunks.len());
        for chunk in &self.chunks {
            let plan = self.plan(chunk).among(first_block, all_blocks);
            let hidden = first_row * u64::from(self.width) * u64::from(self.element.bytes());
            let gradient = 4 * first_row * gradient_stride(self.width);
            parts.push(Part {
                plan,
                inputs: LinearInputs {
                    rows: inputs.rows + first_row * size_of::<LinearRow>() as u64,
                    ..*inputs
                },
                buffers: LinearForwardBuffers {
                    group_hidden: buffers.group_hidden + hidden,
                    gradient: buffers.gradient + gradient,
                    frozen: match chunk.is_whole() {
                        true => vec![inputs.head],
                        false => buffers.frozen.clone(),
                    },
                    ..buffers.clone()
                },
            });
            first_block += plan.blocks();
            first_row += chunk.rows.len() as u64;
        }
        parts
    }
}

impl LinearStep {
    fn of(launch: Launch<LinearForwardParams>) -> Self {
        Self::Launch(Box::new(launch))
    }
}

impl Part<'_> {
    fn scores(&self) -> impl Iterator<Item = LinearStep> + '_ {
        let products = self.plan.score_products(&self.buffers);
        products.map(LinearStep::Product)
    }
}
