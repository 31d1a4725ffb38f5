//! `file:///dir`: a directory, on this machine or on NFS or SMB.
//!
//! An object is written under a temporary name in a hidden directory of the same file system, synced, and
//! then linked into place, which never replaces anything. Where the file system has no hard links it is
//! renamed after a look. Readers see all of an object or nothing.
//!
//! It is synced before it gets its name because an upload that was answered is forgotten by the sender; after
//! a power cut, a name without its bytes would be a corrupt object for everybody. The directory is not
//! synced: a name that is lost is a miss.
//!
//! The hidden directory is also the mark that the file system is mounted: it is made by the first call that
//! finds the directory and never again, so nothing is ever written below the mount point of an absent NFS server.
//! Opening the remote touches nothing, and a mount waits only a moment for [`Remote::prepare`](crate::remote::Remote::prepare):
//! a file server that is dead or not mounted yet keeps nobody from mounting us.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Cursor};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use tempfile::NamedTempFile;
use url::Url;

use crate::object::{Blob, Payload};
use crate::remote::RemoteError;
use crate::remote::blob::{Blobs, Stored, Written};
use crate::signature::Meta;

/// Where objects are before they have a name. Listing passes over names that begin with a dot.
const TEMP_DIR: &str = ".cachedirfs-tmp";

/// Where `verify --repair` puts what is wrong. Hidden too.
const QUARANTINE_DIR: &str = ".cachedirfs-quarantine";

/// Age at which a temporary file is nobody's: no upload of one object takes a day.
const TEMP_AGE: Duration = Duration::from_secs(24 * 3600);

/// Every so many writes, old temporary files are looked for.
const WRITES_PER_SWEEP: u64 = 1000;

/// What a temporary file may be read and written by, before the umask: other users and hosts share it.
const FILE_MODE: u32 = 0o666;

/// Directory levels below the root that can hold objects: `XX/SIG`.
const LEVELS: usize = 2;

/// Objects in a directory.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    url: String,
    /// Permission bits that files and directories made here do not get.
    umask: u32,
    /// Set by the first call that found it: whether the hidden directory was there, so that it must always be.
    marked: OnceLock<bool>,
    writes: AtomicU64,
}

impl Directory {
    /// The directory that a `file` URL names. Whether it is there is seen by the first call, which makes it when only
    /// its last part is missing.
    pub fn open(url: &Url, umask: u32) -> Result<Self, RemoteError> {
        let wrong =
            |why: &str| RemoteError::Misconfigured(format!("remote {:?}: {why}", shown(url)));
        let root = url
            .to_file_path()
            .map_err(|()| wrong("want three slashes: file:///srv/cache"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a directory takes no credentials"));
        }
        Ok(Self::at(root, umask))
    }

    /// The directory at `root`.
    pub fn at(root: PathBuf, umask: u32) -> Self {
        let url = Url::from_directory_path(&root)
            .map_or_else(|()| root.display().to_string(), String::from);
        Self {
            root,
            url,
            umask,
            marked: OnceLock::new(),
            writes: AtomicU64::new(0),
        }
    }

    /// Whether the hidden directory is to be there. The first time, both directories are made where they are missing.
    fn found(&self) -> Result<bool, RemoteError> {
        if let Some(marked) = self.marked.get() {
            return Ok(*marked);
        }
        make_root(&self.root, self.umask)?;
        // Without the right to make it, it is a cache to read from.
        let marked = make_dir(&self.root.join(TEMP_DIR), self.umask).is_ok();
        Ok(*self.marked.get_or_init(|| marked))
    }

    fn path(&self, key: &str) -> Result<PathBuf, RemoteError> {
        self.found()?;
        Ok(self.root.join(key))
    }

    fn error(&self, operation: &str, path: &Path, error: io::Error) -> RemoteError {
        let what = format!("{operation} {}", path.display());
        if error.kind() == io::ErrorKind::NotFound {
            return self.gone().during(&what);
        }
        RemoteError::from_io(error).during(&what)
    }

    fn gone(&self) -> RemoteError {
        let root = self.root.display();
        RemoteError::Transient(format!(
            "{root} is not what it was (unmounted? emptied?): mount it again or restart"
        ))
    }

    /// A name that is not there is a miss only while the directory itself is.
    fn miss<T>(&self, value: T) -> Result<T, RemoteError> {
        let mark = if self.found()? {
            self.root.join(TEMP_DIR)
        } else {
            self.root.clone()
        };
        match fs::symlink_metadata(&mark) {
            Ok(_) => Ok(value),
            Err(error) => Err(self.error("look at", &mark, error)),
        }
    }

    fn temp(&self) -> Result<NamedTempFile, RemoteError> {
        let dir = self.root.join(TEMP_DIR);
        let mode = fs::Permissions::from_mode(FILE_MODE & !self.umask);
        let made = tempfile::Builder::new().permissions(mode).tempfile_in(&dir);
        made.map_err(|error| self.error("make a file in", &dir, error))
    }

    fn publish(
        &self,
        temp: NamedTempFile,
        path: &Path,
        if_absent: bool,
    ) -> Result<Written, RemoteError> {
        if let Some(parent) = path.parent().filter(|parent| *parent != self.root)
            && let Err(error) = make_dir(parent, self.umask)
        {
            return Err(self.error("make directory", parent, error));
        }
        if if_absent {
            match fs::hard_link(temp.path(), path) {
                Ok(()) => return Ok(Written::Stored),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Ok(Written::Exists);
                }
                Err(error) if !has_no_links(&error) => return Err(self.error("link", path, error)),
                Err(_) if path.symlink_metadata().is_ok() => return Ok(Written::Exists),
                Err(_) => {}
            }
        }
        let renamed = temp
            .persist(path)
            .map_err(|error| self.error("rename to", path, error.error));
        renamed.map(|_| Written::Stored)
    }

