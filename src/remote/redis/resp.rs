//! The protocol of Redis (RESP, version 2): commands to bytes, bytes to replies. Nothing that a server sends makes us take more
//! memory than a call may need.
//!
//! This module opens no connection and knows no command.

use std::io::{self, BufRead, Read};

use crate::remote::RemoteError;
use crate::remote::redis::fault;

/// Longest line of a reply: an error, a number, a length.
const LINE_MAX: u64 = 4 << 10;
/// Most bytes of all values in one reply that is read whole; SCAN answers with some thousand keys.
const REPLY_MAX: usize = 16 << 20;
/// Most members of one list.
const LIST_MAX: usize = 1 << 20;
/// Lists within lists. What we ask for has two levels.
const DEPTH_MAX: usize = 4;

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Nil,
    Int(i64),
    /// A line such as `OK`.
    Status,
    Bytes(Vec<u8>),
    List(Vec<Reply>),
    Error(String),
}

/// The beginning of a reply whose value is read as a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Nil,
    /// So many bytes follow, and a line end.
    Value(u64),
    Error(String),
}

impl Reply {
    pub(super) fn int(self) -> Result<i64, RemoteError> {
        match self {
            Self::Int(number) => Ok(number),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn bytes(self) -> Result<Vec<u8>, RemoteError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(unexpected()),
        }
    }

    pub(super) fn items(self) -> Result<Vec<Reply>, RemoteError> {
        match self {
            Self::List(items) => Ok(items),
            _ => Err(unexpected()),
        }
    }

    /// A list of just so many.
    pub(super) fn list<const N: usize>(self) -> Result<[Reply; N], RemoteError> {
        self.items()?.try_into().map_err(|_| unexpected())
    }

    /// An error as one of ours.
    pub(super) fn checked(self) -> Result<Reply, RemoteError> {
        match self {
            Self::Error(text) => Err(fault::error(&text)),
            reply => Ok(reply),
        }
    }
}

/// The error for a reply of another kind than the command has.
pub(super) fn unexpected() -> RemoteError {
    RemoteError::Transient("answered with something else than was asked for".to_owned())
}

/// A command as bytes.
pub(super) fn command(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    args.iter().for_each(|arg| add(&mut bytes, arg));
    bytes
}

/// The first part of a command with a value of `len` bytes, which is sent separately, and `more` arguments after it.
pub(super) fn before_value(args: &[&[u8]], len: u64, more: usize) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len() + 1 + more).into_bytes();
    args.iter().for_each(|arg| add(&mut bytes, arg));
    bytes.extend(format!("${len}\r\n").into_bytes());
    bytes
}

/// What follows the value.
pub(super) fn after_value(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"\r\n".to_vec();
    args.iter().for_each(|arg| add(&mut bytes, arg));
    bytes
}

fn add(bytes: &mut Vec<u8>, arg: &[u8]) {
    bytes.extend(format!("${}\r\n", arg.len()).into_bytes());
    bytes.extend_from_slice(arg);
    bytes.extend_from_slice(b"\r\n");
}

/// A pattern that matches `text` alone.
pub(super) fn literal(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// Reads one reply whole.
pub(super) fn read(from: &mut impl BufRead) -> io::Result<Reply> {
    let mut left = REPLY_MAX;
    read_within(from, &mut left, DEPTH_MAX)
}

fn read_within(from: &mut impl BufRead, left: &mut usize, depth: usize) -> io::Result<Reply> {
    let (kind, text) = line(from)?;
    match kind {
        b'+' => Ok(Reply::Status),
        b'-' => Ok(Reply::Error(text)),
        b':' => Ok(Reply::Int(number(&text)?)),
        b'$' => match length(&text)? {
            None => Ok(Reply::Nil),
            Some(len) => {
                *left = left.checked_sub(len).ok_or_else(too_much)?;
                let mut bytes = vec![0; len];
                from.read_exact(&mut bytes)?;
                end_value(from)?;
                Ok(Reply::Bytes(bytes))
            }
        },
        b'*' => match length(&text)? {
            None => Ok(Reply::Nil),
            Some(len) if len > LIST_MAX || depth == 0 => Err(too_much()),
            Some(len) => {
                let items = (0..len).map(|_| read_within(from, left, depth - 1));
                items.collect::<io::Result<_>>().map(Reply::List)
            }
        },
        _ => Err(foreign()),
    }
}

/// Reads the beginning of a reply that is a value.
pub(super) fn head(from: &mut impl BufRead) -> io::Result<Head> {
    let (kind, text) = line(from)?;
    match kind {
        b'$' => Ok(match length(&text)? {
            None => Head::Nil,
            Some(len) => Head::Value(len as u64),
        }),
        b'-' => Ok(Head::Error(text)),
        _ => Err(foreign()),
    }
}

/// Reads the line end behind a value.
pub(super) fn end_value(from: &mut impl Read) -> io::Result<()> {
    let mut end = [0; 2];
    from.read_exact(&mut end)?;
    if end == *b"\r\n" {
        Ok(())
    } else {
        Err(foreign())
    }
}

/// The kind of a line and the rest of it.
fn line(from: &mut impl BufRead) -> io::Result<(u8, String)> {
    let mut bytes = Vec::new();
    from.take(LINE_MAX).read_until(b'\n', &mut bytes)?;
    match bytes.split_first() {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some((kind, rest)) => match rest.strip_suffix(b"\r\n") {
            Some(text) => Ok((*kind, String::from_utf8_lossy(text).into_owned())),
            None if (bytes.len() as u64) < LINE_MAX && !bytes.ends_with(b"\n") => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            None => Err(foreign()),
        },
    }
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| foreign())
}

