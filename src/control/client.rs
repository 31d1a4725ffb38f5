//! The other end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys;

use super::mounts::Mounted;
use super::server::socket_path;
use super::{
    Answer, Divergence, Entry, GivenUp, MAX_LINE, Remount, Removal, Removed, Request, Status,
};

/// How long a daemon may take to answer what it can answer at once.
const PROMPT: Duration = Duration::from_secs(5);

/// How long it may take to become another program.
const HANDOVER: Duration = Duration::from_secs(30);

/// Why a mount could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("its daemon does not answer: {0}")]
    Unreachable(io::Error),
    /// It hung up, was too slow, or answered something else.
    #[error("talking to its daemon: {0}")]
    Broken(io::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to the daemon of one mount.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    pid: u32,
}

impl Client {
    /// Connects to the daemon of `mounted`; `own_run_dir` is where this user's own sockets are.
    pub fn connect(mounted: &Mounted, own_run_dir: &Path) -> Result<Self, ClientError> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for dir in run_dirs(mounted, own_run_dir) {
            match connect(&dir, mounted) {
                Ok(client) => return Ok(client),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => last = err,
            }
        }
        Err(ClientError::Unreachable(last))
    }

    /// Asks how the mount is doing.
    pub fn status(mut self) -> Result<Status, ClientError> {
        self.send(Request::Status)?;
        match self.answer(Some(PROMPT))? {
            Answer::Status(status) => Ok(*status),
            other => Err(unexpected(other)),
        }
    }

    /// The next few pushes that differ from what the remote holds, of those whose number is above `after`.
    pub fn divergent(mut self, after: u64) -> Result<Vec<Divergence>, ClientError> {
        self.send(Request::Divergent { after })?;
        match self.answer(Some(PROMPT))? {
            Answer::Divergent(next) => Ok(next),
            other => Err(unexpected(other)),
        }
    }

    /// The next few uploads that were given up, of those whose number is above `after`.
    pub fn given_up(mut self, after: u64) -> Result<Vec<GivenUp>, ClientError> {
        self.send(Request::GivenUp { after })?;
        match self.answer(Some(PROMPT))? {
            Answer::GivenUp(next) => Ok(next),
            other => Err(unexpected(other)),
        }
    }

    /// Removes objects, and waits for it however long the remote takes: it has time limits of its own.
    pub fn remove(mut self, removal: Removal) -> Result<Vec<Removed>, ClientError> {
        self.send(Request::Remove(removal))?;
        match self.answer(None)? {
            Answer::Removed(removed) => Ok(removed),
            other => Err(unexpected(other)),
        }
    }

    /// What the mount knows of one entry; with `remotes`, it asks them, which takes as long as that takes, but no longer than
    /// `patience`.
    pub fn entry(
        mut self,
        signature: &str,
        remotes: bool,
        patience: Duration,
    ) -> Result<Entry, ClientError> {
        self.send(Request::Entry {
            signature: signature.to_owned(),
            remotes,
        })?;
        match self.answer(Some(patience.max(PROMPT)))? {
            Answer::Entry(entry) => Ok(entry),
            other => Err(unexpected(other)),
        }
    }

    /// Changes the mount; what was changed, a line each.
    pub fn remount(mut self, wanted: Remount) -> Result<Vec<String>, ClientError> {
        self.send(Request::Remount(wanted))?;
        match self.answer(None)? {
            Answer::Remounted(changes) => Ok(changes),
            other => Err(unexpected(other)),
        }
    }

    /// Waits until all that was pushed so far is on the remote, at most `timeout`; says how many objects are not.
    pub fn flush(mut self, timeout: Duration) -> Result<u64, ClientError> {
        self.send(Request::Flush {
            timeout_ms: millis(timeout),
        })?;
        match self.answer(Some(timeout.saturating_add(PROMPT)))? {
            Answer::Flushed { left } => Ok(left),
            other => Err(unexpected(other)),
        }
    }

    /// Has the daemon become `program`, which reads `format`. Without an answer it has.
    pub fn upgrade(mut self, program: &Path, format: u32) -> Result<(), ClientError> {
        self.send(Request::Upgrade {
            program: program.to_owned(),
            format,
        })?;
        match self.answer(Some(HANDOVER)) {
            Err(ClientError::Broken(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
            Ok(answer) => Err(unexpected(answer)),
        }
    }

    /// Registers for the end of the daemon, and asks it to unmount if `unmount`; otherwise the caller does next.
    pub fn stop(
        mut self,
        unmount: bool,
        drain_timeout: Option<Duration>,
    ) -> Result<Ending, ClientError> {
        let process = sys::process_end(self.pid).ok();
        self.send(Request::Stop {
            unmount,
            drain_timeout_ms: drain_timeout.map(millis),
        })?;
        let first = self.line(Some(PROMPT))?;
        if !first.trim_ascii().is_empty() {
            return Err(unexpected(parse(&first)?));
        }
        Ok(Ending {
            client: self,
            process,
        })
    }

    fn send(&mut self, request: Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(&request).expect("a request has string keys only");
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(ClientError::Broken)
    }

    fn answer(&mut self, timeout: Option<Duration>) -> Result<Answer, ClientError> {
        parse(&self.line(timeout)?)
    }

    fn line(&mut self, timeout: Option<Duration>) -> Result<Vec<u8>, ClientError> {
        self.stream
            .get_ref()
            .set_read_timeout(timeout)
            .map_err(ClientError::Broken)?;
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).expect("fits");
        self.stream
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)
            .map_err(ClientError::Broken)?;
        if line.last() == Some(&b'\n') {
            return Ok(line);
        }
        Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()))
    }
}

