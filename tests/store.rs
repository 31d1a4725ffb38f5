//! The backing disk: bounds, objects on their way in, the index.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use cachedirfs::clock::{Clock, ManualClock};
use cachedirfs::fs::Errno;
use cachedirfs::signature::Meta;
use cachedirfs::stats::Stats;
use cachedirfs::store::index::footprint;
use cachedirfs::store::{Committed, Limits, Store};
use tempfile::TempDir;

use crate::support::rig::{PATIENCE, Rig, Settings, entry, place};
use crate::support::wait_until;

/// One block of content: what it takes on the disk is [`UNIT`].
const BLOCK: [u8; 4096] = [7; 4096];
const UNIT: u64 = 8192;
const WRITERS: u64 = 32;

struct Disk {
    store: Store,
    clock: Arc<ManualClock>,
    dir: TempDir,
}

impl Disk {
    fn new(size: u64) -> Self {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::<ManualClock>::default());
        let store = Self::open(dir.path(), size, clock.clone());
        Self { store, clock, dir }
    }

    fn open(path: &Path, size: u64, clock: Arc<dyn Clock>) -> Store {
        let limits = Limits { size, min_free: 0 };
        Store::open(path, limits, clock, Arc::<Stats>::default()).unwrap()
    }

    fn take_in(&self, n: u64, bytes: &[u8]) -> Option<Committed> {
        let mut incoming = self.store.begin_write(Some(bytes.len() as u64)).unwrap()?;
        incoming.write_all(bytes).unwrap();
        Some(
            incoming
                .commit(&place(&entry(n)), Meta::file(0o644))
                .unwrap(),
        )
    }

    fn remove(&self, place: &cachedirfs::name::Place) -> bool {
        std::fs::remove_file(self.dir.path().join(place.path())).is_ok()
    }
}

/// What stands in the one prefix directory of the tests, without temporary names.
fn entries(backing: &Path) -> Vec<PathBuf> {
    let names = |dir: &Path| {
        let names = std::fs::read_dir(dir).into_iter().flatten();
        names.map(|e| e.unwrap().path()).collect::<Vec<_>>()
    };
    let mut all = names(&backing.join("AB"));
    all.retain(|path| path.extension().is_none());
    all
}

fn taken(backing: &Path) -> u64 {
    let len = |path: &PathBuf| path.symlink_metadata().map_or(0, |m| footprint(m.len()));
    entries(backing).iter().map(len).sum()
}

