//! The session with the kernel: what is asked of it, begun anew or gone on with.

use std::io;
use std::mem::{self, ManuallyDrop};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::{MountOption, Session, SessionACL};

use super::handover::{Devices, State};
use super::{MountError, Parts};
use crate::config::Config;
use crate::fs::Fs;
use crate::fuse::{FuseFs, link};
use crate::sys;

/// The FUSE device.
pub(super) const DEVICE: &str = "/dev/fuse";

impl Parts {
    fn speaker(&self, fs: &Arc<Fs>) -> FuseFs {
        let (passthrough, hands) = (self.passthrough.clone(), self.hands.clone());
        FuseFs::new(fs.clone(), passthrough, hands, self.link.clone())
    }

    /// The session that another program left to this one.
    pub(super) fn resumed(
        &self,
        fs: &Arc<Fs>,
        state: State,
    ) -> io::Result<(Session<FuseFs>, Devices)> {
        let devices = state.devices()?;
        fs.unpack(state.fs)?;
        let (fuse, options) = (self.speaker(fs), kernel_options(&self.config()));
        let session = link::resume(fuse, &devices.session, &state.link, options)?;
        Ok((session, devices))
    }

    pub(super) fn session(&self, fs: &Arc<Fs>) -> Result<Session<FuseFs>, MountError> {
        let (fuse, config) = (self.speaker(fs), self.config());
        Session::new(fuse, &config.mountpoint, &kernel_options(&config)).map_err(|source| {
            MountError::Kernel {
                what: format!("cannot mount FUSE on {}", config.mountpoint.display()),
                hint: hint(&source),
                source,
            }
        })
    }
}

/// What the kernel is told of the mount.
fn kernel_options(config: &Config) -> fuser::Config {
    let flags = &config.kernel;
    let mut options = fuser::Config::default();
    options.mount_options = vec![
        MountOption::FSName(config.fsname.clone()),
        MountOption::CUSTOM("subtype=cachedirfs".into()),
    ];
    let switches = [
        (config.default_permissions, MountOption::DefaultPermissions),
        (flags.nosuid, MountOption::NoSuid),
        (flags.nodev, MountOption::NoDev),
        (flags.noexec, MountOption::NoExec),
        (flags.noatime, MountOption::NoAtime),
    ];
    let on = switches
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, option)| option);
    options.mount_options.extend(on);
    options.acl = if config.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    options.n_threads = Some(config.event_threads);
    // Each event loop a descriptor of its own, if this user may open the device.
    options.clone_fd = std::fs::File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .is_ok();
    options
}

/// Runs a session to its end, and leaves it to `Parts::clear_away` what is at the mountpoint then.
///
/// fuser would unmount, also when that was done already and something else is mounted there by now: the test by which it means
/// to tell (0.18, `is_mounted`) says yes in either case.
pub(super) fn run_and_leave(session: Session<FuseFs>) -> io::Result<()> {
    let mut running = ManuallyDrop::new(session.spawn()?);
    // The thread can be had only in exchange for another one.
    let nothing = thread::Builder::new().spawn(|| Ok(()))?;
    let ended = mem::replace(&mut running.guard, nothing).join();
    ended.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
}

/// Why there can be no passthrough, as far as that is known before a file is opened.
pub(super) fn no_passthrough(config: &Config) -> Option<&'static str> {
    if !config.passthrough {
        return Some("switched off (nopassthrough)");
    }
    (!sys::may_administer()).then_some("it takes root (CAP_SYS_ADMIN)")
}

/// Unmounts; lazily if it is in use.
pub(super) fn unmount(mountpoint: &Path) -> io::Result<()> {
    match sys::unmount(mountpoint, false) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => sys::unmount(mountpoint, true),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => unmount_by_helper(mountpoint),
        // Somebody else was faster.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// What a user may not do, fusermount3 does.
fn unmount_by_helper(mountpoint: &Path) -> io::Result<()> {
    let status = std::process::Command::new("fusermount3")
        .arg("-uz")
        .arg(mountpoint)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("fusermount3 -uz: {status}")))
    }
}

fn hint(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("user_allow_other") {
        "; add the line user_allow_other to /etc/fuse.conf, or leave allow_other out"
    } else if error.kind() == io::ErrorKind::NotFound {
        "; install fuse3 (for fusermount3), and in a container give it --device /dev/fuse"
    } else {
        ""
    }
}
