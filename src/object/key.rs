//! The key that objects are authenticated with. Its bytes never show.

use std::fmt;
use std::fs;
use std::path::Path;

/// A shared secret of 32 bytes: with it, only objects of its holders are believed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

/// Why a key could not be had. Never shows what was read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("read key file {0}: {1}")]
    Read(String, std::io::Error),
    /// It holds something else.
    #[error("key file {0}: want 64 hex digits (make one with `openssl rand -hex 32`)")]
    Malformed(String),
}

impl Key {
    /// The key with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key that 64 hex digits spell, white space around them ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let hash = blake3::Hash::from_hex(text.trim()).ok()?;
        Some(Self(*hash.as_bytes()))
    }

    /// The key in a file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let name = || path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| KeyError::Read(name(), error))?;
        Self::parse(&text).ok_or_else(|| KeyError::Malformed(name()))
    }

    /// The keyed BLAKE3 of `bytes`.
    pub(super) fn mac(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_hex_digits_and_shows_none_of_them() {
        let key = Key::parse(&format!("{}\n", "ab".repeat(32))).unwrap();
        assert_eq!(key, Key::new([0xab; 32]));
        assert_eq!(format!("{key:?}"), "Key(..)");
        for bad in ["", "ab", "not hex", &"ab".repeat(33)] {
            assert!(Key::parse(bad).is_none(), "{bad:?}");
        }
    }
}
