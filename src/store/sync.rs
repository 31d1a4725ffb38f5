//! Bringing entries to the disk: what was pushed at once, what was fetched when it is cheap.
//!
//! About once a second the marks in `fresh/` are read: they are the queue, so that a hundred thousand
//! of them take no memory. What was pushed is synced in every round, since it may be nowhere else. What was fetched
//! can be fetched again, and needs no more than that a power cut is noticed: it is synced when the kernel has written it
//! of its own accord, which costs the build that waits for the disk next to nothing.
//!
//! A file is synced with fsync(2), which on the file systems that matter (ext4, XFS, btrfs) brings its names along; a
//! symbolic link cannot be opened, so its directories are. The file system as a whole is never synced: the outputs
//! of every build on it would have to wait.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::fresh::{Mark, open_to_sync, pending_links};
use super::layout::open_dir;
use super::scan::each_name;
use super::sums::{self, Sum};
use super::{Origin, Store};
use crate::name::Place;
use crate::stats::event::{Event, What};
use crate::sys;

/// Between two rounds: so much can be lost of what was pushed, and the time that a round takes.
const TICK: Duration = Duration::from_secs(1);
/// What was fetched is left alone for so long: Linux writes what is older than 30 seconds, and looks every 5.
const FETCHED_AFTER: Duration = Duration::from_secs(36);
/// Files synced before their marks go and their hashes are recorded.
const BATCH: usize = 256;
/// The part of a tick that what was fetched may keep the disk busy.
const FETCHED_SHARE: Duration = Duration::from_millis(300);
/// At the end, what is not synced after this keeps its mark: the next start goes on with it.
const AT_STOP: Duration = Duration::from_secs(5);
/// Bytes read at a time.
const CHUNK: usize = 128 * 1024;

/// Told of a file, by place and inode, that could not be written.
pub type Lost<'a> = &'a dyn Fn(&Place, u64);

/// What became of one file.
enum Synced {
    Done(Option<Sum>),
    /// A symbolic link: its directories are to be synced.
    Link(Sum),
    /// No such file is there any more.
    Gone,
    /// It cannot be opened now.
    Later,
    /// The disk failed to write it.
    Lost(Errno),
}

/// What the loop remembers.
#[derive(Default)]
struct Memory {
    /// The newest mark at some moments, to tell how old marks are.
    ages: VecDeque<(Duration, u64)>,
    /// The last round failed, which was said.
    fails: bool,
    /// Sizes of the files in `sums/` after they were written anew.
    compacted: HashMap<char, u64>,
}

impl Store {
    /// Syncs what is new, until the store is stopped; then all that is left. Runs on a thread of its own.
    pub fn run_syncer(&self, lost: Lost<'_>) {
        let mut memory = Memory::default();
        loop {
            let state = self.state();
            let calm = |state: &mut super::State| !state.stopped && !state.any_fresh;
            let woken = self.freshened.wait_while(state, calm);
            let state = woken.unwrap_or_else(PoisonError::into_inner);
            let running = |state: &mut super::State| !state.stopped;
            let woken = self.freshened.wait_timeout_while(state, TICK, running);
            let state = woken.unwrap_or_else(PoisonError::into_inner).0;
            let (stopped, newest) = (state.stopped, state.next_mark);
            drop(state);
            // A disk that fails would fail each file in every round; what waits keeps its marks.
            if self.is_sick() {
                if stopped {
                    return;
                }
                continue;
            }
            let now = self.clock.now();
            if stopped {
                self.sync_until(u64::MAX, now + AT_STOP, &mut memory, lost);
                return;
            }
            memory.ages.push_back((now, newest));
            let old = memory.old(now);
            self.sync_until(old, now + FETCHED_SHARE, &mut memory, lost);
        }
    }

    /// Syncs all that is new.
    pub fn sync_now(&self, lost: Lost<'_>) {
        self.sync_until(u64::MAX, Duration::MAX, &mut Memory::default(), lost);
    }

    /// Syncs what was pushed, and until `deadline` what was fetched and has a mark up to `old`.
    fn sync_until(&self, old: u64, deadline: Duration, memory: &mut Memory, lost: Lost<'_>) {
        loop {
            let batch = self.next_batch(old);
            match batch.and_then(|batch| self.sync_batch(&batch, memory, lost)) {
                Ok(synced) => {
                    memory.fails = false;
                    if synced == 0 || self.clock.now() >= deadline {
                        return;
                    }
                }
                Err(e) => {
                    self.note_io("cannot sync the backing directory", &e);
                    if !std::mem::replace(&mut memory.fails, true) {
                        log::error!("cannot sync the backing directory: {e}");
                    }
                    return;
                }
            }
        }
    }

