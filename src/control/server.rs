//! The mount's end of the control socket: one loop over all connections, in one thread.
//!
//! Connections are bounded in number and in time, and nothing here blocks on a client: one that never sends is
//! dropped after `PATIENCE` or when its place is needed, one that never reads has its answer dropped.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::clock::Clock;
use crate::stop::Stop;
use crate::sys;

use super::line::line;
use super::mounts::Device;
use super::{Answer, Controlled, MAX_LINE, Remounted, Request};

/// How long a client has to send its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most connections; one more takes the place of the oldest that has not asked anything yet, or waits.
const MAX_CONNECTIONS: usize = 64;
/// Answers what cannot be waited for any more.
const ENDING: &str = "the mount is ending; ask again when it is mounted";
/// How often it is seen whether a flush or a removal is done.
const FLUSH_PACE: Duration = Duration::from_millis(20);
/// A pause when accepting failed: there are no descriptors, and trying again at once would not make any.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The path of the control socket of the mount with that device number.
pub fn socket_path(run_dir: &Path, device: Device) -> PathBuf {
    run_dir.join(format!("{device}.sock"))
}

/// The listening socket of one mount. Its file goes when it is dropped.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    owner: u32,
    controlled: Arc<dyn Controlled>,
    clock: Arc<dyn Clock>,
}

impl Server {
    /// Listens for the mount with that device number. A socket that is there already was left by a daemon that
    /// died: device numbers of living mounts differ.
    pub fn bind(
        run_dir: &Path,
        device: Device,
        controlled: Arc<dyn Controlled>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let owner = sys::effective_uid();
        make_run_dir(run_dir, owner).map_err(|err| with_path(run_dir, err))?;
        let path = socket_path(run_dir, device);
        let listener = listen(&path, owner).map_err(|err| with_path(&path, err))?;
        let inode = std::fs::symlink_metadata(&path)?.ino();
        Ok(Self {
            listener,
            path,
            inode,
            owner,
            controlled,
            clock,
        })
    }

    /// Serves until `stop` is asked; then tells those who wait for the end what is left, and returns.
    /// So `stop` is to be asked when the mount has been drained.
    pub fn run(&self, stop: &Stop) {
        let mut connections = Vec::new();
        while !stop.asked() {
            if let Err(err) = self.turn(stop, &mut connections) {
                log::warn!("control socket {}: {err}", self.path.display());
                let _ = sys::poll_readable(&[stop.as_fd()], Some(ACCEPT_PAUSE));
            }
        }
        for connection in connections {
            connection.farewell(&*self.controlled);
        }
    }

    /// Waits for something to happen, and deals with all that did.
    fn turn(&self, stop: &Stop, connections: &mut Vec<Connection>) -> io::Result<()> {
        let now = self.clock.now();
        let mut fds = vec![stop.as_fd(), self.listener.as_fd()];
        fds.extend(connections.iter().map(|c| c.stream.as_fd()));
        let timeout = connections.iter().filter_map(|c| c.wake_after(now)).min();
        let readable = sys::poll_readable(&fds, timeout)?;

        let now = self.clock.now();
        let mut readable_connections = readable[2..].iter();
        connections.retain_mut(|connection| {
            let readable = *readable_connections
                .next()
                .expect("one for each that was polled");
            self.attend(connection, readable, now)
        });
        if readable[1] {
            self.accept(connections, now)?;
        }
        Ok(())
    }

