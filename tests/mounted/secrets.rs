//! No credential ever shows: not in the log, which says all that it can here, not in errors or the status, not in the
//! arguments of the process or the mount table.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::cloud::{BUCKET, Store};
use crate::support::mounted::{CACHEDIRFS, Mounted};
use crate::support::oracle::{Push, Shape};
use crate::support::reapi::{Cache, Door};
use crate::support::redis::Redis;
use crate::support::servers::{Nginx, PASSWORD, Server, TOKEN, USER};
use crate::support::{wait_until, workspace};

/// A remote with one kind of credentials, right or wrong.
struct Case {
    what: &'static str,
    url: String,
    options: String,
    environment: Vec<(&'static str, String)>,
    /// What must not show.
    secrets: Vec<String>,
}

impl Case {
    fn new(what: &'static str, url: String, secrets: &[&str]) -> Self {
        Self {
            what,
            url,
            options: String::new(),
            environment: Vec::new(),
            secrets: secrets.iter().map(|secret| (*secret).to_owned()).collect(),
        }
    }

    fn with_option(mut self, option: &str, value: impl std::fmt::Display) -> Self {
        self.options += &format!(",{option}={value}");
        self
    }

    fn with_variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Uses the mount in every way that talks about the remote, and looks at all that was said.
    fn shows_nothing(&self) {
        let set = |(name, value): &(&str, String)| format!("{name}={value}");
        let mut wrapper = vec!["/usr/bin/env".to_owned()];
        wrapper.extend(self.environment.iter().map(set));
        let options = format!("log_level=trace,drain_timeout=1{}", self.options);
        let mut mount = Mounted::wrapped(wrapper, workspace(), &self.url, &options);
        assert!(fs::metadata(mount.path().join(Push(7).entry())).is_err());
        Push(8).perform(mount.path(), Shape::Uuid).unwrap();
        wait_until("the upload was tried", Duration::from_secs(20), || {
            let status = mount.status();
            status["pending"]["objects"] == 0 || status["counters"]["upload_errors"] != 0
        });
        let process = format!("/proc/{}", mount.pid());
        self.look(
            "the arguments",
            &fs::read(format!("{process}/cmdline")).unwrap(),
        );
        self.look(
            "the mount table",
            &fs::read("/proc/self/mountinfo").unwrap(),
        );
        for arguments in [&["status"][..], &["status", "--json"]] {
            let said = Command::new(CACHEDIRFS)
                .args(arguments)
                .arg(mount.path())
                .output();
            self.look_at_output("the status", &said.unwrap());
        }
        let checked = Command::new(CACHEDIRFS)
            .arg("check")
            .args(["-o", &options, &self.url])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("RUST_LOG", "trace")
            .output();
        self.look_at_output("check", &checked.unwrap());
        mount.terminate();
        let log = mount.log();
        assert!(
            log.contains("TRACE") || log.contains("DEBUG"),
            "{}: it says everything",
            self.what
        );
        self.look("the log", log.as_bytes());
    }

    fn look_at_output(&self, where_: &str, output: &std::process::Output) {
        self.look(where_, &output.stdout);
        self.look(where_, &output.stderr);
    }

