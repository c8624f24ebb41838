//! Registers, shared memory, occupancy and code size of every kernel on every target.

use candle_trie::launch::{DecodePlan, DecodeResults, DeviceLimits, Element, LinearGradients};
use candle_trie::{AdaptiveStrategy, BeamSearch, Result, Scope, Temperature, TokenTrie};

use crate::emulated::Recorder;
use crate::ptxas::{Usage, usages};
use crate::recorder::{issue_dense, issue_linear};
use crate::support::{SMOLLM2, Shape};

/// A card of each architecture that the kernels are compiled for.
pub struct Card {
    target: &'static str,
    pub name: &'static str,
    threads: u32,
    blocks: u32,
    pub limits: DeviceLimits,
}

const fn card(
    target: &'static str,
    name: &'static str,
    multiprocessors: u32,
    [threads, blocks, shared_kib]: [u32; 3],
) -> Card {
    Card {
        target,
        name,
        threads,
        blocks,
        limits: DeviceLimits {
            multiprocessors,
            shared_bytes_per_block: (shared_kib - 1) << 10,
            shared_bytes_per_multiprocessor: shared_kib << 10,
        },
    }
}

pub const CARDS: [Card; 6] = [
    card("sm_80", "A100", 108, [2048, 32, 164]),
    card("sm_86", "RTX 3090", 82, [1536, 16, 100]),
    card("sm_89", "RTX 4090", 128, [1536, 24, 100]),
    card("sm_90", "H100", 132, [2048, 32, 228]),
    card("sm_100", "B200", 148, [2048, 32, 228]),
    card("sm_120", "RTX 5090", 170, [1536, 24, 100]),
];

pub fn print() {
    let usages = usages(include_str!(env!("CANDLE_TRIE_PTXAS")));
    let mut kernels: Vec<&str> = usages.iter().map(|usage| usage.kernel.as_str()).collect();
    kernels.sort_unstable();
    kernels.dedup();

    println!("## Registers, shared memory and code\n");
    println!(
        "For each kernel and GPU: registers of a thread; threads and shared memory of a block; occupancy, which is the share of \
         a multiprocessor's\nthreads that can be resident; and KiB of machine code. The shapes are those of the Books batch (below) with \
         a gradient. Decoding has a set\nof 1,104 tokens, and the loss from hidden states has H = 576. No kernel spills registers or uses \
         local memory.\n"
    );
    print!("| kernel |");
    for card in &CARDS {
        print!(" {} ({}) |", card.target, card.name);
    }
    println!("\n|---|{}", "---|".repeat(CARDS.len()));
    for kernel in kernels {
        print!("| `{kernel}` |");
        for card in &CARDS {
            let usage = usages
                .iter()
                .find(|usage| usage.kernel == kernel && usage.target == card.target);
            match usage {
                Some(usage) => print!(" {} |", card.cell(usage)),
                None => print!(" not compiled |"),
            }
        }
        println!();
    }
    println!();
}

impl Card {
    fn cell(&self, usage: &Usage) -> String {
        assert_eq!(
            (usage.stack_bytes, usage.spilled_bytes),
            (0, 0),
            "{usage:?}"
        );
        let [threads, shared] = self.shape(&usage.kernel);
        let resident = self.resident_threads(usage.registers, threads, shared);
        format!(
            "{}; {threads}, {:.1} KiB; {} %; {:.1}",
            usage.registers,
            f64::from(shared) / 1024.0,
            100 * resident / self.threads,
            f64::from(usage.code_bytes) / 1024.0
        )
    }

    /// Returns the threads and the shared memory of a block.
    fn shape(&self, kernel: &str) -> [u32; 2] {
        let issued = self.issued(kernel).expect("a plan");
        let mut launches = issued.launches.iter();
        let launch = launches.find(|launch| launch.kernel == kernel);
        let launch = launch.expect("a launch of every kernel");
        [launch.threads, launch.shared_bytes]
    }

    /// Issues a plan that this kernel is part of.
    fn issued(&self, kernel: &str) -> Result<Recorder> {
        let element = match kernel.rsplit('_').next() {
            Some("f32") => Element::F32,
            Some("f16") => Element::F16,
            _ => Element::Bf16,
        };
        if kernel.starts_with("decode_") {
            return self.issue_decode(element);
        }
        let shape = Shape::books();
        if kernel.starts_with("linear_") {
            let all = LinearGradients::All(&shape.sets);
            return issue_linear(&shape, SMOLLM2.hidden, element, all, &self.limits);
        }
        let temperature = match kernel.starts_with("dense_adaptive") {
            true => Temperature::from(AdaptiveStrategy {
                scope: Scope::Branching,
                ..AdaptiveStrategy::default()
            }),
            false => Temperature::fixed(1.5),
        };
        issue_dense(
            &shape,
            SMOLLM2.vocabulary,
            element,
            &temperature,
            &self.limits,
        )
    }

    /// Issues the widest step of the Books catalogue, whose largest set has 1,104 tokens.
    fn issue_decode(&self, element: Element) -> Result<Recorder> {
        let items = (0..1104u32).map(|token| (u64::from(token), [token + 1, 0]));
        let trie = TokenTrie::new(items)?;
        let beams = BeamSearch::new(&trie, 32, 10, 1.5)?.decode_beams()?;
        let plan = DecodePlan::new(&beams, element, SMOLLM2.vocabulary, &self.limits)?;
        let results = DecodeResults {
            choices: Recorder::ANYWHERE,
            faults: Recorder::ANYWHERE,
        };
        let (mut recorder, logits) = (Recorder::default(), Recorder::matrix(SMOLLM2.vocabulary));
        // SAFETY: nothing is launched, so no address is used.
        unsafe { plan.expect("a beam").issue(&mut recorder, logits, &results) }?;
        Ok(recorder)
    }

    fn resident_threads(&self, registers: u32, threads: u32, shared: u32) -> u32 {
        // Each of four partitions has 16,384 registers, which warps get by 256.
        let warps = 4 * (16_384 / (registers.next_multiple_of(8) * 32));
        let by_registers = warps / (threads / 32);
        let by_shared = self.limits.shared_bytes_per_multiprocessor / (shared + 1024);
        let blocks = (by_registers.min(by_shared))
            .min(self.blocks)
            .min(self.threads / threads);
        blocks * threads
    }
}
