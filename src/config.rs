//! Configuration: from a remote, a mountpoint and `-o` options to a [`Config`] that is valid.
//!
//! The options stand in one table, [`options::OPTIONS`]: parsing, `--help` and the test against the man page are all
//! derived from it. To add an option: a field in [`Config`], a field in `Draft`, a line in the table.
//!
//! Nothing here reads the environment, opens a file or asks the machine anything: what has to be known of it comes
//! in as a [`Host`]. No value of an option is ever a secret itself, only the name of the file that holds it, since
//! options end up in process lists and mount tables.

pub mod foreign;
pub mod options;
pub mod places;
mod relaunch;
mod spec;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::remote::{Environment, RemoteOptions, Secret};

pub use places::RemoteUrl;
pub use relaunch::Relaunch;
pub use spec::{Mode, Shard, Tier};
pub use values::{Amount, amount, duration};

const KIB: u64 = 1024;
const GIB: u64 = KIB * KIB * KIB;

/// Default of `size`. It is taken by halves of small disks: see [`MAX_SHARE`].
const DEFAULT_SIZE: u64 = 20 * GIB;
/// The default size takes at most this many percent of the backing file system.
const MAX_SHARE: u8 = 50;
/// Default of `min_free`, of which small disks give at most [`FREE_SHARE`] percent.
const DEFAULT_MIN_FREE: u64 = GIB;
/// The default of `min_free` is at most this many percent of the backing file system.
const FREE_SHARE: u8 = 5;
/// Default of `pending_max`. Each takes about 300 bytes of memory.
const DEFAULT_PENDING: u64 = 100_000;
/// Default of `pending_size`, in percent of `size`: eviction may not touch what is pending, and an outage is no reason
/// to have no cache.
const PENDING_SHARE: u8 = 75;
/// Default of `lookup_timeout`. A dead remote may cost a build three seconds in all: this much of waiting, and what it takes
/// to notice that it was in vain.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Most event loops by default: more only compete for the kernel's request queue.
const MAX_EVENT_THREADS: usize = 16;

/// Fewest event loops: an operation that waits for the news of another one (a close) must not be in its way.
const MIN_EVENT_THREADS: usize = 2;

/// Everything that a mount needs to know, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// How this program was started, so that another version can go on where it stands; nobody may where it is absent.
    pub relaunch: Option<Relaunch>,
    /// All remotes, as they were typed.
    pub remote: RemoteUrl,
    /// The same, one by one, in the order in which they are asked; never empty.
    pub tiers: Vec<Tier>,
    /// Where it is mounted; absolute.
    pub mountpoint: PathBuf,
    /// The directory on disk that holds the entries; absolute.
    pub backing: PathBuf,
    /// Where the control sockets are.
    pub run_dir: PathBuf,
    /// Limit of the backing directory in bytes.
    pub size: u64,
    /// Bytes to be left free on the backing file system.
    pub min_free: u64,
    /// Never writes the remote.
    pub ro: bool,
    /// When what is renamed in is uploaded; always [`Push::Off`] when `ro`, or when no tier may be written.
    pub push: Push,
    /// How long "absent" is remembered.
    pub negative_ttl: Duration,
    /// Latest first byte of a lookup, in the tier that has the longest time for it.
    pub lookup_timeout: Duration,
    /// Remotes are told of entries in use when they heard of them longer ago than so.
    pub touch: Option<Duration>,
    /// Entries in use are uploaded again if the remotes lack them.
    pub reshare: bool,
    /// How uploads are awaited at unmount.
    pub drain_timeout: Duration,
    /// Most objects that may be pending.
    pub pending_max: u64,
    /// Most bytes that they may take on the disk.
    pub pending_size: u64,
    /// Fetches at one time.
    pub fetch_threads: usize,
    /// Uploads at one time.
    pub upload_threads: usize,
    /// Event loops.
    pub event_threads: usize,
    /// What remotes are to be opened with that are not in `tiers`, but for the key.
    pub remote_options: RemoteOptions,
    /// File with the key that objects are authenticated with; whoever opens the remote reads it.
    pub key_file: Option<PathBuf>,
    /// Whether other users than the mounting one may use it.
    pub allow_other: bool,
    /// Whether the kernel checks permissions.
    pub default_permissions: bool,
    /// Owner of everything, when forced.
    pub uid: Option<u32>,
    /// Group of everything, when forced.
    pub gid: Option<u32>,
    /// Permission bits taken away from everything.
    pub umask: Option<u32>,
    /// Whether the kernel may read and write the backing files itself.
    pub passthrough: bool,
    /// Name of the source in the mount table; never holds credentials.
    pub fsname: String,
    /// Flags of mount(2).
    pub kernel: KernelFlags,
    /// What is logged and where to.
    pub log: LogOptions,
    /// Where metrics and the status page are served.
    pub metrics: Option<SocketAddr>,
}

