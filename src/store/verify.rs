//! A backing directory looked at from outside: is everything in it what it was when it came?
//!
//! Works on any CacheDir, also under a live mount, since it only reads. What repairs takes the lock that a mount
//! holds. Nothing is ever deleted: what is wrong moves to `.cachedirfs/quarantine/`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::StoreError;
use super::fresh::{Mark, pending_links};
use super::layout::{self, QUARANTINE, mark_name, open_dir, sub_dir};
use super::scan::{names_in, prefix_dirs};
use super::sums::{self, Sum, Sums};
use super::sync::hash_of;
use crate::name::{Dir, Name, PRIVATE_DIR, Place};
use crate::signature::Signature;

/// Hashes recorded at a time.
const RECORDS: usize = 4096;

/// A backing directory that nobody here uses.
#[derive(Debug)]
pub struct Backing {
    root: OwnedFd,
    /// What a plain CacheDir does not have.
    private: Option<OwnedFd>,
    /// Held while it is repaired.
    _lock: Option<File>,
    /// Hashes that are to be recorded.
    found: Mutex<Vec<(Place, Sum)>>,
}

/// One thing to look at.
#[derive(Clone, Debug)]
pub struct Task {
    place: Place,
    /// Its link in the upload journal, if it is that one.
    link: Option<String>,
    recorded: Option<Sum>,
    /// What it is now can be recorded: it is an entry, and no mount will do so.
    recordable: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was recorded; its length.
    Right(u64),
    /// It is not; what is wrong.
    Wrong(String),
    /// Nobody recorded what it was; what it is now.
    Unrecorded(Sum),
    /// It could not be read.
    Unreadable(String),
    /// It went meanwhile.
    Gone,
}

/// An entry that was opened.
#[derive(Debug)]
pub enum Opened {
    /// A file, its permission bits and its length.
    File(File, u32, u64),
    /// A symbolic link's target.
    Symlink(Vec<u8>),
}

impl Task {
    /// Which entry it is, or is to become.
    pub fn sig(&self) -> Signature {
        self.place.sig
    }

    /// Digits of the prefix directory.
    pub fn digits(&self) -> u8 {
        self.place.digits
    }

    /// Whether it stands in its place, rather than in the upload journal.
    pub fn is_entry(&self) -> bool {
        self.link.is_none()
    }

    /// The path below the directory.
    pub fn path(&self) -> String {
        match &self.link {
            Some(link) => format!("{PRIVATE_DIR}/pending/{link}"),
            None => self.place.path(),
        }
    }
}

impl Backing {
    /// Opens the directory at `path`; to repair it, nobody may be using it.
    pub fn open(path: &Path, repair: bool) -> Result<Self, StoreError> {
        let fail = |source| StoreError::Disk {
            what: "open",
            path: path.display().to_string(),
            source,
            hint: "want a backing directory or a CacheDir",
        };
        let root = open_dir(rustix::fs::CWD, path).map_err(fail)?;
        let is_cache = |name| rustix::fs::statat(&root, name, AtFlags::empty()).is_ok();
        if !is_cache(PRIVATE_DIR)
            && !is_cache("config")
            && prefix_dirs(&root).map_err(fail)?.is_empty()
        {
            return Err(fail(io::Error::other("nothing of a CacheDir is in it")));
        }
        let private = if repair {
            Some(sub_dir(&root, PRIVATE_DIR).map_err(fail)?)
        } else {
            absent(open_dir(&root, PRIVATE_DIR)).map_err(fail)?
        };
        let lock = match &private {
            Some(private) if repair => Some(layout::take_lock(private, path)?),
            _ => None,
        };
        Ok(Self {
            root,
            private,
            _lock: lock,
            found: Mutex::default(),
        })
    }

    /// How much there is to look at.
    pub fn count(&self) -> io::Result<u64> {
        let mut count = 0;
        for dir in prefix_dirs(&self.root)? {
            count += self.places(&dir)?.len() as u64;
        }
        let pending = self.private_dir("pending")?;
        let links = pending.map_or(Ok(Vec::new()), |dir| names_in(&dir))?;
        Ok(count + links.len() as u64)
    }

