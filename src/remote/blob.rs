//! Objects on dumb stores: a [`Blobs`] holds bytes by key, [`BlobRemote`] makes a [`Remote`] of it with
//! a key layout and the object format.
//!
//! What "put if absent" a store offers is a help, never relied upon: several servers ignore
//! `If-None-Match`. So a put looks first and compares hashes from the header, which costs one small
//! read; only where the store has shown that it leaves alone what is there is a small object sent without that:
//! the first object that it stored is put once more, the same bytes, and a store that then says that it exists will say
//! so again. Where two writers still cross, the last wins with a whole object that is as good as the first.
//!
//! This module knows no server, no URL and no disk.

use std::io::{self, Read};
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::object::{
    self, Arrived, Blob, Content, DecodeOptions, Format, HEADER_MAX, Header, Object, Payload,
};
use crate::object::{EncodeOptions, ObjectError};
use crate::remote::found::{self, Damaged, Found};
use crate::remote::pace::Pacer;
use crate::remote::{Layout, Listed, Put, Remote, RemoteError, RemoteOptions};
use crate::signature::{Meta, Signature};

/// Content up to this goes without a look at what is there, if the store can leave that alone: the look would cost more
/// than sending it in vain.
const UNSEEN_MAX: u64 = 64 << 10;

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is there now.
    Stored,
    /// Something is there under that key, and it was to stay.
    Exists,
}

/// What stands under a key, as met while listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The key.
    pub key: &'a str,
    /// Bytes.
    pub size: u64,
    /// When it was written or touched last, where the store says so.
    pub modified: Option<SystemTime>,
    /// What the store calls this version of it (an ETag), where it says so.
    pub version: Option<&'a str>,
}

impl<'a> Stored<'a> {
    /// So many bytes under `key`; more is not known.
    pub fn new(key: &'a str, size: u64) -> Self {
        Self {
            key,
            size,
            modified: None,
            version: None,
        }
    }
}

/// A dumb store of bytes by key. Keys are hex digits and `/`. The contract of [`Remote`] holds: one
/// attempt a call, a miss is no error, errors are classified and name the key.
pub trait Blobs: Send + Sync {
    /// The bytes under `key`, or `None` on a miss.
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError>;

    /// Their first `len` bytes. Stores that can read a range do better than this.
    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let blob = self.get(key)?;
        blob.map(|blob| first_bytes(blob.body, len)).transpose()
    }

    /// Writes `payload` under `key`: all of it becomes visible or nothing. With `if_absent`, a store that
    /// can leaves what is there and says [`Written::Exists`].
    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError>;

    /// Whether [`Blobs::put`] with `if_absent` leaves alone what is there, so that a small object is sent without a look;
    /// `None` if that is to be found out. A store that is quickly looked at says no.
    fn creates_only(&self) -> Option<bool> {
        None
    }

    /// Whether there is anything under `key`.
    fn exists(&self, key: &str) -> Result<bool, RemoteError>;

    /// Removes what is under `key`; `Ok(false)` when there was nothing.
    fn delete(&self, key: &str) -> Result<bool, RemoteError>;

    /// Moves what is under `key` to a key that no layout has; that key, or `None` when there was nothing. A store that
    /// cannot move copies, and deletes once it has the copy.
    fn quarantine(
        &self,
        key: &str,
        name: &str,
        spool_dir: &Path,
    ) -> Result<Option<String>, RemoteError> {
        let Some(mut blob) = self.get(key)? else {
            return Ok(None);
        };
        let local = |e: io::Error| RemoteError::Local(format!("copy {key}: {e}"));
        let mut file = tempfile::tempfile_in(spool_dir).map_err(local)?;
        let len = io::copy(&mut blob.body, &mut file).map_err(RemoteError::from_io)?;
        let content = Content::File(file, len);
        let hash = content.hash()?;
        let copy = Payload::raw(Meta::file(0o644), &content, hash)?;
        let to = format!("quarantine/{name}");
        self.put(&to, &copy, false)?;
        self.delete(key)?;
        Ok(Some(to))
    }

    /// Calls `each` with everything that is there, strangers' files too.
    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError>;

    /// As [`Remote::touch`]. A store that counts reads as use need not do more than this.
    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        self.exists(key)
    }

    /// Removes what was listed if it is still that: neither written nor touched since; `Ok(false)` when it is not.
    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let (url, key) = (self.describe(), listed.key);
        let what = format!("delete {url}{key} if it is unchanged: not offered here");
        Err(RemoteError::Unsupported(what))
    }

    /// As [`Remote::prepare`].
    fn prepare(&self) {}

    /// The store as its URL, without credentials.
    fn describe(&self) -> String;
}

