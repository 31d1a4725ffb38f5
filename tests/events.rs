//! The event log of real mounts: what is in it, what a crash and a full disk do to it, and what `cachedirfs why` tells.

mod builds;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use cachedirfs::events::Record;
use cachedirfs::events::reader::{read, sessions};
use tempfile::TempDir;

use crate::support::mounted::{CACHEDIRFS, Mounted};
use crate::support::oracle::{Push, Shape};
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers::{Nginx, Server};
use crate::support::{wait_until, workspace};

const SOON: Duration = Duration::from_secs(60);

/// A remote in a directory, and a place for event logs.
struct Stage(TempDir);

impl Stage {
    fn new() -> Self {
        let dir = workspace();
        fs::create_dir(dir.path().join("remote")).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn log(&self) -> PathBuf {
        self.path("events")
    }

    fn url(&self) -> String {
        format!("file://{}", self.path("remote").display())
    }

    fn mount(&self, options: &str) -> Mounted {
        Mounted::with_options(&self.url(), &self.options(options))
    }

    fn options(&self, more: &str) -> String {
        format!("events={},{more}", self.log().display())
    }

    fn records(&self) -> Vec<Record> {
        read(&self.log()).unwrap()
    }

    /// What the log has of one entry, without times.
    fn outcomes(&self, push: Push) -> Vec<String> {
        let sig = push.signature();
        let records = self.records().into_iter();
        let of_it = records.filter(|r| r.signature.is_some_and(|s| s.as_str() == sig));
        of_it.map(|r| r.outcome.into_owned()).collect()
    }

    /// Waits until the log has that.
    #[track_caller]
    fn await_outcome(&self, push: Push, outcome: &str) {
        wait_until(&format!("{outcome} is written"), SOON, || {
            self.outcomes(push).iter().any(|o| o == outcome)
        });
    }
}

fn cachedirfs(args: &[&str]) -> Output {
    Command::new(CACHEDIRFS).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// `cachedirfs why` of an entry in that mount: exit status and words.
fn why(mount: &Mounted, push: Push, flags: &[&str]) -> (i32, String) {
    let (path, sig) = (mount.path().to_str().unwrap(), push.signature());
    let output = cachedirfs(&[&["why", path, &sig], flags].concat());
    (output.status.code().unwrap(), said(&output))
}

fn is_there(mount: &Mounted, push: Push) -> bool {
    fs::read(mount.path().join(push.entry())).is_ok()
}

fn push(mount: &Mounted, number: u64) -> Push {
    let push = Push(number);
    push.perform(mount.path(), Shape::Uuid).unwrap();
    push
}

#[test]
fn a_session_is_written_from_its_beginning_to_its_summary() {
    let stage = Stage::new();
    let mut mount = stage.mount("negative_ttl=1h");
    let mode = fs::metadata(stage.log()).unwrap().mode() & 0o777;
    assert_eq!(mode & !0o640, 0, "{mode:o}");
    let absent = Push(9);
    assert!(!is_there(&mount, absent));
    let entry = push(&mount, 1);
    mount.flush();
    assert!(is_there(&mount, entry));
    let path = mount.path().join(entry.entry());
    fs::remove_file(&path).unwrap();
    assert!(is_there(&mount, entry), "it is fetched");
    let sig = entry.signature();
    let output = mount.command(&["rm"], &[&sig, "--remote"]);
    assert!(output.status.success(), "{output:?}");
    let output = mount.command(&["umount", "-v"], &[]);
    assert!(output.status.success(), "{output:?}");
    // SCons looks before it pushes, and so do we.
    let summary = "hits 50% (2 of 4), saved ";
    assert!(said(&output).contains(summary), "{output:?}");
    assert!(
        mount.log().contains(&format!("in short: {summary}")),
        "{}",
        mount.log()
    );

    let told = [
        "pushed", "uploaded", "hit", "unlinked", "fetched", "waited", "hit", "removed",
    ];
    let outcomes = stage.outcomes(entry);
    let pushed = outcomes.iter().position(|o| o == "pushed").unwrap();
    assert_eq!(outcomes[..pushed], ["miss", "waited"]);
    assert_eq!(outcomes[pushed..], told);
    assert_eq!(stage.outcomes(absent), ["miss", "waited"]);
    let records = stage.records();
    let first = records[0].session.as_ref().unwrap();
    let at = mount.path().to_str().unwrap();
    assert_eq!(
        (first.mountpoint.as_str(), &first.remote),
        (at, &stage.url())
    );
    assert_eq!(first.options["negative_ttl"], "3600s");
    let last = records.last().unwrap();
    assert!(
        last.summary.as_ref().unwrap().starts_with(summary),
        "{last:?}"
    );
    assert_eq!(last.counters.as_ref().unwrap().uploaded, 1);

    mount.remount();
    mount.terminate();
    assert_eq!(sessions(&stage.records()).len(), 2);
    assert_eq!(
        stage.records().last().unwrap().outcome,
        "end",
        "also on SIGTERM"
    );
}

#[test]
fn umount_is_silent_unless_asked() {
    let stage = Stage::new();
    let mount = stage.mount("");
    let output = mount.command(&["umount"], &[]);
    assert!(
        output.status.success() && said(&output).is_empty(),
        "{output:?}"
    );
}

#[test]
fn a_log_survives_kill_9_and_goes_on_in_the_next_session() {
    let stage = Stage::new();
    let mut mount = stage.mount("");
    let entries: Vec<_> = (0..50).map(|n| push(&mount, n * 8 + 1)).collect();
    mount.flush();
    stage.await_outcome(entries[49], "uploaded");
    mount.kill9();
    // What a write that was cut in two leaves.
    let torn = fs::read(stage.log()).unwrap();
    fs::write(stage.log(), &torn[..torn.len() - 10]).unwrap();
    mount.remount();
    assert!(is_there(&mount, entries[0]));
    stage.await_outcome(entries[0], "hit");
    let records = stage.records();
    let sessions = sessions(&records);
    assert_eq!(sessions.len(), 2);
    assert!(
        records[sessions[0].clone()]
            .iter()
            .all(|r| r.outcome != "end")
    );
    let pushed = records.iter().filter(|r| r.outcome == "pushed").count();
    assert_eq!(pushed, 50);
}

#[test]
fn a_full_disk_costs_events_and_nothing_else() {
    let stage = Stage::new();
    let disk = stage.path("disk");
    fs::create_dir(&disk).unwrap();
    let image = stage.path("image");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    run(
        "mount",
        &[
            "-o",
            "loop",
            image.to_str().unwrap(),
            disk.to_str().unwrap(),
        ],
    );
    let _unmounts = Unmounts(disk.clone());
    let log = disk.join("events");
    let mut mount = Mounted::with_options(&stage.url(), &format!("events={}", log.display()));
    let ballast = disk.join("ballast");
    let full = (0..).find(|n| fs::write(disk.join(format!("b{n}")), vec![1; 65536]).is_err());
    assert!(full.is_some());
    fs::write(&ballast, vec![1; 1]).ok();
    // A file's last block takes some more.
    let mut number = 0;
    wait_until("events are dropped", SOON, || {
        number += 8;
        push(&mount, number + 1);
        mount.counter("events_dropped") > 0
    });
    assert!(is_there(&mount, Push(9)));
    mount.flush();
    let warned = "cannot write the event log";
    assert_eq!(mount.log().matches(warned).count(), 1, "{}", mount.log());
    for n in 0..full.unwrap() {
        fs::remove_file(disk.join(format!("b{n}"))).unwrap();
    }
    let after = push(&mount, number + 9);
    wait_until("events are written again", SOON, || {
        let records = read(&log).unwrap();
        records
            .iter()
            .any(|r| r.signature.is_some_and(|s| s.as_str() == after.signature()))
    });
    mount.unmount();
    let records = read(&log).unwrap();
    let missing: u64 = records.iter().filter_map(|r| r.count).sum();
    let last = records.last().unwrap().counters.as_ref().unwrap();
    assert!(missing > 0 && missing == last.events_dropped, "{missing}");
    assert!(mount.log().contains("is written again"), "{}", mount.log());
}

struct Unmounts(PathBuf);

impl Drop for Unmounts {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}, run: scripts/setup crash"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn a_log_that_cannot_be_is_refused_before_anything_is_mounted() {
    let stage = Stage::new();
    for dir in ["mnt", "backing"] {
        fs::create_dir(stage.path(dir)).unwrap();
    }
    let (mountpoint, backing) = (stage.path("mnt"), stage.path("backing"));
    let mount = |events: &Path| {
        let options = format!("backing={},events={}", backing.display(), events.display());
        let mountpoint = mountpoint.to_str().unwrap();
        let output = cachedirfs(&["mount", &stage.url(), mountpoint, "-o", &options]);
        assert_eq!(output.status.code(), Some(32), "{output:?}");
        said(&output)
    };
    assert!(mount(&mountpoint.join("e")).contains("name a file outside of it"));
    assert!(mount(&backing.join("e")).contains("name a file outside of it"));
    assert!(mount(&stage.path("nowhere/e")).contains("cannot write the event log"));
    let running = stage.mount("");
    assert!(mount(&stage.log()).contains("another mount writes it"));
    drop(running);
}

#[test]
fn no_password_gets_into_the_log() {
    let stage = Stage::new();
    let server = Server::nginx(Nginx::Open);
    let login = stage.path("login");
    fs::write(&login, "somebody:hunter2\n").unwrap();
    fs::set_permissions(&login, fs::Permissions::from_mode(0o600)).unwrap();
    let options = stage.options(&format!("basic_file={}", login.display()));
    let mut mount = Mounted::with_options(&server.url(), &options);
    assert!(!is_there(&mount, Push(1)));
    push(&mount, 9);
    mount.flush();
    drop(server);
    assert!(!is_there(&mount, Push(17)));
    stage.await_outcome(Push(17), "failed");
    mount.unmount();
    let text = fs::read_to_string(stage.log()).unwrap();
    assert!(
        text.contains("http://localhost:")
            && !text.contains("hunter2")
            && !text.contains("c29tZWJvZHk6"),
        "{text}"
    );
}

#[test]
fn why_tells_of_each_kind_of_miss_and_the_exit_status_of_the_verdict() {
    let stage = Stage::new();
    let mount = stage.mount("negative_ttl=1h");
    let never = Push(1);
    assert!(!is_there(&mount, never) && !is_there(&mount, never));
    stage.await_outcome(never, "waited");
    let (status, told) = why(&mount, never, &[]);
    assert!(
        status == 1 && told.contains("nobody has pushed it"),
        "{told}"
    );
    assert!(
        told.contains("remembered as absent for 3") && told.contains("not on the disk"),
        "{told}"
    );

    push(&mount, 1);
    mount.flush();
    stage.await_outcome(never, "uploaded");
    let (status, told) = why(&mount, never, &[]);
    assert!(
        status == 0 && told.contains("nobody had pushed it before"),
        "{told}"
    );
    let short = &never.signature()[..8];
    let by_path = mount.path().join("XX").join(short);
    let output = cachedirfs(&["why", by_path.to_str().unwrap()]);
    assert!(
        output.status.success() && said(&output).contains("it is here"),
        "{output:?}"
    );

    // The remote has it, and then what it has is broken.
    fs::remove_file(mount.path().join(never.entry())).unwrap();
    let (status, told) = why(&mount, never, &["--ask"]);
    assert!(status == 0 && told.contains(": whole, "), "{told}");
    let object = stage.path("remote").join(never.entry());
    fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
    let mut content = fs::read(&object).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&object, content).unwrap();
    let (status, told) = why(&mount, never, &["--ask"]);
    assert!(status == 1 && told.contains(": corrupt "), "{told}");
    assert!(!is_there(&mount, never));
    stage.await_outcome(never, "corrupt");
    let (_, told) = why(&mount, never, &[]);
    assert!(
        told.contains("removed in the mount") && told.contains("not what was pushed"),
        "{told}"
    );

