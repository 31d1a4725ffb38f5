//! Parsing of paths in the mount: each is the root, a root file, a prefix directory, an entry,
//! or scratch. Only entries are ever asked of the remote and only entries are uploaded.
//!
//! Nothing here touches a disk.

use serde::{Deserialize, Serialize};

use crate::signature::Signature;

/// Our private directory in the root of the backing directory. It is never visible in the mount.
pub const PRIVATE_DIR: &str = ".cachedirfs";

/// Most digits of a prefix directory's name.
const MAX_PREFIX: usize = 4;

/// A file that SCons keeps in the root of a CacheDir.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootFile {
    /// `config`: holds the prefix length.
    Config,
    /// `CACHEDIR.TAG`: tells backup programs to pass by.
    Tag,
    /// `config.lock`: SCons' lock file around its use of `config`.
    ConfigLock,
}

/// Where a name stands in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dir {
    /// The root of the mount.
    Root,
    /// A prefix directory with this many digits, in the low bytes.
    Prefix([u8; MAX_PREFIX], u8),
    /// Any other directory.
    Scratch,
}

impl Dir {
    /// The digits of a prefix directory; empty for every other one.
    pub fn prefix_digits(&self) -> &[u8] {
        match self {
            Self::Prefix(digits, len) => &digits[..usize::from(*len)],
            Self::Root | Self::Scratch => &[],
        }
    }
}

/// Where an entry stands: its signature, in the prefix directory of so many of its digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The entry's signature.
    pub sig: Signature,
    /// Digits of the prefix directory it stands in.
    pub digits: u8,
}

impl Place {
    /// The name of the prefix directory.
    pub fn dir(&self) -> String {
        self.sig.prefix(usize::from(self.digits))
    }

    /// The path below the root: `XX/SIG`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.dir(), self.sig)
    }
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A file that SCons keeps in the root.
    RootFile(RootFile),
    /// A prefix directory in the root: 1 to 4 upper-case hex digits.
    PrefixDir(Dir),
    /// An entry: a signature in the prefix directory that it begins with.
    Entry(Place),
    /// Our own directory in the backing root, which nobody may see or make.
    Private,
    /// Anything else.
    Scratch,
}

impl Name {
    /// What `name` is when it stands in `dir`.
    pub fn parse(dir: &Dir, name: &[u8]) -> Self {
        match dir {
            Dir::Root => Self::parse_in_root(name),
            Dir::Prefix(_, digits) => match Signature::parse(name) {
                Some(sig) if begins_with(&sig, dir.prefix_digits()) => Self::Entry(Place {
                    sig,
                    digits: *digits,
                }),
                _ => Self::Scratch,
            },
            Dir::Scratch => Self::Scratch,
        }
    }

    /// The kind of directory this name makes if it is one.
    pub fn as_dir(&self) -> Dir {
        match self {
            Self::PrefixDir(dir) => *dir,
            _ => Dir::Scratch,
        }
    }

    fn parse_in_root(name: &[u8]) -> Self {
        match name {
            b"config" => Self::RootFile(RootFile::Config),
            b"CACHEDIR.TAG" => Self::RootFile(RootFile::Tag),
            b"config.lock" => Self::RootFile(RootFile::ConfigLock),
            _ if name == PRIVATE_DIR.as_bytes() => Self::Private,
            _ => prefix_dir(name).map_or(Self::Scratch, Self::PrefixDir),
        }
    }
}

fn begins_with(sig: &Signature, prefix: &[u8]) -> bool {
    sig.as_bytes()[..prefix.len()].eq_ignore_ascii_case(prefix)
}

fn prefix_dir(name: &[u8]) -> Option<Dir> {
    let hex = |b: &u8| matches!(b, b'0'..=b'9' | b'A'..=b'F');
    if name.is_empty() || name.len() > MAX_PREFIX || !name.iter().all(hex) {
        return None;
    }
    let mut digits = [0; MAX_PREFIX];
    digits[..name.len()].copy_from_slice(name);
    Some(Dir::Prefix(
        digits,
        u8::try_from(name.len()).expect("at most MAX_PREFIX"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIG: &[u8] = b"ab3456789012345678901234567890cd";

    fn in_prefix(prefix: &[u8], name: &[u8]) -> Name {
        let dir = Name::parse(&Dir::Root, prefix).as_dir();
        Name::parse(&dir, name)
    }

    #[test]
    fn an_entry_is_a_signature_in_its_own_prefix_directory() {
        for prefix in [&b"A"[..], b"AB", b"AB3", b"AB34"] {
            assert!(
                matches!(in_prefix(prefix, SIG), Name::Entry(_)),
                "{prefix:?}"
            );
        }
        for prefix in [&b"B"[..], b"AC", b"ab", b"AB345", b"XY", b""] {
            assert_eq!(in_prefix(prefix, SIG), Name::Scratch, "{prefix:?}");
        }
    }

    #[test]
    fn what_scons_writes_beside_entries_is_scratch() {
        assert_eq!(in_prefix(b"AB", b"tmpabcdefgh"), Name::Scratch);
        let mut tmp = SIG.to_vec();
        tmp.extend_from_slice(b".tmp4711");
        assert_eq!(in_prefix(b"AB", &tmp), Name::Scratch);
        assert_eq!(Name::parse(&Dir::Scratch, SIG), Name::Scratch);
    }

    #[test]
    fn root_files_and_the_private_directory_have_names_of_their_own() {
        let root = |n: &[u8]| Name::parse(&Dir::Root, n);
        assert_eq!(root(b"config"), Name::RootFile(RootFile::Config));
        assert_eq!(root(b"config.lock"), Name::RootFile(RootFile::ConfigLock));
        assert_eq!(root(b"CACHEDIR.TAG"), Name::RootFile(RootFile::Tag));
        assert_eq!(root(b".cachedirfs"), Name::Private);
        assert_eq!(root(SIG), Name::Scratch);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_a_panic(prefix: Vec<u8>, name: Vec<u8>) {
            let dir = Name::parse(&Dir::Root, &prefix).as_dir();
            if let Name::Entry(place) = Name::parse(&dir, &name) {
                prop_assert_eq!(place.sig.as_bytes(), &name[..]);
                let dir = place.dir();
                prop_assert_eq!(dir.as_bytes(), &prefix[..]);
            }
        }
    }
}
