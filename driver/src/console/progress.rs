//! Shows progress on standard error: a bar on a terminal, a few plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The progress of one task of known length.
pub struct Progress {
    label: String,
    length: usize,
    first: usize,
    done: usize,
    detail: String,
    begun: Instant,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant },
}

impl Progress {
    /// Begins a task.
    pub fn new(label: impl Into<String>, length: usize) -> Self {
        let label = label.into();
        let begun = Instant::now();
        let display = if stderr().is_terminal() {
            Display::Bar(bar(&label, length))
        } else {
            Display::Lines { last: begun }
        };
        Self {
            label,
            length,
            first: 0,
            done: 0,
            detail: String::new(),
            begun,
            display,
        }
    }

    /// Sets how much of the task was done before.
    pub fn starting_at(mut self, done: usize) -> Self {
        (self.first, self.done) = (done, done);
        if let Display::Bar(bar) = &self.display {
            bar.set_position(done as u64);
            bar.reset_eta();
        }
        self
    }

    /// Says something beside the count.
    pub fn detail(&mut self, detail: String) {
        if let Display::Bar(bar) = &self.display {
            bar.set_message(detail.clone());
        }
        self.detail = detail;
    }

    /// Counts some more as done.
    pub fn advance(&mut self, count: usize) {
        self.done += count;
        let due = match &mut self.display {
            Display::Bar(bar) => {
                bar.set_position(self.done as u64);
                false
            }
            Display::Lines { last } => {
                let due = last.elapsed() >= LINE_EVERY;
                if due {
                    *last = Instant::now();
                }
                due
            }
        };
        if due {
            eprintln!(
                "{}: {}/{}, {}, {} left; {}",
                self.label,
                self.done,
                self.length,
                self.rate(),
                HumanDuration(self.left()),
                self.detail
            );
        }
    }

    fn per_second(&self) -> f64 {
        (self.done - self.first) as f64 / self.begun.elapsed().as_secs_f64()
    }

    fn rate(&self) -> String {
        match self.per_second() {
            rate if rate < 1.0 => format!("{:.1} s each", 1.0 / rate),
            rate => format!("{rate:.1}/s"),
        }
    }

    fn left(&self) -> Duration {
        let left = self.length.saturating_sub(self.done) as f64;
        Duration::try_from_secs_f64(left / self.per_second()).unwrap_or(Duration::MAX)
    }

    /// Ends the task and says how long it took.
    pub fn finish(self) -> Duration {
        let elapsed = self.begun.elapsed();
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
        eprintln!(
            "{}: {} in {:.1} s {}",
            self.label,
            self.done,
            elapsed.as_secs_f64(),
            self.detail
        );
        elapsed
    }
}

fn bar(label: &str, length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64).with_prefix(label.to_owned());
    let template = "{prefix:<28} {wide_bar} {pos}/{len} {per_sec} {eta} {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
