//! One connection: a request is read, an answer written, and what else comes is thrown away until the other side ends.
//!
//! Nothing here waits: it goes on when the socket is ready, and ends when its time is over.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::page;

/// Most bytes of a request with its headers. What browsers send is a tenth of it.
const MOST_ASKED: usize = 8 * 1024;
/// Most headers.
const MOST_HEADERS: usize = 64;
/// How long a client may take to ask, to take its answer, and to end.
const TO_ASK: Duration = Duration::from_secs(5);
const TO_TAKE: Duration = Duration::from_secs(20);
const TO_END: Duration = Duration::from_secs(2);

/// What is asked for.
pub(super) enum Asked<'a> {
    /// A path, with its query.
    Path(&'a str),
    /// Something else than to see it.
    OtherMethod,
    /// More than anybody means.
    TooMuch,
    /// No HTTP.
    Nonsense,
}

/// An answer.
pub(super) struct Reply {
    status: &'static str,
    kind: &'static str,
    body: Vec<u8>,
    date: String,
}

impl Reply {
    pub(super) fn ok(kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: "200 OK",
            kind,
            body: body.into(),
            date: String::new(),
        }
    }

    pub(super) fn error(status: &'static str, why: &str) -> Self {
        Self {
            status,
            ..Self::ok("text/plain; charset=utf-8", format!("{why}\n"))
        }
    }

    /// With its date, in seconds since 1970.
    pub(super) fn at(mut self, unix: u64) -> Self {
        let seconds = i64::try_from(unix).unwrap_or_default();
        let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        self.date = printer
            .timestamp_to_rfc9110_string(&time)
            .unwrap_or_default();
        self
    }

    /// As it goes over the wire; without its body to a HEAD.
    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let Self {
            status, kind, date, ..
        } = self;
        let (len, policy) = (self.body.len(), page::POLICY);
        let mut bytes = format!(
            "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nX-Frame-Options: DENY\r\nContent-Security-Policy: {policy}\r\n"
        )
        .into_bytes();
        if status.starts_with("405") {
            bytes.extend_from_slice(b"Allow: GET, HEAD\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        if with_body {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// A connection.
pub(super) struct Connection {
    stream: TcpStream,
    ends: Duration,
    state: State,
}

enum State {
    /// What has come of the request so far.
    Reading(Vec<u8>),
    /// The answer, and how much of it has gone.
    Writing(Vec<u8>, usize),
    /// All has gone. To close at once would take the answer away from a client that has sent more than we read.
    Ending,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, now: Duration) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            ends: now + TO_ASK,
            state: State::Reading(Vec::new()),
        })
    }

    /// What it waits for.
    pub(super) fn poll(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Writing(..) => PollFlags::OUT,
            State::Reading(_) | State::Ending => PollFlags::IN,
        };
        PollFd::new(&self.stream, flags)
    }

    pub(super) fn ends_in(&self, now: Duration) -> Duration {
        self.ends.saturating_sub(now)
    }

    /// Moves it on; whether it stays.
    pub(super) fn attend(
        &mut self,
        ready: bool,
        now: Duration,
        reply: &mut dyn FnMut(Asked<'_>) -> Reply,
    ) -> bool {
        if !ready {
            return now < self.ends;
        }
        match &mut self.state {
            State::Reading(asked) => {
                if !read_some(&self.stream, asked) {
                    return false;
                }
                if let Some(answer) = answer(asked, reply) {
                    self.ends = now + TO_TAKE;
                    self.state = State::Writing(answer, 0);
                    return self.attend(true, now, reply);
                }
            }
            State::Writing(answer, gone) => match (&self.stream).write(&answer[*gone..]) {
                Ok(more) if *gone + more < answer.len() => *gone += more,
                Ok(_) => {
                    self.ends = now + TO_END;
                    self.state = State::Ending;
                    return self.stream.shutdown(Shutdown::Write).is_ok();
                }
                Err(e) if is_for_the_moment(e.kind()) => {}
                Err(_) => return false,
            },
            State::Ending => return read_some(&self.stream, &mut Vec::new()) && now < self.ends,
        }
        now < self.ends
    }
}

fn is_for_the_moment(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Takes in what has come; whether there can be more.
fn read_some(mut stream: &TcpStream, asked: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 2048];
    match stream.read(&mut chunk) {
        Ok(0) => false,
        Ok(got) => {
            asked.extend_from_slice(&chunk[..got]);
            true
        }
        Err(e) => is_for_the_moment(e.kind()),
    }
}

/// The answer to what was asked, once it was asked to its end.
fn answer(asked: &[u8], reply: &mut dyn FnMut(Asked<'_>) -> Reply) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let (asked, with_body) = match request.parse(asked) {
        Ok(httparse::Status::Partial) if asked.len() < MOST_ASKED => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            (Asked::TooMuch, true)
        }
        Err(_) => (Asked::Nonsense, true),
        Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
            (Some("GET"), Some(path)) => (Asked::Path(path), true),
            (Some("HEAD"), Some(path)) => (Asked::Path(path), false),
            _ => (Asked::OtherMethod, true),
        },
    };
    Some(reply(asked).bytes(with_body))
}
