//! Action caches: what the contract means where an entry is an `ActionResult` and a blob.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use cachedirfs::object::Header;
use cachedirfs::remote::bazel::Bazel;
use cachedirfs::remote::reapi::{ActionCache, ActionResult, Digest, action_key, pr3971_key};
use cachedirfs::remote::{Format, Put, Remote, RemoteError, RemoteOptions, Secret, open};
use cachedirfs::signature::{Meta, Signature};
use url::Url;

use super::cases::{Case, Store, keyed, plain, raw};
use super::{
    another_mode_is_written_over, bytes, get, is_corrupt, noise, put, sig, symlinks_come_back,
};
use crate::support::canned::Canned;
use crate::support::reapi::{Cache, Guard};
use crate::support::servers::{PASSWORD, TOKEN, USER};

/// Where the blob of a digest is.
type Files = Box<dyn Fn(&Digest) -> PathBuf + Send + Sync>;

/// A way into an action cache past the remote that is being tried.
pub(super) struct Way {
    pub(super) cache: Box<dyn ActionCache>,
    /// The files of blobs, where the server keeps such and notices changes.
    pub(super) blobs: Option<Files>,
    /// Whether the server keeps what no server should: malformed digests, entries whose blob is not there.
    pub(super) is_careless: bool,
}

impl Way {
    fn action(&self, sig: &Signature) -> ActionResult {
        self.cache
            .action(&action_key(sig), None)
            .unwrap()
            .expect("an entry")
    }

    fn set(&self, sig: &Signature, result: &ActionResult) {
        self.cache.set_action(&action_key(sig), result).unwrap();
    }
}

macro_rules! keeps_the_contract {
    ($($name:ident: $case:expr;)*) => {
        $(#[test] fn $name() { super::keeps_the_contract(&$case); })*
    };
}

keeps_the_contract! {
    bazel_http_on_nginx_keeps_the_contract: nginx(plain());
    bazel_http_on_nginx_with_a_key_keeps_the_contract: nginx(keyed());
    bazel_http_on_nginx_without_headers_keeps_the_contract: nginx(raw());
    bazel_http_with_basic_credentials_keeps_the_contract: basic();
    bazel_http_with_a_token_keeps_the_contract: bearer();
}

/// Runs the suite over a server that is there already: `CACHEDIRFS_TEST_BAZEL_HTTP=http://host:port[/instance]`, a
/// bazel-remote for example. Its cache must be empty.
#[test]
#[ignore = "for a server of your own: CACHEDIRFS_TEST_BAZEL_HTTP"]
fn a_bazel_cache_of_your_own_keeps_the_contract() {
    let url = std::env::var("CACHEDIRFS_TEST_BAZEL_HTTP")
        .expect("CACHEDIRFS_TEST_BAZEL_HTTP=http://host:port[/instance]");
    let url = format!("bazel+{url}");
    super::keeps_the_contract(&at(&url, plain(), None, false));
}

fn at(url: &str, options: RemoteOptions, server: Option<Cache>, is_careless: bool) -> Case {
    let cache = Bazel::open(&Url::parse(url).unwrap(), &options).unwrap();
    let root = server.as_ref().map(Cache::root);
    let file =
        |root: PathBuf| -> Files { Box::new(move |digest| root.join("cas").join(digest.hash())) };
    Case {
        remote: open(url, &options).unwrap(),
        options,
        store: Store::Actions(Way {
            cache: Box::new(cache),
            blobs: root.map(file),
            is_careless,
        }),
        server: None,
        _held: server.map(|server| Box::new(server) as _),
    }
}

fn nginx(options: RemoteOptions) -> Case {
    let server = Cache::nginx(Guard::Open);
    at(
        &server.url("bazel+http", "cache"),
        options,
        Some(server),
        true,
    )
}

fn basic() -> Case {
    let server = Cache::nginx(Guard::Basic);
    let password = PASSWORD.replace('%', "%25");
    let host = format!("{USER}:{password}@localhost");
    let url = server
        .url("bazel+http", "cache")
        .replace("localhost", &host);
    at(&url, plain(), Some(server), true)
}

fn bearer() -> Case {
    let server = Cache::nginx(Guard::Bearer);
    let options = RemoteOptions {
        bearer: Some(Secret::new(TOKEN)),
        ..plain()
    };
    at(
        &server.url("bazel+http", "cache"),
        options,
        Some(server),
        true,
    )
}

pub(super) fn keeps_the_contract(case: &Case, way: &Way) {
    symlinks_come_back(case);
    it_cannot_be_listed(case);
    others_can_fetch_the_output(case, way);
    a_blob_that_is_gone_is_a_miss_and_is_written_again(case, way);
    if case.options.format == Format::Object {
        another_mode_is_written_over(case);
        every_mode_comes_back(case);
        what_is_wrong_in_an_entry_is_corrupt_and_is_repaired(case, way);
        a_liar_about_its_length_is_never_believed(case, way);
    }
    what_is_wrong_in_a_blob_never_comes_out(case, way);
}

fn it_cannot_be_listed(case: &Case) {
    let listed = case
        .remote
        .list(&mut |_| panic!("it was said to be impossible"));
    let Err(RemoteError::Unsupported(why)) = listed else {
        panic!("{listed:?}")
    };
    assert!(why.contains("action cache"), "{why}");
}

fn others_can_fetch_the_output(case: &Case, way: &Way) {
    let sig = sig("for others");
    put(case, &sig, b"build output");
    let result = way.action(&sig);
    let digest = Digest::of(b"build output");
    assert_eq!(result.exit_code, 0);
    assert_eq!(result.output_files[0].digest, Some(digest.to_message()));
    let mut blob = way.cache.blob(&digest).unwrap().expect("in the CAS");
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut blob, &mut content).unwrap();
    assert_eq!(content, b"build output");
}

