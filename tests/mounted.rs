//! The mounted file system as any program sees it.

mod bad;
mod certificate;
mod disk;
mod fsx;
mod kill9;
mod loopback;
mod owners;
mod pjdfstest;
mod powercut;
mod stop;
mod users;
