//! How fast kernels run: two thousand blocks of a reduction, or as many warps of matrix products, are
//! a matter of seconds.

use std::time::{Duration, Instant};

use crate::faulty_kernels::TestLaunch;
use candle_trie_emulator::{Emulator, Launch, Memory};

fn two_thousand_blocks_of_a_reduction_finish_in_seconds() {
    const BLOCKS: u32 = 2000;
    const CHUNK: usize = 256 * 16;
    let mut memory = Memory::new();
    let values = vec![1.0_f32; BLOCKS as usize * CHUNK];
    let partials = memory.allocate::<f32>("partials", BLOCKS as usize);
    let input = memory.upload("values", &values);
    let params = [
        input.address(),
        partials.address(),
        values.len() as u64,
        CHUNK as u64,
    ];
    let (grid, block, params) = ([BLOCKS, 1, 1], [256, 1, 1], bytemuck::bytes_of(&params));
    let launch = Launch {
        kernel: "block_sum",
        grid,
        block,
        shared_bytes: 128,
        cooperative: false,
        params,
    };

    let start = Instant::now();
    let report = Emulator::default().run(&launch, &mut memory).unwrap();
    let elapsed = start.elapsed();
    assert_eq!(
        memory.download(partials).unwrap(),
        vec![CHUNK as f32; BLOCKS as usize]
    );
    let rate = report.steps as f64 / elapsed.as_secs_f64();
    println!(
        "{} steps of {} threads in {elapsed:.2?}: {:.1} million steps a second",
        report.steps,
        BLOCKS * 256,
        rate / 1e6
    );
    assert!(elapsed < Duration::from_secs(30), "{elapsed:?}");
}

fn two_thousand_warps_of_products_finish_in_seconds() {
    const TURNS: u64 = 32;
    let mut launch = TestLaunch {
        shared_bytes: 4 * 24 * 48,
        count: TURNS,
        ..TestLaunch::new(500, 128)
    };
    launch.emulator.step_limit = u64::MAX;
    let start = Instant::now();
    launch.run("speed_of_products").unwrap();
    let elapsed = start.elapsed();
    assert_eq!(
        launch.output().unwrap(),
        vec![16.0 * TURNS as f32; 500 * 128]
    );
    let products = 2000 * TURNS as u32;
    println!(
        "{products} products of 16×16×8 in {elapsed:.2?}: {:.2?} each, with two loads",
        elapsed / products
    );
    assert!(elapsed < Duration::from_secs(30), "{elapsed:?}");
}

candle_trie_emulator::emulated_tests! {
    two_thousand_warps_of_products_finish_in_seconds,
    two_thousand_blocks_of_a_reduction_finish_in_seconds,
}
