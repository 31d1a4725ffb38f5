//! `config.lock`: SCons 4.7 and later hold it around every use of `config`, for milliseconds, and give up after
//! five seconds. On a plain directory one that a dead SCons left makes every later build fail
//! (openpilot 35088, 37682); here it never blocks anybody.
//!
//! It is never on the disk, only in memory: an error in making or removing it ends a build, and no disk can fail
//! that. Otherwise it is a file like any other, with these exceptions: it cannot be linked, and
//! nothing can be moved from or to its name.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use std::io;
use std::os::fd::RawFd;

use rustix::fs::{Gid, MemfdFlags, Mode, Uid};
use serde::{Deserialize, Serialize};

use super::attr::Found;
use super::tree::Tree;
use super::{Caller, Errno, Fs, ROOT};
use crate::name::{Name, RootFile};
use crate::sys::exec::{Kept, take_over};

/// Its name.
pub(super) const LOCK: &str = "config.lock";

/// The highest inode number that locks get; each gets one of its own, going down from here.
const HIGHEST_INO: u64 = u64::MAX - 1;
/// So many numbers are used before the first is used again.
const NUMBERS: u64 = 1 << 32;

/// A lock whose creator we cannot see (another PID namespace) is stale after this time: long for what SCons does
/// under it, and shorter than another SCons waits.
const UNSEEN_CREATOR: Duration = Duration::from_secs(3);

/// The lock, and how many there have been.
#[derive(Debug, Default)]
pub(super) struct ConfigLock(Mutex<(Option<Held>, u64)>);

/// It on its way to another program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PackedLock {
    held: Option<PackedHeld>,
    made: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedHeld {
    ino: u64,
    file: RawFd,
    maker: u32,
    age_millis: u64,
}

/// A lock that exists.
#[derive(Debug)]
struct Held {
    ino: u64,
    file: Arc<OwnedFd>,
    maker: u32,
    made: Duration,
}

impl Held {
    /// Whether it blocks others for no reason.
    fn is_stale(&self, now: Duration) -> bool {
        match self.maker {
            0 => now.saturating_sub(self.made) > UNSEEN_CREATOR,
            maker => !is_alive(maker),
        }
    }
}

impl ConfigLock {
    /// Its inode number, while it exists.
    pub(super) fn ino(&self) -> Option<u64> {
        self.state().0.as_ref().map(|held| held.ino)
    }

    pub(super) fn pack(&self, kept: &mut Kept, now: Duration) -> io::Result<PackedLock> {
        let state = self.state();
        let pack = |held: &Held| {
            let age = now.saturating_sub(held.made).as_millis();
            Ok::<_, io::Error>(PackedHeld {
                ino: held.ino,
                file: kept.keep(&*held.file)?,
                maker: held.maker,
                age_millis: u64::try_from(age).unwrap_or(u64::MAX),
            })
        };
        Ok(PackedLock {
            held: state.0.as_ref().map(pack).transpose()?,
            made: state.1,
        })
    }

    pub(super) fn unpack(&self, packed: PackedLock, now: Duration) -> io::Result<()> {
        let unpack = |held: PackedHeld| {
            Ok::<_, io::Error>(Held {
                ino: held.ino,
                file: Arc::new(take_over(held.file)?),
                maker: held.maker,
                // The clock may not have been running for so long.
                made: now.saturating_sub(Duration::from_millis(held.age_millis)),
            })
        };
        *self.state() = (packed.held.map(unpack).transpose()?, packed.made);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, (Option<Held>, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread lives as long as /proc has it; the kernel tells us threads, not processes.
fn is_alive(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

/// Whether `kind` is the lock's name.
pub(super) fn is_lock(kind: &Name) -> bool {
    *kind == Name::RootFile(RootFile::ConfigLock)
}

impl Fs {
    /// Makes the lock; what it is, and a descriptor of it.
    pub(super) fn make_lock(
        &self,
        tree: &mut Tree,
        caller: Caller,
        mode: u32,
    ) -> Result<(Found, OwnedFd), Errno> {
        let file = rustix::fs::memfd_create(LOCK, MemfdFlags::CLOEXEC)?;
        rustix::fs::fchmod(&file, Mode::from(mode & 0o7777))?;
        if self.store.privileged() {
            let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        let mine = rustix::io::fcntl_dupfd_cloexec(&file, 0)?;
        let mut state = self.config_lock.state();
        if state.0.is_some() {
            return Err(Errno::EXIST);
        }
        let ino = HIGHEST_INO - state.1 % NUMBERS;
        state.1 += 1;
        state.0 = Some(Held {
            ino,
            file: Arc::new(file),
            maker: caller.pid,
            made: self.clock.now(),
        });
        drop(state);
        Ok((self.find_lock(tree)?, mine))
    }

    /// Has the tree remember the lock, if there is one.
    pub(super) fn find_lock(&self, tree: &mut Tree) -> Result<Found, Errno> {
        let state = self.config_lock.state();
        let held = state.0.as_ref().ok_or(Errno::NOENT)?;
        let (ino, file) = (held.ino, held.file.clone());
        drop(state);
        let kind = Name::RootFile(RootFile::ConfigLock);
        tree.remember(ino, ROOT, OsStr::new(LOCK), kind.as_dir());
        tree.keep_in_memory(ino, file);
        let stat = self.spot(tree, ino)?.stat(self.store.root())?;
        Ok(self.found(&kind, &stat))
    }

    /// Removes the lock.
    pub(super) fn remove_lock(&self, tree: &mut Tree) -> Result<(), Errno> {
        let gone = self.config_lock.state().0.take().ok_or(Errno::NOENT)?;
        tree.name_gone(gone.ino, ROOT, OsStr::new(LOCK), None);
        Ok(())
    }

    /// Removes the lock if it blocks others for no reason. That is judged under the lock of the tree: otherwise
    /// two who find the same stale one would remove the new one that was made in between.
    pub(super) fn drop_stale_config_lock(&self) {
        if self.config_lock.ino().is_none() {
            return;
        }
        let mut tree = self.tree_mut();
        let now = self.clock.now();
        let state = self.config_lock.state();
        let is_stale = state.0.as_ref().is_some_and(|held| held.is_stale(now));
        drop(state);
        if is_stale && self.remove_lock(&mut tree).is_ok() {
            tree.epoch += 1;
            log::warn!("removed a stale config.lock: whoever made it is gone");
        }
    }
}
