//! FUSE: decodes requests, calls [`Fs`], encodes replies. No policy here.
//!
//! The handlers run on the session's event loops and never wait for the network: a lookup that has to ask the remote, and
//! a rename that has to wait for its upload (`push=sync`) or for room, take their reply along and are answered by another
//! thread. A handler that panics answers EIO and is counted; the event loop goes on.

mod convert;
pub mod gate;
mod hands;
pub mod link;
mod passthrough;

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};

use crate::fetch::Outcome;
use crate::fs::setattr::Changes;
use crate::fs::{Caller, Fs, Kernel, Looked};
use convert::{absent_attr, attr, error, kind, stamp};
use gate::Gate;
pub use hands::Hands;
use link::Link;
pub use passthrough::Passthrough;

/// Generations are not needed: a number is not used again while the kernel knows the inode that had it.
const GENERATION: Generation = Generation(0);

/// Largest write that the kernel may send at once.
const MAX_WRITE: u32 = 1 << 20;

/// Requests that the kernel may have under way in the background (readahead, releases).
const MAX_BACKGROUND: u16 = 64;

/// How many file systems the backing directory may be stacked on: 2 allows an overlay root.
const STACK_DEPTH: u32 = 2;

/// The file system as FUSE sees it.
pub struct FuseFs {
    fs: Arc<Fs>,
    passthrough: Arc<Passthrough>,
    hands: Arc<Hands>,
    link: Arc<Link>,
}

impl FuseFs {
    /// Speaks FUSE for `fs`.
    pub fn new(
        fs: Arc<Fs>,
        passthrough: Arc<Passthrough>,
        hands: Arc<Hands>,
        link: Arc<Link>,
    ) -> Self {
        Self {
            fs,
            passthrough,
            hands,
            link,
        }
    }

    /// Runs a handler. If it panics, its reply is dropped on the way, which answers EIO.
    fn guard(&self, handler: impl FnOnce()) {
        let inside = self.link.gate.enter();
        self.hands.enter();
        if catch_unwind(AssertUnwindSafe(handler)).is_err() {
            self.fs.stats().panics.one();
            log::error!("bug: a file system operation panicked and was answered with EIO");
        }
        // It may be parked there.
        drop(inside);
        self.hands.leave();
    }

    /// Answers a lookup after the remote was asked.
    fn answer(fs: &Fs, outcome: Outcome, parent: u64, name: &OsStr, reply: ReplyEntry) {
        // What came to be here in the meantime counts, whatever became of the fetch.
        match fs.lookup_again(parent, name) {
            Ok(found) => {
                let attr = attr(&found.attr);
                reply.entry_with_ttls(&found.attr_ttl, &found.entry_ttl, &attr, GENERATION);
            }
            Err(crate::fs::Errno::NOENT) if outcome == Outcome::Absent => {
                absent(reply, fs.fetcher().negative_ttl());
            }
            Err(e) => {
                fs.failed(e);
                reply.error(error(e));
            }
        }
    }

    /// What the kernel is told of an error, and the file system hears of it.
    fn error(&self, e: crate::fs::Errno) -> Errno {
        self.fs.failed(e);
        error(e)
    }

    fn entry(&self, reply: ReplyEntry, result: Result<crate::fs::Found, crate::fs::Errno>) {
        match result {
            Ok(found) => {
                let attr = attr(&found.attr);
                reply.entry_with_ttls(&found.attr_ttl, &found.entry_ttl, &attr, GENERATION);
            }
            Err(e) => reply.error(self.error(e)),
        }
    }

    fn empty(&self, reply: ReplyEmpty, result: Result<(), crate::fs::Errno>) {
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(self.error(e)),
        }
    }
}

/// Tells the kernel that a name does not exist, and for how long it need not ask again.
fn absent(reply: ReplyEntry, ttl: Duration) {
    if ttl.is_zero() {
        reply.error(Errno::ENOENT);
    } else {
        reply.entry_with_ttls(&ttl, &ttl, &absent_attr(), GENERATION);
    }
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
    }
}

