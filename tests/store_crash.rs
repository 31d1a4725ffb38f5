//! Store and journal, stopped at every step: the process is killed before each system call that changes the disk, and
//! so is the machine.
//!
//! A scenario runs in a process of its own (this test binary again), under strace(1), which kills it at the
//! Nth such call of each kind, for N = 1, 2, … until it survives. It says on standard output what it has been promised.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cachedirfs::clock::ManualClock;
use cachedirfs::stats::Stats;
use cachedirfs::store::{Limits, Store};

use crate::support::image::{Image, in_another_boot};
use crate::support::is_root;
use crate::support::oracle::Push;
use crate::support::rig::{Rig, Settings, place};

/// Where the scenario has its disk.
const DISK: &str = "CACHEDIRFS_CRASH_DISK";
/// What changes the disk. File content is written with `pwrite64`; `write` is left to what the scenario says.
const CALLS: [&str; 11] = [
    "mkdirat",
    "mknodat",
    "linkat",
    "symlinkat",
    "unlinkat",
    "renameat",
    "renameat2",
    "fsync",
    "fdatasync",
    "pwrite64",
    "fchmod",
];
/// More of one kind than the scenario makes: it must end before.
const CALLS_MAX: usize = 500;
/// Numbers of pushes.
const FETCHED: [u64; 2] = [101, 105];
const IN_PLACE: u64 = 12;
const LINK: u64 = 11;
const MOVED: u64 = 13;
const REMOVED: u64 = 14;

fn name(n: u64) -> String {
    Push(n).entry().to_str().unwrap().to_owned()
}

fn target(n: u64) -> String {
    format!("target-of-{n}")
}

/// What the scenario says when something is done.
fn say(what: &str, n: u64) {
    println!("\n@{what} {n}");
}

fn push(rig: &Rig, n: u64) {
    let entry = name(n);
    // It may exist.
    let _ = rig.mkdir(&entry[..2], 0o755);
    rig.push(&entry, Push(n).mode(), &Push(n).content())
        .unwrap();
    say("pushed", n);
}

/// Everything that can happen to an entry.
#[test]
#[ignore = "run by the tests below, in a process that is killed"]
fn scenario() {
    let Some(disk) = std::env::var_os(DISK) else {
        return;
    };
    let settings = Settings {
        place: disk.into(),
        ..Settings::default()
    };
    let rig = Rig::with(settings);
    let lost = |_: &_, _| panic!("the disk works");
    say("open", 0);
    for n in FETCHED {
        let sig = place(&name(n)).sig;
        let meta = cachedirfs::signature::Meta::file(Push(n).mode());
        rig.put_on_remote(&sig, meta, &Push(n).content());
        rig.lookup_path(&name(n)).unwrap();
        say("fetched", n);
    }
    push(&rig, 1);
    push(&rig, 2);
    rig.store.sync_now(&lost);
    say("synced", 0);
    // Again, onto itself: the older one is whole, whatever becomes of the newer.
    push(&rig, 1);
    let _ = rig.mkdir(&name(IN_PLACE)[..2], 0o755);
    let bytes = Push(IN_PLACE).content();
    rig.write(&name(IN_PLACE), Push(IN_PLACE).mode(), &bytes)
        .unwrap();
    say("pushed", IN_PLACE);
    let _ = rig.mkdir(&name(LINK)[..2], 0o755);
    rig.symlink(&name(LINK), &target(LINK)).unwrap();
    say("pushed", LINK);
    push(&rig, MOVED);
    let moved = format!("{}/{}", &name(MOVED)[..1], &name(MOVED)[3..]);
    let _ = rig.mkdir(&moved[..1], 0o755);
    rig.rename(&name(MOVED), &moved).unwrap();
    push(&rig, REMOVED);
    say("removing", REMOVED);
    rig.unlink(&name(REMOVED)).unwrap();
    rig.chmod(&name(2), 0o700).unwrap();
    rig.store.sync_now(&lost);
    say("synced", 0);
    push(&rig, 20);
    say("delivering", 0);
    rig.drain();
    say("evicting", FETCHED[0]);
    rig.fs.evict(&place(&name(FETCHED[0])));
    push(&rig, 21);
    rig.store.sync_now(&lost);
    say("synced", 0);
    push(&rig, 23);
    say("end", 0);
}

/// What a scenario said before it was killed.
#[derive(Debug, Default)]
struct Promised {
    /// Pushes whose rename had returned, and which nobody began to upload.
    pushed: BTreeSet<u64>,
    /// Those of them that had been synced.
    synced: BTreeSet<u64>,
    removed: BTreeSet<u64>,
    ended: bool,
}

