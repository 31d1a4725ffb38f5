//! Server and client over real sockets.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Sender;
use tempfile::TempDir;

use super::client::{Client, ClientError};
use super::mounts::{Device, FS_TYPE, Mounted};
use super::server::{Server, socket_path};
use super::*;
use crate::clock::SystemClock;
use crate::stop::Stop;
use crate::sys;

const DEVICE: Device = Device {
    major: 0,
    minor: 4711,
};

#[derive(Default)]
struct Fake {
    pending: AtomicU64,
    drain_millis: AtomicU64,
    stopped: AtomicBool,
    removing: Mutex<Option<Sender<Vec<Removed>>>>,
}

impl Controlled for Fake {
    fn status(&self) -> Status {
        let pending = Pending {
            objects: self.pending.load(Ordering::SeqCst),
            ..Pending::default()
        };
        Status {
            version: "test".into(),
            pending,
            ..Status::default()
        }
    }

    fn mark(&self) -> u64 {
        7
    }

    fn hand_over(&self, program: &Path, format: u32) -> String {
        format!("{} and format {format} are refused", program.display())
    }

    fn pending_before(&self, mark: u64) -> u64 {
        assert_eq!(mark, 7);
        self.pending.load(Ordering::SeqCst)
    }

    fn divergent(&self, after: u64) -> Vec<Divergence> {
        let copy = lists::Copy {
            bytes: Some(1),
            blake3: None,
        };
        let divergence = |number| Divergence {
            number,
            signature: "a".repeat(32),
            here: copy.clone(),
            there: copy.clone(),
            time: 0,
        };
        (after + 1..=3).map(divergence).take(2).collect()
    }

    fn given_up(&self, _: u64) -> Vec<GivenUp> {
        Vec::new()
    }

    fn remove(&self, removal: Removal) -> Result<Receiver<Vec<Removed>>, String> {
        let (send, receive) = crossbeam_channel::bounded(1);
        match removal.signatures.first().map(String::as_str) {
            Some("never") => *self.removing.lock().unwrap() = Some(send),
            Some("busy") => return Err("busy".to_owned()),
            _ => send.send(vec![Removed::default()]).unwrap(),
        }
        Ok(receive)
    }

    fn entry(&self, signature: &str, ask: bool) -> Result<Receiver<Entry>, String> {
        let (send, receive) = crossbeam_channel::bounded(1);
        let entry = Entry {
            signature: signature.to_owned(),
            pending: ask,
            ..Entry::default()
        };
        match signature {
            "bad" => return Err("it is no signature".to_owned()),
            _ => send.send(entry).unwrap(),
        }
        Ok(receive)
    }

    fn remount(&self, wanted: Remount) -> Result<Receiver<Remounted>, String> {
        let (send, receive) = crossbeam_channel::bounded(1);
        let answer = match wanted.options.as_str() {
            "wrong" => Err("nothing was changed".to_owned()),
            options => Ok(vec![options.to_owned()]),
        };
        send.send(answer).unwrap();
        Ok(receive)
    }

