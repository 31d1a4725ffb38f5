//! What a call of each remote costs, against the best plain client for its server, in turns in one run; how much more
//! gets through when many are under way; and how much memory large objects take on their way.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use cachedirfs::remote::{Content, Put, Remote, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use tempfile::TempDir;

use super::{median, memory, number};
use crate::support::servers::{Nginx, Server, program};

/// Bytes of the objects whose calls are timed: a usual product.
const SMALL: usize = 16 << 10;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Miss,
    Get,
    Put,
}

/// Somebody who can make calls, and says how many seconds each took.
trait Client {
    fn call(&self, call: Call, times: usize) -> Vec<f64>;
}

/// A server with a remote on it and a plain client for it.
struct Subject {
    name: &'static str,
    client: &'static str,
    remote: Arc<dyn Remote>,
    plain: Box<dyn Client>,
    /// Ended with it.
    _server: Box<dyn std::any::Any>,
}

fn subjects() -> Vec<Subject> {
    vec![
        http("nginx", Server::nginx(Nginx::Open)),
        http("lighttpd", Server::lighttpd()),
    ]
}

fn http(name: &'static str, server: Server) -> Subject {
    Subject {
        name,
        client: "curl",
        remote: open(&server.url(), &RemoteOptions::default()).unwrap(),
        plain: Box::new(Curl::new(&server.url())),
        _server: Box::new(server),
    }
}

/// A signature that no other call of this process uses.
fn fresh() -> Signature {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let digits = format!("{:02x}{n:030x}", n % 256);
    Signature::parse(digits.as_bytes()).unwrap()
}

/// Bytes that do not compress, other ones for every `seed`.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// Our side.
struct Ours<'a>(&'a dyn Remote, Signature, Content);

impl<'a> Ours<'a> {
    fn new(remote: &'a dyn Remote) -> Self {
        let ours = Self(remote, fresh(), Content::Bytes(noise(SMALL, 1)));
        ours.put(&ours.1);
        ours
    }

    fn put(&self, sig: &Signature) {
        let put = self.0.put(sig, Meta::file(0o644), &self.2).unwrap();
        assert_eq!(put, Put::Stored);
    }

    fn get(&self) {
        let mut object = self.0.get(&self.1).unwrap().expect("just put");
        let read = io::copy(&mut object.content, &mut io::sink()).unwrap();
        assert_eq!(read, SMALL as u64);
    }

    fn once(&self, call: Call) -> f64 {
        let sig = fresh();
        let start = Instant::now();
        match call {
            Call::Miss => assert!(self.0.get(&sig).unwrap().is_none()),
            Call::Get => self.get(),
            Call::Put => self.put(&sig),
        }
        start.elapsed().as_secs_f64()
    }
}

impl Client for Ours<'_> {
    fn call(&self, call: Call, times: usize) -> Vec<f64> {
        (0..times).map(|_| self.once(call)).collect()
    }
}

/// curl with one connection; it says itself how long each transfer took.
struct Curl {
    base: String,
    dir: TempDir,
}

impl Curl {
    fn new(base: &str) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("content"), noise(SMALL, 2)).unwrap();
        let curl = Self {
            base: base.to_owned(),
            dir,
        };
        curl.transfer(&[(Call::Put, "00/there".to_owned())]);
        curl
    }

    fn transfer(&self, calls: &[(Call, String)]) -> Vec<f64> {
        let mut config = String::new();
        for (n, (call, key)) in calls.iter().enumerate() {
            if n > 0 {
                config += "next\n";
            }
            config += &format!("url = \"{}/{key}\"\n", self.base);
            config += "silent\noutput = \"/dev/null\"\nwrite-out = \"%{time_total}\\n\"\n";
            if *call == Call::Put {
                let content = self.dir.path().join("content");
                config += &format!("upload-file = \"{}\"\n", content.display());
            }
        }
        seconds(
            Command::new(program("curl", "curl")).args(["-K", "-"]),
            &config,
        )
    }
}

impl Client for Curl {
    fn call(&self, call: Call, times: usize) -> Vec<f64> {
        let key = |_| match call {
            Call::Get => (call, "00/there".to_owned()),
            Call::Miss | Call::Put => (call, format!("00/{}", fresh())),
        };
        // The first one makes the connection.
        let calls: Vec<_> = (0..=times).map(key).collect();
        self.transfer(&calls).split_off(1)
    }
}

/// The numbers that a program prints, one a line.
fn seconds(command: &mut Command, input: &str) -> Vec<f64> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{command:?}");
    let text = String::from_utf8(done.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| line.parse().unwrap()).collect()
}

