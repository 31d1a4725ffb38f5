//! How many event loops are at work.
//!
//! The kernel gives each request to the event loop that has waited longest, so with many of them every request wakes
//! another thread, on a processor that sleeps: on a virtual machine that costs more than the request itself
//! (a SCons hit took twice as long with four event loops as with one). So one event loop waits for requests, and
//! the others are parked: they leave their handler only when they are needed. They are needed when requests
//! wait although everybody is busy, be it that there are many or that a handler does not come back (a slow disk):
//! the watch sees that within [`TICK`].
//!
//! Locks: `state` is the only one, and nothing slow is done while it is held.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::sys::Event;

/// How long requests may wait behind a handler that does not come back.
const TICK: Duration = Duration::from_millis(2);
/// After so many ticks without a request the watch sleeps.
const CALM_TICKS: u32 = 50;
/// How often it is seen, at least, whether the mount still exists. The mount table tells sooner, as a rule.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// The event loops of one session.
#[derive(Debug)]
pub struct Hands {
    device: OnceLock<OwnedFd>,
    state: Mutex<State>,
    called: Condvar,
    doorbell: Event,
}

#[derive(Debug)]
struct State {
    /// Event loops that wait for a request, or are on the way there.
    reading: usize,
    /// Event loops that are parked.
    parked: usize,
    /// Parked ones that were called and have not noticed yet. They count as reading already.
    calls: usize,
    /// Requests so far.
    requests: u64,
    watch_sleeps: bool,
    over: bool,
}

impl Hands {
    /// All of so many event loops wait for requests at first.
    pub fn new(event_loops: usize) -> io::Result<Self> {
        let state = State {
            reading: event_loops,
            parked: 0,
            calls: 0,
            requests: 0,
            watch_sleeps: false,
            over: false,
        };
        Ok(Self {
            device: OnceLock::new(),
            state: Mutex::new(state),
            called: Condvar::new(),
            doorbell: Event::new()?,
        })
    }

    /// The session's device, to see whether requests wait. Without it nobody is parked.
    pub fn set_device(&self, device: OwnedFd) {
        if self.device.set(device).is_err() {
            log::error!("bug: the device was set twice");
        }
    }

    /// An event loop took a request.
    pub(super) fn enter(&self) {
        if self.device.get().is_none() {
            return;
        }
        let mut state = self.state();
        state.reading = state.reading.saturating_sub(1);
        state.requests += 1;
        let ring = std::mem::take(&mut state.watch_sleeps);
        drop(state);
        if ring {
            self.doorbell.set();
        }
    }

    /// It has answered: it goes back to wait for requests, or is parked if somebody else does.
    pub(super) fn leave(&self) {
        if self.device.get().is_none() {
            return;
        }
        let mut state = self.state();
        if state.reading == 0 || state.over {
            state.reading += 1;
            return;
        }
        state.parked += 1;
        while state.calls == 0 && !state.over {
            state = self
                .called
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.calls = state.calls.saturating_sub(1);
        state.parked -= 1;
    }

    /// Watches for handlers that do not come back, until the mount is gone.
    pub fn run_watch(&self) {
        let _release = ReleaseOnDrop(self);
        let table = File::open("/proc/self/mountinfo").ok();
        let (mut calm, mut doubtful, mut seen) = (0, 0, None);
        loop {
            let asleep = self.state().watch_sleeps && doubtful == 0;
            let tick = if asleep { SLOW_TICK } else { TICK };
            let mut fds = vec![PollFd::new(&self.doorbell, PollFlags::IN)];
            fds.extend(table.as_ref().map(|t| PollFd::new(t, PollFlags::PRI)));
            match rustix::event::poll(&mut fds, Some(&timespec(tick))) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return log::error!("the event loops are not watched any more: {e}"),
            }
            self.doorbell.clear();
            // The mount table changes a little before the device is dead.
            let table_changed = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
            doubtful = if table_changed {
                CALM_TICKS
            } else {
                doubtful.saturating_sub(1)
            };
            let is_dead = |device| is_ready(device, PollFlags::empty());
            if (doubtful > 0 || asleep) && self.device.get().is_some_and(is_dead) {
                return;
            }
            let mut state = self.state();
            let stands_still = seen == Some(state.requests);
            seen = Some(state.requests);
            let waiting = |device| is_ready(device, PollFlags::IN);
            if state.reading == 0 && (stands_still || self.device.get().is_some_and(waiting)) {
                self.call(&mut state);
            }
            calm = if stands_still && state.reading > 0 {
                calm + 1
            } else {
                0
            };
            state.watch_sleeps = calm >= CALM_TICKS;
        }
    }

    /// Calls a parked event loop, if there is one and nobody reads.
    fn call(&self, state: &mut MutexGuard<'_, State>) {
        if state.reading == 0 && state.parked > state.calls {
            state.calls += 1;
            state.reading += 1;
            self.called.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets all parked event loops go, so that the session can end.
struct ReleaseOnDrop<'a>(&'a Hands);

impl Drop for ReleaseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.state().over = true;
        self.0.called.notify_all();
    }
}

/// Whether the device has one of these events now, or is dead.
fn is_ready(device: &OwnedFd, events: PollFlags) -> bool {
    let device: BorrowedFd<'_> = device.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(device, events)];
    rustix::event::poll(&mut fds, Some(&timespec(Duration::ZERO))).is_ok_and(|ready| ready > 0)
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    /// Hands over a device that is a pipe: alive while somebody could write to it.
    fn hands(event_loops: usize) -> (Arc<Hands>, OwnedFd) {
        let (device, writer) = crate::sys::pipe().unwrap();
        let hands = Hands::new(event_loops).unwrap();
        hands.set_device(device);
        (Arc::new(hands), writer)
    }

    fn wait_for(what: &str, holds: impl Fn() -> bool) {
        for _ in 0..5000 {
            if holds() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("{what}");
    }

    fn count(hands: &Hands) -> (usize, usize) {
        let state = hands.state();
        (state.reading, state.parked)
    }

    /// One event loop handles a request and goes back.
    fn handle(hands: &Arc<Hands>) -> thread::JoinHandle<()> {
        let hands = hands.clone();
        thread::spawn(move || {
            hands.enter();
            hands.leave();
        })
    }

    #[test]
    fn all_but_one_are_parked_when_there_is_little_to_do() {
        let (hands, _writer) = hands(3);
        let first = handle(&hands);
        let second = handle(&hands);
        wait_for("two parked", || count(&hands) == (1, 2));
        handle(&hands).join().unwrap();
        assert_eq!(count(&hands), (1, 2));
        drop(ReleaseOnDrop(&hands));
        first.join().unwrap();
        second.join().unwrap();
    }

    #[test]
    fn one_is_called_when_a_handler_does_not_come_back() {
        let (hands, _writer) = hands(2);
        let watch = {
            let hands = hands.clone();
            thread::spawn(move || hands.run_watch())
        };
        let parked = handle(&hands);
        wait_for("one parked", || count(&hands) == (1, 1));
        wait_for("the watch sleeps", || hands.state().watch_sleeps);
        hands.enter();
        parked.join().unwrap();
        assert_eq!(count(&hands), (1, 0));
        drop(_writer);
        watch.join().unwrap();
    }
}
