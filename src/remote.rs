//! The contract of a remote cache.
//!
//! A [`Remote`] holds entries by [`Signature`]. It makes **one attempt a call**, blocks its thread,
//! streams, is safe from many threads, classifies its failures ([`RemoteError`]) and describes
//! itself without credentials. A miss is `Ok(None)`, never an error. Retry, deadlines and the
//! breaker are decorators over it; they are remotes themselves.
//!
//! This module knows neither the disk layout, the file system nor the kernel.
//!
//! To add one more kind of store: implement [`blob::Blobs`] for it in a child module (if it is a
//! dumb store of bytes by key) or [`Remote`] itself, add its scheme to [`open`], and run
//! `tests/remote_contract.rs` over it.

#[cfg(any(feature = "http", feature = "grpc"))]
mod auth;
#[cfg(feature = "http")]
pub mod bazel;
pub mod blob;
pub mod breaker;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod cloud;
pub mod counted;
pub mod deadline;
pub mod file;
mod found;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "http")]
pub mod http;
pub mod memory;
#[cfg(any(feature = "http", feature = "grpc", feature = "redis"))]
mod netrc;
mod options;
pub mod pace;
#[cfg(any(feature = "http", feature = "grpc"))]
pub mod reapi;
#[cfg(feature = "redis")]
pub mod redis;
pub mod retry;
#[cfg(any(feature = "http", feature = "grpc"))]
mod runtime;
#[cfg(test)]
mod scripted;
pub mod shards;
pub mod swap;
pub mod tiers;
#[cfg(any(feature = "http", feature = "grpc", feature = "redis"))]
mod trust;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::object::ObjectError;
use crate::remote::blob::BlobRemote;
use crate::signature::{Meta, Signature};

pub use crate::object::{Arrived, Content, Format, Key, KeyError, Object};
pub use options::{Environment, Layout, MIN_SPEED, RemoteOptions, Secret};

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The remote holds it now and did not before (as far as the remote can tell).
    Stored,
    /// The remote had the same content already.
    Present,
    /// The remote had other content under this signature; it stays, ours was not written.
    /// Sizes and BLAKE3 hashes where known.
    Diverged {
        /// BLAKE3 of what the remote holds, if it can be had without fetching it all.
        theirs: Option<[u8; 32]>,
        /// Bytes of its content, on the same condition.
        their_len: Option<u64>,
        /// BLAKE3 of what was to be uploaded.
        ours: [u8; 32],
    },
}

/// One object met while listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The entry.
    pub sig: Signature,
    /// Stored (encoded) size in bytes.
    pub size: u64,
    /// When it was written or touched last, where the remote says so.
    pub modified: Option<SystemTime>,
    /// What the remote calls this version of it (an ETag), where it says so.
    pub version: Option<String>,
}

/// What can be wrong with a remote as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Calls fail.
    Failing,
    /// Calls are not answered in time.
    Hangs,
    /// What it sends comes slower than it may.
    Slow,
}

impl Ailment {
    /// As `status` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Hangs => "hangs",
            Self::Slow => "slow",
        }
    }
}

/// The state of a remote that is not asked at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub ailment: Ailment,
    /// How long it has been so.
    pub lasts: Duration,
    /// The error or observation that said so last.
    pub reason: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ailment, lasts) = (self.ailment.as_str(), self.lasts.as_secs());
        write!(f, "{ailment} for {lasts} s: {}", self.reason)
    }
}

/// What somebody observed who waited for the remote, where no call returned an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What is wrong.
    pub ailment: Ailment,
    /// The object that was asked for. Whether this one can be had is what tells when it is over: a remote may
    /// well be quick with everything else.
    pub about: Option<Signature>,
    /// What was observed.
    pub reason: String,
}

/// A remote cache. See the module documentation for the contract.
pub trait Remote: Send + Sync {
    /// The object under `sig`, or `None` on a miss.
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError>;

    /// Uploads an object unless the remote has one under `sig`. Where the remote cannot do that
    /// atomically, it looks first and the last of two concurrent writers wins.
    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError>;

    /// Whether there is an object under `sig`.
    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError>;