fn every_mode_comes_back(case: &Case) {
    for mode in [0o444, 0o555, 0o600, 0o711, 0o000] {
        let sig = sig(&format!("mode {mode:o}"));
        let stored = case.remote.put(&sig, Meta::file(mode), &bytes(b"x"));
        assert_eq!(stored.unwrap(), Put::Stored);
        assert_eq!(get(case, &sig).unwrap().unwrap().0, Meta::file(mode));
    }
}

fn a_blob_that_is_gone_is_a_miss_and_is_written_again(case: &Case, way: &Way) {
    let Some(file) = &way.blobs else { return };
    let (sig, content) = (sig("gone"), noise(5000));
    put(case, &sig, &content);
    fs::remove_file(file(&Digest::of(&content))).unwrap();
    assert_eq!(get(case, &sig).unwrap(), None);
    assert!(!case.remote.exists(&sig).unwrap() && !case.remote.touch(&sig).unwrap());
    assert_eq!(put(case, &sig, &content), Put::Stored);
    assert!(get(case, &sig).unwrap().unwrap().1 == content);
    assert_eq!(put(case, &sig, &content), Put::Present);
}

/// Whatever was wrong is an error for the reader, and the push that follows its rebuild repairs it.
fn what_is_wrong_in_an_entry_is_corrupt_and_is_repaired(case: &Case, way: &Way) {
    type Damage<'a> = (&'a str, Box<dyn Fn(&mut ActionResult) + 'a>);
    let content = noise(3000);
    let (donor, other) = (sig("donor"), noise(2999));
    put(case, &donor, &other);
    let donor = way.action(&donor);
    let mut damages: Vec<Damage<'_>> = vec![
        ("another's", Box::new(|entry| *entry = donor.clone())),
        ("flipped magic", Box::new(|entry| entry.stdout_raw[9] ^= 1)),
        (
            "flipped header",
            Box::new(|entry| entry.stdout_raw[40] ^= 1),
        ),
        (
            "cut header",
            Box::new(|entry| entry.stdout_raw.truncate(60)),
        ),
        ("longer header", Box::new(|entry| entry.stdout_raw.push(0))),
        (
            "another's content",
            Box::new(|entry| entry.output_files = donor.output_files.clone()),
        ),
        (
            "two outputs",
            Box::new(|entry| entry.output_files.extend(donor.output_files.clone())),
        ),
    ];
    if way.is_careless {
        let set = |entry: &mut ActionResult, hash: &str| {
            let digest = entry.output_files[0].digest.as_mut().unwrap();
            digest.hash = hash.to_owned();
        };
        damages.push(("no digits", Box::new(move |entry| set(entry, "../../x"))));
        damages.push((
            "no digest",
            Box::new(|entry| entry.output_files[0].digest = None),
        ));
    }
    for (what, damage) in damages {
        let sig = sig(what);
        put(case, &sig, &content);
        let mut entry = way.action(&sig);
        damage(&mut entry);
        way.set(&sig, &entry);
        assert!(is_corrupt(&get(case, &sig)), "{what}");
        assert_eq!(put(case, &sig, &content), Put::Stored, "{what}");
        assert!(get(case, &sig).unwrap().unwrap().1 == content, "{what}");
    }
}

