//! The threads of a mount, but for the session's: which loop of which part runs on which.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::Parts;
use super::controls::Controls;
use super::threads::{self, Threads};
use crate::config::Push;
use crate::control::Controlled;
use crate::fs::Fs;
use crate::metrics;
use crate::name::Place;
use crate::remote::Remote;
use crate::sys;
use crate::upload::Item;

/// Uploads have time: compressing and hashing gives way to the build that pushes.
const UPLOAD_NICENESS: i32 = 10;
/// Nothing waits for the scan, and it is busy with a million files.
const SCAN_NICENESS: i32 = 10;
/// How often leftovers are looked for: they are a day old when they go.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

pub(super) fn fetchers(
    threads: &mut Threads,
    parts: &Arc<Parts>,
    jobs: &crossbeam_channel::Receiver<Place>,
) -> io::Result<()> {
    let (stats, over) = (&parts.stats, &parts.over);
    for n in 0..parts.config.fetch_threads {
        let (fetch, jobs) = (parts.fetch.clone(), jobs.clone());
        let run = move || fetch.run_worker(&jobs);
        threads.spawn_loop(&format!("fetch-{n}"), stats, over, run)?;
    }
    let fetch = parts.fetch.clone();
    threads.spawn_loop("fetch-clock", stats, over, move || fetch.run_clock())
}

pub(super) fn keepers(threads: &mut Threads, parts: &Arc<Parts>, fs: &Arc<Fs>) -> io::Result<()> {
    let (stats, over) = (&parts.stats, &parts.over);
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
    })?;
    let several = parts.remotes.leaves.len() > 1;
    for (n, leaf) in parts.remotes.leaves.iter().enumerate() {
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
        let probing = parts.clone();
        threads.spawn_loop(&format!("probe-{n}"), stats, over, move || {
            probing.now_and_then(|| probing.remotes.leaves[n].breaker.probe());
        })?;
    }
    let watching = parts.clone();
    threads.spawn_loop("watch", stats, over, move || {
        watching.now_and_then(|| {
            for leaf in &watching.remotes.leaves {
                for complaint in leaf.watched.overdue() {
                    leaf.breaker.report(complaint);
                }
            }
        });
    })
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
    let Some(upkeep) = parts.upkeep.clone() else {
        return Ok(());
    };
    threads.spawn_loop("upkeep", &parts.stats, &parts.over, move || {
        threads::give_way(UPLOAD_NICENESS);
        upkeep.run_worker();
    })
}

/// Serves metrics and the status page, if somewhere, until all is over.
pub(super) fn metrics(threads: &mut Threads, parts: &Arc<Parts>) -> io::Result<()> {
    let Some(address) = parts.config.metrics else {
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

pub(super) fn uploaders(threads: &mut Threads, parts: &Arc<Parts>) -> io::Result<()> {
    let (stats, over) = (&parts.stats, &parts.over);
    // What an earlier mount left pending stays so.
    let workers = match parts.config.push {
        Push::Off => 0,
        Push::On | Push::Sync => parts.config.upload_threads,
    };
    // No room in between: what is not being uploaded stays in the queue, where it can be superseded.
    let (send, receive) = crossbeam_channel::bounded::<Item>(0);
    for n in 0..workers {
        let (uploads, jobs) = (parts.uploads.clone(), receive.clone());
        threads.spawn_loop(&format!("upload-{n}"), stats, over, move || {
            threads::give_way(UPLOAD_NICENESS);
            uploads.run_worker(&jobs);
        })?;
    }
    if workers > 0 {
        let uploads = parts.uploads.clone();
        threads.spawn_loop("upload", stats, over, move || {
            uploads.run_dispatcher(send.clone());
        })?;
    }
    Ok(())
}
