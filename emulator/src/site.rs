//! Sites: positions in kernel sources.

use std::fmt;

/// A position in a kernel's code. It is small enough to be stored for every byte of memory, and is resolved to a line on
/// demand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site(u32);

/// Sites are stored as 32-bit offsets from this static, because a program is smaller than 2 GiB. A static has one address, where
/// a compiler may make copies of a function.
static ANCHOR: u8 = 0;

fn anchor() -> usize {
    (&raw const ANCHOR).addr()
}

impl Site {
    /// The site of accesses by the host.
    pub const HOST: Self = Self(0);

    /// Returns the site of the call that returns to `address`.
    pub(crate) fn returning_to(address: usize) -> Self {
        Self((address - 1).wrapping_sub(anchor()) as u32)
    }

    /// Returns whether two sites are the same line of the source. A compiler may duplicate the instructions of a line. A line
    /// that is inlined in several places is a different line in each.
    pub(crate) fn same_line(self, other: Self) -> bool {
        if self == other {
            return true;
        }
        // In a stripped program two sites have no lines, which does not make them the same.
        let lines = self.lines();
        !lines.is_empty() && lines == other.lines()
    }

    /// Returns the line as `file:line`, followed by the lines at which it is inlined, innermost first.
    pub fn lines(self) -> Vec<String> {
        let mut lines = Vec::new();
        let address = anchor().wrapping_add(self.0 as i32 as usize);
        backtrace::resolve(address as *mut _, |symbol| {
            let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) else {
                return;
            };
            let file = in_repository(&file.to_string_lossy());
            // The emulator's own headers are left out, as they are not part of the kernel.
            if !file.starts_with("emulator/include/") {
                lines.push(format!("{file}:{line}"));
            }
        });
        lines
    }
}

/// Returns a path relative to the repository. The kernels are compiled in the emulator's folder, as `../kernels/…` and
/// `faulty_kernels/…`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_without_lines_are_not_the_same_line() {
        let [first, second] = [Site(1), Site(2)];
        assert!(first.lines().is_empty());
        assert!(first.same_line(first) && !first.same_line(second));
    }
}
