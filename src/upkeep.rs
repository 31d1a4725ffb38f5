//! Upkeep: what is done for the remotes besides uploads, when there is time.
//!
//! - **Promotion**: what a lower tier gave is put into the tiers above that lacked it.
//! - **Touch**: an entry that is used and that the remotes heard of too long ago is announced to them, so that they do
//!   not expire it. One that they lack by then is put again.
//! - **Reshare**: an entry that is used and that they may never have heard of is announced to them likewise, once a mount.
//!
//! Nobody waits for any of it, nothing of it is pending, and what is too much is dropped: another use brings it back.
//! It does nothing while the mount uploads nothing.
//!
//! This module does not know the kernel or the file system above it.
//!
//! Locks: `state` is the only one; neither the disk nor the network is touched while it is held, but for the few bytes
//! of a batch of records.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use lru::LruCache;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::clock::Clock;
use crate::name::Place;
use crate::remote::tiers::Tiers;
use crate::remote::{Content, Put, Remote, RemoteError};
use crate::signature::{Meta, Signature};
use crate::stats::Stats;
use crate::store::Store;
use crate::store::announced::Announced;

/// Jobs that may wait. More are dropped.
const WAITING: usize = 16 * 1024;
/// Entries that are not announced twice in one mount.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");
/// How often records that are few are written.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Anything at all: the mount uploads.
    pub enabled: bool,
    /// Entries in use are announced when the remotes heard of them longer ago.
    pub touch: Option<Duration>,
    /// Entries in use are announced when it is not known that the remotes have them.
    pub reshare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Job {
    Promote(Place),
    Announce(Place),
}

/// The upkeep of one mount.
pub struct Upkeep {
    store: Arc<Store>,
    remote: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    /// Whether [`Upkeep::used`] has any effect, for those who are in a hurry.
    wants_uses: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    waiting: HashSet<Job>,
    announced: Announced,
    /// Announced or heard of in this mount.
    known: LruCache<Signature, ()>,
    options: Options,
    /// Those that lookups ask.
    tiers: Option<Arc<Tiers>>,
    /// What was written down of earlier mounts is in `announced`.
    has_read: bool,
    stopped: bool,
}

