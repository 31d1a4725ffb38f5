//! Objects on their way to a remote, many at a time: what `push` and `copy` have in common.
//!
//! Nothing is written down here about how far it got: the remote itself says what it has. A listing is asked for once where
//! there is much to move, and what it names is passed over without being read or compared; where there is little, or nothing
//! can be listed, each put looks for itself, and finds out what is there with other content.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Config;
use crate::mount;
use crate::remote::{Content, Put, Remote, RemoteError};
use crate::signature::{Meta, Signature};

use super::patience::Patience;
use super::progress::Progress;
use super::{Env, Exit, Failure, configure, plural, say};

/// Objects from which on a listing is cheaper than a look at each.
pub(super) const LIST_FROM: u64 = 1000;

/// Objects that are moved at once unless it is said.
pub(super) const JOBS: usize = 16;

/// How things are to be moved.
#[derive(clap::Args)]
pub(super) struct How {
    /// Objects that are moved at once
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = jobs)]
    pub(super) jobs: usize,
    /// Compare what is there already with what is here, instead of believing a listing
    #[arg(long)]
    pub(super) compare: bool,
    /// Move nothing, and say what would be
    #[arg(long)]
    dry_run: bool,
    /// No progress bar and no summary
    #[arg(short, long)]
    quiet: bool,
}

fn jobs(text: &str) -> Result<usize, String> {
    let jobs = text.parse().ok().filter(|jobs| (1..=256).contains(jobs));
    jobs.ok_or_else(|| "expected a number from 1 to 256".to_owned())
}

/// A remote that objects are moved to, and what became of them.
pub(super) struct Moving<'a> {
    to: &'a dyn Remote,
    how: &'a How,
    verb: &'static str,
    pub(super) patience: &'a Patience,
    pub(super) progress: Progress,
    there: Option<HashSet<u128>>,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    moved: AtomicU64,
    bytes: AtomicU64,
    there: AtomicU64,
    diverged: AtomicU64,
    failed: AtomicU64,
}

impl<'a> Moving<'a> {
    /// `verb` is what happened to an object that was moved; `total` is how many there are, where that is known.
    pub(super) fn new(
        to: &'a dyn Remote,
        how: &'a How,
        verb: &'static str,
        total: Option<u64>,
        patience: &'a Patience,
    ) -> Result<Self, RemoteError> {
        let progress = match how.quiet {
            true => Progress::hidden(),
            false => Progress::new(total.unwrap_or_default()),
        };
        let few = total.is_some_and(|total| total < LIST_FROM);
        let there = match how.compare || few {
            true => None,
            false => patience.with(|| listed(to))?,
        };
        Ok(Self {
            to,
            how,
            verb,
            patience,
            progress,
            there,
            tally: Tally::default(),
        })
    }

    /// Whether an object need not be looked at: nothing more is to be begun, or the remote was seen to have it.
    pub(super) fn passes_over(&self, sig: &Signature) -> bool {
        if self.patience.is_over() {
            return true;
        }
        let there = self.there.as_ref();
        let known = there.is_some_and(|there| there.contains(&short(sig)));
        if known {
            count(&self.tally.there);
            self.progress.step();
        }
        known
    }

    /// Puts an object.
    pub(super) fn put(&self, sig: &Signature, meta: Meta, content: &Content) {
        if self.how.dry_run {
            return self.would_put(sig, content.len());
        }
        match self.patience.with(|| self.to.put(sig, meta, content)) {
            Ok(Put::Stored) => self.moved(content.len()),
            Ok(Put::Present) => count(&self.tally.there),
            Ok(Put::Diverged { .. }) => {
                count(&self.tally.diverged);
                self.progress
                    .say(&format!("{sig}: there with other content, which stays"));
            }
            Err(error) => self.failed(sig.as_str(), &error.to_string()),
        }
        self.progress.step();
    }

    fn would_put(&self, sig: &Signature, len: u64) {
        match self.patience.with(|| self.to.exists(sig)) {
            Ok(true) => count(&self.tally.there),
            Ok(false) => self.moved(len),
            Err(error) => self.failed(sig.as_str(), &error.to_string()),
        }
        self.progress.step();
    }

    fn moved(&self, len: u64) {
        count(&self.tally.moved);
        self.tally.bytes.fetch_add(len, Ordering::Relaxed);
    }

    /// Counts and names what could not be moved.
    pub(super) fn failed(&self, name: &str, why: &str) {
        count(&self.tally.failed);
        self.progress.complain(&format!("{name}: {why}"));
    }

    /// Says what became of it all.
    pub(super) fn end(self) -> Exit {
        self.progress.clear();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let failed = read(&self.tally.failed);
        let over = self.patience.why_over();
        if !self.how.quiet {
            let would = if self.how.dry_run { "would be " } else { "" };
            say(format_args!(
                "{} {would}{}, {}; {} already there, {} diverged, {failed} failed",
                plural(read(&self.tally.moved), "object"),
                self.verb,
                plural(read(&self.tally.bytes), "byte"),
                read(&self.tally.there),
                read(&self.tally.diverged),
            ));
        }
        if let Some(why) = over {
            super::complain(why);
        }
        if failed > 0 || over.is_some() {
            Exit::Failed
        } else {
            Exit::Done
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Opens a remote that is written; also the configuration that it comes from.
pub(super) fn open_writable(
    url: &str,
    options: &[String],
    env: &Env,
) -> Result<(std::sync::Arc<dyn Remote>, Config), Failure> {
    let (remote, config) = open(url, options, env)?;
    if config.ro {
        let why = format!("{}: it is to be read only (-o ro)", config.remote);
        return Err(Failure::new(Exit::Usage, why));
    }
    Ok((remote, config))
}

/// Opens a remote; also the configuration that it comes from.
pub(super) fn open(
    url: &str,
    options: &[String],
    env: &Env,
) -> Result<(std::sync::Arc<dyn Remote>, Config), Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, error);
    let config = configure::unmounted(url, options, env).map_err(|error| wrong(&error))?;
    let remote = mount::open_remote(&config).map_err(|error| wrong(&error))?;
    Ok((remote, config))
}

/// What a remote has, as it says itself; `None` if it cannot say.
fn listed(remote: &dyn Remote) -> Result<Option<HashSet<u128>>, RemoteError> {
    let mut there = HashSet::new();
    match remote.list(&mut |listed| {
        there.insert(short(&listed.sig));
    }) {
        Ok(()) => Ok(Some(there)),
        Err(RemoteError::Unsupported(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A signature in 16 bytes, so that a million of them take 32 MB: two do not meet in the life of this universe.
fn short(sig: &Signature) -> u128 {
    let hash = blake3::hash(sig.as_bytes());
    let half = hash.as_bytes().first_chunk().expect("32 bytes");
    u128::from_le_bytes(*half)
}
