//! One machine: a mount over a small disk of its own, and everybody who works with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::chaos::Backend;
use super::{FLUSH_LIMIT, READERS, Stage, WRITERS};
use crate::support::mounted::Mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::scons::Project;
use crate::support::tree::{Node, Tree};
use crate::support::venv::VERSIONS;
use crate::support::workspace;

/// The disk below the backing directory; eviction begins at half of it.
const DISK: &str = "size=96m,mode=755";
const OPTIONS: &str =
    "size=48M,min_free=2M,negative_ttl=1s,stall_timeout=2s,request_timeout=30s,drain_timeout=2s";

/// No call of a working system takes so long, not on the busiest machine: the remote's deadlines are a tenth of it.
const HANGS: Duration = Duration::from_secs(120);

/// How often each works: as much as finds faults and leaves the processors to the builds.
const WRITE_PAUSE_MS: u64 = 80;
const READ_PAUSE_MS: u64 = 20;

pub(super) struct Machine {
    pub(super) name: &'static str,
    path: PathBuf,
    mounted: Mutex<Mounted>,
    disk: Disk,
    /// Operations hold it; it is held against them while nothing is mounted.
    gate: RwLock<()>,
    /// Builds hold it against kills: what SCons does with a dead mount is not the question here.
    quiet: Mutex<()>,
    /// It is killed and not mounted again yet: errors are no surprise.
    dying: AtomicBool,
    /// What each worker does, and since when.
    doing: Vec<Mutex<Option<(Instant, String)>>>,
}

