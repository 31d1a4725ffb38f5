//! The object format: what a dumb store holds for one entry.
//!
//! An object is a standard **zstd** file, so that `zstd -d object` gives back the build output. It begins
//! with one skippable frame, which is our header; the content's frame follows:
//!
//! ```text
//! offset  size  field (integers are little endian)
//!      0     4  0x184D2A5C: a zstd skippable frame
//!      4     4  size of the rest of the header
//!      8     8  "CACHEDFS"
//!     16     1  version: 1
//!     17     1  kind: 0 file, 1 symlink (its content is the target)
//!     18     2  permission bits, within 0o777
//!     20     8  length of the content
//!     28     1  digits of the signature: 32 to 128
//!     29     n  the signature
//!   29+n    32  BLAKE3 of the content
//!   61+n     8  check: first bytes of the BLAKE3 of every field from "CACHEDFS" on
//!   69+n    32  BLAKE3 keyed MAC of every field from "CACHEDFS" on, or zeros
//!  101+n        zstd frames of the content
//! ```
//!
//! The check is there because a mode or a kind is as good a lie as a wrong byte, and without a key the
//! MAC guards nothing.
//!
//! What has no such header is a **raw** object: the content as it is. A damaged header must never make
//! an object pass for a raw one, so anything that resembles the header closely is corrupt, not raw
//! (`header::sniff`).
//!
//! This module knows no remote, no key layout and no directory. Its children: `header` (the table above),
//! `encode` (content to [`Payload`]), `decode` ([`Blob`] to [`Object`]), `read` (readers that check
//! what they pass on), `key`.

mod decode;
mod encode;
mod header;
mod key;
mod read;

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::signature::Meta;

pub use decode::{DecodeOptions, decode, plain, unzip};
pub use encode::{EncodeOptions, Payload, encode, encode_as};
pub use header::{HEADER_MAX, Header, read_header};
pub use key::{Key, KeyError};

/// How many bytes of an object came from the store so far, as they are stored. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Arrived(Arc<AtomicU64>);

impl Arrived {
    /// Counts more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What it stands at; zero where nobody counts.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a remote holds for one signature: what it is, how long, and its bytes.
pub struct Object {
    /// File with mode, or symlink.
    pub meta: Meta,
    /// Exact length of the content, when it is known before reading (headed objects always
    /// know; a raw one without `Content-Length` does not).
    pub len: Option<u64>,
    /// BLAKE3 of the content, as the header states it; a raw object has none.
    pub hash: Option<[u8; 32]>,
    /// The content. **It verifies itself**: whoever reads it to its end (`Ok(0)`) without an error has
    /// read what was pushed under this signature: hash, length and signature are checked. Anything else
    /// ends in an [`io::Error`], which `RemoteError::from_io` classifies.
    pub content: Box<dyn Read + Send>,
    /// How it is coming along. The content is no measure of that: it comes out of the decoder in blocks.
    pub arrived: Arrived,
}

/// The content of one upload: a file on disk, or bytes. It can be read again from the start.
#[derive(Debug)]
pub enum Content {
    /// An open regular file with its length; read by position, never by its cursor.
    File(File, u64),
    /// Bytes in memory: a symlink's target.
    Bytes(Vec<u8>),
}

impl Content {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its BLAKE3. [`ObjectError::Changed`] when it is not as long as it says.
    pub fn hash(&self) -> Result<[u8; 32], ObjectError> {
        let mut hasher = blake3::Hasher::new();
        let len = io::copy(&mut self.reader(), &mut hasher).map_err(ObjectError::local)?;
        if len != self.len() {
            return Err(ObjectError::Changed);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Reads it from the start **to its real end**, which shows whether it grew.
    fn reader(&self) -> Box<dyn Read + '_> {
        match self {
            Self::File(file, _) => Box::new(read::FileReader::new(file)),
            Self::Bytes(bytes) => Box::new(&bytes[..]),
        }
    }
}

/// What a dumb store holds under one key, before anybody looked at it.
pub struct Blob {
    /// Its bytes, as stored.
    pub body: Box<dyn Read + Send>,
    /// How many, where the store says so.
    pub len: Option<u64>,
    /// What the store itself says about a raw object (`x-amz-meta-*`, permission bits of a file).
    pub hint: Option<Meta>,
}

/// How objects are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// With our header. Raw objects are read too, except empty ones and HTML pages: an upload that was
    /// cut short and a login page are likelier than a build output of that kind, and a miss is cheap.
    #[default]
    Object,
    /// The content as it is: no verification, no symlinks, no modes unless the store keeps them.
    /// Objects with a header are read (and verified) all the same.
    Raw,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "object" => Ok(Self::Object),
            "raw" => Ok(Self::Raw),
            _ => Err(format!("unknown format {text:?}: known are object, raw")),
        }
    }
}

/// Why an object could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// What came is not what was pushed.
    #[error("{0}")]
    Corrupt(String),
    /// The content changed while it was being encoded.
    #[error("encode: the content changed meanwhile")]
    Changed,
    /// The content or the spool file could not be read or written.
    #[error("encode: {0}")]
    Local(#[source] io::Error),
    /// The store failed while the header was read from it.
    #[error("read the header of an object: {0}")]
    Store(#[source] io::Error),
}

impl ObjectError {
    /// An [`io::Error`] that carries this one through a [`Read`].
    fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }

    /// A failure on our side, unless it carries one of ours through a [`Read`].
    fn local(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Local)
    }
}

#[cfg(test)]
mod tests;
