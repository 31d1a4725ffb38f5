//! The remotes of a mount: each opened and behind its own breaker and deadline, then shards and tiers over them.
//!
//! One remote: `Retry(Breaker(Deadline(plain)))` for lookups, without the retry for uploads, which have a schedule of
//! their own. Several: the same for each, and `Shards` and `Tiers` over them, once for lookups and once for uploads; the
//! breakers are shared. Calls are counted right above the breakers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::MountError;
use super::runner::Pool;
use crate::clock::Clock;
use crate::config::{Config, Mode, Shard, Tier};
use crate::remote::breaker::{Breaker, BreakerOptions};
use crate::remote::counted::{Counted, Tally};
use crate::remote::deadline::{Deadline, DeadlineOptions};
use crate::remote::retry::{Retry, RetryOptions};
use crate::remote::shards::Shards;
use crate::remote::tiers::{self, Runner, Tiers};
use crate::remote::{self, Key, KeyError, Remote, RemoteOptions, shards};
use crate::stop::Stop;

/// The breaker probes a dead remote at least this often. With a probe before that waits for the stall time, a remote
/// that is back is used again within ten seconds.
const LONGEST_BREAK: Duration = Duration::from_secs(4);
/// Attempts of a fetch.
const FETCH_ATTEMPTS: u32 = 2;
/// A tier has this part of its lookup timeout for an answer before the next tier is asked.
const OVERTAKEN: u32 = 4;

/// One remote, behind its breaker.
pub(super) struct Leaf {
    /// Without credentials.
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) plain: Arc<dyn Remote>,
    pub(super) breaker: Arc<Breaker>,
    /// What is behind the breaker: knows which calls are overdue.
    pub(super) watched: Arc<Deadline>,
    pub(super) tally: Arc<Tally>,
}

/// All of them.
pub(super) struct Remotes {
    /// For lookups.
    pub(super) reading: Arc<dyn Remote>,
    /// For all else.
    pub(super) writing: Arc<dyn Remote>,
    /// `reading`, if there are tiers.
    pub(super) tiers: Option<Arc<Tiers>>,
    pub(super) leaves: Vec<Leaf>,
    /// The lowest that any of them may have.
    pub(super) min_speed: u64,
    /// Asked when others have taken their place.
    pub(super) over: Stop,
}

/// What remotes are to know of this machine.
pub(super) struct Local {
    pub(super) spool_dir: PathBuf,
    pub(super) umask: u32,
    pub(super) clock: Arc<dyn Clock>,
}

/// A remote that was opened without a mount.
pub struct Opened {
    /// Without credentials.
    pub name: String,
    /// Whether it may be written.
    pub writes: bool,
    /// The remote, without decorators.
    pub remote: Arc<dyn Remote>,
}

/// Opens every remote that a configuration names, without decorators; the mount is not needed for it.
pub fn open_remotes(config: &Config) -> Result<Vec<Opened>, MountError> {
    let mut opened = Vec::new();
    for tier in &config.tiers {
        let options = with_key(tier)?;
        for shard in &tier.shards {
            opened.push(Opened {
                name: shard.url.to_string(),
                writes: tier.mode == Mode::ReadWrite && !config.ro,
                remote: remote::open(shard.url.as_given(), &options)?,
            });
        }
    }
    Ok(opened)
}

/// The same of the only one that it names.
pub fn open_remote(config: &Config) -> Result<Arc<dyn Remote>, MountError> {
    let several = || {
        let why = format!("{}: this takes one remote, name one of them", config.remote);
        remote::RemoteError::Misconfigured(why)
    };
    let mut opened = open_remotes(config)?;
    match (opened.pop(), opened.is_empty()) {
        (Some(only), true) => Ok(only.remote),
        _ => Err(several().into()),
    }
}

/// The options of a tier, with the key read from its file.
fn with_key(tier: &Tier) -> Result<RemoteOptions, KeyError> {
    let key = tier.key_file.as_deref().map(Key::read).transpose()?;
    Ok(RemoteOptions {
        key,
        ..tier.remote_options.clone()
    })
}

/// The two ways to a part of the remotes: for lookups, and for all else.
struct Ways {
    reading: Arc<dyn Remote>,
    writing: Arc<dyn Remote>,
}

