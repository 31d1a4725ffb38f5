//! What HTTP servers get wrong, and what becomes of it: never wrong bytes, never a hang.

use std::io;
use std::time::{Duration, Instant};

use cachedirfs::remote::{Content, Remote, RemoteError, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};

use crate::support::canned::Canned;
use crate::support::proxy::{Fault, Proxy};
use crate::support::servers::{Nginx, Server};

const STALL: Duration = Duration::from_millis(300);

fn sig() -> Signature {
    Signature::parse(&[b'a'; 32]).unwrap()
}

fn remote(server: &Canned) -> std::sync::Arc<dyn Remote> {
    let options = RemoteOptions {
        stall_timeout: STALL,
        ..RemoteOptions::default()
    };
    open(&server.url(), &options).unwrap()
}

fn read(server: &Canned) -> Result<u64, RemoteError> {
    let mut object = remote(server).get(&sig())?.expect("an object");
    io::copy(&mut object.content, &mut io::sink()).map_err(RemoteError::from_io)
}

fn put(server: &Canned) -> Result<(), RemoteError> {
    let content = Content::Bytes(vec![7; 1 << 20]);
    remote(server)
        .put(&sig(), Meta::file(0o644), &content)
        .map(|_| ())
}

/// Bytes that do not compress.
fn noise(len: u64) -> Vec<u8> {
    (0..len / 8)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_body_that_ends_early_is_transient() {
    let server =
        Canned::closing("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly the beginning");
    let error = read(&server).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

#[test]
fn a_body_that_stalls_is_given_up_after_the_stall_time() {
    let server =
        Canned::stalling("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly the beginning");
    let began = Instant::now();
    let error = read(&server).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("timed out"),
        "{error:?}"
    );
    assert!(
        (STALL..STALL * 5).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

/// Somebody's overload is not to be waited for, however steadily it trickles.
#[test]
fn a_body_that_comes_too_slowly_is_given_up_and_the_error_says_both_speeds() {
    let server = Server::nginx(Nginx::Open);
    let options = RemoteOptions {
        stall_timeout: STALL,
        min_speed: 50_000,
        ..RemoteOptions::default()
    };
    let direct = open(&server.url(), &options).unwrap();
    let noise = Content::Bytes(noise(8 << 20));
    direct.put(&sig(), Meta::file(0o644), &noise).unwrap();
    let proxy = Proxy::to(server.port());
    proxy.set(Fault::trickle(100_000, 10_000));
    let slow = open(&proxy.url("http", "cache"), &options).unwrap();
    let mut object = slow.get(&sig()).unwrap().unwrap();
    let error = io::copy(&mut object.content, &mut io::sink()).unwrap_err();
    let error = RemoteError::from_io(error);
    assert!(matches!(error, RemoteError::Slow(_)), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("fewer than min_speed=50000"), "{said}");
}

#[test]
fn an_upload_that_is_taken_too_slowly_is_given_up() {
    let server = Server::nginx(Nginx::Open);
    let options = RemoteOptions {
        stall_timeout: STALL,
        // More than the kernel takes off our hands while nothing moves.
        min_speed: 1 << 30,
        ..RemoteOptions::default()
    };
    let proxy = Proxy::to(server.port());
    proxy.set(Fault::Bandwidth {
        bytes_per_second: 4 << 20,
    });
    let slow = open(&proxy.url("http", "cache"), &options).unwrap();
    let put = slow.put(&sig(), Meta::file(0o644), &Content::Bytes(noise(64 << 20)));
    assert!(matches!(put, Err(RemoteError::Slow(_))), "{put:?}");
}

#[test]
fn a_server_that_says_nothing_is_given_up_after_the_stall_time() {
    let server = Canned::stalling("");
    let began = Instant::now();
    assert!(remote(&server).exists(&sig()).unwrap_err().is_transient());
    assert!(put(&server).unwrap_err().is_transient());
    assert!(began.elapsed() < STALL * 8, "{:?}", began.elapsed());
}

#[test]
fn an_upload_that_nobody_reads_is_given_up_after_the_stall_time() {
    let server = Canned::stalling_after(answer("404 Not Found", "Connection: close\r\n", ""));
    // More than the kernel buffers.
    let noise = noise(32 << 20);
    let began = Instant::now();
    let put = remote(&server).put(&sig(), Meta::file(0o644), &Content::Bytes(noise));
    assert!(
        put.as_ref().is_err_and(RemoteError::is_transient),
        "{put:?}"
    );
    assert_eq!(server.asked(), 2);
    assert!(began.elapsed() < STALL * 20, "{:?}", began.elapsed());
}

#[test]
fn what_was_compressed_on_the_way_is_corrupt() {
    let server = Canned::closing(answer(
        "200 OK",
        "Content-Encoding: gzip\r\n",
        "\u{1f}not what was pushed",
    ));
    assert!(matches!(read(&server), Err(RemoteError::Corrupt(_))));
}

#[test]
fn what_is_no_http_is_transient() {
    let server = Canned::closing("SSH-2.0-OpenSSH_9.2\r\n");
    assert!(remote(&server).exists(&sig()).unwrap_err().is_transient());
}

#[test]
fn a_busy_server_says_how_long() {
    for status in ["503 Service Unavailable", "429 Too Many Requests"] {
        let server = Canned::closing(answer(status, "Retry-After: 7\r\n", "busy"));
        let error = remote(&server).exists(&sig()).unwrap_err();
        assert_eq!(
            error.retry_after(),
            Some(Duration::from_secs(7)),
            "{error:?}"
        );
    }
}

#[test]
fn a_redirect_to_another_scheme_or_in_a_circle_is_misconfigured() {
    for location in [
        "https://127.0.0.1:1/x",
        "file:///etc/passwd",
        "/again",
        "//",
    ] {
        let location = format!("Location: {location}\r\nConnection: close\r\n");
        let server = Canned::closing(answer("302 Found", &location, ""));
        let error = read(&server).unwrap_err();
        assert!(
            matches!(error, RemoteError::Misconfigured(_)),
            "{location}: {error:?}"
        );
        assert!(server.asked() <= 6);
    }
}

/// Followed as browsers do, a PUT would become a GET, and its 200 would look like a success.
#[test]
fn a_put_never_becomes_a_get() {
    let server = Canned::closing(answer(
        "301 Moved Permanently",
        "Location: /x\r\nConnection: close\r\n",
        "",
    ));
    assert!(matches!(put(&server), Err(RemoteError::Misconfigured(_))));
}

/// With a length that is right, a login page behind a redirect is a perfectly good answer.
#[test]
fn an_answer_in_plain_text_that_is_html_is_corrupt() {
    let page = "\n<!doctype html><title>Sign in</title>";
    let server = Canned::closing(answer("200 OK", "Content-Type: text/plain\r\n", page));
    assert!(matches!(read(&server), Err(RemoteError::Corrupt(_))));
}
