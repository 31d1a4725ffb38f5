//! Blobs of any size, over ByteStream: both ways in pieces, and going on after a cut where the other side ended.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use prost::bytes::{Buf, Bytes};
use tonic::{Status, Streaming};

use crate::clock::Clock;
use crate::object::{Payload, unzip};
use crate::remote::RemoteError;
use crate::remote::grpc::call::Caller;
use crate::remote::grpc::message::{
    QUERY_WRITE_STATUS, QueryWriteStatusRequest, QueryWriteStatusResponse, READ, ReadRequest,
    ReadResponse, WRITE, WriteRequest, WriteResponse,
};
use crate::remote::grpc::status::{self, Doing};
use crate::remote::pace::{Pace, slowness};
use crate::remote::reapi::Digest;

/// What is sent at a time …
const CHUNK: usize = 128 << 10;
/// … and how many of these wait for the connection.
const QUEUE: usize = 4;

/// How often one transfer goes on after a cut. Each time has to get it further, so that what breaks at one place for
/// ever ends.
const RESUMES_MAX: u32 = 4;

/// Most pieces in a row without a byte. BuildGrid sends such for ever when a blob is shorter than its name says.
const EMPTY_MAX: u32 = 16;

/// A server, and how its blobs are named there.
#[derive(Clone)]
pub(super) struct Blobs {
    pub(super) caller: Arc<Caller>,
    pub(super) instance: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) min_speed: u64,
    pub(super) level: i32,
}

impl Blobs {
    fn prefix(&self) -> String {
        match self.instance.as_str() {
            "" => String::new(),
            instance => format!("{instance}/"),
        }
    }

    /// The bytes of a blob, compressed on the way if that is offered.
    pub(super) fn read(
        &self,
        digest: &Digest,
        is_zipped: bool,
    ) -> Result<Option<Box<dyn Read + Send>>, RemoteError> {
        let kind = if is_zipped {
            "compressed-blobs/zstd"
        } else {
            "blobs"
        };
        let name = format!("{}{kind}/{}/{}", self.prefix(), digest.hash(), digest.size);
        let mut blob = Blob {
            blobs: self.clone(),
            name,
            is_zipped,
            size: digest.size,
            at: 0,
            resumes: 0,
            began: 0,
            body: Box::new(io::empty()),
        };
        match blob.open() {
            Ok(()) => Ok(Some(Box::new(blob))),
            Err(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(Cut(status)) if status::is_miss(status) => Ok(None),
                _ => Err(blob.error(error)),
            },
        }
    }

    /// Writes a blob as it is, and goes on after a cut with what the server has not got.
    pub(super) fn write(&self, digest: &Digest, payload: &Payload) -> Result<(), RemoteError> {
        let name = format!(
            "{}uploads/{}/blobs/{}/{}",
            self.prefix(),
            uuid(),
            digest.hash(),
            digest.size
        );
        let (mut from, mut resumes) = (0, 0);
        loop {
            let mut body = payload.reader();
            let skipped = io::copy(&mut body.by_ref().take(from), &mut io::sink());
            skipped.map_err(local)?;
            let status = match self.write_from(&name, from, &mut body)? {
                Ok(committed) if committed == digest.size as i64 || committed == -1 => {
                    return Ok(());
                }
                Ok(committed) => {
                    let size = digest.size;
                    let text = format!("{}: took {committed} of {size} bytes", WRITE.name());
                    return Err(RemoteError::Transient(text));
                }
                Err(status) => status,
            };
            if status.code() == tonic::Code::AlreadyExists {
                return Ok(());
            }
            let error = || self.caller.error(WRITE, &status, Doing::Writing);
            if !status::is_cut(&status) || resumes == RESUMES_MAX {
                return Err(error());
            }
            match self.committed(&name, digest.size) {
                Some(all) if all == digest.size => return Ok(()),
                Some(more) if more > from => from = more,
                _ => return Err(error()),
            }
            resumes += 1;
            log::debug!(
                "{}: goes on at {from} of {} bytes",
                WRITE.name(),
                digest.size
            );
        }
    }

