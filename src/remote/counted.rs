//! Counts what became of the calls of one remote, where there are several.
//!
//! Outermost of what is around one remote: what a breaker did not let through was no call and is not counted, nor are
//! its probes. This module knows no kind of remote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::remote::{Complaint, Content, Listed, Object, Put, Remote, RemoteError, Trouble};
use crate::signature::{Meta, Signature};

/// The counters. Each is right, not all of them at one instant.
#[derive(Debug, Default)]
pub struct Tally {
    /// Lookups that it had the object for.
    pub hits: AtomicU64,
    /// Lookups that it did not.
    pub misses: AtomicU64,
    /// Objects that it took.
    pub uploaded: AtomicU64,
    /// Calls that failed.
    pub errors: AtomicU64,
}

/// A remote whose calls are counted.
pub struct Counted {
    inner: Arc<dyn Remote>,
    tally: Arc<Tally>,
}

impl Counted {
    /// `inner`, counted in `tally`.
    pub fn new(inner: Arc<dyn Remote>, tally: Arc<Tally>) -> Self {
        Self { inner, tally }
    }

    fn asked<T>(
        &self,
        call: impl FnOnce(&dyn Remote) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let is_let_through = self.inner.trouble().is_none();
        let answer = call(&*self.inner);
        if answer.is_err() && is_let_through {
            self.tally.errors.fetch_add(1, Relaxed);
        }
        answer
    }
}

impl Remote for Counted {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        let answer = self.asked(|inner| inner.get(sig));
        match &answer {
            Ok(Some(_)) => self.tally.hits.fetch_add(1, Relaxed),
            Ok(None) => self.tally.misses.fetch_add(1, Relaxed),
            Err(_) => 0,
        };
        answer
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        let answer = self.asked(|inner| inner.put(sig, meta, content));
        if let Ok(Put::Stored) = answer {
            self.tally.uploaded.fetch_add(1, Relaxed);
        }
        answer
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.asked(|inner| inner.exists(sig))
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.asked(|inner| inner.delete(sig))
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.asked(|inner| inner.list(each))
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.asked(|inner| inner.touch(sig))
    }

    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        self.asked(|inner| inner.delete_listed(listed))
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        self.asked(|inner| inner.quarantine(sig))
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
    use crate::remote::scripted::{Scripted, sig};

    #[test]
    fn what_became_of_calls_is_counted() {
        let tally = Arc::new(Tally::default());
        let inner = Scripted::shared([Ok(true), Err(RemoteError::Full("full".to_owned()))]);
        let counted = Counted::new(inner, tally.clone());
        assert!(counted.exists(&sig()).unwrap());
        assert!(counted.exists(&sig()).is_err());
        assert_eq!(tally.errors.load(Relaxed), 1);
    }
}
