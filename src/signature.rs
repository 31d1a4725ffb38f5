//! The nouns that everyone shares: the [`Signature`] of an entry and its [`Meta`].
//!
//! Nothing here knows files, paths, remotes or the kernel.

use std::fmt;

/// Fewest hex digits that make a signature (MD5, SCons' default).
pub const MIN_DIGITS: usize = 32;
/// Most hex digits that make a signature (SHA-512).
pub const MAX_DIGITS: usize = 128;

/// What SCons calls a build signature: 32 to 128 lower-case hex digits.
///
/// It can only be made by [`Signature::parse`], so whoever holds one may use it in a path, a
/// key or a URL without looking again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signature {
    len: u8,
    digits: [u8; MAX_DIGITS],
}

impl Signature {
    /// The signature that `text` spells, or `None` if it is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if !(MIN_DIGITS..=MAX_DIGITS).contains(&text.len()) || !text.iter().all(hex) {
            return None;
        }
        let mut digits = [0; MAX_DIGITS];
        digits[..text.len()].copy_from_slice(text);
        let len = u8::try_from(text.len()).expect("MAX_DIGITS fits a byte");
        Some(Self { len, digits })
    }

    /// The digits as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("only hex digits get in")
    }

    /// The digits as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.digits[..usize::from(self.len)]
    }

    /// The first `len` digits in upper case: the prefix directory that SCons files it under.
    pub fn prefix(&self, len: usize) -> String {
        self.as_str()[..len.min(MIN_DIGITS)].to_ascii_uppercase()
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Permission bits that an entry can have: set-id and sticky bits never travel.
pub const MODE_MASK: u32 = 0o777;

/// What an entry is, apart from its content. The content of a symlink is its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// A regular file with these permission bits (within [`MODE_MASK`]).
    File {
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Symlink,
}

impl Meta {
    /// A regular file; bits outside [`MODE_MASK`] are dropped.
    pub fn file(mode: u32) -> Self {
        Self::File {
            mode: mode & MODE_MASK,
        }
    }

    /// The permission bits: those of a symlink are always 0o777.
    pub fn mode(self) -> u32 {
        match self {
            Self::File { mode } => mode,
            Self::Symlink => MODE_MASK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_to_128_lower_case_hex_digits_are_a_signature() {
        assert!(Signature::parse(&[b'a'; 32]).is_some());
        assert!(Signature::parse(&[b'0'; 128]).is_some());
        for bad in [
            &[b'a'; 31][..],
            &[b'a'; 129],
            &[b'A'; 32],
            &[b'g'; 32],
            b"",
            b"../../../../../../../../etc/passwd",
        ] {
            assert!(Signature::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn the_prefix_is_upper_case() {
        let sig = Signature::parse(b"abcdef0123456789abcdef0123456789").unwrap();
        assert_eq!(sig.prefix(2), "AB");
        assert_eq!(sig.prefix(1), "A");
        assert_eq!(sig.to_string(), "abcdef0123456789abcdef0123456789");
    }

    #[test]
    fn privilege_bits_never_get_into_meta() {
        assert_eq!(Meta::file(0o104_755), Meta::File { mode: 0o755 });
    }
}
