//! A gate that every request passes, to be shut for a moment: while another program takes the mount over.
//!
//! While it is shut nothing of the file system changes: requests that come wait before the gate, and those that were
//! inside have been answered. It is shut to the kernel's notices first: one of them can wait for a caller whose request
//! waits before the gate.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::clock::Clock;

/// How often it is seen whether all who were inside are gone.
const TICK: Duration = Duration::from_millis(1);

/// The gate of one session.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
    inside: AtomicUsize,
    /// For those who wait before it.
    waiting: Mutex<()>,
    opened: Condvar,
    notices: RwLock<()>,
}

/// Somebody is inside.
#[derive(Debug)]
pub(super) struct Inside<'a>(&'a Gate);

/// The same, for what is answered by another thread.
#[derive(Debug)]
pub(super) struct Stay(Arc<Gate>);

/// The gate is shut, and nobody is inside.
#[derive(Debug)]
pub struct Shut<'a> {
    gate: &'a Gate,
    _notices: RwLockWriteGuard<'a, ()>,
}

impl Gate {
    /// Goes in, as soon as it is open.
    pub(super) fn enter(&self) -> Inside<'_> {
        loop {
            // Whoever shuts it looks at the number after that.
            self.inside.fetch_add(1, SeqCst);
            if !self.shut.load(SeqCst) {
                return Inside(self);
            }
            self.inside.fetch_sub(1, SeqCst);
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            while self.shut.load(SeqCst) {
                waiting = self
                    .opened
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Who is inside has more to do after the request's thread has left.
    pub(super) fn stay(self: &Arc<Self>) -> Stay {
        self.inside.fetch_add(1, SeqCst);
        Stay(self.clone())
    }

    /// Held while the kernel is told something.
    pub(super) fn notice(&self) -> RwLockReadGuard<'_, ()> {
        self.notices.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts it, and waits until nobody is inside. After half of the `patience` it calls `hurry`, in the end it is
    /// opened again.
    pub fn shut(
        &self,
        clock: &dyn Clock,
        patience: Duration,
        hurry: impl Fn(),
    ) -> Result<Shut<'_>, &'static str> {
        let began = clock.now();
        let waited = || clock.now().saturating_sub(began);
        let notices = loop {
            match self.notices.try_write() {
                Ok(notices) => break notices,
                Err(std::sync::TryLockError::Poisoned(notices)) => break notices.into_inner(),
                Err(_) if waited() >= patience => {
                    return Err("the kernel does not answer a notice that a name is gone");
                }
                Err(_) => clock.sleep(TICK),
            }
        };
        self.shut.store(true, SeqCst);
        let shut = Shut {
            gate: self,
            _notices: notices,
        };
        let mut hurried = false;
        while self.inside.load(SeqCst) > 0 {
            if waited() >= patience {
                return Err("an operation is under way that does not come to its end");
            }
            if waited() >= patience / 2 && !std::mem::replace(&mut hurried, true) {
                hurry();
            }
            clock.sleep(TICK);
        }
        Ok(shut)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        let waiting = self.gate.waiting.lock();
        self.gate.shut.store(false, SeqCst);
        drop(waiting);
        self.gate.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::thread;

    #[test]
    fn it_shuts_when_all_are_out_and_lets_nobody_in_until_it_opens() {
        let (gate, clock) = (Arc::new(Gate::default()), SystemClock::shared());
        let stay = {
            let _inside = gate.enter();
            gate.stay()
        };
        let again = gate.shut(&*clock, Duration::from_millis(20), || ());
        assert!(again.is_err(), "somebody is inside");
        drop(again);
        drop(gate.enter());
        let held = Mutex::new(Some(stay));
        let shut = gate
            .shut(&*clock, Duration::from_secs(2), || {
                drop(held.lock().unwrap().take());
            })
            .unwrap();
        let (told, hears) = crossbeam_channel::bounded(1);
        let enters = gate.clone();
        let other = thread::spawn(move || {
            let _inside = enters.enter();
            told.send(()).unwrap();
        });
        assert!(hears.recv_timeout(Duration::from_millis(50)).is_err());
        drop(shut);
        hears.recv_timeout(Duration::from_secs(20)).unwrap();
        other.join().unwrap();
    }

    #[test]
    fn it_does_not_shut_while_the_kernel_is_told_something() {
        let (gate, clock) = (Gate::default(), SystemClock::shared());
        let notice = gate.notice();
        assert!(
            gate.shut(&*clock, Duration::from_millis(20), || ())
                .is_err()
        );
        drop(gate.enter());
        drop(notice);
        drop(gate.shut(&*clock, Duration::from_secs(20), || ()).unwrap());
    }
}
