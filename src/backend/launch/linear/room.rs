//! What a block keeps of a row on chip.

use super::{LinearRows, packet};
use crate::backend::launch::{DeviceLimits, Element, WARP};

/// What a block keeps on chip of a ragged row; mirrors `RaggedRoom` of `kernels/linear_ragged.cuh`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub tile_rows: u32,
    pub keeps_head: bool,
    pub keeps_hidden: bool,
}

/// Blocks that take one row at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowShape {
    pub threads: u32,
    /// Shared memory that a block needs besides its room.
    scratch_bytes: u32,
    row_bytes: u32,
}

impl RowShape {
    /// Mirrors `scratch_bytes` of `kernels/totals.cuh`.
    const SCRATCH_BYTES: u32 = 512;
    const SCORES: u32 = 8;
    /// Rows of a tile that is not kept.
    const LOOSE_TILE: u32 = 64;
    /// Where so many head rows of a set fit, a block may have company.
    const ENOUGH_ROWS: u32 = 4;

    /// For rows of `width` elements and blocks that keep `sums_bytes` of sums. A thread has about a packet
    /// of a head row, or [`Self::SCORES`] of a group's.
    pub fn new(rows: &LinearRows, element: Element, width: u32, sums_bytes: u32) -> Self {
        let packets = width.div_ceil(packet(element));
        let longest_group = rows.groups.iter().map(|group| group.tokens).max();
        let by_scores = longest_group.unwrap_or(0) / Self::SCORES;
        Self {
            threads: packets.max(by_scores).next_power_of_two().clamp(64, 512),
            scratch_bytes: sums_bytes + Self::SCRATCH_BYTES,
            row_bytes: 16 * packets,
        }
    }

    /// As many head rows as fit beside each other's blocks, of which there need be no more than rows.
    pub fn largest_room(&self, rows: &LinearRows, limits: &DeviceLimits) -> Room {
        let longest = rows.longest_ragged;
        if longest == 0 {
            return Room::default();
        }
        let ragged = (rows.rows.len() - rows.grouped()) as u32;
        let by_threads = DeviceLimits::THREADS_PER_MULTIPROCESSOR / self.threads;
        let company = ragged
            .div_ceil(limits.multiprocessors.max(1))
            .clamp(1, by_threads);
        let kept = (1..=company).rev().find_map(|blocks| {
            let rows = self.rows_that_fit(limits.shared_bytes_of_each(blocks), longest);
            let enough = if blocks == 1 {
                1
            } else {
                longest.min(Self::ENOUGH_ROWS)
            };
            (rows >= enough).then_some(Room {
                tile_rows: rows,
                keeps_head: true,
                keeps_hidden: true,
            })
        });
        kept.unwrap_or_else(|| self.loose_room(rows, limits))
    }

    /// Without the head rows, and with the hidden state where it fits.
    pub fn loose_room(&self, rows: &LinearRows, limits: &DeviceLimits) -> Room {
        if rows.longest_ragged == 0 {
            return Room::default();
        }
        let loose = Room {
            tile_rows: rows.longest_ragged.min(Self::LOOSE_TILE),
            keeps_head: false,
            keeps_hidden: true,
        };
        Room {
            keeps_hidden: self.shared_bytes(loose) <= limits.shared_bytes_of_each(1),
            ..loose
        }
    }

    pub fn shared_bytes(&self, room: Room) -> u32 {
        if room == Room::default() {
            // No ragged row, no room.
            return self.scratch_bytes;
        }
        let numbers = (2 * room.tile_rows + self.threads / WARP).next_multiple_of(4);
        let hidden = u32::from(room.keeps_hidden);
        let head = if room.keeps_head { room.tile_rows } else { 0 };
        self.scratch_bytes + 4 * numbers + (hidden + head).saturating_mul(self.row_bytes)
    }

    /// How many head rows of a tile, up to `longest`, fit into so many bytes.
    fn rows_that_fit(&self, bytes: u32, longest: u32) -> u32 {
        let with = |tile_rows| {
            self.shared_bytes(Room {
                tile_rows,
                keeps_head: true,
                keeps_hidden: true,
            })
        };
        // Each row takes its elements and two numbers; alignment is what may be one row too much.
        let each = self.row_bytes + 8;
        let guess = (bytes.saturating_sub(with(0)) / each).min(longest);
        if with(guess) <= bytes {
            guess
        } else {
            guess.saturating_sub(1)
        }
    }
}