    /// Writes a blob compressed. Where it ended cannot be told in terms of the content, so a cut is an error.
    pub(super) fn write_zipped(
        &self,
        digest: &Digest,
        payload: &Payload,
    ) -> Result<(), RemoteError> {
        let name = format!(
            "{}uploads/{}/compressed-blobs/zstd/{}/{}",
            self.prefix(),
            uuid(),
            digest.hash(),
            digest.size
        );
        let mut zip =
            zstd::stream::read::Encoder::new(payload.reader(), self.level).map_err(local)?;
        match self.write_from(&name, 0, &mut zip)? {
            // Bytes of the blob, of its compressed form, or -1 for one that was there: all is well.
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.caller.error(WRITE, &status, Doing::Writing)),
        }
    }

    /// One stream of what `body` has from `offset` on; what the server says that it has then. The outer error is ours.
    fn write_from(
        &self,
        name: &str,
        mut offset: u64,
        body: &mut dyn Read,
    ) -> Result<Result<i64, Status>, RemoteError> {
        let sending = self
            .caller
            .send::<WriteRequest, WriteResponse>(WRITE, QUEUE);
        let mut meter = Meter::new(self);
        let mut resource_name = name.to_owned();
        let mut chunk = match chunk(body) {
            Ok(chunk) => chunk,
            Err(error) => return Err(abandoned(sending, error)),
        };
        loop {
            // The last one says so, and only the next one shows which that is.
            let next = match chunk_after(&chunk, body) {
                Ok(next) => next,
                Err(error) => return Err(abandoned(sending, error)),
            };
            let finish_write = next.is_empty();
            let len = chunk.len() as u64;
            let request = WriteRequest {
                resource_name: std::mem::take(&mut resource_name),
                write_offset: i64::try_from(offset).unwrap_or(i64::MAX),
                finish_write,
                data: chunk,
            };
            let pushed = meter.time(len, || self.caller.push(&sending, request));
            match pushed {
                Err(status) => return Ok(Err(status)),
                // It has answered: it has the blob, or wants none of it.
                Ok(false) => break,
                Ok(true) if finish_write => break,
                Ok(true) => {}
            }
            if let Some(speed) = meter.too_slow() {
                sending.abandon();
                return Err(slowness(speed, self.min_speed));
            }
            offset += len;
            chunk = next;
        }
        let answer = self.caller.finish(sending);
        Ok(answer.map(|answer| answer.committed_size))
    }

    /// How much of a write the server has; `None` if it does not say.
    fn committed(&self, name: &str, size: u64) -> Option<u64> {
        let question = QueryWriteStatusRequest {
            resource_name: name.to_owned(),
        };
        let answer = self.caller.unary(QUERY_WRITE_STATUS, &question, 0);
        let answer: QueryWriteStatusResponse = answer.ok()?;
        if answer.complete {
            return Some(size);
        }
        u64::try_from(answer.committed_size)
            .ok()
            .filter(|at| *at < size)
    }
}

fn abandoned<Q, A>(
    sending: crate::remote::grpc::call::Sending<Q, A>,
    error: io::Error,
) -> RemoteError {
    sending.abandon();
    local(error)
}

/// Reading a file of ours failed: that is not the remote's fault.
fn local(error: io::Error) -> RemoteError {
    match RemoteError::from_io(error) {
        RemoteError::Transient(cause) | RemoteError::Full(cause) => RemoteError::Local(cause),
        other => other,
    }
}

fn chunk(body: &mut dyn Read) -> io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(CHUNK);
    body.take(CHUNK as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

fn chunk_after(before: &Bytes, body: &mut dyn Read) -> io::Result<Bytes> {
    match before.len() {
        CHUNK => chunk(body),
        _ => Ok(Bytes::new()),
    }
}

/// A name for an upload that nobody else uses: a random UUID.
fn uuid() -> String {
    let random = fastrand::u128(..);
    let hex = format!("{random:032x}");
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..],
    );
    format!("{a}-{b}-4{c}-8{d}-{e}")
}

