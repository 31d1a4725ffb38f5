//! Marks of entries whose bytes may not be on the disk yet, and what a start makes of them.
//!
//! After a power cut a name can be on the disk without its bytes. So every commit leaves a mark in `fresh/` **before**
//! there is a name for the file (the journal's or the entry's), and it goes when file and names are synced
//! (`sync`). All of that is in one file system, whose journal keeps the order: a name that
//! survives has its mark beside it. A mark is an empty file, told by its name alone:
//!
//! ```text
//! KIND NUMBER - INODE - DIGITS - SIG [- HASH]
//! ```
//!
//! `p`, `s` or `f` (pushed here; the same, with its bytes on the disk already; fetched, or not to be uploaded), the mark's own number (16 hex digits), the file's inode number (hex), the place,
//! and the BLAKE3 of the content where it is known. The inode tells the file that the mark is for from an older one
//! at the same place, which is whole; the number tells two commits of one file.
//!
//! At a start, marks of this boot mean that only the daemon died: what it wrote is in the kernel's cache, and is synced
//! now. Marks of another boot mean a power cut: the files that they name are not believed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::Store;
use super::layout::{self, mark_name, marked_place};
use super::scan::names_in;
use crate::name::Place;

/// Where the kernel says which of its lives this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Entries named in the one line about a power cut.
const NAMED: usize = 3;

/// How a file came to be an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was made here, and is nowhere else.
    Pushed,
    /// The same, and its bytes are on the disk: only names are to be synced.
    Synced,
    /// It came from the remote, with this BLAKE3 if that is known; or nobody else is promised to get it (`push=off`).
    Fetched(Option<[u8; 32]>),
}

/// One mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) number: u64,
    pub(super) origin: Origin,
    pub(super) place: Place,
    pub(super) ino: u64,
}

impl Mark {
    pub(super) fn name(&self) -> String {
        let (kind, hash) = match self.origin {
            Origin::Pushed => ('p', None),
            Origin::Synced => ('s', None),
            Origin::Fetched(hash) => ('f', hash),
        };
        let hash = hash.map_or(String::new(), |hash| {
            format!("-{}", blake3::Hash::from_bytes(hash).to_hex())
        });
        let (number, ino, place) = (self.number, self.ino, mark_name(&self.place));
        format!("{kind}{number:016x}-{ino:x}-{place}{hash}")
    }

    /// The mark that a file name states.
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(name).ok()?;
        let mut parts = text.get(1..)?.split('-');
        let number = u64::from_str_radix(parts.next()?, 16).ok()?;
        let ino = u64::from_str_radix(parts.next()?, 16).ok()?;
        let place = marked_place(format!("{}-{}", parts.next()?, parts.next()?).as_bytes())?;
        let hash = match parts.next() {
            Some(hex) => Some(*blake3::Hash::from_hex(hex).ok()?.as_bytes()),
            None => None,
        };
        let origin = match (text.as_bytes()[0], hash) {
            (b'p', None) => Origin::Pushed,
            (b's', None) => Origin::Synced,
            (b'f', hash) => Origin::Fetched(hash),
            _ => return None,
        };
        let mark = Self {
            number,
            origin,
            place,
            ino,
        };
        (mark.name().as_bytes() == name).then_some(mark)
    }
}

/// A mark that was made and whose file has no name yet.
#[derive(Debug)]
#[must_use = "the mark stays for ever unless it is settled or taken back"]
pub struct Fresh(Mark);

impl Store {
    /// Marks the file `ino`, which is about to get the name of `place`, as one whose bytes are not on the disk.
    pub fn mark_fresh(&self, place: &Place, ino: u64, origin: Origin) -> io::Result<Fresh> {
        let mark = {
            let mut state = self.state();
            state.next_mark += 1;
            let number = state.next_mark;
            state.arriving.insert(number);
            Mark {
                number,
                origin,
                place: *place,
                ino,
            }
        };
        let (kind, mode) = (FileType::RegularFile, Mode::from(0o600));
        if let Err(e) = rustix::fs::mknodat(&self.fresh, mark.name(), kind, mode, 0) {
            self.state().arriving.remove(&mark.number);
            return Err(e.into());
        }
        Ok(Fresh(mark))
    }

