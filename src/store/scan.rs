//! Reading directories of the backing disk, and filling the index from it after a start.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, RawDir, Stat};
use rustix::io::Errno;

use super::Store;
use super::index::footprint;
pub use super::layout::open_dir;
use super::layout::root_dir;
use crate::name::{Dir, Name, Place};

/// One name in a directory.
#[derive(Debug)]
pub struct Found {
    /// The name.
    pub name: CString,
    /// What it is, where the file system says so.
    pub kind: FileType,
}

/// The names in a directory, without `.` and `..`.
pub fn names_in(dir: &OwnedFd) -> io::Result<Vec<Found>> {
    let mut names = Vec::new();
    each_name(dir, |found| names.push(found))?;
    Ok(names)
}

pub(super) fn each_name(dir: &OwnedFd, mut each: impl FnMut(Found)) -> io::Result<()> {
    // The descriptor's position is shared: start over each time.
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir.as_fd(), &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            each(Found {
                name: entry.file_name().to_owned(),
                kind: entry.file_type(),
            });
        }
    }
    Ok(())
}

/// The prefix directories that exist.
pub(super) fn prefix_dirs(root: &OwnedFd) -> io::Result<Vec<Dir>> {
    let is_dir = |found: &Found| matches!(found.kind, FileType::Directory | FileType::Unknown);
    let all = names_in(root)?;
    Ok(all
        .iter()
        .filter(|f| is_dir(f))
        .filter_map(|f| root_dir(f.name.to_bytes()))
        .collect())
}

/// When a file was last used: SCons sets both times at every hit, a copy keeps the old mtime.
fn used_ms(stat: &Stat) -> u64 {
    let seconds = stat.st_atime.max(stat.st_mtime);
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

/// Bytes of what can be an entry: a file or a symlink.
pub fn content_len(stat: &Stat) -> Option<u64> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Symlink => u64::try_from(stat.st_size).ok(),
        _ => None,
    }
}

impl Store {
    /// The prefix directories that exist.
    pub fn prefixes(&self) -> io::Result<Vec<Dir>> {
        prefix_dirs(&open_dir(&self.root, ".")?)
    }

    /// Adds everything on the disk to the index. Meant to run beside everything else: lookups do not
    /// need the index. Ends early when the store is stopped.
    pub fn scan(&self) -> io::Result<()> {
        let root = open_dir(&self.root, ".")?;
        for dir in prefix_dirs(&root)? {
            if self.state().stopped {
                return Ok(());
            }
            self.scan_prefix(&root, &dir)?;
        }
        // What an earlier run knew of and is not here is gone.
        self.state().unseen = 0;
        self.scanned.store(true, Ordering::Release);
        self.changed.notify_all();
        // The totals are known now: they are written down.
        self.health_changed.notify_all();
        Ok(())
    }

    fn scan_prefix(&self, root: &OwnedFd, dir: &Dir) -> io::Result<()> {
        let open = match open_dir(root, dir.prefix_digits()) {
            Ok(open) => open,
            // Gone, or no directory after all.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for found in names_in(&open)? {
            if let Name::Entry(place) = Name::parse(dir, found.name.to_bytes()) {
                self.scan_entry(&open, &found, &place)?;
            }
        }
        Ok(())
    }

    fn scan_entry(&self, dir: &OwnedFd, found: &Found, place: &Place) -> io::Result<()> {
        let stat = match rustix::fs::statat(dir, found.name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        if let Some(len) = content_len(&stat) {
            let mut state = self.state();
            if state.index.insert_found(place, len, used_ms(&stat)) {
                state.unseen = state.unseen.saturating_sub(footprint(len));
            }
        }
        Ok(())
    }
}
