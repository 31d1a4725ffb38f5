//! Uploads: write-behind, journalled, retried until the remote has taken them.
//!
//! A push is [`Uploads::stage`]d before the operation that makes the entry, and [`Uploads::accept`]ed after it. From
//! then on it stands in `pending/` ([`journal`]) and in the [`queue`], and only the remote's answer takes it out. One
//! dispatcher gives jobs to a pool of workers through a channel; when the remote fails as a whole, everything waits
//! while one upload at a time probes it. How much may wait is limited ([`Limits`]); what is above is given up and named
//! ([`ledger`]), and stays in the store as an ordinary entry.
//!
//! This module does not know the kernel or the file system above it.
//!
//! Locks: `state` is the only one; neither the disk nor the network is touched while it is held.

pub mod journal;
pub mod ledger;
pub mod queue;
mod renew;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use crate::clock::Clock;
use crate::name::Place;
use crate::remote::{Put, Remote, RemoteError};
use crate::signature::Signature;
use crate::stats::Stats;
use crate::stats::event::{Event, What};
use crate::store::Store;
use journal::Journal;
use ledger::{Burst, Divergence, GivenUp, Ledger};
use queue::{Blame, Next, Queue};
pub use queue::{Item, Limits};

/// How often the dispatcher looks at the clock while they wait.
const TICK: Duration = Duration::from_millis(200);
/// It is said at most so often that some of several remotes lack something.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Most uploads that are given up in one go, so that the push that is one too many does not take long. The dispatcher
/// goes on with it.
const CUT: usize = 64;

/// A push that is in the journal but whose operation has not succeeded yet.
#[derive(Debug)]
pub struct Staged(Item);

/// An upload that a worker is to make.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    item: Item,
    /// How often the remote had been changed when it was handed out.
    generation: u64,
}

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

/// What was withdrawn of one signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// Uploads that will not be made.
    pub cancelled: u64,
    /// Uploads that are under way, and will not be made again: see [`Uploads::is_under_way`].
    pub under_way: u64,
}

/// Why an upload did not succeed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// Its bytes are not in the journal any more.
    #[error("its bytes are gone: {0}")]
    Gone(std::io::Error),
    #[error("{0}")]
    Other(RemoteError),
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
    on_remote: OnceLock<Listener>,
}

/// Told of an entry that the remote has now.
pub type Listener = Box<dyn Fn(&Place) + Send + Sync>;

