//! What happens to entries beyond being files: they are committed when they come to stand in their place,
//! and evicted.
//!
//! A commit puts the file into the upload journal **before** the operation that the caller waits for, so that
//! from its return on the object cannot be lost; a failed operation takes it back.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};

use rustix::fs::{AtFlags, FileType, OFlags, Stat};

use super::reach::Spot;
use super::tree::Tree;
use super::{Errno, Fs, errno};
use crate::name::{Name, Place};
use crate::signature::{Meta, Signature};
use crate::stats::event::{Event, What};
use crate::store::scan::content_len;
use crate::store::{Fresh, Origin};
use crate::upload::{Staged, Withdrawn};

/// A file on its way to an entry's name.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    place: Option<Place>,
    len: u64,
    /// Its mark: it is not on the disk yet.
    fresh: Option<Fresh>,
    staged: Option<Staged>,
    /// Somebody may still write to it: it is committed when they have closed it.
    unfinished: bool,
}

/// What an entry is copied from.
pub(super) struct Source {
    meta: Meta,
    len: u64,
    content: Box<dyn Read>,
}

/// What was done to invalidate a signature here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidated {
    /// Entries that were removed: one a prefix directory.
    pub removed: u64,
    /// What became of its uploads.
    pub uploads: Withdrawn,
    /// Why an entry could not be removed.
    pub trouble: Option<Errno>,
}

impl Fs {
    /// Prepares for a file to arrive on the name `to`.
    pub(super) fn arrive(
        &self,
        tree: &Tree,
        spot: &Spot,
        from: &Name,
        to: &Name,
        stat: &Stat,
    ) -> Result<Arrival, Errno> {
        let Name::Entry(place) = to else {
            return Ok(Arrival::default());
        };
        let Some(len) = content_len(stat) else {
            return Ok(Arrival::default());
        };
        let mut arrival = Arrival {
            place: Some(*place),
            len,
            ..Arrival::default()
        };
        if tree.get(stat.st_ino).is_some_and(|node| node.writers > 0) {
            self.store.mark_writing(place).map_err(errno)?;
            arrival.unfinished = true;
            return Ok(arrival);
        }
        // The mark first: a power cut must not leave a name in the journal either that nobody suspects.
        let fresh = self.mark_new(spot, place, stat).map_err(errno)?;
        if !is_same_entry(from, place) {
            arrival.staged = self
                .stage(spot, place, stat)
                .inspect_err(|_| self.store.not_fresh(&fresh))?;
        }
        arrival.fresh = Some(fresh);
        Ok(arrival)
    }

    /// It did not come after all.
    pub(super) fn turn_back(&self, tree: &Tree, arrival: &Arrival) {
        if let Some(staged) = &arrival.staged {
            self.uploads.cancel(staged);
        }
        if let Some(fresh) = &arrival.fresh {
            self.store.not_fresh(fresh);
        }
        if let (true, Some(place)) = (arrival.unfinished, &arrival.place) {
            self.unmark(tree, place);
        }
    }

    /// Takes a mark back, unless it is also that of a file that is being written there.
    pub(super) fn unmark(&self, tree: &Tree, place: &Place) {
        let there = self.place_spot(place).stat(self.store.root());
        let node = there.ok().and_then(|stat| tree.get(stat.st_ino));
        if node.is_none_or(|node| node.unsealed != Some(*place)) {
            self.store.unmark_writing(place);
        }
    }

    /// It stands in its place; the number of its upload.
    pub(super) fn settle(&self, tree: &mut Tree, arrival: Arrival, ino: u64) -> Option<u64> {
        let place = arrival.place?;
        self.store.added(&place, arrival.len);
        if let Some(fresh) = arrival.fresh {
            self.store.settled(fresh);
        }
        self.store.has_name(ino);
        if arrival.unfinished {
            if let Some(node) = tree.get_mut(ino) {
                node.unsealed = Some(place);
            }
            // What it replaced may have been marked too, and took the mark with it.
            if let Err(e) = self.store.mark_writing(&place) {
                log::warn!("a crash would leave {} half written: {e}", place.sig);
            }
            return None;
        }
        self.stats
            .note(&Event::new(What::Pushed, &place.sig).bytes(arrival.len));
        self.fetch.forget_miss(&place.sig);
        arrival.staged.map(|staged| self.uploads.accept(staged))
    }

