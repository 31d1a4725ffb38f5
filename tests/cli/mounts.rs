//! Mounts from outside: how they come, how they are asked, how they go.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{
    DONE, FAILED, MOUNT, Place, USAGE, can_mount, ended, is_gone, kill, program, run, soon,
};

const NOBODY: u32 = 65534;

#[test]
fn a_missing_or_forbidden_fuse_device_is_named_with_the_remedy() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut unshared = Command::new("unshare");
    unshared.args([
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs none /dev && exec \"$@\"",
        "sh",
    ]);
    unshared.args([
        env!("CARGO_BIN_EXE_cachedirfs"),
        "mount",
        &place.remote(),
        &place.text("m"),
    ]);
    let said = ended(&unshared.output().unwrap(), MOUNT);
    assert!(
        said.contains("no /dev/fuse") && said.contains("modprobe fuse"),
        "{said}"
    );

    let forbidden = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs none /dev && mknod -m 0 /dev/fuse c 10 229 && exec \"$@\"",
            "sh",
        ])
        .args([
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            env!("CARGO_BIN_EXE_cachedirfs"),
        ])
        .args([
            "mount",
            "file:///nonexistent",
            "/tmp",
            "-o",
            "backing=/nonexistent-b",
        ])
        .output()
        .unwrap();
    let said = ended(&forbidden, MOUNT);
    assert!(said.contains("--device /dev/fuse"), "{said}");
}

#[test]
fn a_mount_answers_when_the_command_returns_and_is_gone_when_umount_does() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mounted = place.mount("");
    assert_eq!(ended(&mounted, DONE), "");
    assert!(mounted.stdout.is_empty() && place.is_mounted());
    let daemon = place.daemon();
    assert_eq!(
        fs::read_link(format!("/proc/{daemon}/cwd")).unwrap(),
        Path::new("/")
    );
    for stdio in 0..=2 {
        assert_eq!(
            fs::read_link(format!("/proc/{daemon}/fd/{stdio}")).unwrap(),
            Path::new("/dev/null")
        );
    }
    ended(&place.command("flush", &[]), DONE);

    let said = ended(&place.mount(""), MOUNT);
    assert!(
        said.contains("mounted there already") && said.contains(&place.remote()),
        "{said}"
    );

    assert_eq!(ended(&place.command("umount", &[]), DONE), "");
    assert!(!place.is_mounted() && is_gone(daemon));
    assert!(ended(&place.command("umount", &[]), MOUNT).contains("nothing is mounted there"));
    assert!(ended(&place.command("flush", &[]), USAGE).contains("nothing is mounted there"));
    assert!(
        ended(&place.command("status", &[]), FAILED).contains("no cachedirfs is mounted there")
    );
}

#[test]
fn the_daemon_keeps_nothing_open_that_it_inherited() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let lock = place.text("lock");
    let script = format!("exec 7>{lock}; exec \"$0\" \"$@\"");
    let mount = place.mount_command("");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .arg(mount.get_program())
        .args(mount.get_args());
    ended(&shell.output().unwrap(), DONE);
    let fds = fs::read_dir(format!("/proc/{}/fd", place.daemon())).unwrap();
    let targets: Vec<_> = fds
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .collect();
    assert!(!targets.contains(&PathBuf::from(&lock)), "{targets:?}");
    ended(&place.command("umount", &[]), DONE);
}

#[test]
fn status_is_for_everybody_but_flush_and_stop_are_the_owners() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount(""), DONE);
    fs::set_permissions(
        place.0.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let m = place.text("m");
    let stranger = |args: &[&str]| match program()
        .args(args)
        .arg(&m)
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
    {
        Ok(output) => output,
        Err(err) => panic!("cannot run as nobody: {err}"),
    };
    let status = stranger(&["status"]);
    ended(&status, DONE);
    assert!(String::from_utf8_lossy(&status.stdout).contains(&place.remote()));
    assert!(ended(&stranger(&["flush"]), USAGE).contains("only root and the owner"));
    assert!(ended(&stranger(&["umount"]), MOUNT).contains("only root and the owner"));
    assert!(place.is_mounted());
    ended(&place.command("umount", &[]), DONE);
}