/// When what is renamed into place is uploaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Push {
    /// In the background, after the rename has returned.
    #[default]
    On,
    /// Never.
    Off,
    /// Before the rename returns.
    Sync,
}

impl Push {
    /// As it is written in an option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Sync => "sync",
        }
    }
}

/// Flags of mount(2) that mount(8)'s options name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFlags {
    /// Ignores set-user-id bits.
    pub nosuid: bool,
    /// Ignores device nodes.
    pub nodev: bool,
    /// Nothing on it can be executed.
    pub noexec: bool,
    /// Reading leaves access times alone.
    pub noatime: bool,
}

impl Default for KernelFlags {
    fn default() -> Self {
        Self {
            nosuid: true,
            nodev: true,
            noexec: false,
            noatime: false,
        }
    }
}

/// What is logged and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// `log_level=`: outweighs the filter.
    pub level: Option<LevelFilter>,
    /// A filter as env_logger understands it, from the environment.
    pub filter: Option<String>,
    /// A file to log to, instead of syslog or standard error.
    pub file: Option<PathBuf>,
}

/// What configuration has to know of the machine and of who is asking. `cli` fills it in.
#[derive(Clone, Debug)]
pub struct Host {
    /// Effective user.
    pub uid: u32,
    /// Processors.
    pub cpus: usize,
    /// The working directory.
    pub cwd: PathBuf,
    /// HOME.
    pub home: Option<PathBuf>,
    /// XDG_CACHE_HOME.
    pub cache_home: Option<PathBuf>,
    /// XDG_RUNTIME_DIR.
    pub runtime_dir: Option<PathBuf>,
    /// CACHEDIRFS_BEARER_TOKEN.
    pub bearer: Option<Secret>,
    /// What the clouds' own tools take from the environment.
    pub environment: Environment,
    /// CACHEDIRFS_LOG or RUST_LOG.
    pub log_filter: Option<String>,
    /// The number of a user by name.
    pub user_id: fn(&str) -> Option<u32>,
    /// The number of a group by name.
    pub group_id: fn(&str) -> Option<u32>,
    /// Total bytes of the file system that would hold this path.
    pub disk_size: fn(&Path) -> Option<u64>,
}

/// Why there is no [`Config`]. Each is a mistake in what was typed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No such option.
    #[error("unknown option `{name}`{}", suggestion.map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    Unknown {
        /// What was typed.
        name: String,
        /// What may have been meant.
        suggestion: Option<&'static str>,
    },
    /// An option's value is wrong or missing.
    #[error("option `{name}`: {why}")]
    Value {
        /// The option.
        name: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The remote cannot be what was meant.
    #[error("remote {remote}: {why}")]
    Remote {
        /// Without credentials.
        remote: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// No default for the backing directory can be made.
    #[error(
        "nowhere to keep the cache: neither HOME nor XDG_CACHE_HOME is set; name a directory with -o backing=DIR"
    )]
    NoBacking,
}

