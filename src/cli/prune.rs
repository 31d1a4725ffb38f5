//! `cachedirfs prune`: the oldest objects of a remote are removed, until the rest is small or young enough.
//!
//! The remote is listed twice. The first time, sizes are added up by the minute in which objects were written, which takes
//! the same memory for a million objects as for ten, and gives the minute up to which objects have to go. The second time
//! they go. Only what is still what was listed is removed, so that what is written or touched meanwhile stays.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::{self, Amount};
use crate::remote::{Listed, Remote, RemoteError};

use super::moving::open_writable;
use super::parallel::in_parallel;
use super::patience::Patience;
use super::progress::Progress;
use super::{Env, Exit, Failure, complain, plural, say};

/// Objects that are removed at once.
const JOBS: usize = 8;

/// Objects are told apart by the minute in which they were written.
const MINUTE: Duration = Duration::from_secs(60);

/// Remove the oldest objects of a remote
///
/// For remotes that expire nothing themselves. What is written or touched while it runs is not removed, and nothing that is
/// younger than --min-age. The exit status is 0 when done, 1 when something could not be removed or the rest is still too
/// large, and 2 when nothing could be done.
#[derive(clap::Args)]
pub(super) struct Args {
    /// URL of the remote; it must be able to list, and say when objects were written
    remote: String,
    /// What all objects together may take, as they are stored (K, M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = size, required_unless_present = "max_age")]
    max_size: Option<u64>,
    /// What was neither written nor touched for so long goes (s, m, h, d)
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    max_age: Option<Duration>,
    /// What is younger stays in any case
    #[arg(long, value_name = "TIME", value_parser = config::duration, default_value = "1h")]
    min_age: Duration,
    /// Remove nothing, and say what would be
    #[arg(long)]
    dry_run: bool,
    /// Options of the remote, as they would be for mounting it
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
}

fn size(text: &str) -> Result<u64, String> {
    match config::amount(text)? {
        Amount::Bytes(bytes) => Ok(bytes),
        Amount::Percent(_) => {
            Err("expected an amount such as 20G: a remote has no size".to_owned())
        }
    }
}

/// What a listing came to.
#[derive(Debug, Default)]
struct Census {
    objects: u64,
    bytes: u64,
    /// Nobody knows when these were written.
    timeless: u64,
    /// Bytes of what is too old.
    aged: u64,
    /// Bytes of what else may go, by the minute in which it was written.
    by_minute: BTreeMap<u64, u64>,
}

/// Says of each object whether it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    limits: Limits,
    /// What was written in an earlier minute goes …
    before: u64,
    /// … and so many bytes of what was written in that one.
    then: u64,
}

/// Moments that follow from the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// What was written later stays.
    youngest: SystemTime,
    /// What was written earlier goes.
    oldest: SystemTime,
}

#[derive(Default)]
struct Tally {
    removed: AtomicU64,
    bytes: AtomicU64,
    changed: AtomicU64,
    failed: AtomicU64,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let (remote, _) = open_writable(&args.remote, &args.options, env)?;
    let cannot = |error: RemoteError| Failure::new(Exit::Usage, format!("cannot prune: {error}"));
    let patience = Patience::new();
    let now = patience.clock().wall();
    let ago = |age: Duration| now.checked_sub(age).unwrap_or(UNIX_EPOCH);
    let limits = Limits {
        youngest: ago(args.min_age),
        oldest: args.max_age.map_or(UNIX_EPOCH, ago),
    };
    let census = patience.with(|| census(&*remote, limits)).map_err(cannot)?;
    let verdict = census.verdict(limits, args.max_size);
    let tally = Tally::default();
    if !patience.is_over() {
        remove(&*remote, verdict, args.dry_run, &tally, &patience).map_err(cannot)?;
    }
    Ok(report(args, &census, &tally, &patience))
}

fn census(remote: &dyn Remote, limits: Limits) -> Result<Census, RemoteError> {
    let mut census = Census::default();
    remote.list(&mut |listed| census.add(&listed, limits))?;
    Ok(census)
}

impl Census {
    fn add(&mut self, listed: &Listed, limits: Limits) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(listed.size);
        match listed.modified {
            None => self.timeless += 1,
            Some(time) if time >= limits.youngest => {}
            Some(time) if time < limits.oldest => self.aged += listed.size,
            Some(time) => *self.by_minute.entry(minute(time)).or_default() += listed.size,
        }
    }

    fn verdict(&self, limits: Limits, max_size: Option<u64>) -> Verdict {
        let left = self.bytes.saturating_sub(self.aged);
        let mut then = max_size.map_or(0, |max| left.saturating_sub(max));
        for (minute, bytes) in &self.by_minute {
            if then <= *bytes {
                return Verdict {
                    limits,
                    before: *minute,
                    then,
                };
            }
            then -= bytes;
        }
        // All that may go is not enough, or just enough.
        Verdict {
            limits,
            before: if then > 0 { u64::MAX } else { 0 },
            then: 0,
        }
    }
}

impl Verdict {
    fn condemns(&mut self, listed: &Listed) -> bool {
        let Some(time) = listed.modified.filter(|time| *time < self.limits.youngest) else {
            return false;
        };
        if time < self.limits.oldest || minute(time) < self.before {
            return true;
        }
        let goes = minute(time) == self.before && self.then > 0;
        if goes {
            self.then = self.then.saturating_sub(listed.size);
        }
        goes
    }
}

fn minute(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / MINUTE.as_secs()
}

