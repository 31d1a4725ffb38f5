//! The breaker: after a few failures in a row, every call fails at once until the remote answers again.
//!
//! A dead remote must not cost every lookup its timeout. While the breaker is open, one call at a time is
//! let through as a probe, after a delay that grows with each failure; its success closes the breaker for all.
//!
//! What counts as a failure is that the remote could not be asked: transport errors, timeouts, certificates,
//! 5xx, 429, and on reading 401 and 403. A refused *write* does not count, or read-only credentials would cost all hits;
//! nor does a corrupt object, a full disk or a failure of our own.
//!
//! The outermost order is `Retry(Breaker(remote))`: each attempt counts, and an open breaker ends retrying.
//!
//! This module knows no kind of remote. `Machine` is the plain state; the lock around it is never held
//! over a call.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::remote::{Content, Listed, Object, Put, Remote, RemoteError};
use crate::signature::{MIN_DIGITS, Meta, Signature};

/// When the breaker opens and how it finds back.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// So many failures in a row open it.
    pub failures: u32,
    /// First delay before a probe; doubled by each probe that fails.
    pub delay: Duration,
    /// Longest delay.
    pub max_delay: Duration,
    /// Only [`Breaker::probe`] probes, never a caller: then no lookup waits for a dead remote at all.
    /// Somebody must call it now and then.
    pub in_background: bool,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        let (delay, max_delay) = (Duration::from_secs(1), Duration::from_secs(60));
        Self {
            failures: 3,
            delay,
            max_delay,
            in_background: false,
        }
    }
}

/// Closed or open, and since when. Time and jitter are passed in.
#[derive(Debug)]
struct Machine {
    options: BreakerOptions,
    state: State,
    /// Counts changes of state: what a call began in an earlier one says nothing about this one.
    epoch: u64,
}

#[derive(Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        since: Duration,
        reason: String,
        probe_at: Duration,
        delay: Duration,
        probing: bool,
    },
}

/// Leave for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Permit(u64);

/// What a call said about the remote.
#[derive(Clone, Debug)]
enum Outcome {
    Answered,
    /// Nothing: it failed on our side or was given up.
    Unknown,
    Failed {
        reason: String,
        wait: Option<Duration>,
    },
}

/// A change worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Opened(String),
    Closed { after: Duration },
}

impl Machine {
    fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            state: State::Closed { failures: 0 },
            epoch: 0,
        }
    }

    /// Leave for a call, or why there is none. A `prober` asks only to find out.
    fn admit(&mut self, now: Duration, prober: bool) -> Result<Permit, String> {
        let may_probe = prober || !self.options.in_background;
        match &mut self.state {
            State::Closed { .. } => Ok(Permit(self.epoch)),
            State::Open {
                probe_at, probing, ..
            } if may_probe && !*probing && now >= *probe_at => {
                *probing = true;
                Ok(Permit(self.epoch))
            }
            State::Open { since, reason, .. } => Err(describe(now, *since, reason)),
        }
    }

    /// The call with `permit` ended. `jitter` is within 0..1.
    fn end(
        &mut self,
        permit: Permit,
        outcome: Outcome,
        now: Duration,
        jitter: f64,
    ) -> Option<Event> {
        if permit != Permit(self.epoch) {
            return None;
        }
        match outcome {
            Outcome::Answered => self.answered(now),
            Outcome::Unknown => {
                if let State::Open { probing, .. } = &mut self.state {
                    *probing = false;
                }
                None
            }
            Outcome::Failed { reason, wait } => self.failed(reason, wait, now, jitter),
        }
    }

    fn answered(&mut self, now: Duration) -> Option<Event> {
        let event = match &self.state {
            State::Closed { .. } => None,
            State::Open { since, .. } => Some(Event::Closed {
                after: now.saturating_sub(*since),
            }),
        };
        self.epoch += u64::from(event.is_some());
        self.state = State::Closed { failures: 0 };
        event
    }

    fn failed(
        &mut self,
        why: String,
        wait: Option<Duration>,
        now: Duration,
        jitter: f64,
    ) -> Option<Event> {
        let limits = self.options;
        let due = |delay: Duration| {
            let asked = wait.unwrap_or_default().min(limits.max_delay);
            now + delay.mul_f64(0.5 + jitter / 2.0).max(asked)
        };
        match &mut self.state {
            State::Closed { failures } if *failures + 1 < limits.failures => {
                *failures += 1;
                None
            }
            State::Closed { .. } => {
                let (reason, probe_at) = (why.clone(), due(limits.delay));
                let delay = limits.delay;
                self.state = State::Open {
                    since: now,
                    reason,
                    probe_at,
                    delay,
                    probing: false,
                };
                self.epoch += 1;
                Some(Event::Opened(why))
            }
            State::Open {
                reason,
                probe_at,
                delay,
                probing,
                ..
            } => {
                *delay = delay.saturating_mul(2).min(limits.max_delay);
                (*reason, *probe_at, *probing) = (why, due(*delay), false);
                None
            }
        }
    }

    fn trouble(&self, now: Duration) -> Option<String> {
        match &self.state {
            State::Closed { .. } => None,
            State::Open { since, reason, .. } => Some(describe(now, *since, reason)),
        }
    }
}

fn describe(now: Duration, since: Duration, reason: &str) -> String {
    format!(
        "breaker open for {} s: {reason}",
        now.saturating_sub(since).as_secs()
    )
}

