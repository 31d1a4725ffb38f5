//! Copies of what every SCons start reads, for when the disk does not give it: a build must not fail for that.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, MemfdFlags, Stat};

use super::layout;
use crate::name::RootFile;

/// The root directory's attributes, and the root files with theirs.
#[derive(Debug)]
pub(super) struct Spare {
    root: Stat,
    files: Mutex<Vec<(RootFile, Stat, Vec<u8>)>>,
}

impl Spare {
    /// Takes the copies.
    pub(super) fn of(root: &OwnedFd) -> io::Result<Self> {
        let spare = Self {
            root: rustix::fs::fstat(root)?,
            files: Mutex::default(),
        };
        spare.take_again(root.as_fd());
        Ok(spare)
    }

    /// Takes the copies again, of what can be read.
    pub(super) fn take_again(&self, root: BorrowedFd<'_>) {
        for file in [RootFile::Config, RootFile::Tag] {
            let name = name_of(file);
            let stat = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW);
            if let (Ok(stat), Ok(content)) = (stat, layout::read(root, name)) {
                let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                files.retain(|(known, ..)| *known != file);
                files.push((file, stat, content));
            }
        }
    }

    pub(super) fn root(&self) -> Stat {
        self.root
    }

    pub(super) fn stat(&self, file: RootFile) -> Option<Stat> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let found = files.iter().find(|(known, ..)| *known == file)?;
        Some(found.1)
    }

    /// A file without a name that holds the copy.
    pub(super) fn open(&self, file: RootFile) -> io::Result<Option<OwnedFd>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((.., content)) = files.iter().find(|(known, ..)| *known == file) else {
            return Ok(None);
        };
        let fd = rustix::fs::memfd_create(name_of(file), MemfdFlags::CLOEXEC)?;
        let mut copy = File::from(fd);
        copy.write_all(content)?;
        Ok(Some(copy.into()))
    }
}

fn name_of(file: RootFile) -> &'static str {
    match file {
        RootFile::Config => "config",
        RootFile::Tag => "CACHEDIR.TAG",
        RootFile::ConfigLock => "config.lock",
    }
}
