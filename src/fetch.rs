//! Fetches: remote to store, one per entry however many wait for it.
//!
//! [`Fetch::ask`] takes a waiter and returns at once; workers ask the remote, take the object into the store, and call
//! every waiter. A waiter is told "not now" when the remote has not begun to answer in time, or when the content comes
//! more slowly than it may; the fetch goes on and is there for the next who asks. What was waited for in vain
//! comes out of a budget (`patience`); when that is spent, the remote is told ([`Remote::report`]), and while it is in
//! trouble nobody waits at all. Who is late only because too many are before it says nothing about the remote.
//! Recent misses are remembered, so that SCons' repeated looks at an absent entry cost one request.
//!
//! This module does not know the kernel or the file system above it.
//!
//! Locks: `landing` is held while a fetched object gets its name, then `state`; waiters are called, and otherwise disk
//! and network used, without them.

mod flights;
mod patience;
mod renew;

use std::fmt;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use lru::LruCache;

use crate::clock::Clock;
use crate::name::Place;
use crate::remote::pace::Pace;
use crate::remote::{Ailment, Complaint, Object, Remote, RemoteError};
use crate::signature::Signature;
use crate::stats::Stats;
use crate::stats::event::{Event, What};
use crate::store::Store;

use flights::Flights;
use patience::Patience;

/// Fetches that may wait for a worker; beyond that, a lookup is answered "not now".
pub const QUEUE: usize = 16 * 1024;
/// Misses that are remembered; the oldest are forgotten and asked again.
const MISSES: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");
/// A content is judged over windows of this part of the lookup timeout: two are its silence and the proof of it.
const WINDOWS: u32 = 2;
/// How often contents are looked after: this part of the lookup timeout.
const TICKS: u32 = 12;
/// A miss that takes longer than this part of the lookup timeout was waited for in vain: it saves nothing.
const SLOW_MISS: u32 = 2;
/// Contents of one object that are tried, of as many remotes.
const CONTENTS: u32 = 4;
/// Bytes moved at a time.
const CHUNK: usize = 128 * 1024;

/// How a fetch ended, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The entry is on the disk.
    Here,
    /// The remote does not have it (or not whole); that holds for the negative TTL.
    Absent,
    /// It could not be found out.
    Unknown,
}

/// What is remembered of an entry that could not be had.
#[derive(Clone, Copy, Debug)]
struct Miss {
    until: Duration,
    /// Otherwise some remotes could not be asked, and may have it as soon as they can.
    of_all: bool,
}

/// Told how a fetch ended.
pub type Waiter = Box<dyn FnOnce(Outcome) + Send>;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a miss is remembered.
    pub negative_ttl: Duration,
    /// How long a lookup waits for the remote to begin to answer.
    pub lookup_timeout: Duration,
    /// Bytes a second below which nobody waits for a content; 0 waits for whatever comes at all.
    pub min_speed: u64,
}

/// Whose fault it is that an object could not be taken in.
enum Failed {
    Remote(RemoteError),
    Disk(io::Error),
    /// It was invalidated meanwhile.
    Revoked,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// What a worker is about.
#[derive(Clone, Copy)]
struct Errand<'a> {
    place: &'a Place,
    /// When the remote was asked.
    began: Duration,
    /// How often the remote had been changed when it began.
    generation: u64,
}

/// The fetches of one mount.
pub struct Fetch {
    store: Arc<Store>,
    remote: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    times: RwLock<Times>,
    /// Written by those who revoke: no object that they mean gets its name after that.
    landing: RwLock<()>,
    state: Mutex<State>,
    /// Signalled when the clock has to look again.
    changed: Condvar,
    on_remote: OnceLock<Listener>,
}

/// Told of an entry that was fetched.
pub type Listener = Box<dyn Fn(&Place) + Send + Sync>;

struct State {
    flights: Flights,
    misses: LruCache<Signature, Miss>,
    jobs: Option<Sender<Place>>,
    patience: Patience,
    /// The clock waits for somebody to wait. Otherwise it knows when to look again: who asks later is late later,
    /// but for those who have less patience.
    clock_looks_at: Option<Duration>,
    /// How often the remote was changed.
    generation: u64,
}

