//! The remotes to be tried, each with a way into its store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cachedirfs::clock::SystemClock;
use cachedirfs::remote::blob::BlobRemote;
use cachedirfs::remote::breaker::{Breaker, BreakerOptions};
use cachedirfs::remote::deadline::{Deadline, DeadlineOptions};
use cachedirfs::remote::memory::Memory;
use cachedirfs::remote::retry::{Retry, RetryOptions};
use cachedirfs::remote::{Format, Key, Layout, Remote, RemoteOptions, Secret, open};
use tempfile::TempDir;

use crate::support::servers::{Nginx, PASSWORD, Server, TOKEN, USER};

/// A remote to be tried, and a way into its store behind its back.
pub(super) struct Case {
    pub(super) remote: Arc<dyn Remote>,
    pub(super) options: RemoteOptions,
    pub(super) store: Store,
    /// Ended with the case.
    pub(super) server: Option<Server>,
    _dir: Option<TempDir>,
}

pub(super) enum Store {
    Memory(Memory),
    Dir(PathBuf),
}

impl Store {
    pub(super) fn set(&self, key: &str, bytes: &[u8]) {
        match self {
            Self::Memory(memory) => memory.set(key, bytes),
            Self::Dir(root) => {
                let path = root.join(key);
                let parent = path.parent().unwrap();
                fs::create_dir_all(parent).unwrap();
                // The server may be another user.
                fs::set_permissions(parent, fs::Permissions::from_mode(0o777)).unwrap();
                fs::write(path, bytes).unwrap();
            }
        }
    }

    pub(super) fn bytes(&self, key: &str) -> Vec<u8> {
        match self {
            Self::Memory(memory) => memory.bytes(key).unwrap(),
            Self::Dir(root) => fs::read(root.join(key)).unwrap(),
        }
    }
}

pub(super) fn memory(options: RemoteOptions) -> Case {
    let memory = Memory::default();
    let remote = Arc::new(BlobRemote::new(memory.clone(), &options));
    Case {
        remote,
        options,
        store: Store::Memory(memory),
        server: None,
        _dir: None,
    }
}

pub(super) fn file(options: RemoteOptions) -> Case {
    let dir = TempDir::new().unwrap();
    let remote = open(&format!("file://{}/cache", dir.path().display()), &options).unwrap();
    let store = Store::Dir(dir.path().join("cache"));
    Case {
        remote,
        options,
        store,
        server: None,
        _dir: Some(dir),
    }
}

pub(super) fn served_at(url: &str, server: Server, options: RemoteOptions) -> Case {
    let remote = open(url, &options).unwrap();
    let store = Store::Dir(server.root());
    Case {
        remote,
        options,
        store,
        server: Some(server),
        _dir: None,
    }
}

pub(super) fn served(server: Server, options: RemoteOptions) -> Case {
    served_at(&server.url(), server, options)
}

pub(super) fn tls(options: RemoteOptions) -> Case {
    let server = Server::nginx(Nginx::Tls);
    let options = RemoteOptions {
        ca_file: Some(server.ca()),
        ..options
    };
    served(server, options)
}

pub(super) fn basic(options: RemoteOptions) -> Case {
    let server = Server::nginx(Nginx::Basic);
    let url = server.url_with(USER, &PASSWORD.replace('%', "%25"));
    served_at(&url, server, options)
}

pub(super) fn bearer(options: RemoteOptions) -> Case {
    let options = RemoteOptions {
        bearer: Some(Secret::new(TOKEN)),
        ..options
    };
    served(Server::nginx(Nginx::Bearer), options)
}

/// Retry over breaker over memory, as a mount stacks them.
pub(super) fn decorated(options: RemoteOptions) -> Case {
    let case = memory(options);
    let limits = DeadlineOptions {
        first_byte: Duration::from_secs(60),
        stall: Duration::from_secs(60),
        whole: Duration::from_secs(600),
        min_speed: 0,
    };
    let deadline = Deadline::new(case.remote, SystemClock::shared(), limits);
    let breaker = Breaker::new(
        Arc::new(deadline),
        SystemClock::shared(),
        BreakerOptions::default(),
    );
    let retry = Retry::new(
        Arc::new(breaker),
        SystemClock::shared(),
        RetryOptions::default(),
    );
    Case {
        remote: Arc::new(retry),
        ..case
    }
}

pub(super) fn plain() -> RemoteOptions {
    RemoteOptions::default()
}

pub(super) fn layout(layout: Layout) -> RemoteOptions {
    RemoteOptions { layout, ..plain() }
}

pub(super) fn raw() -> RemoteOptions {
    RemoteOptions {
        format: Format::Raw,
        ..plain()
    }
}

pub(super) fn keyed() -> RemoteOptions {
    RemoteOptions {
        key: Some(Key::new([42; 32])),
        ..plain()
    }
}
