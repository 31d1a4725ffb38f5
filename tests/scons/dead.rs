//! Builds against a remote that is dead, in every way that we know: as good as with no cache at all, and the remote is
//! used again when it is back. All with the default timeouts.

mod names;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::scons::machines::writable;
use crate::support::mounted::Mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::proxy::{Fault, Proxy};
use crate::support::scons::Project;
use crate::support::servers::{Nginx, Server};
use crate::support::tree;
use crate::support::venv::LATEST;
use crate::support::{wait_until, workspace};

use names::{Named, Says};

/// Some forty targets in all.
const TARGETS: &str = "more=20";

/// The promise is three seconds. One wait a lookup would be forty times as much.
const GUARD: Duration = Duration::from_secs(15);

/// The promise is ten seconds.
const BACK: Duration = Duration::from_secs(60);

/// A remote that can be made dead and alive again.
trait Mortal {
    fn url(&self) -> String;
    fn options(&self) -> String {
        String::new()
    }
    fn mount(&self) -> Mounted {
        Mounted::with_options(&self.url(), &ends_soon(&self.options()))
    }
    /// Where it can be reached all the time.
    fn direct(&self) -> (String, String);
    fn die(&self);
    fn come_back(&self);
}

/// A real server behind a proxy.
struct Behind {
    server: Server,
    proxy: Proxy,
    scheme: &'static str,
    fault: Fault,
}

impl Behind {
    fn http(fault: Fault) -> Self {
        Self::new(Nginx::Open, "http", fault)
    }

    fn https(fault: Fault) -> Self {
        Self::new(Nginx::Tls, "https", fault)
    }

    fn new(kind: Nginx, scheme: &'static str, fault: Fault) -> Self {
        let server = Server::nginx(kind);
        let proxy = Proxy::to(server.port());
        Self {
            server,
            proxy,
            scheme,
            fault,
        }
    }

    fn certificates(&self) -> String {
        match self.scheme {
            "https" => format!("ca_file={}", self.server.ca().display()),
            _ => String::new(),
        }
    }
}

impl Mortal for Behind {
    fn url(&self) -> String {
        self.proxy.url(self.scheme, "cache")
    }

    fn options(&self) -> String {
        self.certificates()
    }

    fn direct(&self) -> (String, String) {
        (self.server.url(), self.certificates())
    }

    fn die(&self) {
        self.proxy.set(self.fault);
    }

    fn come_back(&self) {
        self.proxy.set(Fault::Pass);
    }
}

/// A directory on a file system whose daemon is stopped: as an NFS mount whose server is gone, every system call
/// on it hangs.
struct Nfs {
    mount: Mounted,
    remote: tempfile::TempDir,
}

impl Nfs {
    fn new() -> Self {
        let remote = workspace();
        let mount = Mounted::with_options(
            &format!("file://{}/unused", remote.path().display()),
            "push=off,nopassthrough",
        );
        std::fs::create_dir(mount.path().join("export")).unwrap();
        Self { mount, remote }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.mount.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn export(&self, dir: &Path) -> String {
        assert!(self.remote.path().exists());
        format!("file://{}", dir.join("export").display())
    }
}

impl Drop for Nfs {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

impl Mortal for Nfs {
    fn url(&self) -> String {
        self.export(self.mount.path())
    }

    fn direct(&self) -> (String, String) {
        (self.url(), String::new())
    }

    fn die(&self) {
        self.signal(Signal::STOP);
    }

