//! Hashes of what is on the disk, for `verify`: what an entry was when it came.
//!
//! `sums/` has a file for each first digit of signatures. Records are appended, one a line; the last one of a place
//! counts:
//!
//! ```text
//! KIND LENGTH DIGITS-SIG HASH CHECK
//! ```
//!
//! `f` or `l` (file, symbolic link: its content is the target), the length in bytes, the place, the BLAKE3 of the
//! content, and the first 16 digits of the BLAKE3 of the line up to there. A line that is not so is damage, and no
//! record. Nothing of this is held in memory: entries that are gone leave their lines until the file is mostly
//! such lines, and is written anew.
//!
//! Only [`super::sync`] and `verify` come here: no lookup and no push waits for it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::layout::{mark_name, marked_place};
use super::{Store, fresh};
use crate::name::Place;
use crate::signature::Signature;

/// Digits of the check at the end of a line.
const CHECK: usize = 16;
/// Longest line: the longest signature, the longest length.
const LINE_MAX: usize = 2 + 20 + 1 + 2 + 128 + 1 + 64 + 1 + CHECK + 1;
/// A line of the usual kind of signature.
const LINE: u64 = 124;
/// A file smaller than this is never written anew.
const SMALL: u64 = 64 * 1024;
/// Files in `sums/`: one for each hex digit.
pub(super) const FILES: usize = 16;

/// What a file is, apart from its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// A symbolic link.
    pub link: bool,
    /// Length of the content.
    pub len: u64,
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
}

/// The records of one file of `sums/`.
#[derive(Debug, Default)]
pub struct Sums {
    /// By place.
    pub sums: HashMap<Place, Sum>,
    /// Lines that are no records.
    pub damaged: u64,
    lines: u64,
}

/// The file of `sums/` that has the record of a signature.
pub(super) fn file_of(sig: &Signature) -> char {
    char::from(sig.as_bytes()[0])
}

fn line(place: &Place, sum: &Sum) -> String {
    let kind = if sum.link { 'l' } else { 'f' };
    let hash = blake3::Hash::from_bytes(sum.hash).to_hex();
    let mut line = format!("{kind} {} {} {hash} ", sum.len, mark_name(place));
    let check = check_of(&line);
    // Writing to a string does not fail.
    let _ = writeln!(line, "{check}");
    line
}

fn check_of(start: &str) -> String {
    blake3::hash(start.as_bytes()).to_hex()[..CHECK].to_owned()
}

fn parse(text: &[u8]) -> Option<(Place, Sum)> {
    let text = std::str::from_utf8(text).ok()?;
    let (start, check) = text.split_at_checked(text.len().checked_sub(CHECK)?)?;
    if check_of(start) != check {
        return None;
    }
    let mut fields = start.split(' ');
    let link = match fields.next()? {
        "f" => false,
        "l" => true,
        _ => return None,
    };
    let len = fields.next()?.parse().ok()?;
    let place = marked_place(fields.next()?.as_bytes())?;
    let hash = *blake3::Hash::from_hex(fields.next()?).ok()?.as_bytes();
    Some((place, Sum { link, len, hash }))
}

/// Reads one file of `sums/`.
pub(super) fn read(dir: &OwnedFd, file: char) -> io::Result<Sums> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(dir, file.to_string(), flags, Mode::empty()) {
        Ok(fd) => parse_all(BufReader::new(File::from(fd))),
        Err(rustix::io::Errno::NOENT) => Ok(Sums::default()),
        Err(e) => Err(e.into()),
    }
}

/// Reads records. A line without an end is as long as a record at most, so that garbage takes no memory.
fn parse_all(mut from: impl BufRead) -> io::Result<Sums> {
    let mut found = Sums::default();
    let mut text = Vec::with_capacity(LINE_MAX);
    loop {
        text.clear();
        let mut limited = io::Read::take(&mut from, LINE_MAX as u64 + 1);
        if limited.read_until(b'\n', &mut text)? == 0 {
            return Ok(found);
        }
        found.lines += 1;
        let record = text.strip_suffix(b"\n").and_then(parse);
        match record {
            Some((place, sum)) => drop(found.sums.insert(place, sum)),
            None => found.damaged += 1,
        }
    }
}

