//! `s3://`: Amazon S3 and every store that speaks as it does.
//!
//! Every request is signed with the SHA-256 of its body, so that nothing between here and there can change it. Whether
//! there is an object is asked with a GET of its first byte rather than with HEAD: it costs the same, and its errors say
//! why. A store that refuses to say whether there is an object (403 without the right to list) is refusing: taking that
//! for a miss would hide every lack of rights.
//!
//! `If-None-Match: *` keeps an object that is there; a store that does not offer it says 501, and is asked without from
//! then on. To count as used an object is copied onto itself, which is the only thing that resets its age for a lifecycle;
//! S3 does that up to 5 GiB. The copy keeps its ETag: so whether an object was touched since it was listed is seen by its
//! time, looked at just before it is deleted. Who touches it between these two requests loses it; who writes it does not
//! where the store minds `If-Match`.
//!
//! The rest is in children: `place` (URLs and the region), `profile` (credentials), `parts` (uploads in parts), `listing`,
//! `advice` (what errors mean).
//!
//! This module knows neither objects nor signatures.

mod advice;
mod listing;
mod parts;
mod place;
mod profile;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::{Context, SignRequest};
use reqwest::Method;
use reqwest::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MATCH, IF_NONE_MATCH, LAST_MODIFIED, RANGE,
};
use ring::digest;
use url::Url;

use crate::object::{Blob, Payload};
use crate::remote::blob::{Blobs, Stored, Written, first_bytes};
use crate::remote::cloud::answers;
use crate::remote::cloud::s3::place::Place;
use crate::remote::cloud::s3::profile::{Chest, Profile};
use crate::remote::cloud::session::{Dialect, Refusal, Reply, Session};
use crate::remote::cloud::vault::{Perishable, Vault};
use crate::remote::cloud::{is_anonymous, time_of, value};
use crate::remote::http::client::{Answer, Client, Head, Request};
use crate::remote::runtime::{self, Shared};
use crate::remote::{RemoteError, RemoteOptions};
use crate::signature::Meta;

/// Most that S3 copies at once.
const COPY_MAX: u64 = 5 << 30;

/// The digest of the body, which is signed.
const DIGEST: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// The mode of a raw object, in octal digits.
const MODE: HeaderName = HeaderName::from_static("x-amz-meta-mode");

/// What is kept when an object is copied onto itself, besides `x-amz-meta-*`.
const KEPT: [HeaderName; 3] = [CONTENT_TYPE, CONTENT_ENCODING, CACHE_CONTROL];

/// Objects in a bucket.
pub(in crate::remote) struct S3 {
    session: Session<Speech>,
    place: Arc<Place>,
    /// The store showed that it knows no conditions.
    is_simple: AtomicBool,
}

/// Keys of one account, for as long as they last.
#[derive(Clone)]
struct Keys {
    keys: Credential,
    until: Option<SystemTime>,
}

impl Keys {
    fn new(found: Credential) -> Self {
        let until = found.expires_in.map(|stamp| stamp.as_system_time());
        let keys = Credential {
            expires_in: None,
            ..found
        };
        Self { keys, until }
    }
}

impl Perishable for Keys {
    fn until(&self) -> Option<SystemTime> {
        self.until
    }
}

/// How S3 is spoken to: signature version 4.
struct Speech {
    place: Arc<Place>,
    runtime: Arc<Shared>,
}

impl Dialect for Speech {
    type Credentials = Keys;

    fn sign(&self, head: &mut Head, credentials: Option<&Keys>) -> Result<(), RemoteError> {
        let Some(Keys { keys, .. }) = credentials else {
            return Ok(());
        };
        let signer = RequestSigner::new("s3", &self.place.region());
        // It dates the request itself, and with credentials at hand it has nothing to wait for. Whether they last is
        // known already, by the clock that this project is handed.
        let context = Context::new();
        let signed = signer.sign_request(&context, head, Some(keys), None);
        self.runtime
            .run(signed)
            .map_err(|error| RemoteError::Misconfigured(format!("sign: {error}")))
    }

    fn is_stale(&self, refusal: &Refusal) -> bool {
        advice::is_stale(refusal)
    }
}

/// What is known of an object without its bytes.
struct Look {
    headers: HeaderMap,
    size: Option<u64>,
}

