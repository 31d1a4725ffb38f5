//! The integration tests, one binary. A sentence a module:
// All of it is test code, helpers too: a panic is how it fails.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

/// What the tests share: servers, mounts that clean up after themselves, real SCons, an oracle of pushes.
mod support;

/// The command line: exit codes, messages, and the life of a mount's process from outside.
mod cli;

/// Random operations on the file system, compared with a model after each.
mod fs_model;

/// The file system without a mount: one test a behaviour.
mod fs_ops;

/// The backing disk: bounds, objects on their way in, the index.
mod store;

/// The arrows and rules of the source tree.
mod tidy;

/// Uploads in outages, within bounds, at the end; divergences; `cachedirfs rm`.
mod upload_outage;

/// Every remote and every decorator keeps the contract of `Remote`.
mod remote_contract;

/// HTTP servers that lie, stall and break off.
mod http_faults;

/// README, man pages, `--help` and the program say the same.
mod docs;

/// The mounted file system, one kernel-visible behaviour a file; real file system test suites.
mod mounted;

/// Real SCons builds: every version, two machines, options, users, a real project.
mod scons;
