//! What object stores refuse: each is classified and says what to do; what can be healed is healed.

use std::sync::Arc;

use cachedirfs::remote::{Put, RemoteError};
use cachedirfs::signature::Meta;

use super::credentials::{remote, xml};
use super::{bytes, sig};
use crate::support::cloud::fake::{Asked, Fake, Said};

const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "ID"),
    ("AWS_SECRET_ACCESS_KEY", "s3cret"),
];
const AZURE: [(&str, &str); 2] = [
    ("AZURE_STORAGE_ACCOUNT", "acme"),
    ("AZURE_STORAGE_KEY", "c2VjcmV0LWtleQ=="),
];
const GOOGLE: [(&str, &str); 1] = [("STORAGE_EMULATOR_HOST", "ignored:1")];

fn refused(url: &str, keys: &[(&str, &str)], said: Said) -> RemoteError {
    let store = Fake::new(move |_| said.clone());
    remote(url, &store, keys)
        .get(&sig("x"))
        .map(|_| ())
        .unwrap_err()
}

fn is(error: &RemoteError, class: &str) -> bool {
    format!("{error:?}").starts_with(class)
}

#[test]
fn each_error_of_s3_is_classified_and_says_what_to_do() {
    for (status, code, class, advice) in [
        (
            "404 Not Found",
            "NoSuchBucket",
            "Misconfigured",
            "make the bucket",
        ),
        (
            "403 Forbidden",
            "InvalidAccessKeyId",
            "Refused",
            "the store knows no such key",
        ),
        (
            "403 Forbidden",
            "SignatureDoesNotMatch",
            "Refused",
            "the secret key is not the one",
        ),
        ("403 Forbidden", "AccessDenied", "Refused", "s3:ListBucket"),
        ("400 Bad Request", "ExpiredToken", "Refused", "log in anew"),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "Misconfigured",
            "-o region=NAME",
        ),
        ("503 Slow Down", "SlowDown", "Busy", "asks to wait 1 s"),
        ("500 Oops", "InternalError", "Transient", "InternalError"),
        (
            "503 Oops",
            "ServiceUnavailable",
            "Transient",
            "In its words",
        ),
        ("507 Full", "QuotaExceeded", "Full", "QuotaExceeded"),
        (
            "400 Bad Request",
            "InvalidArgument",
            "Misconfigured",
            "In its words",
        ),
    ] {
        let error = refused("s3://bucket", &KEYS, (status, String::new(), xml(code)));
        assert!(
            is(&error, class) && error.to_string().contains(advice),
            "{code}: {error:?}"
        );
    }
    let busy = (
        "503 Slow Down",
        "Retry-After: 7\r\n".to_owned(),
        xml("SlowDown"),
    );
    assert_eq!(
        refused("s3://bucket", &KEYS, busy)
            .retry_after()
            .unwrap()
            .as_secs(),
        7
    );
}

#[test]
fn a_wrong_clock_is_told_by_how_much() {
    let date = || "Date: Wed, 21 Oct 2015 07:28:00 GMT\r\n".to_owned();
    for said in [
        ("403 Forbidden", date(), xml("RequestTimeTooSkewed")),
        ("403 Forbidden", date(), xml("SignatureDoesNotMatch")),
    ] {
        let error = refused("s3://bucket", &KEYS, said);
        assert!(
            is(&error, "Refused")
                && error
                    .to_string()
                    .contains(" s ahead of the store's; set it"),
            "{error}"
        );
    }
    let error = refused(
        "az://box",
        &AZURE,
        ("403 Forbidden", date(), xml("AuthenticationFailed")),
    );
    assert!(
        is(&error, "Refused") && error.to_string().contains("the clock here is"),
        "{error}"
    );
}

