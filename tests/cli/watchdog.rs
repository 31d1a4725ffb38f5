//! What a supervisor with a watchdog hears: that the mount answers, not merely that a process runs.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{DONE, Place, can_mount, ended, is_gone, kill, soon};

const ALIVE: &str = "WATCHDOG=1";

/// A daemon in the foreground, and its supervisor's ear.
struct Watched {
    place: Place,
    ear: UnixDatagram,
    daemon: Child,
}

impl Watched {
    /// One that is to give a sign of life in each of these times, and has said that it is ready.
    fn new(remote: &str, patience: Duration, environment: &[(&str, &str)]) -> Self {
        let place = Place::new();
        let ear = UnixDatagram::bind(place.path("notify")).unwrap();
        ear.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_cachedirfs"))
            .args(["mount", "-f", &remote.replace("HERE", &place.text("r"))])
            .arg(place.path("m"))
            .args(["-o", &format!("backing={}", place.text("b"))])
            .env("NOTIFY_SOCKET", place.path("notify"))
            .env("WATCHDOG_USEC", patience.as_micros().to_string())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let watched = Self { place, ear, daemon };
        while !watched.hears().starts_with("READY=1\n") {}
        watched
    }

    fn hears(&self) -> String {
        let mut text = [0; 500];
        let len = self.ear.recv(&mut text).expect("the supervisor is told");
        String::from_utf8_lossy(&text[..len]).into_owned()
    }

    /// How long until the next sign of life, after those that are there already.
    fn next_sign(&self) -> Duration {
        self.ear.set_nonblocking(true).unwrap();
        while self.ear.recv(&mut [0; 500]).is_ok() {}
        self.ear.set_nonblocking(false).unwrap();
        let begin = Instant::now();
        assert_eq!(self.hears(), ALIVE);
        begin.elapsed()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn signs_of_life_wait_for_the_answer_of_the_mount() {
    if !can_mount() {
        return;
    }
    let often = Duration::from_millis(100);
    let watched = Watched::new("file://HERE", 3 * often, &[]);
    for _ in 0..3 {
        assert!(watched.next_sign() < Duration::from_secs(2));
    }
    // From now on, an event loop that is asked for the state of the file system is slow; all others are well.
    let slow = Duration::from_secs(3);
    let log = watched.place.path("strace");
    let mut strace = Command::new("strace")
        .args(["-f", "-e", "trace=fstatfs,statfs", "-e"])
        .arg(format!(
            "inject=fstatfs,statfs:delay_enter={}",
            slow.as_micros()
        ))
        .args(["-p", &watched.daemon.id().to_string()])
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .expect("strace is missing, run: scripts/setup crash");
    soon("a thread waits", || {
        fs::read_to_string(&log).unwrap().contains("statfs(")
    });
    let waited = watched.next_sign();
    kill(strace.id(), "-TERM");
    strace.wait().unwrap();
    assert!(waited > slow / 3, "{waited:?}");
    soon("it is fast again", || watched.next_sign() < slow / 3);
}

#[test]
fn signs_of_life_go_on_while_uploads_drain() {
    if !can_mount() {
        return;
    }
    let watched = Watched::new("file://HERE/late/remote", Duration::from_millis(60), &[]);
    let place = &watched.place;
    let (dir, name) = (place.path("m/AB"), "ab345678901234567890123456789012");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("t"), "product").unwrap();
    fs::rename(dir.join("t"), dir.join(name)).unwrap();
    let (pid, m) = (watched.daemon.id(), place.text("m"));
    let mut umount = Command::new(env!("CARGO_BIN_EXE_cachedirfs"))
        .args(["umount", &m])
        .spawn()
        .unwrap();
    soon("it is unmounted", || !place.is_mounted());
    for _ in 0..20 {
        watched.next_sign();
    }
    assert!(!is_gone(pid));
    fs::create_dir_all(place.path("r/late/remote")).unwrap();
    assert!(umount.wait().unwrap().success());
    assert!(place.path("r/late/remote/AB").join(name).exists());
}

#[test]
fn a_watchdog_that_is_another_process_hears_nothing() {
    if !can_mount() {
        return;
    }
    let others = [("WATCHDOG_PID", "1")];
    let watched = Watched::new("file://HERE", Duration::from_micros(3), &others);
    kill(watched.daemon.id(), "-TERM");
    assert!(watched.hears().starts_with("STOPPING=1"));
}

/// With the kernel's own unmount, that tells the daemon nothing before it has happened.
#[test]
fn what_is_mounted_after_us_stays() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount(""), DONE);
    let daemon = place.daemon();
    kill(daemon, "-STOP");
    cachedirfs::sys::unmount(&place.path("m"), false).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs", &place.text("m")])
        .status();
    assert!(mount.unwrap().success());
    kill(daemon, "-CONT");
    soon("the daemon ends", || is_gone(daemon));
    assert!(place.is_mounted());
}
