//! What servers of the Remote Execution API get wrong or do in their own way, and what becomes of it: never wrong
//! bytes, never a hang.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachedirfs::remote::{Content, Put, Remote, RemoteError, RemoteOptions, Secret, open};
use cachedirfs::signature::{Meta, Signature};

use crate::support::reapi::Cache;

const BIG: usize = 8 << 20;

fn sig(digit: char) -> Signature {
    Signature::parse(digit.to_string().repeat(32).as_bytes()).unwrap()
}

fn remote(server: &Cache) -> Arc<dyn Remote> {
    open(
        &server.url("grpc", "some/instance"),
        &RemoteOptions::default(),
    )
    .unwrap()
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let words =
        (0..len.div_ceil(8) as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 7));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

fn put(remote: &dyn Remote, sig: &Signature, content: &[u8]) -> Result<Put, RemoteError> {
    remote.put(sig, Meta::file(0o644), &Content::Bytes(content.to_vec()))
}

fn get(remote: &dyn Remote, sig: &Signature) -> Result<Option<Vec<u8>>, RemoteError> {
    let Some(mut object) = remote.get(sig)? else {
        return Ok(None);
    };
    let mut content = Vec::new();
    let read = object.content.read_to_end(&mut content);
    read.map_err(RemoteError::from_io)?;
    Ok(Some(content))
}

/// Lines of what was asked that begin so, without who asked.
fn said(asked: &[String], begins: &str) -> Vec<String> {
    let lines = asked.iter().filter(|line| line.starts_with(begins));
    lines
        .map(|line| line.trim_end_matches(" by cachedirfs").to_owned())
        .collect()
}

#[test]
fn every_call_says_who_asks_and_what_the_server_can_do_is_asked_once() {
    let server = Cache::liar();
    let remote = remote(&server);
    assert_eq!(put(&*remote, &sig('a'), b"small").unwrap(), Put::Stored);
    assert_eq!(get(&*remote, &sig('a')).unwrap().unwrap(), b"small");
    let asked = server.asked();
    assert!(
        asked.iter().all(|line| line.ends_with(" by cachedirfs")),
        "{asked:?}"
    );
    assert_eq!(said(&asked, "capabilities").len(), 1);
}

#[test]
fn wrong_bytes_are_corrupt_and_written_again_small_or_big_zipped_or_not() {
    let server = Cache::liar();
    for (n, zstd) in ["", "zstd "].into_iter().enumerate() {
        for (at, len) in [1000, BIG].into_iter().enumerate() {
            server.lie(zstd);
            let (remote, content) = (remote(&server), noise(len + n));
            let sig = sig(char::from_digit((n * 2 + at) as u32, 16).unwrap());
            assert_eq!(put(&*remote, &sig, &content).unwrap(), Put::Stored);
            let lies: &[&str] = if len == BIG {
                &["flips", "short", "long"]
            } else {
                &["flips", "short"]
            };
            for lie in lies {
                server.lie(&format!("{zstd}{lie}"));
                let got = get(&*remote, &sig);
                assert!(
                    matches!(got, Err(RemoteError::Corrupt(_))),
                    "{zstd}{lie} {len}: {:?}",
                    got.err()
                );
                server.lie(zstd);
                assert_eq!(put(&*remote, &sig, &content).unwrap(), Put::Stored, "{lie}");
                assert!(get(&*remote, &sig).unwrap().unwrap() == content);
            }
        }
    }
}

#[test]
fn zstd_is_used_both_ways_where_it_is_offered() {
    let server = Cache::liar();
    server.lie("zstd");
    let remote = remote(&server);
    for (digit, len) in [('1', 5000), ('2', BIG)] {
        let content = b"compressible ".repeat(len / 13);
        assert_eq!(put(&*remote, &sig(digit), &content).unwrap(), Put::Stored);
        assert!(get(&*remote, &sig(digit)).unwrap().unwrap() == content);
    }
    let asked = server.asked();
    assert_eq!(said(&asked, "batch update"), ["batch update [1]"]);
    assert_eq!(said(&asked, "write"), ["write zstd from 0"]);
    assert_eq!(said(&asked, "read"), ["read zstd from 0"]);
}

