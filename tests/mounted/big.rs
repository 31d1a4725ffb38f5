//! A cache with very many entries: it mounts at once, in little memory, and stays within its limit.
//!
//! The number of entries is small in the suite; `CACHEDIRFS_TEST_ENTRIES=1000000` measures what is promised for a
//! million (with `--release --nocapture`, it takes minutes and an idle machine).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::{wait_until, workspace};

/// Entries, unless the environment says how many.
const ENTRIES: u64 = 20_000;
/// What an empty file counts as.
const FOOTPRINT: u64 = 4096;
/// A guard only: the promise is one second, on an idle machine.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// Most memory, however many there are.
const MOST_MEMORY: u64 = 200 << 20;
/// Longest that reading the directory may take.
const PATIENCE: Duration = Duration::from_secs(600);

fn entries() -> u64 {
    let asked = std::env::var("CACHEDIRFS_TEST_ENTRIES");
    asked.map_or(ENTRIES, |n| {
        n.parse().expect("CACHEDIRFS_TEST_ENTRIES is a number")
    })
}

fn entry(number: u64) -> PathBuf {
    let hash = blake3::hash(&number.to_le_bytes()).to_hex();
    Path::new(&hash[..2].to_uppercase()).join(&hash[..32])
}

/// An old cache of empty entries.
fn fill(backing: &Path) {
    for prefix in 0..256 {
        fs::create_dir(backing.join(format!("{prefix:02X}"))).unwrap();
    }
    for number in 0..entries() {
        File::create_new(backing.join(entry(number))).unwrap();
    }
}

/// Resident memory of the daemon: now, and the most it ever was.
fn memory(machine: &Mounted) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let kib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line
            .unwrap()
            .trim_start_matches(':')
            .split_whitespace()
            .next();
        number.unwrap().parse::<u64>().unwrap() << 10
    };
    (kib("VmRSS"), kib("VmHWM"))
}

fn number(machine: &Mounted, field: &str) -> u64 {
    machine.status()[field].as_u64().unwrap()
}

fn wait_for_index(machine: &Mounted) -> Duration {
    let began = Instant::now();
    wait_until("all entries are known", PATIENCE, || {
        machine.status()["index_complete"] == true
    });
    began.elapsed()
}

#[test]
fn a_big_cache_answers_at_once_in_little_memory_and_stays_within_its_limit() {
    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().display());
    let mut machine = Mounted::with_options(&remote, "min_free=0,push=off");
    machine.unmount();
    fill(&machine.backing());
    // A little room is left: below it eviction does not begin.
    let limit = entries() * FOOTPRINT / 90 * 100;
    let options = format!("size={limit},min_free=0,push=off");

    let answered = |machine: &mut Mounted, how: &str| {
        let began = Instant::now();
        machine.remount_with(&options);
        assert!(machine.path().join(entry(0)).exists());
        let took = began.elapsed();
        eprintln!("{} entries, first answer {how}: {took:?}", entries());
        assert!(took < ANSWERS_WITHIN, "{how}: {took:?}");
    };
    answered(&mut machine, "at the first start");
    let took = wait_for_index(&machine);
    eprintln!("all known after {took:?}, memory {:?}", memory(&machine));
    assert_eq!(number(&machine, "entries"), entries());
    wait_until("the totals are written down", PATIENCE, || {
        machine.backing().join(".cachedirfs/totals").exists()
    });
    machine.unmount();
    answered(&mut machine, "after a clean stop");
    wait_for_index(&machine);
    machine.kill9();
    answered(&mut machine, "after kill -9");

    // From the first moment on, although it has not seen them yet, it knows how full it is.
    assert!(number(&machine, "bytes_used") >= entries() * FOOTPRINT);
    let held = File::open(machine.path().join(entry(1))).unwrap();
    let oracle = Oracle::default();
    let mut pushed = 0;
    while pushed < limit / 8 {
        let push = Push(8 * (1 + oracle.acknowledged().len() as u64) + 5);
        // 64 KiB each; above the limit they wait for the evictor, which knows only some of the entries yet.
        wait_until("there is room", PATIENCE, || {
            push.perform(machine.path(), Shape::Uuid).is_ok()
        });
        oracle.acknowledge(push);
        pushed += 17 * FOOTPRINT;
        let used = number(&machine, "bytes_used");
        assert!(used <= limit, "{used} of {limit}");
    }
    wait_for_index(&machine);
    assert!(number(&machine, "bytes_used") <= limit);
    assert!(machine.counter("evicted") > 0);
    assert!(machine.backing().join(entry(1)).exists(), "it is open");
    drop(held);

    let began = Instant::now();
    let found = (0..entries()).filter(|n| machine.path().join(entry(*n)).exists());
    let found = found.count();
    let (now, most) = memory(&machine);
    eprintln!(
        "{found} looked up in {:?}: memory {now}, at most {most}",
        began.elapsed()
    );
    assert!(most < MOST_MEMORY, "{most} bytes");
    let newest = oracle.acknowledged().into_iter().last().unwrap();
    assert_eq!(newest.fault(machine.path()), None);
}
