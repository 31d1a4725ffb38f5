//! Changes to a mount while it is used: by `remount`, or because its configuration file is read again.
//!
//! All that can fail is done before anything is changed, so a change that is refused changes nothing. Whoever is at work goes on:
//! fetches under way end with the remote that they began with, what is pending goes to the new one, what was known to be absent is
//! forgotten, and breakers begin anew. New workers take over from the old ones (a later **shift**), since those may be busy
//! with a remote that never answers.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::mount::{MountFlags, mount_remount};

use super::remotes::{Local, Remotes};
use super::{
    Parts, Pools, fetch_times, millis, prepare, store_limits, upkeep_options, upload_limits,
    workers,
};
use crate::config::change::{Change, changes, concerns_remotes};
use crate::config::{Config, KernelFlags, Push};
use crate::control::{Remount, Remounted};
use crate::logging;

/// Changes that may wait; one more is refused.
const WAITING: usize = 8;
/// How often the thread looks whether the mount has ended.
const END_TICK: Duration = Duration::from_millis(200);

/// Who knows what a mount was configured with, and can read it again.
pub trait Resolve: Send + Sync {
    /// What a mount that runs like that is to be configured with, and what is worth a warning. The error says why nothing can
    /// be changed.
    fn resolve(&self, wanted: &Remount, running: &Config) -> Result<(Config, Vec<String>), String>;

    /// That has been done: what comes next builds on it.
    fn keep(&self, wanted: &Remount, running: &Config);

    /// What would have been typed to have it as it is now, for another version of the program.
    fn typed(&self) -> String;
}

/// A change that is to be made, and where its outcome goes.
pub(super) struct Order {
    pub(super) wanted: Remount,
    pub(super) outcome: Sender<Remounted>,
}

/// What changes need, and the one that is being made.
pub(super) struct Changes {
    resolve: Box<dyn Resolve>,
    local: Local,
    orders: Sender<Order>,
    one_at_a_time: Mutex<()>,
    /// Workers of earlier shifts end.
    shift: AtomicU64,
}

impl Changes {
    pub(super) fn new(resolve: Box<dyn Resolve>, local: Local) -> (Self, Receiver<Order>) {
        let (orders, receive) = crossbeam_channel::bounded(WAITING);
        let changes = Self {
            resolve,
            local,
            orders,
            one_at_a_time: Mutex::default(),
            shift: AtomicU64::new(0),
        };
        (changes, receive)
    }

    /// Has the thread make a change.
    pub(super) fn order(&self, order: Order) -> Result<(), String> {
        let sent = self.orders.try_send(order);
        sent.map_err(|_| "too much is being changed already; try again later".to_owned())
    }

    /// Held while nothing is changed.
    pub(super) fn hold(&self) -> Option<MutexGuard<'_, ()>> {
        match self.one_at_a_time.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn typed(&self) -> String {
        self.resolve.typed()
    }

    pub(super) fn shift(&self) -> u64 {
        self.shift.load(Ordering::Relaxed)
    }
}

/// Makes the changes that come through the channel until the mount is over.
pub(super) fn run(parts: &Arc<Parts>, orders: &Receiver<Order>) {
    while !parts.over.asked() {
        let Ok(order) = orders.recv_timeout(END_TICK) else {
            continue;
        };
        let done = parts.change(&order.wanted);
        // Whoever asked may be gone.
        drop(order.outcome.try_send(done));
    }
}

/// What others may ask of a mount while it stays.
pub struct Handle(pub(super) Arc<Parts>);

impl Handle {
    /// Asks it to end: the first call unmounts, each further one says to leave the draining.
    pub fn stop(&self) {
        self.0.ask_to_stop();
    }

    /// What it is configured with at the moment.
    pub fn config(&self) -> Arc<Config> {
        self.0.config()
    }

    /// Reads its configuration again, and opens the log and the event log anew. What was changed, a line each; or why nothing was.
    pub fn reload(&self) -> Remounted {
        self.0.events.iter().for_each(|events| events.reopen());
        self.0.change(&Remount::default())
    }
}

/// Everything that can fail, done.
struct Ready {
    config: Config,
    changes: Vec<Change>,
    log: Option<logging::Prepared>,
    remotes: Option<Arc<Remotes>>,
    pools: Option<Pools>,
}

impl Parts {
    fn change(self: &Arc<Self>, wanted: &Remount) -> Remounted {
        let one = self.changes.one_at_a_time.lock();
        let _one = one.unwrap_or_else(PoisonError::into_inner);
        if self.stop.asked() {
            return Err("the mount is ending".to_owned());
        }
        let running = self.config();
        let (mut config, warnings) = self.changes.resolve.resolve(wanted, &running)?;
        config.relaunch = running.relaunch.clone();
        let ready = self.get_ready(&running, config)?;
        let told: Vec<_> = ready.changes.iter().map(Change::to_string).collect();
        self.take_over(ready);
        self.changes.resolve.keep(wanted, &running);
        for warning in &warnings {
            log::warn!("{warning}");
        }
        for change in &told {
            log::info!("changed while mounted: {change}");
        }
        Ok(told.into_iter().chain(warnings).collect())
    }

