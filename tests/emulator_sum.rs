//! `kernels/sum.cu` and its plan.

mod emulated;

use candle_trie::launch::Sum;
use candle_trie_emulator::{Emulator, Memory, same_for_every_schedule};
use emulated::{LIMITS, SEEDS, noise, run};

/// Less than a packet, whole blocks, ragged ends, several blocks, as many as are resident.
const COUNTS: [usize; 9] = [0, 1, 3, 4, 1023, 1024, 1025, 5000, 100_003];

fn sums_of_blocks_are_sums() {
    for count in COUNTS {
        let numbers = noise(count);
        let plan = Sum::new(count as u64, &LIMITS);
        let partials = same_for_every_schedule(SEEDS, |emulator| {
            let mut memory = Memory::new();
            let values = memory.upload("values", &numbers);
            let partials = memory.allocate::<f32>("partials", plan.partials());
            let launch = plan.by_block(values.address(), partials.address());
            let report = run(&emulator, &launch, &mut memory)?;
            assert_eq!(report.traffic("values").loaded, 4 * count as u64);
            memory.download(partials)
        });
        assert_close(count, &partials.unwrap(), &numbers);
    }
}

fn the_total_of_a_grid_is_the_sum() {
    for count in COUNTS {
        let numbers = noise(count);
        let plan = Sum::new(count as u64, &LIMITS);
        let total = same_for_every_schedule(SEEDS, |emulator| {
            let mut memory = Memory::new();
            let values = memory.upload("values", &numbers);
            let partials = memory.allocate::<f32>("partials", plan.partials());
            let total = memory.allocate::<f32>("total", 1);
            let launch = plan.total(values.address(), partials.address(), total.address());
            run(&emulator, &launch, &mut memory)?;
            memory.download(total)
        });
        assert_close(count, &total.unwrap(), &numbers);
    }
}

fn a_sum_moves_its_numbers_once() {
    let count = 16 * 4096;
    let mut memory = Memory::new();
    let plan = Sum::new(count as u64, &LIMITS);
    let values = memory.upload("values", &noise(count));
    let partials = memory.allocate::<f32>("partials", plan.partials());
    let launch = plan.by_block(values.address(), partials.address());
    let report = run(&Emulator::default().traced(), &launch, &mut memory).unwrap();

    let values = report.traffic("values");
    assert_eq!(values.loaded, 4 * count as u64);
    assert_eq!(values.load_sectors, values.least_load_sectors);
    assert_eq!(
        report.traffic("partials").stored,
        4 * plan.partials() as u64
    );
    assert_eq!(report.shared.bank_conflicts, 0);
}

fn assert_close(count: usize, parts: &[f32], numbers: &[f32]) {
    let ours: f64 = parts.iter().copied().map(f64::from).sum();
    let expected: f64 = numbers.iter().copied().map(f64::from).sum();
    assert!(
        (ours - expected).abs() < 1e-5 * (count as f64).max(1.0).sqrt(),
        "{count}: {ours}, not {expected}"
    );
}

candle_trie_emulator::emulated_tests! {
    sums_of_blocks_are_sums,
    the_total_of_a_grid_is_the_sum,
    a_sum_moves_its_numbers_once,
}
