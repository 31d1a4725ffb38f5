//! When the remotes heard of an entry last, so that they are not told of it again too soon, also after a remount.
//!
//! `announced` is a file of records of 16 bytes, appended; the last one of a signature counts:
//!
//! ```text
//! offset  size  field (integers are little endian)
//!      0     8  the first bytes of the BLAKE3 of the signature
//!      8     4  seconds since 1970, to the year 2106
//!     12     4  the first bytes of the BLAKE3 of the 12 before
//! ```
//!
//! What is not so is damage and no record: whatever is lost costs one announcement. Two signatures with one hash save
//! one. The file is written anew when it is mostly records that later ones replaced. Nothing is synced.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{Mode, OFlags};

use super::Store;
use crate::signature::Signature;

const FILE: &str = "announced";
const RECORD: usize = 16;
/// Most records that are kept; above, the oldest half goes. Each takes some 16 bytes of memory.
const MOST: usize = 256 * 1024;
/// Records that wait to be written.
const UNWRITTEN: usize = 256;
/// A file of fewer records is never written anew.
const SMALL: usize = 4096;

/// When the remotes heard of entries last.
#[derive(Debug, Default)]
pub struct Announced {
    seconds: HashMap<u64, u32>,
    unwritten: Vec<u64>,
    /// In the file.
    records: usize,
}

impl Announced {
    /// When they heard of this one, in seconds since 1970.
    pub fn last(&self, sig: &Signature) -> Option<u32> {
        self.seconds.get(&key(sig)).copied()
    }

    /// They hear of it now. True if so much is unwritten that it is time for [`Store::write_announced`].
    pub fn note(&mut self, sig: &Signature, seconds: u32) -> bool {
        let key = key(sig);
        if self.seconds.insert(key, seconds) != Some(seconds) {
            self.unwritten.push(key);
        }
        if self.seconds.len() > MOST {
            let mut times: Vec<_> = self.seconds.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable(MOST / 2);
            let median = *median;
            // All may be of one second: then it is the first half that is met.
            let mut left = MOST / 2;
            self.seconds.retain(|_, time| {
                let stays = *time > median || (*time == median && left > 0);
                left -= usize::from(stays && *time == median);
                stays
            });
        }
        self.unwritten.len() >= UNWRITTEN
    }

    /// They are others now, who have heard of nothing. The file follows with the next records that are written.
    pub fn forget(&mut self) {
        self.seconds.clear();
        self.unwritten.clear();
        self.records = self.records.max(SMALL + 1);
    }

    fn read(mut from: impl Read) -> io::Result<Self> {
        let mut found = Self::default();
        let mut record = [0; RECORD];
        loop {
            match from.read_exact(&mut record) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(found),
                Err(e) => return Err(e),
            }
            found.records += 1;
            if let Some((key, seconds)) = parse(&record)
                && found.seconds.len() < MOST
            {
                found.seconds.insert(key, seconds);
            }
        }
    }
}

fn key(sig: &Signature) -> u64 {
    u64::from_le_bytes(first(blake3::hash(sig.as_bytes())))
}

fn first<const N: usize>(hash: blake3::Hash) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&hash.as_bytes()[..N]);
    bytes
}

fn record(key: u64, seconds: u32) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..12].copy_from_slice(&seconds.to_le_bytes());
    let check: [u8; 4] = first(blake3::hash(&bytes[..12]));
    bytes[12..].copy_from_slice(&check);
    bytes
}

fn parse(bytes: &[u8; RECORD]) -> Option<(u64, u32)> {
    let key = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let seconds = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
    (record(key, seconds) == *bytes).then_some((key, seconds))
}

impl Store {
    /// Reads what earlier mounts wrote.
    pub fn read_announced(&self) -> io::Result<Announced> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.private, FILE, flags, Mode::empty()) {
            Ok(fd) => Announced::read(io::BufReader::new(File::from(fd))),
            Err(rustix::io::Errno::NOENT) => Ok(Announced::default()),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes what is not written.
    pub fn write_announced(&self, announced: &mut Announced) -> io::Result<()> {
        let unwritten = std::mem::take(&mut announced.unwritten);
        if unwritten.is_empty() {
            return Ok(());
        }
        let records = announced.records + unwritten.len();
        if records > SMALL && records > 2 * announced.seconds.len() {
            let all = announced.seconds.iter();
            let bytes: Vec<u8> = all
                .flat_map(|(key, seconds)| record(*key, *seconds))
                .collect();
            announced.records = announced.seconds.len();
            let new = format!("{FILE}.new");
            super::fresh::write_synced(&self.private, &new, &bytes)?;
            return Ok(rustix::fs::renameat(
                &self.private,
                &new,
                &self.private,
                FILE,
            )?);
        }
        let known = unwritten
            .iter()
            .filter_map(|key| Some((*key, *announced.seconds.get(key)?)));
        let mut bytes: Vec<u8> = known
            .flat_map(|(key, seconds)| record(key, seconds))
            .collect();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.private, FILE, flags, Mode::from(0o600))?;
        let mut file = File::from(fd);
        let torn = usize::try_from(file.metadata()?.len()).unwrap_or(0) % RECORD;
        if torn > 0 {
            // Half a record that a full disk left: ours begin where a record may.
            bytes.splice(0..0, vec![0; RECORD - torn]);
        }
        announced.records = records;
        file.write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sig(n: u64) -> Signature {
        Signature::parse(format!("{n:032x}").as_bytes()).unwrap()
    }

    #[test]
    fn a_record_has_the_bytes_that_the_man_page_shows() {
        let sig = Signature::parse(b"5d41402abc4b2a76b9719d911017c592").unwrap();
        let bytes = record(key(&sig), 1_796_428_800);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let page = include_str!("../../man/cachedirfs.5");
        assert!(page.contains(&hex), "{hex}");
        assert_eq!(parse(&bytes), Some((key(&sig), 1_796_428_800)));
    }

    #[test]
    fn the_last_record_counts_and_half_of_one_is_none() {
        let [a, b] = [1, 2].map(|n| key(&sig(n)));
        let bytes = [
            &record(a, 5)[..],
            &record(b, 6),
            &record(a, 7),
            &record(b, 8)[..9],
        ]
        .concat();
        let read = Announced::read(&bytes[..]).unwrap();
        assert_eq!((read.last(&sig(1)), read.last(&sig(2))), (Some(7), Some(6)));
        assert_eq!(read.records, 3);
    }

    #[test]
    fn there_are_never_more_than_so_many_and_the_newest_stay() {
        let mut announced = Announced::default();
        for n in 0..=MOST as u64 {
            announced.note(&sig(n), u32::try_from(n / 1000).unwrap());
        }
        assert!(
            announced.seconds.len() <= MOST / 2 + 1000,
            "{}",
            announced.seconds.len()
        );
        assert!(announced.last(&sig(MOST as u64)).is_some());
        assert_eq!(announced.last(&sig(0)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            Announced::read(&bytes[..]).unwrap();
        }
    }
}
