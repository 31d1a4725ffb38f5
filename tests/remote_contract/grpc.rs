//! The Remote Execution API over gRPC, on real servers.

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use cachedirfs::remote::grpc::Grpc;
use cachedirfs::remote::{Put, Remote, RemoteError, RemoteOptions, Secret, open};
use cachedirfs::signature::Meta;
use tempfile::TempDir;
use url::Url;

use super::bazel::Way;
use super::cases::{Case, Store, keyed, plain, raw};
use super::{bytes, noise, sig};
use crate::support::proxy::{Fault, Proxy};
use crate::support::reapi::{Cache, Door};
use crate::support::wait_until;

macro_rules! keeps_the_contract {
    ($($name:ident: $case:expr;)*) => {
        $(#[test] fn $name() { super::keeps_the_contract(&$case); })*
    };
}

keeps_the_contract! {
    buildbox_casd_keeps_the_contract: casd(plain());
    buildbox_casd_with_a_key_keeps_the_contract: casd(keyed());
    buildbox_casd_without_headers_keeps_the_contract: casd(raw());
    buildgrid_keeps_the_contract: buildgrid(Door::Open, plain());
    buildgrid_with_tls_keeps_the_contract: buildgrid(Door::Tls, plain());
    buildgrid_with_a_client_certificate_keeps_the_contract: with_certificate();
    buildgrid_with_a_token_keeps_the_contract: with_token();
}

fn at(url: &str, options: RemoteOptions, server: Cache) -> Case {
    let cache = Grpc::open(&Url::parse(url).unwrap(), &options).unwrap();
    Case {
        remote: open(url, &options).unwrap(),
        options,
        store: Store::Actions(Way {
            cache: Box::new(cache),
            blobs: None,
            is_careless: false,
        }),
        server: None,
        _held: Some(Box::new(server)),
    }
}

/// Blobs on the disk of a server can be damaged behind its back: both serve them as they are.
fn with_blobs(server: Cache, url: &str, options: RemoteOptions) -> Case {
    let objects = server.dir().join("root/cas/objects");
    let mut case = at(url, options, server);
    if let Store::Actions(way) = &mut case.store {
        way.blobs = Some(Box::new(move |digest| {
            let hash = digest.hash();
            objects.join(&hash[..2]).join(&hash[2..])
        }));
    }
    case
}

fn casd(options: RemoteOptions) -> Case {
    let server = Cache::casd();
    let url = server.url("grpc", "");
    with_blobs(server, &url, options)
}

fn buildgrid(door: Door, options: RemoteOptions) -> Case {
    let server = Cache::buildgrid(door);
    let (scheme, ca_file) = match door {
        Door::Open => ("grpc", None),
        _ => ("grpcs", Some(server.ca())),
    };
    let options = RemoteOptions { ca_file, ..options };
    let url = server.url(scheme, "main");
    with_blobs(server, &url, options)
}

fn with_certificate() -> Case {
    let server = Cache::buildgrid(Door::ClientCertificate);
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        client_cert_file: Some(server.dir().join("cert.pem")),
        client_key_file: Some(server.dir().join("key.pem")),
        ..plain()
    };
    at(&server.url("grpcs", "main"), options, server)
}

fn with_token() -> Case {
    let server = Cache::buildgrid(Door::Token);
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        bearer: Some(Secret::new(Cache::token(600))),
        ..plain()
    };
    at(&server.url("grpcs", "main"), options, server)
}

#[test]
fn an_unknown_instance_is_misconfigured_and_says_what_to_look_at() {
    let server = Cache::buildgrid(Door::Open);
    let remote = open(&server.url("grpc", "other"), &plain()).unwrap();
    let errors = [
        remote.get(&sig("x")).map(drop).unwrap_err(),
        remote
            .put(&sig("x"), Meta::file(0o644), &bytes(b"x"))
            .map(drop)
            .unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, RemoteError::Misconfigured(_)), "{error:?}");
        assert!(error.to_string().contains("instance"), "{error}");
    }
}

