//! Random cases by number: as many as a test asks for, and where the environment says so, on and on for a while.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use rand::{SeedableRng, rngs::StdRng};

/// Runs `case` with the random numbers of one seed after another: of `cases` seeds, and then of more until
/// `CANDLE_TRIE_FUZZ_SECONDS` have passed. The first seed is `CANDLE_TRIE_FUZZ_SEED`, or 0. A failure names its seed.
pub fn for_seeds(cases: u64, case: impl Fn(&mut StdRng)) {
    let first = from_environment("CANDLE_TRIE_FUZZ_SEED");
    let seconds = Duration::from_secs(from_environment("CANDLE_TRIE_FUZZ_SECONDS"));
    let start = Instant::now();
    let seeds = (first..).take_while(|seed| seed - first < cases || start.elapsed() < seconds);
    let mut count = 0;
    for seed in seeds {
        let random = &mut StdRng::seed_from_u64(seed);
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| case(random))) {
            eprintln!("CANDLE_TRIE_FUZZ_SEED={seed} begins with the case that failed");
            resume_unwind(failure);
        }
        count += 1;
    }
    eprintln!("{count} cases");
}

fn from_environment(name: &str) -> u64 {
    std::env::var(name).map_or(0, |number| number.parse().expect(name))
}
