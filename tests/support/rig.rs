//! A machine without a kernel: the file system over a temporary backing directory and a remote in memory, with
//! fetch workers on threads as in a mount. Time stands still unless a test moves it.
//!
//! The rig asks as the kernel would: component by component, with the remote asked where the file system says so,
//! and with an account of the lookups that it may take back.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::Read;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cachedirfs::clock::{Clock, ManualClock};
use cachedirfs::fetch::{Fetch, Outcome, QUEUE, Times};
use cachedirfs::fs::setattr::Changes;
use cachedirfs::fs::{Caller, Errno, Found, Fs, Looked, Options, ROOT};
use cachedirfs::name::{Name, Place};
use cachedirfs::object::{Content, Object};
use cachedirfs::remote::blob::BlobRemote;
use cachedirfs::remote::breaker::{Breaker, BreakerOptions};
use cachedirfs::remote::memory::Memory;
use cachedirfs::remote::{Listed, Put, Remote, RemoteError, RemoteOptions};
use cachedirfs::signature::{Meta, Signature};
use cachedirfs::stats::Stats;
use cachedirfs::store::{Limits, Store, StoreError};
use cachedirfs::upload::{Limits as UploadLimits, Uploads};
use rustix::fs::FileType;

/// Longest that a test waits for something that must happen: far more than it takes, also on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a machine is told at its start.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    pub(crate) limits: Limits,
    pub(crate) pending: UploadLimits,
    pub(crate) times: Times,
    /// Where the backing directory is made.
    pub(crate) place: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        let options = Options {
            push: true,
            ..Options::default()
        };
        let limits = Limits {
            size: 1 << 30,
            min_free: 0,
        };
        let times = Times {
            negative_ttl: Duration::from_secs(30),
            lookup_timeout: PATIENCE,
            min_speed: 0,
        };
        Self {
            options,
            limits,
            pending: UploadLimits::default(),
            times,
            place: std::env::temp_dir(),
        }
    }
}

impl Settings {
    /// The default with a limit of so many bytes.
    pub(crate) fn limited(size: u64) -> Self {
        let limits = Limits { size, min_free: 0 };
        Self {
            limits,
            ..Self::default()
        }
    }
}