    /// The file has its name: it is to be synced.
    pub fn settled(&self, fresh: Fresh) {
        let mut state = self.state();
        state.arriving.remove(&fresh.0.number);
        let first = !state.any_fresh;
        state.any_fresh = true;
        drop(state);
        if first {
            self.freshened.notify_all();
        }
    }

    /// The file did not get its name.
    pub fn not_fresh(&self, fresh: &Fresh) {
        self.unmark_fresh(&fresh.0);
        self.state().arriving.remove(&fresh.0.number);
    }

    /// How a file that was made here and is about to be committed at `place` has to be marked. If an older push of that
    /// place is still to be uploaded, it makes way for this one, whose bytes are brought to the disk first: a power
    /// cut must not take both.
    pub fn origin_of(
        &self,
        at: impl AsFd,
        path: &Path,
        place: &Place,
        stat: &rustix::fs::Stat,
    ) -> io::Result<Origin> {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            // Its target is in the inode, or journalled as that is.
            return Ok(Origin::Synced);
        }
        if self.pins(place) == 0 {
            return Ok(Origin::Pushed);
        }
        rustix::fs::fsync(open_to_sync(at, path)?)?;
        Ok(Origin::Synced)
    }

    pub(super) fn unmark_fresh(&self, mark: &Mark) {
        if let Err(e) = rustix::fs::unlinkat(&self.fresh, mark.name(), AtFlags::empty()) {
            log::debug!("cannot remove the mark {}: {e}", mark.name());
        }
    }
}

/// fsync(2) takes any descriptor. Whoever may not read the file may write it, or is root.
pub(super) fn open_to_sync(at: impl AsFd, path: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(&at, path, flags | OFlags::RDONLY, Mode::empty()) {
        Err(Errno::ACCESS) => rustix::fs::openat(&at, path, flags | OFlags::WRONLY, Mode::empty()),
        opened => opened,
    }
}

