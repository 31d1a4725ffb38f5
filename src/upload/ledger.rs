//! What people have to know of single uploads: which diverged, and which were given up.
//!
//! Bounded: the last [`MOST`] of each are kept, in memory only. The log has a line for every divergence and one for
//! every burst of what was given up. Time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::signature::Signature;

/// So many of a kind are kept; then the oldest is forgotten. At most a few hundred bytes each.
pub const MOST: usize = 1000;
/// What is given up within this time of the first is in one line of the log …
const BURST: Duration = Duration::from_secs(1);
/// … and there is not more than one line in so much time, however long the outage is.
const QUIET: Duration = Duration::from_secs(60);

/// A push whose signature the remote holds with other content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The entry.
    pub sig: Signature,
    /// Bytes of what was pushed here.
    pub our_len: u64,
    /// BLAKE3 of that.
    pub our_hash: [u8; 32],
    /// Bytes of what the remote holds, where known.
    pub their_len: Option<u64>,
    /// BLAKE3 of that, where known.
    pub their_hash: Option<[u8; 32]>,
    /// When it was found out.
    pub at: SystemTime,
}

/// An upload that will not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The entry.
    pub sig: Signature,
    /// Its bytes.
    pub bytes: u64,
    /// Why.
    pub why: String,
    /// When.
    pub at: SystemTime,
}

/// The last entries of one kind, each with a number that only rises.
#[derive(Debug)]
pub struct Ledger<T> {
    entries: VecDeque<T>,
    /// The number of the first one that is kept.
    first: u64,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            first: 1,
        }
    }
}

impl<T: Clone> Ledger<T> {
    /// Adds one.
    pub fn add(&mut self, entry: T) {
        if self.entries.len() >= MOST {
            self.entries.pop_front();
            self.first += 1;
        }
        self.entries.push_back(entry);
    }

    /// At most `most` of those whose number is above `after`, oldest first, with their numbers.
    pub fn page(&self, after: u64, most: usize) -> Vec<(u64, T)> {
        let skip = usize::try_from((after + 1).saturating_sub(self.first)).unwrap_or(usize::MAX);
        let numbered = (self.first..).zip(self.entries.iter().cloned());
        numbered.skip(skip).take(most).collect()
    }
}

/// Collects what is given up into few lines of the log.
#[derive(Debug, Default)]
pub struct Burst {
    count: u64,
    bytes: u64,
    first: Option<GivenUp>,
    began: Duration,
    quiet_until: Duration,
}

/// What a line of the log says of a burst.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// How many uploads.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of them.
    pub first: GivenUp,
}

impl Burst {
    /// One more.
    pub fn add(&mut self, given_up: &GivenUp, now: Duration) {
        if self.first.is_none() {
            self.first = Some(given_up.clone());
            self.began = now;
        }
        self.count += 1;
        self.bytes += given_up.bytes;
    }

    /// Whether there is anything that has not been said.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// What is to be said now, if it is time; at the `end` it is.
    pub fn take(&mut self, now: Duration, end: bool) -> Option<Said> {
        let due = (self.began + BURST).max(self.quiet_until);
        if now < due && !end {
            return None;
        }
        let first = self.first.take()?;
        let (count, bytes) = (self.count, self.bytes);
        *self = Self {
            quiet_until: now + QUIET,
            ..Self::default()
        };
        Some(Said {
            count,
            bytes,
            first,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up(n: u64) -> GivenUp {
        GivenUp {
            sig: Signature::parse(format!("{n:032x}").as_bytes()).unwrap(),
            bytes: n,
            why: "a test".to_owned(),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_last_thousand_are_kept_and_can_be_read_page_by_page() {
        let mut ledger = Ledger::default();
        assert!(ledger.page(0, 10).is_empty());
        for n in 1..=1500_u64 {
            ledger.add(n);
        }
        let (mut seen, mut after) = (Vec::new(), 0);
        while let Some((last, _)) = ledger.page(after, 70).last() {
            let page = ledger.page(after, 70);
            after = *last;
            assert!(page.iter().all(|(number, n)| number == n));
            seen.extend(page);
        }
        assert_eq!(seen.first(), Some(&(501, 501)));
        assert_eq!((seen.len(), after), (MOST, 1500));
        assert!(ledger.page(u64::MAX - 1, 1).is_empty());
    }

    #[test]
    fn a_burst_is_one_line_and_an_outage_one_a_minute() {
        let mut burst = Burst::default();
        let mut now = Duration::from_secs(10);
        let mut lines = Vec::new();
        for n in 1..=1000 {
            burst.add(&given_up(n), now);
            now += Duration::from_millis(250);
            lines.extend(burst.take(now, false));
        }
        assert!(lines.len() <= 5, "{} lines in 250 s", lines.len());
        assert_eq!((lines[0].count, lines[0].first.bytes), (4, 1));
        lines.extend(burst.take(now, true));
        assert_eq!(lines.iter().map(|said| said.count).sum::<u64>(), 1000);
        assert!(burst.is_empty() && burst.take(now, true).is_none());
    }
}
