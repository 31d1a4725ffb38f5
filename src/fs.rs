//! The file system: one method an operation, returning values.
//!
//! Nothing here knows FUSE replies, threads or the network: a lookup that only the remote can answer
//! comes back as [`Looked::Ask`], and whoever speaks to the kernel hands it to the fetch pool and answers later.
//! So the whole file system is tested without a mount.
//!
//! What is no entry is an honest loopback onto the backing directory. Entries differ in these ways: they are
//! fetched when they are missing; what is renamed, linked or written into place is pushed; and from then on
//! their content never changes: a write to an entry is refused with EPERM, as for an immutable file.
//!
//! Locks, in this order: `tree` (held over the system calls of one operation, so that names and disk
//! agree), then those inside `store`, `upload` and `fetch`. `handles` is never held together with another.
//! No lock is held over a network call.

pub mod attr;
pub mod dirs;
pub mod entries;
pub mod files;
pub mod handover;
mod leftovers;
pub mod lock;
pub mod names;
pub mod reach;
pub mod setattr;
mod standin;
pub mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rustix::fs::Stat;

use crate::clock::Clock;
use crate::fetch::Fetch;
use crate::name::{Dir, Name, Place, RootFile};
use crate::stats::Stats;
use crate::stats::event::{Event, What};
use crate::store::Store;
use crate::upload::Uploads;
pub use attr::{Attr, Found};
use files::Handles;
pub use tree::ROOT;
use tree::Tree;

/// How an operation failed, as the kernel is told.
pub use rustix::io::Errno;

/// How long the kernel may believe an answer about names and entries: only we change the backing
/// directory, and we tell the kernel what we change.
pub const LONG: Duration = Duration::from_secs(24 * 3600);
/// The same for attributes that can change without the kernel hearing of it: directories that fetched entries
/// appear in, and files written through a mapping.
pub const SHORT: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread, or 0 if it is in a PID namespace that we cannot see.
    pub pid: u32,
}

/// What the file system is to do and to show.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Nothing may be changed but `config.lock` and time stamps.
    pub read_only: bool,
    /// Entries that come to be here are uploaded.
    pub push: bool,
    /// A rename that pushes waits until its upload was tried.
    pub sync: bool,
    /// Everything is shown with this owner.
    pub uid: Option<u32>,
    /// Everything is shown with this group.
    pub gid: Option<u32>,
    /// These permission bits are hidden.
    pub umask: Option<u32>,
}

/// Those of the options that may change while it is used.
#[derive(Debug, Default)]
struct Modes {
    read_only: AtomicBool,
    push: AtomicBool,
    sync: AtomicBool,
}

impl Modes {
    fn of(options: &Options) -> Self {
        let modes = Self::default();
        modes.set(options.read_only, options.push, options.sync);
        modes
    }

    fn pushes(&self) -> bool {
        self.push.load(Ordering::Relaxed)
    }

    fn set(&self, read_only: bool, push: bool, sync: bool) {
        self.read_only.store(read_only, Ordering::Relaxed);
        self.push.store(push, Ordering::Relaxed);
        self.sync.store(sync, Ordering::Relaxed);
    }
}

/// What a lookup found.
#[derive(Debug)]
pub enum Looked {
    /// It is there.
    Found(Found),
    /// It is not; the kernel may remember that for so long.
    Absent(Duration),
    /// It is an entry that is not on the disk: the remote has to be asked.
    Ask(Place),
}

/// Tells the kernel what changed without its doing.
pub trait Kernel: Send + Sync {
    /// The name is about to go. May wait for operations in that directory: never call it from one.
    fn forget_name(&self, parent: u64, name: &OsStr);
}

/// Told of each use of an entry that is here.
pub type Uses = Box<dyn Fn(&Place) + Send + Sync>;

/// The file system.
pub struct Fs {
    store: Arc<Store>,
    fetch: Arc<Fetch>,
    uploads: Arc<Uploads>,
    options: Options,
    modes: Modes,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    tree: RwLock<Tree>,
    handles: Handles,
    next_handle: AtomicU64,
    kernel: OnceLock<Box<dyn Kernel>>,
    uses: OnceLock<Uses>,
    config_lock: lock::ConfigLock,
    root_ino: u64,
    device: u64,
}

