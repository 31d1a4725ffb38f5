//! Entries in an action cache: what Bazel's remote caches hold, over HTTP (`bazel`) or gRPC (`grpc`).
//!
//! An entry is an `ActionResult` under a key of our own recipe, and its content a blob in the CAS as it is, under its
//! SHA-256. So a server validates it, keeps the two together, and any tool can fetch the build output. What an
//! `ActionResult` has no place for (full mode, BLAKE3, the MAC of a key) is the header of an object, as
//! bytes in `stdout_raw`. Without it an entry is raw: believed by its SHA-256, unless there is a key.
//!
//! An entry whose blob is gone is a miss, and is written again by the next put. A cache that cannot remove an entry has
//! it overwritten by one without any output, which is a miss as well; the blob stays until the server evicts it.
//!
//! [`ActionCache`] is what a server must be able to do, [`Actions`] makes a [`Remote`] of it. Children: `entry` (to and
//! from messages, keys), `digest`, `message`, `json`.
//!
//! This module knows no protocol.

mod digest;
mod entry;
#[cfg(feature = "http")]
mod json;
pub mod message;

use std::io::{self, Read};

use crate::object::{self, Arrived, Content, Format, Header, Key, Object, Payload};
use crate::remote::found::{self, Damaged, Found};
use crate::remote::pace::Pacer;
use crate::remote::{Listed, Put, Remote, RemoteError, RemoteOptions};
use crate::signature::{Meta, Signature};

pub use digest::Digest;
pub use entry::{action_key, pr3971_key};
pub use message::ActionResult;

use entry::{Entry, Output};

/// Longest `ActionResult` that is read over HTTP. Ours have less than 6 KiB with the longest target of a link.
#[cfg(feature = "http")]
pub(super) const ACTION_MAX: usize = 256 << 10;

/// An action cache with its CAS. The contract of [`Remote`] holds: one attempt a call, a miss is no error, errors are
/// classified and name what was asked for. What comes is checked by the caller.
pub trait ActionCache: Send + Sync {
    /// What stands under a key. The content of the output `wanted` may come along, if the server likes.
    fn action(
        &self,
        key: &Digest,
        wanted: Option<&str>,
    ) -> Result<Option<ActionResult>, RemoteError>;

    /// Writes what stands under a key. The blob is there before.
    fn set_action(&self, key: &Digest, result: &ActionResult) -> Result<(), RemoteError>;

    /// Removes what stands under a key, and says whether there was anything; `None` where that is not offered.
    fn remove_action(&self, key: &Digest) -> Result<Option<bool>, RemoteError>;

    /// The bytes of a blob.
    fn blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, RemoteError>;

    /// Writes a blob, whether or not it is there.
    fn put_blob(&self, digest: &Digest, payload: &Payload) -> Result<(), RemoteError>;

    /// Whether a blob is there; it counts as used now.
    fn has_blob(&self, digest: &Digest) -> Result<bool, RemoteError>;

    /// The server as its URL, without credentials.
    fn describe(&self) -> String;
}

/// An action cache as a remote.
pub struct Actions<C> {
    cache: C,
    key: Option<Key>,
    format: Format,
    pr3971: bool,
    pacer: Pacer,
    damaged: Damaged,
}

impl<C: ActionCache> Actions<C> {
    /// A remote on `cache`.
    pub fn new(cache: C, options: &RemoteOptions) -> Self {
        Self {
            cache,
            key: options.key.clone(),
            format: options.format,
            pr3971: options.pr3971,
            pacer: Pacer::new(options),
            damaged: Damaged::default(),
        }
    }

    fn doing(&self, operation: &str, sig: &Signature) -> String {
        format!("{operation} {sig} at {}", self.cache.describe())
    }

