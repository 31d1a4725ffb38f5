//! The event log of a mount: what happened to which entry, a line of JSON each, in a file that is rotated; and what
//! can be told from it afterwards.
//!
//! [`Events`] writes it. Whoever has something to say hands over a record and goes on: a thread of the mount's writes, and
//! what it cannot keep up with is dropped and counted. A file that cannot be written costs events, and nothing else.
//! [`reader`] reads it back, [`why`] tells the story of one entry, [`diff`] compares two spans of time.
//!
//! The format is in `cachedirfs(5)`. This module does not know what a mount is made of, nor the command line.

pub mod diff;
pub mod names;
pub mod reader;
pub mod record;
pub mod why;
mod writer;

pub use record::{Record, Session};
pub use writer::{Events, EventsError, Options};
