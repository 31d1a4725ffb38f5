//! `config.lock`: SCons 4.8 and later hold it around every use of `config`, for milliseconds, and give up after
//! five seconds. On a plain directory one that a dead SCons left makes every later build fail
//! (openpilot 35088, 37682); here it never blocks anybody.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::AtFlags;

use super::Fs;

/// A lock whose creator we cannot see (another PID namespace) is stale after this time: long for what SCons does
/// under it, and shorter than another SCons waits.
const UNSEEN_CREATOR: Duration = Duration::from_secs(3);

/// Who made the lock, and when.
#[derive(Debug, Default)]
pub(super) struct ConfigLock(Mutex<Option<(u32, Duration)>>);

impl ConfigLock {
    pub(super) fn made_by(&self, pid: u32, now: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((pid, now));
    }

    /// Whether a lock file that exists blocks others for no reason.
    fn is_stale(&self, now: Duration) -> bool {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((0, made)) => now.saturating_sub(made) > UNSEEN_CREATOR,
            Some((pid, _)) => !is_alive(pid),
            // Nobody made it through this mount.
            None => true,
        }
    }
}

/// A thread lives as long as /proc has it; the kernel tells us threads, not processes.
fn is_alive(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

impl Fs {
    pub(super) fn drop_stale_config_lock(&self) {
        let exists =
            rustix::fs::statat(self.store.root(), "config.lock", AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if exists && self.config_lock.is_stale(self.clock.now()) {
            let mut tree = self.tree_mut();
            tree.epoch += 1;
            match rustix::fs::unlinkat(self.store.root(), "config.lock", AtFlags::empty()) {
                Ok(()) => log::warn!("removed a stale config.lock: whoever made it is gone"),
                Err(e) => log::debug!("cannot remove a stale config.lock: {e}"),
            }
        }
    }
}
