//! How a mount ends: who asks for it, what is waited for, and for how long.

use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Parts;
use super::remotes::Remotes;
use super::session::unmount;
use super::threads::Threads;
use crate::control::mounts::{Device, MountTable, Mounted, is_dead};
use crate::sys;

/// How often it is asked whether a probe is due, and whether calls are overdue.
const PROBE_TICK: Duration = Duration::from_millis(500);
/// How long a mount that was told to stop waits for those who still have files open in it.
const LINGER: Duration = Duration::from_secs(2);
/// How long uploads that are under way when the draining ends may still take.
const LAST_UPLOADS: Duration = Duration::from_millis(500);
/// How often it is seen whether the session has ended.
const UNMOUNT_TICK: Duration = Duration::from_millis(20);
/// How often it is seen whether the uploads have ended.
const DRAIN_TICK: Duration = Duration::from_millis(10);

impl Parts {
    /// Does something every [`PROBE_TICK`] until all is over, or those remotes are not used any more.
    pub(super) fn now_and_then(&self, remotes: &Remotes, work: impl Fn()) {
        while !self.over.asked() && !remotes.over.asked() {
            work();
            let ends = [self.over.as_fd(), remotes.over.as_fd()];
            if let Err(e) = sys::poll_readable(&ends, Some(PROBE_TICK)) {
                log::error!("the remote is not watched any more: {e}");
                return;
            }
        }
    }

    pub(super) fn ask_to_stop(&self) {
        self.stop.ask();
        if self.stop.at_once() {
            self.drain_millis.store(0, Ordering::Relaxed);
            self.uploads.drain(Duration::ZERO);
            return;
        }
        let mountpoint = &self.config().mountpoint;
        if let Err(e) = unmount(mountpoint) {
            log::warn!("cannot unmount {}: {e}", mountpoint.display());
        }
    }

    /// Waits until the session has ended. Told to stop, it does not wait for ever for files that are still open.
    pub(super) fn wait_for_unmount(&self, session: &JoinHandle<()>) {
        let mut give_up = None;
        while !session.is_finished() {
            let now = self.clock.now();
            match give_up {
                Some(time) if now >= time => {
                    log::warn!(
                        "files are still open in {}",
                        self.config().mountpoint.display()
                    );
                    return;
                }
                None if self.stop.asked() => give_up = Some(now + LINGER),
                _ => {}
            }
            self.clock.sleep(UNMOUNT_TICK);
        }
    }

    /// Takes the mount away if its session has ended without an unmount. Nothing else at the mountpoint is touched, not even
    /// looked at: an automounter that is expiring us has everybody wait there, and waits for our end.
    pub(super) fn clear_away(&self, number: Device) {
        let config = self.config();
        let mountpoint = &config.mountpoint;
        // The number may be another mount's by now.
        let is_that = |m: &Mounted| m.is_ours() && m.device == number && is_dead(mountpoint);
        if !MountTable::read().is_ok_and(|table| table.at(mountpoint).is_some_and(is_that)) {
            return;
        }
        if let Err(e) = unmount(mountpoint) {
            log::warn!("cannot unmount {}: {e}", mountpoint.display());
        }
    }

    /// Drains the uploads; whether all their threads have ended.
    pub(super) fn drain(&self, dispatcher: &Threads) -> bool {
        let are_finished = || {
            let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            dispatcher.are_finished() && pools.uploaders.are_finished()
        };
        let timeout = Duration::from_millis(self.drain_millis.load(Ordering::Relaxed));
        self.uploads.drain(timeout);
        let mut deadline = self.clock.now() + timeout + LAST_UPLOADS;
        let mut cut = false;
        while !are_finished() {
            if self.stop.at_once() && !cut {
                cut = true;
                self.uploads.drain(Duration::ZERO);
                deadline = self.clock.now() + LAST_UPLOADS;
            }
            if self.clock.now() >= deadline {
                return false;
            }
            self.clock.sleep(DRAIN_TICK);
        }
        true
    }
}