impl Machine {
    pub(super) fn new(name: &'static str, backend: &Backend) -> Self {
        let disk = Disk::new();
        let (url, more) = backend.url();
        let backing = disk.0.path().join("backing");
        let options = format!(
            "backing={},{OPTIONS}{more}{}",
            backing.display(),
            boundless()
        );
        let mounted = Mounted::with_options(&url, &options);
        Self {
            name,
            path: mounted.path().to_owned(),
            mounted: Mutex::new(mounted),
            disk,
            gate: RwLock::new(()),
            quiet: Mutex::new(()),
            dying: AtomicBool::new(false),
            doing: (0..=WRITERS + READERS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Pushes in the shapes of all versions of SCons.
    pub(super) fn write(&self, stage: &Stage, nth: usize) {
        let mut rng = stage.rng(&format!("{} writes {nth}", self.name));
        while !stage.is_over() {
            let push = stage.next_push();
            let shape = [Shape::Pid, Shape::Uuid, Shape::Directory][rng.usize(..3)];
            let work = || push.perform(&self.path, shape);
            match self.attempt(nth, format!("push {push:?}"), work) {
                Some(Ok(())) => {
                    stage.oracle.acknowledge(push);
                    stage.report.pushes.add(1);
                    stage.report.bytes.add(push.content().len() as u64);
                }
                Some(Err(e)) if e.kind() == io::ErrorKind::StorageFull => {
                    stage.report.refused.add(1);
                }
                Some(Err(e)) => {
                    let what = format!("{}: push {push:?} as {shape:?}: {e}", self.name);
                    stage.report.failed(&what);
                }
                None => {}
            }
            stage.pause(Duration::from_millis(rng.u64(..WRITE_PAUSE_MS)));
        }
    }

    /// Reads what anybody has pushed, lately or long ago, and some that nobody did.
    pub(super) fn read(&self, stage: &Stage, nth: usize) {
        let mut rng = stage.rng(&format!("{} reads {nth}", self.name));
        while !stage.is_over() {
            let newest = stage.next.load(Ordering::Relaxed);
            let oldest = if rng.bool() {
                1
            } else {
                newest.saturating_sub(200).max(1)
            };
            let push = Push(rng.u64(oldest..=newest));
            self.look(stage, WRITERS + nth, push);
            stage.pause(Duration::from_millis(rng.u64(..READ_PAUSE_MS)));
        }
    }

    /// What this machine gives for a push is right or a miss.
    pub(super) fn check(&self, stage: &Stage, push: Push) {
        self.look(stage, 0, push);
    }

    fn look(&self, stage: &Stage, worker: usize, push: Push) {
        let entry = self.path.join(push.entry());
        let read = || fs::read(&entry);
        match self.attempt(worker, format!("read {push:?}"), read) {
            Some(Ok(content)) => {
                stage.report.hits.add(1);
                stage.report.bytes.add(content.len() as u64);
                if content != push.content() {
                    let what = format!("{}: {}: {push:?}", self.name, entry.display());
                    stage.report.wrong(&what);
                }
            }
            Some(Err(e)) if e.kind() == io::ErrorKind::NotFound => {}
            Some(Err(e)) => {
                let what = format!("{}: read {}: {e}", self.name, entry.display());
                stage.report.failed(&what);
            }
            None => {}
        }
        stage.report.reads.add(1);
    }

    /// Does something on the living mount. `None` when it was killed meanwhile and it failed.
    fn attempt<T>(
        &self,
        worker: usize,
        what: String,
        work: impl FnOnce() -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let _open = self.gate.read().unwrap();
        *self.doing[worker].lock().unwrap() = Some((Instant::now(), what));
        let done = work();
        *self.doing[worker].lock().unwrap() = None;
        let killed = self.dying.load(Ordering::SeqCst);
        (done.is_ok() || !killed).then_some(done)
    }

    /// Real builds, each in a fresh checkout, by a version of SCons that chance picks.
    pub(super) fn build(&self, stage: &Stage, expected: &Tree) {
        let mut rng = stage.rng(&format!("{} builds", self.name));
        let mut number = 0;
        while !stage.is_over() {
            stage.pause(Duration::from_millis(rng.u64(..3000)));
            if stage.is_over() {
                return;
            }
            let _quiet = self.quiet.lock().unwrap();
            number += 1;
            let top = stage
                .checkouts
                .path()
                .join(format!("{}{number}", self.name));
            let project = Project::checkout(top.clone());
            let version = VERSIONS[rng.usize(..VERSIONS.len())];
            let what = format!("{}: build {number} with SCons {version}", self.name);
            let worker = WRITERS + READERS;
            *self.doing[worker].lock().unwrap() = Some((Instant::now(), what.clone()));
            let built = project.build(version, &self.path, &["-j4"]);
            *self.doing[worker].lock().unwrap() = None;
            stage.report.builds.add(1);
            if !built.status.success() {
                let complaint = format!("{what}: {}\n{}", built.status, built.output);
                stage.report.failed_build(&complaint);
            } else if let Some(odd) = difference(expected, &products(&project)) {
                let complaint = format!("{what}: other than without a cache: {odd}");
                stage.report.wrong(&complaint);
            }
            fs::remove_dir_all(&top).unwrap();
        }
    }

    /// `kill -9`, and now and then an end in good order; and a new mount on the same disk.
    pub(super) fn kill_and_remount(&self, stage: &Stage, backend: &Backend) {
        let mut rng = stage.rng(&format!("{} dies", self.name));
        while !stage.is_over() {
            stage.pause(Duration::from_millis(rng.u64(500..8000)));
            let _quiet = self.quiet.lock().unwrap();
            if self.mounted.lock().unwrap().has_died() {
                stage.report.died(&format!("machine {}", self.name));
            }
            let killed = rng.u32(..4) != 0;
            if killed {
                self.dying.store(true, Ordering::SeqCst);
                self.mounted.lock().unwrap().kill9();
                stage.report.kills.add(1);
            }
            let _present = backend.present();
            // Not waited for with the mount in our hands: `watch` has to kill it if this takes for ever.
            let _closed = self.gate.write().unwrap();
            self.mounted.lock().unwrap().remount();
            self.dying.store(false, Ordering::SeqCst);
            stage.report.remounts.add(1);
        }
    }

    /// Others fill the disk, and make room again.
    pub(super) fn fill_disk(&self, stage: &Stage) {
        let mut rng = stage.rng(&format!("{} fills up", self.name));
        let ballast = self.disk.0.path().join("ballast");
        while !stage.is_over() {
            stage.pause(Duration::from_millis(rng.u64(2000..10_000)));
            // To the last byte, or with a little left.
            let left = [0, 4096, 1 << 20][rng.usize(..3)];
            fill(&ballast, left);
            stage.report.full.add(1);
            stage.pause(Duration::from_millis(rng.u64(100..3000)));
            fs::remove_file(&ballast).unwrap();
        }
    }

    /// Complains of calls that do not return, and sets them free by killing the daemon.
    pub(super) fn watch(&self, stage: &Stage) {
        let busy = || {
            self.doing
                .iter()
                .any(|doing| doing.lock().unwrap().is_some())
        };
        while !stage.is_over() || busy() {
            thread::sleep(Duration::from_millis(100));
            for doing in &self.doing {
                let hangs = doing
                    .lock()
                    .unwrap()
                    .take_if(|(since, _)| since.elapsed() > HANGS);
                if let Some((_, what)) = hangs {
                    stage.report.hung(&format!("{}: {what}", self.name));
                    stage.over.store(true, Ordering::Release);
                    self.dying.store(true, Ordering::SeqCst);
                    self.mounted.lock().unwrap().kill9();
                }
            }
        }
    }

    /// Nothing is in the way of its uploads any more: they get done.
    pub(super) fn settle(&self, stage: &Stage) {
        let mut mounted = self.mounted.lock().unwrap();
        if mounted.has_died() {
            stage.report.died(&format!("machine {}", self.name));
            mounted.remount();
        }
        let start = Instant::now();
        while !mounted.try_flush() {
            if start.elapsed() > FLUSH_LIMIT {
                let pending = &mounted.status()["pending"];
                let what = format!("machine {} keeps {pending} to itself", self.name);
                return stage.report.lost(&what);
            }
        }
    }

    pub(super) fn log(&self) -> String {
        self.mounted.lock().unwrap().log()
    }

    /// Unmounts it, disk and all.
    pub(super) fn end(self, stage: &Stage) {
        let mut mounted = self.mounted.into_inner().unwrap();
        if !mounted.has_died() {
            mounted.unmount();
        } else {
            stage.report.died(&format!("machine {}", self.name));
        }
    }
}

/// Options that keep uploads from being given up, where that is done: here everything has to arrive.
fn boundless() -> &'static str {
    let bounded = cachedirfs::config::options::OPTIONS.iter();
    let mut bounded = bounded.filter(|option| option.name == "pending_size");
    bounded.next().map_or("", |_| ",pending_size=1G")
}

/// A small file system of its own.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let dir = workspace();
        run("mount", &["-t", "tmpfs", "-o", DISK, "tmpfs"], dir.path());
        Self(dir)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A daemon that a panic left alive may still have it open.
        run("umount", &["-l"], self.0.path());
    }
}

