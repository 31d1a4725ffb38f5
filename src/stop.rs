//! A request to stop, that any thread may make and that a loop can wait for.
//!
//! It knows nothing of what is to be stopped. Asked once it means "in good order", asked again "at once".

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::Event;

/// A request to stop, shared by all its clones.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    asked: AtomicU32,
    event: Event,
}

impl Stop {
    /// One that nobody has asked for yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            asked: AtomicU32::new(0),
            event: Event::new()?,
        })))
    }

    /// Asks: the first time to stop in good order, from then on to stop at once.
    pub fn ask(&self) {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        self.0.event.set();
    }

    /// Asks when the guard goes, also on the way out of a panic.
    pub fn ask_on_drop(&self) -> AskOnDrop<'_> {
        AskOnDrop(self)
    }

    /// Whether anybody asked.
    pub fn asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) > 0
    }

    /// Whether somebody asked again: what takes long is to be left undone.
    pub fn at_once(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst) > 1
    }
}

/// Made by [`Stop::ask_on_drop`].
#[derive(Debug)]
pub struct AskOnDrop<'a>(&'a Stop);

impl Drop for AskOnDrop<'_> {
    fn drop(&mut self) {
        self.0.ask();
    }
}

/// Readable for ever once it was asked.
impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll_readable;
    use std::time::Duration;

    #[test]
    fn asked_once_it_is_in_good_order_and_twice_at_once() {
        let stop = Stop::new().unwrap();
        let readable = || poll_readable(&[stop.as_fd()], Some(Duration::ZERO)).unwrap()[0];
        assert!(!stop.asked() && !readable());
        drop(stop.clone().ask_on_drop());
        assert!(stop.asked() && !stop.at_once() && readable());
        stop.ask();
        assert!(stop.at_once() && readable());
    }
}
