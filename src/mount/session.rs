//! The mount as the kernel sees it: what it is told, what its refusals mean, and how it is unmounted.

use std::io;
use std::path::Path;

use fuser::{MountOption, SessionACL};

use crate::config::Config;
use crate::sys;

/// The FUSE device.
const DEVICE: &str = "/dev/fuse";

/// What the kernel is told of the mount.
pub(super) fn kernel_options(config: &Config) -> fuser::Config {
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

pub(super) fn hint(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("user_allow_other") {
        "; add the line user_allow_other to /etc/fuse.conf, or leave allow_other out"
    } else if error.kind() == io::ErrorKind::NotFound {
        "; install fuse3 (for fusermount3), and in a container give it --device /dev/fuse"
    } else {
        ""
    }
}
