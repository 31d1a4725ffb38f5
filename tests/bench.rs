//! Figures of behaviour under failure and load, for `scripts/bench`. They are ignored tests because the stage that they
//! need, proxy and mounts, is that of the tests; nothing is judged here, so nothing fails but the stage.

mod remotes;

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::mounted::Mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::proxy::{Fault, Proxy};
use crate::support::scons::Project;
use crate::support::servers::{Nginx, Server};
use crate::support::venv::LATEST;
use crate::support::{wait_until, workspace};

/// What the build that is measured makes besides the products of every kind.
const TARGETS: &str = "more=60";

/// Builds without a cache, of which the median counts.
const BASELINES: usize = 3;

fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seconds_of_a_build(cache: &Path, arguments: &[&str]) -> f64 {
    let workspace = workspace();
    let project = Project::checkout(workspace.path().join("checkout"));
    let start = Instant::now();
    project.build(LATEST, cache, arguments).succeeded();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "measures: scripts/bench --only dead"]
fn a_build_against_each_dead_remote() {
    let server = Server::nginx(Nginx::Open);
    let modes = [
        ("alive", "http", Some(Fault::Pass)),
        ("refused", "http", Some(Fault::Refuse)),
        ("blackholed", "http", Some(Fault::Blackhole)),
        ("accepts, never answers", "http", Some(Fault::Silent)),
        ("answers at 1 byte/s", "http", Some(Fault::trickle(0, 1))),
        ("TLS never finishes", "https", Some(Fault::Silent)),
        ("name not found", "http", None),
    ];
    for jobs in ["-j1", "-j8"] {
        let arguments = [TARGETS, jobs];
        let without: Vec<_> = (0..BASELINES)
            .map(|_| {
                let cache = workspace();
                seconds_of_a_build(cache.path(), &[TARGETS, jobs, "--cache-disable"])
            })
            .collect();
        let without = median(without);
        println!("{:<28} {without:>7.2} s", format!("{jobs} without a cache"));
        for (name, scheme, fault) in modes {
            let proxy = Proxy::to(server.port());
            let url = match fault {
                Some(fault) => {
                    proxy.set(fault);
                    proxy.url(scheme, "cache")
                }
                None => "http://no-such-host.invalid/cache".to_owned(),
            };
            let mount = Mounted::with_options(&url, "drain_timeout=0");
            let took = seconds_of_a_build(mount.path(), &arguments);
            println!(
                "{:<28} {took:>7.2} s  {:>+6.2} s",
                format!("{jobs} {name}"),
                took - without
            );
        }
    }
}

/// Memory of a process in MiB: `VmRSS` is what is resident, `VmHWM` the most that ever was.
fn memory(pid: u32, what: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or_else(|| panic!("the kernel says {what} in kB")) / 1024.0
}

/// Empty entries, as many as asked, in 256 prefix directories.
fn make_entries(backing: &Path, entries: usize) {
    let threads = 4;
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for prefix in (thread..256).step_by(threads) {
                    let dir = backing.join(format!("{prefix:02X}"));
                    fs::create_dir_all(&dir).unwrap();
                    for n in 0..entries.div_ceil(256) {
                        fs::File::create(dir.join(format!("{prefix:02x}{n:030x}"))).unwrap();
                    }
                }
            });
        }
    });
    fs::write(backing.join("config"), r#"{"prefix_len": 2}"#).unwrap();
}

