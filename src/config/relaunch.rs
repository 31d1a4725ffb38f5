//! How this program was started, for another version that is to go on where it stands.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// How a program was started.
#[derive(Clone)]
pub struct Relaunch {
    /// All arguments, its name first.
    pub args: Vec<OsString>,
    /// Where it was.
    pub directory: PathBuf,
    /// All variables. There can be secrets among them.
    pub environment: Vec<(OsString, OsString)>,
}

impl Relaunch {
    /// The variable in which one program tells the next under which descriptor it finds what it is left.
    pub const VARIABLE: &'static str = "CACHEDIRFS_HANDOVER";
}

impl fmt::Debug for Relaunch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (args, directory) = (&self.args, &self.directory);
        write!(f, "Relaunch {{ {args:?} in {} }}", directory.display())
    }
}
