//! What interrupted pushes left behind: SCons before 4.11 never removes its `SIG.tmp…` after an error, and a build that is
//! killed removes nothing at all. Only names that SCons gives are collected, only in prefix directories, and only
//! when nobody has them open and nothing about them changed for a day. Whatever else lies about is somebody's.
//!
//! "Changed" is the time of the last change of the inode: SCons gives what it pushes the time stamps of what it built,
//! so that a file that was made a second ago can look years old.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Stat};

use super::Fs;
use super::reach::Spot;
use crate::name::{Dir, Name};
use crate::signature::Signature;
use crate::store::scan::{Found, names_in, open_dir};

/// How long nobody must have touched it.
const AGE: Duration = Duration::from_secs(24 * 3600);

impl Fs {
    /// Removes what interrupted pushes left behind; how many files and directories that were.
    pub fn collect_leftovers(&self) -> u64 {
        if self.store.is_sick() {
            return 0;
        }
        let before = self.stats.leftovers.get();
        let prefixes = self.store.prefixes().unwrap_or_default();
        for dir in prefixes {
            let name = String::from_utf8_lossy(dir.prefix_digits()).into_owned();
            for found in self.names_below(&name) {
                self.collect_in(&dir, &name, &found);
            }
        }
        let collected = self.stats.leftovers.get() - before;
        if collected > 0 {
            log::info!("removed {collected} leftovers of pushes that were interrupted");
        }
        collected
    }

    fn collect_in(&self, dir: &Dir, prefix: &str, found: &Found) {
        let name = found.name.to_bytes();
        if is_temporary_file(dir, name) {
            self.collect(prefix, prefix, name, AtFlags::empty());
        } else if is_temporary_dir(name) {
            let path = format!("{prefix}/{}", String::from_utf8_lossy(name));
            let inside = self.names_below(&path);
            let pushed = |f: &Found| matches!(Name::parse(dir, f.name.to_bytes()), Name::Entry(_));
            if !inside.iter().all(pushed) || !self.is_old(&Spot::below_root(path.clone().into())) {
                return;
            }
            for file in &inside {
                self.collect(prefix, &path, file.name.to_bytes(), AtFlags::empty());
            }
            // If something stayed, so does the directory.
            self.collect(prefix, prefix, name, AtFlags::REMOVEDIR);
        }
    }

    /// Removes one name in the directory `dir` below `prefix` if it may go.
    fn collect(&self, prefix: &str, dir: &str, name: &[u8], flags: AtFlags) {
        let root = self.store.root();
        let name = OsStr::from_bytes(name);
        let spot = Spot::below_root(std::path::Path::new(dir).join(name));
        let (Ok(parent), Ok(before)) = (
            rustix::fs::statat(root, dir, AtFlags::SYMLINK_NOFOLLOW),
            spot.stat(root),
        ) else {
            return;
        };
        let removes_dir = flags.contains(AtFlags::REMOVEDIR);
        if is_dir(&before) != removes_dir || !removes_dir && !self.is_old(&spot) {
            return;
        }
        // As for an eviction, see there.
        if let (Some(kernel), true) = (self.kernel.get(), self.tree().get(before.st_ino).is_some())
        {
            if self.fetch.is_asked_in(prefix) {
                return;
            }
            let Some(_at_work) = self.store.begin_work_in(prefix) else {
                return;
            };
            kernel.forget_name(parent.st_ino, name);
        }
        let mut tree = self.tree_mut();
        let node = tree.get(before.st_ino);
        if node.is_some_and(|node| node.opens > 0 || node.unsealed.is_some()) {
            return;
        }
        let last = self.keep_last(&tree, &spot, &before);
        if rustix::fs::unlinkat(root, &spot.path, flags).is_ok() {
            tree.name_gone(before.st_ino, parent.st_ino, name, last);
            tree.epoch += 1;
            self.stats.leftovers.one();
        }
    }

    fn names_below(&self, path: &str) -> Vec<Found> {
        let dir = open_dir(self.store.root(), path);
        dir.and_then(|dir| names_in(&dir)).unwrap_or_default()
    }

    fn is_old(&self, spot: &Spot) -> bool {
        let Ok(stat) = spot.stat(self.store.root()) else {
            return false;
        };
        let seconds = u64::try_from(stat.st_ctime).unwrap_or(0);
        let changed = UNIX_EPOCH + Duration::from_secs(seconds);
        let age = self.clock.wall().duration_since(changed);
        age.is_ok_and(|age| age > AGE)
    }
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// `SIG.tmp<pid>` or `SIG.tmp<uuid>`.
fn is_temporary_file(dir: &Dir, name: &[u8]) -> bool {
    const MARK: &[u8] = b".tmp";
    let Some(at) = name.windows(MARK.len()).position(|part| part == MARK) else {
        return false;
    };
    let (sig, rest) = (&name[..at], &name[at + MARK.len()..]);
    let by_scons = |b: &u8| b.is_ascii_hexdigit() || *b == b'-';
    Signature::parse(sig).is_some()
        && matches!(Name::parse(dir, sig), Name::Entry(_))
        && !rest.is_empty()
        && rest.iter().all(by_scons)
}

/// `tmpXXXXXXXX`, as Python's tempfile makes it.
fn is_temporary_dir(name: &[u8]) -> bool {
    let by_python = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
    name.strip_prefix(b"tmp")
        .is_some_and(|rest| rest.len() == 8 && rest.iter().all(by_python))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIG: &str = "ab112233445566778899aabbccddeeff";

    #[test]
    fn only_names_that_scons_gives_are_temporary() {
        let dir = Dir::Prefix(*b"AB\0\0", 2);
        for rest in [
            ".tmp4711",
            ".tmp5f0c4d9e8a7b4c6d9e8f0a1b2c3d4e5f",
            ".tmp5f0c4d9e-8a7b",
        ] {
            assert!(is_temporary_file(&dir, format!("{SIG}{rest}").as_bytes()));
        }
        for rest in ["", ".tmp", ".tmp.txt", ".tmp12.bak", ".temp12", "0.tmpx"] {
            assert!(
                !is_temporary_file(&dir, format!("{SIG}{rest}").as_bytes()),
                "{rest}"
            );
        }
        let elsewhere = Dir::Prefix(*b"CD\0\0", 2);
        assert!(!is_temporary_file(
            &elsewhere,
            format!("{SIG}.tmp1").as_bytes()
        ));
        assert!(is_temporary_dir(b"tmpab0_12yz"));
        for name in ["tmp", "tmpab", "tmpAB0_12yz", "tmpab0_12yz1", "temp1234567"] {
            assert!(!is_temporary_dir(name.as_bytes()), "{name}");
        }
    }
}
