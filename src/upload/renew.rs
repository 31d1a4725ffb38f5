//! What becomes of uploads when the remote is changed for another one, or when uploading is switched off and on.
//!
//! Everything that is pending goes to the new remote, also what is under way to the old one: that it gets there says nothing
//! about the new one. A worker whose call of the old one comes back finds that nobody minds.

use super::queue::Limits;
use super::{Job, Uploads};

impl Uploads {
    /// The remote is another one from now on.
    pub fn renew(&self) {
        let mut state = self.state();
        state.generation += 1;
        let outdated = state.queue.renew();
        drop(state);
        for item in &outdated {
            self.drop_item(item);
            self.call_waiters(item.seq);
        }
        self.changed.notify_all();
    }

    /// Stops uploading, or goes on with it. What is under way comes to its end; what is pending stays so.
    pub fn pause(&self, paused: bool) {
        let mut state = self.state();
        state.paused = paused;
        // Who waits for a first attempt would wait for long.
        let waiters = match paused {
            true => std::mem::take(&mut state.waiters),
            false => Default::default(),
        };
        drop(state);
        for waiter in waiters.into_values().flatten() {
            waiter();
        }
        self.changed.notify_all();
    }

    /// These limits hold from now on. What is above them is given up by the dispatcher.
    pub fn set_limits(&self, limits: Limits) {
        self.state().queue.set_limits(limits);
        self.changed.notify_all();
    }

    /// A job that nobody has begun.
    pub(super) fn give_back(&self, job: &Job) {
        let mut state = self.state();
        if state.generation == job.generation {
            state.queue.put_back(job.item.seq);
        }
        drop(state);
        self.changed.notify_all();
    }
}
