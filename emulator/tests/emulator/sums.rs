//! A whole kernel, as those of the library are: right, the same in every order of its threads, and
//! no byte moved twice.

use candle_trie_emulator::{
    Buffer, Emulator, Fault, Launch, Memory, Report, same_for_every_schedule,
};

const THREADS: u32 = 64;
const CHUNK: usize = 512;

/// A sum of each block's chunk.
fn sums(
    emulator: &Emulator,
    numbers: &[f32],
    memory: &mut Memory,
) -> Result<(Buffer<f32>, Report), Fault> {
    let blocks = numbers.len().div_ceil(CHUNK).max(1);
    let values = memory.upload("values", numbers);
    let partials = memory.allocate::<f32>("partials", blocks);
    let params = [
        values.address(),
        partials.address(),
        numbers.len() as u64,
        CHUNK as u64,
    ];
    let launch = Launch {
        kernel: "block_sum",
        grid: [blocks as u32, 1, 1],
        block: [THREADS, 1, 1],
        shared_bytes: THREADS / 32 * 4,
        cooperative: false,
        params: bytemuck::bytes_of(&params),
    };
    Ok((partials, emulator.run(&launch, memory)?))
}

/// Thirds: sums of them depend on their order.
fn thirds(count: usize) -> Vec<f32> {
    (0..count).map(|index| (index % 97) as f32 / 3.0).collect()
}

fn sums_are_the_same_in_every_order_of_the_threads() {
    // Less than a packet, whole blocks, ragged ends, several blocks.
    for count in [0, 1, 3, 4, 511, 512, 513, 5000] {
        let numbers = thirds(count);
        let sums = same_for_every_schedule(0..4, |emulator| {
            let mut memory = Memory::new();
            let (partials, report) = sums(&emulator, &numbers, &mut memory)?;
            assert_eq!(report.traffic("values").loaded, 4 * count as u64);
            memory.download(partials)
        });
        let total = |parts: &[f32]| parts.iter().copied().map(f64::from).sum::<f64>();
        let (ours, expected) = (total(&sums.unwrap()), total(&numbers));
        assert!(
            (ours - expected).abs() <= 1e-6 * expected,
            "{count}: {ours}, not {expected}"
        );
    }
}

fn a_sum_moves_its_numbers_once() {
    let numbers = thirds(16 * CHUNK);
    let mut memory = Memory::new();
    let (_, report) = sums(&Emulator::default().traced(), &numbers, &mut memory).unwrap();
    let values = report.traffic("values");
    assert_eq!(values.loaded, 4 * numbers.len() as u64);
    assert_eq!(values.load_sectors, values.least_load_sectors);
    assert_eq!(report.traffic("partials").stored, 4 * 16);
    assert_eq!(report.shared.bank_conflicts, 0);
}

candle_trie_emulator::emulated_tests! {
    sums_are_the_same_in_every_order_of_the_threads,
    a_sum_moves_its_numbers_once,
}
