//! `cachedirfs ls`: what a remote holds.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::Serialize;

use crate::remote::Listed;

use super::moving::open;
use super::{Env, Exit, Failure};

/// List the objects of a remote, in no order
///
/// The exit status is 0 when all were listed, and 2 when not.
#[derive(clap::Args)]
pub(super) struct Args {
    /// URL of the remote
    remote: String,
    /// Size as it is stored and time of the last change before each signature
    #[arg(short, long)]
    long: bool,
    /// A JSON object a line
    #[arg(long, conflicts_with = "long")]
    json: bool,
    /// Options of the remote, as they would be for mounting it
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
}

/// One line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    signature: &'a str,
    size: u64,
    /// Seconds since 1970.
    modified: Option<f64>,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let (remote, _) = open(&args.remote, &args.options, env)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let listed = remote.list(&mut |listed| {
        if write(&mut out, &listed, args).is_err() {
            had_enough();
        }
    });
    if out.flush().is_err() {
        had_enough();
    }
    listed.map_err(|error| Failure::new(Exit::Usage, error))?;
    Ok(Exit::Done)
}

/// A reader that has had enough is no error, and a listing goes on until somebody ends it.
fn had_enough() -> ! {
    std::process::exit(Exit::Done as i32)
}

fn write(out: &mut BufWriter<StdoutLock<'_>>, listed: &Listed, args: &Args) -> io::Result<()> {
    let signature = listed.sig.as_str();
    if args.json {
        let since = listed
            .modified
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let line = Line {
            signature,
            size: listed.size,
            modified: since.map(|since| since.as_secs_f64()),
        };
        serde_json::to_writer(&mut *out, &line)?;
        return writeln!(out);
    }
    if args.long {
        write!(out, "{:>12} {:>20} ", listed.size, shown(listed.modified))?;
    }
    writeln!(out, "{signature}")
}

fn shown(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| Timestamp::try_from(time).ok());
    time.map_or_else(
        || "-".to_owned(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}
