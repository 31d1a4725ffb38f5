//! Retry: a few attempts for what may work in a moment.
//!
//! It retries only what is transient, waits a little longer each time with jitter (so that a hundred clients
//! do not come back at once), and gives up early when the remote asks for more patience than a lookup has,
//! or when a breaker below says that it is down. The body of an object is not retried: it fails midway for its reader.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::remote::{Complaint, Content, Listed, Object, Put, Remote, RemoteError, Trouble};
use crate::signature::{Meta, Signature};

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct RetryOptions {
    /// Attempts in all, the first one included.
    pub attempts: u32,
    /// Wait before the second attempt; doubled each time, half of it is jitter.
    pub delay: Duration,
    /// Longest wait. A remote that asks for more is not asked again.
    pub max_delay: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        let (delay, max_delay) = (Duration::from_millis(50), Duration::from_secs(2));
        Self {
            attempts: 3,
            delay,
            max_delay,
        }
    }
}

/// A remote that is asked again.
pub struct Retry {
    inner: Arc<dyn Remote>,
    clock: Arc<dyn Clock>,
    options: RetryOptions,
}

impl Retry {
    /// `inner`, asked again when it fails.
    pub fn new(inner: Arc<dyn Remote>, clock: Arc<dyn Clock>, options: RetryOptions) -> Self {
        Self {
            inner,
            clock,
            options,
        }
    }

    fn retried<T>(&self, call: impl Fn() -> Result<T, RemoteError>) -> Result<T, RemoteError> {
        for attempt in 1.. {
            let answer = call();
            let wait = answer
                .as_ref()
                .err()
                .and_then(|error| self.wait(attempt, error));
            let Some(wait) = wait else { return answer };
            self.clock.sleep(wait);
        }
        unreachable!("wait() ends it after options.attempts");
    }

    /// How long to wait after this failed attempt; `None` when it was the last.
    fn wait(&self, attempt: u32, error: &RemoteError) -> Option<Duration> {
        let worth_it = error.is_transient() && attempt < self.options.attempts;
        if !worth_it || self.inner.trouble().is_some() {
            return None;
        }
        let doubled = self
            .options
            .delay
            .saturating_mul(1 << (attempt - 1).min(16));
        let backoff = doubled
            .min(self.options.max_delay)
            .mul_f64(0.5 + fastrand::f64() / 2.0);
        let wait = error
            .retry_after()
            .map_or(backoff, |asked| asked.max(backoff));
        (wait <= self.options.max_delay).then_some(wait)
    }
}

impl Remote for Retry {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        self.retried(|| self.inner.get(sig))
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        self.retried(|| self.inner.put(sig, meta, content))
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.retried(|| self.inner.exists(sig))
    }

    /// Once: a second attempt could not tell whether the first removed it.
    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.inner.delete(sig)
    }

    /// Once: `each` was called already.
    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.inner.list(each)
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.inner.touch(sig)
    }

    /// Once, as [`Self::delete`].
    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        self.inner.delete_listed(listed)
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        self.inner.quarantine(sig)
    }

    fn prepare(&self) {
        self.inner.prepare();
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn trouble(&self) -> Option<Trouble> {
        self.inner.trouble()
    }

    fn report(&self, complaint: Complaint) {
        self.inner.report(complaint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::remote::scripted::{Scripted, sig};

    fn transient() -> RemoteError {
        RemoteError::Transient("refused".to_owned())
    }

    fn retry(inner: &Arc<Scripted>) -> (Retry, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        let inner: Arc<dyn Remote> = inner.clone();
        (
            Retry::new(inner, clock.clone(), RetryOptions::default()),
            clock,
        )
    }

    #[test]
    fn what_is_transient_is_asked_again_after_a_growing_wait() {
        let inner = Scripted::shared([Err(transient()), Err(transient()), Ok(true)]);
        let (retry, clock) = retry(&inner);
        assert!(retry.exists(&sig()).unwrap());
        assert_eq!(inner.calls(), 3);
        assert!(
            (74..=150).contains(&clock.now().as_millis()),
            "{:?}",
            clock.now()
        );
    }

    #[test]
    fn it_gives_up_after_the_last_attempt() {
        let inner = Scripted::shared([
            Err(transient()),
            Err(transient()),
            Err(transient()),
            Ok(true),
        ]);
        assert!(retry(&inner).0.exists(&sig()).unwrap_err().is_transient());
        assert_eq!(inner.calls(), 3);
    }

    #[test]
    fn what_will_not_change_is_not_asked_again() {
        for error in [
            RemoteError::Refused("403".to_owned()),
            RemoteError::Corrupt("hash".to_owned()),
            RemoteError::Busy("503".to_owned(), Duration::from_secs(60)),
        ] {
            let inner = Scripted::shared([Err(error), Ok(true)]);
            assert!(retry(&inner).0.exists(&sig()).is_err());
            assert_eq!(inner.calls(), 1);
        }
    }

    #[test]
    fn a_remote_that_asks_for_a_second_gets_it() {
        let busy = RemoteError::Busy("429".to_owned(), Duration::from_secs(1));
        let (retry, clock) = retry(&Scripted::shared([Err(busy), Ok(true)]));
        assert!(retry.exists(&sig()).unwrap());
        assert!(clock.now() >= Duration::from_secs(1));
    }
}
