//! Random operations on the file system and on a model of it, compared after each.
//!
//! Restarts, crashes, evictions, uploads and pushes of another machine are operations like any other. Every lookup
//! compares what it finds (kind, mode, length, links, inode number), so a difference shows close to its cause. At
//! the end of a case the whole tree, the remote, the journal and the bytes that the store counts are compared, and a
//! second machine reads every entry.
//!
//! `CACHEDIRFS_MODEL_CASES` sets the number of cases.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use cachedirfs::fs::setattr::{Changes, Stamp};
use cachedirfs::fs::{Attr, Errno, ROOT};
use cachedirfs::signature::Meta;
use cachedirfs::store::index::footprint;
use proptest::prelude::*;
use rustix::fs::FileType;

use crate::support::model::{Fail, Id, Kind, Model, ROOT_ID};
use crate::support::rig::{Rig, Settings, place};

/// Cases in memory when the environment does not say otherwise; on the disk, where each takes longer …
const CASES: u32 = 3000;
/// … it is one for so many of them. The disk matters: ext4 gives inode numbers out again at once, tmpfs does not.
const CASES_PER_DISK_CASE: u32 = 10;
/// Operations a case at most.
const OPS: usize = 60;
/// Handles that are open at most; one more closes the oldest.
const HANDLES: usize = 4;

const S1: &str = "AB/ab000000000000000000000000000001";
const S2: &str = "AB/ab000000000000000000000000000002";
const S3: &str = "CD/cd000000000000000000000000000003";
const S4: &str = "CD/cd000000000000000000000000000004";
const ENTRIES: [&str; 4] = [S1, S2, S3, S4];

/// Few names, so that operations meet; entries twice, so that they meet more.
const PATHS: [&str; 22] = [
    "a",
    "b",
    "d",
    "e",
    "d/a",
    "d/b",
    "d/e",
    "d/e/a",
    "e/a",
    "AB",
    "CD",
    "AB/a",
    "AB/tmp",
    "AB/tmp/ab000000000000000000000000000001",
    S1,
    S2,
    S3,
    S4,
    S1,
    S2,
    S3,
    "CD/tmp",
];
const MODES: [u32; 6] = [0o644, 0o755, 0o444, 0o555, 0o600, 0o666];

#[derive(Clone, Debug)]
enum Op {
    Create(usize, usize, bool),
    Mknod(usize),
    Fifo(usize),
    Open(usize, bool),
    Reopen(usize, bool),
    Write(usize, u16, Vec<u8>),
    Append(usize, Vec<u8>),
    ReadHandle(usize),
    TruncateHandle(usize, u16),
    Close(usize),
    Put(usize, usize, Vec<u8>),
    Read(usize),
    Truncate(usize, u16),
    Rename(usize, usize, u32),
    Link(usize, usize),
    Symlink(usize, usize),
    Unlink(usize),
    Mkdir(usize, usize),
    Rmdir(usize),
    Chmod(usize, usize),
    Utimens(usize, u32),
    Readdir(usize),
    Forget,
    Evict(usize),
    Drain,
    OtherPushes(usize, usize, Vec<u8>),
    Advance(u64),
    Restart,
    Crash,
}

fn path() -> impl Strategy<Value = usize> {
    0..PATHS.len()
}

