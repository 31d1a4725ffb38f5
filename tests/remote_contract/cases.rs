//! The remotes to be tried, each with a way into its store.

use std::any::Any;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cachedirfs::clock::SystemClock;
use cachedirfs::object::Payload;
use cachedirfs::remote::blob::{BlobRemote, Blobs, Written};
use cachedirfs::remote::breaker::{Breaker, BreakerOptions};
use cachedirfs::remote::deadline::{Deadline, DeadlineOptions};
use cachedirfs::remote::memory::Memory;
use cachedirfs::remote::retry::{Retry, RetryOptions};
use cachedirfs::remote::{Content, Format, Key, Layout, Remote, RemoteOptions, Secret, open};
use cachedirfs::signature::Meta;
use tempfile::TempDir;

use super::bazel::Way;
use crate::support::cloud::{self, Hand};
use crate::support::servers::{Nginx, PASSWORD, Server, TOKEN, USER};

/// A remote to be tried, and a way into its store behind its back.
pub(super) struct Case {
    pub(super) remote: Arc<dyn Remote>,
    pub(super) options: RemoteOptions,
    pub(super) store: Store,
    /// Ended with the case.
    pub(super) server: Option<Server>,
    /// Whatever else ends with the case: a server of another kind, a directory.
    pub(super) _held: Option<Box<dyn Any + Send + Sync>>,
}

pub(super) enum Store {
    /// A second way to the same store, past what is being tried.
    Blobs(Box<dyn Blobs>),
    Dir(PathBuf),
    /// Several that hold the same, or of which one holds it.
    All(Vec<Store>),
    /// The cloud's own library, with what it calls the prefix.
    Hand(Hand, &'static str),
    /// An action cache, which has no keys of a layout.
    Actions(Way),
}

impl Case {
    /// Whether its store can hold an object of no bytes. gcp-storage-emulator closes the connection on an upload of none
    /// (it takes the length of a body that it did not read); every other does it right.
    pub(super) fn holds_nothing(&self) -> bool {
        let store = self._held.as_ref().and_then(|held| held.downcast_ref());
        store.is_none_or(|store: &cloud::Store| !store.is_googles())
    }
}

impl Store {
    pub(super) fn set(&self, key: &str, bytes: &[u8]) {
        match self {
            Self::Blobs(blobs) => {
                let content = Content::Bytes(bytes.to_vec());
                let hash = content.hash().unwrap();
                let payload = Payload::raw(Meta::file(0o644), &content, hash).unwrap();
                assert_eq!(blobs.put(key, &payload, false).unwrap(), Written::Stored);
            }
            Self::Hand(hand, prefix) => hand.set(&format!("{prefix}{key}"), bytes),
            Self::Actions(_) => panic!("no place for {key}"),
            Self::Dir(root) => {
                let path = root.join(key);
                let parent = path.parent().unwrap();
                fs::create_dir_all(parent).unwrap();
                // The server may be another user.
                fs::set_permissions(parent, fs::Permissions::from_mode(0o777)).unwrap();
                fs::write(path, bytes).unwrap();
            }
            Self::All(stores) => stores.iter().for_each(|store| store.set(key, bytes)),
        }
    }

    pub(super) fn bytes(&self, key: &str) -> Vec<u8> {
        match self {
            Self::Blobs(blobs) => {
                let mut bytes = Vec::new();
                let mut blob = blobs.get(key).unwrap().unwrap();
                blob.body.read_to_end(&mut bytes).unwrap();
                bytes
            }
            Self::Hand(hand, prefix) => hand.get(&format!("{prefix}{key}")),
            Self::Actions(_) => panic!("no place for {key}"),
            Self::Dir(root) => fs::read(root.join(key)).unwrap(),
            Self::All(stores) => stores.iter().find(|s| s.has(key)).unwrap().bytes(key),
        }
    }
}

impl Store {
    pub(super) fn has(&self, key: &str) -> bool {
        match self {
            Self::Blobs(blobs) => blobs.exists(key).unwrap(),
            Self::Dir(root) => root.join(key).exists(),
            Self::Hand(..) | Self::Actions(_) => unreachable!("no case has several of them"),
            Self::All(stores) => stores.iter().any(|store| store.has(key)),
        }
    }
}

pub(super) fn memory(options: RemoteOptions) -> Case {
    in_memory(&Memory::default(), options)
}

pub(super) fn in_memory(memory: &Memory, options: RemoteOptions) -> Case {
    let remote = Arc::new(BlobRemote::new(memory.clone(), &options));
    Case {
        remote,
        options,
        store: Store::Blobs(Box::new(memory.clone())),
        server: None,
        _held: None,
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
        _held: Some(Box::new(dir)),
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
        _held: None,
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
    Case {
        remote: behind(case.remote),
        ..case
    }
}

/// A remote behind what a mount puts around it.
pub(super) fn behind(remote: Arc<dyn Remote>) -> Arc<dyn Remote> {
    let limits = DeadlineOptions {
        first_byte: Duration::from_secs(60),
        stall: Duration::from_secs(60),
        whole: Duration::from_secs(600),
        min_speed: 0,
    };
    let deadline = Deadline::new(remote, SystemClock::shared(), limits);
    let breaker = Breaker::new(
        Arc::new(deadline),
        SystemClock::shared(),
        BreakerOptions::default(),
    );
    Arc::new(Retry::new(
        Arc::new(breaker),
        SystemClock::shared(),
        RetryOptions::default(),
    ))
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
