//! The order of uploads: oldest first, one at a time while the remote fails, each failing object on its own
//! schedule. A plain structure: time is passed in, nothing is locked, nothing waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::name::Place;

/// First wait after the remote failed, doubled each time …
const REMOTE_FIRST: Duration = Duration::from_millis(500);
/// … up to this: a remote that comes back is used again within ten seconds.
const REMOTE_MOST: Duration = Duration::from_secs(8);
/// First wait after an object was refused (too large, no room), doubled each time …
const OBJECT_FIRST: Duration = Duration::from_secs(2);
/// … up to this.
const OBJECT_MOST: Duration = Duration::from_secs(300);

/// One upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The push's number.
    pub seq: u64,
    /// The entry.
    pub place: Place,
    /// Its permission bits when it was pushed.
    pub mode: u32,
    /// Its length.
    pub bytes: u64,
    /// The file's number on the backing disk.
    pub ino: u64,
}

/// Who is to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The remote as a whole: everybody waits while one upload at a time probes it.
    Remote,
    /// This object: the others go on.
    Object,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Upload this.
    Job(Item),
    /// Nothing before so much time has passed.
    Wait(Duration),
    /// Nothing until something changes.
    Idle,
}

#[derive(Debug)]
struct Slot {
    item: Item,
    since: Duration,
    tries: u32,
    state: SlotState,
}

#[derive(Debug, PartialEq, Eq)]
enum SlotState {
    Ready,
    InFlight,
    Waiting(Duration),
}

/// All uploads that are not done.
#[derive(Debug, Default)]
pub struct Queue {
    slots: BTreeMap<u64, Slot>,
    ready: BTreeSet<u64>,
    waiting: BTreeSet<(Duration, u64)>,
    by_place: HashMap<Place, u64>,
    in_flight: usize,
    bytes: u64,
    /// Failures of the remote in a row.
    failures: u32,
    hold_until: Duration,
}