    fn accept(&self, connections: &mut Vec<Connection>, now: Duration) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(err) => return Err(err),
        };
        if connections.len() >= MAX_CONNECTIONS {
            match connections
                .iter()
                .position(|c| matches!(c.state, State::Reading(_)))
            {
                Some(oldest) => drop(connections.remove(oldest)),
                None => return Ok(()),
            }
        }
        stream.set_nonblocking(true)?;
        connections.push(Connection {
            stream,
            since: now,
            state: State::Reading(Vec::new()),
        });
        Ok(())
    }

    /// Moves a connection on; says whether it stays.
    fn attend(&self, connection: &mut Connection, readable: bool, now: Duration) -> bool {
        match &mut connection.state {
            State::Reading(line) if readable => match read_line(&connection.stream, line) {
                Ok(None) => connection.since + PATIENCE > now,
                Ok(Some(request)) => self.begin(connection, request, now),
                Err(_) => false,
            },
            State::Reading(_) => connection.since + PATIENCE > now,
            // It hung up, or it talks out of turn.
            State::Flushing { .. } | State::Awaiting(_) | State::Parked if readable => false,
            State::Flushing { mark, until } => {
                let left = self.controlled.pending_before(*mark);
                if left > 0 && now < *until {
                    return true;
                }
                connection.answer(&Answer::Flushed { left });
                false
            }
            State::Awaiting(answer) => {
                let Some(answer) = answer() else { return true };
                connection.answer(&answer);
                false
            }
            State::Parked => true,
        }
    }

    fn begin(&self, connection: &mut Connection, request: Request, now: Duration) -> bool {
        let only_asks = matches!(
            request,
            Request::Status
                | Request::Divergent { .. }
                | Request::GivenUp { .. }
                | Request::Entry { remotes: false, .. }
        );
        if !only_asks && !self.may_command(&connection.stream) {
            connection.answer(&Answer::Error(
                "only root and the owner of the mount may do that".into(),
            ));
            return false;
        }
        match request {
            Request::Status => {
                connection.answer(&Answer::Status(Box::new(self.controlled.status())));
                false
            }
            Request::Divergent { after } => {
                connection.answer(&Answer::Divergent(self.controlled.divergent(after)));
                false
            }
            Request::GivenUp { after } => {
                connection.answer(&Answer::GivenUp(self.controlled.given_up(after)));
                false
            }
            Request::Remove(removal) => {
                let removed = self.controlled.remove(removal);
                self.wait(
                    connection,
                    removed.map(|removed| awaited(removed, Answer::Removed)),
                    now,
                )
            }
            Request::Entry { signature, remotes } => {
                let entry = self.controlled.entry(&signature, remotes);
                self.wait(
                    connection,
                    entry.map(|entry| awaited(entry, Answer::Entry)),
                    now,
                )
            }
            Request::Remount(wanted) => {
                let answer =
                    |changed: Remounted| changed.map_or_else(Answer::Error, Answer::Remounted);
                let changed = self.controlled.remount(wanted);
                self.wait(
                    connection,
                    changed.map(|changed| awaited(changed, answer)),
                    now,
                )
            }
            Request::Flush { timeout_ms } => {
                let patience = if self.controlled.uploads() {
                    Duration::from_millis(timeout_ms)
                } else {
                    Duration::ZERO
                };
                let until = now.saturating_add(patience);
                connection.state = State::Flushing {
                    mark: self.controlled.mark(),
                    until,
                };
                self.attend(connection, false, now)
            }
            Request::Upgrade { program, format } => {
                let why = self.controlled.hand_over(&program, format);
                connection.answer(&Answer::Error(why));
                false
            }
            Request::Stop {
                unmount,
                drain_timeout_ms,
            } => {
                if let Some(millis) = drain_timeout_ms {
                    self.controlled
                        .set_drain_timeout(Duration::from_millis(millis));
                }
                if unmount {
                    self.controlled.stop();
                }
                connection.state = State::Parked;
                connection.acknowledge()
            }
        }
    }

    /// Has the connection wait for its answer, unless there is a reason why there will be none.
    fn wait(
        &self,
        connection: &mut Connection,
        answer: Result<Awaited, String>,
        now: Duration,
    ) -> bool {
        match answer {
            Ok(answer) => {
                connection.state = State::Awaiting(answer);
                self.attend(connection, false, now)
            }
            Err(why) => {
                connection.answer(&Answer::Error(why));
                false
            }
        }
    }

    fn may_command(&self, stream: &UnixStream) -> bool {
        sys::peer(stream).is_ok_and(|peer| peer.uid == 0 || peer.uid == self.owner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The number may belong to a new mount by now, and with it the name.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Connection {
    stream: UnixStream,
    since: Duration,
    state: State,
}

/// Asks for an answer that another thread works out; `None` while it does.
type Awaited = Box<dyn Fn() -> Option<Answer> + Send>;

/// What comes through the channel, as an answer.
fn awaited<T: Send + 'static>(
    outcome: Receiver<T>,
    answer: impl Fn(T) -> Answer + Send + 'static,
) -> Awaited {
    Box::new(move || match outcome.try_recv() {
        Err(TryRecvError::Empty) => None,
        Ok(outcome) => Some(answer(outcome)),
        Err(TryRecvError::Disconnected) => Some(Answer::Error(ENDING.into())),
    })
}

enum State {
    /// What has come of the request so far.
    Reading(Vec<u8>),
    /// Waiting for uploads.
    Flushing { mark: u64, until: Duration },
    /// Waiting for what another thread works out.
    Awaiting(Awaited),
    /// Waiting for the end.
    Parked,
}

impl Connection {
    fn wake_after(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Reading(_) => Some((self.since + PATIENCE).saturating_sub(now)),
            State::Flushing { until, .. } => Some(until.saturating_sub(now).min(FLUSH_PACE)),
            State::Awaiting(_) => Some(FLUSH_PACE),
            State::Parked => None,
        }
    }

    /// Sends an answer. It fits the socket's buffer; a client that did not leave room for it does without.
    fn answer(&self, answer: &Answer) {
        let mut line = serde_json::to_vec(answer).expect("an answer has string keys only");
        line.push(b'\n');
        let _ = (&self.stream).write_all(&line);
    }

    /// An empty line: the request to wait for the end has arrived, so the asker may bring the end about.
    fn acknowledge(&self) -> bool {
        (&self.stream).write_all(b"\n").is_ok()
    }

    fn farewell(self, controlled: &dyn Controlled) {
        match self.state {
            State::Parked => {
                let last = controlled.status();
                self.answer(&Answer::Stopped {
                    left: last.pending.objects,
                    summary: line(&last),
                });
            }
            State::Flushing { mark, .. } => self.answer(&Answer::Flushed {
                left: controlled.pending_before(mark),
            }),
            State::Awaiting(_) => self.answer(&Answer::Error(ENDING.into())),
            State::Reading(_) => {}
        }
    }
}

