//! Bytes that the dense kernels move on the benchmark's batch.

use candle_trie::launch::DeviceLimits;
use candle_trie::{AdaptiveStrategy, Convention, Row, Rows, Scope, Temperature, TokenSets};
use candle_trie_emulator::{Emulator, Report};
use half::bf16;

use crate::device::{Case, Gradient};
use crate::number::Number;
use crate::support::{SMOLLM2, Shape, uniform};

const WIDTH: usize = SMOLLM2.vocabulary;
/// Positions that the emulator, which keeps a record of every two bytes, is given.
const EMULATED: usize = 96;
/// As many as hold those positions as the cards hold the batch.
const LIMITS: DeviceLimits = DeviceLimits {
    multiprocessors: 8,
    shared_bytes_per_block: 99 << 10,
    shared_bytes_per_multiprocessor: 100 << 10,
};
/// Cards and what their memory moves, in TB/s.
pub const CARDS: [(&str, f64); 3] = [("H100", 3.35), ("A100", 2.0), ("RTX 4090", 1.0)];

/// One way to run the operation.
struct Mode {
    name: &'static str,
    temperature: Temperature,
    gradient: Gradient,
}

fn modes() -> [Mode; 5] {
    let fixed = || Temperature::fixed(1.5);
    let adaptive = || {
        Temperature::from(AdaptiveStrategy {
            scope: Scope::Branching,
            ..AdaptiveStrategy::default()
        })
    };
    let mode = |name, temperature, gradient| Mode {
        name,
        temperature,
        gradient,
    };
    [
        mode("loss, τ given", fixed(), Gradient::None),
        mode("loss, τ adaptive", adaptive(), Gradient::None),
        mode("loss and gradient, τ given", fixed(), Gradient::Fused),
        mode("loss and gradient, τ adaptive", adaptive(), Gradient::Fused),
        mode("backward", fixed(), Gradient::Backward),
    ]
}

pub fn print() {
    let shape = Shape::books();
    println!("## Bytes moved\n");
    println!(
        "The Books batch of benches/shapes under SmolLM2's vocabulary: {} positions × {WIDTH}, of \
         which {} rows are labelled, with\n{} valid logits in branching rows. *Least* is each valid \
         logit of a branching row once, each token of a set that is used once\n(4 bytes; none for \
         the whole vocabulary) and each byte of the gradient once. Floors are computed from it: \
         least ÷ bandwidth ({}).\n\n\
         The emulator ran the first {EMULATED} positions. *Logits* and *gradient* are the bytes that it counted, divided by the least \
         of these\npositions. *All* is what warps request in whole sectors of 32 bytes, with tokens, rows and results, divided by \
         the least. On a GPU\nmuch of that comes from a cache. Nearly every valid logit is alone in its sector, which is most of *all* \
         where there is no gradient.\n*Sectors* are those that the gradient's stores touch, divided by the least.",
        shape.rows.positions(),
        shape.rows.len(),
        shape.branching_logits(),
        CARDS
            .map(|(card, speed)| format!("{card} {speed} TB/s"))
            .join(", "),
    );
    let (rows, few) = (&shape.rows, first(&shape.rows, EMULATED));
    table::<bf16>("MSL, bf16", &shape.sets, rows, &few);
    table::<f32>("MSL, f32", &shape.sets, rows, &few);
    let whole = TokenSets::whole_vocabulary(WIDTH).expect("a vocabulary");
    table::<bf16>("LML (the whole vocabulary), bf16", &whole, rows, &few);
}

fn table<T: Number>(title: &str, sets: &TokenSets, rows: &Rows, few: &Rows) {
    println!("\n### {title}\n");
    print!("| | least, MB |");
    for (card, _) in CARDS {
        print!(" floor {card}, µs |");
    }
    println!(
        " logits | gradient | all | sectors |\n|---|{}",
        "---:|".repeat(CARDS.len() + 5)
    );
    let logits: Vec<f64> = (uniform(few.positions() * WIDTH, 6.0, 1).iter())
        .map(|&logit| logit.into())
        .collect();
    for mode in modes() {
        let with_gradient = mode.gradient != Gradient::None;
        let all = Least::new::<T>(sets, rows, with_gradient);
        print!("| {} | {:.3} |", mode.name, all.bytes() / 1e6);
        for (_, speed) in CARDS {
            print!(" {:.2} |", all.bytes() / (speed * 1e6));
        }
        let case = Case::<T> {
            temperature: mode.temperature,
            convention: Convention::fixed(),
            gradient: mode.gradient,
            limits: LIMITS,
            ..Case::new(sets, few, WIDTH, &logits)
        };
        let outcome = case
            .run(&Emulator::default().traced())
            .expect("a sound launch");
        let report = match mode.gradient {
            Gradient::Backward => &outcome.backward,
            _ => &outcome.forward,
        };
        Least::new::<T>(sets, few, with_gradient).print_counts(report);
    }
}

/// The least that must be moved.
struct Least {
    logits: f64,
    tokens: f64,
    gradient: f64,
}

impl Least {
    fn new<T: Number>(sets: &TokenSets, rows: &Rows, with_gradient: bool) -> Self {
        let size = |set: u32| sets.get(set).map_or(0, |set| set.len());
        let branching: Vec<u32> = (rows.as_slice().iter())
            .map(|row| row.set)
            .filter(|&set| size(set) > 1)
            .collect();
        let logits: usize = branching.iter().map(|&set| size(set)).sum();
        let mut used = branching;
        used.sort_unstable();
        used.dedup();
        let listed = sets.as_raw().is_some();
        let tokens: usize = used.iter().filter(|_| listed).map(|&set| size(set)).sum();
        let gradient = if with_gradient {
            rows.positions() * WIDTH
        } else {
            0
        };
        let bytes = size_of::<T>();
        Self {
            logits: (bytes * logits) as f64,
            tokens: 4.0 * tokens as f64,
            gradient: (bytes * gradient) as f64,
        }
    }

    fn bytes(&self) -> f64 {
        self.logits + self.tokens + self.gradient
    }

    fn print_counts(&self, report: &Report) {
        let gradient = report.traffic("gradient");
        let moved: u64 = [
            "logits",
            "gradient",
            "tokens",
            "offsets",
            "rows",
            "ignored",
            "softmaxes",
            "loss",
            "partials",
            "statistics",
            "temperature",
            "block counter",
            "upstream",
        ]
        .iter()
        .map(|buffer| {
            let traffic = report.traffic(buffer);
            32 * (traffic.load_sectors + traffic.store_sectors)
        })
        .sum();
        let ratio = |found: u64, least: f64| match least {
            0.0 => "–".to_string(),
            least => format!("{:.3}", found as f64 / least),
        };
        println!(
            " {} | {} | {} | {} |",
            ratio(report.traffic("logits").loaded, self.logits),
            ratio(gradient.stored, self.gradient),
            ratio(moved, self.bytes()),
            ratio(gradient.store_sectors, gradient.least_store_sectors as f64),
        );
    }
}

/// The rows of the first positions.
fn first(rows: &Rows, positions: usize) -> Rows {
    let kept: Vec<Row> = (rows.as_slice().iter().copied())
        .filter(|row| (row.position as usize) < positions)
        .collect();
    Rows::from_raw(positions, kept).expect("rows that rise")
}