impl Promised {
    fn read(said: &str) -> Self {
        let mut promised = Self::default();
        for line in said.lines().filter_map(|line| line.strip_prefix('@')) {
            let (what, n) = line.split_once(' ').unwrap();
            let n: u64 = n.parse().unwrap();
            match what {
                "pushed" => drop(promised.pushed.insert(n)),
                "synced" => promised.synced.clone_from(&promised.pushed),
                "removing" | "evicting" => drop(promised.removed.insert(n)),
                "delivering" => {
                    promised.pushed.clear();
                    promised.synced.clear();
                }
                "end" => promised.ended = true,
                _ => {}
            }
        }
        promised
    }
}

/// Runs the scenario and has it killed at its `n`th `call`.
fn run(disk: &Path, call: &str, n: usize) -> Promised {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    command.args(["-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:signal=SIGKILL:when={n}")]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["store_crash::scenario", "--exact", "--ignored"]);
    command.args(["--nocapture", "--test-threads", "1"]);
    let output = command.env(DISK, disk).output();
    let output = output.unwrap_or_else(|e| panic!("strace: {e}, run: scripts/setup crash"));
    let promised = Promised::read(&String::from_utf8_lossy(&output.stdout));
    // Killed while it tidied up, it had ended too.
    assert!(
        promised.ended || !output.status.success(),
        "{call} {n}: {output:?}"
    );
    promised
}

/// The backing directory that a scenario made, if it came so far.
fn backing(disk: &Path) -> Option<PathBuf> {
    let mut dirs = fs::read_dir(disk).unwrap().map(|e| e.unwrap().path());
    let backing = dirs.find_map(|dir| Some(dir.join("backing")).filter(|b| b.is_dir()));
    backing.filter(|b| b.join(".cachedirfs").is_dir())
}

fn signatures() -> BTreeMap<String, u64> {
    (1..200).map(|n| (Push(n).signature(), n)).collect()
}

/// Fails unless the file is whole and right.
fn assert_right(path: &Path, n: u64, when: &str) {
    let meta = path.symlink_metadata().unwrap();
    if meta.is_symlink() {
        let found = fs::read_link(path).unwrap();
        assert_eq!(found.to_str().unwrap(), target(n), "{when}: {path:?}");
        return;
    }
    let (found, right) = (fs::read(path).unwrap(), Push(n).content());
    let lengths = (found.len(), right.len());
    assert!(found == right, "{when}: {path:?}: {lengths:?} bytes");
    let mode = meta.permissions().mode() & 0o777;
    assert!(
        mode == Push(n).mode() || n == 2 && mode == 0o700,
        "{when}: {path:?}: mode {mode:o}"
    );
}

fn names(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).collect()
}

/// Starts on what is left and checks it: what is there is right, what was promised is there, nothing else is.
fn check(disk: &Path, required: &BTreeSet<u64>, removed: &BTreeSet<u64>, when: &str) {
    let Some(backing) = backing(disk) else {
        assert!(required.is_empty(), "{when}: nothing is left");
        return;
    };
    let limits = Limits {
        size: 1 << 30,
        min_free: 0,
    };
    let clock = Arc::<ManualClock>::default();
    let store = Store::open(&backing, limits, clock, Arc::<Stats>::default());
    let store = store.unwrap_or_else(|e| panic!("{when}: {e}"));
    let known = signatures();
    let mut found = BTreeSet::new();
    for dir in names(&backing).iter().filter(|dir| dir.len() <= 2) {
        for entry in names(&backing.join(dir)) {
            if let Some(n) = known.get(&entry) {
                assert_right(&backing.join(dir).join(&entry), *n, when);
                found.insert(*n);
            }
        }
    }
    let private = backing.join(".cachedirfs");
    let mut pending = BTreeSet::new();
    for link in names(&private.join("pending")) {
        let n = known[link.rsplit('-').next().unwrap()];
        assert_right(&private.join("pending").join(link), n, when);
        pending.insert(n);
    }
    let lacks: Vec<_> = required.difference(&pending).collect();
    assert!(lacks.is_empty(), "{when}: not to be uploaded: {lacks:?}");
    let lacks: Vec<_> = required
        .iter()
        .filter(|n| !found.contains(n) && !removed.contains(n))
        .collect();
    assert!(lacks.is_empty(), "{when}: no entry: {lacks:?}");
    for dir in ["tmp", "writing"] {
        assert_eq!(names(&private.join(dir)), [""; 0], "{when}: {dir}");
    }
    store.sync_now(&|place, _| panic!("{when}: {place:?} is lost"));
    assert_eq!(names(&private.join("fresh")), [""; 0], "{when}");
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(backing.join("config")).unwrap()).unwrap();
    assert_eq!(config["prefix_len"], 2, "{when}");
}

/// Runs the scenario with each step as its last, and has what is left judged. Most of the time is spent waiting for the
/// disk, so the kinds of steps go side by side.
fn stop_at_every_step(judge: impl Fn(&str, usize) -> Promised + Sync) {
    let until_it_survives = &|call| {
        let survived = (1..CALLS_MAX).find(|n| judge(call, *n).ended);
        survived.expect("the scenario ends") - 1
    };
    let steps: usize = std::thread::scope(|scope| {
        let each = CALLS.map(|call| scope.spawn(move || until_it_survives(call)));
        each.map(|thread| thread.join().unwrap()).iter().sum()
    });
    assert!(steps > 100, "only {steps} steps");
}

