//! `az://`: Azure Blob Storage.
//!
//! A container is named by the URL, the storage account by `-o account=` or the environment. `If-None-Match: *` keeps a
//! blob that is there (409). Writing a blob's metadata anew, as they are, makes it count as used: that sets its time and
//! its ETag. So what was listed is deleted only if nobody wrote or touched it since, without a race. Big blobs go up in
//! blocks; those of an upload that did not end are thrown away by Azure after a week.
//!
//! This module knows neither objects nor signatures.

mod sources;

use std::fmt::Write;
use std::io::{BufReader, Read};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use reqsign_azure_storage::{Credential, RequestSigner};
use reqsign_core::{Context, SignRequest};
use reqwest::Method;
use reqwest::header::{
    CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, RANGE,
};
use url::Url;

use self::sources::{Account, Chest};
use crate::object::{Blob, Payload};
use crate::remote::blob::{Blobs, Stored, Written, first_bytes};
use crate::remote::cloud::answers::{self, Entry, Page};
use crate::remote::cloud::session::{Dialect, Refusal, Reply, Session, Verdict};
use crate::remote::cloud::vault::{Perishable, Vault};
use crate::remote::cloud::xml::{self, Node};
use crate::remote::cloud::{Bucket, bare, in_path, is_anonymous, made, query, time_of, value};
use crate::remote::http::client::{Answer, Client, Head, Request};
use crate::remote::runtime::{self, Shared};
use crate::remote::{RemoteError, RemoteOptions};
use crate::signature::Meta;

/// The version of the protocol: the first with everything that is used here is much older, but so are emulators.
const VERSION: &str = "2021-12-02";

/// The mode of a raw object.
const MODE: HeaderName = HeaderName::from_static("x-ms-meta-mode");

/// What is bigger goes up in blocks: one request has a time limit, and at most 5000 MiB.
const ABOVE: u64 = 64 << 20;

/// Bytes of a block, of which each upload has one in memory.
const BLOCK: u64 = 16 << 20;

/// Most blocks of one blob; what is bigger than these times [`BLOCK`] has bigger blocks.
const BLOCKS_MAX: u64 = 50_000;

/// Largest page of a listing that is read; five thousand entries take 5 MB.
const PAGE_MAX: u64 = 64 << 20;

/// Blobs in a container.
pub(in crate::remote) struct Azure {
    session: Session<Speech>,
    endpoint: Url,
    bucket: Bucket,
}

/// A key or a token, for as long as it lasts.
#[derive(Clone)]
struct Pass {
    credential: Credential,
    until: Option<SystemTime>,
}

impl Perishable for Pass {
    fn until(&self) -> Option<SystemTime> {
        self.until
    }
}

struct Speech {
    runtime: Arc<Shared>,
    signer: RequestSigner,
}

impl Dialect for Speech {
    type Credentials = Pass;

    fn sign(&self, head: &mut Head, credentials: Option<&Pass>) -> Result<(), RemoteError> {
        let version = HeaderName::from_static("x-ms-version");
        head.headers
            .insert(version, HeaderValue::from_static(VERSION));
        let Some(Pass { credential, .. }) = credentials else {
            return Ok(());
        };
        // With credentials at hand it has nothing to wait for.
        let context = Context::new();
        let signed = self
            .signer
            .sign_request(&context, head, Some(credential), None);
        self.runtime.run(signed).map_err(|error| {
            RemoteError::Misconfigured(format!("sign: {error}; is the key in base64?"))
        })
    }

    fn is_stale(&self, refusal: &Refusal) -> bool {
        refusal.status == 401
    }
}

impl Azure {
    /// The container and prefix that an `az` URL names. Nothing is asked of it yet.
    pub(in crate::remote) fn open(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let bucket = Bucket::of(url)?;
        let account = Account::new(options)?;
        let endpoint = account.endpoint()?;
        let runtime = runtime::shared()?;
        let vault = if is_anonymous(options) {
            None
        } else {
            let chest = Arc::new(Chest::new(options, &account)?);
            let open = move || {
                let chest = Arc::clone(&chest);
                Box::pin(async move { chest.open().await }) as _
            };
            Some(Vault::new(
                Arc::clone(&runtime),
                Arc::clone(&options.clock),
                open,
            ))
        };
        let client = Client::unsigned(&endpoint, options)?;
        let speech = Speech {
            runtime,
            signer: RequestSigner::new(),
        };
        let session = Session::new(client, speech, vault, Arc::clone(&options.clock));
        Ok(Self {
            session,
            endpoint,
            bucket,
        })
    }

    fn url(&self, key: &str, pairs: &[(&str, &str)]) -> Result<Url, RemoteError> {
        let query = if pairs.is_empty() {
            String::new()
        } else {
            query(pairs)
        };
        let (base, name) = (bare(&self.endpoint), &self.bucket.name);
        let key = in_path(&self.bucket.name_of(key));
        made(&format!("{base}/{name}/{key}{query}"))
    }

