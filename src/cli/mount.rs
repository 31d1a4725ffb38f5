//! `cachedirfs mount`: checks what can be checked, then goes into the background and waits until the mount answers.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::SystemClock;
use crate::config::shown::shown;
use crate::config::{Config, options};
use crate::daemon::{self, Side, Supervisor, Watchdog};
use crate::logging::{self, Audience};
use crate::mount::Resolve;
use crate::mount::handover::State;
use crate::sys;

use super::configure::{self, Typed, resolver};
use super::{Env, Exit, Failure, complain, preflight, real_path, say, warden};

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
    if let Some(number) = env.handover {
        return resume(request, number, env);
    }
    let mut config = configure::mounted(&request.typed, env)?;
    config.relaunch = Some(env.relaunch());
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

/// Goes on with a mount that the program before left to this one, which is the same process. If that fails, the mount
/// goes: nobody could answer it any more.
fn resume(request: &Request, number: i32, env: &Env) -> Result<Exit, Failure> {
    let taken = State::take(number).map_err(|err| err.to_string());
    let with_typed = taken.and_then(|state| Ok((Typed::handed_over(state.typed())?, state)));
    // With the old options at least the mountpoint and the log are known.
    let typed = match &with_typed {
        Ok((typed, _)) => typed.clone(),
        Err(_) => request.typed.clone(),
    };
    let lost = |mountpoint: &Path, why: String| {
        let shown = mountpoint.display();
        log::error!("cannot take {shown} over, it is unmounted: {why}");
        if let Err(err) = sys::unmount(mountpoint, true) {
            log::error!("cannot unmount {shown}: {err}");
        }
        Failure::new(Exit::Mount, format!("cannot take {shown} over: {why}"))
    };
    let mut config = configure::mounted(&typed, env).map_err(|failure| {
        let mountpoint = typed.mountpoint.clone().unwrap_or_default();
        lost(&mountpoint, failure.message)
    })?;
    config.relaunch = Some(env.relaunch());
    let (audience, supervisor, _line) = match request.foreground {
        true => (env.audience(), supervisor(&config, env), Ok(None)),
        false => (
            Audience::Syslog,
            Ok(Supervisor::default()),
            attendant(&config),
        ),
    };
    // Without somebody to watch it the mount is still better than none.
    let supervisor = supervisor.unwrap_or_default();
    let mountpoint = config.mountpoint.clone();
    let go_on = || -> Result<(), String> {
        logging::start(&config.log, audience).map_err(|err| err.to_string())?;
        let (_, state) = with_typed?;
        if !request.foreground {
            std::env::set_current_dir("/").map_err(|err| format!("cannot go to /: {err}"))?;
        }
        let (clock, resolve) = (SystemClock::shared(), resolver(&typed, env));
        let ready = || Ok(());
        let served = daemon::serve(config, clock, resolve, Some(state), &supervisor, ready);
        served.map(drop).map_err(|err| err.to_string())
    };
    go_on().map_err(|why| lost(&mountpoint, why))?;
    Ok(Exit::Done)
}

/// Whoever supervises a daemon in the foreground. To be called before there are threads, or anything is open that is not
/// the warden's business.
fn supervisor(config: &Config, env: &Env) -> io::Result<Supervisor> {
    let line = env.watchdog.map(|micros| {
        let line = warden::start(&config.mountpoint, false)?;
        Ok::<_, io::Error>(Watchdog::new(Duration::from_micros(micros), line))
    });
    Ok(Supervisor::new(
        env.notify_socket.clone(),
        line.transpose()?,
    ))
}

/// Whoever takes the mount away if its daemon dies, where a dead one would keep an automounter from mounting anew. It ends with
/// this process. To be called as `supervisor` is.
fn attendant(config: &Config) -> io::Result<Option<UnixStream>> {
    let automounted = preflight::is_automounted(&config.mountpoint);
    let line = automounted.then(|| warden::start(&config.mountpoint, true));
    line.transpose()
}

fn foreground(
    config: Config,
    resolve: Box<dyn Resolve>,
    env: &Env,
    mounted: impl FnOnce(),
) -> Result<Exit, Failure> {
    let supervisor = supervisor(&config, env).map_err(|err| cannot(&config, err))?;
    logging::start(&config.log, env.audience()).map_err(|err| cannot(&config, err))?;
    let shown = config.clone();
    let ready = || {
        mounted();
        Ok(())
    };
    let clock = SystemClock::shared();
    let served = daemon::serve(config, clock, resolve, None, &supervisor, ready);
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
        Side::Daemon(messenger) => return Ok(attended(config, resolve, messenger)),
    }
    mounted();
    Ok(Exit::Done)
}

/// The daemon's side.
fn attended(config: Config, resolve: Box<dyn Resolve>, messenger: daemon::Messenger) -> Exit {
    match attendant(&config) {
        Err(err) => {
            messenger.failed(&format!("cannot start what watches the mount: {err}"));
            Exit::Mount
        }
        Ok(_line) => serve_in_background(config, resolve, messenger),
    }
}

/// Serves in the background. Until it is ready its news go to the starter, who prints them; then they go to the log.
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
    let served = daemon::serve(config, clock, resolve, None, &supervisor, ready);
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
