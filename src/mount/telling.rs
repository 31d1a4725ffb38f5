//! The event log of a mount: opened before anything happens, told of everything, ended last.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::threads::Threads;
use super::{MountError, Parts};
use crate::clock::Clock;
use crate::config::Config;
use crate::events::record::Moment;
use crate::events::{Events, Options, Session};
use crate::stats::Stats;

/// Opens the log that the configuration names, if it names one.
pub(super) fn open(
    config: &Config,
    umask: u32,
    clock: &Arc<dyn Clock>,
    stats: &Arc<Stats>,
) -> Result<Option<Arc<Events>>, MountError> {
    let wanted = &config.events;
    let Some(file) = wanted.file.clone() else {
        return Ok(None);
    };
    let options = Options {
        file,
        size: wanted.size,
        files: wanted.files,
    };
    let outside: [&Path; 2] = [&config.mountpoint, &config.backing];
    let session = session(config, Moment::at(clock.wall()));
    let (clock, counting) = (clock.clone(), stats.clone());
    let events = Events::open(options, session, umask, &outside, clock, counting)?;
    let events = Arc::new(events);
    let telling = events.clone();
    stats.set_sink(Box::new(move |event| telling.note(event)));
    Ok(Some(events))
}

/// Starts the thread that writes it.
pub(super) fn spawn(threads: &mut Threads, parts: &Parts) -> std::io::Result<()> {
    let Some(events) = parts.events.clone() else {
        return Ok(());
    };
    threads.spawn_loop("events", &parts.stats, &parts.over, move || events.run())
}

fn session(config: &Config, began: Moment) -> Session {
    let seconds = |time: std::time::Duration| format!("{}s", time.as_secs_f64());
    let options = [
        ("push", config.push.as_str().to_owned()),
        ("ro", config.ro.to_string()),
        ("size", config.size.to_string()),
        ("min_free", config.min_free.to_string()),
        ("negative_ttl", seconds(config.negative_ttl)),
        ("lookup_timeout", seconds(config.lookup_timeout)),
        ("pending_max", config.pending_max.to_string()),
        ("pending_size", config.pending_size.to_string()),
    ];
    let options = options.map(|(name, value)| (name.to_owned(), value));
    Session {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        began,
        remote: config.remote_shown(),
        mountpoint: config.mountpoint.display().to_string(),
        backing: config.backing.display().to_string(),
        options: BTreeMap::from(options),
    }
}
