//! Counters of one mount since it began. Everybody counts here; only `control` and what shows figures read it out.
//!
//! What happens to an entry is an [`Event`] and is said with [`Stats::note`], which counts it; the rest is counted by hand.
//! Plain atomics: a reader sees each counter right, not all of them at one instant.

pub mod event;
pub mod histogram;

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use event::{Event, Sink, What};
use histogram::Histogram;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters, to be added to.
        #[derive(Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: Counter,)*
            /// How long things take.
            pub times: Times,
            sink: OnceLock<Sink>,
        }

        /// The counters at one moment, as `status --json` shows them.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
            /// Goes on from these.
            pub fn restore(&self, counters: &Snapshot) {
                $(self.$name.add(counters.$name);)*
            }

            /// The counters now.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Opens and link reads of entries that were on the backing disk.
    hits,
    /// Content bytes of those.
    hit_bytes,
    /// Lookups that the remote answered with "no such object".
    misses,
    /// Lookups answered from memory of a recent miss.
    recent_misses,
    /// Objects fetched from the remote.
    fetched,
    /// Content bytes of fetched objects.
    fetched_bytes,
    /// Lookups answered "absent" because the remote failed (error or breaker open).
    failed_fetches,
    /// Lookups answered "absent" because the first byte was later than the lookup timeout.
    late_fetches,
    /// Objects from the remote that were not what was pushed (hash, signature, length, format).
    corrupt,
    /// Objects not fetched because the backing disk had no room.
    no_room,
    /// Entries renamed, linked or written into place here.
    pushed,
    /// Uploads that the remote took.
    uploaded,
    /// Content bytes of those.
    uploaded_bytes,
    /// Uploads that the remote had already, with the same content.
    already_there,
    /// Uploads given up because the remote holds other content under that signature.
    diverged,
    /// Uploads given up: too many were pending, the remote cannot hold such an object (a symlink with `format=raw`),
    /// or its bytes are gone from the backing disk.
    given_up,
    /// Content bytes of those.
    given_up_bytes,
    /// Upload attempts that failed.
    upload_errors,
    /// Objects that a lower tier gave and that were put into tiers above it.
    promoted,
    /// The same that were not: too many, or the tier failed.
    promotions_dropped,
    /// Entries in use that the remotes were told of.
    touched,
    /// Entries in use that the remotes lacked and took.
    reshared,
    /// Entries removed to stay within the limit.
    evicted,
    /// Bytes of those.
    evicted_bytes,
    /// Entries dropped because the backing disk failed to write them.
    not_written,
    /// Operations that the backing disk failed.
    disk_errors,
    /// What interrupted pushes left behind for a day, and we removed.
    leftovers,
    /// Handlers and loops that panicked (a handler answered EIO, a loop began again).
    panics,
}

/// How long things take.
#[derive(Debug, Default)]
pub struct Times {
    /// From the request to the whole object on the disk.
    pub fetch: Histogram,
    /// From the request to "no such object".
    pub miss: Histogram,
    /// From the request to the failure.
    pub failure: Histogram,
    /// Uploads that succeeded, one attempt.
    pub upload: Histogram,
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl Stats {
    /// Something happened: counts it, and tells whoever listens.
    pub fn note(&self, event: &Event<'_>) {
        let (counter, bytes) = self.counters_of(event.what);
        counter.iter().for_each(|counter| counter.one());
        if let (Some(counter), Some(bytes)) = (bytes, event.bytes) {
            counter.add(bytes);
        }
        if let (Some(histogram), Some(took)) = (self.histogram_of(event.what), event.took) {
            histogram.add(took);
        }
        if let Some(sink) = self.sink.get() {
            sink(event);
        }
    }

    /// Has `sink` told of each event; only the first who asks for that is heard.
    pub fn set_sink(&self, sink: Sink) {
        if self.sink.set(sink).is_err() {
            log::error!("bug: somebody is told already what happens");
        }
    }

    fn counters_of(&self, what: What) -> (Option<&Counter>, Option<&Counter>) {
        let (counter, bytes) = match what {
            What::Hit => (&self.hits, Some(&self.hit_bytes)),
            What::RecentMiss => (&self.recent_misses, None),
            What::NotAsked | What::FetchFailed => (&self.failed_fetches, None),
            What::Late => (&self.late_fetches, None),
            What::Miss => (&self.misses, None),
            What::Fetched => (&self.fetched, Some(&self.fetched_bytes)),
            What::Corrupt => (&self.corrupt, None),
            What::NoRoom => (&self.no_room, None),
            What::Pushed => (&self.pushed, None),
            What::Uploaded => (&self.uploaded, Some(&self.uploaded_bytes)),
            What::AlreadyThere => (&self.already_there, None),
            What::Diverged => (&self.diverged, None),
            What::UploadFailed => (&self.upload_errors, None),
            What::GivenUp => (&self.given_up, Some(&self.given_up_bytes)),
            What::Evicted => (&self.evicted, Some(&self.evicted_bytes)),
            What::NotWritten => (&self.not_written, None),
            What::Removed => return (None, None),
        };
        (Some(counter), bytes)
    }

    fn histogram_of(&self, what: What) -> Option<&Histogram> {
        match what {
            What::Fetched => Some(&self.times.fetch),
            What::Miss => Some(&self.times.miss),
            What::FetchFailed | What::Corrupt => Some(&self.times.failure),
            What::Uploaded | What::AlreadyThere | What::Diverged => Some(&self.times.upload),
            _ => None,
        }
    }
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Counts `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    #[test]
    fn a_snapshot_holds_what_was_counted() {
        let stats = Stats::default();
        stats.hits.one();
        stats.fetched_bytes.add(42);
        let seen = stats.snapshot();
        assert_eq!((seen.hits, seen.fetched_bytes, seen.misses), (1, 42, 0));
    }

    #[test]
    fn an_event_counts_and_is_told() {
        let (stats, told) = (Stats::default(), Arc::new(Mutex::new(Vec::new())));
        let hears = told.clone();
        stats.set_sink(Box::new(move |event| {
            let why = event.why.map(ToString::to_string);
            hears.lock().unwrap().push((event.what, why));
        }));
        let sig = Signature::parse(&[b'a'; 32]).unwrap();
        let took = Duration::from_millis(3);
        stats.note(&Event::new(What::Fetched, &sig).bytes(7).took(took));
        stats.note(&Event::new(What::FetchFailed, &sig).why(&"refused"));
        let seen = stats.snapshot();
        assert_eq!((seen.fetched, seen.fetched_bytes), (1, 7));
        assert_eq!((seen.failed_fetches, seen.misses), (1, 0));
        assert_eq!(stats.times.fetch.get().count(), 1);
        assert_eq!(stats.times.failure.get().count(), 0, "no duration was said");
        let refused = (What::FetchFailed, Some("refused".to_owned()));
        assert_eq!(*told.lock().unwrap(), [(What::Fetched, None), refused]);
    }

    #[test]
    fn whatever_happens_is_counted_once() {
        let sig = Signature::parse(&[b'a'; 32]).unwrap();
        for what in What::ALL.iter().filter(|what| **what != What::Removed) {
            let stats = Stats::default();
            stats.note(&Event::new(*what, &sig));
            let json = serde_json::to_value(stats.snapshot()).unwrap();
            let total: u64 = json
                .as_object()
                .unwrap()
                .values()
                .filter_map(serde_json::Value::as_u64)
                .sum();
            assert_eq!(total, 1, "{what:?}");
        }
    }
}
