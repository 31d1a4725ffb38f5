//! The file system without a mount: one test a behaviour. A test that tells a story keeps a bug from coming back.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachedirfs::clock::SystemClock;
use cachedirfs::fetch::Outcome;
use cachedirfs::fs::setattr::{Changes, Stamp};
use cachedirfs::fs::{Caller, Errno, Fs, Kernel, Looked, ROOT};
use cachedirfs::object::Header;
use cachedirfs::remote::{Ailment, Remote};
use cachedirfs::signature::Meta;
use cachedirfs::stats::Stats;
use cachedirfs::store::index::footprint;
use cachedirfs::store::{Limits, Store};

use crate::support::rig::{PATIENCE, Rig, Settings, entry, place};
use crate::support::wait_until;

/// One block of content: what it takes on the disk is [`UNIT`].
const BLOCK: [u8; 4096] = [7; 4096];
const UNIT: u64 = 8192;

fn exists(rig: &Rig, path: &str) -> bool {
    rig.backing().join(path).symlink_metadata().is_ok()
}

fn links(rig: &Rig, ino: u64) -> u64 {
    rig.fs.getattr(ino).unwrap().0.stat.st_nlink
}

fn marks(rig: &Rig) -> usize {
    let marks = std::fs::read_dir(rig.backing().join(".cachedirfs/writing"));
    marks.unwrap().count()
}

fn write_bit_added(rig: &Rig, path: &str) -> Result<(), Errno> {
    let mode = rig.lookup_path(path)?.attr.perm();
    rig.chmod(path, mode | 0o200)
}

// --- entries ---

#[test]
fn a_pushed_entry_is_on_the_remote_and_on_the_second_machine_with_bytes_and_mode() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o555, b"program").unwrap();
    rig.symlink(&entry(2), "../target").unwrap();
    rig.push(&entry(3), 0o444, b"").unwrap();
    rig.drain();
    let second = rig.second();
    assert_eq!(second.read(&entry(1)).unwrap(), b"program");
    assert_eq!(second.lookup_path(&entry(1)).unwrap().attr.perm(), 0o555);
    let link = second.lookup_path(&entry(2)).unwrap().attr.ino;
    assert_eq!(second.fs.readlink(link).unwrap(), OsStr::new("../target"));
    assert_eq!(second.read(&entry(3)).unwrap(), b"");
    assert_eq!(second.stats.snapshot().fetched, 3);
}

#[test]
fn a_committed_entry_can_neither_be_written_nor_truncated() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    for when in ["while it is pending", "when it is uploaded"] {
        let truncate = Changes {
            size: Some(0),
            ..Changes::default()
        };
        let refused = Err(Errno::PERM);
        assert_eq!(rig.open(&entry(1), libc::O_WRONLY), refused, "{when}");
        assert_eq!(rig.open(&entry(1), libc::O_RDWR), refused, "{when}");
        assert_eq!(rig.change(&entry(1), &truncate), Err(Errno::PERM), "{when}");
        rig.drain();
    }
    assert_eq!(rig.read(&entry(1)).unwrap(), b"bytes");
}

#[test]
fn an_entry_written_in_place_is_committed_when_the_last_writer_closes_it() {
    let rig = Rig::new();
    let (ino, first) = rig.create(&entry(1), 0o644, libc::O_WRONLY).unwrap();
    let second = rig.open(&entry(1), libc::O_WRONLY).unwrap();
    rig.fs.write(first, 0, b"one ").unwrap();
    rig.fs.release(first);
    assert_eq!((rig.journal().len(), marks(&rig)), (0, 1));
    rig.fs.write(second, 4, b"two").unwrap();
    rig.fs.release(second);
    assert_eq!((rig.journal().len(), marks(&rig)), (1, 0));
    assert_eq!(rig.fs.open(ino, libc::O_WRONLY).err(), Some(Errno::PERM));
    rig.drain();
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"one two");
}

#[test]
fn a_crash_while_an_entry_is_written_in_place_removes_it_at_the_next_start() {
    let mut rig = Rig::new();
    let (_, fh) = rig.create(&entry(1), 0o644, libc::O_WRONLY).unwrap();
    rig.fs.write(fh, 0, b"half").unwrap();
    rig.push(&entry(2), 0o644, b"whole").unwrap();
    rig.restart();
    assert!(!exists(&rig, &entry(1)) && exists(&rig, &entry(2)));
    assert_eq!((rig.journal().len(), marks(&rig)), (1, 0));
}

/// It was never committed: only the last close of a handle that could write did that.
#[test]
fn an_entry_made_without_writing_is_committed_too() {
    let rig = Rig::new();
    let (_, fh) = rig.create(&entry(1), 0o444, libc::O_RDONLY).unwrap();
    rig.fs.release(fh);
    assert_eq!((rig.journal().len(), marks(&rig)), (1, 0));
}

/// Once the kernel forgot the inode, nobody remembered that it was still to be written: it answered EPERM to
/// every write, was never pushed, and the next start removed it.
#[test]
fn an_entry_made_by_mknod_can_be_written_after_the_kernel_forgot_it() {
    let rig = Rig::new();
    let (parent, name) = (rig.lookup_path("AB").unwrap().attr.ino, entry(1));
    let name = OsStr::new(name.rsplit_once('/').unwrap().1);
    let mode = libc::S_IFREG | 0o644;
    let made = rig.fs.mknod(rig.caller(), parent, name, mode, 0).unwrap();
    rig.told(made);
    rig.forget_all_but(|_| false);
    let fh = rig.open(&entry(1), libc::O_WRONLY).unwrap();
    rig.fs.write(fh, 0, b"late").unwrap();
    rig.fs.release(fh);
    rig.drain();
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"late");
}

