//! What can change while mounted, and what is different between two configurations.
//!
//! Whatever is not on the list cannot: the kernel was told of it, or files on the disk depend on it.

use std::fmt;

use super::options::OPTIONS;
use super::shown::{Value, shown};
use super::{Config, ConfigError};

/// Options that can change while mounted, besides those that concern one remote, which can too.
const CHANGEABLE: &[&str] = &[
    "remote",
    "config",
    "ro",
    "push",
    "size",
    "min_free",
    "negative_ttl",
    "drain_timeout",
    "pending_max",
    "pending_size",
    "fetch_threads",
    "upload_threads",
    "touch",
    "reshare",
    "log_level",
    "log_file",
    "nosuid",
    "nodev",
    "noexec",
    "noatime",
];

/// One option that is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: &'static str,
    /// What it was.
    pub from: Value,
    /// What it is to be.
    pub to: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (was {})", self.name, self.to, self.from)
    }
}

/// Whether an option can change while mounted.
pub fn can_change(name: &str) -> bool {
    let of_one_remote = || {
        OPTIONS
            .iter()
            .any(|o| o.name == name && o.is_of_one_remote())
    };
    CHANGEABLE.contains(&name) || of_one_remote()
}

/// What `new` has otherwise than `old`.
pub fn changes(old: &Config, new: &Config) -> Result<Vec<Change>, ConfigError> {
    let pairs = shown(old).into_iter().zip(shown(new));
    let changed: Vec<_> = pairs
        .filter(|(old, new)| old.value != new.value)
        .map(|(old, new)| Change {
            name: old.name,
            from: old.value,
            to: new.value,
        })
        .collect();
    let fixed: Vec<_> = changed.iter().filter(|c| !can_change(c.name)).collect();
    if fixed.is_empty() {
        return Ok(changed);
    }
    let each: Vec<_> = fixed
        .iter()
        .map(|change| format!("`{}` from {} to {}", change.name, change.from, change.to))
        .collect();
    Err(ConfigError::Other(format!(
        "cannot change {} while mounted: umount and mount anew; nothing was changed",
        each.join(", ")
    )))
}

/// Whether remotes have to be opened anew to get from `old` to `new`.
pub fn concerns_remotes(old: &Config, new: &Config) -> bool {
    let typed = |config: &Config| config.remote.as_given().to_owned();
    let pairs = shown(old).into_iter().zip(shown(new));
    let mut options = pairs.filter(|(old, _)| {
        let spec = OPTIONS.iter().find(|spec| spec.name == old.name);
        spec.is_some_and(super::options::OptionSpec::is_of_one_remote)
    });
    typed(old) != typed(new) || options.any(|(old, new)| old.value != new.value)
}
