//! What is on the backing disk: size and last use of every entry, and which to evict first.
//!
//! A plain structure: no lock, no clock, no disk. Time is passed in as milliseconds of the wall
//! clock, because last use outlives the process in the files' time stamps. Eviction looks at all
//! entries to choose a batch, piece by piece ([`Index::glance`]) so that others can use the index in between; a batch frees
//! a percent or more, so that the cost is spread, and an entry that a scan adds with an old time stamp needs no
//! place in a list.
//!
//! A million entries are held: a tree, because a hash table of that size stands half empty and stops everybody
//! while it grows.

use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::ops::Bound;

use crate::name::Place;

/// The unit of what files take on the disk.
const BLOCK: u64 = 4096;

/// Bytes a file of `len` bytes takes: whole blocks, and one for its inode.
pub fn footprint(len: u64) -> u64 {
    len.div_ceil(BLOCK).saturating_add(1).saturating_mul(BLOCK)
}

/// One entry's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    used_ms: u64,
    blocks: u32,
    /// Somebody looked it up since it came here; a push alone is no use.
    asked: bool,
}

impl Slot {
    fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }
}

/// Entries by place, with the sum of their sizes.
#[derive(Debug, Default)]
pub struct Index {
    slots: BTreeMap<Key, Slot>,
    pinned: HashMap<Key, u32>,
    bytes: u64,
}

/// A [`Place`] in as few bytes as it needs: the first tells the length of the prefix, then come the signature's digits,
/// two in a byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Key {
    /// SCons' default, MD5: 32 digits.
    Short([u8; 17]),
    /// Any other length.
    Long(Box<[u8]>),
}

/// Where a walk over the index goes on.
#[derive(Debug)]
pub struct Mark(Key);

/// Chooses the least recently used entries that together free so much, out of all that it is shown.
#[derive(Debug)]
pub struct Chooser {
    bytes: u64,
    entries: u64,
    since_ms: u64,
    chosen: BinaryHeap<(u64, Key, u32)>,
    chosen_bytes: u64,
}

impl Chooser {
    /// At least so many bytes and so many entries, leaving out pinned ones and those asked for since `since_ms`.
    pub fn new(bytes: u64, entries: u64, since_ms: u64) -> Self {
        Self {
            bytes,
            entries,
            since_ms,
            chosen: BinaryHeap::new(),
            chosen_bytes: 0,
        }
    }

    fn is_enough(&self, bytes: u64, entries: u64) -> bool {
        bytes >= self.bytes && entries >= self.entries
    }

    fn show(&mut self, key: &Key, slot: &Slot) {
        let count = self.chosen.len() as u64;
        let newest = self.chosen.peek().map_or(0, |(used_ms, ..)| *used_ms);
        if self.is_enough(self.chosen_bytes, count) && slot.used_ms >= newest {
            return;
        }
        self.chosen.push((slot.used_ms, key.clone(), slot.blocks));
        self.chosen_bytes += slot.bytes();
        // The newest that is not needed any more goes again.
        while let Some((.., blocks)) = self.chosen.peek() {
            let without = self.chosen_bytes - u64::from(*blocks) * BLOCK;
            if !self.is_enough(without, self.chosen.len() as u64 - 1) {
                break;
            }
            self.chosen_bytes = without;
            self.chosen.pop();
        }
    }

