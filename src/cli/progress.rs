//! How far a command has come, for who waits at a terminal, and lines that do not disturb it.
//!
//! This module counts nothing but steps.

use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{complain, say};

/// Failures that are named; the others are counted. What is wrong with ten is wrong with the rest.
const NAMED_MAX: u64 = 10;

/// A bar on standard error, if that is a terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    named: AtomicU64,
}

impl Progress {
    /// `total` steps, or as many as are added later.
    pub(super) fn new(total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let shape = "{wide_bar} {pos}/{len}, {per_sec}, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(shape).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self {
            bar,
            named: AtomicU64::new(0),
        }
    }

    /// No bar, whoever waits.
    pub(super) fn hidden() -> Self {
        let progress = Self::new(0);
        progress.bar.set_draw_target(ProgressDrawTarget::hidden());
        progress
    }

    /// One step was made.
    pub(super) fn step(&self) {
        self.bar.inc(1);
    }

    /// There is one more step to make.
    pub(super) fn more(&self) {
        self.bar.inc_length(1);
    }

    /// Prints a line that was asked for.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }

    /// Complains about one thing, unless that was done often enough.
    pub(super) fn complain(&self, line: &str) {
        match self.named.fetch_add(1, Ordering::Relaxed) {
            n if n < NAMED_MAX => self.bar.suspend(|| complain(line)),
            NAMED_MAX => self
                .bar
                .suspend(|| complain("more of that is only counted")),
            _ => {}
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