fn mode() -> impl Strategy<Value = usize> {
    0..MODES.len()
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..24),
        1 => (any::<u8>(), 4000_usize..9000).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let flags = prop_oneof![
        5 => Just(0),
        1 => Just(libc::RENAME_NOREPLACE),
        2 => Just(libc::RENAME_EXCHANGE),
    ];
    let making = prop_oneof![
        5 => (path(), mode(), bytes()).prop_map(|(p, m, b)| Op::Put(p, m, b)),
        4 => (path(), mode(), any::<bool>()).prop_map(|(p, m, w)| Op::Create(p, m, w)),
        1 => path().prop_map(Op::Mknod),
        1 => path().prop_map(Op::Fifo),
        3 => (path(), mode()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        2 => (path(), path()).prop_map(|(p, t)| Op::Symlink(p, t)),
        3 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
    ];
    let changing = prop_oneof![
        8 => (path(), path(), flags).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        2 => (path(), mode()).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path(), any::<u32>()).prop_map(|(p, t)| Op::Utimens(p, t)),
        2 => (path(), any::<u16>()).prop_map(|(p, n)| Op::Truncate(p, n % 5000)),
    ];
    let handles = prop_oneof![
        3 => (path(), any::<bool>()).prop_map(|(p, w)| Op::Open(p, w)),
        1 => (0..HANDLES, any::<bool>()).prop_map(|(h, w)| Op::Reopen(h, w)),
        3 => (0..HANDLES, any::<u16>(), bytes()).prop_map(|(h, at, b)| Op::Write(h, at % 300, b)),
        1 => (0..HANDLES, bytes()).prop_map(|(h, b)| Op::Append(h, b)),
        2 => (0..HANDLES).prop_map(Op::ReadHandle),
        1 => (0..HANDLES, any::<u16>()).prop_map(|(h, n)| Op::TruncateHandle(h, n % 5000)),
        2 => (0..HANDLES).prop_map(Op::Close),
    ];
    let around = prop_oneof![
        2 => path().prop_map(Op::Read),
        1 => path().prop_map(Op::Readdir),
        1 => Just(Op::Forget),
        3 => (0..ENTRIES.len()).prop_map(Op::Evict),
        2 => Just(Op::Drain),
        2 => (0..ENTRIES.len(), mode(), bytes()).prop_map(|(e, m, b)| Op::OtherPushes(e, m, b)),
        1 => (1..40_u64).prop_map(Op::Advance),
        1 => Just(Op::Restart),
        1 => Just(Op::Crash),
    ];
    prop_oneof![4 => making, 4 => changing, 3 => handles, 3 => around]
}

/// A name that was found: inode in the rig, node in the model.
#[derive(Clone, Copy, Debug)]
struct At {
    ino: u64,
    id: Id,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    fh: u64,
    at: At,
    writes: bool,
}

/// Both sides.
struct World {
    rig: Rig,
    model: Model,
    handles: Vec<Open>,
    /// Inode numbers that were seen: a node keeps its own.
    inos: HashMap<Id, u64>,
}

impl World {
    fn new(place: PathBuf) -> Self {
        let settings = Settings {
            place,
            ..Settings::default()
        };
        let mut world = Self {
            model: Model::new(settings.times.negative_ttl),
            rig: Rig::with(settings),
            handles: Vec::new(),
            inos: HashMap::new(),
        };
        for (name, mode) in [("config", 0o644), ("CACHEDIR.TAG", 0o644)] {
            let bytes = world.rig.read(name).unwrap();
            world.model.make(ROOT_ID, name, Kind::File(bytes), mode);
        }
        world
    }

    fn same_attr(&mut self, attr: &Attr, id: Id, what: &str) {
        let node = self.model.node(id);
        let (kind, len) = match &node.kind {
            Kind::Dir(_) => (FileType::Directory, None),
            Kind::File(bytes) => (FileType::RegularFile, Some(bytes.len())),
            Kind::Symlink(target) => (FileType::Symlink, Some(target.len())),
            Kind::Fifo => (FileType::Fifo, Some(0)),
        };
        assert_eq!(attr.kind(), kind, "kind of {what}");
        if kind != FileType::Symlink {
            assert_eq!(attr.perm(), node.mode, "mode of {what}");
        }
        if let Some(len) = len {
            assert_eq!(
                attr.stat.st_size,
                i64::try_from(len).unwrap(),
                "length of {what}"
            );
            let links = usize::try_from(attr.stat.st_nlink).unwrap();
            assert_eq!(links, self.model.links(id), "links of {what}");
        }
        let ino = *self.inos.entry(id).or_insert(attr.ino);
        assert_eq!(attr.ino, ino, "inode number of {what}");
    }

