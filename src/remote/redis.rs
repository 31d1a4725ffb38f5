//! `redis://` and `rediss://`: a Redis, or what speaks like one (Valkey, KeyDB, Dragonfly).
//!
//! An object is a string under `redis_prefix` and its key. It is read with one GET and written with one SET, however large
//! it is: the value goes between socket and reader as a stream, so that our memory stays flat and no object can change
//! halfway, which ranges and appends would have to guard against. Nothing of a writer that dies is left: a command that did
//! not come whole is none. `SET NX` creates only, atomically.
//!
//! With `ttl=`, each upload and each touch lets the object live that long from then on, and the moment of its end tells
//! when that was. A get does not prolong it: GETEX is a write, which replicas and read-only users are refused. Without `ttl=`
//! nothing but the server's eviction removes anything, and a listing knows no times.
//!
//! Why no library: the `redis` crate reads each reply whole into memory, with no limit to what a server may send, and trusts
//! `ca_file` instead of, not besides, the system's authorities. What is needed of the protocol is small.
//!
//! The rest is in children: `wire` (one connection, TLS and timeouts), `pool` (those that are open, and logging in),
//! `login` (who we are), `resp` (the protocol), `fault` (what errors mean).
//!
//! This module knows neither objects nor signatures.

mod fault;
mod login;
mod pool;
mod resp;
mod wire;

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use url::Url;

use crate::object::{Blob, Payload};
use crate::remote::blob::{Blobs, Stored, Written};
use crate::remote::pace::{Pace, slowness};
use crate::remote::redis::login::Login;
use crate::remote::redis::pool::{Lease, Pool};
use crate::remote::redis::resp::{Head, Reply, command};
use crate::remote::redis::wire::Server;
use crate::remote::{RemoteError, RemoteOptions};

/// Largest value that a server takes by default (`proto-max-bulk-len`). It answers more with a closed connection, so more is
/// not sent.
const VALUE_MAX: u64 = 512 << 20;

/// Bytes of one write.
const CHUNK: usize = 64 << 10;

/// Keys that a server is asked for at a time while listing; a hint, it may send more.
const SCAN_COUNT: &[u8] = b"1000";

/// Objects on a Redis.
pub struct Redis {
    pool: Arc<Pool>,
    prefix: String,
    ttl: Option<Duration>,
    url: String,
    min_speed: u64,
    stall: Duration,
}

