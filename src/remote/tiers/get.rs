//! One lookup through the tiers.

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{SPOILED, Shared, Tiers, bit, partly};
use crate::remote::{Ailment, Complaint, Object, RemoteError};
use crate::signature::Signature;

/// How often it is looked whether those that are still waited for are in trouble by now.
const TICK: Duration = Duration::from_millis(100);

type Answer = Result<Option<Object>, RemoteError>;

/// What is known so far.
struct Round<'a> {
    tiers: &'a Tiers,
    sig: &'a Signature,
    send: Sender<(usize, Answer)>,
    receive: Receiver<(usize, Answer)>,
    /// Asked, and not answered.
    out: u64,
    /// Said no, or have something else than the object.
    lack: u64,
    corrupt: Option<RemoteError>,
    failed: Vec<(usize, RemoteError)>,
}

pub(super) fn get(tiers: &Tiers, sig: &Signature) -> Answer {
    let (send, receive) = crossbeam_channel::bounded(tiers.tiers().len());
    let round = Round {
        tiers,
        sig,
        send,
        receive,
        out: 0,
        lack: 0,
        corrupt: None,
        failed: Vec::new(),
    };
    round.run()
}

impl Round<'_> {
    fn run(mut self) -> Answer {
        self.lack = self.tiers.shared.spoiled(self.sig);
        let spoiled = self.lack;
        let left = (0..self.tiers.tiers().len()).filter(|n| spoiled & bit(*n) == 0);
        let mut left: Vec<_> = left.filter(|n| self.may_ask(*n)).collect();
        left.reverse();
        while let Some(next) = left.pop() {
            let hit = if left.is_empty() && self.out == 0 {
                let answer = ask(&self.tiers.shared, next, self.sig);
                self.heard(next, answer)
            } else {
                self.ask_elsewhere(next);
                self.wait(next, left.is_empty())
            };
            if let Some(object) = hit {
                return Ok(Some(object));
            }
        }
        self.nobody_has_it()
    }

    /// One in trouble is passed over.
    fn may_ask(&mut self, n: usize) -> bool {
        let remote = &self.tiers.tiers()[n].remote;
        let Some(trouble) = remote.trouble_about(self.sig) else {
            return true;
        };
        let why = format!(
            "{} is not asked, {trouble}",
            remote.describe_holder(self.sig)
        );
        self.failed.push((n, RemoteError::Transient(why)));
        false
    }

    /// On another thread, or here if there is none.
    fn ask_elsewhere(&mut self, n: usize) {
        let shared = Arc::clone(&self.tiers.shared);
        let (sig, send) = (*self.sig, self.send.clone());
        self.out |= bit(n);
        let job = Box::new(move || {
            let asked = catch_unwind(AssertUnwindSafe(|| ask(&shared, n, &sig)));
            let answer = asked.unwrap_or_else(|_| {
                shared.state().has_answered(&sig, n);
                log::error!("bug: the lookup of {sig} panicked");
                Err(RemoteError::Local(format!(
                    "bug: the lookup of {sig} panicked"
                )))
            });
            // Nobody waits any more: an object is let go.
            send.send((n, answer)).ok();
        });
        if let Err(job) = self.tiers.runner.run(job) {
            job();
        }
    }

    /// Waits for `newest`, and meanwhile for whoever was overtaken. The last one is waited for as long as it is well.
    fn wait(&mut self, newest: usize, is_last: bool) -> Option<Object> {
        let tier = &self.tiers.tiers()[newest];
        let patience = if is_last { TICK } else { tier.patience };
        while self.out & bit(newest) != 0 {
            match self.receive.recv_timeout(patience) {
                Ok((n, answer)) => {
                    self.out &= !bit(n);
                    if let Some(object) = self.heard(n, answer) {
                        return Some(object);
                    }
                }
                Err(RecvTimeoutError::Timeout) if is_last => {
                    if tier.remote.trouble_about(self.sig).is_some() {
                        return None;
                    }
                }
                Err(_) => {
                    let late = patience.as_secs_f64();
                    tier.remote.report(Complaint {
                        ailment: Ailment::Hangs,
                        about: Some(*self.sig),
                        reason: format!("get: no answer for {late:.1} s, the next remote is asked"),
                    });
                    return None;
                }
            }
        }
        None
    }

    fn heard(&mut self, n: usize, answer: Answer) -> Option<Object> {
        match answer {
            Ok(Some(object)) => return Some(self.hit(n, object)),
            Ok(None) => self.lack |= bit(n),
            Err(error @ RemoteError::Corrupt(_)) => {
                self.lack |= bit(n);
                self.corrupt = Some(error);
            }
            Err(error) => self.failed.push((n, error)),
        }
        None
    }

    /// Remembers which of those above it are to get it, and watches over its content.
    fn hit(&self, n: usize, object: Object) -> Object {
        let shared = &self.tiers.shared;
        let above = self.lack & (bit(n) - 1);
        let written = (0..n).filter(|n| above & bit(*n) != 0 && shared.tiers[*n].writes);
        let lacking = written.fold(0, |set, n| set | bit(n));
        let mut state = shared.state();
        if lacking != 0 {
            state.lacking.put(*self.sig, lacking);
        }
        state.asks(self.sig, n);
        drop(state);
        let content = Box::new(Watched {
            content: object.content,
            shared: Arc::clone(shared),
            sig: *self.sig,
            tier: n,
        });
        Object { content, ..object }
    }

    fn nobody_has_it(mut self) -> Answer {
        for (n, tier) in self.tiers.tiers().iter().enumerate() {
            if self.out & bit(n) != 0 {
                let why = format!("{} has not answered", tier.remote.describe_holder(self.sig));
                self.failed.push((n, RemoteError::Transient(why)));
            }
        }
        match (self.failed.pop(), self.corrupt) {
            (None, None) => Ok(None),
            (None, Some(corrupt)) => Err(corrupt),
            (Some((_, error)), None) if self.lack == 0 => Err(error),
            (Some(last), _) => {
                self.failed.push(last);
                Err(partly("get", self.sig, &self.failed))
            }
        }
    }
}

/// Asks one of them, and keeps account of that it is being asked.
fn ask(shared: &Shared, n: usize, sig: &Signature) -> Answer {
    let began = shared.clock.now();
    shared.state().asks(sig, n);
    let answer = shared.tiers[n].remote.get(sig);
    let mut state = shared.state();
    state.has_answered(sig, n);
    state.took[n] = shared.clock.now().saturating_sub(began);
    answer
}

/// The content of an object, which says whose it is when it comes too slowly, or as something else.
struct Watched {
    content: Box<dyn Read + Send>,
    shared: Arc<Shared>,
    sig: Signature,
    tier: usize,
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buf);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            let spoiled = self.shared.spoiled(&self.sig) | bit(self.tier);
            let until = self.shared.clock.now() + SPOILED;
            let mut state = self.shared.state();
            state.spoiled.put(self.sig, (spoiled, until));
        }
        read
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.state().has_answered(&self.sig, self.tier);
    }
}