#[test]
fn a_file_with_another_hard_link_cannot_become_an_entry_by_rename() {
    let rig = Rig::new();
    rig.write("a", 0o644, b"bytes").unwrap();
    rig.link("a", "b").unwrap();
    assert_eq!(rig.rename("a", &entry(1)), Err(Errno::XDEV));
    assert_eq!(rig.journal().len(), 0);
    rig.unlink("b").unwrap();
    rig.rename("a", &entry(1)).unwrap();
}

#[test]
fn an_entry_cannot_become_scratch_by_rename_or_link() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    rig.write("a", 0o644, b"other").unwrap();
    assert_eq!(rig.rename(&entry(1), "b"), Err(Errno::XDEV));
    assert_eq!(rig.link(&entry(1), "b"), Err(Errno::XDEV));
    let exchange = libc::RENAME_EXCHANGE;
    assert_eq!(rig.rename_with("a", &entry(1), exchange), Err(Errno::XDEV));
    assert_eq!(rig.read(&entry(1)).unwrap(), b"bytes");
    assert_eq!(rig.journal().len(), 1);
}

#[test]
fn a_link_onto_an_entry_makes_a_copy() {
    let rig = Rig::new();
    rig.write("a", 0o755, b"bytes").unwrap();
    let copy = rig.link("a", &entry(1)).unwrap();
    let again = rig.link(&entry(1), &entry(2)).unwrap();
    assert_ne!(copy, rig.lookup_path("a").unwrap().attr.ino);
    assert_ne!(copy, again);
    let fh = rig.open("a", libc::O_WRONLY).unwrap();
    rig.fs.write(fh, 0, b"other").unwrap();
    rig.fs.release(fh);
    rig.drain();
    for n in [1, 2] {
        let pushed = rig.on_remote(&place(&entry(n)).sig).unwrap();
        assert_eq!(pushed, (Meta::file(0o755), b"bytes".to_vec()));
    }
    assert_eq!(rig.link("a", &entry(1)), Err(Errno::EXIST));
}

/// A link of a file that somebody still wrote to pushed what stood in it at that moment; that of an entry being
/// written in place even gave the unfinished file a second, committed name.
#[test]
fn a_file_that_is_being_written_cannot_be_linked_onto_an_entry() {
    let rig = Rig::new();
    let (_, scratch) = rig.create("a", 0o644, libc::O_WRONLY).unwrap();
    let (_, in_place) = rig.create(&entry(1), 0o644, libc::O_WRONLY).unwrap();
    assert_eq!(rig.link("a", &entry(2)), Err(Errno::XDEV));
    assert_eq!(rig.link(&entry(1), &entry(2)), Err(Errno::XDEV));
    assert_eq!(rig.journal().len(), 0);
    rig.fs.release(scratch);
    rig.fs.release(in_place);
    rig.link("a", &entry(2)).unwrap();
}

#[test]
fn a_rename_of_a_file_that_is_open_for_writing_commits_at_its_close() {
    let mut rig = Rig::new();
    let (_, fh) = rig.create("AB/tmp", 0o644, libc::O_WRONLY).unwrap();
    rig.fs.write(fh, 0, b"begin ").unwrap();
    rig.rename("AB/tmp", &entry(1)).unwrap();
    assert_eq!((rig.journal().len(), marks(&rig)), (0, 1));
    rig.fs.write(fh, 6, b"end").unwrap();
    rig.fs.release(fh);
    assert_eq!((rig.journal().len(), marks(&rig)), (1, 0));
    rig.drain();
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"begin end");

    rig.create("AB/tmp", 0o644, libc::O_WRONLY).unwrap();
    rig.rename("AB/tmp", &entry(2)).unwrap();
    rig.restart();
    assert!(exists(&rig, &entry(1)) && !exists(&rig, &entry(2)));
}

/// The failed rename took the mark of the file that was being written there away, and a crash left half of it.
#[test]
fn a_rename_that_fails_leaves_the_mark_of_what_is_being_written_there() {
    let mut rig = Rig::new();
    let (_, fh) = rig.create(&entry(1), 0o644, libc::O_WRONLY).unwrap();
    rig.fs.write(fh, 0, b"half").unwrap();
    rig.create("a", 0o644, libc::O_WRONLY).unwrap();
    let noreplace = libc::RENAME_NOREPLACE;
    assert_eq!(
        rig.rename_with("a", &entry(1), noreplace),
        Err(Errno::EXIST)
    );
    let (parent, name) = rig.parent("AB").unwrap();
    assert!(rig.fs.mkdir(rig.caller(), parent, name, 0o755).is_err());
    assert!(rig.create(&entry(1), 0o644, libc::O_WRONLY).is_err());
    assert_eq!(marks(&rig), 1);
    rig.restart();
    assert!(!exists(&rig, &entry(1)));
}

/// The mark of the one that was replaced and that of the one that came are the same file: it went with the first.
#[test]
fn an_unfinished_entry_that_replaces_another_keeps_its_mark() {
    let mut rig = Rig::new();
    rig.create(&entry(1), 0o644, libc::O_WRONLY).unwrap();
    rig.create("a", 0o644, libc::O_WRONLY).unwrap();
    rig.rename("a", &entry(1)).unwrap();
    assert_eq!(marks(&rig), 1);
    rig.restart();
    assert!(!exists(&rig, &entry(1)));
}

/// The old mark of the unfinished one stayed behind: the next start removed the whole entry in its place.
#[test]
fn an_exchange_of_a_whole_and_an_unfinished_entry_takes_the_mark_along() {
    let mut rig = Rig::new();
    rig.push(&entry(1), 0o644, b"whole").unwrap();
    rig.create(&entry(2), 0o644, libc::O_WRONLY).unwrap();
    let exchange = libc::RENAME_EXCHANGE;
    rig.rename_with(&entry(1), &entry(2), exchange).unwrap();
    rig.restart();
    assert!(!exists(&rig, &entry(1)));
    assert_eq!(rig.read(&entry(2)).unwrap(), b"whole");
}

