//! The composition root: builds every part of a mount, joins them, and owns every thread.
//!
//! A mount ends in this order: it is unmounted (by us or by anybody), lookups that wait are answered, uploads are
//! drained as long as they may take, the parts stop, and only then is the backing directory free again.

mod chores;
mod controls;
pub mod handover;
mod remotes;
mod runner;
mod session;
mod threads;
mod workers;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};

use crate::clock::Clock;
use crate::config::{Config, Push};
use crate::control::mounts::MountTable;
use crate::control::server::Server;
use crate::fetch::{self, Fetch};
use crate::fs::{self, Fs};
use crate::fuse::link::Link;
use crate::fuse::{Hands, Invalidator, Passthrough};
use crate::metrics::server::Standing;
use crate::name::PRIVATE_DIR;
use crate::remote::{KeyError, RemoteError};
use crate::stats::Stats;
use crate::stop::Stop;
use crate::store::{Limits, Store, StoreError};
use crate::upkeep::{self, Upkeep};
use crate::upload::{self, Uploads};
use crate::{name::Place, sys};
use chores::Chore;
use controls::Controls;
use handover::State;
use remotes::Remotes;
pub use remotes::{Opened, open_remote, open_remotes};
use threads::Threads;

/// How often it is asked whether a probe is due, and whether calls are overdue.
const PROBE_TICK: Duration = Duration::from_millis(500);
/// How long a mount that was told to stop waits for those who still have files open in it.
const LINGER: Duration = Duration::from_secs(2);
/// How long uploads that are under way when the draining ends may still take.
const LAST_UPLOADS: Duration = Duration::from_millis(500);
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
    /// Something else.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What is left when a mount has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Objects that are not on the remote yet.
    pub pending_left: u64,
}

/// A running mount.
pub struct Mount {
    parts: Arc<Parts>,
    session: JoinHandle<()>,
    /// Fetch workers, evictor, and what else ends when the parts are stopped.
    helpers: Threads,
    uploaders: Threads,
    /// What brings entries to the disk.
    syncer: Threads,
    server: JoinHandle<()>,
    server_stop: Stop,
}

/// What outlives any one thread of a mount.
struct Parts {
    config: Config,
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    remotes: Remotes,
    fetch: Arc<Fetch>,
    uploads: Arc<Uploads>,
    upkeep: Option<Arc<Upkeep>>,
    stats: Arc<Stats>,
    passthrough: Arc<Passthrough>,
    hands: Arc<Hands>,
    chores: crossbeam_channel::Sender<Chore>,
    /// Where metrics are served, if anywhere.
    metrics: Arc<Standing>,
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
    fs: OnceLock<Arc<Fs>>,
    device: OnceLock<Arc<OwnedFd>>,
}

impl Mount {
    /// Mounts; returns when the mount answers.
    pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Self, MountError> {
        Self::begin(config, clock, None)
    }

    /// Goes on with what another program has mounted and left to this one.
    pub fn resume(config: Config, clock: Arc<dyn Clock>, state: State) -> Result<Self, MountError> {
        Self::begin(config, clock, Some(state))
    }

    fn begin(
        config: Config,
        clock: Arc<dyn Clock>,
        state: Option<State>,
    ) -> Result<Self, MountError> {
        let umask = prepare_process();
        let (mut parts, jobs) = Parts::build(config, clock, umask)?;
        if let Some(state) = &state {
            parts.up_before = Duration::from_millis(state.up_millis);
            parts.handovers = state.handovers;
            parts.stats.restore(&state.counters);
        }
        let parts = Arc::new(parts);
        let fs = Arc::new(parts.file_system()?);
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
        parts.fs.get_or_init(|| fs.clone());

        let mut helpers = Threads::default();
        let mut uploaders = Threads::default();
        workers::fetchers(&mut helpers, &parts, &jobs.fetch)?;
        workers::keepers(&mut helpers, &parts, &fs)?;
        workers::upkeep(&mut helpers, &parts)?;
        let (doing, chores) = (parts.clone(), jobs.chores);
        let file_system = fs.clone();
        helpers.spawn_loop("chores", &parts.stats, &parts.over, move || {
            chores::run(&doing, &file_system, &chores);
        })?;
        workers::uploaders(&mut uploaders, &parts)?;
        let mut syncer = Threads::default();
        workers::syncer(&mut syncer, &parts, &fs)?;
        // Before the mount answers anything: whoever sees that it does can ask how it is.
        let server_stop = Stop::new()?;
        let server = parts.serve(server_stop.clone())?;
        workers::metrics(&mut helpers, &parts)?;
        if let Some(devices) = devices {
            handover::resend(devices)?;
        }
        let session = threads::spawn("session", move || {
            if let Err(e) = session.run() {
                log::error!("the FUSE session ended: {e}");
            }
        })?;
        Ok(Self {
            parts,
            session,
            helpers,
            uploaders,
            syncer,
            server,
            server_stop,
        })
    }

