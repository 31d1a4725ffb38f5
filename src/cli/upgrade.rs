//! `cachedirfs upgrade`: mounts go on with this version of the program, while they are in use.

use std::path::PathBuf;
use std::time::Duration;

use crate::clock::SystemClock;
use crate::control::Status;
use crate::control::client::Client;
use crate::control::mounts::{MountTable, Mounted};
use crate::mount::handover::FORMAT;

use super::{Env, Exit, Failure, complain, our_mount, real_path};

/// How long the mount may take to answer again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is asked.
const TICK: Duration = Duration::from_millis(20);

/// Have mounts go on with this version of the program, without unmounting
///
/// Whoever uses the mount waits for a moment; files stay open and nothing that was pushed is lost. Each daemon becomes the
/// program that this command is run from.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where it is mounted; all mounts when left out
    mountpoint: Option<PathBuf>,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let failed = |why: String| Failure::new(Exit::Failed, why);
    let program = std::env::current_exe()
        .map_err(|err| failed(format!("cannot find out which program this is: {err}")))?;
    if let Some(mountpoint) = &args.mountpoint {
        let mountpoint = real_path(mountpoint, &env.host.cwd);
        let mounted = our_mount(&mountpoint)
            .map_err(|why| failed(format!("cannot upgrade {}: {why}", mountpoint.display())))?;
        upgrade(&mounted, &program, env).map_err(failed)?;
        return Ok(Exit::Done);
    }
    let table =
        MountTable::read().map_err(|err| failed(format!("cannot read the mount table: {err}")))?;
    let mut exit = Exit::Done;
    for mounted in table.ours() {
        if let Err(why) = upgrade(mounted, &program, env) {
            complain(why);
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}

fn upgrade(mounted: &Mounted, program: &std::path::Path, env: &Env) -> Result<(), String> {
    let shown = mounted.mountpoint.display();
    let connect = || Client::connect(mounted, &env.run_dir());
    let before = connect()
        .and_then(Client::status)
        .and_then(|status| {
            connect()?.upgrade(program, FORMAT)?;
            Ok(status)
        })
        .map_err(|err| format!("cannot upgrade {shown}: {err}"))?;
    let clock = SystemClock::shared();
    let taken_over =
        |status: &Status| status.pid == before.pid && status.upgrades > before.upgrades;
    while clock.now() < PATIENCE {
        match connect().and_then(Client::status) {
            Ok(status) if taken_over(&status) => return Ok(()),
            _ => clock.sleep(TICK),
        }
    }
    Err(format!(
        "{shown} was handed over to {}, but does not answer; its log says why. To mount it anew: cachedirfs umount {shown}",
        program.display()
    ))
}
