//! XML as the stores write it: a tree of names with text at its ends. Read as a stream, with bounds.
//!
//! This module knows no element.

use std::io::BufRead;

use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, Event};
use quick_xml::{Reader, XmlVersion};

use crate::remote::RemoteError;

/// Deepest element; listings have five levels.
const DEPTH_MAX: usize = 16;

/// Longest text of one element. Keys have at most 1024 bytes, tokens of listings some more.
const TEXT_MAX: usize = 8 << 10;

/// What is met on the way through.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node<'a> {
    /// An element ended; if it has no children, this is its text.
    Text { name: &'a str, text: &'a str },
    /// An element with children ended.
    End(&'a str),
}

/// Calls `each` for every element, when it ends.
pub(super) fn read(body: impl BufRead, each: &mut dyn FnMut(Node<'_>)) -> Result<(), RemoteError> {
    let mut reader = Reader::from_reader(body);
    let (mut buffer, mut tree) = (Vec::new(), Tree::default());
    loop {
        buffer.clear();
        match reader.read_event_into(&mut buffer).map_err(broken)? {
            Event::Start(tag) => tree.start(tag.local_name().as_ref())?,
            Event::Empty(tag) => {
                tree.start(tag.local_name().as_ref())?;
                tree.end(each);
            }
            Event::Text(text) => tree.text(&text.xml_content(XmlVersion::Implicit1_0))?,
            Event::CData(text) => tree.text(&text.xml_content(XmlVersion::Implicit1_0))?,
            Event::GeneralRef(entity) => tree.text(&resolved(&entity))?,
            Event::End(_) => tree.end(each),
            Event::Eof if tree.open.is_empty() => return Ok(()),
            Event::Eof => return Err(cut_off()),
            _ => {}
        }
    }
}

fn resolved(entity: &BytesRef<'_>) -> String {
    if let Ok(Some(c)) = entity.resolve_char_ref() {
        return c.to_string();
    }
    let name: &str = entity.as_ref();
    resolve_predefined_entity(name)
        .unwrap_or_default()
        .to_owned()
}

fn broken(error: quick_xml::Error) -> RemoteError {
    match error {
        quick_xml::Error::Io(error) => {
            RemoteError::from_io(std::io::Error::new(error.kind(), error.to_string()))
        }
        error => RemoteError::Transient(format!("not the XML of this store: {error}")),
    }
}

fn cut_off() -> RemoteError {
    RemoteError::Transient("the XML of this answer is cut off".to_owned())
}

/// The elements that are open, and the text of the last one.
#[derive(Default)]
struct Tree {
    open: Vec<String>,
    text: String,
    /// The last one that was opened has not been closed: it has no children.
    is_leaf: bool,
}

impl Tree {
    fn start(&mut self, name: impl AsRef<[u8]>) -> Result<(), RemoteError> {
        if self.open.len() >= DEPTH_MAX {
            let text = "the XML of this answer is nested too deeply".to_owned();
            return Err(RemoteError::Transient(text));
        }
        self.open
            .push(String::from_utf8_lossy(name.as_ref()).into_owned());
        self.text.clear();
        self.is_leaf = true;
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), RemoteError> {
        if self.text.len() + text.len() > TEXT_MAX {
            let text = "the XML of this answer has too long a text".to_owned();
            return Err(RemoteError::Transient(text));
        }
        self.text.push_str(text);
        Ok(())
    }

    fn end(&mut self, each: &mut dyn FnMut(Node<'_>)) {
        let Some(name) = self.open.pop() else {
            return;
        };
        if self.is_leaf {
            let text = self.text.trim();
            each(Node::Text { name: &name, text });
        } else {
            each(Node::End(&name));
        }
        self.text.clear();
        self.is_leaf = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(xml: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        read(xml.as_bytes(), &mut |node| match node {
            Node::Text { name, text } => found.push((name.to_owned(), text.to_owned())),
            Node::End(name) => found.push((name.to_owned(), "END".to_owned())),
        })
        .unwrap();
        found
    }

    #[test]
    fn entities_are_resolved_and_white_space_is_not() {
        let xml = "<?xml version=\"1.0\"?>\n<a xmlns=\"x\"> <b>&quot;e&#45;1&quot;</b>\n <c/><d>x y</d></a>";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let wanted = [
            pair("b", "\"e-1\""),
            pair("c", ""),
            pair("d", "x y"),
            pair("a", "END"),
        ];
        assert_eq!(texts(xml), wanted);
    }

    #[test]
    fn what_is_cut_off_nested_without_end_or_endless_is_an_error() {
        let long = format!("<a>{}</a>", "x".repeat(1 << 20));
        for xml in ["<a><b>x</b>", &"<a>".repeat(1 << 16), &long, "<a></b>"] {
            let read = read(xml.as_bytes(), &mut |_| {});
            assert!(matches!(read, Err(RemoteError::Transient(_))), "{read:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_xml_or_an_error(bytes: Vec<u8>, parts in prop::collection::vec(prop_oneof![
            "</?(Error|Code|Contents|Key|x)/?>", "(&amp;|&lt;|&x;|&#0;|<!--|]]>|<!\\[CDATA\\[)", "[ -~]{0,8}",
        ], 0..20)) {
            for text in [bytes, parts.concat().into_bytes()] {
                let _ = read(&text[..], &mut |_| {});
            }
        }
    }
}