    /// Looks one name up on both sides.
    fn look(&mut self, parent: At, name: &str) -> Result<At, Errno> {
        let real = self.rig.lookup(parent.ino, name);
        let id = self.model.lookup(parent.id, name);
        match (real, id) {
            (Ok(found), Some(id)) => {
                self.same_attr(&found.attr, id, name);
                Ok(At {
                    ino: found.attr.ino,
                    id,
                })
            }
            (Err(Errno::NOENT), None) => Err(Errno::NOENT),
            (real, id) => panic!("{name}: {real:?}, but {id:?} in the model"),
        }
    }

    fn root(&self) -> At {
        At {
            ino: ROOT,
            id: ROOT_ID,
        }
    }

    fn parent<'p>(&mut self, path: &'p str) -> Result<(At, &'p str), Errno> {
        let mut at = self.root();
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        for name in parents.split('/').filter(|n| !n.is_empty()) {
            at = self.look(at, name)?;
            if self.model.children(at.id).is_none() {
                return Err(Errno::NOTDIR);
            }
        }
        Ok((at, name))
    }

    fn find(&mut self, path: &str) -> Result<At, Errno> {
        let (parent, name) = self.parent(path)?;
        self.look(parent, name)
    }

    /// Where something new can be: as the kernel, which looks first.
    fn vacant<'p>(&mut self, path: &'p str) -> Option<(At, &'p str)> {
        let (parent, name) = self.parent(path).ok()?;
        self.look(parent, name).is_err().then_some((parent, name))
    }

    fn keep(&mut self, open: Open) {
        self.model.opened(open.at.id, open.writes);
        self.handles.push(open);
        if self.handles.len() > HANDLES {
            self.close(0);
        }
    }

    fn close(&mut self, index: usize) {
        if index < self.handles.len() {
            let open = self.handles.remove(index);
            self.rig.fs.release(open.fh);
            self.model.closed(open.at.id, open.writes);
        }
    }

    fn same_content(&self, fh: u64, id: Id) {
        let Kind::File(bytes) = &self.model.node(id).kind else {
            panic!("{id} was opened")
        };
        let real = self.rig.read_handle(fh).unwrap();
        assert!(real == *bytes, "{real:?} was read instead of {bytes:?}");
    }

    fn is_file(&self, at: At) -> bool {
        matches!(self.model.node(at.id).kind, Kind::File(_))
    }

    fn create(&mut self, path: &str, mode: u32, writes: bool) -> Option<Open> {
        let (parent, name) = self.vacant(path)?;
        let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY };
        let (fs, caller) = (self.rig.fs.clone(), self.rig.caller());
        let made = fs.create(caller, parent.ino, OsStr::new(name), mode, flags);
        let (found, fh, _) = made.unwrap();
        let found = self.rig.told(found);
        let id = self
            .model
            .make(parent.id, name, Kind::File(Vec::new()), mode);
        self.same_attr(&found.attr, id, path);
        let ino = found.attr.ino;
        Some(Open {
            fh,
            at: At { ino, id },
            writes,
        })
    }

    fn open(&mut self, at: At, writes: bool) {
        let flags = if writes { libc::O_RDWR } else { libc::O_RDONLY };
        let real = self.rig.fs.open(at.ino, flags).map(|(fh, _)| fh);
        let expected = if writes {
            self.model.may_write(at.id)
        } else {
            Ok(())
        };
        assert_eq!(real.as_ref().err(), expected.as_ref().err());
        if let Ok(fh) = real {
            self.keep(Open { fh, at, writes });
        }
    }

    fn write(&mut self, open: Open, at: usize, data: &[u8]) {
        self.rig.fs.write(open.fh, at as u64, data).unwrap();
        self.model.write(open.at.id, at, data);
    }

    fn writer(&self, index: usize) -> Option<Open> {
        self.handles.get(index).copied().filter(|open| open.writes)
    }

    fn setattr(&mut self, at: At, changes: &Changes, expected: Result<(), Errno>) {
        let real = self.rig.fs.setattr(at.ino, changes);
        assert_eq!(real.as_ref().err(), expected.as_ref().err());
        if let Ok((attr, _)) = real {
            self.same_attr(&attr, at.id, "what was changed");
            if let Some(Stamp::At(seconds, _)) = changes.mtime {
                assert_eq!(attr.stat.st_mtime, seconds);
            }
        }
    }

    fn truncate(&mut self, at: At, len: u16, fh: Option<u64>) {
        let changes = Changes {
            size: Some(len.into()),
            fh,
            ..Changes::default()
        };
        let expected = self.model.truncate(at.id, len.into());
        self.setattr(at, &changes, expected);
    }

    fn rename(&mut self, from: &str, to: &str, flags: u32) {
        let (Ok(from), Ok(to)) = (self.parent(from), self.parent(to)) else {
            return;
        };
        if self.look(from.0, from.1).is_ok() {
            self.look(to.0, to.1).ok();
        }
        let real = self.rig.fs.rename(
            (from.0.ino, OsStr::new(from.1)),
            (to.0.ino, OsStr::new(to.1)),
            flags,
        );
        let expected = self
            .model
            .rename((from.0.id, from.1), (to.0.id, to.1), flags);
        same_result(&real, &expected);
    }

    fn link(&mut self, from: &str, to: &str) {
        let (Ok(from), Ok((parent, name))) = (self.find(from), self.parent(to)) else {
            return;
        };
        self.look(parent, name).ok();
        // Which of its names the kernel has heard of decides.
        if self.model.is_mixed(from.id) {
            return;
        }
        let real = self.rig.fs.link(from.ino, parent.ino, OsStr::new(name));
        let expected = self.model.link(from.id, parent.id, name);
        same_result(&real, &expected);
        if let (Ok(found), Ok(id)) = (real, expected) {
            self.rig.told(found);
            self.same_attr(&found.attr, id, to);
        }
    }

    fn readdir(&mut self, at: At) {
        let Some(expected) = self.model.children(at.id).cloned() else {
            return;
        };
        let real = self.rig.list(at.ino).unwrap();
        let is_shown = |id: &Id| {
            let empty_prefix = at.id == ROOT_ID
                && crate::support::model::PREFIXES
                    .iter()
                    .any(|p| expected.get(*p) == Some(id))
                && self
                    .model
                    .children(*id)
                    .is_some_and(|names| names.is_empty());
            !empty_prefix
        };
        let shown: Vec<_> = expected
            .iter()
            .filter(|e| is_shown(e.1))
            .map(|e| e.0)
            .collect();
        assert_eq!(real.keys().collect::<Vec<_>>(), shown);
        for (name, (ino, kind)) in real {
            let found = self.look(at, &name).unwrap();
            assert_eq!(found.ino, ino, "number of {name} in the directory");
            let is_dir = self.model.children(found.id).is_some();
            assert_eq!(kind == FileType::Directory, is_dir, "kind of {name}");
        }
    }

    fn forget(&mut self) {
        let open: Vec<_> = self.handles.iter().map(|h| h.at.ino).collect();
        // Directories above what is open stay known to the kernel.
        let dirs: Vec<_> = self
            .inos
            .iter()
            .filter(|(id, _)| !open.is_empty() && self.model.children(**id).is_some())
            .map(|(_, ino)| *ino)
            .collect();
        self.rig
            .forget_all_but(|ino| open.contains(&ino) || dirs.contains(&ino));
    }

    fn evict(&mut self, path: &str) {
        let place = place(path);
        let stands = self.rig.backing().join(path);
        let kind = std::fs::symlink_metadata(&stands).map(|m| m.file_type());
        if kind.is_ok_and(|kind| !kind.is_file() && !kind.is_symlink()) {
            return;
        }
        let gone = self.rig.fs.evict(&place);
        if gone {
            self.rig.store.removed(&place);
        }
        assert_eq!(gone, self.model.evict(path), "eviction of {path}");
    }

    fn drain(&mut self) {
        self.rig.drain();
        self.model.drain();
        for path in ENTRIES {
            let real = self.rig.on_remote(&place(path).sig);
            assert!(
                real.as_ref() == self.model.remote.get(path),
                "{path} on the remote is {real:?}"
            );
        }
        assert_eq!(self.rig.journal(), Vec::<String>::new());
    }

    fn crash(&mut self) {
        self.handles.clear();
        self.rig.restart();
        self.model.crash();
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Create(path, mode, writes) => {
                if let Some(open) = self.create(PATHS[*path], MODES[*mode], *writes) {
                    self.keep(open);
                }
            }
            Op::Put(path, mode, bytes) => {
                if let Some(open) = self.create(PATHS[*path], MODES[*mode], true) {
                    self.model.opened(open.at.id, true);
                    self.write(open, 0, bytes);
                    self.rig.fs.release(open.fh);
                    self.model.closed(open.at.id, true);
                }
            }
            Op::Mknod(path) => self.mknod(PATHS[*path], libc::S_IFREG, Kind::File(Vec::new())),
            Op::Fifo(path) => self.mknod(PATHS[*path], libc::S_IFIFO, Kind::Fifo),
            Op::Open(path, writes) => {
                if let Ok(at) = self.find(PATHS[*path])
                    && self.is_file(at)
                {
                    self.open(at, *writes);
                }
            }
            Op::Reopen(handle, writes) => {
                if let Some(open) = self.handles.get(*handle).copied() {
                    self.open(open.at, *writes);
                }
            }
            Op::Write(handle, at, data) => {
                if let Some(open) = self.writer(*handle) {
                    self.write(open, (*at).into(), data);
                }
            }
            Op::Append(handle, data) => {
                if let Some(open) = self.writer(*handle) {
                    // The kernel knows where the end is.
                    let (attr, _) = self.rig.fs.getattr(open.at.ino).unwrap();
                    self.write(open, usize::try_from(attr.stat.st_size).unwrap(), data);
                }
            }
            Op::ReadHandle(handle) => {
                if let Some(open) = self.handles.get(*handle).copied() {
                    self.same_content(open.fh, open.at.id);
                    let (attr, _) = self.rig.fs.getattr(open.at.ino).unwrap();
                    self.same_attr(&attr, open.at.id, "an open file");
                }
            }
            Op::TruncateHandle(handle, len) => {
                if let Some(open) = self.writer(*handle) {
                    self.truncate(open.at, *len, Some(open.fh));
                }
            }
            Op::Close(handle) => self.close(*handle),
            Op::Read(path) => self.read(PATHS[*path]),
            Op::Truncate(path, len) => {
                if let Ok(at) = self.find(PATHS[*path])
                    && self.is_file(at)
                {
                    self.truncate(at, *len, None);
                }
            }
            Op::Rename(from, to, flags) => self.rename(PATHS[*from], PATHS[*to], *flags),
            Op::Link(from, to) => self.link(PATHS[*from], PATHS[*to]),
            Op::Symlink(path, target) => self.symlink(PATHS[*path], PATHS[*target]),
            Op::Unlink(path) => self.remove(PATHS[*path], false),
            Op::Rmdir(path) => self.remove(PATHS[*path], true),
            Op::Mkdir(path, mode) => self.mkdir(PATHS[*path], MODES[*mode] | 0o700),
            Op::Chmod(path, mode) => self.chmod(PATHS[*path], MODES[*mode]),
            Op::Utimens(path, seconds) => self.utimens(PATHS[*path], *seconds),
            Op::Readdir(path) => {
                if let Ok(at) = self.find(PATHS[*path]) {
                    self.readdir(at);
                }
                self.readdir(self.root());
            }
            Op::Forget => self.forget(),
            Op::Evict(entry) => self.evict(ENTRIES[*entry]),
            Op::Drain => self.drain(),
            Op::OtherPushes(entry, mode, bytes) => {
                let (path, meta) = (ENTRIES[*entry], Meta::file(MODES[*mode]));
                self.rig.put_on_remote(&place(path).sig, meta, bytes);
                self.model.put(path, meta, bytes);
            }
            Op::Advance(seconds) => {
                self.rig.clock.advance(Duration::from_secs(*seconds));
                self.model.now += Duration::from_secs(*seconds);
            }
            Op::Restart => {
                while !self.handles.is_empty() {
                    self.close(0);
                }
                self.crash();
            }
            Op::Crash => self.crash(),
        }
    }

    fn mknod(&mut self, path: &str, kind: u32, node: Kind) {
        if let Some((parent, name)) = self.vacant(path) {
            let (fs, caller) = (self.rig.fs.clone(), self.rig.caller());
            let made = fs.mknod(caller, parent.ino, OsStr::new(name), kind | 0o644, 0);
            let found = self.rig.told(made.unwrap());
            let id = self.model.make(parent.id, name, node, 0o644);
            self.same_attr(&found.attr, id, path);
        }
    }

    fn mkdir(&mut self, path: &str, mode: u32) {
        if let Some((parent, name)) = self.vacant(path) {
            let (fs, caller) = (self.rig.fs.clone(), self.rig.caller());
            let made = fs.mkdir(caller, parent.ino, OsStr::new(name), mode);
            let found = self.rig.told(made.unwrap());
            let id = self
                .model
                .make(parent.id, name, Kind::Dir(Default::default()), mode);
            self.same_attr(&found.attr, id, path);
        }
    }

    fn symlink(&mut self, path: &str, target: &str) {
        if let Some((parent, name)) = self.vacant(path) {
            let (fs, caller) = (self.rig.fs.clone(), self.rig.caller());
            let made = fs.symlink(caller, parent.ino, OsStr::new(name), OsStr::new(target));
            let found = self.rig.told(made.unwrap());
            let node = Kind::Symlink(target.to_owned());
            let id = self.model.make(parent.id, name, node, 0o777);
            self.same_attr(&found.attr, id, path);
        }
    }

    fn remove(&mut self, path: &str, dir: bool) {
        let Ok((parent, name)) = self.parent(path) else {
            return;
        };
        if self.look(parent, name).is_err() {
            return;
        }
        let (real, expected) = if dir {
            let real = self.rig.fs.rmdir(parent.ino, OsStr::new(name));
            (real, self.model.rmdir(parent.id, name))
        } else {
            let real = self.rig.fs.unlink(parent.ino, OsStr::new(name));
            (real, self.model.unlink(parent.id, name))
        };
        assert_eq!(real, expected, "removal of {path}");
    }

    fn chmod(&mut self, path: &str, mode: u32) {
        let Ok(at) = self.find(path) else { return };
        if matches!(self.model.node(at.id).kind, Kind::Symlink(_)) {
            return;
        }
        let changes = Changes {
            mode: Some(mode),
            ..Changes::default()
        };
        self.model.chmod(at.id, mode);
        self.setattr(at, &changes, Ok(()));
    }

    fn utimens(&mut self, path: &str, seconds: u32) {
        let Ok(at) = self.find(path) else { return };
        let changes = Changes {
            atime: Some(Stamp::Now),
            mtime: Some(Stamp::At(seconds.into(), 5)),
            ..Changes::default()
        };
        self.setattr(at, &changes, Ok(()));
    }

    fn read(&mut self, path: &str) {
        let Ok(at) = self.find(path) else { return };
        match &self.model.node(at.id).kind {
            Kind::File(_) => {
                let (fh, _) = self.rig.fs.open(at.ino, libc::O_RDONLY).unwrap();
                self.model.opened(at.id, false);
                self.same_content(fh, at.id);
                self.rig.fs.release(fh);
                self.model.closed(at.id, false);
            }
            Kind::Symlink(target) => {
                assert_eq!(self.rig.fs.readlink(at.ino).unwrap(), OsStr::new(target));
            }
            Kind::Dir(_) | Kind::Fifo => {}
        }
    }

    /// Compares what a directory holds, all the way down.
    fn compare_tree(&mut self, at: At, path: &str) {
        self.readdir(at);
        let names: Vec<_> = self
            .model
            .children(at.id)
            .unwrap()
            .keys()
            .cloned()
            .collect();
        for name in names {
            let path = format!("{path}{name}");
            let found = self.look(at, &name).unwrap();
            self.read(&path);
            if self.model.children(found.id).is_some() {
                self.compare_tree(found, &format!("{path}/"));
            }
        }
    }

    /// Bytes of files that have no names but those in the journal, as the disk has it. Unknown with a symlink among
    /// them: only those can be moved to a name that is no entry's.
    fn orphaned(&self) -> Option<u64> {
        let mut files = BTreeMap::new();
        for name in self.rig.journal() {
            let path = self.rig.backing().join(".cachedirfs/pending").join(name);
            let stat = std::fs::symlink_metadata(path).unwrap();
            if stat.is_symlink() {
                return None;
            }
            files.entry(stat.ino()).or_insert((stat, 0)).1 += 1;
        }
        let orphans = files
            .values()
            .filter(|(stat, names)| stat.nlink() == *names);
        Some(orphans.map(|(stat, _)| footprint(stat.len())).sum())
    }

    /// What the store counts and keeps is what the model says.
    fn compare_books(&self) {
        let usage = self.rig.store.usage();
        let lengths = self.model.entry_lengths();
        let bytes: u64 = lengths.iter().map(|len| footprint(*len)).sum();
        // Those that are being written may count already.
        if self.model.unsealed() == 0 {
            assert_eq!((usage.entries, usage.bytes), (lengths.len() as u64, bytes));
        }
        if let Some(orphaned) = self.orphaned() {
            assert_eq!(usage.orphaned, orphaned, "only in the journal");
        }
        let marks = std::fs::read_dir(self.rig.backing().join(".cachedirfs/writing"));
        assert_eq!(
            marks.unwrap().count(),
            self.model.unsealed(),
            "marks of unfinished entries"
        );
        assert_eq!(
            self.rig.journal().len(),
            self.model.pending(),
            "names in the journal"
        );
        assert_eq!(self.rig.incoming(), Vec::<String>::new());
    }

    fn finish(&mut self) {
        self.compare_books();
        while !self.handles.is_empty() {
            self.close(0);
        }
        self.drain();
        self.compare_books();
        self.compare_tree(self.root(), "");
        self.compare_with_second();
    }

    /// Another machine sees what the remote holds.
    fn compare_with_second(&self) {
        if self.model.remote.is_empty() {
            return;
        }
        let second = self.rig.second();
        for (path, (meta, bytes)) in &self.model.remote {
            let found = second.lookup_path(path).unwrap();
            if *meta == Meta::Symlink {
                let target = second.fs.readlink(found.attr.ino).unwrap();
                assert_eq!(target.as_encoded_bytes(), bytes);
            } else {
                assert_eq!(found.attr.perm(), meta.mode(), "mode of {path} over there");
                assert!(
                    second.read(path).unwrap() == *bytes,
                    "bytes of {path} over there"
                );
            }
        }
        assert_eq!(second.stats.snapshot().corrupt, 0);
    }
}

