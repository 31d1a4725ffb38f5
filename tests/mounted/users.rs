//! A user without rights does all of it alone, through fusermount3.
//!
//! `/dev/fuse` may be closed to users on the machine that tests, so they happen in a mount namespace of their own, where
//! it is open as it is on a desktop.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::mounted::CACHEDIRFS;
use crate::support::{is_root, wait_until, workspace};

/// nobody, whom every system has.
const USER: u32 = 65534;

const SIGNATURE: &str = "5d41402abc4b2a76b9719d911017c592";

/// A user at home, in a mount namespace that ends with this.
struct Account {
    home: TempDir,
    keeper: Child,
}

impl Account {
    fn new() -> Self {
        assert!(is_root(), "becoming a user takes root");
        let home = workspace();
        for directory in ["", "run", "one", "two", "remote"] {
            let path = home.path().join(directory);
            fs::create_dir_all(&path).unwrap();
            chown(&path, Some(USER), Some(USER)).unwrap();
        }
        // Mounts of others are let go of at once, or they could not end.
        let namespace = "awk '$3 ~ /^fuse/ { print $2 }' /proc/self/mounts | xargs -r umount -l
             mkdir dev && mount -t tmpfs none dev && mknod -m 666 dev/fuse c 10 229 &&
             mount --bind dev/fuse /dev/fuse && touch ready && exec sleep 600";
        let keeper = Command::new("unshare")
            .args(["--mount", "sh", "-c", namespace])
            .current_dir(home.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let account = Self { home, keeper };
        let ready = account.path("ready");
        wait_until("there is a namespace", Duration::from_secs(10), || {
            ready.exists()
        });
        account
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()))
            .args(["env", "-C"])
            .arg(self.home.path())
            .arg(program);
        command
    }

    /// A shell script by the user; `$cachedirfs` is the program.
    fn run(&self, script: &str) -> Output {
        let identity = format!("--reuid={USER} --regid={USER} --clear-groups");
        let home = self.home.path().display();
        self.inside("setpriv")
            .args(identity.split(' '))
            .args(["env", "-i", "PATH=/usr/bin:/bin"])
            .arg(format!("HOME={home}"))
            .arg(format!("XDG_RUNTIME_DIR={home}/run"))
            .arg(format!("cachedirfs={CACHEDIRFS}"))
            .args(["sh", "-ec", script])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn does(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(!output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for name in ["one", "two"] {
            // Gone already, if all went well.
            let _ = self
                .inside("umount")
                .args(["-l", name])
                .stderr(Stdio::null())
                .status();
        }
        self.keeper.kill().expect("our own child");
        self.keeper.wait().expect("our own child");
    }
}

#[test]
fn a_user_mounts_pushes_hits_asks_and_unmounts_without_root() {
    let user = Account::new();
    let remote = format!("file://{}", user.path("remote").display());
    user.does(&format!("$cachedirfs mount {remote} one"));
    let status = user.does("$cachedirfs status one");
    assert!(
        status.contains("passthrough off: it takes root"),
        "before anything was opened: {status}"
    );
    assert!(status.contains("/.cache/cachedirfs/"), "{status}");

    user.does(&format!(
        "cd one/5D; umask 022; mkdir tmpabcdefgh; echo hello >tmpabcdefgh/x; chmod 755 tmpabcdefgh/x
         mv tmpabcdefgh/x {SIGNATURE}; rmdir tmpabcdefgh"
    ));
    user.does("$cachedirfs flush one");
    user.does(&format!("$cachedirfs mount {remote} two"));
    let seen = user.does(&format!(
        "cd two/5D; stat -c '%u:%g %a' {SIGNATURE}; cat {SIGNATURE}"
    ));
    assert_eq!(seen, format!("{USER}:{USER} 755\nhello\n"));
    let listed = user.does("$cachedirfs status --json");
    assert_eq!(listed.matches("\"mountpoint\"").count(), 2, "{listed}");

    // Another version goes on with it, through what fusermount3 mounted.
    let pid = user.does("$cachedirfs status --json one | grep '\"pid\"'");
    let kept = format!(
        "exec 3<one/5D/{SIGNATURE}; $cachedirfs upgrade one; cat <&3; cat one/5D/{SIGNATURE}"
    );
    assert_eq!(user.does(&kept), "hello\nhello\n");
    let status = user.does("$cachedirfs status --json one");
    assert!(
        status.contains(&pid) && status.contains("\"upgrades\": 1"),
        "{status}"
    );

    // Others see nothing of it, not even root.
    let root = user.inside("ls").arg("one").output().unwrap();
    assert!(!root.status.success(), "{root:?}");

    for mountpoint in ["one", "two"] {
        user.does(&format!("$cachedirfs umount {mountpoint}"));
        let left = user.does(&format!("ls -A {mountpoint}"));
        assert!(left.is_empty(), "{left}");
    }
    assert!(daemons_in(user.home.path()).is_empty());
}

#[test]
fn a_user_lets_others_in_only_where_fuse_conf_says_so() {
    let user = Account::new();
    let remote = format!("file://{}", user.path("remote").display());
    let mount = format!("$cachedirfs mount {remote} one -o allow_other");
    let conf = |text: &str| {
        fs::write(user.path("fuse.conf"), text).unwrap();
        let bound = user
            .inside("mount")
            .args(["--bind", "fuse.conf", "/etc/fuse.conf"])
            .status();
        assert!(bound.unwrap().success());
    };
    conf("#user_allow_other\n");
    let said = user.fails(&mount);
    assert!(
        said.contains("user_allow_other into /etc/fuse.conf"),
        "{said}"
    );
    conf("user_allow_other\n");
    user.does(&mount);
    let root = user.inside("cat").arg("one/config").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&root.stdout),
        r#"{"prefix_len": 2}"#
    );
    user.does("$cachedirfs umount one");
}

