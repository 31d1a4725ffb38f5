//! Where credentials come from, that they are renewed in time, and that they never show.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cachedirfs::clock::{Clock, ManualClock};
use cachedirfs::remote::{Environment, Remote, RemoteError, RemoteOptions, open};
use tempfile::TempDir;

use super::cases::plain;
use super::sig;
use crate::support::cloud::fake::{Asked, Fake, Said};
use crate::support::cloud::keys;
use crate::support::wait_until;

const SECRET: &str = "s3cret-key-of-the-builder";
const TOKEN: &str = "s3cret-token-of-the-session";

pub(super) fn xml(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>In its words.</Message></Error>"
    )
}

/// A store in which there is nothing.
fn nothing(asked: &Asked) -> Said {
    let code = if asked.head.contains("x-ms-version") {
        "BlobNotFound"
    } else {
        "NoSuchKey"
    };
    ("404 Not Found", String::new(), xml(code))
}

pub(super) fn environment(pairs: &[(&str, &str)]) -> Environment {
    Environment::new(keys(pairs))
}

/// A bucket at `store`, with this environment.
pub(super) fn remote(url: &str, store: &Fake, pairs: &[(&str, &str)]) -> Arc<dyn Remote> {
    let options = RemoteOptions {
        endpoint: Some(store.url()),
        environment: environment(pairs),
        imds: Some(
            pairs
                .iter()
                .any(|(name, _)| name.contains("METADATA") || name.contains("IMDS")),
        ),
        ..plain()
    };
    open(url, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Asks for something, and gives what the store was shown.
fn shown(url: &str, pairs: &[(&str, &str)]) -> Asked {
    let store = Fake::new(nothing);
    let got = remote(url, &store, pairs)
        .get(&sig("x"))
        .map(|found| found.is_some());
    assert!(!got.unwrap_or_else(|error| panic!("{error}")));
    store.asked().pop().unwrap()
}

fn s3_key(pairs: &[(&str, &str)]) -> String {
    let asked = shown("s3://bucket", pairs);
    let authorization = asked.header("authorization").unwrap().to_owned();
    let (_, rest) = authorization.split_once("Credential=").unwrap();
    let token = asked.header("x-amz-security-token").unwrap_or("no token");
    format!("{} {token}", rest.split('/').next().unwrap())
}

/// Keys as the metadata services of AWS hand them out.
fn json_keys(id: &str, expires: &str) -> String {
    format!(
        r#"{{"Code":"Success","AccessKeyId":"{id}","SecretAccessKey":"{SECRET}","Token":"{TOKEN}","Expiration":"{expires}"}}"#
    )
}

/// Keys as the token service hands them out.
fn xml_keys(action: &str, id: &str) -> String {
    format!(
        "<{action}Response><{action}Result><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{SECRET}\
         </SecretAccessKey><SessionToken>{TOKEN}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
         </Credentials></{action}Result></{action}Response>"
    )
}

fn write(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn keys_come_from_the_environment() {
    let pairs = [
        ("AWS_ACCESS_KEY_ID", "ENV"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    assert_eq!(s3_key(&pairs), "ENV no token");
    assert_eq!(
        s3_key(&[pairs[0], pairs[1], ("AWS_SESSION_TOKEN", TOKEN)]),
        format!("ENV {TOKEN}")
    );
}

#[test]
fn keys_come_from_the_files_of_the_aws_tools() {
    let home = TempDir::new().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let keys = |id: &str| format!("aws_access_key_id = {id}\naws_secret_access_key = {SECRET}\n");
    let text = format!("[default]\n{}[other]\n{}", keys("FILE"), keys("OTHER"));
    write(&home.path().join(".aws"), "credentials", &text);
    let at = home.path().display().to_string();
    assert_eq!(s3_key(&[("HOME", &at)]), "FILE no token");
    assert_eq!(
        s3_key(&[("HOME", &at), ("AWS_PROFILE", "other")]),
        "OTHER no token"
    );
    let elsewhere = write(
        home.path(),
        "elsewhere",
        &format!("[default]\n{}", keys("NAMED")),
    );
    assert_eq!(
        s3_key(&[("HOME", &at), ("AWS_SHARED_CREDENTIALS_FILE", &elsewhere)]),
        "NAMED no token"
    );
    let process = format!(
        "[profile run]\ncredential_process = /bin/echo {{\"Version\":1,\"AccessKeyId\":\"PROC\",\"SecretAccessKey\":\"{SECRET}\"}}\n"
    );
    let config = write(home.path(), "config", &process);
    assert_eq!(
        s3_key(&[("AWS_CONFIG_FILE", &config), ("AWS_PROFILE", "run")]),
        "PROC no token"
    );
}

#[test]
fn an_option_names_a_profile_and_outweighs_keys_in_the_environment() {
    let dir = TempDir::new().unwrap();
    let file = write(
        dir.path(),
        "credentials",
        &format!(
            "[mine]\naws_access_key_id=MINE\naws_secret_access_key={SECRET}\nregion=eu-north-1\n"
        ),
    );
    let store = Fake::new(nothing);
    let with = |profile: &str| RemoteOptions {
        endpoint: Some(store.url()),
        profile: Some(profile.to_owned()),
        imds: Some(false),
        environment: environment(&[
            ("AWS_SHARED_CREDENTIALS_FILE", &file),
            ("AWS_ACCESS_KEY_ID", "ENV"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ]),
        ..plain()
    };
    assert!(
        !open("s3://bucket", &with("mine"))
            .unwrap()
            .exists(&sig("x"))
            .unwrap()
    );
    let sent = store.asked().pop().unwrap();
    let authorization = sent.header("authorization").unwrap();
    assert!(
        authorization.contains("Credential=MINE/") && authorization.contains("/eu-north-1/s3/"),
        "{authorization}"
    );
    let error = open("s3://bucket", &with("yours")).err().unwrap();
    assert!(
        error.to_string().contains("known are: mine")
            && matches!(error, RemoteError::Misconfigured(_)),
        "{error}"
    );
}

/// Both kinds: with a session that profiles share, and without.
#[test]
fn keys_come_from_a_login_with_sso() {
    let portal = Fake::new(|asked| {
        if asked.header("x-amz-sso_bearer_token") != Some("s3cret-login") {
            return ("401 Unauthorized", String::new(), String::new());
        }
        let body = format!(
            r#"{{"roleCredentials":{{"accessKeyId":"SSO","secretAccessKey":"{SECRET}","sessionToken":"{TOKEN}","expiration":4070908800000}}}}"#
        );
        ("200 OK", String::new(), body)
    });
    let home = TempDir::new().unwrap();
    let cache = home.path().join(".aws/sso/cache");
    fs::create_dir_all(&cache).unwrap();
    // SHA-1 of the name of the session, and of the start URL.
    for name in [
        "ee0bfd2552fbd840c02cc48b6e823320543c450f",
        "f7c9b39d0b4c7a7d82c79307585f77e1c5e74378",
    ] {
        let login = r#"{"accessToken":"s3cret-login","expiresAt":"2099-01-01T00:00:00Z"}"#;
        write(&cache, &format!("{name}.json"), login);
    }
    let role = "sso_account_id = 1\nsso_role_name = ci\n";
    let config = format!(
        "[profile new]\nsso_session = corp\n{role}[sso-session corp]\nsso_region = eu-west-1\n\
         sso_start_url = https://corp.example/start\n[profile old]\nsso_region = eu-west-1\n\
         sso_start_url = https://corp.example/start\n{role}"
    );
    write(&home.path().join(".aws"), "config", &config);
    let at = home.path().display().to_string();
    for profile in ["new", "old"] {
        let pairs = [
            ("HOME", at.as_str()),
            ("AWS_PROFILE", profile),
            ("AWS_SSO_ENDPOINT", &portal.url()),
        ];
        assert_eq!(s3_key(&pairs), format!("SSO {TOKEN}"), "{profile}");
    }
}

#[test]
fn keys_come_from_a_role_of_a_profile_and_from_a_web_identity() {
    let sts = Fake::new(|asked| {
        let action = if asked.body.contains("AssumeRoleWithWebIdentity")
            || asked.line.contains("WebIdentity")
        {
            "AssumeRoleWithWebIdentity"
        } else {
            "AssumeRole"
        };
        let id = if action == "AssumeRole" {
            "ROLE0OF0THE0CI001"
        } else {
            "WEB0IDENTITY00001"
        };
        ("200 OK", String::new(), xml_keys(action, id))
    });
    let dir = TempDir::new().unwrap();
    let text = format!(
        "[profile ci]\nrole_arn = arn:aws:iam::123456789012:role/ci\nsource_profile = base\nregion = eu-west-1\n\
         [profile base]\naws_access_key_id = BASE\naws_secret_access_key = {SECRET}\n"
    );
    let config = write(dir.path(), "config", &text);
    let role = [
        ("AWS_CONFIG_FILE", config.as_str()),
        ("AWS_PROFILE", "ci"),
        ("AWS_ENDPOINT_URL_STS", &sts.url()),
    ];
    assert_eq!(s3_key(&role), format!("ROLE0OF0THE0CI001 {TOKEN}"));
    let signed = sts.asked().pop().unwrap();
    assert!(
        signed
            .header("authorization")
            .unwrap()
            .contains("Credential=BASE/")
    );
    assert_eq!(signed.header("host"), Some("sts.eu-west-1.amazonaws.com"));
    let token = write(dir.path(), "token", "s3cret-web-token\n");
    let web = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ci"),
        ("AWS_ENDPOINT_URL_STS", &sts.url()),
    ];
    assert_eq!(s3_key(&web), format!("WEB0IDENTITY00001 {TOKEN}"));
}

#[test]
fn keys_come_from_the_container_and_from_the_machine() {
    let container = Fake::new(|asked| {
        if asked.header("authorization") != Some("s3cret-of-the-container") {
            return ("403 Forbidden", String::new(), "who are you?".to_owned());
        }
        (
            "200 OK",
            String::new(),
            json_keys("TASK", "2099-01-01T00:00:00Z"),
        )
    });
    let dir = TempDir::new().unwrap();
    let file = write(dir.path(), "token", "s3cret-of-the-container\n");
    let url = format!("{}/creds", container.url());
    for token in [
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "s3cret-of-the-container",
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file),
    ] {
        assert_eq!(
            s3_key(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url), token]),
            format!("TASK {TOKEN}")
        );
    }
    let machine = Fake::new(|asked| {
        let said = match asked.line.split(' ').nth(1).unwrap() {
            "/latest/api/token" if asked.line.starts_with("PUT ") => "imds-token".to_owned(),
            _ if asked.header("x-aws-ec2-metadata-token") != Some("imds-token") => {
                return ("401 Unauthorized", String::new(), String::new());
            }
            "/latest/meta-data/iam/security-credentials/" => "role-of-the-machine".to_owned(),
            _ => json_keys("MACHINE", "2099-01-01T00:00:00Z"),
        };
        ("200 OK", String::new(), said)
    });
    let at = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.url());
    assert_eq!(s3_key(&[(at.0, &at.1)]), format!("MACHINE {TOKEN}"));
    let store = Fake::new(nothing);
    let off = [(at.0, at.1.as_str()), ("AWS_EC2_METADATA_DISABLED", "true")];
    let options = RemoteOptions {
        endpoint: Some(store.url()),
        environment: environment(&off),
        ..plain()
    };
    let asked = machine.asked().len();
    let error = open("s3://bucket", &options)
        .unwrap()
        .exists(&sig("x"))
        .unwrap_err();
    assert!(
        matches!(error, RemoteError::Refused(_)) && machine.asked().len() == asked,
        "{error}"
    );
}

#[test]
fn without_credentials_the_error_says_where_they_were_looked_for() {
    for (url, says) in [
        ("s3://bucket", "aws configure"),
        ("gs://bucket", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://bucket", "AZURE_STORAGE_KEY"),
    ] {
        let store = Fake::new(nothing);
        let error = remote(url, &store, &[]).exists(&sig("x")).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, RemoteError::Refused(_))
                && text.contains("looked at")
                && text.contains(says),
            "{text}"
        );
        assert!(text.contains("-o anonymous"), "{text}");
        assert!(store.asked().is_empty(), "nothing is sent unsigned");
    }
}

