//! The integration tests, one binary. A sentence a module:
// All of it is test code, helpers too: a panic is how it fails.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

/// What the tests share: servers, mounts that clean up after themselves, real SCons, an oracle of pushes.
mod support;

/// The event log of real mounts, `cachedirfs why` and `cachedirfs diff`.
mod events;

/// The command line: exit codes, messages, and the life of a mount's process from outside.
mod cli;

/// Random operations on the file system, compared with a model after each.
mod fs_model;

/// The file system without a mount: one test a behaviour.
mod fs_ops;

/// The backing disk: bounds, objects on their way in, the index.
mod store;

/// Store and journal, killed and cut from power at every step.
mod store_crash;

/// The arrows and rules of the source tree.
mod tidy;

/// Uploads in outages, within bounds, at the end; divergences; `cachedirfs rm`.
mod upload_outage;

/// Every remote and every decorator keeps the contract of `Remote`.
mod remote_contract;

/// HTTP servers that lie, stall and break off.
mod http_faults;

/// Servers of the Remote Execution API that lie, compress, cut and inline.
mod grpc_faults;

/// Whatever a network, a server or a file server does: never wrong bytes, never a failed call, nothing lost.
mod faults;

/// What interrupted pushes leave behind is collected, and nothing else.
mod leftovers;

/// Whatever reads bytes that we did not write.
mod parsers;

/// README, man pages, `--help` and the program say the same.
mod docs;

/// The mounted file system, one kernel-visible behaviour a file; real file system test suites.
mod mounted;

/// Packages, installed into a fresh system and used from there.
mod packages;

/// Checking a backing directory or a remote, and setting aside what is wrong.
mod verify;

/// Moving in: a CacheDir or a remote to another remote; listing, pruning.
mod moving;

/// `metrics=ADDR`: Prometheus' own checker, a real browser, and whoever may come along; `status --watch` and `--ci`.
mod metrics;

/// Real SCons builds: every version, two machines, options, users, a real project.
mod scons;

/// Several remotes behind one mount: tiers, shards, promotion, reshare, touch.
mod several;

/// Everything at once, against an oracle of what was acknowledged.
mod soak;

/// Figures for `scripts/bench`; nothing is judged.
mod bench;
