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

use cachedirfs::remote::{Content, Environment, Put, Remote, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use tempfile::TempDir;

use super::{median, memory, number};
use crate::support::cloud::{BUCKET, Store, tool};
use crate::support::reapi::{Cache, Guard};
use crate::support::redis::Redis;
use crate::support::servers::{Nginx, Server, program};
use crate::support::{installed, test_tools};

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
    let (nginx, lighttpd) = (Server::nginx(Nginx::Open), Server::lighttpd());
    let (bazel, casd) = (Cache::nginx(Guard::Open), Cache::casd());
    let (redis, moto) = (Redis::start(&[]), Store::moto());
    let curl = |url: &str| Box::new(Curl::new(url)) as Box<dyn Client>;
    let nginx_url = nginx.url();
    let cas = bazel.url("http", "cache/cas");
    let grpc = casd.url("grpc", "");
    let of_moto = RemoteOptions {
        endpoint: Some(moto.endpoint()),
        environment: Environment::new(moto.keys.clone()),
        ..RemoteOptions::default()
    };
    vec![
        subject("nginx", &nginx_url, "curl", curl(&nginx_url), nginx),
        subject(
            "lighttpd",
            &lighttpd.url(),
            "curl",
            curl(&lighttpd.url()),
            lighttpd,
        ),
        subject(
            "bazel, nginx",
            &bazel.url("bazel+http", "cache"),
            "curl, one of the two requests",
            curl(&cas),
            bazel,
        ),
        subject(
            "grpc, casd",
            &grpc,
            "Google's gRPC in Python",
            Box::new(Script::grpc(casd.port())),
            casd,
        ),
        subject(
            "redis",
            &redis.url(),
            "redis-benchmark",
            Box::new(RedisBenchmark::on(&redis)),
            redis,
        ),
        Subject {
            name: "s3, moto",
            client: "boto3",
            remote: open(&format!("s3://{BUCKET}/bench"), &of_moto).unwrap(),
            plain: Box::new(Script::boto3(&moto)),
            _server: Box::new(moto),
        },
    ]
}

fn subject(
    name: &'static str,
    url: &str,
    client: &'static str,
    plain: Box<dyn Client>,
    server: impl std::any::Any,
) -> Subject {
    Subject {
        name,
        client,
        remote: open(url, &RemoteOptions::default()).unwrap(),
        plain,
        _server: Box::new(server),
    }
}

/// A number that no other call of this process uses.
fn next() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A key of 64 hex digits: a cache of Bazel's takes no other.
fn key(n: usize) -> String {
    format!("{n:064x}")
}

/// A signature that no other call of this process uses.
fn fresh() -> Signature {
    let n = next();
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
        curl.transfer(&[(Call::Put, key(0))]);
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
            Call::Get => (call, key(0)),
            Call::Miss | Call::Put => (call, key(next())),
        };
        // The first one makes the connection.
        let calls: Vec<_> = (0..=times).map(key).collect();
        self.transfer(&calls).split_off(1)
    }
}

/// A script in Python that reads `CALL TIMES` and prints how many seconds each took.
struct Script(Box<dyn Fn() -> Command>);

impl Script {
    fn boto3(moto: &Store) -> Self {
        let python = tool("moto/bin/python");
        let (endpoint, keys) = (moto.endpoint(), moto.keys.clone());
        Self(Box::new(move || {
            let mut command = Command::new(&python);
            command
                .args(["-c", &format!("{BOTO3}{TIMED}"), &endpoint, BUCKET])
                .envs(&keys);
            command
        }))
    }

    fn grpc(port: u16) -> Self {
        let python = installed(test_tools().join("buildgrid/bin/python"), "reapi");
        Self(Box::new(move || {
            let mut command = Command::new(&python);
            command.args(["-c", &format!("{GRPC}{TIMED}"), &port.to_string()]);
            command
        }))
    }
}

