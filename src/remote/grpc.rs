//! `grpc://` and `grpcs://`: a cache that speaks the Remote Execution API v2 (bazel-remote, BuildGrid, buildbox-casd,
//! Buildbarn, BuildBuddy, NativeLink …).
//!
//! The messages are written by hand on `prost`, and calls are made with tonic's generic client: the ten of them need no
//! generated code, so no `protoc` and no `build.rs`. The crate `bazel-remote-apis` would do it too, but has
//! the messages of remote execution, of Google's long-running operations and of their documentation compiled
//! in, of which a cache needs a twentieth.
//!
//! What the server can do is asked with the first call, and again after an answer that does not go with it. Small blobs
//! go in a batch of one, which needs no stream; big ones over ByteStream, compressed where the server offers zstd.
//! A server may send a small output along with its entry, which saves a round trip.
//!
//! Children: `call` (the only async code: connection, credentials, deadlines), `stream` (ByteStream), `status` (what a
//! code means), `message`.
//!
//! This module knows neither entries nor signatures.

mod call;
mod message;
mod status;
mod stream;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use percent_encoding::percent_decode_str;
use prost::Message;
use prost::bytes::Bytes;
use tonic::{Code, Status};
use url::Url;

use crate::object::{Payload, unzip};
use crate::remote::reapi::{ActionCache, ActionResult, Digest};
use crate::remote::{RemoteError, RemoteOptions};

use call::Caller;
use message as m;
use message::Method;
use status::Doing;

/// Blobs up to this go in a batch: its answer comes all at once, and must not be late on a slow line.
const SMALL_MAX: u64 = 128 << 10;

/// What the messages of a batch have besides the blob.
const BATCH_ROOM: u64 = 4 << 10;

/// A shorter blob does not gain from compression.
const ZIP_MIN: u64 = 512;

/// A cache behind gRPC.
pub struct Grpc {
    caller: Arc<Caller>,
    blobs: stream::Blobs,
    instance: String,
    described: String,
    known: Mutex<Option<Abilities>>,
    /// Whether outputs may come along with their entries. How much is the server's choice: on a line that is too slow for
    /// what it chooses, it is asked for entries alone.
    inlines: AtomicBool,
}

/// What a server can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Abilities {
    takes_updates: bool,
    /// Most bytes of a batch; `None` if it does not say.
    batch_max: Option<u64>,
    unzips_batches: bool,
    zips: bool,
}

