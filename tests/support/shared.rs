//! A cache that machines share: a plain directory, or a remote that each machine mounts for itself.
//!
//! Tests of SCons take one, so that the plain directory is always at hand as the baseline.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::mounted::Mounted;

/// Where the machines meet.
pub(crate) enum Shared {
    /// All machines see the same directory.
    Plain(PathBuf),
    /// Each machine mounts this remote, with these options, over a backing directory of its own.
    Remote { url: String, options: &'static str },
}

/// One machine's view of the shared cache.
pub(crate) enum Machine {
    Plain(PathBuf),
    Mount(Mounted),
}

impl Shared {
    /// A directory that holds what a fresh CacheDir holds. Left to itself, SCons 3.1 with -j may read the `config`
    /// that another of its threads has just created and not yet written, and fails.
    pub(crate) fn plain(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("config"), r#"{"prefix_len": 2}"#).unwrap();
        fs::write(
            directory.join("CACHEDIR.TAG"),
            "Signature: 8a477f597d28d172789f06886806bc55\n",
        )
        .unwrap();
        Self::Plain(directory.into())
    }

    pub(crate) fn remote(url: impl Into<String>) -> Self {
        Self::Remote {
            url: url.into(),
            options: "",
        }
    }

    /// A `file://` remote in the new directory `directory`.
    pub(crate) fn files(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        Self::remote(format!("file://{}", directory.display()))
    }

    /// A machine that has never seen this cache before.
    pub(crate) fn machine(&self) -> Machine {
        match self {
            Self::Plain(directory) => Machine::Plain(directory.clone()),
            Self::Remote { url, options } => Machine::Mount(Mounted::with_options(url, options)),
        }
    }

    /// The same, with further mount options; a plain directory has none.
    pub(crate) fn machine_with(&self, options: &str) -> Machine {
        match self {
            Self::Plain(directory) => Machine::Plain(directory.clone()),
            Self::Remote { url, .. } => Machine::Mount(Mounted::with_options(url, options)),
        }
    }
}

impl Machine {
    /// What `CacheDir()` is given.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Plain(directory) => directory,
            Self::Mount(mounted) => mounted.path(),
        }
    }

    pub(crate) fn is_mount(&self) -> bool {
        matches!(self, Self::Mount(_))
    }

    /// Everything pushed so far is where other machines find it.
    pub(crate) fn flush(&self) {
        if let Self::Mount(mounted) = self {
            mounted.flush();
        }
    }
}
