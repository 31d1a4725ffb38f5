//! How long things take: counts in classes of time that are fixed, so that many mounts can be added up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper limits of the classes, in microseconds; what took longer than the last is in one more class.
pub const LIMITS_MICROS: [u64; 16] = [
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    10_000_000,
    60_000_000,
    600_000_000,
];

/// A histogram, to be added to.
#[derive(Debug, Default)]
pub struct Histogram {
    classes: [AtomicU64; LIMITS_MICROS.len() + 1],
    micros: AtomicU64,
}

/// It at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// How many took at most each of [`LIMITS_MICROS`], and more than the one before; the last: more than all.
    pub classes: [u64; LIMITS_MICROS.len() + 1],
    /// How long all took together, in microseconds.
    pub micros: u64,
}

impl Histogram {
    /// Counts one that took so long.
    pub fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = LIMITS_MICROS.partition_point(|limit| *limit < micros);
        self.classes[class].fetch_add(1, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> Distribution {
        Distribution {
            classes: std::array::from_fn(|n| self.classes[n].load(Relaxed)),
            micros: self.micros.load(Relaxed),
        }
    }
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_in_the_first_class_that_it_fits() {
        let histogram = Histogram::default();
        for micros in [0, 250, 251, 600_000_000, 600_000_001] {
            histogram.add(Duration::from_micros(micros));
        }
        let seen = histogram.get();
        assert_eq!((seen.classes[0], seen.classes[1]), (2, 1));
        assert_eq!((seen.classes[15], seen.classes[16]), (1, 1));
        assert_eq!((seen.count(), seen.micros), (5, 1_200_000_502));
    }

    #[test]
    fn the_limits_ascend() {
        assert!(LIMITS_MICROS.is_sorted());
    }
}