fn same_result<T: std::fmt::Debug, U: std::fmt::Debug>(
    real: &Result<T, Errno>,
    expected: &Result<U, Fail>,
) {
    let same = match (real, expected) {
        (Ok(_), Ok(_)) | (Err(_), Err(Fail::Somehow)) | (_, Err(Fail::Unasked)) => true,
        (Err(real), Err(Fail::With(expected))) => real == expected,
        _ => false,
    };
    assert!(same, "{real:?} instead of {expected:?}");
}

fn config(cases_per_case: u32) -> ProptestConfig {
    let asked = std::env::var("CACHEDIRFS_MODEL_CASES").ok();
    let cases = asked.map_or(CASES, |cases| cases.parse().unwrap());
    ProptestConfig {
        cases: cases.div_ceil(cases_per_case),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    }
}

fn run(ops: &[Op], place: PathBuf) {
    let mut world = World::new(place);
    for op in ops {
        world.run(op);
    }
    world.finish();
}

/// A file system in memory, if there is one.
fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    }
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..OPS)
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    fn random_operations_do_what_the_model_says(ops in ops()) {
        run(&ops, memory());
    }
}

proptest! {
    #![proptest_config(config(CASES_PER_DISK_CASE))]

    #[test]
    fn random_operations_on_a_disk_do_what_the_model_says(ops in ops()) {
        run(&ops, std::env::temp_dir());
    }
}
