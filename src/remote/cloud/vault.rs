//! Credentials that expire: kept, renewed before they do, and never fetched by two at once.
//!
//! Whoever asks gets what is held as long as it is good for another request. In the last part of its life it is renewed
//! by a task of its own, so that no caller waits for that; only where nothing good is held do callers wait, all of them
//! for the one task. A failed renewal is no failure of a caller that holds credentials, and is not repeated at once.
//!
//! This module knows no store and no kind of credentials.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use crate::clock::Clock;
use crate::remote::RemoteError;
use crate::remote::runtime::Shared;

/// Credentials that expire earlier than this count as expired: a request with them may arrive too late. The libraries
/// that sign refuse such, too.
const MARGIN: Duration = Duration::from_secs(25);

/// They are renewed so long before they expire, or in the last quarter of their life where that is later: those of AWS
/// live for an hour at least, and five minutes are enough to outlive an outage of whoever hands them out.
const AHEAD: Duration = Duration::from_secs(300);

/// After a failure nobody is asked for so long. Without credentials every lookup would ask again, and a metadata service
/// that is not there costs a second each time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Credentials that a store refuses are renewed no oftener than this: what was refused may be refused again.
const FORCED_EVERY: Duration = Duration::from_secs(30);

/// Longest renewal, whatever it is made of.
const RENEWAL_MAX: Duration = Duration::from_secs(60);

/// What can be kept here.
pub(super) trait Perishable: Clone + Send + Sync + 'static {
    /// When it expires, if it does.
    fn until(&self) -> Option<SystemTime>;
}

/// A renewal under way.
pub(super) type Renewal<C> = Pin<Box<dyn Future<Output = Result<C, RemoteError>> + Send>>;

/// Credentials with their renewal.
pub(super) struct Vault<C: Perishable>(Arc<Inner<C>>);

/// Credentials for one request.
#[derive(Clone)]
pub(super) struct Held<C> {
    pub(super) credentials: C,
    /// Of which renewal they are.
    number: u64,
    /// When to renew them.
    renew_at: Option<SystemTime>,
}

struct Inner<C: Perishable> {
    fetch: Box<dyn Fn() -> Renewal<C> + Send + Sync>,
    runtime: Arc<Shared>,
    clock: Arc<dyn Clock>,
    state: Mutex<State<C>>,
    settled: Condvar,
}

struct State<C> {
    held: Option<Held<C>>,
    renewing: bool,
    /// Renewals so far.
    count: u64,
    /// The last failure since the last success, and when it was.
    failed: Option<(RemoteError, Duration)>,
    /// When a store last refused what was held.
    forced: Option<Duration>,
}

enum Standing<C> {
    Fresh(Held<C>),
    Aging(Held<C>),
    Gone,
}

impl<C: Perishable> Vault<C> {
    /// Nothing is held yet. `fetch` is called on the runtime.
    pub(super) fn new(
        runtime: Arc<Shared>,
        clock: Arc<dyn Clock>,
        fetch: impl Fn() -> Renewal<C> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            fetch: Box::new(fetch),
            runtime,
            clock,
            state: Mutex::new(State {
                held: None,
                renewing: false,
                count: 0,
                failed: None,
                forced: None,
            }),
            settled: Condvar::new(),
        }))
    }

    /// Credentials that are good for a request now.
    pub(super) fn current(&self) -> Result<Held<C>, RemoteError> {
        let inner = &self.0;
        let mut state = inner.lock();
        let mut waited = false;
        loop {
            match state.standing(inner.clock.wall()) {
                Standing::Fresh(held) => return Ok(held),
                Standing::Aging(held) => {
                    if !state.renewing && state.failure(inner.clock.now()).is_none() {
                        Inner::renew(inner, &mut state);
                    }
                    return Ok(held);
                }
                Standing::Gone if state.renewing => {
                    let settled = inner.settled.wait(state);
                    state = settled.unwrap_or_else(PoisonError::into_inner);
                    waited = true;
                }
                Standing::Gone => {
                    let last = state.failed.as_ref().filter(|_| waited);
                    let recent = state.failure(inner.clock.now());
                    if let Some(error) = last.map(|(error, _)| error.clone()).or(recent) {
                        return Err(error);
                    }
                    Inner::renew(inner, &mut state);
                }
            }
        }
    }

    /// A store says that these are no good any more. Whether it is worth asking again, with what [`Vault::current`] gives
    /// then.
    pub(super) fn refuse(&self, refused: &Held<C>) -> bool {
        let mut state = self.0.lock();
        let is_held = |held: &Held<C>| held.number == refused.number;
        if !state.held.as_ref().is_some_and(is_held) {
            return true;
        }
        let now = self.0.clock.now();
        let recently = |at: Duration| now.saturating_sub(at) < FORCED_EVERY;
        if state.forced.is_some_and(recently) {
            return false;
        }
        state.forced = Some(now);
        state.held = None;
        state.failed = None;
        true
    }
}

