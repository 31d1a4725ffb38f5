//! Bytes both ways: a payload as a request's body, a response's body as a [`Read`].

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream;
use reqwest::Body;
use tokio::task::spawn_blocking;

use crate::remote::RemoteError;

/// What is read from disk at a time. Bigger chunks no longer make an upload faster.
const CHUNK: usize = 128 << 10;

/// How an upload is going, seen from outside.
#[derive(Clone, Debug)]
pub(in crate::remote) struct Progress(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    total: u64,
    sent: AtomicU64,
    failed: Mutex<Option<RemoteError>>,
}

impl Progress {
    /// Nothing yet of `total` bytes.
    pub(in crate::remote) fn of(total: u64) -> Self {
        Self(Arc::new(Shared {
            total,
            ..Shared::default()
        }))
    }

    /// Whether all of it was handed to the connection.
    pub(in crate::remote) fn is_complete(&self) -> bool {
        self.sent() >= self.0.total
    }

    /// Bytes handed to the connection so far.
    pub(in crate::remote) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Why the payload could not be read, if that is what ended the request.
    pub(in crate::remote) fn failure(&self) -> Option<RemoteError> {
        self.0
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn count(&self, bytes: usize) {
        self.0.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn fail(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        let ours = match RemoteError::from_io(error) {
            // Reading a file of ours failed: that is not the remote's fault.
            RemoteError::Transient(cause) | RemoteError::Full(cause) => RemoteError::Local(cause),
            other => other,
        };
        *self.0.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
        io::Error::new(kind, "the payload cannot be read")
    }
}

/// So many bytes that `reader` has as the body of one request. What is small is read here and now; more may come from a disk
/// while the request is under way, so it is read by threads that may block.
pub(in crate::remote) fn upload(
    reader: Box<dyn Read + Send>,
    len: u64,
    progress: Progress,
) -> Body {
    // Less, not as much: the reader is to come to its end, where a raw content is compared with its hash.
    if len < CHUNK as u64 {
        let (read, _) = read_chunk(reader);
        return match read {
            Ok(bytes) => {
                progress.count(bytes.len());
                Body::from(bytes)
            }
            Err(error) => {
                let error = progress.fail(error);
                Body::wrap_stream(stream::once(async { Err::<Vec<u8>, _>(error) }))
            }
        };
    }
    let start = (reader, progress);
    Body::wrap_stream(stream::try_unfold(start, |(reader, progress)| async move {
        let (chunk, reader) = spawn_blocking(|| read_chunk(reader))
            .await
            .map_err(io::Error::other)?;
        let chunk = chunk.map_err(|error| progress.fail(error))?;
        progress.count(chunk.len());
        Ok::<_, io::Error>((!chunk.is_empty()).then_some((chunk, (reader, progress))))
    }))
}

fn read_chunk(mut reader: Box<dyn Read + Send>) -> (io::Result<Vec<u8>>, Box<dyn Read + Send>) {
    let mut chunk = Vec::with_capacity(CHUNK);
    let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
    (read.map(|_| chunk), reader)
}
