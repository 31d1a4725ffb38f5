//! What a listing says of objects, and that removing what was listed removes nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use cachedirfs::remote::memory::Memory;
use cachedirfs::remote::{Listed, RemoteError};

use super::cases::{Case, Store, file, in_memory, plain, served};
use super::{put, sig};
use crate::support::servers::{Nginx, Server};

const HOUR: Duration = Duration::from_secs(3600);

fn listing(case: &Case) -> Vec<Listed> {
    let mut found = Vec::new();
    case.remote.list(&mut |listed| found.push(listed)).unwrap();
    found
}

/// Makes an object look an hour old.
fn age(case: &Case, name: &str, memory: Option<&Memory>) {
    let key = case.options.layout.key(&sig(name));
    match (&case.store, memory) {
        (Store::Dir(root), _) => {
            let file = File::options().append(true).open(root.join(key)).unwrap();
            file.set_modified(SystemTime::now() - HOUR).unwrap();
        }
        (Store::Blobs(_), Some(memory)) => memory.age(&key, HOUR),
        _ => unreachable!("all others are directories"),
    }
}

/// `touches` says whether a touch shows.
fn only_what_is_unchanged_is_removed(case: &Case, memory: Option<&Memory>, touches: bool) {
    let names = ["same", "written", "touched", "gone", "longer"];
    for name in names {
        put(case, &sig(name), b"content");
        age(case, name, memory);
    }
    put(case, &sig("young"), b"content");
    let listed = listing(case);
    let of = |name: &str| listed.iter().find(|found| found.sig == sig(name)).unwrap();
    let old = |name: &str| {
        let age = SystemTime::now().duration_since(of(name).modified.unwrap());
        age.is_ok_and(|age| age > HOUR / 2)
    };
    assert!(
        names.iter().all(|name| old(name)) && !old("young"),
        "{listed:?}"
    );

    let key = |name: &str| case.options.layout.key(&sig(name));
    let bytes = case.store.bytes(&key("written"));
    case.store.set(&key("written"), &bytes);
    case.store.set(&key("longer"), &[&bytes[..], b"x"].concat());
    assert!(case.remote.touch(&sig("touched")).unwrap());
    assert!(!case.remote.touch(&sig("never put")).unwrap());
    assert!(case.remote.delete(&sig("gone")).unwrap());

    let removed = names.map(|name| case.remote.delete_listed(of(name)).unwrap());
    assert_eq!(removed, [true, false, !touches, false, false]);
    let there = names.map(|name| case.remote.exists(&sig(name)).unwrap());
    assert_eq!(there, [false, true, touches, false, true]);
    assert!(!case.remote.delete_listed(of("same")).unwrap());
    let left = listing(case).len();
    assert_eq!(left, if touches { 4 } else { 3 });
}

#[test]
fn memory_removes_only_what_is_unchanged() {
    let memory = Memory::default();
    let case = in_memory(&memory, plain());
    only_what_is_unchanged_is_removed(&case, Some(&memory), true);
}

#[test]
fn a_directory_removes_only_what_is_unchanged() {
    only_what_is_unchanged_is_removed(&file(plain()), None, true);
}

#[test]
fn http_servers_remove_only_what_is_unchanged() {
    for server in [
        Server::nginx(Nginx::Open),
        Server::lighttpd(),
        Server::apache(),
        Server::rclone(),
    ] {
        only_what_is_unchanged_is_removed(&served(server, plain()), None, false);
    }
}

/// A symbolic link in a CacheDir is removed itself, not what it points to, and so is it touched.
#[test]
fn a_symlink_in_a_directory_is_touched_and_removed_itself() {
    let case = file(plain());
    let Store::Dir(root) = &case.store else {
        unreachable!()
    };
    put(&case, &sig("target"), b"content");
    let (target, link) = (
        root.join(case.options.layout.key(&sig("target"))),
        root.join(case.options.layout.key(&sig("link"))),
    );
    age(&case, "target", None);
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let before = target.metadata().unwrap().modified().unwrap();
    assert!(case.remote.touch(&sig("link")).unwrap());
    assert_eq!(target.metadata().unwrap().modified().unwrap(), before);
    let listed = listing(&case);
    let link_listed = listed
        .iter()
        .find(|found| found.sig == sig("link"))
        .unwrap();
    assert!(case.remote.delete_listed(link_listed).unwrap());
    assert!(link.symlink_metadata().is_err() && target.exists());
}

/// The status of a bare request.
fn status(server: &Server, request: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let text =
        format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..12]).parse().unwrap()
}

/// Why objects are looked at before they are removed: half of the servers remove whatever is there by then.
#[test]
fn which_servers_mind_a_condition_when_they_remove() {
    let mut found = Vec::new();
    for (name, server) in [
        ("nginx", Server::nginx(Nginx::Open)),
        ("lighttpd", Server::lighttpd()),
        ("apache", Server::apache()),
        ("rclone", Server::rclone()),
    ] {
        let case = served(server, plain());
        let minds = |what: &str, header: &str| {
            put(&case, &sig(what), b"x");
            let path = format!("DELETE /cache/{}", case.options.layout.key(&sig(what)));
            match status(case.server.as_ref().unwrap(), &path, header) {
                412 => true,
                200 | 204 => false,
                other => panic!("{name}: {other}"),
            }
        };
        let version = minds("version", "If-Match: \"no-such-version\"\r\n");
        let old = "If-Unmodified-Since: Thu, 01 Jan 1970 00:01:00 GMT\r\n";
        found.push((name, version, minds("time", old)));
    }
    let expected = [
        ("nginx", false, false),
        ("lighttpd", true, true),
        ("apache", true, true),
        ("rclone", false, false),
    ];
    assert_eq!(found, expected);
}

#[test]
fn without_time_and_version_nothing_is_removed() {
    let case = served(Server::nginx(Nginx::Open), plain());
    put(&case, &sig("x"), b"x");
    let listed = listing(&case).remove(0);
    let unknown = Listed {
        modified: None,
        version: None,
        ..listed
    };
    let error = case.remote.delete_listed(&unknown).unwrap_err();
    assert!(matches!(error, RemoteError::Unsupported(_)), "{error:?}");
    assert!(case.remote.exists(&sig("x")).unwrap());
}