/// Appends records, and has them on the disk when it returns. The size of each file that it touched.
pub(super) fn append(dir: &OwnedFd, records: &[(Place, Sum)]) -> io::Result<Vec<(char, u64)>> {
    let mut by_file: HashMap<char, String> = HashMap::new();
    for (place, sum) in records {
        let lines = by_file.entry(file_of(&place.sig)).or_default();
        lines.push_str(&line(place, sum));
    }
    let mut files = Vec::new();
    for (name, mut lines) in by_file {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name.to_string(), flags, Mode::from(0o600))?;
        let mut file = File::from(fd);
        if !ends_well(&file)? {
            // A power cut left half a line: it must not take ours with it.
            lines.insert(0, '\n');
        }
        file.write_all(lines.as_bytes())?;
        files.push((name, file));
    }
    // All data first, so that they share a commit of the journal.
    for (_, file) in &files {
        crate::sys::write_out(file, true)?;
    }
    let synced = |(name, file): (char, File)| {
        file.sync_data()?;
        Ok((name, file.metadata()?.len()))
    };
    files.into_iter().map(synced).collect()
}

fn ends_well(file: &File) -> io::Result<bool> {
    let len = file.metadata()?.len();
    let mut last = [b'\n'];
    if len > 0 {
        std::os::unix::fs::FileExt::read_at(file, &mut last, len - 1)?;
    }
    Ok(last == [b'\n'])
}

impl Store {
    /// Writes a file of `sums/` anew if it is `size` bytes long and mostly of entries that are gone. `after` has the
    /// sizes that files had after that, so that it is not tried in vain again and again.
    pub(super) fn compact_sums(
        &self,
        name: char,
        size: u64,
        after: &mut HashMap<char, u64>,
    ) -> io::Result<()> {
        let (entries, complete) = {
            let usage = self.usage();
            (usage.entries, usage.complete)
        };
        let expected = entries / FILES as u64 * LINE;
        let last = after.get(&name).copied().unwrap_or(0);
        if !complete || size < SMALL + expected * 2 || size < last + last / 2 {
            return Ok(());
        }
        let mut kept = String::new();
        for (place, sum) in read(&self.sums, name)?.sums {
            if self.has(&place) {
                kept.push_str(&line(&place, &sum));
            }
        }
        let temporary = format!("{name}.new");
        fresh::write_synced(&self.sums, &temporary, kept.as_bytes())?;
        rustix::fs::renameat(&self.sums, &temporary, &self.sums, name.to_string())?;
        after.insert(name, kept.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn place() -> Place {
        let sig = Signature::parse(b"5d41402abc4b2a76b9719d911017c592").unwrap();
        Place { sig, digits: 2 }
    }

    fn sum(content: &[u8]) -> Sum {
        Sum {
            link: false,
            len: content.len() as u64,
            hash: *blake3::hash(content).as_bytes(),
        }
    }

    /// What cachedirfs(5) shows.
    const GOLDEN: &str = "f 6 2-5d41402abc4b2a76b9719d911017c592 \
        8e4c7c1b99dbfd50e7a95185fead5ee1448fa904a2fdd778eaf5f2dbfd629a99 08c1d31dcf303b3c\n";

    #[test]
    fn a_record_has_the_bytes_that_the_man_page_shows() {
        assert_eq!(line(&place(), &sum(b"hello\n")), GOLDEN);
        let page = include_str!("../../man/cachedirfs.5");
        let shown = GOLDEN.split_whitespace().collect::<Vec<_>>().join(" ");
        let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(page.contains(&shown));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_record_is_found_and_its_neighbours_stay() {
        let whole = line(&place(), &sum(b"hello\n"));
        let other = Place {
            digits: 1,
            ..place()
        };
        let after = line(&other, &sum(b"other"));
        for at in 0..whole.len() - 1 {
            for bit in 0..8 {
                let mut bytes = whole.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                bytes.extend_from_slice(after.as_bytes());
                let found = parse_all(&bytes[..]).unwrap();
                assert!(
                    !found.sums.contains_key(&place()) && found.damaged > 0,
                    "{at}/{bit}"
                );
                assert!(found.sums.contains_key(&other), "{at}/{bit}");
            }
            let cut = format!("{}\n{after}", &whole[..at]);
            let found = parse_all(cut.as_bytes()).unwrap();
            assert_eq!((found.sums.len(), found.damaged), (1, 1), "{at}");
        }
    }

    #[test]
    fn what_is_appended_after_half_a_line_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        let fd = fd.as_fd().try_clone_to_owned().unwrap();
        std::fs::write(dir.path().join("5"), "f 6 2-5d41").unwrap();
        append(&fd, &[(place(), sum(b"1"))]).unwrap();
        append(&fd, &[(place(), sum(b"22"))]).unwrap();
        let found = read(&fd, '5').unwrap();
        assert_eq!(found.sums[&place()], sum(b"22"));
        assert_eq!((found.damaged, found.lines), (1, 3));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            parse_all(&bytes[..]).unwrap();
        }
    }
}