fn remove(
    remote: &dyn Remote,
    mut verdict: Verdict,
    dry_run: bool,
    tally: &Tally,
    patience: &Patience,
) -> Result<(), RemoteError> {
    let progress = Progress::new(0);
    let work = |listed: Listed| {
        remove_one(remote, &listed, dry_run, tally, patience, &progress);
        progress.step();
    };
    let done = in_parallel(JOBS, work, |each| {
        remote.list(&mut |listed| {
            if !patience.is_over() && verdict.condemns(&listed) {
                progress.more();
                each(listed);
            }
        })
    });
    progress.clear();
    done
}

fn remove_one(
    remote: &dyn Remote,
    listed: &Listed,
    dry_run: bool,
    tally: &Tally,
    patience: &Patience,
    progress: &Progress,
) {
    if patience.is_over() {
        return;
    }
    let removed = match dry_run {
        true => Ok(true),
        false => patience.with(|| remote.delete_listed(listed)),
    };
    let counter = match removed {
        Ok(true) => {
            tally.bytes.fetch_add(listed.size, Ordering::Relaxed);
            &tally.removed
        }
        Ok(false) => &tally.changed,
        Err(error) => {
            progress.complain(&format!("{}: {error}", listed.sig));
            &tally.failed
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn report(args: &Args, census: &Census, tally: &Tally, patience: &Patience) -> Exit {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (removed, bytes) = (read(&tally.removed), read(&tally.bytes));
    let left = census.bytes.saturating_sub(bytes);
    let would = if args.dry_run { "would be " } else { "" };
    let failed = read(&tally.failed);
    say(format_args!(
        "{} {would}removed, {}; {} stay, {}; {} changed meanwhile, {failed} failed",
        plural(removed, "object"),
        plural(bytes, "byte"),
        plural(census.objects.saturating_sub(removed), "object"),
        plural(left, "byte"),
        read(&tally.changed),
    ));
    if census.timeless > 0 {
        complain(format_args!(
            "{} not judged: the remote does not say when it was written",
            plural(census.timeless, "object")
        ));
    }
    let over = patience.why_over();
    if let Some(why) = over {
        complain(why);
    }
    let too_large = args.max_size.is_some_and(|max| left > max);
    if too_large {
        complain(format_args!(
            "still {} too large: the rest is younger than --min-age, changed, or was not removed",
            plural(
                left.saturating_sub(args.max_size.unwrap_or_default()),
                "byte"
            )
        ));
    }
    if failed > 0 || over.is_some() || too_large {
        Exit::Failed
    } else {
        Exit::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn listed(n: usize, seconds: Option<u64>, size: u64) -> Listed {
        Listed {
            sig: Signature::parse(format!("{n:032x}").as_bytes()).unwrap(),
            size,
            modified: seconds.map(at),
            version: None,
        }
    }

    #[test]
    fn all_that_may_go_goes_when_that_is_not_enough() {
        let limits = Limits {
            youngest: at(2401),
            oldest: at(0),
        };
        let objects = [(Some(2400), 1), (None, 122), (Some(2400), 1)];
        let objects: Vec<_> = (0..)
            .zip(objects)
            .map(|(n, (time, size))| listed(n, time, size))
            .collect();
        let mut census = Census::default();
        objects.iter().for_each(|object| census.add(object, limits));
        let mut verdict = census.verdict(limits, Some(121));
        let gone = objects.iter().filter(|object| verdict.condemns(object));
        assert_eq!(gone.count(), 2);
    }

    proptest! {
        #[test]
        fn the_oldest_go_and_no_more_than_must(
            objects in prop::collection::vec((prop::option::of(0..3000_u64), 0..50_u64), 0..60),
            max_size in prop::option::of(0..2000_u64), oldest in 0..3000_u64, youngest in 0..3000_u64,
        ) {
            let limits = Limits { youngest: at(youngest), oldest: at(oldest) };
            let objects: Vec<_> = objects.into_iter().enumerate().map(|(n, (time, size))| listed(n, time, size)).collect();
            let mut census = Census::default();
            objects.iter().for_each(|object| census.add(object, limits));
            let mut verdict = census.verdict(limits, max_size);
            let (gone, left): (Vec<_>, Vec<_>) = objects.iter().partition(|object| verdict.condemns(object));
            prop_assert!(gone.iter().all(|object| object.modified.is_some_and(|time| time < limits.youngest)));
            let may_go = |object: &&&Listed| object.modified.is_some_and(|time| time < limits.youngest);
            prop_assert!(left.iter().filter(may_go).all(|object| object.modified >= Some(limits.oldest)));
            // To the minute, nothing older than what went for its size stays.
            let sized = |object: &&&Listed| object.modified >= Some(limits.oldest);
            let last = gone.iter().filter(sized).filter_map(|object| object.modified).max().map(minute);
            prop_assert!(left.iter().filter(may_go).all(|object| object.modified.map(minute) >= last));
            let bytes: u64 = left.iter().map(|object| object.size).sum();
            if let Some(max) = max_size {
                let nothing_left = left.iter().filter(may_go).all(|object| object.size == 0);
                prop_assert!(bytes <= max || nothing_left);
                let largest = gone.iter().filter(sized).map(|object| object.size).max();
                prop_assert!(largest.is_none_or(|largest| bytes + largest >= max), "more than had to");
            } else {
                prop_assert!(!gone.iter().any(|object| sized(&object)));
            }
        }
    }
}
