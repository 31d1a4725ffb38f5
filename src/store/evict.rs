//! Making room: when to evict, how much, and who may wait for it.
//!
//! There are two ways to be full. Entries can take more than their limit: that is known beforehand, and eviction
//! begins a little below it. And the file system itself can run out of bytes or inodes, which others use too: that is
//! looked at now and then, and an operation that it fails says so at once ([`Store::note`]).
//!
//! Whoever waits for room may hold a directory in the kernel, and an eviction there would wait for them. So those who
//! wait say which directories they are in, and the evictor leaves these alone; if it waits for one already,
//! nobody waits for it there. And no event loop waits for room that is made by eviction, since the evictor waits for the
//! kernel, which waits for event loops: a push is handed over, and done by the evictor as soon as there is room.

use std::sync::PoisonError;
use std::time::Duration;

use super::index::{Chooser, footprint};
use super::{State, Store};
use crate::name::Place;
use crate::stats::event::{Event, What};

/// Eviction begins when this part of the limit is used …
const HIGH_PERCENT: u64 = 95;
/// … and goes on down to this part, so that its cost is spread over many entries.
const LOW_PERCENT: u64 = 90;
/// Every eviction frees at least this part of what is there: choosing looks at every entry.
const LEAST_PERCENT: u64 = 1;
/// Inodes to be left free are this part of those that the file system has …
const INODES_PERCENT: u64 = 2;
/// … but not more than this: a builder makes a few files an entry, and a file system has millions.
const MOST_INODES: u64 = 1000;
/// Entries to go when the file system is full although the figures say that it is not.
const STARVED_ENTRIES: u64 = 16;
/// The bytes of the same.
const STARVED_BYTES: u64 = 1 << 20;
/// Entries asked for within this time stay: whoever saw the name is about to open it.
const RECENT: Duration = Duration::from_secs(60);
/// The same when nothing older is left and the limit is reached: SCons opens an entry within
/// milliseconds of having seen it.
const RECENT_UNDER_PRESSURE: Duration = Duration::from_secs(2);
/// How often the evictor looks at the free space of the file system, which others use too.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long the evictor rests when it found nothing that may go.
const STUCK: Duration = Duration::from_millis(250);
/// How long nobody waits for it then: the next pass would hardly find more, and a build makes many calls.
const HOPELESS: Duration = Duration::from_secs(2);
/// Longest that a fetch waits for room before it counts as a miss.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(2);
/// Longest that an operation waits that a full file system failed: it keeps an event loop from its work, so only one at a
/// time does.
const WAIT_FOR_RELIEF: Duration = Duration::from_secs(1);
/// Entries looked at in one go, so that nobody waits long for the index.
const GLANCE: usize = 1024;

/// Removes one entry if it may go. True when it is gone.
pub type Evict<'a> = &'a dyn Fn(&Place) -> bool;

/// What is done once there is room.
pub type Job = Box<dyn FnOnce() + Send>;

/// A push that waits for room.
struct Waiting {
    bytes: u64,
    dirs: Vec<String>,
    job: Job,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes in {:?}", self.bytes, self.dirs)
    }
}

/// What the evictor and those who wait for it tell each other.
#[derive(Debug, Default)]
pub(super) struct Evictor {
    runs: bool,
    /// The file system said that it is full.
    starved: bool,
    /// Until when waiting makes no sense: a pass had something to free and freed nothing.
    stuck_until: Option<Duration>,
    /// Passes that have ended.
    passes: u64,
    /// Bytes freed by all of them.
    freed: u64,
    /// The prefix directory in which it waits for the kernel.
    at_work_in: Option<String>,
    /// Pushes that wait for room, in their order.
    waiting: Vec<Waiting>,
    /// Prefix directories of whoever waits for relief, while somebody does.
    relieving: Option<Vec<String>>,
    /// It does what waited for room, and cannot make any meanwhile.
    serving: bool,
}

impl Evictor {
    /// Whether it waits for the kernel in one of these.
    fn is_in_the_way(&self, dirs: &[String]) -> bool {
        self.at_work_in.as_ref().is_some_and(|at| dirs.contains(at))
    }

    fn is_stuck(&self, now: Duration) -> bool {
        self.stuck_until.is_some_and(|until| now < until)
    }

