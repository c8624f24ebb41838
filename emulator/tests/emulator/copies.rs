//! Asynchronous copies: they arrive when they are awaited, and no sooner.

use crate::faulty_kernels::{TestLaunch, assert_fault, assert_sound, faults, marked};
use candle_trie_emulator::{Access, Fault, Report};

/// The shared memory of two packets of four numbers for each of 64 threads.
fn packets() -> TestLaunch {
    TestLaunch {
        threads: 64,
        shared_bytes: 64 * 32,
        ..TestLaunch::new(1, 256)
    }
}

fn assert_copy_fault(kernel: &str, mark: &str, words: &str) {
    for fault in faults(kernel, packets) {
        assert_fault!(fault, Fault::Copy { .. });
        assert_eq!(fault.line().unwrap(), marked("copies.cu", mark));
        assert!(fault.to_string().contains(words), "{fault}");
    }
}

fn assert_races(kernel: &str, buffer: &str) {
    for fault in faults(kernel, packets) {
        let Fault::Race { buffer: raced, .. } = &fault else {
            panic!("{fault}")
        };
        assert_eq!(raced, buffer);
    }
}

fn an_awaited_copy_is_there_and_behind_a_barrier_for_others_too() {
    let mut launch = assert_sound("copy_sound", packets).unwrap();
    let output = launch.output().unwrap();
    assert_eq!((output[0], output[251], output[255]), (4.0, 255.0, 3.0));
}

fn copies_may_be_under_way_across_barriers() {
    let mut launch = assert_sound("copy_sound_ahead", || TestLaunch {
        threads: 64,
        ..TestLaunch::new(1, 512)
    })
    .unwrap();
    let output = launch.output().unwrap();
    assert_eq!((output[0], output[255]), (4.0, 3.0));
    assert_eq!((output[256], output[511]), (260.0, 259.0));
}

fn groups_are_awaited_one_by_one() {
    let mut launch = assert_sound("copy_sound_groups", || TestLaunch {
        threads: 64,
        ..TestLaunch::new(1, 512)
    })
    .unwrap();
    let output = launch.output().unwrap();
    assert_eq!((output[0], output[255]), (4.0, 3.0));
    assert_eq!((output[256], output[511]), (260.0, 259.0));
    assert_sound("copy_sound_all", || TestLaunch {
        threads: 64,
        ..TestLaunch::new(1, 768)
    });
}

fn reading_a_copy_that_is_not_awaited_is_caught() {
    let words = "has not awaited it";
    assert_copy_fault("copy_not_awaited", "own", words);
    assert_copy_fault("copy_awaited_late", "late", words);
}

fn the_newest_groups_may_be_under_way() {
    let words = "has not awaited it";
    assert_copy_fault("copy_of_newest_group", "newest", words);
    assert_copy_fault("copy_group_over_unawaited", "reused", words);
}

fn awaiting_groups_awaits_no_copy_that_is_of_none() {
    let words = "has not awaited it";
    assert_copy_fault("copy_of_no_group", "uncommitted", words);
    assert_copy_fault("copy_behind_a_group", "behind", words);
}

fn writing_to_the_destination_of_a_copy_in_flight_is_caught() {
    assert_copy_fault("copy_over_copy", "twice", "has not awaited it");
    assert_copy_fault("copy_under_a_store", "under", "touches byte");
}

fn an_await_is_no_barrier() {
    assert_races("copy_without_barrier", "shared memory");
    assert_races("copy_over_unread", "shared memory");
}

/// The schedule decides whether the reader runs before or after the copy completes.
fn a_barrier_before_the_await_orders_nothing() {
    for fault in faults("copy_barrier_before_await", packets) {
        assert_fault!(fault, Fault::Race { .. } | Fault::Copy { .. });
    }
}

