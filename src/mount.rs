//! STUB of the composition root, replaced by the lead's: an empty file system with a control socket.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo, MountOption, ReplyAttr,
    ReplyDirectory, Request, Session, SessionACL,
};

use crate::clock::Clock;
use crate::config::Config;
use crate::control::mounts::MountTable;
use crate::control::server::Server;
use crate::control::{Controlled, Status};
use crate::remote::{Remote, RemoteError};
use crate::stop::Stop;

/// Why a mount did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The remote's URL or options are wrong.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// Something else.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What is left when a mount has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Objects that are not on the remote yet.
    pub pending_left: u64,
}

/// Opens the remote with all its decorators; the mount is not needed for it.
pub fn open_remote(
    config: &Config,
    _clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn Remote>, RemoteError> {
    Err(RemoteError::Misconfigured(format!(
        "{}: no such kind of remote; expected https://HOST/PATH or file:///DIR",
        config.remote
    )))
}

/// A running mount.
pub struct Mount {
    session: JoinHandle<io::Result<()>>,
    server: JoinHandle<()>,
    server_stop: Stop,
    unmount: Arc<dyn Fn() + Send + Sync>,
}

impl Mount {
    /// Mounts; returns when the mount answers.
    pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Self, MountError> {
        if config.remote.local_dir().is_none() {
            open_remote(&config, &clock)?;
        }
        let mut options = fuser::Config::default();
        options.mount_options = vec![
            MountOption::FSName(config.fsname.clone()),
            MountOption::CUSTOM("subtype=cachedirfs".into()),
        ];
        options.acl = if config.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let mut session = Session::new(Empty, &config.mountpoint, &options)?;
        let unmounter = Mutex::new(session.unmount_callable());
        let unmount = Arc::new(move || {
            if let Ok(mut unmounter) = unmounter.lock() {
                let _ = unmounter.unmount();
            }
        });
        let table = MountTable::read()?;
        let device = table
            .at(&config.mountpoint)
            .ok_or_else(|| io::Error::other("not in the mount table"))?
            .device;
        let controlled = Arc::new(Controls {
            config: config.clone(),
            unmount: unmount.clone(),
        });
        let server = Server::bind(&config.run_dir, device, controlled, clock)?;
        let server_stop = Stop::new()?;
        let stop = server_stop.clone();
        Ok(Self {
            session: thread::spawn(move || session.run()),
            server: thread::spawn(move || server.run(&stop)),
            server_stop,
            unmount,
        })
    }

    /// What asks the mount to end: the first call unmounts, each further one says to leave the draining.
    pub fn stopper(&self) -> Box<dyn Fn() + Send + Sync> {
        let unmount = self.unmount.clone();
        Box::new(move || unmount())
    }

    /// Stays until it is unmounted and drained.
    pub fn wait(self) -> Summary {
        let _ = self.session.join();
        self.server_stop.ask();
        let _ = self.server.join();
        Summary { pending_left: 0 }
    }
}

struct Controls {
    config: Config,
    unmount: Arc<dyn Fn() + Send + Sync>,
}

impl Controlled for Controls {
    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            remote: self.config.remote_shown(),
            mountpoint: self.config.mountpoint.display().to_string(),
            backing: self.config.backing.display().to_string(),
            limit: self.config.size,
            min_free: self.config.min_free,
            push: self.config.push.as_str().into(),
            ..Status::default()
        }
    }

    fn mark(&self) -> u64 {
        0
    }

    fn pending_before(&self, _mark: u64) -> u64 {
        0
    }

    fn set_drain_timeout(&self, _timeout: Duration) {}

    fn stop(&self) {
        (self.unmount)();
    }
}

struct Empty;

impl Filesystem for Empty {
    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let epoch = SystemTime::UNIX_EPOCH;
        reply.attr(
            &Duration::from_secs(60),
            &FileAttr {
                ino,
                size: 0,
                blocks: 0,
                atime: epoch,
                mtime: epoch,
                ctime: epoch,
                crtime: epoch,
                kind: FileType::Directory,
                perm: 0o755,
                nlink: 2,
                uid: req.uid(),
                gid: req.gid(),
                rdev: 0,
                blksize: 4096,
                flags: 0,
            },
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        reply: ReplyDirectory,
    ) {
        reply.ok();
    }

    fn lookup(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &std::ffi::OsStr,
        reply: fuser::ReplyEntry,
    ) {
        reply.error(Errno::ENOENT);
    }
}
