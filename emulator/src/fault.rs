//! The errors that the emulator reports.

use std::fmt;

use crate::shadow::Access;
use crate::site::Site;

/// A thread, by its indices in the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The index of its block in the grid (x fastest).
    pub block: u32,
    /// Its index in its block (x fastest).
    pub thread: u32,
}

/// An error of a kernel or of its launch. A site is a line of the kernel's source.
#[derive(Clone)]
#[non_exhaustive]
pub enum Fault {
    /// The launch itself is not possible, for the reason given.
    Launch(String),
    /// An access to memory outside all buffers and the block's shared memory.
    OutOfBounds {
        /// The kind of access.
        access: Access,
        /// The size of the access, in bytes.
        bytes: u32,
        /// A description of the address.
        place: String,
        /// The thread at fault.
        thread: Thread,
        /// The line of the kernel's source.
        site: Site,
    },
    /// An access to an address that is not a multiple of its size.
    Misaligned {
        /// The size of the access, in bytes.
        bytes: u32,
        /// The address.
        address: u64,
        /// The thread at fault.
        thread: Thread,
        /// The line of the kernel's source.
        site: Site,
    },
    /// A load of uninitialised bytes.
    NeverWritten {
        /// The name of the buffer.
        buffer: String,
        /// The offset in the buffer, in bytes.
        offset: u64,
        /// The thread at fault.
        thread: Thread,
        /// The line of the kernel's source.
        site: Site,
    },
    /// The host reads an element that no kernel has written.
    OutputNeverWritten {
        /// The name of the buffer.
        buffer: String,
        /// The first such element.
        element: usize,
    },
    /// Two accesses to one address, at least one of them a store, that no synchronisation orders.
    Race {
        /// The name of the buffer.
        buffer: String,
        /// The offset in the buffer, in bytes.
        offset: u64,
        /// The access that came first in this schedule.
        earlier: (Thread, Site),
        /// The access that came second.
        later: (Thread, Site),
    },
    /// A barrier that not all threads of the block (or of the grid) reach, or that they reach at
    /// different lines.
    Barrier {
        /// A description of what another thread does instead.
        reason: String,
        /// A thread that waits.
        thread: Thread,
        /// The barrier at which it waits.
        site: Site,
    },
    /// An asynchronous copy whose bytes are accessed before it is awaited, that is never awaited, or that is not from global to
    /// shared memory.
    Copy {
        /// A description of the error.
        reason: String,
        /// The thread at fault.
        thread: Thread,
        /// The line of the kernel's source.
        site: Site,
    },
    /// A warp operation whose lanes do not agree, or that has invalid operands.
    Warp {
        /// A description of the error.
        reason: String,
        /// The thread at fault.
        thread: Thread,
        /// The line of the kernel's source.
        site: Site,
    },
    /// A launch that takes more steps than its limit, such as one with a loop that does not end.
    Endless {
        /// The number of steps.
        steps: u64,
        /// The thread that ran last.
        thread: Thread,
        /// The line of the kernel's source.
        site: Site,
    },
    /// A kernel that needs more stack than the emulator has for a thread.
    StackOverflow(Thread),
    /// Results that depend on the order in which the threads run.
    ScheduleDependent {
        /// The seeds of two orders with different results.
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
                    "{site}: {thread} accesses {bytes} bytes at {address:#x}, which is not a multiple of {bytes}"
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
                    "{site}: {thread} reads byte {offset} of '{buffer}', which is uninitialised"
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

/// Prints the message like `Display`, because a failing test shows this.
impl fmt::Debug for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// Returns the line of the kernel's source where the fault happened, as `file:line`. For a race it is that of the later
    /// access.
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
