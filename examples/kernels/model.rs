//! A model of the time of the pieces of work of a plan on a card.

use candle_trie::launch::{Element, LinearGradients, LinearWork};

use crate::recorder::{issue_linear, linear_plan};
use crate::resources::{CARDS, Card};
use crate::support::{Model, Shape};

/// What is known or assumed of a card.
pub struct Speeds {
    pub name: &'static str,
    /// Of the multiprocessors, in GHz.
    pub clock: f64,
    /// Of memory, in TB/s: as sold, and its sustained share.
    pub memory: f64,
    /// Of the L2 cache, in bytes a cycle.
    pub l2_bytes: f64,
    /// Cycles until what a load asks for is there, from the L2 cache and from memory.
    pub l2_cycles: f64,
    pub memory_cycles: f64,
    /// Operations a cycle of a multiprocessor's tensor cores by `mma.sync`.
    pub tensor: f64,
}

pub const SPEEDS: [Speeds; 3] = [
    Speeds {
        name: "H100",
        clock: 1.83,
        memory: 3.35,
        l2_bytes: 3840.0,
        l2_cycles: 291.0,
        memory_cycles: 700.0,
        tensor: 2048.0,
    },
    Speeds {
        name: "A100",
        clock: 1.41,
        memory: 2.0,
        l2_bytes: 3840.0,
        l2_cycles: 210.0,
        memory_cycles: 550.0,
        tensor: 2048.0,
    },
    Speeds {
        name: "RTX 4090",
        clock: 2.52,
        memory: 1.0,
        l2_bytes: 1946.0,
        l2_cycles: 296.0,
        memory_cycles: 636.0,
        tensor: 512.0,
    },
];

/// Of a memory's bandwidth, what a copy reaches.
pub const SUSTAINED: f64 = 0.9;
/// Bytes a cycle between a multiprocessor and the L2 cache, and of its shared memory.
pub const PORT: f64 = 64.0;
pub const SHARED: f64 = 128.0;
/// An empty cooperative launch with a barrier of the grid, and an ordinary launch, in µs.
pub const COOPERATIVE_LAUNCH: f64 = 4.5;
pub const LAUNCH: f64 = 2.5;
/// Warp instructions: of a copy of 16 bytes a lane; of an A fragment of a product, and of each of its `mma.sync`; of an exponential a lane.
pub const COPY: f64 = 35.0;
pub const FRAGMENT: f64 = 10.0;
pub const PRODUCT: f64 = 6.0;
pub const EXPONENTIAL: f64 = 17.0;
/// Cycles in which a block adds up its statistics in f64.
pub const REDUCTION: f64 = 600.0;
/// Tokens that share a record of a row's scores.
const RECORD_TOKENS: usize = 64;

/// What a block does at a time.
enum Step {
    /// Waits so many µs.
    Wait(f64),
    /// Moves so many bytes, in no less than so many µs.
    Move(f64, f64),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Scores,
    Gradient,
}

/// A phase of the forward pass on a card.
pub struct Phase {
    pub items: usize,
    /// The most items that a block has taken.
    pub chain: usize,
    pub memory_bytes: f64,
    pub l2_bytes: f64,
    pub operations: f64,
    /// The bytes at full bandwidth, the instructions at one a cycle of each scheduler, and the phase by the model.
    pub bandwidth: f64,
    pub instructions: f64,
    pub time: f64,
}

/// A shape on a card.
pub struct Modelled {
    pub blocks: u32,
    pub cold: [Phase; 2],
    pub warm: [Phase; 2],
    pub statistics: f64,
    pub backward_bytes: f64,
    pub backward: f64,
}

impl Modelled {
    pub fn new(model: &Model, shape: &Shape, speeds: &Speeds) -> Self {
        let card = CARDS.iter().find(|card| card.name == speeds.name);
        let card = card.expect("a card of that name");
        let (element, hidden) = (Element::Bf16, LinearGradients::Hidden);
        let [scores, gradient] =
            linear_plan(shape, model.hidden, element, hidden, &card.limits).work(0);
        let issued = issue_linear(shape, model.hidden, element, hidden, &card.limits);
        let blocks = issued.expect("a plan").launches[0].blocks;
        let rows = shape.branching_rows();
        let vectors = (2 * (shape.distinct_tokens().len() + rows) * model.hidden) as f64;
        let phases = |vectors: f64| {
            [
                Phase::new(&scores, Kind::Scores, blocks, vectors, card, speeds),
                Phase::new(&gradient, Kind::Gradient, blocks, 0.0, card, speeds),
            ]
        };
        let backward_bytes = ((4 * rows + 2 * shape.rows.positions()) * model.hidden) as f64;
        Self {
            blocks,
            cold: phases(vectors),
            warm: phases(0.0),
            statistics: statistics(shape, rows, speeds),
            backward_bytes,
            // A row and its unscaled gradient, one after the other.
            backward: backward_bytes / speeds.l2_speed() + 2.0 * speeds.l2_wait(),
        }
    }

