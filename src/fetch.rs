//! Fetches: remote to store, one per entry however many wait for it.
//!
//! [`Fetch::ask`] takes a waiter and returns at once; workers ask the remote, take the object into the store, and call
//! every waiter. A waiter is told "not now" when the remote has not begun to answer within the lookup
//! timeout; the fetch goes on and is there for the next who asks. From then on nobody waits until the remote has answered
//! something again: one lookup timeout is all that a hanging remote costs. Recent misses are remembered, so that SCons'
//! repeated looks at an absent entry cost one request.
//!
//! This module does not know the kernel or the file system above it.
//!
//! Locks: `landing` is held while a fetched object gets its name, then `state`; waiters are called, and otherwise disk
//! and network used, without them.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use lru::LruCache;

use crate::clock::Clock;
use crate::name::Place;
use crate::remote::{Object, Remote, RemoteError};
use crate::signature::Signature;
use crate::stats::Stats;
use crate::store::Store;

/// Fetches that may wait for a worker; beyond that, a lookup is answered "not now".
pub const QUEUE: usize = 16 * 1024;
/// Misses that are remembered; the oldest are forgotten and asked again.
const MISSES: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");
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

/// Told how a fetch ended.
pub type Waiter = Box<dyn FnOnce(Outcome) + Send>;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a miss is remembered.
    pub negative_ttl: Duration,
    /// How long a lookup waits for the remote to begin to answer.
    pub lookup_timeout: Duration,
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

/// The fetches of one mount.
pub struct Fetch {
    store: Arc<Store>,
    remote: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    times: Times,
    /// Written by those who revoke: no object that they mean gets its name after that.
    landing: RwLock<()>,
    state: Mutex<State>,
    /// Signalled when the clock has to look again.
    changed: Condvar,
}

struct State {
    flights: HashMap<Place, Flight>,
    misses: LruCache<Signature, Duration>,
    jobs: Option<Sender<Place>>,
    /// The remote was too late for somebody and has not answered anything since.
    hangs: bool,
    /// The clock waits for somebody to wait. Otherwise it knows when to look again: who asks later is late later.
    clock_is_idle: bool,
}

