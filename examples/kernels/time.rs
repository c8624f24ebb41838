//! The page of a model of the time that the loss over hidden states and a head takes, from the plan's own pieces of work.

use crate::model::{
    COOPERATIVE_LAUNCH, COPY, EXPONENTIAL, FRAGMENT, LAUNCH, Modelled, PORT, PRODUCT, REDUCTION,
    SHARED, SPEEDS, SUSTAINED, Speeds,
};
use crate::support::{LLAMA_3_8B, MODELS, Model, SEMANTIC_IDS, SMOLLM2};

/// What was measured on an H100 before there was one launch (docs/gpu.md, warm, launches alone), and what this one was to reach.
const BEFORE: [(&str, f64, f64); 2] = [("SmolLM2-135M", 80.0, 17.0), ("Llama-3-8B", 165.4, 37.0)];

pub fn print() {
    print_method();
    let shapes = [SMOLLM2, MODELS[2], LLAMA_3_8B, SEMANTIC_IDS];
    let modelled: Vec<(Model, Vec<Modelled>)> = (shapes.into_iter())
        .map(|model| {
            let shape = model.batch();
            let on_cards = SPEEDS
                .iter()
                .map(|speeds| Modelled::new(&model, &shape, speeds));
            (model, on_cards.collect())
        })
        .collect();
    print_totals(&modelled);
    for (model, on_cards) in &modelled {
        print_phases(model, on_cards);
    }
}

fn print_method() {
    println!(
        "\n## A model of the time\n\n\
         Nothing here was measured. The figures of this section are computed from the work items of the launch plan, which blocks take one after the other,\n\
         and from the constants below. The model leaves out bank conflicts, stalls between dependent instructions, instruction fetch, clocks that\n\
         fall under load, and the upload of the batch before the launch. So it tells which of two choices is better and what the time is bound by, and\n\
         a GPU will take longer.\n\
         \n\
         A work item first waits for its description and for the numbers of its group and its tokens (three loads from L2), and then for its first bytes\n\
         (from memory for scores, two loads from L2 for the gradient). Then it loads and computes, which overlap. If the work is cut into slices, each\n\
         stores its sums and counts itself (two more waits on L2), and the last one loads the sums of all and finishes. Finishing waits on L2 once more\n\
         for scores, and three times for the gradient (a row, its target's token, that token's head row). Transfers that overlap share the\n\
         bandwidth equally, and none is faster than its block's share of {PORT} bytes a cycle and multiprocessor. Loading and computing take at\n\
         least the cycles of shared memory, of the tensor cores, and of the four schedulers of a multiprocessor.\n\
         \n\
         | | value | where it is from |\n|---|---|---|"
    );
    let of_cards = |value: fn(&Speeds) -> String| {
        let values = SPEEDS
            .iter()
            .map(|speeds| format!("{} {}", speeds.name, value(speeds)));
        values.collect::<Vec<_>>().join(", ")
    };
    println!(
        "| memory, TB/s, of which {:.0} % | {} | vendor; what a copy reached on the H100 ([gpu.md](gpu.md)) |",
        100.0 * SUSTAINED,
        of_cards(|speeds| speeds.memory.to_string())
    );
    println!(
        "| L2 cache, bytes a cycle | {} | `cp.async` in smallscientist1/cuda_microbenchmark on GitHub; H100: assumed to be the A100's |",
        of_cards(|speeds| speeds.l2_bytes.to_string())
    );
    println!(
        "| latency of L2 and of memory, cycles | {} | latency/README.md in markdewing/AI_kernels on GitHub |",
        of_cards(|speeds| format!("{} and {}", speeds.l2_cycles, speeds.memory_cycles))
    );
    println!(
        "| `mma.sync`, operations a cycle and multiprocessor | {} | vendor (dense, f32 sums); H100: half of its peak, which only `wgmma` reaches (assumed) |",
        of_cards(|speeds| speeds.tensor.to_string())
    );
    println!(
        "| clock, GHz | {} | vendor (boost) |",
        of_cards(|speeds| speeds.clock.to_string())
    );
    println!(
        "| multiprocessor, bytes a cycle | {PORT} from L2, {SHARED} of shared memory | assumed; CUDA programming guide (32 banks of 4 bytes) |\n\
         | launch, µs | {COOPERATIVE_LAUNCH} cooperative with a barrier of the grid, {LAUNCH} ordinary | assumed: an empty one takes 4 to 5; `linear_gather` took 3.3 warm on the H100 ([gpu.md](gpu.md)), its loads included |\n\
         | warp instructions | {COPY} a copy of 16 bytes a lane; {FRAGMENT} an A fragment and {PRODUCT} a `mma.sync`; {EXPONENTIAL} an exponential a lane | counted in the code for sm_90, about (`nvdisasm` of `linear_forward_bf16`, 2026-11-30) |\n\
         | statistics | {REDUCTION} cycles to add up the sums of a block's threads in f64 | assumed |"
    );
}

