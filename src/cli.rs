//! The command line: definitions, one child module a command, and the only printing.
//!
//! `--help` and `--version` are answered before anything is read. A command succeeds in silence unless it was
//! asked for something; what went wrong is one line on standard error that says what to do.
//!
//! To add a command: a child module with its `Args` and `run`, a variant of `Command`, a line in [`run`].

mod check;
mod completions;
mod configure;
mod copy;
mod diff;
mod flush;
mod helper;
mod ls;
mod mount;
mod moving;
mod parallel;
mod patience;
mod preflight;
mod progress;
mod prune;
mod push;
mod remount;
mod rm;
mod run;
mod status;
mod umount;
mod upgrade;
mod verify;
mod warden;
mod why;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::places;
use crate::config::{Host, Relaunch};
use crate::control::mounts::{MountTable, Mounted};
use crate::logging::Audience;
use crate::remote::{Environment, Secret};
use crate::sys;

const EXIT_STATUS: &str = "\
Exit status:
   0  done
   1  failed; for flush: something is not on the remote yet; for rm: something is not removed;
      for verify: something is wrong; for push and copy: something is not there;
      for prune: something is not removed, or the rest is too large;
      for why: it is neither here nor on a remote; for diff: something is different
   2  the command line is wrong; for flush and rm: the mount could not be asked;
      for verify, push, copy, ls and prune: nothing could be done;
      for why and diff: it could not be found out
  32  could not be mounted or unmounted
   126, 127  for run: the command could not be executed, or there is none; otherwise run has its status";

/// A remote build cache as a SCons CacheDir.
#[derive(Parser)]
#[command(name = "cachedirfs", version, after_help = EXIT_STATUS, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    Upgrade(upgrade::Args),
    Remount(remount::Args),
    Run(run::Args),
    Status(status::Args),
    Flush(flush::Args),
    Rm(rm::Args),
    Check(check::Args),
    Verify(verify::Args),
    Push(push::Args),
    Copy(copy::Args),
    Ls(ls::Args),
    Prune(prune::Args),
    Why(why::Args),
    Diff(diff::Args),
    Completions(completions::Args),
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Mount = 32,
}

/// Why a command ends otherwise than it should.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Display) -> Self {
        Self {
            exit,
            message: message.to_string(),
        }
    }
}