#[test]
fn each_error_of_azure_and_google_is_classified_and_says_what_to_do() {
    for (status, code, class, advice) in [
        (
            "404 Not Found",
            "ContainerNotFound",
            "Misconfigured",
            "make the container",
        ),
        (
            "403 Forbidden",
            "AuthenticationFailed",
            "Refused",
            "AZURE_STORAGE_KEY",
        ),
        (
            "403 Forbidden",
            "AuthorizationPermissionMismatch",
            "Refused",
            "Storage Blob Data Contributor",
        ),
        ("503 Oops", "ServerBusy", "Busy", "ServerBusy"),
        ("500 Oops", "InternalError", "Transient", "In its words"),
    ] {
        let error = refused("az://box", &AZURE, (status, String::new(), xml(code)));
        assert!(
            is(&error, class) && error.to_string().contains(advice),
            "{code}: {error:?}"
        );
    }
    let json = |reason: &str| {
        format!(r#"{{"error":{{"code":403,"message":"no","errors":[{{"reason":"{reason}"}}]}}}}"#)
    };
    for (status, body, class, advice) in [
        (
            "404 Not Found",
            xml("NoSuchBucket"),
            "Misconfigured",
            "make the bucket",
        ),
        (
            "401 Unauthorized",
            json("authError"),
            "Refused",
            "gcloud auth application-default login",
        ),
        (
            "403 Forbidden",
            json("forbidden"),
            "Refused",
            "Storage Object User",
        ),
        (
            "403 Forbidden",
            json("rateLimitExceeded"),
            "Busy",
            "wait 1 s",
        ),
        ("429 Many", json("rateLimitExceeded"), "Busy", "wait 1 s"),
        ("503 Oops", "oops".to_owned(), "Transient", "oops"),
    ] {
        let error = refused("gs://bucket", &GOOGLE, (status, String::new(), body));
        assert!(
            is(&error, class) && error.to_string().contains(advice),
            "{status}: {error:?}"
        );
    }
}

/// The session was ended from outside: one renewal, one more request, and nobody sees it.
#[test]
fn a_token_that_expired_early_is_renewed_and_the_request_sent_again() {
    let container = {
        let number = std::sync::atomic::AtomicUsize::new(0);
        Fake::new(move |_| {
            let n = number.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let body = format!(
                r#"{{"AccessKeyId":"K{n}","SecretAccessKey":"s","Token":"t","Expiration":"2099-01-01T00:00:00Z"}}"#
            );
            ("200 OK", String::new(), body)
        })
    };
    let store = Fake::new(
        |asked| match asked.header("authorization").unwrap().contains("=K0/") {
            true => ("400 Bad Request", String::new(), xml("ExpiredToken")),
            false if asked.line.starts_with("PUT ") => ("200 OK", String::new(), String::new()),
            false => ("404 Not Found", String::new(), xml("NoSuchKey")),
        },
    );
    let at = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.url())];
    let remote = remote("s3://bucket", &store, &[(at[0].0, &at[0].1)]);
    let put = remote.put(&sig("x"), Meta::file(0o644), &bytes(b"x"));
    assert_eq!(put.unwrap(), Put::Stored);
    // A look that was refused and sent again, the object, and once more to learn whether the store only creates.
    assert_eq!((container.asked().len(), store.asked().len()), (2, 4));
}

fn in_region(asked: &Asked) -> Said {
    let sent = asked.header("authorization").unwrap();
    if sent.contains("/eu-west-1/s3/") {
        return ("404 Not Found", String::new(), xml("NoSuchKey"));
    }
    let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>expecting 'eu-west-1'</Message>\
                <Region>eu-west-1</Region></Error>";
    ("400 Bad Request", String::new(), body.to_owned())
}

#[test]
fn the_region_that_the_store_names_is_used_from_then_on() {
    let store = Fake::new(in_region);
    let remote = remote("s3://bucket", &store, &KEYS);
    for n in 0..3 {
        assert!(!remote.exists(&sig(&n.to_string())).unwrap());
    }
    assert_eq!(store.asked().len(), 4);
}

/// 501 is the answer of a store that knows no conditions: it is asked without, from then on.
#[test]
fn a_store_without_conditions_is_asked_without() {
    let store = Fake::new(|asked| match asked.line.split(' ').next().unwrap() {
        "PUT" if asked.header("if-none-match").is_some() => {
            ("501 No", String::new(), xml("NotImplemented"))
        }
        "PUT" => ("200 OK", String::new(), String::new()),
        _ => ("404 Not Found", String::new(), xml("NoSuchKey")),
    });
    let remote = remote("s3://bucket", &store, &KEYS);
    for n in 0..3 {
        let put = remote.put(&sig(&n.to_string()), Meta::file(0o644), &bytes(b"x"));
        assert_eq!(put.unwrap(), Put::Stored);
    }
    assert_eq!(store.count("PUT "), 4);
}

/// Both answers of S3 to a condition that does not hold mean that somebody was faster; then it is looked at what they have.
#[test]
fn a_conflict_means_that_there_is_one() {
    for status in ["412 Precondition Failed", "409 Conflict"] {
        let held = Arc::new(std::sync::Mutex::new(None::<String>));
        let shelf = Arc::clone(&held);
        let store = Fake::new(move |asked| {
            let mut shelf = shelf.lock().unwrap();
            match (asked.line.starts_with("PUT "), shelf.clone()) {
                (true, _) => {
                    *shelf = Some("theirs".to_owned());
                    (status, String::new(), xml("PreconditionFailed"))
                }
                (false, Some(body)) => ("200 OK", String::new(), body),
                (false, None) => ("404 Not Found", String::new(), xml("NoSuchKey")),
            }
        });
        let remote = remote("s3://bucket", &store, &KEYS);
        let put = remote
            .put(&sig("x"), Meta::file(0o644), &bytes(b"ours"))
            .unwrap();
        assert!(matches!(put, Put::Diverged { .. }), "{status}: {put:?}");
    }
}

