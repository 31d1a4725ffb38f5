//! What the control socket sees of a mount.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;

use super::change::Order;
use super::chores::{Chore, shortened};
use super::remotes::Leaf;
use super::{Parts, looking, millis};
use crate::config::{Mode, Push};
use crate::control::lists::Copy;
use crate::control::{
    BATCH, Controlled, Divergence, Entry, GivenUp, Latencies, Pending, RemoteStatus, Remount,
    Remounted, Removal, Removed, Status,
};
use crate::remote::Remote;
use crate::signature::Signature;

pub(super) struct Controls(pub(super) Arc<Parts>);

impl Controlled for Controls {
    fn status(&self) -> Status {
        let parts = &self.0;
        let (config, usage) = (parts.config(), parts.store.usage());
        let pending = parts.uploads.pending();
        let trouble = parts.writing.trouble();
        let off = parts.passthrough.why_off();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            remote: config.remote_shown(),
            mountpoint: config.mountpoint.display().to_string(),
            backing: config.backing.display().to_string(),
            uptime_seconds: parts.uptime().as_secs(),
            upgrades: parts.handovers,
            read_only: config.ro,
            push: config.push.as_str().to_owned(),
            passthrough: off.is_none(),
            passthrough_off_because: off,
            counters: parts.stats.snapshot(),
            pending: Pending {
                objects: pending.count,
                bytes: pending.bytes,
                oldest_seconds: pending.oldest.as_secs(),
            },
            entries: usage.entries,
            bytes_used: usage.bytes + usage.orphaned,
            limit: config.size,
            min_free: config.min_free,
            remote_state: trouble
                .as_ref()
                .map_or("ok", |t| t.ailment.as_str())
                .to_owned(),
            remote_since_seconds: trouble.as_ref().map_or(0, |t| t.lasts.as_secs()),
            remote_trouble: trouble.map(|t| t.reason),
            remotes: parts.remotes().leaves.iter().map(remote_status).collect(),
            disk_trouble: parts.store.trouble(),
            index_complete: usage.complete,
            latencies: Latencies::from(&parts.stats.times),
            metrics: parts.metrics.address().map(|a| a.to_string()),
            metrics_trouble: parts.metrics.trouble(),
            events: config
                .events
                .file
                .as_ref()
                .map(|file| file.display().to_string()),
        }
    }

    fn mark(&self) -> u64 {
        self.0.uploads.mark()
    }

    fn pending_before(&self, mark: u64) -> u64 {
        self.0.uploads.pending_before(mark)
    }

    fn uploads(&self) -> bool {
        self.0.config().push != Push::Off
    }

    fn divergent(&self, after: u64) -> Vec<Divergence> {
        let next = self.0.uploads.divergences(after, BATCH);
        let shown = next.into_iter().map(|(number, one)| Divergence {
            number,
            signature: one.sig.to_string(),
            here: copy(Some(one.our_len), Some(one.our_hash)),
            there: copy(one.their_len, one.their_hash),
            time: seconds(one.at),
        });
        shown.collect()
    }

    fn given_up(&self, after: u64) -> Vec<GivenUp> {
        let next = self.0.uploads.given_up(after, BATCH);
        let shown = next.into_iter().map(|(number, one)| GivenUp {
            number,
            signature: one.sig.to_string(),
            bytes: one.bytes,
            why: shortened(&one.why),
            time: seconds(one.at),
        });
        shown.collect()
    }

    fn remove(&self, removal: Removal) -> Result<Receiver<Vec<Removed>>, String> {
        let config = self.0.config();
        if removal.remote && config.ro {
            return Err("the mount is read-only (ro): it removes nothing on the remote".into());
        }
        let written = config.tiers.iter().any(|t| t.mode == Mode::ReadWrite);
        if removal.remote && !written {
            return Err(
                "no remote of this mount may be written (|ro): nothing is removed there".into(),
            );
        }
        if removal.signatures.len() > BATCH {
            return Err(format!("more than {BATCH} signatures at a time"));
        }
        let (outcome, receive) = crossbeam_channel::bounded(1);
        let chore = Chore::Remove { removal, outcome };
        self.0
            .chores
            .try_send(chore)
            .map_err(|_| "too much is being removed already; try again later")?;
        Ok(receive)
    }

    fn entry(&self, signature: &str, ask: bool) -> Result<Receiver<Entry>, String> {
        let sig = Signature::parse(signature.as_bytes()).ok_or("it is no signature")?;
        let (outcome, receive) = crossbeam_channel::bounded(1);
        let entry = looking::here(&self.0, &sig);
        if !ask {
            drop(outcome.try_send(entry));
            return Ok(receive);
        }
        let chore = Chore::Look {
            sig,
            entry,
            outcome,
        };
        self.0
            .chores
            .try_send(chore)
            .map_err(|_| "too much is being looked for already; try again later")?;
        Ok(receive)
    }

    fn remount(&self, wanted: Remount) -> Result<Receiver<Remounted>, String> {
        let (outcome, receive) = crossbeam_channel::bounded(1);
        self.0.changes.order(Order { wanted, outcome })?;
        Ok(receive)
    }

    fn set_drain_timeout(&self, timeout: Duration) {
        self.0
            .drain_millis
            .store(millis(timeout), Ordering::Relaxed);
    }

    fn stop(&self) {
        self.0.ask_to_stop();
    }

    fn hand_over(&self, program: &Path, format: u32) -> String {
        self.0.hand_over(program, format)
    }
}

fn remote_status(leaf: &Leaf) -> RemoteStatus {
    let trouble = leaf.breaker.trouble();
    let state = trouble.as_ref().map_or("ok", |t| t.ailment.as_str());
    let tally = &leaf.tally;
    RemoteStatus {
        name: leaf.name.clone(),
        mode: leaf.mode.as_str().to_owned(),
        state: state.to_owned(),
        since_seconds: trouble.as_ref().map_or(0, |t| t.lasts.as_secs()),
        trouble: trouble.map(|t| shortened(&t.reason)),
        hits: tally.hits.load(Ordering::Relaxed),
        misses: tally.misses.load(Ordering::Relaxed),
        uploaded: tally.uploaded.load(Ordering::Relaxed),
        errors: tally.errors.load(Ordering::Relaxed),
    }
}

fn copy(bytes: Option<u64>, hash: Option<[u8; 32]>) -> Copy {
    let hex = |hash: [u8; 32]| hash.iter().map(|b| format!("{b:02x}")).collect();
    Copy {
        bytes,
        blake3: hash.map(hex),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
