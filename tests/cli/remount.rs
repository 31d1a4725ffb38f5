//! A mount is changed while it is used: by `cachedirfs remount`, by its configuration file and SIGHUP. Through mount(8): `fstab`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cachedirfs::control::Status;

use super::{DONE, MOUNT, Place, can_mount, ended, kill, program, soon};

/// An entry's path in a CacheDir.
fn entry(n: u64) -> String {
    // Lookups that hang hold the directory: pushes that must not wait for them go elsewhere.
    let dir = if n < 10 { "ab" } else { "ac" };
    format!("{}/{dir}{n:030x}", dir.to_uppercase())
}

/// Pushes as SCons does.
fn push(cache: &Path, n: u64, content: &str) -> io::Result<()> {
    let name = cache.join(entry(n));
    fs::create_dir_all(name.parent().unwrap())?;
    let scratch = name.with_extension(format!("tmp{n}"));
    fs::write(&scratch, content)?;
    fs::rename(&scratch, &name).inspect_err(|_| drop(fs::remove_file(&scratch)))
}

impl Place {
    fn remote_named(&self, name: &str) -> String {
        fs::create_dir_all(self.path(name)).unwrap();
        format!("file://{}", self.text(name))
    }

    fn remount(&self, args: &[&str]) -> Output {
        self.command("remount", args)
    }

    #[track_caller]
    fn remounted(&self, args: &[&str]) -> String {
        let output = self.remount(&[args, &["-v"]].concat());
        ended(&output, DONE);
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Status {
        let output = self.command("status", &["--json"]);
        ended(&output, DONE);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn kernel_flags(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table
            .lines()
            .rev()
            .find(|l| l.contains(&format!(" {} ", self.text("m"))));
        line.unwrap().split(' ').nth(5).unwrap().to_owned()
    }
}

#[test]
fn what_can_change_changes_at_once_and_the_status_shows_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount("ro,size=1G"), DONE);
    assert_eq!(
        push(&place.path("m"), 1, "x").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    let said = place.remounted(&["-o", "rw,size=2G,min_free=7M"]);
    assert!(
        said.contains("size = \"2G\" (was \"1G\")") && said.contains("ro = false (was true)"),
        "{said}"
    );
    let status = place.status();
    assert_eq!(
        (status.limit, status.min_free, status.read_only),
        (2 << 30, 7 << 20, false)
    );
    assert_eq!(status.push, "on");

    // What is pushed while nothing is uploaded stays here; the rest goes on as it was.
    place.remounted(&["-o", "push=off"]);
    push(&place.path("m"), 1, "kept here").unwrap();
    place.remounted(&["-o", "push=sync"]);
    push(&place.path("m"), 2, "shared at once").unwrap();
    assert!(place.path("r").join(entry(2)).exists() && !place.path("r").join(entry(1)).exists());
    assert_eq!(
        fs::read(place.path("m").join(entry(1))).unwrap(),
        b"kept here"
    );

    place.remounted(&["-o", "noexec"]);
    assert_eq!(place.kernel_flags(), "rw,nosuid,nodev,noexec,relatime");
    place.remounted(&["-o", "exec,noatime"]);
    assert_eq!(place.kernel_flags(), "rw,nosuid,nodev,noatime");
    assert_eq!(place.remounted(&[]), "", "nothing has changed");

    place.remounted(&[
        "-o",
        "fetch_threads=1,upload_threads=1,touch=1h,reshare,negative_ttl=0",
    ]);
    push(&place.path("m"), 3, "by other threads").unwrap();
    ended(&place.command("umount", &[]), DONE);
    assert!(place.path("r").join(entry(3)).exists());
}

/// Shrinking evicts, and pending uploads wait while nothing is uploaded.
#[test]
fn a_smaller_size_is_kept_to_and_what_was_pending_goes_when_uploads_go_on() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    // Nothing listens there.
    let output = program()
        .args(["mount", "http://127.0.0.1:9/c", &place.text("m")])
        .args(["-o", &format!("backing={}", place.text("b"))])
        .output()
        .unwrap();
    ended(&output, DONE);
    push(&place.path("m"), 1, "pending").unwrap();
    place.remounted(&["-o", "push=off"]);
    let remote = place.remote();
    place.remounted(&["--remote", &remote]);
    assert_eq!(place.status().pending.objects, 1);
    place.remounted(&["-o", "push=on"]);
    ended(&place.command("flush", &[]), DONE);
    assert!(place.path("r").join(entry(1)).exists());

