//! Handing a mount over to another program, the next version of this one, while it is in use.
//!
//! The process becomes the other program (`execve`), so its number, its place under a supervisor and what it has open stay. For
//! its own files that is a crash: the other program opens the backing directory as after `kill -9`, which loses nothing. What
//! a crash would lose, the session with the kernel, is packed: what the kernel knows ([`crate::fs::handover`]) and what was agreed on
//! with it ([`crate::fuse::link`]). For that moment the gate is shut, and callers wait.
//!
//! Until the process is another program everything can be taken back; an error leaves the mount as it was.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode};
use serde::{Deserialize, Serialize};

use super::Parts;
use super::session::DEVICE;
use crate::config::Relaunch;
use crate::fuse::link;
use crate::stats::Snapshot;
use crate::sys::exec::{Kept, become_program, take_over};
use crate::{fs, fuse};

/// Of the state. A program takes over from one that writes the same.
pub const FORMAT: u32 = 1;

/// How long operations that are under way may take to come to their end.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long the event log may take to be written.
const LAST_EVENTS: Duration = Duration::from_millis(500);

/// What one program leaves to the next.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// The session's device, and all that requests were read from.
    device: RawFd,
    devices: Vec<RawFd>,
    /// What was typed to mount it, with what was changed since.
    typed: String,
    pub(super) fs: fs::handover::Packed,
    pub(super) link: link::Packed,
    pub(super) counters: Snapshot,
    pub(super) up_millis: u64,
    /// How often that happened before.
    pub(super) handovers: u32,
}

/// The devices of a session that is taken over.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) session: OwnedFd,
    /// The kernel takes what was read from them and not answered for failed as soon as they are closed.
    pub(super) read_from: Vec<OwnedFd>,
}

impl State {
    /// Reads what the program before left under this number.
    pub fn take(number: RawFd) -> io::Result<Self> {
        let mut file = File::from(take_over(number)?);
        file.rewind()?;
        let state: Self = serde_json::from_reader(BufReader::new(file))?;
        if state.format == FORMAT {
            return Ok(state);
        }
        Err(io::Error::other(format!(
            "the program before left format {}, this one reads {FORMAT}",
            state.format
        )))
    }

    /// What [`super::Resolve::typed`] said.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    pub(super) fn devices(&self) -> io::Result<Devices> {
        let others = self.devices.iter().map(|number| take_over(*number));
        Ok(Devices {
            session: take_over(self.device)?,
            read_from: others.collect::<io::Result<_>>()?,
        })
    }

    fn keep(&self, kept: &mut Kept) -> io::Result<RawFd> {
        let file = rustix::fs::memfd_create("cachedirfs-handover", MemfdFlags::CLOEXEC)?;
        let mut writer = BufWriter::new(File::from(file));
        serde_json::to_writer(&mut writer, self)?;
        writer.flush()?;
        kept.keep(writer.get_ref())
    }
}

impl Parts {
    /// Becomes `program`. Returns why not.
    pub(super) fn hand_over(&self, program: &Path, format: u32) -> String {
        match self.try_hand_over(program, format) {
            Ok(never) => match never {},
            Err(why) => {
                log::warn!(
                    "{} is not handed over to {}: {why}",
                    self.config().mountpoint.display(),
                    program.display()
                );
                why
            }
        }
    }

    fn try_hand_over(
        &self,
        program: &Path,
        format: u32,
    ) -> Result<std::convert::Infallible, String> {
        let config = self.config();
        let Some(relaunch) = &config.relaunch else {
            return Err("a mount of `cachedirfs run` ends with its command".into());
        };
        if format != FORMAT {
            return Err(format!(
                "it writes format {FORMAT} and {} reads {format}; unmount, and mount again",
                program.display()
            ));
        }
        if !self.link.can_resend() {
            return Err(
                "the kernel cannot send requests again (Linux 6.9 can); unmount, and mount again"
                    .into(),
            );
        }
        let fs = self.fs.get().ok_or("it is only just being mounted")?;
        if self.stop.asked() {
            return Err("it is being unmounted".into());
        }
        let held = self.changes.hold();
        let _held = held.ok_or("it is being changed (remount); try again")?;
        let hurry = || self.fetch.dismiss();
        let _shut = self
            .link
            .gate
            .shut(&*self.clock, PATIENCE, hurry)
            .map_err(|why| format!("{why}; try again"))?;
        let mut kept = Kept::default();
        let number = self.pack(fs, &mut kept)?;
        log::info!(
            "{} is handed over to {}",
            self.config().mountpoint.display(),
            program.display()
        );
        if let Some(events) = &self.events {
            events.flush(LAST_EVENTS);
        }
        let error = self.relaunched(relaunch, program, number);
        Err(format!("cannot become {}: {error}", program.display()))
    }

    fn pack(&self, fs: &fs::Fs, kept: &mut Kept) -> Result<RawFd, String> {
        let device = self.device.get().ok_or("it is only just being mounted")?;
        let packed = fs.pack(kept)?;
        let state = || -> io::Result<State> {
            Ok(State {
                format: FORMAT,
                device: kept.keep(device)?,
                devices: kept.keep_all_of(Path::new(DEVICE))?,
                typed: self.changes.typed(),
                fs: packed,
                link: self.link.pack(&self.passthrough, kept)?,
                counters: self.stats.snapshot(),
                up_millis: super::millis(self.uptime()),
                handovers: self.handovers + 1,
            })
        };
        let written = state().and_then(|state| state.keep(kept));
        written.map_err(|e| format!("cannot write down how it stands: {e}"))
    }

    /// Becomes the program in the circumstances that this one was started in.
    fn relaunched(&self, relaunch: &Relaunch, program: &Path, state: RawFd) -> io::Error {
        let here = std::env::current_dir();
        if let Err(e) = std::env::set_current_dir(&relaunch.directory) {
            let directory = relaunch.directory.display();
            return io::Error::new(
                e.kind(),
                format!("going back to {directory}, where it was started: {e}"),
            );
        }
        let umask = rustix::process::umask(Mode::from_raw_mode(self.umask));
        let variable = (Relaunch::VARIABLE.into(), state.to_string().into());
        let environment = relaunch.environment.iter().cloned().chain([variable]);
        let failed = become_program(program, &relaunch.args, environment);
        rustix::process::umask(umask);
        if let Err(e) = here.and_then(std::env::set_current_dir) {
            log::debug!("cannot go back to the working directory: {e}");
        }
        match failed {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }
}

/// Has the kernel send again what the program before did not answer, and lets go of what it read from.
pub(super) fn resend(devices: Devices) -> io::Result<()> {
    let sent = fuse::link::resend(&devices.session);
    drop(devices.read_from);
    sent
}
