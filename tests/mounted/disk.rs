//! The backing disk is full, fails, or goes away: that costs hits, never a build, and the state says so.
//!
//! The disks are real: a small tmpfs, ext4 with few inodes in a file, shut down or made read-only under the mount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::scons::{Build, Project};
use crate::support::tree::{Node, Tree};
use crate::support::{wait_until, workspace};

/// One of each way of starting and of pushing.
const VERSIONS: [&str; 3] = ["3.1.2", "4.8.1", "4.11.1"];
/// Longest that the daemon may take to find out how its disk is: far more than it does.
const SOON: Duration = Duration::from_secs(60);

/// A file system of the test's own, mounted below a directory of its own.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// In memory, of so many bytes.
    fn in_memory(bytes: u64) -> Self {
        let disk = Self::unmounted();
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={bytes}"),
                "test",
                &disk.text(),
            ],
        );
        disk
    }

    /// ext4 of 16 MiB in a file, made with these options.
    fn ext4(options: &[&str]) -> Self {
        let disk = Self::unmounted();
        let image = disk.dir.path().join("image");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let image = image.to_str().unwrap().to_owned();
        run("mkfs.ext4", &[&["-q", "-F"], options, &[&image]].concat());
        run("mount", &["-o", "loop", &image, &disk.text()]);
        disk
    }

    fn unmounted() -> Self {
        let disk = Self { dir: workspace() };
        fs::create_dir(disk.path()).unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    /// A mount with its backing directory on this disk.
    fn machine(&self, options: &str) -> Mounted {
        let remote = self.dir.path().join("remote");
        fs::create_dir_all(&remote).unwrap();
        let backing = self.path().join("cache");
        fs::create_dir_all(&backing).unwrap();
        // The last one counts.
        let options = format!("backing={},{options}", backing.display());
        Mounted::with_options(&format!("file://{}", remote.display()), &options)
    }

    fn remount(&self, option: &str) {
        run("mount", &["-o", &format!("remount,{option}"), &self.text()]);
    }

    /// Fills it with a file, to the last byte.
    fn fill(&self) {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.path().join("ballast"))
            .unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Uses all inodes.
    fn fill_inodes(&self) {
        let dir = self.path().join("inodes");
        fs::create_dir_all(&dir).unwrap();
        let many = (0_u32..).take_while(|n| File::create_new(dir.join(n.to_string())).is_ok());
        assert!(many.count() > 0);
    }

    /// From now on everything on it is EIO, as on a disk that is gone.
    fn shut_down(&self) {
        let shut_down = "import fcntl, os, struct, sys\n\
             fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
        run("python3", &["-c", shut_down, &self.text()]);
        assert!(File::create(self.path().join("new")).is_err());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .status()
            .ok();
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}, run: scripts/setup crash"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// Checkouts, each in a workspace of its own, and what they must come to.
struct Builds {
    workspace: TempDir,
    expected: Tree,
    checkouts: u32,
}

impl Builds {
    fn new() -> Self {
        let workspace = workspace();
        let plain = Project::checkout(workspace.path().join("plain"));
        let cache = workspace.path().join("plain-cache");
        plain.build("4.11.1", &cache, &[]).succeeded();
        Self {
            expected: products(&plain),
            workspace,
            checkouts: 0,
        }
    }

    /// Builds a fresh checkout with this cache: that must succeed, with the right products.
    #[track_caller]
    fn build(&mut self, version: &str, cache: &Path) -> Build {
        self.checkouts += 1;
        let name = format!("checkout-{}", self.checkouts);
        let project = Project::checkout(self.workspace.path().join(name));
        let build = project.build(version, cache, &["-j4"]).succeeded();
        assert_eq!(
            self.expected,
            products(&project),
            "{version}: {}",
            build.output
        );
        build
    }

    #[track_caller]
    fn all_versions(&mut self, cache: &Path) {
        for version in VERSIONS {
            self.build(version, cache);
        }
    }
}

/// What was built, but for who may write it: SCons before 4.2 adds write bits to what it retrieves.
fn products(project: &Project) -> Tree {
    let mut products = project.products();
    for node in products.values_mut() {
        if let Node::File { mode, .. } = node {
            *mode |= 0o222;
        }
    }
    products
}

fn trouble(machine: &Mounted) -> Option<String> {
    Some(machine.status()["disk_trouble"].as_str()?.to_owned())
}

#[track_caller]
fn wait_for_trouble(machine: &Mounted, about: &str) {
    wait_until("the status tells of the disk", SOON, || {
        trouble(machine).is_some_and(|trouble| trouble.contains(about))
    });
    assert!(
        machine.log().contains("cannot be used"),
        "{}",
        machine.log()
    );
    assert!(
        machine.counter("disk_errors") > 0
            || about.contains("removed")
            || about.contains("read-only")
    );
}

#[test]
fn a_full_disk_costs_hits_but_no_build() {
    let disk = Disk::in_memory(1 << 20);
    let machine = disk.machine("min_free=0");
    let mut builds = Builds::new();
    disk.fill();
    builds.all_versions(machine.path());
    assert_eq!(trouble(&machine), None, "full is not sick");
}

#[test]
fn a_disk_without_inodes_costs_hits_but_no_build() {
    let disk = Disk::ext4(&["-N", "64"]);
    let machine = disk.machine("min_free=0");
    let mut builds = Builds::new();
    disk.fill_inodes();
    // There is nothing to evict, and not even a prefix directory can be made.
    builds.all_versions(machine.path());
    assert_eq!(trouble(&machine), None, "full is not sick");
}

/// Others filled the disk after the cache had grown: entries go, and what is built is cached.
#[test]
fn entries_make_room_for_new_ones_on_a_disk_that_others_filled() {
    for inodes in [false, true] {
        let disk = if inodes {
            Disk::ext4(&["-N", "512"])
        } else {
            Disk::in_memory(8 << 20)
        };
        let machine = disk.machine("min_free=0");
        for number in 0..100 {
            Push(number * 8 + 1)
                .perform(machine.path(), Shape::Uuid)
                .unwrap();
        }
        machine.flush();
        if inodes {
            disk.fill_inodes();
        } else {
            disk.fill();
        }
        let mut push = Push(100_001);
        // The first find out that it is full; eviction does not take long.
        wait_until("a push succeeds again", SOON, || {
            push = Push(push.0 + 8);
            push.perform(machine.path(), Shape::Directory).is_ok()
        });
        assert_eq!(push.fault(machine.path()), None);
        assert!(machine.counter("evicted") > 0);
    }
}

#[test]
fn a_disk_that_became_read_only_serves_hits_and_is_used_again_when_it_is_writable() {
    let disk = Disk::in_memory(64 << 20);
    let machine = disk.machine("min_free=0");
    let mut builds = Builds::new();
    builds.build("4.8.1", machine.path());
    machine.flush();
    disk.remount("ro");
    wait_for_trouble(&machine, "read-only");
    for version in VERSIONS {
        builds.build(version, machine.path()).retrieved_all();
    }
    let push = Push(1);
    push.perform(machine.path(), Shape::Uuid).unwrap_err();
    disk.remount("rw");
    wait_until("the disk is used again", SOON, || {
        trouble(&machine).is_none()
    });
    push.perform(machine.path(), Shape::Uuid).unwrap();
    assert_eq!(push.fault(machine.path()), None);
    assert!(
        machine.log().contains("can be used again"),
        "{}",
        machine.log()
    );
}

#[test]
fn a_disk_that_fails_everything_breaks_no_build() {
    let disk = Disk::ext4(&[]);
    let mut machine = disk.machine("min_free=0");
    let mut builds = Builds::new();
    builds.build("4.8.1", machine.path());
    machine.flush();
    disk.shut_down();
    builds.all_versions(machine.path());
    wait_for_trouble(&machine, "");
    builds.all_versions(machine.path());
    machine.unmount();
}

#[test]
fn a_backing_directory_that_is_removed_under_the_mount_breaks_no_build() {
    let disk = Disk::in_memory(64 << 20);
    let mut machine = disk.machine("min_free=0");
    let mut builds = Builds::new();
    builds.build("4.8.1", machine.path());
    machine.flush();
    fs::remove_dir_all(disk.path().join("cache")).unwrap();
    builds.all_versions(machine.path());
    wait_for_trouble(&machine, "removed");
    builds.all_versions(machine.path());
    machine.unmount();
}

/// Bytes in files below a directory, each inode once.
fn bytes_below(dir: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // What is gone meanwhile takes nothing.
        let Ok(found) = entry.metadata() else {
            continue;
        };
        if found.is_dir() {
            bytes += bytes_below(&entry.path(), seen);
        } else if seen.insert(found.ino()) {
            bytes += found.blocks() * 512;
        }
    }
    bytes
}