/// Between the check of an open for writing and the count of its writers, a rename could commit the file.
#[test]
fn an_open_for_writing_and_a_rename_onto_an_entry_agree() {
    let rig = Rig::new();
    for n in 0..300 {
        let (ino, fh) = rig.create("a", 0o644, libc::O_WRONLY).unwrap();
        rig.fs.release(fh);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = || rig.fs.open(ino, libc::O_WRONLY);
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            rig.rename("a", &entry(n)).unwrap();
            let opened = opening.into_iter().map(|o| o.join().unwrap());
            opened.flatten().collect()
        });
        let committed = rig
            .journal()
            .iter()
            .any(|name| name.contains(&entry(n)[3..]));
        assert_eq!(
            opened.is_empty(),
            committed,
            "committed and open for writing"
        );
        for (fh, _) in opened {
            rig.fs.release(fh);
        }
    }
}

/// The journal's link was taken for a name: fstat(2) said 1, and through /proc/self/fd the entry could be opened
/// for writing, or linked to a scratch name, and its bytes changed before they were uploaded.
#[test]
fn an_entry_unlinked_while_pending_and_open_has_no_links_and_stays_immutable() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    let ino = rig.lookup_path(&entry(1)).unwrap().attr.ino;
    assert_eq!(links(&rig, ino), 1);
    let fh = rig.open(&entry(1), libc::O_RDONLY).unwrap();
    rig.unlink(&entry(1)).unwrap();
    assert_eq!(links(&rig, ino), 0);
    assert_eq!(rig.read_handle(fh).unwrap(), b"bytes");
    assert_eq!(rig.fs.open(ino, libc::O_WRONLY).err(), Some(Errno::PERM));
    assert_eq!(
        rig.fs.link(ino, ROOT, OsStr::new("a")).err(),
        Some(Errno::XDEV)
    );
    let truncate = Changes {
        size: Some(0),
        ..Changes::default()
    };
    assert_eq!(rig.fs.setattr(ino, &truncate).err(), Some(Errno::PERM));
    rig.drain();
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"bytes");
}

/// Pins were kept by place: after a rename the journal's link to the old name counted as one of the new.
#[test]
fn a_pending_entry_that_is_renamed_has_one_link() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    rig.rename(&entry(1), &entry(2)).unwrap();
    let ino = rig.lookup_path(&entry(2)).unwrap().attr.ino;
    assert_eq!((rig.journal().len(), links(&rig, ino)), (2, 1));
    rig.drain();
    assert_eq!(links(&rig, ino), 1);
}

/// A crash between the journal's link and the rename leaves a scratch file whose bytes are promised under a
/// signature. Its two links made a later rename answer EXDEV for ever, and it could be written.
#[test]
fn a_push_that_a_crash_cut_in_two_can_be_made_again() {
    let mut rig = Rig::new();
    rig.write("AB/tmp", 0o644, b"bytes").unwrap();
    rig.crash();
    let pending = rig.backing().join(".cachedirfs/pending");
    let name = format!("{:016x}-2-644-{}", 7, place(&entry(1)).sig);
    std::fs::hard_link(rig.backing().join("AB/tmp"), pending.join(name)).unwrap();
    rig.restart();
    assert_eq!(rig.open("AB/tmp", libc::O_WRONLY), Err(Errno::PERM));
    rig.rename("AB/tmp", &entry(1)).unwrap();
    rig.drain();
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"bytes");
}

// --- uploads ---

#[test]
fn a_push_survives_a_crash_before_its_upload() {
    let mut rig = Rig::new();
    rig.push(&entry(1), 0o755, b"bytes").unwrap();
    rig.restart();
    rig.restart();
    assert_eq!(rig.uploads.pending().count, 1);
    rig.drain();
    let pushed = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(pushed, (Meta::file(0o755), b"bytes".to_vec()));
}

#[test]
fn a_push_waits_for_a_remote_that_is_down() {
    let rig = Rig::new();
    rig.wire.set_down(true);
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain());
        wait_until("a failed upload", PATIENCE, || {
            rig.stats.snapshot().upload_errors > 0
        });
        rig.wire.set_down(false);
        rig.clock.advance(Duration::from_secs(10));
        draining.join().unwrap();
    });
    assert!(rig.on_remote(&place(&entry(1)).sig).is_some());
    assert_eq!(rig.journal().len(), 0);
}

#[test]
fn a_second_push_supersedes_one_that_is_still_pending() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"first").unwrap();
    rig.push(&entry(1), 0o644, b"second").unwrap();
    assert_eq!((rig.journal().len(), rig.uploads.pending().count), (1, 1));
    rig.drain();
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"second");
    assert_eq!(rig.wire.puts.load(Ordering::SeqCst), 1);
}

/// The older content was tried again after the newer had been uploaded and counted as a divergence; or, worse, before.
#[test]
fn a_push_that_fails_while_a_second_one_waits_is_superseded_too() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"first").unwrap();
    rig.wire.hold();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain());
        rig.wire.wait_for_held(1);
        rig.push(&entry(1), 0o644, b"second").unwrap();
        rig.wire.set_down(true);
        rig.wire.let_go();
        let failed = || rig.stats.snapshot().upload_errors > 0 && rig.uploads.pending().count == 1;
        wait_until("the first is given up", PATIENCE, failed);
        rig.wire.set_down(false);
        rig.clock.advance(Duration::from_secs(10));
        draining.join().unwrap();
    });
    let (_, bytes) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(bytes, b"second");
    assert_eq!(rig.stats.snapshot().diverged, 0);
    assert_eq!(rig.journal(), Vec::<String>::new());
}