impl Queue {
    /// Adds an upload. One of the same entry that nobody has begun is taken out and returned.
    pub fn push(&mut self, item: Item, now: Duration) -> Option<Item> {
        let older = self.by_place.insert(item.place, item.seq);
        let superseded = older.filter(|seq| {
            self.slots
                .get(seq)
                .is_some_and(|slot| slot.state != SlotState::InFlight)
        });
        let superseded = superseded.and_then(|seq| self.take(seq));
        self.bytes += item.bytes;
        self.by_place.insert(item.place, item.seq);
        self.ready.insert(item.seq);
        self.slots.insert(
            item.seq,
            Slot {
                item,
                since: now,
                tries: 0,
                state: SlotState::Ready,
            },
        );
        superseded
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Next {
        while let Some((_, seq)) = self.waiting.first().copied().filter(|(due, _)| *due <= now) {
            self.waiting.pop_first();
            self.make_ready(seq);
        }
        if self.failures > 0 && !self.ready.is_empty() {
            if self.in_flight > 0 {
                return Next::Idle;
            }
            if now < self.hold_until {
                return Next::Wait(self.hold_until - now);
            }
        }
        match (self.ready.pop_first(), self.waiting.first()) {
            (Some(seq), _) => match self.slots.get_mut(&seq) {
                Some(slot) => {
                    slot.state = SlotState::InFlight;
                    self.in_flight += 1;
                    Next::Job(slot.item)
                }
                None => Next::Wait(Duration::ZERO),
            },
            (None, Some((due, _))) => Next::Wait(due.saturating_sub(now)),
            (None, None) => Next::Idle,
        }
    }

    /// The upload is done, whatever became of it; the remote works.
    pub fn done(&mut self, seq: u64) {
        self.take(seq);
        self.failures = 0;
        self.hold_until = Duration::ZERO;
    }

    /// The upload is taken out without having been done.
    pub fn given_up(&mut self, seq: u64) {
        self.take(seq);
    }

    /// The upload failed and will be tried again. True for the first failure after all was well.
    pub fn failed(&mut self, seq: u64, blame: Blame, now: Duration) -> bool {
        let Some(slot) = self.slots.get_mut(&seq) else {
            return false;
        };
        if slot.state == SlotState::InFlight {
            self.in_flight -= 1;
        }
        slot.tries += 1;
        match blame {
            Blame::Remote => {
                self.hold_until = now + backoff(REMOTE_FIRST, REMOTE_MOST, self.failures);
                self.failures += 1;
                self.make_ready(seq);
                self.failures == 1
            }
            Blame::Object => {
                let due = now + backoff(OBJECT_FIRST, OBJECT_MOST, slot.tries - 1);
                let first = slot.tries == 1;
                slot.state = SlotState::Waiting(due);
                self.waiting.insert((due, seq));
                first
            }
        }
    }

    /// Takes out an upload that failed, if the same entry was pushed again since: the older content would only get in
    /// the way of the newer.
    pub fn take_outdated(&mut self, seq: u64) -> Option<Item> {
        let place = self.slots.get(&seq)?.item.place;
        if self.by_place.get(&place) == Some(&seq) {
            return None;
        }
        self.take(seq)
    }

    /// Takes out the uploads of the file `ino` at `place` that nobody has begun.
    pub fn take_lost(&mut self, place: &Place, ino: u64) -> Vec<Item> {
        let is_it = |slot: &Slot| {
            let item = &slot.item;
            (item.place, item.ino) == (*place, ino) && slot.state != SlotState::InFlight
        };
        let lost: Vec<_> = self.slots.iter().filter(|(_, slot)| is_it(slot)).collect();
        let lost: Vec<_> = lost.into_iter().map(|(seq, _)| *seq).collect();
        lost.into_iter().filter_map(|seq| self.take(seq)).collect()
    }

    /// Forgets all waits: somebody wants it done now.
    pub fn retry_now(&mut self) {
        self.hold_until = Duration::ZERO;
        while let Some((_, seq)) = self.waiting.pop_first() {
            self.make_ready(seq);
        }
    }

    /// Whether the last thing heard of the remote was a failure.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether the upload is not done and has not failed either.
    pub fn is_untried(&self, seq: u64) -> bool {
        self.slots.get(&seq).is_some_and(|slot| slot.tries == 0)
    }

    /// Uploads not done.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether all are done.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether nothing is left but uploads that were refused for themselves and wait for their next turn.
    pub fn is_stuck(&self) -> bool {
        self.slots.len() == self.waiting.len()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of the newest.
    pub fn newest(&self) -> Option<u64> {
        self.slots.last_key_value().map(|(seq, _)| *seq)
    }

    /// How many of those up to `seq` are not done.
    pub fn up_to(&self, seq: u64) -> u64 {
        self.slots.range(..=seq).count() as u64
    }

    /// How long the oldest has been waiting.
    pub fn oldest_age(&self, now: Duration) -> Duration {
        self.slots
            .first_key_value()
            .map_or(Duration::ZERO, |(_, slot)| now.saturating_sub(slot.since))
    }

    fn make_ready(&mut self, seq: u64) {
        if let Some(slot) = self.slots.get_mut(&seq) {
            slot.state = SlotState::Ready;
            self.ready.insert(seq);
        }
    }

    fn take(&mut self, seq: u64) -> Option<Item> {
        let slot = self.slots.remove(&seq)?;
        match slot.state {
            SlotState::Ready => drop(self.ready.remove(&seq)),
            SlotState::InFlight => self.in_flight -= 1,
            SlotState::Waiting(due) => drop(self.waiting.remove(&(due, seq))),
        }
        if self.by_place.get(&slot.item.place) == Some(&seq) {
            self.by_place.remove(&slot.item.place);
        }
        self.bytes -= slot.item.bytes;
        Some(slot.item)
    }
}

fn backoff(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;

    const T0: Duration = Duration::from_secs(100);

    fn item(seq: u64) -> Item {
        let sig = Signature::parse(format!("{seq:032x}").as_bytes()).unwrap();
        Item {
            seq,
            place: Place { sig, digits: 2 },
            mode: 0o644,
            bytes: 10,
            ino: 1,
        }
    }

    fn queue_of(n: u64) -> Queue {
        let mut queue = Queue::default();
        for seq in 1..=n {
            assert!(queue.push(item(seq), T0).is_none());
        }
        queue
    }

    #[test]
    fn oldest_first_and_many_at_once_while_all_is_well() {
        let mut queue = queue_of(3);
        assert_eq!(queue.next(T0), Next::Job(item(1)));
        assert_eq!(queue.next(T0), Next::Job(item(2)));
        queue.done(1);
        queue.done(2);
        assert_eq!(queue.next(T0), Next::Job(item(3)));
        assert_eq!(queue.next(T0), Next::Idle);
        queue.done(3);
        assert!(queue.is_empty());
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn one_upload_probes_a_failing_remote_and_the_wait_is_bounded() {
        let mut queue = queue_of(3);
        let mut now = T0;
        for round in 0..20 {
            let Next::Job(job) = queue.next(now) else {
                panic!("round {round}")
            };
            if round > 0 {
                assert_eq!(queue.next(now), Next::Idle, "only one probes");
            }
            assert_eq!(queue.failed(job.seq, Blame::Remote, now), round == 0);
            let Next::Wait(wait) = queue.next(now) else {
                panic!("round {round}")
            };
            assert!(wait <= REMOTE_MOST);
            now += wait;
        }
        let Next::Job(job) = queue.next(now) else {
            panic!()
        };
        queue.done(job.seq);
        assert!(!queue.is_failing());
        assert!(matches!(queue.next(now), Next::Job(_)));
        assert!(matches!(queue.next(now), Next::Job(_)));
    }

    #[test]
    fn one_object_that_is_refused_does_not_hold_up_the_others() {
        let mut queue = queue_of(2);
        assert_eq!(queue.next(T0), Next::Job(item(1)));
        assert!(queue.failed(1, Blame::Object, T0));
        assert_eq!(queue.next(T0), Next::Job(item(2)));
        queue.done(2);
        assert_eq!(queue.next(T0), Next::Wait(OBJECT_FIRST));
        assert_eq!(queue.next(T0 + OBJECT_FIRST), Next::Job(item(1)));
    }

    #[test]
    fn draining_does_not_wait_for_what_was_refused_for_itself() {
        let mut queue = queue_of(2);
        assert!(!queue.is_stuck());
        assert_eq!(queue.next(T0), Next::Job(item(1)));
        queue.failed(1, Blame::Object, T0);
        assert!(!queue.is_stuck(), "the other one has not been tried");
        assert_eq!(queue.next(T0), Next::Job(item(2)));
        assert!(!queue.is_stuck(), "it is under way");
        queue.given_up(2);
        assert!(queue.is_stuck());
        queue.retry_now();
        assert!(!queue.is_stuck());
    }

    #[test]
    fn a_second_push_supersedes_one_that_nobody_has_begun() {
        let mut queue = queue_of(1);
        let again = Item { seq: 2, ..item(1) };
        assert_eq!(queue.push(again, T0), Some(item(1)));
        assert_eq!(queue.next(T0), Next::Job(again));
        let third = Item { seq: 3, ..item(1) };
        assert_eq!(queue.push(third, T0), None, "what is in flight stays");
        queue.done(2);
        assert_eq!(queue.next(T0), Next::Job(third));
    }

    #[test]
    fn an_upload_that_fails_after_its_entry_was_pushed_again_is_not_tried_again() {
        let mut queue = queue_of(1);
        assert_eq!(queue.next(T0), Next::Job(item(1)));
        let again = Item { seq: 2, ..item(1) };
        queue.push(again, T0);
        queue.failed(1, Blame::Object, T0);
        assert_eq!(queue.take_outdated(1), Some(item(1)));
        assert_eq!(queue.take_outdated(2), None, "it is the newest");
        assert_eq!(queue.next(T0), Next::Job(again));
        assert_eq!(queue.len(), 1);
    }

    /// Who waited for it was told after the second attempt, minutes later.
    #[test]
    fn an_upload_that_was_refused_is_not_untried() {
        let mut queue = queue_of(1);
        assert!(queue.is_untried(1));
        assert_eq!(queue.next(T0), Next::Job(item(1)));
        assert!(queue.is_untried(1), "it is under way");
        queue.failed(1, Blame::Object, T0);
        assert!(!queue.is_untried(1));
    }

    #[test]
    fn a_flush_forgets_all_waits() {
        let mut queue = queue_of(2);
        assert_eq!(queue.next(T0), Next::Job(item(1)));
        queue.failed(1, Blame::Object, T0);
        assert_eq!(queue.next(T0), Next::Job(item(2)));
        queue.failed(2, Blame::Remote, T0);
        assert!(matches!(queue.next(T0), Next::Wait(_)));
        queue.retry_now();
        assert!(matches!(queue.next(T0), Next::Job(_)));
    }
}
