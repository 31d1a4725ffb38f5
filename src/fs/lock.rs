//! `config.lock`: SCons 4.8 and later hold it around every use of `config`, for milliseconds, and give up after
//! five seconds. On a plain directory one that a dead SCons left makes every later build fail
//! (openpilot 35088, 37682); here it never blocks anybody.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::AtFlags;

use super::reach::Spot;
use super::{Fs, ROOT};

/// Its name.
const LOCK: &str = "config.lock";

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
    /// Removes `config.lock` if it blocks others for no reason. That is judged under the lock of the tree: otherwise
    /// two who find the same stale one would remove the new one that was made in between.
    pub(super) fn drop_stale_config_lock(&self) {
        let root = self.store.root();
        let spot = Spot::below_root(LOCK.into());
        if spot.stat(root).is_err() {
            return;
        }
        let mut tree = self.tree_mut();
        let Ok(stat) = spot.stat(root) else { return };
        if !self.config_lock.is_stale(self.clock.now()) {
            return;
        }
        let last = self.keep_last(&tree, &spot, &stat);
        match rustix::fs::unlinkat(root, LOCK, AtFlags::empty()) {
            Ok(()) => {
                tree.name_gone(stat.st_ino, ROOT, OsStr::new(LOCK), last);
                tree.epoch += 1;
                log::warn!("removed a stale config.lock: whoever made it is gone");
            }
            Err(e) => log::debug!("cannot remove a stale config.lock: {e}"),
        }
    }
}
