//! A real Redis, and what only it can do or suffer.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cachedirfs::remote::{
    Arrived, Content, Layout, Listed, Object, Put, Remote, RemoteError, RemoteOptions, open, redis,
};
use cachedirfs::signature::{Meta, Signature};
use tempfile::TempDir;
use url::Url;

use super::cases::{Case, Store, keyed, layout, plain, raw};
use super::{bytes, get, keeps_the_contract, noise, put, sig};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::redis::Redis;
use crate::support::servers::{PASSWORD, USER};
use crate::support::wait_until;

const SOON: Duration = Duration::from_secs(20);

fn case_at(url: &str, redis: Redis, options: RemoteOptions) -> Case {
    let second = redis::Redis::open(&Url::parse(url).unwrap(), &options).unwrap();
    Case {
        remote: open(url, &options).unwrap(),
        options,
        store: Store::Blobs(Box::new(second)),
        server: None,
        _held: Some(Box::new(redis)),
    }
}

fn case(options: RemoteOptions) -> Case {
    let redis = Redis::start(&[]);
    case_at(&redis.url(), redis, options)
}

/// Options with a file of credentials, and what holds it.
fn with_file(text: &str) -> (TempDir, RemoteOptions) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("credentials");
    fs::write(&file, text).unwrap();
    let options = RemoteOptions {
        basic_file: Some(file),
        ..plain()
    };
    (dir, options)
}

fn with_ttl(ttl: Duration) -> RemoteOptions {
    RemoteOptions {
        ttl: Some(ttl),
        ..plain()
    }
}

/// Short, so that tests of faults take no time.
fn hurried() -> RemoteOptions {
    RemoteOptions {
        connect_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_millis(300),
        ..plain()
    }
}

fn put_at(remote: &dyn Remote, sig: &Signature, content: &[u8]) -> Result<Put, RemoteError> {
    remote.put(sig, Meta::file(0o644), &bytes(content))
}

fn content_of(remote: &dyn Remote, sig: &Signature) -> Result<Option<Vec<u8>>, RemoteError> {
    let Some(mut object) = remote.get(sig)? else {
        return Ok(None);
    };
    let mut content = Vec::new();
    let read = object.content.read_to_end(&mut content);
    read.map_err(RemoteError::from_io)?;
    Ok(Some(content))
}

#[test]
fn redis_keeps_the_contract() {
    keeps_the_contract(&case(plain()));
}

#[test]
fn redis_with_a_key_keeps_the_contract() {
    keeps_the_contract(&case(keyed()));
}

#[test]
fn redis_in_flat_layout_keeps_the_contract() {
    keeps_the_contract(&case(layout(Layout::Flat)));
}

#[test]
fn redis_of_raw_objects_keeps_the_contract() {
    keeps_the_contract(&case(raw()));
}

#[test]
fn redis_whose_objects_expire_keeps_the_contract() {
    keeps_the_contract(&case(with_ttl(Duration::from_secs(3600))));
}

#[test]
fn redis_with_tls_keeps_the_contract() {
    let redis = Redis::tls();
    let options = RemoteOptions {
        ca_file: Some(redis.ca()),
        ..plain()
    };
    keeps_the_contract(&case_at(&redis.url(), redis, options));
}

/// The rights that cachedirfs(1) names are enough.
#[test]
fn redis_as_a_user_with_few_rights_keeps_the_contract() {
    let redis = Redis::with_password();
    let (_held, options) = with_file(PASSWORD);
    keeps_the_contract(&case_at(&redis.url_as(USER), redis, options));
}