impl Look {
    fn text(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl S3 {
    /// The bucket and prefix that an `s3` URL names. Nothing is asked of it yet.
    pub(in crate::remote) fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let profile = Profile::read(options)?;
        let place = Arc::new(Place::new(url, options, &profile)?);
        let runtime = runtime::shared()?;
        let vault = if is_anonymous(options) {
            None
        } else {
            let chest = Arc::new(Chest::new(options, &profile, &place.region())?);
            let open = move || {
                let chest = Arc::clone(&chest);
                Box::pin(async move { chest.open().await }) as _
            };
            let clock = Arc::clone(&options.clock);
            Some(Vault::new(Arc::clone(&runtime), clock, open))
        };
        let client = Client::unsigned(&place.origin()?, options)?;
        let speech = Speech {
            place: Arc::clone(&place),
            runtime,
        };
        Ok(Self {
            session: Session::new(client, speech, vault, Arc::clone(&options.clock)),
            place,
            is_simple: AtomicBool::new(false),
        })
    }

    /// Sends what `request` makes; once more if the store says that the bucket is in another region, which changes the
    /// URL and the signature.
    fn send<'a>(
        &self,
        request: impl Fn() -> Result<Request<'a>, RemoteError>,
    ) -> Result<Reply, RemoteError> {
        let reply = self.session.send(&request()?)?;
        match &reply {
            Reply::Refused(refusal)
                if advice::region(refusal).is_some_and(|region| self.place.moved_to(region)) =>
            {
                self.session.send(&request()?)
            }
            _ => Ok(reply),
        }
    }

