//! `cachedirfs verify`: is everything in a backing directory, or on a remote, what was put there?

use std::io;
use std::path::Path;
use std::sync::Mutex;

use crate::mount;
use crate::remote::{Remote, RemoteError};
use crate::signature::Signature;
use crate::store::verify::{Backing, Task, Verdict};

use super::parallel::in_parallel;
use super::progress::Progress;
use super::{Env, Exit, Failure, configure, plural, say};

/// Objects of a remote that are looked at at once: most of the time each waits for the network.
const REMOTE_THREADS: usize = 8;
/// Most files that are read at once.
const DISK_THREADS: usize = 8;

/// Check every object of a backing directory or of a remote against its hash
///
/// Prints a line for each that is wrong, and a summary. The exit status is 0 when all is well, 1 when something
/// is wrong or could not be read, and 2 when nothing could be checked.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Backing directory or CacheDir, or URL of a remote
    #[arg(value_name = "BACKING|REMOTE")]
    what: String,
    /// Put what is wrong into quarantine, and record hashes where there are none
    #[arg(long)]
    repair: bool,
    /// Options of the remote, as they would be for mounting it
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
}

/// Counts, and says what is wrong.
struct Report {
    progress: Progress,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    checked: u64,
    bytes: u64,
    wrong: u64,
    unknown: u64,
    unreadable: u64,
    set_aside: u64,
}

impl Report {
    fn new(total: u64) -> Self {
        Self {
            progress: Progress::new(total),
            tally: Mutex::default(),
        }
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        let mut tally = self
            .tally
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        count(&mut tally);
        drop(tally);
        self.progress.step();
    }

    fn say(&self, line: &str) {
        self.progress.say(line);
    }

    fn right(&self, bytes: u64) {
        self.count(|tally| {
            tally.checked += 1;
            tally.bytes += bytes;
        });
    }

    fn unknown(&self, bytes: u64) {
        self.count(|tally| {
            tally.unknown += 1;
            tally.bytes += bytes;
        });
    }

    fn unreadable(&self, name: &str, why: &str) {
        self.say(&format!("{name}: cannot be read: {why}"));
        self.count(|tally| tally.unreadable += 1);
    }

    /// Says what is wrong, and what `repair` did about it.
    fn wrong(&self, name: &str, why: &str, repair: Option<Result<String, String>>) {
        let (set_aside, done) = match repair {
            None => (0, String::new()),
            Some(Ok(to)) => (1, format!("; moved to {to}")),
            Some(Err(why)) => (0, format!("; it stays there: {why}")),
        };
        self.say(&format!("{name}: {why}{done}"));
        self.count(|tally| {
            tally.checked += 1;
            tally.wrong += 1;
            tally.set_aside += set_aside;
        });
    }

    fn end(self, unknown: &str) -> Exit {
        self.progress.clear();
        let tally = self
            .tally
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut line = format!(
            "{} checked, {}: {} wrong",
            plural(tally.checked, "object"),
            plural(tally.bytes, "byte"),
            tally.wrong
        );
        if tally.set_aside > 0 {
            line += &format!(" ({} in quarantine)", tally.set_aside);
        }
        line += &format!(", {} {unknown}", tally.unknown);
        line += &format!(", {} unreadable", tally.unreadable);
        super::say(line);
        if tally.wrong + tally.unreadable > 0 {
            Exit::Failed
        } else {
            Exit::Done
        }
    }
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    if args.what.contains("://") {
        return verify_remote(args, env);
    }
    if !args.options.is_empty() {
        let why = "-o is for remotes; a backing directory has no options";
        return Err(Failure::new(Exit::Usage, why));
    }
    verify_backing(&env.host.cwd.join(&args.what), args.repair, env)
}

