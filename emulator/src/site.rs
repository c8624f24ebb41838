//! Places in kernel sources.

use std::fmt;

/// A place in a kernel's code: small enough to be kept with every byte of memory, and resolved to a
/// line when read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site(u32);

/// Sites are distances from here: a program is smaller than 2 GiB.
fn anchor() -> usize {
    anchor as *const () as usize
}

impl Site {
    /// No place: the host's doing.
    pub const HOST: Self = Self(0);

    /// The call that returns to `address`.
    pub(crate) fn returning_to(address: usize) -> Self {
        Self((address - 1).wrapping_sub(anchor()) as u32)
    }

    /// Returns whether two places are of one line of the source. A compiler may have made several
    /// instructions of it, or have inlined it at several lines, which then count too.
    pub(crate) fn same_line(self, other: Self) -> bool {
        self == other || self.lines() == other.lines()
    }

    /// `file:line` in a kernel source, innermost first: a line of a header is followed by the lines
    /// it is inlined at.
    pub fn lines(self) -> Vec<String> {
        let mut lines = Vec::new();
        let address = anchor().wrapping_add(self.0 as i32 as usize);
        backtrace::resolve(address as *mut _, |symbol| {
            let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) else {
                return;
            };
            let file = in_repository(&file.to_string_lossy());
            // What the emulator itself puts around a kernel is no place that a reader looks for.
            if !file.starts_with("emulator/include/") {
                lines.push(format!("{file}:{line}"));
            }
        });
        lines
    }
}

/// The kernels are compiled in the emulator's folder, as `../kernels/…` and as `faulty_kernels/…`.
fn in_repository(file: &str) -> String {
    match file.strip_prefix(env!("CARGO_MANIFEST_DIR")) {
        Some(inside) => inside
            .strip_prefix("/../")
            .map_or_else(|| format!("emulator{inside}"), str::to_string),
        None => file.to_string(),
    }
}

impl fmt::Display for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = if *self == Self::HOST {
            vec!["the host".to_string()]
        } else {
            self.lines()
        };
        match lines.split_first() {
            None => write!(formatter, "an unknown place (is the program stripped?)"),
            Some((first, [])) => write!(formatter, "{first}"),
            Some((first, outer)) => write!(formatter, "{first} (in {})", outer.join(", in ")),
        }
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}
