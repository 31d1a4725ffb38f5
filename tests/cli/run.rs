//! `cachedirfs run`: a mount for the life of one command.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::mounted::CACHEDIRFS;
use crate::support::{is_root, wait_until, workspace};

const ENTRY: &str = "AB/ab345678901234567890123456789012";

/// Pushes the entry into the cache as SCons does.
const PUSH: &str = r#"
e=$CACHEDIRFS_DIR/AB/ab345678901234567890123456789012
mkdir -p "$CACHEDIRFS_DIR/AB"; echo product >"$e.tmp1"; mv "$e.tmp1" "$e"
"#;

/// A directory with a remote, and the backing directory of whatever is run.
struct Job(TempDir);

impl Job {
    fn new() -> Self {
        let dir = workspace();
        fs::create_dir(dir.path().join("remote")).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// `cachedirfs run REMOTE -o backing=… FLAGS -- sh -c SCRIPT`
    fn command(&self, flags: &[&str], script: &str) -> Command {
        let mut command = Command::new(CACHEDIRFS);
        command
            .arg("run")
            .arg(format!("file://{}", self.path("remote").display()))
            .args(["-o", &format!("backing={}", self.path("backing").display())])
            .args(flags)
            .args(["--", "sh", "-c", script])
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, flags: &[&str], script: &str) -> Output {
        self.command(flags, script).output().unwrap()
    }

    fn has_entry(&self) -> bool {
        self.path("remote").join(ENTRY).exists()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!(" {} ", path.display()))
}

#[test]
fn what_a_command_pushes_is_on_the_remote_when_it_has_ended_and_its_status_is_ours() {
    let job = Job::new();
    let script = format!("{PUSH} echo $CACHEDIRFS_DIR; exit 7");
    let output = job.run(&[], &script);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(job.has_entry());
    assert!(
        said(&output).contains("uploaded 1 (8 B)"),
        "{}",
        said(&output)
    );
    let at = String::from_utf8(output.stdout).unwrap();
    let at = Path::new(at.trim());
    assert!(
        at.is_absolute() && !at.exists(),
        "{} is left behind",
        at.display()
    );

    let output = job.run(&["--quiet"], &format!("cat $CACHEDIRFS_DIR/{ENTRY}"));
    assert_eq!(output.stdout, b"product\n");
    assert_eq!(said(&output), "");
}

#[test]
fn nobody_else_sees_the_mount_unless_it_is_to_be_visible() {
    let job = Job::new();
    let at = job.path("mnt");
    fs::create_dir(&at).unwrap();
    for (flags, visible) in [
        (&["--at", "mnt"][..], false),
        (&["--at", "mnt", "--visible"], true),
    ] {
        let mut child = job
            .command(flags, "touch began; until [ -e end ]; do sleep 0.02; done")
            .spawn()
            .unwrap();
        wait_until("the command runs", Duration::from_secs(20), || {
            job.path("began").exists()
        });
        assert_eq!(is_mounted(&at), visible);
        fs::write(job.path("end"), "").unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!is_mounted(&at));
        for name in ["began", "end"] {
            fs::remove_file(job.path(name)).unwrap();
        }
    }
}