    /// What asks the mount to end: the first call unmounts, each further one says to leave the draining.
    pub fn stopper(&self) -> Box<dyn Fn() + Send + Sync> {
        let parts = self.parts.clone();
        Box::new(move || parts.ask_to_stop())
    }

    /// Stays until it is unmounted and drained.
    pub fn wait(self) -> Summary {
        let parts = &self.parts;
        parts.wait_for_unmount(&self.session);
        parts.fetch.stop();
        let drained = parts.drain(&self.uploaders);
        parts.store.stop();
        parts.upkeep.iter().for_each(|upkeep| upkeep.stop());
        parts.over.ask();
        // What is still talking to the remote ends with the process.
        self.helpers.join_within(&*parts.clock, LAST_HELPERS);
        if drained {
            self.uploaders.join_within(&*parts.clock, LAST_HELPERS);
        }
        self.syncer.join_within(&*parts.clock, LAST_SYNC);
        self.server_stop.ask();
        threads::join(self.server);
        Summary {
            pending_left: parts.uploads.pending().count,
        }
    }
}

/// The receiving ends of the pools' channels.
struct Jobs {
    fetch: crossbeam_channel::Receiver<Place>,
    chores: crossbeam_channel::Receiver<Chore>,
}

impl Parts {
    fn build(
        config: Config,
        clock: Arc<dyn Clock>,
        umask: u32,
    ) -> Result<(Self, Jobs), MountError> {
        let stats = Arc::new(Stats::default());
        let limits = Limits {
            size: config.size,
            min_free: config.min_free,
        };
        let local = remotes::Local {
            spool_dir: config.backing.join(PRIVATE_DIR).join("tmp"),
            umask,
            clock: clock.clone(),
        };
        let remotes = Remotes::open(&config, &local)?;
        prepare(&remotes)?;
        let store = Store::open(&config.backing, limits, clock.clone(), stats.clone())?;
        let store = Arc::new(store);
        let uploads = Uploads::new(
            store.clone(),
            remotes.writing.clone(),
            clock.clone(),
            stats.clone(),
        )?;
        let uploads = uploads.bounded(upload_limits(&config));
        let (send, receive) = crossbeam_channel::bounded(fetch::QUEUE);
        let times = fetch::Times {
            negative_ttl: config.negative_ttl,
            lookup_timeout: config.lookup_timeout,
            min_speed: remotes.min_speed,
        };
        let fetch = Fetch::new(
            store.clone(),
            remotes.reading.clone(),
            clock.clone(),
            stats.clone(),
            times,
            send,
        );
        let upkeep = (config.push != Push::Off).then(|| {
            let options = upkeep::Options {
                touch: config.touch,
                reshare: config.reshare,
            };
            let (writing, tiers) = (remotes.writing.clone(), remotes.tiers.clone());
            let (clock, stats) = (clock.clone(), stats.clone());
            Arc::new(Upkeep::new(
                store.clone(),
                writing,
                tiers,
                clock,
                stats,
                options,
            ))
        });
        let (chores, chores_todo) = crossbeam_channel::bounded(chores::WAITING);
        let off = session::no_passthrough(&config).map(str::to_owned);
        let parts = Self {
            drain_millis: AtomicU64::new(millis(config.drain_timeout)),
            started: clock.now(),
            metrics: Arc::default(),
            up_before: Duration::ZERO,
            handovers: 0,
            umask,
            link: Arc::default(),
            fs: OnceLock::new(),
            device: OnceLock::new(),
            passthrough: Arc::new(Passthrough::new(off)),
            hands: Arc::new(Hands::new(config.event_threads)?),
            fetch: Arc::new(fetch),
            uploads: Arc::new(uploads),
            upkeep,
            chores,
            stop: Stop::new()?,
            over: Stop::new()?,
            config,
            clock,
            store,
            remotes,
            stats,
        };
        let jobs = Jobs {
            fetch: receive,
            chores: chores_todo,
        };
        Ok((parts, jobs))
    }