fn verify_backing(path: &Path, repair: bool, env: &Env) -> Result<Exit, Failure> {
    let cannot = |why: String| Failure::new(Exit::Usage, format!("cannot verify: {why}"));
    let backing = Backing::open(path, repair).map_err(|err| cannot(err.to_string()))?;
    let read = |err: io::Error| cannot(format!("{}: {err}", path.display()));
    let report = Report::new(backing.count().map_err(read)?);
    let threads = env.host.cpus.clamp(1, DISK_THREADS);
    let check = |task: Task| check_entry(&backing, &task, repair, &report);
    in_parallel(threads, check, |each| backing.each(each)).map_err(read)?;
    backing.finish().map_err(read)?;
    Ok(report.end("without a recorded hash"))
}

fn check_entry(backing: &Backing, task: &Task, repair: bool, report: &Report) {
    let name = task.path();
    match backing.check(task) {
        Verdict::Right(bytes) => report.right(bytes),
        Verdict::Gone => {}
        Verdict::Unreadable(why) => report.unreadable(&name, &why),
        Verdict::Wrong(why) => {
            let moved = repair.then(|| backing.quarantine(task).map_err(|e| e.to_string()));
            report.wrong(&name, &why, moved);
        }
        Verdict::Unrecorded(sum) => {
            if repair && let Err(e) = backing.record(task, sum) {
                report.say(&format!("{name}: its hash cannot be recorded: {e}"));
            }
            report.unknown(sum.len);
        }
    }
}

fn verify_remote(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let config = configure::unmounted(&args.what, &args.options, env)
        .map_err(|err| Failure::new(Exit::Usage, err))?;
    let cannot = |err: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Usage,
            format!("cannot verify {}: {err}", config.remote),
        )
    };
    let remotes = mount::open_remotes(&config).map_err(|err| cannot(&err))?;
    let mut exit = Exit::Done;
    let several = remotes.len() > 1;
    for opened in remotes {
        if several {
            say(format_args!("verifying {}", opened.name));
        }
        let repair = args.repair && opened.writes;
        if verify_objects(&*opened.remote, repair).map_err(|err| cannot(&err))? == Exit::Failed {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}

fn verify_objects(remote: &dyn Remote, repair: bool) -> Result<Exit, RemoteError> {
    let report = Report::new(0);
    let check = |sig: Signature| check_object(remote, &sig, repair, &report);
    in_parallel(REMOTE_THREADS, check, |each| {
        remote.list(&mut |listed| {
            report.progress.more();
            each(listed.sig);
        })
    })?;
    Ok(report.end("unverifiable (raw objects have no hash)"))
}

fn check_object(remote: &dyn Remote, sig: &Signature, repair: bool, report: &Report) {
    // What is wrong twice was not spoiled on its way.
    let read = read(remote, sig).or_else(|err| match err {
        RemoteError::Corrupt(_) | RemoteError::Transient(_) => self::read(remote, sig),
        err => Err(err),
    });
    match read {
        Ok(Some((true, bytes))) => report.right(bytes),
        Ok(Some((false, bytes))) => report.unknown(bytes),
        Ok(None) => {}
        Err(RemoteError::Corrupt(why)) => {
            let moved = repair.then(|| match remote.quarantine(sig) {
                Ok(Some(to)) => Ok(to),
                Ok(None) => Err("somebody removed it".to_owned()),
                Err(err) => Err(err.to_string()),
            });
            report.wrong(sig.as_str(), &why, moved);
        }
        Err(err) => report.unreadable(sig.as_str(), &err.to_string()),
    }
}

/// Reads an object to its end, which checks it: whether it has a hash, and its length.
fn read(remote: &dyn Remote, sig: &Signature) -> Result<Option<(bool, u64)>, RemoteError> {
    let Some(mut object) = remote.get(sig)? else {
        return Ok(None);
    };
    let bytes = io::copy(&mut object.content, &mut io::sink()).map_err(RemoteError::from_io)?;
    Ok(Some((object.hash.is_some(), bytes)))
}