    /// What readers take: our entry, or else one by SCons itself, which has no header and is nothing to who has a key.
    /// Something removed is removed, whoever has it as well.
    fn readable(&self, sig: &Signature, wanted: bool) -> Result<Option<Entry>, RemoteError> {
        let name = sig.to_string();
        let wanted = wanted.then_some(name.as_str());
        let mut found = self.cache.action(&action_key(sig), wanted)?;
        if found.is_none() && self.reads_pr3971() {
            found = self.cache.action(&pr3971_key(sig), None)?;
        }
        let Some(result) = found else {
            return Ok(None);
        };
        let read = Entry::read(sig, result, self.key.as_ref());
        if matches!(read, Err(RemoteError::Corrupt(_))) {
            self.damaged.add(sig);
        }
        read
    }

    fn reads_pr3971(&self) -> bool {
        self.pr3971 && self.key.is_none()
    }

    /// Whether an entry has its content.
    fn is_whole(&self, entry: &Entry) -> Result<bool, RemoteError> {
        match &entry.output {
            Output::File { digest, .. } if digest.size > 0 => self.cache.has_blob(digest),
            _ => Ok(true),
        }
    }

    fn object(&self, sig: &Signature, entry: Entry) -> Result<Option<Object>, RemoteError> {
        let (meta, hash) = (entry.meta(), entry.header.map(|header| header.hash));
        let arrived = Arrived::default();
        let in_memory =
            |bytes: Vec<u8>| -> Box<dyn Read + Send> { Box::new(io::Cursor::new(bytes)) };
        let (len, body) = match entry.output {
            Output::Symlink { target } => (target.len() as u64, in_memory(target.into_bytes())),
            Output::File {
                digest, contents, ..
            } => {
                let body = match contents {
                    Some(contents) => in_memory(contents),
                    None if digest.size == 0 => in_memory(Vec::new()),
                    None => match self.cache.blob(&digest)? {
                        Some(body) => body,
                        None => return Ok(None),
                    },
                };
                let body = self.pacer.paced(body, arrived.clone());
                (digest.size, digest.checked(body))
            }
        };
        let object = object::plain(*sig, meta, len, hash, body);
        Ok(Some(Object { arrived, ..object }))
    }

    /// Compares what is there with `ours`. What SCons itself wrote does not count: it says too little.
    fn find(&self, ours: &Header, payload: &Payload) -> Result<Found, RemoteError> {
        let entry = match self.cache.action(&action_key(&ours.sig), None)? {
            Some(result) => Entry::read(&ours.sig, result, self.key.as_ref()),
            None => return Ok(Found::Nothing),
        };
        let entry = match entry {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Found::Nothing),
            Err(RemoteError::Corrupt(_)) => return Ok(Found::Stale),
            Err(error) => return Err(error),
        };
        if self.damaged.has(&ours.sig) || !self.is_whole(&entry)? {
            return Ok(Found::Stale);
        }
        match &entry.header {
            Some(theirs) => Ok(found::compare(ours, theirs, self.key.as_ref())),
            None => compare_raw(ours, &entry, payload),
        }
    }

    fn upload(&self, ours: &Header, payload: &Payload) -> Result<Put, RemoteError> {
        if let Some(put) = self.find(ours, payload)?.settled(ours) {
            return Ok(put);
        }
        let header = Some(ours).filter(|_| self.format == Format::Object);
        let result = match ours.meta {
            Meta::Symlink => entry::symlink(&ours.sig, target(payload)?, header),
            Meta::File { .. } => {
                let digest = digest_of(payload)?;
                let is_wanted = digest.size > 0
                    && (self.damaged.has(&ours.sig) || !self.cache.has_blob(&digest)?);
                if is_wanted {
                    self.cache.put_blob(&digest, payload)?;
                }
                entry::file(&ours.sig, ours.meta, digest, header)
            }
        };
        self.cache.set_action(&action_key(&ours.sig), &result)?;
        self.damaged.remove(&ours.sig);
        Ok(Put::Stored)
    }

    fn remove(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let key = action_key(sig);
        // What SCons wrote is not ours to remove: our own entry has to hide it.
        let hides = self.reads_pr3971() && self.cache.action(&pr3971_key(sig), None)?.is_some();
        if !hides && let Some(existed) = self.cache.remove_action(&key)? {
            return Ok(existed);
        }
        match self.readable(sig, false) {
            Ok(None) => return Ok(false),
            Ok(Some(_)) | Err(RemoteError::Corrupt(_)) => {}
            Err(error) => return Err(error),
        }
        self.cache.set_action(&key, &entry::removed())?;
        Ok(true)
    }
}