    let big = "x".repeat(1 << 20);
    for n in 2..12 {
        push(&place.path("m"), n, &big).unwrap();
    }
    ended(&place.command("flush", &[]), DONE);
    assert!(place.status().bytes_used > 8 << 20);
    place.remounted(&["-o", "size=4M"]);
    soon("it fits", || place.status().bytes_used <= 4 << 20);
    ended(&place.command("umount", &[]), DONE);
}

#[test]
fn what_cannot_change_is_named_and_then_nothing_changes() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount("size=1G"), DONE);
    let before = place.status();
    for (options, named) in [
        ("uid=5", "`uid` from none to 5"),
        ("backing=/elsewhere,umask=077", "`backing` from"),
        ("nopassthrough", "`passthrough` from true to false"),
        ("event_threads=3", "`event_threads` from"),
        ("sise=2G", "unknown option `sise`; did you mean `size`?"),
        ("key_file=/no/such/file", "/no/such/file"),
        (
            "log_file=/no/such/dir/log",
            "cannot open the log file /no/such/dir/log",
        ),
        (
            "config=/no/such/file",
            "cannot read the configuration file /no/such/file",
        ),
        ("remote=gopher://x/", "gopher://x/"),
    ] {
        let list = format!("size=9G,push=off,{options}");
        let said = ended(&place.remount(&["-o", &list]), MOUNT);
        assert!(
            said.contains("cannot remount") && said.contains(named),
            "{options}: {said}"
        );
        assert!(
            !said.contains("cannot change")
                || said.contains("umount and mount anew; nothing was changed"),
            "{said}"
        );
    }
    let inside = format!("file://{}/x", place.text("m"));
    ended(
        &place.remount(&["--remote", &inside, "-o", "size=9G"]),
        MOUNT,
    );
    let after = place.status();
    assert_eq!(
        (&after.remote, after.limit, &after.push),
        (&before.remote, before.limit, &before.push)
    );
    ended(&program().args(["remount", "/"]).output().unwrap(), MOUNT);
    ended(&place.command("umount", &[]), DONE);
}

#[test]
fn only_root_and_the_owner_may_change_a_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount(""), DONE);
    fs::set_permissions(place.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let stranger = program()
        .args(["remount", &place.text("m"), "-o", "size=9G"])
        .uid(65534)
        .gid(65534)
        .output();
    let said = ended(&stranger.unwrap(), MOUNT);
    assert!(
        said.contains("only root and the owner of the mount may do that"),
        "{said}"
    );
    ended(&place.command("umount", &[]), DONE);
}

/// What the kernel and the daemon know to be absent, they know of the remote that there was.
#[test]
fn what_was_absent_is_asked_of_the_new_remote_at_once() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let other = place.remote_named("other");
    fs::create_dir(place.path("other/AB")).unwrap();
    ended(&place.mount("negative_ttl=1h,format=raw"), DONE);
    let there = place.path("m").join(entry(1));
    for _ in 0..3 {
        assert!(!there.exists());
    }
    let asked = place.status().counters.misses;
    assert_eq!(asked, 1, "it is remembered");
    fs::write(place.path("other").join(entry(1)), "from the other").unwrap();
    place.remounted(&["--remote", &other]);
    assert_eq!(fs::read_to_string(&there).unwrap(), "from the other");
    ended(&place.command("umount", &[]), DONE);
}

/// A server that takes every connection and never says anything; how many it has.
fn silent_server() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/c", listener.local_addr().unwrap());
    let taken = Arc::new(AtomicU64::new(0));
    let counting = taken.clone();
    thread::spawn(move || {
        let all = listener.incoming().inspect(|_| {
            counting.fetch_add(1, Ordering::SeqCst);
        });
        drop(all.take(200).collect::<Vec<_>>());
    });
    (url, taken)
}

