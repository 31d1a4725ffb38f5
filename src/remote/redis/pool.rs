//! The connections to one server: those that nobody uses at the moment wait here for the next call. Connections in use are not
//! counted: each blocks a thread, and threads are bounded.
//!
//! A connection is looked at before it is used again: one that the server closed, or that has bytes which nobody asked for, is
//! dropped. What breaks during a call is dropped too, and not asked again here.

use std::io::{BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::remote::RemoteError;
use crate::remote::redis::fault;
use crate::remote::redis::login::{Credentials, Login};
use crate::remote::redis::resp::{self, Head, Reply, command};
use crate::remote::redis::wire::{Server, Wire};

/// Most connections that wait: as many as a mount has threads for fetches and uploads by default, and some.
const IDLE_MAX: usize = 32;

/// After so long a firewall in between may have forgotten a connection without a word.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Longest wait for the reason that a server gives before it closes a connection on us.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The connections to one server.
pub(super) struct Pool {
    server: Server,
    login: Login,
    db: u32,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    wire: BufReader<Wire>,
    since: Duration,
}

/// A connection in use. It is closed when it is dropped, unless it is given back.
pub(super) struct Lease {
    wire: BufReader<Wire>,
    pool: Arc<Pool>,
}

impl Pool {
    /// No connection is made yet.
    pub(super) fn new(server: Server, login: Login, db: u32) -> Self {
        Self {
            server,
            login,
            db,
            idle: Mutex::default(),
        }
    }

    /// A connection that is logged in: one that waits, or a new one.
    pub(super) fn take(self: &Arc<Self>) -> Result<Lease, RemoteError> {
        loop {
            let idle = self.lock().pop();
            let Some(mut idle) = idle else { break };
            let rested = self.server.now().saturating_sub(idle.since);
            if rested < IDLE_TIME && idle.wire.buffer().is_empty() && idle.wire.get_ref().is_quiet()
            {
                idle.wire.get_mut().begin();
                return Ok(self.lease(idle.wire));
            }
        }
        let wire = self.server.connect()?;
        let mut lease = self.lease(BufReader::new(wire));
        self.log_in(&mut lease)?;
        Ok(lease)
    }

    fn lease(self: &Arc<Self>, wire: BufReader<Wire>) -> Lease {
        Lease {
            wire,
            pool: Arc::clone(self),
        }
    }

    fn log_in(&self, lease: &mut Lease) -> Result<(), RemoteError> {
        if let Some(credentials) = self.login.current() {
            let refused = match authenticate(lease, &credentials) {
                Ok(()) => None,
                Err(RemoteError::Refused(why)) => Some(why),
                Err(error) => return Err(error),
            };
            if let Some(why) = refused {
                match self.login.instead_of(Some(&credentials)) {
                    Some(fresh) => authenticate(lease, &fresh)?,
                    None => return Err(RemoteError::Refused(why)),
                }
            }
        }
        if self.db != 0 {
            lease.ask(&[&[b"SELECT", self.db.to_string().as_bytes()]])?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn authenticate(lease: &mut Lease, credentials: &Credentials) -> Result<(), RemoteError> {
    let password = credentials.password.reveal().as_bytes();
    let done = match &credentials.user {
        Some(user) => lease.ask(&[&[b"AUTH", user.reveal().as_bytes(), password]]),
        None => lease.ask(&[&[b"AUTH", password]]),
    };
    done.map(|_| ())
}

impl Lease {
    /// Sends commands at once and reads their replies. The first that is an error is the error of all.
    pub(super) fn ask(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Reply>, RemoteError> {
        let replies = self.ask_all(commands)?;
        replies.into_iter().map(Reply::checked).collect()
    }

    /// The same, with errors as replies.
    pub(super) fn ask_all(&mut self, commands: &[&[&[u8]]]) -> Result<Vec<Reply>, RemoteError> {
        let bytes: Vec<u8> = commands.iter().flat_map(|args| command(args)).collect();
        self.send(&bytes)?;
        commands.iter().map(|_| self.any_reply()).collect()
    }

    /// Sends bytes; how long that took.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<Duration, RemoteError> {
        let began = self.pool.server.now();
        self.wire.get_mut().send(bytes).map_err(fault::broken)?;
        Ok(self.pool.server.now().saturating_sub(began))
    }

    /// The reply to an upload. Of a large one, much may still be under way.
    pub(super) fn reply_to_upload(&mut self) -> Result<Reply, RemoteError> {
        let wait = |lease: &mut Self, patient| {
            let set = lease.wire.get_mut().be_patient(patient);
            set.map_err(fault::broken)
        };
        wait(self, true)?;
        let reply = self.any_reply()?;
        wait(self, false)?;
        reply.checked()
    }

    fn any_reply(&mut self) -> Result<Reply, RemoteError> {
        resp::read(&mut self.wire).map_err(fault::broken)
    }

    /// The beginning of a reply that is a value.
    pub(super) fn head(&mut self) -> Result<Head, RemoteError> {
        resp::head(&mut self.wire).map_err(fault::broken)
    }

    /// Bytes of a value; never none.
    pub(super) fn read_value(&mut self, buf: &mut [u8]) -> Result<usize, RemoteError> {
        match self.wire.read(buf) {
            Ok(0) => Err(fault::broken(std::io::ErrorKind::UnexpectedEof.into())),
            read => read.map_err(fault::broken),
        }
    }

    /// The line end behind a value.
    pub(super) fn end_value(&mut self) -> Result<(), RemoteError> {
        resp::end_value(&mut self.wire).map_err(fault::broken)
    }

    /// Why the server closed the connection while it was sent something, if it said so.
    pub(super) fn last_words(&mut self) -> Option<RemoteError> {
        self.wire.get_mut().hurry(LAST_WORDS);
        match resp::read(&mut self.wire) {
            Ok(Reply::Error(text)) => Some(fault::error(&text)),
            _ => None,
        }
    }

    /// Leaves the connection to others.
    pub(super) fn give_back(self) {
        let since = self.pool.server.now();
        let mut idle = self.pool.lock();
        if idle.len() < IDLE_MAX {
            idle.push(Idle {
                wire: self.wire,
                since,
            });
        }
    }
}
