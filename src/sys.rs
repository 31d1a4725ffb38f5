//! Every `unsafe` block of the program: thin, safe wrappers over libc calls that the standard
//! library does not offer. No policy here.
#![allow(unsafe_code)]
