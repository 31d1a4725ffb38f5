//! The composition root: builds every part of a mount, joins them, and owns every thread.
//!
//! A mount ends in this order: it is unmounted (by us or by anybody), lookups that wait are answered, uploads are
//! drained as long as they may take, the parts stop, and only then is the backing directory free again.

mod change;
mod chores;
mod controls;
mod ending;
pub mod handover;
mod looking;
mod remotes;
mod runner;
mod session;
mod telling;
mod threads;
mod workers;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};

use crate::clock::Clock;
use crate::config::{Config, Push};
use crate::control::line::line;
use crate::control::mounts::{Device, MountTable};
use crate::control::server::Server;
use crate::control::{Controlled, Status};
use crate::events::{Events, EventsError};
use crate::fetch::{self, Fetch};
use crate::fs::{self, Fs};
use crate::fuse::link::Link;
use crate::fuse::{Hands, Invalidator, Passthrough};
use crate::metrics::server::Standing;
use crate::name::PRIVATE_DIR;
use crate::name::Place;
use crate::remote::swap::Swap;
use crate::remote::{KeyError, RemoteError};
use crate::stats::Stats;
use crate::stop::Stop;
use crate::store::{Limits, Store, StoreError};
use crate::upkeep::{self, Upkeep};
use crate::upload::{self, Uploads};
use change::{Changes, Order};
pub use change::{Handle, Resolve};
use chores::Chore;
use controls::Controls;
use handover::State;
use remotes::Remotes;
pub use remotes::{Opened, open_remote, open_remotes};
use threads::Threads;

/// How long threads that were told to end may take before they are left to the end of the process.
const LAST_HELPERS: Duration = Duration::from_secs(1);

/// How long syncing what came last may take at the end. What is not synced then keeps its mark.
const LAST_SYNC: Duration = Duration::from_secs(10);

