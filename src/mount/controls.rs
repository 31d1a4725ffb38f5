//! What the control socket sees of a mount.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Parts, millis};
use crate::config::Push;
use crate::control::{Controlled, Pending, Status};
use crate::remote::Remote;

pub(super) struct Controls(pub(super) Arc<Parts>);

impl Controlled for Controls {
    fn status(&self) -> Status {
        let parts = &self.0;
        let (config, usage) = (&parts.config, parts.store.usage());
        let pending = parts.uploads.pending();
        let trouble = parts.remote.trouble();
        let off = parts.passthrough.why_off();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            remote: config.remote_shown(),
            mountpoint: config.mountpoint.display().to_string(),
            backing: config.backing.display().to_string(),
            uptime_seconds: parts.clock.now().saturating_sub(parts.started).as_secs(),
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
            bytes_used: usage.bytes,
            limit: config.size,
            min_free: config.min_free,
            remote_state: trouble
                .as_ref()
                .map_or("ok", |t| t.ailment.as_str())
                .to_owned(),
            remote_since_seconds: trouble.as_ref().map_or(0, |t| t.lasts.as_secs()),
            remote_trouble: trouble.map(|t| t.reason),
            disk_trouble: parts.store.trouble(),
            index_complete: usage.complete,
        }
    }

    fn mark(&self) -> u64 {
        self.0.uploads.mark()
    }

    fn pending_before(&self, mark: u64) -> u64 {
        self.0.uploads.pending_before(mark)
    }

    fn uploads(&self) -> bool {
        self.0.config.push != Push::Off
    }

    fn set_drain_timeout(&self, timeout: Duration) {
        self.0
            .drain_millis
            .store(millis(timeout), Ordering::Relaxed);
    }

    fn stop(&self) {
        self.0.ask_to_stop();
    }
}