/// Google's conditions are part of the URL; no emulator minds them.
#[test]
fn google_is_told_which_version_is_meant() {
    let store = Fake::new(|asked| match asked.line.split(' ').next().unwrap() {
        "GET" if asked.line.contains("/o?") => {
            let name = cachedirfs::remote::Layout::Upper.key(&sig("x"));
            let item = format!(
                r#"{{"name":"{name}","size":"3","updated":"2026-01-02T03:04:05Z","generation":"11","metageneration":"2"}}"#
            );
            ("200 OK", String::new(), format!(r#"{{"items":[{item}]}}"#))
        }
        "DELETE"
            if asked
                .line
                .contains("ifGenerationMatch=11&ifMetagenerationMatch=2") =>
        {
            ("412 No", String::new(), String::new())
        }
        "PUT" if asked.header("x-goog-if-generation-match") == Some("0") => {
            ("412 No", String::new(), String::new())
        }
        "POST"
            if asked.line.contains("/rewriteTo/") && asked.line.contains("rewriteToken=more") =>
        {
            ("200 OK", String::new(), r#"{"done":true}"#.to_owned())
        }
        "POST" => (
            "200 OK",
            String::new(),
            r#"{"done":false,"rewriteToken":"more"}"#.to_owned(),
        ),
        _ if asked.line.contains("fields=") => {
            ("200 OK", String::new(), r#"{"generation":"11"}"#.to_owned())
        }
        _ => ("404 No", String::new(), xml("NoSuchKey")),
    });
    let remote = remote("gs://bucket", &store, &GOOGLE);
    let mut found = Vec::new();
    remote.list(&mut |listed| found.push(listed)).unwrap();
    assert_eq!(found[0].version.as_deref(), Some("11/2"));
    assert!(
        !remote.delete_listed(&found[0]).unwrap(),
        "412 is no deletion"
    );
    assert!(remote.touch(&sig("x")).unwrap());
    assert_eq!(store.count("/rewriteTo/"), 2);
    let put = remote
        .put(&sig("x"), Meta::file(0o644), &bytes(b"x"))
        .unwrap_err();
    assert!(
        put.to_string()
            .contains("says that it exists and that it does not"),
        "{put}"
    );
}

/// An upload in parts that breaks off is taken back, and its error is that of the part.
#[test]
fn a_broken_upload_in_parts_is_taken_back() {
    let store = Fake::new(|asked| {
        let method = asked.line.split(' ').next().unwrap();
        match method {
            "POST" if asked.line.contains("?uploads=") => {
                let id = "<InitiateMultipartUploadResult><UploadId>u/1</UploadId></InitiateMultipartUploadResult>";
                ("200 OK", String::new(), id.to_owned())
            }
            "PUT" if asked.line.contains("partNumber=3&") => {
                ("500 Oops", String::new(), xml("InternalError"))
            }
            "PUT" => ("200 OK", "ETag: \"e\"\r\n".to_owned(), String::new()),
            "DELETE" => ("204 No Content", String::new(), String::new()),
            _ => ("404 Not Found", String::new(), xml("NoSuchKey")),
        }
    });
    let dir = tempfile::TempDir::new().unwrap();
    let options = cachedirfs::remote::RemoteOptions {
        endpoint: Some(store.url()),
        environment: super::credentials::environment(&KEYS),
        format: cachedirfs::remote::Format::Raw,
        ..super::plain()
    };
    let file = std::fs::File::create_new(dir.path().join("big")).unwrap();
    file.set_len(65 << 20).unwrap();
    let file = std::fs::File::open(dir.path().join("big")).unwrap();
    let content = cachedirfs::remote::Content::File(file, 65 << 20);
    let remote = cachedirfs::remote::open("s3://bucket", &options).unwrap();
    let error = remote
        .put(&sig("big"), Meta::file(0o644), &content)
        .unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("partNumber=3"),
        "{error}"
    );
    assert_eq!((store.count("PUT "), store.count("DELETE ")), (3, 1));
    assert!(store.asked().pop().unwrap().line.contains("uploadId=u%2F1"));
}
