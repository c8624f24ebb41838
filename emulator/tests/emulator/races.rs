//! Races: caught in every schedule, and never invented.

use crate::faulty_kernels::{TestLaunch, assert_sound, faults};
use candle_trie_emulator::Fault;

fn assert_races(kernel: &str, buffer: &str, make: impl Fn() -> TestLaunch) {
    for fault in faults(kernel, make) {
        let Fault::Race {
            buffer: raced,
            earlier,
            later,
            ..
        } = &fault
        else {
            panic!("{fault}")
        };
        assert_eq!(raced, buffer);
        assert_ne!(earlier.0, later.0);
        for (_, site) in [earlier, later] {
            assert!(
                site.lines()[0].starts_with("emulator/faulty_kernels/races.cu:"),
                "{fault}"
            );
        }
    }
}

fn ordered_accesses_are_sound() {
    assert_sound("race_sound_barrier", || TestLaunch::new(3, 96));
    assert_sound("race_sound_halves", || TestLaunch::new(1, 64));
    assert_sound("race_sound_warp", || TestLaunch::new(1, 32));
    assert_sound("race_sound_half_a_warp", || TestLaunch::new(1, 32));
    assert_sound("race_sound_grid", || TestLaunch::new(4, 64).cooperative());
    assert_sound("race_sound_last_block", || TestLaunch::new(5, 64));
    assert_sound("race_sound_last_block", || {
        TestLaunch::new(5, 64).cooperative()
    });
    assert_sound("race_sound_atomics", || TestLaunch::new(4, 64));
}

fn races_in_shared_memory_are_caught() {
    assert_races("race_load_after_store", "shared memory", || {
        TestLaunch::new(1, 64)
    });
    assert_races("race_store_after_load", "shared memory", || {
        TestLaunch::new(1, 64)
    });
}

fn races_in_global_memory_are_caught() {
    assert_races("race_two_stores", "output", || TestLaunch::new(1, 32));
    assert_races("race_between_blocks", "output", || {
        TestLaunch::new(2, 32).with_output()
    });
    assert_races("race_between_blocks", "output", || {
        TestLaunch::new(2, 32).with_output().cooperative()
    });
    assert_races("race_reader_writes", "input", || TestLaunch::new(4, 64));
}

fn a_warp_is_not_in_lockstep() {
    assert_races("race_warp_in_lockstep", "shared memory", || {
        TestLaunch::new(1, 32)
    });
    assert_races("race_shuffle_for_barrier", "shared memory", || {
        TestLaunch::new(1, 32)
    });
    assert_races("race_half_a_warp", "shared memory", || {
        TestLaunch::new(1, 32)
    });
}

fn an_atomic_without_fences_orders_nothing() {
    assert_races("race_last_block_without_fence", "output", || {
        TestLaunch::new(5, 64)
    });
    assert_races("race_atomic_and_load", "counter", || TestLaunch::new(1, 64));
}

fn what_a_launch_did_is_known_to_the_next() {
    let mut launch = TestLaunch::new(1, 64);
    for kernel in [
        "race_sound_barrier",
        "race_sound_last_block",
        "race_sound_barrier",
    ] {
        launch.run(kernel).unwrap();
    }
}

candle_trie_emulator::emulated_tests! {
    ordered_accesses_are_sound,
    races_in_shared_memory_are_caught,
    races_in_global_memory_are_caught,
    a_warp_is_not_in_lockstep,
    an_atomic_without_fences_orders_nothing,
    what_a_launch_did_is_known_to_the_next,
}
