//! Threads with names, loops that outlive a panic, and their end.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::clock::Clock;
use crate::stats::Stats;
use crate::stop::Stop;
use crate::sys;

/// How long a loop rests that panicked: one that always does must not keep a processor busy.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// How often it is seen whether threads have ended.
const TICK: Duration = Duration::from_millis(5);

/// A group of threads that end together.
#[derive(Debug, Default)]
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    pub(super) fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.0.push(spawn(name, run)?);
        Ok(())
    }

    /// Starts a thread that runs `run` until it returns. A panic in it is counted and logged, and it runs again after a
    /// pause, unless `over` was asked.
    pub(super) fn spawn_loop(
        &mut self,
        name: &str,
        stats: &Arc<Stats>,
        over: &Stop,
        run: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        let (stats, over, named) = (stats.clone(), over.clone(), name.to_owned());
        self.spawn(name, move || keep_running(&named, &stats, &over, &run))
    }

    pub(super) fn are_finished(&self) -> bool {
        self.0.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the end of all, but not longer than so.
    pub(super) fn join_within(self, clock: &dyn Clock, time: Duration) {
        let deadline = clock.now() + time;
        while !self.are_finished() && clock.now() < deadline {
            clock.sleep(TICK);
        }
        for thread in self.0 {
            if thread.is_finished() {
                join(thread);
            } else {
                log::debug!("{:?} is left alone", thread.thread().name());
            }
        }
    }
}

/// Calls `run` until it returns.
pub(super) fn keep_running(name: &str, stats: &Stats, over: &Stop, run: &dyn Fn()) {
    while catch_unwind(AssertUnwindSafe(run)).is_err() {
        stats.panics.one();
        log::error!("bug: the loop {name} panicked and begins again");
        if over.asked() || sys::poll_readable(&[over.as_fd()], Some(AFTER_PANIC)).is_err() {
            return;
        }
    }
}

/// Starts a thread.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(run)
}

/// Has this thread alone (nice(2) is per thread on Linux) give way to others.
pub(super) fn give_way(niceness: i32) {
    if let Err(e) = rustix::process::nice(niceness) {
        log::debug!("cannot lower the priority of a thread: {e}");
    }
}

/// Waits for its end.
pub(super) fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        log::error!("bug: the thread {name} panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_loop_that_panics_is_counted_and_begins_again() {
        let (stats, over) = (Arc::new(Stats::default()), Stop::new().unwrap());
        let runs = Arc::new(AtomicU32::new(0));
        let (counted, mut threads) = (runs.clone(), Threads::default());
        let run = move || assert!(counted.fetch_add(1, Ordering::SeqCst) > 0, "the first time");
        threads.spawn_loop("test", &stats, &over, run).unwrap();
        threads.0.pop().unwrap().join().unwrap();
        assert_eq!((runs.load(Ordering::SeqCst), stats.panics.get()), (2, 1));
    }

    #[test]
    fn a_loop_that_always_panics_ends_when_everything_is_over() {
        let (stats, over) = (Stats::default(), Stop::new().unwrap());
        over.ask();
        keep_running("test", &stats, &over, &|| panic!("always"));
        assert_eq!(stats.panics.get(), 1);
    }
}
