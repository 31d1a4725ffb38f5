//! Threads with names, and their end.

use std::io;
use std::thread::{Builder, JoinHandle};

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

    pub(super) fn join(self) {
        self.0.into_iter().for_each(join);
    }
}

/// Starts a thread.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(run)
}

/// Waits for its end.
pub(super) fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        log::error!("bug: the thread {name} panicked");
    }
}
