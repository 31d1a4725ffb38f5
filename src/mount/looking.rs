//! What is known of one entry: on the disk, pending, remembered as absent; and what each remote says of it.

use std::io::{self, Read};

use super::chores::shortened;
use super::remotes::Leaf;
use super::{Parts, millis};
use crate::control::{Entry, Holding};
use crate::name::Place;
use crate::remote::{Remote, RemoteError};
use crate::signature::Signature;

/// What is known here. Asks nobody.
pub(super) fn here(parts: &Parts, sig: &Signature) -> Entry {
    let places = (1..=4).map(|digits| Place { sig: *sig, digits });
    let absent = parts.fetch.known_absent(sig);
    Entry {
        signature: sig.to_string(),
        here: places.filter_map(|place| parts.store.len_of(&place)).next(),
        pending: parts.uploads.is_pending(sig),
        absent_ms: absent.map(millis),
        remotes: Vec::new(),
    }
}

/// What each remote says, one after the other. One that is in trouble is not asked, and one that hangs has the time that any
/// request has.
pub(super) fn ask(parts: &Parts, sig: &Signature) -> Vec<Holding> {
    let remotes = parts.remotes();
    let leaves = remotes.leaves.iter();
    let asked = leaves.take_while(|_| !parts.over.asked());
    asked.map(|leaf| ask_one(parts, leaf, sig)).collect()
}

fn ask_one(parts: &Parts, leaf: &Leaf, sig: &Signature) -> Holding {
    let began = parts.clock.now();
    let read = leaf.breaker.get(sig).and_then(|object| {
        let content = |mut object: crate::remote::Object| {
            io::copy(&mut object.content.by_ref(), &mut io::sink()).map_err(RemoteError::from_io)
        };
        object.map(content).transpose()
    });
    let (state, bytes, trouble) = match read {
        Ok(Some(bytes)) => ("whole", Some(bytes), None),
        Ok(None) => ("absent", None, None),
        Err(error @ RemoteError::Corrupt(_)) => ("corrupt", None, Some(error)),
        Err(error) => ("failed", None, Some(error)),
    };
    Holding {
        remote: leaf.name.clone(),
        state: state.to_owned(),
        bytes,
        milliseconds: millis(parts.clock.now().saturating_sub(began)),
        trouble: trouble.map(|error| shortened(&error.to_string())),
    }
}
