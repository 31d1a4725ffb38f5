//! The state of a breaker as a plain structure: time and jitter are passed in, nothing waits, nothing is locked.

use std::time::Duration;

use crate::remote::{Ailment, Complaint, Trouble};
use crate::signature::Signature;

use super::BreakerOptions;

/// A remote that fails again within this time has not been well: the delay between probes goes on growing.
const RELAPSE: Duration = Duration::from_secs(60);

/// The patience that lookups have with a remote right after it failed them: this part of the full patience.
const PATIENCE_LEFT: u32 = 6;
/// It grows back by a second in so many.
const PATIENCE_REGAINED: u32 = 60;

/// How long a lookup may wait for a remote that failed `calm` ago and has been let alone or been well since. A
/// remote that hangs every now and then so costs `full` once, and after that a small part of the time.
pub fn patience(full: Duration, calm: Duration) -> Duration {
    (calm / PATIENCE_REGAINED)
        .max(full / PATIENCE_LEFT)
        .min(full)
}

/// Closed, or open and why. Time and jitter are passed in.
#[derive(Debug)]
pub(super) struct Machine {
    options: BreakerOptions,
    /// Failures in a row while it is closed.
    failures: u32,
    open: Option<Open>,
    /// When it closed last, and the delay between probes at that time.
    last: Option<(Duration, Duration)>,
    /// Counts changes of state: what a call began in an earlier one says nothing about this one.
    epoch: u64,
}

#[derive(Debug)]
struct Open {
    ailment: Ailment,
    /// Who asks for this finds out whether it is over; otherwise anything does.
    about: Option<Signature>,
    since: Duration,
    reason: String,
    probe_at: Duration,
    delay: Duration,
    probing: bool,
}

/// Leave for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permit(u64);

/// What a call said about the remote.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Answered,
    /// Nothing: it failed on our side or was given up.
    Unknown,
    Failed(Failure),
}

/// How a call failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) ailment: Ailment,
    pub(super) about: Option<Signature>,
    pub(super) reason: String,
    /// How long the remote asked to be left alone.
    pub(super) wait: Option<Duration>,
    /// It opens the breaker alone.
    pub(super) grave: bool,
}

/// A change worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Opened(Ailment, String),
    Closed { after: Duration },
}

/// What a probe is to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// Whether this object can be had; without one, whether anything answers.
    pub(super) about: Option<Signature>,
    /// What is answered later than this is no answer; without a limit, any is.
    pub(super) within: Option<Duration>,
}

impl Machine {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            failures: 0,
            open: None,
            last: None,
            epoch: 0,
        }
    }

    /// Leave for a call, or why there is none. A `prober` asks only to find out.
    pub(super) fn admit(&mut self, now: Duration, prober: bool) -> Result<Permit, Trouble> {
        let may_probe = prober || !self.options.in_background;
        match &mut self.open {
            None => Ok(Permit(self.epoch)),
            Some(open) if may_probe && !open.probing && now >= open.probe_at => {
                open.probing = true;
                Ok(Permit(self.epoch))
            }
            Some(open) => Err(open.trouble(now)),
        }
    }

    /// The call with `permit` ended. `jitter` is within 0..1.
    pub(super) fn end(
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
                if let Some(open) = &mut self.open {
                    open.probing = false;
                }
                None
            }
            Outcome::Failed(failure) => self.failed(failure, now, jitter),
        }
    }

    /// Somebody observed what no call returned: it opens at once.
    pub(super) fn report(
        &mut self,
        complaint: Complaint,
        now: Duration,
        jitter: f64,
    ) -> Option<Event> {
        if self.open.is_some() {
            return None;
        }
        let failure = Failure {
            ailment: complaint.ailment,
            about: complaint.about,
            reason: complaint.reason,
            wait: None,
            grave: true,
        };
        self.failed(failure, now, jitter)
    }

    /// What a probe has to ask; `None` while it is closed.
    pub(super) fn question(&self, now: Duration) -> Option<Question> {
        let open = self.open.as_ref()?;
        let lasts = now.saturating_sub(open.since);
        let timed = open.ailment != Ailment::Failing || open.about.is_some();
        Some(Question {
            about: open.about,
            within: timed.then(|| patience(self.options.patience, lasts)),
        })
    }

    pub(super) fn trouble(&self, now: Duration) -> Option<Trouble> {
        self.open.as_ref().map(|open| open.trouble(now))
    }

    fn answered(&mut self, now: Duration) -> Option<Event> {
        self.failures = 0;
        let open = self.open.take()?;
        self.last = Some((now, open.delay));
        self.epoch += 1;
        Some(Event::Closed {
            after: now.saturating_sub(open.since),
        })
    }

    fn failed(&mut self, failure: Failure, now: Duration, jitter: f64) -> Option<Event> {
        let limits = self.options;
        let due = |delay: Duration| {
            let asked = failure.wait.unwrap_or_default().min(limits.max_wait);
            now + delay.mul_f64(0.5 + jitter / 2.0).max(asked)
        };
        if let Some(open) = &mut self.open {
            open.delay = open.delay.saturating_mul(2).min(limits.max_delay);
            (open.probe_at, open.probing) = (due(open.delay), false);
            (open.ailment, open.reason) = (failure.ailment, failure.reason);
            return None;
        }
        self.failures += 1;
        if !failure.grave && self.failures < limits.failures {
            return None;
        }
        let delay = match self.last {
            Some((closed, delay)) if now.saturating_sub(closed) < RELAPSE => {
                delay.saturating_mul(2).min(limits.max_delay)
            }
            _ => limits.delay,
        };
        self.open = Some(Open {
            ailment: failure.ailment,
            about: failure.about,
            since: now,
            reason: failure.reason.clone(),
            probe_at: due(delay),
            delay,
            probing: false,
        });
        self.epoch += 1;
        Some(Event::Opened(failure.ailment, failure.reason))
    }
}

impl Open {
    fn trouble(&self, now: Duration) -> Trouble {
        Trouble {
            ailment: self.ailment,
            lasts: now.saturating_sub(self.since),
            reason: self.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