/// Why a mount did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The remote's URL or options are wrong.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The backing directory cannot be used.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The key cannot be used.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The kernel or the mount helper refused.
    #[error("{what}: {source}{hint}")]
    Kernel {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The event log cannot be written.
    #[error("{0}")]
    Events(#[from] EventsError),
    /// Something else.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How a mount has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Objects that are not on the remote yet.
    pub pending_left: u64,
    /// What it did, in a line.
    pub line: String,
}

/// A running mount.
pub struct Mount {
    parts: Arc<Parts>,
    session: JoinHandle<()>,
    /// What it is in the mount table.
    number: Device,
    /// Fetch workers, evictor, and what else ends when the parts are stopped.
    helpers: Threads,
    /// The dispatcher of uploads.
    dispatcher: Threads,
    /// What brings entries to the disk.
    syncer: Threads,
    /// What writes the event log.
    teller: Threads,
    server: JoinHandle<()>,
    server_stop: Stop,
}

/// What outlives any one thread of a mount.
struct Parts {
    config: RwLock<Arc<Config>>,
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    remotes: RwLock<Arc<Remotes>>,
    /// The remotes for lookups, whichever they are at the moment.
    reading: Arc<Swap>,
    /// The same for all else.
    writing: Arc<Swap>,
    fetch: Arc<Fetch>,
    uploads: Arc<Uploads>,
    upkeep: Arc<Upkeep>,
    stats: Arc<Stats>,
    events: Option<Arc<Events>>,
    passthrough: Arc<Passthrough>,
    hands: Arc<Hands>,
    /// Set once there is one.
    fs: OnceLock<Arc<Fs>>,
    chores: crossbeam_channel::Sender<Chore>,
    /// Where metrics are served, if anywhere.
    metrics: Arc<Standing>,
    changes: Changes,
    /// What the workers take up, and the workers.
    jobs: Jobs,
    pools: Mutex<Pools>,
    drain_millis: AtomicU64,
    /// Asked once: unmount. Asked again: do not drain.
    stop: Stop,
    /// Asked when everything else has ended.
    over: Stop,
    started: Duration,
    /// How long it was up in programs that handed it over, and how many did.
    up_before: Duration,
    handovers: u32,
    /// What files are made with that are not made for somebody.
    umask: u32,
    link: Arc<Link>,
    /// Set once it is mounted.
    device: OnceLock<Arc<OwnedFd>>,
}

/// Threads that give way to others when their number or the remotes change.
#[derive(Default)]
struct Pools {
    fetchers: Threads,
    uploaders: Threads,
    /// Those that watch the remotes.
    watchers: Threads,
}

impl Mount {
    /// Mounts; returns when the mount answers.
    pub fn start(
        config: Config,
        clock: Arc<dyn Clock>,
        resolve: Box<dyn Resolve>,
    ) -> Result<Self, MountError> {
        Self::begin(config, clock, resolve, None)
    }

    /// Goes on with what another program has mounted and left to this one.
    pub fn resume(
        config: Config,
        clock: Arc<dyn Clock>,
        resolve: Box<dyn Resolve>,
        state: State,
    ) -> Result<Self, MountError> {
        Self::begin(config, clock, resolve, Some(state))
    }

    fn begin(
        config: Config,
        clock: Arc<dyn Clock>,
        resolve: Box<dyn Resolve>,
        state: Option<State>,
    ) -> Result<Self, MountError> {
        let umask = prepare_process();
        let (mut parts, todo) = Parts::build(config, clock, umask, resolve)?;
        if let Some(state) = &state {
            parts.up_before = Duration::from_millis(state.up_millis);
            parts.handovers = state.handovers;
            parts.stats.restore(&state.counters);
        }
        let parts = Arc::new(parts);
        let fs = Arc::new(parts.file_system()?);
        parts.set_file_system(&fs);
        let (session, devices) = match state {
            None => (parts.session(&fs)?, None),
            Some(state) => {
                let (session, devices) = parts.resumed(&fs, state)?;
                (session, Some(devices))
            }
        };
        fs.set_kernel(Box::new(Invalidator {
            notifier: session.notifier(),
            gate: parts.link.gate.clone(),
        }));
        parts.wire_upkeep(&fs);
        let device = Arc::new(session.as_fd().try_clone_to_owned()?);
        parts.hands.set_device(device.try_clone()?);
        parts.passthrough.set_device(device.clone());
        parts.device.get_or_init(|| device);

        let mut teller = Threads::default();
        telling::spawn(&mut teller, &parts)?;
        let mut helpers = Threads::default();
        let mut dispatcher = Threads::default();
        parts.set_pools(Pools {
            fetchers: workers::fetchers(&parts, &parts.config(), 0)?,
            uploaders: workers::uploaders(&parts, &parts.config(), 0)?,
            watchers: workers::watchers(&parts, &parts.remotes())?,
        });
        workers::keepers(&mut helpers, &parts, &fs)?;
        workers::upkeep(&mut helpers, &parts)?;
        let (changing, orders) = (parts.clone(), todo.orders);
        helpers.spawn_loop("changes", &parts.stats, &parts.over, move || {
            change::run(&changing, &orders);
        })?;
        let (doing, chores) = (parts.clone(), todo.chores);
        let file_system = fs.clone();
        helpers.spawn_loop("chores", &parts.stats, &parts.over, move || {
            chores::run(&doing, &file_system, &chores);
        })?;
        workers::dispatcher(&mut dispatcher, &parts, todo.uploads)?;
        let mut syncer = Threads::default();
        workers::syncer(&mut syncer, &parts, &fs)?;
        // Before the mount answers anything: whoever sees that it does can ask how it is.
        let server_stop = Stop::new()?;
        let number = parts.number()?;
        let server = parts.serve(number, server_stop.clone())?;
        workers::metrics(&mut helpers, &parts)?;
        if let Some(devices) = devices {
            handover::resend(devices)?;
        }
        let session = threads::spawn("session", move || {
            if let Err(e) = session::run_and_leave(session) {
                log::error!("the FUSE session ended: {e}");
            }
        })?;
        Ok(Self {
            parts,
            session,
            number,
            helpers,
            dispatcher,
            syncer,
            teller,
            server,
            server_stop,
        })
    }

    /// What others may ask of it while it stays.
    pub fn handle(&self) -> Handle {
        Handle(self.parts.clone())
    }

    /// Stays until it is unmounted and drained.
    pub fn wait(self) -> Summary {
        let parts = &self.parts;
        parts.wait_for_unmount(&self.session);
        parts.clear_away(self.number);
        parts.fetch.stop();
        let drained = parts.drain(&self.dispatcher);
        parts.store.stop();
        parts.upkeep.stop();
        parts.over.ask();
        // What is still talking to the remote ends with the process.
        self.helpers.join_within(&*parts.clock, LAST_HELPERS);
        let pools = parts.set_pools(Pools::default());
        pools.fetchers.join_within(&*parts.clock, LAST_HELPERS);
        pools.watchers.join_within(&*parts.clock, LAST_HELPERS);
        if drained {
            self.dispatcher.join_within(&*parts.clock, LAST_HELPERS);
            pools.uploaders.join_within(&*parts.clock, LAST_HELPERS);
        }
        self.syncer.join_within(&*parts.clock, LAST_SYNC);
        let last: Status = Controls(parts.clone()).status();
        if let Some(events) = &parts.events {
            events.end(line(&last), last.counters.clone());
            self.teller.join_within(&*parts.clock, LAST_HELPERS);
        }
        self.server_stop.ask();
        threads::join(self.server);
        Summary {
            pending_left: last.pending.objects,
            line: line(&last),
        }
    }
}

/// The receiving ends of the pools' channels.
struct Jobs {
    fetch: crossbeam_channel::Receiver<Place>,
    uploads: crossbeam_channel::Receiver<upload::Job>,
}

/// Ends of channels that one thread each is to get.
struct Todo {
    uploads: crossbeam_channel::Sender<upload::Job>,
    chores: crossbeam_channel::Receiver<Chore>,
    orders: crossbeam_channel::Receiver<Order>,
}

impl Parts {
    fn build(
        config: Config,
        clock: Arc<dyn Clock>,
        umask: u32,
        resolve: Box<dyn Resolve>,
    ) -> Result<(Self, Todo), MountError> {
        let stats = Arc::new(Stats::default());
        let local = remotes::Local {
            spool_dir: config.backing.join(PRIVATE_DIR).join("tmp"),
            umask,
            clock: clock.clone(),
        };
        let remotes = Remotes::open(&config, &local)?;
        prepare(&remotes)?;
        let reading = Arc::new(Swap::new(remotes.reading.clone()));
        let writing = Arc::new(Swap::new(remotes.writing.clone()));
        let limits = store_limits(&config);
        let store = Store::open(&config.backing, limits, clock.clone(), stats.clone())?;
        let store = Arc::new(store);
        // It may not be in the backing directory, which is there by now.
        let events = telling::open(&config, umask, &clock, &stats)?;
        let uploads = Uploads::new(store.clone(), writing.clone(), clock.clone(), stats.clone())?;
        uploads.set_limits(upload_limits(&config));
        // What an earlier mount left pending stays so.
        uploads.pause(config.push == Push::Off);
        let (send_fetches, fetches) = crossbeam_channel::bounded(fetch::QUEUE);
        let fetch = Fetch::new(
            store.clone(),
            reading.clone(),
            clock.clone(),
            stats.clone(),
            fetch_times(&config, &remotes),
            send_fetches,
        );
        let upkeep = Upkeep::new(
            store.clone(),
            writing.clone(),
            remotes.tiers.clone(),
            clock.clone(),
            stats.clone(),
            upkeep_options(&config),
        );
        // No room in between: what is not being uploaded stays in the queue, where it can be superseded.
        let (send_uploads, uploads_todo) = crossbeam_channel::bounded(0);
        let (chores, chores_todo) = crossbeam_channel::bounded(chores::WAITING);
        let (changes, orders) = Changes::new(resolve, local);
        let off = session::no_passthrough(&config).map(str::to_owned);
        let parts = Self {
            drain_millis: AtomicU64::new(millis(config.drain_timeout)),
            started: clock.now(),
            up_before: Duration::ZERO,
            handovers: 0,
            umask,
            link: Arc::default(),
            device: OnceLock::new(),
            metrics: Arc::default(),
            passthrough: Arc::new(Passthrough::new(off)),
            hands: Arc::new(Hands::new(config.event_threads)?),
            fs: OnceLock::new(),
            fetch: Arc::new(fetch),
            uploads: Arc::new(uploads),
            upkeep: Arc::new(upkeep),
            chores,
            changes,
            jobs: Jobs {
                fetch: fetches,
                uploads: uploads_todo,
            },
            pools: Mutex::default(),
            stop: Stop::new()?,
            over: Stop::new()?,
            config: RwLock::new(Arc::new(config)),
            clock,
            store,
            remotes: RwLock::new(Arc::new(remotes)),
            reading,
            writing,
            stats,
            events,
        };
        let todo = Todo {
            uploads: send_uploads,
            chores: chores_todo,
            orders,
        };
        Ok((parts, todo))
    }

    fn set_file_system(&self, fs: &Arc<Fs>) {
        if self.fs.set(fs.clone()).is_err() {
            log::error!("bug: the file system was set twice");
        }
    }

    /// What it is configured with at the moment.
    fn config(&self) -> Arc<Config> {
        let config = self.config.read();
        config.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The remotes of the moment.
    fn remotes(&self) -> Arc<Remotes> {
        let remotes = self.remotes.read();
        remotes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that there were before are left to their end.
    fn set_pools(&self, pools: Pools) -> Pools {
        let mut current = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, pools)
    }

    fn file_system(&self) -> io::Result<Fs> {
        let config = self.config();
        let options = fs::Options {
            read_only: config.ro,
            push: config.push != Push::Off,
            sync: config.push == Push::Sync,
            uid: config.uid,
            gid: config.gid,
            umask: config.umask,
        };
        Fs::new(
            self.store.clone(),
            self.fetch.clone(),
            self.uploads.clone(),
            options,
            self.clock.clone(),
            self.stats.clone(),
        )
    }

    /// Has the upkeep hear of what is fetched, uploaded and used.
    fn wire_upkeep(&self, fs: &Fs) {
        let hears = |what: fn(&Upkeep, &Place)| -> fetch::Listener {
            let upkeep = self.upkeep.clone();
            Box::new(move |place| what(&upkeep, place))
        };
        self.fetch.set_listener(hears(Upkeep::fetched));
        self.uploads.set_listener(hears(Upkeep::heard));
        fs.set_uses(hears(Upkeep::used));
    }

    fn uptime(&self) -> Duration {
        self.up_before + self.clock.now().saturating_sub(self.started)
    }

    fn number(&self) -> io::Result<Device> {
        let table = MountTable::read()?;
        let mounted = table.at(&self.config().mountpoint);
        let not_there = || io::Error::other("the mount is not in the mount table");
        Ok(mounted.ok_or_else(not_there)?.device)
    }

    fn serve(self: &Arc<Self>, device: Device, stop: Stop) -> Result<JoinHandle<()>, MountError> {
        let config = self.config();
        let controls = Arc::new(Controls(self.clone()));
        let server = Server::bind(&config.run_dir, device, controls, self.clock.clone())?;
        let stats = self.stats.clone();
        let run = move || {
            threads::keep_running("control", &stats, &stop, &|| server.run(&stop));
        };
        Ok(threads::spawn("control", run)?)
    }
}

/// Has the remotes look for their directories, so that from now on it would be noticed if those went. A dead file
/// server may keep its thread for ever, and us for a moment.
fn prepare(remotes: &Remotes) -> io::Result<()> {
    let (done, all_done) = crossbeam_channel::bounded::<()>(1);
    for leaf in &remotes.leaves {
        let (preparing, done) = (leaf.plain.clone(), done.clone());
        threads::spawn("prepare", move || {
            preparing.prepare();
            drop(done);
        })?;
    }
    drop(done);
    // It ends by a hang-up, or is too late.
    all_done.recv_timeout(PREPARE).ok();
    Ok(())
}

/// How long a mount waits for that: a directory that is there takes microseconds.
const PREPARE: Duration = Duration::from_millis(700);

fn store_limits(config: &Config) -> Limits {
    Limits {
        size: config.size,
        min_free: config.min_free,
    }
}

fn fetch_times(config: &Config, remotes: &Remotes) -> fetch::Times {
    fetch::Times {
        negative_ttl: config.negative_ttl,
        lookup_timeout: config.lookup_timeout,
        min_speed: remotes.min_speed,
    }
}

fn upkeep_options(config: &Config) -> upkeep::Options {
    upkeep::Options {
        enabled: config.push != Push::Off,
        touch: config.touch,
        reshare: config.reshare,
    }
}

/// A mount that uploads nothing gives nothing up either.
fn upload_limits(config: &Config) -> upload::Limits {
    if config.push == Push::Off {
        return upload::Limits::default();
    }
    upload::Limits {
        count: config.pending_max,
        bytes: config.pending_size,
        large_at_once: (config.upload_threads / 2).max(1),
    }
}

/// What the whole process needs: modes as they are asked for, and as many descriptors as it may have. The umask
/// that it had.
fn prepare_process() -> u32 {
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, wanted) {
        log::debug!("cannot raise the limit of open files: {e}");
    }
    umask.as_raw_mode()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
