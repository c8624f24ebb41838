//! The memory traffic of a launch: bytes, sectors and bank conflicts.

use std::collections::HashMap;
use std::ops::AddAssign;

use crate::order::WARP;
use crate::shadow::Access;
use crate::site::Site;

const SECTOR_BYTES: u64 = 32;
const BANKS: usize = 32;
const BANK_BYTES: u64 = 4;
/// The bytes that shared memory serves at a time. A wider access of a warp is served in parts of as many lanes as have this
/// many bytes, active or not.
const SHARED_BYTES_AT_ONCE: u64 = 128;

/// The memory traffic of a buffer or of shared memory. An atomic counts as a load and a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The bytes loaded.
    pub loaded: u64,
    /// The bytes stored.
    pub stored: u64,
    /// The 32-byte sectors that the loads of warps touch. This and the following fields are counted in a traced launch only.
    pub load_sectors: u64,
    /// The smallest number of sectors for these loads, if their distinct bytes were contiguous.
    pub least_load_sectors: u64,
    /// The 32-byte sectors that the stores of warps touch.
    pub store_sectors: u64,
    /// The smallest number of sectors for these stores, if their distinct bytes were contiguous.
    pub least_store_sectors: u64,
    /// The bank conflicts of shared memory: how many times an access of a warp is repeated because lanes access different words
    /// of one bank.
    pub bank_conflicts: u64,
}

impl Traffic {
    pub(crate) fn count(&mut self, access: Access, bytes: u64) {
        self.loaded += if access == Access::Store { 0 } else { bytes };
        self.stored += if access == Access::Load { 0 } else { bytes };
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.loaded += other.loaded;
        self.stored += other.stored;
        self.load_sectors += other.load_sectors;
        self.least_load_sectors += other.least_load_sectors;
        self.store_sectors += other.store_sectors;
        self.least_store_sectors += other.least_store_sectors;
        self.bank_conflicts += other.bank_conflicts;
    }
}

/// A place in memory: a buffer, or shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    Shared,
    Buffer(usize),
}

/// An access of one thread.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) site: Site,
    /// The number of barriers that the thread has passed plus that of groups that it has committed, which all lanes of a warp
    /// do together.
    pub(crate) epoch: u32,
    pub(crate) place: Place,
    pub(crate) access: Access,
    pub(crate) bytes: u32,
    pub(crate) address: u64,
}

/// Combines the accesses of a warp's lanes as the hardware would: the n-th execution of an instruction in an epoch by each lane
/// is one access of the warp. A lane that skips iterations of a loop is therefore combined with too early an iteration of the
/// others.
pub(crate) fn add_warp_accesses(lanes: &[Vec<Event>], mut add: impl FnMut(Site, Place, Traffic)) {
    debug_assert!(lanes.len() <= WARP);
    let mut events = Vec::new();
    for (lane, trace) in lanes.iter().enumerate() {
        let mut counts = HashMap::<(Site, u32, Place), u32>::new();
        for event in trace {
            let instruction = (event.site, event.epoch, event.place);
            let count = counts.entry(instruction).or_default();
            events.push((*count, lane, *event));
            *count += 1;
        }
    }
    // The sort is stable, so lanes stay in order.
    let together =
        |&(count, _, event): &(u32, usize, Event)| (event.site, event.epoch, count, event.place);
    events.sort_by_key(together);
    for together in events.chunk_by(|a, b| together(a) == together(b)) {
        let accesses: Vec<(usize, Event)> = (together.iter())
            .map(|&(_, lane, event)| (lane, event))
            .collect();
        let first = accesses[0].1;
        let mut traffic = match first.place {
            Place::Shared => Traffic {
                bank_conflicts: bank_conflicts(&accesses),
                ..Traffic::default()
            },
            Place::Buffer(_) => sectors(&accesses),
        };
        for (_, access) in &accesses {
            traffic.count(access.access, access.bytes.into());
        }
        add(first.site, first.place, traffic);
    }
}

fn sectors(accesses: &[(usize, Event)]) -> Traffic {
    let mut touched: Vec<u64> = accesses
        .iter()
        .flat_map(|(_, access)| units(access, SECTOR_BYTES))
        .collect();
    touched.sort_unstable();
    touched.dedup();
    let mut bytes: Vec<u64> = accesses
        .iter()
        .flat_map(|(_, access)| units(access, 1))
        .collect();
    bytes.sort_unstable();
    bytes.dedup();
    let (sectors, least) = (
        touched.len() as u64,
        (bytes.len() as u64).div_ceil(SECTOR_BYTES),
    );
    let mut traffic = Traffic::default();
    let access = accesses[0].1.access;
    if access != Access::Store {
        (traffic.load_sectors, traffic.least_load_sectors) = (sectors, least);
    }
    if access != Access::Load {
        (traffic.store_sectors, traffic.least_store_sectors) = (sectors, least);
    }
    traffic
}

/// Returns the indices of the units of memory that an access touches.
fn units(access: &Event, unit: u64) -> std::ops::RangeInclusive<u64> {
    access.address / unit..=(access.address + u64::from(access.bytes) - 1) / unit
}

fn bank_conflicts(accesses: &[(usize, Event)]) -> u64 {
    let bytes = u64::from(accesses[0].1.bytes);
    let lanes_at_once = (SHARED_BYTES_AT_ONCE / bytes.max(BANK_BYTES)).max(1) as usize;
    let parts = accesses.chunk_by(|a, b| a.0 / lanes_at_once == b.0 / lanes_at_once);
    parts
        .map(|part| {
            let mut words: Vec<u64> = part
                .iter()
                .flat_map(|(_, access)| units(access, BANK_BYTES))
                .collect();
            words.sort_unstable();
            words.dedup();
            let mut words_of_bank = [0u64; BANKS];
            for word in words {
                words_of_bank[word as usize % BANKS] += 1;
            }
            words_of_bank
                .into_iter()
                .max()
                .unwrap_or_default()
                .saturating_sub(1)
        })
        .sum()
}
