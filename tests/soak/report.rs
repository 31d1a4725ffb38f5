//! What happened, in numbers, and what went wrong, in words.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most complaints that are shown; more of the same help nobody.
const SHOWN: usize = 20;

/// A count.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) struct Report {
    seed: u64,
    seconds: Count,
    pub(super) pushes: Count,
    pub(super) refused: Count,
    pub(super) reads: Count,
    pub(super) hits: Count,
    pub(super) bytes: Count,
    pub(super) faults: Count,
    pub(super) kills: Count,
    pub(super) remounts: Count,
    pub(super) full: Count,
    pub(super) builds: Count,
    wrong: Count,
    lost: Count,
    failed_builds: Count,
    failed: Count,
    died: Count,
    hung: Count,
    complaints: Mutex<Vec<String>>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            seconds: Count::default(),
            pushes: Count::default(),
            refused: Count::default(),
            reads: Count::default(),
            hits: Count::default(),
            bytes: Count::default(),
            faults: Count::default(),
            kills: Count::default(),
            remounts: Count::default(),
            full: Count::default(),
            builds: Count::default(),
            wrong: Count::default(),
            lost: Count::default(),
            failed_builds: Count::default(),
            failed: Count::default(),
            died: Count::default(),
            hung: Count::default(),
            complaints: Mutex::default(),
        }
    }

    pub(super) fn lasted(&self, time: Duration) {
        self.seconds.add(time.as_secs());
    }

    /// Somebody read other bytes than were pushed.
    pub(super) fn wrong(&self, what: &str) {
        self.complain(&self.wrong, "WRONG", what);
    }

    /// Something acknowledged is nowhere.
    pub(super) fn lost(&self, what: &str) {
        self.complain(&self.lost, "LOST", what);
    }

    pub(super) fn failed_build(&self, what: &str) {
        self.complain(&self.failed_builds, "BUILD FAILED", what);
    }

    /// A call failed as no call may.
    pub(super) fn failed(&self, what: &str) {
        self.complain(&self.failed, "CALL FAILED", what);
    }

    /// A daemon ended, and we did not do it.
    pub(super) fn died(&self, what: &str) {
        self.complain(&self.died, "DAEMON DIED", what);
    }

    pub(super) fn hung(&self, what: &str) {
        self.complain(&self.hung, "HUNG", what);
    }

    fn complain(&self, count: &Count, kind: &str, what: &str) {
        count.add(1);
        let mut complaints = self.complaints.lock().unwrap();
        if complaints.len() < SHOWN {
            println!("soak: {kind}: {what}");
            complaints.push(format!("{kind}: {what}"));
        }
    }

    pub(super) fn is_bad(&self) -> bool {
        self.bad().iter().any(|(_, count)| count.get() > 0)
    }

    fn bad(&self) -> [(&str, &Count); 6] {
        [
            ("wrong", &self.wrong),
            ("lost", &self.lost),
            ("failed builds", &self.failed_builds),
            ("failed calls", &self.failed),
            ("dead daemons", &self.died),
            ("hung calls", &self.hung),
        ]
    }

    fn good(&self) -> [(&str, &Count); 10] {
        [
            ("pushes", &self.pushes),
            ("refused for want of space", &self.refused),
            ("reads", &self.reads),
            ("hits", &self.hits),
            ("faults", &self.faults),
            ("kills", &self.kills),
            ("remounts", &self.remounts),
            ("full disks", &self.full),
            ("builds", &self.builds),
            ("MiB", &self.bytes),
        ]
    }

    fn shown(name: &str, count: &Count) -> u64 {
        if name == "MiB" {
            count.get() >> 20
        } else {
            count.get()
        }
    }

    /// All counts in one line.
    pub(super) fn line(&self) -> String {
        let good = self.good();
        let all = good
            .iter()
            .chain(self.bad().iter())
            .map(|(name, count)| format!("{name} {}", Self::shown(name, count)))
            .collect::<Vec<_>>();
        all.join(", ")
    }

    /// Keeps the log of a daemon where it outlives the run.
    pub(super) fn keep(&self, machine: &str, log: &str) {
        let path = self.kept().join(format!("{machine}.log"));
        fs::create_dir_all(self.kept()).unwrap();
        fs::write(&path, log).unwrap();
        println!(
            "soak: the log of machine {machine} is in {}",
            path.display()
        );
    }

    fn kept(&self) -> PathBuf {
        let target = Path::new(env!("CARGO_BIN_EXE_cachedirfs"))
            .ancestors()
            .nth(2);
        target
            .expect("below target/")
            .join(format!("soak-{}", self.seed))
    }

    /// Prints the table, and fails if anything is wrong.
    pub(super) fn conclude(self) {
        println!("\n{:<26} {:>10}", "seed", self.seed);
        println!(
            "{:<26} {:>10.1}",
            "minutes",
            self.seconds.get() as f64 / 60.0
        );
        for (name, count) in self.good().iter().chain(self.bad().iter()) {
            println!("{name:<26} {:>10}", Self::shown(name, count));
        }
        let complaints = self.complaints.lock().unwrap().join("\n  ");
        assert!(
            !self.is_bad(),
            "with SOAK_SEED={}:\n  {complaints}",
            self.seed
        );
    }
}