#[test]
fn added_write_bits_are_no_new_upload_but_an_execute_bit_is() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o444, b"bytes").unwrap();
    rig.drain();
    write_bit_added(&rig, &entry(1)).unwrap();
    assert_eq!(rig.journal().len(), 0);
    rig.chmod(&entry(1), 0o755).unwrap();
    assert_eq!(rig.journal().len(), 1);
    rig.drain();
    let (meta, _) = rig.on_remote(&place(&entry(1)).sig).unwrap();
    assert_eq!(meta, Meta::file(0o755));
}

#[test]
fn an_entry_that_is_removed_while_pending_is_uploaded_all_the_same() {
    let mut rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    rig.unlink(&entry(1)).unwrap();
    rig.restart();
    rig.drain();
    assert!(rig.on_remote(&place(&entry(1)).sig).is_some());
}

#[test]
fn a_divergent_push_leaves_the_first_and_is_counted() {
    let rig = Rig::new();
    let sig = place(&entry(1)).sig;
    rig.put_on_remote(&sig, Meta::file(0o644), b"theirs");
    rig.write("AB/tmp", 0o644, b"ours").unwrap();
    rig.rename("AB/tmp", &entry(1)).unwrap();
    rig.drain();
    assert_eq!(rig.on_remote(&sig).unwrap().1, b"theirs");
    assert_eq!(rig.stats.snapshot().diverged, 1);
}

#[test]
fn unknown_files_in_the_journal_are_left_alone() {
    let mut rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    rig.crash();
    let pending = rig.backing().join(".cachedirfs/pending");
    std::fs::write(pending.join("0000-2-644-notes"), "mine").unwrap();
    std::fs::create_dir(pending.join("dir")).unwrap();
    rig.restart();
    assert_eq!(rig.uploads.pending().count, 1);
    rig.drain();
    assert_eq!(rig.journal(), ["0000-2-644-notes", "dir"]);
}

// --- names ---

#[test]
fn a_fresh_root_lists_config_and_tag_only() {
    let rig = Rig::new();
    for prefix in ["00", "AB", "FF"] {
        rig.lookup_path(prefix).unwrap();
    }
    assert_eq!(rig.root_names(), ["CACHEDIR.TAG", "config"]);
    assert_eq!(rig.lookup_path("A").unwrap_err(), Errno::NOENT);
    assert_eq!(rig.lookup_path("ab").unwrap_err(), Errno::NOENT);
    assert_eq!(rig.mkdir("AB", 0o755), Err(Errno::EXIST));
}

#[test]
fn a_prefix_directory_is_listed_while_something_is_in_it_and_can_be_removed() {
    let rig = Rig::new();
    rig.write("AB/tmp", 0o644, b"").unwrap();
    assert_eq!(rig.root_names(), ["AB", "CACHEDIR.TAG", "config"]);
    assert_eq!(rig.rmdir("AB"), Err(Errno::NOTEMPTY));
    rig.unlink("AB/tmp").unwrap();
    rig.rmdir("AB").unwrap();
    assert_eq!(rig.root_names(), ["CACHEDIR.TAG", "config"]);
    rig.lookup_path("AB").unwrap();
}

#[test]
fn what_only_the_remote_holds_does_not_keep_a_prefix_directory() {
    let rig = Rig::new();
    rig.put_on_remote(&place(&entry(1)).sig, Meta::file(0o644), b"x");
    rig.lookup_path("AB").unwrap();
    rig.rmdir("AB").unwrap();
    assert_eq!(rig.read(&entry(1)).unwrap(), b"x");
}

/// SCons issue 2684: the second user of a shared cache could not write what the first had made.
#[test]
fn prefix_directories_take_owner_group_and_mode_of_the_root() {
    let root = rustix::process::geteuid().is_root();
    let rig = Rig::prepared(|backing| {
        if root {
            std::os::unix::fs::chown(backing, Some(1234), Some(2345)).unwrap();
        }
        let mode = std::fs::Permissions::from_mode(0o2770);
        std::fs::set_permissions(backing, mode).unwrap();
    });
    rig.lookup_path("AB").unwrap();
    rig.mkdir("ABC", 0o700).unwrap();
    let like = rig.backing().metadata().unwrap();
    for name in ["AB", "ABC"] {
        let made = rig.backing().join(name).metadata().unwrap();
        assert_eq!(made.mode(), like.mode(), "{name}");
        assert_eq!((made.uid(), made.gid()), (like.uid(), like.gid()), "{name}");
    }
}

#[test]
fn the_private_directory_can_neither_be_seen_nor_made() {
    let rig = Rig::new();
    let private = ".cachedirfs";
    assert_eq!(rig.lookup_path(private).unwrap_err(), Errno::NOENT);
    assert_eq!(rig.write(private, 0o644, b""), Err(Errno::PERM));
    assert_eq!(rig.mkdir(private, 0o755), Err(Errno::PERM));
    assert_eq!(rig.symlink(private, "x"), Err(Errno::PERM));
    assert_eq!(rig.rmdir(private), Err(Errno::PERM));
    rig.write("a", 0o644, b"").unwrap();
    assert_eq!(rig.rename("a", private), Err(Errno::PERM));
    assert_eq!(rig.rename(private, "b"), Err(Errno::PERM));
    assert_eq!(rig.link("a", private), Err(Errno::PERM));
    assert_eq!(links(&rig, ROOT), 2);
}

