//! Launches the kernels of `faulty_kernels/`, and finds the lines that are marked as their faults.

use std::path::Path;

use bytemuck::{Pod, Zeroable};
use candle_trie_emulator::{Buffer, Emulator, Fault, Launch, Memory, Report};

/// Mirrors `TestParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    input: u64,
    output: u64,
    counter: u64,
    count: u64,
}

/// A launch of one of these kernels. Its input is the numbers 0, 1, 2, …, one for each thread of a block, and its output has as
/// many for each block.
pub struct TestLaunch {
    pub emulator: Emulator,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub cooperative: bool,
    pub count: u64,
    pub memory: Memory,
    pub input: Buffer<f32>,
    pub output: Buffer<f32>,
    pub output_address: u64,
    pub counter: Buffer<u32>,
}

impl TestLaunch {
    pub fn new(blocks: u32, threads: u32) -> Self {
        let mut memory = Memory::new();
        let numbers: Vec<f32> = (0..threads).map(|number| number as f32).collect();
        let output = memory.allocate("output", (blocks * threads) as usize);
        Self {
            emulator: Emulator {
                step_limit: 1 << 20,
                ..Emulator::default()
            },
            blocks,
            threads,
            shared_bytes: threads * 4,
            cooperative: false,
            count: u64::from(threads),
            input: memory.upload("input", &numbers),
            output,
            output_address: output.address(),
            counter: memory.upload("counter", &[0; 2]),
            memory,
        }
    }

    pub fn cooperative(self) -> Self {
        Self {
            cooperative: true,
            ..self
        }
    }

    /// Sets the output to zeros before the launch.
    pub fn with_output(mut self) -> Self {
        self.output = self.memory.upload("output", &vec![0.0; self.output.len()]);
        Self {
            output_address: self.output.address(),
            ..self
        }
    }

    pub fn run(&mut self, kernel: &str) -> Result<Report, Fault> {
        let (input, counter) = (self.input.address(), self.counter.address());
        let params = Params {
            input,
            output: self.output_address,
            counter,
            count: self.count,
        };
        let launch = Launch {
            kernel,
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            shared_bytes: self.shared_bytes,
            cooperative: self.cooperative,
            params: bytemuck::bytes_of(&params),
        };
        self.emulator.run(&launch, &mut self.memory)
    }

    pub fn output(&mut self) -> Result<Vec<f32>, Fault> {
        self.memory.download(self.output)
    }
}

/// Runs `kernel` under several schedules, each on new memory, without a fault.
pub fn assert_sound(kernel: &str, make: impl Fn() -> TestLaunch) -> Option<TestLaunch> {
    let mut last = None;
    for seed in 0..8 {
        let mut launch = make();
        launch.emulator.seed = seed;
        if let Err(fault) = launch.run(kernel) {
            panic!("{kernel}, seed {seed}: {fault}");
        }
        last = Some(launch);
    }
    last
}

/// Runs `kernel` under several schedules, each of which must end in a fault. Returns the fault.
pub fn faults(kernel: &str, make: impl Fn() -> TestLaunch) -> Vec<Fault> {
    let fault = |seed| {
        let mut launch = make();
        launch.emulator.seed = seed;
        let fault = launch.run(kernel).expect_err(kernel);
        println!("{kernel}, seed {seed}: {fault}");
        fault
    };
    (0..8).map(fault).collect()
}

/// Returns the line of the kernel's source that is marked with `fault: <name>`.
pub fn marked(file: &str, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("faulty_kernels")
        .join(file);
    let source = std::fs::read_to_string(&path).unwrap();
    let mark = format!("// fault: {name}");
    let line = source
        .lines()
        .position(|line| line.ends_with(&mark))
        .expect("the mark");
    format!("emulator/faulty_kernels/{file}:{}", line + 1)
}

/// Asserts that a fault is of a kind.
macro_rules! assert_fault {
    ($fault:expr, $pattern:pat) => {{
        let fault = &$fault;
        assert!(matches!(fault, $pattern), "{fault}");
    }};
}
pub(crate) use assert_fault;
