//! The one way for bytes from elsewhere into the store: reserve, write to `tmp/`, commit.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Origin, Store, layout};
use crate::name::Place;
use crate::signature::Meta;

/// Room is asked for in steps of this many bytes when the length is not known in advance.
const STEP: u64 = 1 << 20;

/// What a commit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The entry stands there now.
    New,
    /// One stood there already; it stays.
    Existed,
}

/// An object on its way in. Dropped without a commit, it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming<'a> {
    store: &'a Store,
    file: File,
    name: String,
    reserved: Vec<u64>,
    written: u64,
    hash: Option<[u8; 32]>,
}

impl Store {
    /// Begins to take in an object of `len` bytes, if that is known. `None` when there is no room.
    pub fn begin_write(&self, len: Option<u64>) -> io::Result<Option<Incoming<'_>>> {
        let promised = len.unwrap_or(STEP);
        if !self.reserve(promised) {
            return Ok(None);
        }
        let name = {
            let mut state = self.state();
            state.next_tmp += 1;
            format!("in-{}", state.next_tmp)
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.tmp, &name, flags, Mode::from(0o600)) {
            Ok(fd) => Ok(Some(Incoming {
                store: self,
                file: File::from(fd),
                name,
                reserved: vec![promised],
                written: 0,
                hash: None,
            })),
            Err(e) => {
                self.note("cannot make a file for what comes in", e);
                self.unreserve(promised);
                Err(e.into())
            }
        }
    }
}

impl Incoming<'_> {
    /// Says what the content hashes to (BLAKE3), for `verify`.
    pub fn set_hash(&mut self, hash: Option<[u8; 32]>) {
        self.hash = hash;
    }

    /// Puts the object, which is whole, at `place`, unless an entry stands there already.
    pub fn commit(self, place: &Place, meta: Meta) -> io::Result<Committed> {
        match meta {
            Meta::File { mode } => self.finish_file(mode)?,
            Meta::Symlink => self.become_symlink()?,
        }
        let stat = rustix::fs::statat(&self.store.tmp, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let origin = Origin::Fetched(self.hash);
        let fresh = self.store.mark_fresh(place, stat.st_ino, origin)?;
        let committed = self
            .move_into_place(place)
            .inspect_err(|_| self.store.not_fresh(&fresh))?;
        if committed == Committed::Existed {
            self.store.not_fresh(&fresh);
        } else {
            self.store.settled(fresh);
            let now = self.store.now_ms();
            let mut state = self.store.state();
            state.index.insert(place, self.written, now);
            state.index.touch(place, now);
        }
        Ok(committed)
    }

    fn finish_file(&self, mode: u32) -> io::Result<()> {
        if self.store.privileged {
            layout::give(&self.file, &rustix::fs::fstat(&self.store.root)?)?;
        }
        Ok(rustix::fs::fchmod(&self.file, Mode::from(mode))?)
    }

    /// Replaces the temporary file by a symlink whose target it holds.
    fn become_symlink(&self) -> io::Result<()> {
        let mut target = Vec::new();
        let mut content = self.file.try_clone()?;
        io::Seek::rewind(&mut content)?;
        content.read_to_end(&mut target)?;
        let tmp = &self.store.tmp;
        rustix::fs::unlinkat(tmp, &self.name, AtFlags::empty())?;
        rustix::fs::symlinkat(target, tmp, &self.name)?;
        if self.store.privileged {
            let like = rustix::fs::fstat(&self.store.root)?;
            let (owner, group) = (
                rustix::fs::Uid::from_raw(like.st_uid),
                rustix::fs::Gid::from_raw(like.st_gid),
            );
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(tmp, &self.name, Some(owner), Some(group), flags)?;
        }
        Ok(())
    }

    fn move_into_place(&self, place: &Place) -> io::Result<Committed> {
        let mut result = self.rename_to(place);
        if result == Err(Errno::NOENT) {
            let made = self.store.ensure_prefix(&place.dir());
            made.inspect_err(|e| self.store.note_io("cannot make a prefix directory", e))?;
            result = self.rename_to(place);
        }
        match result {
            Ok(()) => Ok(Committed::New),
            Err(Errno::EXIST) => Ok(Committed::Existed),
            Err(e) => {
                self.store.note("cannot give a name to what came in", e);
                Err(e.into())
            }
        }
    }

    fn rename_to(&self, place: &Place) -> Result<(), Errno> {
        let (tmp, root, path) = (&self.store.tmp, &self.store.root, place.path());
        match rustix::fs::renameat_with(tmp, &self.name, root, &path, RenameFlags::NOREPLACE) {
            // The file system has no such rename: a link does not replace either, and the temporary
            // name goes when `self` is dropped.
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::linkat(tmp, &self.name, root, &path, AtFlags::empty())
            }
            result => result,
        }
    }
}

impl Write for Incoming<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let promised: u64 = self.reserved.iter().sum();
        if self.written + buf.len() as u64 > promised {
            let more = STEP.max(buf.len() as u64);
            if !self.store.reserve(more) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.reserved.push(more);
        }
        let written = self.file.write(buf);
        let n = written.inspect_err(|e| self.store.note_io("cannot write what comes in", e))?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        for promised in &self.reserved {
            self.store.unreserve(*promised);
        }
        self.store.discard_tmp(&self.name);
    }
}