/// Takes in what has come: the request once its line is complete, an error when there will be none.
fn read_line(mut stream: &UnixStream, line: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let mut chunk = [0; 1024];
    let got = match stream.read(&mut chunk) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(got) => got,
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(err) => return Err(err),
    };
    line.extend_from_slice(&chunk[..got]);
    match line.iter().position(|b| *b == b'\n') {
        Some(end) => Ok(Some(serde_json::from_slice(&line[..end])?)),
        None if line.len() > MAX_LINE => Err(io::ErrorKind::InvalidData.into()),
        None => Ok(None),
    }
}

/// Makes the directory of the sockets, or checks that the one that is there is ours to trust: in /tmp
/// anybody could have made it.
fn make_run_dir(dir: &Path, owner: u32) -> io::Result<()> {
    let mode = if owner == 0 { 0o755 } else { 0o700 };
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => return std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
        Err(err) => return Err(err),
    }
    let found = std::fs::symlink_metadata(dir)?;
    if found.is_dir() && found.uid() == owner && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "is not a directory that belongs to us alone; remove it, or set XDG_RUNTIME_DIR to one that does",
    ))
}

fn listen(path: &Path, owner: u32) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let mode = if owner == 0 { 0o666 } else { 0o600 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn with_path(path: &Path, err: io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}
