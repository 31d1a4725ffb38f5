//! Uploads: write-behind, journalled, retried until the remote has taken them.
//!
//! A push is [`Uploads::stage`]d before the operation that makes the entry, and [`Uploads::accept`]ed after it. From
//! then on it stands in `pending/` ([`journal`]) and in the [`queue`], and only the remote's answer takes it out. One
//! dispatcher gives jobs to a pool of workers through a channel; when the remote fails as a whole, everything waits
//! while one upload at a time probes it.
//!
//! This module does not know the kernel or the file system above it.
//!
//! Locks: `state` is the only one; neither the disk nor the network is touched while it is held.

pub mod journal;
pub mod queue;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use crate::clock::Clock;
use crate::name::Place;
use crate::remote::{Put, Remote, RemoteError};
use crate::stats::Stats;
use crate::store::Store;
use journal::Journal;
pub use queue::Item;
use queue::{Blame, Next, Queue};

/// How often the dispatcher looks at the clock while they wait.
const TICK: Duration = Duration::from_millis(200);

/// A push that is in the journal but whose operation has not succeeded yet.
#[derive(Debug)]
pub struct Staged(Item);

/// Called when an upload was tried.
pub type Waiter = Box<dyn FnOnce() + Send>;

/// What waits to be uploaded, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Objects.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest has been waiting.
    pub oldest: Duration,
}

/// The uploads of one mount.
pub struct Uploads {
    store: Arc<Store>,
    remote: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    journal: Journal,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: Queue,
    waiters: HashMap<u64, Vec<Waiter>>,
    /// Once set, the dispatcher ends when nothing is left, or at this time.
    drain_until: Option<Duration>,
}

impl Uploads {
    /// The uploads of a store to a remote, with those that an earlier process left.
    pub fn new(
        store: Arc<Store>,
        remote: Arc<dyn Remote>,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
    ) -> std::io::Result<Self> {
        let (journal, left) = Journal::open(store.pending_dir())?;
        if !left.is_empty() {
            log::info!("uploads left from before: {}", left.len());
        }
        let mut queue = Queue::default();
        for item in left {
            store.pin(&item.place, item.ino);
            queue.push(item, clock.now());
        }
        let state = Mutex::new(State {
            queue,
            ..State::default()
        });
        Ok(Self {
            store,
            remote,
            clock,
            stats,
            journal,
            state,
            changed: Condvar::new(),
        })
    }

    /// Puts a file that is about to become the entry at `place` into the journal.
    pub fn stage(
        &self,
        at: BorrowedFd<'_>,
        path: &Path,
        place: &Place,
        mode: u32,
    ) -> Result<Staged, Errno> {
        let item = self
            .journal
            .add(self.store.pending_dir(), at, path, place, mode)?;
        self.store.pin(place, item.ino);
        Ok(Staged(item))
    }

    /// It did not become an entry.
    pub fn cancel(&self, staged: &Staged) {
        self.drop_item(&staged.0);
    }

    /// It did: queues its upload, whose number is returned. An earlier one of the same entry that nobody has begun is
    /// superseded.
    pub fn accept(&self, staged: Staged) -> u64 {
        let seq = staged.0.seq;
        let superseded = self.state().queue.push(staged.0, self.clock.now());
        if let Some(old) = superseded {
            self.drop_item(&old);
            self.call_waiters(old.seq);
        }
        self.changed.notify_all();
        seq
    }

    /// Calls `waiter` once upload `seq` was tried, or at once if it is done or the remote is failing anyway.
    pub fn when_tried(&self, seq: u64, waiter: Waiter) {
        let mut state = self.state();
        if state.queue.is_untried(seq) && !state.queue.is_failing() {
            state.waiters.entry(seq).or_default().push(waiter);
        } else {
            drop(state);
            waiter();
        }
    }

    /// What waits.
    pub fn pending(&self) -> Pending {
        let state = self.state();
        Pending {
            count: state.queue.len() as u64,
            bytes: state.queue.bytes(),
            oldest: state.queue.oldest_age(self.clock.now()),
        }
    }

    /// Marks this moment in the order of pushes. What failed before is tried again now: somebody waits for it.
    pub fn mark(&self) -> u64 {
        let mut state = self.state();
        state.queue.retry_now();
        self.changed.notify_all();
        state.queue.newest().map_or(0, |seq| seq + 1)
    }

    /// The remote is well again: what failed is tried now.
    pub fn retry_now(&self) {
        self.state().queue.retry_now();
        self.changed.notify_all();
    }

    /// How many of the uploads from before the mark are not done.
    pub fn pending_before(&self, mark: u64) -> u64 {
        mark.checked_sub(1)
            .map_or(0, |seq| self.state().queue.up_to(seq))
    }

    /// Makes the dispatcher end when nothing is left but what the remote refuses, or after `timeout`.
    pub fn drain(&self, timeout: Duration) {
        let mut state = self.state();
        state.drain_until = Some(self.clock.now() + timeout);
        state.queue.retry_now();
        self.changed.notify_all();
    }