    /// Hands out everything there is to look at, until `each` wants no more.
    pub fn each(&self, each: &mut dyn FnMut(Task) -> bool) -> io::Result<()> {
        // What is not synced yet has no record, or one of its forerunner.
        let unsynced = self.unsynced()?;
        // First: which file an entry is cannot be told any more when it has been set aside.
        if !self.each_pending(&unsynced, each)? {
            return Ok(());
        }
        let mut dirs = prefix_dirs(&self.root)?;
        dirs.sort_by(|a, b| a.prefix_digits().cmp(b.prefix_digits()));
        let (mut loaded, mut records) = ('-', Sums::default());
        for dir in dirs {
            let file = char::from(dir.prefix_digits()[0].to_ascii_lowercase());
            if file != loaded {
                (loaded, records) = (file, self.records(file)?);
            }
            for place in self.places(&dir)? {
                let synced = !unsynced.contains(&place);
                let recorded = records.sums.get(&place).copied();
                let task = Task {
                    place,
                    link: None,
                    recorded: recorded.filter(|_| synced),
                    recordable: synced,
                };
                if !each(task) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A link in the journal is the file of its entry, as a rule. Where it is not, the record is not of it. False when
    /// `each` wants no more.
    fn each_pending(
        &self,
        unsynced: &HashSet<Place>,
        each: &mut dyn FnMut(Task) -> bool,
    ) -> io::Result<bool> {
        let Some(pending) = self.private_dir("pending")? else {
            return Ok(true);
        };
        let mut links = pending_links(&pending, |_, _| true)?;
        links.sort_by_key(|(_, place, _)| place.sig);
        let (mut loaded, mut records) = ('-', Sums::default());
        for (name, place, ino) in links {
            let file = sums::file_of(&place.sig);
            if file != loaded {
                (loaded, records) = (file, self.records(file)?);
            }
            let entry = rustix::fs::statat(&self.root, place.path(), AtFlags::SYMLINK_NOFOLLOW);
            let same = entry.is_ok_and(|entry| entry.st_ino == ino);
            let certain = same && !unsynced.contains(&place);
            let recorded = records.sums.get(&place).copied();
            let task = Task {
                place,
                link: Some(name),
                recorded: recorded.filter(|_| certain),
                recordable: false,
            };
            if !each(task) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at one thing.
    pub fn check(&self, task: &Task) -> Verdict {
        let found = match self.sum(&task.path()) {
            Ok(Some(found)) => found,
            Ok(None) => return Verdict::Gone,
            Err(e) => return Verdict::Unreadable(e.to_string()),
        };
        match task.recorded {
            None => Verdict::Unrecorded(found),
            Some(recorded) if recorded == found => Verdict::Right(found.len),
            Some(recorded) => self.judge_again(task, &recorded),
        }
    }

    /// Under a live mount the entry may have been replaced since its record was read.
    fn judge_again(&self, task: &Task, before: &Sum) -> Verdict {
        let now = || -> io::Result<Verdict> {
            let unsynced = self.unsynced()?.contains(&task.place);
            let records = self.records(sums::file_of(&task.place.sig))?;
            let recorded = records.sums.get(&task.place).unwrap_or(before);
            Ok(match self.sum(&task.path())? {
                None => Verdict::Gone,
                Some(found) if found == *recorded => Verdict::Right(found.len),
                Some(found) if unsynced => Verdict::Unrecorded(found),
                Some(found) => Verdict::Wrong(difference(recorded, &found)),
            })
        };
        now().unwrap_or_else(|e| Verdict::Unreadable(e.to_string()))
    }

    /// Puts something that is wrong aside; where to.
    pub fn quarantine(&self, task: &Task) -> io::Result<String> {
        let quarantine = sub_dir(self.private()?, QUARANTINE)?;
        let name = match &task.link {
            Some(link) => format!("pending-{link}"),
            None => mark_name(&task.place),
        };
        for n in 0..u32::MAX {
            let name = if n == 0 {
                name.clone()
            } else {
                format!("{name}.{n}")
            };
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(&self.root, task.path(), &quarantine, &name, flags) {
                Ok(()) => return Ok(format!("{PRIVATE_DIR}/{QUARANTINE}/{name}")),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Errno::EXIST.into())
    }

    /// Records what something is now, for the next time. It is on the disk after [`Backing::finish`].
    pub fn record(&self, task: &Task, sum: Sum) -> io::Result<()> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if task.recordable {
            found.push((task.place, sum));
        }
        if found.len() < RECORDS {
            return Ok(());
        }
        self.write_records(&mut found)
    }

    /// Writes the records that are still to be written.
    pub fn finish(&self) -> io::Result<()> {
        self.write_records(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_records(&self, found: &mut Vec<(Place, Sum)>) -> io::Result<()> {
        let records = std::mem::take(found);
        if records.is_empty() {
            return Ok(());
        }
        sums::append(&sub_dir(self.private()?, "sums")?, &records).map(drop)
    }

    /// Our private directory, of what was opened to repair it.
    fn private(&self) -> io::Result<&OwnedFd> {
        let private = self.private.as_ref();
        private.ok_or_else(|| io::Error::other("not opened to be repaired"))
    }

    fn places(&self, dir: &Dir) -> io::Result<Vec<Place>> {
        let Some(open) = absent(open_dir(&self.root, dir.prefix_digits()))? else {
            return Ok(Vec::new());
        };
        let is_entry = |kind| {
            matches!(
                kind,
                FileType::RegularFile | FileType::Symlink | FileType::Unknown
            )
        };
        let names = names_in(&open)?.into_iter().filter(|f| is_entry(f.kind));
        let parsed = names.map(|found| Name::parse(dir, found.name.to_bytes()));
        Ok(parsed
            .filter_map(|name| match name {
                Name::Entry(place) => Some(place),
                _ => None,
            })
            .collect())
    }

    fn records(&self, file: char) -> io::Result<Sums> {
        let sums = self.private_dir("sums")?;
        sums.map_or(Ok(Sums::default()), |dir| sums::read(&dir, file))
    }

    fn unsynced(&self) -> io::Result<HashSet<Place>> {
        let mut places = HashSet::new();
        for dir in ["fresh", "writing"] {
            let names = self.private_dir(dir)?.map(|dir| names_in(&dir));
            for found in names.transpose()?.unwrap_or_default() {
                let name = found.name.to_bytes();
                let mark = Mark::parse(name).map(|mark| mark.place);
                places.extend(mark.or_else(|| layout::marked_place(name)));
            }
        }
        Ok(places)
    }

    fn private_dir(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let Some(private) = &self.private else {
            return Ok(None);
        };
        absent(open_dir(private, name))
    }

    /// Opens something; `None` if it is gone.
    pub fn read(&self, task: &Task) -> io::Result<Option<Opened>> {
        self.open_at(&task.path())
    }

    fn open_at(&self, path: &str) -> io::Result<Option<Opened>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.root, path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                let target = rustix::fs::readlinkat(&self.root, path, Vec::new())?;
                return Ok(Some(Opened::Symlink(target.into_bytes())));
            }
            Err(e) => return Err(e.into()),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        Ok(Some(Opened::File(file, meta.mode(), meta.len())))
    }

    /// What a file is now; `None` if it is gone.
    fn sum(&self, path: &str) -> io::Result<Option<Sum>> {
        Ok(match self.open_at(path)? {
            None => None,
            Some(Opened::Symlink(target)) => Some(Sum {
                link: true,
                len: target.len() as u64,
                hash: *blake3::hash(&target).as_bytes(),
            }),
            Some(Opened::File(file, ..)) => {
                let (hash, len) = hash_of(file)?;
                Some(Sum {
                    link: false,
                    len,
                    hash,
                })
            }
        })
    }
}

fn difference(recorded: &Sum, found: &Sum) -> String {
    let kind = |sum: &Sum| {
        if sum.link {
            "a symbolic link"
        } else {
            "a file"
        }
    };
    let hex = |sum: &Sum| blake3::Hash::from_bytes(sum.hash).to_hex();
    if recorded.link != found.link {
        format!("it is {}, it was {}", kind(found), kind(recorded))
    } else if recorded.len != found.len {
        format!("it has {} bytes, it had {}", found.len, recorded.len)
    } else {
        format!("its BLAKE3 is {}, it was {}", hex(found), hex(recorded))
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
