//! The life of a mount's process: into the background and back with the news, signals, the supervisor.
//!
//! [`split`] is called before any thread exists. [`serve`] runs a mount from its start to its end and is the same in
//! the foreground and in the background. What a mount is made of is `mount`'s business.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Config;
use crate::mount::handover::State;
use crate::mount::{Handle, Mount, MountError, Resolve, Summary};
use crate::stop::Stop;
use crate::sys::{self, EndSignals, Forked};

/// What the child says when all is well. A reason why not never begins like this.
const READY: &[u8] = b"\0ready";

/// Time that a supervisor is asked for beyond the draining, to unmount and to persist the index.
const ENDING: Duration = Duration::from_secs(10);

/// How long a supervisor that is busy is waited for, to tell it something.
const TELLING: Duration = Duration::from_secs(1);

/// Signs of life that a supervisor gets in the time in which it wants one.
const SIGNS: u32 = 3;

/// The two processes after [`split`].
#[derive(Debug)]
pub enum Side {
    /// The one that was started by the user, and waits.
    Starter(Starter),
    /// The one in the background.
    Daemon(Messenger),
}

/// Waits for the daemon's news.
#[derive(Debug)]
pub struct Starter {
    child: sys::Child,
    news: File,
}

/// Carries the daemon's news to the starter.
#[derive(Debug)]
pub struct Messenger(File);

/// Goes into the background: the daemon gets `/` as its working directory, and none of the descriptors that were left
/// open for it; a session of its own when it is ready, and its standard error stays until then.
///
/// Until the mount stands it must be in the process group that it was started in: where it is an automounter's, the
/// kernel lets only that group pass the trigger that the mount goes over, and has everybody else wait for the mount.
pub fn split() -> io::Result<Side> {
    let (news, messenger) = sys::pipe()?;
    match sys::fork()? {
        Forked::Parent(child) => Ok(Side::Starter(Starter {
            child,
            news: news.into(),
        })),
        Forked::Child => {
            drop(news);
            let messenger = sys::close_inherited(messenger)?;
            std::env::set_current_dir("/")?;
            Ok(Side::Daemon(Messenger(messenger.into())))
        }
    }
}

impl Starter {
    /// Returns when the daemon is ready, or with its reason why not.
    pub fn wait(mut self) -> Result<(), String> {
        let mut news = Vec::new();
        self.news
            .read_to_end(&mut news)
            .map_err(|err| format!("waiting for the daemon: {err}"))?;
        match news.as_slice() {
            READY => Ok(()),
            [] => Err(self.obituary()),
            reason => Err(String::from_utf8_lossy(reason).into_owned()),
        }
    }

    fn obituary(&self) -> String {
        let how = match self.child.wait() {
            Ok(status) => match status.signal() {
                Some(signal) => format!("was killed by signal {signal}"),
                None => format!("ended with status {}", status.code().unwrap_or_default()),
            },
            Err(err) => format!("is lost ({err})"),
        };
        format!("the daemon {how} before the mount was ready; run it with --foreground to see why")
    }
}

impl Messenger {
    /// Tells the starter that the mount answers, and lets go of its session and its terminal.
    /// An error means that nobody waits any more: whoever asked for the mount has gone.
    pub fn ready(mut self) -> io::Result<()> {
        sys::new_session()?;
        sys::stdio_to_null()?;
        self.0.write_all(READY)
    }

    /// Tells the starter why there will be no mount.
    pub fn failed(mut self, reason: &str) {
        let reason = if reason.is_empty() {
            "no reason given"
        } else {
            reason
        };
        let _ = self.0.write_all(reason.as_bytes());
    }
}

/// The supervisor that is told how things stand: systemd, by the protocol of sd_notify(3).
#[derive(Debug, Default)]
pub struct Supervisor {
    address: Option<SocketAddr>,
    watchdog: Option<Watchdog>,
}

/// Has the supervisor know that the mount answers, as often as it wants to.
#[derive(Debug)]
pub struct Watchdog {
    every: Duration,
    line: UnixStream,
}

impl Watchdog {
    /// For a supervisor that waits so long for a sign of life before it ends us. `line` is that to a process which
    /// answers each byte when the mount has answered it.
    pub fn new(patience: Duration, line: UnixStream) -> Self {
        Self {
            every: patience / SIGNS,
            line,
        }
    }

    /// Returns when the mount has answered, or when it is over.
    fn ask(&self, over: &Stop) -> io::Result<()> {
        let mut line = &self.line;
        line.write_all(&[0])?;
        sys::poll_readable(&[line.as_fd(), over.as_fd()], None)?;
        if over.asked() {
            return Ok(());
        }
        line.read_exact(&mut [0])
    }
}