    /// Whether somebody who may hold that directory waits for room.
    fn is_awaited_in(&self, dir: &str) -> bool {
        let relieving = self.relieving.iter().flatten();
        let mut dirs = self.waiting.iter().flat_map(|w| &w.dirs).chain(relieving);
        dirs.any(|d| d == dir)
    }

    fn waiting_bytes(&self) -> u64 {
        self.waiting.iter().map(|w| w.bytes).sum()
    }
}

impl State {
    /// Bytes in use, promised, and waited for.
    fn pressure(&self) -> u64 {
        self.wanted() + self.evictor.waiting_bytes()
    }
}

/// How much is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Need {
    bytes: u64,
    entries: u64,
    /// The option or lack that asks for it.
    why: &'static str,
}

impl Need {
    fn is_met(self) -> bool {
        self.bytes == 0 && self.entries == 0
    }

    fn less(self, bytes: u64, entries: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(bytes),
            entries: self.entries.saturating_sub(entries),
            why: self.why,
        }
    }
}

/// Room that was promised to a push; taken back when this is dropped.
#[derive(Debug)]
pub struct Room<'a> {
    store: &'a Store,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut state = self.store.state();
        state.reserved = state.reserved.saturating_sub(self.bytes);
    }
}

/// While it exists nobody begins to wait for room in that directory without knowing that the evictor is there.
#[derive(Debug)]
pub struct AtWork<'a>(&'a Store);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.state().evictor.at_work_in = None;
        self.0.changed.notify_all();
    }
}

impl Store {
    /// Evicts whenever it has to, through `evict`, until the store is stopped. Runs on a thread of its own.
    pub fn run_evictor(&self, evict: Evict<'_>) {
        let mut state = self.state();
        state.evictor.runs = true;
        // A panic may have kept it from taking that back.
        state.evictor.serving = false;
        drop(state);
        loop {
            let freed = self.evict_once(evict);
            let state = self.state();
            if state.stopped {
                drop(state);
                return self.leave();
            }
            let is_full = state.pressure() > self.high_mark();
            // Full of what has to stay: looking again at once would find the same.
            let stuck = freed == 0 && state.evictor.stuck_until.is_some();
            let wait = if stuck { STUCK } else { LOOK_AGAIN };
            let calm = |state: &mut State| {
                let full = state.pressure() > self.high_mark();
                !state.stopped && (stuck || !state.evictor.starved && (is_full || !full))
            };
            if freed == 0 || !is_full {
                drop(self.changed.wait_timeout_while(state, wait, calm));
            }
        }
    }

    /// From now on nobody waits for eviction.
    fn leave(&self) {
        self.state().evictor.runs = false;
        self.serve(true);
    }

    /// Does what waited for room, in its order, as far as there is room; with `all`, as far as there is anything.
    fn serve(&self, all: bool) {
        loop {
            let mut state = self.state();
            let Some(first) = state.evictor.waiting.first() else {
                return;
            };
            if !all && state.wanted() + first.bytes > self.limits().size {
                return;
            }
            let first = state.evictor.waiting.remove(0);
            state.evictor.serving = true;
            drop(state);
            (first.job)();
            self.state().evictor.serving = false;
        }
    }

    /// Brings the store below its low mark if it is above its high mark, as far as that can be; the bytes freed.
    pub fn evict_once(&self, evict: Evict<'_>) -> u64 {
        let need = self.need();
        let (mut freed, mut entries) = (0, 0);
        if !need.is_met() {
            (freed, entries) = self.evict_some(need, RECENT, evict);
            let left = need.less(freed, entries);
            if !left.is_met() && !self.need().is_met() {
                let more = self.evict_some(left, RECENT_UNDER_PRESSURE, evict);
                (freed, entries) = (freed + more.0, entries + more.1);
            }
        }
        let now = self.clock.now();
        let mut state = self.state();
        state.evictor.starved = false;
        state.evictor.stuck_until = match (need.is_met(), entries) {
            (false, 0) => Some(now + HOPELESS),
            // It may be long until there is something to free again: that expires by itself.
            (true, _) => state.evictor.stuck_until.filter(|until| now < *until),
            (false, _) => None,
        };
        state.evictor.passes += 1;
        state.evictor.freed += freed;
        drop(state);
        self.changed.notify_all();
        self.serve(!need.is_met() && entries == 0);
        freed
    }

