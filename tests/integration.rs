//! The integration tests, one binary. A sentence a module:

// All of it is test code, helpers too: a panic is how it fails.
#![allow(clippy::unwrap_used)]

/// Temporary servers and other things that the tests share.
mod support;

/// The command line: exit codes, messages, and the life of a mount's process from outside.
mod cli;

/// Every remote and every decorator keeps the contract of `Remote`.
mod remote_contract;

/// HTTP servers that lie, stall and break off.
mod http_faults;

/// README, man pages, `--help` and the program say the same.
mod docs;
