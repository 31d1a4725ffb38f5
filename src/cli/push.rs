//! `cachedirfs push`: what an existing CacheDir holds goes to a remote.

use std::path::Path;

use crate::control::mounts::MountTable;
use crate::remote::Content;
use crate::signature::Meta;
use crate::store::verify::{Backing, Opened, Task, Verdict};

use super::moving::{How, Moving, open_writable};
use super::parallel::in_parallel;
use super::patience::Patience;
use super::{Env, Exit, Failure, real_path};

/// Copy the entries of a CacheDir to a remote
///
/// What the remote has already is passed over, so the same command goes on where it was interrupted. The exit status is 0 when
/// everything is there, 1 when something is not, and 2 when nothing could be done.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The CacheDir, or a backing directory
    #[arg(value_name = "DIR")]
    dir: std::path::PathBuf,
    /// URL of the remote
    remote: String,
    /// Options of the remote, as they would be for mounting it
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    #[command(flatten)]
    how: How,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let dir = real_path(&args.dir, &env.host.cwd);
    let cannot = |why: String| {
        let dir = dir.display();
        Failure::new(Exit::Usage, format!("cannot push {dir}: {why}"))
    };
    no_mount(&dir).map_err(cannot)?;
    let backing = Backing::open(&dir, false).map_err(|error| cannot(error.to_string()))?;
    let digits = prefix_len(&dir).map_err(cannot)?;
    let (remote, _) = open_writable(&args.remote, &args.options, env)?;
    let total = backing.count().map_err(|error| cannot(error.to_string()))?;
    let patience = Patience::new();
    let moving = Moving::new(&*remote, &args.how, "pushed", Some(total), &patience);
    let moving = moving.map_err(|error| cannot(error.to_string()))?;
    let ours = |task: &Task| task.is_entry() && digits.is_none_or(|digits| digits == task.digits());
    let pushed = in_parallel(
        args.how.jobs,
        |task| push(&backing, &task, &moving),
        |each| backing.each(&mut |task| !moving.patience.is_over() && (!ours(&task) || each(task))),
    );
    pushed.map_err(|error| cannot(error.to_string()))?;
    Ok(moving.end())
}

fn push(backing: &Backing, task: &Task, moving: &Moving<'_>) {
    let sig = task.sig();
    if moving.passes_over(&sig) {
        return;
    }
    // What rotted would be pushed under a hash that fits it.
    match backing.check(task) {
        Verdict::Right(_) | Verdict::Unrecorded(_) => {}
        Verdict::Gone => return moving.progress.step(),
        Verdict::Wrong(why) | Verdict::Unreadable(why) => {
            moving.failed(&task.path(), &why);
            return moving.progress.step();
        }
    }
    match backing.read(task) {
        Ok(Some(Opened::File(file, mode, len))) => {
            moving.put(&sig, Meta::file(mode), &Content::File(file, len));
        }
        Ok(Some(Opened::Symlink(target))) => {
            moving.put(&sig, Meta::Symlink, &Content::Bytes(target));
        }
        // A live mount evicted it.
        Ok(None) => moving.progress.step(),
        Err(error) => {
            moving.failed(&task.path(), &error.to_string());
            moving.progress.step();
        }
    }
}

/// Looking at everything in a mount would fetch it all.
fn no_mount(dir: &Path) -> Result<(), String> {
    let table = MountTable::read().map_err(|error| format!("read the mount table: {error}"))?;
    match table.containing(dir).filter(|mount| mount.is_ours()) {
        None => Ok(()),
        Some(mount) => Err(format!(
            "{} is mounted there, and uploads by itself what is pushed (see cachedirfs flush); name the backing directory",
            mount.source
        )),
    }
}

/// What `config` says: directories of other lengths are not SCons' any more. Without, all are.
fn prefix_len(dir: &Path) -> Result<Option<u8>, String> {
    let path = dir.join("config");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    let config: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    let digits = config
        .as_ref()
        .and_then(|config| config["prefix_len"].as_u64());
    let digits = digits
        .and_then(|digits| u8::try_from(digits).ok())
        .filter(|digits| (1..=4).contains(digits));
    let strange = || format!("{} says no prefix_len from 1 to 4", path.display());
    digits.map(Some).ok_or_else(strange)
}
