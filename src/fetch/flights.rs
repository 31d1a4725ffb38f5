//! Fetches under way and who waits for them. Plain structures: time is passed in, nobody is called.

use std::collections::HashMap;
use std::time::Duration;

use crate::name::Place;
use crate::remote::pace::Pace;
use crate::remote::{Ailment, Arrived, Complaint};
use crate::signature::Signature;

use super::Waiter;

/// Somebody who waits no longer.
pub(super) struct Dismissed {
    pub(super) sig: Signature,
    /// Since when.
    pub(super) asked: Duration,
    pub(super) waiter: Waiter,
}

/// Somebody who waits.
struct Waiting {
    asked: Duration,
    /// After this, "not now" is a better answer than none.
    until: Duration,
    waiter: Waiter,
}

impl Waiting {
    fn dismissed(self, place: &Place) -> Dismissed {
        Dismissed {
            sig: place.sig,
            asked: self.asked,
            waiter: self.waiter,
        }
    }
}

/// One fetch under way.
#[derive(Default)]
struct Flight {
    waiting: Vec<Waiting>,
    stage: Stage,
    /// What it brings is not to get a name.
    revoked: bool,
    /// It was asked of a remote that is not asked any more: what it does says nothing about the one that is.
    is_old: bool,
    /// The generation of remotes that it was handed to the workers again for.
    again: u64,
}

/// How far a fetch is.
#[derive(Default)]
enum Stage {
    /// No worker has taken it up.
    #[default]
    Queued,
    /// The remote was asked then and has not answered.
    Asked(Duration),
    /// The content is coming. Its waiters stay as long as it comes fast enough.
    Arriving(Arrival),
}

/// A content on its way.
struct Arrival {
    arrived: Arrived,
    /// Bytes that came out of the decoder, where nobody counts those that went in.
    bytes: u64,
    pace: Pace,
    /// How long was waited for bytes, but for the read that has been going on since `reading`.
    waited: Duration,
    reading: Option<Duration>,
}

impl Arrival {
    fn too_slow(&mut self, now: Duration) -> Option<u64> {
        let reading = self
            .reading
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let bytes = self.arrived.bytes().max(self.bytes);
        self.pace.too_slow(bytes, self.waited + reading)
    }
}

/// Who waits no longer, and what that says.
#[derive(Default)]
pub(super) struct Late {
    pub(super) waiters: Vec<Dismissed>,
    /// From when to when somebody waited for the remote in vain, and what is to be said of it.
    pub(super) in_vain: Vec<(Duration, Complaint)>,
}

/// All fetches under way.
#[derive(Default)]
pub(super) struct Flights(HashMap<Place, Flight>);

impl Flights {
    pub(super) fn has(&self, place: &Place) -> bool {
        self.0.contains_key(place)
    }

    pub(super) fn begin(&mut self, place: Place) {
        self.0.entry(place).or_default();
    }

    pub(super) fn wait(&mut self, place: Place, asked: Duration, until: Duration, waiter: Waiter) {
        let flight = self.0.entry(place).or_default();
        flight.waiting.push(Waiting {
            asked,
            until,
            waiter,
        });
    }

    /// Whether somebody waits for an entry of that prefix directory.
    pub(super) fn is_asked_in(&self, dir: &str) -> bool {
        let waits = |flight: &Flight| !flight.waiting.is_empty();
        let mut flights = self.0.iter();
        flights.any(|(place, flight)| waits(flight) && place.dir() == dir)
    }

    /// What fetches of `sig` bring is not to get a name.
    pub(super) fn revoke(&mut self, sig: &Signature) {
        for (place, flight) in &mut self.0 {
            flight.revoked |= place.sig == *sig;
        }
    }

    pub(super) fn is_revoked(&self, place: &Place) -> bool {
        self.0.get(place).is_some_and(|flight| flight.revoked)
    }

    /// Those that a remote was asked for and has not answered.
    pub(super) fn unanswered(&self) -> Vec<Place> {
        let asked = |flight: &Flight| matches!(flight.stage, Stage::Asked(_));
        let flights = self.0.iter().filter(|(_, flight)| asked(flight));
        flights.map(|(place, _)| *place).collect()
    }

