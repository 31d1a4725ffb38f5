//! A server whose certificate has expired, until it is renewed.

use std::time::{Duration, Instant};

use crate::support::mounted::Mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::servers::{Flaw, Nginx, Server};

/// What lookups may take in all while nobody can be asked.
const ALL_LOOKUPS: Duration = Duration::from_secs(3);

#[test]
fn an_expired_certificate_slows_no_build_and_a_renewed_one_gets_what_was_pushed() {
    let mut server = Server::nginx(Nginx::BadTls(Flaw::Expired));
    let options = format!("ca_file={}", server.ca().display());
    let mounted = Mounted::with_options(&server.url(), &options);
    let began = Instant::now();
    for push in (100..200).map(Push) {
        assert!(!mounted.path().join(push.entry()).exists());
    }
    assert!(began.elapsed() < ALL_LOOKUPS, "{:?}", began.elapsed());
    Push(7).perform(mounted.path(), Shape::Directory).unwrap();
    let status = mounted.status();
    let trouble = status["remote_trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("renew the certificate"), "{status:#}");
    assert_eq!(status["pending"]["objects"], 1, "{status:#}");

    server.renew_certificate();
    mounted.flush();
    let second = Mounted::with_options(&server.url(), &options);
    assert_eq!(None, Push(7).fault(second.path()));
}