#[test]
fn another_database_and_another_prefix_are_other_caches() {
    let redis = Redis::start(&[]);
    let other = RemoteOptions {
        redis_prefix: "*[team]?:".to_owned(),
        ..plain()
    };
    let caches = [
        open(&redis.url(), &plain()).unwrap(),
        open(&redis.url().replace("/0", "/7"), &plain()).unwrap(),
        open(&redis.url(), &other).unwrap(),
    ];
    for (n, cache) in caches.iter().enumerate() {
        let content = format!("content {n}");
        assert_eq!(
            put_at(&**cache, &sig("x"), content.as_bytes()).unwrap(),
            Put::Stored
        );
        put_at(&**cache, &sig(&content), b"own").unwrap();
    }
    for (n, cache) in caches.iter().enumerate() {
        let content = format!("content {n}");
        assert_eq!(
            content_of(&**cache, &sig("x")).unwrap().unwrap(),
            content.as_bytes()
        );
        let mut found = Vec::new();
        cache.list(&mut |listed| found.push(listed.sig)).unwrap();
        found.sort();
        let mut expected = [sig("x"), sig(&content)];
        expected.sort();
        assert_eq!(found, expected);
    }
    let error = open(&redis.url().replace("/0", "/99"), &plain())
        .unwrap()
        .exists(&sig("x"));
    assert!(
        matches!(error, Err(RemoteError::Misconfigured(_))),
        "{error:?}"
    );
}

#[test]
fn a_small_upload_is_one_command_and_so_is_a_miss() {
    let redis = Redis::start(&[]);
    let remote = open(&redis.url(), &plain()).unwrap();
    remote.exists(&sig("x")).unwrap();
    let commands = || {
        let info = redis.ask(&["INFO", "commandstats"]);
        let calls = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let calls = rest.split(',').next()?.parse::<u32>().ok()?;
            Some((name.to_owned(), calls)).filter(|(name, _)| name != "info")
        };
        info.lines().filter_map(calls).collect::<Vec<_>>()
    };
    redis.ask(&["CONFIG", "RESETSTAT"]);
    put_at(&*remote, &sig("x"), b"small").unwrap();
    assert!(content_of(&*remote, &sig("y")).unwrap().is_none());
    assert!(content_of(&*remote, &sig("x")).unwrap().is_some());
    let mut found = commands();
    found.retain(|(name, _)| name != "config|resetstat");
    found.sort();
    assert_eq!(found, [("get".to_owned(), 2), ("set".to_owned(), 1)]);
}

#[test]
fn without_the_password_or_a_right_it_is_refused_with_advice_and_nothing_secret() {
    let redis = Redis::with_password();
    let (_wrong, wrong) = with_file("wr0ng-secret");
    let (_right, right) = with_file(&format!("{USER}:{PASSWORD}\n"));
    let told = |url: &str, options: &RemoteOptions| {
        let remote = open(url, options).unwrap();
        let said = [
            remote.exists(&sig("x")).map(|_| ()),
            remote.get(&sig("x")).map(|_| ()),
            put_at(&*remote, &sig("x"), &noise(100_000)).map(|_| ()),
            remote.list(&mut |_| ()),
        ];
        said.map(|said| {
            let error = said.unwrap_err();
            assert!(matches!(error, RemoteError::Refused(_)), "{error:?}");
            let shown = format!("{error} {error:?} {}", remote.describe());
            assert!(
                !shown.contains("secret") && !shown.contains(PASSWORD),
                "{shown}"
            );
            shown
        })
    };
    for said in told(&redis.url(), &plain()) {
        assert!(
            said.contains("NOAUTH") && said.contains("basic_file"),
            "{said}"
        );
    }
    for said in told(&redis.url_as(USER), &wrong) {
        assert!(said.contains("WRONGPASS"), "{said}");
    }
    redis.ask(&["-a", PASSWORD, "ACL", "SETUSER", USER, "-@all"]);
    for said in told(&redis.url(), &right) {
        assert!(said.contains("NOPERM"), "{said}");
    }
    // A reader is no writer.
    redis.ask(&[
        "-a",
        PASSWORD,
        "ACL",
        "SETUSER",
        USER,
        "+get",
        "+exists",
        "+getrange",
    ]);
    let reader = open(&redis.url(), &right).unwrap();
    assert!(reader.get(&sig("x")).unwrap().is_none());
    let error = put_at(&*reader, &sig("x"), b"x").unwrap_err();
    assert!(matches!(error, RemoteError::Refused(_)), "{error:?}");
}

