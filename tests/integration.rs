//! The integration tests, one binary. A sentence a module:
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

/// What the tests share: mounts that clean up after themselves, real SCons, an oracle of pushes.
mod support;

/// The command line: exit codes, messages, and the life of a mount's process from outside.
mod cli;

/// The mounted file system, one kernel-visible behaviour a file; real file system test suites.
mod mounted;

/// Real SCons builds: every version, two machines, options, users, a real project.
mod scons;