#[test]
#[ignore = "measures: scripts/bench --only calls"]
fn calls_against_the_best_plain_client() {
    let (rounds, times) = (number("ROUNDS", 5), number("CALLS", 200));
    println!(
        "{:<14} {:<6} {:>9} {:>9} {:>6}",
        "", "", "plain", "ours", "ratio"
    );
    for subject in subjects() {
        let ours = Ours::new(&*subject.remote);
        for call in [Call::Miss, Call::Get, Call::Put] {
            let (mut one, mut other) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                if round % 2 == 0 {
                    one.extend(subject.plain.call(call, times));
                    other.extend(ours.call(call, times));
                } else {
                    other.extend(ours.call(call, times));
                    one.extend(subject.plain.call(call, times));
                }
            }
            let (one, other) = (median(one) * 1e6, median(other) * 1e6);
            println!(
                "{:<14} {:<6} {one:>6.0} us {other:>6.0} us {:>6.2}   ({})",
                subject.name,
                format!("{call:?}").to_lowercase(),
                other / one,
                subject.client
            );
        }
    }
}

#[test]
#[ignore = "measures: scripts/bench --only calls"]
fn how_much_more_gets_through_when_many_are_under_way() {
    let times = number("CALLS", 200) * 5;
    println!(
        "{:<14} {:<6} {}",
        "", "", "calls a second with 1, 4, 16 and 64 under way"
    );
    for subject in subjects() {
        let ours = Ours::new(&*subject.remote);
        for call in [Call::Miss, Call::Get, Call::Put] {
            let rates: Vec<_> = [1, 4, 16, 64]
                .iter()
                .map(|threads| format!("{:>8.0}", rate(&ours, call, times, *threads)))
                .collect();
            let call = format!("{call:?}").to_lowercase();
            println!("{:<14} {call:<6} {}", subject.name, rates.join(" "));
        }
    }
}

/// Calls a second.
fn rate(ours: &Ours<'_>, call: Call, times: usize, threads: usize) -> f64 {
    let left = AtomicUsize::new(times);
    let start = Instant::now();
    let more = || {
        let took = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        took.is_ok()
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while more() {
                    ours.once(call);
                }
            });
        }
    });
    times as f64 / start.elapsed().as_secs_f64()
}

#[test]
#[ignore = "measures: scripts/bench --only memory"]
fn memory_while_large_objects_stream_through() {
    let (objects, mib) = (number("OBJECTS", 64), number("MIB", 256));
    let dir = TempDir::new_in("/var/tmp").unwrap();
    let file = large_file(dir.path(), mib);
    println!(
        "{objects} objects of {mib} MiB, {LARGE_AT_ONCE} at once, put and got; MiB resident before and at most"
    );
    for subject in subjects() {
        forget_peak();
        let before = memory(std::process::id(), "VmHWM");
        let start = Instant::now();
        let left = AtomicUsize::new(objects);
        let more = || {
            let took =
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            took.is_ok()
        };
        thread::scope(|scope| {
            for _ in 0..LARGE_AT_ONCE {
                scope.spawn(|| {
                    while more() {
                        through(&*subject.remote, &file, (mib << 20) as u64);
                    }
                });
            }
        });
        let speed = (2 * objects * mib) as f64 / start.elapsed().as_secs_f64();
        let most = memory(std::process::id(), "VmHWM");
        println!(
            "{:<14} {before:>6.0} {most:>6.0}   {speed:>6.0} MiB/s",
            subject.name
        );
    }
}

/// As many as a mount uploads at one time.
const LARGE_AT_ONCE: usize = 8;

fn large_file(dir: &Path, mib: usize) -> PathBuf {
    let path = dir.join("large");
    let mut file = fs::File::create(&path).unwrap();
    for n in 0..mib {
        file.write_all(&noise(1 << 20, n as u64)).unwrap();
    }
    path
}

/// Puts an object, gets it to its end, and deletes it: the server keeps none.
fn through(remote: &dyn Remote, file: &Path, len: u64) {
    let sig = fresh();
    let content = Content::File(fs::File::open(file).unwrap(), len);
    assert_eq!(
        remote.put(&sig, Meta::file(0o644), &content).unwrap(),
        Put::Stored
    );
    let mut object = remote.get(&sig).unwrap().expect("just put");
    assert_eq!(io::copy(&mut object.content, &mut io::sink()).unwrap(), len);
    // Not every remote can.
    let _kept = remote.delete(&sig);
}

/// From now on `VmHWM` is the most since now.
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}