    /// A name that may have been an entry's is gone from its place.
    pub(super) fn left(&self, tree: &mut Tree, kind: &Name, ino: u64) {
        let Name::Entry(place) = kind else { return };
        self.store.removed(place);
        self.store.lost_name(ino);
        let Some(node) = tree.get_mut(ino) else {
            return;
        };
        match node.unsealed.take_if(|at| at == place) {
            Some(_) => self.store.unmark_writing(place),
            None => node.was_entry = true,
        }
    }

    /// An entry that was written in place is closed: from now on it is whole.
    pub(super) fn seal(&self, ino: u64, place: &Place) {
        match self.place_spot(place).stat(self.store.root()) {
            Ok(stat) if stat.st_ino == ino => {
                if let Err(e) = self.commit_new(place, &stat) {
                    // Its other mark stays: the next start removes it.
                    log::warn!("cannot mark {} as new, it will not last: {e}", place.sig);
                    return;
                }
            }
            _ => log::debug!("{ino} is not at {} any more", place.sig),
        }
        self.store.unmark_writing(place);
    }

    /// Commits a file that was made in its place and is whole now.
    pub(super) fn commit_new(&self, place: &Place, stat: &Stat) -> io::Result<()> {
        let fresh = self.mark_new(&self.place_spot(place), place, stat)?;
        self.commit_in_place(place, stat);
        self.store.settled(fresh);
        Ok(())
    }

    fn mark_new(&self, spot: &Spot, place: &Place, stat: &Stat) -> io::Result<Fresh> {
        let (store, at) = (&self.store, spot.at(self.store.root()));
        let origin = if self.uploads_pushes() {
            store.origin_of(at, &spot.path, place, stat)?
        } else {
            Origin::Fetched(None)
        };
        store.mark_fresh(place, stat.st_ino, origin)
    }

    fn uploads_pushes(&self) -> bool {
        self.modes.pushes() && !self.is_read_only()
    }

    /// Commits a whole file that stands in its place already, and is on the disk or marked as not being there yet.
    pub(super) fn commit_in_place(&self, place: &Place, stat: &Stat) {
        let Some(len) = content_len(stat) else { return };
        self.store.added(place, len);
        self.stats
            .note(&Event::new(What::Pushed, &place.sig).bytes(len));
        self.fetch.forget_miss(&place.sig);
        match self.stage(&self.place_spot(place), place, stat) {
            Ok(staged) => drop(staged.map(|s| self.uploads.accept(s))),
            Err(e) => log::warn!(
                "cannot keep {} for its upload, it stays here only: {e}",
                place.sig
            ),
        }
    }

    /// The permission bits of an entry changed. Added write bits are no news: SCons before 4.2 adds them
    /// after every push.
    pub(super) fn entry_mode_changed(
        &self,
        tree: &Tree,
        ino: u64,
        place: &Place,
        before: u32,
        after: u32,
    ) {
        const WRITE: u32 = 0o222;
        let only_added_write = before & !WRITE == after & !WRITE && before & !after == 0;
        let unsealed = tree.get(ino).is_some_and(|node| node.unsealed.is_some());
        if only_added_write || unsealed || self.is_read_only() {
            return;
        }
        if let Ok(stat) = self.place_spot(place).stat(self.store.root()) {
            self.commit_in_place(place, &stat);
        }
    }