#[test]
#[ignore = "measures: scripts/bench --only big"]
fn start_and_memory_with_a_million_entries() {
    let entries = number("ENTRIES", 1_000_000);
    let workspace = workspace();
    let remote = workspace.path().join("remote");
    let backing = workspace.path().join("big");
    fs::create_dir_all(&remote).unwrap();
    let start = Instant::now();
    make_entries(&backing, entries);
    println!(
        "{entries} entries made in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    let options = format!("backing={},size=90%,min_free=0", backing.display());
    let url = format!("file://{}", remote.display());
    let start = Instant::now();
    let mut mount = Mounted::with_options(&url, &options);
    figures(&mount, start, "first mount");
    mount.unmount();
    let start = Instant::now();
    mount.remount();
    figures(&mount, start, "after a clean stop");
    mount.kill9();
    let start = Instant::now();
    mount.remount();
    figures(&mount, start, "after kill -9");
}

/// Of a mount that began to be made at `start`.
fn figures(mount: &Mounted, start: Instant, what: &str) {
    let entry = mount.path().join(format!("7F/7f{:030x}", 77));
    fs::metadata(&entry).unwrap();
    let answers = start.elapsed();
    let early = memory(mount.pid(), "VmRSS");
    wait_until("the index is complete", Duration::from_secs(600), || {
        mount.status()["index_complete"] == true
    });
    println!(
        "{what:<20} answers after {:>6.0} ms, index complete after {:>6.1} s, {early:>5.0} MiB then {:>5.0} MiB, most {:>5.0} MiB",
        answers.as_secs_f64() * 1000.0,
        start.elapsed().as_secs_f64(),
        memory(mount.pid(), "VmRSS"),
        memory(mount.pid(), "VmHWM"),
    );
}

#[test]
#[ignore = "measures: scripts/bench --only lookups"]
fn a_local_hit_while_a_thousand_lookups_wait() {
    let lookups = number("LOOKUPS", 1000);
    let server = Server::nginx(Nginx::Open);
    let proxy = Proxy::to(server.port());
    let mount = Mounted::with_options(&proxy.url("http", "cache"), "drain_timeout=0");
    let local: Vec<_> = (1..=64).map(|n| Push(8 * n + 1)).collect();
    for push in &local {
        push.perform(mount.path(), Shape::Uuid).unwrap();
    }
    mount.flush();
    report("nothing else", &hits(mount.path(), &local));
    let slow = Duration::from_millis(500);
    for (what, fault) in [
        ("remote 500 ms away", Fault::Delay { rtt: slow }),
        ("remote never answers", Fault::Silent),
    ] {
        proxy.set(fault);
        let waiting = AtomicUsize::new(lookups);
        let begin = Barrier::new(lookups + 1);
        let times = thread::scope(|scope| {
            for n in 0..lookups {
                let (waiting, begin, path) = (&waiting, &begin, mount.path());
                let absent = Push(1_000_000_000 + n as u64).entry();
                scope.spawn(move || {
                    begin.wait();
                    let found = fs::metadata(path.join(absent)).is_ok();
                    waiting.fetch_sub(1, Ordering::SeqCst);
                    assert!(!found, "nobody has pushed it");
                });
            }
            begin.wait();
            let mut times = Vec::new();
            let start = Instant::now();
            // As long as any of them wait, and no longer than it takes to know.
            while waiting.load(Ordering::SeqCst) > 0 && start.elapsed() < Duration::from_secs(10) {
                times.extend(hits(mount.path(), &local));
            }
            times
        });
        report(&format!("{lookups} lookups, {what}"), &times);
        println!(
            "{:<44} {:>6.0} MiB resident",
            "",
            memory(mount.pid(), "VmRSS")
        );
        proxy.set(Fault::Pass);
    }
}

/// Times of opening and reading each entry once, in milliseconds.
fn hits(cache: &Path, local: &[Push]) -> Vec<f64> {
    let read = |push: &Push| {
        let start = Instant::now();
        fs::read(cache.join(push.entry())).unwrap();
        start.elapsed().as_secs_f64() * 1000.0
    };
    local.iter().map(read).collect()
}

fn report(what: &str, times: &[f64]) {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    println!(
        "{what:<44} median {:>7.3} ms, p99 {:>7.3} ms, {} hits",
        at(0.5),
        at(0.99),
        sorted.len()
    );
}