impl Fetch {
    /// Fetches from `remote` into `store`. Jobs go through `jobs`, whose other end the workers hold.
    pub fn new(
        store: Arc<Store>,
        remote: Arc<dyn Remote>,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
        times: Times,
        jobs: Sender<Place>,
    ) -> Self {
        let state = State {
            flights: Flights::default(),
            misses: LruCache::new(MISSES),
            jobs: Some(jobs),
            patience: Patience::new(times.lookup_timeout),
            clock_looks_at: None,
            generation: 0,
        };
        let state = Mutex::new(state);
        Self {
            store,
            remote,
            clock,
            stats,
            times: RwLock::new(times),
            landing: RwLock::default(),
            state,
            changed: Condvar::new(),
            on_remote: OnceLock::new(),
        }
    }

    /// How much longer `sig` counts as absent, whatever happens, if it does without asking.
    pub fn known_absent(&self, sig: &Signature) -> Option<Duration> {
        let now = self.clock.now();
        let mut state = self.state();
        let miss = state.misses.get(sig).copied()?;
        if miss.until <= now {
            state.misses.pop(sig);
            return None;
        }
        Some(if miss.of_all {
            miss.until - now
        } else {
            Duration::ZERO
        })
    }

    /// The remote may have it now: somebody pushed it.
    pub fn forget_miss(&self, sig: &Signature) {
        self.state().misses.pop(sig);
    }

    /// Fetches of `sig` that are under way come to nothing: what they bring gets no name from now on.
    pub fn revoke(&self, sig: &Signature) {
        let _none_lands = self.landing.write();
        self.state().flights.revoke(sig);
    }

    /// Whether somebody waits for an entry of that prefix directory.
    pub fn is_asked_in(&self, dir: &str) -> bool {
        self.state().flights.is_asked_in(dir)
    }

    /// Calls `waiter` when the entry is here, known to be absent, or when that takes too long.
    pub fn ask(&self, place: Place, waiter: Waiter) {
        let trouble = self.remote.trouble_about(&place.sig);
        let now = self.clock.now();
        let mut state = self.state();
        let accepted = trouble.is_none() && (state.flights.has(&place) || state.begin(place));
        if !accepted {
            // The remote is in trouble, we are stopped, or more lookups wait than make sense.
            drop(state);
            let why = trouble.map_or("too many fetches wait, or the mount ends".to_owned(), |t| {
                t.reason
            });
            self.stats
                .note(&Event::new(What::NotAsked, &place.sig).why(&why));
            waiter(Outcome::Unknown);
            return;
        }
        let until = now + state.patience.allowed(now);
        state.flights.wait(place, now, until, waiter);
        if state.clock_looks_at.is_none_or(|look| until < look) {
            state.clock_looks_at = Some(until);
            self.changed.notify_all();
        }
    }

    /// The same, blocking: for those who are not the kernel.
    pub fn ask_and_wait(&self, place: Place) -> Outcome {
        let (send, receive) = crossbeam_channel::bounded(1);
        let waiter = move |outcome| {
            // Whoever asked may be gone.
            send.try_send(outcome).ok();
        };
        self.ask(place, Box::new(waiter));
        receive.recv().unwrap_or(Outcome::Unknown)
    }

    /// No more fetches: the workers and the clock end, whoever waits is told "not now".
    pub fn stop(&self) {
        let mut state = self.state();
        state.jobs = None;
        let waiting = state.flights.take_all();
        drop(state);
        self.changed.notify_all();
        for waiter in waiting {
            waiter(Outcome::Unknown);
        }
    }

    /// Tells all who wait "not now". The fetches go on.
    pub fn dismiss(&self) {
        let waiting = self.state().flights.take_all();
        for waiter in waiting {
            waiter(Outcome::Unknown);
        }
    }

    /// Fetches what comes through the channel until it closes, or until it need not go on after one of them.
    pub fn run_worker(&self, jobs: &Receiver<Place>, goes_on: &dyn Fn() -> bool) {
        for place in jobs {
            let generation = self.state().generation;
            let run = || self.fetch(&place, generation);
            let fetched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            let outcome = fetched.unwrap_or_else(|_| {
                self.stats.panics.one();
                log::error!("bug: the fetch of {} panicked", place.sig);
                Outcome::Unknown
            });
            self.land(&place, outcome, generation);
            if !goes_on() {
                return;
            }
        }
    }

    /// Tells waiters "not now" when their time is over, until [`Fetch::stop`].
    pub fn run_clock(&self) {
        loop {
            let tick = self.times().lookup_timeout / TICKS;
            self.dismiss_late();
            let mut state = self.state();
            if state.jobs.is_none() {
                return;
            }
            let now = self.clock.now();
            state.clock_looks_at = state.flights.next_look(now, tick);
            match state.clock_looks_at {
                Some(due) => drop(self.changed.wait_timeout(state, due.saturating_sub(now))),
                None => drop(self.changed.wait(state)),
            }
        }
    }