#[test]
fn status_without_a_path_lists_all_mounts() {
    if !can_mount() {
        return;
    }
    let (one, two) = (Place::new(), Place::new());
    ended(&one.mount(""), DONE);
    ended(&two.mount(""), DONE);
    let listed = run(&["status", "--json"]);
    let listed: Vec<cachedirfs::control::Status> = serde_json::from_slice(&listed.stdout).unwrap();
    for place in [&one, &two] {
        assert!(
            listed
                .iter()
                .any(|s| s.mountpoint == place.text("m") && s.remote == place.remote())
        );
    }
    ended(&one.command("umount", &[]), DONE);
    ended(&two.command("umount", &[]), DONE);
}

#[test]
fn a_mount_in_use_is_not_unmounted_unless_lazily() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount(""), DONE);
    let daemon = place.daemon();
    let user = fs::File::open(place.path("m")).unwrap();
    assert!(ended(&place.command("umount", &[]), MOUNT).contains("--lazy"));
    assert!(place.is_mounted());
    ended(&place.command("umount", &["--lazy"]), DONE);
    assert!(!place.is_mounted() && !is_gone(daemon));
    drop(user);
    soon("the daemon ends with the last user", || is_gone(daemon));
}

#[test]
fn a_mountpoint_that_is_not_empty_is_mounted_over_with_a_warning() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    for name in ["a", "b", "c", "d"] {
        fs::write(place.path("m").join(name), "").unwrap();
    }
    let said = ended(&place.mount(""), DONE);
    assert!(
        said.contains("is not empty") && said.trim_end().ends_with(", …"),
        "{said}"
    );
    ended(&place.command("umount", &[]), DONE);

    let said = ended(&place.mount("key_file=/nonexistent/key"), MOUNT);
    assert!(
        said.contains("/nonexistent/key") && !said.contains("is not empty"),
        "{said}"
    );
}

/// A daemon that was killed leaves a mount that answers ENOTCONN to everybody.
#[test]
fn a_dead_mount_is_detached_by_the_next_mount_and_by_umount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount(""), DONE);
    kill(place.daemon(), "-KILL");
    soon("the mount is dead", || {
        fs::read_dir(place.path("m")).is_err()
    });
    assert!(ended(&place.command("status", &[]), FAILED).contains("mount"));
    let said = ended(&place.mount(""), DONE);
    assert!(said.contains("detached a dead mount of file://"), "{said}");

    kill(place.daemon(), "-KILL");
    soon("the mount is dead", || {
        fs::read_dir(place.path("m")).is_err()
    });
    let said = ended(&place.command("umount", &[]), DONE);
    assert!(
        said.contains("gone already") && !place.is_mounted(),
        "{said}"
    );
}

struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn in_the_foreground_the_supervisor_is_told_and_sigterm_unmounts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let notify = UnixDatagram::bind(place.path("notify")).unwrap();
    notify
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // Without a terminal, whose end would be a SIGHUP, too.
    let mut command = Command::new("setsid");
    command
        .arg(env!("CARGO_BIN_EXE_cachedirfs"))
        .args(place.mount_command("drain_timeout=7").get_args())
        .arg("--foreground")
        .env("NOTIFY_SOCKET", place.path("notify"))
        .stderr(Stdio::piped());
    let mut daemon = Foreground(command.spawn().unwrap());
    let told = || {
        let mut text = [0; 500];
        let len = notify.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..len]).into_owned()
    };
    assert!(told().starts_with("READY=1\n"));
    assert!(place.is_mounted());
    kill(daemon.0.id(), "-HUP");
    let (reloading, ready) = (told(), told());
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    let micros: u64 = reloading.rsplit_once('=').unwrap().1.parse().unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (micros as f64 / 1e6 - uptime).abs() < 60.0,
        "{micros} at {uptime}"
    );
    assert!(
        ready.starts_with("READY=1\n") && place.is_mounted(),
        "{ready}"
    );
    kill(daemon.0.id(), "-TERM");
    assert!(told().contains("EXTEND_TIMEOUT_USEC=17000000"));
    assert!(daemon.0.wait().unwrap().success());
    let mut log = String::new();
    std::io::Read::read_to_string(&mut daemon.0.stderr.take().unwrap(), &mut log).unwrap();
    assert!(
        log.contains("is mounted on")
            && log.contains("read again: nothing has changed")
            && log.contains("stopping on signal 15"),
        "{log}"
    );
    assert!(!place.is_mounted());
}

