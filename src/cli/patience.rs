//! What a command does while a remote is not in the mood, and when somebody presses Ctrl-C.
//!
//! This module does not know what the calls are for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::remote::RemoteError;
use crate::sys::EndSignals;

/// Attempts in all. With the waits between them they last over a restart of the server.
const ATTEMPTS: u32 = 6;
/// Wait before the second attempt; doubled each time.
const DELAY: Duration = Duration::from_millis(500);
/// Longest wait that a remote may ask for.
const LONGEST: Duration = Duration::from_secs(600);
/// How often a wait looks for Ctrl-C.
const SLICE: Duration = Duration::from_millis(50);
/// Failures one after another after which the rest is not tried: it is the remote, not the objects.
const FAILURES_MAX: u64 = 20;

/// Tries again, waits, and knows when to stop.
pub(super) struct Patience {
    clock: Arc<dyn Clock>,
    signals: Option<EndSignals>,
    interrupted: AtomicBool,
    given_up: AtomicBool,
    failures: AtomicU64,
}

impl Patience {
    /// From now on, Ctrl-C and SIGTERM do not end the process: what is under way is finished, and nothing more is begun. To be
    /// made before any thread.
    pub(super) fn new() -> Self {
        Self {
            clock: SystemClock::shared(),
            // Without, the first Ctrl-C ends the process, which leaves nothing half either.
            signals: EndSignals::block().ok(),
            interrupted: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            failures: AtomicU64::new(0),
        }
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Whether nothing more is to be begun.
    pub(super) fn is_over(&self) -> bool {
        if self.signals.as_ref().and_then(EndSignals::take).is_some() {
            self.interrupted.store(true, Ordering::Relaxed);
        }
        self.interrupted.load(Ordering::Relaxed) || self.given_up.load(Ordering::Relaxed)
    }

    /// Why it ended early, if it did.
    pub(super) fn why_over(&self) -> Option<&'static str> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Some("interrupted; the same command goes on from here");
        }
        let given_up = self.given_up.load(Ordering::Relaxed);
        given_up.then_some(
            "given up after 20 failures one after another; the same command goes on from here",
        )
    }

    /// Calls until it succeeds, fails for good, or has failed often enough.
    pub(super) fn with<T>(
        &self,
        call: impl Fn() -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut attempt = 1;
        loop {
            let error = match call() {
                Ok(done) => {
                    self.failures.store(0, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(error) => error,
            };
            let asked = error.retry_after().unwrap_or_default();
            let hopeless = !error.is_transient() || attempt == ATTEMPTS || asked > LONGEST;
            if hopeless || self.is_over() {
                self.failed();
                return Err(error);
            }
            let backoff = DELAY * (1 << (attempt - 1));
            let jitter = backoff.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.wait(asked.max(jitter));
            attempt += 1;
        }
    }

    fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.given_up.store(true, Ordering::Relaxed);
        }
    }

    fn wait(&self, time: Duration) {
        let until = self.clock.now() + time;
        while self.clock.now() < until && !self.is_over() {
            self.clock.sleep(SLICE);
        }
    }
}
