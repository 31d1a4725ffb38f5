//! How much longer lookups wait for a remote that has let them down.
//!
//! Time that somebody waited in vain comes out of a budget of one lookup timeout; time that passes puts it back,
//! slowly. However a remote fails (it times out connecting, hangs now and then, answers each lookup a little too
//! late), a build so waits in vain for one lookup timeout in all, and after that for a small part of its time.
//!
//! A plain structure: time is passed in.

use std::time::Duration;

use crate::remote::breaker::patience;

/// What is left of the budget when it counts as spent, and the shortest wait that can be its end: this part of it.
const SPENT: u32 = 10;
/// A second of calm gives back this part of it.
const REGAINED: u32 = 60;

/// The budget.
#[derive(Debug)]
pub(super) struct Patience {
    full: Duration,
    left: Duration,
    /// When `left` was true.
    at: Duration,
    /// Up to here, waits in vain are accounted for: who waits beside others costs nothing more.
    accounted: Duration,
}

impl Patience {
    /// All of it.
    pub(super) fn new(full: Duration) -> Self {
        Self {
            full,
            left: full,
            at: Duration::ZERO,
            accounted: Duration::ZERO,
        }
    }

    /// How long a lookup that begins at `now` may wait.
    pub(super) fn allowed(&mut self, now: Duration) -> Duration {
        self.regain(now);
        self.left.max(patience(self.full, Duration::ZERO))
    }

    /// Somebody waited in vain. Whether that was the last straw.
    pub(super) fn in_vain(&mut self, from: Duration, to: Duration) -> bool {
        self.regain(to);
        let uncounted = to.saturating_sub(from.max(self.accounted));
        self.left = self.left.saturating_sub(uncounted);
        self.accounted = self.accounted.max(to);
        // What fails quickly costs nothing, also when there is nothing left.
        let costly = to.saturating_sub(from) >= self.full / SPENT;
        costly && self.left < self.full / SPENT
    }

    fn regain(&mut self, now: Duration) {
        let calm = now.saturating_sub(self.at);
        self.left = (self.left + calm / REGAINED).min(self.full);
        self.at = now.max(self.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FULL: Duration = Duration::from_secs(3);

    #[test]
    fn one_silence_spends_all_of_it_and_many_at_once_cost_no_more() {
        let mut patience = Patience::new(FULL);
        assert_eq!(patience.allowed(SECOND), FULL);
        assert!(!patience.in_vain(SECOND, SECOND * 2));
        assert!(!patience.in_vain(SECOND, SECOND * 2), "beside the first");
        assert!(patience.in_vain(SECOND, SECOND * 4));
        assert_eq!(patience.allowed(SECOND * 4), FULL / 6);
    }

    #[test]
    fn it_comes_back_slowly_and_never_exceeds_what_there_was() {
        let mut patience = Patience::new(FULL);
        assert!(patience.in_vain(Duration::ZERO, FULL));
        let a_minute_later = patience.allowed(FULL + SECOND * 60);
        assert!((SECOND..SECOND * 11 / 10).contains(&a_minute_later));
        assert_eq!(patience.allowed(SECOND * 1000), FULL);
    }

    /// Whatever a remote does, and however often it seems well in between.
    #[test]
    fn what_an_hour_of_lookups_waits_in_vain_is_little() {
        for each in [SECOND / 2, SECOND, SECOND * 10] {
            let mut patience = Patience::new(FULL);
            let (mut now, mut lost) = (Duration::ZERO, Duration::ZERO);
            while now < SECOND * 3600 {
                let waits = each.min(patience.allowed(now));
                let spent = patience.in_vain(now, now + waits);
                now += waits;
                lost += waits;
                if spent {
                    // The breaker is open for as long as the first probes take at least.
                    now += SECOND * 4;
                }
            }
            let part = lost.as_secs_f64() / 3600.0;
            assert!(part < 0.12, "{each:?} each: {lost:?} lost");
        }
    }
}