    /// Some marks that are due, those of pushes first.
    fn next_batch(&self, old: u64) -> io::Result<Vec<Mark>> {
        self.state().any_fresh = false;
        let (mut pushed, mut fetched, mut left) = (Vec::new(), Vec::new(), false);
        let dir = open_dir(&self.fresh, ".")?;
        each_name(&dir, |found| {
            let Some(mark) = Mark::parse(found.name.to_bytes()) else {
                return;
            };
            left = true;
            match mark.origin {
                Origin::Pushed | Origin::Synced if pushed.len() < BATCH => pushed.push(mark),
                Origin::Fetched(_) if mark.number <= old && fetched.len() < BATCH => {
                    fetched.push(mark);
                }
                _ => {}
            }
        })?;
        fetched.truncate(BATCH - pushed.len());
        pushed.append(&mut fetched);
        // After they were listed: what has no name yet by now was listed too early.
        let mut state = self.state();
        pushed.retain(|mark| !state.arriving.contains(&mark.number));
        state.any_fresh |= left;
        Ok(pushed)
    }

    /// Syncs files, records their hashes and removes their marks, in this order; how many.
    fn sync_batch(&self, batch: &[Mark], memory: &mut Memory, lost: Lost<'_>) -> io::Result<usize> {
        let failed = self.write_out(batch);
        let (mut done, mut records, mut links, mut gone) = (vec![], vec![], vec![], vec![]);
        for mark in batch {
            let synced = match failed.get(&mark.number) {
                Some(cause) => Synced::Lost(*cause),
                None => self.sync_file(mark),
            };
            match synced {
                Synced::Done(sum) => {
                    records.extend(sum.map(|sum| (mark.place, sum)));
                    done.push(mark);
                }
                Synced::Link(sum) => {
                    records.push((mark.place, sum));
                    links.push(mark);
                }
                Synced::Gone if matches!(mark.origin, Origin::Fetched(_)) => done.push(mark),
                Synced::Gone => gone.push(mark),
                Synced::Later => {}
                Synced::Lost(cause) => {
                    self.lose(mark, cause, lost);
                    done.push(mark);
                }
            }
        }
        self.sync_uploads(&gone, lost)?;
        done.append(&mut gone);
        self.sync_links(&links)?;
        done.append(&mut links);
        let recorded = sums::append(&self.sums, &records);
        for mark in &done {
            self.unmark_fresh(mark);
        }
        // A mark that came back would cost what was promised to be safe.
        rustix::fs::fsync(&self.fresh)?;
        // Without its record an entry counts as one of unknown hash, and no more.
        let compacted = recorded.and_then(|sizes| {
            let mut each = sizes.into_iter();
            each.try_for_each(|(name, size)| self.compact_sums(name, size, &mut memory.compacted))
        });
        if let Err(e) = compacted {
            log::warn!("cannot record hashes for verify: {e}");
        }
        Ok(done.len())
    }

    /// Has the data of a whole batch written first. Otherwise each file would take a commit of the file system's journal, and
    /// everybody who makes or renames a file waits for those. The marks of files that the disk failed to write: the
    /// kernel says so once, and fsync(2) would not hear of it again.
    fn write_out(&self, batch: &[Mark]) -> HashMap<u64, Errno> {
        let open = |mark: &Mark| {
            let file = open_to_sync(&self.root, mark.place.path().as_str()).ok()?;
            let stat = rustix::fs::fstat(&file).ok()?;
            (stat.st_ino == mark.ino).then_some((mark.number, file))
        };
        let files: Vec<_> = batch.iter().filter_map(open).collect();
        for (_, file) in &files {
            // Without waiting it says nothing about the disk.
            let _ = sys::write_out(file, false);
        }
        let mut failed = HashMap::new();
        for (number, file) in files {
            let cause = sys::write_out(&file, true).err();
            let cause = cause.as_ref().and_then(Errno::from_io_error);
            if let Some(cause @ (Errno::IO | Errno::NOSPC | Errno::DQUOT)) = cause {
                failed.insert(number, cause);
            }
        }
        failed
    }

