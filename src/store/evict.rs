//! Making room: when to evict, how much, and who may wait for it.

use std::time::Duration;

use super::Store;
use super::index::footprint;
use crate::name::Place;

/// Eviction begins when this part of the limit is used …
const HIGH_PERCENT: u64 = 95;
/// … and goes on down to this part, so that its cost is spread over many entries.
const LOW_PERCENT: u64 = 90;
/// Entries asked for within this time stay: whoever saw the name is about to open it.
const RECENT: Duration = Duration::from_secs(60);
/// The same when nothing older is left and the limit is reached: SCons opens an entry within
/// milliseconds of having seen it.
const RECENT_UNDER_PRESSURE: Duration = Duration::from_secs(2);
/// How often the evictor looks at the free space of the file system, which others use too.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long the evictor rests when it found nothing that may go.
const STUCK: Duration = Duration::from_millis(250);
/// Longest that a fetch waits for room before it counts as a miss.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(2);

/// Removes one entry if it may go. True when it is gone.
pub type Evict<'a> = &'a dyn Fn(&Place) -> bool;

impl Store {
    /// Evicts whenever it has to, through `evict`, until the store is stopped. Runs on a thread of its own.
    pub fn run_evictor(&self, evict: Evict<'_>) {
        loop {
            let freed = self.evict_once(evict);
            let state = self.state();
            if state.stopped {
                return;
            }
            let is_full = state.wanted() > self.high_mark();
            let calm = |state: &mut super::State| {
                !state.stopped && (is_full || state.wanted() <= self.high_mark())
            };
            // Full of what has to stay: looking again at once would find the same.
            let wait = if is_full && freed == 0 {
                STUCK
            } else {
                LOOK_AGAIN
            };
            if freed == 0 || !is_full {
                drop(self.changed.wait_timeout_while(state, wait, calm));
            }
        }
    }

    /// Brings the store below its low mark if it is above its high mark, as far as that can be; the bytes freed.
    pub fn evict_once(&self, evict: Evict<'_>) -> u64 {
        let want = self.bytes_to_free();
        if want == 0 {
            return 0;
        }
        let mut freed = self.evict_bytes(want, RECENT, evict);
        if freed < want && self.bytes_to_free() > 0 {
            freed += self.evict_bytes(want - freed, RECENT_UNDER_PRESSURE, evict);
        }
        self.changed.notify_all();
        freed
    }

    fn evict_bytes(&self, want: u64, recent: Duration, evict: Evict<'_>) -> u64 {
        let recent = u64::try_from(recent.as_millis()).unwrap_or(u64::MAX);
        let since = self.now_ms().saturating_sub(recent);
        let mut freed = 0;
        while freed < want {
            let victims = self.state().index.oldest(want - freed, since);
            if victims.is_empty() {
                break;
            }
            for place in victims {
                freed += self.evict_one(&place, since, evict);
            }
        }
        self.changed.notify_all();
        freed
    }

    /// Evicts one entry, if it may go; the bytes freed. One that may not counts as used now: otherwise those that
    /// are open for long would be chosen again and again, and nothing else ever.
    fn evict_one(&self, place: &Place, since: u64, evict: Evict<'_>) -> u64 {
        // It may have been asked for since the choice was made.
        if self.state().index.asked_since(place, since) {
            return 0;
        }
        if !evict(place) {
            self.touch(place);
            return 0;
        }
        let bytes = self.removed(place);
        self.stats.evicted.one();
        self.stats.evicted_bytes.add(bytes);
        bytes
    }

    fn high_mark(&self) -> u64 {
        percent(self.limits.size, HIGH_PERCENT)
    }

    fn bytes_to_free(&self) -> u64 {
        let wanted = self.state().wanted();
        let over = if wanted > self.high_mark() {
            wanted - percent(self.limits.size, LOW_PERCENT)
        } else {
            0
        };
        over.max(self.limits.min_free.saturating_sub(self.disk_free()))
    }

    /// Bytes free on the backing file system. Unknown counts as plenty: a write will tell.
    fn disk_free(&self) -> u64 {
        rustix::fs::fstatvfs(&self.root).map_or(u64::MAX, |v| v.f_bavail.saturating_mul(v.f_frsize))
    }

    /// Promises room for `len` bytes; waits a little for the evictor. False when there is none.
    pub(super) fn reserve(&self, len: u64) -> bool {
        let need = footprint(len);
        if need > self.limits.size
            || self.disk_free().saturating_sub(need) < self.limits.min_free / 2
        {
            self.changed.notify_all();
            return false;
        }
        let mut state = self.state();
        let full = |state: &super::State| state.wanted() + need > self.limits.size;
        if full(&state) && !state.stopped {
            // Count it as wanted while waiting, so that the evictor makes room for it.
            state.reserved += need;
            self.changed.notify_all();
            let still_full =
                |state: &mut super::State| !state.stopped && state.wanted() > self.limits.size;
            let waited = self
                .changed
                .wait_timeout_while(state, WAIT_FOR_ROOM, still_full);
            state = waited.expect("nothing panics while it holds this lock").0;
            state.reserved -= need;
        }
        if full(&state) {
            return false;
        }
        state.reserved += need;
        true
    }

    /// Takes back a promise made by [`Store::reserve`] for `len` bytes.
    pub(super) fn unreserve(&self, len: u64) {
        let mut state = self.state();
        state.reserved = state.reserved.saturating_sub(footprint(len));
    }
}

fn percent(of: u64, percent: u64) -> u64 {
    of / 100 * percent
}
