//! The remote that the machines share, and what befalls it.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cachedirfs::remote::Remote;
use fastrand::Rng;
use tempfile::TempDir;

use super::{Stage, patient};
use crate::support::proxy::{Fault, Proxy, Way};
use crate::support::servers::{Nginx, Server};
use crate::support::workspace;

/// Longest time that one fault lasts.
const LASTS_MS: u64 = 4000;

/// A remote of one kind.
pub(super) enum Backend {
    /// A real server behind the proxy.
    Http {
        server: Server,
        proxy: Proxy,
        tls: bool,
    },
    /// A directory, as it is when a server is mounted there; now and then nothing is.
    File { dir: TempDir, there: Mutex<()> },
}

impl Backend {
    pub(super) fn of(seed: u64) -> Self {
        match seed % 3 {
            0 => Self::File {
                dir: file_remote(),
                there: Mutex::default(),
            },
            kind => {
                let tls = kind == 2;
                let server = Server::nginx(if tls { Nginx::Tls } else { Nginx::Open });
                let proxy = Proxy::to(server.port());
                Self::Http { server, proxy, tls }
            }
        }
    }

    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Http { tls: true, .. } => "https:// (nginx behind a faulty network)",
            Self::Http { .. } => "http:// (nginx behind a faulty network)",
            Self::File { .. } => "file:// (a directory that comes and goes)",
        }
    }

    /// As machines name it, with the option that it needs.
    pub(super) fn url(&self) -> (String, String) {
        match self {
            Self::Http { server, proxy, tls } => {
                let ca = if *tls {
                    format!(",ca_file={}", server.ca().display())
                } else {
                    String::new()
                };
                let scheme = if *tls { "https" } else { "http" };
                (proxy.url(scheme, "cache"), ca)
            }
            Self::File { .. } => (format!("file://{}", self.dir().display()), String::new()),
        }
    }

    /// The remote without anything in between.
    pub(super) fn open(&self) -> Arc<dyn Remote> {
        match self {
            Self::Http { server, tls, .. } => {
                let ca = server.ca();
                patient(&server.url(), tls.then_some(ca.as_path()))
            }
            Self::File { .. } => patient(&self.url().0, None),
        }
    }

    /// One fault after the other until the run is over.
    pub(super) fn trouble(&self, stage: &Stage) {
        let mut rng = stage.rng("remote");
        while !stage.is_over() {
            let lasts = Duration::from_millis(rng.u64(100..LASTS_MS));
            stage.report.faults.add(1);
            match self {
                Self::Http { proxy, tls, .. } => {
                    proxy.set(a_fault(&mut rng, *tls));
                    stage.pause(lasts);
                    self.heal();
                }
                Self::File { dir, there } => {
                    let _away = there.lock().unwrap();
                    set_away(dir, true);
                    stage.pause(lasts);
                    set_away(dir, false);
                }
            }
            stage.pause(Duration::from_millis(rng.u64(100..LASTS_MS)));
        }
    }

    /// From now on all is well.
    pub(super) fn heal(&self) {
        match self {
            Self::Http { proxy, .. } => proxy.set(Fault::Pass),
            // It is back whenever `trouble` is not at it.
            Self::File { .. } => {}
        }
    }

    /// Held while the remote can be mounted: a directory that is not there is not (see promise 6 in `lib.rs`), and
    /// whoever mounts it waits for it.
    pub(super) fn present(&self) -> Option<MutexGuard<'_, ()>> {
        match self {
            Self::Http { .. } => None,
            Self::File { there, .. } => Some(there.lock().unwrap()),
        }
    }

    fn dir(&self) -> PathBuf {
        match self {
            Self::Http { server, .. } => server.root(),
            Self::File { dir, .. } => dir.path().join("there/share/cache"),
        }
    }
}

/// A directory whose grandparent can go away: what is missing with its parent is not made anew.
fn file_remote() -> TempDir {
    let dir = workspace();
    fs::create_dir_all(dir.path().join("there/share/cache")).unwrap();
    dir
}

fn set_away(dir: &TempDir, away: bool) {
    let (there, gone) = (dir.path().join("there"), dir.path().join("away"));
    let (from, to) = if away { (there, gone) } else { (gone, there) };
    if from.exists() {
        fs::rename(&from, &to)
            .unwrap_or_else(|e| panic!("rename {} to {}: {e}", from.display(), to.display()));
    }
}

/// Any fault. A bit that flips in an upload is for TLS alone: nothing but TLS can notice that, on the way up.
fn a_fault(rng: &mut Rng, tls: bool) -> Fault {
    let way = if rng.bool() {
        Way::Request
    } else {
        Way::Response
    };
    let after = [0, rng.u64(..400), rng.u64(..100_000)][rng.usize(..3)];
    match rng.u32(..12) {
        0 => Fault::Refuse,
        1 | 2 => Fault::Blackhole,
        3 => Fault::Silent,
        4 => Fault::Reset { way, after },
        5 => Fault::Cut { way, after },
        6 => Fault::Stall { way, after },
        7 => Fault::Trickle {
            way,
            after,
            bytes_per_second: [1, 1000][rng.usize(..2)],
        },
        8 | 9 => Fault::FlipBit {
            way: if tls { way } else { Way::Response },
            at: rng.u64(..2000),
        },
        10 => Fault::Delay {
            rtt: Duration::from_millis(rng.u64(1..300)),
        },
        _ => Fault::Bandwidth {
            bytes_per_second: rng.u64(10_000..1_000_000),
        },
    }
}
