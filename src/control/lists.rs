//! What the control socket says of single objects: pushes that diverged, uploads that were given up, what was removed.
//!
//! A list is asked for in pieces, so that each fits a line: a request names the last number that was seen, and an empty
//! answer is the end.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most objects in one request or answer. The longest that there can be take less than a kilobyte each.
pub const BATCH: usize = 50;

/// A push whose signature the remote holds with other content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Rises with each.
    pub number: u64,
    /// The entry.
    pub signature: String,
    /// What was pushed here.
    pub here: Copy,
    /// What the remote holds.
    pub there: Copy,
    /// When it was found out, in seconds since 1970.
    pub time: u64,
}

/// One of two contents under a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Its length, where known.
    pub bytes: Option<u64>,
    /// Its BLAKE3 in hex digits, where known.
    pub blake3: Option<String>,
}

/// An upload that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Rises with each.
    pub number: u64,
    /// The entry.
    pub signature: String,
    /// Its length.
    pub bytes: u64,
    /// Why.
    pub why: String,
    /// When, in seconds since 1970.
    pub time: u64,
}

/// What became of a signature that was to be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The signature.
    pub signature: String,
    /// Entries removed from the mount.
    pub here: u64,
    /// Uploads that will not be made.
    pub pending: u64,
    /// Whether its upload was under way, and has ended.
    pub uploaded: bool,
    /// Whether the remote had it and has it no more; absent when it was not to be asked.
    pub remote: Option<bool>,
    /// Why it is not removed everywhere where it was to be.
    pub trouble: Option<String>,
}

/// What a mount knows of one entry at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// The signature.
    pub signature: String,
    /// Its bytes on the disk; absent when it is not there.
    pub here: Option<u64>,
    /// Whether its upload waits or is under way.
    pub pending: bool,
    /// For how many milliseconds more it counts as absent without asking.
    pub absent_ms: Option<u64>,
    /// What the remotes said, if they were to be asked.
    pub remotes: Vec<Holding>,
}

/// What a remote said of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holding {
    /// The remote, without credentials.
    pub remote: String,
    /// `whole`, `absent`, `corrupt`, or `failed`.
    pub state: String,
    /// Bytes of its content, where it is whole.
    pub bytes: Option<u64>,
    /// How long it took.
    pub milliseconds: u64,
    /// What is wrong.
    pub trouble: Option<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (time, signature) = (utc(self.time), &self.signature);
        write!(
            f,
            "{time} {signature}\n  here  {}\n  there {}",
            self.here, self.there
        )
    }
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.map_or("?".to_owned(), |bytes| bytes.to_string());
        let hash = self.blake3.as_deref().unwrap_or("unknown");
        write!(f, "{bytes} bytes, BLAKE3 {hash}")
    }
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (time, signature, bytes) = (utc(self.time), &self.signature, self.bytes);
        write!(f, "{time} {signature} {bytes} bytes: {}", self.why)
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.signature)?;
        f.write_str(if self.here > 0 {
            "removed here"
        } else {
            "not here"
        })?;
        if self.pending > 0 {
            f.write_str(", its upload is cancelled")?;
        }
        match self.remote {
            Some(true) => f.write_str(", removed on the remote")?,
            Some(false) => f.write_str(", not on the remote")?,
            None if self.uploaded => {
                f.write_str(", its upload had begun: it may be on the remote")?;
            }
            None => {}
        }
        match &self.trouble {
            Some(trouble) => write!(f, "; NOT REMOVED: {trouble}"),
            None => Ok(()),
        }
    }
}

/// A time as the log writes it.
fn utc(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or("?".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Answer, MAX_LINE};

    #[test]
    fn the_longest_answer_fits_a_line() {
        let (number, time, bytes) = (u64::MAX, u64::MAX, u64::MAX);
        let (signature, blake3) = ("f".repeat(128), Some("f".repeat(64)));
        let copy = Copy {
            bytes: Some(bytes),
            blake3,
        };
        let divergence = Divergence {
            number,
            signature: signature.clone(),
            here: copy.clone(),
            there: copy,
            time,
        };
        let given_up = GivenUp {
            number,
            signature: signature.clone(),
            bytes,
            why: "\n".repeat(300),
            time,
        };
        let removed = Removed {
            signature,
            here: 4,
            pending: number,
            uploaded: true,
            remote: Some(true),
            trouble: Some("\n".repeat(300)),
        };
        for answer in [
            Answer::Divergent(vec![divergence; BATCH]),
            Answer::GivenUp(vec![given_up; BATCH]),
            Answer::Removed(vec![removed; BATCH]),
        ] {
            assert!(serde_json::to_vec(&answer).unwrap().len() < MAX_LINE);
        }
    }

    #[test]
    fn each_is_said_in_words() {
        let signature = "a".repeat(32);
        let here = Copy {
            bytes: Some(5),
            blake3: Some("ff".to_owned()),
        };
        let there = Copy {
            bytes: None,
            blake3: None,
        };
        let divergence = Divergence {
            number: 1,
            signature: signature.clone(),
            here,
            there,
            time: 1_700_000_000,
        };
        assert_eq!(
            divergence.to_string(),
            format!(
                "2023-11-14T22:13:20Z {signature}\n  here  5 bytes, BLAKE3 ff\n  there ? bytes, BLAKE3 unknown"
            )
        );
        let removed = Removed {
            signature,
            here: 1,
            remote: Some(false),
            ..Removed::default()
        };
        assert!(
            removed
                .to_string()
                .ends_with(": removed here, not on the remote")
        );
        let failed = Removed {
            trouble: Some("no".to_owned()),
            ..Removed::default()
        };
        assert!(failed.to_string().ends_with(": not here; NOT REMOVED: no"));
    }
}
