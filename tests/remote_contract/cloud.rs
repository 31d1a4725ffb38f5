//! The object stores of the clouds: the suite over each, and what only they can do.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use cachedirfs::remote::{Environment, Format, Layout, Listed, Put, Remote, RemoteOptions, open};
use cachedirfs::signature::Meta;

use super::cases::{self, Case, layout, plain};
use super::{bytes, get, keeps_the_contract, noise, put, sig};
use crate::support::cloud::{BUCKET, Hand, Store};

/// What the class of SCons issue 4394 has.
fn like_the_class() -> RemoteOptions {
    RemoteOptions {
        format: Format::Raw,
        ..layout(Layout::Lower)
    }
}

/// `options` for a store.
fn of(store: &Store, options: RemoteOptions) -> RemoteOptions {
    RemoteOptions {
        endpoint: Some(store.endpoint()),
        environment: Environment::new(store.keys.clone()),
        ca_file: Some(store.ca()).filter(|ca| ca.exists()),
        ..options
    }
}

/// A remote below a prefix that takes escapes in URLs.
fn case(scheme: &str, store: Store, options: RemoteOptions) -> Case {
    let options = of(&store, options);
    Case {
        remote: open(&format!("{scheme}://{BUCKET}/a/b+c"), &options).unwrap(),
        options,
        store: cases::Store::Hand(store.hand(), "a/b+c/"),
        server: None,
        _held: Some(Box::new(store)),
    }
}

fn s3(store: Store, options: RemoteOptions) -> Case {
    case("s3", store, options)
}

fn az(options: RemoteOptions) -> Case {
    case("az", Store::azurite(), options)
}

/// The emulator takes one connection at a time and lets five wait.
fn gs(options: RemoteOptions) -> Case {
    let options = RemoteOptions {
        connect_timeout: Duration::from_secs(30),
        ..options
    };
    case("gs", Store::gcs(), options)
}

#[test]
fn moto_keeps_the_contract() {
    keeps_the_contract(&s3(Store::moto(), plain()));
}

#[test]
fn moto_with_tls_keeps_the_contract() {
    keeps_the_contract(&s3(Store::moto_tls(), plain()));
}

#[test]
fn moto_of_raw_objects_in_lower_layout_keeps_the_contract() {
    keeps_the_contract(&s3(Store::moto(), like_the_class()));
}

#[test]
#[ignore = "takes minutes to install: scripts/setup s3s"]
fn s3s_fs_keeps_the_contract() {
    let case = s3(Store::s3s_fs(), plain());
    keeps_the_contract(&case);
    deletes_only_what_was_listed(&case);
}

#[test]
fn azurite_keeps_the_contract() {
    keeps_the_contract(&az(plain()));
}

#[test]
fn azurite_of_raw_objects_keeps_the_contract() {
    keeps_the_contract(&az(like_the_class()));
}

#[test]
fn an_emulator_of_google_keeps_the_contract() {
    keeps_the_contract(&gs(plain()));
}

#[test]
fn an_emulator_of_google_with_raw_objects_keeps_the_contract() {
    keeps_the_contract(&gs(like_the_class()));
}

/// Any other S3: `CACHEDIRFS_TEST_S3=http://host:port/bucket`, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
/// AWS_REGION.
#[test]
#[ignore = "for a server of your own: CACHEDIRFS_TEST_S3"]
fn the_s3_that_the_environment_names_keeps_the_contract() {
    let url =
        std::env::var("CACHEDIRFS_TEST_S3").expect("CACHEDIRFS_TEST_S3=http://host:port/bucket");
    let (endpoint, bucket) = url.rsplit_once('/').expect("http://host:port/bucket");
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
    let keys: BTreeMap<_, _> = variables.collect();
    for (n, options) in [plain(), like_the_class()].into_iter().enumerate() {
        let prefix: &str = ["plain/", "class/"][n];
        let options = RemoteOptions {
            endpoint: Some(endpoint.to_owned()),
            environment: Environment::new(keys.clone()),
            ..options
        };
        keeps_the_contract(&Case {
            remote: open(&format!("s3://{bucket}/{prefix}"), &options).unwrap(),
            options,
            store: cases::Store::Hand(Hand::new("s3", endpoint, bucket, &keys, None), prefix),
            server: None,
            _held: None,
        });
    }
}

/// Objects by signature, as a listing has them.
fn listed(remote: &dyn Remote) -> BTreeMap<String, Listed> {
    let mut found = BTreeMap::new();
    remote
        .list(&mut |entry| drop(found.insert(entry.sig.to_string(), entry)))
        .unwrap();
    found
}

fn listed_one(case: &Case, what: &str) -> Listed {
    listed(&*case.remote).remove(sig(what).as_str()).unwrap()
}

