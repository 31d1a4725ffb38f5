//! What becomes of fetches when the remote is changed for another one.
//!
//! Nothing that is known of the old one holds for the new: misses, patience. What the old one has not answered is asked again of
//! the new one, so that nobody waits for a remote that may never answer; what it is sending comes to its end.

use std::sync::PoisonError;

use super::patience::Patience;
use super::{Fetch, Times};
use crate::signature::Signature;

impl Fetch {
    /// These times hold from now on.
    pub fn set_times(&self, times: Times) {
        let mut current = self.times.write().unwrap_or_else(PoisonError::into_inner);
        let patience_changes = current.lookup_timeout != times.lookup_timeout;
        *current = times;
        drop(current);
        if patience_changes {
            self.state().patience = Patience::new(times.lookup_timeout);
        }
        self.changed.notify_all();
    }

    /// The remote is another one from now on. What was known to be absent, and the kernel may believe to be still.
    pub fn renew(&self, times: Times) -> Vec<Signature> {
        self.set_times(times);
        let now = self.clock.now();
        let mut guard = self.state();
        let state = &mut *guard;
        state.generation += 1;
        state.patience = Patience::new(times.lookup_timeout);
        let absent = state.misses.iter().filter(|(_, miss)| miss.until > now);
        let absent = absent.map(|(sig, _)| *sig).collect();
        state.misses.clear();
        state.flights.make_old();
        for place in state.flights.unanswered() {
            let jobs = state.jobs.as_ref();
            let accepted = jobs.is_some_and(|jobs| jobs.try_send(place).is_ok());
            state
                .flights
                .renew(&place, accepted.then_some(state.generation));
        }
        drop(guard);
        self.changed.notify_all();
        absent
    }
}
