//! The power is cut under a mount, again and again, while builds push and fetch: what the next boot finds is whole and
//! right, and what had been synced is all there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::support::image::{Image, in_another_boot};
use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::{SetOnDrop, is_root, wait_until, workspace};

/// Pushed by another machine before, fetched by ours.
const FETCHABLE: std::ops::Range<u64> = 1..120;
/// The first number of our own pushes.
const OURS: u64 = 1000;
const CUTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn after_a_power_cut_under_load_every_entry_is_right_and_what_was_synced_is_there() {
    assert!(is_root(), "mounting an image takes root");
    let workspace = workspace();
    let at = |name: &str| workspace.path().join(name);
    fs::create_dir(at("remote")).unwrap();
    let remote = format!("file://{}", at("remote").display());
    let other = Mounted::new(&remote);
    for n in FETCHABLE {
        Push(n).perform(other.path(), Shape::Uuid).unwrap();
    }
    other.flush();
    drop(other);

    let disk = Image::new(&at("disk"), 384);
    let backing = disk.path().join("backing");
    let machine = Mounted::with_options(&remote, &format!("backing={}", backing.display()));
    let oracle = Oracle::default();
    let (next, done) = (AtomicU64::new(OURS), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for shape in [Shape::Pid, Shape::Directory] {
            let (machine, oracle, next, done) = (&machine, &oracle, &next, &done);
            scope.spawn(move || {
                // Not more than the image holds.
                while !done.load(Ordering::Acquire) && next.load(Ordering::Acquire) < OURS + 600 {
                    let push = Push(next.fetch_add(1, Ordering::AcqRel));
                    push.perform(machine.path(), shape).unwrap();
                    oracle.acknowledge(push);
                }
            });
        }
        scope.spawn(|| {
            for n in FETCHABLE {
                assert_eq!(Push(n).fault(machine.path()), None);
            }
        });
        let _ending = SetOnDrop(&done);
        for cut in 0..CUTS {
            let before = oracle.acknowledged().len();
            let grown = || oracle.acknowledged().len() > before + 20;
            let over = || next.load(Ordering::Acquire) >= OURS + 600;
            wait_until("pushes go on", PATIENCE, || grown() || over());
            if cut % 2 == 1 {
                disk.others_sync();
            }
            let after = at(&format!("after-{cut}"));
            let after = held(machine.pid(), || disk.power_cut(&after));
            check(&after.path().join("backing"), &format!("cut {cut}"));
        }
    });

    let acknowledged = oracle.acknowledged();
    assert!(acknowledged.len() > 80, "{} pushes", acknowledged.len());
    // The marks go, and then that they went is synced too.
    let (mut tries, mut survived) = (0, None);
    wait_until("all pushes are on the disk", PATIENCE, || {
        tries += 1;
        let after = at(&format!("synced-{tries}"));
        let after = held(machine.pid(), || disk.power_cut(&after));
        let found = check(&after.path().join("backing"), "when all was synced");
        let all = acknowledged.iter().all(|push| found.contains(push));
        survived = all.then_some(after);
        all
    });
    let after = survived.expect("it was waited for");

    let options = format!("backing={}", after.path().join("backing").display());
    let reborn = Mounted::with_options(&remote, &options);
    oracle.check(reborn.path(), "on the machine that boots again");
    drop(reborn);
    drop(machine);
}

/// Does something while the daemon, and soon everybody who waits for it, stands still.
fn held<T>(pid: u32, run: impl FnOnce() -> T) -> T {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Starts on a backing directory after a power cut; every push that it has as an entry, all of them right.
fn check(backing: &Path, when: &str) -> Vec<Push> {
    use cachedirfs::clock::ManualClock;
    use cachedirfs::store::{Limits, Store};
    in_another_boot(backing);
    let limits = Limits {
        size: 1 << 40,
        min_free: 0,
    };
    let clock = std::sync::Arc::<ManualClock>::default();
    let store = Store::open(backing, limits, clock, std::sync::Arc::default());
    drop(store.unwrap_or_else(|e| panic!("{when}: {e}")));
    let known: BTreeMap<_, _> = FETCHABLE
        .chain(OURS..OURS + 700)
        .map(|n| (Push(n).signature(), Push(n)))
        .collect();
    let mut found = Vec::new();
    for dir in names(backing).iter().filter(|dir| dir.len() == 2) {
        for name in names(&backing.join(dir)) {
            if let Some(push) = known.get(&name) {
                assert_eq!(push.fault(backing), None, "{when}");
                found.push(*push);
            }
        }
    }
    let pending = backing.join(".cachedirfs/pending");
    for link in names(&pending) {
        let push = known[link.rsplit('-').next().unwrap()];
        let content = fs::read(pending.join(&link)).unwrap();
        assert!(
            content == push.content(),
            "{when}: pending {link}: {} bytes",
            content.len()
        );
    }
    found
}

fn names(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).collect()
}