#[test]
fn anonymous_requests_have_no_signature() {
    for url in ["s3://bucket", "gs://bucket", "az://bucket"] {
        let store = Fake::new(nothing);
        let options = RemoteOptions {
            endpoint: Some(store.url()),
            anonymous: Some(true),
            ..plain()
        };
        assert!(!open(url, &options).unwrap().exists(&sig("x")).unwrap());
        assert_eq!(store.asked().pop().unwrap().header("authorization"), None);
    }
}

#[test]
fn tokens_of_google_come_from_the_metadata_service() {
    let machine = Fake::new(|asked| {
        assert_eq!(asked.header("metadata-flavor"), Some("Google"));
        (
            "200 OK",
            String::new(),
            format!(r#"{{"access_token":"{TOKEN}","expires_in":3599,"token_type":"Bearer"}}"#),
        )
    });
    let host = machine.url().replace("http://", "");
    let asked = shown("gs://bucket", &[("GCE_METADATA_HOST", &host)]);
    assert_eq!(
        asked.header("authorization"),
        Some(format!("Bearer {TOKEN}").as_str())
    );
}

#[test]
fn azure_takes_keys_sas_tokens_secrets_identities_and_the_machine() {
    let bearer = Some(format!("Bearer {TOKEN}"));
    let of = |pairs: &[(&str, &str)]| {
        let asked = shown("az://box", pairs);
        (
            asked.line.clone(),
            asked.header("authorization").map(str::to_owned),
        )
    };
    let key = "c2VjcmV0LWtleQ==";
    let (_, signed) = of(&[
        ("AZURE_STORAGE_ACCOUNT", "acme"),
        ("AZURE_STORAGE_KEY", key),
    ]);
    assert!(signed.unwrap().starts_with("SharedKey acme:"));
    let string = format!(
        "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={key};EndpointSuffix=core.windows.net"
    );
    let (_, signed) = of(&[("AZURE_STORAGE_CONNECTION_STRING", &string)]);
    assert!(signed.unwrap().starts_with("SharedKey acme:"));
    let (line, signed) = of(&[("AZURE_STORAGE_SAS_TOKEN", "?sv=2021&sig=s3cret-sas")]);
    assert!(
        line.contains("?sv=2021&sig=s3cret-sas ") && signed.is_none(),
        "{line}"
    );

    let login = Fake::new(|asked| {
        let known = asked.body.contains("client_secret=s3cret-of-the-client")
            || asked.body.contains("client_assertion=s3cret-jwt");
        let status = if known { "200 OK" } else { "401 Unauthorized" };
        (
            status,
            String::new(),
            format!(r#"{{"access_token":"{TOKEN}","expires_in":3599,"token_type":"Bearer"}}"#),
        )
    });
    let at = login.url();
    let who = [
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_AUTHORITY_HOST", at.as_str()),
    ];
    let secret = [
        who[0],
        who[1],
        who[2],
        ("AZURE_CLIENT_SECRET", "s3cret-of-the-client"),
    ];
    assert_eq!(of(&secret).1, bearer);
    let dir = TempDir::new().unwrap();
    let file = write(dir.path(), "jwt", "s3cret-jwt");
    assert_eq!(
        of(&[
            who[0],
            who[1],
            who[2],
            ("AZURE_FEDERATED_TOKEN_FILE", &file)
        ])
        .1,
        bearer
    );
    let machine = Fake::new(|asked| {
        assert_eq!(asked.header("metadata"), Some("true"));
        (
            "200 OK",
            String::new(),
            format!(r#"{{"access_token":"{TOKEN}","expires_on":"4070908800"}}"#),
        )
    });
    let at = format!("{}/metadata/identity/oauth2/token", machine.url());
    assert_eq!(of(&[("AZURE_IMDS_ENDPOINT", &at)]).1, bearer);
}

/// Keys that last a quarter of an hour, by a clock that is moved by hand, asked for by many: the store sees only such as
/// are valid, nobody sees an error, and each renewal is made once.
#[test]
fn credentials_are_renewed_before_they_expire_and_once_however_many_ask() {
    let clock = Arc::new(ManualClock::default());
    let life = Duration::from_secs(900);
    // Keys are named by the second that they expire at.
    let seconds = |clock: &ManualClock| {
        clock
            .wall()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let handing = Arc::clone(&clock);
    let container = Fake::new(move |_| {
        let until = seconds(&handing) + life.as_secs();
        let days = until - 1_699_920_000;
        let (hours, minutes) = (days / 3600, days / 60 % 60);
        let expires = format!(
            "2023-11-{:02}T{:02}:{minutes:02}:{:02}Z",
            14 + hours / 24,
            hours % 24,
            days % 60
        );
        (
            "200 OK",
            String::new(),
            json_keys(&format!("K{until}"), &expires),
        )
    });
    let (checking, worst) = (Arc::clone(&clock), Arc::new(Mutex::new(u64::MAX)));
    let seen = Arc::clone(&worst);
    let store = Fake::new(move |asked| {
        let authorization = asked.header("authorization").unwrap();
        let (_, rest) = authorization.split_once("Credential=K").unwrap();
        let until: u64 = rest.split('/').next().unwrap().parse().unwrap();
        let left = until.saturating_sub(seconds(&checking));
        let mut worst = seen.lock().unwrap();
        *worst = left.min(*worst);
        let code = if left > 0 {
            "NoSuchKey"
        } else {
            "ExpiredToken"
        };
        (
            if left > 0 {
                "404 Not Found"
            } else {
                "400 Bad Request"
            },
            String::new(),
            xml(code),
        )
    });
    let options = RemoteOptions {
        endpoint: Some(store.url()),
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        environment: environment(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url())]),
        ..plain()
    };
    let remote = open("s3://bucket", &options).unwrap();
    let all_ask = || {
        thread::scope(|scope| {
            for n in 0..16 {
                let remote = &remote;
                scope.spawn(move || assert!(!remote.exists(&sig(&n.to_string())).unwrap()));
            }
        });
    };
    all_ask();
    assert_eq!(container.asked().len(), 1);
    // In the last quarter: renewed beside, while what is held is used.
    clock.advance(Duration::from_secs(700));
    all_ask();
    wait_until("it is renewed", Duration::from_secs(20), || {
        container.asked().len() == 2
    });
    // Long over, as after a night: all wait for the one renewal.
    clock.advance(Duration::from_secs(10 * 3600));
    all_ask();
    assert_eq!(container.asked().len(), 3);
    assert!(*worst.lock().unwrap() >= 25, "{worst:?} s before the end");
}

/// Whoever hands out credentials is away for a while: nobody who holds valid ones notices.
#[test]
fn a_failed_renewal_disturbs_nobody_who_holds_credentials() {
    let clock = Arc::new(ManualClock::default());
    let times = AtomicUsize::new(0);
    let container = Fake::new(move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => (
            "200 OK",
            String::new(),
            json_keys("FIRST", "2023-11-14T23:13:20Z"),
        ),
        1 => ("500 Oops", String::new(), "later".to_owned()),
        _ => (
            "200 OK",
            String::new(),
            json_keys("SECOND", "2023-11-15T23:13:20Z"),
        ),
    });
    let store = Fake::new(nothing);
    let options = RemoteOptions {
        endpoint: Some(store.url()),
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        environment: environment(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url())]),
        ..plain()
    };
    let remote = open("s3://bucket", &options).unwrap();
    let ask = || {
        assert!(!remote.exists(&sig("x")).unwrap());
        store
            .asked()
            .pop()
            .unwrap()
            .header("authorization")
            .unwrap()
            .contains("Credential=SECOND/")
    };
    assert!(!ask());
    clock.advance(Duration::from_secs(3400));
    for _ in 0..20 {
        assert!(!ask());
    }
    wait_until("it was tried", Duration::from_secs(20), || {
        container.asked().len() == 2
    });
    clock.advance(Duration::from_secs(10));
    wait_until("it is tried again", Duration::from_secs(20), ask);
    assert_eq!(container.asked().len(), 3, "and no oftener");
}