#[test]
fn a_remote_that_never_answers_is_left_by_who_waits_for_it_and_by_what_is_pending() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (hangs, connections) = silent_server();
    let options = format!(
        "backing={},lookup_timeout=9m,stall_timeout=9m,fetch_threads=2,upload_threads=2",
        place.text("b")
    );
    // Nothing listens there: what is pushed is pending at once.
    let nowhere = "http://127.0.0.1:9/c";
    let mounted = program()
        .args(["mount", nowhere, &place.text("m"), "-o", &options])
        .output();
    ended(&mounted.unwrap(), DONE);
    for n in 10..15 {
        push(&place.path("m"), n, "pending").unwrap();
    }
    place.remounted(&["--remote", &hangs]);
    // The new one has what is waited for.
    let source = Place::new();
    ended(&source.mount(""), DONE);
    push(&source.path("m"), 1, "of the new").unwrap();
    ended(&source.command("umount", &[]), DONE);

    let waiting: Vec<_> = (0..6)
        .map(|n| {
            let path = place.path("m").join(entry(if n < 3 { 1 } else { n }));
            thread::spawn(move || fs::read_to_string(path))
        })
        .collect();
    // Two that fetch and two that upload.
    soon("all workers hang", || {
        connections.load(Ordering::SeqCst) >= 4
    });
    assert_eq!(place.status().pending.objects, 5);
    let began = Instant::now();
    place.remounted(&["--remote", &source.remote()]);
    let read: Vec<_> = waiting
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .collect();
    for found in &read[..3] {
        assert_eq!(found.as_ref().unwrap(), "of the new");
    }
    for missed in &read[3..] {
        assert_eq!(missed.as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    ended(&place.command("flush", &["--timeout", "20"]), DONE);
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    for n in 10..15 {
        assert!(source.path("r").join(entry(n)).exists());
    }
    let status = place.status();
    assert_eq!(
        (status.remote_state.as_str(), status.counters.given_up),
        ("ok", 0)
    );
    ended(&place.command("umount", &[]), DONE);
}

/// Pushes and reads go on while the remotes, and all that can change, change all the time.
#[test]
fn many_remounts_under_load_lose_nothing_and_show_nothing_wrong() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (one, two) = (place.remote(), place.remote_named("two"));
    ended(
        &place.mount("negative_ttl=1s,size=500M,lookup_timeout=20s"),
        DONE,
    );
    let content = |n: u64| format!("{n} ").repeat(usize::try_from(n % 97).unwrap() * 37 + 1);
    let (over, next) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let pushed = Arc::new(Mutex::new(HashMap::new()));
    let pushers: Vec<_> = (0..3)
        .map(|_| {
            let (over, next, pushed, cache) =
                (over.clone(), next.clone(), pushed.clone(), place.path("m"));
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    match push(&cache, n, &content(n)) {
                        Ok(()) => drop(pushed.lock().unwrap().insert(n, ())),
                        Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EROFS), "{e}"),
                    }
                    // Whatever is there is right, and what was pushed just now is there.
                    for m in [n, n / 2, n / 3] {
                        match fs::read_to_string(cache.join(entry(m))) {
                            Ok(read) => assert_eq!(read, content(m), "{m}"),
                            Err(e) => assert_eq!(e.kind(), io::ErrorKind::NotFound, "{m}: {e}"),
                        }
                    }
                }
            })
        })
        .collect();
    let both = format!("{one} {two}");
    let only_reads = format!("{one} {two}|ro");
    for round in 0..60 {
        let remote = [&one, &two, &both, &only_reads][round % 4];
        let options = [
            "push=sync,size=400M",
            "ro",
            "rw,push=on,size=500M",
            "fetch_threads=3,upload_threads=3",
            "fetch_threads=8,log_level=warn",
        ][round % 5];
        place.remounted(&["--remote", remote, "-o", options]);
        thread::sleep(Duration::from_millis(40));
    }
    over.store(true, Ordering::SeqCst);
    pushers
        .into_iter()
        .for_each(|pusher| pusher.join().unwrap());
    place.remounted(&["--remote", &both, "-o", "rw,push=on"]);
    ended(&place.command("flush", &["--timeout", "60"]), DONE);
    let status = place.status();
    let counters = &status.counters;
    assert_eq!(
        (
            counters.panics,
            counters.given_up,
            counters.corrupt,
            counters.diverged
        ),
        (0, 0, 0, 0)
    );
    ended(&place.command("umount", &[]), DONE);

    // A machine that has nothing yet gets everything that was ever pushed, from the one remote or the other.
    let fresh = Place::new();
    let options = format!("backing={},lookup_timeout=20s", fresh.text("b"));
    let mounted = program()
        .args(["mount", &both, &fresh.text("m"), "-o", &options])
        .output();
    ended(&mounted.unwrap(), DONE);
    let pushed = pushed.lock().unwrap();
    assert!(pushed.len() > 100, "only {} pushes", pushed.len());
    for n in pushed.keys() {
        let read = fs::read_to_string(fresh.path("m").join(entry(*n)));
        assert_eq!(
            read.unwrap_or_else(|e| panic!("{n}: {e}")),
            content(*n),
            "{n}"
        );
    }
    ended(&fresh.command("umount", &[]), DONE);
}