#[test]
fn the_limit_holds_while_thirty_two_fetches_write() {
    let limit = 40 * UNIT;
    let disk = Disk::new(limit);
    let most = AtomicU64::new(0);
    let taken_in = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| disk.store.run_evictor(&|place| disk.remove(place)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (disk, most, taken_in) = (&disk, &most, &taken_in);
                scope.spawn(move || {
                    for n in 0..20 {
                        let committed = disk.take_in(writer * 100 + n, &BLOCK);
                        // What was just taken in is in use for a moment.
                        disk.clock.advance(Duration::from_secs(1));
                        taken_in.fetch_add(usize::from(committed.is_some()), Ordering::Relaxed);
                        most.fetch_max(disk.store.usage().bytes, Ordering::Relaxed);
                        most.fetch_max(taken(disk.dir.path()), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        disk.store.stop();
    });
    assert!(most.load(Ordering::Relaxed) <= limit);
    assert_eq!(disk.store.usage().bytes, taken(disk.dir.path()));
    assert!(taken_in.load(Ordering::Relaxed) > 0);
}

#[test]
fn the_limit_holds_while_thirty_two_writers_push_and_all_that_was_taken_is_uploaded() {
    let limit = 40 * UNIT;
    let rig = Rig::with(Settings::limited(limit));
    let most = AtomicU64::new(0);
    let pushed = std::thread::scope(|scope| {
        scope.spawn(|| rig.store.run_evictor(&|place| rig.fs.evict(place)));
        let (send, jobs) = crossbeam_channel::bounded(0);
        for _ in 0..4 {
            let (rig, jobs) = (&rig, jobs.clone());
            scope.spawn(move || rig.uploads.run_worker(&jobs, &|| true));
        }
        scope.spawn(|| rig.uploads.run_dispatcher(send));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (rig, most) = (&rig, &most);
                scope.spawn(move || {
                    let push = |n: &u64| match rig.push(&entry(*n), 0o644, &BLOCK) {
                        Ok(()) => true,
                        Err(Errno::NOSPC) => {
                            rig.unlink(&format!("{}.tmp4711", entry(*n))).unwrap();
                            false
                        }
                        Err(e) => panic!("{e}"),
                    };
                    let numbers = writer * 100..writer * 100 + 10;
                    let pushed: Vec<_> = numbers.filter(push).collect();
                    most.fetch_max(rig.store.usage().bytes, Ordering::Relaxed);
                    pushed
                })
            })
            .collect();
        let pushed: Vec<_> = writers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect();
        rig.uploads.drain(PATIENCE);
        wait_until("all uploads", PATIENCE, || rig.uploads.pending().count == 0);
        rig.store.stop();
        pushed
    });
    assert!(most.load(Ordering::Relaxed) <= limit);
    assert_eq!(rig.store.usage().bytes, taken(&rig.backing()));
    assert!(pushed.len() > 32, "only {} fitted", pushed.len());
    for n in pushed {
        let (_, bytes) = rig.on_remote(&place(&entry(n)).sig).unwrap();
        assert_eq!(bytes, BLOCK, "{n}");
    }
}

#[test]
fn an_object_that_is_not_committed_leaves_nothing() {
    let disk = Disk::new(1000 * UNIT);
    for len in [Some(4096), None] {
        let mut incoming = disk.store.begin_write(len).unwrap().unwrap();
        incoming.write_all(&BLOCK).unwrap();
        drop(incoming);
    }
    let tmp = disk.dir.path().join(".cachedirfs/tmp");
    assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0);
    assert_eq!(disk.store.usage().bytes, 0);
    assert!(
        disk.store.make_room(999 * UNIT, &[]).is_some(),
        "a promise is left"
    );
}

#[test]
fn an_object_of_unknown_length_that_outgrows_the_limit_is_refused() {
    let disk = Disk::new(4 << 20);
    let mut incoming = disk.store.begin_write(None).unwrap().unwrap();
    let failed = (0..64).find_map(|_| incoming.write_all(&[0; 128 * 1024]).err());
    assert_eq!(failed.unwrap().kind(), std::io::ErrorKind::StorageFull);
    drop(incoming);
    assert!(
        disk.store.make_room(2 << 20, &[]).is_some(),
        "a promise is left"
    );
}

/// Whoever waited for room when the mount ended got it without there being any.
#[test]
fn the_limit_holds_when_the_store_has_stopped() {
    let disk = Disk::new(10 * UNIT);
    for n in 0..10 {
        disk.take_in(n, &BLOCK).unwrap();
    }
    disk.store.stop();
    assert_eq!(disk.take_in(10, &BLOCK), None);
}

#[test]
fn a_commit_never_replaces() {
    let disk = Disk::new(100 * UNIT);
    assert_eq!(disk.take_in(1, b"first"), Some(Committed::New));
    assert_eq!(disk.take_in(1, b"second"), Some(Committed::Existed));
    let bytes = std::fs::read(disk.dir.path().join(entry(1))).unwrap();
    assert_eq!(bytes, b"first");
    assert_eq!(disk.store.usage().bytes, footprint(5));
}