    fn sync_file(&self, mark: &Mark) -> Synced {
        let path = mark.place.path();
        let stat = match rustix::fs::statat(&self.root, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_ino == mark.ino => stat,
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => return Synced::Gone,
            Err(_) => return Synced::Later,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return match rustix::fs::readlinkat(&self.root, &path, Vec::new()) {
                Ok(target) => Synced::Link(Sum {
                    link: true,
                    len: target.as_bytes().len() as u64,
                    hash: *blake3::hash(target.as_bytes()).as_bytes(),
                }),
                Err(_) => Synced::Gone,
            };
        }
        let file = match open_to_sync(&self.root, path.as_str()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Synced::Gone,
            Err(_) => return Synced::Later,
        };
        match rustix::fs::fstat(&file) {
            Ok(stat) if stat.st_ino == mark.ino => {}
            _ => return Synced::Gone,
        }
        if let Err(cause) = rustix::fs::fsync(&file) {
            return Synced::Lost(cause);
        }
        let known = match mark.origin {
            Origin::Fetched(hash) => hash,
            Origin::Pushed | Origin::Synced => None,
        };
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let hash = known.map_or_else(|| hash_of(File::from(file)).ok(), |hash| Some((hash, len)));
        Synced::Done(hash.map(|(hash, len)| Sum {
            link: false,
            len,
            hash,
        }))
    }

    /// Syncs what was pushed, is not in its place any more, and is still to be uploaded.
    fn sync_uploads(&self, gone: &[&Mark], lost: Lost<'_>) -> io::Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let wanted: HashSet<_> = gone.iter().map(|mark| (mark.place, mark.ino)).collect();
        let dir = open_dir(&self.pending, ".")?;
        let links = pending_links(&dir, |place, ino| wanted.contains(&(*place, ino)))?;
        for (name, place, ino) in links {
            // A link that is gone was uploaded; a symbolic link has nothing of its own to sync.
            let Ok(file) = open_to_sync(&dir, name.as_str()) else {
                continue;
            };
            if let Err(cause) = rustix::fs::fsync(&file)
                && let Some(mark) = gone.iter().find(|m| (m.place, m.ino) == (place, ino))
            {
                self.lose(mark, cause, lost);
            }
        }
        Ok(rustix::fs::fsync(&dir)?)
    }

    /// Syncs the names of symbolic links. The marks first: on btrfs a synced directory brings names of other files along.
    fn sync_links(&self, links: &[&Mark]) -> io::Result<()> {
        if links.is_empty() {
            return Ok(());
        }
        rustix::fs::fsync(&self.fresh)?;
        rustix::fs::fsync(&self.pending)?;
        let dirs: HashSet<_> = links.iter().map(|mark| mark.place.dir()).collect();
        for dir in dirs {
            match open_dir(&self.root, &dir) {
                Ok(dir) => rustix::fs::fsync(&dir)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn lose(&self, mark: &Mark, cause: Errno, lost: Lost<'_>) {
        self.stats
            .note(&Event::new(What::NotWritten, &mark.place.sig).why(&cause));
        self.note("cannot write an entry", cause);
        log::error!(
            "the backing disk failed to write {}, it is dropped: {cause}",
            mark.place.path()
        );
        lost(&mark.place, mark.ino);
        // Also what nobody has in a queue.
        let dir = open_dir(&self.pending, ".");
        let same = |place: &Place, ino| (*place, ino) == (mark.place, mark.ino);
        let links = dir.and_then(|dir| pending_links(&dir, same));
        for (name, ..) in links.unwrap_or_default() {
            if let Err(e) = rustix::fs::unlinkat(&self.pending, &name, AtFlags::empty()) {
                log::debug!("cannot remove {name} from the journal: {e}");
            }
        }
    }
}

impl Memory {
    /// The newest mark that is older than what the kernel keeps to itself.
    fn old(&mut self, now: Duration) -> u64 {
        let mut old = 0;
        while let Some((when, number)) = self.ages.front().copied()
            && now.saturating_sub(when) >= FETCHED_AFTER
        {
            old = number;
            if self.ages.len() == 1 || now.saturating_sub(self.ages[1].0) < FETCHED_AFTER {
                break;
            }
            self.ages.pop_front();
        }
        old
    }
}

/// The BLAKE3 and the length of a file's content.
pub(super) fn hash_of(mut file: File) -> io::Result<([u8; 32], u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok((*hasher.finalize().as_bytes(), hasher.count())),
            Ok(n) => drop(hasher.update(&buffer[..n])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