    /// Removes the object under `sig`; `Ok(false)` when there was none.
    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError>;

    /// Calls `each` for every object, in no order. [`RemoteError::Unsupported`] where it cannot list.
    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError>;

    /// Has the remote count the object as used now, so that it does not expire, by the cheapest means there is;
    /// `Ok(false)` when there is none.
    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.exists(sig)
    }

    /// Removes an object if it is still the one that was listed: neither written nor touched since. `Ok(false)` when it
    /// is not, or is gone.
    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        let what = format!("delete {} if it is unchanged: not offered here", listed.sig);
        Err(RemoteError::Unsupported(what))
    }

    /// Puts the object under `sig` where no reader finds it, without deleting it; where to, or `None` when there is none.
    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        let what = format!("quarantine {sig}: not offered here");
        Err(RemoteError::Unsupported(what))
    }

    /// The remote as its URL, without credentials.
    fn describe(&self) -> String;

    /// Of several remotes the one that has this object, or would have it; after [`Put::Diverged`] the one that has
    /// other content.
    fn describe_holder(&self, sig: &Signature) -> String {
        let _ = sig;
        self.describe()
    }

    /// Why it is not asked about this object at the moment. Of several remotes another one may be.
    fn trouble_about(&self, sig: &Signature) -> Option<Trouble> {
        let _ = sig;
        self.trouble()
    }

    /// The object's content could not be read to its end. Whether another [`Remote::get`] asks somebody else.
    fn elsewhere(&self, sig: &Signature) -> bool {
        let _ = sig;
        false
    }

    /// Has it find what is on this machine now rather than with the first call. May block as long as any call; a failure
    /// shows with the next one.
    fn prepare(&self) {}

    /// Why it is not asked at the moment; `None` when all is well.
    fn trouble(&self) -> Option<Trouble> {
        None
    }

    /// Tells it what was observed from outside. A breaker opens; what has none takes no notice.
    fn report(&self, complaint: Complaint) {
        log::trace!("nobody minds: {complaint:?}");
    }
}

/// Why a remote could not answer. Each says the operation, the subject (never a credential) and the cause.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    /// May work later: connection refused, timeout, 5xx.
    #[error("{0}")]
    Transient(String),
    /// Works later, and the remote said when: 429 or 503 with `Retry-After`.
    #[error("{0} (asks to wait {secs} s)", secs = .1.as_secs())]
    Busy(String, Duration),
    /// Bytes went so slowly that the transfer was given up. May work later.
    #[error("{0}")]
    Slow(String),
    /// The remote refuses us: 401, 403, EACCES. Retrying needs a change of credentials or rights.
    #[error("{0}")]
    Refused(String),
    /// We refuse the remote: its certificate is not one to be believed. Works later if it gets another.
    #[error("{0}")]
    Untrusted(String),
    /// What it sent is not what was pushed: wrong hash, signature, length, format.
    #[error("{0}")]
    Corrupt(String),
    /// The remote has no room for it: 413, 507, ENOSPC.
    #[error("{0}")]
    Full(String),
    /// The URL or an option is wrong; no retry can help.
    #[error("{0}")]
    Misconfigured(String),
    /// This remote has no such operation.
    #[error("{0}")]
    Unsupported(String),
    /// Of several remotes some have answered, and others could not be asked or failed. They may have it; or they are still
    /// to get it, and the others have it.
    #[error("{0}")]
    Partly(String),
    /// The failure is ours: the content to upload could not be read or changed meanwhile, or the
    /// spool directory is full. It says nothing about the remote.
    #[error("{0}")]
    Local(String),
}