#[test]
fn a_user_changes_his_mount_but_for_what_only_the_kernel_can_and_nobody_elses() {
    let user = Account::new();
    let remote = format!("file://{}", user.path("remote").display());
    user.does(&format!("$cachedirfs mount {remote} one"));
    let changed = user.does("$cachedirfs remount one -v -o ro,size=1G");
    assert!(changed.contains("ro = true (was false)"), "{changed}");
    let refused = user.fails("touch one/5D/x");
    assert!(refused.contains("Read-only"), "{refused}");
    let kernels = user.fails("$cachedirfs remount one -o rw,noexec");
    assert!(
        kernels.contains("only root can: umount and mount anew"),
        "{kernels}"
    );
    user.fails("touch one/5D/x");
    user.does("$cachedirfs remount one -o rw; touch one/5D/x; rm one/5D/x");

    let other = "--reuid=1 --regid=1 --clear-groups env -i PATH=/usr/bin:/bin HOME=/nonexistent";
    for command in ["remount", "umount"] {
        let tried = user
            .inside("setpriv")
            .args(other.split(' '))
            .args([CACHEDIRFS, command, "one"])
            .output()
            .unwrap();
        assert_eq!(tried.status.code(), Some(32), "{tried:?}");
    }
    let listed = user.does("ls one; $cachedirfs status one");
    assert!(listed.contains(" of 1.0 GiB"), "{listed}");
    user.does("$cachedirfs umount one");
}

/// A daemon that is killed leaves a mount that only fusermount3 can detach for the user.
#[test]
fn a_users_dead_mount_is_detached_by_the_next_one() {
    let user = Account::new();
    let remote = format!("file://{}", user.path("remote").display());
    user.does(&format!("$cachedirfs mount {remote} one"));
    let daemons = daemons_in(user.home.path());
    assert_eq!(daemons.len(), 1);
    user.does(&format!("kill -9 {}", daemons[0]));
    wait_until("it is dead", Duration::from_secs(10), || {
        !user.run("ls one").status.success()
    });
    let again = user.run(&format!("$cachedirfs mount {remote} one"));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        again.status.success() && said.contains("detached a dead mount"),
        "{said}"
    );
    user.does("cat one/config; $cachedirfs umount one");
}

/// Processes whose command line names this directory, other than the keeper's.
fn daemons_in(home: &Path) -> Vec<String> {
    let home = home.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let ours = names.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(CACHEDIRFS.as_bytes()) && String::from_utf8_lossy(&line).contains(home)
    });
    ours.collect()
}