    fn evict_some(&self, need: Need, recent: Duration, evict: Evict<'_>) -> (u64, u64) {
        let recent = u64::try_from(recent.as_millis()).unwrap_or(u64::MAX);
        let since = self.now_ms().saturating_sub(recent);
        let (mut freed, mut entries) = (0, 0);
        while !need.less(freed, entries).is_met() && !self.state().stopped {
            let victims = self.oldest(need.less(freed, entries), since);
            if victims.is_empty() {
                break;
            }
            for place in victims {
                if let Some(bytes) = self.evict_one(&place, need.why, since, evict) {
                    (freed, entries) = (freed + bytes, entries + 1);
                    self.serve(false);
                }
            }
        }
        (freed, entries)
    }

    /// The entries to go next. The index is looked at in pieces, so that nobody waits for the whole of it.
    fn oldest(&self, need: Need, since: u64) -> Vec<Place> {
        let mut chooser = Chooser::new(need.bytes, need.entries, since);
        let mut from = None;
        loop {
            let state = self.state();
            from = state.index.glance(from, GLANCE, &mut chooser);
            if from.is_none() || state.stopped {
                return chooser.chosen();
            }
        }
    }

    /// Evicts one entry, if it may go; the bytes freed. One that may not counts as used now: otherwise those that
    /// are open for long would be chosen again and again, and nothing else ever.
    fn evict_one(&self, place: &Place, why: &str, since: u64, evict: Evict<'_>) -> Option<u64> {
        // It may have been asked for since the choice was made.
        if self.state().index.asked_since(place, since) {
            return None;
        }
        if !evict(place) {
            self.touch(place);
            return None;
        }
        let bytes = self.removed(place);
        let event = Event::new(What::Evicted, &place.sig).bytes(bytes);
        self.stats.note(&event.why(&why));
        Some(bytes)
    }

