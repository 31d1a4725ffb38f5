//! Requests to a store that are signed, and asked once more where fresh credentials help.
//!
//! Which requests, and what the answers mean, is the store's affair: see [`Dialect`].

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use crate::clock::Clock;
use crate::remote::RemoteError;
use crate::remote::cloud::context::printable;
use crate::remote::cloud::vault::{Perishable, Vault};
use crate::remote::cloud::xml::{self, Node};
use crate::remote::http::client::{Answer, Client, Head, Request};
use crate::remote::http::status;

/// Most of an error's body that is read.
const BODY_MAX: u64 = 16 << 10;

/// How long a store is left alone that says it is asked too much and not for how long.
const BUSY: Duration = Duration::from_secs(1);

/// How one store is spoken to.
pub(super) trait Dialect: Send + Sync {
    type Credentials: Perishable;

    /// Signs a request. Without credentials it stays as it is, but for what all requests need.
    fn sign(
        &self,
        head: &mut Head,
        credentials: Option<&Self::Credentials>,
    ) -> Result<(), RemoteError>;

    /// Whether these credentials are over, so that fresh ones would help.
    fn is_stale(&self, refusal: &Refusal) -> bool;
}

/// A store, spoken to with credentials.
pub(super) struct Session<D: Dialect> {
    client: Client,
    pub(super) dialect: D,
    /// None for who asks without a name.
    vault: Option<Vault<D::Credentials>>,
    /// To tell how far the store's is off.
    #[cfg_attr(not(any(feature = "s3", feature = "azure")), allow(dead_code))]
    pub(super) clock: Arc<dyn Clock>,
}

/// What came back.
pub(super) enum Reply {
    /// 2xx.
    Done(Answer),
    Refused(Refusal),
}

/// Any other answer, read and understood.
#[derive(Debug)]
pub(super) struct Refusal {
    subject: String,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// What the store calls it, such as `NoSuchKey`; empty where it does not say.
    pub(super) code: String,
    message: String,
    /// Of S3: where the bucket is.
    pub(super) region: Option<String>,
}

/// What a refusal means for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Refused,
    Misconfigured,
    Transient,
    Busy,
    Full,
    Unsupported,
}

impl<D: Dialect> Session<D> {
    pub(super) fn new(
        client: Client,
        dialect: D,
        vault: Option<Vault<D::Credentials>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            client,
            dialect,
            vault,
            clock,
        }
    }

    /// Sends `request`, and once more with fresh credentials if that is what it takes.
    pub(super) fn send(&self, request: &Request<'_>) -> Result<Reply, RemoteError> {
        let mut asked_again = false;
        loop {
            let held = self.vault.as_ref().map(Vault::current).transpose();
            let held = held.map_err(|error| error.during(&request.subject()))?;
            let credentials = held.as_ref().map(|held| &held.credentials);
            let sign = |head: &mut Head| self.dialect.sign(head, credentials);
            let answer = self.client.send_signed(request, &sign)?;
            if answer.status().is_success() {
                return Ok(Reply::Done(answer));
            }
            let refusal = Refusal::read(answer);
            let renewed = || match (&self.vault, &held) {
                (Some(vault), Some(held)) => vault.refuse(held),
                _ => false,
            };
            if asked_again || !self.dialect.is_stale(&refusal) || !renewed() {
                return Ok(Reply::Refused(refusal));
            }
            asked_again = true;
        }
    }
}

impl Refusal {
    fn read(answer: Answer) -> Self {
        let mut refusal = Self {
            subject: answer.subject().to_owned(),
            status: answer.status(),
            headers: answer.headers().clone(),
            code: String::new(),
            message: String::new(),
            region: None,
        };
        let body = answer.text(BODY_MAX);
        match body
            .trim_start_matches(['\u{feff}', ' ', '\n'])
            .chars()
            .next()
        {
            Some('<') => refusal.read_xml(&body),
            Some('{') => refusal.read_json(&body),
            _ => refusal.message = printable(body.trim()),
        }
        if let Some(code) = refusal.header("x-ms-error-code") {
            refusal.code = code.to_owned();
        }
        refusal
    }

    fn read_xml(&mut self, body: &str) {
        // What was understood before it broke off is good enough.
        let body = body.trim_start_matches('\u{feff}');
        let _broken = xml::read(body.as_bytes(), &mut |node| match node {
            Node::Text { name: "Code", text } => self.code = printable(text),
            Node::Text {
                name: "Message" | "Details",
                text,
            } if self.message.is_empty() => {
                self.message = printable(text);
            }
            Node::Text {
                name: "Region",
                text,
            } => self.region = Some(printable(text)),
            _ => {}
        });
    }

    fn read_json(&mut self, body: &str) {
        #[derive(Deserialize)]
        struct Body {
            error: Said,
        }
        #[derive(Deserialize)]
        struct Said {
            message: String,
            #[serde(default)]
            errors: Vec<Detail>,
        }
        #[derive(Deserialize)]
        struct Detail {
            #[serde(default)]
            reason: String,
        }
        if let Ok(Body { error }) = serde_json::from_str(body) {
            self.message = printable(&error.message);
            let first = error.errors.into_iter().next();
            self.code = first
                .map(|detail| printable(&detail.reason))
                .unwrap_or_default();
        }
    }

    /// A header of the answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether its words have these.
    #[cfg_attr(not(feature = "gcs"), allow(dead_code))]
    pub(super) fn mentions(&self, words: &str) -> bool {
        self.message.contains(words)
    }

    /// How far the clock here is from the store's: seconds, and whether ours is ahead.
    #[cfg(any(feature = "s3", feature = "azure"))]
    pub(super) fn skew(&self, now: std::time::SystemTime) -> Option<(u64, bool)> {
        let theirs = httpdate::parse_http_date(self.header("date")?).ok()?;
        Some(match now.duration_since(theirs) {
            Ok(ahead) => (ahead.as_secs(), true),
            Err(behind) => (behind.duration().as_secs(), false),
        })
    }

    /// What its status alone says.
    pub(super) fn verdict(&self) -> Verdict {
        match self.status.as_u16() {
            401 | 403 | 407 => Verdict::Refused,
            408 | 409 | 412 => Verdict::Transient,
            413 | 507 => Verdict::Full,
            429 => Verdict::Busy,
            501 => Verdict::Unsupported,
            503 if self.headers.contains_key(RETRY_AFTER) => Verdict::Busy,
            500..=599 => Verdict::Transient,
            _ => Verdict::Misconfigured,
        }
    }

    /// The error that it stands for, with what to do.
    pub(super) fn error(&self, verdict: Verdict, advice: &str) -> RemoteError {
        let mut text = format!("{}: {}", self.subject, self.status);
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                text = format!("{text}: {part}");
            }
        }
        let text = text.trim_end_matches('.');
        let text = match advice {
            "" => text.to_owned(),
            advice => format!("{text}; {advice}"),
        };
        match verdict {
            Verdict::Refused => RemoteError::Refused(text),
            Verdict::Misconfigured => RemoteError::Misconfigured(text),
            Verdict::Transient => RemoteError::Transient(text),
            Verdict::Full => RemoteError::Full(text),
            Verdict::Unsupported => RemoteError::Unsupported(text),
            Verdict::Busy => {
                RemoteError::Busy(text, status::retry_after(&self.headers).unwrap_or(BUSY))
            }
        }
    }
}