    /// At a given temperature.
    pub fn forward(&self, phases: &[Phase; 2]) -> f64 {
        COOPERATIVE_LAUNCH + phases.iter().map(|phase| phase.time).sum::<f64>()
    }

    pub fn backward_launch(&self) -> f64 {
        LAUNCH + self.backward
    }
}

/// What the last block to come does before the barrier where the temperature takes a step: it loads rows, groups and records, four of
/// these at a time, and adds up.
fn statistics(shape: &Shape, rows: usize, speeds: &Speeds) -> f64 {
    let largest = (shape.rows.as_slice().iter())
        .map(|row| shape.set_size(row.set))
        .max();
    let records = largest.unwrap_or(0).div_ceil(RECORD_TOKENS).div_ceil(4);
    let loads = rows.div_ceil(256) * (2 + records);
    // Two more to count the block.
    (loads + 2) as f64 * speeds.l2_wait() + REDUCTION / (speeds.clock * 1e3)
}

impl Phase {
    /// `memory_bytes` come from memory, everything else that is loaded from the L2 cache.
    fn new(
        work: &[LinearWork],
        kind: Kind,
        blocks: u32,
        memory_bytes: f64,
        card: &Card,
        speeds: &Speeds,
    ) -> Self {
        let together = f64::from(blocks.div_ceil(card.limits.multiprocessors));
        let (mut operations, mut instructions) = (0.0, 0.0);
        let mut of_items = Vec::with_capacity(work.len());
        for item in work {
            let cost = Cost::new(item, kind);
            operations += cost.operations;
            instructions += cost.instructions;
            of_items.push(cost.steps(item, kind, memory_bytes > 0.0, together, speeds));
        }
        let moved = |step: &Step| match step {
            Step::Move(bytes, _) => *bytes,
            Step::Wait(_) => 0.0,
        };
        let l2_bytes: f64 = of_items.iter().flatten().map(moved).sum();
        let memory_speed = SUSTAINED * speeds.memory * 1e6;
        let bandwidth = (memory_bytes / memory_speed).max(l2_bytes / speeds.l2_speed());
        let schedulers = 4.0 * f64::from(card.limits.multiprocessors);
        let port = PORT * speeds.clock * 1e3 / together;
        let (time, chain) = time(&of_items, blocks as usize, l2_bytes / bandwidth, port);
        Self {
            items: work.len(),
            chain,
            memory_bytes,
            l2_bytes,
            operations,
            bandwidth,
            instructions: instructions / (schedulers * speeds.clock * 1e3),
            time,
        }
    }
}

/// What a piece of work loads and computes, in whole fragments of 16 × 8 × 16.
struct Cost {
    loaded: f64,
    /// The sums that it leaves, or would if it were a slice.
    sums: f64,
    /// And what it stores and loads when they are complete.
    finished: f64,
    operations: f64,
    instructions: f64,
    shared_bytes: f64,
}

impl Cost {
    fn new(item: &LinearWork, kind: Kind) -> Self {
        let [rows, columns, terms] = [item.rows, item.columns, item.terms].map(f64::from);
        let fragments = (columns / 16.0).ceil() * (terms / 16.0).ceil();
        let products = fragments * (rows / 8.0).ceil();
        let loaded = match kind {
            Kind::Scores => 2.0 * terms * (columns + rows),
            Kind::Gradient => terms * (2.0 * columns + 4.0 * rows),
        };
        let (exponentials, target) = match kind {
            Kind::Scores => (0.0, 0.0),
            Kind::Gradient => (rows * terms / 32.0, 2.0 * rows * columns),
        };
        Self {
            loaded,
            sums: 4.0 * rows * (16.0 * (columns / 16.0).ceil() + 4.0),
            finished: 4.0 * rows * columns + target,
            operations: 4096.0 * products,
            instructions: COPY * loaded / 512.0
                + FRAGMENT * fragments
                + PRODUCT * products
                + EXPONENTIAL * exponentials,
            shared_bytes: loaded + 512.0 * fragments + 256.0 * products,
        }
    }