/// Whatever fails, and however it is shown, no secret is in it.
#[test]
fn no_error_and_no_debug_and_no_description_shows_a_secret() {
    let echo = |asked: &Asked| {
        // Stores and token services repeat what they were sent.
        let body = format!(
            "<Error><Code>ExpiredToken</Code><Message>no</Message><Token-0>{TOKEN}</Token-0><AWSAccessKeyId>ENV</AWSAccessKeyId>\
             <StringToSign>{}</StringToSign></Error>",
            asked.head
        );
        ("400 Bad Request", String::new(), body)
    };
    let key = "c2VjcmV0LWtleQ==";
    let dir = TempDir::new().unwrap();
    let broken = write(
        dir.path(),
        "service.json",
        &format!("{{\"type\":\"service_account\",\"private_key\":\"{SECRET}\"}}"),
    );
    let failing = Fake::new(|_| ("500 Oops", String::new(), "no".to_owned()));
    let full = failing.url();
    let cases: [(&str, &[(&str, &str)]); 7] = [
        (
            "s3://bucket",
            &[
                ("AWS_ACCESS_KEY_ID", "ENV"),
                ("AWS_SECRET_ACCESS_KEY", SECRET),
                ("AWS_SESSION_TOKEN", TOKEN),
            ],
        ),
        (
            "s3://bucket",
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN),
            ],
        ),
        (
            "gs://bucket",
            &[("GOOGLE_APPLICATION_CREDENTIALS", &broken)],
        ),
        (
            "az://box",
            &[
                ("AZURE_STORAGE_ACCOUNT", "acme"),
                ("AZURE_STORAGE_KEY", key),
            ],
        ),
        (
            "az://box",
            &[
                ("AZURE_STORAGE_ACCOUNT", "acme"),
                ("AZURE_STORAGE_KEY", "s3cret-not-base64!"),
            ],
        ),
        (
            "az://box",
            &[("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=s3cret-sas")],
        ),
        (
            "az://box",
            &[
                ("AZURE_TENANT_ID", "t"),
                ("AZURE_CLIENT_ID", "c"),
                ("AZURE_CLIENT_SECRET", SECRET),
                ("AZURE_AUTHORITY_HOST", &full),
            ],
        ),
    ];
    for (url, pairs) in cases {
        let store = Fake::new(echo);
        let options = RemoteOptions {
            endpoint: Some(store.url()),
            environment: environment(pairs),
            imds: Some(false),
            ..plain()
        };
        let remote = open(url, &options).unwrap();
        let error = remote.get(&sig("x")).map(|_| ()).unwrap_err();
        let put = super::bytes(b"x");
        let second = remote
            .put(&sig("x"), cachedirfs::signature::Meta::file(0o644), &put)
            .unwrap_err();
        let all = format!(
            "{error} {error:?} {second} {second:?} {options:?} {}",
            remote.describe()
        );
        for secret in [SECRET, TOKEN, key, "s3cret"] {
            assert!(!all.contains(secret), "{url} {pairs:?}: {all}");
        }
    }
}
