//! Each fault as a client and a server see it.

use super::*;
use crate::support::wait_until;

use std::io::ErrorKind;

/// For what must not happen: long enough to see it, short enough for a test.
const A_WHILE: Duration = Duration::from_millis(200);
/// For what must happen, on the busiest machine.
const SOON: Duration = Duration::from_secs(20);

/// A server that gives back what it reads, and says at the end what it was.
struct Echo {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Echo {
    /// Its threads end with their connections and with the test's process.
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let hears = Arc::clone(&hears);
                thread::spawn(move || echo(connection, &hears));
            }
        });
        Self { port, heard }
    }

    fn heard(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

fn echo(mut connection: TcpStream, hears: &Mutex<Vec<u8>>) {
    let mut chunk = vec![0; PIECE];
    while let Ok(n) = connection.read(&mut chunk) {
        if n == 0 {
            return;
        }
        hears.lock().unwrap().extend_from_slice(&chunk[..n]);
        if connection.write_all(&chunk[..n]).is_err() {
            return;
        }
    }
}

fn stage(fault: Fault) -> (Echo, Proxy) {
    let echo = Echo::start();
    let proxy = Proxy::to(echo.port);
    proxy.set(fault);
    (echo, proxy)
}

fn connect(proxy: &Proxy) -> TcpStream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));
    let client = TcpStream::connect_timeout(&address, SOON).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
}

fn noise(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| ((n * 7919) >> 3) as u8 ^ (n >> 11) as u8)
        .collect()
}

/// Sends from a thread of its own and reads what comes until the end or an error. The kernel tells of a reset once,
/// to whoever asks first.
fn exchange(client: &TcpStream, sent: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut client = client;
            client.write_all(sent).err().map(|e| e.kind())
        });
        let (got, error) = receive(client, sent.len());
        let sender = sender.join().unwrap();
        let reset = sender.filter(|e| *e == ErrorKind::ConnectionReset);
        (got, error.or(reset))
    })
}

fn receive(mut client: &TcpStream, most: usize) -> (Vec<u8>, Option<ErrorKind>) {
    let mut got = Vec::new();
    let mut chunk = vec![0; PIECE];
    while got.len() < most {
        match client.read(&mut chunk) {
            Ok(0) => return (got, None),
            Ok(n) => got.extend_from_slice(&chunk[..n]),
            Err(e) => return (got, Some(e.kind())),
        }
    }
    (got, None)
}

fn nothing_comes(mut client: &TcpStream) {
    client.set_read_timeout(Some(A_WHILE)).unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    client.set_read_timeout(Some(SOON)).unwrap();
}

/// The reset may come while the client still looks whether it is connected.
fn is_reset_at_once(proxy: &Proxy) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));
    let error = match TcpStream::connect_timeout(&address, SOON) {
        Ok(client) => exchange(&client, b"hello").1,
        Err(e) => Some(e.kind()),
    };
    error == Some(ErrorKind::ConnectionReset)
}

#[test]
fn what_passes_is_the_same_and_is_counted() {
    let (_echo, proxy) = stage(Fault::Pass);
    let sent = noise(1 << 20);
    let client = connect(&proxy);
    assert!(exchange(&client, &sent) == (sent.clone(), None));
    // Counted when it was written, which is before or after it was read.
    let all = sent.len() as u64;
    wait_until("all is counted", SOON, || {
        (proxy.requested(), proxy.responded()) == (all, all)
    });
    assert_eq!((proxy.connections(), proxy.open()), (1, 1));
    assert_eq!(proxy.fault(), Fault::Pass);
    assert_eq!(
        proxy.url("http", "/cache"),
        format!("http://127.0.0.1:{}/cache", proxy.port())
    );
    drop(client);
    wait_until("the connection is gone", SOON, || proxy.open() == 0);
}

#[test]
fn an_end_on_one_side_is_an_end_on_the_other() {
    let (_echo, proxy) = stage(Fault::Pass);
    let mut client = connect(&proxy);
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).unwrap();
    assert_eq!(got, "last words");
}

