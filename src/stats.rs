//! Counters of one mount since it began. Everybody counts here; only `control` reads it out.
//!
//! Plain atomics: a reader sees each counter right, not all of them at one instant.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters, to be added to.
        #[derive(Debug, Default)]
        pub struct Stats { $($(#[$doc])* pub $name: Counter,)* }

        /// The counters at one moment, as `status --json` shows them.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
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

    #[test]
    fn a_snapshot_holds_what_was_counted() {
        let stats = Stats::default();
        stats.hits.one();
        stats.fetched_bytes.add(42);
        let seen = stats.snapshot();
        assert_eq!((seen.hits, seen.fetched_bytes, seen.misses), (1, 42, 0));
    }
}