impl Filesystem for FuseFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.link.agreed(config);
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ASYNC_DIO;
        let known = config.capabilities() & wanted;
        config.add_capabilities(known).ok();
        config.set_max_write(MAX_WRITE).ok();
        config.set_max_background(MAX_BACKGROUND).ok();
        if self.passthrough.is_wanted() {
            let offered = config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH);
            if !offered {
                self.passthrough
                    .give_up("the kernel has no FUSE passthrough (Linux 6.9 has)");
            } else if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
                config.set_max_stack_depth(STACK_DEPTH).ok();
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.guard(|| match self.fs.lookup(parent.0, name) {
            Ok(Looked::Found(found)) => self.entry(reply, Ok(found)),
            Ok(Looked::Absent(ttl)) => absent(reply, ttl),
            Ok(Looked::Ask(place)) => {
                let (fs, name) = (self.fs.clone(), name.to_owned());
                let stay = self.link.gate.stay();
                let waiter = move |outcome| {
                    Self::answer(&fs, outcome, parent.0, &name, reply);
                    drop(stay);
                };
                self.fs.fetcher().ask(place, Box::new(waiter));
            }
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.guard(|| self.fs.forget(ino.0, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.guard(|| match self.fs.getattr(ino.0) {
            Ok((found, ttl)) => reply.attr(&ttl, &attr(&found)),
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.guard(|| {
            let (atime, mtime) = (atime.map(stamp), mtime.map(stamp));
            let changes = Changes {
                mode,
                uid,
                gid,
                size,
                atime,
                mtime,
                fh: fh.map(|fh| fh.0),
            };
            match self.fs.setattr(ino.0, &changes) {
                Ok((found, ttl)) => reply.attr(&ttl, &attr(&found)),
                Err(e) => reply.error(self.error(e)),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.guard(|| match self.fs.readlink(ino.0) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.guard(|| {
            self.entry(
                reply,
                self.fs.mknod(caller(req), parent.0, name, mode, rdev),
            );
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.guard(|| self.entry(reply, self.fs.mkdir(caller(req), parent.0, name, mode)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.guard(|| self.empty(reply, self.fs.unlink(parent.0, name)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.guard(|| self.empty(reply, self.fs.rmdir(parent.0, name)));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.guard(|| {
            self.entry(
                reply,
                self.fs
                    .symlink(caller(req), parent.0, link_name, target.as_os_str()),
            );
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.guard(|| {
            let (fs, bits) = (self.fs.clone(), flags.bits());
            let (name_there, newname_there) = (name.to_owned(), newname.to_owned());
            let stay = self.link.gate.stay();
            let job = move || {
                let from = (parent.0, name_there.as_os_str());
                let to = (newparent.0, newname_there.as_os_str());
                match fs.rename(from, to, bits) {
                    Ok(Some(upload)) if fs.waits_for_uploads() => {
                        let answer = move || {
                            reply.ok();
                            drop(stay);
                        };
                        return fs.when_tried(upload, Box::new(answer));
                    }
                    Ok(_) => reply.ok(),
                    Err(e) => {
                        fs.failed(e);
                        reply.error(error(e));
                    }
                }
                drop(stay);
            };
            let (from, to) = ((parent.0, name), (newparent.0, newname));
            self.fs.when_room_for_rename(from, to, Box::new(job));
        });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.guard(|| self.entry(reply, self.fs.link(ino.0, newparent.0, newname)));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.guard(|| match self.fs.open(ino.0, flags.0) {
            Ok((fh, handle)) => match self.passthrough.open(ino.0, &handle.file) {
                Some(backing) => {
                    let id = backing.for_open(&reply);
                    reply.opened_passthrough(FileHandle(fh), PASSED, &id);
                }
                None => reply.opened(FileHandle(fh), CACHED),
            },
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.guard(
            || match self.fs.create(caller(req), parent.0, name, mode, flags) {
                Ok((found, fh, handle)) => {
                    let (ttl, shown) = (found.entry_ttl.min(found.attr_ttl), attr(&found.attr));
                    let fh = FileHandle(fh);
                    match self.passthrough.open(shown.ino.0, &handle.file) {
                        Some(backing) => {
                            let id = backing.for_create(&reply);
                            reply.created_passthrough(&ttl, &shown, GENERATION, fh, PASSED, &id);
                        }
                        None => reply.created(&ttl, &shown, GENERATION, fh, CACHED),
                    }
                }
                Err(e) => reply.error(self.error(e)),
            },
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.guard(|| {
            let mut buffer = vec![0; size as usize];
            match self.fs.read(fh.0, offset, &mut buffer) {
                Ok(n) => reply.data(&buffer[..n]),
                Err(e) => reply.error(self.error(e)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.guard(|| match self.fs.write(fh.0, offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(|| {
            self.passthrough.close(ino.0);
            self.fs.release(fh.0);
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(|| self.empty(reply, self.fs.fsync(fh.0, datasync)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.guard(|| match self.fs.opendir(ino.0) {
            Ok(handle) => {
                let fh = self.link.add_dir(handle);
                reply.opened(FileHandle(fh), FopenFlags::empty());
            }
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.guard(|| {
            let Some(handle) = self.link.dir(fh.0) else {
                return reply.error(Errno::EBADF);
            };
            let mut add = |e: crate::fs::dirs::DirEntry<'_>| {
                reply.add(INodeNo(e.ino), e.next, kind(e.kind), e.name)
            };
            match self.fs.readdir(&handle, offset, &mut add) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(self.error(e)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.guard(|| {
            self.link.close_dir(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.guard(|| match self.link.dir(fh.0) {
            Some(handle) => self.empty(reply, self.fs.fsyncdir(&handle)),
            None => reply.error(Errno::EBADF),
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.guard(|| match self.fs.statfs() {
            Ok(v) => {
                let u32 = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                let (bsize, frsize, namelen) = (u32(v.f_bsize), u32(v.f_frsize), u32(v.f_namemax));
                reply.statfs(
                    v.f_blocks, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree, bsize, namelen, frsize,
                );
            }
            Err(e) => reply.error(self.error(e)),
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.guard(|| self.empty(reply, self.fs.fallocate(fh.0, offset, length, mode)));
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.guard(|| match self.fs.lseek(fh.0, offset, whence) {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(e) => reply.error(self.error(e)),
        });
    }

    // Each of these is asked once: ENOSYS has the kernel answer it itself from then on. For extended attributes
    // that saves SCons a round trip a hit (its copies list them), for the others there is a fall-back.

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: fuser::ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: fuser::PollNotifier,
        _events: fuser::PollEvents,
        _flags: fuser::PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

/// Nothing is to be written back when a descriptor is closed.
const PASSED: FopenFlags = FopenFlags::FOPEN_NOFLUSH;

/// The page cache stays right between opens: all changes come through this mount.
const CACHED: FopenFlags = FopenFlags::FOPEN_NOFLUSH.union(FopenFlags::FOPEN_KEEP_CACHE);

/// The kernel, to be told of changes that it did not make.
pub struct Invalidator {
    /// Where it is told.
    pub notifier: Notifier,
    /// Shut while the session changes hands.
    pub gate: Arc<Gate>,
}

impl Kernel for Invalidator {
    fn forget_name(&self, parent: u64, name: &OsStr) {
        let _notice = self.gate.notice();
        if let Err(e) = self.notifier.inval_entry(INodeNo(parent), name) {
            log::debug!("cannot have the kernel forget {name:?}: {e}");
        }
    }
}
