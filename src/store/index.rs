//! What is on the backing disk: size and last use of every entry, and which to evict first.
//!
//! A plain structure: no lock, no clock, no disk. Time is passed in as milliseconds of the wall
//! clock, because last use outlives the process in the files' time stamps. Eviction looks at all
//! entries to choose a batch; a batch frees several percent of the limit, so that the cost is
//! spread, and an entry that a scan adds with an old time stamp needs no place in a list.

use std::collections::HashMap;

use crate::name::Place;

/// Bytes a file of `len` bytes takes: whole blocks, and one for its inode.
pub fn footprint(len: u64) -> u64 {
    const BLOCK: u64 = 4096;
    len.div_ceil(BLOCK).saturating_add(1).saturating_mul(BLOCK)
}

/// One entry's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    bytes: u64,
    used_ms: u64,
    /// Somebody looked it up since it came here; a push alone is no use.
    asked: bool,
}

/// Entries by place, with the sum of their sizes.
#[derive(Debug, Default)]
pub struct Index {
    slots: HashMap<Key, Slot>,
    pinned: HashMap<Key, u32>,
    bytes: u64,
}

/// A [`Place`] in as few bytes as it needs: a million of them are held.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key(Box<[u8]>);

impl Key {
    fn new(place: &Place) -> Self {
        let digits = place.sig.as_bytes();
        let mut packed = Vec::with_capacity(digits.len() / 2 + 2);
        // The first byte tells the prefix length and whether the last half byte is used.
        let odd = u8::try_from(digits.len() % 2).unwrap_or(0);
        packed.push(place.digits << 1 | odd);
        packed.extend(
            digits
                .chunks(2)
                .map(|pair| nibble(pair[0]) << 4 | pair.get(1).map_or(0, |d| nibble(*d))),
        );
        Self(packed.into_boxed_slice())
    }

    fn place(&self) -> Place {
        let odd = usize::from(self.0[0] & 1);
        let len = (self.0.len() - 1) * 2 - odd;
        let text: Vec<u8> = self.0[1..]
            .iter()
            .flat_map(|b| [b >> 4, b & 15])
            .take(len)
            .map(digit)
            .collect();
        let sig = crate::signature::Signature::parse(&text).expect("packed from a signature");
        Place {
            sig,
            digits: self.0[0] >> 1,
        }
    }
}

fn nibble(digit: u8) -> u8 {
    if digit.is_ascii_digit() {
        digit - b'0'
    } else {
        digit - b'a' + 10
    }
}

fn digit(nibble: u8) -> u8 {
    if nibble < 10 {
        b'0' + nibble
    } else {
        b'a' + nibble - 10
    }
}

impl Index {
    /// Adds an entry or gives it a new size; it was last used at `used_ms`. Whoever asked for it before it was
    /// replaced may be about to open it all the same.
    pub fn insert(&mut self, place: &Place, len: u64, used_ms: u64) {
        let key = Key::new(place);
        let old = self.slots.get(&key).copied();
        let slot = Slot {
            bytes: footprint(len),
            used_ms,
            asked: old.is_some_and(|old| old.asked),
        };
        self.slots.insert(key, slot);
        self.bytes = self.bytes - old.map_or(0, |old| old.bytes) + slot.bytes;
    }

    /// Adds an entry that a scan found, unless it is known already: what is known is newer.
    pub fn insert_found(&mut self, place: &Place, len: u64, used_ms: u64) {
        if !self.slots.contains_key(&Key::new(place)) {
            self.insert(place, len, used_ms);
        }
    }

    /// Forgets an entry; its footprint if it was known.
    pub fn remove(&mut self, place: &Place) -> Option<u64> {
        let slot = self.slots.remove(&Key::new(place))?;
        self.bytes -= slot.bytes;
        Some(slot.bytes)
    }

    /// Somebody asked for the entry.
    pub fn touch(&mut self, place: &Place, now_ms: u64) {
        if let Some(slot) = self.slots.get_mut(&Key::new(place)) {
            slot.used_ms = now_ms;
            slot.asked = true;
        }
    }

    /// Whether the entry was asked for since `since_ms`.
    pub fn asked_since(&self, place: &Place, since_ms: u64) -> bool {
        self.slots
            .get(&Key::new(place))
            .is_some_and(|s| s.asked && s.used_ms > since_ms)
    }

