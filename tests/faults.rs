//! The fault matrix: every way in which a remote fails, in every phase of a request, through a real mount.
//!
//! Whatever happens, a read gives what was pushed under that name or no such file, no call fails or hangs, and once the
//! fault is over everything is there on both sides.

mod files;

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::mounted::Mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::servers::{Nginx, Server};
use crate::support::wait_until;

/// No call may take longer. With the timeouts below, none waits for more than a fraction of a second.
const CALL: Duration = Duration::from_secs(20);
/// When all must be well again.
const HEALED: Duration = Duration::from_secs(60);

/// Short, so that a matrix of them takes seconds.
const TIMES: &str = "lookup_timeout=400ms,connect_timeout=400ms,stall_timeout=500ms,request_timeout=5s,\
                     negative_ttl=0,drain_timeout=1s";

/// Most of the time a case waits for a timeout.
const AT_ONCE: usize = 8;

/// What an answer of nginx begins with is shorter than this …
const HEADERS: u64 = 400;
/// … and this is in the middle of its headers.
const IN_HEADERS: u64 = 60;
/// In the middle of a large object.
const IN_BODY: u64 = 100_000;

/// Every mode in every phase where it means something.
fn matrix() -> Vec<Fault> {
    let mut faults = vec![Fault::Refuse, Fault::Blackhole, Fault::Silent];
    for way in [Way::Response, Way::Request] {
        // Connecting, in the headers, at the beginning and in the middle of a body, or of an upload.
        for after in [0, IN_HEADERS, HEADERS, IN_BODY] {
            let bytes_per_second = 1;
            faults.extend([
                Fault::Reset { way, after },
                Fault::Cut { way, after },
                Fault::Stall { way, after },
                Fault::Trickle {
                    way,
                    after,
                    bytes_per_second,
                },
            ]);
        }
        // The status, a header, the header of the object, the contents.
        for at in [9, IN_HEADERS, HEADERS, IN_BODY / 3, IN_BODY] {
            faults.push(Fault::FlipBit { way, at });
        }
    }
    let rtt = Duration::from_millis(100);
    faults.extend([
        Fault::Delay { rtt },
        Fault::Bandwidth {
            bytes_per_second: 64 << 10,
        },
    ]);
    faults
}

/// A damaged request is a whole and right one to the server: another name, other bytes. TLS knows better.
fn changes_what_the_server_holds(fault: Fault, scheme: &str) -> bool {
    scheme == "http"
        && matches!(
            fault,
            Fault::FlipBit {
                way: Way::Request,
                ..
            }
        )
}

/// What one case pushes and fetches: a small object, one of 64 KiB, a large one; and what it pushes itself.
struct Objects {
    fetched: [Push; 3],
    pushed: [Push; 2],
}

impl Objects {
    fn of(case: usize) -> Self {
        let first = 1000 + 16 * case as u64;
        let at = |n: u64| Push(first - first % 8 + n);
        Self {
            fetched: [at(1), at(5), at(7)],
            pushed: [at(10), at(15)],
        }
    }
}

