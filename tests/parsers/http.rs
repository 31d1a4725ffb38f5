//! Answers over HTTP: real ones with every bit flipped and cut at every byte, and noise.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cachedirfs::object::{Content, EncodeOptions, Key, encode};
use cachedirfs::remote::{Remote, RemoteError, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use fastrand::Rng;

const CONTENT: &[u8] = b"what was pushed, what was pushed, and nothing else";

/// Nobody here is slow: what is not there after this time does not come.
const STALL: Duration = Duration::from_millis(500);

/// A server that gives everybody the bytes of the moment, closes, and never says more.
struct Raw {
    port: u16,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Raw {
    /// Its thread ends with the test's process.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(Mutex::new(Vec::new()));
        let says = Arc::clone(&answer);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let answer = says.lock().unwrap().clone();
                thread::spawn(move || serve(connection, &answer));
            }
        });
        Self { port, answer }
    }

    fn says(&self, answer: &[u8]) {
        *self.answer.lock().unwrap() = answer.to_vec();
    }

    fn remote(&self, key: Option<Key>) -> Arc<dyn Remote> {
        let options = RemoteOptions {
            stall_timeout: STALL,
            request_timeout: STALL * 10,
            key,
            ..RemoteOptions::default()
        };
        open(&format!("http://127.0.0.1:{}/cache", self.port), &options).unwrap()
    }
}

/// A client that goes away meanwhile is its own affair.
fn serve(mut connection: TcpStream, answer: &[u8]) {
    let mut asked = Vec::new();
    let mut chunk = [0; 4096];
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut chunk) {
            Ok(n) if n > 0 => asked.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let _gone = connection.write_all(answer);
    let _gone = connection.shutdown(Shutdown::Write);
    // What still comes of an upload is read: a reset could overtake the answer.
    while connection.read(&mut chunk).is_ok_and(|n| n > 0) {}
}

fn sig() -> Signature {
    Signature::parse(&[b'a'; 32]).unwrap()
}

fn key() -> Key {
    Key::new([7; 32])
}

fn object(key: Option<Key>) -> Vec<u8> {
    let options = EncodeOptions {
        level: 3,
        key,
        spool_dir: std::env::temp_dir(),
    };
    let content = Content::Bytes(CONTENT.to_vec());
    let payload = encode(sig(), Meta::file(0o755), &content, &options).unwrap();
    let mut bytes = Vec::new();
    payload.reader().read_to_end(&mut bytes).unwrap();
    bytes
}

/// As nginx answers a GET.
fn whole_answer(key: Option<Key>) -> Vec<u8> {
    let object = object(key);
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 28 Nov 2026 12:00:00 GMT\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\nConnection: close\r\n\
         ETag: \"654a-3f\"\r\nAccept-Ranges: bytes\r\n\r\n",
        object.len()
    );
    [head.into_bytes(), object].concat()
}

fn fetched(remote: &dyn Remote) -> Result<Option<(Meta, Vec<u8>)>, RemoteError> {
    let Some(mut object) = remote.get(&sig())? else {
        return Ok(None);
    };
    let mut content = Vec::new();
    object
        .content
        .read_to_end(&mut content)
        .map_err(RemoteError::from_io)?;
    Ok(Some((object.meta, content)))
}

/// The right content, a miss, or an error.
#[track_caller]
fn assert_never_wrong(remote: &dyn Remote, what: &str) {
    if let Ok(Some(got)) = fetched(remote) {
        assert_eq!(got, (Meta::file(0o755), CONTENT.to_vec()), "{what}");
    }
}

#[test]
fn no_flipped_bit_of_an_answer_yields_other_content() {
    let server = Raw::start();
    let remote = server.remote(None);
    let whole = whole_answer(None);
    server.says(&whole);
    assert_eq!(
        fetched(&*remote).unwrap(),
        Some((Meta::file(0o755), CONTENT.to_vec()))
    );
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        server.says(&flipped);
        assert_never_wrong(&*remote, &format!("bit {bit}"));
    }
}

#[test]
fn no_answer_that_is_cut_off_yields_other_content() {
    let server = Raw::start();
    let remote = server.remote(None);
    let whole = whole_answer(None);
    for len in 0..whole.len() {
        server.says(&whole[..len]);
        let got = fetched(&*remote);
        assert!(got.is_err(), "{len} of {}: {got:?}", whole.len());
    }
}

