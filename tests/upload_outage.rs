//! Uploads when the remote fails, and what bounds them: without a kernel, in manual time. Through real mounts and
//! servers: `mounted`.

mod mounted;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::Ordering;

use cachedirfs::fetch::Outcome;
use cachedirfs::signature::Meta;
use cachedirfs::store::index::footprint;
use cachedirfs::upload::Limits;

use crate::support::rig::{PATIENCE, Rig, Settings, entry, place};

fn bounded(count: u64, bytes: u64) -> Settings {
    let pending = Limits {
        count,
        bytes,
        ..Limits::default()
    };
    Settings {
        pending,
        ..Settings::default()
    }
}

fn push_all(rig: &Rig, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        rig.push(&entry(n), 0o644, format!("content of {n}").as_bytes())
            .unwrap();
    }
}

fn on_remote(rig: &Rig, n: u64) -> bool {
    rig.on_remote(&place(&entry(n)).sig).is_some()
}

#[test]
fn with_a_dead_remote_the_journal_stays_within_its_bounds_and_what_is_given_up_is_named_and_stays_here()
 {
    let rig = Rig::with(bounded(10, u64::MAX));
    rig.wire.set_down(true);
    push_all(&rig, 1..=25);
    assert_eq!((rig.uploads.pending().count, rig.journal().len()), (10, 10));
    assert_eq!(rig.stats.snapshot().given_up, 15);
    let given_up = rig.uploads.given_up(0, 100);
    let named: Vec<_> = given_up.iter().map(|(_, one)| one.sig).collect();
    let oldest: Vec<_> = (1..=15).map(|n| place(&entry(n)).sig).collect();
    assert_eq!(named, oldest);
    assert!(given_up[0].1.why.contains("10 objects"), "{given_up:?}");
    for n in 1..=25 {
        let content = format!("content of {n}");
        assert_eq!(rig.read(&entry(n)).unwrap(), content.as_bytes());
        assert_eq!(rig.store.pins(&place(&entry(n))) > 0, n > 15, "{n}");
    }
    rig.wire.set_down(false);
    rig.drain();
    assert!((1..=25).all(|n| on_remote(&rig, n) == (n > 15)));
}

#[test]
fn a_journal_above_the_bounds_is_cut_at_the_start() {
    let mut rig = Rig::new();
    push_all(&rig, 1..=25);
    rig.restart_with(bounded(10, u64::MAX));
    rig.drain();
    assert_eq!(rig.stats.snapshot().given_up, 15);
    assert_eq!(rig.journal(), Vec::<String>::new());
    assert!((1..=25).all(|n| on_remote(&rig, n) == (n > 15)));
}

#[test]
fn an_outage_never_fills_the_cache_so_that_pushes_are_refused() {
    const SIZE: u64 = 1 << 20;
    let settings = Settings {
        limits: Settings::limited(SIZE).limits,
        ..bounded(u64::MAX, SIZE / 4 * 3)
    };
    let rig = Rig::with(settings);
    rig.wire.set_down(true);
    for n in 1..=200 {
        rig.push(&entry(n), 0o644, &[7; 16 * 1024])
            .unwrap_or_else(|e| panic!("push {n}: {e}"));
        rig.store.evict_once(&|place| rig.fs.evict(place));
        assert!(rig.store.usage().bytes <= SIZE);
    }
    assert!(rig.stats.snapshot().given_up > 100);
    assert!(rig.uploads.pending().count > 20);
}

#[test]
fn what_was_removed_or_replaced_counts_against_the_limit_until_it_is_uploaded() {
    let mut rig = Rig::new();
    push_all(&rig, 1..=10);
    for n in 1..=10 {
        rig.unlink(&entry(n)).unwrap();
    }
    let all = 10 * footprint(b"content of 1".len() as u64);
    let usage = |rig: &Rig| (rig.store.usage().bytes, rig.store.usage().orphaned);
    assert_eq!(usage(&rig), (0, all));
    rig.restart_with(Settings::limited(all));
    assert_eq!(usage(&rig), (0, all), "after a restart, too");
    assert!(rig.store.make_room(1, &[]).is_none(), "they take the room");
    rig.drain();
    assert_eq!(usage(&rig), (0, 0));
    assert!(rig.store.make_room(1, &[]).is_some());
    assert!((1..=10).all(|n| on_remote(&rig, n)));
}

