//! Where the log goes: standard error in the foreground, syslog in the background, or a file; and how that is changed while
//! somebody writes.
//!
//! Other crates are heard from `warn` on only, unless we are debugging: fuser reports every request. Of fuser only
//! errors are: it warns whenever somebody else unmounts, which is how a mount ends. What finds credentials is never heard:
//! its errors reach us as values, and what it says while debugging is not ours to vouch for.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use env_logger::{Builder, Logger, Target, TimestampPrecision};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::LogOptions;
use crate::sys;

/// What the log is shown to when no file is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Somebody at a terminal, or a supervisor that collects standard error.
    Stderr,
    /// systemd's journal, at standard error: it keeps the time itself and reads levels from a prefix.
    Journal,
    /// The system's log.
    Syslog,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be written.
    #[error("cannot open the log file {}: {cause}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Somebody was faster.
    #[error("{0}")]
    Twice(#[from] log::SetLoggerError),
}

/// Starts logging. From here on a panic is logged too: a daemon's standard error is /dev/null.
pub fn start(options: &LogOptions, audience: Audience) -> Result<(), LogError> {
    let sink = Sink::new(options, audience)?;
    log::set_logger(&Current)?;
    Prepared(sink).take_effect();
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(())
}

/// Opens what these options name, the file anew, for [`Prepared::take_effect`]. `None` if nothing is logged at all.
pub fn prepare(options: &LogOptions) -> Result<Option<Prepared>, LogError> {
    let current = CURRENT.read().unwrap_or_else(PoisonError::into_inner);
    let audience = current.as_ref().map(|sink| sink.audience);
    drop(current);
    let sink = audience.map(|audience| Sink::new(options, audience));
    Ok(sink.transpose()?.map(Prepared))
}

/// A log that nobody writes to yet.
pub struct Prepared(Sink);

impl Prepared {
    /// From now on this is the log.
    pub fn take_effect(self) {
        log::set_max_level(self.0.logger.filter());
        let mut current = CURRENT.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(self.0);
    }
}

/// Where the log goes at the moment.
static CURRENT: RwLock<Option<Sink>> = RwLock::new(None);

struct Sink {
    /// Filters, and writes unless that is syslog's.
    logger: Logger,
    audience: Audience,
    to_syslog: bool,
}

impl Sink {
    fn new(options: &LogOptions, audience: Audience) -> Result<Self, LogError> {
        let mut builder = filtered(options);
        let to_syslog = options.file.is_none() && audience == Audience::Syslog;
        match (&options.file, audience) {
            (Some(path), _) => {
                let open = OpenOptions::new().create(true).append(true).open(path);
                let file = open.map_err(|cause| LogError::Open {
                    path: path.clone(),
                    cause,
                })?;
                builder
                    .target(Target::Pipe(Box::new(file)))
                    .format_timestamp(Some(TimestampPrecision::Millis));
            }
            (None, Audience::Stderr) => {
                builder
                    .format_target(false)
                    .format_timestamp(Some(TimestampPrecision::Seconds));
            }
            (None, Audience::Journal) => {
                builder.format(|out, record| {
                    writeln!(out, "<{}>{}", severity(record.level()), record.args())
                });
            }
            (None, Audience::Syslog) => sys::open_syslog(c"cachedirfs"),
        }
        Ok(Self {
            logger: builder.build(),
            audience,
            to_syslog,
        })
    }

    fn log(&self, record: &Record<'_>) {
        if !self.to_syslog {
            self.logger.log(record);
        } else if self.logger.matches(record) {
            sys::syslog(record.level(), &record.args().to_string());
        }
    }
}

/// What is said on the command line outweighs the environment, and that the defaults.
fn filtered(options: &LogOptions) -> Builder {
    let mut builder = Builder::new();
    let level = options.level.unwrap_or(LevelFilter::Info);
    let others = if level >= LevelFilter::Debug {
        level
    } else {
        level.min(LevelFilter::Warn)
    };
    let fuser = if level >= LevelFilter::Debug {
        level
    } else {
        level.min(LevelFilter::Error)
    };
    builder
        .filter_level(others)
        .filter_module("fuser", fuser)
        .filter_module("reqsign", LevelFilter::Off)
        .filter_module("cachedirfs", level);
    if let (None, Some(filter)) = (options.level, &options.filter) {
        builder = Builder::new();
        builder
            .filter_module("fuser", LevelFilter::Error)
            .parse_filters(filter)
            .filter_module("reqsign", LevelFilter::Off);
    }
    builder
}

/// The number that syslog and the journal give a level.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Hands on to where the log goes at the moment.
struct Current;

impl Log for Current {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let current = CURRENT.read().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .is_some_and(|sink| sink.logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        let current = CURRENT.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = current.as_ref() {
            sink.log(record);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hears(options: &LogOptions, target: &str, level: Level) -> bool {
        let logger = filtered(options).build();
        logger.enabled(&Metadata::builder().target(target).level(level).build())
    }

    #[test]
    fn other_crates_are_heard_from_warn_on_unless_debugging() {
        let usual = LogOptions::default();
        assert!(
            hears(&usual, "cachedirfs::fetch", Level::Info)
                && !hears(&usual, "cachedirfs", Level::Debug)
        );
        assert!(hears(&usual, "rustls", Level::Warn) && !hears(&usual, "rustls", Level::Info));
        assert!(
            hears(&usual, "fuser::session", Level::Error)
                && !hears(&usual, "fuser::session", Level::Warn),
            "it warns of every unmount by others"
        );
        let debug = LogOptions {
            level: Some(LevelFilter::Debug),
            ..usual
        };
        assert!(hears(&debug, "fuser::session", Level::Debug));
        let quiet = LogOptions {
            level: Some(LevelFilter::Off),
            ..LogOptions::default()
        };
        assert!(
            !hears(&quiet, "cachedirfs", Level::Error) && !hears(&quiet, "fuser", Level::Error)
        );
    }

    #[test]
    fn an_option_outweighs_the_environment() {
        let from_env = LogOptions {
            filter: Some("debug".into()),
            ..LogOptions::default()
        };
        assert!(
            hears(&from_env, "cachedirfs", Level::Debug)
                && !hears(&from_env, "fuser", Level::Debug)
        );
        let both = LogOptions {
            level: Some(LevelFilter::Error),
            ..from_env
        };
        assert!(!hears(&both, "cachedirfs", Level::Warn));
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let options = LogOptions {
            file: Some("/nonexistent/log".into()),
            ..LogOptions::default()
        };
        let said = start(&options, Audience::Syslog).unwrap_err().to_string();
        assert!(said.contains("/nonexistent/log"), "{said}");
    }
}
