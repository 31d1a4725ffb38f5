//! What happens to entries, said once at the place where it is decided.
//!
//! An [`Event`] counts in [`super::Stats`], its duration goes into a histogram, and whoever listens is told. This
//! module does not know who listens.

use std::fmt;
use std::time::Duration;

use crate::signature::Signature;

macro_rules! happenings {
    ($($(#[$doc:meta])* $variant:ident = $name:literal in $op:ident,)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum What { $($(#[$doc])* $variant,)* }

        impl What {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// What is written so.
            pub fn named(op: &str, name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|what| what.name() == name && what.op().name() == op)
            }

            /// How it is written.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Of what it is the outcome.
            pub fn op(self) -> Op {
                match self { $(Self::$variant => Op::$op,)* }
            }
        }
    };
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Somebody asked for an entry.
    Lookup,
    /// The remote was asked for it.
    Fetch,
    /// An entry came into its place by somebody's doing.
    Push,
    /// The remote was given it.
    Upload,
    /// It went from the disk.
    Remove,
}

impl Op {
    /// How it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Fetch => "fetch",
            Self::Push => "push",
            Self::Upload => "upload",
            Self::Remove => "remove",
        }
    }
}

happenings! {
    /// It was opened, or its link read, on the backing disk.
    Hit = "hit" in Lookup,
    /// Answered from memory of a recent miss.
    RecentMiss = "recent-miss" in Lookup,
    /// The remote was not asked: it is in trouble, or too many wait.
    NotAsked = "not-asked" in Lookup,
    /// The remote's answer or content came too late.
    Late = "late" in Lookup,
    /// Somebody waited so long for the end of a fetch; which end, an event of the fetch said before.
    Waited = "waited" in Lookup,
    /// The remote has it not.
    Miss = "miss" in Fetch,
    /// It is on the disk now.
    Fetched = "fetched" in Fetch,
    /// The remote, or the backing disk, failed.
    FetchFailed = "failed" in Fetch,
    /// What came was not what was pushed.
    Corrupt = "corrupt" in Fetch,
    /// The backing disk has no room for it.
    NoRoom = "no-room" in Fetch,
    /// It is whole.
    Pushed = "pushed" in Push,
    /// The remote took it.
    Uploaded = "uploaded" in Upload,
    /// The remote had it already.
    AlreadyThere = "already-there" in Upload,
    /// The remote has other content under that signature.
    Diverged = "diverged" in Upload,
    /// An attempt failed; there will be another.
    UploadFailed = "failed" in Upload,
    /// There will be none.
    GivenUp = "given-up" in Upload,
    /// To make room.
    Evicted = "evicted" in Remove,
    /// Because somebody asked for that (`cachedirfs rm`).
    Removed = "removed" in Remove,
    /// Somebody removed it in the mount, as with rm(1).
    Unlinked = "unlinked" in Remove,
    /// The backing disk failed to write it.
    NotWritten = "not-written" in Remove,
}

/// Something that happened to one entry.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// What.
    pub what: What,
    /// To which.
    pub sig: &'a Signature,
    /// Its content's bytes, where they are known.
    pub bytes: Option<u64>,
    /// How long it took, where that says something.
    pub took: Option<Duration>,
    /// Why, where there is more to say. Never a secret: these are the texts that go to the log.
    pub why: Option<&'a dyn fmt::Display>,
}

impl<'a> Event<'a> {
    /// Nothing but what happened.
    pub fn new(what: What, sig: &'a Signature) -> Self {
        Self {
            what,
            sig,
            bytes: None,
            took: None,
            why: None,
        }
    }

    /// With the bytes of its content.
    #[must_use]
    pub fn bytes(self, bytes: u64) -> Self {
        Self {
            bytes: Some(bytes),
            ..self
        }
    }

    /// With how long it took.
    #[must_use]
    pub fn took(self, took: Duration) -> Self {
        Self {
            took: Some(took),
            ..self
        }
    }

    /// With the reason.
    #[must_use]
    pub fn why(self, why: &'a dyn fmt::Display) -> Self {
        Self {
            why: Some(why),
            ..self
        }
    }
}

/// Told of every event, on the thread on which it happens: it must not wait for anything.
pub type Sink = Box<dyn Fn(&Event<'_>) + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_happenings_are_written_alike() {
        let written = What::ALL.iter().map(|what| (what.op().name(), what.name()));
        assert_eq!(written.collect::<HashSet<_>>().len(), What::ALL.len());
        for what in What::ALL {
            assert_eq!(What::named(what.op().name(), what.name()), Some(*what));
        }
    }
}
