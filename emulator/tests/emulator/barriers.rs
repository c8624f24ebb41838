//! Barriers and warp operations: an error with the line, never a hang.

use crate::faulty_kernels::{TestLaunch, assert_fault, assert_sound, faults, marked};
use candle_trie_emulator::Fault;

fn barriers_that_all_reach_are_sound() {
    let mut launch = assert_sound("barrier_sound", || TestLaunch::new(1, 64)).unwrap();
    assert_eq!(launch.output().unwrap(), [32.0 * 100.0 + 10.0 + 1.0; 64]);
}

fn warp_operations_are_cudas() {
    let mut launch = assert_sound("warp_sound", || TestLaunch::new(1, 96)).unwrap();
    assert_eq!(launch.output().unwrap(), [1.0; 96]);
}

fn a_barrier_that_not_all_reach_is_caught() {
    for (kernel, mark, what) in [
        (
            "barrier_early_return",
            "return",
            "thread 9 of block 0 has returned",
        ),
        ("barrier_in_a_branch", "branch", "has returned"),
        (
            "barrier_at_two_lines",
            "lines",
            "waits at another: emulator/faulty_kernels/barriers.cu:",
        ),
        ("barrier_fewer_turns", "turns", "has returned"),
        ("barrier_of_grid_alone", "grid", "not cooperative"),
    ] {
        for fault in faults(kernel, || TestLaunch::new(1, 64)) {
            assert_fault!(fault, Fault::Barrier { .. });
            assert_eq!(fault.line().unwrap(), marked("barriers.cu", mark));
            assert!(fault.to_string().contains(what), "{fault}");
        }
    }
}

fn a_grid_barrier_that_a_block_skips_is_caught() {
    for fault in faults("barrier_grid_early_return", || {
        TestLaunch::new(3, 32).cooperative()
    }) {
        assert_fault!(fault, Fault::Barrier { .. });
        assert_eq!(fault.line().unwrap(), marked("barriers.cu", "gridreturn"));
        assert!(
            fault.to_string().contains("of block 1 has returned"),
            "{fault}"
        );
    }
}

fn lanes_that_do_not_agree_are_caught() {
    for (kernel, mark) in [
        ("warp_not_in_mask", "mask"),
        ("warp_masks_differ", "masks"),
        ("warp_source_outside", "source"),
    ] {
        for fault in faults(kernel, || TestLaunch::new(1, 32)) {
            assert_fault!(fault, Fault::Warp { .. });
            assert_eq!(fault.line().unwrap(), marked("barriers.cu", mark));
        }
    }
    for fault in faults("warp_operations_differ", || TestLaunch::new(1, 32)) {
        assert_fault!(fault, Fault::Warp { .. });
    }
}

fn a_lane_that_never_comes_is_caught() {
    for fault in faults("warp_lane_returned", || TestLaunch::new(1, 32)) {
        assert_fault!(fault, Fault::Warp { .. });
        assert_eq!(fault.line().unwrap(), marked("barriers.cu", "returned"));
    }
    for fault in faults("warp_lane_elsewhere", || TestLaunch::new(1, 32)) {
        assert_fault!(fault, Fault::Barrier { .. });
        assert!(
            fault.to_string().contains("thread 0 of block 0 waits at"),
            "{fault}"
        );
    }
}

fn a_partial_warp_cannot_use_the_whole_mask() {
    for fault in faults("warp_sound", || TestLaunch::new(1, 40)) {
        assert_fault!(fault, Fault::Warp { .. });
        assert!(
            fault.to_string().contains("which the block does not have"),
            "{fault}"
        );
    }
}

fn a_wait_without_end_is_caught() {
    for fault in faults("endless_wait", || TestLaunch::new(1, 32)) {
        assert_fault!(fault, Fault::Endless { .. });
    }
}

candle_trie_emulator::emulated_tests! {
    barriers_that_all_reach_are_sound,
    warp_operations_are_cudas,
    a_barrier_that_not_all_reach_is_caught,
    a_grid_barrier_that_a_block_skips_is_caught,
    lanes_that_do_not_agree_are_caught,
    a_lane_that_never_comes_is_caught,
    a_partial_warp_cannot_use_the_whole_mask,
    a_wait_without_end_is_caught,
}
