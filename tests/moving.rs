//! `push`, `copy`, `ls` and `prune`: what is on one side gets to the other as it is, and only what may go goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use cachedirfs::remote::{Content, Put, Remote, RemoteError, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use tempfile::TempDir;

use crate::support::mounted::{CACHEDIRFS, Mounted};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis;
use crate::support::servers::{Nginx, Server};
use crate::support::{wait_until, workspace};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn run(args: &[&str]) -> Output {
    Command::new(CACHEDIRFS).args(args).output().unwrap()
}

/// Runs it; its exit status and both outputs.
fn ends(args: &[&str]) -> (i32, String) {
    let output = run(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code().unwrap(), said)
}

#[track_caller]
fn says(args: &[&str], status: i32, words: &str) -> String {
    let (code, said) = ends(args);
    assert!(
        code == status && said.contains(words),
        "{args:?}: {code}: {said}"
    );
    said
}

fn sig(n: usize) -> Signature {
    let hash = blake3::hash(&n.to_le_bytes()).to_hex();
    Signature::parse(&hash.as_bytes()[..32]).unwrap()
}

fn content(n: usize) -> Vec<u8> {
    format!("content {n} ").repeat(1 + n % 500).into_bytes()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A CacheDir with so many entries, every third executable, and a symlink; and what SCons and we leave beside.
fn cache_dir(entries: usize, digits: usize) -> TempDir {
    let dir = workspace();
    let config = format!("{{\"prefix_len\": {digits}}}");
    fs::write(dir.path().join("config"), config).unwrap();
    for n in 0..entries {
        let path = entry(dir.path(), n, digits);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content(n)).unwrap();
        let mode = if n % 3 == 0 { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let link = entry(dir.path(), entries, digits);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink("../lib.so.1", &link).unwrap();
    fs::write(link.with_extension("tmp1234"), "half").unwrap();
    fs::create_dir(dir.path().join(".cachedirfs")).unwrap();
    dir
}

fn entry(dir: &Path, n: usize, digits: usize) -> PathBuf {
    dir.join(sig(n).prefix(digits)).join(sig(n).as_str())
}

fn get(remote: &dyn Remote, n: usize) -> Option<(Meta, Vec<u8>)> {
    let mut object = remote.get(&sig(n)).unwrap()?;
    let mut bytes = Vec::new();
    object.content.read_to_end(&mut bytes).unwrap();
    Some((object.meta, bytes))
}

/// All of [`cache_dir`] is there, and nothing else.
#[track_caller]
fn has_all(url: &str, options: &RemoteOptions, entries: usize) {
    let remote = open(url, options).unwrap();
    for n in 0..entries {
        let mode = if n % 3 == 0 { 0o755 } else { 0o644 };
        let found = get(&*remote, n).unwrap_or_else(|| panic!("{n} is missing"));
        assert_eq!(found, (Meta::file(mode), content(n)), "{n}");
    }
    assert_eq!(
        get(&*remote, entries),
        Some((Meta::Symlink, b"../lib.so.1".to_vec()))
    );
    let mut listed = 0;
    remote.list(&mut |_| listed += 1).unwrap();
    assert_eq!(listed, entries + 1);
}

fn put(remote: &dyn Remote, n: usize, bytes: &[u8]) -> Result<Put, RemoteError> {
    remote.put(&sig(n), Meta::file(0o644), &Content::Bytes(bytes.to_vec()))
}

#[test]
fn a_cachedir_of_any_prefix_length_is_pushed_as_it_is_and_a_second_time_not_again() {
    let redis = Redis::start(&[]);
    for digits in [1, 2, 3] {
        redis.ask(&["FLUSHALL"]);
        let dir = cache_dir(60, digits);
        // A directory of another length is not SCons' any more.
        let old = dir.path().join(sig(900).prefix(4));
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join(sig(900).as_str()), "old").unwrap();
        let push = ["push", text(dir.path()), &redis.url()];
        says(&push, 0, "61 objects pushed");
        has_all(&redis.url(), &RemoteOptions::default(), 60);
        says(
            &push,
            0,
            "0 objects pushed, 0 bytes; 61 already there, 0 diverged, 0 failed",
        );
    }
}

#[test]
fn what_a_listing_names_is_not_read_again_unless_it_is_to_be_compared() {
    let (dir, to) = (cache_dir(1100, 2), workspace());
    let url = format!("file://{}", to.path().display());
    let remote = open(&url, &RemoteOptions::default()).unwrap();
    put(&*remote, 7, b"other").unwrap();
    let push = ["push", text(dir.path()), &url];
    says(
        &[&push[..], &["--dry-run"]].concat(),
        0,
        "1100 objects would be pushed",
    );
    says(&push, 0, "1100 objects pushed");
    says(&push, 0, "1101 already there, 0 diverged");
    let said = says(
        &[&push[..], &["--compare"]].concat(),
        0,
        "1100 already there, 1 diverged",
    );
    assert!(
        said.contains(&format!("{}: there with other content", sig(7))),
        "{said}"
    );
    assert_eq!(get(&*remote, 7).unwrap().1, b"other");
    let (code, said) = ends(&[&push[..], &["--quiet"]].concat());
    assert_eq!((code, said.as_str()), (0, ""));
}

#[test]
fn a_mount_is_not_pushed_and_its_backing_directory_is() {
    let to = workspace();
    let url = format!("file://{}", to.path().display());
    let mut mounted = Mounted::new("file:///nonexistent/remote");
    let push = |dir: &Path| ends(&["push", text(dir), &url]);
    let (code, said) = push(mounted.path());
    assert!(
        code == 2 && said.contains("name the backing directory"),
        "{said}"
    );
    let (code, said) = push(&mounted.backing());
    assert!(code == 0, "under a live mount: {said}");
    mounted.unmount();
    let (code, said) = push(&to.path().join("nothing"));
    assert!(
        code == 2 && said.contains("want a backing directory or a CacheDir"),
        "{said}"
    );
    says(&["push", text(to.path()), &url, "-o", "ro"], 2, "");
}

#[test]
fn what_cannot_be_moved_is_named_and_makes_the_command_fail() {
    let dir = cache_dir(30, 2);
    let to = workspace();
    let url = format!("file://{}", to.path().display());
    let said = says(
        &["push", text(dir.path()), &url, "-o", "format=raw"],
        1,
        "30 objects pushed",
    );
    assert!(
        said.contains("1 failed") && said.contains("cannot be a symbolic link"),
        "{said}"
    );
    // Nobody listens: it gives up rather than failing for each.
    let said = says(
        &[
            "push",
            text(dir.path()),
            "redis://127.0.0.1:1",
            "--jobs",
            "64",
        ],
        1,
        "given up",
    );
    assert!(said.contains("more of that is only counted"), "{said}");
}

#[test]
fn a_push_outlasts_a_restart_of_the_server_and_goes_on_after_an_interruption() {
    let redis = Redis::start(&[]);
    let proxy = Proxy::to(redis.port());
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let dir = cache_dir(1500, 2);
    proxy.set(Fault::Delay {
        rtt: Duration::from_millis(5),
    });
    let start = || {
        let mut push = Command::new(CACHEDIRFS);
        push.args(["push", text(dir.path()), &url, "--jobs", "4"]);
        push.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let keys = || redis.ask(&["DBSIZE"]).parse::<u64>().unwrap();
    let child = start();
    wait_until("some are there", Duration::from_secs(20), || keys() > 50);
    proxy.set(Fault::Refuse);
    thread::sleep(Duration::from_millis(300));
    proxy.set(Fault::Delay {
        rtt: Duration::from_millis(5),
    });
    let before = keys();
    wait_until("more are there", Duration::from_secs(20), || {
        keys() > before + 50
    });
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted; the same command goes on from here"),
        "{said}"
    );
    let half = keys();
    assert!(half < 1501, "interrupted too late");
    let output = start().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains(&format!("{half} already there")),
        "{said}"
    );
    has_all(&redis.url(), &RemoteOptions::default(), 1500);
}