/// Reads as a build does. Whatever is there is right, or the test fails.
#[track_caller]
fn read(push: Push, cache: &Path, when: &str) -> bool {
    let began = Instant::now();
    let found = match std::fs::read(cache.join(push.entry())) {
        Ok(bytes) => {
            assert!(bytes == push.content(), "{when}: other bytes of {push:?}");
            true
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => panic!("{when}: {push:?}: {e}"),
    };
    assert!(began.elapsed() < CALL, "{when}: {:?}", began.elapsed());
    found
}

#[track_caller]
fn push(push: Push, cache: &Path, when: &str) {
    let began = Instant::now();
    let done = push.perform(cache, Shape::Directory);
    assert!(done.is_ok(), "{when}: {push:?}: {done:?}");
    assert!(began.elapsed() < CALL, "{when}: {:?}", began.elapsed());
}

/// An upload was tried, in vain, or all of them are done.
fn wait_for_attempt(mounted: &Mounted, when: &str) {
    wait_until(&format!("{when}: an upload is tried"), HEALED, || {
        let status = mounted.status();
        let errors = status["counters"]["upload_errors"].as_u64().unwrap();
        errors > 0 || status["pending"]["objects"] == 0
    });
}

/// What the mounts of a matrix noticed of it all: a matrix that nobody notices shows nothing.
#[derive(Default)]
struct Felt {
    failed: AtomicU64,
    late: AtomicU64,
    corrupt: AtomicU64,
}

impl Felt {
    fn add(&self, mounted: &Mounted) {
        let counters = [
            (&self.failed, "failed_fetches"),
            (&self.late, "late_fetches"),
            (&self.corrupt, "corrupt"),
        ];
        for (sum, name) in counters {
            sum.fetch_add(mounted.counter(name), Ordering::SeqCst);
        }
    }
}

fn withstands(
    fault: Fault,
    case: usize,
    server: &Server,
    scheme: &str,
    elsewhere: &Mounted,
    felt: &Felt,
) {
    let when = format!("{scheme} {fault:?}");
    let objects = Objects::of(case);
    for object in objects.fetched {
        push(object, elsewhere.path(), &when);
    }
    elsewhere.flush();
    let proxy = Proxy::to(server.port());
    let mounted = Mounted::with_options(
        &proxy.url(scheme, "cache"),
        &format!("{TIMES},{}", certificates(server, scheme)),
    );

    proxy.set(fault);
    for object in objects.pushed {
        push(object, mounted.path(), &when);
    }
    // First the uploads, then the lookups: where the one opens the breaker, the other never gets there.
    if case.is_multiple_of(2) {
        wait_for_attempt(&mounted, &when);
    }
    for object in objects.fetched {
        read(object, mounted.path(), &when);
    }
    wait_for_attempt(&mounted, &when);
    for object in objects.pushed {
        assert!(read(object, mounted.path(), &when), "{when}: it is here");
    }

    proxy.set(Fault::Pass);
    let healed = format!("{when}, healed");
    wait_until(&healed, HEALED, || {
        let all = |objects: &[Push]| objects.iter().all(|o| read(*o, mounted.path(), &healed));
        all(&objects.fetched) && mounted.status()["remote_state"] == "ok"
    });
    felt.add(&mounted);
    mounted.flush();
    for object in objects.pushed {
        let arrived = read(object, elsewhere.path(), &healed);
        assert!(
            arrived || changes_what_the_server_holds(fault, scheme),
            "{healed}: {object:?} did not arrive\n{}",
            mounted.log()
        );
    }
}

fn certificates(server: &Server, scheme: &str) -> String {
    match scheme {
        "https" => format!("ca_file={}", server.ca().display()),
        _ => String::new(),
    }
}

fn every_fault_in_every_phase(kind: Nginx, scheme: &str) {
    let server = Server::nginx(kind);
    let options = format!("negative_ttl=0,{}", certificates(&server, scheme));
    let elsewhere = Mounted::with_options(&server.url(), &options);
    let cases = Mutex::new(matrix().into_iter().enumerate());
    let felt = Felt::default();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some((case, fault)) = cases.lock().unwrap().next() else {
                        return;
                    };
                    withstands(fault, case, &server, scheme, &elsewhere, &felt);
                }
            });
        }
    });
    let Felt {
        failed,
        late,
        corrupt,
    } = felt;
    let [failed, late, corrupt] = [failed, late, corrupt].map(AtomicU64::into_inner);
    eprintln!(
        "{scheme}: {failed} lookups failed, {late} were late, {corrupt} objects were corrupt"
    );
    assert!(failed > 0 && late > 0);
    // TLS notices damage before we do.
    assert!(scheme == "https" || corrupt > 0);
}

#[test]
fn whatever_happens_on_the_way_to_an_http_server_nothing_is_wrong_lost_or_stalled() {
    every_fault_in_every_phase(Nginx::Open, "http");
}

#[test]
fn whatever_happens_on_the_way_to_an_https_server_nothing_is_wrong_lost_or_stalled() {
    every_fault_in_every_phase(Nginx::Tls, "https");
}

/// A fetch that lookups did not wait for ends, and is there for the next who asks.
#[test]
fn what_comes_too_slowly_for_a_lookup_is_there_for_a_later_one() {
    let server = Server::nginx(Nginx::Open);
    let elsewhere = Mounted::new(&server.url());
    let large = Push(7);
    push(large, elsewhere.path(), "before");
    elsewhere.flush();
    let proxy = Proxy::to(server.port());
    let options = "lookup_timeout=400ms,min_speed=1K,negative_ttl=0";
    let mounted = Mounted::with_options(&proxy.url("http", "cache"), options);
    proxy.set(Fault::Delay {
        rtt: Duration::from_secs(1),
    });
    assert!(!read(large, mounted.path(), "slow"));
    assert_eq!(mounted.counter("late_fetches"), 1);
    wait_until("it arrives", HEALED, || {
        mounted.backing().join(large.entry()).exists()
    });
    assert!(read(large, mounted.path(), "later"));
    assert_eq!(mounted.counter("fetched"), 1);
}

#[test]
fn a_server_that_asks_to_be_left_alone_is_left_alone_and_says_so_in_the_status() {
    let busy = "HTTP/1.1 503 Service Unavailable\r\nDate: Wed, 21 Oct 2015 07:28:00 GMT\r\n\
                Retry-After: Wed, 21 Oct 2015 07:31:00 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let server = crate::support::canned::Canned::closing(busy);
    let mounted = Mounted::with_options(&server.url(), "drain_timeout=0");
    for n in 0..20 {
        assert!(!read(Push(n), mounted.path(), "busy"));
    }
    let status = mounted.status();
    assert_eq!(status["remote_state"], "failing", "{status:#}");
    let why = status["remote_trouble"].as_str().unwrap();
    assert!(why.contains("503") && why.contains("180 s"), "{why}");
    let asked = server.asked();
    assert!(asked <= 3, "{asked}");
    // Longer than the longest delay between probes that nobody asked for.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(server.asked(), asked);
}
