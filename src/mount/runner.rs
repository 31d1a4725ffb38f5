//! Threads for calls that may hang: a call that does keeps its thread, and nobody else waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::threads;
use crate::remote::tiers::{Job, Runner};

/// Most threads. When all hang, calls are made where they are wanted, as with a single remote.
const MOST: usize = 256;

/// Threads that are started when they are needed, and kept.
pub(super) struct Pool {
    /// Takes a job only when a thread waits for one.
    send: Sender<Job>,
    receive: Receiver<Job>,
    threads: AtomicUsize,
}

impl Default for Pool {
    fn default() -> Self {
        let (send, receive) = crossbeam_channel::bounded(0);
        Self {
            send,
            receive,
            threads: AtomicUsize::new(0),
        }
    }
}

impl Runner for Pool {
    fn run(&self, job: Job) -> Result<(), Job> {
        let job = match self.send.try_send(job) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        };
        let number = self.threads.fetch_add(1, Ordering::Relaxed);
        if number >= MOST {
            self.threads.fetch_sub(1, Ordering::Relaxed);
            return Err(job);
        }
        // The job is lost if there is no thread for it, so it is handed over once there is.
        let (hand, take) = crossbeam_channel::bounded::<Job>(1);
        let jobs = self.receive.clone();
        let run = move || {
            for job in take.iter().chain(jobs.iter()) {
                // Whoever waits for it hears that it is gone.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    log::error!("bug: a call of a remote panicked");
                }
            }
        };
        match threads::spawn(&format!("remote-{number}"), run) {
            Ok(_) => hand.send(job).map_err(|failed| failed.into_inner()),
            Err(e) => {
                log::warn!("cannot start a thread: {e}");
                self.threads.fetch_sub(1, Ordering::Relaxed);
                Err(job)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_job_that_hangs_keeps_no_other_waiting_and_threads_are_used_again() {
        let pool = Pool::default();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let (told, hears) = crossbeam_channel::unbounded();
        pool.run(Box::new(move || held.recv().unwrap_or_default()))
            .unwrap_or_else(|job| job());
        for n in 0..100 {
            let told = told.clone();
            pool.run(Box::new(move || told.send(n).unwrap()))
                .unwrap_or_else(|job| job());
            assert_eq!(hears.recv_timeout(Duration::from_secs(10)), Ok(n));
        }
        drop(release);
        assert!(pool.threads.load(Ordering::Relaxed) < 50);
    }
}
