//! Outages, the end of a mount and `cachedirfs rm`, with real mounts and real servers.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::support::canned::Canned;
use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::servers::{BODY_MAX_MIB, Nginx, Server};
use crate::support::{wait_until, workspace};

/// Far more than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const ANYTHING: &str = "$request_method";
const A_WRITE: &str = "$request_method = PUT";

fn push(machine: &Mounted, oracle: &Oracle, numbers: std::ops::Range<u64>) {
    for push in numbers.map(Push) {
        let pushed = push.perform(machine.path(), Shape::Uuid);
        pushed.unwrap_or_else(|e| panic!("no outage fails a push: {e}"));
        oracle.acknowledge(push);
    }
}

fn pending(machine: &Mounted) -> u64 {
    machine.status()["pending"]["objects"].as_u64().unwrap()
}

#[test]
fn uploads_survive_503_a_full_remote_expired_credentials_and_kill_9_in_the_middle() {
    let mut nginx = Server::nginx(Nginx::Open);
    let mut machine = Mounted::with_options(&nginx.url(), "drain_timeout=0");
    let oracle = Oracle::default();
    let outages = [(ANYTHING, 503), (A_WRITE, 507), (ANYTHING, 401)];
    for (round, (what, status)) in (0..).zip(outages) {
        nginx.set_answer(what, Some(status));
        push(&machine, &oracle, 20 * round + 1..20 * round + 11);
        wait_until("the outage is met", PATIENCE, || {
            machine.counter("upload_errors") > 0
        });
        machine.kill9();
        machine.remount();
        push(&machine, &oracle, 20 * round + 11..20 * round + 21);
        assert_eq!(pending(&machine), 20 * (round + 1), "nothing is lost");
    }
    nginx.set_answer(ANYTHING, None);
    machine.flush();
    assert_eq!(machine.counter("given_up"), 0);
    let second = Mounted::new(&nginx.url());
    oracle.check(second.path(), "on a second machine, after the outages");
}

