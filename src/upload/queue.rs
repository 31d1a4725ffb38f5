//! The order of uploads: oldest first, one at a time while the remote fails, each failing object on its own
//! schedule, and never more than may wait. A plain structure: time is passed in, nothing is locked, nothing waits.
//!
//! Nobody holds up the others for long. What was refused for itself waits on its own. Large objects never take all
//! workers. While the remote fails, its probes come from both ends of the queue, so that a beginning that always
//! fails does not hide that the rest would not. And what failed while the remote did is a **suspect**: once something
//! else has succeeded, suspects are tried one at a time beside the others: if one succeeds all are cleared, and one that fails is to blame
//! itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::name::Place;
use crate::signature::Signature;
use crate::store::index::footprint;

/// First wait after the remote failed, doubled each time …
const REMOTE_FIRST: Duration = Duration::from_millis(500);
/// … up to this: a remote that comes back is used again within ten seconds …
const REMOTE_MOST: Duration = Duration::from_secs(8);
/// … unless it said itself that it wants to be left alone for longer, which is believed up to this.
const REMOTE_ASKED_MOST: Duration = Duration::from_secs(60);
/// First wait after an object was refused (too large, no room), doubled each time …
const OBJECT_FIRST: Duration = Duration::from_secs(2);
/// … up to this.
const OBJECT_MOST: Duration = Duration::from_secs(300);
/// So many objects refused one after the other, and it is not them: the remote has no room for anything.
const REFUSED_MANY: u32 = 8;
/// An object of this many bytes can be under way for minutes: there is a limit to how many are at once.
const LARGE: u64 = 16 << 20;

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

/// How much may wait, and how much of it may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most uploads.
    pub count: u64,
    /// Most bytes that they may take on the disk.
    pub bytes: u64,
    /// Most large objects at one time.
    pub large_at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            count: u64::MAX,
            bytes: u64::MAX,
            large_at_once: usize::MAX,
        }
    }
}

/// Who is to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The remote as a whole, which asked to be left alone for so long: everybody waits while one upload at a time
    /// probes it.
    Remote(Duration),
    /// The remote does not want this object: the others go on.
    Object,
    /// Of several remotes some have it and others could not be asked, so it says nothing about other objects: those go
    /// on, and this one waits until somebody says that things are better.
    Part,
    /// We could not read it: the others go on, and it says nothing about the remote.
    Ours,
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

/// An [`Item`] in as few bytes as it needs: a hundred thousand of them are held.
#[derive(Debug)]
struct Slot {
    sig: Box<[u8]>,
    since: Duration,
    state: SlotState,
    bytes: u64,
    ino: u64,
    mode: u16,
    tries: u16,
    /// Failures that it was blamed for itself.
    refusals: u8,
    digits: u8,
    /// It is not to be tried again: it was withdrawn, or there is a newer one.
    last_try: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Ready,
    /// It failed when the remote did: ready, with those like it one at a time.
    Suspect,
    InFlight,
    Waiting(Duration),
}

impl Slot {
    fn place(&self) -> Place {
        Place {
            sig: Signature::parse(&self.sig).expect("made of one"),
            digits: self.digits,
        }
    }

    fn is_at(&self, place: &Place) -> bool {
        self.digits == place.digits && *self.sig == *place.sig.as_bytes()
    }

    fn item(&self, seq: u64) -> Item {
        Item {
            seq,
            place: self.place(),
            mode: self.mode.into(),
            bytes: self.bytes,
            ino: self.ino,
        }
    }

    fn is_large(&self) -> bool {
        self.bytes >= LARGE
    }
}