    fn get_ready(self: &Arc<Self>, running: &Config, config: Config) -> Result<Ready, String> {
        let changes = changes(running, &config).map_err(|err| err.to_string())?;
        let cannot = |err: io::Error| format!("{err}; nothing was changed");
        let log =
            logging::prepare(&config.log).map_err(|err| format!("{err}; nothing was changed"))?;
        let remotes = match concerns_remotes(running, &config) {
            false => None,
            true => {
                let opened = Remotes::open(&config, &self.changes.local);
                let opened = opened.map_err(|err| format!("{err}; nothing was changed"))?;
                prepare(&opened).map_err(cannot)?;
                Some(Arc::new(opened))
            }
        };
        let threads = |config: &Config| (config.fetch_threads, config.upload_threads);
        let pools = match remotes.is_some() || threads(running) != threads(&config) {
            false => None,
            true => {
                let shift = self.changes.shift() + 1;
                let watchers = |remotes| workers::watchers(self, remotes);
                let pools = || {
                    Ok(Pools {
                        fetchers: workers::fetchers(self, &config, shift)?,
                        uploaders: workers::uploaders(self, &config, shift)?,
                        // Those of the remotes that stay, stay.
                        watchers: remotes
                            .as_ref()
                            .map(watchers)
                            .transpose()?
                            .unwrap_or_default(),
                    })
                };
                Some(pools().map_err(cannot)?)
            }
        };
        if running.kernel != config.kernel {
            set_kernel_flags(&config, config.kernel)?;
        }
        Ok(Ready {
            config,
            changes,
            log,
            remotes,
            pools,
        })
    }

    /// Nothing of this can fail.
    fn take_over(&self, ready: Ready) {
        let config = ready.config;
        if let Some(log) = ready.log {
            log.take_effect();
        }
        self.store.set_limits(store_limits(&config));
        self.uploads.set_limits(upload_limits(&config));
        self.upkeep.set_options(upkeep_options(&config));
        let (pushes, waits) = (config.push != Push::Off, config.push == Push::Sync);
        let fs = self.fs.get();
        fs.inspect(|fs| fs.set_modes(config.ro, pushes, waits));
        self.uploads.pause(!pushes);
        if self.config().drain_timeout != config.drain_timeout {
            let millis = millis(config.drain_timeout);
            self.drain_millis.store(millis, Ordering::Relaxed);
        }
        if ready.pools.is_some() {
            self.changes.shift.fetch_add(1, Ordering::Relaxed);
        }
        let times = |remotes: &Remotes| fetch_times(&config, remotes);
        match ready.remotes {
            None => self.fetch.set_times(times(&self.remotes())),
            Some(remotes) => {
                // Whoever is told that there is another remote meets it.
                self.reading.set(remotes.reading.clone());
                self.writing.set(remotes.writing.clone());
                self.uploads.renew();
                self.upkeep.renew(remotes.tiers.clone());
                let absent = self.fetch.renew(times(&remotes));
                self.set_remotes(remotes);
                fs.inspect(|fs| fs.forget_absent(&absent));
            }
        }
        if let Some(pools) = ready.pools {
            self.set_pools(pools);
        }
        let mut current = self.config.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(config);
    }

    fn set_remotes(&self, remotes: Arc<Remotes>) {
        let mut current = self.remotes.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, remotes);
        drop(current);
        old.over.ask();
    }
}

/// The kernel's own part of a remount: it may ignore or forbid what is on the mount.
fn set_kernel_flags(config: &Config, wanted: KernelFlags) -> Result<(), String> {
    let switches = [
        (wanted.nosuid, MountFlags::NOSUID),
        (wanted.nodev, MountFlags::NODEV),
        (wanted.noexec, MountFlags::NOEXEC),
        (wanted.noatime, MountFlags::NOATIME),
        (!wanted.noatime, MountFlags::RELATIME),
    ];
    let on = switches.into_iter().filter(|(on, _)| *on);
    // Of this mount alone: the file system itself is not asked.
    let flags = on.fold(MountFlags::BIND, |all, (_, flag)| all | flag);
    mount_remount(&config.mountpoint, flags, "").map_err(|err| {
        format!(
            "cannot change `nosuid`, `nodev`, `noexec` or `noatime` of {}: {err}; only root can: umount and mount anew; \
             nothing was changed",
            config.mountpoint.display()
        )
    })
}
