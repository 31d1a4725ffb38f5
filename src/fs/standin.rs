//! What stands in for the disk when it fails, or is full: what every build needs is there all the same.
//!
//! Errors on a CacheDir are no errors to SCons, but for these: reading `config`, and making a prefix directory. So
//! `config` and `CACHEDIR.TAG` are answered from memory, and a prefix directory that cannot be made exists in memory only:
//! what is looked up in it is absent, what is made in it fails, and as soon as the disk can it is a real one.

use std::os::fd::OwnedFd;

use rustix::fs::Stat;

use super::{Errno, Fs, ROOT};
use crate::name::{Dir, Name, RootFile};
use crate::store::health::{is_disk_failure, is_full};

/// Prefix directories that exist in memory only have their inode numbers below this one; see `lock` for those above.
const HIGHEST_INO: u64 = u64::MAX - (1 << 33);

/// How often something is tried again for which the evictor made room.
const TRIES: u32 = 3;

impl Fs {
    /// What stands in for a name in the root that the disk failed with `error`; the error if nothing does.
    pub(super) fn stand_in(&self, kind: &Name, error: Errno) -> Result<Stat, Errno> {
        let stat = match kind {
            Name::RootFile(file @ (RootFile::Config | RootFile::Tag))
                if self.fails(kind, error) =>
            {
                self.store.spare_stat(*file)
            }
            Name::PrefixDir(dir)
                if (is_full(error) || self.fails(kind, error)) && self.is_asked_for(dir) =>
            {
                Some(self.prefix_in_memory(dir))
            }
            // SCons takes both for a miss, but this one without complaining.
            Name::Entry(_) if self.fails(kind, error) => return Err(Errno::NOENT),
            _ => None,
        };
        stat.ok_or(error)
    }

    /// What stands in for an inode that the disk failed with `error`.
    pub(super) fn stand_in_for(&self, ino: u64, kind: &Name, error: Errno) -> Result<Stat, Errno> {
        if ino == ROOT && self.fails(kind, error) {
            return Ok(self.store.spare_root());
        }
        match kind {
            // It was in memory only, and its directory was made on the disk by now or not.
            Name::PrefixDir(dir) if ino <= HIGHEST_INO && ino > HIGHEST_INO - (1 << 32) => {
                Ok(self.prefix_in_memory(dir))
            }
            Name::RootFile(_) | Name::PrefixDir(_) => self.stand_in(kind, error),
            _ => Err(error),
        }
    }

    /// A file that stands in for a root file that cannot be opened.
    pub(super) fn open_stand_in(&self, kind: &Name, error: Errno) -> Result<OwnedFd, Errno> {
        let spare = match kind {
            Name::RootFile(file) if self.fails(kind, error) => self.store.spare_file(*file),
            _ => None,
        };
        spare.ok_or(error)
    }

    /// Whether SCons may ask for this prefix directory: without it, it could not ask for what is in it.
    pub(super) fn is_asked_for(&self, dir: &Dir) -> bool {
        dir.prefix_digits().len() == usize::from(self.store.prefix_digits())
    }

    fn fails(&self, kind: &Name, error: Errno) -> bool {
        let fails = self.store.fails_with(error);
        if fails && is_disk_failure(error) {
            self.store
                .note(format_args!("cannot look at {kind:?}"), error);
        }
        fails
    }

    fn prefix_in_memory(&self, dir: &Dir) -> Stat {
        let mut stat = self.store.spare_root();
        let digits = std::str::from_utf8(dir.prefix_digits()).unwrap_or_default();
        let number = u64::from_str_radix(digits, 16).unwrap_or(0);
        // Prefixes of different lengths must not meet.
        stat.st_ino = HIGHEST_INO - ((digits.len() as u64) << 16) - number;
        stat.st_nlink = 2;
        stat
    }

    /// Does something that takes room on the disk; if the disk is full, again after the evictor has made some.
    /// `parents` are the directories that the kernel holds meanwhile.
    pub(super) fn with_room<T>(
        &self,
        parents: &[u64],
        operation: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        for _ in 1..TRIES {
            match operation() {
                Err(e) if is_full(e) => {
                    if !self.store.relieve(&self.prefixes(parents)) {
                        return Err(e);
                    }
                }
                result => return result,
            }
        }
        operation()
    }

    /// The prefix directories among these.
    pub(super) fn prefixes(&self, inodes: &[u64]) -> Vec<String> {
        let tree = self.tree();
        let dirs = inodes.iter().filter_map(|ino| tree.get(*ino));
        let prefixes = dirs.map(|node| String::from_utf8_lossy(node.dir().prefix_digits()).into());
        prefixes.filter(|dir: &String| !dir.is_empty()).collect()
    }

    /// An operation failed, and the kernel is told so. A read-only mount says EROFS by itself.
    pub fn failed(&self, error: Errno) {
        if matches!(
            error,
            Errno::IO | Errno::UCLEAN | Errno::NOSPC | Errno::DQUOT
        ) || error == Errno::ROFS && !self.is_read_only()
        {
            self.store.note("an operation of the mount failed", error);
        }
    }
}
