//! What is wrong with what was typed, or stands in a file.

use std::path::PathBuf;

use super::Origin;

/// Why there is no [`super::Config`]. Each is a mistake in what was typed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No such option.
    #[error("unknown option `{name}`{}", suggestion.map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    Unknown {
        /// What was typed.
        name: String,
        /// What may have been meant.
        suggestion: Option<&'static str>,
    },
    /// An option's value is wrong or missing.
    #[error("option `{name}`: {why}")]
    Value {
        /// The option.
        name: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The remote cannot be what was meant.
    #[error("remote {remote}: {why}")]
    Remote {
        /// Without credentials.
        remote: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// No default for the backing directory can be made.
    #[error(
        "nowhere to keep the cache: neither HOME nor XDG_CACHE_HOME is set; name a directory with -o backing=DIR"
    )]
    NoBacking,
    /// It stands in the configuration file.
    #[error("{}:{line}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        error: Box<ConfigError>,
    },
    /// Something was not said that has no default.
    #[error("{0} is missing; name one, or a file that does with -o config=FILE")]
    Missing(&'static str),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl ConfigError {
    /// The same, said to have happened there, if that is a line of a file.
    pub(super) fn at(self, origin: &Origin) -> Self {
        match (self, origin) {
            (inside @ Self::InFile { .. }, _) => inside,
            (error, Origin::File(path, line)) => Self::InFile {
                path: path.clone(),
                line: *line,
                error: Box::new(error),
            },
            (error, _) => error,
        }
    }
}