/// One fetch under way.
#[derive(Default)]
struct Flight {
    /// Waiters, and when each asked.
    waiters: Vec<(Duration, Waiter)>,
    /// The remote has begun to answer: the waiters stay until the end.
    answering: bool,
    /// What it brings is not to get a name.
    revoked: bool,
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
            flights: HashMap::new(),
            misses: LruCache::new(MISSES),
            jobs: Some(jobs),
            hangs: false,
            clock_is_idle: false,
        };
        let state = Mutex::new(state);
        Self {
            store,
            remote,
            clock,
            stats,
            times,
            landing: RwLock::default(),
            state,
            changed: Condvar::new(),
        }
    }

    /// How much longer `sig` counts as absent without asking, if it does.
    pub fn known_absent(&self, sig: &Signature) -> Option<Duration> {
        let now = self.clock.now();
        let mut state = self.state();
        let until = state.misses.get(sig).copied()?;
        if until <= now {
            state.misses.pop(sig);
            return None;
        }
        Some(until - now)
    }

    /// The remote may have it now: somebody pushed it.
    pub fn forget_miss(&self, sig: &Signature) {
        self.state().misses.pop(sig);
    }

    /// Fetches of `sig` that are under way come to nothing: what they bring gets no name from now on.
    pub fn revoke(&self, sig: &Signature) {
        let _none_lands = self.landing.write();
        for (place, flight) in &mut self.state().flights {
            flight.revoked |= place.sig == *sig;
        }
    }

    /// Whether somebody waits for an entry of that prefix directory.
    pub fn is_asked_in(&self, dir: &str) -> bool {
        let waits = |flight: &Flight| !flight.waiters.is_empty();
        let state = self.state();
        let mut flights = state.flights.iter();
        flights.any(|(place, flight)| waits(flight) && place.dir() == dir)
    }

    /// Calls `waiter` when the entry is here, known to be absent, or when that takes too long.
    pub fn ask(&self, place: Place, waiter: Waiter) {
        let now = self.clock.now();
        let mut state = self.state();
        // Nobody waits for a remote that hangs; one fetch at a time sees whether it still does.
        let flies = state.flights.contains_key(&place);
        let accepted = if state.hangs {
            if !flies && state.flights.values().all(|flight| flight.answering) {
                state.begin(place);
            }
            false
        } else {
            flies || state.begin(place)
        };
        if !accepted {
            // The remote hangs, we are stopped, or more lookups wait than make sense.
            drop(state);
            self.stats.failed_fetches.one();
            waiter(Outcome::Unknown);
            return;
        }
        let flight = state.flights.entry(place).or_default();
        flight.waiters.push((now, waiter));
        if std::mem::take(&mut state.clock_is_idle) {
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
        let waiting: Vec<_> = state
            .flights
            .values_mut()
            .flat_map(|f| f.waiters.drain(..))
            .collect();
        drop(state);
        self.changed.notify_all();
        for (_, waiter) in waiting {
            waiter(Outcome::Unknown);
        }
    }

    /// Fetches what comes through the channel until it closes.
    pub fn run_worker(&self, jobs: &Receiver<Place>) {
        for place in jobs {
            let fetched =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.fetch(&place)));
            let outcome = fetched.unwrap_or_else(|_| {
                self.stats.panics.one();
                log::error!("bug: the fetch of {} panicked", place.sig);
                Outcome::Unknown
            });
            self.land(&place, outcome);
        }
    }

    /// Tells waiters "not now" when their time is over, until [`Fetch::stop`].
    pub fn run_clock(&self) {
        loop {
            let late = self.late_waiters(self.clock.now());
            self.stats.late_fetches.add(late.len() as u64);
            if !late.is_empty() {
                self.set_hangs(true);
            }
            for waiter in late {
                waiter(Outcome::Unknown);
            }
            let mut state = self.state();
            if state.jobs.is_none() {
                return;
            }
            let next = state.flights.values().filter_map(Flight::asked_first).min();
            match next {
                Some(asked) => {
                    let due = (asked + self.times.lookup_timeout).saturating_sub(self.clock.now());
                    drop(self.changed.wait_timeout(state, due));
                }
                None => {
                    state.clock_is_idle = true;
                    drop(self.changed.wait(state));
                }
            }
        }
    }

    /// What is wrong with the remote as far as lookups can tell.
    pub fn trouble(&self) -> Option<String> {
        self.state()
            .hangs
            .then(|| format!("does not answer within {:?}", self.times.lookup_timeout))
    }

    fn set_hangs(&self, hangs: bool) {
        let before = std::mem::replace(&mut self.state().hangs, hangs);
        match (before, hangs) {
            (false, true) => log::warn!(
                "{} does not answer within {:?}: lookups are misses until it does",
                self.remote.describe(),
                self.times.lookup_timeout
            ),
            (true, false) => log::info!("{} answers again", self.remote.describe()),
            _ => {}
        }
    }

    fn late_waiters(&self, now: Duration) -> Vec<Waiter> {
        let mut late = Vec::new();
        for flight in self.state().flights.values_mut().filter(|f| !f.answering) {
            let waiters = std::mem::take(&mut flight.waiters);
            for (asked, waiter) in waiters {
                if now.saturating_sub(asked) >= self.times.lookup_timeout {
                    late.push(waiter);
                } else {
                    flight.waiters.push((asked, waiter));
                }
            }
        }
        late
    }

    fn fetch(&self, place: &Place) -> Outcome {
        // Whoever asked looked at the disk before: an earlier fetch, or a push, may have been faster.
        if self.store.has(place) {
            return Outcome::Here;
        }
        if self.is_stopped() {
            return Outcome::Unknown;
        }
        let answer = self.remote.get(&place.sig);
        if answer.is_ok() {
            self.set_hangs(false);
        }
        match answer {
            Ok(None) => {
                self.stats.misses.one();
                Outcome::Absent
            }
            Ok(Some(object)) => {
                if let Some(flight) = self.state().flights.get_mut(place) {
                    flight.answering = true;
                }
                self.take_in(place, object)
            }
            Err(error) => self.failed(place, &error),
        }
    }

    fn take_in(&self, place: &Place, object: Object) -> Outcome {
        match self.copy_in(place, object) {
            Ok(true) => Outcome::Here,
            Ok(false) => {
                self.stats.no_room.one();
                Outcome::Unknown
            }
            Err(Failed::Remote(error)) => self.failed(place, &error),
            Err(Failed::Revoked) => Outcome::Unknown,
            Err(Failed::Disk(error)) if error.kind() == io::ErrorKind::StorageFull => {
                self.stats.no_room.one();
                Outcome::Unknown
            }
            Err(Failed::Disk(error)) => {
                self.stats.failed_fetches.one();
                log::warn!("cannot store the fetched object {}: {error}", place.sig);
                Outcome::Unknown
            }
        }
    }

    /// Copies an object into the store; false if there is no room. Only an object that was read to its end
    /// without an error, which means that it is what was pushed, gets a name.
    fn copy_in(&self, place: &Place, mut object: Object) -> Result<bool, Failed> {
        let Some(mut incoming) = self.store.begin_write(object.len)? else {
            return Ok(false);
        };
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        loop {
            match object.content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    incoming.write_all(&buffer[..n])?;
                    total += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failed::Remote(RemoteError::from_io(e))),
            }
        }
        let _landing = self.landing.read();
        if self.state().flights.get(place).is_some_and(|f| f.revoked) {
            return Err(Failed::Revoked);
        }
        incoming.commit(place, object.meta)?;
        self.stats.fetched.one();
        self.stats.fetched_bytes.add(total);
        Ok(true)
    }

    fn failed(&self, place: &Place, error: &RemoteError) -> Outcome {
        if let RemoteError::Corrupt(_) = error {
            self.stats.corrupt.one();
            log::warn!(
                "the object {} on {} is a miss: {error}",
                place.sig,
                self.remote.describe()
            );
            return Outcome::Absent;
        }
        self.stats.failed_fetches.one();
        log::debug!("cannot fetch {}: {error}", place.sig);
        Outcome::Unknown
    }

    /// Ends a flight: remembers a miss and tells everybody who waits.
    fn land(&self, place: &Place, outcome: Outcome) {
        let until = self.clock.now() + self.times.negative_ttl;
        let mut state = self.state();
        if outcome == Outcome::Absent {
            state.misses.put(place.sig, until);
        }
        let flight = state.flights.remove(place).unwrap_or_default();
        drop(state);
        for (_, waiter) in flight.waiters {
            waiter(outcome);
        }
    }

    /// How long a miss holds from when it is found.
    pub fn negative_ttl(&self) -> Duration {
        self.times.negative_ttl
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
            self.flights.insert(place, Flight::default());
        }
        accepted
    }
}

impl Flight {
    /// When the first of those who still can be late asked.
    fn asked_first(&self) -> Option<Duration> {
        if self.answering {
            None
        } else {
            self.waiters.iter().map(|(asked, _)| *asked).min()
        }
    }
}
