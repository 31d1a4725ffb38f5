//! Uploads of big objects in parts, each a request of its own: one request has a time limit, and at most 5 GiB.
//!
//! The payload is read once, part by part, and one part at a time is in memory. Nothing is visible before the last
//! request; an upload that fails is taken back. What a killed process leaves behind is removed by a lifecycle rule
//! (`AbortIncompleteMultipartUpload`), which cachedirfs(5) recommends.

use std::fmt::Write;
use std::io::Read;

use bytes::Bytes;
use reqwest::Method;
use ring::digest;

use super::{DIGEST, S3, hex, ours, with_mode};
use crate::object::Payload;
use crate::remote::RemoteError;
use crate::remote::blob::Written;
use crate::remote::cloud::s3::listing;
use crate::remote::cloud::session::Reply;
use crate::remote::http::client::Request;

/// What is bigger goes up in parts.
pub(super) const ABOVE: u64 = 64 << 20;

/// Bytes of a part, of which each upload has one in memory.
const PART: u64 = 16 << 20;

/// Most parts of one object; what is bigger than these times [`PART`] (160 GB) has bigger parts.
const PARTS_MAX: u64 = 10_000;

impl S3 {
    pub(super) fn put_in_parts(
        &self,
        key: &str,
        payload: &Payload,
        if_absent: bool,
    ) -> Result<Written, RemoteError> {
        let id = self.begin(key, payload)?;
        let done = self
            .upload(key, &id, payload)
            .and_then(|parts| self.complete(key, &id, &parts, if_absent));
        if !matches!(done, Ok(Written::Stored)) {
            self.abort(key, &id);
        }
        done
    }

    fn begin(&self, key: &str, payload: &Payload) -> Result<String, RemoteError> {
        let reply = self.send(|| {
            let url = self.place.object(key, &[("uploads", "")])?;
            with_mode(
                with_bytes(Request::new(Method::POST, url), Bytes::new()),
                payload,
            )
        })?;
        match reply {
            Reply::Done(answer) => listing::upload_id(answer),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }

    /// The ETags of all parts.
    fn upload(&self, key: &str, id: &str, payload: &Payload) -> Result<Vec<String>, RemoteError> {
        let size = PART.max(payload.len().div_ceil(PARTS_MAX));
        let (mut reader, mut etags) = (payload.reader(), Vec::new());
        loop {
            let mut part = Vec::new();
            reader
                .by_ref()
                .take(size)
                .read_to_end(&mut part)
                .map_err(ours)?;
            if part.is_empty() {
                return Ok(etags);
            }
            let (number, part) = ((etags.len() + 1).to_string(), Bytes::from(part));
            let pairs = [("partNumber", number.as_str()), ("uploadId", id)];
            let reply = self.send(|| {
                let request = Request::new(Method::PUT, self.place.object(key, &pairs)?);
                Ok(with_bytes(request, part.clone()))
            })?;
            match reply {
                Reply::Done(answer) => {
                    let etag = answer
                        .headers()
                        .get("etag")
                        .and_then(|etag| etag.to_str().ok());
                    let lacks = || {
                        RemoteError::Transient(format!(
                            "{}: the part has no ETag",
                            answer.subject()
                        ))
                    };
                    etags.push(etag.map(str::to_owned).ok_or_else(lacks)?);
                    answer.drain();
                }
                Reply::Refused(refusal) => return Err(self.explain(&refusal)),
            }
        }
    }

    fn complete(
        &self,
        key: &str,
        id: &str,
        etags: &[String],
        if_absent: bool,
    ) -> Result<Written, RemoteError> {
        let list = Bytes::from(manifest(etags));
        let send = || {
            self.send(|| {
                let url = self.place.object(key, &[("uploadId", id)])?;
                let request = with_bytes(Request::new(Method::POST, url), list.clone());
                Ok(self.conditional(request, if_absent))
            })
        };
        let mut reply = send()?;
        if let Reply::Refused(refusal) = &reply
            && self.knows_no_conditions(refusal, if_absent)
        {
            reply = send()?;
        }
        match reply {
            // 200 may have an error in its body.
            Reply::Done(answer) => listing::completed(answer).map(|()| Written::Stored),
            reply => self.written(reply, if_absent),
        }
    }

    /// What fails here is left to the lifecycle of the bucket.
    fn abort(&self, key: &str, id: &str) {
        let pairs = [("uploadId", id)];
        let aborted = self.send(|| {
            Ok(Request::new(
                Method::DELETE,
                self.place.object(key, &pairs)?,
            ))
        });
        let failed = match aborted {
            Ok(Reply::Done(answer)) => return answer.drain(),
            Ok(Reply::Refused(refusal)) => self.explain(&refusal),
            Err(error) => error,
        };
        log::debug!("take an upload back: {failed}");
    }
}

fn with_bytes(request: Request<'_>, bytes: Bytes) -> Request<'_> {
    let digest = hex(digest::digest(&digest::SHA256, &bytes));
    request.with_header(DIGEST, digest).with_bytes(bytes)
}

fn manifest(etags: &[String]) -> String {
    let mut text = String::from("<CompleteMultipartUpload>");
    for (at, etag) in etags.iter().enumerate() {
        let etag = quick_xml::escape::escape(etag.as_str());
        let number = at + 1;
        let _fits = write!(
            text,
            "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        );
    }
    text + "</CompleteMultipartUpload>"
}
