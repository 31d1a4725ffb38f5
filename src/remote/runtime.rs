//! The one runtime that async libraries run on, shared by all remotes of the process: a mount with eight shards has no
//! eight sets of threads. Only child modules of `remote` see it; they drive their library with [`Shared::run`] from
//! threads that may block.
//!
//! It has threads: a remote must be opened after the process went to the background.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::{Builder, Runtime};

use crate::remote::RemoteError;

/// Threads that drive connections; the work on the bytes is done by the callers.
const THREADS: usize = 2;

static CURRENT: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

/// A runtime that ends with the last remote that uses it.
#[derive(Debug)]
pub(super) struct Shared {
    /// Taken only by `drop`.
    runtime: Option<Runtime>,
}

/// The runtime; started if nobody uses it yet.
pub(super) fn shared() -> Result<Arc<Shared>, RemoteError> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = current.upgrade() {
        return Ok(shared);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("cachedirfs-net")
        .enable_all()
        .build()
        .map_err(|error| RemoteError::Local(format!("start the network threads: {error}")))?;
    let shared = Arc::new(Shared {
        runtime: Some(runtime),
    });
    *current = Arc::downgrade(&shared);
    Ok(shared)
}

impl Shared {
    /// Waits for a future. What needs timers or sockets must be made inside of it.
    pub(super) fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime
            .as_ref()
            .expect("taken only by drop")
            .block_on(future)
    }

    /// Has a future run beside whoever asks for it.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let runtime = self.runtime.as_ref().expect("taken only by drop");
        // It says itself how it ended.
        drop(runtime.spawn(future));
    }
}

impl Drop for Shared {
    /// Does not wait: a name lookup may hang in one of its threads.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