impl Upkeep {
    /// For the entries of `store` and `remote`; `tiers` are those that lookups ask.
    pub fn new(
        store: Arc<Store>,
        remote: Arc<dyn Remote>,
        tiers: Option<Arc<Tiers>>,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
        options: Options,
    ) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            waiting: HashSet::new(),
            announced: Announced::default(),
            known: LruCache::new(REMEMBERED),
            options,
            tiers,
            has_read: false,
            stopped: false,
        };
        let upkeep = Self {
            store,
            remote,
            clock,
            stats,
            wants_uses: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        upkeep.set_options(options);
        upkeep
    }

    /// This is to be done from now on.
    pub fn set_options(&self, options: Options) {
        let mut state = self.state();
        state.options = options;
        if options.enabled && options.touch.is_some() && !state.has_read {
            match self.store.read_announced() {
                Ok(announced) => state.announced = announced,
                Err(e) => log::warn!("cannot read when the remotes heard of entries: {e}"),
            }
            state.has_read = true;
        }
        self.wants_uses.store(options.wants_uses(), Relaxed);
    }

    /// The remotes are others from now on. Nothing is known of what they have heard of.
    pub fn renew(&self, tiers: Option<Arc<Tiers>>) {
        let mut state = self.state();
        state.tiers = tiers;
        state.known.clear();
        state.announced.forget();
        state.jobs.clear();
        state.waiting.clear();
    }

    /// An entry was fetched.
    pub fn fetched(&self, place: &Place) {
        self.heard(place);
        let mut state = self.state();
        let tiers = state.tiers.as_ref().filter(|_| state.options.enabled);
        if tiers.is_some_and(|t| t.is_lacking(&place.sig)) {
            if !state.add(Job::Promote(*place)) {
                self.stats.promotions_dropped.one();
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    /// The remotes have an entry now, or have had it a moment ago.
    pub fn heard(&self, place: &Place) {
        if !self.wants_uses.load(Relaxed) {
            return;
        }
        let mut state = self.state();
        state.known.put(place.sig, ());
        if state.options.touch.is_some() && state.announced.note(&place.sig, self.seconds()) {
            self.changed.notify_all();
        }
    }

    /// Somebody uses an entry that is here.
    pub fn used(&self, place: &Place) {
        if !self.wants_uses.load(Relaxed) {
            return;
        }
        let now = self.seconds();
        let mut state = self.state();
        let is_known = state.known.get(&place.sig).is_some();
        let is_old = state.options.touch.is_some_and(|every| {
            let last = state.announced.last(&place.sig);
            last.is_none_or(|last| u64::from(now.saturating_sub(last)) >= every.as_secs())
        });
        let is_new = state.options.reshare && !is_known;
        if (is_old || is_new) && state.add(Job::Announce(*place)) {
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Does what there is to do until [`Upkeep::stop`].
    pub fn run_worker(&self) {
        let mut state = self.state();
        while !state.stopped {
            match state.next() {
                Some(job) => {
                    drop(state);
                    self.work(job);
                    state = self.state();
                }
                None => {
                    self.write_down(&mut state);
                    let waited = self.changed.wait_timeout(state, WRITE_EVERY);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        self.write_down(&mut state);
    }

    /// Ends the loop.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    fn work(&self, job: Job) {
        match job {
            Job::Promote(place) => match self.promote(&place) {
                Ok(promoted) => self.stats.promoted.add(promoted),
                Err(e) => {
                    self.stats.promotions_dropped.one();
                    log::debug!("cannot promote {}: {e}", place.sig);
                }
            },
            Job::Announce(place) => match self.announce(&place) {
                Ok(()) => self.heard(&place),
                Err(e) => log::debug!("cannot tell the remotes that {} is used: {e}", place.sig),
            },
        }
    }

    fn promote(&self, place: &Place) -> Result<u64, RemoteError> {
        let tiers = self.state().tiers.clone();
        let (Some(tiers), Some((meta, content))) = (tiers, self.read(place)?) else {
            return Ok(0);
        };
        tiers.promote(&place.sig, meta, &content)
    }

    fn announce(&self, place: &Place) -> Result<(), RemoteError> {
        // What is pending is being put anyway.
        if self.store.pins(place) > 0 {
            return Ok(());
        }
        if self.remote.touch(&place.sig)? {
            self.stats.touched.one();
            return Ok(());
        }
        let Some((meta, content)) = self.read(place)? else {
            return Ok(());
        };
        if let Put::Stored = self.remote.put(&place.sig, meta, &content)? {
            self.stats.reshared.one();
        }
        Ok(())
    }

    /// An entry as it is on the disk, if it still is.
    fn read(&self, place: &Place) -> Result<Option<(Meta, Content)>, RemoteError> {
        let read = || {
            let root = self.store.root();
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            match rustix::fs::openat(root, place.path(), flags, Mode::empty()) {
                Ok(fd) => {
                    let file = File::from(fd);
                    let stat = rustix::fs::fstat(&file)?;
                    let len = u64::try_from(stat.st_size).unwrap_or(0);
                    Ok((Meta::file(stat.st_mode), Content::File(file, len)))
                }
                Err(Errno::LOOP) => {
                    let target = rustix::fs::readlinkat(root, place.path(), Vec::new())?;
                    Ok((Meta::Symlink, Content::Bytes(target.into_bytes())))
                }
                Err(e) => Err(e),
            }
        };
        match read() {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(RemoteError::Local(format!(
                "cannot read {}: {e}",
                place.sig
            ))),
        }
    }

    fn write_down(&self, state: &mut State) {
        if let Err(e) = self.store.write_announced(&mut state.announced) {
            log::debug!("cannot write down when the remotes heard of entries: {e}");
        }
    }

    fn seconds(&self) -> u32 {
        let since = self.clock.wall().duration_since(UNIX_EPOCH);
        u32::try_from(since.unwrap_or_default().as_secs()).unwrap_or(u32::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Options {
    fn wants_uses(&self) -> bool {
        self.enabled && (self.reshare || self.touch.is_some())
    }
}

impl State {
    /// False if there is too much to do already.
    fn add(&mut self, job: Job) -> bool {
        if self.waiting.contains(&job) {
            return true;
        }
        let has_room = self.jobs.len() < WAITING && !self.stopped;
        if has_room {
            self.jobs.push_back(job);
            self.waiting.insert(job);
        }
        has_room
    }

    fn next(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.waiting.remove(&job);
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_dropped_and_nothing_is_there_twice() {
        let mut state = State {
            jobs: VecDeque::new(),
            waiting: HashSet::new(),
            announced: Announced::default(),
            known: LruCache::new(REMEMBERED),
            options: Options::default(),
            tiers: None,
            has_read: false,
            stopped: false,
        };
        let job = |n: usize| {
            let sig = Signature::parse(format!("{n:032x}").as_bytes()).unwrap();
            Job::Promote(Place { sig, digits: 2 })
        };
        for n in 0..WAITING {
            assert!(state.add(job(n)) && state.add(job(n)));
        }
        assert!(!state.add(job(WAITING)), "one too many");
        assert_eq!(state.jobs.len(), WAITING);
        assert_eq!(state.next(), Some(job(0)));
        assert!(state.add(job(0)), "it can be done again");
        state.stopped = true;
        state.next();
        assert!(!state.add(job(1)));
    }
}