/// The options as typed: what was not said is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    /// Remotes besides the one in the arguments.
    more: Vec<String>,
    backing: Option<PathBuf>,
    size: Option<Amount>,
    min_free: Option<Amount>,
    ro: Option<bool>,
    push: Option<Push>,
    negative_ttl: Option<Duration>,
    lookup_timeout: Option<Duration>,
    touch: Option<Option<Duration>>,
    reshare: Option<bool>,
    drain_timeout: Option<Duration>,
    pending_max: Option<u64>,
    pending_size: Option<Amount>,
    fetch_threads: Option<usize>,
    upload_threads: Option<usize>,
    event_threads: Option<usize>,
    remote: RemoteOptions,
    key_file: Option<PathBuf>,
    allow_other: Option<bool>,
    default_permissions: Option<bool>,
    uid: Option<String>,
    gid: Option<String>,
    umask: Option<u32>,
    passthrough: Option<bool>,
    fsname: Option<String>,
    kernel: KernelFlags,
    log: LogOptions,
    metrics: Option<SocketAddr>,
}

impl Config {
    /// The configuration for mounting `remote` at `mountpoint` with these `-o` arguments, each a comma-separated list.
    /// Of an option that is given twice, the last one counts.
    pub fn new(
        remote: &str,
        mountpoint: &Path,
        options: &[String],
        host: &Host,
    ) -> Result<Self, ConfigError> {
        let mut draft = Draft::default();
        for list in options {
            options::apply(list, &mut draft)?;
        }
        draft.resolve(remote, mountpoint, host)
    }

    /// The configuration for talking to a remote without mounting it.
    pub fn unmounted(remote: &str, options: &[String], host: &Host) -> Result<Self, ConfigError> {
        Self::new(remote, Path::new("/"), options, host)
    }

    /// The remote without credentials.
    pub fn remote_shown(&self) -> String {
        self.remote.to_string()
    }
}

impl Draft {
    fn resolve(
        mut self,
        remote: &str,
        mountpoint: &Path,
        host: &Host,
    ) -> Result<Config, ConfigError> {
        let mut texts = vec![remote.to_owned()];
        texts.append(&mut self.more);
        let tiers = spec::tiers(&texts, &self, LOOKUP_TIMEOUT, host)?;
        let shown: Vec<_> = tiers.iter().map(|tier| tier.shown.as_str()).collect();
        let remote = RemoteUrl::all(texts.join(" "), shown.join(" "));
        let mountpoint = host.cwd.join(mountpoint);
        let backing = match self.backing {
            Some(dir) => host.cwd.join(dir),
            None => places::default_backing(&remote, &mountpoint, host)?,
        };
        let disk = (host.disk_size)(&backing);
        let ro = self.ro.unwrap_or(false);
        let size = size(self.size, disk)?;
        Ok(Config {
            relaunch: None,
            size,
            pending_max: self.pending_max.unwrap_or(DEFAULT_PENDING),
            pending_size: match self.pending_size {
                None => Amount::Percent(PENDING_SHARE).of(size),
                Some(amount) => bytes("pending_size", amount, disk)?,
            },
            min_free: min_free(self.min_free, disk)?,
            ro,
            push: if ro || tiers.iter().all(|tier| tier.mode == Mode::ReadOnly) {
                Push::Off
            } else {
                self.push.unwrap_or_default()
            },
            negative_ttl: self.negative_ttl.unwrap_or(Duration::from_secs(10)),
            lookup_timeout: tiers
                .iter()
                .map(|tier| tier.lookup_timeout)
                .max()
                .unwrap_or(LOOKUP_TIMEOUT),
            touch: self.touch.flatten(),
            reshare: self.reshare.unwrap_or(false),
            drain_timeout: self.drain_timeout.unwrap_or(Duration::from_secs(60)),
            fetch_threads: self.fetch_threads.unwrap_or(16),
            upload_threads: self.upload_threads.unwrap_or(8),
            event_threads: self
                .event_threads
                .unwrap_or((2 * host.cpus).clamp(4, MAX_EVENT_THREADS))
                .max(MIN_EVENT_THREADS),
            remote_options: remote_options(self.remote, host),
            key_file: self.key_file.map(|file| host.cwd.join(file)),
            allow_other: self.allow_other.unwrap_or(host.uid == 0),
            default_permissions: self.default_permissions.unwrap_or(true),
            uid: number_of("uid", self.uid, host.user_id)?,
            gid: number_of("gid", self.gid, host.group_id)?,
            umask: self.umask,
            passthrough: self.passthrough.unwrap_or(true),
            fsname: self.fsname.unwrap_or_else(|| remote.to_string()),
            kernel: self.kernel,
            log: log_options(self.log, host),
            metrics: self.metrics,
            run_dir: places::run_dir(host),
            remote,
            tiers,
            mountpoint,
            backing,
        })
    }
}

