//! What a plan issues, looked at without running it.

use bytemuck::{Pod, Zeroable};
use candle_trie::launch::{
    DeviceLimits, Element, LinearGradients, LinearPlan, LinearRows, LinearTensors, TemperaturePlan,
};
use candle_trie::{Bear, Convention, Error, MaskedSoftmaxLoss, Reduction, Row, Rows, TokenSets};

use crate::device::Case;
use crate::emulated::{Issued, LIMITS, Recorder, Table};
use crate::shapes::{batch, temperatures};

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

#[test]
fn partial_sums_that_32_bits_cannot_number_are_refused_before_anything_is_allocated() {
    // 49 slices of the sums over 100,000 tokens, for each of 98,304 rows and 4,096 columns.
    let (tokens, positions) = (100_000, 98_304);
    let sets = TokenSets::from_raw(vec![0, tokens], (0..tokens).collect()).unwrap();
    let row = |position| Row {
        position,
        set: 0,
        target: 7,
    };
    let rows = Rows::from_raw(positions as usize, (0..positions).map(row).collect()).unwrap();
    let loss = MaskedSoftmaxLoss::new(sets, 1.0).unwrap();
    let plan = |gradients| {
        let (rows, most) = (loss.linear_rows(&rows).unwrap(), LinearPlan::MOST_SCORES);
        LinearPlan::new(rows, Element::Bf16, 4096, gradients, &LIMITS, most)
    };
    let refused = plan(LinearGradients::Hidden);
    assert!(
        matches!(
            refused,
            Err(Error::TooLarge {
                size: 4_294_967_296..,
                ..
            })
        ),
        "{:?}",
        refused.err()
    );
    assert!(plan(LinearGradients::None).is_ok());
}

/// They are read by the statistics alone, which the plain loss does not ask for.
#[test]
fn records_take_memory_only_where_rows_enter_the_statistics() {
    let batch = batch(8, 20, &[(2, 3), (5, 4)]);
    for (options, expected) in temperatures().into_iter().zip([false, true]) {
        let case = Case::new(&batch, &options);
        let temperature = TemperaturePlan::at(1.0);
        let plan = Plan::new(
            case.rows(),
            Element::F32,
            8,
            LinearGradients::Hidden,
            &LIMITS,
            temperature,
        );
        let mut records = (plan.recorder.allocated.iter()).filter(|(name, _)| *name == "records");
        assert_eq!(records.next().unwrap().1 > 0, expected);
    }
}

#[test]
fn a_block_has_few_ignored_positions_to_write() {
    let positions = 100_000;
    let sets = TokenSets::from_raw(vec![0, 30], (0..30).collect()).unwrap();
    let row = Row {
        position: 7,
        set: 0,
        target: 7,
    };
    let rows = Rows::from_raw(positions, vec![row]).unwrap();
    let blocks = |reduction| {
        let convention = Convention {
            reduction,
            times_temperature: false,
        };
        let loss = MaskedSoftmaxLoss::new(sets.clone(), 1.0).unwrap();
        let loss = loss.with_convention(convention).unwrap();
        let rows = loss.linear_rows(&rows).unwrap();
        let (gradients, temperature) = (LinearGradients::None, TemperaturePlan::at(1.0));
        let plan = Plan::new(rows, Element::Bf16, 64, gradients, &LIMITS, temperature);
        plan.recorder.launches[0].blocks
    };
    let resident = blocks(Reduction::None);
    assert!(resident > 1, "{resident}");
    // Nothing is written for them.
    assert_eq!(blocks(Reduction::Sum), 1);
}

#[test]
fn the_launches_of_a_forward_pass_are_as_many_as_the_plan_says() {
    let sets = TokenSets::whole_vocabulary(300).unwrap();
    let row = |position| Row {
        position,
        set: 0,
        target: position,
    };
    let rows = Rows::from_raw(9, (0..9).map(row).collect()).unwrap();
    let fixed = MaskedSoftmaxLoss::new(sets, 1.0).unwrap();
    let weighted = fixed.clone().with_bear(Bear::default()).unwrap();
    for (loss, most_scores, expected) in [
        (&fixed, usize::MAX, 1),
        (&fixed, 900, 3),
        (&weighted, usize::MAX, 1),
        (&weighted, 900, 6),
    ] {
        let rows = loss.linear_rows(&rows).unwrap();
        let none = LinearGradients::None;
        let plan = LinearPlan::new(rows, Element::F32, 8, none, &LIMITS, most_scores).unwrap();
        let (mut recorder, results) = (Recorder::default(), &Recorder::RESULTS);
        let temperature = TemperaturePlan::at(1.0);
        // SAFETY: nothing is run.
        unsafe { plan.issue_forward(&mut recorder, &tensors(8), temperature, None, results) }
            .unwrap();
        assert_eq!(recorder.launches.len(), expected);
        assert_eq!(plan.forward_launches_count(false), expected);
    }
}
