//! The server over real sockets, with whoever may come along.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use super::*;
use crate::clock::SystemClock;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

fn server(address: &str, stats: &Arc<Stats>) -> Server {
    let counted = stats.clone();
    let figures = Box::new(move || Status {
        counters: counted.snapshot(),
        version: "test".into(),
        ..Status::default()
    });
    let clock = SystemClock::shared();
    Server::new(
        address.parse().unwrap(),
        figures,
        stats.clone(),
        clock,
        Arc::default(),
    )
}

/// A running server for the time of `test`.
fn served(test: impl FnOnce(SocketAddr, &Stats)) {
    let stats = Arc::new(Stats::default());
    let (server, stop) = (server("127.0.0.1:0", &stats), Stop::new().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| server.run(&stop));
        let _stopped_in_the_end = stop.ask_on_drop();
        test(server.standing.address().unwrap(), &stats);
    });
}

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = open(address);
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: SocketAddr, path: &str) -> String {
    ask(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
    )
}

#[test]
fn each_path_has_its_type_and_nothing_is_kept_or_sniffed() {
    served(|address, stats| {
        stats.hits.add(12_345);
        for (path, kind, part) in [
            ("/", "text/html; charset=utf-8", "12,345"),
            ("/?day", "text/html; charset=utf-8", "Last 24 hours"),
            (
                "/metrics",
                prometheus::CONTENT_TYPE,
                "cachedirfs_lookups_total{outcome=\"hit\"} 12345\n",
            ),
            ("/status.json", "application/json", "\"hits\": 12345"),
            ("/history.json", "application/json", "\"columns\""),
        ] {
            // The status that a sample was made of may be shown for a moment.
            let answer = (0..100).map(|_| {
                thread::sleep(Duration::from_millis(20));
                get(address, path)
            });
            let answer = answer
                .into_iter()
                .find(|answer| answer.contains(part))
                .unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            for header in [
                &format!("Content-Type: {kind}"),
                &format!("Content-Length: {}", body.len()),
                "Cache-Control: no-store",
                "X-Content-Type-Options: nosniff",
                &format!("Content-Security-Policy: {}", page::POLICY),
            ] {
                assert!(
                    head.lines().any(|line| line == header),
                    "{header} in {head}"
                );
            }
        }
        assert!(get(address, "/nothing").starts_with("HTTP/1.1 404 "));
        let head = ask(address, b"HEAD / HTTP/1.0\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"));
        let post = ask(
            address,
            b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        );
        assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("Allow: GET, HEAD"));
    });
}

#[test]
fn nonsense_and_endless_requests_are_told_so() {
    served(|address, _| {
        assert!(ask(address, b"\x16\x03\x01\x02\x00\x01\xfc\x03").starts_with("HTTP/1.1 400 "));
        let endless = [b"GET / HTTP/1.1\r\nx: ".as_slice(), &[b'a'; 20_000]].concat();
        assert!(ask(address, &endless).starts_with("HTTP/1.1 431 "));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
        assert!(ask(address, many.as_bytes()).starts_with("HTTP/1.1 431 "));
        let whole = b"GET /status.json HTTP/1.1\r\nHost: h\r\n\r\n";
        for bit in 0..whole.len() * 8 {
            let mut flipped = *whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let mut stream = open(address);
            stream.write_all(&flipped).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // Answered or hung up on.
            let _reset = stream.read_to_end(&mut Vec::new());
        }
        assert!(get(address, "/").contains("All is well"));
    });
}

#[test]
fn clients_that_never_send_never_read_or_crowd_keep_nobody_waiting() {
    served(|address, _| {
        let crowd: Vec<_> = (0..200).map(|_| open(address)).collect();
        let mut deaf = Vec::new();
        for _ in 0..100 {
            let mut stream = open(address);
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
            deaf.push(stream);
        }
        let mut slow = open(address);
        let _ = slow.write_all(b"GET / HT");
        assert!(get(address, "/metrics").contains("cachedirfs_build_info{version=\"test\"} 1"));
        drop((crowd, deaf, slow));
    });
}

#[test]
fn a_client_that_asks_too_slowly_is_hung_up_on() {
    served(|address, _| {
        let started = SystemClock::shared();
        let mut slow = open(address);
        slow.write_all(b"GET / HT").unwrap();
        assert_eq!(slow.read_to_end(&mut Vec::new()).unwrap(), 0);
        let took = started.now();
        assert!(took > Duration::from_secs(4) && took < LIMIT, "{took:?}");
    });
}

/// Whoever had it before, or a mount of the same configuration that is still being drained, may go.
#[test]
fn an_address_in_use_is_said_and_had_as_soon_as_it_is_free() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let stats = Arc::new(Stats::default());
    let clock = Arc::new(crate::clock::ManualClock::default());
    let figures: Figures = Box::new(Status::default);
    let server = Server::new(address, figures, stats, clock.clone(), Arc::default());
    let standing = &server.standing;
    let why = standing.trouble().unwrap();
    assert!(
        why.starts_with(&format!("cannot serve metrics at {address}: "))
            && why.ends_with("every 10 s"),
        "{why}"
    );
    assert_eq!(standing.address(), None);
    drop(other);
    let (stop, mut state) = (Stop::new().unwrap(), server.state());
    stop.ask();
    server.turn(&stop, &mut state, &mut Vec::new()).unwrap();
    assert_eq!(standing.address(), None, "it is not the time yet");
    clock.advance(AGAIN);
    server.turn(&stop, &mut state, &mut Vec::new()).unwrap();
    assert_eq!(
        (standing.address(), standing.trouble()),
        (Some(address), None)
    );
}