#[test]
fn paths_longer_than_path_max_work() {
    let rig = Rig::new();
    let part = "p".repeat(250);
    let (mut dirs, mut dir) = (vec![ROOT], ROOT);
    let caller = rig.caller();
    for _ in 0..20 {
        let made = rig.fs.mkdir(caller, dir, OsStr::new(&part), 0o755);
        dir = made.unwrap().attr.ino;
        dirs.push(dir);
    }
    let (file, other) = (OsStr::new("file"), OsStr::new("other"));
    let flags = libc::O_WRONLY;
    let (found, fh, _) = rig.fs.create(caller, dir, file, 0o644, flags).unwrap();
    rig.fs.write(fh, 0, b"deep").unwrap();
    rig.fs.release(fh);
    rig.fs.rename((dir, file), (dir, other), 0).unwrap();
    rig.fs.getattr(found.attr.ino).unwrap();
    rig.fs.link(found.attr.ino, dir, file).unwrap();
    rig.fs.unlink(dir, file).unwrap();
    let prefix = rig.lookup_path("AB").unwrap().attr.ino;
    let name = entry(1);
    let name = OsStr::new(&name[3..]);
    rig.fs.rename((dir, other), (prefix, name), 0).unwrap();
    rig.drain();
    assert_eq!(rig.on_remote(&place(&entry(1)).sig).unwrap().1, b"deep");
    while let (Some(_), Some(parent)) = (dirs.pop(), dirs.last()) {
        rig.fs.rmdir(*parent, OsStr::new(&part)).unwrap();
    }
}

// --- config.lock ---

fn lock_by(rig: &Rig, pid: u32) -> Result<(u64, u64), Errno> {
    let caller = Caller {
        pid,
        ..rig.caller()
    };
    // The kernel looks first.
    if rig.lookup(ROOT, "config.lock").is_ok() {
        return Err(Errno::EXIST);
    }
    let name = OsStr::new("config.lock");
    let (found, fh, _) = rig.fs.create(caller, ROOT, name, 0o644, libc::O_WRONLY)?;
    Ok((rig.told(found).attr.ino, fh))
}