    /// Hands jobs to the workers until [`Uploads::drain`] ends it; then the channel closes and the workers end.
    pub fn run_dispatcher(&self, jobs: Sender<Item>) {
        loop {
            let mut state = self.state();
            let now = self.clock.now();
            if let Some(until) = state.drain_until
                && (state.queue.is_stuck() || now >= until)
            {
                return;
            }
            match state.queue.next(now) {
                Next::Job(item) => {
                    drop(state);
                    if jobs.send(item).is_err() {
                        return;
                    }
                }
                Next::Wait(time) => drop(self.wait(state, time.min(TICK))),
                Next::Idle if state.drain_until.is_some() => drop(self.wait(state, TICK)),
                Next::Idle => drop(self.changed.wait(state)),
            }
        }
    }

    /// Uploads what comes through the channel until it closes.
    pub fn run_worker(&self, jobs: &Receiver<Item>) {
        for item in jobs {
            let result =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.upload(&item)));
            let result = result.unwrap_or_else(|_| {
                self.stats.panics.one();
                Err(RemoteError::Local(format!(
                    "bug: the upload of {} panicked",
                    item.place.sig
                )))
            });
            match result {
                Ok(put) => self.succeeded(&item, put),
                Err(error) => self.failed(&item, &error),
            }
            self.call_waiters(item.seq);
            self.changed.notify_all();
        }
    }

    fn upload(&self, item: &Item) -> Result<Put, RemoteError> {
        let local = |e: std::io::Error| {
            // Dropped, or removed by hand: it will not come back.
            let never = e.kind() == std::io::ErrorKind::NotFound;
            let kind = if never {
                RemoteError::Unsupported
            } else {
                RemoteError::Local
            };
            kind(format!(
                "cannot read the journalled object {}: {e}",
                item.place.sig
            ))
        };
        let (meta, content) = journal::read(self.store.pending_dir(), item).map_err(local)?;
        self.remote.put(&item.place.sig, meta, &content)
    }

    fn succeeded(&self, item: &Item, put: Put) {
        match put {
            Put::Stored => {
                self.stats.uploaded.one();
                self.stats.uploaded_bytes.add(item.bytes);
            }
            Put::Present => self.stats.already_there.one(),
            Put::Diverged { theirs, ours } => {
                self.stats.diverged.one();
                let theirs = theirs.map_or("unknown".to_owned(), |hash| hex(&hash));
                log::warn!(
                    "{} differs from what {} holds under that signature: BLAKE3 {} here, {theirs} there; the first stays. \
                     The build step is not reproducible or does not declare all that it depends on",
                    item.place.sig,
                    self.remote.describe(),
                    hex(&ours),
                );
            }
        }
        let mut state = self.state();
        let was_failing = state.queue.is_failing();
        state.queue.done(item.seq);
        let left = state.queue.len();
        drop(state);
        self.drop_item(item);
        if was_failing {
            log::info!(
                "uploads to {} work again, {left} are pending",
                self.remote.describe()
            );
        }
    }

    fn failed(&self, item: &Item, error: &RemoteError) {
        let blame = match error {
            RemoteError::Unsupported(_) => return self.give_up(item, error),
            RemoteError::Transient(_)
            | RemoteError::Busy(..)
            | RemoteError::Slow(_)
            | RemoteError::Refused(_)
            | RemoteError::Untrusted(_) => Blame::Remote,
            _ => Blame::Object,
        };
        self.stats.upload_errors.one();
        let mut state = self.state();
        let first = state.queue.failed(item.seq, blame, self.clock.now());
        let outdated = state.queue.take_outdated(item.seq);
        let left = state.queue.len();
        drop(state);
        if let Some(old) = outdated {
            self.drop_item(&old);
        }
        if first {
            log::warn!(
                "cannot upload {} to {}: {error}; {left} are pending and will be tried again",
                item.place.sig,
                self.remote.describe()
            );
        }
    }

    /// No attempt can ever succeed: the entry stays here only.
    fn give_up(&self, item: &Item, error: &RemoteError) {
        self.stats.given_up.one();
        log::warn!(
            "{} is not uploaded, it stays here only: {error}",
            item.place.sig
        );
        self.state().queue.given_up(item.seq);
        self.drop_item(item);
    }

    /// The bytes of the file `ino`, pushed to `place`, are not to be believed: whatever waits of it is dropped. An upload
    /// under way reads what is in memory, which is right; if that fails, it finds the journal empty.
    pub fn lost(&self, place: &Place, ino: u64) {
        let items = self.state().queue.take_lost(place, ino);
        for item in items {
            self.drop_item(&item);
            self.call_waiters(item.seq);
        }
        self.changed.notify_all();
    }

    /// Takes an item out of the journal.
    fn drop_item(&self, item: &Item) {
        self.journal.remove(self.store.pending_dir(), item);
        self.store.unpin(&item.place, item.ino);
    }

    fn call_waiters(&self, seq: u64) {
        let waiters = self.state().waiters.remove(&seq).unwrap_or_default();
        for waiter in waiters {
            waiter();
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
