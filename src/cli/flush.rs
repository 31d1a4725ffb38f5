//! `cachedirfs flush`: waits until everything pushed so far is on the remote.

use std::path::PathBuf;
use std::time::Duration;

use crate::control::client::Client;

use super::{Env, Exit, Failure, complain, objects_are, our_mount, real_path};

/// Wait until everything pushed so far is on the remote
///
/// The exit status is 0 when it is, 1 when time was up before, and 2 when the mount could not be asked.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// How long to wait at most
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = real_path(&args.mountpoint, &env.host.cwd);
    let cannot = |why: String| {
        Failure::new(
            Exit::Usage,
            format!("cannot flush {}: {why}", mountpoint.display()),
        )
    };
    let mounted = our_mount(&mountpoint).map_err(cannot)?;
    let asked = Client::connect(&mounted, &env.run_dir())
        .and_then(|client| client.flush(Duration::from_secs(args.timeout)));
    let left = asked.map_err(|err| cannot(err.to_string()))?;
    if left == 0 {
        return Ok(Exit::Done);
    }
    complain(format_args!(
        "{}: {} not on the remote yet; see: cachedirfs status {0}",
        mountpoint.display(),
        objects_are(left)
    ));
    Ok(Exit::Failed)
}
