//! The files of a backing directory besides its entries: how they are made, locked, and put right
//! at a start.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::scan::{names_in, prefix_dirs};
use super::{StoreError, fresh};
use crate::clock::Clock;
use crate::name::{Dir, Name, PRIVATE_DIR, Place};
use crate::signature::Signature;

/// The layout that this program writes.
const VERSION: &str = "1\n";

/// What SCons 4.11 writes: keeps backup programs out of a cache (<https://bford.info/cachedir/>).
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# SCons cache directory - see https://bford.info/cachedir/\n";

/// Where what is wrong is put: in the private directory, never deleted.
pub(super) const QUARANTINE: &str = "quarantine";

/// SCons' prefix length since 2.5; before, it was 1.
const DEFAULT_DIGITS: u8 = 2;

/// How long a backing directory may be held by somebody who is about to end …
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// … and how often that is tried.
const LOCK_TICK: Duration = Duration::from_millis(20);

/// A backing directory that is ours and in order.
pub(super) struct Opened {
    pub(super) root: OwnedFd,
    pub(super) tmp: OwnedFd,
    pub(super) pending: OwnedFd,
    pub(super) writing: OwnedFd,
    pub(super) fresh: OwnedFd,
    pub(super) sums: OwnedFd,
    pub(super) private: OwnedFd,
    pub(super) lock: File,
    pub(super) prefix_digits: u8,
    pub(super) start: fresh::Start,
}

/// Makes what is missing, takes the lock, and puts right what a crash left.
pub(super) fn open(path: &Path, clock: &dyn Clock) -> Result<Opened, StoreError> {
    let fail = |what, hint| {
        move |source: io::Error| StoreError::Disk {
            what,
            path: path.display().to_string(),
            hint: hint_for(&source, hint),
            source,
        }
    };
    const CHOOSE: &str = "choose another with backing=";
    make_root(path).map_err(fail("make the backing directory", CHOOSE))?;
    let root =
        open_dir(rustix::fs::CWD, path).map_err(fail("open the backing directory", CHOOSE))?;
    let private =
        sub_dir(&root, PRIVATE_DIR).map_err(fail("write in the backing directory", CHOOSE))?;
    let lock = wait_for_lock(&private, path, clock)?;
    numbers_alike(&root, &lock).map_err(fail("use the backing directory", CHOOSE))?;
    check_version(&private, path)?;
    let in_order = || -> io::Result<Opened> {
        let tmp = sub_dir(&private, "tmp")?;
        let pending = sub_dir(&private, "pending")?;
        let writing = sub_dir(&private, "writing")?;
        let fresh = sub_dir(&private, "fresh")?;
        let sums = sub_dir(&private, "sums")?;
        empty(&tmp)?;
        drop_half_written(&root, &writing)?;
        let start = fresh::start(&root, &private, &fresh, &pending)?;
        let prefix_digits = provide_root_files(&root, &private)?;
        Ok(Opened {
            root,
            tmp,
            pending,
            writing,
            fresh,
            sums,
            private: private.try_clone()?,
            lock,
            prefix_digits,
            start,
        })
    };
    in_order().map_err(fail("prepare the backing directory", CHOOSE))
}

/// Inode numbers name files all over a mount. In an overlay over several file systems, files have numbers and device of
/// the one that they are on, so one number can mean two files.
fn numbers_alike(root: &OwnedFd, file: &File) -> io::Result<()> {
    if rustix::fs::fstat(root)?.st_dev == rustix::fs::fstat(file)?.st_dev {
        return Ok(());
    }
    Err(io::Error::other(
        "it is on an overlay over several file systems, where two files can have one inode number",
    ))
}

fn hint_for(error: &io::Error, otherwise: &'static str) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ROFS) => "it is on a read-only file system: choose another with backing=",
        Some(Errno::ACCESS | Errno::PERM) => {
            "this user may not write there: choose another with backing="
        }
        Some(Errno::NOSPC | Errno::DQUOT) => {
            "the disk is full: make room or choose another with backing="
        }
        _ => otherwise,
    }
}