/// The way to the remote: counts what goes over it, can be held, and can be cut.
pub(crate) struct Wire {
    inner: BlobRemote<Memory>,
    pub(crate) gets: AtomicUsize,
    pub(crate) puts: AtomicUsize,
    down: AtomicBool,
    bug: AtomicBool,
    /// Calls wait while this is set; how many do.
    held: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Wire {
    fn to(memory: &Memory) -> Arc<Self> {
        Arc::new(Self {
            inner: BlobRemote::new(memory.clone(), &RemoteOptions::default()),
            gets: AtomicUsize::new(0),
            puts: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            bug: AtomicBool::new(false),
            held: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Every call fails from now on, or none does.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Every call panics from now on, or none does.
    pub(crate) fn set_bug(&self, bug: bool) {
        self.bug.store(bug, Ordering::SeqCst);
    }

    /// Calls wait from now on.
    pub(crate) fn hold(&self) {
        self.held.lock().unwrap().0 = true;
    }

    /// Nothing waits any more.
    pub(crate) fn let_go(&self) {
        self.held.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    /// Returns when so many calls wait.
    pub(crate) fn wait_for_held(&self, calls: usize) {
        let held = self.held.lock().unwrap();
        let fewer = |held: &mut (bool, usize)| held.1 < calls;
        let waited = self.changed.wait_timeout_while(held, PATIENCE, fewer);
        assert!(!waited.unwrap().1.timed_out(), "fewer than {calls} calls");
    }

    fn pass(&self) -> Result<(), RemoteError> {
        let mut held = self.held.lock().unwrap();
        held.1 += 1;
        self.changed.notify_all();
        held = self.changed.wait_while(held, |held| held.0).unwrap();
        held.1 -= 1;
        drop(held);
        assert!(!self.bug.load(Ordering::SeqCst), "a bug in the remote");
        if self.down.load(Ordering::SeqCst) {
            return Err(RemoteError::Transient("the wire is cut".to_owned()));
        }
        Ok(())
    }
}

impl Remote for Wire {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.pass()?;
        self.inner.get(sig)
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.pass()?;
        self.inner.put(sig, meta, content)
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.inner.exists(sig)
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.inner.delete(sig)
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.inner.list(each)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// A clock with a bug that can be switched on.
#[derive(Debug)]
struct Fragile(Arc<ManualClock>, Arc<AtomicBool>);

impl Clock for Fragile {
    fn now(&self) -> Duration {
        assert!(!self.1.load(Ordering::SeqCst), "a bug in the clock");
        self.0.now()
    }

    fn wall(&self) -> std::time::SystemTime {
        self.0.wall()
    }

    fn sleep(&self, time: Duration) {
        self.0.sleep(time);
    }
}

/// One machine.
pub(crate) struct Rig {
    pub(crate) memory: Memory,
    pub(crate) wire: Arc<Wire>,
    pub(crate) clock: Arc<ManualClock>,
    /// While it is set, whoever asks for the time panics.
    pub(crate) clock_bug: Arc<AtomicBool>,
    settings: Settings,
    dir: Arc<tempfile::TempDir>,
    parts: Option<Parts>,
}

/// What a start builds and a stop ends.
pub(crate) struct Parts {
    pub(crate) fs: Arc<Fs>,
    pub(crate) store: Arc<Store>,
    pub(crate) fetch: Arc<Fetch>,
    /// What keeps lookups away from a remote that hangs. Failures do not open it, and only tests probe.
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) stats: Arc<Stats>,
    threads: Vec<JoinHandle<()>>,
    /// Lookups that were answered and not taken back.
    lookups: Mutex<HashMap<u64, u64>>,
}

impl Deref for Rig {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        self.parts.as_ref().expect("it runs")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.crash();
    }
}

impl Rig {
    /// A machine with an empty backing directory and a remote of its own.
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    /// The same with these settings.
    pub(crate) fn with(settings: Settings) -> Self {
        Self::start(settings, &Memory::default(), |_| {})
    }

    /// Another machine with the same remote.
    pub(crate) fn second(&self) -> Self {
        let settings = Settings {
            place: self.settings.place.clone(),
            ..Settings::default()
        };
        Self::start(settings, &self.memory, |_| {})
    }

    /// A machine whose backing directory was prepared before its first start.
    pub(crate) fn prepared(prepare: impl FnOnce(&Path)) -> Self {
        Self::start(Settings::default(), &Memory::default(), prepare)
    }

    fn start(settings: Settings, memory: &Memory, prepare: impl FnOnce(&Path)) -> Self {
        // As a mount does: modes are as they are asked for.
        rustix::process::umask(rustix::fs::Mode::empty());
        let dir = tempfile::tempdir_in(&settings.place).unwrap();
        let mut backing = std::fs::DirBuilder::new();
        let backing = backing.mode(0o755).create(dir.path().join("backing"));
        backing.unwrap();
        prepare(&dir.path().join("backing"));
        let mut rig = Self {
            memory: memory.clone(),
            wire: Wire::to(memory),
            clock: Arc::default(),
            clock_bug: Arc::default(),
            settings,
            dir: Arc::new(dir),
            parts: None,
        };
        rig.parts = Some(rig.build().unwrap());
        rig
    }

    fn build(&self) -> Result<Parts, StoreError> {
        let stats = Arc::new(Stats::default());
        let clock: Arc<dyn Clock> = Arc::new(Fragile(self.clock.clone(), self.clock_bug.clone()));
        let store = Store::open(
            &self.backing(),
            self.settings.limits,
            clock.clone(),
            stats.clone(),
        )?;
        let store = Arc::new(store);
        store.scan().unwrap();
        let remote: Arc<dyn Remote> = self.wire.clone();
        let uploads =
            Uploads::new(store.clone(), remote.clone(), clock.clone(), stats.clone()).unwrap();
        uploads.set_limits(self.settings.pending);
        let uploads = Arc::new(uploads);
        let (send, jobs) = crossbeam_channel::bounded(QUEUE);
        let breaker = BreakerOptions {
            failures: u32::MAX,
            in_background: true,
            ..BreakerOptions::default()
        };
        let breaker = Arc::new(Breaker::new(remote, clock.clone(), breaker));
        let fetch = Arc::new(Fetch::new(
            store.clone(),
            breaker.clone(),
            clock.clone(),
            stats.clone(),
            self.settings.times,
            send,
        ));
        let fetching = fetch.clone();
        let mut threads = vec![std::thread::spawn(move || {
            fetching.run_worker(&jobs, &|| true);
        })];
        // Otherwise no lookup can be late before its test is.
        if self.settings.times.lookup_timeout < PATIENCE {
            let ticking = fetch.clone();
            threads.push(std::thread::spawn(move || ticking.run_clock()));
        }
        let fs = Fs::new(
            store.clone(),
            fetch.clone(),
            uploads.clone(),
            self.settings.options.clone(),
            clock,
            stats.clone(),
        );
        Ok(Parts {
            fs: Arc::new(fs.unwrap()),
            store,
            fetch,
            breaker,
            uploads,
            stats,
            threads,
            lookups: Mutex::default(),
        })
    }

    /// Ends as if the daemon was killed: nothing is drained, nothing that is open is closed.
    pub(crate) fn crash(&mut self) {
        let Some(parts) = self.parts.take() else {
            return;
        };
        self.wire.let_go();
        parts.fetch.stop();
        parts.store.stop();
        for thread in parts.threads {
            thread.join().unwrap();
        }
    }

    /// Ends and begins again with other settings.
    pub(crate) fn restart_with(&mut self, settings: Settings) {
        self.crash();
        self.settings = settings;
        self.parts = Some(self.build().unwrap());
    }

    /// Ends and begins again on the same backing directory. What is open stays open for nobody.
    pub(crate) fn restart(&mut self) {
        self.restart_with(self.settings.clone());
    }

    /// The backing directory.
    pub(crate) fn backing(&self) -> PathBuf {
        self.dir.path().join("backing")
    }

    /// Uploads everything that is pending.
    pub(crate) fn drain(&self) {
        let (send, jobs) = crossbeam_channel::bounded(0);
        self.uploads.drain(PATIENCE);
        std::thread::scope(|scope| {
            scope.spawn(|| self.uploads.run_dispatcher(send));
            self.uploads.run_worker(&jobs, &|| true);
        });
    }

    /// What the remote holds under a signature: what it is and its bytes.
    pub(crate) fn on_remote(&self, sig: &Signature) -> Option<(Meta, Vec<u8>)> {
        let mut object = self.wire.inner.get(sig).unwrap()?;
        let mut bytes = Vec::new();
        object.content.read_to_end(&mut bytes).unwrap();
        Some((object.meta, bytes))
    }

    /// Puts an object on the remote past this machine, as another one does.
    pub(crate) fn put_on_remote(&self, sig: &Signature, meta: Meta, bytes: &[u8]) {
        let content = Content::Bytes(bytes.to_vec());
        self.wire.inner.put(sig, meta, &content).unwrap();
    }

    /// Who asks: this process.
    pub(crate) fn caller(&self) -> Caller {
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        }
    }

    /// Looks a name up as the kernel does, asking the remote where the file system wants it.
    pub(crate) fn lookup(&self, parent: u64, name: &str) -> Result<Found, Errno> {
        let name = OsStr::new(name);
        let found = match self.fs.lookup(parent, name)? {
            Looked::Found(found) => found,
            Looked::Absent(_) => return Err(Errno::NOENT),
            Looked::Ask(place) => {
                self.fs.fetcher().ask_and_wait(place);
                self.fs.lookup_again(parent, name)?
            }
        };
        Ok(self.told(found))
    }

    /// Counts a lookup that was answered.
    pub(crate) fn told(&self, found: Found) -> Found {
        *self
            .lookups
            .lock()
            .unwrap()
            .entry(found.attr.ino)
            .or_default() += 1;
        found
    }

    /// Takes every lookup back but those of `keep`.
    pub(crate) fn forget_all_but(&self, keep: impl Fn(u64) -> bool) {
        self.lookups.lock().unwrap().retain(|ino, count| {
            let keep = keep(*ino);
            if !keep {
                self.fs.forget(*ino, *count);
            }
            keep
        });
    }

    /// Looks a path up, component by component.
    pub(crate) fn lookup_path(&self, path: &str) -> Result<Found, Errno> {
        let mut parent = ROOT;
        let mut found = Err(Errno::NOENT);
        for name in path.split('/') {
            let at = self.lookup(parent, name)?;
            parent = at.attr.ino;
            found = Ok(at);
        }
        found
    }

    /// The directory that a path is in, and the last component.
    pub(crate) fn parent<'p>(&self, path: &'p str) -> Result<(u64, &'p OsStr), Errno> {
        match path.rsplit_once('/') {
            Some((parent, name)) => Ok((self.lookup_path(parent)?.attr.ino, OsStr::new(name))),
            None => Ok((ROOT, OsStr::new(path))),
        }
    }

    /// Makes and opens a file; its inode and handle.
    pub(crate) fn create(&self, path: &str, mode: u32, flags: i32) -> Result<(u64, u64), Errno> {
        let (parent, name) = self.parent(path)?;
        let made = self.fs.create(self.caller(), parent, name, mode, flags)?;
        Ok((self.told(made.0).attr.ino, made.1))
    }

    /// Opens a file that exists; its handle.
    pub(crate) fn open(&self, path: &str, flags: i32) -> Result<u64, Errno> {
        Ok(self.fs.open(self.lookup_path(path)?.attr.ino, flags)?.0)
    }

    /// Makes a file with this content.
    pub(crate) fn write(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<(), Errno> {
        let (_, fh) = self.create(path, mode, libc::O_WRONLY)?;
        let written = self.fs.write(fh, 0, bytes);
        self.fs.release(fh);
        written
    }

    /// All bytes of a file.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let found = self.lookup_path(path)?;
        let (fh, _) = self.fs.open(found.attr.ino, libc::O_RDONLY)?;
        let bytes = self.read_handle(fh);
        self.fs.release(fh);
        bytes
    }

    /// All bytes of an open file.
    pub(crate) fn read_handle(&self, fh: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; 1 << 20];
        let n = self.fs.read(fh, 0, &mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, path: &str, mode: u32) -> Result<u64, Errno> {
        let (parent, name) = self.parent(path)?;
        let made = self.fs.mkdir(self.caller(), parent, name, mode)?;
        Ok(self.told(made).attr.ino)
    }

    /// Adds a name.
    pub(crate) fn link(&self, from: &str, to: &str) -> Result<u64, Errno> {
        let ino = self.lookup_path(from)?.attr.ino;
        let (parent, name) = self.parent(to)?;
        Ok(self.told(self.fs.link(ino, parent, name)?).attr.ino)
    }

    /// Makes a symlink.
    pub(crate) fn symlink(&self, path: &str, target: &str) -> Result<u64, Errno> {
        let (parent, name) = self.parent(path)?;
        let target = OsStr::new(target);
        let made = self.fs.symlink(self.caller(), parent, name, target)?;
        Ok(self.told(made).attr.ino)
    }

    /// Moves a name.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        self.rename_with(from, to, 0)
    }

    /// Moves a name with flags.
    pub(crate) fn rename_with(&self, from: &str, to: &str, flags: u32) -> Result<(), Errno> {
        let (from, to) = (self.parent(from)?, self.parent(to)?);
        self.fs.rename(from, to, flags).map(drop)
    }

    /// Removes a file's name.
    pub(crate) fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        self.fs.unlink(parent, name)
    }