impl Fs {
    /// A file system over these parts.
    pub fn new(
        store: Arc<Store>,
        fetch: Arc<Fetch>,
        uploads: Arc<Uploads>,
        options: Options,
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
    ) -> std::io::Result<Self> {
        let root = rustix::fs::fstat(store.root())?;
        Ok(Self {
            store,
            fetch,
            uploads,
            modes: Modes::of(&options),
            options,
            clock,
            stats,
            tree: RwLock::default(),
            handles: Handles::default(),
            next_handle: AtomicU64::new(1),
            kernel: OnceLock::new(),
            uses: OnceLock::new(),
            config_lock: lock::ConfigLock::default(),
            root_ino: root.st_ino,
            device: root.st_dev,
        })
    }

    /// Changes what may be done, between two operations: a push that was allowed is one that is uploaded.
    pub fn set_modes(&self, read_only: bool, push: bool, sync: bool) {
        let _none_is_under_way = self.tree_mut();
        self.modes.set(read_only, push, sync);
    }

    /// Nothing may be changed but `config.lock` and time stamps.
    fn is_read_only(&self) -> bool {
        self.modes.read_only.load(Ordering::Relaxed)
    }

    /// Whether a rename that pushes is to be answered when its upload was tried.
    pub fn waits_for_uploads(&self) -> bool {
        self.modes.sync.load(Ordering::Relaxed)
    }

    /// Gives it the kernel to talk to. Without one (in tests) nothing needs to be invalidated.
    pub fn set_kernel(&self, kernel: Box<dyn Kernel>) {
        if self.kernel.set(kernel).is_err() {
            log::error!("bug: the kernel was set twice");
        }
    }

    /// Has `uses` told of each use of an entry; only the first who asks for that is heard.
    pub fn set_uses(&self, uses: Uses) {
        if self.uses.set(uses).is_err() {
            log::debug!("somebody is told already which entries are used");
        }
    }

