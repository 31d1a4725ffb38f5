//! Tiers: several remotes, of which the first that has an object gives it, and all that may be written get it.
//!
//! **Reading** (`get`): the tiers are asked in order, and the first hit counts. A tier in trouble is passed over. One
//! that has not answered in its time is **overtaken**: it is complained about, so that its breaker keeps everybody away,
//! and the next one is asked meanwhile; whoever has the object first gives it. All that have answered say no and
//! others could not be asked: that is [`RemoteError::Partly`], no miss.
//!
//! **Writing** (`put`): every tier that is written gets the object, side by side; it is stored when all have it. What is
//! stored in part is [`RemoteError::Partly`], and asked again, only those are asked that lack it. Nobody waits long for
//! a tier that does not answer.
//!
//! Each tier brings its own breaker and deadline. Calls that may hang are made on threads of the [`Runner`]; the last
//! tier is asked on the caller's thread, so a lookup through two tiers that are well costs one hand-over.
//!
//! This module knows no kind of remote and starts no thread. Its lock is never held over a call.

mod get;
mod put;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;

use crate::clock::Clock;
use crate::remote::{Complaint, Content, Listed, Object, Put, Remote, RemoteError, Trouble};
use crate::signature::{Meta, Signature};
use put::Progress;

/// How long a tier is passed over whose content of an object could not be read. Somebody may repair it.
const SPOILED: Duration = Duration::from_secs(60);
/// Objects of which it is known which tiers have them or lack them. One that is forgotten costs a question.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");

/// Work for another thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Has work done on other threads at once; gives it back when there are none left.
pub trait Runner: Send + Sync {
    /// Begins `job`.
    fn run(&self, job: Job) -> Result<(), Job>;
}

/// One of them.
pub struct Tier {
    /// With its breaker and deadline.
    pub remote: Arc<dyn Remote>,
    /// Whether it may be written.
    pub writes: bool,
    /// How long it has for the answer to a lookup before the next one is asked.
    pub patience: Duration,
}

/// Remotes that are asked one after the other.
pub struct Tiers {
    shared: Arc<Shared>,
    runner: Arc<dyn Runner>,
    name: String,
    hasher: RandomState,
}

/// What calls that outlive their caller need as well.
struct Shared {
    tiers: Vec<Tier>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Sets of tiers are bits.
struct State {
    /// Those that lack an object which a lower one had.
    lacking: LruCache<Signature, u64>,
    /// Those whose content of an object could not be read, and until when they are passed over for it.
    spoiled: LruCache<Signature, (u64, Duration)>,
    /// Uploads that are not done everywhere.
    uploads: LruCache<Signature, Progress>,
    /// Those that somebody waits for because of an object.
    asked: HashMap<Signature, Vec<usize>>,
    /// How long each took for its last answer.
    took: Vec<Duration>,
    /// Uploads that nobody waits for any more, by tier.
    left_behind: Vec<usize>,
}

impl Tiers {
    /// All of them, at least one and at most 64, in the order in which they are asked; shown as `name`.
    pub fn new(
        tiers: Vec<Tier>,
        runner: Arc<dyn Runner>,
        clock: Arc<dyn Clock>,
        name: String,
    ) -> Self {
        let state = State {
            lacking: LruCache::new(REMEMBERED),
            spoiled: LruCache::new(REMEMBERED),
            uploads: LruCache::new(REMEMBERED),
            asked: HashMap::new(),
            took: vec![Duration::ZERO; tiers.len()],
            left_behind: vec![0; tiers.len()],
        };
        let state = Mutex::new(state);
        Self {
            shared: Arc::new(Shared {
                tiers,
                clock,
                state,
            }),
            runner,
            name,
            hasher: RandomState::new(),
        }
    }

    /// Whether a tier that is written lacked an object when a lower one gave it.
    pub fn is_lacking(&self, sig: &Signature) -> bool {
        self.shared.state().lacking.peek(sig).is_some()
    }

    /// Puts an object into the tiers that lacked it when a lower one gave it; in how many it is now.
    pub fn promote(
        &self,
        sig: &Signature,
        meta: Meta,
        content: &Content,
    ) -> Result<u64, RemoteError> {
        let lacking = self.shared.state().lacking.pop(sig).unwrap_or(0);
        let mut promoted = 0;
        for tier in self.shared.of(lacking) {
            tier.remote.put(sig, meta, content)?;
            promoted += 1;
        }
        Ok(promoted)
    }

    fn tiers(&self) -> &[Tier] {
        &self.shared.tiers
    }