#[test]
fn a_remote_is_copied_to_another_layout_and_format_and_what_is_corrupt_is_not() {
    let (dir, from) = (cache_dir(40, 2), workspace());
    let from_url = format!("file://{}", from.path().display());
    says(
        &["push", text(dir.path()), &from_url, "-o", "layout=flat"],
        0,
        "41 objects pushed",
    );
    let redis = Redis::start(&[]);
    let copy = [
        "copy",
        &from_url,
        &redis.url(),
        "--from-o",
        "layout=flat",
        "--to-o",
        "layout=lower,level=9",
    ];
    says(&copy, 0, "41 objects copied");
    let lower = RemoteOptions {
        layout: cachedirfs::remote::Layout::Lower,
        ..RemoteOptions::default()
    };
    has_all(&redis.url(), &lower, 40);
    says(&copy, 0, "0 objects copied, 0 bytes; 41 already there");
    redis.ask(&["FLUSHALL"]);
    let rotten = from.path().join(sig(3).as_str());
    let mut bytes = fs::read(&rotten).unwrap();
    let middle = bytes.len() - 3;
    bytes[middle] ^= 1;
    fs::write(&rotten, bytes).unwrap();
    let said = says(&copy, 1, "40 objects copied");
    assert!(
        said.contains(sig(3).as_str()) && said.contains("1 failed"),
        "{said}"
    );
    // A large one goes through a file.
    let (from, to) = (
        open(&from_url, &RemoteOptions::default()).unwrap(),
        workspace(),
    );
    let large: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    put(&*from, 5000, &large).unwrap();
    let to_url = format!("file://{}", to.path().display());
    says(
        &["copy", &from_url, &to_url],
        0,
        "1 object copied, 16000000 bytes",
    );
    assert!(
        get(&*open(&to_url, &RemoteOptions::default()).unwrap(), 5000)
            .unwrap()
            .1
            == large
    );
}

