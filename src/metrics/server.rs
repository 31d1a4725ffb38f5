//! The HTTP server of `metrics=ADDR`: one loop over all connections, in one thread.
//!
//! Requests are parsed by `httparse`; the rest is a hundred lines, since what there is to take starts a thread for each
//! connection and waits for slow ones (tiny_http), or is asynchronous (hyper). Connections are bounded in number, in time and in
//! what they may send, each carries one answer, and nothing here waits for any of them: a newcomer takes the place of the
//! oldest. However many ask, the mount is looked at four times a second at most.
//!
//! An address that cannot be had is no reason not to mount: it is said once and tried again.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};

use super::history::{History, Sample, Span};
use super::{page, prometheus};
use crate::clock::Clock;
use crate::control::Status;
use crate::stats::Stats;
use crate::stop::Stop;

mod connection;

use connection::{Asked, Connection, Reply};

/// Most connections; one more takes the place of the oldest.
const MAX_CONNECTIONS: usize = 32;
/// For so long a status is shown again.
const FRESH: Duration = Duration::from_millis(250);
/// How often an address is tried again that cannot be had.
const AGAIN: Duration = Duration::from_secs(10);
/// A pause when accepting failed: there are no descriptors, and trying again at once would not make any.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the server stands, for the status to tell.
#[derive(Debug, Default)]
pub struct Standing(Mutex<Option<Result<SocketAddr, String>>>);

impl Standing {
    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.get().as_ref().and_then(|at| at.as_ref().ok().copied())
    }

    /// Why it does not, although it should.
    pub fn trouble(&self) -> Option<String> {
        self.get()
            .as_ref()
            .and_then(|at| at.as_ref().err().cloned())
    }

    fn get(&self) -> MutexGuard<'_, Option<Result<SocketAddr, String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells how the mount is.
pub type Figures = Box<dyn Fn() -> Status + Send + Sync>;

/// The server of one mount.
pub struct Server {
    address: SocketAddr,
    figures: Figures,
    stats: Arc<Stats>,
    clock: Arc<dyn Clock>,
    standing: Arc<Standing>,
    /// When the mount began, in seconds since 1970.
    started: u64,
    /// Only the loop uses it; it outlives one that panicked.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listener: Option<TcpListener>,
    try_again: Duration,
    history: History,
    status: Option<(Duration, Arc<Status>)>,
}

impl Server {
    /// Listens, if the address can be had; says so in `standing` and in the log.
    pub fn new(
        address: SocketAddr,
        figures: Figures,
        stats: Arc<Stats>,
        clock: Arc<dyn Clock>,
        standing: Arc<Standing>,
    ) -> Self {
        // What another program has handed over began before this one.
        let started = unix(&*clock).saturating_sub(figures().uptime_seconds);
        let server = Self {
            address,
            figures,
            stats,
            clock,
            standing,
            started,
            state: Mutex::default(),
        };
        if !address.ip().is_loopback() {
            log::warn!(
                "metrics are shown to everybody who can reach {address}: nobody is asked for a password"
            );
        }
        server.listen(&mut server.state());
        server
    }

