//! Matrix operations of a warp: `ldmatrix` is a load, by all lanes, of each row that one of them names,
//! and all lanes take part in the same operation.

use crate::faulty_kernels::{TestLaunch, assert_fault, assert_sound, faults, marked};
use candle_trie_emulator::{Access, Fault, Report};

/// A row of sixteen bytes of shared memory for each of 64 threads.
fn rows() -> TestLaunch {
    TestLaunch {
        shared_bytes: 64 * 16,
        ..TestLaunch::new(1, 64)
    }
}

/// One warp.
fn one_warp() -> TestLaunch {
    TestLaunch {
        shared_bytes: 32 * 16,
        ..TestLaunch::new(1, 32)
    }
}

fn assert_at(fault: &Fault, mark: &str) {
    assert_eq!(
        fault.line().unwrap(),
        marked("matrices.cu", mark),
        "{fault}"
    );
}

fn rows_that_are_there_are_loaded() {
    let mut launch = assert_sound("matrix_sound", rows).unwrap();
    // 16 products of ones, twice, onto 1 + 2 + 3 + 4.
    assert_eq!(launch.output().unwrap(), [4.0 * 32.0 + 10.0; 64]);
    for kernel in [
        "matrix_sound_warp",
        "matrix_sound_copy",
        "matrix_sound_branches",
    ] {
        assert_sound(kernel, rows);
    }
}

fn two_matrices_are_of_the_rows_of_sixteen_lanes() {
    assert_sound("matrix_sound_two", rows);
}

fn an_uninitialised_row_is_caught() {
    for fault in faults("matrix_of_nothing", rows) {
        assert_fault!(fault, Fault::NeverWritten { .. });
        assert_at(&fault, "nothing");
    }
    for fault in faults("matrix_of_almost_all", rows) {
        assert_fault!(fault, Fault::NeverWritten { .. });
        assert_at(&fault, "element");
        assert!(fault.to_string().contains("thread 9 "), "{fault}");
    }
}

fn a_row_of_another_lane_needs_a_barrier() {
    for fault in faults("matrix_without_barrier", rows) {
        assert_fault!(fault, Fault::Race { .. });
    }
    for fault in faults("matrix_overwritten", rows) {
        assert_fault!(fault, Fault::Race { .. });
        assert_at(&fault, "overwritten");
    }
}

fn a_row_goes_to_all_lanes_whoever_names_it() {
    assert_sound("matrix_sound_own_row", rows);
    for (kernel, mark) in [
        ("matrix_of_own_row", "own"),
        ("matrix_own_row_overwritten", "own overwritten"),
    ] {
        for fault in faults(kernel, rows) {
            assert_fault!(fault, Fault::Race { .. });
            assert_at(&fault, mark);
        }
    }
}

fn a_row_past_the_end_is_caught() {
    for fault in faults("matrix_past_the_end", rows) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Load,
                bytes: 16,
                ..
            }
        );
        assert_at(&fault, "past");
        let words = "0 bytes past the end of shared memory (1024 bytes)";
        assert!(fault.to_string().contains(words), "{fault}");
    }
}

fn a_misaligned_row_is_caught() {
    for fault in faults("matrix_misaligned", rows) {
        assert_fault!(fault, Fault::Misaligned { bytes: 16, .. });
        assert_at(&fault, "misaligned");
    }
}

fn rows_are_of_shared_memory() {
    for (kernel, mark, words) in [
        ("matrix_of_global", "global", "names a row of global memory"),
        (
            "matrix_of_stack",
            "stack",
            "names a row of a local variable",
        ),
    ] {
        for fault in faults(kernel, rows) {
            assert_fault!(fault, Fault::Warp { .. });
            assert_at(&fault, mark);
            assert!(fault.to_string().contains(words), "{fault}");
        }
    }
}

