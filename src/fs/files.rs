//! Open files: create, open, read, write, close.
//!
//! Where the kernel reads and writes the backing file itself (passthrough), `read` and `write` here are never
//! called; everything else is the same.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};

use super::attr::Found;
use super::lock::is_lock;
use super::{Caller, Errno, Fs, errno};
use crate::name::{Name, Place, RootFile};

/// Flags of an open that are the kernel's business: creating, truncating and appending it does itself,
/// and direct I/O would bind our buffers to its alignment.
const KERNELS_FLAGS: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::TRUNC)
    .union(OFlags::APPEND)
    .union(OFlags::DIRECT)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOATIME);

/// Longest that we hear of a close after it has returned.
const CLOSE_LAG: Duration = Duration::from_millis(250);
/// How often it is seen whether we have heard of it.
const CLOSE_TICK: Duration = Duration::from_micros(200);

/// An open file.
#[derive(Debug)]
pub struct Handle {
    /// The inode that it was opened on.
    pub ino: u64,
    /// The backing file.
    pub file: File,
    pub(super) writes: bool,
    pub(super) is_config: bool,
}

/// All open files, by number.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<HashMap<u64, Arc<Handle>>>);

impl Handles {
    pub(super) fn all(&self) -> Vec<(u64, Arc<Handle>)> {
        let map = self.map();
        map.iter()
            .map(|(fh, handle)| (*fh, handle.clone()))
            .collect()
    }

    pub(super) fn insert(&self, fh: u64, handle: Handle) {
        self.map().insert(fh, Arc::new(handle));
    }

    fn map(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fs {
    /// Makes and opens a file; its attributes and its handle.
    pub fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Found, u64, Arc<Handle>), Errno> {
        self.with_room(&[parent], || {
            self.try_create(caller, parent, name, mode, flags)
        })
    }

    fn try_create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Found, u64, Arc<Handle>), Errno> {
        let kind = self.name(parent, name)?;
        self.may_change(&kind)?;
        let mut flags = open_flags(flags);
        let mut tree = self.tree_mut();
        if is_lock(&kind) {
            let (found, fd) = self.make_lock(&mut tree, caller, mode)?;
            let (fh, handle) = self.add_handle(&mut tree, &kind, found.attr.ino, fd, true);
            return Ok((found, fh, handle));
        }
        let spot = self.spot_in(&tree, parent, name)?;
        let root = self.store.root();
        let making = self.making(&kind)?;
        flags |= OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(spot.at(root), &spot.path, flags, Mode::from(mode & 0o7777))
            .inspect_err(|_| self.not_made(&tree, &kind))?;
        self.own(&tree, caller, parent, &spot, mode)?;
        let stat = rustix::fs::fstat(&fd)?;
        let found = self.remember(&mut tree, parent, name, &kind, &stat);
        if let (Some(node), Some(_)) = (tree.get_mut(stat.st_ino), making) {
            node.unsealed = making;
        }
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let (fh, handle) = self.add_handle(&mut tree, &kind, found.attr.ino, fd, writes);
        Ok((found, fh, handle))
    }

    /// If `kind` is an entry, marks it as being written in place.
    pub(super) fn making(&self, kind: &Name) -> Result<Option<Place>, Errno> {
        let Name::Entry(place) = kind else {
            return Ok(None);
        };
        self.store.mark_writing(place).map_err(errno)?;
        Ok(Some(*place))
    }

    /// Takes the mark back: it did not come to be.
    pub(super) fn not_made(&self, tree: &super::Tree, kind: &Name) {
        if let Name::Entry(place) = kind {
            self.unmark(tree, place);
        }
    }

