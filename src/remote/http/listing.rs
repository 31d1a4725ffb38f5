//! The contents of one collection: WebDAV's multistatus, or nginx' JSON index.
//!
//! Both are read as a stream where they can be long; names are what servers say, so nothing is trusted
//! here: whoever asked picks the names that are keys.

use std::io::{self, BufRead};
use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};
use serde::Deserialize;

use crate::remote::RemoteError;

/// The question.
pub(super) const PROPFIND: &str = concat!(
    r#"<?xml version="1.0" encoding="utf-8"?>"#,
    r#"<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>"#
);

/// One member of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File {
        name: String,
        size: u64,
        modified: Option<SystemTime>,
        /// Its ETag.
        version: Option<String>,
    },
    Collection {
        name: String,
    },
}

/// A time as HTTP writes it.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// Whether a collection can be a prefix directory; others are strangers'.
pub(super) fn is_prefix(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The members in a multistatus answer about the collection at `path`.
pub(super) fn read_multistatus(body: impl BufRead, path: &str) -> Result<Vec<Entry>, RemoteError> {
    let base = decoded(path);
    let mut reader = Reader::from_reader(body);
    let (mut buffer, mut entries) = (Vec::new(), Vec::new());
    let mut member = Member::default();
    loop {
        buffer.clear();
        match reader.read_event_into(&mut buffer).map_err(broken)? {
            Event::Start(tag) => member.start(tag.local_name().as_ref()),
            Event::Empty(tag) => {
                member.start(tag.local_name().as_ref());
                member.field = Field::None;
            }
            Event::Text(text) => member.text(&text.xml_content(XmlVersion::Implicit1_0)),
            Event::GeneralRef(entity) => member.text(entity_text(&entity)),
            Event::End(tag) => {
                member.field = Field::None;
                if is(tag.local_name().as_ref(), "response") {
                    entries.extend(std::mem::take(&mut member).entry(&base));
                }
            }
            Event::Eof => return Ok(entries),
            _ => {}
        }
    }
}

fn broken(error: quick_xml::Error) -> RemoteError {
    match error {
        quick_xml::Error::Io(error) => {
            RemoteError::from_io(io::Error::new(error.kind(), error.to_string()))
        }
        error => RemoteError::Transient(format!("list: not the XML of WebDAV: {error}")),
    }
}

/// What was read of one `response` so far.
#[derive(Debug, Default)]
struct Member {
    field: Field,
    href: String,
    size: String,
    modified: String,
    version: String,
    is_collection: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Field {
    #[default]
    None,
    Href,
    Size,
    Modified,
    Version,
}

impl Member {
    fn start(&mut self, tag: impl AsRef<[u8]>) {
        let tag = tag.as_ref();
        self.is_collection |= is(tag, "collection");
        self.field = match tag {
            _ if is(tag, "href") => Field::Href,
            _ if is(tag, "getcontentlength") => Field::Size,
            _ if is(tag, "getlastmodified") => Field::Modified,
            _ if is(tag, "getetag") => Field::Version,
            _ => Field::None,
        };
    }

    fn text(&mut self, text: &str) {
        // An entity within is a text of its own, so nothing is trimmed here.
        match self.field {
            Field::Href => self.href.push_str(text),
            Field::Size => self.size.push_str(text),
            Field::Modified => self.modified.push_str(text),
            Field::Version => self.version.push_str(text),
            Field::None => {}
        }
    }

    /// `None` for the collection itself, which is listed too.
    fn entry(self, base: &str) -> Option<Entry> {
        // It is a path or a whole URL.
        let href = self.href.trim();
        let path = match href.split_once("://") {
            Some((_, rest)) => &rest[rest.find('/')?..],
            None => href,
        };
        let path = decoded(path);
        let name = path.strip_prefix(base)?.trim_end_matches('/');
        if name.is_empty() || name.contains('/') {
            return None;
        }
        let name = name.to_owned();
        Some(if self.is_collection {
            Entry::Collection { name }
        } else {
            Entry::File {
                name,
                size: self.size.trim().parse().unwrap_or_default(),
                modified: time(&self.modified),
                version: Some(self.version.trim().to_owned()).filter(|version| !version.is_empty()),
            }
        })
    }
}

/// What an entity such as `&quot;` stands for; others are not ours.
fn entity_text(name: &str) -> &'static str {
    match name {
        "quot" => "\"",
        "amp" => "&",
        "apos" => "'",
        "lt" => "<",
        "gt" => ">",
        "#34" => "\"",
        _ => "",
    }
}

fn is(tag: impl AsRef<[u8]>, name: &str) -> bool {
    tag.as_ref().eq_ignore_ascii_case(name.as_bytes())
}

fn decoded(path: &str) -> String {
    percent_decode_str(path).decode_utf8_lossy().into_owned()
}

#[derive(Deserialize)]
struct JsonEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    mtime: String,
}

