//! Who said what: for each option that was said, its text and where it stands.
//!
//! Of several that say the same option the most urgent counts: the command line (or fstab), then the environment, then
//! the file. What nobody says has its default, which other programs' variables may have a part in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Where the value of an option comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said it.
    #[default]
    Default,
    /// A variable of the environment.
    Environment(&'static str),
    /// A line of the configuration file.
    File(PathBuf, usize),
    /// The command line, or fstab.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// What was said of one option. The text never shows: it may be a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Said {
    /// Its value as it was written.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)
    }
}

/// What was said, by option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sayings(BTreeMap<&'static str, Said>);

impl Sayings {
    /// What was said of that option.
    pub fn of(&self, name: &str) -> Option<&Said> {
        self.0.get(name)
    }

    /// Where the value of that option comes from.
    pub fn origin(&self, name: &str) -> Origin {
        self.of(name)
            .map(|said| said.origin.clone())
            .unwrap_or_default()
    }

    pub(super) fn note(&mut self, name: &'static str, text: &str, origin: &Origin) {
        let said = Said {
            text: text.to_owned(),
            origin: origin.clone(),
        };
        self.0.insert(name, said);
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}