#[derive(Default)]
struct State {
    queue: Queue,
    waiters: HashMap<u64, Vec<Waiter>>,
    /// Once set, the dispatcher ends when nothing is left, or at this time.
    drain_until: Option<Duration>,
    diverged: Ledger<Divergence>,
    given_up: Ledger<GivenUp>,
    burst: Burst,
    /// Until then it need not be said again that some remotes lack something.
    in_part_until: Option<Duration>,
    /// How often the remote was changed. What comes of a job of an earlier generation says nothing.
    generation: u64,
    /// Nothing is uploaded for the time being.
    paused: bool,
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
        for (item, _) in &left {
            store.pin(&item.place, item.ino, item.bytes);
        }
        for (item, names) in left {
            if names <= store.our_links(item.ino) {
                store.lost_name(item.ino);
            }
            // What an upload was superseded by just before we died.
            if let Some(old) = queue.push(item, clock.now()) {
                journal.remove(store.pending_dir(), &old);
                store.unpin(&old.place, old.ino);
            }
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
            on_remote: OnceLock::new(),
        })
    }

    /// Has `listener` told of each upload that is done; only the first who asks for that is heard.
    pub fn set_listener(&self, listener: Listener) {
        if self.on_remote.set(listener).is_err() {
            log::debug!("somebody is told already which uploads are done");
        }
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
        self.store.pin(place, item.ino, item.bytes);
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
        self.cut();
        self.changed.notify_all();
        seq
    }

    /// Takes out all uploads of a signature. When none is under way any more, none will reach the remote that was
    /// accepted before.
    pub fn withdraw(&self, sig: &Signature) -> Withdrawn {
        let (cancelled, under_way) = self.state().queue.withdraw(sig);
        for item in &cancelled {
            self.drop_item(item);
            self.call_waiters(item.seq);
        }
        for item in &under_way {
            // Whatever happens to us now, the next process does not try it again either.
            self.journal.remove(self.store.pending_dir(), item);
        }
        Withdrawn {
            cancelled: cancelled.len() as u64,
            under_way: under_way.len() as u64,
        }
    }

    /// Whether an upload of that signature is under way.
    pub fn is_under_way(&self, sig: &Signature) -> bool {
        self.state().queue.is_under_way(sig)
    }

    /// Whether an upload of that signature waits or is under way.
    pub fn is_pending(&self, sig: &Signature) -> bool {
        self.state().queue.is_pending(sig)
    }

    /// At most `most` of the divergences whose number is above `after`.
    pub fn divergences(&self, after: u64, most: usize) -> Vec<(u64, Divergence)> {
        self.state().diverged.page(after, most)
    }

    /// At most `most` of what was given up whose number is above `after`.
    pub fn given_up(&self, after: u64, most: usize) -> Vec<(u64, GivenUp)> {
        self.state().given_up.page(after, most)
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
    pub fn run_dispatcher(&self, jobs: Sender<Job>) {
        loop {
            while self.cut() {}
            let mut state = self.state();
            let now = self.clock.now();
            let over = |until| state.queue.is_stuck() || now >= until;
            let ends = state.drain_until.is_some_and(over);
            if let Some(said) = state.burst.take(now, ends) {
                drop(state);
                self.say_given_up(&said);
                continue;
            }
            if ends || state.paused && state.drain_until.is_some() {
                return;
            }
            let next = match state.paused {
                true => Next::Idle,
                false => state.queue.next(now),
            };
            match next {
                Next::Job(item) => {
                    let generation = state.generation;
                    drop(state);
                    if jobs.send(Job { item, generation }).is_err() {
                        return;
                    }
                }
                Next::Wait(time) => drop(self.wait(state, time.min(TICK))),
                Next::Idle if state.drain_until.is_some() || !state.burst.is_empty() => {
                    drop(self.wait(state, TICK));
                }
                Next::Idle => drop(self.changed.wait(state)),
            }
        }
    }

    /// Uploads what comes through the channel until it closes, or until it need not go on.
    pub fn run_worker(&self, jobs: &Receiver<Job>, goes_on: &dyn Fn() -> bool) {
        while goes_on() {
            let Ok(job) = jobs.recv() else { return };
            if !goes_on() {
                return self.give_back(&job);
            }
            self.work(&job);
        }
    }

    fn work(&self, job: &Job) {
        let item = &job.item;
        let began = self.clock.now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.upload(item)));
        let result = result.unwrap_or_else(|_| {
            self.stats.panics.one();
            Err(Failed::Other(RemoteError::Local(format!(
                "bug: the upload of {} panicked",
                item.place.sig
            ))))
        });
        let took = self.clock.now().saturating_sub(began);
        if self.state().generation != job.generation {
            return log::debug!("{} went to a remote that was changed", item.place.sig);
        }
        match result {
            Ok(put) => self.succeeded(job, put, took),
            Err(failed) => self.failed(job, &failed),
        }
        self.call_waiters(item.seq);
        self.changed.notify_all();
    }

    fn upload(&self, item: &Item) -> Result<Put, Failed> {
        let read = journal::read(self.store.pending_dir(), item);
        let (meta, content) = read.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Failed::Gone(e),
            _ => Failed::Other(RemoteError::Local(format!(
                "cannot read the journalled object {}: {e}",
                item.place.sig
            ))),
        })?;
        let put = self.remote.put(&item.place.sig, meta, &content);
        put.map_err(Failed::Other)
    }

    fn succeeded(&self, job: &Job, put: Put, took: Duration) {
        let item = &job.item;
        let note = |what| {
            let event = Event::new(what, &item.place.sig);
            self.stats.note(&event.bytes(item.bytes).took(took));
        };
        match put {
            Put::Stored => note(What::Uploaded),
            Put::Present => note(What::AlreadyThere),
            Put::Diverged {
                theirs,
                their_len,
                ours,
            } => {
                note(What::Diverged);
                let holder = self.remote.describe_holder(&item.place.sig);
                self.state().diverged.add(Divergence {
                    sig: item.place.sig,
                    our_len: item.bytes,
                    our_hash: ours,
                    their_len,
                    their_hash: theirs,
                    at: self.clock.wall(),
                });
                let theirs = theirs.map_or("unknown".to_owned(), |hash| hex(&hash));
                log::warn!(
                    "{} differs from what {holder} holds under that signature: BLAKE3 {} here, {theirs} there; the first stays. \
                     The build step is not reproducible or does not declare all that it depends on",
                    item.place.sig,
                    hex(&ours),
                );
            }
        }
        let mut state = self.state();
        if state.generation != job.generation {
            return;
        }
        let was_failing = state.queue.is_failing();
        state.queue.done(item.seq);
        let left = state.queue.len();
        drop(state);
        self.drop_item(item);
        if let Some(listener) = self.on_remote.get() {
            listener(&item.place);
        }
        if was_failing {
            log::info!(
                "uploads to {} work again, {left} are pending",
                self.remote.describe()
            );
        }
    }

    fn failed(&self, job: &Job, failed: &Failed) {
        let item = &job.item;
        let blame = match failed {
            Failed::Gone(_)
            | Failed::Other(RemoteError::Unsupported(_) | RemoteError::Local(_)) => Blame::Ours,
            Failed::Other(
                error @ (RemoteError::Transient(_)
                | RemoteError::Busy(..)
                | RemoteError::Slow(_)
                | RemoteError::Refused(_)
                | RemoteError::Untrusted(_)),
            ) => Blame::Remote(error.retry_after().unwrap_or_default()),
            Failed::Other(RemoteError::Partly(_)) => Blame::Part,
            Failed::Other(_) => Blame::Object,
        };
        let event = Event::new(What::UploadFailed, &item.place.sig).bytes(item.bytes);
        self.stats.note(&event.why(failed));
        let mut state = self.state();
        if state.generation != job.generation {
            return;
        }
        let first = state.queue.failed(item.seq, blame, self.clock.now());
        if let Some(outdated) = state.queue.take_outdated(item.seq) {
            drop(state);
            return self.drop_item(&outdated);
        }
        let left = state.queue.len();
        // Who waits for a first attempt waits for a remote that works.
        let waiters = match state.queue.is_failing() {
            true => std::mem::take(&mut state.waiters),
            false => HashMap::new(),
        };
        drop(state);
        for waiter in waiters.into_values().flatten() {
            waiter();
        }
        let error = match failed {
            // No attempt can ever succeed.
            Failed::Gone(_) | Failed::Other(RemoteError::Unsupported(_)) => {
                return self.give_up(item, &failed.to_string());
            }
            Failed::Other(error) => error,
        };
        if let RemoteError::Partly(why) = error {
            // The remotes themselves say what is wrong with them; an outage of one concerns every object.
            log::debug!("{} is not uploaded everywhere: {why}", item.place.sig);
            return self.say_in_part(why, left);
        }
        if first {
            log::warn!(
                "cannot upload {} to {}: {error}; {left} are pending and will be tried again",
                item.place.sig,
                self.remote.describe()
            );
        }
    }

    /// Says that something is on some of the remotes only, at most once in [`SAID_EVERY`].
    fn say_in_part(&self, why: &str, left: usize) {
        let now = self.clock.now();
        let mut state = self.state();
        if state.in_part_until.is_some_and(|until| now < until) {
            return;
        }
        state.in_part_until = Some(now + SAID_EVERY);
        drop(state);
        log::warn!(
            "uploads reach some of the remotes only, {left} are pending and will be tried again: {why}"
        );
    }

    /// It will not be uploaded: the entry stays here only.
    fn give_up(&self, item: &Item, why: &str) {
        self.state().queue.given_up(item.seq);
        self.name_given_up(item, why);
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

    /// Gives up what is above the limits; true if there was anything.
    fn cut(&self) -> bool {
        let mut state = self.state();
        let victims = state.queue.cut(CUT);
        let limits = state.queue.limits();
        drop(state);
        for item in &victims {
            self.name_given_up(
                item,
                &format!(
                    "more than {} objects or {} bytes were pending",
                    limits.count, limits.bytes
                ),
            );
            self.drop_item(item);
            self.call_waiters(item.seq);
        }
        !victims.is_empty()
    }

    /// Counts an upload that is given up, and puts it on the list.
    fn name_given_up(&self, item: &Item, why: &str) {
        let event = Event::new(What::GivenUp, &item.place.sig).bytes(item.bytes);
        self.stats.note(&event.why(&why));
        let given_up = GivenUp {
            sig: item.place.sig,
            bytes: item.bytes,
            why: why.to_owned(),
            at: self.clock.wall(),
        };
        let mut state = self.state();
        state.burst.add(&given_up, self.clock.now());
        state.given_up.add(given_up);
        drop(state);
        self.changed.notify_all();
    }

    fn say_given_up(&self, said: &ledger::Said) {
        log::warn!(
            "gave up {} uploads ({} bytes), the first {}: {}; they stay here only, see cachedirfs status --given-up",
            said.count,
            said.bytes,
            said.first.sig,
            said.first.why
        );
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
