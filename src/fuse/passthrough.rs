//! Which inodes the kernel reads and writes itself.
//!
//! The kernel wants all open handles of an inode to be of one kind, with one backing id: the first open
//! decides, the others share (Documentation/filesystems/fuse-passthrough.rst).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::BackingId;

/// Backing ids of open inodes, and whether passthrough is used at all.
#[derive(Debug, Default)]
pub struct Passthrough {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    off: Option<String>,
    open: HashMap<u64, (Option<Arc<BackingId>>, u32)>,
}

impl Passthrough {
    /// Passthrough, unless there is a reason against it.
    pub fn new(off: Option<String>) -> Self {
        Self {
            state: Mutex::new(State {
                off,
                open: HashMap::new(),
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

    /// One more handle of the inode: its backing id, made by `make` if it is the first; `None` without passthrough.
    pub(super) fn open(
        &self,
        ino: u64,
        make: impl FnOnce() -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut state = self.state();
        if let Some((id, handles)) = state.open.get_mut(&ino) {
            *handles += 1;
            return id.clone();
        }
        let id = if state.off.is_some() {
            None
        } else {
            Self::try_make(&mut state, make)
        };
        state.open.insert(ino, (id.clone(), 1));
        id
    }

    fn try_make(
        state: &mut State,
        make: impl FnOnce() -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        match make() {
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
