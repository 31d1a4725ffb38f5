//! What a monitoring system and a browser are shown of a mount: `metrics=ADDR`.
//!
//! | path | what |
//! | --- | --- |
//! | `/metrics` | the text format of Prometheus, version 0.0.4 ([`prometheus`]) |
//! | `/` | a page for people, `/?day` for a whole day ([`page`]) |
//! | `/status.json` | the status, as `cachedirfs status --json` has it |
//! | `/history.json` | the samples of the last day ([`history`]) |
//!
//! All of it is made of a [`crate::control::Status`] and the histograms of [`crate::stats::Times`]: this module never asks a
//! remote, opens a file or touches the mountpoint. It knows no secrets, and whoever can reach the address may look.

pub mod history;
pub mod page;
pub mod prometheus;
pub mod server;