    /// The remote was changed. With a generation, the workers have it once more, for that.
    pub(super) fn renew(&mut self, place: &Place, again: Option<u64>) {
        let Some(flight) = self.0.get_mut(place) else {
            return;
        };
        match again {
            Some(generation) => {
                flight.stage = Stage::Queued;
                flight.again = generation;
            }
            None => flight.is_old = true,
        }
    }

    /// What comes is of a remote that is not asked any more.
    pub(super) fn make_old(&mut self) {
        for flight in self.0.values_mut() {
            flight.is_old |= matches!(flight.stage, Stage::Arriving(_));
        }
    }

    /// Whether the workers have it for a later generation than that.
    pub(super) fn is_asked_after(&self, place: &Place, generation: u64) -> bool {
        self.0.get(place).is_some_and(|f| f.again > generation)
    }

    /// A worker asks the remote now.
    pub(super) fn asked(&mut self, place: &Place, now: Duration) {
        if let Some(flight) = self.0.get_mut(place) {
            flight.stage = Stage::Asked(now);
        }
    }

    /// The content begins to come.
    pub(super) fn arriving(&mut self, place: &Place, arrived: Arrived, pace: Pace) {
        if let Some(flight) = self.0.get_mut(place) {
            flight.stage = Stage::Arriving(Arrival {
                arrived,
                bytes: 0,
                pace,
                waited: Duration::ZERO,
                reading: None,
            });
        }
    }

    /// Its worker waits for bytes now.
    pub(super) fn reads(&mut self, place: &Place, now: Duration) {
        if let Some(arrival) = self.arrival(place) {
            arrival.reading = Some(now);
        }
    }

    /// So many came.
    pub(super) fn read(&mut self, place: &Place, now: Duration, bytes: u64) {
        if let Some(arrival) = self.arrival(place) {
            let since = arrival.reading.take().unwrap_or(now);
            arrival.waited += now.saturating_sub(since);
            arrival.bytes += bytes;
        }
    }

    /// Since when somebody has been waiting for an answer of the remote about this, if anybody has.
    pub(super) fn waiting_since(&self, place: &Place) -> Option<Duration> {
        let flight = self.0.get(place)?;
        let asked = flight.waiting.iter().map(|w| w.asked).min()?;
        match flight.stage {
            Stage::Asked(since) => Some(asked.max(since)),
            _ => None,
        }
    }

    /// Takes out those whose time is over at `now`.
    pub(super) fn take_late(&mut self, now: Duration) -> Late {
        let mut late = Late::default();
        for (place, flight) in &mut self.0 {
            let complain = |ailment, reason| Complaint {
                ailment,
                about: Some(place.sig),
                reason,
            };
            let is_old = flight.is_old;
            match &mut flight.stage {
                Stage::Queued => take_due(place, &mut flight.waiting, now, &mut late.waiters),
                Stage::Asked(since) => {
                    let asked = flight.waiting.iter().map(|w| w.asked).min();
                    let before = late.waiters.len();
                    take_due(place, &mut flight.waiting, now, &mut late.waiters);
                    if let (true, false, Some(asked)) = (late.waiters.len() > before, is_old, asked)
                    {
                        let from = asked.max(*since);
                        let waited = now.saturating_sub(from).as_secs_f64();
                        let reason = format!("get: no answer for {waited:.1} s");
                        late.in_vain.push((from, complain(Ailment::Hangs, reason)));
                    }
                }
                Stage::Arriving(arrival) if !flight.waiting.is_empty() => {
                    let window = arrival.pace.window();
                    if let Some(speed) = arrival.too_slow(now) {
                        let gone = flight.waiting.drain(..).map(|w| w.dismissed(place));
                        late.waiters.extend(gone);
                        if is_old {
                            continue;
                        }
                        let reason = format!("get: {speed} bytes a second");
                        let from = now.saturating_sub(window);
                        late.in_vain.push((from, complain(Ailment::Slow, reason)));
                    }
                }
                Stage::Arriving(_) => {}
            }
        }
        late
    }

    /// Takes out all who wait for an answer.
    pub(super) fn take_unanswered(&mut self) -> Vec<Dismissed> {
        let flights = self.0.iter_mut();
        let unanswered = flights.filter(|(_, f)| !matches!(f.stage, Stage::Arriving(_)));
        unanswered
            .flat_map(|(place, f)| f.waiting.drain(..).map(|w| w.dismissed(place)))
            .collect()
    }

