//! The daemon is killed while eight writers push: what was acknowledged is never lost and never wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::{SetOnDrop, wait_until, workspace};

const WRITERS: usize = 8;
const ROUNDS: usize = 4;
/// Enough that some are on the remote, some on their way and some still waiting when the daemon dies.
const PUSHES_A_ROUND: usize = 150;

#[test]
fn every_acknowledged_push_reaches_the_remote_although_the_daemon_is_killed_again_and_again() {
    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().display());
    let mut machine = Mounted::new(&remote);
    let oracle = Oracle::default();
    let next = AtomicU64::new(1);

    for round in 0..ROUNDS {
        push_until_killed(&mut machine, &oracle, &next);
        machine.remount();
        oracle.check(
            machine.path(),
            &format!("on the same machine, after kill {round}"),
        );
    }
    machine.flush();

    let second = Mounted::new(&remote);
    oracle.check(second.path(), "on a second machine, after the flush");
    assert_unacknowledged_is_right_or_absent(&second, &oracle, next.load(Ordering::Relaxed));
}

/// Eight writers in all three shapes of SCons, a reader of what they acknowledged, and kill -9 in the midst.
fn push_until_killed(machine: &mut Mounted, oracle: &Oracle, next: &AtomicU64) {
    let before = oracle.acknowledged().len();
    let (dying, done, faults) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicUsize::new(0),
    );
    let path = machine.path().to_owned();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (path, dying, done) = (&path, &dying, &done);
            let shape = [Shape::Pid, Shape::Uuid, Shape::Directory][writer % 3];
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let push = Push(next.fetch_add(1, Ordering::Relaxed));
                    match push.perform(path, shape) {
                        Ok(()) => oracle.acknowledge(push),
                        Err(_) if dying.load(Ordering::Acquire) => break,
                        Err(e) => panic!("push {push:?} as {shape:?} on a living mount: {e}"),
                    }
                }
            });
        }
        scope.spawn(|| {
            while !dying.load(Ordering::Acquire) && !done.load(Ordering::Acquire) {
                for push in oracle.acknowledged().into_iter().rev().take(20) {
                    if let Some(fault) =
                        push.fault(&path).filter(|_| !dying.load(Ordering::Acquire))
                    {
                        eprintln!("read while others push: {fault}");
                        faults.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        // However this ends, the writers end too.
        let _ending = SetOnDrop(&done);
        wait_until(
            "enough pushes are acknowledged",
            Duration::from_secs(60),
            || oracle.acknowledged().len() >= before + PUSHES_A_ROUND,
        );
        dying.store(true, Ordering::Release);
        machine.kill9();
    });
    assert_eq!(
        0,
        faults.load(Ordering::Relaxed),
        "acknowledged objects read wrong while others push"
    );
}

/// A push whose rename did not return may have happened or not; half of it must not be seen.
fn assert_unacknowledged_is_right_or_absent(machine: &Mounted, oracle: &Oracle, pushes: u64) {
    let acknowledged = oracle.acknowledged();
    for push in (1..pushes)
        .map(Push)
        .filter(|push| !acknowledged.contains(push))
    {
        if machine.path().join(push.entry()).exists() {
            assert_eq!(
                None,
                push.fault(machine.path()),
                "pushed, killed before the answer"
            );
        }
    }
}
