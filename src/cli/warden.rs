//! The warden: a small process beside a daemon, for what the daemon cannot do itself. It asks the mount whether it answers,
//! and it takes the mount away when the daemon has died.
//!
//! A process that waits for its own FUSE mount cannot even be killed: the thread that waits keeps `/dev/fuse` open, so the
//! kernel never gives the request up. Hence the daemon asks its own mount nothing, and has this process ask.
//!
//! It knows nothing of what the answer is for. It ends with the daemon.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::control::mounts::is_dead;
use crate::sys::{self, EndSignals, Forked};

use super::topmost;
use super::umount::detach;

/// Starts the warden of what will be mounted on `mountpoint`, before this process has a second thread: the daemon's end of
/// the line. To a byte that is written there, one comes back as soon as the mount has answered, or is not there (any more).
///
/// With `tidy` it detaches the mount of a daemon that died, so that what is under it shows: an automounter's trigger.
pub(super) fn start(mountpoint: &Path, tidy: bool) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    match sys::fork()? {
        Forked::Parent(between) => {
            between.wait()?;
            Ok(ours)
        }
        // A child's child, so that nobody has to wait for its end. What goes wrong shows by the end of the line.
        Forked::Child => {
            if let Ok(Forked::Child) = sys::fork() {
                let _ = watch(theirs, mountpoint, tidy);
            }
            std::process::exit(0)
        }
    }
}

fn watch(line: UnixStream, mountpoint: &Path, tidy: bool) -> io::Result<()> {
    let mut line = UnixStream::from(sys::close_inherited(OwnedFd::from(line))?);
    // Whoever ends the daemon's whole group wants the daemon to end first.
    let _signals = EndSignals::block()?;
    sys::new_session()?;
    sys::stdio_to_null()?;
    std::env::set_current_dir("/")?;
    let mut question = [0];
    while line.read(&mut question)? == question.len() {
        if is_ours(mountpoint) {
            is_dead(mountpoint);
        }
        line.write_all(&question)?;
    }
    if tidy && is_ours(mountpoint) && is_dead(mountpoint) {
        detach(mountpoint, true)?;
    }
    Ok(())
}

/// Whoever looks at an automounter's trigger pulls it, so what is there is read from the mount table.
fn is_ours(mountpoint: &Path) -> bool {
    topmost(mountpoint).is_ok_and(|top| top.is_some_and(|top| top.is_ours()))
}
