//! The last day of a mount: samples in memory, a finer ring for the last hour and a coarser one for the day.
//!
//! At most 650 samples of 112 bytes, 73 kB. They are of counters that only grow, so what happened between any two of
//! them is their difference, and a sample that was late or is missing loses nothing. Time is handed in.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::control::Status;

/// How often a sample is taken for the last hour …
pub const FINE: Duration = Duration::from_secs(10);
/// … and every how many of those is kept for the day: five minutes.
const COARSE: u64 = 30;
/// One more than fit into the hour: differences are between two.
const FINE_KEPT: usize = 361;
const COARSE_KEPT: usize = 289;

/// The names of what a [`Sample`] holds, in the order in which it is written.
pub const COLUMNS: [&str; 12] = [
    "time",
    "hits",
    "asked",
    "hit_bytes",
    "fetched",
    "fetched_bytes",
    "uploaded",
    "uploaded_bytes",
    "pending",
    "pending_bytes",
    "bytes_used",
    "upload_errors",
];

/// The figures at one moment; counters are since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// On the monotonic clock.
    pub at: Duration,
    /// As [`COLUMNS`] name them; the time in seconds since 1970.
    pub figures: [u64; COLUMNS.len()],
}

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.figures.serialize(serializer)
    }
}

/// What happened in one of the equal parts that a span of time is cut into, and how it stood at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Entries opened.
    pub hits: u64,
    /// Of so many lookups.
    pub asked: u64,
    /// Content bytes fetched.
    pub fetched_bytes: u64,
    /// Content bytes uploaded.
    pub uploaded_bytes: u64,
    /// Most objects that were seen pending.
    pub pending: u64,
    /// Whether anything is known of it.
    pub known: bool,
}

/// A span of time that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last hour, in minutes.
    Hour,
    /// The last 24 hours, in quarters of an hour.
    Day,
}

impl Span {
    /// How many parts it has.
    pub fn parts(self) -> usize {
        match self {
            Self::Hour => 60,
            Self::Day => 96,
        }
    }

    /// How long each is.
    pub fn part(self) -> Duration {
        match self {
            Self::Hour => Duration::from_secs(60),
            Self::Day => Duration::from_secs(900),
        }
    }
}

/// The samples.
#[derive(Debug, Default)]
pub struct History {
    fine: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
    taken: u64,
    due: Duration,
}

/// As `/history.json` shows them.
#[derive(Serialize)]
struct Shown<'a> {
    columns: [&'a str; COLUMNS.len()],
    hour: &'a VecDeque<Sample>,
    day: &'a VecDeque<Sample>,
    now: Sample,
}

impl Sample {
    /// The figures of `status`.
    pub fn of(status: &Status, at: Duration, unix: u64) -> Self {
        let c = &status.counters;
        Self {
            at,
            figures: [
                unix,
                c.hits,
                c.asked(),
                c.hit_bytes,
                c.fetched,
                c.fetched_bytes,
                c.uploaded,
                c.uploaded_bytes,
                status.pending.objects,
                status.pending.bytes,
                status.bytes_used,
                c.upload_errors,
            ],
        }
    }

    fn get(&self, column: &str) -> u64 {
        let at = COLUMNS.iter().position(|name| *name == column);
        at.map_or(0, |at| self.figures[at])
    }
}

impl History {
    /// How long until the next sample is due.
    pub fn due_in(&self, now: Duration) -> Duration {
        self.due.saturating_sub(now)
    }

    /// Keeps a sample. The next is due [`FINE`] later.
    pub fn add(&mut self, sample: Sample) {
        self.due = sample.at + FINE;
        push(&mut self.fine, FINE_KEPT, sample);
        if self.taken.is_multiple_of(COARSE) {
            push(&mut self.coarse, COARSE_KEPT, sample);
        }
        self.taken += 1;
    }