/// How fast the connection takes bytes.
struct Meter<'a> {
    clock: &'a dyn Clock,
    pace: Pace,
    bytes: u64,
    waited: Duration,
}

impl<'a> Meter<'a> {
    fn new(blobs: &'a Blobs) -> Self {
        Self {
            clock: &*blobs.clock,
            pace: Pace::new(blobs.min_speed, blobs.caller.stall()),
            bytes: 0,
            waited: Duration::ZERO,
        }
    }

    fn time<T>(&mut self, bytes: u64, call: impl FnOnce() -> T) -> T {
        let began = self.clock.now();
        let done = call();
        self.waited += self.clock.now().saturating_sub(began);
        self.bytes += bytes;
        done
    }

    fn too_slow(&mut self) -> Option<u64> {
        self.pace.too_slow(self.bytes, self.waited)
    }
}

/// A status on its way through a [`Read`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cut(Status);

impl Cut {
    fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

/// A blob on its way to us.
struct Blob {
    blobs: Blobs,
    name: String,
    is_zipped: bool,
    size: u64,
    /// Bytes of content that came.
    at: u64,
    resumes: u32,
    /// Where the stream that is open began.
    began: u64,
    body: Box<dyn Read + Send>,
}

impl Blob {
    /// Opens a stream where the last one ended.
    fn open(&mut self) -> io::Result<()> {
        let question = ReadRequest {
            resource_name: self.name.clone(),
            read_offset: i64::try_from(self.at).unwrap_or(i64::MAX),
        };
        let caller = &self.blobs.caller;
        let opened = caller.stream::<_, ReadResponse>(READ, &question);
        let (first, stream) = opened.map_err(|status| Cut(status).into_io())?;
        let pieces = Box::new(Pieces {
            caller: Arc::clone(caller),
            piece: first.map(|first| first.data).unwrap_or_default(),
            stream,
        });
        self.body = match self.is_zipped {
            true => unzip(pieces).map_err(|error| RemoteError::from(error).into_io())?,
            false => pieces,
        };
        self.began = self.at;
        Ok(())
    }

    fn error(&self, error: io::Error) -> RemoteError {
        match error.downcast() {
            Ok(Cut(status)) => self.blobs.caller.error(READ, &status, Doing::Reading),
            Err(error) => RemoteError::from_io(error).during(READ.name()),
        }
    }

    /// Whether to go on after `read`, which is an end or an error: if it is an early one, and this stream got us further.
    fn goes_on(&self, read: &io::Result<usize>) -> bool {
        let is_early = match read {
            Ok(_) => self.at < self.size,
            Err(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(Cut(status)) => status::is_cut(status),
                None => false,
            },
        };
        is_early && self.at > self.began && self.resumes < RESUMES_MAX
    }
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let read = self.body.read(buf);
            match &read {
                Ok(n) if *n > 0 => {
                    self.at += *n as u64;
                    return read;
                }
                ended if self.goes_on(ended) => {
                    self.resumes += 1;
                    log::debug!(
                        "{}: goes on at {} of {} bytes",
                        READ.name(),
                        self.at,
                        self.size
                    );
                    self.open().map_err(|error| self.error(error).into_io())?;
                }
                _ => return read.map_err(|error| self.error(error).into_io()),
            }
        }
    }
}

/// The pieces of one stream.
struct Pieces {
    caller: Arc<Caller>,
    piece: Bytes,
    stream: Streaming<ReadResponse>,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut empty = 0;
        while self.piece.is_empty() {
            if empty > EMPTY_MAX {
                let text = "pieces come, but nothing is in them".to_owned();
                return Err(RemoteError::Corrupt(text).into_io());
            }
            empty += 1;
            let next = self.caller.next(&mut self.stream);
            match next.map_err(|status| Cut(status).into_io())? {
                Some(next) => self.piece = next.data,
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buf.len());
        self.piece.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_has_the_name_of_a_random_uuid() {
        let (one, two) = (uuid(), uuid());
        assert_ne!(one, two);
        let shape: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(shape, [8, 4, 4, 4, 12]);
        assert_eq!(&one[14..15], "4");
    }
}
