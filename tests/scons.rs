//! Real SCons builds. Each body takes a `Shared` cache, so that a plain directory is the baseline of all of them.

mod backing;
mod cloud;
mod dead;
mod gpsd;
pub(crate) mod machines;
mod options;
mod servers;
mod upstream;
mod versions;
