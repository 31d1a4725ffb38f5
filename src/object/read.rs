//! Readers that check what they pass on. Each fails **before** it hands out the last bytes of something
//! wrong, so that a server which counts bytes never completes a torn upload either.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::FileExt;

use crate::object::ObjectError;

/// Largest window of a frame that is read: 8 MiB, the most that levels up to 19 use. What a hostile
/// frame makes us allocate stays at that; a frame that wants more is corrupt.
const WINDOW_LOG_MAX: u32 = 23;

/// Reads a file by position from its start to its real end, whoever else reads it.
pub(super) struct FileReader<F> {
    file: F,
    at: u64,
}

impl<F> FileReader<F> {
    pub(super) fn new(file: F) -> Self {
        Self { file, at: 0 }
    }
}

impl<F: Deref<Target = File>> Read for FileReader<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// What is wrong with a stream that does not keep its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Short,
    Long,
    Hash,
}

/// Passes on exactly `len` bytes that hash to `hash` (where one is given), or fails.
pub(super) struct Verified<R, E> {
    inner: R,
    left: u64,
    hash: Option<([u8; 32], blake3::Hasher)>,
    state: State,
    error: E,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Good,
    Bad(Broken),
}

impl<R: Read, E: Fn(Broken) -> ObjectError> Verified<R, E> {
    pub(super) fn new(inner: R, len: u64, hash: Option<[u8; 32]>, error: E) -> Self {
        let hash = hash.map(|hash| (hash, blake3::Hasher::new()));
        Self {
            inner,
            left: len,
            hash,
            state: State::Reading,
            error,
        }
    }

    /// Reads on without judging: up to `left` bytes, then the end.
    fn advance(&mut self, buf: &mut [u8]) -> io::Result<(usize, State)> {
        let room = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        let n = if self.left == 0 {
            0
        } else {
            self.inner.read(&mut buf[..room])?
        };
        if n == 0 && self.left > 0 {
            return Ok((0, State::Bad(Broken::Short)));
        }
        if let Some((_, hasher)) = &mut self.hash {
            hasher.update(&buf[..n]);
        }
        self.left -= n as u64;
        Ok((
            n,
            if self.left == 0 {
                self.judge()?
            } else {
                State::Reading
            },
        ))
    }

    fn judge(&mut self) -> io::Result<State> {
        if read_some(&mut self.inner, &mut [0])? != 0 {
            return Ok(State::Bad(Broken::Long));
        }
        Ok(match &self.hash {
            Some((want, hasher)) if hasher.finalize() != *want => State::Bad(Broken::Hash),
            _ => State::Good,
        })
    }
}

impl<R: Read, E: Fn(Broken) -> ObjectError> Read for Verified<R, E> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.state == State::Good {
            return Ok(0);
        }
        let mut n = 0;
        if self.state == State::Reading {
            (n, self.state) = self.advance(buf)?;
        }
        match self.state {
            State::Bad(broken) => Err((self.error)(broken).into_io()),
            State::Reading | State::Good => Ok(n),
        }
    }
}

/// One read that a signal does not spoil.
fn read_some(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Fills `buf` as far as the stream goes.
pub(super) fn read_up_to(from: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    from.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Decompresses, and tells a bad stream (corrupt) from a store that failed (its own error).
pub(super) struct Unzip<R: Read>(zstd::Decoder<'static, io::BufReader<Source<R>>>);

impl<R: Read> Unzip<R> {
    pub(super) fn new(inner: R) -> io::Result<Self> {
        let mut decoder = zstd::Decoder::new(Source {
            inner,
            failed: false,
        })?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Self(decoder))
    }
}

impl<R: Read> Read for Unzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| {
            if self.0.get_ref().get_ref().failed {
                return error;
            }
            ObjectError::Corrupt(format!("object content: {error}")).into_io()
        })
    }
}

/// Remembers whether it was the store that failed.
struct Source<R> {
    inner: R,
    failed: bool,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf);
        self.failed = read.is_err();
        read
    }
}
