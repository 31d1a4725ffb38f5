//! `gs://`: Google Cloud Storage.
//!
//! Objects come and go by the XML API, which carries metadata in headers; what is asked about them, listings, conditions
//! and copies go by the JSON API. `x-goog-if-generation-match: 0` keeps an object that is there. A version is generation
//! and metageneration: whatever is done to an object changes one of them, so that what was listed is deleted only if nobody
//! wrote or touched it since, without a race. To count as used an object is rewritten onto itself (no bytes move): that
//! resets the age that lifecycles mostly go by, which setting its custom time would not.
//!
//! An upload is one request, whatever its size: it has to end within `request_timeout`.
//!
//! This module knows neither objects nor signatures.

mod sources;

use std::io::BufReader;
use std::io::Read;
use std::sync::Arc;
use std::time::SystemTime;

use reqwest::Method;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RANGE,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use self::sources::Chest;
use crate::object::{Blob, Payload};
use crate::remote::blob::{Blobs, Stored, Written, first_bytes};
use crate::remote::cloud::answers::{self, Entry};
use crate::remote::cloud::session::{Dialect, Refusal, Reply, Session, Verdict};
use crate::remote::cloud::vault::{Perishable, Vault};
use crate::remote::cloud::{
    Bucket, bare, endpoint, in_path, in_query, made, query, time_of, value,
};
use crate::remote::http::client::{Answer, Client, Head, Request};
use crate::remote::runtime;
use crate::remote::{RemoteError, RemoteOptions, Secret};
use crate::signature::Meta;

/// Where Google has it.
const HOST: &str = "https://storage.googleapis.com";

/// The mode of a raw object.
const MODE: HeaderName = HeaderName::from_static("x-goog-meta-mode");

/// Largest answer of the JSON API; a page of a thousand entries takes 200 kB.
const JSON_MAX: u64 = 16 << 20;

/// Requests that one copy may take. Copies within a bucket take one; more is somebody's joke.
const REWRITES_MAX: usize = 1000;

/// Objects in a bucket.
pub(in crate::remote) struct Gcs {
    session: Session<Speech>,
    base: Url,
    bucket: Bucket,
}

/// An access token, for as long as it lasts.
#[derive(Clone)]
struct Token {
    token: Secret,
    until: Option<SystemTime>,
}

impl Perishable for Token {
    fn until(&self) -> Option<SystemTime> {
        self.until
    }
}

/// How it is spoken to: with a bearer token.
struct Speech;

impl Dialect for Speech {
    type Credentials = Token;

    fn sign(&self, head: &mut Head, credentials: Option<&Token>) -> Result<(), RemoteError> {
        if let Some(Token { token, .. }) = credentials {
            let mut value = value(&format!("Bearer {}", token.reveal()))?;
            value.set_sensitive(true);
            head.headers.insert(AUTHORIZATION, value);
        }
        Ok(())
    }

    fn is_stale(&self, refusal: &Refusal) -> bool {
        refusal.status == 401
    }
}

/// What the JSON API says about an object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct About {
    name: String,
    size: String,
    updated: String,
    generation: String,
    metageneration: String,
}