impl RemoteError {
    /// The error that an [`io::Error`] carries (the content of an [`Object`] ends in such), or else what
    /// its kind means.
    pub fn from_io(error: io::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(ours) => return ours,
            Err(error) => error,
        };
        match error.downcast::<ObjectError>() {
            Ok(error) => error.into(),
            Err(error) => Self::from_kind(&error),
        }
    }

    /// An [`io::Error`] that carries this one through a [`std::io::Read`].
    pub fn into_io(self) -> io::Error {
        let kind = match self {
            Self::Transient(_)
            | Self::Busy(..)
            | Self::Slow(_)
            | Self::Partly(_)
            | Self::Local(_) => io::ErrorKind::Other,
            Self::Refused(_) | Self::Untrusted(_) => io::ErrorKind::PermissionDenied,
            Self::Corrupt(_) => io::ErrorKind::InvalidData,
            Self::Full(_) => io::ErrorKind::StorageFull,
            Self::Misconfigured(_) => io::ErrorKind::InvalidInput,
            Self::Unsupported(_) => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, self)
    }

    /// The same error, said to have happened during `operation`.
    #[must_use]
    pub fn during(self, operation: &str) -> Self {
        let say = |cause: String| format!("{operation}: {cause}");
        match self {
            Self::Transient(cause) => Self::Transient(say(cause)),
            Self::Busy(cause, wait) => Self::Busy(say(cause), wait),
            Self::Slow(cause) => Self::Slow(say(cause)),
            Self::Refused(cause) => Self::Refused(say(cause)),
            Self::Untrusted(cause) => Self::Untrusted(say(cause)),
            Self::Corrupt(cause) => Self::Corrupt(say(cause)),
            Self::Full(cause) => Self::Full(say(cause)),
            Self::Misconfigured(cause) => Self::Misconfigured(say(cause)),
            Self::Unsupported(cause) => Self::Unsupported(say(cause)),
            Self::Partly(cause) => Self::Partly(say(cause)),
            Self::Local(cause) => Self::Local(say(cause)),
        }
    }

    /// Whether the same call may work later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient(_) | Self::Busy(..) | Self::Slow(_))
    }

    /// How long the remote asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy(_, wait) => Some(*wait),
            _ => None,
        }
    }

    fn from_kind(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let cause = error.to_string();
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full(cause),
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Refused(cause),
            _ => Self::Transient(cause),
        }
    }
}

impl From<ObjectError> for RemoteError {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Corrupt(what) => Self::Corrupt(what),
            ObjectError::Changed | ObjectError::Local(_) => Self::Local(error.to_string()),
            ObjectError::Store(cause) => Self::from_io(cause),
        }
    }
}

/// The directory that a URL of the scheme `file` names, as [`open`] reads it.
pub fn directory(url: &str) -> Option<PathBuf> {
    let url = options::parse_url(url).ok()?;
    let is_file = url.scheme() == "file";
    is_file.then(|| url.to_file_path().ok()).flatten()
}

/// Every scheme that [`open`] knows, and whether it was compiled in.
const SCHEMES: [(&str, bool); 12] = [
    ("file", true),
    ("http", cfg!(feature = "http")),
    ("https", cfg!(feature = "http")),
    ("bazel+http", cfg!(feature = "http")),
    ("bazel+https", cfg!(feature = "http")),
    ("grpc", cfg!(feature = "grpc")),
    ("grpcs", cfg!(feature = "grpc")),
    ("s3", cfg!(feature = "s3")),
    ("gs", cfg!(feature = "gcs")),
    ("az", cfg!(feature = "azure")),
    ("redis", cfg!(feature = "redis")),
    ("rediss", cfg!(feature = "redis")),
];

/// The schemes of the remotes that this build has.
pub fn schemes() -> impl Iterator<Item = &'static str> {
    SCHEMES
        .iter()
        .filter(|(_, has)| *has)
        .map(|(scheme, _)| *scheme)
}

