//! Configuration: from a remote, a mountpoint and `-o` options to a [`Config`] that is valid.
//!
//! The options stand in one table, [`options::OPTIONS`]: parsing, `--help` and the test against the man page are all
//! derived from it. To add an option: a field in [`Config`], a field in `Draft`, a line in the table, and one in [`shown`]
//! for `--print-config`; in [`change`] if it can change while mounted.
//!
//! Of what is said in several places one rule decides ([`origin`]): command line or fstab, then the environment, then the
//! file, then what other programs' variables say, then the default.
//!
//! Nothing here reads the environment, opens a file or asks the machine anything: what has to be known of it comes
//! in as a [`Host`], and the text of a configuration file as a [`FileConfig`]. No value of an option is ever a secret itself, only the name of the file that holds it, since
//! options end up in process lists and mount tables.

pub mod change;
mod error;
pub mod file;
pub mod foreign;
pub mod list;
pub mod options;
pub mod origin;
pub mod places;
mod relaunch;
pub mod shown;
mod spec;
mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use crate::remote::{Environment, RemoteOptions, Secret};

pub use error::ConfigError;
pub use file::FileConfig;
pub use origin::{Origin, Sayings};
pub use places::RemoteUrl;
pub use relaunch::Relaunch;
pub use spec::{Mode, Shard, Tier};
pub use values::{Amount, amount, duration};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
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
/// Default of `events_size`: some 300,000 events.
const DEFAULT_EVENTS_SIZE: u64 = 64 * MIB;
/// Default of `events_files`.
const DEFAULT_EVENTS_FILES: u64 = 4;
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
    /// The configuration file, if there is one; absolute.
    pub config_file: Option<PathBuf>,
    /// What was said of each option, and where.
    pub said: Sayings,
    /// Where it is written what happens to entries, if anywhere.
    pub events: EventsOptions,
}

/// The event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsOptions {
    /// The file, if there is to be one; absolute.
    pub file: Option<PathBuf>,
    /// Bytes of one file.
    pub size: u64,
    /// Files that are kept besides.
    pub files: u64,
}

