//! The control socket of a mount: `status`, `flush`, `remove`, `remount` and `stop`, from outside.
//!
//! A mount listens on `RUNDIR/MAJOR:MINOR.sock`, where `MAJOR:MINOR` is the device number that the kernel gave the mount. So it is
//! found from the mount table alone, also when the mount itself no longer answers. A connection carries one
//! request and one answer, each a line of JSON.
//!
//! Everybody who can reach the socket may ask for the status; only root and the owner of the mount may
//! ask for more. This module does not know what a mount is made of: it talks to a [`Controlled`].

pub mod client;
pub mod human;
pub mod line;
pub mod lists;
pub mod mounts;
pub mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Receiver;
use serde::{Deserialize, Serialize};

use crate::stats::histogram::Distribution;
use crate::stats::{Snapshot, Times};
pub use lists::{BATCH, Divergence, Entry, GivenUp, Holding, Removed};

/// Longest request or answer. Ours take well under a tenth; what is longer is no friend's.
pub const MAX_LINE: usize = 64 * 1024;

/// What the control socket can ask of a mount. Each call returns at once: nothing here waits for a remote.
pub trait Controlled: Send + Sync {
    /// How it is doing.
    fn status(&self) -> Status;

    /// Marks this moment in the order of pushes, for [`Controlled::pending_before`].
    fn mark(&self) -> u64;

    /// How many of the objects that were pushed before `mark` was taken are not on the remote yet.
    fn pending_before(&self, mark: u64) -> u64;

    /// Whether waiting for them makes sense at all.
    fn uploads(&self) -> bool {
        true
    }

    /// The next few pushes that differ from what the remote holds, of those whose number is above `after`.
    fn divergent(&self, after: u64) -> Vec<Divergence>;

    /// The same of uploads that were given up.
    fn given_up(&self, after: u64) -> Vec<GivenUp>;

    /// Begins to remove objects; what became of them comes through the channel. The error says why it cannot be begun.
    fn remove(&self, removal: Removal) -> Result<Receiver<Vec<Removed>>, String>;

    /// What is known of one entry here, and if `ask`, what each remote says of it now. It comes through the channel. The error
    /// says why it cannot be found out.
    fn entry(&self, signature: &str, ask: bool) -> Result<Receiver<Entry>, String>;

    /// From now on an unmount waits this long for uploads, instead of what was configured.
    fn set_drain_timeout(&self, timeout: Duration);

    /// Begins to change it; what was changed, in words, comes through the channel. The error says why it cannot be begun.
    fn remount(&self, wanted: Remount) -> Result<Receiver<Remounted>, String>;

    /// Asks it to unmount and stop.
    fn stop(&self);

    /// Becomes another program, which reads this format of what it is left; returns why not.
    fn hand_over(&self, program: &Path, format: u32) -> String;
}

/// How a mount is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The remote, without credentials.
    pub remote: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The backing directory.
    pub backing: String,
    /// How long it has been up.
    pub uptime_seconds: u64,
    /// How often another version took it over meanwhile.
    pub upgrades: u32,
    /// Never writes the remote.
    pub read_only: bool,
    /// `on`, `off` or `sync`.
    pub push: String,
    /// Whether the kernel reads and writes backing files itself.
    pub passthrough: bool,
    /// Why it does not.
    pub passthrough_off_because: Option<String>,
    /// What happened since the mount.
    pub counters: Snapshot,
    /// What is not on the remote yet.
    pub pending: Pending,
    /// Entries on disk.
    pub entries: u64,
    /// Their bytes, and those of what was removed or replaced and is still to be uploaded.
    pub bytes_used: u64,
    /// Limit of the backing directory.
    pub limit: u64,
    /// Bytes to be left free on its file system.
    pub min_free: u64,
    /// `ok`; `failing`, `hangs` or `slow` while it is not asked.
    pub remote_state: String,
    /// Why it is not; absent when it is well.
    pub remote_trouble: Option<String>,
    /// For how long it has not been asked; zero when it is well.
    pub remote_since_seconds: u64,
    /// The remotes one by one, in the order in which they are asked.
    pub remotes: Vec<RemoteStatus>,
    /// What is wrong with the backing disk; absent when it is well.
    pub disk_trouble: Option<String>,
    /// Whether all entries on disk are counted and known to eviction already.
    pub index_complete: bool,
    /// The file of events; absent when there is none.
    pub events: Option<String>,
    /// How long remotes took.
    pub latencies: Latencies,
    /// Where metrics and the status page are served; absent when they are not.
    pub metrics: Option<String>,
    /// Why they are not, although they should be.
    pub metrics_trouble: Option<String>,
}