    /// Asks all that may be written, one after the other; the first failure, or what `join` makes of the answers.
    fn each_written<T>(
        &self,
        call: impl Fn(&dyn Remote) -> Result<T, RemoteError>,
        join: impl Fn(T, T) -> T,
    ) -> Result<T, RemoteError> {
        let written = self.tiers().iter().filter(|tier| tier.writes);
        let answers: Vec<_> = written.map(|tier| call(&*tier.remote)).collect();
        let mut all = None;
        for answer in answers {
            let answer = answer?;
            all = Some(match all {
                None => answer,
                Some(before) => join(before, answer),
            });
        }
        let none = || RemoteError::Unsupported(format!("{}: nothing here is written", self.name));
        all.ok_or_else(none)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are passed over for an object.
    fn spoiled(&self, sig: &Signature) -> u64 {
        let now = self.clock.now();
        let spoiled = self.state().spoiled.get(sig).copied();
        spoiled.map_or(0, |(set, until)| if now < until { set } else { 0 })
    }

    /// The tiers of a set.
    fn of(&self, set: u64) -> impl Iterator<Item = &Tier> {
        let chosen = self.tiers.iter().enumerate();
        let chosen = chosen.filter(move |(n, _)| set & bit(*n) != 0);
        chosen.map(|(_, tier)| tier)
    }
}

impl State {
    fn asks(&mut self, sig: &Signature, tier: usize) {
        self.asked.entry(*sig).or_default().push(tier);
    }

    fn has_answered(&mut self, sig: &Signature, tier: usize) {
        if let Some(asked) = self.asked.get_mut(sig) {
            if let Some(at) = asked.iter().position(|one| *one == tier) {
                asked.swap_remove(at);
            }
            if asked.is_empty() {
                self.asked.remove(sig);
            }
        }
    }
}

fn bit(tier: usize) -> u64 {
    1 << tier
}

/// The error for what some have said and others could not be asked about.
fn partly(operation: &str, sig: &Signature, failed: &[(usize, RemoteError)]) -> RemoteError {
    let reasons: Vec<_> = failed.iter().map(|(_, error)| error.to_string()).collect();
    RemoteError::Partly(format!("{operation} {sig}: {}", reasons.join("; ")))
}

impl Remote for Tiers {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        get::get(self, sig)
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        put::put(self, sig, meta, content)
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let mut failed = Vec::new();
        for (n, tier) in self.tiers().iter().enumerate() {
            match tier.remote.exists(sig) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => failed.push((n, error)),
            }
        }
        match failed.pop() {
            None => Ok(false),
            Some((_, error)) if failed.len() + 1 == self.tiers().len() => Err(error),
            Some(last) => Err(partly("exists", sig, &[failed, vec![last]].concat())),
        }
    }

    /// From all that may be written; true if any of them had it.
    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let mut state = self.shared.state();
        state.uploads.pop(sig);
        state.lacking.pop(sig);
        drop(state);
        self.each_written(|remote| remote.delete(sig), |a, b| a || b)
    }

    /// Of all of them, each object once. What tells them apart is remembered meanwhile, 8 bytes an object.
    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        let (mut seen, last) = (HashSet::new(), self.tiers().len() - 1);
        for (n, tier) in self.tiers().iter().enumerate() {
            tier.remote.list(&mut |listed| {
                let hash = self.hasher.hash_one(listed.sig);
                let is_new = if n < last {
                    seen.insert(hash)
                } else {
                    !seen.contains(&hash)
                };
                if is_new {
                    each(listed);
                }
            })?;
        }
        Ok(())
    }

    /// In all that may be written; true if all of them have it.
    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.each_written(|remote| remote.touch(sig), |a, b| a && b)
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        let join = |a: Option<String>, b: Option<String>| a.or(b);
        self.each_written(|remote| remote.quarantine(sig), join)
    }

    fn prepare(&self) {
        for tier in self.tiers() {
            tier.remote.prepare();
        }
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn describe_holder(&self, sig: &Signature) -> String {
        let state = self.shared.state();
        let progress = state.uploads.peek(sig);
        let diverged = progress.and_then(|progress| progress.diverged());
        drop(state);
        match diverged {
            Some(n) => self.tiers()[n].remote.describe_holder(sig),
            None => self.describe(),
        }
    }

    /// Only when none is asked is this not asked.
    fn trouble(&self) -> Option<Trouble> {
        let mut last = None;
        for tier in self.tiers() {
            last = Some(tier.remote.trouble()?);
        }
        last
    }

    fn trouble_about(&self, sig: &Signature) -> Option<Trouble> {
        let mut last = None;
        for tier in self.tiers() {
            last = Some(tier.remote.trouble_about(sig)?);
        }
        last
    }

    /// Goes to those that are asked for that object just now, or else to the one that was the slowest of late.
    fn report(&self, complaint: Complaint) {
        let state = self.shared.state();
        let asked = complaint.about.and_then(|sig| state.asked.get(&sig));
        let meant = match asked {
            Some(asked) => asked.clone(),
            None => {
                let slowest = state.took.iter().enumerate().max_by_key(|(_, took)| **took);
                slowest.map(|(n, _)| n).into_iter().collect()
            }
        };
        drop(state);
        for n in meant {
            self.tiers()[n].remote.report(complaint.clone());
        }
    }

    fn elsewhere(&self, sig: &Signature) -> bool {
        let spoiled = self.shared.spoiled(sig);
        let mut others = (0..self.tiers().len()).filter(|n| spoiled & bit(*n) == 0);
        spoiled != 0 && others.any(|n| self.tiers()[n].remote.trouble_about(sig).is_none())
    }
}

#[cfg(test)]
mod tests;