impl<C: Perishable> Inner<C> {
    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(inner: &Arc<Self>, state: &mut State<C>) {
        state.renewing = true;
        let under_way = UnderWay(Arc::clone(inner));
        inner.runtime.spawn(async move {
            let renewal = timeout(RENEWAL_MAX, (under_way.0.fetch)()).await;
            let late = || {
                let text = format!("get credentials: no answer in {} s", RENEWAL_MAX.as_secs());
                Err(RemoteError::Transient(text))
            };
            under_way.0.settle(renewal.unwrap_or_else(|_| late()));
        });
    }

    fn settle(&self, renewal: Result<C, RemoteError>) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let renewal = renewal.and_then(|credentials| good(credentials, wall));
        let mut state = self.lock();
        state.renewing = false;
        match renewal {
            Ok((credentials, renew_at)) => {
                state.count += 1;
                state.failed = None;
                state.held = Some(Held {
                    credentials,
                    number: state.count,
                    renew_at,
                });
            }
            Err(error) => {
                if state.held.is_some() {
                    log::warn!("{error}; those that are held are used while they last");
                }
                state.failed = Some((error, now));
            }
        }
        self.settled.notify_all();
    }
}

/// Credentials that are worth holding, with the moment when they are to be renewed.
fn good<C: Perishable>(
    credentials: C,
    now: SystemTime,
) -> Result<(C, Option<SystemTime>), RemoteError> {
    let Some(until) = credentials.until() else {
        return Ok((credentials, None));
    };
    let life = until.duration_since(now).unwrap_or_default();
    if life <= MARGIN {
        let text =
            "get credentials: what was handed out has expired already; is the clock right here?";
        return Err(RemoteError::Refused(text.to_owned()));
    }
    let ahead = AHEAD.min(life / 4).max(MARGIN);
    Ok((credentials, until.checked_sub(ahead)))
}

impl<C: Perishable> State<C> {
    fn standing(&self, now: SystemTime) -> Standing<C> {
        let Some(held) = self.held.clone() else {
            return Standing::Gone;
        };
        match (held.credentials.until(), held.renew_at) {
            (Some(until), _) if now + MARGIN >= until => Standing::Gone,
            (Some(_), Some(renew_at)) if now >= renew_at => Standing::Aging(held),
            _ => Standing::Fresh(held),
        }
    }

    /// The last failure, while it is too early to try again.
    fn failure(&self, now: Duration) -> Option<RemoteError> {
        let (error, at) = self.failed.as_ref()?;
        (now.saturating_sub(*at) < RETRY_AFTER).then(|| error.clone())
    }
}

/// Ends a renewal whatever becomes of its task: a panic must not leave everybody waiting.
struct UnderWay<C: Perishable>(Arc<Inner<C>>);

impl<C: Perishable> Drop for UnderWay<C> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.renewing {
            state.renewing = false;
            let text = "get credentials: given up".to_owned();
            state.failed = Some((RemoteError::Transient(text), self.0.clock.now()));
            self.0.settled.notify_all();
        }
    }
}
