//! One upload to the tiers.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use super::{Shared, State, Tiers, bit, partly};
use crate::remote::{Content, MIN_SPEED, Put, RemoteError, Trouble};
use crate::signature::{Meta, Signature};

/// How often it is looked whether those that are still waited for are in trouble by now.
const TICK: Duration = Duration::from_millis(200);
/// How long an upload is waited for besides the time that its bytes take at the lowest speed. It goes on afterwards.
const GRACE: Duration = Duration::from_secs(10);
/// Uploads to a tier that nobody waits for any more: beyond, it is asked no further until one has ended. Each has a thread.
const MOST_LEFT_BEHIND: usize = 16;

/// What came of an upload so far.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    tiers: u64,
    /// Stored anywhere, or else there before; or diverged, and where.
    outcome: Option<Put>,
    diverged: Option<usize>,
}

impl Done {
    fn add(&mut self, n: usize, put: Option<Put>) {
        self.tiers |= bit(n);
        match (put, self.outcome) {
            (Some(Put::Diverged { .. }), _) => {
                self.outcome = put;
                self.diverged = Some(n);
            }
            (None, _) | (_, Some(Put::Diverged { .. } | Put::Stored)) => {}
            (put, _) => self.outcome = put,
        }
    }
}

/// What is remembered of an upload that is not done everywhere, or that diverged.
pub(super) struct Progress {
    /// Of what: another push of the same entry begins anew.
    content: u64,
    done: Done,
    /// Those where it is under way and nobody waits for that.
    late: u64,
}

impl Progress {
    pub(super) fn diverged(&self) -> Option<usize> {
        self.done.diverged
    }
}

/// Where one upload to one tier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    WaitedFor,
    LeftBehind,
    Ended,
}

/// One upload, as its caller and its threads see it.
struct Upload {
    shared: Arc<Shared>,
    sig: Signature,
    meta: Meta,
    content: Content,
    /// What tells this content from others of the same entry.
    identity: u64,
}

pub(super) fn put(
    tiers: &Tiers,
    sig: &Signature,
    meta: Meta,
    content: &Content,
) -> Result<Put, RemoteError> {
    let shared = &tiers.shared;
    let written = (0..shared.tiers.len()).filter(|n| shared.tiers[*n].writes);
    let written: Vec<_> = written.collect();
    shared.state().spoiled.pop(sig);
    match written[..] {
        [] => {
            let why = format!("put {sig}: nothing here is written");
            return Err(RemoteError::Unsupported(why));
        }
        [only] => return shared.tiers[only].remote.put(sig, meta, content),
        _ => {}
    }
    let content = copy_of(content)?;
    let upload = Arc::new(Upload {
        shared: Arc::clone(shared),
        sig: *sig,
        meta,
        identity: identity(meta, &content)?,
        content,
    });
    upload.run(tiers, &written)
}

