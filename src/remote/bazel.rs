//! `bazel+http://` and `bazel+https://`: a cache that answers `/ac/HASH` and `/cas/HASH` below a path, as Bazel's
//! `--remote_cache=http://…` uses it: bazel-remote, nginx with WebDAV, a bucket behind a gateway.
//!
//! The bytes go through [`Http`], with its credentials, redirects and timeouts. This module knows neither entries nor
//! signatures.

use std::io::Read;

use prost::Message;
use url::Url;

use crate::object::{Content, Payload};
use crate::remote::blob::{Blobs, first_bytes};
use crate::remote::http::Http;
use crate::remote::reapi::{self, ACTION_MAX, ActionCache, ActionResult, Digest};
use crate::remote::{RemoteError, RemoteOptions};
use crate::signature::Meta;

/// What the scheme begins with; the rest is the scheme of the server.
const PREFIX: &str = "bazel+";

/// A cache of Bazel's on an HTTP server.
pub struct Bazel(Http);

impl Bazel {
    /// The server and path that a URL names. Nothing is asked of it yet.
    pub fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let wrong = |why: String| RemoteError::Misconfigured(format!("{PREFIX}http: {why}"));
        let plain = url.as_str().strip_prefix(PREFIX);
        let plain = plain.ok_or_else(|| wrong("another scheme".to_owned()))?;
        let url = Url::parse(plain).map_err(|error| wrong(error.to_string()))?;
        Http::open(&url, options).map(Self)
    }
}

fn action_path(key: &Digest) -> String {
    format!("ac/{}", key.hash())
}

fn blob_path(digest: &Digest) -> String {
    format!("cas/{}", digest.hash())
}

impl ActionCache for Bazel {
    fn action(
        &self,
        key: &Digest,
        _wanted: Option<&str>,
    ) -> Result<Option<ActionResult>, RemoteError> {
        let Some(blob) = self.0.get(&action_path(key))? else {
            return Ok(None);
        };
        let bytes = first_bytes(blob.body, ACTION_MAX + 1)?;
        let parsed = match bytes.len() {
            0..=ACTION_MAX => reapi::parse_action(&bytes),
            _ => Err(RemoteError::Corrupt("too long".to_owned())),
        };
        let doing = || format!("GET {}{}", self.describe(), action_path(key));
        parsed.map(Some).map_err(|error| error.during(&doing()))
    }

    fn set_action(&self, key: &Digest, result: &ActionResult) -> Result<(), RemoteError> {
        let content = Content::Bytes(result.encode_to_vec());
        let payload = Payload::raw(Meta::file(0), &content, content.hash()?)?;
        self.0.put(&action_path(key), &payload, false).map(drop)
    }

    fn remove_action(&self, key: &Digest) -> Result<Option<bool>, RemoteError> {
        match self.0.delete(&action_path(key)) {
            Ok(existed) => Ok(Some(existed)),
            // bazel-remote: 405.
            Err(RemoteError::Misconfigured(_) | RemoteError::Unsupported(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, RemoteError> {
        Ok(self.0.get(&blob_path(digest))?.map(|blob| blob.body))
    }

    fn put_blob(&self, digest: &Digest, payload: &Payload) -> Result<(), RemoteError> {
        self.0.put(&blob_path(digest), payload, false).map(drop)
    }

    fn has_blob(&self, digest: &Digest) -> Result<bool, RemoteError> {
        self.0.exists(&blob_path(digest))
    }

    fn describe(&self) -> String {
        format!("{PREFIX}{}", self.0.describe())
    }
}
