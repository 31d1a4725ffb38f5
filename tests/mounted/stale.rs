//! What an earlier daemon, SCons or outage left is in nobody's way.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::mounted::{CACHEDIRFS, Mounted, is_mounted};
use crate::support::oracle::{Push, Shape};
use crate::support::scons::Project;
use crate::support::{wait_until, workspace};

/// Versions that take `config.lock` at their start.
const LOCKING: [&str; 2] = ["4.8.1", "4.11.1"];
/// Longest that something may take that must happen.
const SOON: Duration = Duration::from_secs(60);

fn remote_in(workspace: &tempfile::TempDir) -> String {
    format!("file://{}", workspace.path().display())
}

/// Mounts on the mount point of a machine whose daemon is dead, in the background; what was said on the way.
fn mount_over(machine: &Mounted, remote: &str, backing: &str) -> String {
    let said = Command::new(CACHEDIRFS)
        .args(["mount", remote])
        .arg(machine.path())
        .args(["-o", &format!("backing={backing}")])
        .output()
        .unwrap();
    let said_text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{said_text}");
    said_text
}

fn unmount(machine: &Mounted) {
    let mut umount = Command::new(CACHEDIRFS);
    let output = umount.arg("umount").arg(machine.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_dead_mount_that_somebody_still_holds_open_is_cleaned_up_and_mounted_anew() {
    let workspace = workspace();
    let mut machine = Mounted::new(&remote_in(&workspace));
    let push = Push(1);
    push.perform(machine.path(), Shape::Uuid).unwrap();
    let file = File::open(machine.path().join(push.entry())).unwrap();
    // A shell whose working directory it is.
    let mut shell = Command::new("sh")
        .args(["-c", "read line"])
        .current_dir(machine.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    machine.kill9();
    let backing = machine.backing().display().to_string();
    let said = mount_over(&machine, &remote_in(&workspace), &backing);
    assert!(said.contains("detached a dead mount"), "{said}");
    assert_eq!(push.fault(machine.path()), None);
    drop(file);
    drop(shell.stdin.take());
    shell.wait().unwrap();
    assert_eq!(push.fault(machine.path()), None);
    unmount(&machine);
    assert!(!is_mounted(machine.path()));
}

#[test]
fn two_dead_mounts_on_one_another_are_both_cleaned_up() {
    let workspace = workspace();
    let mut below = Mounted::new(&remote_in(&workspace));
    // The second is mounted over the first from elsewhere: there it would be refused.
    let mut second = Mounted::new(&remote_in(&workspace));
    let run = |args: &[&std::ffi::OsStr]| {
        assert!(Command::new("mount").args(args).status().unwrap().success());
    };
    run(&[
        "--bind".as_ref(),
        second.path().as_os_str(),
        below.path().as_os_str(),
    ]);
    second.kill9();
    below.kill9();
    let backing = below.backing().display().to_string();
    let said = mount_over(&below, &remote_in(&workspace), &backing);
    assert_eq!(said.matches("detached a dead mount").count(), 2, "{said}");
    Push(1).perform(below.path(), Shape::Uuid).unwrap();
    unmount(&below);
    assert!(!is_mounted(below.path()));
}

/// SCons is killed between making the lock and removing it.
#[test]
fn a_config_lock_whose_maker_was_killed_never_blocks_scons() {
    let workspace = workspace();
    let machine = Mounted::new(&remote_in(&workspace));
    for version in LOCKING {
        let mut maker = Command::new("python3")
            .args(["-c", "import os, sys, time\nos.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR)\nprint(flush=True)\ntime.sleep(600)"])
            .arg(machine.path().join("config.lock"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = std::io::BufReader::new(maker.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert!(machine.path().join("config.lock").exists());
        let listed = |name| {
            fs::read_dir(machine.path())
                .unwrap()
                .any(|e| e.unwrap().file_name() == name)
        };
        assert!(listed("config.lock"));
        maker.kill().unwrap();
        maker.wait().unwrap();
        let project = Project::checkout(workspace.path().join(format!("checkout-{version}")));
        project.build(version, machine.path(), &[]).succeeded();
        assert!(!listed("config.lock"));
    }
}

#[test]
fn a_config_lock_that_lies_in_the_backing_directory_never_blocks_scons() {
    let workspace = workspace();
    for version in LOCKING {
        let mut machine = Mounted::new(&remote_in(&workspace));
        machine.unmount();
        File::create(machine.backing().join("config.lock")).unwrap();
        machine.remount();
        let project = Project::checkout(workspace.path().join(format!("checkout-{version}")));
        project.build(version, machine.path(), &[]).succeeded();
        machine.unmount();
        assert!(!machine.backing().join("config.lock").exists());
    }
}

#[test]
fn a_mount_point_that_was_written_during_an_outage_is_mounted_over_with_a_warning_that_names_the_files()
 {
    let workspace = workspace();
    let mut machine = Mounted::new(&remote_in(&workspace));
    machine.unmount();
    // A build during the outage makes a CacheDir of the bare mount point.
    let project = Project::checkout(workspace.path().join("checkout"));
    project.build("4.8.1", machine.path(), &[]).succeeded();
    let stray = machine.path().join("config");
    let names: Vec<_> = fs::read_dir(machine.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.len() > 3);
    machine.remount();
    let warning = "is not empty; what is in it is hidden while mounted";
    wait_until("the warning is said", SOON, || {
        machine.log().contains(warning)
    });
    let log = machine.log();
    let line = log.lines().find(|line| line.contains(warning)).unwrap();
    let named: Vec<_> = line.rsplit_once(": ").unwrap().1.split(", ").collect();
    let known = |name: &&str| *name == "…" || names.contains(&(*name).to_owned());
    assert!(named.len() > 1 && named.iter().all(known), "{line}");
    Push(1).perform(machine.path(), Shape::Uuid).unwrap();
    machine.unmount();
    assert!(stray.exists(), "nothing was removed");
}
