//! The session with the kernel: what is asked of it, begun anew or gone on with.

use std::io;
use std::sync::Arc;

use fuser::{MountOption, Session, SessionACL};

use super::handover::{Devices, State};
use super::{DEVICE, MountError, Parts};
use crate::config::{Config, Push};
use crate::fs::Fs;
use crate::fuse::{FuseFs, link};
use crate::sys;

impl Parts {
    fn speaker(&self, fs: &Arc<Fs>) -> FuseFs {
        let sync = self.config.push == Push::Sync;
        let (passthrough, hands) = (self.passthrough.clone(), self.hands.clone());
        FuseFs::new(fs.clone(), passthrough, hands, self.link.clone(), sync)
    }

    /// The session that another program left to this one.
    pub(super) fn resumed(
        &self,
        fs: &Arc<Fs>,
        state: State,
    ) -> io::Result<(Session<FuseFs>, Devices)> {
        let devices = state.devices()?;
        fs.unpack(state.fs)?;
        let (fuse, options) = (self.speaker(fs), self.kernel_options());
        let session = link::resume(fuse, &devices.session, &state.link, options)?;
        Ok((session, devices))
    }

    pub(super) fn session(&self, fs: &Arc<Fs>) -> Result<Session<FuseFs>, MountError> {
        let fuse = self.speaker(fs);
        Session::new(fuse, &self.config.mountpoint, &self.kernel_options()).map_err(|source| {
            MountError::Kernel {
                what: format!("cannot mount FUSE on {}", self.config.mountpoint.display()),
                hint: hint(&source),
                source,
            }
        })
    }

    fn kernel_options(&self) -> fuser::Config {
        let config = &self.config;
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
}

/// Why there can be no passthrough, as far as that is known before a file is opened.
pub(super) fn no_passthrough(config: &Config) -> Option<&'static str> {
    if !config.passthrough {
        return Some("switched off (nopassthrough)");
    }
    (!sys::may_administer()).then_some("it takes root (CAP_SYS_ADMIN)")
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
