//! The integration tests, one binary. A sentence a module:
