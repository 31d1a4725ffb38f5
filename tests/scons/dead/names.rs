//! A remote whose name server fails: the daemon runs in a mount namespace where another one is configured.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use super::{Mortal, ends_soon};
use crate::support::mounted::Mounted;
use crate::support::servers::{Nginx, Server};
use crate::support::workspace;

/// What a name server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Nothing,
    NoSuchName,
    /// Every name is this machine.
    Here,
}

/// A server with a name that only a name server of our own knows.
pub(super) struct Named {
    server: Server,
    names: NameServer,
    when_dead: Says,
    place: SharedPlace,
}

impl Named {
    pub(super) fn new(when_dead: Says) -> Self {
        Self {
            server: Server::nginx(Nginx::Open),
            names: NameServer::start(),
            when_dead,
            place: SharedPlace::new(),
        }
    }
}

impl Mortal for Named {
    fn url(&self) -> String {
        format!("http://cache.test:{}/cache", self.server.port())
    }

    fn mount(&self) -> Mounted {
        let place = self.place.0.path();
        let configured = place.join("resolv.conf");
        let nameserver = format!("nameserver {}\n", self.names.address);
        std::fs::write(&configured, nameserver).unwrap();
        let workspace = TempDir::new_in(place).unwrap();
        let wrapper = with_resolver(&configured);
        Mounted::wrapped(wrapper, workspace, &self.url(), &ends_soon(""))
    }

    fn direct(&self) -> (String, String) {
        (self.server.url(), String::new())
    }

    fn die(&self) {
        *self.names.says.lock().unwrap() = self.when_dead;
    }

    fn come_back(&self) {
        *self.names.says.lock().unwrap() = Says::Here;
    }
}

/// A directory where a mount in one mount namespace is one in all of them.
struct SharedPlace(TempDir);

impl SharedPlace {
    fn new() -> Self {
        let dir = workspace();
        run(Command::new("mount")
            .arg("--bind")
            .args([dir.path(), dir.path()]));
        run(Command::new("mount").arg("--make-shared").arg(dir.path()));
        Self(dir)
    }
}

impl Drop for SharedPlace {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?} takes root: {status}");
}

/// What starts a program with this resolver configuration.
fn with_resolver(configured: &Path) -> Vec<String> {
    // What the namespace changes must not come back through shared mounts.
    let script = "mount --make-private / && { mount --make-private /etc/resolv.conf 2>/dev/null || true; } \
                  && mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let configured = configured.to_str().unwrap();
    let words = ["unshare", "-m", "--propagation", "unchanged", "sh", "-c"];
    words
        .into_iter()
        .chain([script, configured])
        .map(str::to_owned)
        .collect()
}

struct NameServer {
    address: Ipv4Addr,
    says: Arc<Mutex<Says>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// One that answers, on an address of 127/8 that nobody else has.
    fn start() -> Self {
        let free = (1..=254).find_map(|last| {
            let pid = std::process::id().to_be_bytes();
            let address = Ipv4Addr::new(127, pid[2], pid[3], last);
            UdpSocket::bind((address, 53))
                .ok()
                .map(|socket| (address, socket))
        });
        let (address, socket) = free.expect("binding to port 53 takes root");
        let (says, over) = (
            Arc::new(Mutex::new(Says::Here)),
            Arc::new(AtomicBool::new(false)),
        );
        let (said, ended) = (says.clone(), over.clone());
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let thread = thread::spawn(move || {
            let mut query = [0; 512];
            while !ended.load(Ordering::SeqCst) {
                let Ok((len, client)) = socket.recv_from(&mut query) else {
                    continue;
                };
                let says = *said.lock().unwrap();
                if let Some(answer) = answer(&query[..len], says) {
                    // Who asked may be gone.
                    let _gone = socket.send_to(&answer, client);
                }
            }
        });
        Self {
            address,
            says,
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The answer to a query of one question (RFC 1035).
fn answer(query: &[u8], says: Says) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(HEADER..HEADER + name + 5)?;
    let is_address = question[name + 1..name + 3] == A;
    let (code, answers) = match says {
        Says::Nothing => return None,
        Says::NoSuchName => (3, 0),
        Says::Here => (0, u8::from(is_address)),
    };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    answer.extend(question);
    if answers == 1 {
        // The name of the question; A, IN; not to be kept; four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
