//! The same for a directory: a file server that hangs, rots, fills up, turns read-only or goes away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{HEALED, Objects, TIMES, push, read, wait_for_attempt};
use crate::support::mounted::Mounted;
use crate::support::oracle::Push;
use crate::support::{wait_until, workspace};

/// A disk of its own for a remote, so that it can be full, read-only and gone.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(workspace());
        disk.mount("size=16M");
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    fn url(&self) -> String {
        format!("file://{}", self.cache().display())
    }

    fn mount(&self, options: &str) {
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(self.path()));
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.path()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?} takes root: {status}");
}

fn object(disk: &Disk, push: Push) -> PathBuf {
    disk.cache().join(push.entry())
}

fn damage(disk: &Disk, push: Push, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(object(disk, push)).unwrap();
    change(&mut bytes);
    fs::write(object(disk, push), bytes).unwrap();
}

/// Fails in one way, and is repaired.
fn withstands(
    when: &str,
    fails: impl FnOnce(&Disk, &Objects),
    heals: impl FnOnce(&Disk, &Objects),
) {
    let disk = Disk::new();
    let objects = Objects::of(0);
    let elsewhere = Mounted::with_options(&disk.url(), "negative_ttl=0");
    for object in objects.fetched {
        push(object, elsewhere.path(), when);
    }
    elsewhere.flush();
    let mounted = Mounted::with_options(&disk.url(), TIMES);

    fails(&disk, &objects);
    for object in objects.pushed {
        push(object, mounted.path(), when);
    }
    for object in objects.fetched {
        read(object, mounted.path(), when);
    }
    wait_for_attempt(&mounted, when);

    heals(&disk, &objects);
    wait_until(&format!("{when}, healed"), HEALED, || {
        let all = |objects: &[Push]| objects.iter().all(|o| read(*o, mounted.path(), when));
        all(&objects.fetched) && mounted.status()["remote_state"] == "ok"
    });
    mounted.flush();
    for object in objects.pushed {
        assert!(read(object, elsewhere.path(), when), "{when}: arrived");
    }
}

/// A remote that rots is repaired by the next push of what it lost.
fn repair(disk: &Disk, objects: &Objects) {
    for object in objects.fetched {
        let whole = Mounted::with_options(&disk.url(), "negative_ttl=0");
        if !read(object, whole.path(), "rotten") {
            push(object, whole.path(), "repaired");
            whole.flush();
        }
    }
}

#[test]
fn truncated_objects_of_a_directory_are_misses_until_they_are_pushed_again() {
    let cut = |disk: &Disk, objects: &Objects| {
        for object in objects.fetched {
            damage(disk, object, |bytes| bytes.truncate(bytes.len() / 2));
        }
    };
    withstands("truncated", cut, repair);
}

#[test]
fn flipped_bits_in_a_directory_are_misses_until_the_objects_are_pushed_again() {
    let flip = |disk: &Disk, objects: &Objects| {
        for (object, at) in objects.fetched.into_iter().zip([1, 2, 3]) {
            damage(disk, object, |bytes| {
                let middle = bytes.len() / at - 1;
                bytes[middle] ^= 4;
            });
        }
    };
    withstands("flipped", flip, repair);
}

#[test]
fn a_directory_without_room_takes_what_was_pushed_meanwhile_once_it_has_room() {
    let fill = |disk: &Disk, _: &Objects| {
        let filler = vec![1; 32 << 20];
        assert!(fs::write(disk.path().join("filler"), filler).is_err());
    };
    withstands("full", fill, |disk, _| {
        fs::remove_file(disk.path().join("filler")).unwrap();
    });
}

#[test]
fn a_directory_that_turns_read_only_takes_what_was_pushed_meanwhile_later() {
    withstands(
        "read-only",
        |disk, _| disk.remount("ro"),
        |disk, _| disk.remount("rw"),
    );
}

#[test]
fn a_directory_that_is_gone_is_neither_written_nor_believed_until_it_is_back() {
    withstands(
        "gone",
        |disk, _| fs::rename(disk.cache(), disk.path().join("away")).unwrap(),
        |disk, _| fs::rename(disk.path().join("away"), disk.cache()).unwrap(),
    );
}

/// What an absent NFS server leaves: an empty directory.
#[test]
fn an_empty_mount_point_in_place_of_a_directory_is_neither_written_nor_believed() {
    withstands(
        "unmounted",
        |disk, _| {
            disk.mount("size=1M");
            fs::create_dir(disk.cache()).unwrap();
        },
        |disk, _| {
            assert_eq!(fs::read_dir(disk.cache()).unwrap().count(), 0);
            run(Command::new("umount").arg(disk.path()));
        },
    );
}

/// It was refused, so that a mount at boot depended on the order of mounts.
#[test]
fn a_directory_that_is_not_there_yet_is_mounted_with_a_warning_and_used_once_it_is_there() {
    let later = workspace();
    let url = format!("file://{}/mnt/cache", later.path().display());
    let mounted = Mounted::new(&url);
    wait_until("it is said", HEALED, || {
        mounted.log().contains("nor the directory above it")
    });
    assert!(!mounted.path().join(Push(1).entry()).exists());
    push(Push(2), mounted.path(), "before it is there");
    fs::create_dir(later.path().join("mnt")).unwrap();
    mounted.flush();
    assert!(
        later
            .path()
            .join("mnt/cache")
            .join(Push(2).entry())
            .is_file()
    );
    wait_until("it is well", HEALED, || {
        mounted.status()["remote_state"] == "ok"
    });
}
