//! Making, moving and removing names.
//!
//! Where entries are concerned, some moves would let their content be changed behind their name: an entry
//! moved or linked to a scratch name, a file with another hard link moved onto an entry, a prefix directory
//! moved as a whole. Those answer EXDEV, as between two file systems; mv(1) then copies.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};

use super::attr::Found;
use super::entries::Arrival;
use super::lock::is_lock;
use super::reach::Spot;
use super::tree::Tree;
use super::{Caller, Errno, Fs, name_in};
use crate::name::{Name, RootFile};
use crate::stats::event::{Event, What};
use crate::store::evict::{Job, Room};
use crate::store::scan::content_len;

impl Fs {
    /// Makes a file, fifo, socket or device.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Found, Errno> {
        self.with_room(&[parent], || {
            self.try_mknod(caller, parent, name, mode, rdev)
        })
    }

    fn try_mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Found, Errno> {
        let kind = self.name(parent, name)?;
        self.may_change(&kind)?;
        let mut tree = self.tree_mut();
        let (root, file_type) = (self.store.root(), FileType::from_raw_mode(mode));
        if is_lock(&kind) {
            let regular = file_type == FileType::RegularFile;
            let made = regular.then(|| self.make_lock(&mut tree, caller, mode));
            return Ok(made.ok_or(Errno::PERM)??.0);
        }
        let spot = self.spot_in(&tree, parent, name)?;
        let making = if file_type == FileType::RegularFile {
            self.making(&kind)?
        } else {
            None
        };
        let mode_bits = Mode::from(mode & 0o7777);
        rustix::fs::mknodat(spot.at(root), &spot.path, file_type, mode_bits, rdev.into())
            .inspect_err(|_| self.not_made(&tree, &kind))?;
        self.own(&tree, caller, parent, &spot, mode)?;
        let stat = spot.stat(root)?;
        let found = self.remember(&mut tree, parent, name, &kind, &stat);
        if let (Some(node), Some(_)) = (tree.get_mut(stat.st_ino), making) {
            node.unsealed = making;
        }
        Ok(found)
    }

    /// Makes a symlink. On an entry's name that is a push.
    pub fn symlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Found, Errno> {
        self.with_room(&[parent], || self.try_symlink(caller, parent, name, target))
    }

    fn try_symlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Found, Errno> {
        let kind = self.name(parent, name)?;
        self.may_change(&kind)?;
        if is_lock(&kind) {
            return Err(Errno::PERM);
        }
        let mut tree = self.tree_mut();
        let spot = self.spot_in(&tree, parent, name)?;
        let root = self.store.root();
        rustix::fs::symlinkat(target, spot.at(root), &spot.path)?;
        self.own(&tree, caller, parent, &spot, 0)?;
        let stat = spot.stat(root)?;
        if let Name::Entry(place) = &kind
            && let Err(e) = self.commit_new(place, &stat)
        {
            log::warn!("cannot push {}, it stays here only: {e}", place.sig);
        }
        Ok(self.remember(&mut tree, parent, name, &kind, &stat))
    }

    /// The target of a symlink.
    pub fn readlink(&self, ino: u64) -> Result<OsString, Errno> {
        let tree = self.tree();
        let spot = self.spot(&tree, ino)?;
        let root = self.store.root();
        let named = spot.flags.contains(AtFlags::SYMLINK_NOFOLLOW);
        let target = if named {
            rustix::fs::readlinkat(spot.at(root), &spot.path, Vec::new())?
        } else {
            rustix::fs::readlinkat(spot.at(root), "", Vec::new())?
        };
        if let Some(place) = self.entry_of(&tree, ino) {
            self.was_used(&place, target.to_bytes().len() as u64);
        }
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Removes a name of a file.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty())
    }

    /// Removes a name. Removing an entry removes it here; the remote still has it, and so does the journal.
    pub(super) fn remove(&self, parent: u64, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
        let kind = self.name(parent, name)?;
        self.may_change(&kind)?;
        let mut tree = self.tree_mut();
        if is_lock(&kind) {
            return self.remove_lock(&mut tree);
        }
        let spot = self.spot_in(&tree, parent, name)?;
        let root = self.store.root();
        let stat = spot.stat(root)?;
        let last = self.keep_last(&tree, &spot, &stat);
        rustix::fs::unlinkat(spot.at(root), &spot.path, flags)?;
        self.name_gone(&mut tree, (parent, name), &kind, &stat, last);
        if let Name::Entry(place) = &kind {
            self.stats.note(&Event::new(What::Unlinked, &place.sig));
        }
        Ok(())
    }

    /// Adds a name to a file. Onto an entry's name a copy is made: nobody can change an entry through another name
    /// of its file, and what is done to one entry (a chmod, an upload) is done to no other.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Found, Errno> {
        let kind = self.name(parent, name)?;
        self.may_change(&kind)?;
        if let Name::Entry(_) = kind {
            self.let_writers_close(ino);
        }
        if is_lock(&kind) {
            return Err(Errno::XDEV);
        }
        let mut tree = self.tree_mut();
        let node = tree.get(ino);
        let unfinished = node.is_some_and(|n| n.writers > 0 || n.unsealed.is_some());
        let from_entry = self.entry_of(&tree, ino).is_some()
            || node.is_some_and(|n| n.was_entry && n.known_names() == 0);
        let spot = self.spot(&tree, ino)?;
        match (&kind, from_entry) {
            // Half of it would be pushed.
            (Name::Entry(_), _) if unfinished => return Err(Errno::XDEV),
            (Name::Entry(place), _) => {
                let source = self.open_source(&spot)?;
                drop(tree);
                self.copy_into_place(source, place)?;
                return self.lookup_again(parent, name);
            }
            (_, true) => return Err(Errno::XDEV),
            (_, false) => {}
        }
        let to = self.spot_in(&tree, parent, name)?;
        let root = self.store.root();
        let orphan = !spot.flags.contains(AtFlags::SYMLINK_NOFOLLOW);
        let flags = if orphan {
            AtFlags::SYMLINK_FOLLOW
        } else {
            AtFlags::empty()
        };
        rustix::fs::linkat(spot.at(root), &spot.path, to.at(root), &to.path, flags)?;
        let stat = to.stat(root)?;
        Ok(self.remember(&mut tree, parent, name, &kind, &stat))
    }

    /// Does `job`, which is to be that rename, once there is room for what it brings, or if there will be none.
    pub fn when_room_for_rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), job: Job) {
        let len = || -> Result<Option<u64>, Errno> {
            let Name::Entry(_) = self.name(to.0, to.1)? else {
                return Ok(None);
            };
            let tree = self.tree();
            let spot = self.spot_in(&tree, from.0, from.1)?;
            Ok(content_len(&spot.stat(self.store.root())?))
        };
        match len() {
            Ok(Some(len)) => {
                let dirs = self.prefixes(&[from.0, to.0]);
                self.store.when_room(len, dirs, job);
            }
            // It brings nothing, or says itself what is wrong.
            Ok(None) | Err(_) => job(),
        }
    }

    /// Moves a name. What arrives on an entry's name is pushed; the number of that upload.
    pub fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: u32,
    ) -> Result<Option<u64>, Errno> {
        self.with_room(&[from.0, to.0], || self.try_rename(from, to, flags))
    }

    fn try_rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: u32,
    ) -> Result<Option<u64>, Errno> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL);
        }
        let _room = self.await_arrivals(from, to, flags)?;
        let mut tree = self.tree_mut();
        let (from_kind, to_kind) = (name_in(&tree, from.0, from.1)?, name_in(&tree, to.0, to.1)?);
        self.may_change(&from_kind)?;
        self.may_change(&to_kind)?;
        if is_lock(&from_kind) || is_lock(&to_kind) {
            return Err(Errno::XDEV);
        }
        let (from_spot, to_spot) = (
            self.spot_in(&tree, from.0, from.1)?,
            self.spot_in(&tree, to.0, to.1)?,
        );
        let root = self.store.root();
        let from_stat = from_spot.stat(root)?;
        let to_stat = to_spot.stat(root).ok();
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        self.may_move(&from_kind, &to_kind, &from_stat)?;
        let back = if exchange { to_stat } else { None };
        if let Some(stat) = &back {
            self.may_move(&to_kind, &from_kind, stat)?;
        }

        let last = to_stat
            .as_ref()
            .filter(|_| !exchange)
            .and_then(|s| self.keep_last(&tree, &to_spot, s));
        let arrival = self.arrive(&tree, &from_spot, &from_kind, &to_kind, &from_stat)?;
        let arrival_back = match &back {
            Some(stat) => self.arrive(&tree, &to_spot, &to_kind, &from_kind, stat),
            None => Ok(Arrival::default()),
        }
        .inspect_err(|_| self.turn_back(&tree, &arrival))?;
        let (from_at, to_at) = (from_spot.at(root), to_spot.at(root));
        rustix::fs::renameat_with(from_at, &from_spot.path, to_at, &to_spot.path, flags)
            .inspect_err(|_| {
                self.turn_back(&tree, &arrival);
                self.turn_back(&tree, &arrival_back);
            })?;

        if to_stat
            .as_ref()
            .is_some_and(|s| s.st_ino == from_stat.st_ino)
        {
            // Two names of one file: rename(2) does nothing then.
            self.turn_back(&tree, &arrival);
            self.turn_back(&tree, &arrival_back);
            return Ok(None);
        }
        match (&to_stat, exchange) {
            (Some(stat), true) => tree.moved(stat.st_ino, to, from, from_kind.as_dir()),
            (Some(stat), false) => self.name_gone(&mut tree, to, &to_kind, stat, last),
            (None, _) => {}
        }
        tree.moved(from_stat.st_ino, from, to, to_kind.as_dir());
        self.left(&mut tree, &from_kind, from_stat.st_ino);
        if let Some(stat) = &back {
            self.left(&mut tree, &to_kind, stat.st_ino);
            self.settle(&mut tree, arrival_back, stat.st_ino);
        }
        let seq = self.settle(&mut tree, arrival, from_stat.st_ino);
        self.root_file_changed(&to_kind);
        Ok(seq)
    }

    /// Lets the writers of what is about to arrive on an entry's name close it, and has room promised for it.
    fn await_arrivals(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
    ) -> Result<Vec<Room<'_>>, Errno> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let mut rooms = Vec::new();
        for (coming, arriving) in [(from, Some(to)), (to, exchange.then_some(from))] {
            let Some(at) = arriving else { continue };
            let kind = self.name(at.0, at.1)?;
            self.may_change(&kind)?;
            if let Name::Entry(_) = kind {
                let tree = self.tree();
                let spot = self.spot_in(&tree, coming.0, coming.1)?;
                let stat = spot.stat(self.store.root())?;
                drop(tree);
                self.let_writers_close(stat.st_ino);
                let Some(len) = content_len(&stat) else {
                    continue;
                };
                let dirs = self.prefixes(&[from.0, to.0]);
                rooms.push(self.store.make_room(len, &dirs).ok_or(Errno::NOSPC)?);
            }
        }
        Ok(rooms)
    }

    /// Gives what was just made to whoever asked for it, as the kernel would have.
    pub(super) fn own(
        &self,
        tree: &Tree,
        caller: Caller,
        parent: u64,
        spot: &Spot,
        mode: u32,
    ) -> Result<(), Errno> {
        if !self.store.privileged() || (caller.uid, caller.gid) == (0, 0) {
            return Ok(());
        }
        let root = self.store.root();
        let in_setgid_dir = self.spot(tree, parent)?.stat(root)?.st_mode & 0o2000 != 0;
        let gid = (!in_setgid_dir).then(|| Gid::from_raw(caller.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(
            spot.at(root),
            &spot.path,
            Some(Uid::from_raw(caller.uid)),
            gid,
            flags,
        )?;
        if mode & 0o6000 != 0 {
            // chown(2) cleared them.
            let mode = Mode::from(mode & 0o7777);
            rustix::fs::chmodat(spot.at(root), &spot.path, mode, AtFlags::empty())?;
        }
        Ok(())
    }

    /// If the kernel knows the file and this is the last of its names: a descriptor to reach it with later.
    pub(super) fn keep_last(&self, tree: &Tree, spot: &Spot, stat: &Stat) -> Option<OwnedFd> {
        let node = tree.get(stat.st_ino)?;
        if node.known_names() > 1 {
            return None;
        }
        spot.open(self.store.root(), OFlags::PATH).ok()
    }

    /// After a name is gone from the disk.
    fn name_gone(
        &self,
        tree: &mut Tree,
        name: (u64, &OsStr),
        kind: &Name,
        stat: &Stat,
        last: Option<OwnedFd>,
    ) {
        tree.name_gone(stat.st_ino, name.0, name.1, last);
        self.left(tree, kind, stat.st_ino);
        self.root_file_changed(kind);
    }

    fn root_file_changed(&self, kind: &Name) {
        if *kind == Name::RootFile(RootFile::Config) {
            self.store.reload_config();
        }
    }

    /// Whether a file may move from one name to another without becoming changeable behind an entry.
    fn may_move(&self, from: &Name, to: &Name, stat: &Stat) -> Result<(), Errno> {
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        match (from, to) {
            (Name::Entry(_), Name::Entry(_)) => Ok(()),
            (Name::Entry(_), _) if regular => Err(Errno::XDEV),
            (_, Name::Entry(_)) if regular && self.links(stat) > 1 => Err(Errno::XDEV),
            (Name::PrefixDir(_), _) | (_, Name::PrefixDir(_)) => Err(Errno::XDEV),
            _ => Ok(()),
        }
    }
}