#[test]
fn a_password_that_was_changed_is_read_again() {
    let mut redis = Redis::start(&["--requirepass", PASSWORD]);
    let (dir, options) = with_file("old");
    let remote = open(&redis.url(), &options).unwrap();
    assert!(matches!(
        remote.exists(&sig("x")),
        Err(RemoteError::Refused(_))
    ));
    fs::write(dir.path().join("credentials"), PASSWORD).unwrap();
    assert!(!remote.exists(&sig("x")).unwrap());
    redis.restart();
    assert!(!remote.exists(&sig("x")).unwrap());
}

#[test]
fn a_certificate_that_is_not_trusted_says_what_to_do() {
    let redis = Redis::tls();
    let remote = open(&redis.url(), &plain()).unwrap();
    let error = remote.exists(&sig("x")).unwrap_err();
    assert!(matches!(error, RemoteError::Untrusted(_)), "{error:?}");
    assert!(error.to_string().contains("ca_file"), "{error}");
    let plainly = open(&redis.url().replace("rediss", "redis"), &hurried()).unwrap();
    assert!(plainly.exists(&sig("x")).unwrap_err().is_transient());
    let other = Redis::start(&[]);
    let options = RemoteOptions {
        ca_file: Some(redis.ca()),
        ..hurried()
    };
    let secretly = open(&other.url().replace("redis", "rediss"), &options).unwrap();
    assert!(secretly.exists(&sig("x")).unwrap_err().is_transient());
    assert!(
        open(
            &redis.url(),
            &RemoteOptions {
                ca_file: Some(PathBuf::from("/none")),
                ..plain()
            }
        )
        .is_err()
    );
}

#[test]
fn what_was_evicted_is_a_miss_and_what_is_there_is_right() {
    let redis = Redis::start(&["--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"]);
    let remote = open(&redis.url(), &plain()).unwrap();
    let content = |n: usize| noise(100_000 + n);
    for n in 0..200 {
        assert_eq!(
            put_at(&*remote, &sig(&n.to_string()), &content(n)).unwrap(),
            Put::Stored
        );
    }
    let mut evicted = Vec::new();
    for n in 0..200 {
        match content_of(&*remote, &sig(&n.to_string())).unwrap() {
            Some(found) => assert!(found == content(n), "{n}"),
            None => evicted.push(n),
        }
    }
    assert!(
        (110..190).contains(&evicted.len()),
        "{evicted:?} of 200 in 8 MB"
    );
    let again = evicted[0];
    let put = put_at(&*remote, &sig(&again.to_string()), &content(again));
    assert_eq!(put.unwrap(), Put::Stored);
}

#[test]
fn a_redis_without_eviction_gets_full_and_works_again_when_there_is_room() {
    let redis = Redis::start(&["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]);
    let remote = open(&redis.url(), &plain()).unwrap();
    let content = noise(500_000);
    let full = (0..100)
        .find_map(|n| put_at(&*remote, &sig(&n.to_string()), &content).err())
        .expect("100 objects in 4 MB");
    assert!(matches!(full, RemoteError::Full(_)), "{full:?}");
    assert!(full.to_string().contains("maxmemory"), "{full}");
    assert!(content_of(&*remote, &sig("0")).unwrap().unwrap() == content);
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(
        put_at(&*remote, &sig("more"), &content).unwrap(),
        Put::Stored
    );
}

#[test]
fn an_object_that_is_larger_than_it_takes_is_said_to_be() {
    let redis = Redis::start(&["--proto-max-bulk-len", "1mb"]);
    let remote = open(&redis.url(), &plain()).unwrap();
    let error = put_at(&*remote, &sig("x"), &noise(8 << 20)).unwrap_err();
    assert!(matches!(error, RemoteError::Full(_)), "{error:?}");
    assert!(error.to_string().contains("proto-max-bulk-len"), "{error}");
    assert_eq!(
        put_at(&*remote, &sig("y"), &noise(900_000)).unwrap(),
        Put::Stored
    );
}

#[test]
fn a_killed_server_is_transient_and_the_next_one_is_used_at_once() {
    let mut redis = Redis::start(&[]);
    let remote = open(&redis.url(), &plain()).unwrap();
    put_at(&*remote, &sig("x"), b"x").unwrap();
    redis.stop();
    let error = remote.exists(&sig("x")).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("refused"),
        "{error}"
    );
    redis.restart();
    // The connections of before are not tried.
    assert!(!remote.exists(&sig("x")).unwrap());
    put_at(&*remote, &sig("x"), b"x").unwrap();
    redis.restart();
    assert_eq!(put_at(&*remote, &sig("x"), b"x").unwrap(), Put::Stored);
}

#[test]
fn a_server_that_loads_or_is_busy_or_a_replica_says_so() {
    let redis = Redis::start(&[]);
    let remote = open(&redis.url(), &plain()).unwrap();
    redis.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = put_at(&*remote, &sig("x"), b"x").unwrap_err();
    assert!(matches!(error, RemoteError::Refused(_)), "{error:?}");
    assert!(error.to_string().contains("READONLY"), "{error}");
    redis.ask(&["CONFIG", "SET", "replica-serve-stale-data", "no"]);
    let error = remote.get(&sig("x")).map(|_| ()).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("MASTERDOWN"),
        "{error:?}"
    );
    redis.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(put_at(&*remote, &sig("x"), b"x").unwrap(), Put::Stored);
    let cluster = Redis::start(&["--cluster-enabled", "yes"]);
    let remote = open(&cluster.url(), &plain()).unwrap();
    let error = remote.exists(&sig("x")).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("CLUSTERDOWN"),
        "{error:?}"
    );
}

