//! Whatever reads bytes that we did not write: any bytes are understood or refused, nothing else. Never a panic, never a
//! credential in what is said of them, never content that was not verified.
//!
//! What is private to a module is tried there: object header and frames (`src/object/tests.rs`), netrc, multistatus
//! and index, names of the journal, the mount table, the control socket.

mod http;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cachedirfs::clock::ManualClock;
use cachedirfs::config::{Config, Host};
use cachedirfs::remote::{Environment, RemoteOptions, Secret, open};
use cachedirfs::stats::Stats;
use cachedirfs::store::{Limits, Store};
use proptest::prelude::*;
use tempfile::TempDir;

/// What must be seen nowhere.
const PASSWORD: &str = "pA55w0rd";

fn host() -> Host {
    Host {
        uid: 0,
        cpus: 2,
        cwd: "/work".into(),
        home: Some("/root".into()),
        cache_home: None,
        runtime_dir: None,
        credentials: None,
        bearer: Some(Secret::new(PASSWORD)),
        environment: Environment::default(),
        options: None,
        log_filter: None,
        shared_log_filter: None,
        user_id: |_| None,
        group_id: |_| None,
        disk_size: |_| None,
    }
}

/// URLs with a password in them, and what somebody may have mistyped into one. Behind a slash or the like it would
/// be a path, in which an `@` is nothing special.
fn with_password() -> impl Strategy<Value = String> {
    let scheme = prop_oneof![
        "(https?|file|ftp|s3)://",
        "[a-z]{0,6}:?/{0,3}",
        Just(String::new())
    ];
    (
        scheme,
        "[!-~&&[^/?#\\\\]]{0,6}",
        "[!-~]{0,4}",
        "[ -~]{0,10}",
    )
        .prop_map(|(scheme, user, odd, rest)| format!("{scheme}{user}:{PASSWORD}{odd}@host{rest}"))
}

/// Everything that is said of a URL, by those who mount it and those who open it.
fn said_of(url: &str, options: &RemoteOptions) -> String {
    let mut said = String::new();
    match Config::new(url, Path::new("/m"), &[], &host()) {
        Ok(config) => {
            said += &format!("{config:?} {} {}", config.fsname, config.remote_shown());
            said += &config.backing.display().to_string();
        }
        Err(error) => said += &format!("{error} {error:?}"),
    }
    match open(url, options) {
        Ok(remote) => said += &remote.describe(),
        Err(error) => said += &format!("{error} {error:?}"),
    }
    said
}

/// Nothing is made on disk by opening these.
fn is_harmless(url: &str) -> bool {
    !url.trim_start().to_ascii_lowercase().starts_with("file")
}

proptest! {
    // A failure says its input; nothing is to be kept beside the tests.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// `https:///user:password@host` once was shown as it is, and the mount table has it then.
    #[test]
    fn nothing_that_is_said_of_a_url_has_its_password(url in with_password().prop_filter("a directory", |url| is_harmless(url))) {
        let said = said_of(&url, &RemoteOptions::default());
        prop_assert!(!said.contains(PASSWORD), "{}: {}", url, said);
    }

    #[test]
    fn any_text_is_a_remote_or_an_error(url in prop_oneof![".{0,40}", "[a-z]{1,5}:[/\\\\]{0,3}[ -~]{0,30}"].prop_filter("a directory", |url| is_harmless(url))) {
        said_of(&url, &RemoteOptions::default());
    }

    #[test]
    fn any_options_are_a_configuration_or_an_error_that_names_the_option(
        options in prop::collection::vec("[a-z_]{0,14}(=[ -~]{0,14})?", 0..6),
    ) {
        let list = options.join(",");
        if let Err(error) = Config::new("https://host/c", Path::new("/m"), std::slice::from_ref(&list), &host()) {
            let said = error.to_string();
            prop_assert!(said.contains("option `") && !said.contains(PASSWORD), "{}: {}", list, said);
        }
    }

    /// A directory may be called anything: commas and backslashes are escaped.
    #[test]
    fn a_path_in_an_option_comes_through_whatever_is_in_it(name in "[^\u{0}/]{1,20}") {
        let escaped = name.replace('\\', "\\\\").replace(',', "\\,");
        let list = format!("ro,backing=/b/{escaped},size=1G");
        let config = Config::new("https://host/c", Path::new("/m"), &[list], &host()).unwrap();
        prop_assert_eq!(config.backing, PathBuf::from("/b").join(name));
        prop_assert!(config.ro);
    }

    #[test]
    fn any_credentials_are_taken_or_refused_and_never_shown(
        before in "[ -~\n\t]{0,20}", after in prop_oneof!["[ -~\n\t]{0,20}", "\\PC{0,9}"], url in "https://(u@)?h/",
    ) {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, format!("{before}{PASSWORD}{after}")).unwrap();
        let default = RemoteOptions::default;
        for options in [
            RemoteOptions { netrc_file: Some(file.clone()), ..default() },
            RemoteOptions { basic_file: Some(file.clone()), ..default() },
            RemoteOptions { bearer_file: Some(file.clone()), ..default() },
            RemoteOptions { ca_file: Some(file.clone()), ..default() },
        ] {
            let said = match open(&url, &options) {
                Ok(remote) => remote.describe(),
                Err(error) => format!("{error} {error:?}"),
            };
            prop_assert!(!said.contains(PASSWORD), "{}", said);
        }
    }

    #[test]
    fn a_file_of_any_bytes_is_a_key_or_an_error(bytes in prop_oneof![any::<Vec<u8>>(), "[ -~]{0,70}".prop_map(String::into_bytes)]) {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("key");
        fs::write(&file, &bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        match cachedirfs::object::Key::read(&file) {
            Ok(key) => {
                let shown = format!("{key:?}");
                prop_assert!(text.len() == 64 && !shown.contains(&text));
            }
            Err(error) => {
                let said = format!("{error} {error:?}");
                prop_assert!(text.len() < 8 || !said.contains(&text), "{}", said);
            }
        }
    }

    #[test]
    fn a_cachedir_with_any_config_opens(bytes in prop_oneof![
        any::<Vec<u8>>(),
        "\\{\"prefix_len\": ?[-0-9a-z.\"]{0,20}\\}".prop_map(String::into_bytes),
    ]) {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("config"), &bytes).unwrap();
        let limits = Limits { size: 1 << 30, min_free: 0 };
        let store = Store::open(dir.path(), limits, Arc::<ManualClock>::default(), Arc::<Stats>::default()).unwrap();
        prop_assert!((1..=4).contains(&store.prefix_digits()));
        // What SCons or a person wrote is theirs; what SCons would die of may be replaced by what it can read.
        let found = fs::read(dir.path().join("config")).unwrap();
        prop_assert!(found == bytes || is_readable(&found) && !is_readable(&bytes));
    }
}

fn is_readable(config: &[u8]) -> bool {
    let config = serde_json::from_slice::<serde_json::Value>(config);
    config.is_ok_and(|config| config["prefix_len"].is_u64())
}

/// Before it is counted how deep it goes.
#[test]
fn a_config_that_is_nested_without_end_is_none() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config"), "[".repeat(1 << 20)).unwrap();
    let limits = Limits {
        size: 1 << 30,
        min_free: 0,
    };
    let clock = Arc::<ManualClock>::default();
    let store = Store::open(dir.path(), limits, clock, Arc::<Stats>::default()).unwrap();
    assert_eq!(store.prefix_digits(), 2);
}
