//! Directories: making, removing, reading; and the figures of the file system.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, StatVfs};

use serde::{Deserialize, Serialize};

use super::attr::Found;
use super::lock::{LOCK, is_lock};
use super::{Caller, Errno, Fs, ROOT, errno};
use crate::name::{Dir, Name, RootFile};
use crate::sys::exec::{Kept, take_over};

/// Where reading the root goes on after `config.lock`, which is its last name: no file system says this itself, as the
/// highest hash of a directory's tree is that of its end.
const AFTER_LOCK: u64 = i64::MAX as u64 - 1;

/// An open directory.
#[derive(Debug)]
pub struct DirHandle {
    fd: Mutex<OwnedFd>,
    dir: Dir,
}

/// It on its way to another program.
#[derive(Debug, Serialize, Deserialize)]
pub struct PackedDir {
    fd: RawFd,
    dir: Dir,
}

impl DirHandle {
    /// Packs it.
    pub fn pack(&self, kept: &mut Kept) -> io::Result<PackedDir> {
        let fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = kept.keep(&*fd)?;
        Ok(PackedDir { fd, dir: self.dir })
    }

    /// Takes over what the program before packed.
    pub fn unpack(packed: &PackedDir) -> io::Result<Self> {
        Ok(Self {
            fd: Mutex::new(take_over(packed.fd)?),
            dir: packed.dir,
        })
    }
}

/// One name while reading a directory.
#[derive(Debug)]
pub struct DirEntry<'a> {
    /// Its inode number.
    pub ino: u64,
    /// Where reading goes on after it.
    pub next: u64,
    /// What it is.
    pub kind: FileType,
    /// The name.
    pub name: &'a OsStr,
}

impl Fs {
    /// Makes a directory. A prefix directory that the disk cannot hold exists in memory: an error ends a build.
    pub fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
    ) -> Result<Found, Errno> {
        let made = self.with_room(&[parent], || self.try_mkdir(caller, parent, name, mode));
        match (made, self.name(parent, name)?) {
            (Err(e), kind @ Name::PrefixDir(_)) if e != Errno::EXIST => {
                self.find_stand_in(parent, name, &kind, e)
            }
            (made, _) => made,
        }
    }

    fn try_mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
    ) -> Result<Found, Errno> {
        let kind = self.name(parent, name)?;
        self.may_change(&kind)?;
        if is_lock(&kind) {
            return Err(Errno::PERM);
        }
        let mut tree = self.tree_mut();
        let spot = self.spot_in(&tree, parent, name)?;
        let root = self.store.root();
        if let Name::PrefixDir(_) = kind {
            if spot.stat(root).is_ok() {
                return Err(Errno::EXIST);
            }
            self.store
                .ensure_prefix(name.to_str().ok_or(Errno::INVAL)?)
                .map_err(errno)?;
        } else {
            rustix::fs::mkdirat(spot.at(root), &spot.path, Mode::from(mode & 0o7777))?;
            self.own(&tree, caller, parent, &spot, mode)?;
        }
        let stat = spot.stat(root)?;
        Ok(self.remember(&mut tree, parent, name, &kind, &stat))
    }

    /// Removes an empty directory. What only the remote holds does not count.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    /// Opens a directory for reading.
    pub fn opendir(&self, ino: u64) -> Result<DirHandle, Errno> {
        let tree = self.tree();
        let dir = self.dir_of(&tree, ino)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.spot(&tree, ino)?.open(self.store.root(), flags)?;
        Ok(DirHandle {
            fd: Mutex::new(fd),
            dir,
        })
    }

    /// Gives names from `offset` on to `each` until it says that it is full.
    pub fn readdir(
        &self,
        handle: &DirHandle,
        offset: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let fd = handle.fd.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == AFTER_LOCK {
            return Ok(());
        }
        rustix::fs::seek(&*fd, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
        let mut entries = RawDir::new(fd.as_fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if handle.dir == Dir::Root && !self.is_listed(name) {
                continue;
            }
            let (next, kind) = (entry.next_entry_cookie(), entry.file_type());
            let up = name == ".." && matches!(handle.dir, Dir::Root);
            let ino = if up { ROOT } else { self.ino(entry.ino()) };
            if each(DirEntry {
                ino,
                next,
                kind,
                name,
            }) {
                return Ok(());
            }
        }
        if let (Dir::Root, Some(ino)) = (handle.dir, self.config_lock.ino()) {
            each(DirEntry {
                ino,
                next: AFTER_LOCK,
                kind: FileType::RegularFile,
                name: OsStr::new(LOCK),
            });
        }
        Ok(())
    }

    /// Brings a directory to the disk.
    pub fn fsyncdir(&self, handle: &DirHandle) -> Result<(), Errno> {
        rustix::fs::fsync(&*handle.fd.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Figures of the backing file system.
    pub fn statfs(&self) -> Result<StatVfs, Errno> {
        rustix::fs::fstatvfs(self.store.root())
    }

    /// Whether a name in the root is shown: our own never, a prefix directory once something is in it.
    fn is_listed(&self, name: &OsStr) -> bool {
        match Name::parse(&Dir::Root, name.as_bytes()) {
            // A lock on the disk is none of ours.
            Name::Private | Name::RootFile(RootFile::ConfigLock) => false,
            Name::PrefixDir(_) => !self.is_empty_dir(name),
            _ => true,
        }
    }

    fn is_empty_dir(&self, name: &OsStr) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(self.store.root(), name, flags, Mode::empty()) else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut entries = RawDir::new(dir.as_fd(), &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return false;
            }
        }
        true
    }
}