fn dead_pid() -> u32 {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

#[test]
fn a_config_lock_holds_while_its_creator_lives() {
    let rig = Rig::new();
    lock_by(&rig, std::process::id()).unwrap();
    rig.clock.advance(Duration::from_secs(3600));
    assert_eq!(lock_by(&rig, std::process::id()), Err(Errno::EXIST));
    rig.unlink("config.lock").unwrap();
    lock_by(&rig, std::process::id()).unwrap();
}

#[test]
fn a_config_lock_of_a_dead_process_blocks_nobody() {
    let rig = Rig::new();
    lock_by(&rig, dead_pid()).unwrap();
    lock_by(&rig, std::process::id()).unwrap();
}

#[test]
fn a_config_lock_of_an_unseen_process_holds_for_seconds() {
    let rig = Rig::new();
    lock_by(&rig, 0).unwrap();
    rig.clock.advance(Duration::from_secs(2));
    assert_eq!(lock_by(&rig, 0), Err(Errno::EXIST));
    rig.clock.advance(Duration::from_secs(2));
    lock_by(&rig, 0).unwrap();
}

#[test]
fn a_config_lock_from_before_the_start_is_removed() {
    let mut rig = Rig::new();
    lock_by(&rig, std::process::id()).unwrap();
    rig.restart();
    assert!(!exists(&rig, "config.lock"));
}

/// The tree kept the name of the removed lock. Its inode number goes to the next file that is made (ext4 gives it
/// out at once), which was then reached by the path of the lock.
#[test]
fn a_stale_config_lock_that_is_still_open_has_no_name_any_more() {
    let rig = Rig::new();
    let (old, fh) = lock_by(&rig, dead_pid()).unwrap();
    let (new, _) = lock_by(&rig, std::process::id()).unwrap();
    assert_ne!(old, new);
    assert_eq!((links(&rig, old), links(&rig, new)), (0, 1));
    rig.fs.release(fh);
}

// --- read-only ---

#[test]
fn a_read_only_mount_refuses_everything_but_config_lock_and_time_stamps() {
    let mut settings = Settings::default();
    let mut rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    rig.write("a", 0o644, b"scratch").unwrap();
    settings.options.read_only = true;
    rig.restart_with(settings);

    let refused = Errno::ROFS;
    assert_eq!(rig.write("b", 0o644, b""), Err(refused));
    assert_eq!(rig.mkdir("d", 0o755), Err(refused));
    assert_eq!(rig.symlink("s", "a"), Err(refused));
    assert_eq!(rig.link("a", "b"), Err(refused));
    assert_eq!(rig.rename("a", "b"), Err(refused));
    assert_eq!(rig.rename("a", "config.lock"), Err(refused));
    assert_eq!(rig.unlink("a"), Err(refused));
    assert_eq!(rig.chmod("a", 0o600), Err(refused));
    assert_eq!(rig.chmod(&entry(1), 0o755), Err(refused));
    assert_eq!(rig.open("a", libc::O_WRONLY), Err(refused));
    assert_eq!(rig.open(&entry(1), libc::O_RDWR), Err(refused));
    let changes = Changes {
        mtime: Some(Stamp::Now),
        ..Changes::default()
    };
    rig.change(&entry(1), &changes).unwrap();
    assert_eq!(rig.read(&entry(1)).unwrap(), b"bytes");
    lock_by(&rig, std::process::id()).unwrap();
    rig.unlink("config.lock").unwrap();
    rig.put_on_remote(&place(&entry(2)).sig, Meta::file(0o644), b"theirs");
    assert_eq!(rig.read(&entry(2)).unwrap(), b"theirs");
}

// --- fetches ---

#[test]
fn a_miss_is_remembered_for_the_negative_ttl() {
    let rig = Rig::new();
    let gets = || rig.wire.gets.load(Ordering::SeqCst);
    let absent = || assert_eq!(rig.lookup_path(&entry(1)).unwrap_err(), Errno::NOENT);
    absent();
    absent();
    rig.put_on_remote(&place(&entry(1)).sig, Meta::file(0o644), b"x");
    absent();
    assert_eq!((gets(), rig.stats.snapshot().recent_misses), (1, 2));
    rig.clock.advance(Duration::from_secs(10));
    let parent = rig.lookup_path("AB").unwrap().attr.ino;
    let left = rig.fs.lookup(parent, OsStr::new(&entry(1)[3..])).unwrap();
    assert!(matches!(left, Looked::Absent(left) if left == Duration::from_secs(20)));
    rig.clock.advance(Duration::from_secs(20));
    rig.lookup_path(&entry(1)).unwrap();
    assert_eq!(gets(), 2);
}

#[test]
fn a_push_ends_the_memory_of_a_miss() {
    let rig = Rig::new();
    rig.lookup_path(&entry(1)).unwrap_err();
    rig.push(&entry(1), 0o644, b"x").unwrap();
    rig.drain();
    rig.unlink(&entry(1)).unwrap();
    assert_eq!(rig.read(&entry(1)).unwrap(), b"x");
}

#[test]
fn many_lookups_of_one_entry_are_one_get() {
    let rig = Rig::new();
    let at = place(&entry(1));
    rig.put_on_remote(&at.sig, Meta::file(0o644), b"x");
    rig.wire.hold();
    let asked: Vec<_> = (0..16).map(|_| rig.ask(at)).collect();
    rig.wire.wait_for_held(1);
    rig.wire.let_go();
    for outcome in asked {
        assert_eq!(outcome.recv().unwrap(), Outcome::Here);
    }
    assert_eq!(rig.wire.gets.load(Ordering::SeqCst), 1);
}

/// A lookup that missed on the disk just before the fetch of another one landed asked the remote a second time.
#[test]
fn a_lookup_that_asks_too_late_finds_the_entry_on_the_disk() {
    let rig = Rig::new();
    let at = place(&entry(1));
    rig.put_on_remote(&at.sig, Meta::file(0o644), b"x");
    assert_eq!(rig.ask(at).recv().unwrap(), Outcome::Here);
    assert_eq!(rig.ask(at).recv().unwrap(), Outcome::Here);
    assert_eq!(rig.wire.gets.load(Ordering::SeqCst), 1);
}

#[test]
fn a_late_remote_is_a_miss_and_what_it_sends_is_there_for_the_next_who_asks() {
    let mut settings = Settings::default();
    settings.times.lookup_timeout = Duration::from_millis(50);
    let rig = Rig::with(settings);
    let at = place(&entry(1));
    rig.put_on_remote(&at.sig, Meta::file(0o644), b"x");
    rig.wire.hold();
    let first = rig.ask(at);
    rig.wire.wait_for_held(1);
    rig.clock.advance(Duration::from_millis(60));
    assert_eq!(first.recv().unwrap(), Outcome::Unknown);
    rig.wire.let_go();
    wait_until("the late object is here", PATIENCE, || {
        exists(&rig, &entry(1))
    });
    assert_eq!(rig.read(&entry(1)).unwrap(), b"x");
    let counted = rig.stats.snapshot();
    assert_eq!((counted.late_fetches, counted.fetched), (1, 1));
    assert_eq!(rig.wire.gets.load(Ordering::SeqCst), 1);
}

/// With a remote that accepted and never answered, each lookup of a build waited for the lookup timeout.
#[test]
fn a_remote_that_hangs_costs_one_lookup_timeout_and_not_one_a_lookup() {
    let mut settings = Settings::default();
    settings.times.lookup_timeout = Duration::from_millis(50);
    let rig = Rig::with(settings);
    rig.wire.hold();
    let first = rig.ask(place(&entry(1)));
    rig.wire.wait_for_held(1);
    rig.clock.advance(Duration::from_secs(60));
    assert_eq!(first.recv().unwrap(), Outcome::Unknown);
    let trouble = rig.breaker.trouble().expect("the breaker was told");
    assert_eq!(trouble.ailment, Ailment::Hangs);
    // The clock stands still: whoever waited now would wait for ever.
    for n in 1..100 {
        assert_eq!(rig.ask(place(&entry(n))).recv().unwrap(), Outcome::Unknown);
    }
    assert_eq!(rig.wire.gets.load(Ordering::SeqCst), 1);

    rig.wire.let_go();
    rig.clock.advance(Duration::from_secs(60));
    rig.breaker.probe();
    assert_eq!(rig.breaker.trouble(), None);
    assert_eq!(rig.ask(place(&entry(2))).recv().unwrap(), Outcome::Absent);
}

#[test]
fn while_a_thousand_lookups_wait_for_the_remote_a_hit_is_answered_and_each_object_is_asked_for_once()
 {
    let rig = Rig::new();
    rig.push(&entry(5000), 0o644, &BLOCK).unwrap();
    rig.wire.hold();
    let asked: Vec<_> = (0..1000).map(|n| rig.ask(place(&entry(n / 2)))).collect();
    rig.wire.wait_for_held(1);
    assert_eq!(rig.read(&entry(5000)).unwrap(), BLOCK);
    rig.wire.let_go();
    for outcome in asked {
        assert_eq!(outcome.recv().unwrap(), Outcome::Absent);
    }
    assert_eq!(rig.wire.gets.load(Ordering::SeqCst), 500);
    assert_eq!(rig.breaker.trouble(), None);
}

/// Thousands of queued lookups were worked off one by one while a mount ended.
#[test]
fn a_stopped_mount_fetches_nothing_more() {
    let mut rig = Rig::new();
    rig.wire.hold();
    let asked: Vec<_> = (0..100).map(|n| rig.ask(place(&entry(n)))).collect();
    rig.wire.wait_for_held(1);
    rig.fetch.stop();
    for outcome in asked {
        assert_eq!(outcome.recv().unwrap(), Outcome::Unknown);
    }
    let wire = rig.wire.clone();
    rig.crash();
    assert_eq!(wire.gets.load(Ordering::SeqCst), 1);
}

#[test]
fn a_remote_that_is_down_is_a_miss_that_is_not_remembered() {
    let rig = Rig::new();
    rig.put_on_remote(&place(&entry(1)).sig, Meta::file(0o644), b"x");
    rig.wire.set_down(true);
    assert_eq!(rig.lookup_path(&entry(1)).unwrap_err(), Errno::NOENT);
    assert_eq!(rig.stats.snapshot().failed_fetches, 1);
    rig.wire.set_down(false);
    assert_eq!(rig.read(&entry(1)).unwrap(), b"x");
}

#[test]
fn a_corrupt_object_is_a_miss_that_is_counted_once_within_the_negative_ttl() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes that are compressed somehow")
        .unwrap();
    rig.drain();
    let mut object = rig.memory.bytes(&entry(1)).unwrap();
    *object.last_mut().unwrap() ^= 1;
    rig.memory.set(&entry(1), &object);

    let second = rig.second();
    for _ in 0..3 {
        assert_eq!(second.lookup_path(&entry(1)).unwrap_err(), Errno::NOENT);
    }
    assert_eq!(second.stats.snapshot().corrupt, 1);
    assert!(!exists(&second, &entry(1)));
    assert_eq!(second.incoming(), Vec::<String>::new());
    assert_eq!(second.store.usage().bytes, 0);
}