/// The links in `pending/` to a file that are wanted, by place and inode.
pub(super) fn pending_links(
    pending: &OwnedFd,
    wanted: impl Fn(&Place, u64) -> bool,
) -> io::Result<Vec<(String, Place, u64)>> {
    let mut found = Vec::new();
    for link in names_in(pending)? {
        let Some((name, place)) = pending_place(link.name.to_bytes()) else {
            continue;
        };
        match rustix::fs::statat(pending, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if wanted(&place, stat.st_ino) => {
                found.push((name.to_owned(), place, stat.st_ino));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// The place in the name of a link of the upload journal: `NUMBER-DIGITS-MODE-SIG`.
fn pending_place(name: &[u8]) -> Option<(&str, Place)> {
    let name = std::str::from_utf8(name).ok()?;
    let parts: Vec<_> = name.split('-').collect();
    match parts[..] {
        [_, digits, _, sig] => {
            marked_place(format!("{digits}-{sig}").as_bytes()).map(|place| (name, place))
        }
        _ => None,
    }
}

/// What a start found.
pub(super) struct Start {
    /// The number from which new marks count.
    pub(super) next_mark: u64,
    /// Marks of this boot are left.
    pub(super) any_fresh: bool,
}

/// Judges the marks that an earlier process left, and notes which boot this is.
pub(super) fn start(
    root: &OwnedFd,
    private: &OwnedFd,
    fresh: &OwnedFd,
    pending: &OwnedFd,
) -> io::Result<Start> {
    let now = Boot::now(root)?;
    let before = Boot::read(private);
    let names = names_in(fresh)?;
    let marks: Vec<_> = names
        .iter()
        .filter_map(|f| Mark::parse(f.name.to_bytes()))
        .collect();
    if before.as_ref() == Some(&now) {
        return Ok(Start {
            next_mark: marks.iter().map(|m| m.number).max().unwrap_or(0),
            any_fresh: !marks.is_empty(),
        });
    }
    // Inode numbers that changed (a copy, a file system that invents them) say nothing: then every file at a marked
    // place is suspected.
    let same_files = before.is_none_or(|before| before.root == now.root);
    drop_unsynced(root, fresh, pending, &marks, same_files)?;
    now.write(private)?;
    Ok(Start {
        next_mark: 0,
        any_fresh: false,
    })
}

/// Removes what was not synced before the power was cut: entries, and uploads of them. Marks go last, so that another
/// power cut finds what is left to do.
fn drop_unsynced(
    root: &OwnedFd,
    fresh: &OwnedFd,
    pending: &OwnedFd,
    marks: &[Mark],
    same_files: bool,
) -> io::Result<()> {
    if marks.is_empty() {
        return Ok(());
    }
    let mut files: HashMap<Place, Vec<u64>> = HashMap::new();
    let unsynced = |mark: &&Mark| mark.origin != Origin::Synced;
    for mark in marks.iter().filter(unsynced) {
        files.entry(mark.place).or_default().push(mark.ino);
    }
    let suspected = |place: &Place, ino: u64| {
        files
            .get(place)
            .is_some_and(|inos| !same_files || inos.contains(&ino))
    };
    let mut dropped = Vec::new();
    for place in files.keys() {
        match rustix::fs::statat(root, place.path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_dir(&stat) || !suspected(place, stat.st_ino) => {}
            Ok(_) => {
                rustix::fs::unlinkat(root, place.path(), AtFlags::empty())?;
                dropped.push(place.path());
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let uploads = pending_links(pending, suspected)?;
    for (name, ..) in &uploads {
        rustix::fs::unlinkat(pending, name, AtFlags::empty())?;
    }
    for mark in marks {
        rustix::fs::unlinkat(fresh, mark.name(), AtFlags::empty())?;
    }
    if !dropped.is_empty() || !uploads.is_empty() {
        let more = dropped.len().saturating_sub(NAMED);
        let named: Vec<_> = dropped.iter().take(NAMED).map(String::as_str).collect();
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        log::warn!(
            "after a power cut, removed what was not on the disk yet: {} entries, {} uploads ({}{more})",
            dropped.len(),
            uploads.len(),
            named.join(", "),
        );
    }
    Ok(())
}

fn is_dir(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Which life of the kernel wrote here last, and how the root was numbered then.
#[derive(PartialEq, Eq)]
struct Boot {
    id: String,
    root: u64,
}

impl Boot {
    const FILE: &str = "boot";

    fn now(root: &OwnedFd) -> io::Result<Self> {
        // Without an id every start counts as one after a power cut: that costs entries, never a wrong byte.
        let id = std::fs::read_to_string(BOOT_ID).unwrap_or_else(|e| {
            log::warn!("cannot read {BOOT_ID}: {e}; what was pushed last is dropped after a crash");
            "unknown".to_owned()
        });
        Ok(Self {
            id: id.trim().to_owned(),
            root: rustix::fs::fstat(root)?.st_ino,
        })
    }

    fn read(private: &OwnedFd) -> Option<Self> {
        let text = String::from_utf8(layout::read(private, Self::FILE).ok()?).ok()?;
        let (id, root) = text.strip_suffix('\n')?.split_once(' ')?;
        let root = root.parse().ok()?;
        (id != "unknown").then(|| Self {
            id: id.to_owned(),
            root,
        })
    }

    /// On the disk before the first mark of this boot is made.
    fn write(&self, private: &OwnedFd) -> io::Result<()> {
        layout::replace(
            private,
            Self::FILE,
            format!("{} {}\n", self.id, self.root).as_bytes(),
        )?;
        Ok(rustix::fs::fsync(private)?)
    }
}

/// Writes a new file, on the disk before it returns.
pub(super) fn write_synced(at: impl AsFd, name: &str, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(at, name, flags, Mode::from(0o644))?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_is_found_again_by_its_name(
            number: u64,
            ino: u64,
            digits in 1u8..=4,
            sig in "[0-9a-f]{32,128}",
            pushed: bool,
            hash: Option<[u8; 32]>,
        ) {
            let sig = Signature::parse(sig.as_bytes()).unwrap();
            let origin = match (pushed, hash) {
                (true, None) => Origin::Pushed,
                (true, _) => Origin::Synced,
                (false, hash) => Origin::Fetched(hash),
            };
            let mark = Mark { number, origin, place: Place { sig, digits }, ino };
            prop_assert!(mark.name().len() <= 255);
            prop_assert_eq!(Mark::parse(mark.name().as_bytes()), Some(mark));
        }

        #[test]
        fn any_other_name_is_no_mark(name in "[pf0-9a-f-]{0,120}") {
            if let Some(mark) = Mark::parse(name.as_bytes()) {
                prop_assert_eq!(mark.name(), name);
            }
        }
    }
}