    /// Takes out all who wait.
    pub(super) fn take_all(&mut self) -> Vec<Waiter> {
        let flights = self.0.values_mut();
        flights
            .flat_map(|f| f.waiting.drain(..))
            .map(|w| w.waiter)
            .collect()
    }

    /// Ends a fetch; those who still wait for it.
    pub(super) fn land(&mut self, place: &Place) -> Vec<Dismissed> {
        let flight = self.0.remove(place).unwrap_or_default();
        let waiting = flight.waiting.into_iter();
        waiting.map(|w| w.dismissed(place)).collect()
    }

    /// When to look for late ones again; `None` while nobody waits. `tick` is how often contents are looked after.
    pub(super) fn next_look(&self, now: Duration, tick: Duration) -> Option<Duration> {
        let look = |flight: &Flight| match flight.stage {
            Stage::Arriving(_) => (!flight.waiting.is_empty()).then_some(now + tick),
            _ => flight.waiting.iter().map(|w| w.until).min(),
        };
        self.0.values().filter_map(look).min()
    }

    fn arrival(&mut self, place: &Place) -> Option<&mut Arrival> {
        match &mut self.0.get_mut(place)?.stage {
            Stage::Arriving(arrival) => Some(arrival),
            _ => None,
        }
    }
}

/// Moves those whose time is over.
fn take_due(place: &Place, waiting: &mut Vec<Waiting>, now: Duration, to: &mut Vec<Dismissed>) {
    let due = waiting.extract_if(.., |w| w.until <= now);
    to.extend(due.map(|w| w.dismissed(place)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn place(n: u64) -> Place {
        let sig = Signature::parse(format!("{n:032x}").as_bytes()).unwrap();
        Place { sig, digits: 2 }
    }

    /// A flight that somebody who asked at zero waits for, for three seconds.
    fn flight() -> Flights {
        let mut flights = Flights::default();
        flights.wait(place(1), Duration::ZERO, SECOND * 3, Box::new(|_| ()));
        flights
    }

    #[test]
    fn who_is_late_because_others_are_before_says_nothing_about_the_remote() {
        let mut flights = flight();
        assert_eq!(flights.next_look(SECOND, SECOND), Some(SECOND * 3));
        assert!(flights.take_late(SECOND * 2).waiters.is_empty());
        let late = flights.take_late(SECOND * 3);
        assert_eq!((late.waiters.len(), late.in_vain.len()), (1, 0));
        assert_eq!(flights.next_look(SECOND, SECOND), None);
    }

    #[test]
    fn silence_counts_from_when_the_remote_was_asked() {
        let mut flights = flight();
        flights.asked(&place(1), SECOND);
        assert_eq!(flights.waiting_since(&place(1)), Some(SECOND));
        let late = flights.take_late(SECOND * 3);
        let (from, complaint) = &late.in_vain[0];
        assert_eq!((*from, late.waiters.len()), (SECOND, 1));
        assert_eq!(complaint.ailment, Ailment::Hangs);
        assert_eq!(complaint.about, Some(place(1).sig));
        assert!(flights.has(&place(1)), "it goes on for the next who asks");
    }

    #[test]
    fn a_large_object_may_take_longer_as_long_as_it_comes_fast_enough_while_it_is_waited_for() {
        let mut flights = flight();
        flights.asked(&place(1), Duration::ZERO);
        let pace = Pace::new(100, SECOND);
        flights.arriving(&place(1), Arrived::default(), pace);
        let mut now = SECOND;
        for _ in 0..10 {
            flights.reads(&place(1), now);
            now += SECOND;
            flights.read(&place(1), now, 100);
            assert!(flights.take_late(now).waiters.is_empty(), "{now:?}");
            // What we do with it takes a while.
            now += SECOND * 10;
            assert!(flights.take_late(now).waiters.is_empty(), "{now:?}");
        }
        flights.reads(&place(1), now);
        let late = flights.take_late(now + SECOND);
        assert_eq!(late.waiters.len(), 1);
        let (from, complaint) = &late.in_vain[0];
        assert_eq!((*from, complaint.ailment), (now, Ailment::Slow));
    }
}