const BOTO3: &str = r#"
import os, sys, time, boto3, botocore
from botocore.config import Config
s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', config=Config(s3={'addressing_style': 'path'}))
content = os.urandom(16384)
def put(key): s3.put_object(Bucket=sys.argv[2], Key=key, Body=content)
def get(key): s3.get_object(Bucket=sys.argv[2], Key=key)['Body'].read()
def miss(key):
    try: get(key)
    except botocore.exceptions.ClientError: pass
"#;

/// The calls that an entry takes at the least: an action result with its blob.
const GRPC: &str = r#"
import hashlib, os, sys, time, grpc
from buildgrid._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re, remote_execution_pb2_grpc as stubs
channel = grpc.insecure_channel('127.0.0.1:' + sys.argv[1])
actions, cas = stubs.ActionCacheStub(channel), stubs.ContentAddressableStorageStub(channel)
def action(key): return re.Digest(hash=hashlib.sha256(key.encode()).hexdigest(), size_bytes=len(key))
def put(key):
    content = os.urandom(16384)
    digest = re.Digest(hash=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    cas.FindMissingBlobs(re.FindMissingBlobsRequest(blob_digests=[digest]))
    cas.BatchUpdateBlobs(re.BatchUpdateBlobsRequest(requests=[dict(digest=digest, data=content)]))
    result = re.ActionResult(output_files=[dict(path='a', digest=digest)])
    actions.UpdateActionResult(re.UpdateActionResultRequest(action_digest=action(key), action_result=result))
def get(key):
    result = actions.GetActionResult(re.GetActionResultRequest(action_digest=action(key)))
    cas.BatchReadBlobs(re.BatchReadBlobsRequest(digests=[result.output_files[0].digest]))
def miss(key):
    try: actions.GetActionResult(re.GetActionResultRequest(action_digest=action(key)))
    except grpc.RpcError: pass
"#;

const TIMED: &str = r#"
put('there')
get('there')
call, times = sys.stdin.read().split()
for n in range(int(times)):
    key = 'there' if call == 'get' else '%s-%d-%d' % (call, os.getpid(), n)
    start = time.perf_counter()
    globals()[call](key)
    print(time.perf_counter() - start)
"#;

impl Client for Script {
    fn call(&self, call: Call, times: usize) -> Vec<f64> {
        seconds(&mut (self.0)(), &format!("{} {times}", name(call)))
    }
}

fn name(call: Call) -> &'static str {
    match call {
        Call::Miss => "miss",
        Call::Get => "get",
        Call::Put => "put",
    }
}

/// One connection; it says how many calls a second, so every call counts as the mean.
struct RedisBenchmark(u16);

impl RedisBenchmark {
    fn on(redis: &Redis) -> Self {
        redis.ask(&["SET", "bench:there", &"x".repeat(SMALL)]);
        Self(redis.port())
    }
}

impl Client for RedisBenchmark {
    fn call(&self, call: Call, times: usize) -> Vec<f64> {
        let times = times.to_string();
        let small = SMALL.to_string();
        let filled = "x".repeat(SMALL);
        let mut benchmark = Command::new(program("redis-benchmark", "redis-tools"));
        benchmark.args([
            "-p",
            &self.0.to_string(),
            "-c",
            "1",
            "-r",
            "100000000",
            "--csv",
        ]);
        benchmark.args(["-n", &times, "-d", &small]);
        match call {
            Call::Miss => benchmark.args(["GET", "absent"]),
            Call::Get => benchmark.args(["GET", "bench:there"]),
            Call::Put => benchmark.args(["SET", "bench:__rand_int__", &filled]),
        };
        let done = benchmark.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let text = String::from_utf8(done.stdout).unwrap();
        let line = text.lines().last().unwrap();
        // "test","rps",...; the test's name may hold commas, but no quotes.
        let rate: f64 = line.split("\",\"").nth(1).unwrap().parse().unwrap();
        vec![1.0 / rate; times.parse().unwrap()]
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
                name(call),
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
            println!("{:<14} {:<6} {}", subject.name, name(call), rates.join(" "));
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