    /// Tells those "not now" whose time is over, and all of them once there is no patience left.
    fn dismiss_late(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        let mut late = state.flights.take_late(now);
        let mut last_straw = None;
        for (from, complaint) in late.in_vain {
            if state.patience.in_vain(from, now) {
                last_straw = Some(complaint);
            }
        }
        if last_straw.is_some() {
            late.waiters.extend(state.flights.take_unanswered());
        }
        drop(state);
        if let Some(complaint) = last_straw {
            // First, so that whoever asks again at once does not wait again.
            self.remote.report(complaint);
        }
        for gone in late.waiters {
            let event = Event::new(What::Late, &gone.sig);
            self.stats.note(&event.took(now.saturating_sub(gone.asked)));
            (gone.waiter)(Outcome::Unknown);
        }
    }

    /// The remote has just answered, or failed, too late to be of use.
    fn was_in_vain(&self, errand: Errand<'_>, reason: &str) {
        let place = errand.place;
        let now = self.clock.now();
        let mut state = self.state();
        if state.generation != errand.generation {
            return;
        }
        let from = state.flights.waiting_since(place);
        let spent = from.is_some_and(|from| state.patience.in_vain(from, now));
        drop(state);
        if spent {
            self.remote.report(Complaint {
                ailment: Ailment::Hangs,
                about: Some(place.sig),
                reason: format!("lookups wait for nothing: {reason}"),
            });
        }
    }

    fn fetch(&self, place: &Place, generation: u64) -> Outcome {
        // Whoever asked looked at the disk before: an earlier fetch, or a push, may have been faster.
        if self.store.has(place) {
            return Outcome::Here;
        }
        if self.is_stopped() {
            return Outcome::Unknown;
        }
        let began = self.clock.now();
        let errand = Errand {
            place,
            began,
            generation,
        };
        self.state().flights.asked(place, began);
        match self.remote.get(&place.sig) {
            Ok(None) => {
                let took = self.clock.now().saturating_sub(began);
                if took >= self.times().lookup_timeout / SLOW_MISS {
                    self.was_in_vain(errand, &format!("a miss took {:.1} s", took.as_secs_f64()));
                }
                self.stats
                    .note(&Event::new(What::Miss, &place.sig).took(took));
                Outcome::Absent
            }
            Ok(Some(object)) => self.take_first_whole(errand, object),
            Err(error @ RemoteError::Partly(_)) => {
                // Until others can be asked again, asking once more is of no use.
                self.remember_miss(place, false, generation);
                self.failed(errand, &error)
            }
            Err(error) => {
                if error.is_transient() {
                    self.was_in_vain(errand, &error.to_string());
                }
                self.failed(errand, &error)
            }
        }
    }

    /// Takes in an object. If its content cannot be read and another remote may have it, that one is asked.
    fn take_first_whole(&self, errand: Errand<'_>, mut object: Object) -> Outcome {
        let place = errand.place;
        for attempt in 1.. {
            let times = self.times();
            let pace = Pace::new(times.min_speed.max(1), times.lookup_timeout / WINDOWS);
            let arrived = object.arrived.clone();
            self.state().flights.arriving(place, arrived, pace);
            let outcome = self.take_in(errand, object);
            let again = attempt < CONTENTS && outcome != Outcome::Here;
            if !again || !self.remote.elsewhere(&place.sig) {
                return outcome;
            }
            match self.remote.get(&place.sig) {
                Ok(Some(other)) => object = other,
                Ok(None) => return Outcome::Absent,
                Err(_) => return outcome,
            }
        }
        Outcome::Unknown
    }

    fn take_in(&self, errand: Errand<'_>, object: Object) -> Outcome {
        let sig = &errand.place.sig;
        match self.copy_in(errand, object) {
            Ok(true) => Outcome::Here,
            Ok(false) => {
                self.stats.note(&Event::new(What::NoRoom, sig));
                Outcome::Unknown
            }
            Err(Failed::Remote(error)) => self.failed(errand, &error),
            Err(Failed::Revoked) => Outcome::Unknown,
            Err(Failed::Disk(error)) if error.kind() == io::ErrorKind::StorageFull => {
                self.stats.note(&Event::new(What::NoRoom, sig).why(&error));
                Outcome::Unknown
            }
            Err(Failed::Disk(error)) => {
                let why = format_args!("cannot store it: {error}");
                self.note_failure(What::FetchFailed, errand, &why);
                log::warn!("cannot store the fetched object {sig}: {error}");
                Outcome::Unknown
            }
        }
    }