/// All uploads that are not done.
#[derive(Debug, Default)]
pub struct Queue {
    limits: Limits,
    slots: BTreeMap<u64, Slot>,
    ready: BTreeSet<u64>,
    ready_large: BTreeSet<u64>,
    /// By how often they were tried, so that each has its turn as a probe.
    suspects: BTreeSet<(u16, u64)>,
    waiting: BTreeSet<(Duration, u64)>,
    /// Refused for themselves, and not under way just now.
    refused: BTreeSet<u64>,
    in_flight: BTreeSet<u64>,
    /// The newest upload of a place, by the place's hash. Two places with one hash only mean that an older upload of
    /// one of them is not found when it is superseded, and is made in vain.
    newest: HashMap<u64, u64>,
    hasher: RandomState,
    bytes: u64,
    on_disk: u64,
    large_in_flight: usize,
    suspect_in_flight: Option<u64>,
    /// What was sent to see whether the remote still fails.
    probe: Option<u64>,
    /// Failures of the remote in a row.
    failures: u32,
    /// Objects that it refused in a row.
    refused_in_a_row: u32,
    hold_until: Duration,
}

impl Queue {
    /// An empty queue with these limits.
    pub fn bounded(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Sets the limits. What is above them stays until [`Queue::cut`].
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Adds an upload. One of the same entry that nobody has begun is taken out and returned.
    pub fn push(&mut self, item: Item, now: Duration) -> Option<Item> {
        let older = self.newest_of(&item.place);
        let superseded = match older.and_then(|seq| self.slots.get_mut(&seq)) {
            Some(slot) if slot.state == SlotState::InFlight => {
                slot.last_try = true;
                None
            }
            _ => older.and_then(|seq| self.take(seq)),
        };
        self.bytes += item.bytes;
        self.on_disk += footprint(item.bytes);
        self.newest.insert(self.hash(&item.place), item.seq);
        let slot = Slot {
            sig: item.place.sig.as_bytes().into(),
            since: now,
            state: SlotState::Ready,
            bytes: item.bytes,
            ino: item.ino,
            mode: u16::try_from(item.mode & 0o777).unwrap_or(0),
            tries: 0,
            refusals: 0,
            digits: item.place.digits,
            last_try: false,
        };
        self.slots.insert(item.seq, slot);
        self.make_ready(item.seq);
        superseded
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Next {
        while let Some((_, seq)) = self.waiting.first().copied().filter(|(due, _)| *due <= now) {
            self.waiting.pop_first();
            self.make_ready(seq);
        }
        let failing = self.failures > 0;
        if failing && self.probe.is_some() {
            return Next::Idle;
        }
        let chosen = if failing {
            self.next_probe()
        } else {
            self.next_in_turn()
        };
        match (chosen, self.waiting.first()) {
            (Some(_), _) if failing && now < self.hold_until => Next::Wait(self.hold_until - now),
            (Some(seq), _) => {
                self.probe = failing.then_some(seq);
                self.start(seq)
            }
            (None, Some((due, _))) => Next::Wait(due.saturating_sub(now)),
            (None, None) => Next::Idle,
        }
    }

    /// The upload is done, whatever became of it; the remote works.
    pub fn done(&mut self, seq: u64) {
        if self.suspect_in_flight == Some(seq) {
            // So it was the remote, and the others are as good.
            while let Some((_, seq)) = self.suspects.pop_first() {
                self.make_ready(seq);
            }
        }
        self.take(seq);
        self.works();
    }

    /// The remote takes objects: nobody waits because of it any more.
    fn works(&mut self) {
        self.failures = 0;
        self.probe = None;
        self.hold_until = Duration::ZERO;
        if std::mem::take(&mut self.refused_in_a_row) >= REFUSED_MANY {
            // They were refused because everything was.
            while let Some((_, seq)) = self.waiting.pop_first() {
                self.make_suspect(seq);
            }
        }
    }

    /// The upload is taken out without having been done.
    pub fn given_up(&mut self, seq: u64) {
        self.take(seq);
    }

    /// The upload failed and will be tried again. True for the first failure after all was well.
    pub fn failed(&mut self, seq: u64, blame: Blame, now: Duration) -> bool {
        let was_suspect = self.suspect_in_flight == Some(seq);
        self.land(seq);
        let Some(slot) = self.slots.get_mut(&seq) else {
            return false;
        };
        slot.tries = slot.tries.saturating_add(1);
        match blame {
            // Others have succeeded since it failed last: it is not the remote.
            Blame::Remote(_) if was_suspect => self.wait_alone(seq, now),
            Blame::Remote(asked) => {
                self.make_suspect(seq);
                self.hold(asked, now);
                self.failures == 1
            }
            Blame::Object => {
                let first = self.wait_alone(seq, now);
                self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
                if self.refused_in_a_row < REFUSED_MANY {
                    return first;
                }
                self.hold(Duration::ZERO, now);
                self.failures == 1
            }
            Blame::Ours => self.wait_alone(seq, now),
            Blame::Part => {
                let first = self.wait_alone(seq, now);
                // It waits for others, and is as good as any: not the first to be given up.
                self.refused.remove(&seq);
                self.works();
                first
            }
        }
    }

    /// Takes out an upload that failed, if it is not to be tried again: it was withdrawn, or the same entry was pushed
    /// again since and the older content would only get in the way of the newer.
    pub fn take_outdated(&mut self, seq: u64) -> Option<Item> {
        let outdated = self.slots.get(&seq)?.last_try;
        if outdated { self.take(seq) } else { None }
    }

    /// Takes out what must not wait any longer for the limits to hold: what was refused for itself, then the oldest.
    /// Nothing that is under way, and never the only one there is. At most `most` at a time.
    pub fn cut(&mut self, most: usize) -> Vec<Item> {
        let mut victims = Vec::new();
        while self.is_over() && victims.len() < most {
            let oldest = || {
                let mut idle = self.slots.keys().filter(|s| !self.in_flight.contains(s));
                idle.next().copied()
            };
            let victim = self.refused.first().copied().or_else(oldest);
            match victim.and_then(|seq| self.take(seq)) {
                Some(item) => victims.push(item),
                None => break,
            }
        }
        victims
    }

    /// Takes out every upload of that signature; those under way stay to their end, and are not tried again. Returns
    /// the ones and the others.
    pub fn withdraw(&mut self, sig: &Signature) -> (Vec<Item>, Vec<Item>) {
        let places = (1..=4).map(|digits| Place { sig: *sig, digits });
        let idle: Vec<_> = places
            .filter_map(|place| self.newest_of(&place))
            .filter(|seq| !self.in_flight.contains(seq))
            .collect();
        let taken = idle.into_iter().filter_map(|seq| self.take(seq)).collect();
        let mut under_way = Vec::new();
        for seq in &self.in_flight {
            if let Some(slot) = self
                .slots
                .get_mut(seq)
                .filter(|s| *s.sig == *sig.as_bytes())
            {
                slot.last_try = true;
                under_way.push(slot.item(*seq));
            }
        }
        (taken, under_way)
    }

    /// Whether an upload of that signature is under way.
    pub fn is_under_way(&self, sig: &Signature) -> bool {
        let mut slots = self.in_flight.iter().filter_map(|seq| self.slots.get(seq));
        slots.any(|slot| *slot.sig == *sig.as_bytes())
    }

    /// Whether an upload of that signature waits or is under way.
    pub fn is_pending(&self, sig: &Signature) -> bool {
        self.slots.values().any(|slot| *slot.sig == *sig.as_bytes())
    }

    /// Takes out the uploads of the file `ino` at `place` that nobody has begun.
    pub fn take_lost(&mut self, place: &Place, ino: u64) -> Vec<Item> {
        let is_it =
            |slot: &Slot| slot.ino == ino && slot.is_at(place) && slot.state != SlotState::InFlight;
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

    fn is_over(&self) -> bool {
        let over = self.slots.len() as u64 > self.limits.count || self.on_disk > self.limits.bytes;
        over && self.slots.len() > 1
    }

    /// The oldest, but for suspects one at a time.
    fn next_in_turn(&self) -> Option<u64> {
        let large_may = self.large_in_flight < self.limits.large_at_once;
        let may = |seq: &u64| large_may || self.slots.get(seq).is_some_and(|s| !s.is_large());
        let mut suspects = self.suspects.iter().map(|(_, seq)| *seq);
        if self.suspect_in_flight.is_none()
            && let Some(suspect) = suspects.find(may)
        {
            return Some(suspect);
        }
        let large = self.ready_large.first().filter(|_| large_may);
        self.ready.first().into_iter().chain(large).min().copied()
    }

    /// From both ends by turns, rather one that has not failed, and rather a small one.
    fn next_probe(&self) -> Option<u64> {
        let fresh = if self.failures.is_multiple_of(2) {
            self.ready.last()
        } else {
            self.ready.first()
        };
        let suspect = self.suspects.first().map(|(_, seq)| seq);
        fresh.or(suspect).or(self.ready_large.first()).copied()
    }

    fn start(&mut self, seq: u64) -> Next {
        let Some(slot) = self.slots.get_mut(&seq) else {
            return Next::Wait(Duration::ZERO);
        };
        let before = std::mem::replace(&mut slot.state, SlotState::InFlight);
        let (tries, is_large, item) = (slot.tries, slot.is_large(), slot.item(seq));
        if before == SlotState::Suspect {
            self.suspects.remove(&(tries, seq));
            if self.probe != Some(seq) {
                self.suspect_in_flight = Some(seq);
            }
        }
        self.ready.remove(&seq);
        self.ready_large.remove(&seq);
        self.refused.remove(&seq);
        self.in_flight.insert(seq);
        self.large_in_flight += usize::from(is_large);
        Next::Job(item)
    }

    /// It is not under way any more.
    fn land(&mut self, seq: u64) {
        if !self.in_flight.remove(&seq) {
            return;
        }
        let is_large = self.slots.get(&seq).is_some_and(Slot::is_large);
        self.large_in_flight -= usize::from(is_large);
        self.suspect_in_flight.take_if(|suspect| *suspect == seq);
        self.probe.take_if(|probe| *probe == seq);
    }

    /// The remote failed once more.
    fn hold(&mut self, asked: Duration, now: Duration) {
        let own = backoff(REMOTE_FIRST, REMOTE_MOST, self.failures);
        self.hold_until = now + own.max(asked.min(REMOTE_ASKED_MOST));
        self.failures = self.failures.saturating_add(1);
    }

    /// Puts it on its own schedule. True for the first time.
    fn wait_alone(&mut self, seq: u64, now: Duration) -> bool {
        let Some(slot) = self.slots.get_mut(&seq) else {
            return false;
        };
        let due = now + backoff(OBJECT_FIRST, OBJECT_MOST, slot.refusals.into());
        slot.refusals = slot.refusals.saturating_add(1);
        slot.state = SlotState::Waiting(due);
        self.waiting.insert((due, seq));
        self.refused.insert(seq);
        slot.refusals == 1
    }

    fn make_ready(&mut self, seq: u64) {
        if let Some(slot) = self.slots.get_mut(&seq) {
            slot.state = SlotState::Ready;
            if slot.is_large() {
                self.ready_large.insert(seq);
            } else {
                self.ready.insert(seq);
            }
        }
    }

    fn make_suspect(&mut self, seq: u64) {
        if let Some(slot) = self.slots.get_mut(&seq) {
            slot.state = SlotState::Suspect;
            self.suspects.insert((slot.tries, seq));
        }
    }

    fn take(&mut self, seq: u64) -> Option<Item> {
        self.land(seq);
        let slot = self.slots.remove(&seq)?;
        match slot.state {
            SlotState::Ready if slot.is_large() => drop(self.ready_large.remove(&seq)),
            SlotState::Ready => drop(self.ready.remove(&seq)),
            SlotState::Suspect => drop(self.suspects.remove(&(slot.tries, seq))),
            SlotState::Waiting(due) => drop(self.waiting.remove(&(due, seq))),
            SlotState::InFlight => {}
        }
        self.refused.remove(&seq);
        let item = slot.item(seq);
        let hash = self.hash(&item.place);
        if self.newest.get(&hash) == Some(&seq) {
            self.newest.remove(&hash);
        }
        self.bytes -= slot.bytes;
        self.on_disk -= footprint(slot.bytes);
        Some(item)
    }

    fn newest_of(&self, place: &Place) -> Option<u64> {
        let seq = *self.newest.get(&self.hash(place))?;
        self.slots.get(&seq)?.is_at(place).then_some(seq)
    }

    fn hash(&self, place: &Place) -> u64 {
        self.hasher.hash_one(place)
    }
}

fn backoff(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(most)
}

mod renew;
#[cfg(test)]
mod tests;