/// The remote that `url` names. **The only list of schemes.**
pub fn open(url: &str, options: &RemoteOptions) -> Result<Arc<dyn Remote>, RemoteError> {
    options.check()?;
    let parsed = options::parse_url(url)?;
    if options.headers_file.is_some() && !parsed.scheme().starts_with("grpc") {
        let text = "headers_file is for grpc:// and grpcs://".to_owned();
        return Err(RemoteError::Misconfigured(text));
    }
    Ok(match parsed.scheme() {
        "file" => Arc::new(BlobRemote::new(
            file::Directory::open(&parsed, options.umask)?,
            options,
        )),
        #[cfg(feature = "http")]
        "http" | "https" => Arc::new(BlobRemote::new(
            http::Http::open(&parsed, options)?,
            options,
        )),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => Arc::new(BlobRemote::new(
            redis::Redis::open(&parsed, options)?,
            options,
        )),
        #[cfg(feature = "s3")]
        "s3" => Arc::new(BlobRemote::new(
            cloud::s3::S3::open(&parsed, options)?,
            options,
        )),
        #[cfg(feature = "gcs")]
        "gs" => Arc::new(BlobRemote::new(
            cloud::gcs::Gcs::open(&parsed, options)?,
            options,
        )),
        #[cfg(feature = "azure")]
        "az" => Arc::new(BlobRemote::new(
            cloud::azure::Azure::open(&parsed, options)?,
            options,
        )),
        #[cfg(feature = "http")]
        "bazel+http" | "bazel+https" => Arc::new(reapi::Actions::new(
            bazel::Bazel::open(&parsed, options)?,
            options,
        )),
        #[cfg(feature = "grpc")]
        "grpc" | "grpcs" => Arc::new(reapi::Actions::new(
            grpc::Grpc::open(&parsed, options)?,
            options,
        )),
        other => {
            return Err(options::unknown_scheme(url, other, &SCHEMES));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_its_way_through_a_reader() {
        let there_and_back = |error: RemoteError| RemoteError::from_io(error.into_io());
        let busy = RemoteError::Busy("get: 503".to_owned(), Duration::from_secs(7));
        assert_eq!(
            there_and_back(busy).retry_after(),
            Some(Duration::from_secs(7))
        );
        let corrupt = RemoteError::Corrupt("hash".to_owned());
        assert!(matches!(there_and_back(corrupt), RemoteError::Corrupt(text) if text == "hash"));
    }

    #[test]
    fn a_full_disk_and_a_forbidden_one_are_told_apart() {
        let of = |errno| RemoteError::from_io(io::Error::from_raw_os_error(errno));
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert!(matches!(of(errno), RemoteError::Full(_)), "{errno}");
        }
        for errno in [libc::EACCES, libc::EPERM, libc::EROFS] {
            assert!(matches!(of(errno), RemoteError::Refused(_)), "{errno}");
        }
        for errno in [libc::EIO, libc::ESTALE, libc::ETIMEDOUT, libc::ECONNRESET] {
            assert!(of(errno).is_transient(), "{errno}");
        }
    }

    #[test]
    fn a_wrong_url_says_what_would_be_right() {
        let why = |url: &str| match open(url, &RemoteOptions::default()) {
            Err(RemoteError::Misconfigured(text)) => text,
            Err(other) => panic!("{url}: {other:?}"),
            Ok(_) => panic!("{url}: opened"),
        };
        assert!(why("gopher://host/x").contains("file, http, https"));
        for url in [
            "",
            "nonsense",
            "/a/path",
            "http://",
            "file://relative/dir",
            "file:x",
            "https://h/?q",
        ] {
            assert!(why(url).starts_with("remote "), "{url}: {}", why(url));
        }
    }

    #[test]
    fn no_error_and_no_description_shows_a_credential() {
        let credentials = ["user", "s3cret"];
        let shown = |text: &str| credentials.iter().any(|word| text.contains(word));
        for url in [
            "gopher://user:s3cret@h/x",
            "http://user:s3cret@",
            "user:s3cret@h/p",
            "file://user:s3cret@h/p",
        ] {
            let error = open(url, &RemoteOptions::default()).err().unwrap();
            assert!(!shown(&format!("{error} {error:?}")), "{error}");
        }
        let open = open(
            "http://user:s3cret@127.0.0.1:9/cache",
            &RemoteOptions::default(),
        )
        .unwrap();
        assert_eq!(open.describe(), "http://127.0.0.1:9/cache/");
        let sig = Signature::parse(&[b'a'; 32]).unwrap();
        let error = open.exists(&sig).unwrap_err();
        assert!(
            error.is_transient() && !shown(&format!("{error} {error:?}")),
            "{error}"
        );
    }
}