impl<C: ActionCache> Remote for Actions<C> {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        let doing = || self.doing("get", sig);
        let object = match self.readable(sig, true) {
            Ok(Some(entry)) => self.object(sig, entry),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let Some(object) = object.map_err(|error| error.during(&doing()))? else {
            return Ok(None);
        };
        let content = self.damaged.watch(object.content, sig, doing());
        Ok(Some(Object { content, ..object }))
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        let put = || {
            let hash = content.hash()?;
            let header = Header::new(*sig, meta, content.len(), hash, self.key.as_ref());
            let payload = Payload::raw(meta, content, hash)?;
            self.upload(&header, &payload)
        };
        put().map_err(|error: RemoteError| error.during(&self.doing("put", sig)))
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let exists = match self.readable(sig, false) {
            Ok(Some(entry)) => self.is_whole(&entry),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        exists.map_err(|error| error.during(&self.doing("look for", sig)))
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.remove(sig)
            .map_err(|error| error.during(&self.doing("delete", sig)))
    }

    fn list(&self, _each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        let url = self.cache.describe();
        let text = format!("list {url}: an action cache has no way to say what it holds");
        Err(RemoteError::Unsupported(text))
    }

    fn describe(&self) -> String {
        self.cache.describe()
    }
}

/// A raw entry is compared by its SHA-256.
fn compare_raw(ours: &Header, entry: &Entry, payload: &Payload) -> Result<Found, RemoteError> {
    let (is_same, len) = match &entry.output {
        Output::File { digest, .. } => (digest_of(payload)? == *digest, digest.size),
        Output::Symlink { target: theirs } => (
            ours.meta == Meta::Symlink && target(payload)? == *theirs,
            theirs.len() as u64,
        ),
    };
    let is_same_kind = (entry.meta() == Meta::Symlink) == (ours.meta == Meta::Symlink);
    let can_run = |meta: Meta| meta.mode() & 0o111 != 0;
    Ok(match (is_same && is_same_kind, entry.meta()) {
        (false, _) => Found::Other(None, Some(len)),
        (true, meta) if can_run(meta) == can_run(ours.meta) => Found::Same,
        (true, _) => Found::Stale,
    })
}

/// What a local failure to read the content is.
fn local(error: io::Error) -> RemoteError {
    match RemoteError::from_io(error) {
        RemoteError::Transient(cause) | RemoteError::Full(cause) => RemoteError::Local(cause),
        other => other,
    }
}

fn digest_of(payload: &Payload) -> Result<Digest, RemoteError> {
    Digest::of_reader(payload.reader()).map_err(local)
}

/// The target of a symlink as a message can hold it.
fn target(payload: &Payload) -> Result<String, RemoteError> {
    let mut target = String::new();
    match payload.reader().read_to_string(&mut target) {
        Ok(_) => Ok(target),
        Err(error)
            if error.kind() == io::ErrorKind::InvalidData
                && error
                    .get_ref()
                    .is_none_or(|inner| !inner.is::<object::ObjectError>()) =>
        {
            let text = "a symlink whose target is not UTF-8 has no place in an ActionResult";
            Err(RemoteError::Unsupported(text.to_owned()))
        }
        Err(error) => Err(local(error)),
    }
}

/// The message that a server keeps as bytes: protobuf, or the JSON of SCons itself.
#[cfg(feature = "http")]
pub(super) fn parse_action(bytes: &[u8]) -> Result<ActionResult, RemoteError> {
    let parsed = match bytes.trim_ascii_start().first() {
        // In protobuf this would begin a group, which no field is.
        Some(b'{') => json::parse(bytes),
        _ => prost::Message::decode(bytes).ok(),
    };
    parsed.ok_or_else(|| RemoteError::Corrupt("not an ActionResult".to_owned()))
}

#[cfg(test)]
mod tests;