impl About {
    fn version(&self) -> String {
        format!("{}/{}", self.generation, self.metageneration)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Page {
    items: Vec<About>,
    next_page_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rewritten {
    done: bool,
    rewrite_token: Option<String>,
}

impl Gcs {
    /// The bucket and prefix that a `gs` URL names. Nothing is asked of it yet.
    pub(in crate::remote) fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let bucket = Bucket::of(url)?;
        let emulator = options.environment.get("STORAGE_EMULATOR_HOST");
        let emulator = emulator.map(|host| match host.contains("://") {
            true => host.to_owned(),
            false => format!("http://{host}"),
        });
        let base = match (&options.endpoint, &emulator) {
            (Some(given), _) => endpoint(given, "option endpoint")?,
            (None, Some(given)) => endpoint(given, "STORAGE_EMULATOR_HOST")?,
            (None, None) => made(HOST)?,
        };
        let runtime = runtime::shared()?;
        // An emulator knows nobody, as Google's own libraries assume.
        let vault = if options.anonymous.unwrap_or(emulator.is_some()) {
            None
        } else {
            let chest = Arc::new(Chest::new(options)?);
            let open = move || {
                let chest = Arc::clone(&chest);
                Box::pin(async move { chest.open().await }) as _
            };
            Some(Vault::new(runtime, Arc::clone(&options.clock), open))
        };
        let client = Client::unsigned(&base, options)?;
        let session = Session::new(client, Speech, vault, Arc::clone(&options.clock));
        Ok(Self {
            session,
            base,
            bucket,
        })
    }

    /// The object in the XML API.
    fn object(&self, key: &str) -> Result<Url, RemoteError> {
        let (base, bucket) = (bare(&self.base), &self.bucket.name);
        made(&format!(
            "{base}/{bucket}/{}",
            in_path(&self.bucket.name_of(key))
        ))
    }

    /// The bucket's objects in the JSON API; with a key, that one.
    fn about(
        &self,
        key: Option<&str>,
        behind: &str,
        pairs: &[(&str, &str)],
    ) -> Result<Url, RemoteError> {
        let (base, bucket) = (bare(&self.base), &self.bucket.name);
        let key = key
            .map(|key| format!("/{}", in_query(&self.bucket.name_of(key))))
            .unwrap_or_default();
        made(&format!(
            "{base}/storage/v1/b/{bucket}/o{key}{behind}{}",
            query(pairs)
        ))
    }

    fn look(&self, key: &str) -> Result<Option<About>, RemoteError> {
        let fields = [("fields", "name,size,updated,generation,metageneration")];
        let request = Request::new(Method::GET, self.about(Some(key), "", &fields)?);
        match self.session.send(&request)? {
            Reply::Done(answer) => json(answer).map(Some),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn explain(&self, refusal: &Refusal) -> RemoteError {
        explain(refusal, &self.bucket.name)
    }

    fn delete_if(&self, key: &str, conditions: &[(&str, &str)]) -> Result<bool, RemoteError> {
        let request = Request::new(Method::DELETE, self.about(Some(key), "", conditions)?);
        match self.session.send(&request)? {
            Reply::Done(answer) => {
                answer.drain();
                Ok(true)
            }
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(false),
            Reply::Refused(refusal) if refusal.status == 412 && !conditions.is_empty() => Ok(false),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }
}

impl Gcs {
    fn page(&self, token: Option<&str>) -> Result<answers::Page, RemoteError> {
        let fields = "items(name,size,updated,generation,metageneration),nextPageToken";
        let mut pairs = vec![("prefix", self.bucket.prefix.as_str()), ("fields", fields)];
        pairs.extend(token.map(|token| ("pageToken", token)));
        let request = Request::new(Method::GET, self.about(None, "", &pairs)?);
        let page: Page = match self.session.send(&request)? {
            Reply::Done(answer) => json(answer)?,
            Reply::Refused(refusal) => return Err(self.explain(&refusal)),
        };
        let entry = |about: &About| Entry {
            name: about.name.clone(),
            size: about.size.parse().unwrap_or_default(),
            modified: time_of(&about.updated),
            version: Some(about.version()),
        };
        Ok(answers::Page {
            entries: page.items.iter().map(entry).collect(),
            next: page.next_page_token,
        })
    }
}

impl Blobs for Gcs {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        match self
            .session
            .send(&Request::new(Method::GET, self.object(key)?))?
        {
            Reply::Done(answer) => Ok(Some(answers::blob(answer, MODE))),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let range = value(&format!("bytes=0-{}", len.saturating_sub(1)))?;
        let request = Request::new(Method::GET, self.object(key)?).with_header(RANGE, range);
        match self.session.send(&request)? {
            Reply::Done(answer) => first_bytes(answer.into_reader(), len).map(Some),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            // An empty object has no first byte.
            Reply::Refused(refusal) if refusal.status == 416 => Ok(Some(Vec::new())),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        let octets = HeaderValue::from_static("application/octet-stream");
        let mut request = Request::new(Method::PUT, self.object(key)?)
            .with_body(payload)
            .with_header(CONTENT_TYPE, octets);
        if if_absent {
            let name = HeaderName::from_static("x-goog-if-generation-match");
            request = request.with_header(name, HeaderValue::from_static("0"));
        }
        if let Some(Meta::File { mode }) = payload.hint() {
            request = request.with_header(MODE, value(&format!("{mode:04o}"))?);
        }
        let reply = self.session.send(&request)?;
        answers::written(reply, if_absent, &[412], |refusal| self.explain(refusal))
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        Ok(self.look(key)?.is_some())
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        self.delete_if(key, &[])
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        answers::list(&self.bucket, |from| self.page(from), each)
    }

    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        let Some(about) = self.look(key)? else {
            return Ok(false);
        };
        let name = in_query(&self.bucket.name_of(key));
        let behind = format!("/rewriteTo/b/{}/o/{name}", self.bucket.name);
        let mut token: Option<String> = None;
        for _ in 0..REWRITES_MAX {
            // What was written meanwhile stays.
            let mut pairs = vec![("ifGenerationMatch", about.generation.as_str())];
            pairs.extend(token.as_deref().map(|token| ("rewriteToken", token)));
            let request = Request::new(Method::POST, self.about(Some(key), &behind, &pairs)?);
            let request = request.with_header(CONTENT_LENGTH, HeaderValue::from_static("0"));
            let done: Rewritten = match self.session.send(&request.with_text(""))? {
                Reply::Done(answer) => json(answer)?,
                Reply::Refused(refusal) if is_miss(&refusal) => return Ok(false),
                Reply::Refused(refusal) if refusal.status == 412 => return Ok(true),
                Reply::Refused(refusal) => return Err(self.explain(&refusal)),
            };
            if done.done {
                return Ok(true);
            }
            token = done.rewrite_token;
        }
        let text = format!("touch {}: the copy does not end", self.object(key)?);
        Err(RemoteError::Transient(text))
    }

    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let version = listed.version.and_then(|version| version.split_once('/'));
        let Some((generation, metageneration)) = version else {
            return Ok(false);
        };
        let conditions = [
            ("ifGenerationMatch", generation),
            ("ifMetagenerationMatch", metageneration),
        ];
        self.delete_if(listed.key, &conditions)
    }

    fn describe(&self) -> String {
        self.bucket.describe()
    }
}

/// There is no such object. The JSON API says the same of a bucket that is not there, but for its words.
fn is_miss(refusal: &Refusal) -> bool {
    refusal.status == 404
        && refusal.code != "NoSuchBucket"
        && !refusal.mentions("bucket does not exist")
}

fn json<T: DeserializeOwned>(answer: Answer) -> Result<T, RemoteError> {
    let subject = answer.subject().to_owned();
    let body = BufReader::new(answer.into_reader().take(JSON_MAX));
    serde_json::from_reader(body).map_err(|error| {
        let cause = error.to_string();
        let io = error.is_io().then(|| RemoteError::from_io(error.into()));
        let other = || RemoteError::Transient(format!("not the JSON of this store: {cause}"));
        io.unwrap_or_else(other).during(&subject)
    })
}

/// What an error means, and what to do.
fn explain(refusal: &Refusal, bucket: &str) -> RemoteError {
    let (verdict, advice) = match (refusal.status.as_u16(), refusal.code.as_str()) {
        (404, _) => (
            Verdict::Misconfigured,
            format!("make the bucket {bucket}, or name another one"),
        ),
        (401, _) => (
            Verdict::Refused,
            "the credentials are not valid (any more): gcloud auth application-default login, or another \
             GOOGLE_APPLICATION_CREDENTIALS"
                .to_owned(),
        ),
        (403, "rateLimitExceeded" | "userRateLimitExceeded" | "SlowDown") => (Verdict::Busy, String::new()),
        (403, _) => (
            Verdict::Refused,
            format!("grant the role Storage Object User on {bucket} (Storage Object Viewer where nothing is pushed)"),
        ),
        _ => (refusal.verdict(), String::new()),
    };
    refusal.error(verdict, &advice)
}
