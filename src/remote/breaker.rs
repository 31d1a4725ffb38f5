//! The breaker: after a few failures in a row, every call fails at once until the remote answers again.
//!
//! A dead remote must not cost every lookup its timeout. While the breaker is open, one call at a time is
//! let through as a probe, after a delay that grows with each failure; its success closes the breaker for all.
//!
//! What counts as a failure is that the remote could not be asked: transport errors, timeouts, certificates,
//! 5xx, 429, and on reading 401 and 403. A refused *write* does not count, or read-only credentials would cost all hits;
//! nor does a corrupt object, a full disk or a failure of our own. A content that comes too slowly opens it at once, and so
//! does what somebody reports who waited for a call that has not returned ([`Remote::report`]).
//!
//! What closes it is evidence of the same kind. After failures that is any answer. After silence or slowness over
//! one object it is that object, in the time that lookups would have for it: a remote that is quick to say "no such
//! object" and sends contents byte by byte would otherwise be trusted, and waited for, again and again.
//!
//! The outermost order is `Retry(Breaker(Deadline(remote)))`: each attempt counts, and an open breaker ends retrying.
//!
//! This module knows no kind of remote. The plain state is in `machine`; the lock around it is never held
//! over a call.

mod machine;

use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::remote::{
    Ailment, Complaint, Content, Listed, Object, Put, Remote, RemoteError, Trouble,
};
use crate::signature::{MIN_DIGITS, Meta, Signature};

pub use machine::patience;
use machine::{Event, Failure, Machine, Outcome, Permit, Question};

/// A probe reads no more than this of an object: what came so far tells how fast the rest would.
const PROBE_MAX: u64 = 1 << 20;

/// When the breaker opens and how it finds back.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// So many failures in a row open it.
    pub failures: u32,
    /// First delay before a probe; doubled by each probe that fails.
    pub delay: Duration,
    /// Longest delay.
    pub max_delay: Duration,
    /// Longest delay that a remote can ask for (`Retry-After`).
    pub max_wait: Duration,
    /// How long lookups wait for a remote that is well.
    pub patience: Duration,
    /// Bytes a second that a probe has to get; 0 for any.
    pub min_speed: u64,
    /// Only [`Breaker::probe`] probes, never a caller: then no lookup waits for a dead remote at all.
    /// Somebody must call it now and then.
    pub in_background: bool,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            failures: 3,
            delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(60),
            max_wait: Duration::from_secs(300),
            patience: Duration::from_secs(3),
            min_speed: 0,
            in_background: false,
        }
    }
}

/// A remote behind a breaker.
pub struct Breaker {
    inner: Arc<dyn Remote>,
    shared: Arc<Shared>,
}

/// Told what is wrong, and why that is thought.
pub type WhenOpened = Box<dyn Fn(Ailment, &str) + Send + Sync>;

/// Told how long it was open.
pub type WhenClosed = Box<dyn Fn(Duration) + Send + Sync>;

/// What the readers of contents need as well.
struct Shared {
    machine: Mutex<Machine>,
    clock: Arc<dyn Clock>,
    options: BreakerOptions,
    name: String,
    opened: OnceLock<WhenOpened>,
    closed: OnceLock<WhenClosed>,
}

impl Breaker {
    /// `inner` behind a breaker that is closed.
    pub fn new(inner: Arc<dyn Remote>, clock: Arc<dyn Clock>, options: BreakerOptions) -> Self {
        let name = inner.describe();
        let shared = Shared {
            machine: Mutex::new(Machine::new(options)),
            clock,
            options,
            name,
            opened: OnceLock::new(),
            closed: OnceLock::new(),
        };
        Self {
            inner,
            shared: Arc::new(shared),
        }
    }

    /// Has `call` called each time that it closes; only the first who asks for that is heard.
    pub fn when_closed(&self, call: WhenClosed) {
        if self.shared.closed.set(call).is_err() {
            log::debug!("somebody is told already when {} is back", self.shared.name);
        }
    }

    /// Has `call` called each time that it opens; only the first who asks for that is heard.
    pub fn when_opened(&self, call: WhenOpened) {
        if self.shared.opened.set(call).is_err() {
            log::debug!("somebody is told already when {} is down", self.shared.name);
        }
    }

    /// Asks the remote something harmless if the breaker is open and a probe is due.
    pub fn probe(&self) {
        let now = self.shared.clock.now();
        let Some(question) = self.shared.lock().question(now) else {
            return;
        };
        if let Ok(attempt) = Attempt::begin(&self.shared, "probe", true) {
            attempt.end(self.ask(question));
        }
    }

