//! A mount that cleans up after itself: however a test ends, nothing stays mounted and no daemon stays alive.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::support::{is_root, wait_until, workspace};

/// The program under test.
pub(crate) const CACHEDIRFS: &str = env!("CARGO_BIN_EXE_cachedirfs");

/// Generous: three test machines may share two cores with us.
const MOUNT_LIMIT: Duration = Duration::from_secs(20);
const BUSY_LIMIT: Duration = Duration::from_secs(5);
const EXIT_LIMIT: Duration = Duration::from_secs(20);

/// A daemon in the foreground, its mount point, its backing directory and its log.
pub(crate) struct Mounted {
    /// What starts the daemon, if it is not started directly.
    wrapper: Vec<String>,
    remote: String,
    options: String,
    mount_point: PathBuf,
    workspace: TempDir,
    daemon: Option<Child>,
}

impl Mounted {
    pub(crate) fn new(remote: &str) -> Self {
        Self::with_options(remote, "")
    }

    /// Mounts with `-o backing=...,OPTIONS` and returns when the mount answers.
    pub(crate) fn with_options(remote: &str, options: &str) -> Self {
        Self::wrapped(Vec::new(), workspace(), remote, options)
    }

    /// The same with everything in this workspace, and with a daemon that is started by a command that executes its
    /// arguments in the end.
    pub(crate) fn wrapped(
        wrapper: Vec<String>,
        workspace: TempDir,
        remote: &str,
        options: &str,
    ) -> Self {
        let mount_point = workspace.path().join("mnt");
        fs::create_dir(&mount_point).unwrap();
        let mut mounted = Self {
            wrapper,
            remote: remote.into(),
            options: options.into(),
            mount_point,
            workspace,
            daemon: None,
        };
        mounted.start();
        mounted
    }

    /// The mount point.
    pub(crate) fn path(&self) -> &Path {
        &self.mount_point
    }

    pub(crate) fn backing(&self) -> PathBuf {
        self.workspace.path().join("backing")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon is running").id()
    }

    /// Whether the daemon has ended by itself.
    pub(crate) fn has_died(&mut self) -> bool {
        let daemon = self.daemon.as_mut();
        daemon.is_none_or(|daemon| daemon.try_wait().unwrap().is_some())
    }

    /// What the daemon wrote to stderr so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Power off for the daemon: it gets no chance to tidy up. The mount point is left behind, dead.
    pub(crate) fn kill9(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon is running");
        daemon.kill().expect("our own child can be killed");
        daemon.wait().unwrap();
    }

    /// Mounts again with the same backing directory, after `kill9` or a clean unmount of what runs.
    pub(crate) fn remount(&mut self) {
        self.stop()
            .unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
        self.start();
    }

    /// Mounts again with other options.
    pub(crate) fn remount_with(&mut self, options: &str) {
        self.options = options.into();
        self.remount();
    }

    /// Waits until everything pushed so far is on the remote.
    #[track_caller]
    pub(crate) fn flush(&self) {
        let output = self.command(&["flush"], &["--timeout", "60"]);
        assert!(
            output.status.success(),
            "cachedirfs flush: {output:?}\n{}",
            self.log()
        );
    }

    /// `cachedirfs flush`: whether everything is on the remote.
    pub(crate) fn try_flush(&self) -> bool {
        let output = self.command(&["flush"], &["--timeout", "60"]);
        output.status.success()
    }