    /// Gives a file its name back, unless somebody has made another one meanwhile.
    fn put_back(&self, aside: &Path, path: &Path) -> Result<(), RemoteError> {
        match fs::hard_link(aside, path) {
            Err(error) if has_no_links(&error) && path.symlink_metadata().is_err() => {
                let moved = fs::rename(aside, path);
                moved.map_err(|error| self.error("put back", path, error))
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !has_no_links(&error) => {
                Err(self.error("put back", path, error))
            }
            _ => Ok(()),
        }
    }

    /// Removes temporary files that nobody touched for a day, by the clock of whoever keeps the files.
    fn sweep(&self, now: &Metadata) {
        let Ok(entries) = fs::read_dir(self.root.join(TEMP_DIR)) else {
            return;
        };
        let oldest = now.mtime().saturating_sub_unsigned(TEMP_AGE.as_secs());
        for entry in entries.flatten() {
            let old = |meta: Metadata| meta.is_file() && meta.mtime() < oldest;
            // Nothing depends on it: what cannot be removed is tried again another day.
            if entry.metadata().is_ok_and(old) && fs::remove_file(entry.path()).is_ok() {
                log::debug!("removed abandoned {}", entry.path().display());
            }
        }
    }

    fn walk(&self, key: &str, levels: usize, each: &mut dyn FnMut(Stored<'_>)) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join(key))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let key = if key.is_empty() {
                name
            } else {
                format!("{key}/{name}")
            };
            let kind = entry.file_type()?;
            let listed = if kind.is_dir() && levels > 1 {
                self.walk(&key, levels - 1, each)
            } else if kind.is_dir() {
                Ok(())
            } else {
                entry
                    .metadata()
                    .map(|meta| each(stored(&key, &meta, &version(&meta))))
            };
            // Others delete while we walk.
            listed.or_else(|error| {
                if is_absent(&error) {
                    Ok(())
                } else {
                    Err(error)
                }
            })?;
        }
        Ok(())
    }
}

