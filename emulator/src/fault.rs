//! What a kernel can do wrong.

use std::fmt;

use crate::shadow::Access;
use crate::site::Site;

/// A thread, by its place in the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The index of its block in the grid (x fastest).
    pub block: u32,
    /// Its index in its block (x fastest).
    pub thread: u32,
}

/// An error of a kernel or of its launch. Places are lines of its source.
#[derive(Clone)]
#[non_exhaustive]
pub enum Fault {
    /// The launch itself is not possible.
    Launch(String),
    /// Memory that belongs to no buffer, nor to the block's shared memory.
    OutOfBounds {
        /// Load, store or atomic.
        access: Access,
        /// How many bytes.
        bytes: u32,
        /// Where that is, in words.
        place: String,
        /// Who.
        thread: Thread,
        /// Where in the source.
        site: Site,
    },
    /// An address that is not a multiple of the access's size.
    Misaligned {
        /// How many bytes.
        bytes: u32,
        /// The address.
        address: u64,
        /// Who.
        thread: Thread,
        /// Where in the source.
        site: Site,
    },
    /// A load of bytes that nobody has written.
    NeverWritten {
        /// The buffer.
        buffer: String,
        /// How far into it.
        offset: u64,
        /// Who.
        thread: Thread,
        /// Where in the source.
        site: Site,
    },
    /// The host reads an element that no kernel has written.
    OutputNeverWritten {
        /// The buffer.
        buffer: String,
        /// The first such element.
        element: usize,
    },
    /// Two accesses to one address, at least one of them a store, that nothing orders.
    Race {
        /// The buffer.
        buffer: String,
        /// How far into it.
        offset: u64,
        /// Who came first, in this schedule.
        earlier: (Thread, Site),
        /// Who came second.
        later: (Thread, Site),
    },
    /// A barrier that not all threads of the block (or of the grid) reach, or that they reach at
    /// different lines.
    Barrier {
        /// What the threads do instead, in words.
        reason: String,
        /// A thread that waits.
        thread: Thread,
        /// Where it waits.
        site: Site,
    },
    /// An asynchronous copy whose bytes are touched before it is awaited, that is never awaited, or
    /// that is not from global to shared memory.
    Copy {
        /// What is wrong, in words.
        reason: String,
        /// Who.
        thread: Thread,
        /// Where in the source.
        site: Site,
    },
    /// A warp operation whose lanes do not agree, or that is handed what it does not take.
    Warp {
        /// What is wrong, in words.
        reason: String,
        /// Who.
        thread: Thread,
        /// Where in the source.
        site: Site,
    },
    /// More steps than the launch may take: a loop that does not end.
    Endless {
        /// How many steps.
        steps: u64,
        /// Who ran last.
        thread: Thread,
        /// Where in the source.
        site: Site,
    },
    /// A kernel that needs more stack than the emulator has for a thread.
    StackOverflow(Thread),
    /// Results that differ between two orders in which the threads may run.
    ScheduleDependent {
        /// The seeds of the two.
        seeds: (u64, u64),
        /// The first byte in which they differ.
        byte: usize,
    },
    /// The kernels are not compiled on this machine.
    NotEmulated(&'static str),
}

impl fmt::Display for Thread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "thread {} of block {}", self.thread, self.block)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(reason) => write!(formatter, "the launch is not possible: {reason}"),
            Self::OutOfBounds {
                access,
                bytes,
                place,
                thread,
                site,
            } => {
                write!(
                    formatter,
                    "{site}: {thread} makes a {} of {bytes} bytes {place}",
                    word(*access)
                )
            }
            Self::Misaligned {
                bytes,
                address,
                thread,
                site,
            } => {
                write!(
                    formatter,
                    "{site}: {thread} accesses {bytes} bytes at {address:#x}, which is no multiple of {bytes}"
                )
            }
            Self::NeverWritten {
                buffer,
                offset,
                thread,
                site,
            } => {
                write!(
                    formatter,
                    "{site}: {thread} reads byte {offset} of '{buffer}', which nobody has written"
                )
            }
            Self::OutputNeverWritten { buffer, element } => {
                write!(
                    formatter,
                    "no kernel has written element {element} of '{buffer}'"
                )
            }
            Self::Race {
                buffer,
                offset,
                earlier: (first, at),
                later: (second, site),
            } => {
                write!(
                    formatter,
                    "{site}: {second} races for byte {offset} of '{buffer}' with {first} at {at}"
                )
            }
            Self::Barrier {
                reason,
                thread,
                site,
            } => write!(formatter, "{site}: {thread} waits here, but {reason}"),
            Self::Copy {
                reason,
                thread,
                site,
            } => write!(formatter, "{site}: {thread} {reason}"),
            Self::Warp {
                reason,
                thread,
                site,
            } => write!(formatter, "{site}: {thread}: {reason}"),
            Self::Endless {
                steps,
                thread,
                site,
            } => {
                write!(
                    formatter,
                    "no end after {steps} steps; {thread} was last seen at {site}"
                )
            }
            Self::StackOverflow(thread) => write!(
                formatter,
                "{thread} needs more stack than the emulator gives"
            ),
            Self::ScheduleDependent {
                seeds: (a, b),
                byte,
            } => {
                write!(
                    formatter,
                    "the results depend on the order of the threads: seeds {a} and {b} differ at byte {byte}"
                )
            }
            Self::NotEmulated(reason) => {
                write!(formatter, "kernels are not emulated here: {reason}")
            }
        }
    }
}

fn word(access: Access) -> &'static str {
    match access {
        Access::Load => "load",
        Access::Store => "store",
        Access::Atomic => "atomic access",
    }
}

/// Prints the message too, as this is what a failing test shows.
impl fmt::Debug for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// The line of a kernel source, as `file:line`, where it happened (for a race, the later of the
    /// two).
    pub fn line(&self) -> Option<String> {
        let site = match self {
            Self::OutOfBounds { site, .. }
            | Self::Misaligned { site, .. }
            | Self::NeverWritten { site, .. }
            | Self::Race {
                later: (_, site), ..
            }
            | Self::Barrier { site, .. }
            | Self::Copy { site, .. }
            | Self::Warp { site, .. }
            | Self::Endless { site, .. } => site,
            _ => return None,
        };
        site.lines().into_iter().next()
    }
}
