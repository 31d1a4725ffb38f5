//! Another version of the program goes on with a mount while it is in use: nobody notices, nothing is lost.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cachedirfs::config::places::ROOT_RUN_DIR;
use cachedirfs::control::client::Client;
use cachedirfs::control::mounts::MountTable;
use cachedirfs::mount::handover::FORMAT;

use crate::support::mounted::{CACHEDIRFS, Mounted};
use crate::support::oracle::{Oracle, Push, Shape};
use crate::support::{SetOnDrop, is_root, wait_until, workspace};

const WRITERS: usize = 4;
const UPGRADES: u64 = 6;

/// The program under another name, as if it were another version.
fn other_version(directory: &Path) -> PathBuf {
    let other = directory.join("cachedirfs-next");
    fs::copy(CACHEDIRFS, &other).unwrap();
    other
}

fn upgrade(program: &Path, mounted: &Mounted) -> Result<(), String> {
    let output = Command::new(program)
        .arg("upgrade")
        .arg(mounted.path())
        .output()
        .unwrap();
    match output.status.code() {
        Some(0) => Ok(()),
        _ => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn running(mounted: &Mounted) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", mounted.pid())).unwrap()
}

/// Asks as `cachedirfs upgrade` does, for any program.
fn become_(program: &str, format: u32, mounted: &Mounted) -> Result<(), String> {
    let table = MountTable::read().unwrap();
    let found = table.at(mounted.path()).unwrap();
    let client = Client::connect(found, Path::new(ROOT_RUN_DIR)).unwrap();
    let asked = client.upgrade(Path::new(program), format);
    asked.map_err(|error| error.to_string())
}

#[test]
fn whoever_uses_the_mount_notices_nothing() {
    let (workspace, remote) = (workspace(), workspace());
    let remote = format!("file://{}", remote.path().display());
    let machine = Mounted::new(&remote);
    let programs = [other_version(workspace.path()), PathBuf::from(CACHEDIRFS)];
    let (oracle, next, done) = (Oracle::default(), AtomicU64::new(1), AtomicBool::new(false));

    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (machine, oracle, next, done) = (&machine, &oracle, &next, &done);
            let shape = [Shape::Pid, Shape::Uuid, Shape::Directory][writer % 3];
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    let push = Push(next.fetch_add(1, Ordering::Relaxed));
                    push.perform(machine.path(), shape)
                        .unwrap_or_else(|e| panic!("{push:?} as {shape:?}: {e}"));
                    oracle.acknowledge(push);
                    assert_eq!(push.fault(machine.path()), None);
                    let absent = machine.path().join(Push(u64::MAX - push.0).entry());
                    let error = fs::metadata(absent).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
                }
            });
        }
        let _ending = SetOnDrop(&done);
        for round in 0..UPGRADES {
            let before = oracle.acknowledged().len();
            wait_until("there are pushes", Duration::from_secs(60), || {
                oracle.acknowledged().len() > before + 20
            });
            let program = &programs[usize::try_from(round % 2).unwrap()];
            upgrade(program, &machine).unwrap();
            assert_eq!(running(&machine), *program);
        }
    });
    let status = machine.status();
    assert_eq!(status["upgrades"], UPGRADES);
    assert_eq!(status["pid"], machine.pid());
    let pushed = status["counters"]["pushed"].as_u64().unwrap();
    assert_eq!(
        pushed,
        oracle.acknowledged().len() as u64,
        "the counters go on"
    );
    machine.flush();
    oracle.check(machine.path(), "on the same machine");
    oracle.check(Mounted::new(&remote).path(), "on a second machine");
}

#[test]
fn what_is_open_stays_open() {
    let remote = workspace();
    let machine = Mounted::new(&format!("file://{}", remote.path().display()));
    let at = |name: &str| machine.path().join(name);
    Push(7).perform(machine.path(), Shape::Uuid).unwrap();
    let content = Push(7).content();
    let mut entry = File::open(at("").join(Push(7).entry())).unwrap();
    let mut first = vec![0; content.len() / 2];
    entry.read_exact(&mut first).unwrap();
    let mut scratch = File::create(at("scratch")).unwrap();
    scratch.write_all(b"half ").unwrap();
    let mut nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(at("nameless"))
        .unwrap();
    nameless.write_all(b"kept").unwrap();
    fs::remove_file(at("nameless")).unwrap();
    let lock = File::create_new(at("config.lock")).unwrap();
    fs::create_dir(at("home")).unwrap();
    fs::write(at("home/file"), "of the house").unwrap();
    let mut resident = Command::new("sh")
        .args(["-c", "read go; cat file; ls; pwd"])
        .current_dir(at("home"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut listing = fs::read_dir(machine.path()).unwrap();
    let one = listing.next().unwrap().unwrap().file_name();

    upgrade(Path::new(CACHEDIRFS), &machine).unwrap();

    let mut rest = Vec::new();
    entry.read_to_end(&mut rest).unwrap();
    assert_eq!([first, rest].concat(), content);
    let again = fs::read(at("").join(Push(7).entry())).unwrap();
    assert_eq!(again, content, "opened once more while it is open");
    scratch.write_all(b"whole").unwrap();
    drop(scratch);
    assert_eq!(fs::read_to_string(at("scratch")).unwrap(), "half whole");
    nameless.seek(SeekFrom::Start(0)).unwrap();
    let mut kept = String::new();
    nameless.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "kept");
    assert!(File::create_new(at("config.lock")).is_err(), "it is held");
    drop(lock);
    fs::remove_file(at("config.lock")).unwrap();
    drop(File::create_new(at("config.lock")).unwrap());
    fs::remove_file(at("config.lock")).unwrap();
    resident.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said = BufReader::new(resident.stdout.take().unwrap()).lines();
    let said: Vec<_> = said.map(Result::unwrap).collect();
    assert!(resident.wait().unwrap().success());
    let home = at("home").display().to_string();
    assert_eq!(said, ["of the housefile".to_owned(), home]);
    let others: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !others.contains(&one) && others.contains(&"scratch".into()),
        "{others:?}"
    );
}