    fn set_drain_timeout(&self, timeout: Duration) {
        self.drain_millis
            .store(timeout.as_millis().try_into().unwrap(), Ordering::SeqCst);
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

fn bind(dir: &Path, fake: &Arc<Fake>) -> Server {
    Server::bind(dir, DEVICE, fake.clone(), SystemClock::shared()).unwrap()
}

fn client(dir: &Path) -> Result<Client, ClientError> {
    let mounted = Mounted {
        device: DEVICE,
        mountpoint: "/m".into(),
        fs_type: FS_TYPE.into(),
        source: "test".into(),
        owner: Some(sys::effective_uid()),
    };
    Client::connect(&mounted, dir)
}

/// A running server for the time of `test`.
fn served(test: impl FnOnce(&Path, &Fake, &Stop)) {
    let dir = TempDir::new().unwrap();
    let run_dir = dir.path().join("run");
    let fake = Arc::new(Fake::default());
    let stop = Stop::new().unwrap();
    let server = bind(&run_dir, &fake);
    thread::scope(|scope| {
        scope.spawn(|| server.run(&stop));
        test(&run_dir, &fake, &stop);
        stop.ask();
    });
}

fn raw(dir: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket_path(dir, DEVICE)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

fn closes(mut stream: UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest.is_empty(),
        Err(err) => err.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn status_is_answered() {
    served(|dir, fake, _| {
        fake.pending.store(3, Ordering::SeqCst);
        let status = client(dir).unwrap().status().unwrap();
        assert_eq!(
            (status.version.as_str(), status.pending.objects),
            ("test", 3)
        );
    });
}

#[test]
fn a_flush_waits_for_what_was_pushed_and_not_longer_than_allowed() {
    served(|dir, fake, _| {
        fake.pending.store(2, Ordering::SeqCst);
        assert_eq!(
            client(dir)
                .unwrap()
                .flush(Duration::from_millis(50))
                .unwrap(),
            2
        );
        thread::scope(|scope| {
            let flush =
                scope.spawn(|| client(dir).unwrap().flush(Duration::from_secs(60)).unwrap());
            // Others are served meanwhile.
            client(dir).unwrap().status().unwrap();
            fake.pending.store(0, Ordering::SeqCst);
            assert_eq!(flush.join().unwrap(), 0);
        });
        assert_eq!(client(dir).unwrap().flush(Duration::MAX).unwrap(), 0);
    });
}

#[test]
fn a_list_comes_piece_by_piece() {
    served(|dir, _, _| {
        let numbers = |after| {
            let next = client(dir).unwrap().divergent(after).unwrap();
            next.iter().map(|d| d.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(0), [1, 2]);
        assert_eq!(numbers(2), [3]);
        assert!(numbers(3).is_empty());
        assert!(client(dir).unwrap().given_up(0).unwrap().is_empty());
    });
}

#[test]
fn what_is_known_of_an_entry_is_answered() {
    served(|dir, _, _| {
        let entry = |sig, remotes| client(dir).unwrap().entry(sig, remotes, Duration::ZERO);
        assert!(!entry("a", false).unwrap().pending);
        assert!(entry("a", true).unwrap().pending);
        assert!(matches!(entry("bad", false), Err(ClientError::Refused(_))));
    });
}

#[test]
fn who_has_something_removed_waits_for_it_and_nobody_else_does() {
    let removal = |sig: &str| Removal {
        signatures: vec![sig.to_owned()],
        remote: false,
        timeout_ms: 0,
    };
    served(|dir, fake, stop| {
        let remove = |sig| client(dir).unwrap().remove(removal(sig));
        assert_eq!(remove("at once").unwrap().len(), 1);
        assert!(matches!(remove("busy"), Err(ClientError::Refused(why)) if why == "busy"));
        thread::scope(|scope| {
            let dropped = scope.spawn(|| remove("never"));
            while fake.removing.lock().unwrap().is_none() {
                client(dir).unwrap().status().unwrap();
            }
            *fake.removing.lock().unwrap() = None;
            assert!(matches!(
                dropped.join().unwrap(),
                Err(ClientError::Refused(_))
            ));
            let at_the_end = scope.spawn(|| remove("never"));
            while fake.removing.lock().unwrap().is_none() {
                client(dir).unwrap().status().unwrap();
            }
            stop.ask();
            assert!(matches!(
                at_the_end.join().unwrap(),
                Err(ClientError::Refused(_))
            ));
        });
    });
}

#[test]
fn who_asked_to_stop_hears_what_is_left_when_all_is_over() {
    served(|dir, fake, stop| {
        fake.pending.store(5, Ordering::SeqCst);
        let stopping = Request::Stop {
            unmount: true,
            drain_timeout_ms: Some(1500),
        };
        let mut asker = raw(dir);
        serde_json::to_writer(&mut asker, &stopping).unwrap();
        asker.write_all(b"\n").unwrap();
        let mut acknowledged = [0; 1];
        asker.read_exact(&mut acknowledged).unwrap();
        assert!(fake.stopped.load(Ordering::SeqCst));
        assert_eq!(fake.drain_millis.load(Ordering::SeqCst), 1500);
        stop.ask();
        let mut farewell = String::new();
        asker.read_to_string(&mut farewell).unwrap();
        assert_eq!(
            farewell,
            "{\"stopped\":{\"left\":5,\"summary\":\"no lookups, fetched 0 B, uploaded 0 (0 B), pending 5 (0 B)\"}}\n"
        );
    });
}

#[test]
fn nonsense_and_endless_lines_are_hung_up_on() {
    served(|dir, _, _| {
        let mut nonsense = raw(dir);
        nonsense.write_all(b"{\"ask\":\"what\"}\n").unwrap();
        assert!(closes(nonsense));
        let mut endless = raw(dir);
        let block = vec![b' '; 4096];
        while endless.write_all(&block).is_ok() {}
        client(dir).unwrap().status().unwrap();
    });
}

/// A whole request, cut at every byte and with every bit flipped once, and numbers that nobody means.
#[test]
fn any_line_is_answered_or_hung_up_on_and_the_next_client_is_served() {
    let requests = [
        r#"{"ask":"status"}"#,
        r#"{"ask":"flush","timeout_ms":0}"#,
        r#"{"ask":"flush","timeout_ms":18446744073709551615}"#,
        r#"{"ask":"flush","timeout_ms":-1}"#,
        r#"{"ask":"flush","timeout_ms":1e99}"#,
        r#"{"ask":"status","ask":"status"}"#,
        "",
        "\0",
        "null",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ];
    served(|dir, _, _| {
        let ask = |line: &[u8]| {
            let mut stream = raw(dir);
            stream.write_all(&[line, b"\n"].concat()).unwrap();
            // Hung up on, or an answer that ends.
            let _reset = stream.read_to_end(&mut Vec::new());
        };
        for request in requests {
            ask(request.as_bytes());
        }
        let whole = requests[1].as_bytes();
        for len in 0..whole.len() {
            ask(&whole[..len]);
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            ask(&flipped);
        }
        client(dir).unwrap().status().unwrap();
    });
}

#[test]
fn clients_that_never_send_never_read_or_crowd_keep_nobody_from_the_status() {
    served(|dir, fake, _| {
        fake.pending.store(1, Ordering::SeqCst);
        let crowd: Vec<_> = (0..200).map(|_| raw(dir)).collect();
        let mut deaf = raw(dir);
        deaf.write_all(b"{\"ask\":\"flush\",\"timeout_ms\":60000}\n")
            .unwrap();
        client(dir).unwrap().status().unwrap();
        drop(crowd);
    });
}

#[test]
fn the_socket_of_a_dead_daemon_is_taken_over_and_that_of_a_newer_one_left_alone() {
    let dir = TempDir::new().unwrap();
    let fake = Arc::new(Fake::default());
    let old = bind(dir.path(), &fake);
    let new = bind(dir.path(), &fake);
    drop(old);
    assert!(socket_path(dir.path(), DEVICE).exists());
    drop(new);
    assert!(!socket_path(dir.path(), DEVICE).exists());
    assert!(matches!(
        client(dir.path()),
        Err(ClientError::Unreachable(_))
    ));
}

#[test]
fn a_socket_directory_that_others_can_write_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let refused = Server::bind(
        dir.path(),
        DEVICE,
        Arc::new(Fake::default()),
        SystemClock::shared(),
    );
    assert!(
        refused
            .err()
            .unwrap()
            .to_string()
            .contains("XDG_RUNTIME_DIR")
    );
}

#[test]
fn requests_and_answers_look_on_the_wire_as_they_always_did() {
    let wire = |request| serde_json::to_string(&request).unwrap();
    assert_eq!(wire(Request::Status), r#"{"ask":"status"}"#);
    assert_eq!(
        wire(Request::Flush { timeout_ms: 5 }),
        r#"{"ask":"flush","timeout_ms":5}"#
    );
    assert_eq!(
        wire(Request::Stop {
            unmount: false,
            drain_timeout_ms: None
        }),
        r#"{"ask":"stop","unmount":false,"drain_timeout_ms":null}"#
    );
    let older: Status = serde_json::from_str(r#"{"version":"0.0.1","unheard_of":1}"#).unwrap();
    assert_eq!(older.version, "0.0.1");
}