#[test]
fn an_object_that_the_remote_finds_too_large_holds_up_nobody() {
    let nginx = Server::nginx(Nginx::Narrow);
    let machine = Mounted::with_options(&nginx.url(), "drain_timeout=0,upload_threads=1");
    let mut noise = vec![0; (BODY_MAX_MIB + 4) << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let large = machine.path().join("AA").join(format!("aa{:030}", 1));
    fs::create_dir_all(large.parent().unwrap()).unwrap();
    fs::write(large.with_extension("tmp1"), &noise).unwrap();
    fs::rename(large.with_extension("tmp1"), &large).unwrap();
    let oracle = Oracle::default();
    push(&machine, &oracle, 1..7);
    wait_until("all others are uploaded", PATIENCE, || {
        machine.counter("uploaded") == 6
    });
    assert_eq!(pending(&machine), 1);
    assert!(machine.counter("upload_errors") > 0);
    assert_eq!(fs::read(&large).unwrap(), noise, "it is here all the same");
}

fn sigterm(machine: &Mounted) {
    let pid = Pid::from_raw(machine.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
}

fn journalled(machine: &Mounted) -> usize {
    let journal = machine.backing().join(".cachedirfs/pending");
    fs::read_dir(journal).unwrap().count()
}

/// Uploads hang in the network: whoever waits for them waits for ever.
const HANGING: &str = "lookup_timeout=300ms,stall_timeout=10m,request_timeout=10m";

#[test]
fn sigterm_ends_a_mount_whose_uploads_hang_and_says_what_is_left() {
    let remote = Canned::stalling("");
    let options = format!("{HANGING},drain_timeout=1s");
    let mut machine = Mounted::with_options(&remote.url(), &options);
    push(&machine, &Oracle::default(), 1..31);
    wait_until("an upload is under way", PATIENCE, || remote.asked() > 1);
    // Waits for the end, which it does not for the ten minutes that an upload may take.
    machine.terminate();
    let said = "30 objects are not on the remote yet";
    assert!(machine.log().contains(said), "{}", machine.log());
    assert_eq!(journalled(&machine), 30);
}

#[test]
fn a_second_signal_ends_the_draining() {
    let remote = Canned::stalling("");
    let options = format!("{HANGING},drain_timeout=10m");
    let mut machine = Mounted::with_options(&remote.url(), &options);
    push(&machine, &Oracle::default(), 1..4);
    sigterm(&machine);
    wait_until("it drains", PATIENCE, || {
        machine.log().contains("stopping on signal")
    });
    machine.terminate();
    let said = "3 objects are not on the remote yet";
    assert!(machine.log().contains(said), "{}", machine.log());
    assert_eq!(journalled(&machine), 3);
}

fn rm(machine: &Mounted, after: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = machine.command(&["rm"], after);
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8(said).unwrap())
}

fn file_remote(dir: &Path) -> String {
    format!("file://{}/remote", dir.display())
}

#[test]
fn rm_removes_objects_here_and_on_the_remote_also_when_they_are_open() {
    let workspace = workspace();
    let machine = Mounted::new(&file_remote(workspace.path()));
    push(&machine, &Oracle::default(), 1..5);
    machine.flush();
    let here = |n| machine.path().join(Push(n).entry());
    let there = |n| workspace.path().join("remote").join(Push(n).entry());
    let mut open = fs::File::open(here(1)).unwrap();
    assert!(fs::metadata(here(2)).is_ok(), "the kernel knows it");
    assert!(there(1).exists());

    let (sig, path, full) = (Push(1).signature(), Push(2).entry(), here(3));
    let unknown = "0".repeat(40);
    let names = [
        &sig,
        path.to_str().unwrap(),
        full.to_str().unwrap(),
        &unknown,
    ];
    let (code, said) = rm(&machine, &[&names[..], &["--remote"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let done = ": removed here, removed on the remote\n";
    assert_eq!(said.matches(done).count(), 3, "{said}");
    let nothing = format!("{unknown}: not here, not on the remote\n");
    assert!(said.contains(&nothing), "{said}");
    for n in 1..=3 {
        assert!(!here(n).exists() && !there(n).exists(), "{n}");
    }
    assert!(here(4).exists() && there(4).exists());
    let mut read = Vec::new();
    open.read_to_end(&mut read).unwrap();
    assert_eq!(read, Push(1).content(), "who has it open reads on");

    let (code, said) = rm(&machine, &[&Push(4).signature()]);
    assert_eq!((code, there(4).exists()), (Some(0), true), "{said}");
    assert!(!machine.backing().join(Push(4).entry()).exists());
    assert_eq!(None, Push(4).fault(machine.path()), "fetched again");
    let (code, said) = rm(&machine, &["nonsense"]);
    assert_eq!(code, Some(2), "{said}");
}

#[test]
fn rm_cancels_an_upload_that_waits_and_says_what_it_cannot_remove() {
    let workspace = workspace();
    let url = file_remote(workspace.path());
    let machine = Mounted::new(&url);
    let visible = workspace.path().join("remote");
    let hidden = workspace.path().join("hidden");
    fs::rename(&visible, &hidden).unwrap();
    let oracle = Oracle::default();
    push(&machine, &oracle, 1..3);

    let (code, said) = rm(&machine, &[&Push(1).signature()]);
    // Cancelled, or just then tried in vain.
    let done = format!("{}: removed here, its upload ", Push(1).signature());
    assert!(code == Some(0) && said.starts_with(&done), "{said}");
    let (code, said) = rm(&machine, &[&Push(3).signature(), "--remote"]);
    assert!(code == Some(1) && said.contains("NOT REMOVED: "), "{said}");

    fs::rename(&hidden, &visible).unwrap();
    machine.flush();
    assert!(visible.join(Push(2).entry()).exists());
    assert!(!visible.join(Push(1).entry()).exists());
}

#[test]
fn a_read_only_mount_removes_here_and_never_on_the_remote() {
    let workspace = workspace();
    let url = file_remote(workspace.path());
    let writer = Mounted::new(&url);
    push(&writer, &Oracle::default(), 1..2);
    writer.flush();
    let reader = Mounted::with_options(&url, "ro");
    assert_eq!(None, Push(1).fault(reader.path()));
    let (code, said) = rm(&reader, &[&Push(1).signature(), "--remote"]);
    assert!(code == Some(2) && said.contains("read-only"), "{said}");
    assert!(reader.backing().join(Push(1).entry()).exists());
    let (code, said) = rm(&reader, &[&Push(1).signature()]);
    assert!(code == Some(0) && said.contains("removed here"), "{said}");
    assert!(!reader.backing().join(Push(1).entry()).exists());
    assert_eq!(None, Push(1).fault(reader.path()), "fetched again");
}

/// A list of `status`, as JSON.
fn list(machine: &Mounted, which: &str) -> Vec<serde_json::Value> {
    let output = machine.command(&["status"], &[which, "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn status_lists_what_diverged_with_sizes_and_hashes() {
    let workspace = workspace();
    let url = file_remote(workspace.path());
    let (first, second) = (Mounted::new(&url), Mounted::new(&url));
    let oracle = Oracle::default();
    // More than fit into one answer.
    push(&first, &oracle, 1..61);
    first.flush();
    for n in 1..61 {
        let entry = second.path().join(Push(n).entry());
        fs::create_dir_all(entry.parent().unwrap()).unwrap();
        fs::write(entry.with_extension("tmp1"), "not reproducible").unwrap();
        fs::rename(entry.with_extension("tmp1"), entry).unwrap();
    }
    second.flush();
    assert!(list(&first, "--divergent").is_empty());
    let listed = list(&second, "--divergent");
    assert_eq!(listed.len(), 60);
    let one = listed
        .iter()
        .find(|one| one["signature"] == Push(7).signature());
    let one = one.unwrap();
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_string();
    assert_eq!(one["here"]["bytes"], 16);
    assert_eq!(one["here"]["blake3"], hash(b"not reproducible"));
    assert_eq!(one["there"]["bytes"], Push(7).content().len());
    assert_eq!(one["there"]["blake3"], hash(&Push(7).content()));
    let text = second.command(&["status"], &["--divergent"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("BLAKE3").count(), 120, "{text}");
}

#[test]
fn in_an_outage_the_pending_stay_within_their_bounds_and_the_rest_is_listed_and_logged_in_a_line() {
    let remote =
        Canned::closing("HTTP/1.1 503 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let options = "pending_max=20,drain_timeout=0,upload_threads=2";
    let mut machine = Mounted::with_options(&remote.url(), options);
    push(&machine, &Oracle::default(), 1..61);
    // Those that are being tried are never given up.
    assert!(pending(&machine) <= 20 + 3);
    wait_until("the others are given up", PATIENCE, || {
        machine.counter("given_up") + pending(&machine) == 60
    });
    let listed = list(&machine, "--given-up");
    assert_eq!(listed.len() as u64, machine.counter("given_up"));
    assert!(listed[0]["why"].as_str().unwrap().contains("20 objects"));
    machine.terminate();
    let log = machine.log();
    let lines = log.lines().filter(|line| line.contains("gave up")).count();
    assert!((1..=2).contains(&lines), "{log}");
    assert!(journalled(&machine) <= 20 + 3);
}
