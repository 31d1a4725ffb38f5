//! `http://` and `https://`: any server that answers GET and takes PUT, WebDAV or not.
//!
//! What is asked of a server is little: GET, HEAD, PUT and DELETE by path. Where it can do more, that is
//! used: ranges to look at headers, `If-None-Match: *`, MKCOL for missing parents, PROPFIND or nginx'
//! JSON index to list. None of it is relied upon.
//!
//! An object that comes as `text/html` is corrupt, and a PUT that is answered so with 200 is refused: that
//! is the page of a login, a proxy or a captive portal. Objects have no suffix that a server could take for
//! HTML; the few servers that look into files (rclone) cost an HTML output in a raw store its hits,
//! which is better than a login page in somebody's build.
//!
//! The rest is in children: `client` (the only async code: one request, its redirects, credentials
//! and timeouts), `body` (bytes both ways), `status` (what an answer means), `listing`.
//!
//! This module knows neither objects nor signatures.

pub(super) mod body;
pub(super) mod client;
mod listing;
pub(super) mod status;

pub(super) use crate::remote::auth;

use std::collections::HashSet;
use std::io::BufReader;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use reqwest::header::{ACCEPT, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::header::{IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE};
use reqwest::{Method, StatusCode};
use url::Url;

use crate::object::{Blob, Payload};
use crate::remote::blob::{Blobs, Stored, Written, first_bytes};
use crate::remote::http::auth::Auth;
use crate::remote::http::client::{Answer, Client, Request};
use crate::remote::http::listing::Entry;
use crate::remote::{RemoteError, RemoteOptions};
use crate::signature::Meta;

/// Collections known to exist. There are 256 by nature; more are not remembered, only made again.
const MADE_MAX: usize = 4096;

/// Collections below the base that can hold objects: `XX/SIG`.
const LEVELS: usize = 2;

/// What web pages come as.
const HTML: &str = "text/html";

/// Objects on an HTTP server.
pub struct Http {
    client: Client,
    base: Url,
    /// The server does not make parent directories itself, as it showed.
    needs_parents: AtomicBool,
    made: Mutex<HashSet<String>>,
}

impl Http {
    /// The server and path that an `http` or `https` URL names. Nothing is asked of it yet.
    pub fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let auth = Auth::new(url, options)?;
        let base = base_of(url);
        let client = Client::new(&base, auth, options)?;
        Ok(Self {
            client,
            base,
            needs_parents: AtomicBool::new(false),
            made: Mutex::default(),
        })
    }

    fn url(&self, key: &str) -> Result<Url, RemoteError> {
        self.base
            .join(key)
            .map_err(|error| RemoteError::Misconfigured(format!("key {key}: {error}")))
    }

    fn ask(&self, method: Method, key: &str) -> Result<Answer, RemoteError> {
        self.client.send(&Request::new(method, self.url(key)?))
    }

    fn put_once(
        &self,
        key: &str,
        payload: &Payload,
        if_absent: bool,
    ) -> Result<Answer, RemoteError> {
        let mut request = Request::new(Method::PUT, self.url(key)?).with_body(payload);
        if if_absent {
            request = request.with_header(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        self.client.send(&request)
    }

    /// Makes the collection that `key` is in, and those above it as far as they are missing.
    fn make_parents(&self, key: &str) -> Result<(), RemoteError> {
        let url = self.url(key)?;
        let parent = url
            .join(".")
            .map_err(|error| RemoteError::Misconfigured(format!("{url}: {error}")))?;
        self.make_collection(&parent)
    }

    /// The same, but a refusal is only an error if the PUT fails too: of two that make one collection
    /// at once, Apache tells the second that it is forbidden.
    fn try_parents(&self, key: &str) -> Result<Option<RemoteError>, RemoteError> {
        match self.make_parents(key) {
            Err(error) if error.is_transient() => Err(error),
            made => Ok(made.err()),
        }
    }

    fn make_collection(&self, url: &Url) -> Result<(), RemoteError> {
        if self.made().contains(url.path()) {
            return Ok(());
        }
        let make = || {
            self.client
                .send(&Request::new(webdav("MKCOL"), url.clone()))
        };
        let mut answer = make()?;
        let parent = url
            .join("..")
            .ok()
            .filter(|parent| parent.path() != url.path());
        if let (true, Some(parent)) = (status::lacks_parent(answer.status()), parent) {
            if let Err(error) = self.make_collection(&parent)
                && error.is_transient()
            {
                return Err(error);
            }
            answer = make()?;
        }
        // It exists, or somebody else is making it.
        if !answer.status().is_success() && !status::may_exist(answer.status()) {
            return Err(answer.into_error());
        }
        let mut made = self.made();
        if made.len() < MADE_MAX {
            made.insert(url.path().to_owned());
        }
        Ok(())
    }

    fn made(&self) -> MutexGuard<'_, HashSet<String>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_collection(&self, key: &str) -> Result<Option<Vec<Entry>>, RemoteError> {
        let url = self.url(key)?;
        let request = Request::new(webdav("PROPFIND"), url.clone())
            .with_header(
                HeaderName::from_static("depth"),
                HeaderValue::from_static("1"),
            )
            .with_header(CONTENT_TYPE, HeaderValue::from_static("application/xml"))
            .with_text(listing::PROPFIND);
        let answer = self.client.send(&request)?;
        match answer.status() {
            StatusCode::MULTI_STATUS => {
                let body = BufReader::new(answer.into_reader());
                listing::read_multistatus(body, url.path()).map(Some)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status if status::is_refused(status) || status.is_server_error() && status != 501 => {
                Err(answer.into_error())
            }
            _ => self.read_index(url),
        }
    }

    /// The way of nginx: `autoindex on; autoindex_format json;`.
    fn read_index(&self, url: Url) -> Result<Option<Vec<Entry>>, RemoteError> {
        let json = HeaderValue::from_static("application/json");
        let answer = self
            .client
            .send(&Request::new(Method::GET, url).with_header(ACCEPT, json))?;
        if answer.is_type("application/json") {
            return listing::read_json(BufReader::new(answer.into_reader())).map(Some);
        }
        let base = &self.base;
        Err(RemoteError::Unsupported(format!(
            "list {base}: the server answers neither PROPFIND nor with a JSON index (nginx: autoindex_format json)"
        )))
    }

    fn walk(
        &self,
        key: &str,
        levels: usize,
        each: &mut dyn FnMut(Stored<'_>),
    ) -> Result<(), RemoteError> {
        let Some(entries) = self.read_collection(key)? else {
            return Ok(());
        };
        for entry in entries {
            match entry {
                Entry::File {
                    name,
                    size,
                    modified,
                    version,
                } => each(Stored {
                    key: &format!("{key}{name}"),
                    size,
                    modified,
                    version: version.as_deref(),
                }),
                Entry::Collection { name } if levels > 1 && listing::is_prefix(&name) => {
                    self.walk(&format!("{key}{name}/"), levels - 1, each)?;
                }
                Entry::Collection { .. } => {}
            }
        }
        Ok(())
    }
}

impl Blobs for Http {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        let answer = self.ask(Method::GET, key)?;
        match answer.status() {
            status if status::is_miss(status) => Ok(None),
            StatusCode::OK => {
                let answer = as_stored(answer)?;
                let hint = mode_hint(answer.headers());
                Ok(Some(Blob {
                    len: answer.len(),
                    hint,
                    body: Box::new(answer.into_reader()),
                }))
            }
            _ => Err(answer.into_error()),
        }
    }

    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let range = HeaderValue::from_str(&format!("bytes=0-{}", len.saturating_sub(1)));
        let range = range.expect("digits fit a header");
        let request = Request::new(Method::GET, self.url(key)?).with_header(RANGE, range);
        let answer = self.client.send(&request)?;
        match answer.status() {
            status if status::is_miss(status) => Ok(None),
            // An empty file has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(Some(Vec::new())),
            // 200: the server knows no ranges.
            StatusCode::PARTIAL_CONTENT | StatusCode::OK => {
                first_bytes(as_stored(answer)?.into_reader(), len).map(Some)
            }
            _ => Err(answer.into_error()),
        }
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        let mut trouble = None;
        if self.needs_parents.load(Ordering::Relaxed) {
            trouble = self.try_parents(key)?;
        }
        let mut answer = self.put_once(key, payload, if_absent)?;
        if status::lacks_parent(answer.status()) {
            // What we made may be gone by now.
            self.made().clear();
            trouble = self.try_parents(key)?;
            self.needs_parents.store(true, Ordering::Relaxed);
            answer = self.put_once(key, payload, if_absent)?;
        }
        if let (true, Some(trouble)) = (status::lacks_parent(answer.status()), trouble) {
            return Err(trouble);
        }
        match answer.status() {
            StatusCode::OK if answer.is_type(HTML) => {
                let text = format!("{}: answered with a web page (a login?)", answer.subject());
                Err(RemoteError::Refused(text))
            }
            StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(Written::Stored),
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT if if_absent => {
                Ok(Written::Exists)
            }
            _ => Err(answer.into_error()),
        }
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        let answer = self.ask(Method::HEAD, key)?;
        match answer.status() {
            StatusCode::OK => as_stored(answer).map(|_| true),
            status if status::is_miss(status) => Ok(false),
            _ => Err(answer.into_error()),
        }
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        let answer = self.ask(Method::DELETE, key)?;
        match answer.status() {
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(true),
            status if status::is_miss(status) => Ok(false),
            _ => Err(answer.into_error()),
        }
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        self.walk("", LEVELS, each)
    }

    /// Whoever expires what nobody downloads counts a GET, and some of them no HEAD. Nothing makes a plain file younger than
    /// writing it again.
    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        Ok(self.peek(key, 1)?.is_some())
    }

    /// The server is asked to remove it only if it is the one that was listed. Some (nginx, rclone) do not mind that, so it is
    /// looked at before; what is written between the look and the request is lost there, which is a miss.
    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let answer = self.ask(Method::HEAD, listed.key)?;
        if status::is_miss(answer.status()) {
            return Ok(false);
        }
        if answer.status() != StatusCode::OK {
            return Err(answer.into_error());
        }
        let answer = as_stored(answer)?;
        let condition = match condition(answer.headers(), &listed) {
            Condition::Changed => return Ok(false),
            Condition::Unknown => {
                return Err(RemoteError::Unsupported(format!(
                    "{}: the server says neither when it was written nor which version it is",
                    answer.subject()
                )));
            }
            Condition::Same(name, value) => (name, value),
        };
        let request = Request::new(Method::DELETE, self.url(listed.key)?);
        let answer = self
            .client
            .send(&request.with_header(condition.0, condition.1))?;
        match answer.status() {
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(true),
            StatusCode::PRECONDITION_FAILED | StatusCode::CONFLICT => Ok(false),
            status if status::is_miss(status) => Ok(false),
            _ => Err(answer.into_error()),
        }
    }

    fn describe(&self) -> String {
        self.base.to_string()
    }
}

