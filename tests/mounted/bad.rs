//! Bad input from the remote and from the disk, through a real mount: a counted miss or a clear error, and nothing lost.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use cachedirfs::object::Header;
use cachedirfs::signature::{Meta, Signature};

use crate::support::mounted::{Mounted, is_mounted};
use crate::support::oracle::{Push, Shape};
use crate::support::workspace;

const TIB: u64 = 1 << 40;

#[test]
fn a_remote_that_cannot_be_reached_is_mounted_and_misses_are_counted() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/cache", nobody.local_addr().unwrap());
    drop(nobody);
    let mounted = Mounted::with_options(&url, "drain_timeout=1s");
    assert!(!mounted.path().join(Push(1).entry()).exists());
    assert!(mounted.counter("failed_fetches") > 0);
    Push(2).perform(mounted.path(), Shape::Directory).unwrap();
    assert_eq!(None, Push(2).fault(mounted.path()), "it works without");
    let flush = Command::new(env!("CARGO_BIN_EXE_cachedirfs"))
        .arg("flush")
        .arg(mounted.path())
        .args(["--timeout", "1"])
        .output()
        .unwrap();
    assert_eq!(flush.status.code(), Some(1), "{flush:?}");
    let said = String::from_utf8_lossy(&flush.stderr);
    assert!(said.contains("1 object is not on the remote"), "{said}");
}

#[test]
fn what_is_wrong_on_the_remote_is_a_counted_miss_and_is_written_over_by_the_next_push() {
    let remote = workspace();
    let url = format!("file://{}", remote.path().display());
    let pushes: Vec<_> = (1..=4).map(Push).collect();
    {
        let first = Mounted::new(&url);
        for push in &pushes {
            push.perform(first.path(), Shape::Directory).unwrap();
        }
        first.flush();
    }
    let object = |n: usize| remote.path().join(pushes[n].entry());
    let cut = std::fs::read(object(0)).unwrap();
    std::fs::write(object(0), &cut[..cut.len() - 1]).unwrap();
    let mut flipped = std::fs::read(object(1)).unwrap();
    let last = flipped.len() - 5;
    flipped[last] ^= 1;
    std::fs::write(object(1), flipped).unwrap();
    std::fs::copy(object(3), object(2)).unwrap();

    let second = Mounted::new(&url);
    for push in &pushes[..3] {
        assert!(!second.path().join(push.entry()).exists(), "{push:?}");
    }
    assert_eq!(
        None,
        pushes[3].fault(second.path()),
        "what is right is served"
    );
    assert_eq!(second.counter("corrupt"), 3);
    let incoming = second.backing().join(".cachedirfs/tmp");
    assert_eq!(
        incoming.read_dir().unwrap().count(),
        0,
        "nothing is left behind"
    );

    for push in &pushes[..3] {
        push.perform(second.path(), Shape::Directory).unwrap();
    }
    second.flush();
    let third = Mounted::new(&url);
    for push in &pushes {
        assert_eq!(None, push.fault(third.path()));
    }
}

#[test]
fn an_object_that_claims_a_tebibyte_is_a_counted_miss() {
    let remote = workspace();
    let entry = Push(1).entry();
    let path = remote.path().join(&entry);
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let name = Path::new(&entry).file_name().unwrap().as_encoded_bytes();
    let sig = Signature::parse(name).unwrap();
    let header = Header::new(sig, Meta::file(0o644), TIB, [7; 32], None);
    std::fs::write(&path, header.to_bytes()).unwrap();
    let mounted = Mounted::new(&format!("file://{}", remote.path().display()));
    assert!(!mounted.path().join(&entry).exists());
    assert_eq!(mounted.counter("no_room"), 1);
    assert_eq!(mounted.counter("fetched"), 0);
}

fn mount(mountpoint: &Path, backing: &Path) -> Output {
    let remote = workspace();
    Command::new(env!("CARGO_BIN_EXE_cachedirfs"))
        .arg("mount")
        .arg(format!("file://{}", remote.path().display()))
        .arg(mountpoint)
        .args(["-o", &format!("backing={}", backing.display())])
        .output()
        .unwrap()
}

fn refused(mountpoint: &Path, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(32), "{said}");
    assert!(!is_mounted(mountpoint), "{said}");
    said
}

#[test]
fn a_backing_directory_in_use_is_refused_and_its_user_named() {
    let remote = workspace();
    let mounted = Mounted::new(&format!("file://{}", remote.path().display()));
    let elsewhere = workspace();
    let output = mount(elsewhere.path(), &mounted.backing());
    let said = refused(elsewhere.path(), &output);
    assert!(
        said.contains(&format!("used by pid {}", mounted.pid())),
        "{said}"
    );
    assert!(said.contains("choose another with backing="), "{said}");
}

#[test]
fn a_backing_directory_on_a_read_only_disk_is_refused_with_the_remedy() {
    let (disk, mountpoint) = (workspace(), workspace());
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "ro", "none"])
        .arg(disk.path())
        .status();
    assert!(
        tmpfs.unwrap().success(),
        "mounting a read-only disk takes root"
    );
    let output = mount(mountpoint.path(), &disk.path().join("backing"));
    let unmounted = Command::new("umount").arg(disk.path()).status();
    assert!(unmounted.unwrap().success());
    let said = refused(mountpoint.path(), &output);
    assert!(said.contains("read-only file system"), "{said}");
    assert!(said.contains("backing="), "{said}");
}