    fn come_back(&self) {
        self.signal(Signal::CONT);
    }
}

/// What hangs at the end of a failed test is not to be waited for.
fn ends_soon(options: &str) -> String {
    format!("drain_timeout=1s,{options}")
}

/// What everything here is about.
fn a_build_is_as_good_as_with_no_cache(remote: &dyn Mortal) {
    let workspace = workspace();
    let (direct, options) = remote.direct();
    let checkout = |name: &str| Project::checkout(workspace.path().join(name));
    // What there would be to be had.
    let elsewhere = Mounted::with_options(&direct, &options);
    let filled = checkout("filled");
    filled
        .build(LATEST, elsewhere.path(), &["-j8", TARGETS])
        .succeeded();
    elsewhere.flush();

    for jobs in ["-j1", "-j8"] {
        let plain = checkout(&format!("without{jobs}"));
        let began = Instant::now();
        plain
            .build(
                LATEST,
                elsewhere.path(),
                &[jobs, TARGETS, "--cache-disable"],
            )
            .succeeded();
        let without = began.elapsed();

        let mounted = remote.mount();
        remote.die();
        let project = checkout(&format!("dead{jobs}"));
        let began = Instant::now();
        project
            .build(LATEST, mounted.path(), &[jobs, TARGETS])
            .succeeded();
        let took = began.elapsed();
        eprintln!("{jobs}: {took:.2?} instead of {without:.2?}");
        assert!(
            took < without + GUARD,
            "{jobs}: {took:?} instead of {without:?}\n{:#}\n{}",
            mounted.status(),
            mounted.log()
        );
        tree::assert_same(
            &writable(plain.products()),
            &writable(project.products()),
            "built against a dead remote",
        );
        comes_back(remote, &mounted, &elsewhere);
    }
}

/// Without a remount, what others push is found and what was pushed meanwhile arrives.
fn comes_back(remote: &dyn Mortal, mounted: &Mounted, elsewhere: &Mounted) {
    let number = u64::from(mounted.pid());
    let (ours, theirs) = (Push(number * 2), Push(number * 2 + 1));
    ours.perform(mounted.path(), Shape::Directory).unwrap();
    remote.come_back();
    let began = Instant::now();
    theirs.perform(elsewhere.path(), Shape::Directory).unwrap();
    elsewhere.flush();
    wait_until("what others pushed is found", BACK, || {
        mounted.path().join(theirs.entry()).exists()
    });
    eprintln!("used again after {:.2?}", began.elapsed());
    assert_eq!(None, theirs.fault(mounted.path()));
    mounted.flush();
    assert_eq!(None, ours.fault(elsewhere.path()), "pushed meanwhile");
    assert_eq!(mounted.status()["remote_state"], "ok");
    told_once(mounted);
}

/// However many lookups fail, a change is one line.
fn told_once(mounted: &Mounted) {
    let log = mounted.log();
    let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    let (gone, back) = (count("doing without it"), count("answers again"));
    // A relapse is a change too: a fault that lets something through is found out more than once.
    assert!(gone == back && gone <= 5, "{log}");
}

macro_rules! dead {
    ($($name:ident: $remote:expr;)*) => {
        $(#[test] fn $name() { a_build_is_as_good_as_with_no_cache(&$remote); })*
    };
}

dead! {
    a_remote_that_refuses_costs_a_build_nothing: Behind::http(Fault::Refuse);
    a_blackholed_remote_costs_a_build_three_seconds: Behind::http(Fault::Blackhole);
    a_remote_that_accepts_and_never_answers_costs_a_build_three_seconds: Behind::http(Fault::Silent);
    a_remote_that_answers_at_a_byte_a_second_costs_a_build_three_seconds: Behind::http(Fault::trickle(0, 1));
    a_remote_that_sends_objects_at_a_byte_a_second_costs_a_build_three_seconds: Behind::http(Fault::trickle(350, 1));
    a_remote_that_breaks_off_in_large_objects_costs_a_build_three_seconds: Behind::http(Fault::stall_after(1500));
    a_tls_handshake_that_never_ends_costs_a_build_three_seconds: Behind::https(Fault::Silent);
    a_tls_server_at_a_byte_a_second_costs_a_build_three_seconds: Behind::https(Fault::trickle(0, 1));
    a_dead_file_server_costs_a_build_three_seconds: Nfs::new();
    a_remote_whose_name_is_not_known_costs_a_build_nothing: Named::new(Says::NoSuchName);
    a_name_server_that_does_not_answer_costs_a_build_three_seconds: Named::new(Says::Nothing);
}

/// Opening the remote touched it, and the command waited as long as the server was away.
#[test]
fn a_dead_file_server_keeps_nobody_from_mounting_and_is_used_once_it_is_back() {
    let server = Nfs::new();
    server.die();
    let mounted = Mounted::with_options(&server.url(), "drain_timeout=1s");
    let push = Push(7);
    push.perform(mounted.path(), Shape::Directory).unwrap();
    assert_eq!(None, push.fault(mounted.path()), "it works without");
    server.come_back();
    mounted.flush();
    let elsewhere = Mounted::new(&server.url());
    assert_eq!(None, push.fault(elsewhere.path()));
}
