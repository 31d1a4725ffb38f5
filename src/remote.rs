//! The contract of a remote cache.
//!
//! A [`Remote`] holds entries by [`Signature`]. It makes **one attempt a call**, blocks its thread,
//! streams, is safe from many threads, classifies its failures ([`RemoteError`]) and describes
//! itself without credentials. A miss is `Ok(None)`, never an error. Retry, deadlines and the
//! breaker are decorators over it; they are remotes themselves.
//!
//! This module knows neither the disk layout, the file system nor the kernel.
//!
//! To add one more kind of store: implement [`blob::Blobs`] for it in a child module (if it is a
//! dumb store of bytes by key) or [`Remote`] itself, add its scheme to [`open`], and run
//! `tests/remote_contract.rs` over it.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use crate::signature::{Meta, Signature};

/// What a remote holds for one signature: what it is, how long, and its bytes.
pub struct Object {
    /// File with mode, or symlink.
    pub meta: Meta,
    /// Exact length of the content, when it is known before reading (headed objects always
    /// know; a raw one without `Content-Length` does not).
    pub len: Option<u64>,
    /// The content. **It verifies itself**: whoever reads it to its end (`Ok(0)`) without an error has
    /// read what was pushed under this signature: hash, length and signature are checked. Anything else
    /// ends in an [`std::io::Error`] that wraps a [`RemoteError`] (see [`RemoteError::from_io`]).
    pub content: Box<dyn Read + Send>,
}

/// The content of one upload: a file on disk, or bytes. It can be read again from the start.
#[derive(Debug)]
pub enum Content {
    /// An open regular file with its length; read by position, never by its cursor.
    File(File, u64),
    /// Bytes in memory: a symlink's target.
    Bytes(Vec<u8>),
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The remote holds it now and did not before (as far as the remote can tell).
    Stored,
    /// The remote had the same content already.
    Present,
    /// The remote had other content under this signature; it stays, ours was not written.
    /// Sizes and BLAKE3 hashes where known.
    Diverged {
        /// BLAKE3 of what the remote holds, if it can be had without fetching it all.
        theirs: Option<[u8; 32]>,
        /// BLAKE3 of what was to be uploaded.
        ours: [u8; 32],
    },
}

/// One object met while listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The entry.
    pub sig: Signature,
    /// Stored (encoded) size in bytes.
    pub size: u64,
}

/// A remote cache. See the module documentation for the contract.
pub trait Remote: Send + Sync {
    /// The object under `sig`, or `None` on a miss.
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError>;

    /// Uploads an object unless the remote has one under `sig`. Where the remote cannot do that
    /// atomically, it looks first and the last of two concurrent writers wins.
    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError>;

    /// Whether there is an object under `sig`.
    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError>;

    /// Removes the object under `sig`; `Ok(false)` when there was none.
    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError>;

    /// Calls `each` for every object, in no order. [`RemoteError::Unsupported`] where it cannot list.
    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError>;

    /// The remote as its URL, without credentials.
    fn describe(&self) -> String;

    /// State for people and `status`: empty when all is well ("down since 12 s: connection refused").
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Why a remote could not answer. Each says the operation, the subject (never a credential) and the cause.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    /// May work later: connection refused, timeout, 5xx, 429.
    #[error("{0}")]
    Transient(String),
    /// The remote refuses us: 401, 403, EACCES. Retrying needs a change of credentials or rights.
    #[error("{0}")]
    Refused(String),
    /// What it sent is not what was pushed: wrong hash, signature, length, format.
    #[error("{0}")]
    Corrupt(String),
    /// The remote has no room for it: 413, 507, ENOSPC.
    #[error("{0}")]
    Full(String),
    /// The URL or an option is wrong; no retry can help.
    #[error("{0}")]
    Misconfigured(String),
    /// This remote has no such operation.
    #[error("{0}")]
    Unsupported(String),
}