#[test]
fn wrong_missing_and_expired_tokens_are_refused_and_never_shown_until_there_is_a_good_one() {
    let server = Cache::buildgrid(Door::Token);
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("token");
    let expired = Cache::token(-600);
    let ca_file = Some(server.ca());
    let url = server.url("grpcs", "main");
    let none = RemoteOptions {
        ca_file: ca_file.clone(),
        ..plain()
    };
    let refused = |options: &RemoteOptions| {
        let remote = open(&url, options).unwrap();
        let put = remote
            .put(&sig("x"), Meta::file(0o644), &bytes(b"x"))
            .map(drop);
        for result in [
            put,
            remote.get(&sig("x")).map(drop),
            remote.delete(&sig("x")).map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, RemoteError::Refused(_)), "{error:?}");
            let shown = format!("{error} {error:?} {} {options:?}", remote.describe());
            assert!(
                !shown.contains(&expired) && !shown.contains("wr0ng-t0ken"),
                "{shown}"
            );
            assert!(
                shown.contains("credentials") || shown.contains("may we"),
                "{shown}"
            );
        }
        remote
    };
    refused(&none);
    let options = RemoteOptions {
        bearer_file: Some(token.clone()),
        ..none
    };
    fs::write(&token, "wr0ng-t0ken").unwrap();
    refused(&options);
    fs::write(&token, &expired).unwrap();
    let remote = refused(&options);
    // Rotated while we run.
    fs::write(&token, Cache::token(600)).unwrap();
    let put = remote.put(&sig("x"), Meta::file(0o644), &bytes(b"x"));
    assert_eq!(put.unwrap(), Put::Stored);
}

/// `authorization` may as well come from the file of headers.
#[test]
fn headers_from_a_file_go_with_every_call() {
    let server = Cache::buildgrid(Door::Token);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("headers");
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        headers_file: Some(file.clone()),
        ..plain()
    };
    for wrong in ["no colon", "grpc-timeout: 1S", "name: \u{7}", "na me: x"] {
        fs::write(&file, wrong).unwrap();
        let error = open("grpcs://localhost/main", &options)
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, RemoteError::Misconfigured(_)), "{error:?}");
        assert!(!error.to_string().contains(wrong), "{error}");
    }
    let text = format!(
        "# ours\n\nX-Build: 7\nAuthorization: Bearer {}\n",
        Cache::token(600)
    );
    fs::write(&file, text).unwrap();
    let remote = open(&server.url("grpcs", "main"), &options).unwrap();
    let stored = remote.put(&sig("x"), Meta::file(0o644), &bytes(&noise(300_000)));
    assert_eq!(stored.unwrap(), Put::Stored);
    assert!(remote.exists(&sig("x")).unwrap());
}

#[test]
fn a_certificate_that_is_not_trusted_says_what_to_do_and_without_ours_nothing_goes() {
    let server = Cache::buildgrid(Door::ClientCertificate);
    let url = server.url("grpcs", "main");
    let error = open(&url, &plain()).unwrap().exists(&sig("x")).unwrap_err();
    assert!(matches!(error, RemoteError::Untrusted(_)), "{error:?}");
    assert!(error.to_string().contains("ca_file=FILE"), "{error}");
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        ..plain()
    };
    let error = open(&url, &options).unwrap().exists(&sig("x")).unwrap_err();
    // gRPC's own servers hang up without a word about it, sooner or later: it cannot be told from a dying one.
    assert!(error.is_transient(), "{error:?}");
}

#[test]
fn a_cache_that_takes_no_updates_is_refused_and_says_so() {
    let server = Cache::buildgrid(Door::ReadOnly);
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        ..plain()
    };
    let remote = open(&server.url("grpcs", "main"), &options).unwrap();
    assert!(remote.get(&sig("x")).unwrap().is_none());
    let put = remote.put(&sig("x"), Meta::file(0o644), &bytes(b"x"));
    let Err(RemoteError::Refused(why)) = put else {
        panic!("{put:?}")
    };
    assert!(why.contains("-o ro or push=off"), "{why}");
}

#[test]
fn a_stopped_server_is_transient_and_quick_and_found_again() {
    let mut server = Cache::casd();
    let remote = open(&server.url("grpc", ""), &plain()).unwrap();
    assert!(!remote.exists(&sig("x")).unwrap());
    server.stop();
    let began = std::time::Instant::now();
    for _ in 0..3 {
        let error = remote.exists(&sig("x")).unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
    let error = remote.exists(&sig("x")).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1));
    server.restart();
    assert!(!remote.exists(&sig("x")).unwrap());
}