impl Redis {
    /// The server and database that a `redis` or `rediss` URL names. Nothing is asked of it yet.
    pub fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let db = database(url)?;
        let login = Login::new(url, options)?;
        let server = Server::new(url, options)?;
        let url = format!("{}://{}/{db}/", url.scheme(), server.address());
        Ok(Self {
            pool: Arc::new(Pool::new(server, login, db)),
            prefix: options.redis_prefix.clone(),
            ttl: options.ttl,
            url,
            min_speed: options.min_speed,
            stall: options.stall_timeout,
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Runs `call` on a connection; its errors say what was done to what. The connection is kept unless it failed.
    fn on<T>(
        &self,
        operation: &str,
        key: &str,
        call: impl FnOnce(&mut Lease) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let done = self.with_lease(call);
        done.map_err(|error| error.during(&format!("{operation} {}{key}", self.url)))
    }

    fn with_lease<T>(
        &self,
        call: impl FnOnce(&mut Lease) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut lease = self.pool.take()?;
        let done = call(&mut lease)?;
        lease.give_back();
        Ok(done)
    }

    /// One command with a number for an answer.
    fn number(&self, operation: &str, key: &str, args: &[&[u8]]) -> Result<i64, RemoteError> {
        self.on(operation, key, |lease| lease.ask(&[args])?.remove(0).int())
    }

    /// SET with its value as a stream.
    fn set(
        &self,
        lease: &mut Lease,
        key: &str,
        payload: &Payload,
        if_absent: bool,
    ) -> Result<Reply, RemoteError> {
        let ttl = self.ttl.map(|ttl| ttl.as_millis().to_string());
        let mut tail: Vec<&[u8]> = Vec::new();
        if let Some(ttl) = &ttl {
            tail.extend([&b"PX"[..], ttl.as_bytes()]);
        }
        if if_absent {
            tail.push(b"NX");
        }
        let key = self.key(key);
        let before = resp::before_value(&[b"SET", key.as_bytes()], payload.len(), tail.len());
        let after = resp::after_value(&tail);
        self.stream(lease, before, payload, &after)?;
        lease.reply_to_upload()
    }

    fn stream(
        &self,
        lease: &mut Lease,
        before: Vec<u8>,
        payload: &Payload,
        after: &[u8],
    ) -> Result<(), RemoteError> {
        let pace = Pace::new(self.min_speed, self.stall);
        let (mut waited, mut sent) = (Duration::ZERO, 0);
        let mut body = payload.reader();
        let mut chunk = before;
        loop {
            let room = CHUNK.saturating_sub(chunk.len()).max(1) as u64;
            let n = (&mut body).take(room).read_to_end(&mut chunk);
            let ended = n.map_err(RemoteError::from_io)? < room as usize;
            if ended {
                chunk.extend_from_slice(after);
            }
            waited += lease.send(&chunk)?;
            sent += chunk.len() as u64;
            if ended {
                return Ok(());
            }
            // The mean since the beginning: what the kernel holds goes out in leaps.
            if let Some(speed) = { pace }.too_slow(sent, waited) {
                return Err(slowness(speed, self.min_speed));
            }
            chunk.clear();
        }
    }

    /// One step of a listing: the next cursor.
    fn scan(
        &self,
        lease: &mut Lease,
        cursor: &[u8],
        each: &mut dyn FnMut(Stored<'_>),
    ) -> Result<Vec<u8>, RemoteError> {
        let pattern = format!("{}*", resp::literal(&self.prefix));
        let scan = [
            &b"SCAN"[..],
            cursor,
            b"MATCH",
            pattern.as_bytes(),
            b"COUNT",
            SCAN_COUNT,
        ];
        let [next, keys] = lease.ask(&[&scan])?.remove(0).list()?;
        let keys = keys.items()?;
        let keys: Result<Vec<_>, _> = keys.into_iter().map(Reply::bytes).collect();
        let keys = keys?;
        let ours = |key: &&Vec<u8>| {
            key.strip_prefix(self.prefix.as_bytes())
                .is_some_and(|key| std::str::from_utf8(key).is_ok())
        };
        let keys: Vec<_> = keys.iter().filter(ours).collect();
        for keys in keys.chunks(1000) {
            self.look_at(lease, keys, each)?;
        }
        next.bytes()
    }

    fn look_at(
        &self,
        lease: &mut Lease,
        keys: &[&Vec<u8>],
        each: &mut dyn FnMut(Stored<'_>),
    ) -> Result<(), RemoteError> {
        let questions: Vec<[&[u8]; 2]> = keys
            .iter()
            .flat_map(|key| [[&b"STRLEN"[..], key], [&b"PEXPIRETIME"[..], key]])
            .collect();
        let questions: Vec<&[&[u8]]> = questions.iter().map(|question| &question[..]).collect();
        let answers = lease.ask_all(&questions)?;
        for (key, answer) in keys.iter().zip(answers.chunks_exact(2)) {
            // What is no string is not ours. What has a length and then is gone was there.
            let Reply::Int(size) = answer[0] else {
                continue;
            };
            let ends = match answer[1] {
                Reply::Int(ABSENT) => continue,
                // Before Redis 7 nobody can ask that.
                Reply::Int(ends) => u64::try_from(ends).ok(),
                _ if size == 0 => continue,
                _ => None,
            };
            let key = String::from_utf8_lossy(&key[self.prefix.len()..]);
            let version = ends.map(|ends| ends.to_string());
            let written = ends
                .zip(self.ttl)
                .and_then(|(ends, ttl)| Duration::from_millis(ends).checked_sub(ttl));
            each(Stored {
                key: &key,
                size: u64::try_from(size).unwrap_or_default(),
                modified: written.and_then(|written| UNIX_EPOCH.checked_add(written)),
                version: version.as_deref(),
            });
        }
        Ok(())
    }
}

/// What PEXPIRETIME answers for what is not there.
const ABSENT: i64 = -2;

impl Blobs for Redis {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        let subject = format!("get {}{key}", self.url);
        let during = |error: RemoteError| error.during(&subject);
        let mut lease = self.pool.take().map_err(during)?;
        let full = self.key(key);
        let get = command(&[b"GET", full.as_bytes()]);
        lease.send(&get).map_err(during)?;
        match lease.head().map_err(during)? {
            Head::Value(len) => Ok(Some(Blob {
                body: Box::new(Value::new(lease, len, subject)?),
                len: Some(len),
                hint: None,
            })),
            Head::Nil => {
                lease.give_back();
                Ok(None)
            }
            Head::Error(text) => {
                lease.give_back();
                Err(during(fault::error(&text)))
            }
        }
    }

    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let last = len.saturating_sub(1).to_string();
        let full = self.key(key);
        let range = [&b"GETRANGE"[..], full.as_bytes(), b"0", last.as_bytes()];
        self.on("look at", key, |lease| {
            // In this order, what comes or goes meanwhile is absent or empty, never whole and not there.
            let mut answers = lease.ask(&[&[b"EXISTS", full.as_bytes()], &range])?;
            let start = answers.remove(1).bytes()?;
            Ok((answers.remove(0).int()? > 0).then_some(start))
        })
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        if payload.len() > VALUE_MAX {
            return Err(RemoteError::Full(format!(
                "put {}{key}: {} bytes, and a Redis takes no more than {VALUE_MAX} (proto-max-bulk-len)",
                self.url,
                payload.len()
            )));
        }
        // Whoever puts says what and where.
        let done = self.with_lease(|lease| match self.set(lease, key, payload, if_absent) {
            Err(error) if error.is_transient() => Err(lease.last_words().unwrap_or(error)),
            done => done,
        })?;
        Ok(match done {
            Reply::Nil => Written::Exists,
            _ => Written::Stored,
        })
    }

    /// SET NX.
    fn creates_only(&self) -> Option<bool> {
        Some(true)
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        let full = self.key(key);
        let found = self.number("look for", key, &[b"EXISTS", full.as_bytes()])?;
        Ok(found > 0)
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        let full = self.key(key);
        let removed = self.number("remove", key, &[b"UNLINK", full.as_bytes()])?;
        Ok(removed > 0)
    }

    fn quarantine(
        &self,
        key: &str,
        name: &str,
        _spool_dir: &Path,
    ) -> Result<Option<String>, RemoteError> {
        let to = format!("quarantine/{name}");
        let (full, full_to) = (self.key(key), self.key(&to));
        self.on("move", key, |lease| {
            let rename = [&b"RENAME"[..], full.as_bytes(), full_to.as_bytes()];
            match lease.ask_all(&[&rename])?.remove(0) {
                Reply::Error(text) if text.contains("no such key") => Ok(None),
                Reply::Error(text) => Err(fault::error(&text)),
                _ => Ok(Some(to)),
            }
        })
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        let during = |error: RemoteError| error.during(&format!("list {}", self.url));
        let mut lease = self.pool.take().map_err(during)?;
        // Being listed is no use of an object. Servers before Redis 7.2 cannot tell, and refuse this.
        let no_touch = [&b"CLIENT"[..], b"NO-TOUCH", b"ON"];
        lease.ask_all(&[&no_touch]).map_err(during)?;
        let mut cursor = b"0".to_vec();
        loop {
            cursor = self.scan(&mut lease, &cursor, each).map_err(during)?;
            if cursor == b"0" {
                // The connection is not given back: it would go on not counting as use what is read over it.
                return Ok(());
            }
        }
    }

    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        let full = self.key(key);
        let found = match self.ttl.map(|ttl| ttl.as_millis().to_string()) {
            None => self.number("touch", key, &[b"TOUCH", full.as_bytes()]),
            Some(ttl) => {
                let expire = [&b"PEXPIRE"[..], full.as_bytes(), ttl.as_bytes()];
                self.number("touch", key, &expire)
            }
        };
        Ok(found? > 0)
    }

    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let Some(version) = listed.version else {
            return Err(RemoteError::Unsupported(format!(
                "delete {}{} if it is unchanged: without ttl= a Redis (and before 7.0 any) does not say when it was written",
                self.url, listed.key
            )));
        };
        let full = self.key(listed.key);
        let key = full.as_bytes();
        self.on("remove", listed.key, |lease| {
            let found =
                lease.ask(&[&[b"WATCH", key], &[b"PEXPIRETIME", key], &[b"STRLEN", key]])?;
            let [_, Reply::Int(ends), Reply::Int(size)] = found[..] else {
                return Err(resp::unexpected());
            };
            if ends.to_string() != version || u64::try_from(size) != Ok(listed.size) {
                lease.ask(&[&[b"UNWATCH"]])?;
                return Ok(false);
            }
            // Nothing is removed if anybody wrote or touched it since WATCH.
            let mut done = lease.ask(&[&[b"MULTI"], &[b"UNLINK", key], &[b"EXEC"]])?;
            match done.remove(2) {
                Reply::Nil => Ok(false),
                removed => Ok(matches!(removed.items()?[..], [Reply::Int(1)])),
            }
        })
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}

/// The number of the database that the path of the URL names.
fn database(url: &Url) -> Result<u32, RemoteError> {
    match url.path().trim_matches('/') {
        "" => Ok(0),
        number => number.parse().map_err(|_| {
            let text = "want the number of a database behind the host, as in redis://host/0; \
                        a prefix of the keys is -o redis_prefix=TEXT";
            RemoteError::Misconfigured(format!("remote {}: {text}", wire::shown(url)))
        }),
    }
}

/// A value on its way. The connection is given back at its end; if it is dropped before, it is closed.
struct Value {
    lease: Option<Lease>,
    left: u64,
    subject: String,
}

impl Value {
    fn new(lease: Lease, len: u64, subject: String) -> Result<Self, RemoteError> {
        let mut value = Self {
            lease: Some(lease),
            left: len,
            subject,
        };
        value.end().map_err(RemoteError::from_io)?;
        Ok(value)
    }

