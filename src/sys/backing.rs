//! Backing ids of FUSE passthrough as plain numbers, so that they can outlive the process that made them.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use fuser::{BackingId, ReplyCreate, ReplyOpen};

/// `FUSE_DEV_IOC_BACKING_CLOSE` of `linux/fuse.h`.
const CLOSE: libc::Ioctl = 0x4004_e502;

/// A file that the kernel reads and writes itself; it is given back when this is dropped.
#[derive(Debug)]
pub struct Backing {
    device: Arc<OwnedFd>,
    id: u32,
}

impl Backing {
    /// Registers a file with the kernel.
    pub fn new(device: &Arc<OwnedFd>, file: impl AsFd) -> io::Result<Self> {
        let id = BackingId::create_raw(&**device, file)?;
        Ok(Self::adopt(device, id))
    }

    /// One that was registered before, by another program in this process, and that nobody else gives back.
    pub fn adopt(device: &Arc<OwnedFd>, id: u32) -> Self {
        let device = device.clone();
        Self { device, id }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// It as the answer to an open wants it.
    pub fn for_open(&self, reply: &ReplyOpen) -> Lent {
        // SAFETY: the number is open as long as `self` is, and `Lent` never closes it.
        Lent(Some(unsafe { reply.wrap_backing(self.id) }))
    }

    /// It as the answer to a create wants it.
    pub fn for_create(&self, reply: &ReplyCreate) -> Lent {
        // SAFETY: as in `for_open`.
        Lent(Some(unsafe { reply.wrap_backing(self.id) }))
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: the argument is the number that this request takes, alive for the call. A device that is gone answers
        // with an error, and with it went the registration.
        let done = unsafe { libc::ioctl(self.device.as_raw_fd(), CLOSE, &self.id) };
        if done < 0 {
            let error = io::Error::last_os_error();
            log::debug!(
                "cannot give the kernel back the backing file {}: {error}",
                self.id
            );
        }
    }
}

/// A backing id for the length of one answer.
pub struct Lent(Option<BackingId>);

impl Deref for Lent {
    type Target = BackingId;

    fn deref(&self) -> &BackingId {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Dropped as it is, it would close the number.
        self.0.take().map(BackingId::into_raw);
    }
}
