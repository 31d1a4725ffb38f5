//! The program from outside: what it prints, how it exits, and how a mount comes and goes.
//!
//! Tests that mount need root and /dev/fuse; where they are missing the tests are left out, which is a
//! failure where CACHEDIRFS_TEST_ALL is set.

#![allow(clippy::unwrap_used)] // also in helpers, which clippy does not take for tests

/// automount(8), with maps of both kinds.
mod autofs;
/// Completion scripts, in the shells.
mod completions;
/// Configuration files, the environment and flags: what counts, and where it comes from.
mod config;
/// What containers have and lack.
mod containers;
/// mount(8) and fstab, through the helpers.
mod fstab;
/// Mounts come, are asked and go.
mod mounts;
/// Changes while mounted.
mod remount;
/// A mount for the life of one command.
mod run;
/// The unit for systemd, what it makes of an fstab, and a systemd that runs it.
mod systemd;
/// A supervisor's watchdog.
mod watchdog;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const MOUNT: i32 = 32;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachedirfs"));
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).output().unwrap()
}

#[track_caller]
fn ended(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// A place with a mountpoint `m`, a remote `r` and a backing directory `b`; unmounted at the end.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["m", "r"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn remote(&self) -> String {
        format!("file://{}", self.text("r"))
    }

    fn mount_command(&self, options: &str) -> Command {
        let mut command = program();
        let backing = format!("backing={},{options}", self.text("b"));
        command
            .arg("mount")
            .arg(self.remote())
            .arg(self.path("m"))
            .args(["-o", &backing]);
        command
    }

    fn mount(&self, options: &str) -> Output {
        self.mount_command(options).output().unwrap()
    }

    fn command(&self, name: &str, args: &[&str]) -> Output {
        program()
            .arg(name)
            .arg(self.path("m"))
            .args(args)
            .output()
            .unwrap()
    }

    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&format!(" {} ", self.text("m")))
    }

    fn daemon(&self) -> u32 {
        let status = self.command("status", &["--json"]);
        ended(&status, DONE);
        let status: cachedirfs::control::Status = serde_json::from_slice(&status.stdout).unwrap();
        status.pid
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.is_mounted() && cachedirfs::sys::unmount(&self.path("m"), true).is_ok() {}
    }
}

fn can_mount() -> bool {
    let can = cachedirfs::sys::effective_uid() == 0 && Path::new("/dev/fuse").exists();
    assert!(
        can || std::env::var_os("CACHEDIRFS_TEST_ALL").is_none(),
        "root and /dev/fuse are needed"
    );
    can
}

#[track_caller]
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "never happened: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill(pid: u32, signal: &str) {
    assert!(
        Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Whether the process is gone, or only waits for somebody to notice.
fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn version_and_help_come_before_anything_is_read() {
    let version = run(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        format!("cachedirfs {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = program()
        .args(["mount", "--help"])
        .current_dir("/proc")
        .output()
        .unwrap();
    ended(&help, DONE);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for spec in cachedirfs::config::options::OPTIONS {
        assert!(help.contains(spec.name), "{}", spec.name);
    }
    for command in ["umount", "status", "flush", "check"] {
        ended(&run(&[command, "--help"]), DONE);
    }
}

#[test]
fn a_wrong_command_line_is_status_2() {
    ended(&run(&[]), USAGE);
    ended(&run(&["mount"]), USAGE);
    ended(&run(&["flush", "/", "--timeout", "soon"]), USAGE);
    let said = ended(
        &run(&["mount", "file:///r", "/mnt", "-o", "negativ_ttl=3"]),
        USAGE,
    );
    assert_eq!(
        said,
        "cachedirfs: unknown option `negativ_ttl`; did you mean `negative_ttl`?\n"
    );
    let said = ended(&run(&["check", "file:///r", "-o", "size=huge"]), USAGE);
    assert!(
        said.starts_with("cachedirfs: option `size`: expected"),
        "{said}"
    );
}

#[test]
fn a_password_in_the_url_is_refused_and_not_repeated() {
    for command in [
        &["check", "https://me:s3cret@host/"][..],
        &["mount", "https://me:s3cret@host/", "/mnt"],
    ] {
        let said = ended(&run(command), USAGE);
        assert!(
            said.contains("basic_file=") && !said.contains("s3cret"),
            "{said}"
        );
    }
}

#[test]
fn a_mountpoint_that_is_missing_or_no_directory_is_said_so() {
    let place = Place::new();
    fs::remove_dir(place.path("m")).unwrap();
    let said = ended(&place.mount(""), MOUNT);
    assert!(
        said.contains("cannot mount") && said.contains("mkdir -p"),
        "{said}"
    );
    fs::write(place.path("m"), "").unwrap();
    let said = ended(&place.mount(""), MOUNT);
    assert!(said.contains("not a directory"), "{said}");
}

#[test]
fn what_the_daemon_works_with_must_not_be_inside_the_mount() {
    let place = Place::new();
    let (m, r) = (place.text("m"), place.remote());
    let mount = |remote: &str, backing: &str| {
        let said = ended(
            &run(&["mount", remote, &m, "-o", &format!("backing={backing}")]),
            MOUNT,
        );
        assert!(
            said.starts_with(&format!("cachedirfs: cannot mount {m}: ")),
            "{said}"
        );
        said
    };
    assert!(mount(&r, &format!("{m}/b")).contains("inside the mountpoint"));
    assert!(mount(&r, &m).contains("inside the mountpoint"));
    assert!(mount(&r, place.0.path().to_str().unwrap()).contains("inside the backing directory"));
    assert!(mount(&format!("file://{m}/r"), "/nonexistent").contains("inside the mountpoint"));
    assert!(mount(&r, &place.text("r")).contains("not apart"));
    let spelled = format!("file://{}", place.text("%72"));
    assert!(mount(&spelled, &place.text("r")).contains("not apart"));
    std::os::unix::fs::symlink(&m, place.path("link")).unwrap();
    assert!(mount(&r, &place.text("link")).contains("inside the mountpoint"));
}

#[test]
fn a_remote_that_is_none_is_refused_by_mount_and_check() {
    let place = Place::new();
    let backing = format!("backing={}", place.text("b"));
    if can_mount() {
        let said = ended(
            &run(&["mount", "gopher://host/x", &place.text("m"), "-o", &backing]),
            MOUNT,
        );
        assert!(
            said.contains("cannot mount") && said.contains("gopher://host/x"),
            "{said}"
        );
        assert!(!place.is_mounted());
    }
    let said = ended(&run(&["check", "gopher://host/x"]), FAILED);
    assert!(said.contains("gopher://host/x"), "{said}");
}

#[test]
fn check_says_what_a_remote_can_and_leaves_nothing_behind() {
    let place = Place::new();
    let checked = run(&["check", &place.remote()]);
    ended(&checked, DONE);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    for step in [
        "look up  ok in",
        "write    ok in",
        "read     ok in",
        "delete   ok in",
        "list     ok in",
    ] {
        assert!(said.contains(step), "{said}");
    }
    assert!(
        said.contains("list") && said.contains(": 0 objects"),
        "{said}"
    );

    let read_only = run(&["check", &place.remote(), "-o", "ro"]);
    ended(&read_only, DONE);
    assert!(String::from_utf8_lossy(&read_only.stdout).contains("not tried (ro)"));
    let key = run(&["check", &place.remote(), "-o", "key_file=/nonexistent/key"]);
    assert!(ended(&key, FAILED).contains("/nonexistent/key"));
}
