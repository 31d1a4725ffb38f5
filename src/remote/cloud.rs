//! Object stores of the clouds and what speaks like them: `s3`, `gcs`, `azure`, each a [`Blobs`](super::blob::Blobs).
//!
//! Credentials are found and requests are signed by the `reqsign` crates; requests go through the HTTP client of this
//! project. The alternatives bring a client of their own, and with it other timeouts, limits of speed, certificates and
//! classes of errors than every other remote has. `object_store` reads no profiles and no files of the AWS tools, and
//! `opendal` finds its credentials with these same crates.
//!
//! What the three have in common is in `session` (a signed request, once more after a renewal), `vault` (credentials that
//! expire), `context` (the world as the libraries see it), `answers` and `xml`. None of them knows objects or signatures.

mod answers;
#[cfg(feature = "azure")]
pub(super) mod azure;
mod context;
#[cfg(feature = "gcs")]
pub(super) mod gcs;
#[cfg(feature = "s3")]
pub(super) mod s3;
mod session;
mod vault;
mod xml;

use std::time::SystemTime;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::header::HeaderValue;
use url::Url;

use crate::remote::RemoteError;

/// What the signatures of all three leave as it is.
const UNRESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same in a path.
const IN_PATH: AsciiSet = UNRESERVED.remove(b'/');

/// Bucket (or container) and prefix, as a URL such as `s3://bucket/prefix` names them. The prefix is empty or ends
/// with `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bucket {
    scheme: String,
    name: String,
    prefix: String,
}

impl Bucket {
    fn of(url: &Url) -> Result<Self, RemoteError> {
        let scheme = url.scheme();
        let wrong = |why: &str| {
            RemoteError::Misconfigured(format!(
                "remote {scheme}://: {why}; want {scheme}://bucket or {scheme}://bucket/prefix"
            ))
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "credentials do not go into the URL (see cachedirfs(5))",
            ));
        }
        if url.port().is_some() {
            return Err(wrong("a host with a port is named with -o endpoint=URL"));
        }
        let name = url.host_str().unwrap_or_default();
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '$');
        if name.is_empty() || !name.chars().all(good) {
            return Err(wrong("it names no bucket"));
        }
        let path = percent_decode_str(url.path().trim_matches('/')).decode_utf8();
        let path = path.map_err(|_| wrong("the prefix is no UTF-8"))?;
        if path.chars().any(char::is_control)
            || path.split('/').any(|part| matches!(part, "." | ".."))
        {
            return Err(wrong("the prefix cannot be one"));
        }
        let prefix = if path.is_empty() {
            String::new()
        } else {
            format!("{path}/")
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            name: name.to_owned(),
            prefix,
        })
    }

    /// As it is shown.
    fn describe(&self) -> String {
        let prefix = in_path(&self.prefix);
        format!("{}://{}/{prefix}", self.scheme, self.name)
    }

    /// The key of ours in the store.
    fn name_of(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Our key for what the store has under `name`.
    fn key_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.prefix)
    }
}

/// `text` in a path.
fn in_path(text: &str) -> String {
    utf8_percent_encode(text, &IN_PATH).to_string()
}

/// `text` in a query or as one segment of a path.
fn in_query(text: &str) -> String {
    utf8_percent_encode(text, &UNRESERVED).to_string()
}

/// `?a=b&c=d`.
fn query(pairs: &[(&str, &str)]) -> String {
    let pair = |(name, value): &(&str, &str)| format!("{}={}", in_query(name), in_query(value));
    let pairs: Vec<_> = pairs.iter().map(pair).collect();
    format!("?{}", pairs.join("&"))
}

/// A URL that was put together here.
fn made(text: &str) -> Result<Url, RemoteError> {
    Url::parse(text).map_err(|error| RemoteError::Misconfigured(format!("{text}: {error}")))
}

/// A value for a header, from what a store or a user said.
fn value(text: &str) -> Result<HeaderValue, RemoteError> {
    HeaderValue::from_str(text)
        .map_err(|_| RemoteError::Misconfigured("a header cannot hold what it should".to_owned()))
}

/// The endpoint that a user named. TLS is left out only by saying `http:`.
fn endpoint(text: &str, from: &str) -> Result<Url, RemoteError> {
    let wrong = |why: &str| RemoteError::Misconfigured(format!("{from}: {why}; want https://host"));
    let url = Url::parse(text).map_err(|_| wrong("not a URL"))?;
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() {
        return Err(wrong("not an https or http URL"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(wrong("holds more than scheme, host and path"));
    }
    Ok(url)
}

/// An endpoint without the slash at its end, to append to.
fn bare(endpoint: &Url) -> &str {
    endpoint.as_str().trim_end_matches('/')
}

/// Whether requests go without credentials.
#[cfg(any(feature = "s3", feature = "azure"))]
fn is_anonymous(options: &crate::remote::RemoteOptions) -> bool {
    options.anonymous.unwrap_or(false)
}

/// A time as listings have it: `2026-01-02T03:04:05.000Z`, or as headers do.
fn time_of(text: &str) -> Option<SystemTime> {
    let iso = || text.parse::<jiff::Timestamp>().ok().map(SystemTime::from);
    iso().or_else(|| httpdate::parse_http_date(text).ok())
}
