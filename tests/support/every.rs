//! A remote of every kind, each on a real server, as a mount or a command line names them.

use std::any::Any;

use tempfile::TempDir;

use crate::support::cloud::{BUCKET, Store};
use crate::support::reapi::{Cache, Door, Guard};
use crate::support::redis::Redis;
use crate::support::servers::{Nginx, Server};
use crate::support::workspace;

/// A remote and what keeps it up.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    /// What is said of it as a tier: `|NAME=VALUE`.
    pub(crate) attributes: String,
    /// Variables that its credentials come from.
    pub(crate) variables: Vec<(String, String)>,
    _server: Box<dyn Any + Send + Sync>,
}

impl Kind {
    fn new(name: &'static str, url: String, server: impl Any + Send + Sync) -> Self {
        Self {
            name,
            url,
            attributes: String::new(),
            variables: Vec::new(),
            _server: Box::new(server),
        }
    }

    fn of_cloud(name: &'static str, scheme: &str, store: Store) -> Self {
        let variables = store.keys.clone().into_iter().collect();
        let attributes = format!("|endpoint={}", store.endpoint());
        Self {
            attributes,
            variables,
            ..Self::new(name, format!("{scheme}://{BUCKET}/every"), store)
        }
    }

    /// As one word of several remotes.
    pub(crate) fn tier(&self) -> String {
        format!("{}{}", self.url, self.attributes)
    }

    /// What starts a program with its credentials in the environment.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        wrapper([self])
    }
}

/// The same for several.
pub(crate) fn wrapper<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Vec<String> {
    let variables = kinds.into_iter().flat_map(|kind| &kind.variables);
    let set = variables.map(|(name, value)| format!("{name}={value}"));
    ["/usr/bin/env".to_owned()].into_iter().chain(set).collect()
}

/// One of each.
pub(crate) fn kinds() -> Vec<Kind> {
    let directory: TempDir = workspace();
    let directory_url = format!("file://{}/remote", directory.path().display());
    let (nginx, lighttpd) = (Server::nginx(Nginx::Open), Server::lighttpd());
    let (bazel, casd, grid) = (
        Cache::nginx(Guard::Open),
        Cache::casd(),
        Cache::buildgrid(Door::Open),
    );
    let redis = Redis::start(&[]);
    let mut google = Kind::of_cloud("gs, emulator", "gs", Store::gcs());
    // It takes one connection at a time and lets five wait.
    google.attributes += "|connect_timeout=30s|lookup_timeout=30s";
    vec![
        Kind::new("file", directory_url, directory),
        Kind::new("http, nginx", nginx.url(), nginx),
        Kind::new("http, lighttpd", lighttpd.url(), lighttpd),
        Kind::new("bazel+http, nginx", bazel.url("bazel+http", "cache"), bazel),
        Kind::new("grpc, casd", casd.url("grpc", ""), casd),
        Kind::new("grpc, BuildGrid", grid.url("grpc", "main"), grid),
        Kind::new("redis", redis.url(), redis),
        Kind::of_cloud("s3, moto", "s3", Store::moto()),
        Kind::of_cloud("az, azurite", "az", Store::azurite()),
        google,
    ]
}
