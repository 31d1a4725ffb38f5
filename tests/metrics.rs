//! `metrics=ADDR` of real mounts: what is served, who checks it, and that nobody who asks is in the way.

#![allow(clippy::unwrap_used)] // also in helpers, which clippy does not take for tests

/// The status page in a headless Chromium.
mod browser;
/// Talking to Chromium.
mod chromium;
/// The dashboard and the alerts.
mod grafana;
/// `status --watch` and `status --ci`.
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::mounted::Mounted;
use crate::support::{wait_until, workspace};

/// Longer than anything here may take, on a machine that others use too.
const LIMIT: Duration = Duration::from_secs(60);

/// A server at which nobody listens.
const DEAD: &str = "http://127.0.0.1:9/c";

/// A mount with two remotes, both directories, of which the second can be taken away.
struct Stage {
    mounted: Mounted,
    address: String,
    remotes: TempDir,
}

impl Stage {
    fn new() -> Self {
        let remotes = workspace();
        let urls = ["a", "b"].map(|name| {
            let dir = remotes.path().join(name);
            fs::create_dir(&dir).unwrap();
            format!("file://{}", dir.display())
        });
        let options = "metrics=127.0.0.1:0,negative_ttl=0";
        let mounted = Mounted::with_options(&urls.join(" "), options);
        let address = mounted.status()["metrics"].as_str().unwrap().to_owned();
        Self {
            mounted,
            address,
            remotes,
        }
    }

    /// From now on the second remote fails, and the mount has noticed.
    fn break_remote(&self) {
        let dir = self.remotes.path();
        fs::rename(dir.join("b"), dir.join("gone")).unwrap();
        let mut n = 2_000_000;
        wait_until("the missing remote is noticed", LIMIT, || {
            n += 1;
            assert!(fs::read(self.entry(&signature(n))).is_err());
            self.mounted.status()["remotes"][1]["state"] != "ok"
        });
    }

    fn entry(&self, signature: &str) -> PathBuf {
        let mount = self.mounted.path();
        mount.join(signature[..2].to_uppercase()).join(signature)
    }

    /// What others pushed, so many, is fetched.
    fn fetch(&self, number: u32) {
        for n in 3_000_000..3_000_000 + number {
            let signature = signature(n);
            push(&self.remotes.path().join("a"), &signature, &[b'y'; 5000]);
            assert_eq!(fs::read(self.entry(&signature)).unwrap().len(), 5000);
        }
    }

    fn body(&self, path: &str) -> String {
        let (head, body) = get(&self.address, path);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        body
    }

    /// Pushes, hits and misses, so many of each.
    fn load(&self, from: u32, number: u32) {
        for n in from..from + number {
            let there = signature(n);
            push(self.mounted.path(), &there, &vec![b'x'; 1000 + n as usize]);
            fs::read(self.entry(&there)).unwrap();
            assert!(fs::read(self.entry(&signature(n + 1_000_000))).is_err());
        }
    }
}

fn signature(n: u32) -> String {
    blake3::hash(&n.to_le_bytes()).to_hex()[..32].to_owned()
}

fn push(mount: &Path, signature: &str, content: &[u8]) {
    let dir = mount.join(signature[..2].to_uppercase());
    fs::create_dir_all(&dir).unwrap();
    let scratch = dir.join(format!("{signature}.tmp"));
    fs::write(&scratch, content).unwrap();
    fs::rename(scratch, dir.join(signature)).unwrap();
}

