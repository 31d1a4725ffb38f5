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

    /// In how many microseconds this many of a thousand were done, as far as the classes tell: within one they are
    /// taken to lie evenly, as Prometheus does. What took longer than all limits counts as the last. `None` without any.
    pub fn quantile(&self, per_mille: u64) -> Option<u64> {
        let wanted = u128::from(self.count()) * u128::from(per_mille);
        let (mut below, mut from) = (0_u128, 0);
        for (class, to) in self.classes.iter().zip(LIMITS_MICROS) {
            let here = u128::from(*class) * 1000;
            if here > 0 && below + here >= wanted {
                let into = u128::from(to - from) * (wanted - below) / here;
                return Some(from + u64::try_from(into).unwrap_or(u64::MAX));
            }
            (below, from) = (below + here, to);
        }
        (self.count() > 0).then_some(from)
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
    fn quantiles_lie_where_the_classes_say() {
        let histogram = Histogram::default();
        assert_eq!(histogram.get().quantile(500), None);
        for _ in 0..90 {
            histogram.add(Duration::from_micros(800));
        }
        for _ in 0..10 {
            histogram.add(Duration::from_millis(200));
        }
        let seen = histogram.get();
        assert_eq!(
            seen.quantile(450),
            Some(750),
            "half of those of 500 to 1000"
        );
        assert_eq!(seen.quantile(900), Some(1_000));
        assert_eq!(
            seen.quantile(990),
            Some(235_000),
            "nine tenths of those of 100 to 250 ms"
        );
        histogram.add(Duration::from_secs(5000));
        assert_eq!(histogram.get().quantile(1000), Some(600_000_000));
    }

    #[test]
    fn the_limits_ascend() {
        assert!(LIMITS_MICROS.is_sorted());
    }
}