/// The first `len` bytes of a body, or all of a shorter one.
pub(super) fn first_bytes(body: impl Read, len: usize) -> Result<Vec<u8>, RemoteError> {
    let mut start = Vec::with_capacity(len);
    body.take(len as u64)
        .read_to_end(&mut start)
        .map_err(RemoteError::from_io)?;
    Ok(start)
}

/// A dumb store as a remote.
pub struct BlobRemote<B> {
    blobs: B,
    layout: Layout,
    format: Format,
    encode: EncodeOptions,
    pacer: Pacer,
    damaged: Damaged,
    creates_only: OnceLock<bool>,
}

impl<B: Blobs> BlobRemote<B> {
    /// A remote on `blobs`.
    pub fn new(blobs: B, options: &RemoteOptions) -> Self {
        let encode = options.encode_options();
        Self {
            blobs,
            layout: options.layout,
            format: options.format,
            encode,
            pacer: Pacer::new(options),
            damaged: Damaged::default(),
            creates_only: OnceLock::new(),
        }
    }

    fn decode_options(&self) -> DecodeOptions<'_> {
        DecodeOptions {
            key: self.encode.key.as_ref(),
            format: self.format,
        }
    }

    /// Errors get the key; what is corrupt is remembered.
    fn decode(&self, sig: &Signature, blob: Blob) -> Result<Object, RemoteError> {
        let decoded = object::decode(sig, blob, self.decode_options());
        if matches!(decoded, Err(ObjectError::Corrupt(_))) {
            self.damaged.add(sig);
        }
        decoded.map_err(|error| RemoteError::from(error).during(&self.doing("get", sig)))
    }

    fn doing(&self, operation: &str, sig: &Signature) -> String {
        format!(
            "{operation} {}{}",
            self.blobs.describe(),
            self.layout.key(sig)
        )
    }

    /// Compares what is there with `ours`, without reading the content if it can be helped.
    fn find(&self, ours: &Header) -> Result<Found, RemoteError> {
        let start = match self.blobs.peek(&self.layout.key(&ours.sig), HEADER_MAX) {
            Ok(Some(start)) => start,
            Ok(None) => return Ok(Found::Nothing),
            Err(RemoteError::Corrupt(_)) => return Ok(Found::Stale),
            Err(error) => return Err(error),
        };
        if self.damaged.has(&ours.sig) {
            return Ok(Found::Stale);
        }
        match object::read_header(&start) {
            Ok(Some(theirs)) => Ok(found::compare(ours, &theirs, self.encode.key.as_ref())),
            Ok(None) => self.compare_raw(ours),
            Err(_) => Ok(Found::Stale),
        }
    }

    /// A raw object has no hash: it is compared by kind and size, and by content when those are equal.
    fn compare_raw(&self, ours: &Header) -> Result<Found, RemoteError> {
        let Some(blob) = self.blobs.get(&self.layout.key(&ours.sig))? else {
            return Ok(Found::Nothing);
        };
        let judged = object::decode(&ours.sig, blob, self.decode_options())
            .map_err(RemoteError::from)
            .and_then(|object| found::compare_content(ours, object));
        match judged {
            // What no reader accepts (forged, empty, an HTML page) is there to be overwritten.
            Err(RemoteError::Corrupt(_)) => Ok(Found::Stale),
            judged => judged,
        }
    }

    fn payload(&self, ours: &Header, content: &Content) -> Result<Payload, RemoteError> {
        let payload = match (self.format, ours.meta) {
            (Format::Object, _) => object::encode_as(ours, content, &self.encode),
            (Format::Raw, Meta::File { .. }) => Payload::raw(ours.meta, content, ours.hash),
            (Format::Raw, Meta::Symlink) => {
                return Err(RemoteError::Unsupported(
                    "a raw object cannot be a symbolic link; format=object can".to_owned(),
                )
                .during(&self.doing("put", &ours.sig)));
            }
        };
        payload.map_err(RemoteError::from)
    }

    fn upload(&self, ours: &Header, content: &Content) -> Result<Put, RemoteError> {
        let mut found = if self.goes_unseen(ours) {
            Found::Nothing
        } else {
            self.find(ours)?
        };
        if let Some(put) = found.settled(ours) {
            return Ok(put);
        }
        let key = self.layout.key(&ours.sig);
        let payload = self.payload(ours, content)?;
        for _ in 0..2 {
            let if_absent = found == Found::Nothing;
            if self.blobs.put(&key, &payload, if_absent)? == Written::Stored {
                self.damaged.remove(&ours.sig);
                if if_absent && ours.len <= UNSEEN_MAX {
                    self.learn(&key, &payload);
                }
                return Ok(Put::Stored);
            }
            // It was there, or somebody was faster: what do they have?
            found = self.find(ours)?;
            if let Some(put) = found.settled(ours) {
                return Ok(put);
            }
        }
        let text = "the remote says that it exists and that it does not".to_owned();
        Err(RemoteError::Transient(text))
    }

    fn goes_unseen(&self, ours: &Header) -> bool {
        let creates_only = || {
            self.blobs
                .creates_only()
                .or_else(|| self.creates_only.get().copied())
        };
        ours.len <= UNSEEN_MAX && creates_only() == Some(true) && !self.damaged.has(&ours.sig)
    }

    /// Finds out, once, whether the store leaves alone what is there: `payload` has just been stored under `key`, so that
    /// nothing is lost if it does not.
    fn learn(&self, key: &str, payload: &Payload) {
        if self.blobs.creates_only().is_some() || self.creates_only.get().is_some() {
            return;
        }
        // An error teaches nothing, and shows with the next call if it is one. Who learned first was right.
        if let Ok(written) = self.blobs.put(key, payload, true) {
            self.creates_only.set(written == Written::Exists).ok();
        }
    }
}