#[test]
fn a_zstd_bomb_stays_within_the_size_of_the_blob() {
    let server = Cache::liar();
    server.lie("zstd");
    let remote = remote(&server);
    put(&*remote, &sig('a'), b"small").unwrap();
    server.lie("zstd bomb");
    assert!(matches!(
        get(&*remote, &sig('a')),
        Err(RemoteError::Corrupt(_))
    ));
}

#[test]
fn reads_that_are_cut_again_and_again_go_on_as_long_as_they_get_further() {
    let server = Cache::liar();
    for zstd in ["", "zstd "] {
        server.lie(zstd);
        let (remote, content) = (remote(&server), noise(1_500_000 + zstd.len()));
        let sig = sig(if zstd.is_empty() { 'a' } else { 'b' });
        put(&*remote, &sig, &content).unwrap();
        server.asked();
        server.lie(&format!("{zstd}cuts"));
        // Half, a quarter …: the fifth stream does not end it.
        let error = get(&*remote, &sig).unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        let reads = said(&server.asked(), "read");
        assert_eq!(reads.len(), 5, "{reads:?}");
        if zstd.is_empty() {
            assert_eq!(
                reads[..3],
                [
                    "read plain from 0",
                    "read plain from 750000",
                    "read plain from 1125000"
                ]
            );
        }
        let mut object = remote.get(&sig).unwrap().unwrap();
        object.content.read_exact(&mut [0; 1000]).unwrap();
        server.lie(zstd);
        let mut rest = Vec::new();
        object.content.read_to_end(&mut rest).unwrap();
        assert!(rest == content[1000..], "{zstd}");
        let reads = said(&server.asked(), "read");
        assert!(reads.len() == 2 && !reads[1].ends_with(" 0"), "{reads:?}");
    }
}

#[test]
fn a_read_that_gets_no_further_is_not_tried_again() {
    let server = Cache::liar();
    let (remote, content) = (remote(&server), noise(BIG));
    put(&*remote, &sig('a'), &content).unwrap();
    server.asked();
    server.lie("stuck");
    assert!(get(&*remote, &sig('a')).unwrap_err().is_transient());
    assert_eq!(said(&server.asked(), "read").len(), 1);
    server.lie("short empties");
    let got = get(&*remote, &sig('a'));
    assert!(
        matches!(got, Err(RemoteError::Corrupt(_))),
        "{:?}",
        got.err()
    );
}

#[test]
fn a_write_that_is_cut_goes_on_with_what_the_server_has_not_got() {
    let server = Cache::liar();
    let (remote, content) = (remote(&server), noise(BIG));
    server.lie("cuts");
    assert_eq!(put(&*remote, &sig('a'), &content).unwrap(), Put::Stored);
    let asked = server.asked();
    let (writes, step) = (said(&asked, "write"), 3 << 20);
    let wanted = [0, step, 2 * step].map(|at| format!("write plain from {at}"));
    assert_eq!(writes, wanted);
    assert_eq!(said(&asked, "query").len(), 2);
    server.lie("");
    assert!(get(&*remote, &sig('a')).unwrap().unwrap() == content);

    server.lie("cuts forgets");
    let error = put(&*remote, &sig('b'), &noise(BIG + 1)).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

/// A server that has the blob says so before it has read all of it.
#[test]
fn a_write_may_be_answered_before_it_ends() {
    let server = Cache::liar();
    let remote = remote(&server);
    server.lie("has-it");
    assert_eq!(
        put(&*remote, &sig('a'), &noise(4 * BIG)).unwrap(),
        Put::Stored
    );
    server.lie("takes-less");
    let error = put(&*remote, &sig('b'), &noise(BIG + 1)).unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("took"),
        "{error:?}"
    );
}