    /// Serves until `stop` is asked.
    pub fn run(&self, stop: &Stop) {
        let mut state = self.state();
        let mut connections = Vec::new();
        while !stop.asked() {
            if let Err(e) = self.turn(stop, &mut state, &mut connections) {
                log::warn!("metrics at {}: {e}", self.address);
                self.clock.sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, state: &mut State) {
        state.try_again = self.clock.now() + AGAIN;
        let bound = TcpListener::bind(self.address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let mut standing = self.standing.get();
        match bound {
            Ok((listener, address)) => {
                log::info!("metrics and the status page are at http://{address}/");
                state.listener = Some(listener);
                *standing = Some(Ok(address));
            }
            Err(e) => {
                let why = format!(
                    "cannot serve metrics at {}: {e}; trying again every {} s",
                    self.address,
                    AGAIN.as_secs()
                );
                if standing.is_none() {
                    log::warn!("{why}");
                }
                *standing = Some(Err(why));
            }
        }
    }

    /// Waits for something to happen, and deals with all that did.
    fn turn(
        &self,
        stop: &Stop,
        state: &mut State,
        connections: &mut Vec<Connection>,
    ) -> io::Result<()> {
        let now = self.clock.now();
        if state.listener.is_none() && now >= state.try_again {
            self.listen(state);
        }
        if state.history.due_in(now).is_zero() {
            let sample = self.sample(&self.status(state));
            state.history.add(sample);
        }
        let ready = wait(stop, state, connections, self.clock.now())?;
        let now = self.clock.now();
        let mut ready_ones = ready.connections.iter();
        connections.retain_mut(|connection| {
            let ready = ready_ones.next().copied().unwrap_or_default();
            connection.attend(ready, now, &mut |asked| self.reply(state, asked))
        });
        match &state.listener {
            Some(listener) if ready.listener => accept(listener, connections, now),
            _ => Ok(()),
        }
    }

    /// The status, not older than [`FRESH`].
    fn status(&self, state: &mut State) -> Arc<Status> {
        let now = self.clock.now();
        match &state.status {
            Some((at, status)) if now < *at + FRESH => status.clone(),
            _ => {
                let status = Arc::new((self.figures)());
                state.status = Some((now, status.clone()));
                status
            }
        }
    }

    fn sample(&self, status: &Status) -> Sample {
        Sample::of(status, self.clock.now(), unix(&*self.clock))
    }

    fn reply(&self, state: &mut State, asked: Asked<'_>) -> Reply {
        let status = self.status(state);
        let now = self.sample(&status);
        let date = now.figures[0];
        let page = |span, state: &State| {
            Reply::ok(
                "text/html; charset=utf-8",
                page::render(&status, &state.history, span, now),
            )
        };
        let reply = match asked {
            Asked::Path("/") => page(Span::Hour, state),
            Asked::Path("/?day") => page(Span::Day, state),
            Asked::Path("/metrics") => {
                let text = prometheus::render(&status, &self.stats.times, self.started);
                Reply::ok(prometheus::CONTENT_TYPE, text)
            }
            Asked::Path("/status.json") => json(serde_json::to_vec_pretty(&*status)),
            Asked::Path("/history.json") => json(state.history.json(now)),
            Asked::Path(_) => Reply::error(
                "404 Not Found",
                "there are /, /metrics, /status.json and /history.json",
            ),
            Asked::OtherMethod => {
                Reply::error("405 Method Not Allowed", "only GET and HEAD are answered")
            }
            Asked::TooMuch => Reply::error(
                "431 Request Header Fields Too Large",
                "the request is too long",
            ),
            Asked::Nonsense => Reply::error("400 Bad Request", "that is no HTTP"),
        };
        reply.at(date)
    }
}

fn json(written: serde_json::Result<Vec<u8>>) -> Reply {
    match written {
        Ok(bytes) => Reply::ok("application/json", bytes),
        Err(e) => Reply::error("500 Internal Server Error", &e.to_string()),
    }
}

/// What is ready to be dealt with.
struct Ready {
    listener: bool,
    connections: Vec<bool>,
}

fn wait(
    stop: &Stop,
    state: &State,
    connections: &[Connection],
    now: Duration,
) -> io::Result<Ready> {
    let mut fds = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
    fds.extend(connections.iter().map(Connection::poll));
    let listener = state.listener.as_ref();
    fds.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
    let deadlines = connections.iter().map(|connection| connection.ends_in(now));
    let bind = listener
        .is_none()
        .then(|| state.try_again.saturating_sub(now));
    let timeout = deadlines
        .chain(bind)
        .min()
        .unwrap_or(Duration::MAX)
        .min(state.history.due_in(now));
    // A millisecond more, so that what is waited for is over then.
    let timeout = (timeout + Duration::from_millis(1))
        .try_into()
        .map_err(io::Error::other)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    Ok(Ready {
        listener: listener.is_some() && ready.last().copied().unwrap_or_default(),
        connections: ready[1..=connections.len()].to_vec(),
    })
}

fn accept(
    listener: &TcpListener,
    connections: &mut Vec<Connection>,
    now: Duration,
) -> io::Result<()> {
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::WouldBlock | ErrorKind::ConnectionAborted | ErrorKind::Interrupted
            ) =>
        {
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    if connections.len() >= MAX_CONNECTIONS {
        connections.remove(0);
    }
    connections.push(Connection::new(stream, now)?);
    Ok(())
}

fn unix(clock: &dyn Clock) -> u64 {
    clock
        .wall()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests;