fn through(proxy: &Proxy, options: RemoteOptions) -> Arc<dyn Remote> {
    let url = proxy.url("grpc", "");
    open(&url, &options).unwrap()
}

/// Most of what came before a cut does not come again.
#[test]
fn a_read_that_is_cut_goes_on_where_it_ended() {
    let server = Cache::casd();
    let content = noise(20 << 20);
    let direct = open(&server.url("grpc", ""), &plain()).unwrap();
    direct
        .put(&sig("big"), Meta::file(0o644), &bytes(&content))
        .unwrap();
    let proxy = Proxy::to(server.port());
    let remote = through(&proxy, plain());
    assert!(remote.exists(&sig("big")).unwrap());
    proxy.set(Fault::reset_after(12 << 20));
    let mut object = remote.get(&sig("big")).unwrap().unwrap();
    let mut start = vec![0; 4 << 20];
    object.content.read_exact(&mut start).unwrap();
    // The connection that is there ends; the next one does not.
    let mut rest = Vec::new();
    object
        .content
        .by_ref()
        .take(8 << 20)
        .read_to_end(&mut rest)
        .unwrap();
    let cut_at = proxy.responded();
    proxy.set(Fault::Pass);
    object.content.read_to_end(&mut rest).unwrap();
    assert!(start == content[..4 << 20] && rest == content[4 << 20..]);
    let came = proxy.responded();
    assert!(proxy.connections() >= 2, "it was cut at {cut_at}");
    assert!(came < (20 << 20) + (4 << 20), "{came} bytes for 20 MiB");
}

#[test]
fn silence_and_a_dead_network_end_within_their_times() {
    let server = Cache::casd();
    let direct = open(&server.url("grpc", ""), &plain()).unwrap();
    let content = noise(8 << 20);
    direct
        .put(&sig("big"), Meta::file(0o644), &bytes(&content))
        .unwrap();
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(400),
        ..plain()
    };
    for fault in [
        Fault::Blackhole,
        Fault::Silent,
        Fault::Refuse,
        Fault::stall_after(1 << 20),
    ] {
        let proxy = Proxy::to(server.port());
        let remote = through(&proxy, options.clone());
        assert!(remote.exists(&sig("big")).unwrap());
        proxy.set(fault);
        let began = std::time::Instant::now();
        let got = remote.get(&sig("big")).and_then(|object| {
            let mut object = object.expect("it is there");
            std::io::copy(&mut object.content, &mut std::io::sink()).map_err(RemoteError::from_io)
        });
        assert!(
            got.as_ref().is_err_and(RemoteError::is_transient),
            "{fault:?}: {got:?}"
        );
        let put = remote.put(&sig("other"), Meta::file(0o644), &bytes(&noise(9 << 20)));
        let stays = matches!(fault, Fault::Stall { .. });
        assert!(
            stays || put.as_ref().is_err_and(RemoteError::is_transient),
            "{fault:?}: {put:?}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{fault:?}: {:?}",
            began.elapsed()
        );
        // What was half dead is not used again.
        proxy.set(Fault::Pass);
        let again = || remote.exists(&sig("big")).is_ok_and(|exists| exists);
        wait_until("it is used again", Duration::from_secs(2), again);
    }
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_an_upload_has_nothing_wrong_afterwards() {
    let mut server = Cache::casd();
    let proxy = Proxy::to(server.port());
    let remote = through(&proxy, plain());
    let content = noise(16 << 20);
    assert!(!remote.exists(&sig("x")).unwrap());
    proxy.set(Fault::Bandwidth {
        bytes_per_second: 8 << 20,
    });
    let put = std::thread::scope(|scope| {
        let put = scope.spawn(|| remote.put(&sig("x"), Meta::file(0o644), &bytes(&content)));
        wait_until("4 MiB sent", Duration::from_secs(20), || {
            proxy.requested() > 4 << 20
        });
        server.stop();
        put.join().unwrap()
    });
    assert!(
        put.as_ref().is_err_and(RemoteError::is_transient),
        "{put:?}"
    );
    server.restart();
    proxy.set(Fault::Pass);
    let put = || {
        remote
            .put(&sig("x"), Meta::file(0o644), &bytes(&content))
            .unwrap()
    };
    assert_eq!((put(), put()), (Put::Stored, Put::Present));
}
