//! The backing disk: a plain CacheDir with our private directory beside it.
//!
//! ```text
//! BACKING/config, CACHEDIR.TAG     as SCons writes them
//! BACKING/XX/SIG                   entries, plain files and symlinks
//! BACKING/.cachedirfs/lock         held (flock) by the one process that uses this directory
//!                    /version      of the layout of this private directory
//!                    /tmp/         objects on their way in; emptied at every start
//!                    /pending/     entries that are still to be uploaded (see `upload::journal`)
//!                    /writing/     marks of entries that are being written in place
//!                    /totals       bytes that entries take, as last written down
//!                    /fresh/       marks of entries that are not synced yet
//!                    /boot         which life of the kernel made them
//!                    /sums/        hashes of what is on the disk
//!                    /announced    when the remotes heard of entries last
//!                    /quarantine/  what was found to be wrong
//! ```
//!
//! Bytes that come from elsewhere enter in one way: [`Store::begin_write`] reserves room, the
//! [`Incoming`] takes the bytes in `tmp/`, and its commit links the whole file into place without
//! replacing anything. This module knows neither network, remotes, uploads nor the kernel.
//!
//! Locks, in this order: `health`, `state`. Nothing outside of this module is called while one is held.

pub mod announced;
pub mod evict;
pub mod fresh;
pub mod health;
pub mod incoming;
pub mod index;
mod keep;
pub mod layout;
pub mod scan;
mod spare;
pub mod sums;
pub mod sync;
pub mod verify;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Mode};

use crate::clock::Clock;
use crate::name::Place;
use crate::stats::Stats;
pub use fresh::{Fresh, Origin};
use health::Health;
pub use incoming::{Committed, Incoming};
use index::{Index, footprint};
use spare::Spare;

/// Why a backing directory cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it.
    #[error(
        "the backing directory {path} is used by pid {pid}; umount it or choose another with backing="
    )]
    Busy {
        /// The directory.
        path: String,
        /// Who holds it, as its lock file says.
        pid: String,
    },
    /// It was written by a version that we do not know.
    #[error(
        "the backing directory {path} has layout version {found}, this program knows {known}; choose another with backing="
    )]
    Version {
        /// The directory.
        path: String,
        /// What its version file says.
        found: String,
        /// What we know.
        known: &'static str,
    },
    /// Something on the disk failed.
    #[error("cannot {what} {path}: {source}; {hint}")]
    Disk {
        /// The operation.
        what: &'static str,
        /// On what.
        path: String,
        /// The cause.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

/// The bounds of the backing directory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes that entries may take.
    pub size: u64,
    /// Bytes that are to stay free on the file system.
    pub min_free: u64,
}

/// The bounds of the moment.
#[derive(Debug)]
struct Bounds {
    size: AtomicU64,
    min_free: AtomicU64,
}

impl Bounds {
    fn new(limits: Limits) -> Self {
        Self {
            size: AtomicU64::new(limits.size),
            min_free: AtomicU64::new(limits.min_free),
        }
    }

    fn get(&self) -> Limits {
        Limits {
            size: self.size.load(Ordering::Relaxed),
            min_free: self.min_free.load(Ordering::Relaxed),
        }
    }

    fn set(&self, limits: Limits) {
        self.size.store(limits.size, Ordering::Relaxed);
        self.min_free.store(limits.min_free, Ordering::Relaxed);
    }
}

/// The backing directory, held by this process.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
    tmp: OwnedFd,
    pending: OwnedFd,
    writing: OwnedFd,
    fresh: OwnedFd,
    sums: OwnedFd,
    private: OwnedFd,
    lock: File,
    limits: Bounds,
    prefix_digits: AtomicU8,
    privileged: bool,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    state: Mutex<State>,
    /// Signalled when there is more or less room than before, and at the stop.
    changed: Condvar,
    /// Signalled when something is to be synced after nothing was, and at the stop.
    freshened: Condvar,
    scanned: AtomicBool,
    spare: Spare,
    health: Mutex<Health>,
    /// Signalled when the disk is to be probed, and at the stop.
    health_changed: Condvar,
}

/// What the lock protects.
#[derive(Debug, Default)]
struct State {
    index: Index,
    /// Pins by inode: an entry can be moved, removed or have two names while it is pinned.
    pinned_files: HashMap<u64, Pinned>,
    /// Bytes of pinned files that are not an entry's any more. They are on the disk until they are uploaded.
    orphaned: u64,
    reserved: u64,
    next_tmp: u64,
    /// The number of the newest mark in `fresh/`.
    next_mark: u64,
    /// Marks whose files have no name yet.
    arriving: HashSet<u64>,
    /// There may be marks in `fresh/`.
    any_fresh: bool,
    stopped: bool,
    /// Bytes that an earlier run knew of and the scan has not found yet.
    unseen: u64,
    evictor: evict::Evictor,
}

