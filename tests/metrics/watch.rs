//! `status --watch` and `status --ci`, from outside.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use super::{LIMIT, Stage};
use crate::support::mounted::CACHEDIRFS;
use crate::support::wait_until;

fn watch(stage: &Stage) -> Child {
    Command::new(CACHEDIRFS)
        .args(["status", "--watch=1"])
        .arg(stage.mounted.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its exit status, in time.
fn ended(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    wait_until("it ends", LIMIT, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn a_line_an_interval_until_the_mount_goes() {
    let mut stage = Stage::new();
    let mut child = watch(&stage);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut from = 0;
    let seen = loop {
        stage.load(from, 10);
        from += 10;
        let line = lines.next().unwrap().unwrap();
        assert!(
            line.starts_with("lookups ") && line.contains("/s, pending "),
            "{line}"
        );
        if !line.starts_with("lookups 0/s") {
            break line;
        }
    };
    assert!(
        seen.contains("hits ") && seen.contains("%), fetched "),
        "{seen}"
    );
    stage.mounted.terminate();
    let status = ended(&mut child);
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(
        status.success() && said.contains("is unmounted"),
        "{status} {said}"
    );
}

#[test]
fn ctrl_c_ends_it_and_so_does_a_reader_that_has_had_enough() {
    let stage = Stage::new();
    let mut child = watch(&stage);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert!(ended(&mut child).success());

    let mut child = watch(&stage);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    assert!(ended(&mut child).success());
}

/// script(1) gives it a terminal.
#[test]
fn on_a_terminal_the_whole_status_is_drawn_again() {
    let stage = Stage::new();
    let command = format!(
        "{CACHEDIRFS} status --watch=1 {}",
        stage.mounted.path().display()
    );
    let mut child = Command::new("script")
        .args(["-qec", &format!("timeout -s INT 5 {command}"), "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut drawn = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut drawn)
        .unwrap();
    child.wait().unwrap();
    assert!(drawn.matches("\u{1b}[H\u{1b}[2J").count() >= 2, "{drawn:?}");
    assert!(
        drawn.contains("  disk ") && drawn.contains("  now      lookups "),
        "{drawn:?}"
    );
}

#[test]
fn a_line_for_the_log_of_a_build() {
    let stage = Stage::new();
    stage.load(0, 4);
    stage.break_remote();
    let output = stage.mounted.command(&["status", "--ci"], &[]);
    let line = String::from_utf8(output.stdout).unwrap();
    let status = stage.mounted.status();
    let (hits, saved) = (
        &status["counters"]["hits"],
        &status["counters"]["hit_bytes"],
    );
    assert_eq!((hits, saved), (&4.into(), &4006.into()));
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.contains("(4 of ") && line.contains("saved 3.9 KiB"),
        "{line}"
    );
    let all = Command::new(CACHEDIRFS)
        .args(["status", "--ci"])
        .output()
        .unwrap();
    let named = format!("{}: hits ", stage.mounted.path().display());
    assert!(
        String::from_utf8_lossy(&all.stdout).contains(&named),
        "{all:?}"
    );
}
