//! A store in memory: the shortest example of [`Blobs`], and what tests put under the decorators.
//!
//! Tests reach into it ([`Memory::set`], [`Memory::age`]) to play a store that rots or is old.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::clock::{Clock, SystemClock};
use crate::object::{Blob, Payload};
use crate::remote::RemoteError;
use crate::remote::blob::{Blobs, Stored, Written};

/// Blobs in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct Memory {
    blobs: Arc<Mutex<BTreeMap<String, Kept>>>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone, Debug)]
struct Kept {
    bytes: Arc<[u8]>,
    modified: SystemTime,
    /// Grows with every write and touch.
    version: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            blobs: Arc::default(),
            clock: SystemClock::shared(),
        }
    }
}

impl Memory {
    /// What is stored under `key`.
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.lock().get(key).map(|kept| kept.bytes.to_vec())
    }

    /// Puts any bytes under `key`.
    pub fn set(&self, key: &str, bytes: &[u8]) {
        self.keep(&mut self.lock(), key, bytes.into());
    }

    /// Makes what is stored under `key` older than it is.
    pub fn age(&self, key: &str, by: Duration) {
        if let Some(kept) = self.lock().get_mut(key) {
            kept.modified -= by;
        }
    }

    fn keep(&self, blobs: &mut BTreeMap<String, Kept>, key: &str, bytes: Arc<[u8]>) {
        let version = blobs.get(key).map_or(0, |kept| kept.version + 1);
        let modified = self.clock.wall();
        let kept = Kept {
            bytes,
            modified,
            version,
        };
        blobs.insert(key.to_owned(), kept);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs for Memory {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        let Some(kept) = self.lock().get(key).cloned() else {
            return Ok(None);
        };
        let len = Some(kept.bytes.len() as u64);
        Ok(Some(Blob {
            body: Box::new(Cursor::new(kept.bytes)),
            len,
            hint: None,
        }))
    }

    fn put(&self, key: &str, payload: &Payload, if_absent: bool) -> Result<Written, RemoteError> {
        let mut bytes = Vec::new();
        payload
            .reader()
            .read_to_end(&mut bytes)
            .map_err(RemoteError::from_io)?;
        let mut blobs = self.lock();
        if if_absent && blobs.contains_key(key) {
            return Ok(Written::Exists);
        }
        self.keep(&mut blobs, key, bytes.into());
        Ok(Written::Stored)
    }

    fn creates_only(&self) -> Option<bool> {
        Some(true)
    }

    fn exists(&self, key: &str) -> Result<bool, RemoteError> {
        Ok(self.lock().contains_key(key))
    }

    fn delete(&self, key: &str) -> Result<bool, RemoteError> {
        Ok(self.lock().remove(key).is_some())
    }

    fn list(&self, each: &mut dyn FnMut(Stored<'_>)) -> Result<(), RemoteError> {
        let copied: Vec<_> = self
            .lock()
            .iter()
            .map(|(key, kept)| (key.clone(), kept.clone()))
            .collect();
        for (key, kept) in copied {
            each(Stored {
                key: &key,
                size: kept.bytes.len() as u64,
                modified: Some(kept.modified),
                version: Some(&kept.version.to_string()),
            });
        }
        Ok(())
    }

    fn touch(&self, key: &str) -> Result<bool, RemoteError> {
        let mut blobs = self.lock();
        let Some(kept) = blobs.get_mut(key) else {
            return Ok(false);
        };
        kept.modified = self.clock.wall();
        kept.version += 1;
        Ok(true)
    }

    fn delete_listed(&self, listed: Stored<'_>) -> Result<bool, RemoteError> {
        let mut blobs = self.lock();
        let same = blobs.get(listed.key).is_some_and(|kept| {
            let version = kept.version.to_string();
            Some(version.as_str()) == listed.version && Some(kept.modified) == listed.modified
        });
        Ok(same && blobs.remove(listed.key).is_some())
    }

    fn describe(&self) -> String {
        "memory:///".to_owned()
    }
}