/// What a configuration is made from, but for the environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The remote, if it was typed.
    pub remote: Option<&'a str>,
    /// The mountpoint, if it was typed.
    pub mountpoint: Option<&'a Path>,
    /// The arguments of `-o`, each a comma-separated list.
    pub options: &'a [String],
    /// The configuration file.
    pub file: Option<&'a FileConfig>,
    /// What is mounted: what is not said of the backing directory and the name stays as it is there.
    pub running: Option<&'a Config>,
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
    /// CREDENTIALS_DIRECTORY: where systemd puts what LoadCredential= names.
    pub credentials: Option<PathBuf>,
    /// CACHEDIRFS_BEARER_TOKEN.
    pub bearer: Option<Secret>,
    /// What the clouds' own tools take from the environment.
    pub environment: Environment,
    /// CACHEDIRFS_OPTIONS: options as for `-o`.
    pub options: Option<String>,
    /// CACHEDIRFS_LOG.
    pub log_filter: Option<String>,
    /// RUST_LOG, which is not meant for us alone.
    pub shared_log_filter: Option<String>,
    /// The number of a user by name.
    pub user_id: fn(&str) -> Option<u32>,
    /// The number of a group by name.
    pub group_id: fn(&str) -> Option<u32>,
    /// Total bytes of the file system that would hold this path.
    pub disk_size: fn(&Path) -> Option<u64>,
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
    config_file: Option<PathBuf>,
    said: Sayings,
    metrics: Option<SocketAddr>,
    events: Option<PathBuf>,
    events_size: Option<u64>,
    events_files: Option<u64>,
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
        let sources = Sources {
            remote: Some(remote),
            mountpoint: Some(mountpoint),
            options,
            ..Sources::default()
        };
        Self::from_sources(&sources, host)
    }

    /// The configuration that all sources together give.
    pub fn from_sources(sources: &Sources<'_>, host: &Host) -> Result<Self, ConfigError> {
        let mut draft = Draft::default();
        if let Some(file) = sources.file {
            file.apply(&mut draft)?;
        }
        draft.apply_environment(host)?;
        for list in sources.options {
            options::apply(list, &Origin::CommandLine, &mut draft)?;
        }
        let from_file = sources.file.and_then(|file| {
            let (remote, line) = file.remote.as_ref()?;
            Some((remote.as_str(), file.at(*line)))
        });
        let typed = sources.remote.map(|typed| (typed, Origin::CommandLine));
        let (remote, origin) = typed
            .or(from_file)
            .ok_or(ConfigError::Missing("the remote"))?;
        draft.said.note("remote", remote, &origin);
        let from_file = sources.file.and_then(|file| {
            let (mountpoint, line) = file.mountpoint.as_ref()?;
            Some((mountpoint.as_path(), file.at(*line)))
        });
        let typed = sources.mountpoint.map(|typed| (typed, Origin::CommandLine));
        let (mountpoint, origin) = typed
            .or(from_file)
            .ok_or(ConfigError::Missing("the mountpoint"))?;
        draft.said.note("mountpoint", "", &origin);
        if let Some(running) = sources.running {
            draft.backing.get_or_insert(running.backing.clone());
            draft.fsname.get_or_insert(running.fsname.clone());
        }
        let said = draft.said.clone();
        draft.resolve(remote, mountpoint, host).map_err(|error| {
            let about = match &error {
                ConfigError::Value { name, .. } if said.of(name).is_some() => name.clone(),
                ConfigError::Value { .. } | ConfigError::Remote { .. } => "remote".to_owned(),
                _ => String::new(),
            };
            error.at(&said.origin(&about))
        })
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
    /// What our own variables say: more than the file, less than the command line.
    fn apply_environment(&mut self, host: &Host) -> Result<(), ConfigError> {
        if host.bearer.is_some() {
            options::forget_credentials(self);
            let origin = Origin::Environment("CACHEDIRFS_BEARER_TOKEN");
            self.said.note("bearer_file", "", &origin);
        }
        if let Some(filter) = &host.log_filter {
            self.log.level = None;
            self.log.filter = Some(filter.clone());
            let origin = Origin::Environment("CACHEDIRFS_LOG");
            self.said.note("log_level", filter, &origin);
        }
        let Some(list) = &host.options else {
            return Ok(());
        };
        let origin = Origin::Environment("CACHEDIRFS_OPTIONS");
        options::apply(list, &origin, self)
            .map_err(|err| ConfigError::Other(format!("CACHEDIRFS_OPTIONS: {err}")))
    }

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
            remote_options: remote_options(self.remote, host)?,
            key_file: places::file("key_file", self.key_file, host)?,
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
            events: EventsOptions {
                file: self.events.map(|file| host.cwd.join(file)),
                size: self.events_size.unwrap_or(DEFAULT_EVENTS_SIZE),
                files: self.events_files.unwrap_or(DEFAULT_EVENTS_FILES),
            },
            run_dir: places::run_dir(host),
            config_file: self.config_file.map(|file| host.cwd.join(file)),
            said: self.said,
            remote,
            tiers,
            mountpoint,
            backing,
        })
    }
}

/// Files are named relative to where the command was typed; the daemon works elsewhere. Credentials that are named
/// in an option outweigh the token in the environment.
fn remote_options(typed: RemoteOptions, host: &Host) -> Result<RemoteOptions, ConfigError> {
    let absolute = |name, file| places::file(name, file, host);
    let named =
        typed.basic_file.is_some() || typed.bearer_file.is_some() || typed.netrc_file.is_some();
    Ok(RemoteOptions {
        basic_file: absolute("basic_file", typed.basic_file)?,
        bearer_file: absolute("bearer_file", typed.bearer_file)?,
        netrc_file: absolute("netrc_file", typed.netrc_file)?,
        ca_file: absolute("ca_file", typed.ca_file)?,
        client_cert_file: absolute("client_cert_file", typed.client_cert_file)?,
        client_key_file: absolute("client_key_file", typed.client_key_file)?,
        headers_file: absolute("headers_file", typed.headers_file)?,
        bearer: host.bearer.clone().filter(|_| !named),
        environment: host.environment.clone(),
        ..typed
    })
}

fn log_options(typed: LogOptions, host: &Host) -> LogOptions {
    LogOptions {
        level: typed.level,
        filter: typed.filter.or_else(|| host.shared_log_filter.clone()),
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