    /// The choice, oldest first.
    pub fn chosen(self) -> Vec<Place> {
        let sorted = self.chosen.into_sorted_vec();
        sorted.into_iter().map(|(_, key, _)| key.place()).collect()
    }
}

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
        match packed.try_into() {
            Ok(short) => Self::Short(short),
            Err(long) => Self::Long(long.into_boxed_slice()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Long(bytes) => bytes,
        }
    }

    fn place(&self) -> Place {
        let packed = self.bytes();
        let odd = usize::from(packed[0] & 1);
        let len = (packed.len() - 1) * 2 - odd;
        let text: Vec<u8> = packed[1..]
            .iter()
            .flat_map(|b| [b >> 4, b & 15])
            .take(len)
            .map(digit)
            .collect();
        let sig = crate::signature::Signature::parse(&text).expect("packed from a signature");
        Place {
            sig,
            digits: packed[0] >> 1,
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
            // More than 16 TiB in one file count as that.
            blocks: u32::try_from(footprint(len) / BLOCK).unwrap_or(u32::MAX),
            used_ms,
            asked: old.is_some_and(|old| old.asked),
        };
        self.slots.insert(key, slot);
        self.bytes = self.bytes - old.map_or(0, |old| old.bytes()) + slot.bytes();
    }

    /// Adds an entry that a scan found, unless it is known already: what is known is newer. Whether it was news.
    pub fn insert_found(&mut self, place: &Place, len: u64, used_ms: u64) -> bool {
        let news = !self.slots.contains_key(&Key::new(place));
        if news {
            self.insert(place, len, used_ms);
        }
        news
    }

    /// Forgets an entry; its footprint if it was known.
    pub fn remove(&mut self, place: &Place) -> Option<u64> {
        let slot = self.slots.remove(&Key::new(place))?;
        self.bytes -= slot.bytes();
        Some(slot.bytes())
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

    /// Shows `chooser` the entries after `from`, `most` of them; where to go on, unless that were the last.
    pub fn glance(&self, from: Option<Mark>, most: usize, chooser: &mut Chooser) -> Option<Mark> {
        let start = from.map_or(Bound::Unbounded, |mark| Bound::Excluded(mark.0));
        let mut last = None;
        for (key, slot) in self.slots.range((start, Bound::Unbounded)).take(most) {
            let in_use = slot.asked && slot.used_ms > chooser.since_ms;
            if !in_use && !self.pinned.contains_key(key) {
                chooser.show(key, slot);
            }
            last = Some(key);
        }
        last.map(|key| Mark(key.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;
    use proptest::prelude::*;

    fn oldest(index: &Index, bytes: u64, since_ms: u64) -> Vec<Place> {
        let (mut chooser, mut from) = (Chooser::new(bytes, 0, since_ms), None);
        loop {
            from = index.glance(from, 3, &mut chooser);
            if from.is_none() {
                return chooser.chosen();
            }
        }
    }

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
        assert_eq!(oldest(&index, 8193, 1000), [place(1), place(2)]);
        assert_eq!(oldest(&index, 1, 1000), [place(1)]);
        assert!(oldest(&index, 0, 1000).is_empty());
    }

    #[test]
    fn what_was_asked_for_lately_is_left_out_but_a_fresh_push_is_not() {
        let mut index = Index::default();
        index.insert(&place(1), 1, 50);
        index.insert(&place(2), 1, 60);
        index.touch(&place(1), 50);
        assert_eq!(oldest(&index, u64::MAX, 40), [place(2)]);
        assert_eq!(oldest(&index, u64::MAX, 50), [place(1), place(2)]);
    }

    #[test]
    fn a_pinned_entry_is_never_chosen() {
        let mut index = Index::default();
        index.insert(&place(1), 1, 1);
        index.pin(&place(1));
        index.pin(&place(1));
        index.unpin(&place(1));
        assert!(oldest(&index, u64::MAX, u64::MAX).is_empty());
        index.unpin(&place(1));
        assert_eq!(oldest(&index, u64::MAX, u64::MAX), [place(1)]);
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

    #[test]
    fn a_record_of_the_index_takes_little() {
        assert!(size_of::<Key>() <= 24 && size_of::<Slot>() <= 16);
    }

    proptest! {
        #[test]
        fn the_choice_is_that_of_sorting_all(
            entries in prop::collection::vec((0u64..50, 0u64..30_000), 0..60), bytes in 0u64..400_000, count in 0u64..20,
        ) {
            let mut index = Index::default();
            for (n, (used_ms, len)) in entries.iter().enumerate() {
                index.insert(&place(u32::try_from(n).unwrap()), *len, *used_ms);
            }
            let (mut chooser, mut from) = (Chooser::new(bytes, count, 0), None);
            loop {
                from = index.glance(from, 7, &mut chooser);
                if from.is_none() {
                    break;
                }
            }
            let mut sorted: Vec<_> = entries.iter().map(|(used, len)| (*used, footprint(*len))).collect();
            sorted.sort_unstable();
            let chosen: Vec<_> = chooser.chosen().iter().map(|p| index.slots[&Key::new(p)]).collect();
            let freed: u64 = chosen.iter().map(Slot::bytes).sum();
            let everything = chosen.len() == entries.len();
            prop_assert!(everything || freed >= bytes && chosen.len() as u64 >= count);
            // Nothing that was left is older than what was chosen, and the newest of the choice was needed.
            for (slot, (used_ms, _)) in chosen.iter().zip(&sorted) {
                prop_assert_eq!(slot.used_ms, *used_ms);
            }
            if let Some(last) = chosen.last() {
                prop_assert!(freed - last.bytes() < bytes || (chosen.len() as u64) <= count);
            }
        }

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