impl<B: Blobs> Remote for BlobRemote<B> {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        let Some(blob) = self.blobs.get(&self.layout.key(sig))? else {
            return Ok(None);
        };
        let arrived = Arrived::default();
        let body = self.pacer.paced(blob.body, arrived.clone());
        let object = self.decode(sig, Blob { body, ..blob })?;
        let content = self
            .damaged
            .watch(object.content, sig, self.doing("get", sig));
        Ok(Some(Object {
            content,
            arrived,
            ..object
        }))
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        let during = |error: RemoteError| error.during(&self.doing("put", sig));
        let hash = content.hash().map_err(|error| during(error.into()))?;
        let header = Header::new(*sig, meta, content.len(), hash, self.encode.key.as_ref());
        self.upload(&header, content).map_err(during)
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.blobs.exists(&self.layout.key(sig))
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.blobs.delete(&self.layout.key(sig))
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.blobs.list(&mut |found| {
            if let Some(sig) = self.layout.parse(found.key) {
                each(Listed {
                    sig,
                    size: found.size,
                    modified: found.modified,
                    version: found.version.map(str::to_owned),
                });
            }
        })
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.blobs.touch(&self.layout.key(sig))
    }

    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        let key = self.layout.key(&listed.sig);
        self.blobs.delete_listed(Stored {
            key: &key,
            size: listed.size,
            modified: listed.modified,
            version: listed.version.as_deref(),
        })
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        let key = self.layout.key(sig);
        let moved = self
            .blobs
            .quarantine(&key, sig.as_str(), &self.encode.spool_dir);
        moved.map_err(|error| error.during(&self.doing("quarantine", sig)))
    }

    fn prepare(&self) {
        self.blobs.prepare();
    }

    fn describe(&self) -> String {
        self.blobs.describe()
    }
}