/// With a key also against those who make up whole answers: whatever comes, it was pushed or it is an error.
#[test]
fn with_a_key_no_edit_of_an_answer_yields_other_content() {
    let server = Raw::start();
    let remote = server.remote(Some(key()));
    let whole = whole_answer(Some(key()));
    let mut rng = Rng::with_seed(5);
    for round in 0..600 {
        let mut edited = whole.clone();
        for _ in 0..rng.usize(1..4) {
            edit(&mut rng, &mut edited);
        }
        server.says(&edited);
        assert_never_wrong(&*remote, &format!("round {round}"));
    }
}

fn edit(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let words: [&[u8]; 12] = [
        b"\r\n",
        b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 18446744073709551615\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Encoding: gzip\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"Location: http://127.0.0.1:1/\r\n",
        b"\0\xff",
    ];
    let at = rng.usize(..=bytes.len());
    let to = (at + rng.usize(..40)).min(bytes.len());
    match rng.u32(..5) {
        0 => drop(bytes.splice(at..at, words[rng.usize(..words.len())].iter().copied())),
        1 => drop(bytes.drain(at..to)),
        2 => bytes.truncate(at),
        3 => {
            let again = bytes[at..to].to_vec();
            bytes.splice(at..at, again);
        }
        _ => bytes[at..to].iter_mut().for_each(|b| *b = rng.u8(..)),
    }
}

/// A line that begins an answer of each kind, so that noise gets beyond the first byte.
const BEGINNINGS: &[&str] = &[
    "",
    "HTTP/1.1 ",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes ",
    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/5\r\nContent-Length: ",
    "HTTP/1.1 207 Multi-Status\r\n\r\n<D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>/cache/AB/",
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[{\"name\":\"AB\",\"type\":\"directory\"},",
    "HTTP/1.1 201 Created\r\n",
    "HTTP/1.1 302 Found\r\nLocation: ",
    "HTTP/1.1 404 Not Found\r\nContent-Length: ",
    "HTTP/1.1 429 Too Many Requests\r\nRetry-After: ",
    "HTTP/1.1 503 Busy\r\nRetry-After: 99999999999999999999",
    "HTTP/2.0 200\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

#[test]
fn noise_is_an_error_or_a_miss_and_nobody_waits_for_it() {
    let server = Raw::start();
    let remote = server.remote(Some(key()));
    let mut rng = Rng::with_seed(6);
    let printable = |rng: &mut Rng| b" -/:;<>\"[]{},=0123456789aAdD\r\n&%"[rng.usize(..32)];
    for round in 0..320 {
        let mut answer = BEGINNINGS[round % BEGINNINGS.len()].as_bytes().to_vec();
        let is_text = rng.bool();
        answer.extend((0..rng.usize(..300)).map(|_| match is_text {
            true => printable(&mut rng),
            false => rng.u8(..),
        }));
        server.says(&answer);
        let shown = String::from_utf8_lossy(&answer);
        match round % 5 {
            0 => assert!(!matches!(fetched(&*remote), Ok(Some(_))), "{shown}"),
            1 => drop(remote.exists(&sig())),
            2 => drop(remote.put(&sig(), Meta::file(0o644), &Content::Bytes(CONTENT.to_vec()))),
            3 => drop(remote.list(&mut |_| {})),
            _ => drop(remote.delete(&sig())),
        }
    }
}

/// An answer that never ends is read no further than it is of use.
#[test]
fn an_answer_without_an_end_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for head in [
        "HTTP/1.1 200 OK\r\nX: ",
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
    ] {
        let listener = listener.try_clone().unwrap();
        let server = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            let _some = connection.read(&mut asked).unwrap();
            let mut bytes = 0;
            let mut piece = head.as_bytes().to_vec();
            // Until the client has had enough.
            while connection.write_all(&piece).is_ok() {
                bytes += piece.len();
                piece = vec![b'x'; 64 << 10];
                assert!(bytes < 1 << 30, "{head}: read a gigabyte");
            }
        });
        let options = RemoteOptions {
            stall_timeout: STALL,
            ..RemoteOptions::default()
        };
        let remote = open(&format!("http://127.0.0.1:{port}/cache"), &options).unwrap();
        let _refused = fetched(&*remote);
        drop(remote);
        server.join().unwrap();
    }
}
