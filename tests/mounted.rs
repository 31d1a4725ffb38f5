//! The mounted file system as any program sees it.

mod bad;
mod big;
mod certificate;
mod disk;
mod fsx;
mod kill9;
mod loopback;
mod owners;
mod panics;
mod pjdfstest;
mod powercut;
mod secrets;
mod stale;
mod stop;
mod upgrade;
mod users;
