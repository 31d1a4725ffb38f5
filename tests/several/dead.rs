//! One of several remotes is dead: it costs nothing, and gets in the end what it is to get.

use std::time::{Duration, Instant};

use super::{Oracle, PATIENCE, Push, Shape, held, pending, push};
use crate::scons::machines::writable;
use crate::support::mounted::Mounted;
use crate::support::proxy::{Fault, Proxy};
use crate::support::scons::Project;
use crate::support::servers::{Nginx, Server};
use crate::support::tree;
use crate::support::venv::LATEST;
use crate::support::{wait_until, workspace};

/// Once a quarter of the lookup timeout, and what a busy machine adds.
const COSTS: Duration = Duration::from_secs(4);

/// Two servers, the first of which can be made dead.
struct Pair {
    mortal: Server,
    proxy: Proxy,
    live: Server,
}

impl Pair {
    fn new() -> Self {
        let (mortal, live) = (Server::nginx(Nginx::Open), Server::nginx(Nginx::Open));
        let proxy = Proxy::to(mortal.port());
        Self {
            mortal,
            proxy,
            live,
        }
    }

    fn url(&self) -> String {
        format!("{} {}", self.proxy.url("http", "cache"), self.live.url())
    }
}

fn a_dead_tier_costs_nothing_and_loses_nothing(fault: Fault) {
    let pair = Pair::new();
    let workspace = workspace();
    let build = |machine: &Mounted, name: &str| {
        let project = Project::checkout(workspace.path().join(name));
        let began = Instant::now();
        let build = project.build(LATEST, machine.path(), &["-j4", "more=20"]);
        (began.elapsed(), build.succeeded(), project)
    };
    let alone = Mounted::with_options(&pair.live.url(), "drain_timeout=1s");
    // Misses first, then hits.
    let (misses_alone, ..) = build(&alone, "a");
    alone.flush();
    let second = Mounted::with_options(&pair.live.url(), "drain_timeout=1s");
    let (hits_alone, _, plain) = build(&second, "b");
    for sig in held(&pair.live.root()) {
        std::fs::remove_file(pair.live.root().join(sig[..2].to_uppercase()).join(&sig)).unwrap();
    }

    let mut both = Mounted::with_options(&pair.url(), "drain_timeout=20s");
    pair.proxy.set(fault);
    let (misses, ..) = build(&both, "c");
    wait_until("the live tier has all", PATIENCE, || {
        both.counter("pushed") == held(&pair.live.root()).len() as u64
    });
    let pushed = both.counter("pushed");
    wait_until("it is known which are owed to the other", PATIENCE, || {
        pending(&both) == pushed
    });
    let third = Mounted::with_options(&pair.url(), "drain_timeout=1s");
    let (hits, _, project) = build(&third, "d");
    tree::assert_same(
        &writable(plain.products()),
        &writable(project.products()),
        "with a dead tier",
    );
    eprintln!(
        "{fault:?}: misses {misses:.2?} instead of {misses_alone:.2?}, hits {hits:.2?} instead of {hits_alone:.2?}"
    );
    assert!(misses < misses_alone + COSTS, "{}", both.log());
    assert!(hits < hits_alone + COSTS, "{}", third.log());
    assert!(
        third.counter("fetched") + 1 >= pushed,
        "{:#}",
        third.status()
    );

    both.kill9();
    let began = Instant::now();
    both.remount();
    assert_eq!(pending(&both), pushed, "nothing is lost");
    wait_until("they are tried", PATIENCE, || {
        both.counter("upload_errors") >= pushed
    });
    let states = both.status()["remotes"].clone();
    assert_eq!(states[1]["state"], "ok", "{states:#}");
    assert_ne!(states[0]["state"], "ok", "{states:#}");
    eprintln!("remounted and tried after {:.2?}", began.elapsed());
    let began = Instant::now();
    both.remount();
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(15),
        "an unmount does not wait for a dead tier: {took:?}"
    );

    pair.proxy.set(Fault::Pass);
    both.flush();
    assert_eq!(pending(&both), 0);
    assert_eq!(held(&pair.mortal.root()), held(&pair.live.root()));
    assert_eq!(both.counter("given_up"), 0);
}

