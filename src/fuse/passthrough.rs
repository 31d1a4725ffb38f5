//! Which inodes the kernel reads and writes itself.
//!
//! The kernel wants all open handles of an inode to be of one kind, with one backing id: the first open
//! decides, the others share (Documentation/filesystems/fuse-passthrough.rst).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::sys::backing::Backing;

/// Backing ids of open inodes, and whether passthrough is used at all.
#[derive(Debug, Default)]
pub struct Passthrough {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    off: Option<String>,
    device: Option<Arc<OwnedFd>>,
    open: HashMap<u64, (Option<Arc<Backing>>, u32)>,
}

/// An open inode on its way to another program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Packed {
    ino: u64,
    id: Option<u32>,
    handles: u32,
}

impl Passthrough {
    /// Passthrough, unless there is a reason against it.
    pub fn new(off: Option<String>) -> Self {
        Self {
            state: Mutex::new(State {
                off,
                ..State::default()
            }),
        }
    }

    /// Why it is off; `None` while it is on.
    pub fn why_off(&self) -> Option<String> {
        self.state().off.clone()
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.state().off.is_none()
    }

    /// Goes on without. Inodes that are open stay as they are.
    pub(super) fn give_up(&self, why: &str) {
        self.state().give_up(why.to_owned());
    }

    /// The session's device. Without it there is no passthrough.
    pub fn set_device(&self, device: Arc<OwnedFd>) {
        self.state().device = Some(device);
    }

    /// What is open.
    pub(super) fn pack(&self) -> Vec<Packed> {
        let state = self.state();
        let each = state.open.iter().map(|(ino, (backing, handles))| Packed {
            ino: *ino,
            id: backing.as_ref().map(|backing| backing.id()),
            handles: *handles,
        });
        each.collect()
    }

    /// What was open in the program before.
    pub(super) fn unpack(&self, packed: &[Packed], device: &Arc<OwnedFd>) {
        let mut state = self.state();
        for open in packed {
            let adopt = |id| Arc::new(Backing::adopt(device, id));
            let backing = open.id.map(adopt);
            state.open.insert(open.ino, (backing, open.handles));
        }
    }

    /// One more handle of the inode: its backing file, registered if it is the first; `None` without passthrough.
    pub(super) fn open(&self, ino: u64, file: &File) -> Option<Arc<Backing>> {
        let mut state = self.state();
        if let Some((id, handles)) = state.open.get_mut(&ino) {
            *handles += 1;
            return id.clone();
        }
        let id = match state.device.clone().filter(|_| state.off.is_none()) {
            None => None,
            Some(device) => Self::register(&mut state, &device, file),
        };
        state.open.insert(ino, (id.clone(), 1));
        id
    }

    fn register(state: &mut State, device: &Arc<OwnedFd>, file: &File) -> Option<Arc<Backing>> {
        match Backing::new(device, file) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                let lasting = matches!(
                    e.raw_os_error(),
                    Some(
                        libc::EPERM | libc::EOPNOTSUPP | libc::ENOTTY | libc::ELOOP | libc::EINVAL
                    )
                );
                if lasting {
                    state.give_up(format!("the kernel refuses it: {e}"));
                }
                None
            }
        }
    }

    /// One handle of the inode less.
    pub(super) fn close(&self, ino: u64) {
        let mut state = self.state();
        if let Some((_, handles)) = state.open.get_mut(&ino) {
            *handles -= 1;
            if *handles == 0 {
                state.open.remove(&ino);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_up(&mut self, why: String) {
        log::info!("no passthrough: {why}; reads and writes go through the daemon");
        self.off = Some(why);
    }
}