/// A blob of the right size whose SHA-256 is right, but it is not what the header was made for.
fn a_liar_about_its_length_is_never_believed(case: &Case, way: &Way) {
    let sig = sig("one tebibyte");
    put(case, &sig, b"tiny");
    let mut entry = way.action(&sig);
    let hash = bytes(b"tiny").hash().unwrap();
    let header = Header::new(
        sig,
        Meta::file(0o644),
        1 << 40,
        hash,
        case.options.key.as_ref(),
    );
    entry.stdout_raw = header.to_bytes();
    entry.output_files[0].digest.as_mut().unwrap().size_bytes = 1 << 40;
    way.set(&sig, &entry);
    let got = get(case, &sig);
    assert!(is_corrupt(&got) || matches!(got, Ok(None)), "{got:?}");
}

/// Never other bytes; where it is the server's to repair, it may stay an error.
fn what_is_wrong_in_a_blob_never_comes_out(case: &Case, way: &Way) {
    let Some(file) = &way.blobs else { return };
    type Damage = (&'static str, fn(&mut Vec<u8>));
    let damages: [Damage; 5] = [
        ("flipped", |bytes| bytes[100] ^= 1),
        ("flipped in the last byte", |bytes| {
            *bytes.last_mut().unwrap() ^= 1;
        }),
        ("cut", |bytes| bytes.truncate(700)),
        ("longer", |bytes| bytes.push(0)),
        ("empty", Vec::clear),
    ];
    for (at, (what, damage)) in damages.into_iter().enumerate() {
        let (sig, content) = (sig(&format!("blob {what}")), noise(200_000 + at));
        put(case, &sig, &content);
        let path = file(&Digest::of(&content));
        let mut damaged = content.clone();
        damage(&mut damaged);
        // A server may keep blobs read-only, and have others that are the same file.
        fs::remove_file(&path).unwrap();
        fs::write(&path, damaged).unwrap();
        let got = get(case, &sig);
        // buildbox-casd reads no further than a blob is long.
        let is_right = |(_, bytes): &(_, Vec<u8>)| *bytes == content;
        assert!(
            !matches!(&got, Ok(Some(found)) if !is_right(found)),
            "{what}"
        );
        if way.is_careless {
            assert!(is_corrupt(&got), "{what}: {:?}", got.err());
            assert_eq!(put(case, &sig, &content), Put::Stored, "{what}");
            assert!(get(case, &sig).unwrap().unwrap().1 == content, "{what}");
        }
    }
}

#[test]
fn nginx_sees_only_paths_of_the_two_kinds_and_the_blob_before_the_entry() {
    let server = Cache::nginx(Guard::Open);
    let remote = open(&server.url("bazel+http", "cache"), &plain()).unwrap();
    let sig = sig("x");
    remote.put(&sig, Meta::file(0o644), &bytes(b"x")).unwrap();
    let (key, blob) = (action_key(&sig).hash(), Digest::of(b"x").hash());
    let log = server.log();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(
        lines,
        [
            format!("GET /cache/ac/{key} 404"),
            format!("HEAD /cache/cas/{blob} 404"),
            format!("PUT /cache/cas/{blob} 201"),
            format!("PUT /cache/ac/{key} 201"),
        ]
    );
}

/// What SCons with pull request 3971 PUTs, byte for byte as Python's `json.dumps` spells it.
#[test]
fn an_entry_of_pull_request_3971_is_read_if_that_is_wanted() {
    let server = Cache::nginx(Guard::Open);
    let (sig, output) = (sig("theirs"), b"\x7fELF by SCons itself");
    let digest = Digest::of(output);
    let json = format!(
        r#"{{"outputFiles": [{{"path": "prog", "digest": {{"hash": "{}", "sizeBytes": {}}}, "isExecutable": true}}]}}"#,
        digest.hash(),
        digest.size
    );
    for (kind, name, content) in [
        ("ac", pr3971_key(&sig).hash(), json.as_bytes()),
        ("cas", digest.hash(), output),
    ] {
        fs::create_dir_all(server.root().join(kind)).unwrap();
        fs::write(server.root().join(kind).join(name), content).unwrap();
    }
    let url = server.url("bazel+http", "cache");
    assert!(open(&url, &plain()).unwrap().get(&sig).unwrap().is_none());
    let options = RemoteOptions {
        pr3971: true,
        ..plain()
    };
    let case = at(&url, options, None, true);
    let got = get(&case, &sig).unwrap().unwrap();
    assert_eq!(got, (Meta::file(0o755), output.to_vec()));
    assert_eq!(put(&case, &sig, b"by us"), Put::Stored);
    assert_eq!(get(&case, &sig).unwrap().unwrap().1, b"by us");
    let kept = fs::read(server.root().join("ac").join(pr3971_key(&sig).hash())).unwrap();
    assert_eq!(kept, json.as_bytes());
}

/// A server that takes no DELETE (bazel-remote: 405) has the entry overwritten.
#[test]
fn where_nothing_can_be_deleted_an_entry_without_output_hides_it() {
    let mut server = crate::support::servers::Server::nginx(crate::support::servers::Nginx::Open);
    server.set_answer("$request_method = DELETE", Some(405));
    let url = format!("bazel+{}", server.url());
    let case = at(&url, plain(), None, true);
    let sig = sig("removed");
    put(&case, &sig, b"bad");
    assert!(case.remote.delete(&sig).unwrap());
    assert_eq!(get(&case, &sig).unwrap(), None);
    assert!(!case.remote.exists(&sig).unwrap() && !case.remote.delete(&sig).unwrap());
    assert_eq!(put(&case, &sig, b"good"), Put::Stored);
    assert_eq!(get(&case, &sig).unwrap().unwrap().1, b"good");
}

#[test]
fn a_server_that_answers_nonsense_is_corrupt_or_refused_but_never_believed() {
    let answer = |kind: &str, body: &str| {
        let len = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    for (kind, body) in [
        ("application/octet-stream", "not a message"),
        ("application/json", "{\"outputFiles\": [{}]}"),
        ("text/html", "<html>log in</html>"),
        ("application/octet-stream", &"x".repeat(300 << 10)),
    ] {
        let server = Canned::closing(answer(kind, body));
        let remote = open(&format!("bazel+{}", server.url()), &plain()).unwrap();
        let got = remote.get(&sig("x")).map(|_| ());
        assert!(is_corrupt(&got), "{kind}: {got:?}");
    }
}

#[test]
fn wrong_credentials_are_refused_and_never_shown() {
    let server = Cache::nginx(Guard::Basic);
    let url = server.url("bazel+http", "cache");
    for host in ["localhost", "user:wrong-secret@localhost"] {
        let remote = open(&url.replace("localhost", host), &plain()).unwrap();
        let put = remote
            .put(&sig("x"), Meta::file(0o644), &bytes(b"x"))
            .map(drop);
        for result in [
            put,
            remote.exists(&sig("x")).map(drop),
            remote.delete(&sig("x")).map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, RemoteError::Refused(_)), "{error:?}");
            assert!(!format!("{error} {error:?} {}", remote.describe()).contains("secret"));
        }
    }
}