/// As SCons does after a push that failed.
fn tidy(cache: &Path, push: Push) {
    let entry = cache.join(push.entry());
    let directory = entry.with_file_name(format!("tmpabc{:05}", push.0 % 100_000));
    drop(fs::remove_file(
        entry.with_extension("tmp5f0c4d9e8a7b4c6d9e8f0a1b2c3d4e5f"),
    ));
    drop(fs::remove_dir_all(directory));
}

#[test]
fn the_limit_holds_while_thirty_two_writers_push_and_hardly_a_push_is_refused() {
    const LIMIT: u64 = 24 << 20;
    const WRITERS: u64 = 32;
    const PUSHES: u64 = 1200;
    /// The evictor works beside the writers, and may find nothing for a moment: no more than this is to be felt.
    const REFUSED_MOST: usize = 24;
    /// No object of the oracle is longer.
    const LARGEST: u64 = (2 << 20) + 256 * 1024 + 8192;

    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().display());
    let machine = Mounted::with_options(&remote, &format!("size={LIMIT},min_free=0,push=off"));
    let (oracle, next, done) = (Oracle::default(), AtomicU64::new(1), AtomicBool::new(false));
    let refused = AtomicUsize::new(0);
    let most = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Acquire) {
                most = most.max(bytes_below(&machine.backing(), &mut Default::default()));
            }
            most
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                // Not the shape of SCons 3, whose chmod after the push is a use: what was just used stays.
                let shape = [Shape::Uuid, Shape::Directory][(writer % 2) as usize];
                let (oracle, next, path) = (&oracle, &next, machine.path());
                let refused = &refused;
                scope.spawn(move || {
                    loop {
                        let push = Push(next.fetch_add(1, Ordering::Relaxed));
                        if push.0 > PUSHES {
                            return Ok(());
                        }
                        match push.perform(path, shape) {
                            Ok(()) => oracle.acknowledge(push),
                            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                tidy(path, push);
                            }
                            Err(e) => return Err((push, shape, e)),
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        for result in results {
            result.unwrap_or_else(|e: (Push, Shape, io::Error)| panic!("{e:?}\n{}", machine.log()));
        }
        watch.join().unwrap()
    });
    let refused = refused.into_inner();
    assert!(refused <= REFUSED_MOST, "{refused} of {PUSHES} refused");
    let allowed = LIMIT + WRITERS * LARGEST;
    assert!(most <= allowed, "{most} of {allowed} bytes");
    assert!(machine.status()["bytes_used"].as_u64().unwrap() <= LIMIT);
    assert!(machine.counter("evicted") > 0);
    // What is left is right, and the last of it is left.
    let present = |push: &Push| machine.path().join(push.entry()).exists();
    let left: Vec<_> = oracle.acknowledged().into_iter().filter(present).collect();
    assert!(!left.is_empty());
    for push in left {
        assert_eq!(push.fault(machine.path()), None);
    }
}