    /// All samples, and how it stands now.
    pub fn json(&self, now: Sample) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Shown {
            columns: COLUMNS,
            hour: &self.fine,
            day: &self.coarse,
            now,
        })
    }

    /// What happened in each part of the span that ends now, the oldest first.
    pub fn parts(&self, span: Span, now: Sample) -> Vec<Part> {
        let samples = match span {
            Span::Hour => &self.fine,
            Span::Day => &self.coarse,
        };
        let mut parts = vec![Part::default(); span.parts()];
        let all = samples.iter().chain([&now]);
        for (before, after) in all.clone().zip(all.skip(1)) {
            let age = now.at.saturating_sub(after.at).as_secs() / span.part().as_secs();
            let age = usize::try_from(age).unwrap_or(usize::MAX);
            let Some(at) = span
                .parts()
                .checked_sub(1)
                .and_then(|last| last.checked_sub(age))
            else {
                continue;
            };
            let grown = |column| after.get(column).saturating_sub(before.get(column));
            let part = &mut parts[at];
            part.known = true;
            part.hits += grown("hits");
            part.asked += grown("asked");
            part.fetched_bytes += grown("fetched_bytes");
            part.uploaded_bytes += grown("uploaded_bytes");
            part.pending = part.pending.max(after.get("pending"));
        }
        parts
    }
}

fn push(ring: &mut VecDeque<Sample>, kept: usize, sample: Sample) {
    if ring.len() == kept {
        ring.pop_front();
    }
    ring.push_back(sample);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Pending;
    use crate::stats::Snapshot;

    fn sample(seconds: u64, hits: u64, pending: u64) -> Sample {
        let status = Status {
            counters: Snapshot {
                hits,
                misses: hits,
                fetched_bytes: 10 * hits,
                ..Snapshot::default()
            },
            pending: Pending {
                objects: pending,
                ..Pending::default()
            },
            ..Status::default()
        };
        Sample::of(
            &status,
            Duration::from_secs(seconds),
            1_700_000_000 + seconds,
        )
    }

    /// One hit a second for so long.
    fn history(seconds: u64) -> History {
        let mut history = History::default();
        for at in (0..=seconds).step_by(10) {
            assert_eq!(history.due_in(Duration::from_secs(at)), Duration::ZERO);
            history.add(sample(at, at, 0));
        }
        history
    }

    #[test]
    fn a_week_takes_no_more_room_than_a_day() {
        let history = history(7 * 86400);
        assert_eq!(
            (history.fine.len(), history.coarse.len()),
            (FINE_KEPT, COARSE_KEPT)
        );
        let kept = (FINE_KEPT + COARSE_KEPT + 2) * size_of::<Sample>();
        assert!(kept < 80_000, "{kept}");
        let json = history.json(sample(7 * 86400, 0, 0)).unwrap();
        assert!(json.len() < 120_000, "{}", json.len());
    }

    #[test]
    fn the_parts_add_up_to_what_happened() {
        for (span, seconds) in [(Span::Hour, 3600), (Span::Day, 86400)] {
            let history = history(2 * 86400);
            let parts = history.parts(span, sample(2 * 86400 + 5, 2 * 86400 + 5, 3));
            assert_eq!(parts.len(), span.parts());
            let hits: u64 = parts.iter().map(|part| part.hits).sum();
            assert!(hits.abs_diff(seconds) <= 310, "{hits}");
            assert!(
                parts
                    .iter()
                    .all(|part| part.known && part.asked == 2 * part.hits)
            );
            assert_eq!(parts.last().unwrap().pending, 3);
            assert_eq!(parts[0].pending, 0);
        }
    }

    #[test]
    fn what_was_before_the_mount_is_not_known() {
        let parts = history(120).parts(Span::Hour, sample(125, 125, 0));
        let known: Vec<_> = parts.iter().map(|part| part.known).collect();
        assert_eq!(known.iter().filter(|known| **known).count(), 2);
        assert!(known.ends_with(&[false, true, true]));
        assert_eq!(
            parts.iter().map(|part| part.fetched_bytes).sum::<u64>(),
            1250
        );
    }

    #[test]
    fn the_first_moments_are_seen_before_a_second_sample() {
        let mut history = History::default();
        history.add(sample(0, 0, 0));
        let parts = history.parts(Span::Day, sample(3, 3, 1));
        assert_eq!(parts.last().unwrap().hits, 3);
    }

    #[test]
    fn a_column_is_what_it_is_named() {
        let seen = sample(5, 7, 2);
        let shown = ["time", "hits", "asked", "fetched_bytes", "pending"].map(|c| seen.get(c));
        assert_eq!(shown, [1_700_000_005, 7, 14, 70, 2]);
        assert_eq!(seen.get("no such"), 0);
    }
}