macro_rules! dead {
    ($($name:ident: $fault:expr;)*) => {
        $(#[test] fn $name() { a_dead_tier_costs_nothing_and_loses_nothing($fault); })*
    };
}

dead! {
    a_tier_that_refuses_costs_nothing_and_gets_everything_when_it_is_back: Fault::Refuse;
    a_blackholed_tier_costs_nothing_and_gets_everything_when_it_is_back: Fault::Blackhole;
    a_silent_tier_costs_nothing_and_gets_everything_when_it_is_back: Fault::Silent;
}

#[test]
fn a_dead_shard_is_its_share_of_misses_and_of_uploads_that_wait() {
    let servers: Vec<_> = (0..3).map(|_| Server::nginx(Nginx::Open)).collect();
    let proxy = Proxy::to(servers[2].port());
    let ports = [servers[0].port(), servers[1].port(), proxy.port()].map(|port| port.to_string());
    let remote = format!("http://localhost:{{{}}}/cache", ports.join(","));
    let oracle = Oracle::default();
    let machine = Mounted::with_options(&remote, "drain_timeout=20s");
    push(&machine, &oracle, 1..61);
    machine.flush();
    let shares: Vec<_> = servers
        .iter()
        .map(|server| held(&server.root()).len())
        .collect();
    assert_eq!(shares.iter().sum::<usize>(), 60);
    assert!(
        shares.iter().all(|share| (5..40).contains(share)),
        "{shares:?}"
    );

    proxy.set(Fault::Silent);
    push(&machine, &oracle, 61..121);
    let live = || {
        servers[..2]
            .iter()
            .map(|server| held(&server.root()).len())
            .sum::<usize>()
    };
    wait_until("all but its share is uploaded", PATIENCE, || {
        live() as u64 + pending(&machine) == 120 - shares[2] as u64
            && pending(&machine) > 0
            && machine.status()["remotes"][2]["state"] != "ok"
    });
    let waits = pending(&machine);
    assert!((5..40).contains(&waits), "{waits}");
    let second = Mounted::with_options(&remote, "drain_timeout=1s");
    let found = oracle
        .acknowledged()
        .iter()
        .filter(|push| push.fault(second.path()).is_none())
        .count();
    assert_eq!(found, live(), "{}", second.log());

    proxy.set(Fault::Pass);
    machine.flush();
    assert_eq!(live() + held(&servers[2].root()).len(), 120);
    let third = Mounted::new(&remote);
    oracle.check(third.path(), "when the shard is back");
}

/// The live tier is asked once, and an absence that the dead one may contradict does not outlast its outage.
#[test]
fn what_the_live_tier_lacks_is_asked_for_once_and_again_when_the_dead_one_is_back() {
    let pair = Pair::new();
    let absent = Push(1);
    let elsewhere = Mounted::new(&pair.mortal.url());
    absent.perform(elsewhere.path(), Shape::Uuid).unwrap();
    elsewhere.flush();
    pair.proxy.set(Fault::Refuse);
    let machine = Mounted::with_options(&pair.url(), "negative_ttl=1h,drain_timeout=1s");
    for _ in 0..10 {
        assert!(!machine.path().join(absent.entry()).exists());
    }
    let log = pair.live.log();
    let asked = log
        .lines()
        .filter(|line| line.contains(&absent.signature()));
    assert_eq!(asked.count(), 1, "{log}");
    assert_eq!(
        (machine.counter("misses"), machine.counter("failed_fetches")),
        (0, 1)
    );
    // It takes three failures until the tier counts as one that is down, and only then does it come back.
    for n in 2..6 {
        assert!(!machine.path().join(Push(n).entry()).exists());
    }
    assert_ne!(machine.status()["remotes"][0]["state"], "ok");
    pair.proxy.set(Fault::Pass);
    wait_until("what it has is found", PATIENCE, || {
        machine.path().join(absent.entry()).exists()
    });
    assert_eq!(absent.fault(machine.path()), None);
}
