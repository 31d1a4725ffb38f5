//! The file system's own state on its way to another program: what the kernel knows of inodes, and what is open.
//!
//! What is on the disk is not in it: the other program starts as after a crash, and finds it there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::files::Handle;
use super::lock::PackedLock;
use super::tree::PackedTree;
use super::{Fs, dirs};
use crate::sys::exec::{Kept, take_over};

pub use dirs::PackedDir;

/// A name, which may be no UTF-8.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    Plain(String),
    Bytes(Vec<u8>),
}

/// All of it. Descriptors are numbers in the next program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packed {
    tree: PackedTree,
    handles: Vec<PackedHandle>,
    next_handle: u64,
    lock: PackedLock,
}

#[derive(Debug, Serialize, Deserialize)]
struct PackedHandle {
    fh: u64,
    ino: u64,
    file: RawFd,
    writes: bool,
    is_config: bool,
}

impl Text {
    pub(super) fn new(name: &OsStr) -> Self {
        match name.to_str() {
            Some(text) => Self::Plain(text.to_owned()),
            None => Self::Bytes(name.as_bytes().to_owned()),
        }
    }

    pub(super) fn into_name(self) -> OsString {
        match self {
            Self::Plain(text) => text.into(),
            Self::Bytes(bytes) => OsString::from_vec(bytes),
        }
    }
}

/// Keeps a descriptor, if there is one.
pub(super) fn keep(kept: &mut Kept, fd: Option<&OwnedFd>) -> io::Result<Option<RawFd>> {
    fd.map(|fd| kept.keep(fd)).transpose()
}

impl Fs {
    /// Packs it. Nothing may be going on: the gate is shut.
    pub fn pack(&self, kept: &mut Kept) -> Result<Packed, String> {
        if self.store.is_sick() {
            return Err("the backing disk fails".into());
        }
        let tree = self.tree();
        if let Some(place) = tree.unsealed() {
            let place = place.path();
            return Err(format!("{place} is being written in its place"));
        }
        let mut pack = || -> io::Result<Packed> {
            let handles = self.handles.all();
            let handles = handles.into_iter().map(|(fh, handle)| {
                Ok(PackedHandle {
                    fh,
                    ino: handle.ino,
                    file: kept.keep(&handle.file)?,
                    writes: handle.writes,
                    is_config: handle.is_config,
                })
            });
            Ok(Packed {
                handles: handles.collect::<io::Result<_>>()?,
                next_handle: self.next_handle.load(Ordering::Relaxed),
                tree: tree.pack(kept)?,
                lock: self.config_lock.pack(kept, self.clock.now())?,
            })
        };
        pack().map_err(|e| format!("cannot keep a descriptor: {e}"))
    }

    /// Takes over what the program before packed.
    pub fn unpack(&self, packed: Packed) -> io::Result<()> {
        for open in packed.handles {
            let handle = Handle {
                ino: open.ino,
                file: File::from(take_over(open.file)?),
                writes: open.writes,
                is_config: open.is_config,
            };
            self.handles.insert(open.fh, handle);
        }
        self.next_handle
            .store(packed.next_handle, Ordering::Relaxed);
        self.config_lock.unpack(packed.lock, self.clock.now())?;
        *self.tree_mut() = packed.tree.unpack()?;
        Ok(())
    }
}