#[test]
fn an_object_under_another_signature_is_a_miss() {
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"bytes").unwrap();
    rig.drain();
    rig.memory
        .set(&entry(2), &rig.memory.bytes(&entry(1)).unwrap());
    assert_eq!(rig.lookup_path(&entry(2)).unwrap_err(), Errno::NOENT);
    assert_eq!(rig.stats.snapshot().corrupt, 1);
}

#[test]
fn an_object_that_claims_a_tebibyte_is_a_miss_and_leaves_nothing() {
    let rig = Rig::new();
    let sig = place(&entry(1)).sig;
    let header = Header::new(sig, Meta::file(0o644), 1 << 40, [0; 32], None);
    rig.memory.set(&entry(1), &header.to_bytes());
    assert_eq!(rig.lookup_path(&entry(1)).unwrap_err(), Errno::NOENT);
    assert_eq!(rig.stats.snapshot().no_room, 1);
    assert_eq!(rig.incoming(), Vec::<String>::new());
}

// --- room ---

#[test]
fn a_push_that_does_not_fit_is_refused_and_loses_nothing() {
    let rig = Rig::with(Settings::limited(10 * UNIT));
    for n in 0..10 {
        rig.push(&entry(n), 0o644, &BLOCK).unwrap();
    }
    assert_eq!(rig.push(&entry(10), 0o644, &BLOCK), Err(Errno::NOSPC));
    assert_eq!(rig.read(&format!("{}.tmp4711", entry(10))).unwrap(), BLOCK);
    assert_eq!(rig.journal().len(), 10);
    rig.drain();
    rig.store.evict_once(&|place| rig.fs.evict(place));
    rig.push(&entry(11), 0o644, &BLOCK).unwrap();
}

#[test]
fn eviction_spares_what_is_pending_open_or_was_just_asked_for() {
    let rig = Rig::with(Settings::limited(20 * UNIT));
    for n in 0..17 {
        rig.push(&entry(n), 0o644, &BLOCK).unwrap();
    }
    rig.drain();
    let open = rig.open(&entry(0), libc::O_RDONLY).unwrap();
    rig.clock.advance(Duration::from_secs(120));
    rig.lookup_path(&entry(1)).unwrap();
    // Each push makes room for itself until nothing is left that may go.
    for n in 17..35 {
        rig.push(&entry(n), 0o644, &BLOCK).unwrap();
        rig.store.evict_once(&|place| rig.fs.evict(place));
    }
    assert_eq!(rig.push(&entry(35), 0o644, &BLOCK), Err(Errno::NOSPC));
    for n in (0..2).chain(17..35) {
        assert!(exists(&rig, &entry(n)), "{n}");
    }
    assert_eq!(rig.stats.snapshot().evicted, 15);
    assert_eq!(rig.read_handle(open).unwrap(), BLOCK);
    rig.drain();
    rig.store.evict_once(&|place| rig.fs.evict(place));
    assert!(rig.stats.snapshot().evicted > 15);
}

/// The kernel holds a directory while a lookup in it waits for the remote, and wants it to forget a name in there. The
/// evictor waited for a slow remote, and all lookups in that directory behind it.
#[test]
fn no_entry_is_evicted_beside_one_that_somebody_waits_for() {
    struct Deaf;
    impl Kernel for Deaf {
        fn forget_name(&self, _: u64, _: &OsStr) {}
    }
    let rig = Rig::new();
    let elsewhere = "CD/cd000000000000000000000000000001";
    for path in [&entry(1), elsewhere] {
        rig.push(path, 0o644, b"x").unwrap();
    }
    rig.drain();
    rig.fs.set_kernel(Box::new(Deaf));
    rig.wire.hold();
    let waiting = rig.ask(place(&entry(2)));
    assert!(!rig.fs.evict(&place(&entry(1))));
    assert!(rig.fs.evict(&place(elsewhere)));
    rig.wire.let_go();
    assert_eq!(waiting.recv().unwrap(), Outcome::Absent);
    assert!(rig.fs.evict(&place(&entry(1))));
}