#[test]
fn an_upload_whose_bytes_are_gone_is_given_up_and_holds_up_nobody() {
    let rig = Rig::new();
    push_all(&rig, 1..=3);
    let journal = rig.backing().join(".cachedirfs/pending");
    fs::remove_file(journal.join(&rig.journal()[0])).unwrap();
    rig.drain();
    assert_eq!([1, 2, 3].map(|n| on_remote(&rig, n)), [false, true, true]);
    let given_up = rig.uploads.given_up(0, 10);
    assert_eq!(given_up.len(), 1);
    assert!(given_up[0].1.why.contains("gone"), "{given_up:?}");
    assert_eq!(rig.uploads.pending().count, 0);
}

/// A directory can be opened and not read: as a file on a disk that fails.
#[test]
fn an_upload_whose_bytes_cannot_be_read_waits_by_itself() {
    let rig = Rig::new();
    push_all(&rig, 1..=3);
    let first = rig
        .backing()
        .join(".cachedirfs/pending")
        .join(&rig.journal()[0]);
    fs::remove_file(&first).unwrap();
    fs::create_dir(&first).unwrap();
    rig.drain();
    assert_eq!([1, 2, 3].map(|n| on_remote(&rig, n)), [false, true, true]);
    let counted = rig.stats.snapshot();
    assert_eq!((counted.upload_errors, counted.given_up), (1, 0));
    assert_eq!(rig.uploads.pending().count, 1);
}

/// A push with push=sync waited for its turn, and with it the rename, for as long as the outage lasted.
#[test]
fn a_rename_that_waits_for_its_upload_does_not_wait_for_the_end_of_an_outage() {
    let rig = Rig::new();
    push_all(&rig, 1..=3);
    let third = rig.uploads.mark() - 1;
    let (told, hears) = crossbeam_channel::bounded(1);
    let waiter = move || told.send(()).unwrap_or_default();
    rig.uploads.when_tried(third, Box::new(waiter));
    rig.wire.hold();
    let heard = std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain());
        rig.wire.wait_for_held(1);
        rig.wire.set_down(true);
        rig.wire.let_go();
        // The one worker has the first, and at most the second is on its way to it: time stands still.
        let heard = hears.recv_timeout(PATIENCE);
        let tried = rig.wire.puts.load(Ordering::SeqCst);
        rig.clock.advance(2 * PATIENCE);
        draining.join().unwrap();
        heard.map(|()| tried)
    });
    assert!(heard.is_ok_and(|tried| tried <= 2), "{heard:?}");
}

#[test]
fn a_divergence_is_listed_with_sizes_and_hashes_of_both() {
    let rig = Rig::new();
    let sig = place(&entry(1)).sig;
    rig.put_on_remote(&sig, Meta::file(0o644), b"what they built");
    rig.push(&entry(1), 0o644, b"ours").unwrap();
    rig.drain();
    let listed = rig.uploads.divergences(0, 10);
    let [(1, one)] = &listed[..] else {
        panic!("{listed:?}")
    };
    assert_eq!((one.sig, one.our_len, one.their_len), (sig, 4, Some(15)));
    assert_eq!(one.our_hash, *blake3::hash(b"ours").as_bytes());
    let theirs = *blake3::hash(b"what they built").as_bytes();
    assert_eq!(one.their_hash, Some(theirs));
    assert_eq!(rig.stats.snapshot().diverged, 1);
}

