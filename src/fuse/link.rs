//! What the kernel and we agreed on, and the directories that it reads: with the file system's own state, all that another
//! program has to know to go on with a session.
//!
//! fuser begins a session by reading the kernel's INIT, which comes once in the life of a mount. So [`resume`] has it begin on
//! a socket on which we say INIT as the kernel said it, and then puts the device in the place of that socket: between its
//! handshake and its event loops nobody reads. What was read by the program before and not answered the kernel sends
//! again when it is told to (`FUSE_NOTIFY_RESEND`, Linux 6.9).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{InitFlags, KernelConfig, Session};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use super::gate::Gate;
use super::{FuseFs, passthrough};
use crate::fs::dirs::DirHandle;
use crate::fs::handover::PackedDir;
use crate::sys::exec::{self, Kept};

/// `FUSE_INIT` and its structures, as in `linux/fuse.h`.
const OPCODE_INIT: u32 = 26;
const MAJOR: u32 = 7;
/// The first that has a second word of flags, and what it has is all that we use.
const MINOR: u32 = 36;
/// `FUSE_NOTIFY_RESEND`.
const RESEND: i32 = 7;

/// What a session is besides the file system.
#[derive(Debug, Default)]
pub struct Link {
    /// What passes to the file system.
    pub gate: Arc<Gate>,
    capabilities: AtomicU64,
    dirs: Mutex<HashMap<u64, Arc<DirHandle>>>,
    next_dir: AtomicU64,
}

/// A session on its way to another program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packed {
    capabilities: u64,
    dirs: Vec<(u64, PackedDir)>,
    next_dir: u64,
    /// Backing files of inodes, and how many handles of each are open.
    passthrough: Vec<passthrough::Packed>,
}

impl Link {
    /// The kernel offers this.
    pub(super) fn agreed(&self, config: &KernelConfig) {
        self.capabilities
            .store(config.capabilities().bits(), Ordering::Relaxed);
    }

    /// Whether the kernel can send again what nobody answered.
    pub fn can_resend(&self) -> bool {
        let offered = InitFlags::from_bits_retain(self.capabilities.load(Ordering::Relaxed));
        offered.contains(InitFlags::FUSE_HAS_RESEND)
    }

    pub(super) fn add_dir(&self, handle: DirHandle) -> u64 {
        let fh = self.next_dir.fetch_add(1, Ordering::Relaxed);
        self.dirs().insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn dir(&self, fh: u64) -> Option<Arc<DirHandle>> {
        self.dirs().get(&fh).cloned()
    }

    pub(super) fn close_dir(&self, fh: u64) {
        self.dirs().remove(&fh);
    }

    fn dirs(&self) -> MutexGuard<'_, HashMap<u64, Arc<DirHandle>>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it; the gate is shut.
    pub fn pack(
        &self,
        passthrough: &passthrough::Passthrough,
        kept: &mut Kept,
    ) -> io::Result<Packed> {
        let dirs = self.dirs();
        let packed = dirs.iter().map(|(fh, dir)| Ok((*fh, dir.pack(kept)?)));
        Ok(Packed {
            capabilities: self.capabilities.load(Ordering::Relaxed),
            dirs: packed.collect::<io::Result<_>>()?,
            next_dir: self.next_dir.load(Ordering::Relaxed),
            passthrough: passthrough.pack(),
        })
    }

    fn unpack(&self, packed: &Packed) -> io::Result<()> {
        self.next_dir.store(packed.next_dir, Ordering::Relaxed);
        let mut dirs = self.dirs();
        for (fh, dir) in &packed.dirs {
            dirs.insert(*fh, Arc::new(DirHandle::unpack(dir)?));
        }
        Ok(())
    }
}

/// Goes on with a session on its device, for whose file system `fuse` speaks.
pub fn resume(
    fuse: FuseFs,
    device: &OwnedFd,
    packed: &Packed,
    options: fuser::Config,
) -> io::Result<Session<FuseFs>> {
    let (link, passing) = (fuse.link.clone(), fuse.passthrough.clone());
    link.unpack(packed)?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    File::from(ours.try_clone()?).write_all(&init(packed.capabilities))?;
    let acl = options.acl;
    let session = Session::from_fd(fuse, theirs, acl, options)?;
    exec::replace(&session, device)?;
    passing.unpack(
        &packed.passthrough,
        &Arc::new(session.as_fd().try_clone_to_owned()?),
    );
    Ok(session)
}

/// Has the kernel send again what was read and not answered.
pub fn resend(device: impl AsFd) -> io::Result<()> {
    let mut header = Vec::with_capacity(16);
    header.extend(16_u32.to_ne_bytes());
    header.extend(RESEND.to_ne_bytes());
    header.extend(0_u64.to_ne_bytes());
    File::from(device.as_fd().try_clone_to_owned()?).write_all(&header)
}

/// INIT as the kernel says it.
fn init(capabilities: u64) -> Vec<u8> {
    /// `struct fuse_in_header` and `struct fuse_init_in`.
    const LENGTHS: (usize, usize) = (40, 64);
    // Without this flag the second word would not be looked at.
    let capabilities = capabilities | InitFlags::FUSE_INIT_EXT.bits();
    let words = [(capabilities & u64::from(u32::MAX)), capabilities >> 32];
    let [low, high] = words.map(|word| u32::try_from(word).unwrap_or_default());
    let mut request = Vec::new();
    let length = u32::try_from(LENGTHS.0 + LENGTHS.1).unwrap_or_default();
    request.extend(length.to_ne_bytes());
    request.extend(OPCODE_INIT.to_ne_bytes());
    request.extend(1_u64.to_ne_bytes());
    request.resize(LENGTHS.0, 0);
    // The readahead was agreed on long ago, too; nobody looks at the answer.
    for word in [MAJOR, MINOR, 128 * 1024, low, high] {
        request.extend(word.to_ne_bytes());
    }
    request.resize(LENGTHS.0 + LENGTHS.1, 0);
    request
}
