//! The integration tests, one binary. A sentence a module:

/// The command line: exit codes, messages, and the life of a mount's process from outside.
mod cli;