    fn file_system(&self) -> io::Result<Fs> {
        let options = fs::Options {
            read_only: self.config.ro,
            push: self.config.push != Push::Off,
            uid: self.config.uid,
            gid: self.config.gid,
            umask: self.config.umask,
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
        let Some(upkeep) = &self.upkeep else { return };
        let hears = |what: fn(&Upkeep, &Place)| -> fetch::Listener {
            let upkeep = upkeep.clone();
            Box::new(move |place| what(&upkeep, place))
        };
        self.fetch.set_listener(hears(Upkeep::fetched));
        self.uploads.set_listener(hears(Upkeep::heard));
        if upkeep.wants_uses() {
            fs.set_uses(hears(Upkeep::used));
        }
    }

    fn uptime(&self) -> Duration {
        self.up_before + self.clock.now().saturating_sub(self.started)
    }

    fn serve(self: &Arc<Self>, stop: Stop) -> Result<JoinHandle<()>, MountError> {
        let config = &self.config;
        let table = MountTable::read()?;
        let device = table
            .at(&config.mountpoint)
            .ok_or_else(|| io::Error::other("the mount is not in the mount table"))?
            .device;
        let controls = Arc::new(Controls(self.clone()));
        let server = Server::bind(&config.run_dir, device, controls, self.clock.clone())?;
        let stats = self.stats.clone();
        let run = move || {
            threads::keep_running("control", &stats, &stop, &|| server.run(&stop));
        };
        Ok(threads::spawn("control", run)?)
    }

    /// Does something every [`PROBE_TICK`] until all is over.
    fn now_and_then(&self, work: impl Fn()) {
        while !self.over.asked() {
            work();
            if let Err(e) = sys::poll_readable(&[self.over.as_fd()], Some(PROBE_TICK)) {
                log::error!("the remote is not watched any more: {e}");
                return;
            }
        }
    }

    fn ask_to_stop(&self) {
        self.stop.ask();
        if self.stop.at_once() {
            self.drain_millis.store(0, Ordering::Relaxed);
            self.uploads.drain(Duration::ZERO);
            return;
        }
        if let Err(e) = unmount(&self.config.mountpoint) {
            log::warn!("cannot unmount {}: {e}", self.config.mountpoint.display());
        }
    }

    /// Waits until the session has ended. Told to stop, it does not wait for ever for files that are still open.
    fn wait_for_unmount(&self, session: &JoinHandle<()>) {
        let mut give_up = None;
        while !session.is_finished() {
            let now = self.clock.now();
            match give_up {
                Some(time) if now >= time => {
                    log::warn!(
                        "files are still open in {}",
                        self.config.mountpoint.display()
                    );
                    return;
                }
                None if self.stop.asked() => give_up = Some(now + LINGER),
                _ => {}
            }
            self.clock.sleep(UNMOUNT_TICK);
        }
    }

    /// Drains the uploads; whether all their threads have ended.
    fn drain(&self, uploaders: &Threads) -> bool {
        let timeout = Duration::from_millis(self.drain_millis.load(Ordering::Relaxed));
        self.uploads.drain(timeout);
        let mut deadline = self.clock.now() + timeout + LAST_UPLOADS;
        let mut cut = false;
        while !uploaders.are_finished() {
            if self.stop.at_once() && !cut {
                cut = true;
                self.uploads.drain(Duration::ZERO);
                deadline = self.clock.now() + LAST_UPLOADS;
            }
            if self.clock.now() >= deadline {
                return false;
            }
            self.clock.sleep(DRAIN_TICK);
        }
        true
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
/// The FUSE device.
const DEVICE: &str = "/dev/fuse";
/// How often it is seen whether the session has ended.
const UNMOUNT_TICK: Duration = Duration::from_millis(20);
/// How often it is seen whether the uploads have ended.
const DRAIN_TICK: Duration = Duration::from_millis(10);

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

/// Unmounts; lazily if it is in use.
fn unmount(mountpoint: &Path) -> io::Result<()> {
    match sys::unmount(mountpoint, false) {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => sys::unmount(mountpoint, true),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => unmount_by_helper(mountpoint),
        // Somebody else was faster.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// What a user may not do, fusermount3 does.
fn unmount_by_helper(mountpoint: &Path) -> io::Result<()> {
    let status = std::process::Command::new("fusermount3")
        .arg("-uz")
        .arg(mountpoint)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("fusermount3 -uz: {status}")))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