    fn failed(&self, error: RemoteError) -> io::Error {
        error.during(&self.subject).into_io()
    }

    fn end(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Ok(());
        }
        if let Some(mut lease) = self.lease.take() {
            lease.end_value().map_err(|error| self.failed(error))?;
            lease.give_back();
        }
        Ok(())
    }
}

impl Read for Value {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        let Some(lease) = self.lease.as_mut().filter(|_| most > 0) else {
            return Ok(0);
        };
        let read = lease.read_value(&mut buf[..most]);
        let n = read.map_err(|error| self.failed(error))?;
        self.left -= n as u64;
        self.end()?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn open(text: &str) -> Result<Redis, RemoteError> {
        Redis::open(&url(text), &RemoteOptions::default())
    }

    #[test]
    fn the_path_is_the_number_of_a_database() {
        for (text, shown) in [
            ("redis://h", "redis://h:6379/0/"),
            ("redis://h/", "redis://h:6379/0/"),
            ("redis://me@h:7000/3", "redis://h:7000/3/"),
            ("redis://[::1]/2/", "redis://[::1]:6379/2/"),
        ] {
            assert_eq!(open(text).unwrap().describe(), shown);
        }
        for bad in [
            "redis://h/cache",
            "redis://h/-1",
            "redis://h/1/2",
            "redis:///0",
        ] {
            let error = open(bad).err().unwrap();
            assert!(matches!(error, RemoteError::Misconfigured(_)), "{error:?}");
        }
    }
}
