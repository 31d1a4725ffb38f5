//! What the tests share. Nothing in here asserts a promise; it builds the stage on which tests do.

pub(crate) mod canned;
pub(crate) mod cloud;
/// A remote of every kind.
pub(crate) mod every;
/// A disk whose power can be cut.
pub(crate) mod image;
/// The reference that the file system is compared with.
pub(crate) mod model;
pub(crate) mod mounted;
pub(crate) mod oracle;
/// What networks and dying servers do to connections.
pub(crate) mod proxy;
/// Caches of Bazel's kind: nginx, buildbox-casd, BuildGrid, and one that lies.
pub(crate) mod reapi;
pub(crate) mod redis;
/// A machine without a kernel: file system, store, fetches and uploads over a remote in memory.
pub(crate) mod rig;
pub(crate) mod scons;
pub(crate) mod servers;
pub(crate) mod shared;
pub(crate) mod tree;
pub(crate) mod venv;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A directory of the test's own that other users may enter.
pub(crate) fn workspace() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix("cachedirfs-test-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("a temporary directory can be made")
}

/// Where `scripts/setup` puts what is not a Debian package.
pub(crate) fn test_tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".test-tools")
}

/// The path of something that `scripts/setup PART` installs; a missing one fails the test with that command.
pub(crate) fn installed(path: PathBuf, part: &str) -> PathBuf {
    assert!(
        path.exists(),
        "{} is missing, run: scripts/setup {part}",
        path.display()
    );
    path
}

/// Waits for a condition; `what` is the complaint when it does not come true in time.
pub(crate) fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Tests of permissions, ownership and other users mean something only when they run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that it is over, however that comes.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