    /// What the answer to a probe's question says, also when it comes late.
    fn ask(&self, question: Question) -> Outcome {
        let began = self.shared.clock.now();
        let answer = match question.about {
            Some(sig) => self.look_at(&sig),
            None => {
                let nobody = Signature::parse(&[b'0'; MIN_DIGITS]).expect("digits");
                self.inner.exists(&nobody).map(|_| 0)
            }
        };
        let took = self.shared.clock.now().saturating_sub(began);
        let Some(within) = question.within else {
            return answer.map_or_else(|e| on_read(&e, None), |_| Outcome::Answered);
        };
        let (bytes, outcome) = match answer {
            Ok(bytes) => (bytes, Outcome::Answered),
            Err(e) => (0, on_read(&e, question.about)),
        };
        let body = bytes
            .saturating_mul(1000)
            .checked_div(self.shared.options.min_speed);
        let late = took > within + Duration::from_millis(body.unwrap_or(0));
        match outcome {
            Outcome::Answered if late => Outcome::Failed(Failure {
                ailment: Ailment::Hangs,
                about: question.about,
                reason: format!("answered a probe after {:.1} s", took.as_secs_f64()),
                wait: None,
                grave: true,
            }),
            Outcome::Failed(failure) if late && failure.ailment == Ailment::Failing => {
                Outcome::Failed(Failure {
                    ailment: Ailment::Hangs,
                    ..failure
                })
            }
            outcome => outcome,
        }
    }

    /// Fetches an object for nobody; how many bytes of its content came.
    fn look_at(&self, sig: &Signature) -> Result<u64, RemoteError> {
        let Some(object) = self.inner.get(sig)? else {
            return Ok(0);
        };
        let mut content = object.content.take(PROBE_MAX);
        let read = io::copy(&mut content, &mut io::sink()).map_err(RemoteError::from_io)?;
        Ok(read.max(object.arrived.bytes()))
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
        self.tell(event);
    }

    fn tell(&self, event: Option<Event>) {
        match event {
            Some(Event::Opened(ailment, why)) => {
                let name = &self.name;
                match ailment {
                    Ailment::Failing => {
                        log::warn!("remote {name} is down, doing without it: {why}");
                    }
                    Ailment::Hangs => log::warn!("remote {name} hangs, doing without it: {why}"),
                    Ailment::Slow => log::warn!("remote {name} is slow, doing without it: {why}"),
                }
                if let Some(call) = self.opened.get() {
                    call(ailment, &why);
                }
            }
            Some(Event::Closed { after }) => {
                log::info!(
                    "remote {} answers again after {} s",
                    self.name,
                    after.as_secs()
                );
                if let Some(call) = self.closed.get() {
                    call(after);
                }
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
                "{operation} {}: not asked, {why}",
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
        fault: impl FnOnce(&RemoteError) -> Outcome,
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

/// What an error says about the remote when something is read, of `about` or in general.
fn on_read(error: &RemoteError, about: Option<Signature>) -> Outcome {
    let (ailment, grave) = match error {
        RemoteError::Slow(_) => (Ailment::Slow, true),
        RemoteError::Refused(_) => (Ailment::Failing, false),
        _ => return on_write(error),
    };
    Outcome::Failed(Failure {
        ailment,
        about: about.filter(|_| grave),
        reason: error.to_string(),
        wait: None,
        grave,
    })
}

/// What an error says about the remote when something is written.
fn on_write(error: &RemoteError) -> Outcome {
    match error {
        RemoteError::Transient(_)
        | RemoteError::Busy(..)
        | RemoteError::Slow(_)
        | RemoteError::Untrusted(_) => Outcome::Failed(Failure {
            ailment: Ailment::Failing,
            about: None,
            reason: error.to_string(),
            wait: error.retry_after(),
            // It will not be better for the next call.
            grave: matches!(error, RemoteError::Untrusted(_)),
        }),
        RemoteError::Local(_) | RemoteError::Partly(_) => Outcome::Unknown,
        RemoteError::Refused(_)
        | RemoteError::Corrupt(_)
        | RemoteError::Full(_)
        | RemoteError::Misconfigured(_)
        | RemoteError::Unsupported(_) => Outcome::Answered,
    }
}

impl Remote for Breaker {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        let attempt = self.begin("get")?;
        match self.inner.get(sig) {
            Ok(Some(object)) => {
                let content = Box::new(Watched {
                    content: object.content,
                    sig: *sig,
                    attempt: Some(attempt),
                });
                Ok(Some(Object { content, ..object }))
            }
            answer => attempt.judged(|e| on_read(e, Some(*sig)), || answer),
        }
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        self.begin("put")?
            .judged(on_write, || self.inner.put(sig, meta, content))
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.begin("exists")?
            .judged(|e| on_read(e, None), || self.inner.exists(sig))
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.begin("delete")?
            .judged(on_write, || self.inner.delete(sig))
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.begin("list")?
            .judged(on_write, || self.inner.list(each))
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.begin("touch")?
            .judged(on_write, || self.inner.touch(sig))
    }

    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        self.begin("delete")?
            .judged(on_write, || self.inner.delete_listed(listed))
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        self.begin("quarantine")?
            .judged(on_write, || self.inner.quarantine(sig))
    }

    fn prepare(&self) {
        self.inner.prepare();
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn trouble(&self) -> Option<Trouble> {
        let now = self.shared.clock.now();
        self.shared
            .lock()
            .trouble(now)
            .or_else(|| self.inner.trouble())
    }

    fn report(&self, complaint: Complaint) {
        let now = self.shared.clock.now();
        let event = self.shared.lock().report(complaint, now, fastrand::f64());
        self.shared.tell(event);
    }
}

/// The content of an object: only its end says that the remote answered.
struct Watched {
    content: Box<dyn Read + Send>,
    sig: Signature,
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
                self.end(on_read(&error, Some(self.sig)));
                Err(error.into_io())
            }
        }
    }
}

#[cfg(test)]
mod tests;
