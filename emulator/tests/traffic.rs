//! Counts, where they are known.

mod planted;

use candle_trie_emulator::Report;
use planted::{Planted, is_skipped};

fn traced(kernel: &str, count: u64, threads: u32) -> Report {
    let mut planted = Planted {
        threads,
        shared_bytes: 64 << 10,
        count,
        ..Planted::new(1, 1024)
    };
    planted.emulator = planted.emulator.traced();
    planted.run(kernel).unwrap()
}

#[test]
fn neighbours_share_sectors() {
    if is_skipped() {
        return;
    }
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

#[test]
fn strides_waste_sectors() {
    if is_skipped() {
        return;
    }
    for (stride, sectors) in [(2, 16), (4, 32), (8, 64), (16, 64)] {
        let input = traced("traffic_stride", stride, 64).traffic("input");
        assert_eq!(
            (input.loaded, input.load_sectors, input.least_load_sectors),
            (256, sectors, 8),
            "stride {stride}"
        );
    }
}

#[test]
fn a_packet_is_one_access() {
    if is_skipped() {
        return;
    }
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

#[test]
fn bank_conflicts_follow_the_stride() {
    if is_skipped() {
        return;
    }
    for (stride, conflicts) in [(1, 0), (2, 1), (4, 3), (8, 7), (32, 31), (33, 0)] {
        let report = traced("traffic_banks", stride, 32);
        assert_eq!(report.shared.bank_conflicts, conflicts, "stride {stride}");
        assert_eq!(report.shared.stored, 128);
    }
    // Two warps wait for themselves, not for each other.
    assert_eq!(traced("traffic_banks", 32, 64).shared.bank_conflicts, 62);
}

#[test]
fn packets_are_served_by_quarters_of_a_warp() {
    if is_skipped() {
        return;
    }
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