#[test]
fn the_index_after_a_scan_equals_the_disk() {
    let disk = Disk::new(100 * UNIT);
    for n in 0..20 {
        disk.take_in(n, &BLOCK[..usize::try_from(n * 100).unwrap()])
            .unwrap();
    }
    let before = disk.store.usage();
    let Disk { store, dir, .. } = disk;
    drop(store);
    std::fs::write(dir.path().join("AB/stray"), "not an entry").unwrap();
    let store = Disk::open(dir.path(), 100 * UNIT, Arc::<ManualClock>::default());
    assert_eq!(store.usage().bytes, 0);
    store.scan().unwrap();
    let after = store.usage();
    assert_eq!((after.entries, after.bytes), (before.entries, before.bytes));
    assert_eq!(after.bytes, taken(dir.path()) - footprint(12));
    assert!(after.complete && !before.complete);
}

/// The removal was booked after it was made: a fetch that put a new file there in between was taken out of the
/// books with it, and its bytes were over the limit for ever.
#[test]
fn an_entry_that_comes_back_while_it_is_evicted_is_counted() {
    let disk = Disk::new(100 * UNIT);
    for n in 0..97 {
        disk.take_in(n, &BLOCK).unwrap();
    }
    disk.clock.advance(Duration::from_secs(120));
    let came_back = AtomicUsize::new(0);
    disk.store.evict_once(&|place| {
        disk.remove(place);
        if came_back.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut incoming = disk.store.begin_write(Some(100)).unwrap().unwrap();
            incoming.write_all(&[1; 100]).unwrap();
            incoming.commit(place, Meta::file(0o644)).unwrap();
        }
        true
    });
    assert!(came_back.load(Ordering::Relaxed) > 0);
    assert_eq!(disk.store.usage().bytes, taken(disk.dir.path()));
}

/// The ones that are open for long are the oldest. Only they were chosen, they could not go, and nothing ever went.
#[test]
fn entries_in_use_do_not_keep_others_from_eviction() {
    let disk = Disk::new(20 * UNIT);
    for n in 0..20 {
        disk.take_in(n, &BLOCK).unwrap();
    }
    let in_use = [place(&entry(0)), place(&entry(1)), place(&entry(2))];
    disk.clock.advance(Duration::from_secs(120));
    for n in 3..20 {
        disk.store.touch(&place(&entry(n)));
    }
    disk.clock.advance(Duration::from_secs(120));
    let freed = disk
        .store
        .evict_once(&|place| !in_use.contains(place) && disk.remove(place));
    assert!(freed >= 2 * UNIT, "{freed} bytes");
}

/// It counted as unasked after a chmod, and could be evicted from under whoever had just seen it.
#[test]
fn an_entry_that_was_asked_for_and_changes_is_still_in_use() {
    let disk = Disk::new(10 * UNIT);
    for n in 0..10 {
        disk.take_in(n, &BLOCK).unwrap();
        disk.store.added(&place(&entry(n)), 4096);
    }
    assert_eq!(disk.store.evict_once(&|place| disk.remove(place)), 0);
}

/// A clock that counts how often it is looked at.
#[derive(Debug, Default)]
struct Watched {
    clock: ManualClock,
    looks: AtomicUsize,
}

impl Clock for Watched {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn wall(&self) -> SystemTime {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.clock.wall()
    }

    fn sleep(&self, time: Duration) {
        self.clock.sleep(time);
    }
}

/// While a remote was down and everything was pending, the evictor went round without a pause.
#[test]
fn the_evictor_rests_when_nothing_may_go() {
    let clock = Arc::new(Watched::default());
    let dir = tempfile::tempdir().unwrap();
    let store = Disk::open(dir.path(), 10 * UNIT, clock.clone());
    for n in 0..10 {
        store.added(&place(&entry(n)), 4096);
        store.pin(&place(&entry(n)), n, 1);
    }
    let looks = || clock.looks.load(Ordering::Relaxed);
    let before = looks();
    std::thread::scope(|scope| {
        scope.spawn(|| store.run_evictor(&|_| panic!("it is pinned")));
        wait_until("a look", PATIENCE, || looks() > before);
        std::thread::sleep(Duration::from_millis(300));
        store.stop();
    });
    assert!(looks() - before < 20, "{} looks", looks() - before);
}
