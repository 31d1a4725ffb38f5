//! From an inode or a name to something that a system call can work on.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use super::tree::{Reach, Tree};
use super::{Errno, Fs};

/// Longest path given to one system call; a longer one is walked in pieces (`PATH_MAX` is 4096).
const MAX_PATH: usize = 3500;

/// Where a system call is to work: a path relative to a directory.
#[derive(Debug)]
pub(super) struct Spot {
    /// The directory; the backing root if `None`.
    base: Option<Arc<OwnedFd>>,
    /// Relative to it, or through /proc to a file without a name.
    pub(super) path: PathBuf,
    /// Whether the last component is followed: only for the way through /proc.
    pub(super) flags: AtFlags,
    /// Its number in the mount, if that is not the one of the file.
    ino: Option<u64>,
}

impl Spot {
    /// A short path below the root.
    pub(super) fn below_root(path: PathBuf) -> Self {
        Self {
            base: None,
            path,
            flags: AtFlags::SYMLINK_NOFOLLOW,
            ino: None,
        }
    }

    /// A file without a name.
    fn through(fd: Arc<OwnedFd>, ino: Option<u64>) -> Self {
        Self {
            path: PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            base: Some(fd),
            flags: AtFlags::empty(),
            ino,
        }
    }

    pub(super) fn at<'a>(&'a self, root: BorrowedFd<'a>) -> BorrowedFd<'a> {
        self.base.as_ref().map_or(root, |fd| fd.as_fd())
    }

    pub(super) fn stat(&self, root: BorrowedFd<'_>) -> Result<Stat, Errno> {
        let mut stat = rustix::fs::statat(self.at(root), &self.path, self.flags)?;
        stat.st_ino = self.ino.unwrap_or(stat.st_ino);
        Ok(stat)
    }

    /// Opens it with these flags. Symlinks are never followed, except on the way through /proc.
    pub(super) fn open(&self, root: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let nofollow = if self.flags.contains(AtFlags::SYMLINK_NOFOLLOW) {
            OFlags::NOFOLLOW
        } else {
            OFlags::empty()
        };
        let flags = flags | nofollow | OFlags::CLOEXEC;
        rustix::fs::openat(self.at(root), &self.path, flags, Mode::empty())
    }
}

impl Fs {
    /// Where the inode is.
    pub(super) fn spot(&self, tree: &Tree, ino: u64) -> Result<Spot, Errno> {
        match tree.reach(ino).ok_or(Errno::STALE)? {
            Reach::Path(path) => self.shorten(path),
            Reach::Orphan(fd) => Ok(Spot::through(fd, None)),
            Reach::Memory(file) => Ok(Spot::through(file, Some(ino))),
        }
    }

    /// Where `name` in the directory `parent` is or would be.
    pub(super) fn spot_in(&self, tree: &Tree, parent: u64, name: &OsStr) -> Result<Spot, Errno> {
        self.shorten(tree.path_in(parent, name).ok_or(Errno::NOENT)?)
    }

    /// Opens directories on the way until the rest of the path is short enough for a system call.
    fn shorten(&self, path: PathBuf) -> Result<Spot, Errno> {
        let mut spot = Spot::below_root(path);
        while spot.path.as_os_str().len() > MAX_PATH {
            let (head, rest) = split(&spot.path);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let base = rustix::fs::openat(spot.at(self.store.root()), &head, flags, Mode::empty())?;
            spot = Spot {
                base: Some(Arc::new(base)),
                path: rest,
                flags: spot.flags,
                ino: None,
            };
        }
        Ok(spot)
    }
}

/// Splits a long path into a first piece that a system call takes, and the rest.
fn split(path: &Path) -> (PathBuf, PathBuf) {
    let mut head = PathBuf::new();
    let mut parts = path.components();
    let mut rest = parts.as_path();
    while let Some(Component::Normal(part)) = parts.next() {
        if !head.as_os_str().is_empty() && head.as_os_str().len() + part.len() >= MAX_PATH {
            break;
        }
        head.push(part);
        rest = parts.as_path();
    }
    (head, rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_split_between_components_and_nothing_is_lost() {
        let long: PathBuf = (0..100).map(|n| format!("{n:0>200}")).collect();
        let (head, rest) = split(&long);
        assert!(head.as_os_str().len() <= MAX_PATH);
        assert_eq!(head.join(rest), long);
    }
}