/// Head and body of the answer.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Runs a program over some input.
fn with_input(program: &str, args: &[&str], input: &str) -> Output {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|e| panic!("{program}: {e}, run: scripts/setup look"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// Names of metrics in an answer.
fn names(metrics: &str) -> BTreeSet<String> {
    let types = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{series} ")));
    line.unwrap_or_else(|| panic!("{series} in {metrics}"))
        .parse()
        .unwrap()
}

/// Prometheus' own parser and linter of names, help and types.
#[test]
fn promtool_has_nothing_to_say() {
    let stage = Stage::new();
    stage.load(0, 5);
    let metrics = stage.body("/metrics");
    let output = with_input("promtool", &["check", "metrics"], &metrics);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
    // That it is one who finds something.
    let broken = metrics.replacen(
        "# TYPE cachedirfs_entries gauge",
        "# TYPE cachedirfs_entries counter",
        1,
    );
    assert_ne!(broken, metrics);
    assert!(
        !with_input("promtool", &["check", "metrics"], &broken)
            .status
            .success()
    );
}

#[test]
fn metrics_and_status_say_the_same() {
    let stage = Stage::new();
    stage.load(0, 20);
    stage.fetch(3);
    stage.break_remote();
    let mounted = &stage.mounted;
    wait_until("metrics and status are of the same moment", LIMIT, || {
        let before = mounted.status();
        let metrics = stage.body("/metrics");
        let status: serde_json::Value = serde_json::from_str(&stage.body("/status.json")).unwrap();
        let count = |pointer: &str| status.pointer(pointer).unwrap().as_f64().unwrap();
        let pairs = [
            (
                "cachedirfs_lookups_total{outcome=\"hit\"}",
                count("/counters/hits"),
            ),
            (
                "cachedirfs_lookups_total{outcome=\"miss\"}",
                count("/counters/misses"),
            ),
            ("cachedirfs_hit_bytes_total", count("/counters/hit_bytes")),
            ("cachedirfs_pushed_total", count("/counters/pushed")),
            ("cachedirfs_pending_objects", count("/pending/objects")),
            ("cachedirfs_pending_bytes", count("/pending/bytes")),
            ("cachedirfs_entries", count("/entries")),
            ("cachedirfs_used_bytes", count("/bytes_used")),
            ("cachedirfs_limit_bytes", count("/limit")),
            (
                "cachedirfs_fetch_duration_seconds_count{outcome=\"miss\"}",
                count("/latencies/miss/count"),
            ),
        ];
        before["counters"] == status["counters"]
            && pairs
                .iter()
                .all(|(series, n)| value(&metrics, series) == *n)
    });
    let status = mounted.status();
    let hits = status["counters"]["hits"].as_u64().unwrap();
    assert!(hits >= 20, "{status:#}");
    let content = (0..20).map(|n| 1000 + n).sum::<u64>() + 3 * 5000;
    assert_eq!(
        status["counters"]["hit_bytes"], content,
        "each was read once"
    );
    let metrics = stage.body("/metrics");
    let down = metrics
        .lines()
        .find(|line| line.starts_with("cachedirfs_remote_up{") && line.contains("/b\""));
    assert!(down.unwrap().ends_with("number=\"2\"} 0"), "{down:?}");
}

/// The table in the man page is that of the answer.
#[test]
fn every_metric_is_in_the_man_page_and_no_other() {
    let stage = Stage::new();
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("man/cachedirfs.1")).unwrap();
    let (_, section) = page.split_once("\n.Sh MONITORING\n").unwrap();
    let (section, _) = section.split_once("\n.Sh ").unwrap();
    let items = section
        .lines()
        .filter_map(|line| line.strip_prefix(".It Sy "));
    let explained: BTreeSet<_> = items
        .flat_map(|item| item.split(" , "))
        .map(|name| format!("cachedirfs_{name}"))
        .collect();
    assert_eq!(
        explained,
        names(&stage.body("/metrics")),
        "man/cachedirfs.1, MONITORING"
    );
}

/// It always mounts: an address in use costs the metrics and nothing else.
#[test]
fn a_mount_whose_address_is_taken_mounts_and_says_so() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let remote = workspace();
    let url = format!("file://{}", remote.path().display());
    let mut mounted = Mounted::with_options(&url, &format!("metrics={address}"));
    push(mounted.path(), &signature(1), b"content");
    let status = mounted.status();
    assert!(status["metrics"].is_null(), "{status:#}");
    let why = format!("cannot serve metrics at {address}: ");
    assert!(
        status["metrics_trouble"]
            .as_str()
            .unwrap()
            .starts_with(&why)
    );
    assert_eq!(mounted.log().matches(&why).count(), 1, "said once");
    drop(other);
    wait_until("it has the address", LIMIT, || {
        mounted.status()["metrics"] == address.to_string()
    });
    assert!(get(&address.to_string(), "/").1.contains("All is well"));
    // Who mounts again has it at once, though the kernel still remembers connections.
    mounted.remount();
    assert_eq!(mounted.status()["metrics"], address.to_string());
}

/// Neither whoever asks too slowly nor a hundred who never ask keep the mount, or the next one who asks.
#[test]
fn hostile_clients_are_in_nobodys_way() {
    let stage = Stage::new();
    let open = || TcpStream::connect(&stage.address).unwrap();
    let crowd: Vec<_> = (0..100).map(|_| open()).collect();
    let mut slow = open();
    slow.write_all(b"GET /metr").unwrap();
    stage.load(0, 10);
    wait_until("it is shown", LIMIT, || {
        stage.body("/metrics").contains("cachedirfs_entries 10")
    });
    drop((crowd, slow));
}

#[test]
fn an_address_that_others_reach_is_warned_of_and_credentials_are_never_shown() {
    let dir = workspace();
    let login = dir.path().join("login");
    fs::write(&login, "joe:hunter2\n").unwrap();
    let options = format!("metrics=0.0.0.0:0,basic_file={}", login.display());
    let mounted = Mounted::with_options(DEAD, &options);
    let address = mounted.status()["metrics"]
        .as_str()
        .unwrap()
        .replace("0.0.0.0", "127.0.0.1");
    assert!(
        mounted.log().contains("nobody is asked for a password"),
        "{}",
        mounted.log()
    );
    let absent = signature(1);
    assert!(
        fs::read(
            mounted
                .path()
                .join(absent[..2].to_uppercase())
                .join(&absent)
        )
        .is_err()
    );
    for path in ["/", "/?day", "/metrics", "/status.json", "/history.json"] {
        let body = get(&address, path).1;
        assert!(
            !body.contains("hunter2") && !body.contains("joe"),
            "{path}: {body}"
        );
    }
}
