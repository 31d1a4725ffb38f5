//! Everything at once, for as long as one likes: two machines that share a remote, writers, readers and real builds on
//! both, a network that fails, daemons that are killed and remounted, disks that fill up. `scripts/soak` runs it.
//!
//! What must hold is little and absolute: nobody reads other bytes than were pushed, what was acknowledged is on the
//! remote in the end, no build fails, no daemon dies but by our hand, no call hangs. Times are never judged, except
//! by a watchdog whose limit no working system comes near.
//!
//! The children: `machine` (a mount on a small disk, its writers and readers, its kills), `chaos` (what befalls the
//! remote and the disk), `report` (the counts, the log of what went wrong).

mod chaos;
mod machine;
mod report;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cachedirfs::remote::{Remote, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use fastrand::Rng;
use tempfile::TempDir;

use crate::support::oracle::{Oracle, Push};
use crate::support::{is_root, workspace};
use chaos::Backend;
use machine::Machine;
use report::Report;

/// Of those that write or read on one machine.
const WRITERS: usize = 3;
const READERS: usize = 2;

/// How long uploads may take to be done when nothing is in their way any more.
const FLUSH_LIMIT: Duration = Duration::from_secs(300);

/// A minute in the test suite. The backend, like everything, follows from the seed; the kinds take turns in `scripts/soak`.
#[test]
fn a_minute_of_faults_kills_and_full_disks_loses_nothing_and_fails_nobody() {
    if !is_root() {
        return eprintln!("not root, so there are no small disks to fill");
    }
    run(1, Duration::from_secs(60)).conclude();
}

/// For `scripts/soak`: `SOAK_SECONDS` long, with `SOAK_SEED` or a seed of its own.
#[test]
#[ignore = "runs for as long as one likes: scripts/soak [MINUTES]"]
fn for_as_long_as_one_likes() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = number("SOAK_SECONDS").unwrap_or(300);
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    run(seed, Duration::from_secs(seconds)).conclude();
}

/// What all threads share.
struct Stage {
    seed: u64,
    /// No new operations; when everybody has ended, the reckoning begins.
    over: AtomicBool,
    /// The next push that nobody has made yet.
    next: AtomicU64,
    oracle: Oracle,
    report: Report,
    /// Checkouts of all machines are below it, or links to absolute paths would differ.
    checkouts: TempDir,
}

impl Stage {
    /// Of one worker; the plan of each is its own, whatever the others do.
    fn rng(&self, name: &str) -> Rng {
        let hash = blake3::hash(format!("{} {name}", self.seed).as_bytes());
        Rng::with_seed(u64::from_le_bytes(
            hash.as_bytes()[..8].try_into().expect("eight bytes"),
        ))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Sleeps, but not longer than the run.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10).min(time));
        }
    }

    /// A number for a push. Most of the big ones are left out: it is many operations that find faults, not bytes.
    fn next_push(&self) -> Push {
        loop {
            let push = Push(self.next.fetch_add(1, Ordering::Relaxed));
            if push.0 % 8 != 7 || push.0 % 64 == 7 {
                return push;
            }
        }
    }
}

/// Ends the run even when whoever holds it panics.
struct Ending<'a>(&'a Stage);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