#[test]
fn what_is_being_written_in_its_place_is_finished_first() {
    let remote = workspace();
    let machine = Mounted::new(&format!("file://{}", remote.path().display()));
    let entry = machine.path().join(Push(3).entry());
    fs::create_dir_all(entry.parent().unwrap()).unwrap();
    let (begin, rest) = (&Push(3).content()[..10], &Push(3).content()[10..]);
    let mut file = File::create_new(&entry).unwrap();
    file.write_all(begin).unwrap();
    let why = upgrade(Path::new(CACHEDIRFS), &machine).unwrap_err();
    assert!(why.contains("is being written in its place"), "{why}");
    file.write_all(rest).unwrap();
    drop(file);
    wait_until("it is committed", Duration::from_secs(20), || {
        machine.counter("pushed") == 1
    });
    upgrade(Path::new(CACHEDIRFS), &machine).unwrap();
    assert_eq!(fs::read(entry).unwrap(), Push(3).content());
}

#[test]
fn a_lookup_that_waits_for_a_silent_remote_is_a_miss() {
    // It accepts connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("http://{}/cache", silent.local_addr().unwrap());
    let machine = Mounted::with_options(&remote, "lookup_timeout=60s,push=off");
    let entry = machine.path().join(Push(1).entry());
    let asks = thread::spawn(move || fs::metadata(entry).unwrap_err());
    let asked = || silent.accept().is_ok();
    assert!(asked());
    upgrade(Path::new(CACHEDIRFS), &machine).unwrap();
    assert_eq!(asks.join().unwrap().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn what_cannot_take_over_is_refused_and_the_mount_goes_on() {
    let remote = workspace();
    let machine = Mounted::new(&format!("file://{}", remote.path().display()));
    let mut open = File::create(machine.path().join("scratch")).unwrap();
    for (program, format, why) in [
        (
            "/nowhere/cachedirfs",
            FORMAT,
            "cannot become /nowhere/cachedirfs: No such file",
        ),
        (
            "/etc/passwd",
            FORMAT,
            "cannot become /etc/passwd: Permission denied",
        ),
        (CACHEDIRFS, FORMAT + 1, "writes format"),
    ] {
        let said = become_(program, format, &machine).unwrap_err();
        assert!(said.contains(why), "{said}");
        open.write_all(b"on and on").unwrap();
        Push(u64::from(format))
            .perform(machine.path(), Shape::Uuid)
            .unwrap();
    }
    machine.flush();
    assert_eq!(machine.status()["upgrades"], 0);
}

#[test]
fn a_program_that_only_ends_leaves_a_dead_mount_that_loses_nothing() {
    let remote = workspace();
    let mut machine = Mounted::new(&format!("file://{}", remote.path().display()));
    Push(5).perform(machine.path(), Shape::Uuid).unwrap();
    become_("/bin/true", FORMAT, &machine).unwrap();
    wait_until("it ends", Duration::from_secs(20), || machine.has_died());
    assert!(fs::metadata(machine.path().join("nothing")).is_err());
    machine.remount();
    assert_eq!(Push(5).fault(machine.path()), None);
    machine.flush();
}

#[test]
fn a_daemon_in_the_background_goes_on_from_where_it_was_started() {
    assert!(is_root(), "the socket is looked for where root's is");
    let workspace = workspace();
    let at = |name: &str| workspace.path().join(name);
    for directory in ["mnt", "remote"] {
        fs::create_dir(at(directory)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let output = Command::new(CACHEDIRFS)
            .args(arguments)
            .current_dir(workspace.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let remote = format!("file://{}", at("remote").display());
    run(&["mount", &remote, "mnt", "-o", "backing=back,log_file=log"]);
    let _unmounts = UnmountOnDrop(at("mnt"));
    Push(5).perform(&at("mnt"), Shape::Uuid).unwrap();
    run(&["upgrade", "mnt"]);
    let status: serde_json::Value =
        serde_json::from_str(&run(&["status", "--json", "mnt"])).unwrap();
    assert_eq!(status["backing"], at("back").display().to_string());
    let cwd = fs::read_link(format!("/proc/{}/cwd", status["pid"])).unwrap();
    assert_eq!(cwd, Path::new("/"));
    assert_eq!(Push(5).fault(&at("mnt")), None);
    run(&["umount", "mnt"]);
    let log = fs::read_to_string(at("log")).unwrap();
    assert!(log.contains("is taken over on"), "{log}");
    assert!(log.contains("everything pushed is on the remote"), "{log}");
}

struct UnmountOnDrop(PathBuf);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        let output = Command::new("umount").arg("-lq").arg(&self.0).output();
        drop(output.unwrap());
    }
}