#[test]
fn a_command_that_cannot_be_run_has_the_status_that_a_shell_gives_it() {
    let job = Job::new();
    fs::write(job.path("text"), "no program").unwrap();
    let remote = format!("file://{}", job.path("remote").display());
    let options = format!("backing={}", job.path("backing").display());
    for (program, status) in [("./no-such-program", 127), ("./text", 126)] {
        let output = Command::new(CACHEDIRFS)
            .args(["run", &remote, "-o", &options, "--", program])
            .current_dir(job.0.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        assert!(said(&output).contains(program));
    }
    let output = job.run(&[], "kill -9 $$");
    assert_eq!(output.status.code(), Some(128 + 9));
}

#[test]
fn what_cannot_be_mounted_runs_nothing() {
    let job = Job::new();
    for (flags, status) in [(&["-o", "frobnicate"][..], 2), (&["--at", "no/such"], 32)] {
        let output = job.run(flags, "touch ran");
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        assert!(!job.path("ran").exists());
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_signal_goes_to_the_command_and_its_pushes_are_uploaded_all_the_same() {
    let job = Job::new();
    let script = format!("{PUSH} trap 'exit 5' TERM; touch began; while :; do sleep 0.05; done");
    let mut child = job.command(&[], &script).spawn().unwrap();
    wait_until("the command runs", Duration::from_secs(20), || {
        job.path("began").exists()
    });
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(job.has_entry());
}

#[test]
fn killed_with_kill_9_it_leaves_no_mount_and_what_was_pushed_goes_to_the_remote() {
    let job = Job::new();
    let at = job.path("mnt");
    fs::create_dir(&at).unwrap();
    let script =
        format!("{PUSH} echo $$ >pid; touch began; exec sleep 60 </dev/null >/dev/null 2>&1");
    let mut child = job
        .command(&["--at", "mnt", "--visible"], &script)
        .spawn()
        .unwrap();
    wait_until("the command runs", Duration::from_secs(20), || {
        job.path("began").exists()
    });
    assert!(is_mounted(&at));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the mount goes", Duration::from_secs(20), || {
        !is_mounted(&at)
    });
    wait_until("the upload", Duration::from_secs(20), || job.has_entry());
    let orphan = fs::read_to_string(job.path("pid")).unwrap();
    let orphan = Pid::from_raw(orphan.trim().parse().unwrap()).unwrap();
    kill_process(orphan, Signal::KILL).unwrap();
}

#[test]
fn a_command_that_leaves_somebody_behind_does_not_keep_the_mount() {
    let job = Job::new();
    let script = format!(
        "{PUSH} (cd $CACHEDIRFS_DIR/AB && exec sleep 60) </dev/null >/dev/null 2>&1 & echo $! >pid; exit 3"
    );
    let output = job.run(&[], &script);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(job.has_entry());
    let left = fs::read_to_string(job.path("pid")).unwrap();
    let left = Pid::from_raw(left.trim().parse().unwrap()).unwrap();
    kill_process(left, Signal::KILL).unwrap();
}

/// nobody, whom every system has.
const USER: u32 = 65534;

/// A user gets a namespace of his own, in which he stays who he is; where the kernel does not let him, fusermount3 helps.
#[test]
fn a_user_needs_no_rights_for_it() {
    assert!(is_root(), "becoming a user takes root");
    let job = Job::new();
    for name in ["", "remote"] {
        chown(job.path(name), Some(USER), Some(USER)).unwrap();
    }
    // `/dev/fuse` as it is on a desktop, in a namespace of the test's own.
    let setup = "mkdir dev && mount -t tmpfs none dev && mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse";
    for (flag, hidden) in [("", true), ("--visible", false)] {
        let inner = format!(
            "{setup}; exec setpriv --reuid {USER} --regid {USER} --clear-groups env TMPDIR=$PWD HOME=$PWD XDG_RUNTIME_DIR=$PWD \
             {CACHEDIRFS} run {flag} file://$PWD/remote -o backing=$PWD/backing -- \
             sh -c '{PUSH} id -u; grep -q \" $CACHEDIRFS_DIR \" /proc/$PPID/mountinfo && echo mounted; readlink /proc/self/ns/user'"
        );
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &inner])
            .current_dir(job.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines[..2], ["65534", "mounted"]);
        let ours = fs::read_link("/proc/self/ns/user").unwrap();
        assert_eq!(Path::new(lines[2]) != ours, hidden);
        assert!(job.has_entry());
        let entry = job.path("backing").join(ENTRY);
        assert_eq!(
            std::os::unix::fs::MetadataExt::uid(&fs::metadata(entry).unwrap()),
            USER
        );
        fs::remove_dir_all(job.path("backing")).unwrap();
        fs::remove_file(job.path("remote").join(ENTRY)).unwrap();
        fs::remove_dir(job.path("dev")).unwrap();
    }
}

/// Loads a filter into this process that fails mount(2) with EACCES where it changes propagation, which is the first thing that
/// is done in a namespace of one's own, and runs the rest of the arguments. So Ubuntu 24.04's AppArmor lets everybody make a user
/// namespace, and nobody mount in it; fusermount3, which has rights of its own, goes on to mount.
const NO_MOUNTS_INSIDE: &str = r"
import ctypes, os, platform, struct, sys
ARCH, MOUNT = {'x86_64': (0xC000003E, 165), 'aarch64': (0xC00000B7, 40)}[platform.machine()]
MS_REC_PRIVATE = 0x44000
EACCES, ALLOW = 0x0005000D, 0x7FFF0000
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
steps = [(LOAD, 0, 0, 4), (EQUAL, 0, 5, ARCH), (LOAD, 0, 0, 0), (EQUAL, 0, 3, MOUNT),
         (LOAD, 0, 0, 16 + 3 * 8), (EQUAL, 0, 1, MS_REC_PRIVATE), (RETURN, 0, 0, EACCES), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('steps', ctypes.c_void_p)]
program = Program(len(steps), ctypes.addressof(code))
PR_SET_SECCOMP, FILTER = 22, 2
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(program), 0, 0):
    raise OSError(ctypes.get_errno(), 'seccomp')
os.execvp(sys.argv[1], sys.argv[1:])
";

/// Where a user may make a namespace and not mount in it, fusermount3 mounts outside of it.
#[test]
fn where_a_namespace_can_be_made_but_not_used_fusermount3_is_asked() {
    assert!(is_root(), "becoming a user takes root");
    let job = Job::new();
    for name in ["", "remote"] {
        chown(job.path(name), Some(USER), Some(USER)).unwrap();
    }
    fs::write(job.path("filter.py"), NO_MOUNTS_INSIDE).unwrap();
    let inner = format!(
        "mkdir dev && mount -t tmpfs none dev && mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse
         exec python3 filter.py setpriv --reuid {USER} --regid {USER} --clear-groups env TMPDIR=$PWD HOME=$PWD XDG_RUNTIME_DIR=$PWD \
         {CACHEDIRFS} run file://$PWD/remote -o backing=$PWD/backing -- \
         sh -c '{PUSH} unshare -U true && echo namespaces; unshare -Urm true 2>/dev/null || echo no mounts; readlink /proc/self/ns/user
                grep -q \" $CACHEDIRFS_DIR \" /proc/self/mountinfo && echo mounted'"
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &inner])
        .current_dir(job.0.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let ours = fs::read_link("/proc/self/ns/user").unwrap();
    let expected = format!("namespaces\nno mounts\n{}\nmounted\n", ours.display());
    assert_eq!(lines, expected, "{}", said(&output));
    assert!(job.has_entry());
}