    /// Says that the evictor is about to wait for the kernel in the directory `dir`; `None` if somebody who may hold it
    /// waits for room.
    pub fn begin_work_in(&self, dir: &str) -> Option<AtWork<'_>> {
        let mut state = self.state();
        if state.evictor.is_awaited_in(dir) {
            return None;
        }
        state.evictor.at_work_in = Some(dir.to_owned());
        drop(state);
        self.changed.notify_all();
        Some(AtWork(self))
    }

    fn high_mark(&self) -> u64 {
        percent(self.limits().size, HIGH_PERCENT)
    }

    fn need(&self) -> Need {
        let (free_bytes, short_of_inodes) = self.disk_free();
        let state = self.state();
        let wanted = state.pressure();
        let over = if wanted > self.high_mark() {
            wanted - percent(self.limits().size, LOW_PERCENT)
        } else {
            0
        };
        let short_of_free = self.limits().min_free.saturating_sub(free_bytes);
        let mut need = Need {
            bytes: over.max(short_of_free),
            entries: short_of_inodes,
            why: match (over, short_of_free, short_of_inodes) {
                (1.., ..) => "above size",
                (0, 1.., _) => "less than min_free is free",
                (0, 0, 1..) => "the disk is short of inodes",
                (0, 0, 0) => "a push found no room",
            },
        };
        if state.evictor.starved {
            need.bytes = need.bytes.max(STARVED_BYTES);
            need.entries = need.entries.max(STARVED_ENTRIES);
        }
        if need.bytes > 0 {
            need.bytes = need.bytes.max(percent(state.index.bytes(), LEAST_PERCENT));
        }
        if need.entries > 0 {
            let least = percent(state.index.len() as u64, LEAST_PERCENT);
            need.entries = need.entries.max(least);
        }
        need
    }

    /// Bytes free on the backing file system, and how many inodes are missing there. Unknown counts as plenty: a write
    /// will tell.
    fn disk_free(&self) -> (u64, u64) {
        rustix::fs::fstatvfs(&self.root).map_or((u64::MAX, 0), |v| {
            // A file system that makes inodes as it goes says that it has none at all.
            let reserve = percent(v.f_files, INODES_PERCENT).min(MOST_INODES);
            let short = reserve.saturating_sub(v.f_favail);
            (v.f_bavail.saturating_mul(v.f_frsize), short)
        })
    }

    /// Wakes the evictor if the file system is short of room. Cheap enough to be called after every write: the
    /// kernel does not tell us of a write that it failed itself (passthrough).
    pub fn look_at_disk(&self) {
        let (free_bytes, short_of_inodes) = self.disk_free();
        if free_bytes < self.limits().min_free.max(STARVED_BYTES) || short_of_inodes > 0 {
            self.starved();
        }
    }

    /// The file system is full: the evictor is to free something whatever the figures say.
    pub(super) fn starved(&self) {
        self.state().evictor.starved = true;
        self.changed.notify_all();
    }

    /// Waits a little until the evictor has made some room on a full file system. Whoever calls this may hold these prefix
    /// directories in the kernel, and holds nothing of ours. False when there is no hope.
    pub fn relieve(&self, dirs: &[String]) -> bool {
        let now = self.clock.now();
        let mut state = self.state();
        state.evictor.starved = true;
        self.changed.notify_all();
        let evictor = &mut state.evictor;
        let busy = evictor.serving || evictor.relieving.is_some();
        if busy || !evictor.runs || evictor.is_stuck(now) {
            return false;
        }
        evictor.relieving = Some(dirs.to_vec());
        let (freed, passes) = (evictor.freed, evictor.passes);
        let hope = |state: &mut State| {
            let evictor = &state.evictor;
            let in_vain = evictor.is_stuck(now) && evictor.passes > passes;
            !state.stopped && evictor.freed == freed && !in_vain && !evictor.is_in_the_way(dirs)
        };
        let waited = self
            .changed
            .wait_timeout_while(state, WAIT_FOR_RELIEF, hope);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.evictor.relieving = None;
        state.evictor.freed > freed
    }

    /// Does `job`, which is to bring an entry of `len` bytes, as soon as the evictor has made room for it; at once if there
    /// is room, and also if there will be none. Whoever waits for the job may hold these prefix directories in the kernel.
    pub fn when_room(&self, len: u64, dirs: Vec<String>, job: Job) {
        let (bytes, now) = (footprint(len), self.clock.now());
        let mut state = self.state();
        let evictor = &state.evictor;
        let fits = evictor.waiting.is_empty() && state.wanted() + bytes <= self.limits().size;
        let hope = bytes <= self.limits().size && evictor.runs && !evictor.is_stuck(now);
        if fits || !hope || state.stopped || evictor.is_in_the_way(&dirs) {
            drop(state);
            return job();
        }
        state.evictor.waiting.push(Waiting { bytes, dirs, job });
        drop(state);
        self.changed.notify_all();
    }

    /// Promises room for an entry that is about to arrive; `None` when there is none. Whoever calls this may hold these prefix
    /// directories in the kernel: if the evictor waits for one, it comes by right after, and the entry, which is on the disk
    /// already under another name, does not wait for that.
    pub fn make_room(&self, len: u64, dirs: &[String]) -> Option<Room<'_>> {
        let bytes = footprint(len);
        let mut state = self.state();
        let fits = state.wanted() + bytes <= self.limits().size;
        if fits || bytes <= self.limits().size && state.evictor.is_in_the_way(dirs) {
            state.reserved += bytes;
            return Some(Room { store: self, bytes });
        }
        drop(state);
        self.changed.notify_all();
        None
    }

    /// Promises room for `len` bytes; waits a little for the evictor. False when there is none.
    pub(super) fn reserve(&self, len: u64) -> bool {
        let need = footprint(len);
        if need > self.limits().size
            || self.disk_free().0.saturating_sub(need) < self.limits().min_free / 2
        {
            self.starved();
            return false;
        }
        let mut state = self.state();
        let full = |state: &State| state.wanted() + need > self.limits().size;
        if full(&state) && !state.stopped {
            // Count it as wanted while waiting, so that the evictor makes room for it.
            state.reserved += need;
            self.changed.notify_all();
            let still_full =
                |state: &mut State| !state.stopped && state.wanted() > self.limits().size;
            let waited = self
                .changed
                .wait_timeout_while(state, WAIT_FOR_ROOM, still_full);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
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
