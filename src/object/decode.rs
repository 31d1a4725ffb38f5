//! Blob to object: judge the first bytes, then stream the rest through the checks.

use std::io::{self, Read};

use crate::object::header::{PREAMBLE, Sniffed, damaged, sniff};
use crate::object::read::{Broken, Unzip, Verified, read_up_to};
use crate::object::{Arrived, Blob, Format, Header, Key, Object, ObjectError};
use crate::signature::{Meta, Signature};

/// First bytes of a raw object that are looked at: enough for `#!`, ELF, and the head of an HTML page.
const PEEK: usize = 64;

/// What is accepted.
#[derive(Clone, Copy, Debug)]
pub struct DecodeOptions<'a> {
    /// Only objects by holders of this key, and no raw ones.
    pub key: Option<&'a Key>,
    /// What the store is meant to hold; it decides about suspicious raw objects.
    pub format: Format,
}

/// The object that `blob` holds, if it is the one of `sig`.
pub fn decode(
    sig: &Signature,
    blob: Blob,
    options: DecodeOptions<'_>,
) -> Result<Object, ObjectError> {
    let Blob {
        mut body,
        len,
        hint,
    } = blob;
    let start = read_up_to(&mut body, PREAMBLE).map_err(ObjectError::Store)?;
    match sniff(&start) {
        Sniffed::Damaged => Err(damaged()),
        Sniffed::Headed(total) => {
            let mut header = start;
            let rest = read_up_to(&mut body, total - PREAMBLE).map_err(ObjectError::Store)?;
            header.extend_from_slice(&rest);
            let header = Header::parse(&header)?;
            accept(sig, &header, options.key)?;
            headed(&header, body)
        }
        Sniffed::Raw => raw(
            sig,
            Blob {
                body: chain(start, body),
                len,
                hint,
            },
            options,
        ),
    }
}

fn accept(sig: &Signature, header: &Header, key: Option<&Key>) -> Result<(), ObjectError> {
    if header.sig != *sig {
        let text = format!("object is that of {}, not of {sig}", header.sig);
        return Err(ObjectError::Corrupt(text));
    }
    match key {
        Some(key) if !header.is_by(key) => Err(ObjectError::Corrupt(format!(
            "object {sig} is not by a holder of the key"
        ))),
        _ => Ok(()),
    }
}

fn headed(header: &Header, body: Box<dyn Read + Send>) -> Result<Object, ObjectError> {
    let sig = header.sig;
    let unzip = Unzip::new(body).map_err(ObjectError::Local)?;
    let error = move |broken| broken_object(&sig, broken);
    let content = Box::new(Verified::new(unzip, header.len, Some(header.hash), error));
    Ok(Object {
        meta: header.meta,
        len: Some(header.len),
        hash: Some(header.hash),
        content,
        arrived: Arrived::default(),
    })
}

fn raw(sig: &Signature, blob: Blob, options: DecodeOptions<'_>) -> Result<Object, ObjectError> {
    if options.key.is_some() {
        let text = format!("object {sig} has no header, so it is not by a holder of the key");
        return Err(ObjectError::Corrupt(text));
    }
    let Blob {
        mut body,
        len,
        hint,
    } = blob;
    let start = read_up_to(&mut body, PEEK).map_err(ObjectError::Store)?;
    if options.format == Format::Object && is_suspicious(&start) {
        return Err(ObjectError::Corrupt(format!(
            "object {sig} is empty or an HTML page"
        )));
    }
    let meta = hint.unwrap_or_else(|| guess(&start));
    let body = chain(start, body);
    let sig = *sig;
    let content: Box<dyn Read + Send> = match len {
        Some(len) => Box::new(Verified::new(body, len, None, move |broken| {
            broken_object(&sig, broken)
        })),
        None => body,
    };
    Ok(Object {
        meta,
        len,
        hash: None,
        content,
        arrived: Arrived::default(),
    })
}

/// The object whose content is `body` as it is, for stores that keep beside it what it is. Its length is checked, and its
/// hash where there is one; `body` may check more, and ends in an error then.
pub fn plain(
    sig: Signature,
    meta: Meta,
    len: u64,
    hash: Option<[u8; 32]>,
    body: Box<dyn Read + Send>,
) -> Object {
    let error = move |broken| broken_object(&sig, broken);
    Object {
        meta,
        len: Some(len),
        hash,
        content: Box::new(Verified::new(body, len, hash, error)),
        arrived: Arrived::default(),
    }
}

/// What the zstd frames of `body` hold, within the limits of objects.
pub fn unzip(body: Box<dyn Read + Send>) -> Result<Box<dyn Read + Send>, ObjectError> {
    Ok(Box::new(Unzip::new(body).map_err(ObjectError::Local)?))
}

fn broken_object(sig: &Signature, broken: Broken) -> ObjectError {
    let what = match broken {
        Broken::Short => "is shorter than announced",
        Broken::Long => "is longer than announced",
        Broken::Hash => "does not have the hash it was pushed with",
    };
    ObjectError::Corrupt(format!("object {sig} {what}"))
}

/// The mode of a raw object that nobody wrote down: programs can be run.
fn guess(start: &[u8]) -> Meta {
    let runs = start.starts_with(b"\x7fELF") || start.starts_with(b"#!");
    Meta::file(if runs { 0o755 } else { 0o644 })
}

/// Whether it is nothing, or begins as a page of HTML does.
fn is_suspicious(start: &[u8]) -> bool {
    let text = start
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(start)
        .trim_ascii_start();
    let begins = |tag: &[u8]| {
        text.get(..tag.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(tag))
    };
    start.is_empty() || begins(b"<!doctype html") || begins(b"<html")
}

fn chain(start: Vec<u8>, rest: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
    Box::new(io::Cursor::new(start).chain(rest))
}