/// A file that is still to be uploaded.
#[derive(Debug)]
struct Pinned {
    links: u32,
    footprint: u64,
    /// No entry's file any more, so that the index does not count it.
    orphan: bool,
}

impl Store {
    /// Locks the backing directory at `path` and makes it ready: a missing one is made, an existing
    /// CacheDir is taken as it is.
    pub fn open(
        path: &Path,
        limits: Limits,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
    ) -> Result<Self, StoreError> {
        let opened = layout::open(path, &*clock)?;
        let spare = Spare::of(&opened.root).map_err(|source| StoreError::Disk {
            what: "read the backing directory",
            path: path.display().to_string(),
            source,
            hint: "choose another with backing=",
        })?;
        let state = State {
            unseen: Self::load_totals(&opened.root),
            next_mark: opened.start.next_mark,
            any_fresh: opened.start.any_fresh,
            ..State::default()
        };
        Ok(Self {
            path: path.to_owned(),
            root: opened.root,
            tmp: opened.tmp,
            pending: opened.pending,
            writing: opened.writing,
            fresh: opened.fresh,
            sums: opened.sums,
            private: opened.private,
            lock: opened.lock,
            limits: Bounds::new(limits),
            prefix_digits: AtomicU8::new(opened.prefix_digits),
            privileged: rustix::process::geteuid().is_root(),
            clock,
            stats,
            state: Mutex::new(state),
            changed: Condvar::new(),
            freshened: Condvar::new(),
            scanned: AtomicBool::new(false),
            spare,
            health: Mutex::default(),
            health_changed: Condvar::new(),
        })
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, to work relative to.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory of entries that are still to be uploaded.
    pub fn pending_dir(&self) -> BorrowedFd<'_> {
        self.pending.as_fd()
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// From now on these hold. What is above them is evicted in the background, and new bytes have to wait for it.
    pub fn set_limits(&self, limits: Limits) {
        // Whoever looks at them before they wait does so under this lock.
        let state = self.state();
        self.limits.set(limits);
        drop(state);
        self.changed.notify_all();
    }

    /// Digits of the prefix directories that SCons uses here, as `config` says.
    pub fn prefix_digits(&self) -> u8 {
        self.prefix_digits.load(Ordering::Relaxed)
    }

    /// Reads `config` again, after somebody wrote it. An unreadable one changes nothing.
    pub fn reload_config(&self) {
        if let Some(digits) = layout::read_prefix_digits(self.root()) {
            self.prefix_digits.store(digits, Ordering::Relaxed);
        }
        self.spare.take_again(self.root());
    }

    /// Whether this process may change owners.
    pub fn privileged(&self) -> bool {
        self.privileged
    }

    /// Makes a prefix directory with the owner, group and mode of the root, so that every user who
    /// may write the one may write the other (SCons issue 2684). One that exists is left alone.
    pub fn ensure_prefix(&self, name: &str) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.root, name, Mode::from(0o700)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let like = rustix::fs::fstat(&self.root)?;
        let dir = layout::open_dir(&self.root, name)?;
        if self.privileged {
            layout::give(&dir, &like)?;
        }
        Ok(rustix::fs::fchmod(&dir, Mode::from(like.st_mode & 0o7777))?)
    }

    /// An entry came to stand at `place` by a local operation.
    pub fn added(&self, place: &Place, len: u64) {
        let now = self.now_ms();
        self.state().index.insert(place, len, now);
        self.changed.notify_all();
    }

    /// The entry at `place` is gone; the bytes that this freed. A fetch may have put a new one there already,
    /// which is counted again: bytes that nobody counts would be over the limit for ever.
    pub fn removed(&self, place: &Place) -> u64 {
        let freed = self.state().index.remove(place).unwrap_or(0);
        if let Ok(stat) = rustix::fs::statat(&self.root, place.path(), AtFlags::SYMLINK_NOFOLLOW)
            && let Some(len) = scan::content_len(&stat)
        {
            let now = self.now_ms();
            self.state().index.insert_found(place, len, now);
        }
        self.changed.notify_all();
        freed
    }

