//! The table of the linear operation.

use super::timer::Timer;
use super::work::Work;

/// Where the lines of a model in one type are printed.
pub struct Table<'a> {
    pub timer: &'a Timer,
    /// What every line begins with.
    pub name: String,
    /// Operations a second of a matrix product.
    pub peak: f64,
}

/// What was measured of a launch or of several. Times are seconds.
pub struct Line<'a> {
    pub name: &'a str,
    pub work: Work,
    pub cold: f64,
    pub warm: f64,
    /// Of a step by the host's clock, where a user would see it.
    pub host: Option<f64>,
    /// Bytes beside inputs and the hidden gradient.
    pub taken: Option<u64>,
}

impl Table<'_> {
    pub fn print_header() {
        println!(
            "\n*Cold*: the L2 was swept. *Warm*: the same inputs again and again. *Host*: a step by the \
             host's clock, the longer of\nthe host's and the device's time. *Floor*: the least bytes at \
             the speed of a copy, or the operations at that of a\nmatrix product. *Taken*: memory beside \
             hidden states, head and hidden gradient, at its highest.\n"
        );
        println!(
            "| {:<58} | {:>8} | {:>8} | {:>8} | {:>8} | {:>7} | {:>8} | {:>8} |",
            "linear operation",
            "cold µs",
            "warm µs",
            "host µs",
            "least MB",
            "GFLOP",
            "floor µs",
            "taken MB"
        );
        println!(
            "|{:-<60}|{:->10}|{:->10}|{:->10}|{:->10}|{:->9}|{:->10}|{:->10}|",
            "", ":", ":", ":", ":", ":", ":", ":"
        );
    }

    pub fn print(&self, line: &Line) {
        let Work { bytes, operations } = line.work;
        let floor = (bytes / self.timer.bandwidth()).max(operations / self.peak);
        println!(
            "| {:<58} | {:>8.2} | {:>8.2} | {:>8} | {:>8.3} | {:>7.3} | {:>8.2} | {:>8} |",
            format!("{}, {}", self.name, line.name),
            line.cold * 1e6,
            line.warm * 1e6,
            or_dash(line.host.map(|seconds| seconds * 1e6)),
            bytes / 1e6,
            operations / 1e9,
            floor * 1e6,
            or_dash(line.taken.map(|bytes| bytes as f64 / 1e6)),
        );
    }
}

fn or_dash(number: Option<f64>) -> String {
    number.map_or("–".into(), |number| format!("{number:.1}"))
}
