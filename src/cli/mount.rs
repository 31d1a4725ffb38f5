//! `cachedirfs mount`: checks what can be checked, then goes into the background and waits until the mount answers.

use std::path::PathBuf;

use crate::clock::SystemClock;
use crate::config::shown::shown;
use crate::config::{Config, options};
use crate::daemon::{self, Side, Supervisor};
use crate::logging::{self, Audience};
use crate::mount::Resolve;

use super::configure::{self, Typed, resolver};
use super::{Env, Exit, Failure, complain, preflight, real_path, say};

/// Mount a remote cache on a directory
///
/// Returns when the mount answers, or with the reason why it does not.
#[derive(clap::Args)]
#[command(after_help = options::help())]
pub(super) struct Args {
    /// URL of the remote, see cachedirfs(1); several are separated by white space. May be left out with -o config=FILE
    remote: Option<String>,
    /// An existing directory. May be left out with -o config=FILE
    mountpoint: Option<PathBuf>,
    /// Options, as below
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Print every option, its value and where it comes from, as a configuration file, and mount nothing
    #[arg(long)]
    print_config: bool,
}

/// What is to be mounted, and how.
pub(super) struct Request {
    pub(super) typed: Typed,
    pub(super) foreground: bool,
    /// Only checks what can be checked.
    pub(super) fake: bool,
    pub(super) verbose: bool,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = args.mountpoint.as_deref();
    let typed = Typed {
        remote: args.remote.clone(),
        mountpoint: mountpoint.map(|path| real_path(path, &env.host.cwd)),
        options: args.options.clone(),
    };
    if args.print_config {
        shown(&configure::mounted(&typed, env)?)
            .iter()
            .for_each(say);
        return Ok(Exit::Done);
    }
    let request = Request {
        typed,
        foreground: args.foreground,
        fake: false,
        verbose: false,
    };
    start(&request, env)
}

pub(super) fn start(request: &Request, env: &Env) -> Result<Exit, Failure> {
    let config = configure::mounted(&request.typed, env)?;
    let mountpoint = config.mountpoint.clone();
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
        } => foreground(config, resolver(&request.typed, env), env, mounted),
        _ => background(config, resolver(&request.typed, env), mounted),
    }
}

pub(super) fn cannot(config: &Config, why: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Mount,
        format!("cannot mount {}: {why}", config.mountpoint.display()),
    )
}

fn foreground(
    config: Config,
    resolve: Box<dyn Resolve>,
    env: &Env,
    mounted: impl FnOnce(),
) -> Result<Exit, Failure> {
    logging::start(&config.log, env.audience()).map_err(|err| cannot(&config, err))?;
    let supervisor = Supervisor::new(env.notify_socket.clone());
    let shown = config.clone();
    let ready = || {
        mounted();
        Ok(())
    };
    let served = daemon::serve(config, SystemClock::shared(), resolve, &supervisor, ready);
    served.map_err(|err| cannot(&shown, err))?;
    Ok(Exit::Done)
}

fn background(
    config: Config,
    resolve: Box<dyn Resolve>,
    mounted: impl FnOnce(),
) -> Result<Exit, Failure> {
    let side = daemon::split()
        .map_err(|err| cannot(&config, format!("cannot go into the background: {err}")))?;
    match side {
        Side::Starter(starter) => starter.wait().map_err(|why| cannot(&config, why))?,
        Side::Daemon(messenger) => return Ok(serve_in_background(config, resolve, messenger)),
    }
    mounted();
    Ok(Exit::Done)
}

/// The daemon's side. Until it is ready its news go to the starter, who prints them; then they go to the log.
pub(super) fn serve_in_background(
    config: Config,
    resolve: Box<dyn Resolve>,
    messenger: daemon::Messenger,
) -> Exit {
    if let Err(err) = logging::start(&config.log, Audience::Syslog) {
        messenger.failed(&err.to_string());
        return Exit::Mount;
    }
    let mut messenger = Some(messenger);
    let ready = || messenger.take().map_or(Ok(()), daemon::Messenger::ready);
    let (clock, supervisor) = (SystemClock::shared(), Supervisor::default());
    let served = daemon::serve(config, clock, resolve, &supervisor, ready);
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
