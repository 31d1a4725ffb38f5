//! What the three stores answer alike: an object as a response to a GET, what became of a write, and a listing that comes
//! page by page.
//!
//! This module sends nothing.

use std::time::SystemTime;

use reqwest::header::HeaderName;

use super::Bucket;
use super::session::{Refusal, Reply};
use crate::object::Blob;
use crate::remote::RemoteError;
use crate::remote::blob::{Stored, Written};
use crate::remote::http::{self, client::Answer};

/// An object as it comes, with its mode from the header that this store keeps it in.
pub(super) fn blob(answer: Answer, mode_header: HeaderName) -> Blob {
    let mode = answer.headers().get(&mode_header);
    Blob {
        len: answer.len(),
        hint: mode.and_then(|mode| http::mode(mode.to_str().ok()?)),
        body: Box::new(answer.into_reader()),
    }
}

/// What became of a write. With `if_absent`, the statuses `exists` mean that there is an object already.
pub(super) fn written(
    reply: Reply,
    if_absent: bool,
    exists: &[u16],
    explain: impl FnOnce(&Refusal) -> RemoteError,
) -> Result<Written, RemoteError> {
    match reply {
        Reply::Done(answer) => {
            answer.drain();
            Ok(Written::Stored)
        }
        Reply::Refused(refusal) if if_absent && exists.contains(&refusal.status.as_u16()) => {
            Ok(Written::Exists)
        }
        Reply::Refused(refusal) => Err(explain(&refusal)),
    }
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// How to ask for the next one.
    pub(super) next: Option<String>,
}

/// One object on it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) modified: Option<SystemTime>,
    pub(super) version: Option<String>,
}

/// Everything below the prefix, of all pages.
pub(super) fn list(
    bucket: &Bucket,
    page: impl Fn(Option<&str>) -> Result<Page, RemoteError>,
    each: &mut dyn FnMut(Stored<'_>),
) -> Result<(), RemoteError> {
    let mut from: Option<String> = None;
    loop {
        let page = page(from.as_deref())?;
        for entry in &page.entries {
            if let Some(key) = bucket.key_of(&entry.name) {
                each(Stored {
                    key,
                    size: entry.size,
                    modified: entry.modified,
                    version: entry.version.as_deref(),
                });
            }
        }
        match page.next {
            // A store that names the same page again would go on for ever.
            Some(next) if Some(&next) != from.as_ref() => from = Some(next),
            _ => return Ok(()),
        }
    }
}