impl Blobs for Directory {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        let path = self.path(key)?;
        let found = fs::symlink_metadata(&path).and_then(|meta| open_blob(&path, &meta));
        match found {
            Ok(blob) => Ok(Some(blob)),
            Err(error) if is_absent(&error) => self.miss(None),
            Err(error) => Err(self.error("read", &path, error)),
        }
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        let path = self.path(key)?;
        let mut temp = self.temp()?;
        let failed = |error| self.error("write", &path, error);
        io::copy(&mut payload.reader(), temp.as_file_mut()).map_err(failed)?;
        if let Some(meta) = payload.hint() {
            temp.as_file()
                .set_permissions(fs::Permissions::from_mode(meta.mode()))
                .map_err(failed)?;
        }
        temp.as_file().sync_all().map_err(failed)?;
        if self
            .writes
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(WRITES_PER_SWEEP)
        {
            self.sweep(&temp.as_file().metadata().map_err(failed)?);
        }
        self.publish(temp, &path, if_absent)
    }

    /// To look costs less than to write a temporary file in vain.
    fn creates_only(&self) -> Option<bool> {
        Some(false)
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        let path = self.path(key)?;
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => self.miss(false),
            Err(error) => Err(self.error("look at", &path, error)),
        }
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        let path = self.path(key)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => self.miss(false),
            Err(error) => Err(self.error("remove", &path, error)),
        }
    }

    fn quarantine(
        &self,
        key: &str,
        name: &str,
        _spool_dir: &Path,
    ) -> Result<Option<String>, RemoteError> {
        let (from, dir) = (self.path(key)?, self.root.join(QUARANTINE_DIR));
        make_dir(&dir, self.umask).map_err(|error| self.error("make directory", &dir, error))?;
        let taken = |name: &String| dir.join(name).symlink_metadata().is_ok();
        let mut names = (0..).map(|n| match n {
            0 => name.to_owned(),
            n => format!("{name}.{n}"),
        });
        // Two who repair at once set aside the same object.
        let name = names.find(|name| !taken(name)).unwrap_or_default();
        match fs::rename(&from, dir.join(&name)) {
            Ok(()) => Ok(Some(format!("{QUARANTINE_DIR}/{name}"))),
            Err(error) if is_absent(&error) => self.miss(None),
            Err(error) => Err(self.error("move", &from, error)),
        }
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        self.miss(())?;
        self.walk("", LEVELS, each)
            .map_err(|error| self.error("list", &self.root, error))
    }

    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        let path = self.path(key)?;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        match utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => self.miss(false),
            Err(error) => Err(self.error("touch", &path, error)),
        }
    }

    /// It is moved away before it goes for good, and looked at there, where nobody touches it any more: what was written or
    /// touched since the first look is put back. Meanwhile it is a miss.
    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let path = self.path(listed.key)?;
        match fs::symlink_metadata(&path) {
            Ok(meta) if is_listed(&meta, &listed) => {}
            Ok(_) => return Ok(false),
            Err(error) if is_absent(&error) => return self.miss(false),
            Err(error) => return Err(self.error("look at", &path, error)),
        }
        let aside = self.temp()?.into_temp_path();
        match fs::rename(&path, &aside) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return self.miss(false),
            Err(error) => return Err(self.error("remove", &path, error)),
        }
        let meta = fs::symlink_metadata(&aside);
        let meta = meta.map_err(|error| self.error("look at", &aside, error))?;
        if is_listed(&meta, &listed) {
            return Ok(true);
        }
        self.put_back(&aside, &path)?;
        Ok(false)
    }

    fn prepare(&self) {
        if let Err(error) = self.found() {
            log::debug!("{error}");
        }
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}

fn stored<'a>(key: &'a str, meta: &Metadata, version: &'a str) -> Stored<'a> {
    Stored {
        key,
        size: meta.len(),
        modified: meta.modified().ok(),
        version: Some(version),
    }
}

/// A put makes a new file, always.
fn version(meta: &Metadata) -> String {
    meta.ino().to_string()
}

/// Whether a file is still what was listed.
fn is_listed(meta: &Metadata, listed: &Stored<'_>) -> bool {
    stored(listed.key, meta, &version(meta)) == *listed
}

/// What stands at `path`. A CacheDir holds symlinks as symlinks; they are read, never followed.
fn open_blob(path: &Path, meta: &Metadata) -> io::Result<Blob> {
    if meta.is_symlink() {
        let target = fs::read_link(path)?.into_os_string().into_vec();
        let len = Some(target.len() as u64);
        return Ok(Blob {
            body: Box::new(Cursor::new(target)),
            len,
            hint: Some(Meta::Symlink),
        });
    }
    // What others put there meanwhile is neither followed nor waited for (a FIFO).
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(RemoteError::Corrupt("not a file".to_owned()).into_io());
    }
    Ok(Blob {
        body: Box::new(file),
        len: Some(meta.len()),
        hint: Some(Meta::file(meta.mode())),
    })
}

fn make_root(root: &Path, umask: u32) -> Result<(), RemoteError> {
    make_dir(root, umask).map_err(|error| {
        let root = root.display();
        RemoteError::Transient(format!(
            "make directory {root}: {error}; is it mounted? or make it yourself"
        ))
    })
}

/// Makes a directory unless it is there.
fn make_dir(path: &Path, umask: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o777 & !umask).create(path) {
        Err(error) if path.is_dir() => {
            log::trace!("{}: {error}", path.display());
            Ok(())
        }
        made => made,
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// SMB, vfat and some FUSE file systems have none, and say so in different ways.
fn has_no_links(error: &io::Error) -> bool {
    let known = [
        libc::EPERM,
        libc::EOPNOTSUPP,
        libc::ENOSYS,
        libc::EMLINK,
        libc::EXDEV,
        libc::EINVAL,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| known.contains(&errno))
}

fn shown(url: &Url) -> String {
    format!("file://{}", url.path())
}

#[cfg(test)]
mod tests;