/// A store with conditions deletes only what nobody wrote or touched since it was listed.
fn deletes_only_what_was_listed(case: &Case) {
    for what in ["written", "touched", "left alone"] {
        put(case, &sig(what), b"old");
    }
    let before = listed(&*case.remote);
    let entry = |what: &str| before[sig(what).as_str()].clone();
    assert!(entry("touched").modified.is_some());
    // Times of S3 are in seconds.
    thread::sleep(Duration::from_millis(1100));
    assert!(case.remote.touch(&sig("touched")).unwrap());
    assert!(!case.remote.touch(&sig("not there")).unwrap());
    case.remote.delete(&sig("written")).unwrap();
    put(case, &sig("written"), b"newer");
    for what in ["written", "touched"] {
        assert!(!case.remote.delete_listed(&entry(what)).unwrap(), "{what}");
        assert!(get(case, &sig(what)).unwrap().is_some(), "{what}");
    }
    assert!(case.remote.delete_listed(&entry("left alone")).unwrap());
    assert!(!case.remote.delete_listed(&entry("left alone")).unwrap());
    assert!(get(case, &sig("left alone")).unwrap().is_none());
    let now = listed_one(case, "touched");
    assert!(now.modified > entry("touched").modified);
    assert!(case.remote.delete_listed(&now).unwrap());
}

#[test]
fn s3_deletes_only_what_was_listed() {
    deletes_only_what_was_listed(&s3(Store::moto(), plain()));
}

#[test]
fn azure_deletes_only_what_was_listed() {
    deletes_only_what_was_listed(&az(plain()));
}

/// A touch of a raw object keeps what the store knows about it.
#[test]
fn a_touch_keeps_the_metadata() {
    for case in [s3(Store::moto(), like_the_class()), az(like_the_class())] {
        let sig = sig("program");
        case.remote
            .put(&sig, Meta::file(0o755), &bytes(b"not ELF"))
            .unwrap();
        assert!(case.remote.touch(&sig).unwrap());
        assert_eq!(
            get(&case, &sig).unwrap().unwrap(),
            (Meta::file(0o755), b"not ELF".to_vec())
        );
    }
}

/// More than one page, and strangers' objects before and behind the prefix.
#[test]
fn long_listings_come_whole() {
    for (case, pages) in [
        (s3(Store::moto(), plain()), 1_100),
        (az(plain()), 50),
        (gs(plain()), 1_100),
    ] {
        let cases::Store::Hand(hand, prefix) = &case.store else {
            unreachable!()
        };
        for n in 0..pages {
            hand.set(
                &format!("{prefix}{}", case.options.layout.key(&sig(&n.to_string()))),
                b"x",
            );
        }
        for stranger in ["a/b+c", "a/b c/x", "a/b+cd/x", "z"] {
            hand.set(&stranger.replace(' ', "%20"), b"x");
        }
        assert_eq!(listed(&*case.remote).len(), pages);
    }
}

/// Above 64 MiB objects go up in parts; one that changes while it goes is taken back.
#[test]
fn big_objects_go_up_in_parts() {
    let content = noise(70 << 20);
    let dir = tempfile::TempDir::new().unwrap();
    for case in [s3(Store::moto(), like_the_class()), az(like_the_class())] {
        let path = dir.path().join("content");
        std::fs::write(&path, &content).unwrap();
        let open = || std::fs::File::open(&path).unwrap();
        let file = || cachedirfs::remote::Content::File(open(), content.len() as u64);
        let mode = Meta::file(0o755);
        assert_eq!(
            case.remote.put(&sig("big"), mode, &file()).unwrap(),
            Put::Stored
        );
        let (meta, back) = get(&case, &sig("big")).unwrap().unwrap();
        assert!(back == content && meta == mode, "{meta:?}");
        assert_eq!(
            case.remote.put(&sig("big"), mode, &file()).unwrap(),
            Put::Present
        );
    }
}

/// The mode of a raw object is where s3fs and others have it.
#[test]
fn modes_are_metadata() {
    for (case, wanted) in [
        (s3(Store::moto(), like_the_class()), r#"{"mode": "33261"}"#),
        (az(like_the_class()), r#"{"mode": "0755"}"#),
    ] {
        let cases::Store::Hand(hand, prefix) = &case.store else {
            unreachable!()
        };
        let put = case
            .remote
            .put(&sig("program"), Meta::file(0o755), &bytes(b"x"));
        assert_eq!(put.unwrap(), Put::Stored);
        let key = format!("{prefix}{}", case.options.layout.key(&sig("program")));
        assert_eq!(hand.ask(&format!("meta {key}")), wanted);
        assert_eq!(
            get(&case, &sig("program")).unwrap().unwrap().0,
            Meta::file(0o755)
        );
    }
}
