//! Threads with names, and their end.

use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::clock::Clock;

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