/// A fresh directory made by root can be used by everybody, as a share can; one that exists keeps its
/// rights. Directories above it that are missing are made for us alone: nobody is to write the backing
/// directory past the mount.
fn make_root(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    DirBuilder::new().mode(0o755).create(path)?;
    if rustix::process::geteuid().is_root() {
        rustix::fs::chmod(path, Mode::from(0o777))?;
    }
    Ok(())
}

/// Opens a directory to work in.
pub fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

pub(super) fn sub_dir(at: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(at, name, Mode::from(0o700)) {
        Ok(()) | Err(Errno::EXIST) => open_dir(at, name),
        Err(e) => Err(e.into()),
    }
}

/// Gives a new file or directory the owner and group of another.
pub(super) fn give(to: impl AsFd, like: &rustix::fs::Stat) -> io::Result<()> {
    let owner = rustix::fs::Uid::from_raw(like.st_uid);
    let group = rustix::fs::Gid::from_raw(like.st_gid);
    Ok(rustix::fs::fchown(to, Some(owner), Some(group))?)
}

/// A daemon that was killed holds the lock until its last thread has ended: whoever mounts again at once waits for that.
fn wait_for_lock(private: &OwnedFd, path: &Path, clock: &dyn Clock) -> Result<File, StoreError> {
    let deadline = clock.now() + LOCK_PATIENCE;
    loop {
        match take_lock(private, path) {
            Err(StoreError::Busy { .. }) if clock.now() < deadline => clock.sleep(LOCK_TICK),
            result => return result,
        }
    }
}

pub(super) fn take_lock(private: &OwnedFd, path: &Path) -> Result<File, StoreError> {
    let fail = |source: io::Error| StoreError::Disk {
        what: "lock the backing directory",
        path: path.display().to_string(),
        hint: hint_for(&source, "choose another with backing="),
        source,
    };
    // Not held for writing: a file system with such a file cannot be made read-only by its administrator.
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(private, "lock", flags, Mode::from(0o600))
        .map_err(|e| fail(e.into()))?;
    let mut file = File::from(fd);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(fail)?;
            return Err(StoreError::Busy {
                path: path.display().to_string(),
                pid: pid.trim().to_owned(),
            });
        }
        Err(e) => return Err(fail(e.into())),
    }
    // The number is only for the message above: a full disk is no reason not to mount.
    if let Err(e) = write_pid(private) {
        log::warn!(
            "cannot write our number into the lock of {}: {e}",
            path.display()
        );
    }
    Ok(file)
}

fn write_pid(private: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(private, "lock", flags, Mode::empty())?;
    writeln!(File::from(fd), "{}", std::process::id())
}

fn check_version(private: &OwnedFd, path: &Path) -> Result<(), StoreError> {
    let fail = |source: io::Error| StoreError::Disk {
        what: "read the layout version of",
        path: path.display().to_string(),
        hint: "choose another with backing=",
        source,
    };
    if !provide(private, "version", VERSION.as_bytes()).map_err(fail)? {
        let found = read(private, "version").map_err(fail)?;
        if found != VERSION.as_bytes() {
            return Err(StoreError::Version {
                path: path.display().to_string(),
                found: String::from_utf8_lossy(&found).trim().to_owned(),
                known: VERSION.trim_end(),
            });
        }
    }
    Ok(())
}

fn empty(dir: &OwnedFd) -> io::Result<()> {
    for found in names_in(dir)? {
        rustix::fs::unlinkat(dir, found.name.as_c_str(), AtFlags::empty())?;
    }
    Ok(())
}

