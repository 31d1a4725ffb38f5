//! `cachedirfs umount`: unmounts, and waits until the daemon has drained its uploads and exited.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::control::client::{Client, ClientError, Ending};
use crate::control::mounts::Mounted;
use crate::sys;

use super::{Env, Exit, Failure, complain, objects_are, our_mount, real_path};

/// Unmount, and wait for what was pushed to reach the remote
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    pub(super) mountpoint: PathBuf,
    /// Detach it even if it is in use, and do not wait: the daemon ends when the last user has gone
    #[arg(short, long)]
    pub(super) lazy: bool,
    /// Say on standard error what the mount did
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// How long to wait for uploads, instead of what was mounted with; the rest goes with the next mount
    #[arg(long, value_name = "SECONDS")]
    pub(super) drain_timeout: Option<u64>,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = real_path(&args.mountpoint, &env.host.cwd);
    let shown = mountpoint.display();
    let cannot = |why: String| Failure::new(Exit::Mount, format!("cannot unmount {shown}: {why}"));
    let mounted = our_mount(&mountpoint).map_err(cannot)?;
    let drain_timeout = args.drain_timeout.map(Duration::from_secs);
    let ending = register(&mounted, env, drain_timeout).map_err(|err| cannot(err.to_string()))?;
    detach(&mountpoint, args.lazy).map_err(|err| cannot(busy_or(&err, &mountpoint)))?;
    match ending {
        None => complain(format_args!(
            "{shown}: its daemon was gone already; what was not uploaded is kept and goes with the next mount"
        )),
        Some(ending) if !args.lazy => report(&mountpoint, ending.wait(), args.verbose),
        Some(_) => {}
    }
    Ok(Exit::Done)
}

/// Asks the daemon to tell us about its end; `None` when there is no daemon any more.
fn register(
    mounted: &Mounted,
    env: &Env,
    drain: Option<Duration>,
) -> Result<Option<Ending>, ClientError> {
    let asked =
        Client::connect(mounted, &env.run_dir()).and_then(|client| client.stop(false, drain));
    match asked {
        Ok(ending) => Ok(Some(ending)),
        Err(err @ ClientError::Refused(_)) => Err(err),
        Err(ClientError::Unreachable(_) | ClientError::Broken(_)) => Ok(None),
    }
}

fn report(mountpoint: &Path, end: Option<(u64, String)>, verbose: bool) {
    let shown = mountpoint.display();
    if let (true, Some((_, summary))) = (verbose, &end) {
        complain(format_args!("{shown}: {summary}"));
    }
    match end.map(|(left, _)| left) {
        Some(0) => {}
        Some(left) => complain(format_args!(
            "{shown}: {} not on the remote yet; what is left is kept and goes with the next mount",
            objects_are(left)
        )),
        None => complain(format_args!(
            "{shown}: its daemon ended without a word; what was not uploaded is kept and goes with the next mount"
        )),
    }
}

fn busy_or(err: &io::Error, mountpoint: &Path) -> String {
    if err.kind() != io::ErrorKind::ResourceBusy {
        return err.to_string();
    }
    format!(
        "it is in use; see by whom with: fuser -vm {}, or detach it with --lazy",
        mountpoint.display()
    )
}

/// Takes a mount out of the tree: by ourselves, or through fusermount3 where only root may.
pub(super) fn detach(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    match sys::unmount(mountpoint, lazy) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {}
        done => return done,
    }
    match fusermount("fusermount3", mountpoint, lazy) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            fusermount("fusermount", mountpoint, lazy)
        }
        done => done,
    }
}

fn fusermount(program: &str, mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let how = if lazy { "-uz" } else { "-u" };
    let output = Command::new(program)
        .args([how, "--"])
        .arg(mountpoint)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    Err(io::Error::other(said))
}