impl Grpc {
    /// The server and instance that a URL names. Nothing is asked of it yet.
    pub fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let caller = Arc::new(Caller::new(url, options)?);
        let path = url.path().trim_matches('/');
        let instance = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let port = url.port().map(|port| format!(":{port}"));
        let host = url.host_str().unwrap_or_default();
        let described = format!(
            "{}://{host}{}/{path}",
            url.scheme(),
            port.unwrap_or_default()
        );
        let blobs = stream::Blobs {
            caller: Arc::clone(&caller),
            instance: instance.clone(),
            clock: Arc::clone(&options.clock),
            min_speed: options.min_speed,
            level: options.level,
        };
        Ok(Self {
            caller,
            blobs,
            instance,
            described,
            known: Mutex::new(None),
            inlines: AtomicBool::new(true),
        })
    }

    fn abilities(&self) -> Result<Abilities, RemoteError> {
        if let Some(known) = *self.known() {
            return Ok(known);
        }
        let question = m::GetCapabilitiesRequest {
            instance_name: self.instance.clone(),
        };
        let answer = self.caller.unary(m::GET_CAPABILITIES, &question, 0);
        let answer: m::ServerCapabilities = answer.map_err(|status| {
            self.caller
                .error(m::GET_CAPABILITIES, &status, Doing::Asking)
        })?;
        let abilities = Abilities::read(answer.cache_capabilities)?;
        *self.known() = Some(abilities);
        Ok(abilities)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Abilities>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failed call means. After one that should not have failed so, the server is asked anew what it can do.
    fn failed(&self, method: Method, status: &Status, doing: Doing) -> RemoteError {
        if status::is_surprise(status) {
            *self.known() = None;
        }
        self.caller.error(method, status, doing)
    }

    fn read_batch(&self, digest: &Digest, zips: bool) -> Result<Option<Vec<u8>>, RemoteError> {
        let question = m::BatchReadBlobsRequest {
            instance_name: self.instance.clone(),
            digests: vec![digest.to_message()],
            acceptable_compressors: if zips { vec![m::ZSTD] } else { Vec::new() },
        };
        let failed = |status: &Status| self.failed(m::BATCH_READ_BLOBS, status, Doing::Reading);
        let answer = self
            .caller
            .unary(m::BATCH_READ_BLOBS, &question, digest.size);
        let answer: m::BatchReadBlobsResponse = match answer {
            Err(status) if status::is_miss(&status) => return Ok(None),
            answer => answer.map_err(|status| failed(&status))?,
        };
        // Answers come in any order, and those about other blobs are none.
        let is_it = |digest_of: &Option<_>| digest_of.as_ref() == Some(&digest.to_message());
        let mut blobs = answer.responses.into_iter();
        let Some(blob) = blobs.find(|blob| is_it(&blob.digest)) else {
            let text = format!("{}: no answer about the blob", m::BATCH_READ_BLOBS.name());
            return Err(RemoteError::Transient(text));
        };
        match status::of_blob(blob.status) {
            Err(status) if status::is_miss(&status) => return Ok(None),
            known => known.map_err(|status| failed(&status))?,
        }
        if blob.compressor == 0 {
            return Ok(Some(blob.data.to_vec()));
        }
        // No more comes out than is wanted; whether it is what is wanted shows the hash.
        let mut content = Vec::new();
        let zipped = unzip(Box::new(io::Cursor::new(blob.data)))?;
        let read = zipped.take(digest.size + 1).read_to_end(&mut content);
        read.map_err(|error| RemoteError::from_io(error).during(m::BATCH_READ_BLOBS.name()))?;
        Ok(Some(content))
    }

    fn write_batch(
        &self,
        digest: &Digest,
        payload: &Payload,
        zips: bool,
    ) -> Result<(), RemoteError> {
        let mut content = Vec::new();
        let read = payload.reader().read_to_end(&mut content);
        read.map_err(|error| RemoteError::Local(error.to_string()))?;
        let (data, compressor) = match zips && digest.size >= ZIP_MIN {
            true => {
                let zipped = zstd::encode_all(&content[..], self.blobs.level);
                (
                    zipped.map_err(|error| RemoteError::Local(error.to_string()))?,
                    m::ZSTD,
                )
            }
            false => (content, 0),
        };
        let question = m::BatchUpdateBlobsRequest {
            instance_name: self.instance.clone(),
            requests: vec![m::BlobUpdate {
                digest: Some(digest.to_message()),
                data: Bytes::from(data),
                compressor,
            }],
        };
        let failed = |status: &Status| self.failed(m::BATCH_UPDATE_BLOBS, status, Doing::Writing);
        let answer = self
            .caller
            .unary(m::BATCH_UPDATE_BLOBS, &question, digest.size);
        let answer: m::BatchUpdateBlobsResponse = answer.map_err(|status| failed(&status))?;
        let mut blobs = answer.responses.into_iter();
        let it = blobs.find(|blob| blob.digest.as_ref() == Some(&digest.to_message()));
        match it.map(|blob| status::of_blob(blob.status)) {
            Some(Ok(())) => Ok(()),
            Some(Err(status)) => Err(failed(&status)),
            None => {
                let text = format!("{}: no answer about the blob", m::BATCH_UPDATE_BLOBS.name());
                Err(RemoteError::Transient(text))
            }
        }
    }
}

impl Abilities {
    fn read(cache: Option<m::CacheCapabilities>) -> Result<Self, RemoteError> {
        let wrong = |what: &str| RemoteError::Misconfigured(format!("the server {what}"));
        let cache = cache.ok_or_else(|| wrong("says that it is no cache"))?;
        let functions = &cache.digest_functions;
        if !functions.is_empty() && !functions.contains(&m::SHA256) {
            return Err(wrong("names blobs by another hash than SHA-256"));
        }
        let zips = |list: &[i32]| list.contains(&m::ZSTD);
        let updates = cache.action_cache_update_capabilities;
        let batch_max = u64::try_from(cache.max_batch_total_size_bytes).ok();
        Ok(Self {
            takes_updates: updates.is_none_or(|updates| updates.update_enabled),
            batch_max: batch_max.filter(|max| *max > 0),
            unzips_batches: zips(&cache.supported_batch_update_compressors),
            zips: zips(&cache.supported_compressors),
        })
    }

    /// Whether a blob goes in a batch.
    fn batches(&self, digest: &Digest) -> bool {
        let fits = |max| digest.size + BATCH_ROOM <= max;
        digest.size <= SMALL_MAX && self.batch_max.is_none_or(fits)
    }
}

