//! Shards: several remotes that divide the entries among them.
//!
//! Which one an entry belongs to follows from its signature and the names of the shards alone (weighted rendezvous
//! hashing): each shard has a score for each signature, and the highest score wins.
//!
//! ```text
//! h     = the first 8 bytes of BLAKE3(SIGNATURE 0x00 NAME), little endian
//! u     = (h modulo 2^53) / 2^53
//! score = WEIGHT / -ln(u), and 0 where u is 0
//! ```
//!
//! So a shard that is added takes its share from all others and nothing moves between those. A shard that is dead is its
//! share of misses, and of uploads that wait: that is never said of all of them.
//!
//! This module knows no kind of remote.

use std::sync::Arc;

use crate::remote::{Complaint, Content, Listed, Object, Put, Remote, RemoteError, Trouble};
use crate::signature::{Meta, Signature};

/// The bits of a hash that a double holds exactly.
const BITS: u32 = 53;

/// One of them.
pub struct Shard {
    /// What its share follows from.
    pub name: String,
    /// The size of its share, compared with the others.
    pub weight: f64,
    /// Where it is.
    pub remote: Arc<dyn Remote>,
}

/// Remotes that divide the entries among them.
pub struct Shards {
    shards: Vec<Shard>,
    name: String,
}

/// The score of a shard for a signature. The formula is part of the format: see the head of this module.
pub fn score(sig: &Signature, name: &str, weight: f64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(sig.as_bytes()).update(b"\0");
    hasher.update(name.as_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    let bits = u64::from_le_bytes(first) & ((1 << BITS) - 1);
    if bits == 0 {
        return 0.0;
    }
    // Both are below 2^53, so that nothing is lost.
    #[allow(clippy::cast_precision_loss)]
    let unit = bits as f64 / (1_u64 << BITS) as f64;
    weight / -unit.ln()
}

impl Shards {
    /// All of them, shown as `name`; at least one.
    pub fn new(shards: Vec<Shard>, name: String) -> Self {
        Self { shards, name }
    }

    fn of(&self, sig: &Signature) -> &dyn Remote {
        let mut best = (0, -1.0);
        for (n, shard) in self.shards.iter().enumerate() {
            let score = score(sig, &shard.name, shard.weight);
            if score > best.1 {
                best = (n, score);
            }
        }
        &*self.shards[best.0].remote
    }

    /// That a part of the remote fails is not to stop the others, unless it is all of it.
    fn in_part(&self, error: RemoteError) -> RemoteError {
        let of_all = self.shards.len() == 1 || self.trouble().is_some();
        match error {
            RemoteError::Transient(_)
            | RemoteError::Busy(..)
            | RemoteError::Slow(_)
            | RemoteError::Refused(_)
            | RemoteError::Untrusted(_)
                if !of_all =>
            {
                RemoteError::Partly(error.to_string())
            }
            error => error,
        }
    }
}

impl Remote for Shards {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        self.of(sig).get(sig)
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        let put = self.of(sig).put(sig, meta, content);
        put.map_err(|error| self.in_part(error))
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.of(sig).exists(sig)
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.of(sig).delete(sig)
    }

    /// What lies in a shard that it does not belong to (the shards were others once) is not found by anybody, and is
    /// left out.
    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        for shard in &self.shards {
            shard.remote.list(&mut |listed| {
                if std::ptr::addr_eq(self.of(&listed.sig), Arc::as_ptr(&shard.remote)) {
                    each(listed);
                }
            })?;
        }
        Ok(())
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.of(sig).touch(sig)
    }

    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        self.of(&listed.sig).delete_listed(listed)
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        self.of(sig).quarantine(sig)
    }

    fn prepare(&self) {
        for shard in &self.shards {
            shard.remote.prepare();
        }
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn describe_holder(&self, sig: &Signature) -> String {
        self.of(sig).describe()
    }

    /// Only when none is asked is this not asked.
    fn trouble(&self) -> Option<Trouble> {
        let mut last = None;
        for shard in &self.shards {
            last = Some(shard.remote.trouble()?);
        }
        last
    }

    fn trouble_about(&self, sig: &Signature) -> Option<Trouble> {
        self.of(sig).trouble()
    }

    fn report(&self, complaint: Complaint) {
        if let Some(sig) = complaint.about {
            self.of(&sig).report(complaint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RemoteOptions;
    use crate::remote::blob::BlobRemote;
    use crate::remote::memory::Memory;

    fn sig(n: u64) -> Signature {
        let digest = blake3::hash(&n.to_le_bytes()).to_hex();
        Signature::parse(&digest.as_bytes()[..32]).unwrap()
    }

    fn shards(names: &[(&str, f64)]) -> Shards {
        let memory = || {
            Arc::new(BlobRemote::new(
                Memory::default(),
                &RemoteOptions::default(),
            ))
        };
        let shard = |(name, weight): &(&str, f64)| Shard {
            name: (*name).to_owned(),
            weight: *weight,
            remote: memory(),
        };
        Shards::new(names.iter().map(shard).collect(), "{...}".to_owned())
    }

    fn at(shards: &Shards, n: u64) -> usize {
        let found = shards.of(&sig(n));
        let same = |shard: &Shard| std::ptr::addr_eq(found, Arc::as_ptr(&shard.remote));
        shards.shards.iter().position(same).unwrap()
    }

    /// Objects are where the formula put them: it never changes.
    #[test]
    fn the_formula_is_what_the_man_page_says() {
        let sig = Signature::parse(b"5d41402abc4b2a76b9719d911017c592").unwrap();
        let seen = ["1", "2", "alpha"].map(|name| format!("{:.9}", score(&sig, name, 1.0)));
        assert_eq!(seen, ["0.406644039", "1.250723121", "3.070766952"]);
        assert_eq!(score(&sig, "1", 3.0), 3.0 * score(&sig, "1", 1.0));
    }

    #[test]
    fn a_shard_that_is_added_takes_its_share_and_nothing_else_moves() {
        const SIGNATURES: u64 = 100_000;
        let eight: Vec<_> = ["1", "2", "3", "4", "5", "6", "7", "8"]
            .map(|n| (n, 1.0))
            .into();
        let nine = [&eight[..], &[("9", 1.0)]].concat();
        let (before, after) = (shards(&eight), shards(&nine));
        let mut moved = 0;
        for n in 0..SIGNATURES {
            let (was, is) = (at(&before, n), at(&after, n));
            assert!(was == is || is == 8, "{n} moved from {was} to {is}");
            moved += u64::from(was != is);
        }
        let share = SIGNATURES / 9;
        assert!(moved.abs_diff(share) < share / 20, "{moved} of {share}");
    }

    #[test]
    fn weights_are_shares() {
        let weighed = shards(&[("alpha", 1.0), ("beta", 3.0)]);
        let beta = (0..20_000).filter(|n| at(&weighed, *n) == 1).count();
        assert!(beta.abs_diff(15_000) < 300, "{beta}");
    }
}