#[test]
fn sighup_reads_the_configuration_again_and_opens_the_log_anew() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let file = |rest: &str| {
        let text = format!(
            "remote = \"{}\"\nmountpoint = \"{}\"\nbacking = \"b\"\nlog_file = \"log\"\n{rest}",
            place.remote(),
            place.text("m")
        );
        fs::write(place.path("x.toml"), text).unwrap();
    };
    let log = |name: &str| fs::read_to_string(place.path(name)).unwrap_or_default();
    file("size = \"1G\"\n");
    let options = format!("config={},min_free=3M", place.text("x.toml"));
    ended(
        &program().args(["mount", "-o", &options]).output().unwrap(),
        DONE,
    );
    let pid = place.daemon();

    // As logrotate does.
    fs::rename(place.path("log"), place.path("log.1")).unwrap();
    file("size = \"2G\"\npush = false\nmin_free = \"9M\"\n");
    kill(pid, "-HUP");
    soon("it is read", || {
        log("log").contains("configuration read again")
    });
    assert!(log("log.1").contains("is mounted on") && !log("log.1").contains("read again"));
    assert!(
        log("log").contains("changed while mounted: size = \"2G\" (was \"1G\")"),
        "{}",
        log("log")
    );
    let status = place.status();
    assert_eq!((status.limit, status.push.as_str()), (2 << 30, "off"));
    assert_eq!(
        status.min_free,
        3 << 20,
        "the command line still counts more"
    );

    // What cannot be done changes nothing and ends nothing.
    file("size = \"3G\"\nuid = 5\n");
    kill(pid, "-HUP");
    soon("it is refused", || {
        log("log").contains("cannot change `uid` from none to 5 while mounted")
    });
    file("size = \"3G\"\nnonsense = 1\n");
    kill(pid, "-HUP");
    soon("it is refused", || {
        log("log").contains("x.toml:6: unknown option `nonsense`")
    });
    assert_eq!((place.status().limit, place.daemon()), (2 << 30, pid));

    // A remount by hand is kept by the next time that the file is read.
    file("size = \"4G\"\n");
    place.remounted(&["-o", "negative_ttl=1m,size=5G"]);
    assert_eq!(place.status().limit, 5 << 30);
    place.remounted(&["-o", "min_free=4M"]);
    file("size = \"4G\"\nreshare = true\n");
    kill(pid, "-HUP");
    soon("it is read", || {
        log("log").contains("reshare = true (was false)")
    });
    assert_eq!(
        (place.status().limit, place.status().min_free),
        (5 << 30, 4 << 20)
    );
    assert!(
        !log("log").contains("negative_ttl = \"10s\""),
        "{}",
        log("log")
    );
    ended(&place.command("umount", &[]), DONE);
    assert!(log("log").contains("is unmounted"));
}