/// The members in a JSON index of nginx.
pub(super) fn read_json(body: impl BufRead) -> Result<Vec<Entry>, RemoteError> {
    let entries: Vec<JsonEntry> = serde_json::from_reader(body).map_err(|error| {
        RemoteError::Transient(format!("list: not the JSON of an index: {error}"))
    })?;
    let entry = |entry: JsonEntry| match entry.kind.as_str() {
        "directory" => Entry::Collection { name: entry.name },
        _ => Entry::File {
            name: entry.name,
            size: entry.size,
            modified: time(&entry.mtime),
            version: None,
        },
    };
    Ok(entries.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(name: &str, size: u64) -> Entry {
        Entry::File {
            name: name.to_owned(),
            size,
            modified: None,
            version: None,
        }
    }

    fn dated(name: &str, size: u64, seconds: u64, version: Option<&str>) -> Entry {
        Entry::File {
            name: name.to_owned(),
            size,
            modified: Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)),
            version: version.map(str::to_owned),
        }
    }

    #[test]
    fn a_multistatus_of_any_server_is_understood() {
        let xml = r#"<?xml version="1.0"?>
            <D:multistatus xmlns:D="DAV:">
              <D:response><D:href>/a%20b/</D:href><D:propstat><D:prop>
                <D:resourcetype><D:collection/></D:resourcetype></D:prop></D:propstat></D:response>
              <D:response><D:href>http://h:81/a%20b/AB/</D:href><D:propstat><D:prop>
                <D:resourcetype><D:collection></D:collection></D:resourcetype></D:prop></D:propstat></D:response>
              <D:response><D:href>/a b/f%C3%BC</D:href><D:propstat><D:prop><D:resourcetype/>
                <D:getcontentlength>12</D:getcontentlength><D:getetag>&quot;a b&quot;</D:getetag>
                <D:getlastmodified>Thu, 01 Jan 1970 00:01:00 GMT</D:getlastmodified>
                </D:prop></D:propstat></D:response>
              <D:response><D:href>/elsewhere/x</D:href></D:response>
            </D:multistatus>"#;
        let found = read_multistatus(xml.as_bytes(), "/a%20b/").unwrap();
        assert_eq!(
            found,
            [
                Entry::Collection {
                    name: "AB".to_owned()
                },
                dated("fü", 12, 60, Some("\"a b\""))
            ]
        );
    }

    #[test]
    fn a_json_index_is_understood() {
        let json = r#"[{"name":"AB","type":"directory","mtime":"x"},{"name":"f","type":"file","size":7},
               {"name":"g","type":"file","size":8,"mtime":"Thu, 01 Jan 1970 00:00:07 GMT"}]"#;
        let found = read_json(json.as_bytes()).unwrap();
        assert_eq!(
            found,
            [
                Entry::Collection {
                    name: "AB".to_owned()
                },
                file("f", 7),
                dated("g", 8, 7, None)
            ]
        );
        assert!(read_json(&b"<html>"[..]).is_err());
    }

    proptest! {
        /// No member is ever outside of the collection that was asked about.
        #[test]
        fn any_bytes_are_a_listing_or_an_error(bytes: Vec<u8>, parts in prop::collection::vec(prop_oneof![
            "</?(D:)?(response|href|collection|getcontentlength|x)/?>", "/(a%20b|%2e%2e|AB)?/?", "(&amp;|&lt;|&x;|&#0;|<!--|]]>|<!\\[CDATA\\[)",
            "[ -~]{0,8}", "\\[\\{\"name\":\"[ -~]{0,5}\",\"type\":\"(file|directory)\",\"size\":-?[0-9]{0,22}",
        ], 0..20)) {
            for text in [bytes, parts.concat().into_bytes()] {
                let _ = read_json(&text[..]);
                for entry in read_multistatus(&text[..], "/a%20b/").unwrap_or_default() {
                    let (Entry::File { name, .. } | Entry::Collection { name }) = entry;
                    prop_assert!(!name.is_empty() && !name.contains('/'));
                }
            }
        }

        #[test]
        fn a_listing_that_is_cut_off_never_names_what_is_not_there(at: proptest::sample::Index) {
            let xml = "<m><response><href>/AB/</href><collection/></response>\
                       <response><href>/f</href><getcontentlength>12</getcontentlength></response></m>";
            let whole = read_multistatus(xml.as_bytes(), "/").unwrap();
            let cut = &xml.as_bytes()[..at.index(xml.len())];
            if let Ok(found) = read_multistatus(cut, "/") {
                prop_assert!(whole.starts_with(&found));
            }
            let json = r#"[{"name":"AB","type":"directory"},{"name":"f","type":"file","size":7}]"#;
            prop_assert!(read_json(&json.as_bytes()[..at.index(json.len())]).is_err());
        }
    }

    /// Nested deeper than any stack is.
    #[test]
    fn a_listing_without_a_bottom_is_an_error_and_no_overflow() {
        assert!(read_json("[".repeat(1 << 20).as_bytes()).is_err());
        let xml = "<a>".repeat(1 << 18);
        assert_eq!(
            read_multistatus(xml.as_bytes(), "/").unwrap_or_default(),
            []
        );
    }

    #[test]
    fn broken_xml_is_an_error() {
        assert!(read_multistatus(&b"<a><b></a>"[..], "/").is_err());
    }
}
