//! What the integration tests share.

pub(crate) mod canned;
pub(crate) mod servers;