fn print_totals(modelled: &[(Model, Vec<Modelled>)]) {
    println!(
        "\n### Forward and backward, bf16, µs\n\n\
         *Given* and *adaptive* are a forward and a backward launch, at a temperature that is given or that steps with the batch's statistics. *In one* is\n\
         value and gradient by one launch, at a given temperature. *Warm* has head and hidden states in the L2 cache, and all others have them in\n\
         memory. *Launches* is the part of *given* without any work. *Before* was measured on an H100, warm, with the earlier kernels\n\
         ([gpu.md](gpu.md), for Llama-3-8B on the batch under SmolLM2's tokenizer). *Aim* is what the new kernel was to reach.\n\
         \n\
         | | card | launches | given | adaptive | in one | given, warm | before | aim |\n|---|---|---:|---:|---:|---:|---:|---:|---:|"
    );
    for (model, on_cards) in modelled {
        for (speeds, times) in SPEEDS.iter().zip(on_cards) {
            let before = BEFORE
                .iter()
                .find(|(name, ..)| *name == model.name && speeds.name == "H100");
            let measured = |value: fn(&(&str, f64, f64)) -> f64| {
                before.map_or("–".into(), |before| format!("{:.0}", value(before)))
            };
            println!(
                "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} |",
                model.name,
                speeds.name,
                COOPERATIVE_LAUNCH + LAUNCH,
                times.forward(&times.cold) + times.backward_launch(),
                times.forward(&times.cold) + times.statistics + times.backward_launch(),
                times.forward(&times.cold),
                times.forward(&times.warm) + times.backward_launch(),
                measured(|before| before.1),
                measured(|before| before.2),
            );
        }
    }
    println!(
        "\nAn empty cooperative launch with a barrier takes 4 to 5 µs. At SmolLM2's size the least bytes take 1.8 µs on an H100 \
         ([gpu.md](gpu.md)), so\nno kernel can reach three times that floor, because the launches alone take longer. Most of the rest is the block \
         that adds up\nthe slices of the largest set's gradient, as it loads the sums of all of them."
    );
}

fn print_phases(model: &Model, on_cards: &[Modelled]) {
    println!(
        "\n### {}: phases\n\n\
         | card | phase | blocks | pieces | most of a block | memory, MB | L2, MB | GFLOP | bandwidth, µs | instructions, µs | phase, µs | warm, µs |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        model.name
    );
    for (speeds, times) in SPEEDS.iter().zip(on_cards) {
        for (name, phase, warm) in [
            ("scores", &times.cold[0], &times.warm[0]),
            ("gradient", &times.cold[1], &times.warm[1]),
        ] {
            println!(
                "| {} | {name} | {} | {} | {} | {:.1} | {:.1} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} |",
                speeds.name,
                times.blocks,
                phase.items,
                phase.chain,
                phase.memory_bytes / 1e6,
                phase.l2_bytes / 1e6,
                phase.operations / 1e9,
                phase.bandwidth,
                phase.instructions,
                phase.time,
                warm.time,
            );
        }
        println!(
            "| {} | statistics | 1 | | | | | | | | {:.1} | {:.1} |",
            speeds.name, times.statistics, times.statistics
        );
        println!(
            "| {} | backward | | | | | {:.1} | | | | {:.1} | {:.1} |",
            speeds.name,
            times.backward_bytes / 1e6,
            times.backward,
            times.backward
        );
    }
}