#[test]
fn an_invalidated_object_is_gone_in_every_prefix_directory_and_is_not_uploaded() {
    let rig = Rig::new();
    let sig = place(&entry(1)).sig;
    rig.mkdir("A", 0o755).unwrap();
    let elsewhere = entry(1).replace("AB/", "A/");
    for path in [&entry(1), &elsewhere] {
        rig.push(path, 0o644, b"wrong").unwrap();
    }
    push_all(&rig, [2]);
    let open = rig.lookup_path(&entry(1)).unwrap();
    let (fh, _) = rig.fs.open(open.attr.ino, libc::O_RDONLY).unwrap();

    let done = rig.fs.invalidate(&sig, true);
    assert_eq!(
        (done.removed, done.uploads.cancelled, done.trouble),
        (2, 2, None)
    );
    assert_eq!(
        rig.read_handle(fh).unwrap(),
        b"wrong",
        "who has it open reads on"
    );
    rig.fs.release(fh);
    for path in [&entry(1), &elsewhere] {
        assert!(rig.lookup_path(path).is_err(), "{path}");
    }
    rig.drain();
    assert!(!on_remote(&rig, 1) && on_remote(&rig, 2));
    assert_eq!(
        (rig.store.usage().entries, rig.store.usage().orphaned),
        (1, 0)
    );
    let again = rig.fs.invalidate(&sig, true);
    assert_eq!((again.removed, again.uploads.cancelled), (0, 0));
    rig.push(&entry(1), 0o644, b"right").unwrap();
    rig.drain();
    assert_eq!(rig.on_remote(&sig).unwrap().1, b"right");
}

#[test]
fn an_object_that_is_invalidated_while_it_is_fetched_does_not_come_back() {
    let rig = Rig::new();
    let at = place(&entry(1));
    rig.put_on_remote(&at.sig, Meta::file(0o644), b"wrong");
    rig.wire.hold();
    let fetched = rig.ask(at);
    rig.wire.wait_for_held(1);
    rig.fs.invalidate(&at.sig, true);
    rig.wire.let_go();
    assert_eq!(fetched.recv().unwrap(), Outcome::Unknown);
    assert!(!rig.store.has(&at));
    assert_eq!(rig.incoming(), Vec::<String>::new());
    assert_eq!(
        rig.read(&entry(1)).unwrap(),
        b"wrong",
        "who asks from now on gets it"
    );
}

#[test]
fn an_object_that_is_invalidated_while_it_is_uploaded_is_not_tried_again_not_even_after_a_crash() {
    let mut rig = Rig::new();
    push_all(&rig, [1]);
    let sig = place(&entry(1)).sig;
    rig.wire.hold();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain());
        rig.wire.wait_for_held(1);
        assert_eq!(rig.fs.invalidate(&sig, true).uploads.under_way, 1);
        assert!(rig.uploads.is_under_way(&sig));
        assert_eq!(rig.journal(), Vec::<String>::new());
        rig.wire.set_down(true);
        rig.wire.let_go();
        draining.join().unwrap();
    });
    assert!(!rig.uploads.is_under_way(&sig));
    assert_eq!(rig.uploads.pending().count, 0);
    rig.wire.set_down(false);
    rig.restart();
    rig.drain();
    assert!(!on_remote(&rig, 1));
}

#[test]
fn a_hundred_thousand_uploads_are_queued_and_bounded_quickly() {
    use cachedirfs::upload::Item;
    use cachedirfs::upload::queue::Queue;
    let mut queue = Queue::bounded(Limits {
        count: 50_000,
        ..Limits::default()
    });
    let mut cut = BTreeSet::new();
    for n in 1..=100_000 {
        let item = Item {
            seq: n,
            place: place(&entry(n)),
            mode: 0o644,
            bytes: n,
            ino: n,
        };
        queue.push(item, PATIENCE);
        cut.extend(queue.cut(10).into_iter().map(|item| item.seq));
    }
    assert_eq!((queue.len(), cut.len()), (50_000, 50_000));
    assert_eq!(cut.last(), Some(&50_000), "the oldest");
}