impl ActionCache for Grpc {
    fn action(
        &self,
        key: &Digest,
        wanted: Option<&str>,
    ) -> Result<Option<ActionResult>, RemoteError> {
        self.abilities()?;
        let wanted = wanted.filter(|_| self.inlines.load(Ordering::Relaxed));
        let question = m::GetActionResultRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(key.to_message()),
            inline_stdout: true,
            inline_output_files: wanted.map(str::to_owned).into_iter().collect(),
        };
        match self.caller.unary(m::GET_ACTION_RESULT, &question, 0) {
            Ok(result) => Ok(Some(result)),
            Err(status) if status::is_miss(&status) => Ok(None),
            Err(status) => {
                if status.code() == Code::DeadlineExceeded && wanted.is_some() {
                    self.inlines.store(false, Ordering::Relaxed);
                }
                Err(self.failed(m::GET_ACTION_RESULT, &status, Doing::Asking))
            }
        }
    }

    fn set_action(&self, key: &Digest, result: &ActionResult) -> Result<(), RemoteError> {
        if !self.abilities()?.takes_updates {
            // It may be told to while we run.
            *self.known() = None;
            let text = "the server says that its action cache takes no updates from us: mount with -o ro or push=off, \
                        or have its operator allow them";
            return Err(RemoteError::Refused(text.to_owned()));
        }
        let question = m::UpdateActionResultRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(key.to_message()),
            action_result: Some(result.clone()),
        };
        let len = result.encoded_len() as u64;
        let answer: Result<ActionResult, _> =
            self.caller.unary(m::UPDATE_ACTION_RESULT, &question, len);
        answer
            .map(drop)
            .map_err(|status| self.failed(m::UPDATE_ACTION_RESULT, &status, Doing::Writing))
    }

    fn remove_action(&self, _key: &Digest) -> Result<Option<bool>, RemoteError> {
        Ok(None)
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, RemoteError> {
        let abilities = self.abilities()?;
        if abilities.batches(digest) {
            let content = self.read_batch(digest, abilities.zips)?;
            return Ok(content.map(|content| Box::new(io::Cursor::new(content)) as _));
        }
        self.blobs.read(digest, abilities.zips)
    }

    fn put_blob(&self, digest: &Digest, payload: &Payload) -> Result<(), RemoteError> {
        let abilities = self.abilities()?;
        if !abilities.takes_updates {
            return Ok(());
        }
        if abilities.batches(digest) {
            return self.write_batch(digest, payload, abilities.unzips_batches);
        }
        match abilities.zips {
            true => self.blobs.write_zipped(digest, payload),
            false => self.blobs.write(digest, payload),
        }
    }

    fn has_blob(&self, digest: &Digest) -> Result<bool, RemoteError> {
        self.abilities()?;
        let question = m::FindMissingBlobsRequest {
            instance_name: self.instance.clone(),
            blob_digests: vec![digest.to_message()],
        };
        let answer = self.caller.unary(m::FIND_MISSING_BLOBS, &question, 0);
        let answer: m::FindMissingBlobsResponse =
            answer.map_err(|status| self.failed(m::FIND_MISSING_BLOBS, &status, Doing::Asking))?;
        Ok(!answer.missing_blob_digests.contains(&digest.to_message()))
    }

    fn describe(&self) -> String {
        self.described.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(change: impl FnOnce(&mut m::CacheCapabilities)) -> Result<Abilities, RemoteError> {
        let mut cache = m::CacheCapabilities {
            digest_functions: vec![m::SHA256],
            ..m::CacheCapabilities::default()
        };
        change(&mut cache);
        Abilities::read(Some(cache))
    }

    fn of(size: usize) -> Digest {
        Digest::of(&vec![0; size])
    }

    #[test]
    fn a_limit_of_nothing_is_none_stated_but_big_blobs_are_streamed_all_the_same() {
        let none = abilities(|_| ()).unwrap();
        assert!(none.batches(&of(128 << 10)) && !none.batches(&of((128 << 10) + 1)));
        let low = abilities(|cache| cache.max_batch_total_size_bytes = 10_000).unwrap();
        assert!(low.batches(&of(5000)) && !low.batches(&of(6000)));
    }

    #[test]
    fn a_server_that_names_blobs_by_another_hash_is_of_no_use() {
        let other = abilities(|cache| cache.digest_functions = vec![2, 3]);
        assert!(matches!(other, Err(RemoteError::Misconfigured(_))));
        assert!(abilities(|cache| cache.digest_functions = vec![3, 1]).is_ok());
        assert!(matches!(
            Abilities::read(None),
            Err(RemoteError::Misconfigured(_))
        ));
    }

    #[test]
    fn the_url_names_the_instance_and_never_a_credential() {
        for (url, instance, described) in [
            ("grpc://h:1234/a/b%20c", "a/b c", "grpc://h:1234/a/b%20c"),
            ("grpcs://u:p@h", "", "grpcs://h/"),
            ("grpcs://[::1]:9/x/", "x", "grpcs://[::1]:9/x"),
        ] {
            let url = Url::parse(url).unwrap();
            let grpc = Grpc::open(&url, &RemoteOptions::default()).unwrap();
            assert_eq!((&*grpc.instance, &*grpc.described), (instance, described));
        }
    }
}
