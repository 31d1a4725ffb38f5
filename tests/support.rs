//! What the tests share. Nothing in here asserts a promise; it builds the stage on which tests do.

pub(crate) mod canned;
pub(crate) mod mounted;
pub(crate) mod oracle;
pub(crate) mod scons;