    fn look(&self, where_: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for (n, secret) in self.secrets.iter().enumerate() {
            let shown = text.lines().find(|line| line.contains(secret.as_str()));
            let line = shown.map(|line| line.replace(secret.as_str(), "<the secret>"));
            assert_eq!(line, None, "{}, {where_}: secret {n} shows", self.what);
        }
    }
}

fn secret_file(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// What Basic credentials look like on their way.
fn basic(password: &str) -> String {
    let script = "printf %s \"$0\" | base64 -w0";
    let coded = Command::new("sh")
        .args(["-c", script, &format!("{USER}:{password}")])
        .output();
    String::from_utf8(coded.unwrap().stdout).unwrap()
}

#[test]
fn no_credential_for_http_shows() {
    let dir = workspace();
    let file = |name: &str, content: &str| secret_file(dir.path(), name, content);
    let (asks_basic, asks_bearer) = (Server::nginx(Nginx::Basic), Server::nginx(Nginx::Bearer));
    let key = "5ec4e7".repeat(10) + "abcd";
    for (right, password, token) in [
        ("right", PASSWORD, TOKEN),
        ("wrong", "wr0ng-s3cret", "wr0ng-t0ken"),
    ] {
        let login = file(&format!("basic-{right}"), &format!("{USER}:{password}"));
        let bearer = file(&format!("bearer-{right}"), token);
        let netrc = file(
            &format!("netrc-{right}"),
            &format!("machine localhost login {USER} password {password}\n"),
        );
        let coded = basic(password);
        Case::new("basic_file", asks_basic.url(), &[password, &coded])
            .with_option("basic_file", &login)
            .with_option("key_file", file("key", &key))
            .shows_nothing();
        Case::new("netrc_file", asks_basic.url(), &[password, &coded])
            .with_option("netrc_file", &netrc)
            .shows_nothing();
        Case::new("bearer_file", asks_bearer.url(), &[token])
            .with_option("bearer_file", &bearer)
            .shows_nothing();
        Case::new("a token in the environment", asks_bearer.url(), &[token])
            .with_variable("CACHEDIRFS_BEARER_TOKEN", token)
            .shows_nothing();
    }
}

#[test]
fn no_credential_for_an_object_store_shows() {
    let (moto, azurite) = (Store::moto(), Store::azurite());
    for (scheme, store) in [("s3", &moto), ("az", &azurite)] {
        for spoil in ["", "spoiled"] {
            let mut case = Case::new(scheme, format!("{scheme}://{BUCKET}/secrets"), &[])
                .with_option("endpoint", store.endpoint())
                .with_option("noimds,min_speed", 0);
            for (name, value) in &store.keys {
                let secret = ["SECRET", "TOKEN", "_KEY"]
                    .iter()
                    .any(|part| name.contains(part))
                    && *name != "AWS_ACCESS_KEY_ID";
                // Wrong ones are as secret as right ones: they may be right elsewhere.
                let value = match secret && !spoil.is_empty() {
                    true => value.chars().rev().collect(),
                    false => value.clone(),
                };
                if secret {
                    case.secrets.push(value.clone());
                }
                case.environment.push((name.clone().leak(), value));
            }
            assert!(!case.secrets.is_empty());
            case.shows_nothing();
        }
    }
    let sas = "sv=2022-11-02&ss=b&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D";
    Case::new(
        "a SAS token",
        format!("az://{BUCKET}/secrets"),
        &["c2VjcmV0LXNpZ25hdHVyZQ"],
    )
    .with_option("endpoint", azurite.endpoint())
    .with_variable("AZURE_STORAGE_ACCOUNT", "builder")
    .with_variable("AZURE_STORAGE_SAS_TOKEN", sas)
    .shows_nothing();
}

#[test]
fn no_credential_for_redis_or_grpc_shows() {
    let dir = workspace();
    let file = |name: &str, content: &str| secret_file(dir.path(), name, content);
    let (redis, grid) = (Redis::with_password(), Cache::buildgrid(Door::Token));
    for password in [PASSWORD, "wr0ng-s3cret"] {
        Case::new("redis", redis.url_as(USER), &[password])
            .with_option("basic_file", file("login", &format!("{USER}:{password}")))
            .shows_nothing();
    }
    for token in [
        Cache::token(600),
        Cache::token(-600),
        "wr0ng-t0ken".to_owned(),
    ] {
        Case::new("grpcs", grid.url("grpcs", "main"), &[&token])
            .with_option("ca_file", grid.ca().display())
            .with_option("bearer_file", file("token", &token))
            .shows_nothing();
        Case::new(
            "headers",
            grid.url("grpcs", "main"),
            &[&token, "s3cret-of-the-gateway"],
        )
        .with_option("ca_file", grid.ca().display())
        .with_option(
            "headers_file",
            file(
                "headers",
                &format!("Authorization: Bearer {token}\nX-Gate: s3cret-of-the-gateway\n"),
            ),
        )
        .shows_nothing();
    }
}
