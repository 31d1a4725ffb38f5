//! How fast bytes come, and whether that is fast enough.
//!
//! Only the time that is spent waiting for bytes counts, never what their reader does with them: a full disk here
//! does not make a remote slow. [`Pace`] is the plain measure; `Pacer` puts it around the bodies of a store.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::object::Arrived;
use crate::remote::{RemoteError, RemoteOptions};

/// The measure of one transfer: so many bytes a second over each window of waiting.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    floor: u64,
    window: Duration,
    /// Where the window began.
    bytes: u64,
    waited: Duration,
}

impl Pace {
    /// At least `floor` bytes a second over each `window`; 0 asks for nothing.
    pub fn new(floor: u64, window: Duration) -> Self {
        Self {
            floor,
            window,
            bytes: 0,
            waited: Duration::ZERO,
        }
    }

    /// How long a window is.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The speed in bytes a second, if it is too low: `bytes` came in all, and `waited` is the time that it took.
    pub fn too_slow(&mut self, bytes: u64, waited: Duration) -> Option<u64> {
        let span = waited.saturating_sub(self.waited);
        if span < self.window || span.is_zero() {
            return None;
        }
        let came = u128::from(bytes.saturating_sub(self.bytes));
        let speed = came * 1_000_000_000 / span.as_nanos();
        let speed = u64::try_from(speed).unwrap_or(u64::MAX);
        if speed < self.floor {
            return Some(speed);
        }
        (self.bytes, self.waited) = (bytes, waited);
        None
    }
}

/// What is said of a transfer that was given up.
pub(super) fn slowness(speed: u64, floor: u64) -> RemoteError {
    RemoteError::Slow(format!(
        "{speed} bytes a second, fewer than min_speed={floor}"
    ))
}

/// Paces the bodies of a store.
#[derive(Clone, Debug)]
pub(super) struct Pacer {
    clock: Arc<dyn Clock>,
    pace: Pace,
}

impl Pacer {
    /// What these options ask for. The window is the stall time: the one knob for how long is too long.
    pub(super) fn new(options: &RemoteOptions) -> Self {
        Self {
            clock: Arc::clone(&options.clock),
            pace: Pace::new(options.min_speed, options.stall_timeout),
        }
    }

    /// `body`, which ends in an error when it comes too slowly, and counts what came.
    pub(super) fn paced(&self, body: Box<dyn Read + Send>, arrived: Arrived) -> Box<Paced> {
        Box::new(Paced {
            body,
            pacer: self.clone(),
            arrived,
            waited: Duration::ZERO,
        })
    }
}

/// A body on its way.
pub(super) struct Paced {
    body: Box<dyn Read + Send>,
    pacer: Pacer,
    arrived: Arrived,
    waited: Duration,
}

impl Read for Paced {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let began = self.pacer.clock.now();
        let n = self.body.read(buf)?;
        self.waited += self.pacer.clock.now().saturating_sub(began);
        self.arrived.add(n);
        let pace = &mut self.pacer.pace;
        match pace.too_slow(self.arrived.bytes(), self.waited) {
            // The end is the end, however late it came.
            Some(speed) if n > 0 => Err(slowness(speed, pace.floor).into_io()),
            _ => Ok(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_window_is_judged_for_itself() {
        let mut pace = Pace::new(100, SECOND * 5);
        assert_eq!(pace.too_slow(0, SECOND * 4), None, "too early to say");
        assert_eq!(pace.too_slow(1 << 30, SECOND * 5), None);
        assert_eq!(pace.too_slow(1 << 30, SECOND * 9), None);
        assert_eq!(pace.too_slow((1 << 30) + 499, SECOND * 10), Some(99));
        assert_eq!(pace.too_slow((1 << 30) + 500, SECOND * 10), None);
    }

    #[test]
    fn a_floor_of_nothing_is_never_too_high() {
        assert_eq!(Pace::new(0, SECOND).too_slow(0, SECOND * 1000), None);
    }

    /// Sends 10 bytes a read and takes its time.
    struct Slow(Arc<ManualClock>, Duration);

    impl Read for Slow {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.advance(self.1);
            Ok(10)
        }
    }

    #[test]
    fn a_slow_body_ends_in_an_error_that_says_both_speeds_and_a_slow_reader_does_not_matter() {
        let clock = Arc::new(ManualClock::default());
        let options = RemoteOptions {
            min_speed: 100,
            clock: clock.clone(),
            ..RemoteOptions::default()
        };
        let read = |takes: Duration, ours: Duration| {
            let arrived = Arrived::default();
            let body = Box::new(Slow(clock.clone(), takes));
            let mut body = Pacer::new(&options).paced(body, arrived.clone());
            for _ in 0..100 {
                body.read(&mut [0; 10]).map_err(RemoteError::from_io)?;
                clock.advance(ours);
            }
            assert_eq!(arrived.bytes(), 1000);
            Ok::<_, RemoteError>(())
        };
        assert!(read(SECOND / 20, SECOND * 60).is_ok());
        let error = read(SECOND, Duration::ZERO).unwrap_err();
        assert!(matches!(error, RemoteError::Slow(_)) && error.is_transient());
        assert_eq!(
            error.to_string(),
            "10 bytes a second, fewer than min_speed=100"
        );
    }
}