    /// Copies an object into the store; false if there is no room. Only an object that was read to its end
    /// without an error, which means that it is what was pushed, gets a name.
    fn copy_in(&self, errand: Errand<'_>, mut object: Object) -> Result<bool, Failed> {
        let place = errand.place;
        let Some(mut incoming) = self.store.begin_write(object.len)? else {
            return Ok(false);
        };
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        loop {
            self.state().flights.reads(place, self.clock.now());
            let read = object.content.read(&mut buffer);
            let bytes = read.as_ref().map_or(0, |n| *n as u64);
            self.state().flights.read(place, self.clock.now(), bytes);
            match read {
                Ok(0) => break,
                Ok(n) => {
                    incoming.write_all(&buffer[..n])?;
                    total += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failed::Remote(RemoteError::from_io(e))),
            }
        }
        incoming.set_hash(object.hash);
        let _landing = self.landing.read();
        if self.state().flights.is_revoked(place) {
            return Err(Failed::Revoked);
        }
        incoming.commit(place, object.meta)?;
        let took = self.clock.now().saturating_sub(errand.began);
        let event = Event::new(What::Fetched, &place.sig);
        self.stats.note(&event.bytes(total).took(took));
        if let Some(listener) = self.on_remote.get() {
            listener(place);
        }
        Ok(true)
    }

    fn failed(&self, errand: Errand<'_>, error: &RemoteError) -> Outcome {
        let sig = &errand.place.sig;
        if let RemoteError::Corrupt(_) = error {
            self.note_failure(What::Corrupt, errand, error);
            log::warn!(
                "the object {sig} on {} is a miss: {error}",
                self.remote.describe()
            );
            return Outcome::Absent;
        }
        self.note_failure(What::FetchFailed, errand, error);
        log::debug!("cannot fetch {sig}: {error}");
        Outcome::Unknown
    }

    fn note_failure(&self, what: What, errand: Errand<'_>, why: &dyn fmt::Display) {
        let took = self.clock.now().saturating_sub(errand.began);
        let event = Event::new(what, &errand.place.sig);
        self.stats.note(&event.took(took).why(why));
    }

    /// Ends a flight: remembers a miss and tells everybody who waits.
    fn land(&self, place: &Place, outcome: Outcome, generation: u64) {
        if outcome == Outcome::Absent {
            self.remember_miss(place, true, generation);
        }
        let mut state = self.state();
        let outcome = match outcome {
            Outcome::Here => outcome,
            // Another remote is asked about it already.
            _ if state.flights.is_asked_after(place, generation) => return,
            Outcome::Absent if state.generation != generation => Outcome::Unknown,
            _ => outcome,
        };
        let waiters = state.flights.land(place);
        drop(state);
        let now = self.clock.now();
        for waited in waiters {
            let event = Event::new(What::Waited, &waited.sig);
            self.stats
                .note(&event.took(now.saturating_sub(waited.asked)));
            (waited.waiter)(outcome);
        }
    }

    /// What a remote said that is not asked any more is no news.
    fn remember_miss(&self, place: &Place, of_all: bool, generation: u64) {
        let until = self.clock.now() + self.times().negative_ttl;
        let mut state = self.state();
        if state.generation == generation {
            state.misses.put(place.sig, Miss { until, of_all });
        }
    }

    /// A remote that could not be asked can be now: what only others were asked for is to be asked again.
    pub fn forget_misses(&self) {
        let mut state = self.state();
        let open = state.misses.iter().filter(|(_, miss)| !miss.of_all);
        let open: Vec<_> = open.map(|(sig, _)| *sig).collect();
        for sig in open {
            state.misses.pop(&sig);
        }
    }

    /// Has `listener` told of each entry that was fetched; only the first who asks for that is heard.
    pub fn set_listener(&self, listener: Listener) {
        if self.on_remote.set(listener).is_err() {
            log::debug!("somebody is told already what is fetched");
        }
    }

    /// How long a miss holds from when it is found.
    pub fn negative_ttl(&self) -> Duration {
        self.times().negative_ttl
    }

    fn times(&self) -> Times {
        *self.times.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.state().jobs.is_none()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Hands a fetch to the workers; false if they take no more.
    fn begin(&mut self, place: Place) -> bool {
        let jobs = self.jobs.as_ref();
        let accepted = jobs.is_some_and(|jobs| jobs.try_send(place).is_ok());
        if accepted {
            self.flights.begin(place);
        }
        accepted
    }
}
