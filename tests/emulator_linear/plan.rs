//! What a plan issues, looked at without running it.

use bytemuck::{Pod, Zeroable};
use candle_trie::launch::{
    DeviceLimits, Element, LinearGradients, LinearPlan, LinearRows, LinearTensors, TemperaturePlan,
};

use crate::emulated::{Issued, Recorder, Table};

/// Mirrors `LinearGroup` of kernels/linear.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Group {
    pub first_token: u32,
    pub tokens: u32,
    pub first_row: u32,
    pub rows: u32,
    pub scores: u64,
    pub records: u64,
    pub first_rank: u32,
    unused: [u32; 3],
}

/// Mirrors `LinearItem` of kernels/linear_phase.cuh.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Item {
    pub group: u32,
    pub first_row: u32,
    pub rows: u32,
    pub first: u32,
    pub count: u32,
    pub inner_first: u32,
    pub inner_count: u32,
    pub slice: u32,
    pub slices: u32,
    pub partials: u32,
    pub counter: u32,
    unused: u32,
}

/// The tables that a plan uploads.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    pub groups: Vec<Group>,
    /// Launch by launch, those of the scores before those of the gradient.
    pub items: Vec<Item>,
    /// How many counters.
    pub counters: usize,
}

impl Tables {
    pub fn new(tables: &[Table]) -> Self {
        let part = |wanted| {
            let mut found = tables.iter().filter(|(name, _)| *name == wanted);
            found.next().map_or(&[][..], |(_, table)| table)
        };
        Self {
            groups: bytemuck::pod_collect_to_vec(part("groups")),
            items: bytemuck::pod_collect_to_vec(part("items")),
            counters: part("counters").len(),
        }
    }
}

/// Returns how many items each phase of a forward launch has.
pub fn item_counts(launch: &Issued) -> (usize, usize) {
    assert!(launch.kernel.starts_with("linear_forward"));
    // `score_count` and `gradient_count` of `LinearForwardParams`.
    let count = |at: usize| bytemuck::pod_read_unaligned::<u32>(&launch.params[at..at + 4]);
    (count(384) as usize, count(388) as usize)
}

/// What a plan has issued.
pub struct Plan {
    pub tables: Tables,
    pub recorder: Recorder,
}

/// Inputs of this width, of which nothing is read.
pub fn tensors(width: usize) -> LinearTensors {
    LinearTensors {
        hidden: Recorder::matrix(width),
        head: Recorder::matrix(width),
        base: None,
        bias: None,
        sets: Recorder::SETS,
        previous: None,
    }
}

impl Plan {
    /// Issues everything that `gradients` ask for.
    pub fn new(
        rows: LinearRows,
        element: Element,
        width: usize,
        gradients: LinearGradients,
        limits: &DeviceLimits,
        temperature: TemperaturePlan,
    ) -> Self {
        let most = LinearPlan::MOST_SCORES;
        let plan = LinearPlan::new(rows, element, width, gradients, limits, most).unwrap();
        let tensors = tensors(width);
        let (mut recorder, upstream) = (Recorder::default(), Recorder::UPSTREAM);
        // SAFETY: nothing is run.
        unsafe {
            let results = &Recorder::RESULTS;
            let saved = plan.issue_forward(&mut recorder, &tensors, temperature, None, results);
            let saved = saved.unwrap();
            if gradients != LinearGradients::None && gradients != LinearGradients::Direct {
                let to = Recorder::ANYWHERE;
                (plan.issue_hidden_gradient(&mut recorder, &saved, &upstream, to)).unwrap();
            }
            if matches!(gradients, LinearGradients::All(_)) {
                let wanted = [Some(Recorder::ANYWHERE), None];
                (plan.issue_head_gradient(&mut recorder, &saved, &upstream, wanted)).unwrap();
            }
        }
        Self {
            tables: Tables::new(&recorder.tables),
            recorder,
        }
    }

    /// The items of the scores and of the gradient, of one forward launch.
    pub fn phases(&self) -> (&[Item], &[Item]) {
        let (scores, gradients) = item_counts(&self.recorder.launches[0]);
        assert_eq!(scores + gradients, self.tables.items.len());
        self.tables.items.split_at(scores)
    }
}
