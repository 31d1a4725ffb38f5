//! cachedirfs: a FUSE filesystem that presents a remote cache as a SCons CacheDir.

pub mod clock;
pub mod name;
pub mod object;
pub mod remote;
pub mod signature;
pub mod stats;
pub mod sys;