/// What an object is, compared with what was listed.
enum Condition {
    /// The same; the header by which the server can tell.
    Same(HeaderName, HeaderValue),
    Changed,
    /// Nothing to compare.
    Unknown,
}

/// Compares the head of an object with what was listed: length, then version, and time where either is not known.
fn condition(headers: &HeaderMap, listed: &Stored<'_>) -> Condition {
    if content_length(headers).is_some_and(|len| len != listed.size) {
        return Condition::Changed;
    }
    let etag = headers.get(ETAG).zip(listed.version);
    let modified = headers.get(LAST_MODIFIED).zip(listed.modified);
    let later = modified.is_some_and(|(value, listed)| {
        let found = value.to_str().ok().and_then(listing::time);
        found != Some(listed)
    });
    match (etag, modified) {
        _ if later => Condition::Changed,
        (Some((etag, listed)), _) if etag != listed => Condition::Changed,
        // A weak one is never the same to a server.
        (Some((etag, _)), _) if !etag.as_bytes().starts_with(b"W/") => {
            Condition::Same(IF_MATCH, etag.clone())
        }
        (_, Some((modified, _))) => Condition::Same(IF_UNMODIFIED_SINCE, modified.clone()),
        _ => Condition::Unknown,
    }
}

/// The URL that keys are appended to: a directory, without credentials.
fn base_of(url: &Url) -> Url {
    let mut base = url.clone();
    // Both fail only for URLs without a host, which have no credentials.
    let _no_host = base.set_username("").and_then(|()| base.set_password(None));
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", url.path()));
    }
    base
}

