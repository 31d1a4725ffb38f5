//! The directory `pending/`: one hard link for every entry that is still to be uploaded.
//!
//! A file's name is `NUMBER-DIGITS-MODE-SIG`: the push's number (16 hex digits; they order the uploads), the
//! length of the entry's prefix, its permission bits (octal) when it was pushed, its signature. The link keeps
//! the bytes whatever happens to the entry, and a restart reads the directory. Files with other names are left alone.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::Item;
use crate::name::Place;
use crate::remote::Content;
use crate::signature::{Meta, Signature};

/// The journal: knows only the next number, the directory is the store's.
#[derive(Debug)]
pub(super) struct Journal {
    next: AtomicU64,
}

impl Journal {
    /// Reads the journal: what is in it, oldest first, each with the number of names that its file has anywhere.
    pub(super) fn open(dir: BorrowedFd<'_>) -> io::Result<(Self, Vec<(Item, u32)>)> {
        let mut items = load(dir)?;
        items.sort_by_key(|(item, _)| item.seq);
        let last = items.last();
        let next = last.map_or(1, |(item, _)| item.seq.saturating_add(1));
        Ok((
            Self {
                next: AtomicU64::new(next),
            },
            items,
        ))
    }

    /// Links a file into the journal.
    pub(super) fn add(
        &self,
        dir: BorrowedFd<'_>,
        at: BorrowedFd<'_>,
        path: &Path,
        place: &Place,
        mode: u32,
    ) -> Result<Item, Errno> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let mut item = Item {
            seq,
            place: *place,
            mode,
            bytes: 0,
            ino: 0,
        };
        let name = file_name(&item);
        rustix::fs::linkat(at, path, dir, &name, AtFlags::empty())?;
        let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        item.bytes = u64::try_from(stat.st_size).unwrap_or(0);
        item.ino = stat.st_ino;
        Ok(item)
    }

    /// Takes an item out.
    pub(super) fn remove(&self, dir: BorrowedFd<'_>, item: &Item) {
        match rustix::fs::unlinkat(dir, file_name(item), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => log::warn!("cannot remove {} from the journal: {e}", file_name(item)),
        }
    }
}

/// The content of an item and what it is.
pub(super) fn read(dir: BorrowedFd<'_>, item: &Item) -> io::Result<(Meta, Content)> {
    let name = file_name(item);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::openat(dir, &name, flags, Mode::empty()) {
        Ok(fd) => {
            let file = File::from(fd);
            let len = file.metadata()?.len();
            Ok((Meta::file(item.mode), Content::File(file, len)))
        }
        Err(Errno::LOOP) => {
            let target = rustix::fs::readlinkat(dir, &name, Vec::new())?;
            Ok((Meta::Symlink, Content::Bytes(target.into_bytes())))
        }
        Err(e) => Err(e.into()),
    }
}

fn load(dir: BorrowedFd<'_>) -> io::Result<Vec<(Item, u32)>> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut items = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut names = RawDir::new(dir.as_fd(), &mut buffer);
    while let Some(entry) = names.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match parse(name.to_bytes()) {
            Some(mut item) if matches!(kind, FileType::RegularFile | FileType::Symlink) => {
                item.bytes = u64::try_from(stat.st_size).unwrap_or(0);
                item.ino = stat.st_ino;
                items.push((item, u32::try_from(stat.st_nlink).unwrap_or(u32::MAX)));
            }
            _ => log::warn!("{name:?} in the upload journal is none of ours: left alone"),
        }
    }
    Ok(items)
}

fn file_name(item: &Item) -> String {
    format!(
        "{:016x}-{}-{:o}-{}",
        item.seq, item.place.digits, item.mode, item.place.sig
    )
}

/// The item that a file name states, without what only the file knows.
fn parse(name: &[u8]) -> Option<Item> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts = name.splitn(4, '-');
    let seq = u64::from_str_radix(parts.next()?, 16).ok()?;
    let digits = parts.next()?.parse().ok()?;
    let mode = u32::from_str_radix(parts.next()?, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)?;
    let sig = Signature::parse(parts.next()?.as_bytes())?;
    let item = Item {
        seq,
        place: Place { sig, digits },
        mode,
        bytes: 0,
        ino: 0,
    };
    ((1..=4).contains(&item.place.digits) && file_name(&item) == name).then_some(item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_gives_its_item_back(seq: u64, digits in 1u8..=4, mode in 0u32..=0o777, sig in "[0-9a-f]{32,128}") {
            let place = Place { sig: Signature::parse(sig.as_bytes()).unwrap(), digits };
            let item = Item { seq, place, mode, bytes: 0, ino: 0 };
            prop_assert_eq!(parse(file_name(&item).as_bytes()), Some(item));
        }

        #[test]
        fn any_other_name_is_none_of_ours(name in "[0-9a-f-]{0,80}") {
            if let Some(item) = parse(name.as_bytes()) {
                prop_assert_eq!(file_name(&item), name);
            }
        }
    }

    /// A name that was damaged is another item or none, but two names are never one item: nothing is uploaded twice
    /// or taken out for another.
    #[test]
    fn a_name_that_is_cut_or_flipped_is_never_the_same_item() {
        let place = Place {
            sig: Signature::parse(&[b'a'; 32]).unwrap(),
            digits: 2,
        };
        let (seq, mode, bytes, ino) = (0x1234, 0o644, 0, 0);
        let item = Item {
            seq,
            place,
            mode,
            bytes,
            ino,
        };
        let name = file_name(&item).into_bytes();
        for len in 0..name.len() {
            assert_eq!(parse(&name[..len]), None, "{len}");
        }
        for bit in 0..name.len() * 8 {
            let mut flipped = name.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(parse(&flipped), Some(item), "bit {bit}");
        }
    }

    #[test]
    fn the_journal_survives_and_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("source"), "bytes").unwrap();
        let place = Place {
            sig: Signature::parse(&[b'a'; 32]).unwrap(),
            digits: 2,
        };
        let (journal, left) = Journal::open(fd.as_fd()).unwrap();
        assert!(left.is_empty());
        let item = journal
            .add(fd.as_fd(), fd.as_fd(), Path::new("source"), &place, 0o555)
            .unwrap();
        std::fs::remove_file(dir.path().join("source")).unwrap();

        let (journal, left) = Journal::open(fd.as_fd()).unwrap();
        assert_eq!(left, [(item, 1)]);
        let (meta, content) = read(fd.as_fd(), &item).unwrap();
        assert_eq!(meta, Meta::file(0o555));
        assert!(matches!(content, Content::File(_, 5)));
        journal.remove(fd.as_fd(), &item);
        assert!(journal.next.load(Ordering::Relaxed) > item.seq);
    }
}