impl Upload {
    fn run(self: &Arc<Self>, tiers: &Tiers, written: &[usize]) -> Result<Put, RemoteError> {
        let (send, receive) = crossbeam_channel::bounded(written.len());
        let mut done = self.known();
        let (mut failed, mut out) = (Vec::new(), Vec::new());
        for n in written.iter().filter(|n| done.tiers & bit(**n) == 0) {
            if let Some(error) = self.why_not(*n) {
                failed.push((*n, error));
                continue;
            }
            let stage = Arc::new(Mutex::new(Stage::WaitedFor));
            out.push((*n, Arc::clone(&stage)));
            let (upload, send, n) = (Arc::clone(self), send.clone(), *n);
            let job = Box::new(move || {
                let remote = &upload.shared.tiers[n].remote;
                let result = remote.put(&upload.sig, upload.meta, &upload.content);
                if upload.ended(n, &stage, &result) {
                    send.send((n, result)).ok();
                }
            });
            if let Err(job) = tiers.runner.run(job) {
                job();
            }
        }
        drop(send);
        let limit = GRACE + Duration::from_secs(self.content.len() / MIN_SPEED);
        let until = self.shared.clock.now() + limit;
        while !out.is_empty() {
            match receive.recv_timeout(TICK) {
                Ok((n, result)) => {
                    out.retain(|(out, _)| *out != n);
                    match result {
                        Ok(put) => done.add(n, Some(put)),
                        // It never can have it, and for others it is worth having: nothing is left to be done here.
                        Err(RemoteError::Unsupported(_)) => done.add(n, None),
                        Err(error) => failed.push((n, error)),
                    }
                }
                // A thread that panicked says nothing.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let late = self.shared.clock.now() >= until;
                    let left = out.extract_if(.., |(n, stage)| {
                        (late || self.trouble(*n).is_some()) && self.leave_behind(*n, stage)
                    });
                    failed.extend(left.map(|(n, _)| (n, self.error(n, "no answer yet"))));
                }
            }
        }
        self.remember(done, written);
        self.outcome(done, written, failed)
    }

    fn error(&self, n: usize, why: &str) -> RemoteError {
        let name = self.shared.tiers[n].remote.describe_holder(&self.sig);
        RemoteError::Transient(format!("{name}: {why}"))
    }

    fn trouble(&self, n: usize) -> Option<Trouble> {
        self.shared.tiers[n].remote.trouble_about(&self.sig)
    }

    /// What earlier attempts came to.
    fn known(&self) -> Done {
        let mut state = self.shared.state();
        let progress = state.uploads.get(&self.sig);
        let same = progress.filter(|progress| progress.content == self.identity);
        same.map_or_else(Done::default, |progress| progress.done)
    }

    /// Why tier `n` is not to be asked now.
    fn why_not(&self, n: usize) -> Option<RemoteError> {
        if let Some(trouble) = self.trouble(n) {
            return Some(self.error(n, &format!("not asked, {trouble}")));
        }
        let state = self.shared.state();
        let progress = state.uploads.peek(&self.sig);
        let is_under_way = progress.is_some_and(|progress| progress.late & bit(n) != 0);
        let too_many = state.left_behind[n] >= MOST_LEFT_BEHIND;
        drop(state);
        if is_under_way {
            return Some(self.error(n, "an earlier attempt has not ended"));
        }
        too_many.then(|| self.error(n, "too many uploads to it have not ended"))
    }

    /// Nobody waits for it any more; false if it came to its end just now.
    fn leave_behind(&self, n: usize, stage: &Mutex<Stage>) -> bool {
        let mut state = self.shared.state();
        let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
        if *stage == Stage::Ended {
            return false;
        }
        *stage = Stage::LeftBehind;
        state.left_behind[n] += 1;
        self.progress(&mut state).late |= bit(n);
        true
    }

    /// The upload to tier `n` came to its end; whether somebody waits for that.
    fn ended(&self, n: usize, stage: &Mutex<Stage>, result: &Result<Put, RemoteError>) -> bool {
        let mut state = self.shared.state();
        let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *stage, Stage::Ended) == Stage::WaitedFor {
            return true;
        }
        state.left_behind[n] -= 1;
        let progress = self.progress(&mut state);
        progress.late &= !bit(n);
        if let Ok(put) = result {
            progress.done.add(n, Some(*put));
        }
        false
    }

    fn progress<'a>(&self, state: &'a mut State) -> &'a mut Progress {
        let before = state.uploads.peek(&self.sig);
        if before.is_some_and(|progress| progress.content != self.identity) {
            state.uploads.pop(&self.sig);
        }
        state.uploads.get_or_insert_mut(self.sig, || Progress {
            content: self.identity,
            done: Done::default(),
            late: 0,
        })
    }

    /// Keeps what the next attempt has to know, or whoever asks where it diverged.
    fn remember(&self, done: Done, written: &[usize]) {
        let mut state = self.shared.state();
        if done.is_all(written) && done.diverged.is_none() {
            state.uploads.pop(&self.sig);
            return;
        }
        let known = &mut self.progress(&mut state).done;
        let others = known.tiers;
        *known = done;
        known.tiers |= others;
    }

    fn outcome(
        &self,
        done: Done,
        written: &[usize],
        failed: Vec<(usize, RemoteError)>,
    ) -> Result<Put, RemoteError> {
        match (done.is_all(written), done.outcome) {
            (true, Some(put)) => return Ok(put),
            (true, None) => {
                let why = format!("put {}: none of the remotes can hold it", self.sig);
                return Err(RemoteError::Unsupported(why));
            }
            (false, Some(_)) => return Err(partly("put", &self.sig, &failed)),
            (false, None) => {}
        }
        // Nobody has it. That one answers outweighs that others do not.
        let answers = |error: &RemoteError| !error.is_transient();
        let mut errors = failed.into_iter().map(|(_, error)| error);
        let first = errors.next();
        let better = match &first {
            Some(error) if answers(error) => None,
            _ => errors.find(answers),
        };
        let unknown =
            || RemoteError::Local(format!("put {}: not known what became of it", self.sig));
        Err(better.or(first).unwrap_or_else(unknown))
    }
}

impl Done {
    fn is_all(&self, written: &[usize]) -> bool {
        written.iter().all(|n| self.tiers & bit(*n) != 0)
    }
}

/// The same content for threads that may outlive the caller's.
fn copy_of(content: &Content) -> Result<Content, RemoteError> {
    let local = |e| RemoteError::Local(format!("cannot open the content again: {e}"));
    Ok(match content {
        Content::File(file, len) => Content::File(file.try_clone().map_err(local)?, *len),
        Content::Bytes(bytes) => Content::Bytes(bytes.clone()),
    })
}

/// What tells two contents of one entry apart, as far as that is needed.
fn identity(meta: Meta, content: &Content) -> Result<u64, RemoteError> {
    let mut hasher = DefaultHasher::new();
    format!("{meta:?}").hash(&mut hasher);
    let of_file = |file: &File| {
        let stat = file.metadata()?;
        Ok::<_, std::io::Error>((stat.ino(), stat.mtime(), stat.mtime_nsec(), stat.len()))
    };
    match content {
        Content::Bytes(bytes) => bytes.hash(&mut hasher),
        Content::File(file, _) => of_file(file)
            .map_err(|e| RemoteError::Local(format!("cannot look at the content: {e}")))?
            .hash(&mut hasher),
    }
    Ok(hasher.finish())
}
