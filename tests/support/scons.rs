//! Real SCons on a generated project, counting the commands that ran.
//!
//! Every command appends its target to a log outside of the tree. "Retrieved" lines are never counted:
//! SCons prints them also for what it then builds.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::support::tree::{self, Node, Tree};
use crate::support::venv::Venv;

/// A link whose target does not resolve from inside the cache: SCons never finds it again, also on a plain directory.
pub(crate) const NEVER_CACHED: &str = "relative-link";

/// The 256 MiB product that `big=1` adds.
pub(crate) const BIG: &str = "big.bin";

const SCONSTRUCT: &str = r#"
import os
env = Environment(ENV=dict(os.environ))
CacheDir(os.environ['CACHE'])

def product(targets, command, sources=()):
    return env.Command(targets, list(sources), 'echo $TARGET >>"$$COMMANDS"; ' + command)

for mode in ('0444', '0555', '0755', '0644', '0600'):
    product('mode-' + mode, 'echo %s >$TARGET && chmod %s $TARGET' % (mode, mode))
product('empty', ': >$TARGET')
product('relative-link', 'ln -sf mode-0644 $TARGET', ['mode-0644'])
product('absolute-link', 'ln -sf "$$LINKED" $TARGET')
product('deep/er/and/deeper/file', 'echo deep >$TARGET')
product('größe-ファイル.txt', 'echo name >$TARGET')
product(['pair.left', 'pair.right'], 'echo left >${TARGETS[0]}; echo right >${TARGETS[1]}')

# Generated from generated: SCons needs the bytes of what it retrieved.
product('gen/table', "sort $SOURCE >$TARGET", ['words.in'])
product('gen/code.c', "sed 's/.*/int &;/' $SOURCE >$TARGET", ['gen/table'])
product('gen/all', 'cat $SOURCES >$TARGET', ['gen/code.c', 'gen/table', 'mode-0555', 'empty'])

for size in (1, 4095, 4096, 4097, 65536, 131072, 1048577):
    product('sized/%d' % size, 'yes %d | head -c %d >$TARGET' % (size, size))

# More of the same, for tests that want a longer build.
for number in range(int(ARGUMENTS.get('more', 0))):
    product('more/%d' % number, 'echo %d >$TARGET' % number)

if ARGUMENTS.get('big'):
    product('big.bin', 'openssl enc -aes-128-ctr -nosalt -K 0 -iv 0 -in /dev/zero 2>/dev/null | head -c 268435456 >$TARGET')
"#;

/// A checkout: an SConstruct and its sources.
pub(crate) struct Project {
    top: PathBuf,
}

/// What one run of SCons did.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    /// The first target of each command that really ran.
    pub(crate) commands: BTreeSet<String>,
}

impl Project {
    /// A fresh checkout in the new directory `top`. Checkouts below one parent are the same to SCons.
    pub(crate) fn checkout(top: PathBuf) -> Self {
        fs::create_dir(&top).unwrap_or_else(|e| panic!("mkdir {}: {e}", top.display()));
        fs::write(top.join("SConstruct"), SCONSTRUCT).unwrap();
        fs::write(top.join("words.in"), "pear\napple\nfig\n").unwrap();
        fs::write(
            top.with_file_name("linked"),
            "what the absolute link leads to\n",
        )
        .unwrap();
        Self { top }
    }

    /// Builds as whoever runs the test.
    pub(crate) fn build(&self, version: &str, cache: &Path, arguments: &[&str]) -> Build {
        self.run(Venv::of(version).command(), cache, arguments)
    }

    /// Builds as another user, who gets the checkout.
    pub(crate) fn build_as(
        &self,
        user: u32,
        version: &str,
        cache: &Path,
        arguments: &[&str],
    ) -> Build {
        for path in [
            &self.top,
            &self.top.join("SConstruct"),
            &self.top.join("words.in"),
        ] {
            std::os::unix::fs::chown(path, Some(user), Some(user))
                .expect("root may give files away");
        }
        let mut command = Venv::of(version)
            .command_for_everybody(self.top.parent().expect("a checkout has a parent"));
        command.uid(user).gid(user);
        self.run(command, cache, arguments)
    }

    /// The products, without what SCons keeps for itself, and comparable between workspaces.
    pub(crate) fn products(&self) -> Tree {
        let mut tree = tree::snapshot(&self.top, |path| {
            path.to_string_lossy().starts_with(".scon")
        });
        let workspace = self.top.parent().expect("a checkout has a parent");
        for node in tree.values_mut() {
            if let Node::Symlink(target) = node
                && let Ok(below) = target.strip_prefix(workspace)
            {
                *target = Path::new("WORKSPACE").join(below);
            }
        }
        tree
    }

    fn run(&self, mut scons: Command, cache: &Path, arguments: &[&str]) -> Build {
        let log = tempfile::Builder::new()
            .permissions(permissions(0o666))
            .tempfile()
            .unwrap();
        // The umask must not take the write bit from other users.
        fs::set_permissions(log.path(), permissions(0o666)).unwrap();
        let output = scons
            .current_dir(&self.top)
            .args(arguments)
            .env("CACHE", cache)
            .env("COMMANDS", log.path())
            .env("LINKED", self.top.with_file_name("linked"))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap_or_else(|e| panic!("scons in {}: {e}", self.top.display()));
        Build {
            status: output.status,
            output: text(&output.stdout) + &text(&output.stderr),
            commands: fs::read_to_string(log.path())
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect(),
        }
    }
}

impl Build {
    /// Fails, showing what SCons said, unless it exited with 0.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(
            self.status.success(),
            "scons: {}\n{}",
            self.status,
            self.output
        );
        self
    }

    /// Fails unless everything that a CacheDir can hold came from it.
    #[track_caller]
    pub(crate) fn retrieved_all(self) -> Self {
        let built = self.succeeded();
        let expected = BTreeSet::from([NEVER_CACHED.to_owned()]);
        assert_eq!(
            expected, built.commands,
            "commands that ran although their products were in the cache\n{}",
            built.output
        );
        built
    }
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

fn permissions(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}
