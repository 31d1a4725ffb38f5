//! A remote that answers from a list, for the tests of the decorators.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::object::Arrived;
use crate::remote::{Content, Listed, Object, Put, Remote, RemoteError};
use crate::signature::{Meta, Signature};

pub(super) fn sig() -> Signature {
    Signature::parse(&[b'a'; 32]).unwrap()
}

/// Answers every call with the next of its answers; `Ok(true)` of a `get` is an object whose body breaks
/// off when the answer after it is an error.
pub(super) struct Scripted {
    answers: Mutex<VecDeque<Result<bool, RemoteError>>>,
    calls: AtomicUsize,
}

impl Scripted {
    pub(super) fn shared(
        answers: impl IntoIterator<Item = Result<bool, RemoteError>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.into_iter().collect()),
            calls: AtomicUsize::new(0),
        })
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn next(&self) -> Result<bool, RemoteError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.answers
            .lock()
            .unwrap()
            .pop_front()
            .expect("an answer for every call")
    }
}

struct Broken(Option<RemoteError>);

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), |error| Err(error.into_io()))
    }
}

impl Remote for Scripted {
    fn get(&self, _: &Signature) -> Result<Option<Object>, RemoteError> {
        if !self.next()? {
            return Ok(None);
        }
        let body = self
            .answers
            .lock()
            .unwrap()
            .pop_front()
            .and_then(Result::err);
        Ok(Some(Object {
            meta: Meta::file(0o644),
            len: None,
            hash: None,
            content: Box::new(Broken(body)),
            arrived: Arrived::default(),
        }))
    }

    fn put(&self, _: &Signature, _: Meta, _: &Content) -> Result<Put, RemoteError> {
        self.next().map(|_| Put::Stored)
    }

    fn exists(&self, _: &Signature) -> Result<bool, RemoteError> {
        self.next()
    }

    fn delete(&self, _: &Signature) -> Result<bool, RemoteError> {
        self.next()
    }

    fn list(&self, _: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.next().map(|_| ())
    }

    fn describe(&self) -> String {
        "scripted:".to_owned()
    }
}