    /// Opens what is to be copied. Under the lock of the tree: without it, somebody could put a symlink into
    /// the path that leads us out of the backing directory.
    pub(super) fn open_source(&self, spot: &Spot) -> Result<Source, Errno> {
        let root = self.store.root();
        let stat = spot.stat(root)?;
        let len = content_len(&stat).ok_or(Errno::XDEV)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlinkat(spot.at(root), &spot.path, Vec::new())?;
            return Ok(Source {
                meta: Meta::Symlink,
                len,
                content: Box::new(io::Cursor::new(target.into_bytes())),
            });
        }
        let file = std::fs::File::from(spot.open(root, OFlags::RDONLY)?);
        Ok(Source {
            meta: Meta::file(stat.st_mode),
            len,
            content: Box::new(file),
        })
    }

    /// Copies a file to an entry's place and pushes it.
    pub(super) fn copy_into_place(&self, mut from: Source, place: &Place) -> Result<(), Errno> {
        let mut incoming = self
            .store
            .begin_write(Some(from.len))
            .map_err(errno)?
            .ok_or(Errno::NOSPC)?;
        copy(&mut from.content, &mut incoming).map_err(errno)?;
        match incoming.commit(place, from.meta).map_err(errno)? {
            crate::store::Committed::New => {}
            crate::store::Committed::Existed => return Err(Errno::EXIST),
        }
        // As everywhere: what becomes of an entry is decided one after the other.
        let _tree = self.tree_mut();
        let stat = self.place_spot(place).stat(self.store.root())?;
        self.commit_new(place, &stat).map_err(errno)
    }

    /// Removes the entries of a signature, whoever uses them, and keeps what is under way from bringing them back:
    /// fetches, and uploads with `pushed_too`. Without it, what was pushed and is still pending stays.
    ///
    /// The kernel is told afterwards, so that it cannot have been told of an entry that is gone. That may wait for
    /// lookups in the same directory: never call this from an operation of the kernel.
    pub fn invalidate(&self, sig: &Signature, pushed_too: bool) -> Invalidated {
        self.fetch.revoke(sig);
        let mut done = Invalidated::default();
        let mut gone = Vec::new();
        let mut tree = self.tree_mut();
        for digits in 1..=4 {
            let place = Place { sig: *sig, digits };
            match self.take_away(&mut tree, &place, pushed_too) {
                Ok(dir) => gone.push(dir),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => done.trouble = Some(e),
            }
        }
        if pushed_too {
            // With the tree still locked, so that no push comes between and loses its upload.
            done.uploads = self.uploads.withdraw(sig);
        }
        drop(tree);
        done.removed = gone.len() as u64;
        if let Some(kernel) = self.kernel.get() {
            for dir in gone {
                kernel.forget_name(dir, OsStr::new(sig.as_str()));
            }
        }
        done
    }

    /// The kernel may believe that entries are absent which are not known to be so any more.
    pub fn forget_absent(&self, absent: &[Signature]) {
        let Some(kernel) = self.kernel.get() else {
            return;
        };
        let digits = self.store.prefix_digits();
        let mut dirs = HashMap::new();
        for sig in absent {
            let dir = Place { sig: *sig, digits }.dir();
            let found = dirs.entry(dir).or_insert_with_key(|dir| {
                let found = rustix::fs::statat(self.store.root(), dir, AtFlags::SYMLINK_NOFOLLOW);
                found.ok().map(|stat| stat.st_ino)
            });
            if let Some(dir) = *found {
                kernel.forget_name(dir, OsStr::new(sig.as_str()));
            }
        }
    }

    /// Removes the entry at `place`, if there is one; the number of the directory that it was in.
    fn take_away(&self, tree: &mut Tree, place: &Place, pushed_too: bool) -> Result<u64, Errno> {
        let root = self.store.root();
        let spot = self.place_spot(place);
        let dir = rustix::fs::statat(root, place.dir(), AtFlags::SYMLINK_NOFOLLOW)?;
        let stat = spot.stat(root)?;
        let is_new = self.store.our_links(stat.st_ino) > 0
            || tree.get(stat.st_ino).is_some_and(|n| n.unsealed.is_some());
        if content_len(&stat).is_none() || is_new && !pushed_too {
            return Err(Errno::NOENT);
        }
        self.take_name(tree, place, dir.st_ino, &stat)?;
        Ok(dir.st_ino)
    }

    /// Removes the file `stat` from its place in the directory `dir`, whoever uses it. The kernel is still to be told.
    fn take_name(
        &self,
        tree: &mut Tree,
        place: &Place,
        dir: u64,
        stat: &Stat,
    ) -> Result<(), Errno> {
        let spot = self.place_spot(place);
        let last = self.keep_last(tree, &spot, stat);
        rustix::fs::unlinkat(self.store.root(), &spot.path, AtFlags::empty())?;
        tree.name_gone(stat.st_ino, dir, OsStr::new(place.sig.as_str()), last);
        self.left(tree, &Name::Entry(*place), stat.st_ino);
        tree.epoch += 1;
        Ok(())
    }

    /// Calls `waiter` once that upload was tried.
    pub fn when_tried(&self, upload: u64, waiter: crate::upload::Waiter) {
        self.uploads.when_tried(upload, waiter);
    }

    /// Links a file into the upload journal, if this mount pushes.
    fn stage(&self, spot: &Spot, place: &Place, stat: &Stat) -> Result<Option<Staged>, Errno> {
        if !self.uploads_pushes() {
            return Ok(None);
        }
        let at = spot.at(self.store.root());
        self.uploads
            .stage(at, &spot.path, place, stat.st_mode & 0o777)
            .map(Some)
    }

    fn place_spot(&self, place: &Place) -> Spot {
        Spot::below_root(place.path().into())
    }

    /// The bytes of the file `ino`, which was put at `place`, did not get to the disk, and who reads it later may read
    /// others: neither its entry nor its upload are believed any more.
    pub fn lose(&self, place: &Place, ino: u64) {
        self.uploads.lost(place, ino);
        let root = self.store.root();
        let mut tree = self.tree_mut();
        let found = || {
            let dir = rustix::fs::statat(root, place.dir(), AtFlags::SYMLINK_NOFOLLOW)?;
            Ok::<_, Errno>((dir.st_ino, self.place_spot(place).stat(root)?))
        };
        let Some((dir, stat)) = found().ok().filter(|(_, stat)| stat.st_ino == ino) else {
            return;
        };
        if let Err(e) = self.take_name(&mut tree, place, dir, &stat) {
            log::error!("cannot remove {}: {e}", place.sig);
            return;
        }
        drop(tree);
        if let Some(kernel) = self.kernel.get() {
            kernel.forget_name(dir, OsStr::new(place.sig.as_str()));
        }
    }

    /// Removes an entry from the disk to make room, unless it is in use. The kernel hears of it first, so that a name
    /// that somebody just saw is still there when they open it. True when it is gone.
    pub fn evict(&self, place: &Place) -> bool {
        let root = self.store.root();
        let spot = self.place_spot(place);
        let Ok(dir) = rustix::fs::statat(root, place.dir(), AtFlags::SYMLINK_NOFOLLOW) else {
            return true;
        };
        let Ok(before) = spot.stat(root) else {
            return true;
        };
        let seen = |tree: &Tree| tree.get(before.st_ino).map(|node| node.seen());
        let seen_before = seen(&self.tree());
        let name = place.sig.to_string();
        if let (Some(_), Some(kernel)) = (seen_before, self.kernel.get()) {
            // The kernel holds the directory while a lookup in it waits for the remote: we would wait as long, nothing
            // else would be evicted, and every later lookup in there would queue up behind us.
            if self.fetch.is_asked_in(&place.dir()) {
                return false;
            }
            // The same is true of those who wait for the room that this makes.
            let Some(_at_work) = self.store.begin_work_in(&place.dir()) else {
                return false;
            };
            kernel.forget_name(dir.st_ino, OsStr::new(&name));
        }
        let mut tree = self.tree_mut();
        let node = tree.get(before.st_ino);
        let in_use = node.is_some_and(|node| node.opens > 0 || node.unsealed.is_some());
        let seen_again = seen(&tree).is_some_and(|now| Some(now) != seen_before);
        if in_use || seen_again || self.store.pins(place) > 0 {
            return false;
        }
        let last = self.keep_last(&tree, &spot, &before);
        match rustix::fs::unlinkat(root, &spot.path, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return true,
            Err(e) => {
                self.store.note("cannot evict", e);
                log::debug!("cannot evict {}: {e}", place.sig);
                return false;
            }
        }
        tree.name_gone(before.st_ino, dir.st_ino, OsStr::new(&name), last);
        tree.epoch += 1;
        // It may be pinned as what stood in another place before.
        self.store.lost_name(before.st_ino);
        true
    }
}

/// Whether what moves to `place` was that entry already (under a prefix of another length).
fn is_same_entry(from: &Name, place: &Place) -> bool {
    matches!(from, Name::Entry(before) if before.sig == place.sig)
}

/// Copies all of `from`.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