#[test]
fn an_object_expires_unless_it_is_touched() {
    let redis = Redis::start(&[]);
    let ttl = Duration::from_secs(1);
    let remote = open(&redis.url(), &with_ttl(ttl)).unwrap();
    let forever = open(&redis.url(), &plain()).unwrap();
    for name in ["forgotten", "touched"] {
        put_at(&*remote, &sig(name), b"x").unwrap();
    }
    put_at(&*forever, &sig("for ever"), b"x").unwrap();
    let began = Instant::now();
    wait_until("one has expired", SOON, || {
        assert!(remote.touch(&sig("touched")).unwrap());
        !remote.exists(&sig("forgotten")).unwrap()
    });
    assert!(began.elapsed() > ttl / 2);
    assert!(!remote.touch(&sig("forgotten")).unwrap());
    assert!(content_of(&*remote, &sig("touched")).unwrap().is_some());
    assert!(forever.exists(&sig("for ever")).unwrap());
    assert!(forever.touch(&sig("for ever")).unwrap());
    assert!(!forever.touch(&sig("forgotten")).unwrap());
    // What is written over lives anew.
    assert_eq!(
        put_at(&*remote, &sig("forgotten"), b"y").unwrap(),
        Put::Stored
    );
}

#[test]
fn what_was_touched_or_written_since_it_was_listed_is_not_deleted() {
    let redis = Redis::start(&[]);
    let remote = open(&redis.url(), &with_ttl(Duration::from_secs(3600))).unwrap();
    let names = ["same", "touched", "written", "gone"];
    for name in names {
        put_at(&*remote, &sig(name), b"x").unwrap();
    }
    let mut listed: Vec<Listed> = Vec::new();
    remote.list(&mut |found| listed.push(found)).unwrap();
    let of = |name: &str| listed.iter().find(|found| found.sig == sig(name)).unwrap();
    let age = std::time::SystemTime::now().duration_since(of("same").modified.unwrap());
    assert!(age.is_ok_and(|age| age < SOON), "{:?}", of("same"));
    // Time is told in milliseconds.
    wait_until("the clock went on", SOON, || {
        remote.touch(&sig("touched")).unwrap();
        remote.delete(&sig("written")).unwrap();
        put_at(&*remote, &sig("written"), b"x").unwrap();
        let mut later = 0;
        remote
            .list(&mut |found| {
                let old = listed.iter().find(|old| old.sig == found.sig);
                later += usize::from(old.unwrap().version != found.version);
            })
            .unwrap();
        later == 2
    });
    remote.delete(&sig("gone")).unwrap();
    let deleted = names.map(|name| remote.delete_listed(of(name)).unwrap());
    assert_eq!(deleted, [true, false, false, false]);
    assert_eq!(
        names.map(|name| remote.exists(&sig(name)).unwrap()),
        [false, true, true, false]
    );
    let forever = open(&redis.url(), &plain()).unwrap();
    put_at(&*forever, &sig("for ever"), b"x").unwrap();
    let mut found = Vec::new();
    forever
        .list(&mut |listed| found.extend((listed.sig == sig("for ever")).then_some(listed)))
        .unwrap();
    assert_eq!((found[0].modified, &found[0].version), (None, &None));
    assert!(matches!(
        forever.delete_listed(&found[0]),
        Err(RemoteError::Unsupported(_))
    ));
}