fn a_row_that_is_copied_is_there_when_it_is_awaited() {
    for fault in faults("matrix_of_copy_under_way", rows) {
        assert_fault!(fault, Fault::Copy { .. });
        assert_at(&fault, "copy");
    }
    // The schedule decides whether the reader runs before or after the copy completes.
    for fault in faults("matrix_of_copy_of_another", rows) {
        assert_fault!(fault, Fault::Copy { .. } | Fault::Race { .. });
    }
}

fn a_lane_that_never_comes_is_caught() {
    for (kernel, mark) in [
        ("matrix_lane_returned", "returned"),
        ("product_lane_returned", "missing"),
    ] {
        for fault in faults(kernel, rows) {
            assert_fault!(fault, Fault::Warp { .. });
            assert_at(&fault, mark);
            let words = "names lane 3, which has returned";
            assert!(fault.to_string().contains(words), "{fault}");
        }
    }
    for fault in faults("matrix_lane_elsewhere", rows) {
        assert_fault!(fault, Fault::Barrier { .. });
        assert!(fault.to_string().contains("thread 3"), "{fault}");
    }
    for fault in faults("matrix_sound", || TestLaunch {
        shared_bytes: 40 * 16,
        ..TestLaunch::new(1, 40)
    }) {
        assert_fault!(fault, Fault::Warp { .. });
        let words = "which the block does not have";
        assert!(fault.to_string().contains(words), "{fault}");
    }
}

fn lanes_that_do_not_agree_are_caught() {
    for (kernel, words) in [
        ("matrix_counts_differ", ["ldmatrix.x2 ", "ldmatrix.x4 "]),
        (
            "matrix_transposed_by_half",
            ["ldmatrix.x4 ", "ldmatrix.x4.trans "],
        ),
        ("matrix_at_two_lines", ["ldmatrix.x4 ", "in ldmatrix.x4 "]),
        ("product_types_differ", ["mma.f16 ", "mma.bf16 "]),
        ("product_and_shuffle", ["mma.f16 ", "a shuffle "]),
    ] {
        for fault in faults(kernel, one_warp) {
            assert_fault!(fault, Fault::Warp { .. });
            let text = fault.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{fault}");
        }
    }
}

fn rows_count_as_loads_of_sixteen_bytes() {
    let traced = |kernel, count| -> Report {
        let mut launch = TestLaunch {
            shared_bytes: 64 << 10,
            count,
            ..TestLaunch::new(1, 64)
        };
        launch.emulator = launch.emulator.traced();
        launch.run(kernel).unwrap()
    };
    // A matrix is eight rows: 128 bytes, so all banks once if no two rows are in the same. Of the
    // stores each quarter of a warp waits as long as the matrix of its rows does.
    for (count, waits) in [(1, 0), (2, 1), (3, 0), (4, 3), (5, 0), (8, 7), (9, 0)] {
        let (four, two) = (
            traced("traffic_matrices", count).shared,
            traced("traffic_two_matrices", count).shared,
        );
        assert_eq!((four.loaded, four.stored), (64 * 16, 64 * 16));
        assert_eq!((two.loaded, two.stored), (2 * 16 * 16, 64 * 16));
        let of_stores = 8 * waits;
        assert_eq!(
            four.bank_conflicts,
            of_stores + 8 * waits,
            "every {count}th row"
        );
        assert_eq!(
            two.bank_conflicts,
            of_stores + 4 * waits,
            "every {count}th row"
        );
    }
}

candle_trie_emulator::emulated_tests! {
    rows_that_are_there_are_loaded,
    two_matrices_are_of_the_rows_of_sixteen_lanes,
    an_uninitialised_row_is_caught,
    a_row_of_another_lane_needs_a_barrier,
    a_row_goes_to_all_lanes_whoever_names_it,
    a_row_past_the_end_is_caught,
    a_misaligned_row_is_caught,
    rows_are_of_shared_memory,
    a_row_that_is_copied_is_there_when_it_is_awaited,
    a_lane_that_never_comes_is_caught,
    lanes_that_do_not_agree_are_caught,
    rows_count_as_loads_of_sixteen_bytes,
}
