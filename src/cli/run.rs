//! `cachedirfs run`: a mount for the life of one command.
//!
//! The mount stands in a mount namespace of its own where that can be had: by root, or by a user whom the kernel lets make
//! a user namespace. Then nobody else sees it, and nothing of it can be left behind. Otherwise it stands where everybody sees
//! it, made through fusermount3. The daemon ends with us, whatever we die of.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, getpgrp, kill_process, set_parent_process_death_signal};
use rustix::termios::tcgetpgrp;

use crate::config::{Config, options};
use crate::control::client::Client;
use crate::control::line::line;
use crate::daemon::{self, Side};
use crate::sys::{self, EndSignals};

use super::configure::{self, Typed, resolver};
use super::{Env, Exit, Failure, complain, mount, our_mount, preflight, real_path, umount};

/// How a shell says that it cannot execute a command, and that there is none.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// And that a signal ended it, to which its number is added.
const SIGNALLED: i32 = 128;

/// The variable in which the command finds where the cache is.
const VARIABLE: &str = "CACHEDIRFS_DIR";

/// Run a command with a remote cache mounted
///
/// The command finds the directory in $CACHEDIRFS_DIR. When it has ended, what was pushed is uploaded, the mount goes, and the
/// exit status is the command's.
#[derive(clap::Args)]
#[command(after_help = options::help())]
pub(super) struct Args {
    /// URL of the remote. May be left out with -o config=FILE
    remote: Option<String>,
    /// Options, as below
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Where to mount it; by default a temporary directory
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// Mount where everybody sees it, not in a namespace
    #[arg(long)]
    visible: bool,
    /// Do not say at the end how it went
    #[arg(short, long)]
    quiet: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

pub(super) fn run(args: &Args, env: &Env) -> ExitCode {
    match run_in(args, env) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            complain(&failure.message);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run_in(args: &Args, env: &Env) -> Result<u8, Failure> {
    let place = Place::new(args.at.as_deref(), env)?;
    let mountpoint = real_path(&place.path, &env.host.cwd);
    let typed = Typed {
        remote: args.remote.clone(),
        mountpoint: Some(mountpoint.clone()),
        options: args.options.clone(),
    };
    let config = configure::mounted(&typed, env)?;
    if !args.visible {
        hide(&mountpoint).map_err(|why| mount::cannot(&config, why))?;
    }
    let warnings = preflight::check(&config, env.path.as_deref())
        .map_err(|why| mount::cannot(&config, why))?;
    let shown = config.clone();
    let side = daemon::split().map_err(|err| mount::cannot(&config, err))?;
    match side {
        Side::Daemon(messenger) => {
            if let Err(err) = set_parent_process_death_signal(Some(Signal::TERM)) {
                messenger.failed(&format!("cannot end with the command: {err}"));
                return Ok(Exit::Mount as u8);
            }
            // It goes by exit: the directory is the other process's to remove.
            place.keep();
            return Ok(mount::serve_in_background(config, resolver(&typed, env), messenger) as u8);
        }
        Side::Starter(starter) => starter.wait().map_err(|why| mount::cannot(&config, why))?,
    }
    warnings.iter().for_each(complain);
    let status = command_status(&args.command, &mountpoint);
    end(args, &shown, env)?;
    drop(place);
    Ok(status)
}

/// Goes where nobody else sees what we mount, if a mount is possible there.
fn hide(mountpoint: &Path) -> Result<(), String> {
    match sys::may_have_own_mounts(mountpoint) {
        Err(err) => {
            log::debug!("no namespace of its own, mounting where everybody sees it: {err}");
            Ok(())
        }
        // From here on there is no way back.
        Ok(()) => sys::own_mounts().map_err(|err| format!("cannot have mounts of our own: {err}")),
    }
}

/// Where the mount is.
struct Place {
    path: PathBuf,
    made: Option<tempfile::TempDir>,
}

impl Place {
    fn new(at: Option<&Path>, env: &Env) -> Result<Self, Failure> {
        if let Some(path) = at {
            return Ok(Self {
                path: env.host.cwd.join(path),
                made: None,
            });
        }
        let made = tempfile::Builder::new()
            .prefix("cachedirfs-")
            .tempdir()
            .map_err(|err| {
                let why = format!("cannot make a directory to mount on: {err}; name one with --at");
                Failure::new(Exit::Mount, why)
            })?;
        Ok(Self {
            path: made.path().to_owned(),
            made: Some(made),
        })
    }

    fn keep(self) {
        self.made.map(tempfile::TempDir::keep);
    }
}

/// Runs the command to its end; its status as a shell says it.
fn command_status(command: &[std::ffi::OsString], mountpoint: &Path) -> u8 {
    let ended = EndSignals::block().and_then(|signals| {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env(VARIABLE, mountpoint)
            .spawn()?;
        let status = wait(child, &signals);
        signals.unblock();
        status
    });
    match ended {
        Ok(status) => shell_status(status),
        Err(err) => {
            complain(format_args!("cannot run {}: {err}", command[0].display()));
            match err.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            }
        }
    }
}

fn shell_status(status: ExitStatus) -> u8 {
    let signalled = || status.signal().map(|signal| SIGNALLED + signal);
    let number = status.code().or_else(signalled).unwrap_or_default();
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Waits for the command, and passes on the signals that ask us to end.
fn wait(mut child: Child, signals: &EndSignals) -> io::Result<ExitStatus> {
    let end = sys::process_end(child.id())?;
    loop {
        sys::poll_readable(&[end.as_fd(), signals.as_fd()], None)?;
        while let Some(signal) = signals.take() {
            // The terminal sends it to everybody in the foreground; once is enough.
            let signal = Signal::from_named_raw(signal.cast_signed());
            let (Some(signal), false) = (signal, signal == Some(Signal::INT) && is_in_foreground())
            else {
                continue;
            };
            kill_process(Pid::from_child(&child), signal)?;
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
    }
}

/// Whether Ctrl-C at the terminal reaches us, and with us the command.
fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group == getpgrp())
}

/// Waits for the uploads, says how it went, and unmounts. Whoever does not want to wait may kill us: the daemon then
/// goes on with it for as long as it may.
fn end(args: &Args, config: &Config, env: &Env) -> Result<(), Failure> {
    let status = our_mount(&config.mountpoint).and_then(|mounted| {
        let client = || Client::connect(&mounted, &env.run_dir());
        let flushed = client().and_then(|client| client.flush(config.drain_timeout));
        let status = flushed.and_then(|_| client()?.status());
        status.map_err(|err| err.to_string())
    });
    if !args.quiet {
        match &status {
            Ok(status) => complain(line(status)),
            Err(why) => complain(format_args!("{}: {why}", config.mountpoint.display())),
        }
    }
    let mut request = umount::Args {
        mountpoint: config.mountpoint.clone(),
        lazy: false,
        verbose: false,
        drain_timeout: Some(0),
    };
    umount::run(&request, env).map(drop).or_else(|busy| {
        // What the command left running uses it.
        complain(&busy.message);
        request.lazy = true;
        umount::run(&request, env).map(drop)
    })
}