#[test]
fn what_is_wrong_is_set_aside_under_a_key_that_no_layout_has() {
    let case = case(plain());
    put(&case, &sig("x"), b"x");
    let to = case.remote.quarantine(&sig("x")).unwrap().unwrap();
    assert_eq!(to, format!("quarantine/{}", sig("x")));
    assert!(get(&case, &sig("x")).unwrap().is_none());
    assert!(case.remote.quarantine(&sig("x")).unwrap().is_none());
    case.remote
        .list(&mut |listed| panic!("{listed:?}"))
        .unwrap();
    assert!(!case.store.bytes(&to).is_empty());
}

#[test]
fn a_key_that_somebody_else_uses_is_corrupt_and_written_over() {
    let redis = Redis::start(&[]);
    let remote = open(&redis.url(), &plain()).unwrap();
    let key = format!("cachedirfs:{}", Layout::Upper.key(&sig("x")));
    redis.ask(&["RPUSH", &key, "a", "b"]);
    let got = remote.get(&sig("x")).map(|_| ()).unwrap_err();
    assert!(matches!(got, RemoteError::Corrupt(_)), "{got:?}");
    remote.list(&mut |listed| panic!("{listed:?}")).unwrap();
    assert_eq!(put_at(&*remote, &sig("x"), b"x").unwrap(), Put::Stored);
    assert_eq!(content_of(&*remote, &sig("x")).unwrap().unwrap(), b"x");
}

/// Whoever reads does not see two halves of different objects, as readers of ranges would.
#[test]
fn a_raw_object_that_is_replaced_while_it_is_read_is_one_of_both() {
    let case = case(raw());
    let contents = [noise(8 << 20), vec![7; 8 << 20]];
    put(&case, &sig("x"), &contents[0]);
    let key = case.options.layout.key(&sig("x"));
    for n in 0..4 {
        let mut object: Object = case.remote.get(&sig("x")).unwrap().unwrap();
        let mut start = vec![0; 1 << 20];
        object.content.read_exact(&mut start).unwrap();
        case.store.set(&key, &contents[(n + 1) % 2]);
        let mut rest = Vec::new();
        object.content.read_to_end(&mut rest).unwrap();
        let whole = [start, rest].concat();
        assert!(whole == contents[n % 2], "round {n}");
        assert!(object.arrived.bytes() >= Arrived::default().bytes() + (8 << 20));
    }
}

/// A value that is not read to its end leaves no bytes for the next one who uses the connection.
#[test]
fn what_was_not_read_to_its_end_disturbs_nobody() {
    let case = case(plain());
    put(&case, &sig("large"), &noise(1 << 20));
    put(&case, &sig("small"), b"small");
    for _ in 0..50 {
        let mut object = case.remote.get(&sig("large")).unwrap().unwrap();
        object.content.read_exact(&mut [0; 10]).unwrap();
        drop(object);
        assert_eq!(get(&case, &sig("small")).unwrap().unwrap().1, b"small");
    }
}