#[test]
fn a_remote_that_cannot_list_is_not_copied_listed_or_pruned() {
    let server = Server::nginx(Nginx::Html);
    let to = workspace();
    let to_url = format!("file://{}", to.path().display());
    for args in [
        &["copy", &server.url(), &to_url][..],
        &["ls", &server.url()],
        &["prune", &server.url(), "--max-size", "1G"],
    ] {
        says(args, 2, "answers neither PROPFIND nor");
    }
}

#[test]
fn a_listing_has_signatures_sizes_and_times_and_ends_quietly_when_nobody_reads() {
    let to = workspace();
    let url = format!("file://{}", to.path().display());
    let remote = open(&url, &RemoteOptions::default()).unwrap();
    for n in 0..5 {
        put(&*remote, n, &content(n)).unwrap();
    }
    let said = says(&["ls", &url], 0, "");
    let mut found: Vec<_> = said.lines().collect();
    found.sort_unstable();
    let mut expected: Vec<_> = (0..5).map(|n| sig(n).to_string()).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let path = entry(to.path(), 3, 2);
    let file = File::options().append(true).open(&path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + 2 * DAY).unwrap();
    let size = path.metadata().unwrap().len();
    let line = format!("{size:>12} 1970-01-03T00:00:00Z {}", sig(3));
    says(&["ls", "-l", &url], 0, &line);
    let said = says(&["ls", "--json", &url], 0, "");
    let lines: BTreeMap<String, serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| (line["signature"].as_str().unwrap().to_owned(), line))
        .collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[sig(3).as_str()]["size"], size);
    assert_eq!(lines[sig(3).as_str()]["modified"], 172_800.0);

    // More than a pipe holds.
    for n in 0..3000 {
        let path = entry(to.path(), 10_000 + n, 2);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap();
    }
    let mut ls = Command::new(CACHEDIRFS);
    let mut ls = ls
        .args(["ls", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(ls.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    drop(out);
    let ended = ls.wait_with_output().unwrap();
    assert!(
        ended.status.success() && ended.stderr.is_empty(),
        "{ended:?}"
    );
}

/// `objects` objects, the first the oldest, each a day younger than the one before.
fn aged(root: &Path, url: &str, objects: usize) -> u64 {
    let remote = open(url, &RemoteOptions::default()).unwrap();
    let mut size = 0;
    for n in 0..objects {
        put(&*remote, n, &[b'x'; 100]).unwrap();
        let path = entry(root, n, 2);
        let file = File::options().append(true).open(&path).unwrap();
        let age = DAY * u32::try_from(objects - n).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        size = path.metadata().unwrap().len();
    }
    size
}

fn left(url: &str) -> Vec<usize> {
    let remote = open(url, &RemoteOptions::default()).unwrap();
    let mut found = Vec::new();
    remote.list(&mut |listed| found.push(listed.sig)).unwrap();
    (0..100).filter(|n| found.contains(&sig(*n))).collect()
}

#[test]
fn the_oldest_objects_go_until_the_rest_is_small_and_young_enough() {
    let server = Server::nginx(Nginx::Open);
    let dir = workspace();
    let file_url = format!("file://{}", dir.path().display());
    for (url, root) in [
        (file_url, dir.path().to_owned()),
        (server.url(), server.root()),
    ] {
        let size = aged(&root, &url, 10);
        let limit = (size * 7).to_string();
        let prune = |args: &[&str]| ends(&[&["prune", &url], args].concat());
        let (code, said) = prune(&["--max-size", &limit, "--dry-run"]);
        assert!(
            code == 0 && said.contains("3 objects would be removed"),
            "{said}"
        );
        assert_eq!(left(&url).len(), 10);
        let (code, said) = prune(&["--max-size", &limit]);
        assert!(code == 0 && said.contains("3 objects removed"), "{said}");
        assert_eq!(left(&url), [3, 4, 5, 6, 7, 8, 9]);
        let (code, said) = prune(&["--max-age", "132h"]);
        assert!(code == 0 && said.contains("2 objects removed"), "{said}");
        assert_eq!(left(&url), [5, 6, 7, 8, 9]);
        let (code, said) = prune(&["--max-size", "0", "--min-age", "84h"]);
        assert!(code == 1 && said.contains("too large"), "{said}");
        assert_eq!(left(&url), [7, 8, 9]);
        let (code, said) = prune(&["--max-size", &limit, "--max-age", "30d"]);
        assert!(code == 0 && said.contains("0 objects removed"), "{said}");
    }
}

#[test]
fn what_has_no_time_is_not_judged_and_a_redis_with_ttl_has_one() {
    let redis = Redis::start(&[]);
    let remote = open(&redis.url(), &RemoteOptions::default()).unwrap();
    put(&*remote, 1, b"x").unwrap();
    let prune = ["prune", &redis.url(), "--max-age", "1ms", "--min-age", "0"];
    says(&prune, 0, "1 object not judged");
    let options = RemoteOptions {
        ttl: Some(DAY),
        ..RemoteOptions::default()
    };
    put(&*open(&redis.url(), &options).unwrap(), 2, b"x").unwrap();
    thread::sleep(Duration::from_millis(5));
    says(
        &[&prune[..], &["-o", "ttl=1d"]].concat(),
        0,
        "1 object removed",
    );
    assert_eq!(left(&redis.url()), [1]);
    says(&["prune", &redis.url()], 2, "--max-size");
}

/// Writers write and touch while everything that is old is pruned over and over. Whoever put or touched an object must find
/// it, but for the moment in which the old one goes that nobody touched.
fn nothing_new_is_pruned(url: &str, age: &(dyn Fn(usize) + Sync), touches: bool) {
    let over = AtomicBool::new(false);
    let (written, lost, pruned) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let remote = open(url, &RemoteOptions::default()).unwrap();
    thread::scope(|scope| {
        for writer in 0..4 {
            let (remote, over, written, lost) = (&remote, &over, &written, &lost);
            scope.spawn(move || {
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let n = 1000 * writer + round % 20;
                    // An old one, that is touched or written anew in the middle of a prune.
                    put(&**remote, n, b"old").unwrap();
                    age(n);
                    let kept = if touches && round % 2 == 0 {
                        remote.touch(&sig(n)).unwrap()
                    } else {
                        remote.delete(&sig(n)).unwrap();
                        put(&**remote, n, b"new").unwrap() == Put::Stored
                    };
                    if kept {
                        written.fetch_add(1, Ordering::Relaxed);
                        // As long as a prune takes.
                        for _ in 0..5 {
                            thread::sleep(Duration::from_millis(4));
                            if !remote.exists(&sig(n)).unwrap() {
                                lost.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                        }
                    }
                    remote.delete(&sig(n)).unwrap();
                }
            });
        }
        for round in 0..40 {
            for n in 0..5 {
                put(&*remote, 5000 + 10 * round + n, b"old").unwrap();
                age(5000 + 10 * round + n);
            }
            let said = says(&["prune", url, "--max-age", "2h"], 0, "removed");
            let removed = said.split(' ').next().unwrap().parse::<u64>().unwrap();
            pruned.fetch_add(removed, Ordering::Relaxed);
        }
        over.store(true, Ordering::Relaxed);
    });
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{url}: {} written, {} pruned, {} lost",
        read(&written),
        read(&pruned),
        read(&lost)
    );
    assert!(read(&written) > 100 && read(&pruned) >= 200);
    assert_eq!(read(&lost), 0, "of {}", read(&written));
}

/// Makes an object on disk a day old, if it is there.
fn age_in(root: &Path) -> impl Fn(usize) + Sync {
    move |n| {
        if let Ok(file) = File::options().append(true).open(entry(root, n, 2)) {
            file.set_modified(SystemTime::now() - DAY).unwrap();
        }
    }
}

#[test]
fn nothing_that_was_just_written_or_touched_is_pruned_from_a_directory() {
    let dir = workspace();
    let url = format!("file://{}", dir.path().display());
    nothing_new_is_pruned(&url, &age_in(dir.path()), true);
}

#[test]
fn nothing_that_was_just_written_is_pruned_from_lighttpd_which_minds_conditions() {
    let server = Server::lighttpd();
    nothing_new_is_pruned(&server.url(), &age_in(&server.root()), false);
}
