//! Counts, where they are known.

use crate::faulty_kernels::TestLaunch;
use candle_trie_emulator::Report;

fn traced(kernel: &str, count: u64, threads: u32) -> Report {
    let mut launch = TestLaunch {
        threads,
        shared_bytes: 64 << 10,
        count,
        ..TestLaunch::new(1, 1024)
    };
    launch.emulator = launch.emulator.traced();
    launch.run(kernel).unwrap()
}

fn neighbours_share_sectors() {
    let report = traced("traffic_stride", 1, 64);
    let (input, output) = (report.traffic("input"), report.traffic("output"));
    assert_eq!(
        (input.loaded, input.stored, output.loaded, output.stored),
        (256, 0, 0, 256)
    );
    assert_eq!(
        (
            input.load_sectors,
            input.least_load_sectors,
            input.store_sectors
        ),
        (8, 8, 0)
    );
    assert_eq!(
        (
            output.store_sectors,
            output.least_store_sectors,
            output.load_sectors
        ),
        (8, 8, 0)
    );
}

fn strides_waste_sectors() {
    for (stride, sectors) in [(2, 16), (4, 32), (8, 64), (16, 64)] {
        let input = traced("traffic_stride", stride, 64).traffic("input");
        assert_eq!(
            (input.loaded, input.load_sectors, input.least_load_sectors),
            (256, sectors, 8),
            "stride {stride}"
        );
    }
}

fn a_packet_is_one_access() {
    let report = traced("traffic_packets", 0, 64);
    assert_eq!(report.steps, 2 * 64);
    let (input, output) = (report.traffic("input"), report.traffic("output"));
    assert_eq!(
        (input.loaded, input.load_sectors, input.least_load_sectors),
        (1024, 32, 32)
    );
    assert_eq!(
        (
            output.stored,
            output.store_sectors,
            output.least_store_sectors
        ),
        (1024, 32, 32)
    );
}

fn bank_conflicts_follow_the_stride() {
    for (stride, conflicts) in [(1, 0), (2, 1), (4, 3), (8, 7), (32, 31), (33, 0)] {
        let report = traced("traffic_banks", stride, 32);
        assert_eq!(report.shared.bank_conflicts, conflicts, "stride {stride}");
        assert_eq!(report.shared.stored, 128);
    }
    // Two warps wait for themselves, not for each other.
    assert_eq!(traced("traffic_banks", 32, 64).shared.bank_conflicts, 62);
}

fn packets_are_served_by_quarters_of_a_warp() {
    for (stride, conflicts) in [(4, 0), (8, 4), (32, 4 * 7)] {
        assert_eq!(
            traced("traffic_shared_packets", stride, 32)
                .shared
                .bank_conflicts,
            conflicts,
            "stride {stride}"
        );
    }
}

fn lanes_that_skip_a_turn_are_not_joined_with_others() {
    let report = traced("traffic_some_lanes", 1, 32);
    assert_eq!(report.shared.bank_conflicts, 0);
}

fn lines_are_told_apart() {
    let report = traced("traffic_stride", 1, 64);
    let lines = report.by_line();
    assert_eq!(lines.len(), 2);
    for line in lines {
        let buffer = line.buffer.as_deref().unwrap();
        assert_eq!(line.traffic, report.traffic(buffer));
        assert!(line.lines[0].starts_with("emulator/faulty_kernels/traffic.cu:"));
    }
}

candle_trie_emulator::emulated_tests! {
    neighbours_share_sectors,
    strides_waste_sectors,
    a_packet_is_one_access,
    bank_conflicts_follow_the_stride,
    packets_are_served_by_quarters_of_a_warp,
    lanes_that_skip_a_turn_are_not_joined_with_others,
    lines_are_told_apart,
}