/// `None` for -1, which stands for nothing.
fn length(text: &str) -> io::Result<Option<usize>> {
    match number(text)? {
        -1 => Ok(None),
        len => usize::try_from(len).map(Some).map_err(|_| foreign()),
    }
}

fn foreign() -> io::Error {
    let text = "does not speak the protocol of Redis (is it one? with TLS, which is rediss://?)";
    RemoteError::Transient(text.to_owned()).into_io()
}

fn too_much() -> io::Error {
    RemoteError::Transient("answered with more than was asked for".to_owned()).into_io()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &[u8]) -> io::Result<Reply> {
        read(&mut &text[..])
    }

    #[test]
    fn every_kind_of_reply_is_read() {
        assert_eq!(parse(b"+OK\r\n").unwrap(), Reply::Status);
        assert_eq!(parse(b":-2\r\n").unwrap(), Reply::Int(-2));
        assert_eq!(parse(b"$-1\r\n").unwrap(), Reply::Nil);
        assert_eq!(parse(b"*-1\r\n").unwrap(), Reply::Nil);
        assert_eq!(
            parse(b"-ERR no\r\n").unwrap(),
            Reply::Error("ERR no".to_owned())
        );
        let list = Reply::List(vec![
            Reply::Bytes(b"0".to_vec()),
            Reply::List(vec![Reply::Bytes(b"a\r\nb".to_vec())]),
        ]);
        assert_eq!(
            parse(b"*2\r\n$1\r\n0\r\n*1\r\n$4\r\na\r\nb\r\n").unwrap(),
            list
        );
    }

    #[test]
    fn what_is_no_reply_or_too_much_is_an_error() {
        for text in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"$5\r\nabc",
            b"$3\r\nabcde",
            b"$-7\r\n",
            b"$99999999999\r\n",
            b"*99999999999\r\n",
            b":one\r\n",
            b"+OK",
            b"",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(
            parse("*1\r\n".repeat(1 << 20).as_bytes()).is_err(),
            "no bottom"
        );
        assert!(parse(&[b'-'; 1 << 20]).is_err(), "no end of a line");
    }

    #[test]
    fn a_command_and_one_whose_value_is_sent_separately_are_the_same() {
        let whole = command(&[b"SET", b"k", b"value", b"PX", b"10"]);
        let mut parts = before_value(&[b"SET", b"k"], 5, 2);
        parts.extend(b"value");
        parts.extend(after_value(&[b"PX", b"10"]));
        assert_eq!(whole, parts);
        assert_eq!(command(&[b"GET", b"k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }

    #[test]
    fn a_prefix_with_wildcards_means_itself() {
        assert_eq!(literal("a*b?[c]^\\:"), "a\\*b\\?\\[c\\]\\^\\\\:");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_reply_or_an_error(bytes: Vec<u8>, parts in prop::collection::vec("([*$:+-](-1|[0-3]|9{1,20})?\r\n|[a-z]{0,3}\r\n|\r|\n)", 0..20)) {
            for text in [bytes, parts.concat().into_bytes()] {
                let _ = parse(&text);
                let _ = head(&mut &text[..]);
            }
        }

        #[test]
        fn a_reply_that_is_cut_off_is_an_error(at: prop::sample::Index) {
            let whole = b"*3\r\n$2\r\nab\r\n:7\r\n*1\r\n$0\r\n\r\n";
            prop_assert!(parse(whole).is_ok());
            prop_assert!(parse(&whole[..at.index(whole.len())]).is_err());
        }
    }
}
