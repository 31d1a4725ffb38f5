//! Attributes as the mount shows them.

use std::time::Duration;

use rustix::fs::{FileType, Stat};

use super::tree::Tree;
use super::{Errno, Fs, LONG, ROOT, SHORT};
use crate::name::{Dir, Name, RootFile};

/// Attributes of an inode: those of its file, with the mount's own number and owner.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// The inode number in the mount.
    pub ino: u64,
    /// Everything else.
    pub stat: Stat,
}

impl Attr {
    /// What kind of file it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Its permission bits.
    pub fn perm(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }
}

/// A name that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its attributes.
    pub attr: Attr,
    /// How long the name holds.
    pub entry_ttl: Duration,
    /// How long the attributes hold.
    pub attr_ttl: Duration,
}

impl Fs {
    /// The attributes of an inode, and how long they hold.
    pub fn getattr(&self, ino: u64) -> Result<(Attr, Duration), Errno> {
        let tree = self.tree();
        let stat = self.stat(&tree, ino)?;
        Ok(self.shown(&tree, ino, &stat))
    }

    /// Attributes of a node as the disk has them, or what stands in for it.
    pub(super) fn stat(&self, tree: &Tree, ino: u64) -> Result<Stat, Errno> {
        let stat = self.spot(tree, ino)?.stat(self.store.root());
        stat.or_else(|e| self.stand_in_for(ino, &self.kind_of(tree, ino), e))
    }

    /// Attributes of a node as the mount shows them, and how long they hold.
    pub(super) fn shown(&self, tree: &Tree, ino: u64, stat: &Stat) -> (Attr, Duration) {
        let node = tree.get(ino);
        let attr = self.attr(node.is_none_or(|n| n.known_names() > 0), stat);
        let ttl = match self.entry_of(tree, ino) {
            Some(_) if node.is_some_and(|n| n.writers > 0) => Duration::ZERO,
            Some(_) => LONG,
            None => SHORT,
        };
        (attr, ttl)
    }

    /// The answer to a lookup that found this file under a name of this kind.
    pub(super) fn found(&self, kind: &Name, stat: &Stat) -> Found {
        let (entry_ttl, attr_ttl) = match kind {
            // A stale lock is dropped when it is looked up: the kernel has to ask each time.
            Name::RootFile(RootFile::ConfigLock) => (Duration::ZERO, Duration::ZERO),
            Name::Entry(_) => (LONG, LONG),
            _ => (LONG, SHORT),
        };
        Found {
            attr: self.attr(true, stat),
            entry_ttl,
            attr_ttl,
        }
    }

    fn attr(&self, named: bool, stat: &Stat) -> Attr {
        let mut stat = *stat;
        let ino = self.ino(stat.st_ino);
        // An upload that ends just now must not make it look removed.
        stat.st_nlink = self.links(&stat).max(named.into());
        if ino == ROOT {
            // Our private directory is not shown, so it is not counted either.
            stat.st_nlink = stat.st_nlink.saturating_sub(1).max(2);
        }
        stat.st_uid = self.options.uid.unwrap_or(stat.st_uid);
        stat.st_gid = self.options.gid.unwrap_or(stat.st_gid);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            stat.st_mode &= !(self.options.umask.unwrap_or(0) & 0o777);
        }
        Attr { ino, stat }
    }

    /// How many hard links a file has, without those in our journal, which are nobody's business.
    pub(super) fn links(&self, stat: &Stat) -> u64 {
        let ours = u64::from(self.store.our_links(stat.st_ino));
        stat.st_nlink.saturating_sub(ours)
    }

    /// The mount's number of a file of the backing directory.
    pub(super) fn ino(&self, backing: u64) -> u64 {
        if backing == self.root_ino {
            ROOT
        } else {
            backing
        }
    }

    /// Whether a directory may have changed without the kernel's doing.
    pub(super) fn dir_of(&self, tree: &Tree, ino: u64) -> Result<Dir, Errno> {
        tree.get(ino).map(|node| node.dir()).ok_or(Errno::STALE)
    }
}