#[test]
fn a_refused_port_is_ours_and_comes_back() {
    let (_echo, proxy) = stage(Fault::Pass);
    let before = connect(&proxy);
    assert!(exchange(&before, b"hello").0 == b"hello");
    for _ in 0..5 {
        proxy.set(Fault::Refuse);
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        proxy.set(Fault::Pass);
        assert!(exchange(&connect(&proxy), b"again").0 == b"again");
    }
    assert_eq!(exchange(&before, b"x").1, Some(ErrorKind::ConnectionReset));
}

#[test]
fn a_blackhole_answers_no_syn_and_no_byte() {
    let (_echo, proxy) = stage(Fault::Pass);
    let before = connect(&proxy);
    assert!(exchange(&before, b"hello").0 == b"hello");
    proxy.set(Fault::Blackhole);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));
    for _ in 0..3 {
        let vain = TcpStream::connect_timeout(&address, A_WHILE);
        assert_eq!(vain.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    (&before).write_all(b"anybody?").unwrap();
    nothing_comes(&before);
    // Who tries for longer than it lasts gets through, and what was under way arrives.
    thread::scope(|scope| {
        let patient = scope.spawn(|| connect(&proxy));
        thread::sleep(A_WHILE);
        proxy.set(Fault::Pass);
        assert!(exchange(&patient.join().unwrap(), b"back").0 == b"back");
    });
    let mut late = [0; 8];
    (&before).read_exact(&mut late).unwrap();
    assert_eq!(&late, b"anybody?");
}

#[test]
fn who_is_silent_reads_everything_and_never_answers() {
    let (echo, proxy) = stage(Fault::Silent);
    let mut client = connect(&proxy);
    client.set_write_timeout(Some(SOON)).unwrap();
    client.write_all(&noise(32 << 20)).unwrap();
    nothing_comes(&client);
    proxy.set(Fault::Pass);
    client.write_all(b"still there?").unwrap();
    nothing_comes(&client);
    assert_eq!(echo.heard(), 0);
    assert!(exchange(&connect(&proxy), b"a new one").0 == b"a new one");
    drop(client);
    wait_until("only the new one is left", SOON, || proxy.open() <= 1);
}

#[test]
fn a_reset_comes_at_once_or_after_so_many_bytes() {
    let (_echo, proxy) = stage(Fault::reset_after(0));
    assert!(is_reset_at_once(&proxy));
    proxy.set(Fault::reset_after(1000));
    let (got, error) = exchange(&connect(&proxy), &noise(5000));
    // A RST may overtake what was sent before it.
    assert!(noise(5000).starts_with(&got) && got.len() <= 1000);
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
}

#[test]
fn a_cut_answer_ends_after_so_many_bytes() {
    let (_echo, proxy) = stage(Fault::Pass);
    for after in [0, 1, 1000, 70_000] {
        proxy.set(Fault::cut_after(after as u64));
        let (got, error) = exchange(&connect(&proxy), &noise(100_000));
        assert_eq!((got.len(), error), (after, None));
        assert!(noise(100_000).starts_with(&got));
    }
}

#[test]
fn a_cut_request_reaches_the_server_so_far() {
    let way = Way::Request;
    let (echo, proxy) = stage(Fault::Cut { way, after: 1000 });
    let (_, error) = exchange(&connect(&proxy), &noise(5000));
    assert_eq!(error, None);
    wait_until("the beginning arrived", SOON, || echo.heard() == 1000);
}

#[test]
fn a_stalled_answer_goes_on_when_the_fault_is_over() {
    let (_echo, proxy) = stage(Fault::stall_after(1000));
    let sent = noise(5000);
    let mut client = connect(&proxy);
    client.write_all(&sent).unwrap();
    let mut got = vec![0; 1000];
    client.read_exact(&mut got).unwrap();
    nothing_comes(&client);
    proxy.set(Fault::Pass);
    let mut rest = vec![0; 4000];
    client.read_exact(&mut rest).unwrap();
    assert!([got, rest].concat() == sent);
}

#[test]
fn a_stalled_request_leaves_the_sender_with_its_bytes() {
    let way = Way::Request;
    let (echo, proxy) = stage(Fault::Stall { way, after: 1000 });
    let mut client = connect(&proxy);
    client.set_write_timeout(Some(A_WHILE)).unwrap();
    let error = client.write_all(&noise(64 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(echo.heard(), 1000);
}

#[test]
fn a_trickle_is_fast_first_and_then_slow() {
    let (_echo, proxy) = stage(Fault::trickle(100_000, 1));
    let sent = noise(200_000);
    let client = connect(&proxy);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _broken = (&client).write_all(&sent);
        });
        let mut got = vec![0; 100_001];
        (&client).read_exact(&mut got).unwrap();
        nothing_comes(&client);
        assert!(sent.starts_with(&got));
        proxy.set(Fault::Pass);
        let mut rest = vec![0; sent.len() - got.len()];
        (&client).read_exact(&mut rest).unwrap();
        assert!([got, rest].concat() == sent);
    });
}