    /// The entry at `place` was opened, or its link read; it has `bytes` of content.
    fn was_used(&self, place: &Place, bytes: u64) {
        self.store.touch(place);
        let hit = Event::new(What::Hit, &place.sig).bytes(bytes);
        self.stats.note(&hit);
        if let Some(uses) = self.uses.get() {
            uses(place);
        }
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Looks `name` up in the directory `parent`, on the disk.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Looked, Errno> {
        let kind = self.name(parent, name)?;
        match &kind {
            Name::Private => return Ok(Looked::Absent(LONG)),
            Name::RootFile(RootFile::ConfigLock) => self.drop_stale_config_lock(),
            Name::PrefixDir(dir) => return self.lookup_prefix(parent, dir, name, &kind),
            _ => {}
        }
        match self.find(parent, name, &kind) {
            Ok(found) => {
                if let Name::Entry(place) = &kind {
                    self.store.touch(place);
                }
                Ok(Looked::Found(found))
            }
            Err(Errno::NOENT) => Ok(self.absent(&kind)),
            Err(e) => Err(e),
        }
    }

    /// The same after the remote was asked: what is not on the disk now is absent.
    pub fn lookup_again(&self, parent: u64, name: &OsStr) -> Result<Found, Errno> {
        let kind = self.name(parent, name)?;
        self.find(parent, name, &kind)
    }

    /// The fetch pool, to hand a [`Looked::Ask`] to.
    pub fn fetcher(&self) -> &Arc<Fetch> {
        &self.fetch
    }

    /// The kernel takes `count` lookups of `ino` back.
    pub fn forget(&self, ino: u64, count: u64) {
        self.tree_mut().forget(ino, count);
    }

    fn absent(&self, kind: &Name) -> Looked {
        match kind {
            // What comes could not be kept.
            Name::Entry(_) if self.store.is_sick() => Looked::Absent(Duration::ZERO),
            Name::Entry(place) => match self.fetch.known_absent(&place.sig) {
                Some(left) => {
                    self.stats.note(&Event::new(What::RecentMiss, &place.sig));
                    Looked::Absent(left)
                }
                None => Looked::Ask(*place),
            },
            // It appears and goes by our doing, too.
            Name::RootFile(RootFile::ConfigLock) => Looked::Absent(Duration::ZERO),
            _ if self.store.is_sick() => Looked::Absent(Duration::ZERO),
            _ => Looked::Absent(LONG),
        }
    }

    /// A prefix directory that SCons may ask for exists: without it, SCons could never ask for what is in it.
    fn lookup_prefix(
        &self,
        parent: u64,
        dir: &Dir,
        name: &OsStr,
        kind: &Name,
    ) -> Result<Looked, Errno> {
        match self.find(parent, name, kind) {
            Err(Errno::NOENT) if self.is_asked_for(dir) => {}
            Err(Errno::NOENT) => return Ok(self.absent(kind)),
            found => return found.map(Looked::Found),
        }
        let text = name.to_str().ok_or(Errno::INVAL)?;
        let made = self.with_room(&[], || self.store.ensure_prefix(text).map_err(errno));
        match made {
            Ok(()) => self.find(parent, name, kind),
            Err(e) => self.find_stand_in(parent, name, kind, e),
        }
        .map(Looked::Found)
    }

    /// Has the tree remember what stands in for a name in the root that the disk failed.
    fn find_stand_in(
        &self,
        parent: u64,
        name: &OsStr,
        kind: &Name,
        error: Errno,
    ) -> Result<Found, Errno> {
        let stat = self.stand_in(kind, error)?;
        let mut tree = self.tree_mut();
        let found = self.remember(&mut tree, parent, name, kind, &stat);
        // As soon as the disk can again, so it shall be.
        Ok(Found {
            entry_ttl: Duration::ZERO,
            attr_ttl: Duration::ZERO,
            ..found
        })
    }

    /// Finds a name on the disk and has the tree remember it.
    fn find(&self, parent: u64, name: &OsStr, kind: &Name) -> Result<Found, Errno> {
        if lock::is_lock(kind) {
            return self.find_lock(&mut self.tree_mut());
        }
        loop {
            let tree = self.tree();
            let epoch = tree.epoch;
            let spot = self.spot_in(&tree, parent, name)?;
            let stat = spot.stat(self.store.root());
            drop(tree);
            let stat = match stat {
                Ok(stat) => stat,
                Err(e) => return self.find_stand_in(parent, name, kind, e),
            };
            if stat.st_dev != self.device {
                // Another file system is mounted inside the backing directory: its inode numbers are not ours.
                return Err(Errno::XDEV);
            }
            let mut tree = self.tree_mut();
            if tree.epoch == epoch {
                return Ok(self.remember(&mut tree, parent, name, kind, &stat));
            }
        }
    }

    /// Has the tree remember a name that the kernel is about to be told of.
    fn remember(
        &self,
        tree: &mut Tree,
        parent: u64,
        name: &OsStr,
        kind: &Name,
        stat: &Stat,
    ) -> Found {
        let dir = kind.as_dir();
        tree.remember(stat.st_ino, parent, name, dir);
        self.found(kind, stat)
    }

    /// What `name` in the directory `parent` is.
    fn name(&self, parent: u64, name: &OsStr) -> Result<Name, Errno> {
        let tree = self.tree();
        name_in(&tree, parent, name)
    }

    /// The entry that a node stands for, if it stands for one.
    fn entry_of(&self, tree: &Tree, ino: u64) -> Option<Place> {
        tree.get(ino)?.names().find_map(|known| {
            match name_in(tree, known.parent(), &known.name()) {
                Ok(Name::Entry(place)) => Some(place),
                _ => None,
            }
        })
    }

    fn tree(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn tree_mut(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Refuses a change on a read-only mount.
    fn may_change(&self, kind: &Name) -> Result<(), Errno> {
        match kind {
            Name::Private => Err(Errno::PERM),
            Name::RootFile(RootFile::ConfigLock) => Ok(()),
            _ if self.is_read_only() => Err(Errno::ROFS),
            _ => Ok(()),
        }
    }
}

/// What `name` in the directory `parent` is.
fn name_in(tree: &Tree, parent: u64, name: &OsStr) -> Result<Name, Errno> {
    let dir = tree.get(parent).ok_or(Errno::STALE)?.dir();
    Ok(Name::parse(&dir, name.as_bytes()))
}

/// The errno of an I/O error.
pub fn errno(error: std::io::Error) -> Errno {
    match error.kind() {
        std::io::ErrorKind::StorageFull => Errno::NOSPC,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}