    /// Whether something stands at `place`.
    pub fn has(&self, place: &Place) -> bool {
        rustix::fs::statat(&self.root, place.path(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The length of the entry at `place`, if it is on the disk.
    pub fn len_of(&self, place: &Place) -> Option<u64> {
        let stat = rustix::fs::statat(&self.root, place.path(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_size).ok()
    }

    /// Somebody asked for the entry at `place`.
    pub fn touch(&self, place: &Place) {
        let now = self.now_ms();
        self.state().index.touch(place, now);
    }

    /// Keeps the entry at `place` from eviction: it is still to be uploaded, through one more hard link to the
    /// file `ino` of `len` bytes.
    pub fn pin(&self, place: &Place, ino: u64, len: u64) {
        let mut state = self.state();
        state.index.pin(place);
        let new = Pinned {
            links: 0,
            footprint: footprint(len),
            orphan: false,
        };
        state.pinned_files.entry(ino).or_insert(new).links += 1;
    }

    /// Takes a pin back.
    pub fn unpin(&self, place: &Place, ino: u64) {
        let mut state = self.state();
        state.index.unpin(place);
        if let Some(file) = state.pinned_files.get_mut(&ino) {
            file.links -= 1;
            if file.links == 0 {
                state.set_orphan(ino, false);
                state.pinned_files.remove(&ino);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The file `ino` is not an entry's any more. If it is pinned it stays on the disk, and eviction has to make up for
    /// it.
    pub fn lost_name(&self, ino: u64) {
        self.state().set_orphan(ino, true);
        self.changed.notify_all();
    }

    /// The file `ino` is an entry's.
    pub fn has_name(&self, ino: u64) {
        self.state().set_orphan(ino, false);
    }

    /// Pins on the entry at `place`.
    pub fn pins(&self, place: &Place) -> u32 {
        self.state().index.pins(place)
    }

    /// Hard links to the file `ino` that are ours, wherever its names are by now.
    pub fn our_links(&self, ino: u64) -> u32 {
        let state = self.state();
        state.pinned_files.get(&ino).map_or(0, |file| file.links)
    }

    /// Entries known and the bytes that they take; whether that is all there is.
    pub fn usage(&self) -> Usage {
        let state = self.state();
        Usage {
            entries: state.index.len() as u64,
            bytes: state.index.bytes() + state.unseen,
            orphaned: state.orphaned,
            complete: self.scanned.load(Ordering::Acquire),
        }
    }

    /// Marks the entry at `place` as being written in place, until [`Store::unmark_writing`]. If we die
    /// meanwhile, the next start removes the entry: nobody said that it is whole.
    pub fn mark_writing(&self, place: &Place) -> io::Result<()> {
        layout::mark(&self.writing, place)
    }

    /// The entry at `place` is whole, or gone.
    pub fn unmark_writing(&self, place: &Place) {
        layout::unmark(&self.writing, place);
    }

    /// Ends the loops of this store and whoever waits for room.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
        // Whoever looks whether it is stopped before they wait does so under this lock.
        drop(self.health());
        self.health_changed.notify_all();
        self.freshened.notify_all();
    }

    /// The wall clock in milliseconds, as the index counts.
    fn now_ms(&self) -> u64 {
        let since = self
            .clock
            .wall()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A bug in one operation, caught where it was called, must not take every other one down.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a file of ours in `tmp/`.
    fn discard_tmp(&self, name: &str) {
        if let Err(e) = rustix::fs::unlinkat(&self.tmp, name, AtFlags::empty()) {
            log::debug!("cannot remove the temporary file {name}: {e}");
        }
    }
}

impl Drop for Store {
    /// Lets the next process have the directory at once: a child that somebody forks just now has our descriptor
    /// too, until it becomes another program, and with it the lock.
    fn drop(&mut self) {
        if let Err(e) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            log::debug!("cannot unlock {}: {e}", self.path.display());
        }
    }
}

impl State {
    /// Bytes in use and promised.
    fn wanted(&self) -> u64 {
        self.index.bytes() + self.unseen + self.reserved + self.orphaned
    }

    fn set_orphan(&mut self, ino: u64, orphan: bool) {
        let Some(file) = self.pinned_files.get_mut(&ino) else {
            return;
        };
        match (std::mem::replace(&mut file.orphan, orphan), orphan) {
            (false, true) => self.orphaned += file.footprint,
            (true, false) => self.orphaned -= file.footprint,
            _ => {}
        }
    }
}

/// How full the backing directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Entries known.
    pub entries: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes of what was removed or replaced and is still to be uploaded.
    pub orphaned: u64,
    /// Whether the scan at the start has seen everything.
    pub complete: bool,
}
