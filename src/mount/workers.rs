//! The threads of a mount, but for the session's: which loop of which part runs on which.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::Parts;
use super::controls::Controls;
use super::remotes::Remotes;
use super::threads::{self, Threads};
use crate::config::Config;
use crate::control::Controlled;
use crate::fs::Fs;
use crate::metrics;
use crate::remote::Remote;
use crate::sys;
use crate::upload;

/// Uploads have time: compressing and hashing gives way to the build that pushes.
const UPLOAD_NICENESS: i32 = 10;
/// Nothing waits for the scan, and it is busy with a million files.
const SCAN_NICENESS: i32 = 10;
/// How often leftovers are looked for: they are a day old when they go.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// The workers of the fetches, until workers of a later shift are at it.
pub(super) fn fetchers(parts: &Arc<Parts>, config: &Config, shift: u64) -> io::Result<Threads> {
    let mut threads = Threads::default();
    let (stats, over) = (&parts.stats, &parts.over);
    for n in 0..config.fetch_threads {
        let (fetch, jobs, working) = (parts.fetch.clone(), parts.jobs.fetch.clone(), parts.clone());
        let goes_on = move || working.changes.shift() <= shift;
        let run = move || fetch.run_worker(&jobs, &goes_on);
        threads.spawn_loop(&format!("fetch-{n}"), stats, over, run)?;
    }
    Ok(threads)
}

pub(super) fn keepers(threads: &mut Threads, parts: &Arc<Parts>, fs: &Arc<Fs>) -> io::Result<()> {
    let (stats, over) = (&parts.stats, &parts.over);
    let fetch = parts.fetch.clone();
    threads.spawn_loop("fetch-clock", stats, over, move || fetch.run_clock())?;
    let (store, evicting) = (parts.store.clone(), fs.clone());
    threads.spawn_loop("evict", stats, over, move || {
        store.run_evictor(&|place| evicting.evict(place));
    })?;
    let hands = parts.hands.clone();
    threads.spawn_loop("hands", stats, over, move || hands.run_watch())?;
    let store = parts.store.clone();
    threads.spawn_loop("disk", stats, over, move || store.run_keeper())?;
    let (scanning, collecting) = (parts.clone(), fs.clone());
    threads.spawn_loop("scan", stats, over, move || {
        threads::give_way(SCAN_NICENESS);
        scan_and_collect(&scanning, &collecting);
    })
}

/// Those that see whether remotes that are not asked are well again, and whether calls are overdue.
pub(super) fn watchers(parts: &Arc<Parts>, remotes: &Arc<Remotes>) -> io::Result<Threads> {
    let mut threads = Threads::default();
    let (stats, over) = (&parts.stats, &parts.over);
    let several = remotes.leaves.len() > 1;
    for (n, leaf) in remotes.leaves.iter().enumerate() {
        let (uploads, fetch) = (Arc::downgrade(&parts.uploads), Arc::downgrade(&parts.fetch));
        let (events, name) = (parts.events.clone(), leaf.name.clone());
        let (telling, shown) = (events.clone(), name.clone());
        leaf.breaker.when_opened(Box::new(move |ailment, why| {
            if let Some(events) = &telling {
                events.remote_opened(&shown, ailment.as_str(), why);
            }
        }));
        leaf.breaker.when_closed(Box::new(move |after| {
            if let Some(events) = &events {
                events.remote_closed(&name, after);
            }
            // Others may have said no meanwhile to what this one has.
            if let Some(fetch) = fetch.upgrade().filter(|_| several) {
                fetch.forget_misses();
            }
            if let Some(uploads) = uploads.upgrade() {
                uploads.retry_now();
            }
        }));
        // A thread for each, and one more: a probe may hang like any other call, and who waits for it could not notice that.
        let (probing, remotes) = (parts.clone(), remotes.clone());
        threads.spawn_loop(&format!("probe-{n}"), stats, over, move || {
            probing.now_and_then(&remotes, || remotes.leaves[n].breaker.probe());
        })?;
    }
    let (watching, remotes) = (parts.clone(), remotes.clone());
    threads.spawn_loop("watch", stats, over, move || {
        watching.now_and_then(&remotes, || {
            for leaf in &remotes.leaves {
                for complaint in leaf.watched.overdue() {
                    leaf.breaker.report(complaint);
                }
            }
        });
    })?;
    Ok(threads)
}

/// Fills the index, then collects what interrupted pushes left, now and again every hour.
fn scan_and_collect(parts: &Parts, fs: &Fs) {
    if let Err(e) = parts.store.scan() {
        log::error!(
            "cannot read the whole backing directory {}: {e}",
            parts.store.path().display()
        );
    }
    while !parts.over.asked() {
        fs.collect_leftovers();
        if let Err(e) = sys::poll_readable(&[parts.over.as_fd()], Some(COLLECT_EVERY)) {
            log::error!("leftovers are not collected any more: {e}");
            return;
        }
    }
}

pub(super) fn upkeep(threads: &mut Threads, parts: &Arc<Parts>) -> io::Result<()> {
    let upkeep = parts.upkeep.clone();
    threads.spawn_loop("upkeep", &parts.stats, &parts.over, move || {
        threads::give_way(UPLOAD_NICENESS);
        upkeep.run_worker();
    })
}

/// Serves metrics and the status page, if somewhere, until all is over.
pub(super) fn metrics(threads: &mut Threads, parts: &Arc<Parts>) -> io::Result<()> {
    let Some(address) = parts.config().metrics else {
        return Ok(());
    };
    let controls = Controls(parts.clone());
    let status = Box::new(move || controls.status());
    let (stats, clock) = (parts.stats.clone(), parts.clock.clone());
    let server = metrics::server::Server::new(address, status, stats, clock, parts.metrics.clone());
    let over = parts.over.clone();
    threads.spawn_loop("metrics", &parts.stats, &parts.over, move || {
        server.run(&over);
    })
}

pub(super) fn syncer(threads: &mut Threads, parts: &Arc<Parts>, fs: &Arc<Fs>) -> io::Result<()> {
    let (store, losing) = (parts.store.clone(), fs.clone());
    threads.spawn_loop("sync", &parts.stats, &parts.over, move || {
        threads::give_way(UPLOAD_NICENESS);
        store.run_syncer(&|place, ino| losing.lose(place, ino));
    })
}

/// The workers of the uploads, until workers of a later shift are at it.
pub(super) fn uploaders(parts: &Arc<Parts>, config: &Config, shift: u64) -> io::Result<Threads> {
    let mut threads = Threads::default();
    for n in 0..config.upload_threads {
        let (uploads, jobs) = (parts.uploads.clone(), parts.jobs.uploads.clone());
        let working = parts.clone();
        let goes_on = move || working.changes.shift() <= shift;
        let run = move || {
            threads::give_way(UPLOAD_NICENESS);
            uploads.run_worker(&jobs, &goes_on);
        };
        threads.spawn_loop(&format!("upload-{n}"), &parts.stats, &parts.over, run)?;
    }
    Ok(threads)
}

/// Hands uploads to the workers.
pub(super) fn dispatcher(
    threads: &mut Threads,
    parts: &Arc<Parts>,
    jobs: Sender<upload::Job>,
) -> io::Result<()> {
    let uploads = parts.uploads.clone();
    threads.spawn_loop("upload", &parts.stats, &parts.over, move || {
        uploads.run_dispatcher(jobs.clone());
    })
}