/// An answer with the bytes of an object, rather than a page or something that was compressed on the way
/// (nobody asked for that, so nobody would undo it).
fn as_stored(answer: Answer) -> Result<Answer, RemoteError> {
    let corrupt = |what| {
        Err(RemoteError::Corrupt(format!(
            "{}: answered with {what}",
            answer.subject()
        )))
    };
    if answer.is_type(HTML) {
        return corrupt("a web page, not an object");
    }
    match answer.headers().get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            corrupt("other bytes than are stored (Content-Encoding)")
        }
        _ => Ok(answer),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The mode that object stores keep beside a raw object: s3fs writes decimal `st_mode`, others octal.
fn mode_hint(headers: &HeaderMap) -> Option<Meta> {
    mode(headers.get("x-amz-meta-mode")?.to_str().ok()?)
}

/// A mode as any of them writes it.
pub(in crate::remote) fn mode(text: &str) -> Option<Meta> {
    const FORMAT: u32 = 0o170_000;
    const REGULAR: u32 = 0o100_000;
    let decimal = text
        .parse()
        .ok()
        .filter(|mode: &u32| mode & !0o177_777 == 0 && mode & FORMAT == REGULAR);
    let mode = decimal.or_else(|| u32::from_str_radix(text, 8).ok())?;
    Some(Meta::file(mode))
}

fn webdav(method: &str) -> Method {
    Method::from_bytes(method.as_bytes()).expect("upper-case letters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_below_the_base_without_credentials() {
        for (url, base) in [
            ("http://u:p@h:81/a/b", "http://h:81/a/b/"),
            ("https://h", "https://h/"),
            ("http://h/a%20b/", "http://h/a%20b/"),
        ] {
            assert_eq!(base_of(&Url::parse(url).unwrap()).as_str(), base);
        }
    }

    #[test]
    fn modes_of_object_stores_are_understood() {
        for (text, mode) in [
            ("33261", 0o755),
            ("100755", 0o755),
            ("0755", 0o755),
            ("755", 0o755),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-amz-meta-mode", HeaderValue::from_str(text).unwrap());
            assert_eq!(mode_hint(&headers), Some(Meta::file(mode)), "{text}");
        }
        assert_eq!(mode_hint(&HeaderMap::new()), None);
    }
}
