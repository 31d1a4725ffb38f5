//! The SCons versions that `scripts/setup scons` installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{installed, test_tools};

/// One version for each shape that SCons' CacheDir code has had.
pub(crate) const VERSIONS: [&str; 6] = ["3.1.2", "4.0.1", "4.5.2", "4.8.1", "4.10.1", "4.11.1"];

/// The version for tests that are not about versions.
pub(crate) const LATEST: &str = "4.11.1";

/// An installed SCons.
pub(crate) struct Venv {
    directory: PathBuf,
}

impl Venv {
    pub(crate) fn of(version: &str) -> Self {
        let directory = test_tools().join(format!("scons-{version}"));
        installed(directory.join("complete"), &format!("scons-{version}"));
        Self { directory }
    }

    /// `scons`, without arguments. The script is given to the interpreter because old ones begin with `#!/usr/bin/env python`.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.directory.join("bin/python3"));
        command.arg(self.directory.join("bin/scons"));
        command
    }

    /// `scons` for a user who may not enter our home: a copy below `directory`, run by the machine's own Python.
    pub(crate) fn command_for_everybody(&self, directory: &Path) -> Command {
        let library = directory.join("scons-library");
        if !library.exists() {
            let status = Command::new("sh")
                .args(["-c", r#"mkdir "$2" && cp -r "$1"/lib/python3*/site-packages/SCons "$2" && chmod -R a+rX "$2""#])
                .args(["sh".as_ref(), self.directory.as_os_str(), library.as_os_str()])
                .status();
            assert!(
                status.expect("sh runs").success(),
                "SCons can be copied to {}",
                library.display()
            );
        }
        let mut command = Command::new(installed("/usr/bin/python3".into(), "scons"));
        command
            .env("PYTHONPATH", library)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-c", "from SCons.Script import main; main()"]);
        command
    }
}