/// Runs the command that this process was started with.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os().peekable();
    if let Some(form) = words.peek().and_then(|program| helper::form(program)) {
        return helper::run(form, words, &Env::read());
    }
    let args = Args::parse();
    let env = Env::read();
    let end = match args.command {
        Command::Mount(args) => mount::run(&args, &env),
        Command::Umount(args) => umount::run(&args, &env),
        Command::Upgrade(args) => upgrade::run(&args, &env),
        Command::Remount(args) => remount::run(&args, &env),
        Command::Run(args) => return run::run(&args, &env),
        Command::Status(args) => status::run(&args, &env),
        Command::Flush(args) => flush::run(&args, &env),
        Command::Rm(args) => rm::run(&args, &env),
        Command::Check(args) => check::run(&args, &env),
        Command::Verify(args) => verify::run(&args, &env),
        Command::Push(args) => push::run(&args, &env),
        Command::Copy(args) => copy::run(&args, &env),
        Command::Ls(args) => ls::run(&args, &env),
        Command::Prune(args) => prune::run(&args, &env),
        Command::Why(args) => why::run(&args, &env),
        Command::Diff(args) => diff::run(&args, &env),
        Command::Completions(args) => completions::run(args, &env),
    };
    let exit = end.unwrap_or_else(|failure| {
        complain(&failure.message);
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// What we take from the environment, all of it.
struct Env {
    host: Host,
    notify_socket: Option<OsString>,
    /// How long systemd waits for a sign of life of this process, in microseconds.
    watchdog: Option<u64>,
    journal_stream: Option<OsString>,
    path: Option<OsString>,
    /// Where the program before, in this same process, left how its mount stands.
    handover: Option<i32>,
}

impl Env {
    fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let dir = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let uid = sys::effective_uid();
        // mount(8) and systemd start their helpers without it.
        let home = dir("HOME").or_else(|| sys::home_of(uid));
        let home_there = home.iter().map(|home| ("HOME".into(), home.clone().into()));
        let host = Host {
            uid,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            home: home.clone(),
            cache_home: dir("XDG_CACHE_HOME"),
            runtime_dir: dir("XDG_RUNTIME_DIR"),
            credentials: dir("CREDENTIALS_DIRECTORY"),
            bearer: text("CACHEDIRFS_BEARER_TOKEN").map(Secret::new),
            environment: Environment::new(std::env::vars_os().chain(home_there).filter_map(
                |(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)),
            )),
            options: text("CACHEDIRFS_OPTIONS"),
            log_filter: text("CACHEDIRFS_LOG"),
            shared_log_filter: text("RUST_LOG"),
            user_id: sys::user_id,
            group_id: sys::group_id,
            disk_size,
        };
        Self {
            host,
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog: text("WATCHDOG_USEC")
                .filter(|_| {
                    text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string())
                })
                .and_then(|micros| micros.parse().ok())
                .filter(|micros| *micros > 0),
            journal_stream: std::env::var_os("JOURNAL_STREAM"),
            path: std::env::var_os("PATH"),
            handover: text(Relaunch::VARIABLE).and_then(|number| number.parse().ok()),
        }
    }

    /// How this program was started.
    fn relaunch(&self) -> Relaunch {
        Relaunch {
            args: std::env::args_os().collect(),
            directory: self.host.cwd.clone(),
            environment: std::env::vars_os()
                .filter(|(name, _)| name != Relaunch::VARIABLE)
                .collect(),
        }
    }

    fn run_dir(&self) -> PathBuf {
        places::run_dir(&self.host)
    }

    /// Who reads standard error. It is the journal if it is the stream that systemd says it made.
    fn audience(&self) -> Audience {
        let stderr = std::fs::metadata("/proc/self/fd/2");
        let stream = stderr.map(|meta| format!("{}:{}", meta.dev(), meta.ino()));
        match (stream, &self.journal_stream) {
            (Ok(stream), Some(journal)) if *journal == *stream => Audience::Journal,
            _ => Audience::Stderr,
        }
    }
}

/// The size of the file system that holds `path`, or would hold it.
fn disk_size(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|dir| dir.exists())?;
    sys::file_system_size(existing).ok()
}

/// Prints what was asked for. A reader that has had enough is no error.
fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints help, or what is wrong with a command line.
fn print_usage(usage: &clap::Error) {
    let _ = usage.print();
}

/// Prints what somebody has to know.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "cachedirfs: {text}");
}

/// `1 object`, `2 objects`.
fn plural(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

/// `1 object is` or `2 objects are`, of those that a remote lacks.
fn objects_are(number: u64) -> String {
    let verb = if number == 1 { "is" } else { "are" };
    format!("{} {verb}", plural(number, "object"))
}

/// `path` as the mount table has it: absolute and without symbolic links, also when a dead mount is at its end.
fn real_path(path: &Path, cwd: &Path) -> PathBuf {
    let path: PathBuf = cwd.join(path).components().collect();
    // What the mount table tells is not looked at: an automounter would take that for a use, and mount it or keep it.
    let is_told = |m: &Mounted| m.mountpoint == path || m.is_automounter();
    if MountTable::read().is_ok_and(|table| table.containing(&path).is_some_and(is_told)) {
        return path;
    }
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path,
    }
}

/// What one sees mounted at `mountpoint`, by the mount table.
fn topmost(mountpoint: &Path) -> Result<Option<Mounted>, String> {
    let table = MountTable::read().map_err(|err| format!("cannot read the mount table: {err}"))?;
    Ok(table.at(mountpoint).cloned())
}

/// Our mount at `mountpoint`, or what is there instead.
fn our_mount(mountpoint: &Path) -> Result<Mounted, String> {
    match topmost(mountpoint)? {
        Some(mounted) if mounted.is_ours() => Ok(mounted),
        Some(other) => Err(format!(
            "a {} is mounted there, not a cachedirfs",
            other.fs_type
        )),
        None => Err("nothing is mounted there".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn one_is_singular() {
        assert_eq!(objects_are(1), "1 object is");
        assert_eq!(objects_are(2), "2 objects are");
        assert_eq!(plural(0, "byte"), "0 bytes");
    }

    #[test]
    fn the_definitions_hold_together() {
        Args::command().debug_assert();
    }
}