    /// What a block does with it, where so many blocks share a multiprocessor.
    fn steps(
        &self,
        item: &LinearWork,
        kind: Kind,
        from_memory: bool,
        together: f64,
        speeds: &Speeds,
    ) -> Vec<Step> {
        let l2 = speeds.l2_wait();
        let first = match (kind, from_memory) {
            (Kind::Scores, true) => speeds.memory_cycles / (speeds.clock * 1e3),
            (Kind::Scores, false) => l2,
            (Kind::Gradient, _) => 2.0 * l2,
        };
        let cycles = (self.shared_bytes / SHARED)
            .max(self.operations / speeds.tensor)
            .max(self.instructions / 4.0);
        let least = cycles * together / (speeds.clock * 1e3);
        let mut steps = vec![Step::Wait(3.0 * l2 + first), Step::Move(self.loaded, least)];
        if item.slices > 1 {
            steps.extend([Step::Move(self.sums, 0.0), Step::Wait(2.0 * l2)]);
        }
        if item.slice + 1 == item.slices {
            if item.slices > 1 {
                steps.push(Step::Wait(l2));
                steps.push(Step::Move(self.sums * f64::from(item.slices), 0.0));
            }
            let waits = if kind == Kind::Scores { 1.0 } else { 3.0 };
            steps.extend([Step::Wait(waits * l2), Step::Move(self.finished, 0.0)]);
        }
        steps
    }
}

impl Speeds {
    /// A wait for the L2 cache, in µs.
    fn l2_wait(&self) -> f64 {
        self.l2_cycles / (self.clock * 1e3)
    }

    /// Bytes a µs of the L2 cache.
    fn l2_speed(&self) -> f64 {
        self.l2_bytes * self.clock * 1e3
    }
}

/// When the last of so many blocks is done, in µs, and the most items that one has taken: each takes the next that no block has. Transfers
/// that are under way share `bandwidth` (bytes a µs) equally, and none is faster than `port`.
fn time(of_items: &[Vec<Step>], blocks: usize, bandwidth: f64, port: f64) -> (f64, usize) {
    /// What is left of a block's step, the steps after it, and how many items the block has taken.
    struct Block<'a> {
        wait: f64,
        bytes: f64,
        least: f64,
        rest: std::slice::Iter<'a, Step>,
        taken: usize,
    }
    impl<'a> Block<'a> {
        /// Goes to the next step, or to the next item; whether there is one.
        fn next(&mut self, items: &mut std::slice::Iter<'a, Vec<Step>>) -> bool {
            loop {
                (self.wait, self.bytes, self.least) = match self.rest.next() {
                    Some(&Step::Wait(wait)) => (wait, 0.0, 0.0),
                    Some(&Step::Move(bytes, least)) => (0.0, bytes, least),
                    None => {
                        let Some(item) = items.next() else {
                            return false;
                        };
                        self.rest = item.iter();
                        self.taken += 1;
                        continue;
                    }
                };
                return true;
            }
        }

        fn left(&self, speed: f64) -> f64 {
            self.wait.max(self.least).max(self.bytes / speed)
        }
    }
    let mut items = of_items.iter();
    let idle = |_| Block {
        wait: 0.0,
        bytes: 0.0,
        least: 0.0,
        rest: [].iter(),
        taken: 0,
    };
    let mut running: Vec<Block> = (0..blocks).map(idle).collect();
    running.retain_mut(|block| block.next(&mut items));
    let (mut now, mut most) = (0.0, 1);
    while !running.is_empty() {
        let moving = (running.iter()).filter(|block| block.bytes > 0.0).count();
        let speed = port.min(bandwidth / moving.max(1) as f64);
        let left = running.iter().map(|block| block.left(speed));
        let passed = left.fold(f64::INFINITY, f64::min);
        now += passed;
        running.retain_mut(|block| {
            let left = block.left(speed);
            if left <= passed {
                let goes_on = block.next(&mut items);
                most = most.max(block.taken);
                return goes_on;
            }
            // What binds a transfer may change, so all of it goes on by the same share.
            let share = 1.0 - passed / left;
            block.wait *= share;
            block.bytes *= share;
            block.least *= share;
            true
        });
    }
    (now, most)
}