#[test]
fn a_log_file_gets_the_log_and_one_that_cannot_be_written_is_the_reason_why_not() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let said = ended(&place.mount("log_file=/nonexistent/dir/log"), MOUNT);
    assert!(
        said.contains("cannot open the log file /nonexistent/dir/log"),
        "{said}"
    );
    ended(
        &place.mount(&format!("log_file={}", place.text("log"))),
        DONE,
    );
    ended(&place.command("umount", &[]), DONE);
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(
        log.contains("is mounted on") && log.contains("everything pushed is on the remote"),
        "{log}"
    );
    assert!(!log.contains("WARN"), "{log}");
}

/// The token comes in by the environment; it must be in nothing that others can read.
#[test]
fn a_token_shows_neither_in_the_process_list_nor_the_status_nor_the_log() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut command =
        place.mount_command(&format!("log_level=trace,log_file={}", place.text("log")));
    ended(
        &command
            .env("CACHEDIRFS_BEARER_TOKEN", "s3cret-token")
            .output()
            .unwrap(),
        DONE,
    );
    let argv = fs::read(format!("/proc/{}/cmdline", place.daemon())).unwrap();
    let status = place.command("status", &["--json"]).stdout;
    ended(&place.command("umount", &[]), DONE);
    let log = fs::read(place.path("log")).unwrap();
    let table = fs::read("/proc/self/mountinfo").unwrap();
    for seen in [argv, status, log, table] {
        assert!(!String::from_utf8_lossy(&seen).contains("s3cret-token"));
    }
}

/// A mount whose daemon hangs before it is ready: its key comes from a pipe that nobody writes to yet.
/// Returns the command that waits, and the daemon.
fn hanging(place: &Place) -> (Foreground, u32) {
    assert!(
        Command::new("mkfifo")
            .arg(place.path("key"))
            .status()
            .unwrap()
            .success()
    );
    let mut command = place.mount_command(&format!("key_file={}", place.text("key")));
    let starter = Foreground(command.stderr(Stdio::piped()).spawn().unwrap());
    let children = format!("/proc/{0}/task/{0}/children", starter.0.id());
    let daemon = || fs::read_to_string(&children).ok()?.trim().parse().ok();
    soon("it forks", || daemon().is_some());
    let daemon = daemon().unwrap();
    (starter, daemon)
}

#[test]
fn a_daemon_that_dies_without_a_word_does_not_leave_the_command_waiting() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (mut starter, daemon) = hanging(&place);
    kill(daemon, "-KILL");
    assert_eq!(starter.0.wait().unwrap().code(), Some(MOUNT));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut starter.0.stderr.take().unwrap(), &mut said).unwrap();
    assert!(
        said.contains("was killed by signal 9") && said.contains("--foreground"),
        "{said}"
    );
}

#[test]
fn nothing_is_mounted_for_somebody_who_has_gone() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (mut starter, daemon) = hanging(&place);
    // Not INT: whoever runs the suite in the background has that ignored.
    kill(starter.0.id(), "-KILL");
    starter.0.wait().unwrap();
    fs::write(place.path("key"), "ab".repeat(32)).unwrap();
    soon("the daemon ends", || is_gone(daemon));
    assert!(!place.is_mounted());
}
