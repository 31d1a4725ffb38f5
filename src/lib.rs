//! cachedirfs: a FUSE filesystem that presents a remote cache as a SCons CacheDir.

pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod logging;
pub mod mount;
pub mod name;
pub mod object;
pub mod remote;
pub mod signature;
pub mod stats;
pub mod stop;
pub mod store;
pub mod sys;
pub mod upload;