#[test]
fn exactly_one_bit_is_flipped_in_the_direction_that_was_said() {
    let sent = noise(50_000);
    for at in [0, 1, 20_001, 49_999] {
        let (echo, proxy) = stage(Fault::flip_bit(at as u64));
        let (got, _) = exchange(&connect(&proxy), &sent);
        let differ: Vec<_> = (0..sent.len()).filter(|n| got[*n] != sent[*n]).collect();
        assert_eq!(differ, [at]);
        assert_eq!((got[at] ^ sent[at]).count_ones(), 1);
        assert!(*echo.heard.lock().unwrap() == sent);
    }
    let way = Way::Request;
    let (echo, proxy) = stage(Fault::FlipBit { way, at: 7 });
    exchange(&connect(&proxy), &sent);
    let heard = echo.heard.lock().unwrap();
    assert_eq!((heard[7] ^ sent[7]).count_ones(), 1);
}

/// The offset counts from when the fault was set, on connections that exist.
#[test]
fn a_fault_can_be_aimed_at_the_next_answer() {
    let (_echo, proxy) = stage(Fault::Pass);
    let client = connect(&proxy);
    assert!(exchange(&client, b"first").0 == b"first");
    proxy.set(Fault::flip_bit(2));
    assert!(exchange(&client, b"aaaa").0 == [b'a', b'a', b'a' ^ 4, b'a']);
    assert!(exchange(&client, b"last").0 == b"last");
}

#[test]
fn a_delay_line_costs_round_trips_and_no_throughput() {
    let rtt = Duration::from_millis(100);
    let (_echo, proxy) = stage(Fault::Delay { rtt });
    let began = Instant::now();
    let client = connect(&proxy);
    assert!(exchange(&client, b"hello").0 == b"hello");
    assert!(began.elapsed() >= rtt * 2, "{:?}", began.elapsed());
    let began = Instant::now();
    assert!(exchange(&client, b"again").0 == b"again");
    assert!(began.elapsed() >= rtt, "{:?}", began.elapsed());
    // One piece a round trip would take thirteen seconds.
    let began = Instant::now();
    let sent = noise(2 << 20);
    assert!(exchange(&client, &sent).0 == sent);
    assert!(began.elapsed() < rtt * 64, "{:?}", began.elapsed());
}

#[test]
fn a_narrow_line_takes_its_time() {
    let bytes_per_second = 200_000;
    let (_echo, proxy) = stage(Fault::Bandwidth { bytes_per_second });
    let sent = noise(60_000);
    let began = Instant::now();
    assert!(exchange(&connect(&proxy), &sent).0 == sent);
    assert!(began.elapsed() >= Duration::from_millis(250));
}

#[test]
fn a_server_that_is_gone_is_a_reset() {
    let nobody = hold_a_port();
    let proxy = Proxy::to(nobody.1);
    assert!(is_reset_at_once(&proxy));
}

#[test]
fn dropped_it_leaves_no_thread_and_no_connection() {
    for fault in [Fault::Pass, Fault::Blackhole, Fault::Silent] {
        let (_echo, proxy) = stage(Fault::Pass);
        let mut clients: Vec<_> = (0..20).map(|_| connect(&proxy)).collect();
        for client in &mut clients {
            client.write_all(b"hello").unwrap();
        }
        wait_until("all are there", SOON, || proxy.open() == 20);
        proxy.set(fault);
        let shared = Arc::downgrade(&proxy.shared);
        drop(proxy);
        assert!(shared.upgrade().is_none(), "a thread still has it");
        for mut client in clients {
            let mut rest = Vec::new();
            // An end or a reset, but no waiting.
            let _reset = client.read_to_end(&mut rest);
        }
    }
}
