//! What only some remotes can do, or suffer.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cachedirfs::object::{Blob, Payload};
use cachedirfs::remote::blob::{BlobRemote, Blobs, Stored, Written};
use cachedirfs::remote::http::Http;
use cachedirfs::remote::memory::Memory;
use cachedirfs::remote::{Layout, Put, Remote, RemoteError, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use tempfile::TempDir;

use super::cases::{Store, file, in_memory, keyed, plain, raw, served, tls};
use super::{bytes, get, is_corrupt, noise, put, sig};
use crate::support::servers::{BODY_MAX_MIB, Flaw, Nginx, PASSWORD, Server, TOKEN, USER, program};

#[test]
fn a_stopped_server_is_transient_and_quick() {
    for server in [Server::nginx(Nginx::Open), Server::lighttpd()] {
        let mut case = served(server, plain());
        put(&case, &sig("x"), b"x");
        case.server.as_mut().unwrap().stop();
        let began = std::time::Instant::now();
        // The first may still find the old connection, cut.
        assert!(get(&case, &sig("x")).unwrap_err().is_transient());
        let error = case.remote.exists(&sig("x")).unwrap_err();
        assert!(
            error.is_transient() && error.to_string().contains("refused"),
            "{error}"
        );
        let put = case.remote.put(&sig("y"), Meta::file(0o644), &bytes(b"y"));
        assert!(put.unwrap_err().is_transient());
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn wrong_or_no_credentials_are_refused_and_never_shown() {
    let server = Server::nginx(Nginx::Basic);
    for url in [server.url(), server.url_with(USER, "wrong-secret")] {
        let remote = open(&url, &plain()).unwrap();
        let got = remote.get(&sig("x")).map(|_| ());
        let put = remote
            .put(&sig("x"), Meta::file(0o644), &bytes(b"x"))
            .map(|_| ());
        for error in [got.unwrap_err(), put.unwrap_err()] {
            assert!(matches!(error, RemoteError::Refused(_)), "{error:?}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{error:?}"
            );
        }
    }
}

#[test]
fn a_rotated_token_is_picked_up_without_a_restart() {
    let server = Server::nginx(Nginx::Bearer);
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "expired").unwrap();
    let options = RemoteOptions {
        bearer_file: Some(token.clone()),
        ..plain()
    };
    let remote = open(&server.url(), &options).unwrap();
    assert!(matches!(
        remote.exists(&sig("x")),
        Err(RemoteError::Refused(_))
    ));
    fs::write(&token, TOKEN).unwrap();
    assert!(!remote.exists(&sig("x")).unwrap());
    assert_eq!(
        remote
            .put(&sig("x"), Meta::file(0o644), &bytes(b"x"))
            .unwrap(),
        Put::Stored
    );
}

#[test]
fn credentials_come_from_netrc_and_files() {
    let server = Server::nginx(Nginx::Basic);
    let dir = TempDir::new().unwrap();
    let (netrc, basic) = (dir.path().join("netrc"), dir.path().join("basic"));
    fs::write(
        &netrc,
        format!("machine localhost login {USER} password {PASSWORD}\n"),
    )
    .unwrap();
    fs::write(&basic, format!("{USER}:{PASSWORD}\n")).unwrap();
    for options in [
        RemoteOptions {
            netrc_file: Some(netrc),
            ..plain()
        },
        RemoteOptions {
            basic_file: Some(basic),
            ..plain()
        },
    ] {
        assert!(
            !open(&server.url(), &options)
                .unwrap()
                .exists(&sig("x"))
                .unwrap()
        );
    }
}

#[test]
fn a_certificate_that_is_not_trusted_says_why_and_what_to_do() {
    let why = |server: &Server, options: RemoteOptions| {
        let remote = open(&server.url(), &options).unwrap();
        let put = remote.put(&sig("x"), Meta::file(0o644), &bytes(b"x"));
        assert!(matches!(put, Err(RemoteError::Untrusted(_))), "{put:?}");
        match remote.exists(&sig("x")) {
            Err(RemoteError::Untrusted(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let ca = |server: &Server| RemoteOptions {
        ca_file: Some(server.ca()),
        ..plain()
    };
    let unknown = why(&Server::nginx(Nginx::Tls), plain());
    assert!(unknown.contains("-o ca_file=FILE"), "{unknown}");
    for (flaw, says) in [
        (Flaw::Expired, "renew the certificate"),
        (Flaw::OtherName, "use a name in the URL"),
        (Flaw::SelfSigned, "CA:FALSE"),
    ] {
        let server = Server::nginx(Nginx::BadTls(flaw));
        let text = why(&server, ca(&server));
        assert!(text.contains(says), "{flaw:?}: {text}");
    }
}

/// What the hint for a self-signed certificate says, done.
#[test]
fn a_self_signed_certificate_that_is_no_authoritys_can_be_named_itself() {
    let server = Server::nginx(Nginx::BadTls(Flaw::SelfSignedLeaf));
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        ..plain()
    };
    let remote = open(&server.url(), &options).unwrap();
    assert!(!remote.exists(&sig("x")).unwrap());
}

#[test]
fn http2_is_used_where_it_is_offered_and_connections_are_kept() {
    let case = tls(plain());
    for n in 0..10 {
        put(&case, &sig(&n.to_string()), b"x");
    }
    let log = case.server.as_ref().unwrap().log();
    assert!(
        log.contains("HTTP/2.0") && !log.contains("HTTP/1."),
        "{log}"
    );
}

/// A store that counts how often it is looked at before an upload.
struct Looked<B>(B, Arc<AtomicUsize>, Option<bool>);

impl<B: Blobs> Blobs for Looked<B> {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        self.0.get(key)
    }

    fn peek(&self, key: &str, len: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.peek(key, len)
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        self.0.put(key, payload, if_absent && self.2 != Some(false))
    }

    fn creates_only(&self) -> Option<bool> {
        self.2
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        self.0.exists(key)
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        self.0.delete(key)
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        self.0.list(each)
    }

    fn describe(&self) -> String {
        "looked:".to_owned()
    }
}

#[test]
fn a_look_is_spared_only_where_the_store_leaves_alone_what_is_there_and_only_for_what_is_small() {
    for creates_only in [true, false] {
        let (store, looks) = (Memory::default(), Arc::new(AtomicUsize::new(0)));
        let blobs = Looked(store.clone(), looks.clone(), Some(creates_only));
        let remote = BlobRemote::new(blobs, &plain());
        let put = |sig: &Signature, content: &[u8]| {
            let put = remote.put(sig, Meta::file(0o644), &bytes(content));
            (put.unwrap(), looks.swap(0, Ordering::SeqCst))
        };
        let (small, big) = (sig("small"), sig("big"));
        let expected = usize::from(!creates_only);
        assert_eq!(put(&small, b"x"), (Put::Stored, expected));
        assert_eq!(put(&small, b"x"), (Put::Present, 1));
        let (other, looked) = put(&small, b"y");
        assert!(matches!(other, Put::Diverged { .. }) && looked == 1);
        assert_eq!(put(&big, &noise(100_000)), (Put::Stored, 1));
        // What no reader believes is written over, found that way or the other.
        store.set(&Layout::Upper.key(&small), b"");
        assert_eq!(put(&small, b"z").0, Put::Stored);
        let object = store.bytes(&Layout::Upper.key(&small)).unwrap();
        assert!(object.len() > 1);
    }
}

/// lighttpd answers 412 to a second create, nginx and rclone overwrite.
#[test]
fn the_first_upload_shows_whether_a_server_only_creates() {
    for (server, looks_again) in [
        (Server::lighttpd(), 0),
        (Server::nginx(Nginx::Open), 1),
        (Server::rclone(), 1),
    ] {
        let http = Http::open(&server.url().parse().unwrap(), &plain()).unwrap();
        let looks = Arc::new(AtomicUsize::new(0));
        let remote = BlobRemote::new(Looked(http, looks.clone(), None), &plain());
        for (what, expected) in [
            ("first", 1),
            ("second", looks_again),
            ("third", looks_again),
        ] {
            let put = remote.put(&sig(what), Meta::file(0o644), &bytes(b"x"));
            assert_eq!(put.unwrap(), Put::Stored);
            assert_eq!(looks.swap(0, Ordering::SeqCst), expected, "{what}");
        }
        let other = remote.put(&sig("third"), Meta::file(0o644), &bytes(b"y"));
        assert!(matches!(other, Ok(Put::Diverged { .. })));
    }
}

#[test]
fn a_web_page_instead_of_an_object_is_never_taken_for_one() {
    let server = Server::nginx(Nginx::Html);
    for options in [plain(), raw()] {
        let remote = open(&server.url(), &options).unwrap();
        assert!(is_corrupt(&remote.get(&sig("x")).map(|_| ())));
        assert!(is_corrupt(&remote.exists(&sig("x"))));
        let put = remote.put(&sig("x"), Meta::file(0o644), &bytes(b"x"));
        assert!(matches!(put, Err(RemoteError::Refused(_))), "{put:?}");
    }
}

#[test]
fn redirects_are_followed_but_credentials_stay_at_home() {
    let (to, asks) = (Server::nginx(Nginx::Open), Server::nginx(Nginx::Basic));
    let target = open(&to.url(), &plain()).unwrap();
    for (server, followed) in [(&to, true), (&asks, false)] {
        let moved = Server::nginx_moved(&server.url());
        let remote = open(
            &moved.url_with(USER, &PASSWORD.replace('%', "%25")),
            &plain(),
        )
        .unwrap();
        let put = remote.put(&sig("moved"), Meta::file(0o644), &bytes(b"x"));
        assert_eq!(put.is_ok(), followed, "{put:?}");
        assert_eq!(
            matches!(put, Err(RemoteError::Refused(_))),
            !followed,
            "{put:?}"
        );
    }
    assert!(target.exists(&sig("moved")).unwrap());
    assert!(!to.log().contains(USER));
}

#[test]
fn zstd_gives_an_object_back() {
    let case = file(plain());
    for content in [&b""[..], b"x", &noise(5 << 20)] {
        let sig = sig(&content.len().to_string());
        put(&case, &sig, content);
        let Store::Dir(root) = &case.store else {
            unreachable!("a file remote")
        };
        assert!(zstd_d(&root.join(case.options.layout.key(&sig))) == content);
    }
}

fn zstd_d(object: &Path) -> Vec<u8> {
    let stdin = fs::File::open(object).unwrap();
    let done = Command::new(program("zstd", "zstd"))
        .args(["-d", "-c"])
        .stdin(stdin)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    done.stdout
}

/// SCons' own CacheDir, copied or served as it is.
#[test]
fn an_existing_cachedir_is_read_as_it_is() {
    let case = file(plain());
    let key = |what: &str| Layout::Upper.key(&sig(what));
    case.store.set(&key("program"), b"\x7fELF program");
    case.store.set(&key("text"), b"text");
    assert_eq!(get(&case, &sig("text")).unwrap().unwrap().1, b"text");
    assert_eq!(put(&case, &sig("text"), b"text"), Put::Present);
    assert!(matches!(
        put(&case, &sig("text"), b"TEXT"),
        Put::Diverged { .. }
    ));
    assert!(matches!(
        put(&case, &sig("text"), b"longer text"),
        Put::Diverged { .. }
    ));
    assert_eq!(
        get(&case, &sig("program")).unwrap().unwrap().1,
        b"\x7fELF program"
    );
}

/// Two mounts with a key and without one share a store: the holder repairs what it does not believe.
#[test]
fn what_a_stranger_wrote_is_not_believed_and_is_written_over() {
    let store = Memory::default();
    let strangers = in_memory(&store, plain());
    let ours = BlobRemote::new(store, &keyed());
    put(&strangers, &sig("x"), b"evil");
    assert!(matches!(
        ours.get(&sig("x")).map(|_| ()),
        Err(RemoteError::Corrupt(_))
    ));
    assert_eq!(
        ours.put(&sig("x"), Meta::file(0o644), &bytes(b"good"))
            .unwrap(),
        Put::Stored
    );
    assert_eq!(get(&strangers, &sig("x")).unwrap().unwrap().1, b"good");
}

/// Misses are the most frequent answer of all: none may cost a connection.
#[test]
fn misses_and_hits_keep_their_connection() {
    for server in [Server::nginx(Nginx::Open), Server::nginx(Nginx::Basic)] {
        let remote = open(
            &server.url_with(USER, &PASSWORD.replace('%', "%25")),
            &plain(),
        )
        .unwrap();
        for n in 0..50 {
            let sig = sig(&n.to_string());
            assert!(remote.get(&sig).unwrap().is_none());
            remote.put(&sig, Meta::file(0o644), &bytes(b"x")).unwrap();
            std::io::copy(
                &mut remote.get(&sig).unwrap().unwrap().content,
                &mut std::io::sink(),
            )
            .unwrap();
        }
        let log = server.log();
        let connections: std::collections::BTreeSet<_> = log
            .lines()
            .filter_map(|line| line.rsplit_once(' ').map(|(_, last)| last))
            .collect();
        // Of 200 requests a few find the last one not back in the pool yet.
        assert!(connections.len() < 20, "{connections:?}");
    }
}
/// nginx answers before the upload is over and closes: the answer must still be seen.
#[test]
fn an_object_that_the_server_takes_for_too_big_is_full() {
    let case = served(Server::nginx(Nginx::Narrow), plain());
    let content = bytes(&noise((BODY_MAX_MIB + 1) << 20));
    for n in 0..5 {
        let put = case
            .remote
            .put(&sig(&n.to_string()), Meta::file(0o644), &content);
        assert!(matches!(put, Err(RemoteError::Full(_))), "{put:?}");
    }
}

#[test]
fn a_raw_object_that_is_a_symlink_is_unsupported_and_says_what_can_hold_it() {
    let case = file(raw());
    let put = case
        .remote
        .put(&sig("link"), Meta::Symlink, &bytes(b"target"));
    let Err(RemoteError::Unsupported(why)) = put else {
        panic!("{put:?}")
    };
    assert!(
        why.contains(sig("link").as_str()) && why.contains("format=object"),
        "{why}"
    );
}