/// What a build gives that no cache helped.
pub(super) fn build_without_cache(stage: &Stage) -> Tree {
    let top = stage.checkouts.path().join("expected");
    let project = Project::checkout(top);
    let cache = stage.checkouts.path().join("no-cache");
    project
        .build(VERSIONS[5], &cache, &["--cache-disable", "-j4"])
        .succeeded();
    products(&project)
}

/// What is retrieved is writable and what is built may not be: SCons does that on any CacheDir.
fn products(project: &Project) -> Tree {
    let mut tree = project.products();
    for node in tree.values_mut() {
        if let Node::File { mode, .. } = node {
            *mode |= 0o200;
        }
    }
    tree
}

/// The first product that is not as it should be.
fn difference(expected: &Tree, got: &Tree) -> Option<String> {
    let mut names = expected.keys().chain(got.keys());
    let odd = names.find(|name| expected.get(*name) != got.get(*name))?;
    let (want, got) = (expected.get(odd), got.get(odd));
    Some(format!("{}: {got:?} instead of {want:?}", odd.display()))
}

/// Makes a file that leaves no more than so many bytes of its file system free.
fn fill(ballast: &Path, left: u64) {
    let mut file = fs::File::create(ballast).unwrap();
    let chunk = vec![1; 64 << 10];
    let mut written = 0;
    while let Ok(n) = io::Write::write(&mut file, &chunk) {
        written += n as u64;
    }
    file.set_len(written.saturating_sub(left)).unwrap();
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}, run: scripts/setup crash"));
    assert!(output.status.success(), "{program}: {output:?}");
}
