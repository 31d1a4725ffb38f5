//! A remote in whose place another one can be put while it is used.
//!
//! A call that is under way ends with the remote that it began with, as does the content that it gave. What goes on over
//! several calls (an object that is asked for elsewhere, say) may meet another remote than it began with, which then knows
//! nothing of it: that is a miss at worst. This module knows no kind of remote.

use std::sync::{Arc, PoisonError, RwLock};

use crate::remote::{Complaint, Content, Listed, Object, Put, Remote, RemoteError, Trouble};
use crate::signature::{Meta, Signature};

/// The remote of the moment.
pub struct Swap(RwLock<Arc<dyn Remote>>);

impl Swap {
    /// `remote`, until another one is set.
    pub fn new(remote: Arc<dyn Remote>) -> Self {
        Self(RwLock::new(remote))
    }

    /// From now on calls go to `remote`.
    pub fn set(&self, remote: Arc<dyn Remote>) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, remote);
        drop(current);
        // Closing what it holds may take a while.
        drop(old);
    }

    fn current(&self) -> Arc<dyn Remote> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

impl Remote for Swap {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        self.current().get(sig)
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        self.current().put(sig, meta, content)
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.current().exists(sig)
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.current().delete(sig)
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.current().list(each)
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.current().touch(sig)
    }

    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        self.current().delete_listed(listed)
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        self.current().quarantine(sig)
    }

    fn describe(&self) -> String {
        self.current().describe()
    }

    fn describe_holder(&self, sig: &Signature) -> String {
        self.current().describe_holder(sig)
    }

    fn trouble_about(&self, sig: &Signature) -> Option<Trouble> {
        self.current().trouble_about(sig)
    }

    fn elsewhere(&self, sig: &Signature) -> bool {
        self.current().elsewhere(sig)
    }

    fn prepare(&self) {
        self.current().prepare();
    }

    fn trouble(&self) -> Option<Trouble> {
        self.current().trouble()
    }

    fn report(&self, complaint: Complaint) {
        self.current().report(complaint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RemoteOptions;
    use crate::remote::blob::BlobRemote;
    use crate::remote::memory::Memory;

    fn memory() -> Arc<dyn Remote> {
        Arc::new(BlobRemote::new(
            Memory::default(),
            &RemoteOptions::default(),
        ))
    }

    #[test]
    fn what_began_with_a_remote_ends_with_it() {
        let sig = Signature::parse(b"0123456789abcdef0123456789abcdef").unwrap();
        let swap = Swap::new(memory());
        let content = Content::Bytes(b"of the first".to_vec());
        swap.put(&sig, Meta::file(0o644), &content).unwrap();
        let mut begun = swap.get(&sig).unwrap().unwrap();
        swap.set(memory());
        assert!(swap.get(&sig).unwrap().is_none(), "the second has nothing");
        let mut read = Vec::new();
        begun.content.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"of the first");
    }
}