#[test]
fn a_kill_at_any_step_leaves_every_entry_right_and_every_push_pending() {
    stop_at_every_step(|call, n| {
        let disk = tempfile::tempdir().unwrap();
        let promised = run(disk.path(), call, n);
        if !promised.ended {
            let when = format!("killed at {call} {n}");
            check(disk.path(), &promised.pushed, &promised.removed, &when);
        }
        promised
    });
}

#[test]
fn a_power_cut_at_any_step_leaves_every_entry_right_and_every_synced_push_pending() {
    assert!(is_root(), "mounting an image takes root");
    let dir = tempfile::tempdir().unwrap();
    let blank = dir.path().join("blank");
    Image::format(&blank, 32);
    stop_at_every_step(|call, n| {
        let file = dir.path().join(format!("{call}-{n}-disk"));
        fs::copy(&blank, &file).unwrap();
        let disk = Image::mount(&file);
        let promised = run(disk.path(), call, n);
        for others in [false, true] {
            if promised.ended {
                break;
            }
            if others {
                disk.others_sync();
            }
            let after = disk.power_cut(&dir.path().join(format!("{call}-{n}-{others}")));
            let when = format!("power cut at {call} {n}, synced by others: {others}");
            backing(after.path())
                .iter()
                .for_each(|b| in_another_boot(b));
            check(after.path(), &promised.synced, &promised.removed, &when);
        }
        promised
    });
}

/// Two pushes, and a disk that fails to write one of them.
#[test]
#[ignore = "run by the test below, with a system call that fails"]
fn scenario_of_a_failing_disk() {
    let Some(disk) = std::env::var_os(DISK) else {
        return;
    };
    let settings = Settings {
        place: disk.into(),
        ..Settings::default()
    };
    let rig = Rig::with(settings);
    say("open", 0);
    push(&rig, 1);
    push(&rig, 2);
    rig.store.sync_now(&|place, ino| {
        rig.fs.lose(place, ino);
        say("lost", signatures()[place.sig.as_str()]);
    });
    let journal = rig.journal().join(" ");
    for n in [1, 2] {
        let there = rig.backing().join(name(n)).exists();
        assert_eq!(there, journal.contains(&Push(n).signature()), "{n}");
        if there {
            say("left", n);
        }
    }
    assert_eq!(rig.stats.snapshot().not_written, 1);
    assert_eq!(rig.uploads.pending().count, 1);
    say("end", 0);
}

#[test]
fn what_the_disk_fails_to_write_is_dropped_with_its_upload_and_nothing_else() {
    let run = |call: &str, n: usize| {
        let disk = tempfile::tempdir().unwrap();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null"]);
        command.args(["-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={call}:error=EIO:when={n}")]);
        command.arg(std::env::current_exe().unwrap());
        let scenario = "store_crash::scenario_of_a_failing_disk";
        command.args([scenario, "--exact", "--ignored", "--nocapture"]);
        command.args(["--test-threads", "1"]);
        let output = command.env(DISK, disk.path()).output();
        let output = output.unwrap_or_else(|e| panic!("strace: {e}, run: scripts/setup crash"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // Before, it was the start that failed.
    let started = (1..CALLS_MAX).map(|n| run("fsync", n));
    let said = started.into_iter().find(|said| said.contains("@open"));
    // Two calls start the writing, the third waits for it. The kernel tells of a failure once: whoever hears of it first.
    for said in [said.expect("it starts"), run("sync_file_range", 3)] {
        let of = |what: &str| said.matches(what).count();
        assert_eq!((of("@lost"), of("@left"), of("@end")), (1, 1, 1), "{said}");
    }
}

/// SCons dies of a `config` that it cannot read.
#[test]
fn a_config_that_a_power_cut_left_empty_or_short_is_put_right() {
    for broken in ["", "{", "{\"prefix_len\": ", "[]", "{}", "\0\0\0\0"] {
        let rig = Rig::prepared(|backing| {
            fs::write(backing.join("config"), broken).unwrap();
            fs::create_dir(backing.join("A")).unwrap();
        });
        let read = |path: &str| fs::read_to_string(rig.backing().join(path)).unwrap();
        assert_eq!(read("config"), "{\"prefix_len\": 1}", "{broken:?}");
        assert_eq!(read(".cachedirfs/quarantine/config"), broken);
        assert_eq!(rig.store.prefix_digits(), 1);
    }
    for whole in ["{\"prefix_len\": 3}", "{\"prefix_len\": 8, \"other\": []}"] {
        let rig = Rig::prepared(|backing| fs::write(backing.join("config"), whole).unwrap());
        let kept = fs::read_to_string(rig.backing().join("config")).unwrap();
        assert_eq!(kept, whole);
    }
}