fn run(seed: u64, time: Duration) -> Report {
    let backend = Backend::of(seed);
    println!(
        "soak: SOAK_SEED={seed}, {} s, remote {}",
        time.as_secs(),
        backend.describe()
    );
    let stage = Stage {
        seed,
        over: AtomicBool::new(false),
        next: AtomicU64::new(1),
        oracle: Oracle::default(),
        report: Report::new(seed),
        checkouts: workspace(),
    };
    let expected = machine::build_without_cache(&stage);
    let machines = ["A", "B"].map(|name| Machine::new(name, &backend));
    thread::scope(|scope| {
        let _ending = Ending(&stage);
        for machine in &machines {
            let (stage, backend, expected) = (&stage, &backend, &expected);
            let with_ending = move |work: &dyn Fn()| {
                let _ending = Ending(stage);
                work();
            };
            for nth in 0..WRITERS {
                scope.spawn(move || with_ending(&|| machine.write(stage, nth)));
            }
            for nth in 0..READERS {
                scope.spawn(move || with_ending(&|| machine.read(stage, nth)));
            }
            scope.spawn(move || with_ending(&|| machine.build(stage, expected)));
            scope.spawn(move || with_ending(&|| machine.kill_and_remount(stage, backend)));
            scope.spawn(move || with_ending(&|| machine.fill_disk(stage)));
            scope.spawn(move || with_ending(&|| machine.watch(stage)));
        }
        scope.spawn(|| {
            let _ending = Ending(&stage);
            backend.trouble(&stage);
        });
        progress(&stage, time);
    });
    reckon(&stage, &backend, machines);
    stage.report
}

/// A line a minute.
fn progress(stage: &Stage, time: Duration) {
    let start = Instant::now();
    let mut lines = 0;
    while start.elapsed() < time && !stage.is_over() {
        thread::sleep(Duration::from_millis(50));
        if start.elapsed().as_secs() / 60 > lines {
            lines += 1;
            println!("soak: after {lines} min: {}", stage.report.line());
        }
    }
    stage.report.lasted(start.elapsed());
}

/// After the faults: everything acknowledged is on the remote, and right there and on every machine that has it.
fn reckon(stage: &Stage, backend: &Backend, machines: [Machine; 2]) {
    backend.heal();
    for machine in &machines {
        machine.settle(stage);
    }
    let remote = backend.open();
    for push in stage.oracle.acknowledged() {
        check_on_remote(&*remote, push, &stage.report);
    }
    // A third machine sees through a mount what the remote has.
    let third = Machine::new("C", backend);
    let acknowledged = stage.oracle.acknowledged();
    for push in acknowledged.iter().rev().take(300) {
        third.check(stage, *push);
    }
    if stage.report.is_bad() {
        for machine in machines.iter().chain([&third]) {
            stage.report.keep(machine.name, &machine.log());
        }
    }
    for machine in machines.into_iter().chain([third]) {
        machine.end(stage);
    }
}

fn check_on_remote(remote: &dyn Remote, push: Push, report: &Report) {
    let sig = Signature::parse(push.signature().as_bytes()).expect("the oracle's are signatures");
    let mut content = Vec::new();
    let got = remote.get(&sig).and_then(|object| {
        let Some(mut object) = object else {
            return Ok(None);
        };
        std::io::copy(&mut object.content, &mut content)
            .map_err(cachedirfs::remote::RemoteError::from_io)?;
        Ok(Some(object.meta))
    });
    match got {
        Ok(None) => report.lost(&format!("{push:?} is not on the remote")),
        Err(error) => report.lost(&format!("{push:?} cannot be had of the remote: {error}")),
        Ok(Some(_)) if content != push.content() => {
            report.wrong(&format!("{push:?} is on the remote with other bytes"));
        }
        Ok(Some(meta)) if !same_mode(meta, push.mode()) => {
            report.wrong(&format!("{push:?} is on the remote as {meta:?}"));
        }
        Ok(Some(_)) => {}
    }
}

/// Whether the owner may write is SCons' business.
fn same_mode(meta: Meta, mode: u32) -> bool {
    matches!(meta, Meta::File { .. }) && meta.mode() | 0o200 == mode | 0o200
}

/// The remote at `url`, asked without haste.
fn patient(url: &str, ca: Option<&Path>) -> std::sync::Arc<dyn Remote> {
    let options = RemoteOptions {
        connect_timeout: Duration::from_secs(20),
        stall_timeout: Duration::from_secs(60),
        ca_file: ca.map(Path::to_owned),
        ..RemoteOptions::default()
    };
    open(url, &options).expect("the remote of this run")
}