/// A command that does not come whole is none: no half object, no temporary key.
#[test]
fn a_writer_that_dies_leaves_nothing() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::to(redis.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let remote = open(&url, &hurried()).unwrap();
    let way = Way::Request;
    for fault in [
        Fault::Cut {
            way,
            after: 300_000,
        },
        Fault::Reset {
            way,
            after: 300_000,
        },
        Fault::Stall {
            way,
            after: 300_000,
        },
    ] {
        proxy.set(fault);
        let error = put_at(&*remote, &sig("x"), &noise(20 << 20)).unwrap_err();
        assert!(error.is_transient(), "{fault:?}: {error:?}");
        assert_eq!(redis.ask(&["DBSIZE"]), "0", "{fault:?}");
    }
    proxy.set(Fault::Pass);
    assert_eq!(put_at(&*remote, &sig("x"), b"x").unwrap(), Put::Stored);
}

#[test]
fn whatever_the_network_does_is_an_error_and_never_other_bytes() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::to(redis.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let direct = open(&redis.url(), &plain()).unwrap();
    let large = noise(300_000);
    put_at(&*direct, &sig("large"), &large).unwrap();
    put_at(&*direct, &sig("small"), b"small").unwrap();
    let mut faults = vec![Fault::Refuse, Fault::Blackhole, Fault::Silent];
    for after in [0, 1, 3, 60, 200_000] {
        faults.extend([Fault::cut_after(after), Fault::reset_after(after)]);
        faults.extend([Fault::stall_after(after), Fault::flip_bit(after)]);
    }
    for fault in faults {
        proxy.set(fault);
        let remote = open(&url, &hurried()).unwrap();
        for (name, content) in [("large", &large[..]), ("small", b"small")] {
            let began = Instant::now();
            match content_of(&*remote, &sig(name)) {
                Ok(Some(found)) => assert!(found == content, "{fault:?} {name}"),
                // One bit makes `$5` into `$-`, which is no reply, or into another number.
                Ok(None) => panic!("{fault:?} {name}: a miss"),
                Err(error) => {
                    let known = matches!(error, RemoteError::Corrupt(_)) || error.is_transient();
                    assert!(known, "{fault:?} {name}: {error:?}");
                }
            }
            assert!(began.elapsed() < Duration::from_secs(3), "{fault:?} {name}");
        }
    }
    proxy.set(Fault::Pass);
    let remote = open(&url, &hurried()).unwrap();
    assert!(content_of(&*remote, &sig("large")).unwrap().unwrap() == large);
}

#[test]
fn a_transfer_that_is_too_slow_is_given_up() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::to(redis.port());
    let options = RemoteOptions {
        min_speed: 4 << 20,
        stall_timeout: Duration::from_secs(1),
        ..hurried()
    };
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let remote = open(&url, &options).unwrap();
    put_at(
        &*open(&redis.url(), &plain()).unwrap(),
        &sig("x"),
        &noise(4 << 20),
    )
    .unwrap();
    proxy.set(Fault::Bandwidth {
        bytes_per_second: 200_000,
    });
    let error = content_of(&*remote, &sig("x")).unwrap_err();
    assert!(matches!(error, RemoteError::Slow(_)), "{error:?}");
    let error = put_at(&*remote, &sig("y"), &noise(20 << 20)).unwrap_err();
    assert!(matches!(error, RemoteError::Slow(_)), "{error:?}");
    assert_eq!(redis.ask(&["DBSIZE"]), "1");
}

#[test]
fn what_is_no_redis_is_an_error_that_says_so() {
    let server = crate::support::servers::Server::nginx(crate::support::servers::Nginx::Open);
    let remote = open(&format!("redis://localhost:{}", server.port()), &hurried()).unwrap();
    let error = remote.exists(&sig("x")).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("protocol of Redis"),
        "{error}"
    );
}

#[test]
fn a_file_of_64_mib_comes_back_whole() {
    let case = case(plain());
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("large");
    fs::write(&path, noise(64 << 20)).unwrap();
    let file = Content::File(fs::File::open(&path).unwrap(), 64 << 20);
    let hash = file.hash().unwrap();
    case.remote
        .put(&sig("large"), Meta::file(0o644), &file)
        .unwrap();
    let mut object = case.remote.get(&sig("large")).unwrap().unwrap();
    let mut hasher = blake3::Hasher::new();
    assert_eq!(
        io::copy(&mut object.content, &mut hasher).unwrap(),
        64 << 20
    );
    assert_eq!(*hasher.finalize().as_bytes(), hash);
}
