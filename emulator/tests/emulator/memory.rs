//! Memory: bounds, alignment, initialisation.

use crate::faulty_kernels::{TestLaunch, assert_fault, assert_sound, faults, marked};
use candle_trie_emulator::{Access, Fault, LaunchBounds, launch_bounds};

fn a_kernel_that_stays_inside_is_sound() {
    let mut launch = assert_sound("memory_sound", || TestLaunch {
        count: 64,
        ..TestLaunch::new(1, 64)
    })
    .unwrap();
    assert_eq!(launch.output().unwrap()[63], 63.0);
}

fn a_load_past_the_end_is_caught() {
    for fault in faults("memory_load_past_end", || TestLaunch {
        blocks: 2,
        ..TestLaunch::new(1, 64)
    }) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Load,
                bytes: 4,
                ..
            }
        );
        assert_eq!(fault.line().unwrap(), marked("memory.cu", "load"));
        assert!(
            fault
                .to_string()
                .contains("0 bytes past the end of 'input' (256 bytes)"),
            "{fault}"
        );
    }
}

fn a_store_before_the_start_is_caught() {
    for fault in faults("memory_store_before_start", || TestLaunch::new(1, 32)) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Store,
                ..
            }
        );
        assert_eq!(fault.line().unwrap(), marked("memory.cu", "store"));
        assert!(
            fault
                .to_string()
                .contains("4 bytes before the start of 'output'"),
            "{fault}"
        );
    }
}

fn what_was_given_back_may_not_be_touched() {
    let freed = |address: fn(&TestLaunch) -> u64| {
        let mut launch = TestLaunch::new(1, 64);
        let address = address(&launch);
        launch.memory.free(address);
        // Where a device might put another.
        launch.memory.upload("another", &[0f32; 64]);
        launch
    };
    for fault in faults("memory_sound", || freed(|launch| launch.input.address())) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Load,
                ..
            }
        );
    }
    for fault in faults("memory_sound", || freed(|launch| launch.output_address)) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Store,
                ..
            }
        );
    }
}

fn shared_memory_has_an_end() {
    for fault in faults("memory_shared_past_end", || TestLaunch::new(1, 32)) {
        assert_eq!(fault.line().unwrap(), marked("memory.cu", "shared"));
        assert!(
            fault
                .to_string()
                .contains("0 bytes past the end of shared memory (128 bytes)"),
            "{fault}"
        );
    }
}

fn a_thread_has_no_part_in_the_stack_of_another() {
    for fault in faults("memory_stack_of_another", || TestLaunch::new(1, 32)) {
        assert_fault!(
            fault,
            Fault::OutOfBounds {
                access: Access::Load,
                ..
            }
        );
        assert_eq!(fault.line().unwrap(), marked("memory.cu", "stack"));
    }
}

fn a_window_of_a_larger_buffer_is_as_strict() {
    // As if the 32 numbers were the part of a buffer that begins at element 2³³ of `output`.
    let first = 1u64 << 33;
    let windowed = |at| {
        let mut launch = TestLaunch {
            count: at,
            ..TestLaunch::new(1, 32)
        };
        launch.output_address = launch.output.address_as_window(first);
        launch
    };
    assert_sound("memory_far_away", || windowed(first));
    for fault in faults("memory_far_away", || windowed(first + 1)) {
        assert!(
            fault
                .to_string()
                .contains("0 bytes past the end of 'output'"),
            "{fault}"
        );
    }
    // What an offset of 32 bits would come to.
    for fault in faults("memory_far_away", || windowed(first as u32 as u64)) {
        assert_fault!(fault, Fault::OutOfBounds { .. });
    }
}

fn aligned_accesses_are_sound() {
    let launch = || TestLaunch {
        threads: 16,
        ..TestLaunch::new(1, 64)
    };
    assert_eq!(
        assert_sound("alignment_sound", launch)
            .unwrap()
            .output()
            .unwrap()[63],
        63.0
    );
}

fn misaligned_accesses_are_caught() {
    for fault in faults("alignment_of_packet", || TestLaunch {
        threads: 8,
        ..TestLaunch::new(1, 64)
    }) {
        assert_fault!(fault, Fault::Misaligned { bytes: 16, .. });
        assert!(
            fault.to_string().contains(&marked("memory.cu", "packet")),
            "{fault}"
        );
    }
    for fault in faults("alignment_of_number", || TestLaunch::new(1, 32)) {
        assert_fault!(fault, Fault::Misaligned { bytes: 4, .. });
        assert_eq!(fault.line().unwrap(), marked("memory.cu", "number"));
    }
}

fn what_is_written_may_be_read() {
    let mut launch = assert_sound("initialisation_sound", || TestLaunch::new(1, 32)).unwrap();
    assert_eq!(launch.output().unwrap()[31], 0.0);
}

fn reading_uninitialised_memory_is_caught() {
    for (kernel, blocks, mark) in [
        ("initialisation_of_global", 1, "global"),
        ("initialisation_of_shared", 1, "shared"),
        ("initialisation_by_block_before", 4, "before"),
    ] {
        for fault in faults(kernel, || TestLaunch::new(blocks, 32)) {
            assert_fault!(fault, Fault::NeverWritten { .. });
            assert_eq!(fault.line().unwrap(), marked("initialisation.cu", mark));
        }
    }
}

fn an_output_with_a_gap_is_caught() {
    let mut launch = assert_sound("initialisation_of_output", || TestLaunch::new(1, 32)).unwrap();
    assert_fault!(
        launch.output().unwrap_err(),
        Fault::OutputNeverWritten { element: 5, .. }
    );
}

fn a_launch_beyond_the_device_is_refused() {
    let refusals = [
        ("no_such_kernel", TestLaunch::new(1, 32)),
        (
            "memory_sound",
            TestLaunch {
                blocks: 0,
                ..TestLaunch::new(1, 32)
            },
        ),
        (
            "memory_sound",
            TestLaunch {
                threads: 2048,
                ..TestLaunch::new(1, 32)
            },
        ),
        (
            "memory_sound",
            TestLaunch {
                shared_bytes: 1 << 20,
                ..TestLaunch::new(1, 32)
            },
        ),
        (
            "memory_sound",
            TestLaunch {
                blocks: 65,
                ..TestLaunch::new(1, 32)
            }
            .cooperative(),
        ),
        // Its parameters are of another size.
        ("numbers", TestLaunch::new(1, 32)),
    ];
    for (kernel, mut launch) in refusals {
        let fault = launch.run(kernel).unwrap_err();
        println!("{fault}");
        assert_fault!(fault, Fault::Launch(_));
    }
}

fn launch_bounds_are_those_of_the_source() {
    let (threads, blocks) = (32, 32);
    assert_eq!(
        launch_bounds("race_sound_warp"),
        Some(LaunchBounds { threads, blocks })
    );
    assert_eq!(launch_bounds("no_such_kernel"), None);
}

candle_trie_emulator::emulated_tests! {
    a_kernel_that_stays_inside_is_sound,
    a_load_past_the_end_is_caught,
    a_store_before_the_start_is_caught,
    what_was_given_back_may_not_be_touched,
    shared_memory_has_an_end,
    a_thread_has_no_part_in_the_stack_of_another,
    a_window_of_a_larger_buffer_is_as_strict,
    aligned_accesses_are_sound,
    misaligned_accesses_are_caught,
    what_is_written_may_be_read,
    reading_uninitialised_memory_is_caught,
    an_output_with_a_gap_is_caught,
    a_launch_beyond_the_device_is_refused,
    launch_bounds_are_those_of_the_source,
}