    /// Opens an inode; its handle.
    pub fn open(&self, ino: u64, flags: i32) -> Result<(u64, Arc<Handle>), Errno> {
        let flags = open_flags(flags);
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
            // One step: between the check and the count the file could become an entry.
            let mut tree = self.tree_mut();
            self.may_write(&tree, ino)?;
            let (kind, fd) = self.open_node(&tree, ino, flags)?;
            return Ok(self.add_handle(&mut tree, &kind, ino, fd, true));
        }
        let tree = self.tree();
        let entry = self.entry_of(&tree, ino);
        let (kind, fd) = self.open_node(&tree, ino, flags)?;
        drop(tree);
        if let Some(place) = entry {
            let len = rustix::fs::fstat(&fd).map_or(0, |stat| stat.st_size);
            self.was_used(&place, u64::try_from(len).unwrap_or_default());
        }
        Ok(self.add_handle(&mut self.tree_mut(), &kind, ino, fd, false))
    }

    fn open_node(
        &self,
        tree: &super::Tree,
        ino: u64,
        flags: OFlags,
    ) -> Result<(Name, OwnedFd), Errno> {
        let spot = self.spot(tree, ino)?;
        let kind = self.kind_of(tree, ino);
        let reads_only = !flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let fd = match spot.open(self.store.root(), flags) {
            Err(e) if reads_only => self.open_stand_in(&kind, e).map_err(stale)?,
            result => result.map_err(stale)?,
        };
        Ok((kind, fd))
    }

    /// Refuses to change the content of an entry that is committed, and of anything on a read-only mount.
    pub(super) fn may_write(&self, tree: &super::Tree, ino: u64) -> Result<(), Errno> {
        self.may_change(&self.kind_of(tree, ino))?;
        let node = tree.get(ino);
        let sealed = node.is_some_and(|node| node.unsealed.is_none());
        let was_entry = node.is_some_and(|node| node.was_entry);
        // A crash can leave a scratch file in the journal whose rename never was: it has been promised too.
        let promised = self.store.our_links(ino) > 0;
        if promised || sealed && (was_entry || self.entry_of(tree, ino).is_some()) {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// What a node is by the first of its names; scratch if it has none.
    pub(super) fn kind_of(&self, tree: &super::Tree, ino: u64) -> Name {
        let first = tree.get(ino).and_then(|node| node.names().next());
        first
            .and_then(|known| super::name_in(tree, known.parent(), &known.name()).ok())
            .unwrap_or(Name::Scratch)
    }

    fn add_handle(
        &self,
        tree: &mut super::Tree,
        kind: &Name,
        ino: u64,
        fd: OwnedFd,
        writes: bool,
    ) -> (u64, Arc<Handle>) {
        if let Some(node) = tree.get_mut(ino) {
            node.opens += 1;
            node.writers += u32::from(writes);
        }
        let is_config = *kind == Name::RootFile(RootFile::Config);
        let handle = Arc::new(Handle {
            ino,
            file: File::from(fd),
            writes,
            is_config,
        });
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.map().insert(fh, handle.clone());
        (fh, handle)
    }

    /// Waits a little for a file's writers to be gone. close(2) returns before we have heard of it: the kernel does not
    /// wait for our answer to RELEASE. So whoever closes a file and moves it at once may be ahead of that news, and
    /// a file that is whole would count as still being written. One that really is open is not waited for longer.
    pub(super) fn let_writers_close(&self, ino: u64) {
        let deadline = self.clock.now() + CLOSE_LAG;
        let has_writers = || self.tree().get(ino).is_some_and(|node| node.writers > 0);
        while has_writers() && self.clock.now() < deadline {
            self.clock.sleep(CLOSE_TICK);
        }
    }

    /// The last descriptor of a handle is closed. An entry that was written in place is committed when none is left
    /// that could write to it.
    pub fn release(&self, fh: u64) {
        let Some(handle) = self.handles.map().remove(&fh) else {
            return;
        };
        let mut tree = self.tree_mut();
        let place = tree.get_mut(handle.ino).and_then(|node| {
            let whole = node.writers == u32::from(handle.writes) && node.unsealed.is_some();
            if whole { node.unsealed.take() } else { None }
        });
        if let Some(place) = place {
            self.seal(handle.ino, &place);
        }
        tree.closed(handle.ino, handle.writes);
        drop(tree);
        if handle.writes {
            self.store.look_at_disk();
            if handle.is_config {
                self.store.reload_config();
            }
        }
    }

    fn handle(&self, fh: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.map().get(&fh).cloned().ok_or(Errno::BADF)
    }

    /// Reads from `offset` until the buffer is full or the file ends; the bytes read.
    pub fn read(&self, fh: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let handle = self.handle(fh)?;
        let mut done = 0;
        while done < buffer.len() {
            match handle
                .file
                .read_at(&mut buffer[done..], offset + done as u64)
            {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(errno(e)),
            }
        }
        Ok(done)
    }

    /// Writes all of `data` at `offset`.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.handle(fh)?
            .file
            .write_all_at(data, offset)
            .map_err(errno)
    }

    /// Brings the file to the disk.
    pub fn fsync(&self, fh: u64, data_only: bool) -> Result<(), Errno> {
        let handle = self.handle(fh)?;
        if data_only {
            rustix::fs::fdatasync(&handle.file)
        } else {
            rustix::fs::fsync(&handle.file)
        }
    }

    /// Looks for data or a hole.
    pub fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<u64, Errno> {
        let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(at),
            libc::SEEK_HOLE => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&self.handle(fh)?.file, from)
    }

    /// Allocates or frees space.
    pub fn fallocate(&self, fh: u64, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        rustix::fs::fallocate(&self.handle(fh)?.file, mode, offset, length)
    }

    /// Sets the length through an open handle.
    pub(super) fn truncate_handle(&self, fh: u64, length: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.handle(fh)?.file, length)
    }
}

fn open_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned()).difference(KERNELS_FLAGS)
}

/// An inode that the kernel knows but that is not where it was: the kernel looks it up again on ESTALE.
fn stale(error: Errno) -> Errno {
    if error == Errno::NOENT {
        Errno::STALE
    } else {
        error
    }
}
