//! What S3 answers as XML: the pages of a listing, and the results of uploads in parts and of copies.

use std::io::{BufReader, Read};

use reqwest::Method;

use super::S3;
use crate::remote::RemoteError;
use crate::remote::cloud::answers::{Entry, Page};
use crate::remote::cloud::session::Reply;
use crate::remote::cloud::time_of;
use crate::remote::cloud::xml::{self, Node};
use crate::remote::http::client::{Answer, Request};

/// Largest page that is read; a thousand entries take half a megabyte.
const PAGE_MAX: u64 = 16 << 20;

impl S3 {
    pub(super) fn page(&self, token: Option<&str>) -> Result<Page, RemoteError> {
        // Without `encoding-type=url`: s3s-fs says that it does that and does not, and our keys are plain.
        let mut pairs = vec![("list-type", "2")];
        if !self.place.bucket.prefix.is_empty() {
            pairs.push(("prefix", self.place.bucket.prefix.as_str()));
        }
        if let Some(token) = token {
            pairs.push(("continuation-token", token));
        }
        match self.send(|| Ok(Request::new(Method::GET, self.place.whole(&pairs)?)))? {
            Reply::Done(answer) => during(answer, read_page),
            Reply::Refused(refusal) => Err(self.explain(&refusal)),
        }
    }
}

/// The answer read by `read`, its errors with the request.
fn during<T>(
    answer: Answer,
    read: impl FnOnce(BufReader<std::io::Take<Box<dyn Read>>>) -> Result<T, RemoteError>,
) -> Result<T, RemoteError> {
    let subject = answer.subject().to_owned();
    let body: Box<dyn Read> = Box::new(answer.into_reader());
    read(BufReader::new(body.take(PAGE_MAX))).map_err(|error| error.during(&subject))
}

fn read_page(body: impl std::io::BufRead) -> Result<Page, RemoteError> {
    let (mut page, mut entry) = (Page::default(), Entry::default());
    let (mut next, mut truncated) = (None, false);
    let mut is_listing = false;
    xml::read(body, &mut |node| match node {
        Node::Text { name: "Key", text } => entry.name = text.to_owned(),
        Node::Text { name: "Size", text } => entry.size = text.parse().unwrap_or_default(),
        Node::Text {
            name: "LastModified",
            text,
        } => entry.modified = time_of(text),
        Node::Text { name: "ETag", text } => entry.version = Some(text.to_owned()),
        Node::End("Contents") => page.entries.push(std::mem::take(&mut entry)),
        Node::Text {
            name: "NextContinuationToken",
            text,
        } => next = Some(text.to_owned()),
        Node::Text {
            name: "IsTruncated",
            text,
        } => truncated = text == "true",
        Node::End("ListBucketResult") => is_listing = true,
        _ => {}
    })?;
    if !is_listing {
        let text = "answered with something that is no listing".to_owned();
        return Err(RemoteError::Transient(text));
    }
    page.next = next.filter(|token| truncated && !token.is_empty());
    Ok(page)
}

/// The number of an upload that was begun.
pub(super) fn upload_id(answer: Answer) -> Result<String, RemoteError> {
    result(answer, "InitiateMultipartUploadResult", "UploadId")
}

/// That an upload in parts is whole.
pub(super) fn completed(answer: Answer) -> Result<(), RemoteError> {
    result(answer, "CompleteMultipartUploadResult", "ETag").map(drop)
}

/// That a copy was made.
pub(super) fn copied(answer: Answer) -> Result<(), RemoteError> {
    result(answer, "CopyObjectResult", "ETag").map(drop)
}

/// What `wanted` says in the result of this name. These answers begin with 200 while S3 is still at it, so that they may
/// hold an error.
fn result(answer: Answer, name: &str, wanted: &str) -> Result<String, RemoteError> {
    during(answer, |body| {
        let (mut is_it, mut found) = (false, None);
        let (mut code, mut message) = (String::new(), String::new());
        xml::read(body, &mut |node| match node {
            Node::Text { name, text } if name == wanted => found = Some(text.to_owned()),
            Node::Text { name: "Code", text } => code = text.to_owned(),
            Node::Text {
                name: "Message",
                text,
            } => message = text.to_owned(),
            Node::End(end) if end == name => is_it = true,
            _ => {}
        })?;
        found.filter(|_| is_it).ok_or_else(|| {
            let text = super::super::context::printable(&format!("{code}: {message}"));
            RemoteError::Transient(format!("answered 200, but {text}"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_understood() {
        let xml = "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>\
            <IsTruncated>true</IsTruncated><NextContinuationToken>t/&amp;=</NextContinuationToken>\
            <Contents><Key>p/ab+c &amp;d</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>\
            <ETag>&quot;e-1&quot;</ETag><Size>7</Size><Owner><ID>o</ID></Owner></Contents>\
            <Contents><Key>k</Key></Contents></ListBucketResult>";
        let page = read_page(xml.as_bytes()).unwrap();
        assert_eq!(page.next.as_deref(), Some("t/&="));
        let entry = &page.entries[0];
        assert_eq!(
            (entry.name.as_str(), entry.size, entry.version.as_deref()),
            ("p/ab+c &d", 7, Some("\"e-1\""))
        );
        assert_eq!(entry.modified, time_of("Fri, 02 Jan 2026 03:04:05 GMT"));
        assert_eq!(
            page.entries[1],
            Entry {
                name: "k".to_owned(),
                ..Entry::default()
            }
        );
    }

    #[test]
    fn a_page_that_is_cut_off_or_none_is_an_error() {
        for xml in [
            "",
            "<html><body>log in</body></html>",
            "<ListBucketResult><Contents><Key>k</Key></Contents>",
        ] {
            assert!(read_page(xml.as_bytes()).is_err(), "{xml}");
        }
        let no_end =
            read_page(&b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"[..])
                .unwrap();
        assert_eq!(no_end.next, None);
    }
}