    let (status, told) = why(&mount, Push(2), &[]);
    assert!(
        status == 2 && told.contains("knows of nobody who asked"),
        "{told}"
    );
    let (status, told) = why(&mount, Push(2), &["--ask"]);
    assert!(status == 1 && told.contains(": absent "), "{told}");
    let output = cachedirfs(&["why", mount.path().to_str().unwrap(), "hello"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn why_tells_of_a_remote_that_was_down_and_of_pushes_that_wait() {
    let stage = Stage::new();
    let server = Server::nginx(Nginx::Open);
    let proxy = Proxy::to(server.port());
    proxy.set(Fault::Refuse);
    let options = stage.options("drain_timeout=1s");
    let mount = Mounted::with_options(&proxy.url("http", "cache"), &options);
    wait_until("the breaker opens", SOON, || {
        is_there(&mount, Push(8));
        mount.status()["remote_state"] != "ok"
    });
    let entry = Push(1);
    assert!(!is_there(&mount, entry));
    stage.await_outcome(entry, "not-asked");
    let (status, told) = why(&mount, entry, &[]);
    assert!(
        told.contains("was not asked") && told.contains("was in trouble since"),
        "{told}"
    );
    assert!(status == 2 && told.contains("is failing for"), "{told}");
    push(&mount, 1);
    let (status, told) = why(&mount, entry, &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (status, &json["found"], &json["now"]["pending"]),
        (0, &"here".into(), &true.into())
    );
    assert_eq!(json["story"]["last"]["cause"], "not-asked");
    proxy.set(Fault::Pass);
    mount.flush();
    wait_until("the recovery is written", SOON, || {
        stage.records().iter().any(|r| r.is("remote", "closed"))
    });
    let (_, told) = why(&mount, entry, &[]);
    assert!(
        told.contains("nobody knows") || told.contains("uploaded"),
        "{told}"
    );
}

#[test]
fn why_tells_what_was_evicted_also_from_the_file_alone() {
    let stage = Stage::new();
    let mut mount = stage.mount("push=off,size=2M,min_free=0");
    let first = push(&mount, 5);
    // What is two seconds old may go.
    let mut number = 5;
    wait_until("the first is evicted", SOON, || {
        number += 8;
        push(&mount, number);
        stage.outcomes(first).iter().any(|o| o == "evicted")
    });
    assert!(!is_there(&mount, first));
    stage.await_outcome(first, "miss");
    mount.unmount();
    let (log, sig) = (stage.log(), first.signature());
    let output = cachedirfs(&["why", "--events", log.to_str().unwrap(), &sig[..12]]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("was evicted to make room") && told.contains("(above size)"),
        "{told}"
    );
    assert!(told.contains("had not been uploaded"), "{told}");
}

#[test]
#[ignore = "measures: how long why takes over 100,000 events"]
fn why_over_many_events() {
    let stage = Stage::new();
    let events = cachedirfs::stats::event::What::ALL;
    let mut text = Vec::new();
    for n in 0..100_000_u64 {
        let what = events[usize::try_from(n).unwrap() % events.len()];
        let sig = format!("{:032x}", n / 7);
        let sig = cachedirfs::signature::Signature::parse(sig.as_bytes()).unwrap();
        let event = cachedirfs::stats::event::Event::new(what, &sig).bytes(n);
        text.extend(Record::of(&event, Default::default()).line());
    }
    fs::write(stage.log(), &text).unwrap();
    let began = std::time::Instant::now();
    let sig = format!("{:032x}", 7000);
    let output = cachedirfs(&["why", "--events", stage.log().to_str().unwrap(), &sig]);
    println!(
        "{} bytes, {:?}: {}",
        text.len(),
        began.elapsed(),
        said(&output)
    );
}