    /// Removes a directory.
    pub(crate) fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        self.fs.rmdir(parent, name)
    }

    /// Changes attributes.
    pub(crate) fn change(&self, path: &str, changes: &Changes) -> Result<(), Errno> {
        let ino = self.lookup_path(path)?.attr.ino;
        self.fs.setattr(ino, changes).map(drop)
    }

    /// Sets the permission bits.
    pub(crate) fn chmod(&self, path: &str, mode: u32) -> Result<(), Errno> {
        let changes = Changes {
            mode: Some(mode),
            ..Changes::default()
        };
        self.change(path, &changes)
    }

    /// What is in a directory, without `.` and `..`.
    pub(crate) fn list(&self, ino: u64) -> Result<BTreeMap<String, (u64, FileType)>, Errno> {
        let handle = self.fs.opendir(ino)?;
        let mut names = BTreeMap::new();
        let mut next = 0;
        loop {
            let before = next;
            // A few at a time, as with a small buffer.
            let mut room = 3;
            self.fs.readdir(&handle, next, &mut |entry| {
                let name = entry.name.to_str().unwrap().to_owned();
                if name != "." && name != ".." {
                    names.insert(name, (entry.ino, entry.kind));
                }
                next = entry.next;
                room -= 1;
                room == 0
            })?;
            if next == before {
                return Ok(names);
            }
        }
    }

    /// The names in the root.
    pub(crate) fn root_names(&self) -> Vec<String> {
        self.list(ROOT).unwrap().into_keys().collect()
    }

    /// Pushes an entry as SCons 4.5 does: a temporary name beside it, then a rename.
    pub(crate) fn push(&self, entry: &str, mode: u32, bytes: &[u8]) -> Result<(), Errno> {
        let temporary = format!("{entry}.tmp4711");
        self.write(&temporary, mode, bytes)?;
        self.rename(&temporary, entry)
    }

    /// The names in the upload journal.
    pub(crate) fn journal(&self) -> Vec<String> {
        private_names(&self.backing(), "pending")
    }

    /// The names of objects on their way in.
    pub(crate) fn incoming(&self) -> Vec<String> {
        private_names(&self.backing(), "tmp")
    }

    /// Asks for an entry in the background; how that ended can be received.
    pub(crate) fn ask(&self, place: Place) -> crossbeam_channel::Receiver<Outcome> {
        let (send, receive) = crossbeam_channel::bounded(1);
        let waiter = move |outcome| send.send(outcome).unwrap_or_default();
        self.fetch.ask(place, Box::new(waiter));
        receive
    }
}

fn private_names(backing: &Path, dir: &str) -> Vec<String> {
    let dir = std::fs::read_dir(backing.join(".cachedirfs").join(dir)).unwrap();
    let mut names: Vec<_> = dir
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The place that a path `XX/SIG` names.
pub(crate) fn place(path: &str) -> Place {
    let (dir, name) = path.split_once('/').unwrap();
    let dir = Name::parse(&cachedirfs::name::Dir::Root, dir.as_bytes()).as_dir();
    match Name::parse(&dir, name.as_bytes()) {
        Name::Entry(place) => place,
        other => panic!("{path} is {other:?}"),
    }
}

/// The path of an entry that tests use: number `n` of those whose prefix is `AB`.
pub(crate) fn entry(n: u64) -> String {
    format!("AB/ab{n:030x}")
}