    /// `cachedirfs status --json`.
    #[track_caller]
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.command(&["status"], &["--json"]);
        assert!(
            output.status.success(),
            "cachedirfs status: {output:?}\n{}",
            self.log()
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("status is JSON: {e}: {output:?}"))
    }

    /// One of the counters in the status.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let status = self.status();
        status["counters"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("status has counters.{name}: {status:#}"))
    }

    /// SIGTERM, as from systemd; waits for the daemon to end with 0.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a child has a pid");
        rustix::process::kill_process(pid, Signal::TERM).expect("our own child can be signalled");
        self.expect_clean_exit("SIGTERM");
    }

    /// `cachedirfs umount`, which must succeed and end the daemon with 0.
    #[track_caller]
    pub(crate) fn unmount(&mut self) {
        let output = self.command(&["umount"], &[]);
        assert!(
            output.status.success(),
            "cachedirfs umount: {output:?}\n{}",
            self.log()
        );
        self.expect_clean_exit("umount");
    }

    fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mut options = format!("backing={}", self.backing().display());
        if !self.options.is_empty() {
            options = format!("{options},{}", self.options);
        }
        let mut words = self.wrapper.iter().map(String::as_str).chain([CACHEDIRFS]);
        let daemon = Command::new(words.next().expect("at least the program"))
            .args(words)
            .args(["mount", "--foreground", &self.remote])
            .arg(&self.mount_point)
            .args(["-o", &options])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{CACHEDIRFS}: {e}"));
        let daemon = self.daemon.insert(daemon);
        let (log, mount_point) = (self.workspace.path().join("log"), &self.mount_point);
        wait_until("the mount answers", MOUNT_LIMIT, || {
            if let Some(status) = daemon.try_wait().unwrap() {
                panic!(
                    "cachedirfs mount {}: {status}\n{}",
                    self.remote,
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            is_mounted(mount_point) && fs::metadata(mount_point).is_ok()
        });
    }

    /// Ends the daemon and frees the mount point, whatever state they are in. Says whether all went well.
    fn stop(&mut self) -> Result<(), String> {
        let mut result = Ok(());
        let start = Instant::now();
        while is_mounted(&self.mount_point) && !unmount(&self.mount_point, false) {
            // For a moment it may be: a test that starts a program hands it our files until it executes.
            if self.daemon.is_none() || start.elapsed() > BUSY_LIMIT {
                unmount(&self.mount_point, true);
                if self.daemon.is_some() {
                    result = Err("the mount point stayed busy".to_owned());
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut daemon) = self.daemon.take() {
            match wait_for_exit(&mut daemon) {
                Some(status) if status.success() => {}
                Some(status) => result = Err(format!("the daemon ended with {status}")),
                None => {
                    result = Err(format!(
                        "the daemon did not end within {EXIT_LIMIT:?} of the unmount"
                    ));
                    daemon.kill().expect("our own child can be killed");
                    daemon.wait().unwrap();
                }
            }
        }
        result
    }

    #[track_caller]
    fn expect_clean_exit(&mut self, after: &str) {
        let mut daemon = self.daemon.take().expect("the daemon is running");
        let status = wait_for_exit(&mut daemon);
        if status.is_none() {
            // Kept, so that dropping this ends it.
            self.daemon = Some(daemon);
        }
        assert!(
            status.is_some_and(|status| status.success()),
            "daemon after {after}: {status:?}\n{}",
            self.log()
        );
        assert!(!is_mounted(self.path()), "still mounted after {after}");
    }

    fn log_file(&self) -> PathBuf {
        self.workspace.path().join("log")
    }

    /// Runs `cachedirfs BEFORE MOUNTPOINT AFTER`.
    pub(crate) fn command(&self, before: &[&str], after: &[&str]) -> Output {
        Command::new(CACHEDIRFS)
            .args(before)
            .arg(self.path())
            .args(after)
            .output()
            .expect("cachedirfs runs")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let result = self.stop();
        if std::thread::panicking() {
            eprintln!(
                "--- log of the daemon on {}\n{}---",
                self.mount_point.display(),
                self.log()
            );
        } else if let Err(complaint) = result {
            panic!("{complaint}\n{}", self.log());
        }
    }
}

/// Is anything mounted there? Asks the kernel's table, since a dead mount cannot be asked.
pub(crate) fn is_mounted(mount_point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = mount_point.to_str().expect("a workspace has a plain name");
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path))
}

fn unmount(mount_point: &Path, lazily: bool) -> bool {
    let (program, option) = match (is_root(), lazily) {
        (true, false) => ("umount", None),
        (true, true) => ("umount", Some("-l")),
        (false, false) => ("fusermount3", Some("-u")),
        (false, true) => ("fusermount3", Some("-uz")),
    };
    let output = Command::new(program).args(option).arg(mount_point).output();
    output
        .unwrap_or_else(|e| panic!("{program}: {e}, run: scripts/setup build"))
        .status
        .success()
}

fn wait_for_exit(daemon: &mut Child) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        match daemon.try_wait().unwrap() {
            Some(status) => return Some(status),
            None if start.elapsed() > EXIT_LIMIT => return None,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