impl Remotes {
    pub(super) fn open(config: &Config, local: &Local) -> Result<Self, MountError> {
        let mut leaves = Vec::new();
        let mut parts = Vec::new();
        let mut min_speed = u64::MAX;
        for tier in &config.tiers {
            let options = RemoteOptions {
                spool_dir: local.spool_dir.clone(),
                umask: local.umask,
                clock: local.clock.clone(),
                ..with_key(tier)?
            };
            min_speed = min_speed.min(options.min_speed);
            let mut ways = Vec::new();
            for shard in &tier.shards {
                let leaf = Leaf::open(tier, shard, &options)?;
                ways.push(leaf.ways(&local.clock));
                leaves.push(leaf);
            }
            parts.push(sharded(tier, ways));
        }
        let (all, tiers) = tiered(config, parts, &local.clock);
        Ok(Self {
            reading: all.reading,
            writing: all.writing,
            tiers,
            leaves,
            min_speed,
            over: Stop::new()?,
        })
    }
}

impl Leaf {
    fn open(tier: &Tier, shard: &Shard, options: &RemoteOptions) -> Result<Self, MountError> {
        let plain = remote::open(shard.url.as_given(), options)?;
        let breaker = BreakerOptions {
            max_delay: LONGEST_BREAK,
            patience: tier.lookup_timeout,
            min_speed: options.min_speed,
            in_background: true,
            ..BreakerOptions::default()
        };
        let deadline = DeadlineOptions {
            first_byte: tier.lookup_timeout,
            stall: options.stall_timeout,
            whole: options.request_timeout,
            min_speed: options.min_speed,
        };
        let clock = &options.clock;
        let watched = Arc::new(Deadline::new(plain.clone(), clock.clone(), deadline));
        Ok(Self {
            name: shard.url.to_string(),
            mode: tier.mode,
            plain,
            breaker: Arc::new(Breaker::new(watched.clone(), clock.clone(), breaker)),
            watched,
            tally: Arc::default(),
        })
    }

    fn ways(&self, clock: &Arc<dyn Clock>) -> Ways {
        let retry = RetryOptions {
            attempts: FETCH_ATTEMPTS,
            ..RetryOptions::default()
        };
        let counted = Counted::new(self.breaker.clone(), self.tally.clone());
        let counted: Arc<dyn Remote> = Arc::new(counted);
        // A retry stops as soon as the breaker opens.
        Ways {
            reading: Arc::new(Retry::new(counted.clone(), clock.clone(), retry)),
            writing: counted,
        }
    }
}

fn sharded(tier: &Tier, mut ways: Vec<Ways>) -> Ways {
    if ways.len() == 1 {
        return ways.remove(0);
    }
    let over = |way: fn(&Ways) -> &Arc<dyn Remote>| -> Arc<dyn Remote> {
        let shards = tier
            .shards
            .iter()
            .zip(&ways)
            .map(|(shard, ways)| shards::Shard {
                name: shard.name.clone(),
                weight: shard.weight,
                remote: way(ways).clone(),
            });
        Arc::new(Shards::new(shards.collect(), tier.shown.clone()))
    };
    Ways {
        reading: over(|ways| &ways.reading),
        writing: over(|ways| &ways.writing),
    }
}

fn tiered(
    config: &Config,
    mut parts: Vec<Ways>,
    clock: &Arc<dyn Clock>,
) -> (Ways, Option<Arc<Tiers>>) {
    if parts.len() == 1 {
        return (parts.remove(0), None);
    }
    let pool: Arc<dyn Runner> = Arc::new(Pool::default());
    let over = |way: fn(&Ways) -> &Arc<dyn Remote>| {
        let tiers = config
            .tiers
            .iter()
            .zip(&parts)
            .map(|(tier, ways)| tiers::Tier {
                remote: way(ways).clone(),
                writes: tier.mode == Mode::ReadWrite,
                patience: tier.lookup_timeout / OVERTAKEN,
            });
        let name = config.remote.to_string();
        Arc::new(Tiers::new(
            tiers.collect(),
            pool.clone(),
            clock.clone(),
            name,
        ))
    };
    let reading = over(|ways| &ways.reading);
    let all = Ways {
        reading: reading.clone(),
        writing: over(|ways| &ways.writing),
    };
    (all, Some(reading))
}