/// The entry that is forgotten and found again while the kernel is told: its new node counted from the beginning,
/// so that the lookup did not show, and the name went from under whoever had just seen it.
#[test]
fn an_entry_that_is_looked_up_while_it_is_being_evicted_stays() {
    struct Busy {
        fs: Arc<Fs>,
        armed: Arc<AtomicBool>,
    }
    impl Kernel for Busy {
        fn forget_name(&self, parent: u64, name: &OsStr) {
            if self.armed.load(Ordering::SeqCst) {
                let Ok(Looked::Found(found)) = self.fs.lookup(parent, name) else {
                    panic!("it is there")
                };
                self.fs.forget(found.attr.ino, 100);
                self.fs.lookup(parent, name).unwrap();
            }
        }
    }
    let rig = Rig::new();
    rig.push(&entry(1), 0o644, b"x").unwrap();
    rig.drain();
    for _ in 0..5 {
        rig.lookup_path(&entry(1)).unwrap();
    }
    let (fs, armed) = (rig.fs.clone(), Arc::new(AtomicBool::new(true)));
    rig.fs.set_kernel(Box::new(Busy {
        fs,
        armed: armed.clone(),
    }));
    assert!(!rig.fs.evict(&place(&entry(1))));
    assert!(exists(&rig, &entry(1)));
    armed.store(false, Ordering::SeqCst);
    assert!(rig.fs.evict(&place(&entry(1))));
}

// --- the backing directory ---

#[test]
fn an_existing_cache_directory_is_taken_as_it_is() {
    let rig = Rig::prepared(|backing| {
        std::fs::write(backing.join("config"), r#"{"prefix_len": 2}"#).unwrap();
        std::fs::create_dir(backing.join("AB")).unwrap();
        std::fs::write(backing.join(entry(1)), "old").unwrap();
        let mode = std::fs::Permissions::from_mode(0o444);
        std::fs::set_permissions(backing.join(entry(1)), mode).unwrap();
        std::os::unix::fs::symlink("target", backing.join(entry(2))).unwrap();
        std::fs::write(backing.join("AB/left.tmp123"), "stray").unwrap();
    });
    assert_eq!(rig.read(&entry(1)).unwrap(), b"old");
    let found = rig.lookup_path(&entry(1)).unwrap().attr;
    assert_eq!((found.perm(), found.stat.st_nlink), (0o444, 1));
    assert_eq!(rig.open(&entry(1), libc::O_WRONLY), Err(Errno::PERM));
    let usage = rig.store.usage();
    assert_eq!((usage.entries, usage.complete), (2, true));
    assert_eq!(usage.bytes, footprint(3) + footprint(6));
    assert_eq!(rig.journal().len(), 0);
    assert_eq!(rig.wire.gets.load(Ordering::SeqCst), 0);
}

/// Caches from before SCons 2.5 have one-digit prefixes and no `config`.
#[test]
fn an_old_cache_directory_without_config_keeps_its_one_digit_prefixes() {
    let name = format!("A/{}", &entry(1)[3..]);
    let rig = Rig::prepared(|backing| {
        std::fs::create_dir(backing.join("A")).unwrap();
        std::fs::write(backing.join(&name), "old").unwrap();
    });
    assert_eq!(rig.store.prefix_digits(), 1);
    assert_eq!(rig.read("config").unwrap(), br#"{"prefix_len": 1}"#);
    assert_eq!(rig.read(&name).unwrap(), b"old");
    rig.lookup_path("C").unwrap();
    assert_eq!(rig.lookup_path("CD").unwrap_err(), Errno::NOENT);
}

#[test]
fn a_config_that_is_written_through_the_mount_counts_at_once() {
    let rig = Rig::new();
    rig.write("new", 0o644, br#"{"prefix_len": 3}"#).unwrap();
    rig.rename("new", "config").unwrap();
    assert_eq!(rig.store.prefix_digits(), 3);
    rig.lookup_path("ABC").unwrap();
    rig.unlink("config").unwrap();
    rig.write("config", 0o644, br#"{"prefix_len": 1}"#).unwrap();
    assert_eq!(rig.store.prefix_digits(), 1);
}

fn open_again(path: &Path) -> Result<Store, cachedirfs::store::StoreError> {
    let limits = Limits {
        size: 1 << 30,
        min_free: 0,
    };
    Store::open(path, limits, SystemClock::shared(), Arc::<Stats>::default())
}

#[test]
fn a_backing_directory_is_used_by_one_process_and_the_error_names_it() {
    let mut rig = Rig::new();
    let error = open_again(&rig.backing()).unwrap_err().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    assert!(error.contains("backing="), "{error}");
    rig.crash();
    open_again(&rig.backing()).unwrap();
}

/// A child that is forked has every descriptor until it becomes another program: a start in that moment said that
/// the directory was used by a process that had let it go.
#[test]
fn a_backing_directory_is_free_at_once_while_children_are_started() {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                dead_pid();
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let opened = (0..200).map(|_| open_again(dir.path()).map(drop));
        let opened = opened.collect::<Result<Vec<_>, _>>();
        over.store(true, Ordering::SeqCst);
        opened.unwrap();
    });
}

#[test]
fn a_backing_directory_of_a_later_version_is_refused_and_left_alone() {
    let mut rig = Rig::new();
    rig.push(&entry(1), 0o644, b"x").unwrap();
    rig.crash();
    let version = rig.backing().join(".cachedirfs/version");
    std::fs::write(&version, "7\n").unwrap();
    let error = open_again(&rig.backing()).unwrap_err().to_string();
    assert!(error.contains('7'), "{error}");
    assert_eq!(std::fs::read(&version).unwrap(), b"7\n");
}

// --- changes while mounted ---

#[test]
fn a_push_that_was_allowed_is_uploaded_although_the_mount_becomes_read_only_in_the_middle_of_it() {
    let rig = Rig::new();
    rig.wire.set_down(true);
    let over = AtomicBool::new(false);
    let pushed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                rig.fs.set_modes(true, false, false);
                rig.fs.set_modes(false, true, false);
            }
        });
        let pushes = (1..).filter(|n| rig.push(&entry(*n), 0o644, b"bytes").is_ok());
        let pushed = pushes.take(300).count();
        over.store(true, Ordering::SeqCst);
        pushed
    });
    assert_eq!(rig.uploads.pending().count, pushed as u64);
}