/// A remote behind a breaker.
pub struct Breaker {
    inner: Arc<dyn Remote>,
    shared: Arc<Shared>,
}

/// What the readers of contents need as well.
struct Shared {
    machine: Mutex<Machine>,
    clock: Arc<dyn Clock>,
    name: String,
}

impl Breaker {
    /// `inner` behind a breaker that is closed.
    pub fn new(inner: Arc<dyn Remote>, clock: Arc<dyn Clock>, options: BreakerOptions) -> Self {
        let name = inner.describe();
        let shared = Shared {
            machine: Mutex::new(Machine::new(options)),
            clock,
            name,
        };
        Self {
            inner,
            shared: Arc::new(shared),
        }
    }

    /// Asks the remote something harmless if the breaker is open and a probe is due.
    pub fn probe(&self) {
        if self.trouble().is_none() {
            return;
        }
        let nobody = Signature::parse(&[b'0'; MIN_DIGITS]).expect("digits");
        if let Ok(attempt) = Attempt::begin(&self.shared, "probe", true) {
            let _answer = attempt.judged(Fault::on_read, || self.inner.exists(&nobody));
        }
    }

    fn begin(&self, operation: &str) -> Result<Attempt, RemoteError> {
        Attempt::begin(&self.shared, operation, false)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, permit: Permit, outcome: Outcome) {
        let event = self
            .lock()
            .end(permit, outcome, self.clock.now(), fastrand::f64());
        match event {
            Some(Event::Opened(why)) => {
                log::warn!("remote {} is down, doing without it: {why}", self.name);
            }
            Some(Event::Closed { after }) => {
                log::info!(
                    "remote {} answers again after {} s",
                    self.name,
                    after.as_secs()
                );
            }
            None => {}
        }
    }
}

/// One call that was let through. Dropped without an outcome, it says nothing about the remote.
struct Attempt {
    shared: Arc<Shared>,
    permit: Option<Permit>,
}

impl Attempt {
    fn begin(shared: &Arc<Shared>, operation: &str, prober: bool) -> Result<Self, RemoteError> {
        let admitted = shared.lock().admit(shared.clock.now(), prober);
        match admitted {
            Ok(permit) => Ok(Self {
                shared: Arc::clone(shared),
                permit: Some(permit),
            }),
            Err(why) => Err(RemoteError::Transient(format!(
                "{operation} {}: {why}",
                shared.name
            ))),
        }
    }

    fn end(mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            self.shared.end(permit, outcome);
        }
    }

    fn judged<T>(
        self,
        fault: fn(&RemoteError) -> Outcome,
        call: impl FnOnce() -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let answer = call();
        self.end(answer.as_ref().map_or_else(fault, |_| Outcome::Answered));
        answer
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.shared.end(permit, Outcome::Unknown);
        }
    }
}

/// What an error says about the remote.
struct Fault;

impl Fault {
    fn on_read(error: &RemoteError) -> Outcome {
        match error {
            RemoteError::Refused(_) => Outcome::Failed {
                reason: error.to_string(),
                wait: None,
            },
            _ => Self::on_write(error),
        }
    }

    fn on_write(error: &RemoteError) -> Outcome {
        match error {
            RemoteError::Transient(_) | RemoteError::Busy(..) | RemoteError::Untrusted(_) => {
                Outcome::Failed {
                    reason: error.to_string(),
                    wait: error.retry_after(),
                }
            }
            RemoteError::Local(_) => Outcome::Unknown,
            RemoteError::Refused(_)
            | RemoteError::Corrupt(_)
            | RemoteError::Full(_)
            | RemoteError::Misconfigured(_)
            | RemoteError::Unsupported(_) => Outcome::Answered,
        }
    }
}

impl Remote for Breaker {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        let attempt = self.begin("get")?;
        match self.inner.get(sig) {
            Ok(Some(object)) => {
                let content = Box::new(Watched {
                    content: object.content,
                    attempt: Some(attempt),
                });
                Ok(Some(Object { content, ..object }))
            }
            answer => attempt.judged(Fault::on_read, || answer),
        }
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        self.begin("put")?
            .judged(Fault::on_write, || self.inner.put(sig, meta, content))
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.begin("exists")?
            .judged(Fault::on_read, || self.inner.exists(sig))
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.begin("delete")?
            .judged(Fault::on_write, || self.inner.delete(sig))
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.begin("list")?
            .judged(Fault::on_write, || self.inner.list(each))
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn trouble(&self) -> Option<String> {
        let now = self.shared.clock.now();
        self.shared
            .lock()
            .trouble(now)
            .or_else(|| self.inner.trouble())
    }
}

/// The content of an object: only its end says that the remote answered.
struct Watched {
    content: Box<dyn Read + Send>,
    attempt: Option<Attempt>,
}

impl Watched {
    fn end(&mut self, outcome: Outcome) {
        if let Some(attempt) = self.attempt.take() {
            attempt.end(outcome);
        }
    }
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.content.read(buf) {
            Ok(0) if !buf.is_empty() => {
                self.end(Outcome::Answered);
                Ok(0)
            }
            Ok(n) => Ok(n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let error = RemoteError::from_io(error);
                self.end(Fault::on_read(&error));
                Err(error.into_io())
            }
        }
    }
}

#[cfg(test)]
mod tests;
