//! `cachedirfs rm`: invalidates objects, in a mount and on its remote.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::client::Client;
use crate::control::{BATCH, Removal};
use crate::signature::Signature;

use super::{Env, Exit, Failure, our_mount, real_path, say};

/// Remove objects from a mount, whoever uses them, and from its remote
///
/// An upload that waits is cancelled; one that is under way is waited for. The exit status is 0 when all is gone that
/// was to be, also when there was nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Signatures, or paths that end in one
    #[arg(value_name = "SIGNATURE", required = true)]
    signatures: Vec<PathBuf>,
    /// Remove them from the remote, too
    #[arg(long)]
    remote: bool,
    /// How long to wait for uploads that are under way
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = real_path(&args.mountpoint, &env.host.cwd);
    let cannot = |why: String| {
        Failure::new(
            Exit::Usage,
            format!("cannot remove from {}: {why}", mountpoint.display()),
        )
    };
    let named = args.signatures.iter().map(|path| signature(path));
    let signatures: Vec<_> = named.collect::<Result<_, _>>().map_err(cannot)?;
    let mounted = our_mount(&mountpoint).map_err(cannot)?;
    let mut exit = Exit::Done;
    for batch in signatures.chunks(BATCH) {
        let removal = Removal {
            signatures: batch.to_vec(),
            remote: args.remote,
            timeout_ms: millis(Duration::from_secs(args.timeout)),
        };
        let asked = Client::connect(&mounted, &env.run_dir());
        let removed = asked.and_then(|client| client.remove(removal));
        for one in removed.map_err(|err| cannot(err.to_string()))? {
            if one.trouble.is_some() {
                exit = Exit::Failed;
            }
            say(one);
        }
    }
    Ok(exit)
}

/// The signature that is the last part of a path.
fn signature(path: &Path) -> Result<String, String> {
    let name = path.file_name().map(OsStrExt::as_bytes);
    match name.and_then(Signature::parse) {
        Some(sig) => Ok(sig.to_string()),
        None => Err(format!(
            "{} is no signature: 32 to 128 lower-case hex digits",
            path.display()
        )),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