impl Supervisor {
    /// The one at NOTIFY_SOCKET, if that is set.
    pub fn new(notify_socket: Option<std::ffi::OsString>, watchdog: Option<Watchdog>) -> Self {
        let address =
            notify_socket
                .map(OsStringExt::into_vec)
                .and_then(|name| match name.as_slice() {
                    [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
                    path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)).ok(),
                });
        Self { address, watchdog }
    }

    /// Gives signs of life until it is over, as long as the mount answers. A mount that hangs gives none; one that is slow
    /// has all the time between two of them to answer.
    fn keep_informed(&self, over: &Stop) {
        let Some(watchdog) = &self.watchdog else {
            return;
        };
        let mut asked = true;
        while !over.asked() {
            if asked && let Err(err) = watchdog.ask(over) {
                // It is better not watched than ended for no reason of its own.
                log::error!("nobody asks the mount any more whether it answers: {err}");
                asked = false;
            }
            self.tell("WATCHDOG=1");
            if sys::poll_readable(&[over.as_fd()], Some(watchdog.every)).is_err() {
                return;
            }
        }
    }

    fn ready(&self, config: &Config) {
        self.tell(&format!(
            "READY=1\nSTATUS={} on {}",
            config.remote,
            config.mountpoint.display()
        ));
    }

    /// The configuration is read again; [`Supervisor::ready`] says when that is done.
    fn reloading(&self) {
        let micros = sys::monotonic_micros();
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    fn stopping(&self, drain_timeout: Duration) {
        let micros = drain_timeout.saturating_add(ENDING).as_micros();
        self.tell(&format!(
            "STOPPING=1\nSTATUS=draining uploads\nEXTEND_TIMEOUT_USEC={micros}"
        ));
    }

    /// A supervisor that does not listen is its own problem.
    fn tell(&self, state: &str) {
        let Some(address) = &self.address else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(TELLING))?;
            socket.send_to_addr(state.as_bytes(), address)
        });
        if let Err(err) = sent {
            log::warn!("cannot tell the supervisor at {address:?}: {err}");
        }
    }
}

/// Mounts, calls `ready` when the mount answers, and stays until it is unmounted and drained. If `ready` fails, it unmounts again.
///
/// The first SIGTERM or SIGINT asks to unmount, and one more to leave the draining. SIGHUP reads the configuration file again
/// and opens the log and the event log anew; but at a terminal it means that the terminal has gone, and is like SIGTERM.
///
/// With a state it goes on with the mount that another program left to this one.
pub fn serve(
    config: Config,
    clock: Arc<dyn Clock>,
    resolve: Box<dyn Resolve>,
    state: Option<State>,
    supervisor: &Supervisor,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<Summary, MountError> {
    let signals = EndSignals::block()?;
    let over = Stop::new()?;
    let at_terminal = File::open(TERMINAL).is_ok();
    let taken_over = state.is_some();
    let mount = match state {
        None => Mount::start(config, clock, resolve)?,
        Some(state) => Mount::resume(config, clock, resolve, state)?,
    };
    let handle = mount.handle();
    let shown = handle.config();
    let (remote, mountpoint) = (&shown.remote, shown.mountpoint.display());
    match taken_over {
        false => log::info!("{remote} is mounted on {mountpoint}"),
        true => log::info!("{remote} is taken over on {mountpoint}"),
    }
    match ready() {
        Ok(()) => supervisor.ready(&shown),
        Err(_) => handle.stop(),
    }
    let summary = thread::scope(|scope| {
        scope.spawn(|| {
            watch(&signals, &over, &|signal| match signal {
                SIGHUP if !at_terminal => reload(&handle, supervisor),
                _ => {
                    log::info!("stopping on signal {signal}");
                    supervisor.stopping(handle.config().drain_timeout);
                    handle.stop();
                }
            });
        });
        scope.spawn(|| supervisor.keep_informed(&over));
        let _watched_until_here = over.ask_on_drop();
        mount.wait()
    });
    log_end(&handle.config(), &summary);
    Ok(summary)
}

/// What a process with a terminal can open.
const TERMINAL: &str = "/dev/tty";
/// As signals are read.
const SIGHUP: u32 = libc::SIGHUP.unsigned_abs();

/// Reads the configuration again. What cannot be done is said in the log, and leaves everything as it was.
fn reload(handle: &Handle, supervisor: &Supervisor) {
    supervisor.reloading();
    match handle.reload() {
        Ok(changes) if changes.is_empty() => {
            log::info!("configuration read again: nothing has changed");
        }
        Ok(_) => log::info!("configuration read again"),
        Err(why) => log::error!("cannot change as the configuration says: {why}"),
    }
    supervisor.ready(&handle.config());
}

/// Calls `each` for every signal, until it is over.
fn watch(signals: &EndSignals, over: &Stop, each: &dyn Fn(u32)) {
    while !over.asked() {
        if let Err(err) = sys::poll_readable(&[signals.as_fd(), over.as_fd()], None) {
            log::error!("waiting for signals: {err}");
            return;
        }
        while let Some(signal) = signals.take() {
            each(signal);
        }
    }
}

fn log_end(config: &Config, summary: &Summary) {
    let mountpoint = config.mountpoint.display();
    log::info!("{mountpoint} in short: {}", summary.line);
    match summary.pending_left {
        0 => log::info!("{mountpoint} is unmounted; everything pushed is on the remote"),
        1 => log::warn!(
            "{mountpoint} is unmounted; 1 object is not on the remote yet, it is kept in {} for the next mount",
            config.backing.display()
        ),
        left => log::warn!(
            "{mountpoint} is unmounted; {left} objects are not on the remote yet, they are kept in {} for the next mount",
            config.backing.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_is_told_at_a_path_or_in_the_abstract() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("cachedirfs-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (socket, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{abstract_name}").into(),
            ),
        ] {
            Supervisor::new(Some(name), None).stopping(Duration::from_secs(60));
            let mut told = [0; 200];
            let len = socket.recv(&mut told).unwrap();
            let told = std::str::from_utf8(&told[..len]).unwrap();
            assert!(
                told.starts_with("STOPPING=1\n") && told.ends_with("EXTEND_TIMEOUT_USEC=70000000"),
                "{told}"
            );
        }
        Supervisor::new(None, None).stopping(Duration::MAX);
    }

    #[test]
    fn nobody_forks_once_there_are_threads() {
        let refused = thread::spawn(sys::fork).join().unwrap();
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("more than one thread")
        );
    }
}
