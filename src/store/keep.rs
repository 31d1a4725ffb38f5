//! Keeping an eye on the backing disk: failures are reported here, a probe finds out whether it can be used, and what
//! every build needs is answered from memory while it cannot.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, StatVfsMountFlags};
use rustix::io::Errno;

use super::health::{Change, Health, is_disk_failure, is_full};
use super::{Store, layout};
use crate::name::{PRIVATE_DIR, RootFile};

/// How often it is seen whether the disk was taken from us (made read-only, removed) without an error having told.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The file that a probe writes, in `tmp/`.
const PROBE: &str = "probe";
/// Where the totals stand between two runs.
const TOTALS: &str = "totals";

impl Store {
    /// An operation on the disk failed. A full disk wakes the evictor, one that fails is probed; every other error is
    /// the business of whoever asked.
    pub fn note(&self, what: impl Display, error: Errno) {
        if is_full(error) {
            self.starved();
        } else if is_disk_failure(error) {
            self.stats.disk_errors.one();
            log::debug!("the backing disk failed: {what}: {error}");
            if self.health().suspect(|| format!("{what}: {error}")) {
                self.health_changed.notify_all();
            }
        }
    }

    /// The same for an I/O error.
    pub fn note_io(&self, what: impl Display, error: &io::Error) {
        if let Some(errno) = Errno::from_io_error(error) {
            self.note(what, errno);
        }
    }

    /// Whether an error of a call on a name in the root means that the disk fails. In a directory that was removed
    /// everything is just absent.
    pub fn fails_with(&self, error: Errno) -> bool {
        is_disk_failure(error) || error == Errno::NOENT && self.is_removed()
    }

    /// Whether the disk cannot be used, as the last probe found out.
    pub fn is_sick(&self) -> bool {
        self.health().trouble(Duration::ZERO).is_some()
    }

    /// What is wrong with the disk, for `status`.
    pub fn trouble(&self) -> Option<String> {
        let now = self.clock.now();
        let health = self.health();
        let (since, why) = health.trouble(now)?;
        Some(format!("unusable for {} s: {why}", since.as_secs()))
    }

    /// What a root file is, as it was last seen.
    pub fn spare_stat(&self, file: RootFile) -> Option<Stat> {
        self.spare.stat(file)
    }

    /// What the root directory was at the start.
    pub fn spare_root(&self) -> Stat {
        self.spare.root()
    }

    /// A copy of a root file, to read.
    pub fn spare_file(&self, file: RootFile) -> Option<OwnedFd> {
        self.spare.open(file).ok().flatten()
    }

    /// Watches the disk until the store is stopped, and writes down now and then how much is in use. Runs on a thread
    /// of its own: a probe can take as long as the disk does.
    pub fn run_keeper(&self) {
        let mut written = None;
        while !self.state().stopped {
            self.look();
            if self.health().probe_in(self.clock.now()) == Some(Duration::ZERO) {
                let result = self.probe();
                let change = self.health().probed(result, self.clock.now());
                self.tell(change);
            }
            self.save_totals(&mut written);
            let health = self.health();
            let wait = health.probe_in(self.clock.now()).unwrap_or(LOOK_AGAIN);
            if !wait.is_zero() && !self.state().stopped {
                drop(self.health_changed.wait_timeout(health, wait));
            }
        }
        self.save_totals(&mut written);
    }

    /// Raises a suspicion when the disk was taken from us.
    fn look(&self) {
        let read_only = |v: rustix::fs::StatVfs| v.f_flag.contains(StatVfsMountFlags::RDONLY);
        if self.is_removed() {
            self.health().suspect(|| "the directory was removed".into());
        } else if rustix::fs::fstatvfs(&self.root).is_ok_and(read_only) {
            self.health().suspect(|| "it is read-only".into());
        }
    }

    /// Writes a little and brings it to the disk. A full disk is not a sick one.
    fn probe(&self) -> Result<(), String> {
        if self.is_removed() {
            return Err("umount, and mount again".into());
        }
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&self.tmp, PROBE, flags, Mode::from(0o600))?;
            let mut file = File::from(fd);
            file.write_all(b"probe\n")?;
            file.sync_all()?;
            rustix::fs::unlinkat(&self.tmp, PROBE, AtFlags::empty())?;
            Ok(())
        };
        match write() {
            Err(e) if Errno::from_io_error(&e).is_some_and(is_full) => Ok(()),
            Err(e) => Err(format!("cannot write there: {e}")),
            Ok(()) => Ok(()),
        }
    }

    fn tell(&self, change: Option<Change>) {
        let path = self.path.display();
        match change {
            Some(Change::Sick(why)) => log::error!(
                "the backing directory {path} cannot be used, lookups are misses and pushes fail until it can: {why}"
            ),
            Some(Change::Well(after)) => log::info!(
                "the backing directory {path} can be used again after {} s",
                after.as_secs()
            ),
            None => {}
        }
    }

    fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.root).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Bytes that an earlier run knew of; the scan finds them again one by one.
    pub(super) fn load_totals(root: &OwnedFd) -> u64 {
        let private = layout::open_dir(root, PRIVATE_DIR);
        let text = private.and_then(|dir| layout::read(dir, TOTALS));
        let text = text.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // Anything else is from another version, or cut off: as good as none.
        let line = text.strip_suffix('\n').unwrap_or_default();
        line.parse().unwrap_or(0)
    }

    /// Writes down how many bytes entries take, if that has changed. Until a scan is done, what it was told is kept.
    fn save_totals(&self, written: &mut Option<u64>) {
        let usage = self.usage();
        if !usage.complete || *written == Some(usage.bytes) || self.is_sick() {
            return;
        }
        if let Err(e) = self.replace_totals(usage.bytes) {
            self.note_io("cannot write down how much is in use", &e);
        }
        *written = Some(usage.bytes);
    }

    fn replace_totals(&self, bytes: u64) -> io::Result<()> {
        let private = layout::open_dir(&self.root, PRIVATE_DIR)?;
        let (new, flags) = (format!("{TOTALS}.new"), OFlags::WRONLY | OFlags::CREATE);
        let flags = flags | OFlags::TRUNC | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&private, &new, flags, Mode::from(0o600))?;
        writeln!(File::from(fd), "{bytes}")?;
        Ok(rustix::fs::renameat(&private, &new, &private, TOTALS)?)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
