//! What a remote turned out to hold: compared with what is to be uploaded, and remembered when it is corrupt.
//!
//! The first object stays, unless no reader would take it. That is decided here, for stores of objects and action
//! caches alike.
//!
//! This module asks no remote anything.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::object::{Header, Key, Object};
use crate::remote::{Put, RemoteError};
use crate::signature::{Meta, Signature};

/// Objects that were found corrupt and are remembered until they are overwritten. When there are more,
/// the oldest is forgotten: its next upload then trusts the header it finds.
const DAMAGED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// What the remote has under a signature that something is to be uploaded under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// The same.
    Same,
    /// Nothing that a reader would take, or the same content with another mode: to be overwritten.
    Stale,
    /// Other content, with its hash and length where they are known.
    Other(Option<[u8; 32]>, Option<u64>),
}

impl Found {
    /// What becomes of an upload that found this; `None` when it has to write.
    pub(super) fn settled(self, ours: &Header) -> Option<Put> {
        match self {
            Self::Same => Some(Put::Present),
            Self::Other(theirs, their_len) => Some(Put::Diverged {
                theirs,
                their_len,
                ours: ours.hash,
            }),
            Self::Nothing | Self::Stale => None,
        }
    }
}

/// Compares by header. With a key, only what a holder of it wrote counts.
pub(super) fn compare(ours: &Header, theirs: &Header, key: Option<&Key>) -> Found {
    let believed = key.is_none_or(|key| theirs.is_by(key));
    if theirs.sig != ours.sig || !believed {
        Found::Stale
    } else if (theirs.hash, theirs.len) != (ours.hash, ours.len) {
        Found::Other(Some(theirs.hash), Some(theirs.len))
    } else if theirs.meta == ours.meta {
        Found::Same
    } else if matches!(
        (theirs.meta, ours.meta),
        (Meta::File { .. }, Meta::File { .. })
    ) {
        Found::Stale
    } else {
        // A symlink whose target spells a file's content, or the other way round.
        Found::Other(Some(theirs.hash), Some(theirs.len))
    }
}

/// Compares by kind and size, and by content when those are equal.
pub(super) fn compare_content(ours: &Header, mut theirs: Object) -> Result<Found, RemoteError> {
    let other_kind = (theirs.meta == Meta::Symlink) != (ours.meta == Meta::Symlink);
    if other_kind || theirs.len.is_some_and(|len| len != ours.len) {
        return Ok(Found::Other(None, theirs.len));
    }
    let mut hasher = blake3::Hasher::new();
    let len = io::copy(&mut theirs.content, &mut hasher).map_err(RemoteError::from_io)?;
    let hash = *hasher.finalize().as_bytes();
    Ok(if hash == ours.hash {
        Found::Same
    } else {
        Found::Other(Some(hash), Some(len))
    })
}

/// Signatures whose object turned out corrupt. A header alone can look right (the content behind it was
/// cut off or rotted), and then the miss, the build and the push that follow would find it "present" for
/// ever. Shared with the readers that find out.
#[derive(Clone)]
pub(super) struct Damaged(Arc<Mutex<LruCache<Signature, ()>>>);

impl Default for Damaged {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(DAMAGED_MAX))))
    }
}

impl Damaged {
    pub(super) fn add(&self, sig: &Signature) {
        self.lock().put(*sig, ());
    }

    pub(super) fn has(&self, sig: &Signature) -> bool {
        self.lock().contains(sig)
    }

    pub(super) fn remove(&self, sig: &Signature) {
        self.lock().pop(sig);
    }

    /// `content` on its way out: remembered when it turns out corrupt, and its errors say `doing`.
    pub(super) fn watch(
        &self,
        content: Box<dyn Read + Send>,
        sig: &Signature,
        doing: String,
    ) -> Box<dyn Read + Send> {
        Box::new(Watched {
            content,
            sig: *sig,
            doing,
            damaged: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Signature, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The content of an object on its way out: says where it came from when it fails.
struct Watched {
    content: Box<dyn Read + Send>,
    sig: Signature,
    doing: String,
    damaged: Damaged,
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.content.read(buf).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            let error = RemoteError::from_io(error);
            if matches!(error, RemoteError::Corrupt(_)) {
                self.damaged.add(&self.sig);
            }
            error.during(&self.doing).into_io()
        })
    }
}