/// A daemon that is about to end.
#[derive(Debug)]
pub struct Ending {
    client: Client,
    process: Option<OwnedFd>,
}

impl Ending {
    /// Waits until it has drained and exited. Says how many objects it leaves for the next mount and what it did, if it
    /// could say it.
    pub fn wait(mut self) -> Option<(u64, String)> {
        let left = match self.client.answer(None) {
            Ok(Answer::Stopped { left, summary }) => Some((left, summary)),
            _ => None,
        };
        if let Some(process) = &self.process {
            while !sys::poll_readable(&[process.as_fd()], None).map_or(true, |ended| ended[0]) {}
        }
        left
    }
}

/// Where the socket of a mount can be: its owner's directories, and root's.
fn run_dirs(mounted: &Mounted, own: &Path) -> Vec<PathBuf> {
    let mut dirs = vec![own.to_owned(), crate::config::places::ROOT_RUN_DIR.into()];
    if let Some(owner) = mounted.owner.filter(|owner| *owner != 0) {
        dirs.push(format!("/run/user/{owner}/cachedirfs").into());
        dirs.push(format!("/tmp/cachedirfs-{owner}").into());
    }
    dirs
}

/// Connects, but only to somebody who may have mounted it: a socket in /tmp can be anybody's.
fn connect(dir: &Path, mounted: &Mounted) -> io::Result<Client> {
    let path = socket_path(dir, mounted.device);
    let trusted = |uid| uid == 0 || Some(uid) == mounted.owner;
    if !trusted(std::fs::symlink_metadata(dir)?.uid()) {
        return Err(io::Error::other(format!(
            "{} belongs to somebody else",
            dir.display()
        )));
    }
    let stream = UnixStream::connect(path)?;
    let peer = sys::peer(&stream)?;
    if !trusted(peer.uid) {
        return Err(io::Error::other(format!(
            "{} is not its daemon's",
            dir.display()
        )));
    }
    Ok(Client {
        stream: BufReader::new(stream),
        pid: peer.pid,
    })
}

fn parse(line: &[u8]) -> Result<Answer, ClientError> {
    serde_json::from_slice(line).map_err(|err| ClientError::Broken(err.into()))
}

fn unexpected(answer: Answer) -> ClientError {
    match answer {
        Answer::Error(why) => ClientError::Refused(why),
        _ => ClientError::Broken(io::Error::other("it answered another question")),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
