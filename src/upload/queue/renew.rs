//! What becomes of the order of uploads when the remote is changed for another one.

use super::{Item, Queue};

impl Queue {
    /// There is another remote: whatever was under way or failed is as if it had never been tried. Returns what is
    /// not to be tried again.
    pub fn renew(&mut self) -> Vec<Item> {
        let mut outdated = Vec::new();
        for seq in std::mem::take(&mut self.in_flight) {
            match self.slots.get(&seq).map(|slot| slot.last_try) {
                Some(true) => outdated.extend(self.take(seq)),
                Some(false) => self.make_ready(seq),
                None => {}
            }
        }
        self.large_in_flight = 0;
        self.suspect_in_flight = None;
        self.works();
        while let Some((_, seq)) = self.suspects.pop_first() {
            self.make_ready(seq);
        }
        self.retry_now();
        self.refused.clear();
        for slot in self.slots.values_mut() {
            (slot.tries, slot.refusals) = (0, 0);
        }
        outdated
    }

    /// Nobody has begun it after all.
    pub fn put_back(&mut self, seq: u64) {
        self.land(seq);
        self.make_ready(seq);
    }
}