#[test]
fn an_output_that_comes_with_its_entry_costs_no_further_call_and_is_checked() {
    let server = Cache::liar();
    let remote = remote(&server);
    put(&*remote, &sig('a'), b"small").unwrap();
    server.asked();
    server.lie("inlines");
    assert_eq!(get(&*remote, &sig('a')).unwrap().unwrap(), b"small");
    assert_eq!(server.asked(), ["get action by cachedirfs"]);
    server.lie("inlines-wrong");
    assert!(matches!(
        get(&*remote, &sig('a')),
        Err(RemoteError::Corrupt(_))
    ));
}

#[test]
fn the_limit_of_a_batch_is_kept() {
    let server = Cache::liar();
    server.lie("low");
    let (remote, content) = (remote(&server), noise(20_000));
    put(&*remote, &sig('a'), &content).unwrap();
    assert!(get(&*remote, &sig('a')).unwrap().unwrap() == content);
    let asked = server.asked();
    assert_eq!(said(&asked, "batch").len(), 0);
    assert_eq!(
        (said(&asked, "write").len(), said(&asked, "read").len()),
        (1, 1)
    );
}

#[test]
fn what_a_server_says_no_to_is_classified() {
    let server = Cache::liar();
    let remote = remote(&server);
    put(&*remote, &sig('a'), b"small").unwrap();
    server.lie("silent");
    assert!(get(&*remote, &sig('a')).unwrap_err().is_transient());
    server.lie("full");
    for len in [1000, BIG] {
        let error = put(&*remote, &sig('b'), &noise(len)).unwrap_err();
        assert!(matches!(error, RemoteError::Full(_)), "{error:?}");
    }
    server.lie("busy");
    let error = remote.exists(&sig('a')).unwrap_err();
    assert_eq!(
        error.retry_after(),
        Some(Duration::from_secs(7)),
        "{error:?}"
    );
    server.lie("sha1");
    let other = open(&server.url("grpc", ""), &RemoteOptions::default()).unwrap();
    let error = other.exists(&sig('a')).unwrap_err();
    assert!(matches!(error, RemoteError::Misconfigured(_)), "{error:?}");
}

#[test]
fn a_server_that_hangs_is_given_up_and_one_that_repeats_our_token_is_not_quoted() {
    let server = Cache::liar();
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(300),
        bearer: Some(Secret::new("s3cret-t0ken")),
        ..RemoteOptions::default()
    };
    let remote = open(&server.url("grpc", ""), &options).unwrap();
    server.lie("echoes");
    let error = remote.exists(&sig('a')).unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("s3cret"),
        "{error:?}"
    );
    server.lie("hangs");
    let began = Instant::now();
    assert!(remote.exists(&sig('a')).unwrap_err().is_transient());
    assert!(began.elapsed() < Duration::from_secs(2));
}

/// What a server sends along may be more than a slow line carries in time.
#[test]
fn an_entry_that_does_not_come_in_time_with_its_output_is_asked_for_alone() {
    let server = Cache::liar();
    let options = RemoteOptions {
        stall_timeout: Duration::from_millis(300),
        ..RemoteOptions::default()
    };
    let remote = open(&server.url("grpc", ""), &options).unwrap();
    put(&*remote, &sig('a'), b"small").unwrap();
    server.lie("inlines hangs-inlining");
    assert!(get(&*remote, &sig('a')).unwrap_err().is_transient());
    assert_eq!(get(&*remote, &sig('a')).unwrap().unwrap(), b"small");
}

/// The content that a put reads changes: no blob and no entry may come of it.
#[test]
fn what_changes_while_it_is_sent_is_not_there_afterwards() {
    let server = Cache::liar();
    let remote = remote(&server);
    let file = tempfile::NamedTempFile::new().unwrap();
    io::Write::write_all(&mut file.as_file(), &noise(BIG)).unwrap();
    // It says that it is longer than it is.
    let content = Content::File(file.reopen().unwrap(), BIG as u64 + 1);
    let put = remote.put(&sig('a'), Meta::file(0o644), &content);
    assert!(matches!(put, Err(RemoteError::Local(_))), "{put:?}");
    assert_eq!(get(&*remote, &sig('a')).unwrap(), None);
}
