//! `cachedirfs status --watch`: what happens a second, for as long as the mount is there.
//!
//! On a terminal the whole status is drawn again and again; elsewhere there is a line an interval.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::clock::SystemClock;
use crate::control::Status;
use crate::control::human::{bytes, grouped, percent};
use crate::control::mounts::{MountTable, Mounted};
use crate::sys::{self, EndSignals};

use super::super::{Env, Exit, Failure, complain};
use super::{ask, trouble};

/// Brings a terminal's cursor home and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// How often a mount is asked that did not answer, before it counts as dead.
const ATTEMPTS: u32 = 3;

/// Shows it until the mount goes, a signal comes, or nobody reads any more.
pub(super) fn run(mounted: &Mounted, interval: Duration, env: &Env) -> Result<Exit, Failure> {
    let failed = |why: String| Failure::new(Exit::Failed, why);
    let signals =
        EndSignals::block().map_err(|err| failed(format!("cannot wait for signals: {err}")))?;
    let clock = SystemClock::shared();
    let draws = io::stdout().is_terminal();
    let mut before: Option<(Duration, Status)> = None;
    let mut attempts = 0;
    loop {
        let wait = match ask(mounted, env) {
            Ok(status) => {
                attempts = 0;
                let now = clock.now();
                let rates = before
                    .as_ref()
                    .map(|(at, before)| rates(before, &status, now - *at));
                if show(&status, rates.as_deref(), draws).is_err() {
                    return Ok(Exit::Done);
                }
                before = Some((now, status));
                interval
            }
            Err(_) if is_gone(mounted) => {
                complain(format_args!(
                    "{} is unmounted",
                    mounted.mountpoint.display()
                ));
                return Ok(Exit::Done);
            }
            Err(err) => {
                attempts += 1;
                if attempts == ATTEMPTS {
                    return Err(failed(trouble(mounted, &err)));
                }
                interval.min(Duration::from_secs(1))
            }
        };
        let ended = sys::poll_readable(&[signals.as_fd()], Some(wait));
        if ended.map_err(|err| failed(format!("cannot wait for signals: {err}")))?[0] {
            return Ok(Exit::Done);
        }
    }
}

fn is_gone(mounted: &Mounted) -> bool {
    let still_there = |table: MountTable| {
        let there = table.at(&mounted.mountpoint);
        there.is_some_and(|there| there.is_ours() && there.device == mounted.device)
    };
    MountTable::read().is_ok_and(|table| !still_there(table))
}

fn show(status: &Status, rates: Option<&str>, draws: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if draws {
        let rates = rates.unwrap_or("…");
        write!(out, "{CLEAR}{status}  now      {rates}\r\n")?;
    } else if let Some(rates) = rates {
        writeln!(out, "{rates}")?;
    }
    out.flush()
}

/// What happened between two looks, a second.
fn rates(before: &Status, after: &Status, took: Duration) -> String {
    let (b, a) = (&before.counters, &after.counters);
    let a_second = |from: u64, to: u64| {
        let millis = took.as_millis().max(1);
        let grown = u128::from(to.saturating_sub(from));
        u64::try_from((grown * 1000 + millis / 2) / millis).unwrap_or(u64::MAX)
    };
    let (hits, asked) = (
        a.hits.saturating_sub(b.hits),
        a.asked().saturating_sub(b.asked()),
    );
    let rate = match asked {
        0 => "–".to_owned(),
        _ => format!("{}%", percent(hits, asked)),
    };
    let pending = &after.pending;
    let mut text = format!(
        "lookups {}/s, hits {}/s ({rate}), fetched {}/s, uploaded {}/s, pending {} ({})",
        grouped(a_second(b.asked(), a.asked())),
        grouped(a_second(b.hits, a.hits)),
        bytes(a_second(b.fetched_bytes, a.fetched_bytes)),
        bytes(a_second(b.uploaded_bytes, a.uploaded_bytes)),
        grouped(pending.objects),
        bytes(pending.bytes),
    );
    if after.remote_trouble.is_some() {
        text = format!("{text}, remote {}", after.remote_state);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Snapshot;

    #[test]
    fn rates_are_of_what_happened_in_between() {
        let status = |n: u64| Status {
            counters: Snapshot {
                hits: 90 * n,
                misses: 10 * n,
                fetched_bytes: n << 20,
                ..Snapshot::default()
            },
            ..Status::default()
        };
        assert_eq!(
            rates(&status(1), &status(5), Duration::from_secs(2)),
            "lookups 200/s, hits 180/s (90.0%), fetched 2.0 MiB/s, uploaded 0 B/s, pending 0 (0 B)"
        );
        let idle = rates(&status(5), &status(5), Duration::ZERO);
        assert!(idle.starts_with("lookups 0/s, hits 0/s (–), "), "{idle}");
    }
}
