//! SHA-256 digests: of blobs, of keys, and of what a server sends, before anybody believes it.

use std::fmt::Write;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::remote::RemoteError;
use crate::remote::reapi::message;

/// What a blob is named by, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    sha256: [u8; 32],
    /// Its length in bytes.
    pub size: u64,
}

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: Sha256::digest(bytes).into(),
            size: bytes.len() as u64,
        }
    }

    /// Of a stream, to its end.
    pub(in crate::remote) fn of_reader(mut reader: impl Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let size = io::copy(&mut reader, &mut Update(&mut hasher))?;
        Ok(Self {
            sha256: hasher.finalize().into(),
            size,
        })
    }

    /// As a server spells it; `None` for anything but 64 lower-case hex digits and a length.
    pub fn parse(message: &message::Digest) -> Option<Self> {
        let hash = message.hash.as_bytes();
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hash.len() != 64 || !hash.iter().all(is_hex) {
            return None;
        }
        let mut sha256 = [0; 32];
        for (byte, digits) in sha256.iter_mut().zip(hash.chunks(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        let size = u64::try_from(message.size_bytes).ok()?;
        Some(Self { sha256, size })
    }

    /// The 64 digits.
    pub fn hash(&self) -> String {
        self.sha256.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes it");
            text
        })
    }

    /// As it goes to a server.
    pub fn to_message(self) -> message::Digest {
        message::Digest {
            hash: self.hash(),
            size_bytes: i64::try_from(self.size).unwrap_or(i64::MAX),
        }
    }

    /// `body`, which ends in an error unless it is what this digest names.
    pub(in crate::remote) fn checked(self, body: Box<dyn Read + Send>) -> Box<dyn Read + Send> {
        Box::new(Checked {
            body,
            digest: self,
            hasher: Sha256::new(),
            read: 0,
        })
    }
}

struct Update<'a>(&'a mut Sha256);

impl io::Write for Update<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes bytes on, and instead of an end gives an error if they were others. Whoever must not hand out the last bytes
/// of something wrong reads to the end first (`object::plain`).
struct Checked {
    body: Box<dyn Read + Send>,
    digest: Digest,
    hasher: Sha256,
    read: u64,
}

impl Read for Checked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.body.read(buf)?;
        self.read += n as u64;
        if n > 0 {
            self.hasher.update(&buf[..n]);
        }
        let ended = n == 0 && !buf.is_empty();
        let is_long = self.read > self.digest.size;
        let found: [u8; 32] = match ended {
            true => self.hasher.clone().finalize().into(),
            false => self.digest.sha256,
        };
        let is_other = ended && (self.read < self.digest.size || found != self.digest.sha256);
        if is_long || is_other {
            let text = format!(
                "blob {}/{} is not what was sent: the hash or length is another",
                self.digest.hash(),
                self.digest.size
            );
            return Err(RemoteError::Corrupt(text).into_io());
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sent: &[u8], digest: Digest) -> Result<Vec<u8>, RemoteError> {
        let mut back = Vec::new();
        let mut body = digest.checked(Box::new(io::Cursor::new(sent.to_vec())));
        body.read_to_end(&mut back).map_err(RemoteError::from_io)?;
        Ok(back)
    }

    #[test]
    fn only_what_the_digest_names_comes_to_its_end() {
        let digest = Digest::of(b"content");
        assert_eq!(read(b"content", digest).unwrap(), b"content");
        for wrong in [&b"Content"[..], b"conten", b"content ", b""] {
            assert!(matches!(read(wrong, digest), Err(RemoteError::Corrupt(_))));
        }
    }

    #[test]
    fn a_digest_is_64_lower_case_digits_and_a_length() {
        let digest = Digest::of(b"x");
        assert_eq!(Digest::parse(&digest.to_message()), Some(digest));
        let of = |hash: String, size_bytes| Digest::parse(&message::Digest { hash, size_bytes });
        assert_eq!(of("a".repeat(64), 1).map(|digest| digest.size), Some(1));
        for (hash, size) in [
            ("A".repeat(64), 1),
            ("a".repeat(63), 1),
            ("../".repeat(22)[..64].to_owned(), 1),
            ("a".repeat(64), -1),
        ] {
            assert_eq!(of(hash, size), None);
        }
    }
}