/// How long remotes took since the mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latencies {
    /// From the request to the whole object on the disk.
    pub fetch: Latency,
    /// From the request to "no such object".
    pub miss: Latency,
    /// From the request to the failure.
    pub failure: Latency,
    /// Uploads that succeeded.
    pub upload: Latency,
}

/// Of one kind of call; the median and what 99% stayed below are as good as the classes of the histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// How many there were. The rest is zero if there were none.
    pub count: u64,
    /// How long all took together, in microseconds.
    pub total_micros: u64,
    /// In microseconds.
    pub median_micros: u64,
    /// In microseconds.
    pub p99_micros: u64,
}

impl From<&Times> for Latencies {
    fn from(times: &Times) -> Self {
        Self {
            fetch: times.fetch.get().into(),
            miss: times.miss.get().into(),
            failure: times.failure.get().into(),
            upload: times.upload.get().into(),
        }
    }
}

impl From<Distribution> for Latency {
    fn from(seen: Distribution) -> Self {
        Self {
            count: seen.count(),
            total_micros: seen.micros,
            median_micros: seen.quantile(500).unwrap_or_default(),
            p99_micros: seen.quantile(990).unwrap_or_default(),
        }
    }
}

/// How one of the remotes is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteStatus {
    /// Without credentials.
    pub name: String,
    /// `rw` or `ro`.
    pub mode: String,
    /// `ok`; `failing`, `hangs` or `slow` while it is not asked.
    pub state: String,
    /// Why it is not; absent when it is well.
    pub trouble: Option<String>,
    /// For how long it has not been asked; zero when it is well.
    pub since_seconds: u64,
    /// Lookups that it had the object for.
    pub hits: u64,
    /// Lookups that it did not.
    pub misses: u64,
    /// Objects that it took.
    pub uploaded: u64,
    /// Calls that failed.
    pub errors: u64,
}

/// What is not on the remote yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pending {
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Age of the oldest; zero when there is none.
    pub oldest_seconds: u64,
}

/// What is to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Of these signatures; at most [`BATCH`].
    pub signatures: Vec<String>,
    /// From the remote, too.
    pub remote: bool,
    /// How long to wait for an upload that is under way.
    pub timeout_ms: u64,
}

/// What is to change of a mount. What is not said stays as it is; its configuration file is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remount {
    /// The remote, if it was said.
    pub source: Option<String>,
    /// A list of options as for `-o`, with absolute paths.
    pub options: String,
}

/// What was changed, a line each; or why nothing was.
pub type Remounted = Result<Vec<String>, String>;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Request {
    /// How are you?
    Status,
    /// Answer when all that was pushed until now is on the remote, or after this time.
    Flush {
        /// The time.
        timeout_ms: u64,
    },
    /// Which pushes differ from what the remote holds?
    Divergent {
        /// Those with a higher number than this.
        after: u64,
    },
    /// Which uploads were given up?
    #[serde(rename = "given_up")]
    GivenUp {
        /// Those with a higher number than this.
        after: u64,
    },
    /// What is known of one entry? Answer when that is known.
    Entry {
        /// Its signature.
        signature: String,
        /// Ask the remotes, too.
        remotes: bool,
    },
    /// Answer when they are removed.
    Remove(Removal),
    /// Become that program. There is an answer only if that cannot be.
    Upgrade {
        /// Which.
        program: PathBuf,
        /// What it can read.
        format: u32,
    },
    /// Answer when it is changed.
    Remount(Remount),
    /// Answer when the mount is gone and drained.
    Stop {
        /// Whether the daemon is to unmount; otherwise the asker does.
        unmount: bool,
        /// How long to drain, if not as configured.
        drain_timeout_ms: Option<u64>,
    },
}

/// What can be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Flush`].
    Flushed {
        /// How many objects are not on the remote.
        left: u64,
    },
    /// To [`Request::Divergent`]: the next few, none when there are no more.
    Divergent(Vec<Divergence>),
    /// To [`Request::GivenUp`], likewise.
    #[serde(rename = "given_up")]
    GivenUp(Vec<GivenUp>),
    /// To [`Request::Entry`].
    Entry(Entry),
    /// To [`Request::Remove`].
    Removed(Vec<Removed>),
    /// To [`Request::Remount`].
    Remounted(Vec<String>),
    /// To [`Request::Stop`].
    Stopped {
        /// How many objects go to the remote with the next mount only.
        left: u64,
        /// What the mount did, in a line.
        #[serde(default)]
        summary: String,
    },
    /// To what was not understood or not allowed.
    Error(String),
}

#[cfg(test)]
mod tests;
