//! `cachedirfs mount`: checks what can be checked, then goes into the background and waits until the mount answers.

use std::path::{Path, PathBuf};

use crate::clock::SystemClock;
use crate::config::{Config, options};
use crate::daemon::{self, Side, Supervisor};
use crate::logging::{self, Audience};
use crate::mount::MountError;
use crate::mount::handover::State;
use crate::sys;

use super::{Env, Exit, Failure, complain, preflight, real_path};

/// Mount a remote cache on a directory
///
/// Returns when the mount answers, or with the reason why it does not.
#[derive(clap::Args)]
#[command(after_help = options::help())]
pub(super) struct Args {
    /// URL of the remote, see cachedirfs(1); several are separated by white space
    remote: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Options, as below
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
}

/// What is to be mounted, and how.
pub(super) struct Request<'a> {
    pub(super) remote: &'a str,
    pub(super) mountpoint: &'a Path,
    pub(super) options: &'a [String],
    pub(super) foreground: bool,
    /// Only checks what can be checked.
    pub(super) fake: bool,
    pub(super) verbose: bool,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let request = Request {
        remote: &args.remote,
        mountpoint: &args.mountpoint,
        options: &args.options,
        foreground: args.foreground,
        fake: false,
        verbose: false,
    };
    start(&request, env)
}

pub(super) fn start(request: &Request<'_>, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = real_path(request.mountpoint, &env.host.cwd);
    let mut config = Config::new(request.remote, &mountpoint, request.options, &env.host)
        .map_err(|err| Failure::new(Exit::Usage, err))?;
    config.relaunch = Some(env.relaunch());
    if let Some(number) = env.handover {
        return resume(config, number, request.foreground, env);
    }
    let warnings =
        preflight::check(&config, env.path.as_deref()).map_err(|why| cannot(&config, why))?;
    let (remote, shown) = (config.remote_shown(), mountpoint.display().to_string());
    let mounted = || {
        warnings.iter().for_each(complain);
        if request.verbose {
            complain(format_args!("{remote} mounted on {shown}"));
        }
    };
    match request {
        Request { fake: true, .. } => {
            mounted();
            Ok(Exit::Done)
        }
        Request {
            foreground: true, ..
        } => foreground(config, env, mounted),
        _ => background(config, mounted),
    }
}

pub(super) fn cannot(config: &Config, why: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Mount,
        format!("cannot mount {}: {why}", config.mountpoint.display()),
    )
}

/// Goes on with a mount that the program before left to this one, which is the same process. If that fails, the mount
/// goes: nobody could answer it any more.
fn resume(config: Config, number: i32, foreground: bool, env: &Env) -> Result<Exit, Failure> {
    let (audience, supervisor) = match foreground {
        true => (env.audience(), Supervisor::new(env.notify_socket.clone())),
        false => (Audience::Syslog, Supervisor::default()),
    };
    logging::start(&config.log, audience).map_err(|err| cannot(&config, err))?;
    let shown = config.clone();
    let served = State::take(number)
        .map_err(MountError::Io)
        .and_then(|state| {
            if !foreground {
                std::env::set_current_dir("/")?;
            }
            daemon::serve(
                config,
                SystemClock::shared(),
                Some(state),
                &supervisor,
                || Ok(()),
            )
        });
    served.map(|_| Exit::Done).map_err(|err| {
        log::error!(
            "cannot take {} over, it is unmounted: {err}",
            shown.mountpoint.display()
        );
        if let Err(err) = sys::unmount(&shown.mountpoint, true) {
            log::error!("cannot unmount {}: {err}", shown.mountpoint.display());
        }
        cannot(&shown, err)
    })
}

fn foreground(config: Config, env: &Env, mounted: impl FnOnce()) -> Result<Exit, Failure> {
    logging::start(&config.log, env.audience()).map_err(|err| cannot(&config, err))?;
    let supervisor = Supervisor::new(env.notify_socket.clone());
    let shown = config.clone();
    let ready = || {
        mounted();
        Ok(())
    };
    let served = daemon::serve(config, SystemClock::shared(), None, &supervisor, ready);
    served.map_err(|err| cannot(&shown, err))?;
    Ok(Exit::Done)
}

fn background(config: Config, mounted: impl FnOnce()) -> Result<Exit, Failure> {
    let side = daemon::split()
        .map_err(|err| cannot(&config, format!("cannot go into the background: {err}")))?;
    match side {
        Side::Starter(starter) => starter.wait().map_err(|why| cannot(&config, why))?,
        Side::Daemon(messenger) => return Ok(serve_in_background(config, messenger)),
    }
    mounted();
    Ok(Exit::Done)
}

/// The daemon's side. Until it is ready its news go to the starter, who prints them; then they go to the log.
pub(super) fn serve_in_background(config: Config, messenger: daemon::Messenger) -> Exit {
    if let Err(err) = logging::start(&config.log, Audience::Syslog) {
        messenger.failed(&err.to_string());
        return Exit::Mount;
    }
    let mut messenger = Some(messenger);
    let ready = || messenger.take().map_or(Ok(()), daemon::Messenger::ready);
    let served = daemon::serve(
        config,
        SystemClock::shared(),
        None,
        &Supervisor::default(),
        ready,
    );
    match (served, messenger) {
        (Ok(_), _) => Exit::Done,
        (Err(err), Some(messenger)) => {
            messenger.failed(&err.to_string());
            Exit::Mount
        }
        (Err(err), None) => {
            log::error!("{err}");
            Exit::Mount
        }
    }
}