    fn object(&self, method: Method, key: &str) -> Result<Request<'static>, RemoteError> {
        Ok(Request::new(method, self.place.object(key, &[])?))
    }

    fn explain(&self, refusal: &Refusal) -> RemoteError {
        advice::explain(refusal, &self.place, self.session.clock.wall())
    }

    /// The first `len` bytes, with what the store says about the object; `None` for a miss.
    fn first(&self, key: &str, len: usize) -> Result<Option<(Look, Option<Answer>)>, RemoteError> {
        let range = value(&format!("bytes=0-{}", len.saturating_sub(1)))?;
        let reply = self.send(|| {
            Ok(self
                .object(Method::GET, key)?
                .with_header(RANGE, range.clone()))
        })?;
        match reply {
            Reply::Done(answer) => {
                let headers = answer.headers().clone();
                let size = whole_size(&headers).or_else(|| answer.len());
                Ok(Some((Look { headers, size }, Some(answer))))
            }
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            // An empty object has no first byte.
            Reply::Refused(refusal) if refusal.status == 416 => {
                let headers = refusal.headers.clone();
                Ok(Some((
                    Look {
                        headers,
                        size: Some(0),
                    },
                    None,
                )))
            }
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn look(&self, key: &str) -> Result<Option<Look>, RemoteError> {
        let found = self.first(key, 1)?;
        Ok(found.map(|(look, answer)| {
            if let Some(answer) = answer {
                answer.drain();
            }
            look
        }))
    }

    fn put_whole(
        &self,
        key: &str,
        payload: &Payload,
        if_absent: bool,
    ) -> Result<Reply, RemoteError> {
        let digest = digest_of(payload)?;
        self.send(|| {
            let request = self.object(Method::PUT, key)?.with_body(payload);
            let request = with_mode(request.with_header(DIGEST, digest.clone()), payload)?;
            Ok(self.conditional(request, if_absent))
        })
    }

    fn conditional<'a>(&self, request: Request<'a>, if_absent: bool) -> Request<'a> {
        if if_absent && !self.is_simple.load(Ordering::Relaxed) {
            return request.with_header(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        request
    }

    /// Whether a refusal means that the store knows no conditions; that is remembered.
    fn knows_no_conditions(&self, refusal: &Refusal, if_absent: bool) -> bool {
        let refused = refusal.status == 501 || refusal.code == "NotImplemented";
        if_absent && refused && !self.is_simple.swap(true, Ordering::Relaxed)
    }

    fn written(&self, reply: Reply, if_absent: bool) -> Result<Written, RemoteError> {
        answers::written(reply, if_absent, &[409, 412], |refusal| {
            self.explain(refusal)
        })
    }

    fn copy_onto_itself(&self, key: &str, look: &Look) -> Result<Reply, RemoteError> {
        let source = value(&self.place.source(key))?;
        self.send(|| {
            let mut request = self
                .object(Method::PUT, key)?
                .with_header(DIGEST, hex(digest::digest(&digest::SHA256, b"")))
                .with_header(HeaderName::from_static("x-amz-copy-source"), source.clone())
                .with_header(
                    HeaderName::from_static("x-amz-metadata-directive"),
                    HeaderValue::from_static("REPLACE"),
                );
            if let Some(etag) = look.headers.get(ETAG) {
                let name = HeaderName::from_static("x-amz-copy-source-if-match");
                request = request.with_header(name, etag.clone());
            }
            for (name, value) in &look.headers {
                if KEPT.contains(name) || name.as_str().starts_with("x-amz-meta-") {
                    request = request.with_header(name.clone(), value.clone());
                }
            }
            Ok(request)
        })
    }
}

impl Blobs for S3 {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        match self.send(|| self.object(Method::GET, key))? {
            Reply::Done(answer) => Ok(Some(answers::blob(answer, MODE))),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        match self.first(key, len)? {
            None => Ok(None),
            Some((_, None)) => Ok(Some(Vec::new())),
            Some((_, Some(answer))) => first_bytes(answer.into_reader(), len).map(Some),
        }
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        if payload.len() > parts::ABOVE {
            return self.put_in_parts(key, payload, if_absent);
        }
        let reply = self.put_whole(key, payload, if_absent)?;
        match &reply {
            Reply::Refused(refusal) if self.knows_no_conditions(refusal, if_absent) => {
                let again = self.put_whole(key, payload, if_absent)?;
                self.written(again, if_absent)
            }
            _ => self.written(reply, if_absent),
        }
    }

    /// A store that knows no conditions overwrites.
    fn creates_only(&self) -> Option<bool> {
        self.is_simple.load(Ordering::Relaxed).then_some(false)
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        Ok(self.look(key)?.is_some())
    }

    /// S3 does not say whether there was anything to delete.
    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        if self.look(key)?.is_none() {
            return Ok(false);
        }
        match self.send(|| self.object(Method::DELETE, key))? {
            Reply::Done(answer) => {
                answer.drain();
                Ok(true)
            }
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(false),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        answers::list(&self.place.bucket, |from| self.page(from), each)
    }

    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        let Some(look) = self.look(key)? else {
            return Ok(false);
        };
        if look.size.is_some_and(|size| size > COPY_MAX) {
            let url = self.place.object(key, &[])?;
            let text = format!("touch {url}: S3 copies no object of more than 5 GiB onto itself");
            return Err(RemoteError::Unsupported(text));
        }
        match self.copy_onto_itself(key, &look)? {
            Reply::Done(answer) => listing::copied(answer).map(|()| true),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(false),
            // It was written meanwhile, which is as good.
            Reply::Refused(refusal) if refusal.status == 412 => Ok(true),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let key = listed.key;
        let Some(look) = self.look(key)? else {
            return Ok(false);
        };
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH)
                .map(|at| at.as_secs())
                .ok()
        };
        let touched = look.text(LAST_MODIFIED).and_then(time_of).and_then(seconds);
        let changed = listed
            .version
            .is_some_and(|version| look.text(ETAG) != Some(version))
            || touched != listed.modified.and_then(seconds)
            || look.size.is_some_and(|size| size != listed.size);
        if changed {
            return Ok(false);
        }
        let version = listed.version.map(value).transpose()?;
        let reply = self.send(|| {
            let request = self.object(Method::DELETE, key)?;
            Ok(match &version {
                Some(version) => request.with_header(IF_MATCH, version.clone()),
                None => request,
            })
        })?;
        let reply = match reply {
            // The condition is what it does not know; it was looked at just now.
            Reply::Refused(refusal) if refusal.status == 501 => {
                self.send(|| self.object(Method::DELETE, key))?
            }
            reply => reply,
        };
        match reply {
            Reply::Done(answer) => {
                answer.drain();
                Ok(true)
            }
            Reply::Refused(refusal)
                if is_miss(&refusal) || matches!(refusal.status.as_u16(), 409 | 412) =>
            {
                Ok(false)
            }
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn describe(&self) -> String {
        self.place.bucket.describe()
    }
}

/// There is no such object; of a bucket that is not there it is no miss.
fn is_miss(refusal: &Refusal) -> bool {
    refusal.status == 404 && refusal.code != "NoSuchBucket"
}

/// `Content-Range: bytes 0-0/SIZE`.
fn whole_size(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    range.rsplit_once('/')?.1.parse().ok()
}

fn with_mode<'a>(request: Request<'a>, payload: &Payload) -> Result<Request<'a>, RemoteError> {
    Ok(match payload.hint() {
        Some(Meta::File { mode }) => {
            let kind = 0o100_000;
            request.with_header(MODE, value(&(kind | mode).to_string())?)
        }
        _ => request,
    })
}

fn hex(digest: digest::Digest) -> HeaderValue {
    let digits: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::from_str(&digits).expect("digits fit a header")
}

/// Reads all of it once: small ones are in memory, bigger ones in the page cache.
fn digest_of(payload: &Payload) -> Result<HeaderValue, RemoteError> {
    let mut context = digest::Context::new(&digest::SHA256);
    let (mut reader, mut buffer) = (payload.reader(), vec![0; 64 << 10]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex(context.finish())),
            Ok(n) => context.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ours(error)),
        }
    }
}

/// Reading what is to be uploaded failed: that is not the store's fault.
fn ours(error: io::Error) -> RemoteError {
    match RemoteError::from_io(error) {
        RemoteError::Transient(cause) | RemoteError::Full(cause) => RemoteError::Local(cause),
        other => other,
    }
}
