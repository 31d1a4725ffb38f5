//! Changing attributes: mode, owner, size, times.

use std::time::Duration;

use rustix::fs::{FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

use super::attr::Attr;
use super::reach::Spot;
use super::tree::Tree;
use super::{Errno, Fs, ROOT};
use crate::name::Name;
use crate::store::health::is_disk_failure;

/// A time stamp to set.
#[derive(Clone, Copy, Debug)]
pub enum Stamp {
    /// The time of the call.
    Now,
    /// Seconds and nanoseconds since 1970.
    At(i64, u32),
}

/// What is to change; `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<Stamp>,
    /// Time of last modification.
    pub mtime: Option<Stamp>,
    /// An open handle, for the length.
    pub fh: Option<u64>,
}

impl Changes {
    /// Whether only time stamps change: SCons does that at every hit, also on a read-only mount.
    fn only_times(&self) -> bool {
        self.mode.is_none() && self.uid.is_none() && self.gid.is_none() && self.size.is_none()
    }
}

impl Fs {
    /// Changes attributes; what they are then, and how long that holds.
    pub fn setattr(&self, ino: u64, changes: &Changes) -> Result<(Attr, Duration), Errno> {
        let tree = self.tree();
        if !changes.only_times() {
            self.may_change(&self.kind_of(&tree, ino))?;
        }
        let spot = self.spot(&tree, ino)?;
        if let Some(size) = changes.size {
            self.truncate(&tree, &spot, ino, size, changes.fh)?;
        }
        self.change_owner(&spot, changes)?;
        if let Some(mode) = changes.mode {
            self.change_mode(&tree, &spot, ino, mode)?;
        }
        self.change_times(&tree, &spot, ino, changes)?;
        let stat = self.stat(&tree, ino)?;
        Ok(self.shown(&tree, ino, &stat))
    }

    fn truncate(
        &self,
        tree: &Tree,
        spot: &Spot,
        ino: u64,
        size: u64,
        fh: Option<u64>,
    ) -> Result<(), Errno> {
        self.may_write(tree, ino)?;
        match fh {
            Some(fh) => self.truncate_handle(fh, size),
            None => {
                let file = spot.open(self.store.root(), OFlags::WRONLY | OFlags::NONBLOCK)?;
                rustix::fs::ftruncate(file, size)
            }
        }
    }

    fn change_owner(&self, spot: &Spot, changes: &Changes) -> Result<(), Errno> {
        // An owner that is shown for everything cannot be changed, as on a FAT file system.
        let differs = |new: Option<u32>, shown: Option<u32>| match (new, shown) {
            (Some(new), Some(shown)) => new != shown,
            _ => false,
        };
        if differs(changes.uid, self.options.uid) || differs(changes.gid, self.options.gid) {
            return Err(Errno::PERM);
        }
        let uid = changes
            .uid
            .filter(|_| self.options.uid.is_none())
            .map(Uid::from_raw);
        let gid = changes
            .gid
            .filter(|_| self.options.gid.is_none())
            .map(Gid::from_raw);
        if uid.is_some() || gid.is_some() {
            rustix::fs::chownat(spot.at(self.store.root()), &spot.path, uid, gid, spot.flags)?;
        }
        Ok(())
    }

    fn change_mode(&self, tree: &Tree, spot: &Spot, ino: u64, mode: u32) -> Result<(), Errno> {
        let root = self.store.root();
        let before = spot.stat(root)?;
        if FileType::from_raw_mode(before.st_mode) == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        // Not through a descriptor: the file may be one that we may not open.
        let mode = mode & 0o7777;
        rustix::fs::chmodat(
            spot.at(root),
            &spot.path,
            Mode::from(mode),
            rustix::fs::AtFlags::empty(),
        )?;
        if let Some(place) = self.entry_of(tree, ino) {
            self.entry_mode_changed(tree, ino, &place, before.st_mode & 0o777, mode & 0o777);
        }
        Ok(())
    }

    fn change_times(
        &self,
        tree: &Tree,
        spot: &Spot,
        ino: u64,
        changes: &Changes,
    ) -> Result<(), Errno> {
        if changes.atime.is_none() && changes.mtime.is_none() {
            return Ok(());
        }
        let times = Timestamps {
            last_access: timespec(changes.atime),
            last_modification: timespec(changes.mtime),
        };
        let set = rustix::fs::utimensat(spot.at(self.store.root()), &spot.path, &times, spot.flags);
        let entry = match self.kind_of(tree, ino) {
            Name::Entry(place) if ino != ROOT => Some(place),
            _ => None,
        };
        match (set, entry) {
            (Ok(()), Some(place)) => self.store.touch(&place),
            // SCons does it at every hit, and what it got is right whether or not the disk can be written.
            (Err(e), Some(_)) if is_disk_failure(e) => {
                self.store.note("cannot set the times of an entry", e);
            }
            (result, _) => result?,
        }
        Ok(())
    }
}

fn timespec(stamp: Option<Stamp>) -> Timespec {
    match stamp {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(Stamp::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(Stamp::At(tv_sec, nanos)) => Timespec {
            tv_sec,
            tv_nsec: nanos.into(),
        },
    }
}