/// Removes entries that were being written in place when we died: nobody said that they are whole.
fn drop_half_written(root: &OwnedFd, writing: &OwnedFd) -> io::Result<()> {
    for found in names_in(writing)? {
        if let Some(place) = marked_place(found.name.to_bytes()) {
            match rustix::fs::unlinkat(root, place.path(), AtFlags::empty()) {
                Ok(()) => log::warn!(
                    "removed the entry {}: it was still being written",
                    place.sig
                ),
                Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        rustix::fs::unlinkat(writing, found.name.as_c_str(), AtFlags::empty())?;
    }
    Ok(())
}

pub(super) fn mark_name(place: &Place) -> String {
    format!("{}-{}", place.digits, place.sig)
}

pub(super) fn marked_place(name: &[u8]) -> Option<Place> {
    let (digits, sig) = name.split_at_checked(2)?;
    let digits = digits[0]
        .checked_sub(b'0')
        .filter(|d| (1..=4).contains(d) && digits[1] == b'-')?;
    Some(Place {
        sig: Signature::parse(sig)?,
        digits,
    })
}

pub(super) fn mark(writing: &OwnedFd, place: &Place) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::openat(writing, mark_name(place), flags, Mode::from(0o644))?;
    Ok(())
}

pub(super) fn unmark(writing: &OwnedFd, place: &Place) {
    if let Err(e) = rustix::fs::unlinkat(writing, mark_name(place), AtFlags::empty()) {
        log::debug!("no mark to remove for {}: {e}", place.sig);
    }
}

/// Writes `config` and `CACHEDIR.TAG` where they are missing and removes `config.lock`: whoever
/// made it did so before we had the directory. The prefix length.
fn provide_root_files(root: &OwnedFd, private: &OwnedFd) -> io::Result<u8> {
    match rustix::fs::unlinkat(root, "config.lock", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let digits = digits_in_use(root)?;
    set_broken_config_aside(root, private)?;
    let made = provide(
        root,
        "config",
        format!("{{\"prefix_len\": {digits}}}").as_bytes(),
    )?;
    provide(root, "CACHEDIR.TAG", TAG)?;
    Ok(if made {
        digits
    } else {
        read_prefix_digits(root.as_fd()).unwrap_or(digits)
    })
}

/// SCons dies of a `config` that it cannot read: what a power cut left of one is moved out of the way.
fn set_broken_config_aside(root: &OwnedFd, private: &OwnedFd) -> io::Result<()> {
    let content = match read(root, "config") {
        Ok(content) => content,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let config = serde_json::from_slice::<serde_json::Value>(&content);
    let usable = |config: serde_json::Value| config.get("prefix_len").is_some_and(|n| n.is_u64());
    if config.is_ok_and(usable) {
        return Ok(());
    }
    let quarantine = sub_dir(private, QUARANTINE)?;
    rustix::fs::renameat(root, "config", &quarantine, "config")?;
    log::warn!("config was unreadable and is written anew; what it was is in quarantine/config");
    Ok(())
}

/// The prefix length of a cache without `config`, by its directories.
fn digits_in_use(root: &OwnedFd) -> io::Result<u8> {
    let dirs = prefix_dirs(root)?;
    let one_digit = !dirs.is_empty() && dirs.iter().all(|d| d.prefix_digits().len() == 1);
    Ok(if one_digit { 1 } else { DEFAULT_DIGITS })
}

/// The prefix length that `config` states, if it states a possible one.
pub(super) fn read_prefix_digits(root: std::os::fd::BorrowedFd<'_>) -> Option<u8> {
    let config: serde_json::Value = serde_json::from_slice(&read(root, "config").ok()?).ok()?;
    let digits = u8::try_from(config.get("prefix_len")?.as_u64()?).ok()?;
    (1..=4).contains(&digits).then_some(digits)
}

/// Writes a file unless it exists; whether it was written. Neither a crash nor a power cut leaves it half written.
fn provide(at: impl AsFd, name: &str, content: &[u8]) -> io::Result<bool> {
    let at = at.as_fd();
    if rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(false);
    }
    replace(at, name, content)?;
    Ok(true)
}

/// Writes a file, in place of one that may be there: after a crash or a power cut there is the one or the other.
pub(super) fn replace(at: impl AsFd, name: &str, content: &[u8]) -> io::Result<()> {
    let (at, temporary) = (at.as_fd(), format!("{name}.new"));
    fresh::write_synced(at, &temporary, content)?;
    Ok(rustix::fs::renameat(at, &temporary, at, name)?)
}

pub(super) fn read(at: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    /// No file of ours or of SCons' that is read here is longer.
    const MAX: u64 = 4096;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(at, name, flags, Mode::empty())?);
    let mut content = Vec::new();
    file.take(MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// What a name in the root is, for those who walk the disk.
pub(super) fn root_dir(name: &[u8]) -> Option<Dir> {
    match Name::parse(&Dir::Root, name) {
        Name::PrefixDir(dir) => Some(dir),
        _ => None,
    }
}
