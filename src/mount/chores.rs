//! What somebody asks of a mount that may take long: removing objects, here and on the remote, and looking what each
//! remote has.
//!
//! One thread does one chore after the other, so neither the control socket nor an event loop ever waits for a remote.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::{Parts, looking};
use crate::control::{Entry, Removal, Removed};
use crate::fs::Fs;
use crate::remote::Remote;
use crate::signature::Signature;
use crate::stats::event::{Event, What};

/// Chores that may wait; one more is refused.
pub(super) const WAITING: usize = 64;
/// How often the thread looks whether the mount has ended.
const END_TICK: Duration = Duration::from_millis(200);
/// How often it looks whether an upload has ended.
const UPLOAD_TICK: Duration = Duration::from_millis(10);
/// Longest text of a failure that is handed out.
const TEXT_MAX: usize = 300;

/// One chore, and where its outcome goes.
pub(super) enum Chore {
    Remove {
        removal: Removal,
        outcome: Sender<Vec<Removed>>,
    },
    /// Asks the remotes, and adds what they say.
    Look {
        sig: Signature,
        entry: Entry,
        outcome: Sender<Entry>,
    },
}

/// Does what comes through the channel until the mount is over.
pub(super) fn run(parts: &Arc<Parts>, fs: &Fs, chores: &Receiver<Chore>) {
    while !parts.over.asked() {
        let Ok(chore) = chores.recv_timeout(END_TICK) else {
            continue;
        };
        let shown = chore.to_string();
        if catch_unwind(AssertUnwindSafe(|| chore.done(parts, fs))).is_err() {
            parts.stats.panics.one();
            log::error!("bug: {shown} panicked");
        }
    }
}

impl Chore {
    /// Does it. Whoever asked may be gone.
    fn done(self, parts: &Parts, fs: &Fs) {
        match self {
            Self::Remove { removal, outcome } => {
                drop(outcome.try_send(remove(parts, fs, &removal)));
            }
            Self::Look {
                sig,
                mut entry,
                outcome,
            } => {
                entry.remotes = looking::ask(parts, &sig);
                drop(outcome.try_send(entry));
            }
        }
    }
}

impl fmt::Display for Chore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove { removal, .. } => write!(f, "the removal of {:?}", removal.signatures),
            Self::Look { sig, .. } => write!(f, "looking for {sig}"),
        }
    }
}

fn remove(parts: &Parts, fs: &Fs, removal: &Removal) -> Vec<Removed> {
    let timeout = Duration::from_millis(removal.timeout_ms);
    let deadline = parts.clock.now().saturating_add(timeout);
    let each = removal.signatures.iter();
    each.map(|text| match Signature::parse(text.as_bytes()) {
        Some(sig) => remove_one(parts, fs, &sig, removal.remote, deadline),
        None => Removed {
            signature: shortened(text),
            trouble: Some("it is no signature".to_owned()),
            ..Removed::default()
        },
    })
    .collect()
}

fn remove_one(
    parts: &Parts,
    fs: &Fs,
    sig: &Signature,
    remote: bool,
    deadline: Duration,
) -> Removed {
    let here = fs.invalidate(sig, true);
    let mut removed = Removed {
        signature: sig.to_string(),
        here: here.removed,
        pending: here.uploads.cancelled,
        uploaded: here.uploads.under_way > 0,
        remote: None,
        trouble: here
            .trouble
            .map(|e| format!("cannot remove it from the disk: {e}")),
    };
    // What is under way would reach the remote after we have said that it is gone there.
    while parts.uploads.is_under_way(sig) {
        if parts.clock.now() >= deadline || parts.over.asked() {
            removed.trouble = Some("its upload is still under way".to_owned());
            return removed;
        }
        parts.clock.sleep(UPLOAD_TICK);
    }
    if remote {
        match parts.writing.delete(sig) {
            Ok(was_there) => removed.remote = Some(was_there),
            Err(e) => removed.trouble = Some(shortened(&e.to_string())),
        }
        // Somebody may have fetched it in between.
        let again = fs.invalidate(sig, false);
        removed.here += again.removed;
        let trouble = again
            .trouble
            .map(|e| format!("cannot remove it from the disk: {e}"));
        removed.trouble = removed.trouble.or(trouble);
    }
    parts.stats.note(&Event::new(What::Removed, sig));
    log::info!("removed on request: {removed}");
    removed
}

/// A text that fits an answer.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}
