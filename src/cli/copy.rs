//! `cachedirfs copy`: what one remote holds goes to another.

use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::remote::{Content, Object, Remote, RemoteError};
use crate::signature::{Meta, Signature};

use super::moving::{How, Moving, open, open_writable};
use super::parallel::in_parallel;
use super::patience::Patience;
use super::{Env, Exit, Failure};

/// Content up to this is held in memory on its way, more in a file without a name.
const IN_MEMORY_MAX: u64 = 1 << 20;

/// Copy the objects of a remote to another one
///
/// Each is checked on its way. Layout and format of the two can differ. What the second has already is passed over, so the
/// same command goes on where it was interrupted. The exit status is as for push.
#[derive(clap::Args)]
pub(super) struct Args {
    /// URL of the remote to copy from; it must be able to list
    from: String,
    /// URL of the remote to copy to
    to: String,
    /// Options of both
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Options of the first only
    #[arg(long = "from-o", value_name = "OPTION,...")]
    from_options: Vec<String>,
    /// Options of the second only
    #[arg(long = "to-o", value_name = "OPTION,...")]
    to_options: Vec<String>,
    #[command(flatten)]
    how: How,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let both = |more: &[String]| [&args.options[..], more].concat();
    let (from, config) = open(&args.from, &both(&args.from_options), env)?;
    let (to, _) = open_writable(&args.to, &both(&args.to_options), env)?;
    let cannot = |error: RemoteError| {
        let what = format!("cannot copy from {}: {error}", config.remote);
        Failure::new(Exit::Usage, what)
    };
    let patience = Patience::new();
    let moving = Moving::new(&*to, &args.how, "copied", None, &patience).map_err(cannot)?;
    let spool = &config.remote_options.spool_dir;
    let copied = in_parallel(
        args.how.jobs,
        |sig| copy(&*from, &sig, spool, &moving),
        |each| {
            from.list(&mut |listed| {
                if !moving.patience.is_over() {
                    moving.progress.more();
                    each(listed.sig);
                }
            })
        },
    );
    match copied {
        Ok(()) => Ok(moving.end()),
        Err(error) => {
            moving.end();
            Err(cannot(error))
        }
    }
}

fn copy(from: &dyn Remote, sig: &Signature, spool: &Path, moving: &Moving<'_>) {
    if moving.passes_over(sig) {
        return;
    }
    match moving.patience.with(|| fetch(from, sig, spool)) {
        Ok(Some((meta, content))) => moving.put(sig, meta, &content),
        // Somebody removed it.
        Ok(None) => moving.progress.step(),
        Err(error) => {
            moving.failed(sig.as_str(), &error.to_string());
            moving.progress.step();
        }
    }
}

/// Reads an object to its end, which checks it.
fn fetch(
    from: &dyn Remote,
    sig: &Signature,
    spool: &Path,
) -> Result<Option<(Meta, Content)>, RemoteError> {
    let Some(mut object) = from.get(sig)? else {
        return Ok(None);
    };
    let content = whole(&mut object, spool)?;
    Ok(Some((object.meta, content)))
}

fn whole(object: &mut Object, spool: &Path) -> Result<Content, RemoteError> {
    let mut start = Vec::new();
    let read = (&mut object.content)
        .take(IN_MEMORY_MAX)
        .read_to_end(&mut start);
    if (read.map_err(RemoteError::from_io)? as u64) < IN_MEMORY_MAX {
        return Ok(Content::Bytes(start));
    }
    let local =
        |error: io::Error| RemoteError::Local(format!("write to {}: {error}", spool.display()));
    let mut file = tempfile::tempfile_in(spool).map_err(local)?;
    file.write_all(&start).map_err(local)?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        let n = object
            .content
            .read(&mut chunk)
            .map_err(RemoteError::from_io)?;
        if n == 0 {
            break;
        }
        file.write_all(&chunk[..n]).map_err(local)?;
    }
    let len = file.stream_position().map_err(local)?;
    Ok(Content::File(file, len))
}