/// Files are named relative to where the command was typed; the daemon works elsewhere. Credentials that are named
/// in an option outweigh the token in the environment.
fn remote_options(typed: RemoteOptions, host: &Host) -> RemoteOptions {
    let absolute = |file: Option<PathBuf>| file.map(|f| host.cwd.join(f));
    let named =
        typed.basic_file.is_some() || typed.bearer_file.is_some() || typed.netrc_file.is_some();
    RemoteOptions {
        basic_file: absolute(typed.basic_file),
        bearer_file: absolute(typed.bearer_file),
        netrc_file: absolute(typed.netrc_file),
        ca_file: absolute(typed.ca_file),
        client_cert_file: absolute(typed.client_cert_file),
        client_key_file: absolute(typed.client_key_file),
        headers_file: absolute(typed.headers_file),
        bearer: host.bearer.clone().filter(|_| !named),
        environment: host.environment.clone(),
        ..typed
    }
}

fn log_options(typed: LogOptions, host: &Host) -> LogOptions {
    LogOptions {
        level: typed.level,
        filter: host.log_filter.clone(),
        file: typed.file.map(|f| host.cwd.join(f)),
    }
}

fn size(typed: Option<Amount>, disk: Option<u64>) -> Result<u64, ConfigError> {
    let half = disk.map_or(u64::MAX, |d| Amount::Percent(MAX_SHARE).of(d));
    match typed {
        None => Ok(DEFAULT_SIZE.min(half)),
        Some(amount) => bytes("size", amount, disk),
    }
}

fn min_free(typed: Option<Amount>, disk: Option<u64>) -> Result<u64, ConfigError> {
    let share = disk.map_or(u64::MAX, |d| Amount::Percent(FREE_SHARE).of(d));
    match typed {
        None => Ok(DEFAULT_MIN_FREE.min(share)),
        Some(amount) => bytes("min_free", amount, disk),
    }
}

fn bytes(name: &str, amount: Amount, disk: Option<u64>) -> Result<u64, ConfigError> {
    match (amount, disk) {
        (Amount::Bytes(bytes), _) => Ok(bytes),
        (Amount::Percent(_), Some(disk)) => Ok(amount.of(disk)),
        (Amount::Percent(_), None) => Err(ConfigError::Value {
            name: name.into(),
            why: "the size of the backing file system is not known; say it in bytes, such as 20G"
                .into(),
        }),
    }
}

fn number_of(
    option: &str,
    typed: Option<String>,
    look_up: fn(&str) -> Option<u32>,
) -> Result<Option<u32>, ConfigError> {
    let Some(typed) = typed else { return Ok(None) };
    let found = typed.parse().ok().or_else(|| look_up(&typed));
    match found {
        Some(number) => Ok(Some(number)),
        None => Err(ConfigError::Value {
            name: option.into(),
            why: format!("nobody here is called `{typed}`; expected a number or a name"),
        }),
    }
}

#[cfg(test)]
mod tests;