fn what_is_copied_stays_as_it_is_until_it_is_awaited() {
    assert_races("copy_of_what_another_changes", "input");
    assert_races("copy_of_what_is_stored_meanwhile", "input");
    assert_races("copy_of_what_it_changes", "input");
    for fault in faults("copy_of_what_it_changes", packets) {
        assert_eq!(fault.line().unwrap(), marked("copies.cu", "changed"));
    }
}

fn a_thread_does_not_end_before_its_copies() {
    assert_copy_fault(
        "copy_at_the_end",
        "end",
        "thread 5 of block 0 returns without having awaited this copy",
    );
    assert_copy_fault(
        "copy_group_at_the_end",
        "pending",
        "returns without having awaited this copy",
    );
}

fn a_copy_is_from_global_to_shared_memory() {
    assert_copy_fault("copy_to_global", "global", "to what is not shared memory");
    assert_copy_fault(
        "copy_from_shared",
        "shared",
        "from what is not global memory",
    );
    assert_copy_fault("copy_from_stack", "stack", "from what is not global memory");
}

fn both_ends_of_a_copy_are_aligned() {
    for (kernel, mark) in [
        ("copy_from_misaligned", "from"),
        ("copy_to_misaligned", "to"),
    ] {
        for fault in faults(kernel, packets) {
            assert_fault!(fault, Fault::Misaligned { bytes: 16, .. });
            assert_eq!(fault.line().unwrap(), marked("copies.cu", mark));
        }
    }
}

fn a_copy_is_a_load_of_what_somebody_has_written() {
    for fault in faults("copy_of_nothing", packets) {
        assert_fault!(fault, Fault::NeverWritten { .. });
        assert_eq!(fault.line().unwrap(), marked("copies.cu", "nothing"));
    }
    for fault in faults("copy_past_the_end", packets) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Load,
                bytes: 16,
                ..
            }
        );
        assert_eq!(fault.line().unwrap(), marked("copies.cu", "past"));
    }
}

fn a_copy_counts_as_a_load_and_a_store() {
    let traced = |kernel, count| -> Report {
        let mut launch = TestLaunch {
            threads: 64,
            shared_bytes: 64 << 10,
            count,
            ..TestLaunch::new(1, 64 * 4 * 8)
        };
        launch.emulator = launch.emulator.traced();
        launch.run(kernel).unwrap()
    };
    for (count, sectors, conflicts) in [(1, 32, 0), (2, 64, 2 * 4), (8, 64, 2 * 4 * 7)] {
        let report = traced("copy_stride", count);
        let (input, shared) = (report.traffic("input"), report.shared);
        assert_eq!((input.loaded, input.stored), (1024, 0));
        assert_eq!((shared.loaded, shared.stored), (0, 1024));
        assert_eq!(
            (input.load_sectors, input.least_load_sectors),
            (sectors, 32)
        );
        assert_eq!(shared.bank_conflicts, conflicts, "every {count}th packet");

        let by_registers = traced("copy_stride_by_registers", count);
        assert_eq!(report.steps, by_registers.steps);
        assert_eq!(
            (input, shared),
            (by_registers.traffic("input"), by_registers.shared)
        );
    }
}

candle_trie_emulator::emulated_tests! {
    an_awaited_copy_is_there_and_behind_a_barrier_for_others_too,
    copies_may_be_under_way_across_barriers,
    groups_are_awaited_one_by_one,
    the_newest_groups_may_be_under_way,
    awaiting_groups_awaits_no_copy_that_is_of_none,
    reading_a_copy_that_is_not_awaited_is_caught,
    writing_to_the_destination_of_a_copy_in_flight_is_caught,
    an_await_is_no_barrier,
    a_barrier_before_the_await_orders_nothing,
    what_is_copied_stays_as_it_is_until_it_is_awaited,
    a_thread_does_not_end_before_its_copies,
    a_copy_is_from_global_to_shared_memory,
    both_ends_of_a_copy_are_aligned,
    a_copy_is_a_load_of_what_somebody_has_written,
    a_copy_counts_as_a_load_and_a_store,
}
