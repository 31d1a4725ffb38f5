//! A store in memory: the shortest example of [`Blobs`], and what tests put under the decorators.
//!
//! Tests reach into it ([`Memory::set`]) to play a store that rots.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::object::{Blob, Payload};
use crate::remote::RemoteError;
use crate::remote::blob::{Blobs, Stored, Written};

/// Blobs in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, Bytes>>>);

type Bytes = Arc<[u8]>;

impl Memory {
    /// What is stored under `key`.
    pub fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.lock().get(key).map(|stored| stored.to_vec())
    }

    /// Puts any bytes under `key`.
    pub fn set(&self, key: &str, bytes: &[u8]) {
        self.lock().insert(key.to_owned(), bytes.into());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs for Memory {
    fn get(&self, key: &str) -> Result<Option<Blob>, RemoteError> {
        let Some(stored) = self.lock().get(key).cloned() else {
            return Ok(None);
        };
        let len = Some(stored.len() as u64);
        Ok(Some(Blob {
            body: Box::new(Cursor::new(stored)),
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
        blobs.insert(key.to_owned(), bytes.into());
        Ok(Written::Stored)
    }

    fn creates_only(&self) -> bool {
        true
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
            .map(|(key, blob)| (key.clone(), blob.len()))
            .collect();
        for (key, len) in copied {
            each(Stored::new(&key, len as u64));
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "memory:///".to_owned()
    }
}