/// A real Bazel fills the cache: it leaves our entries alone, and we take none of its for ours.
#[test]
fn bazel_and_we_share_a_cache_and_do_not_mistake_each_other() {
    let server = Cache::nginx(Guard::Open);
    let case = at(&server.url("bazel+http", "cache"), plain(), None, true);
    let sigs: Vec<_> = (0..20).map(|n| sig(&format!("shared {n}"))).collect();
    for sig in &sigs[..10] {
        put(&case, sig, sig.as_bytes());
    }
    let names = || {
        let files = fs::read_dir(server.root().join("ac")).unwrap();
        files
            .map(|file| file.unwrap().file_name())
            .collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    bazel_builds(&server);
    assert!(
        names().len() > before.len() && names().is_superset(&before),
        "Bazel wrote"
    );
    for (n, sig) in sigs.iter().enumerate() {
        let got = get(&case, sig).unwrap().map(|(_, content)| content);
        assert_eq!(got, (n < 10).then(|| sig.as_bytes().to_vec()));
    }
    // And what it wrote is read back by the parser of ours without a complaint.
    let Store::Actions(way) = &case.store else {
        unreachable!("an action cache")
    };
    for name in names().difference(&before) {
        let bytes = fs::read(server.root().join("ac").join(name)).unwrap();
        let result: ActionResult = prost::Message::decode(&bytes[..]).unwrap();
        let file = &result.output_files[0];
        let digest = Digest::parse(file.digest.as_ref().unwrap()).unwrap();
        assert!(way.cache.has_blob(&digest).unwrap(), "{file:?}");
    }
}

fn bazel_builds(server: &Cache) {
    let bazel = crate::support::installed(PathBuf::from("/usr/bin/bazel"), "bazel");
    let workspace = server.dir().join("workspace");
    fs::create_dir(&workspace).unwrap();
    fs::write(workspace.join("WORKSPACE"), "").unwrap();
    let rule = "genrule(name = 'made', outs = ['made.txt'], cmd = 'echo made >$@')\n";
    fs::write(workspace.join("BUILD"), rule).unwrap();
    let built = Command::new(bazel)
        .arg(format!(
            "--output_user_root={}",
            server.dir().join("bazel").display()
        ))
        .args(["--batch", "build", "--spawn_strategy=local", "//:made"])
        .arg(format!("--remote_cache={}", server.url("http", "cache")))
        .current_dir(&workspace)
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
}

#[test]
fn opening_asks_nobody() {
    let remote: Arc<dyn Remote> = open("bazel+http://192.0.2.1/cache", &plain()).unwrap();
    assert_eq!(remote.describe(), "bazel+http://192.0.2.1/cache/");
}

/// nginx that asks for a certificate answers 400 without one, and takes one by its authority.
#[test]
fn a_server_that_asks_for_a_certificate_is_shown_ours() {
    let server = Cache::nginx(Guard::Certificate);
    let url = server.url("bazel+https", "cache");
    let none = RemoteOptions {
        ca_file: Some(server.ca()),
        ..plain()
    };
    let error = open(&url, &none).unwrap().exists(&sig("x")).unwrap_err();
    assert!(!error.is_transient(), "{error:?}");
    let ours = RemoteOptions {
        client_cert_file: Some(server.dir().join("cert.pem")),
        client_key_file: Some(server.dir().join("key.pem")),
        ..none
    };
    let case = at(&url, ours.clone(), None, true);
    assert_eq!(put(&case, &sig("x"), b"x"), Put::Stored);
    let wrong = RemoteOptions {
        client_key_file: Some(server.ca()),
        ..ours
    };
    let error = open(&url, &wrong).map(drop).unwrap_err();
    assert!(matches!(error, RemoteError::Misconfigured(_)), "{error:?}");
}
