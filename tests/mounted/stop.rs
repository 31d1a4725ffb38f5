//! However the daemon is asked to stop, what was pushed is on the remote and nothing stays mounted.

use std::time::{Duration, Instant};

use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::workspace;

const PUSHES: u64 = 60;

fn pushed_then_stopped(stop: fn(&mut Mounted)) {
    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().display());
    let oracle = Oracle::default();
    let mut first = Mounted::new(&remote);
    for push in (1..=PUSHES).map(Push) {
        push.perform(first.path(), Shape::Directory).unwrap();
        oracle.acknowledge(push);
    }
    stop(&mut first);
    let second = Mounted::new(&remote);
    oracle.check(second.path(), "on the second machine");
}

#[test]
fn umount_uploads_what_was_pushed_and_ends_the_daemon() {
    pushed_then_stopped(Mounted::unmount);
}

#[test]
fn sigterm_uploads_what_was_pushed_and_unmounts() {
    pushed_then_stopped(Mounted::terminate);
}

#[test]
fn what_was_pushed_while_the_mount_was_read_only_stays_off_the_remote() {
    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().display());
    let mut machine = Mounted::with_options(&remote, "ro");
    // Whether a read-only mount takes the push for itself or refuses it is its own affair.
    let _ = Push(7).perform(machine.path(), Shape::Uuid);
    machine.remount_with("");
    Push(8).perform(machine.path(), Shape::Uuid).unwrap();
    machine.flush();
    let second = Mounted::new(&remote);
    assert_eq!(None, Push(8).fault(second.path()));
    assert!(
        !second.path().join(Push(7).entry()).exists(),
        "pushed through a read-only mount"
    );
}

/// Another mount's leftovers, which `push=off` does not touch, are nothing to wait for either.
#[test]
fn with_push_off_what_was_pending_stays_so_and_nobody_waits_for_it() {
    const SECONDS: Duration = Duration::from_secs(10);
    let workspace = workspace();
    let remote = format!("file://{}/remote", workspace.path().display());
    let hidden = workspace.path().join("hidden");
    let mut machine = Mounted::with_options(&remote, "drain_timeout=0");
    let visible = workspace.path().join("remote");
    std::fs::rename(&visible, &hidden).unwrap();
    Push(7)
        .perform(machine.path(), Shape::Uuid)
        .expect("a remote that is gone fails no push");
    machine.kill9();
    std::fs::rename(&hidden, &visible).unwrap();

    machine.remount_with("push=off");
    let status = machine.status();
    assert_eq!(status["pending"]["objects"], 1, "{status:#}");
    let began = Instant::now();
    assert!(!machine.try_flush(), "nothing is uploaded");
    machine.unmount();
    assert!(began.elapsed() < SECONDS, "{:?}", began.elapsed());
    assert!(
        machine.log().contains("1 object is not on the remote yet"),
        "{}",
        machine.log()
    );

    machine.remount_with("");
    machine.flush();
    let second = Mounted::new(&remote);
    assert_eq!(None, Push(7).fault(second.path()));
}