    /// Keeps the entry from eviction until [`Index::unpin`] was called as often.
    pub fn pin(&mut self, place: &Place) {
        *self.pinned.entry(Key::new(place)).or_default() += 1;
    }

    /// Takes one pin back.
    pub fn unpin(&mut self, place: &Place) {
        let key = Key::new(place);
        if let Some(pins) = self.pinned.get_mut(&key) {
            *pins -= 1;
            if *pins == 0 {
                self.pinned.remove(&key);
            }
        }
    }

    /// How many pins the entry has.
    pub fn pins(&self, place: &Place) -> u32 {
        self.pinned.get(&Key::new(place)).copied().unwrap_or(0)
    }

    /// Entries known.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The sum of all footprints.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The least recently used entries that together free at least `want` bytes, oldest first,
    /// leaving out pinned ones and those asked for since `since_ms`.
    pub fn oldest(&self, want: u64, since_ms: u64) -> Vec<Place> {
        let free = |(key, slot): &(&Key, &Slot)| {
            let in_use = slot.asked && slot.used_ms > since_ms;
            !in_use && !self.pinned.contains_key(*key)
        };
        let mut all: Vec<_> = self.slots.iter().filter(free).collect();
        all.sort_unstable_by_key(|(_, slot)| slot.used_ms);
        let mut freed = 0;
        let mut short = |bytes: u64| {
            let short = freed < want;
            freed += bytes;
            short
        };
        all.into_iter()
            .take_while(|(_, slot)| short(slot.bytes))
            .map(|(key, _)| key.place())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;
    use proptest::prelude::*;

    fn place(n: u32) -> Place {
        let sig = Signature::parse(format!("{n:032x}").as_bytes()).unwrap();
        Place { sig, digits: 2 }
    }

    #[test]
    fn the_least_recently_used_go_first_and_only_as_many_as_needed() {
        let mut index = Index::default();
        for n in 0..10 {
            index.insert(&place(n), 4096, u64::from(n));
        }
        index.touch(&place(0), 100);
        assert_eq!(index.oldest(8193, 1000), [place(1), place(2)]);
        assert_eq!(index.oldest(1, 1000), [place(1)]);
        assert!(index.oldest(0, 1000).is_empty());
    }

    #[test]
    fn what_was_asked_for_lately_is_left_out_but_a_fresh_push_is_not() {
        let mut index = Index::default();
        index.insert(&place(1), 1, 50);
        index.insert(&place(2), 1, 60);
        index.touch(&place(1), 50);
        assert_eq!(index.oldest(u64::MAX, 40), [place(2)]);
        assert_eq!(index.oldest(u64::MAX, 50), [place(1), place(2)]);
    }

    #[test]
    fn a_pinned_entry_is_never_chosen() {
        let mut index = Index::default();
        index.insert(&place(1), 1, 1);
        index.pin(&place(1));
        index.pin(&place(1));
        index.unpin(&place(1));
        assert!(index.oldest(u64::MAX, u64::MAX).is_empty());
        index.unpin(&place(1));
        assert_eq!(index.oldest(u64::MAX, u64::MAX), [place(1)]);
    }

    #[test]
    fn a_scan_never_overrides_what_is_known() {
        let mut index = Index::default();
        index.insert(&place(1), 10_000, 50);
        index.insert_found(&place(1), 1, 1);
        assert_eq!(index.bytes(), footprint(10_000));
        assert_eq!(index.remove(&place(1)), Some(footprint(10_000)));
        assert_eq!((index.bytes(), index.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn a_packed_key_gives_its_place_back(text in "[0-9a-f]{32,128}", digits in 1u8..=4) {
            let place = Place { sig: Signature::parse(text.as_bytes()).unwrap(), digits };
            prop_assert_eq!(Key::new(&place).place(), place);
        }

        #[test]
        fn the_sum_is_always_the_sum(ops in prop::collection::vec((0u32..20, 0u64..100_000, any::<bool>()), 0..200)) {
            let mut index = Index::default();
            let mut model = std::collections::BTreeMap::new();
            for (n, len, remove) in ops {
                if remove {
                    prop_assert_eq!(index.remove(&place(n)), model.remove(&n));
                } else {
                    index.insert(&place(n), len, 0);
                    model.insert(n, footprint(len));
                }
                prop_assert_eq!(index.bytes(), model.values().sum::<u64>());
                prop_assert_eq!(index.len(), model.len());
            }
        }
    }
}