    fn whole(&self, pairs: &[(&str, &str)]) -> Result<Url, RemoteError> {
        made(&format!(
            "{}/{}{}",
            bare(&self.endpoint),
            self.bucket.name,
            query(pairs)
        ))
    }

    fn blob(&self, method: Method, key: &str) -> Result<Request<'static>, RemoteError> {
        Ok(Request::new(method, self.url(key, &[])?))
    }

    fn explain(&self, refusal: &Refusal) -> RemoteError {
        explain(
            refusal,
            &self.bucket.name,
            refusal.skew(self.session.clock.wall()),
        )
    }

    fn look(&self, key: &str) -> Result<Option<HeaderMap>, RemoteError> {
        match self.session.send(&self.blob(Method::HEAD, key)?)? {
            Reply::Done(answer) => Ok(Some(answer.headers().clone())),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn put_whole(
        &self,
        key: &str,
        payload: &Payload,
        if_absent: bool,
    ) -> Result<Written, RemoteError> {
        let request = self
            .blob(Method::PUT, key)?
            .with_body(payload)
            .with_header(CONTENT_LENGTH, value(&payload.len().to_string())?)
            .with_header(
                HeaderName::from_static("x-ms-blob-type"),
                HeaderValue::from_static("BlockBlob"),
            );
        self.write(with_mode(request, payload)?, if_absent)
    }

    fn write(&self, request: Request<'_>, if_absent: bool) -> Result<Written, RemoteError> {
        let request = if if_absent {
            request.with_header(IF_NONE_MATCH, HeaderValue::from_static("*"))
        } else {
            request
        };
        let reply = self.session.send(&request)?;
        answers::written(reply, if_absent, &[409, 412], |refusal| {
            self.explain(refusal)
        })
    }

    /// The payload is read once, block by block; nothing is visible before the list of them is written.
    fn put_in_blocks(
        &self,
        key: &str,
        payload: &Payload,
        if_absent: bool,
    ) -> Result<Written, RemoteError> {
        let size = BLOCK.max(payload.len().div_ceil(BLOCKS_MAX));
        // Two uploads of one blob must not mix their blocks.
        let upload = fastrand::u64(..);
        let (mut reader, mut list) = (payload.reader(), String::from("<BlockList>"));
        for number in 0_u32.. {
            let mut block = Vec::new();
            reader
                .by_ref()
                .take(size)
                .read_to_end(&mut block)
                .map_err(ours)?;
            if block.is_empty() {
                break;
            }
            let id =
                reqsign_core::hash::base64_encode(format!("{upload:016x}{number:08x}").as_bytes());
            let url = self.url(key, &[("comp", "block"), ("blockid", &id)])?;
            self.write(
                with_bytes(Request::new(Method::PUT, url), Bytes::from(block))?,
                false,
            )?;
            let _fits = write!(list, "<Latest>{id}</Latest>");
        }
        list += "</BlockList>";
        let url = self.url(key, &[("comp", "blocklist")])?;
        let request = with_bytes(Request::new(Method::PUT, url), Bytes::from(list))?;
        self.write(with_mode(request, payload)?, if_absent)
    }

    fn page(&self, marker: Option<&str>) -> Result<Page, RemoteError> {
        let mut pairs = vec![("restype", "container"), ("comp", "list")];
        if !self.bucket.prefix.is_empty() {
            pairs.push(("prefix", self.bucket.prefix.as_str()));
        }
        pairs.extend(marker.map(|marker| ("marker", marker)));
        match self
            .session
            .send(&Request::new(Method::GET, self.whole(&pairs)?))?
        {
            Reply::Done(answer) => read_page(answer),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }
}

impl Blobs for Azure {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        match self.session.send(&self.blob(Method::GET, key)?)? {
            Reply::Done(answer) => Ok(Some(answers::blob(answer, MODE))),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let range = value(&format!("bytes=0-{}", len.saturating_sub(1)))?;
        match self
            .session
            .send(&self.blob(Method::GET, key)?.with_header(RANGE, range))?
        {
            Reply::Done(answer) => first_bytes(answer.into_reader(), len).map(Some),
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(None),
            // An empty blob has no first byte.
            Reply::Refused(refusal) if refusal.status == 416 => Ok(Some(Vec::new())),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        if payload.len() > ABOVE {
            return self.put_in_blocks(key, payload, if_absent);
        }
        self.put_whole(key, payload, if_absent)
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        Ok(self.look(key)?.is_some())
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        match self.session.send(&self.blob(Method::DELETE, key)?)? {
            Reply::Done(answer) => {
                answer.drain();
                Ok(true)
            }
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(false),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        answers::list(&self.bucket, |from| self.page(from), each)
    }

    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        let Some(found) = self.look(key)? else {
            return Ok(false);
        };
        let url = self.url(key, &[("comp", "metadata")])?;
        let mut request = with_bytes(Request::new(Method::PUT, url), Bytes::new())?;
        for (name, value) in &found {
            if name.as_str().starts_with("x-ms-meta-") {
                request = request.with_header(name.clone(), value.clone());
            }
        }
        if let Some(etag) = found.get(ETAG) {
            request = request.with_header(IF_MATCH, etag.clone());
        }
        match self.session.send(&request)? {
            Reply::Done(answer) => {
                answer.drain();
                Ok(true)
            }
            Reply::Refused(refusal) if is_miss(&refusal) => Ok(false),
            // It was written meanwhile, which is as good.
            Reply::Refused(refusal) if refusal.status == 412 => Ok(true),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let Some(version) = listed.version else {
            return Ok(false);
        };
        let etag = value(version)?;
        let request = self
            .blob(Method::DELETE, listed.key)?
            .with_header(IF_MATCH, etag);
        match self.session.send(&request)? {
            Reply::Done(answer) => {
                answer.drain();
                Ok(true)
            }
            Reply::Refused(refusal) if is_miss(&refusal) || refusal.status == 412 => Ok(false),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    fn describe(&self) -> String {
        self.bucket.describe()
    }
}

/// There is no such blob; of a container that is not there it is no miss.
fn is_miss(refusal: &Refusal) -> bool {
    refusal.status == 404 && refusal.code != "ContainerNotFound"
}

fn with_bytes(request: Request<'_>, bytes: Bytes) -> Result<Request<'_>, RemoteError> {
    let len = value(&bytes.len().to_string())?;
    Ok(request.with_header(CONTENT_LENGTH, len).with_bytes(bytes))
}

fn with_mode<'a>(request: Request<'a>, payload: &Payload) -> Result<Request<'a>, RemoteError> {
    Ok(match payload.hint() {
        Some(Meta::File { mode }) => request.with_header(MODE, value(&format!("{mode:04o}"))?),
        _ => request,
    })
}

/// Reading what is to be uploaded failed: that is not the store's fault.
fn ours(error: std::io::Error) -> RemoteError {
    match RemoteError::from_io(error) {
        RemoteError::Transient(cause) | RemoteError::Full(cause) => RemoteError::Local(cause),
        other => other,
    }
}

fn read_page(answer: Answer) -> Result<Page, RemoteError> {
    let subject = answer.subject().to_owned();
    let (mut page, mut entry) = (Page::default(), Entry::default());
    let mut is_listing = false;
    let body = BufReader::new(answer.into_reader().take(PAGE_MAX));
    let read = xml::read(body, &mut |node| match node {
        Node::Text { name: "Name", text } => entry.name = text.to_owned(),
        Node::Text {
            name: "Content-Length",
            text,
        } => entry.size = text.parse().unwrap_or_default(),
        Node::Text {
            name: "Last-Modified",
            text,
        } => entry.modified = time_of(text),
        Node::Text { name: "Etag", text } => {
            // Headers have it in quotes, listings do not.
            entry.version = Some(format!("\"{}\"", text.trim_matches('"')));
        }
        Node::End("Blob") => page.entries.push(std::mem::take(&mut entry)),
        Node::Text {
            name: "NextMarker",
            text,
        } if !text.is_empty() => page.next = Some(text.to_owned()),
        Node::End("EnumerationResults") => is_listing = true,
        _ => {}
    });
    let none = || {
        Err(RemoteError::Transient(
            "answered with something that is no listing".to_owned(),
        ))
    };
    let read = read.and_then(|()| if is_listing { Ok(()) } else { none() });
    read.map(|()| page).map_err(|error| error.during(&subject))
}

/// What an error means, and what to do.
fn explain(refusal: &Refusal, container: &str, skew: Option<(u64, bool)>) -> RemoteError {
    /// Azure takes a quarter of an hour.
    const SKEW_MIN: u64 = 300;
    let (verdict, advice) = match (refusal.status.as_u16(), refusal.code.as_str()) {
        (_, "ContainerNotFound") => (
            Verdict::Misconfigured,
            format!("make the container {container}, or name another one"),
        ),
        (_, "AuthenticationFailed" | "InvalidAuthenticationInfo") => match skew {
            Some((seconds, ahead)) if seconds >= SKEW_MIN => {
                let way = if ahead { "ahead of" } else { "behind" };
                (Verdict::Refused, format!("the clock here is {seconds} s {way} the store's; set it (NTP)"))
            }
            _ => (
                Verdict::Refused,
                "is the key the account's, or has the SAS token or the login expired? See AZURE_STORAGE_KEY, \
                 AZURE_STORAGE_SAS_TOKEN"
                    .to_owned(),
            ),
        },
        (401 | 403, "AuthorizationPermissionMismatch" | "AuthorizationFailure" | "InsufficientAccountPermissions") => (
            Verdict::Refused,
            format!(
                "assign the role Storage Blob Data Contributor on {container} (Reader where nothing is pushed), or take a SAS \
                 token with racwdl"
            ),
        ),
        (401 | 403, _) => (Verdict::Refused, "are the credentials right, and may they do this?".to_owned()),
        (_, "ServerBusy") => (Verdict::Busy, String::new()),
        (409, "ContainerBeingDeleted" | "ContainerDisabled" | "AccountIsDisabled") => (Verdict::Misconfigured, String::new()),
        _ => (refusal.verdict(), String::new()),
    };
    refusal.error(verdict, &advice)
}
