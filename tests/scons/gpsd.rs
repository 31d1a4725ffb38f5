//! A real project: gpsd 3.22, about 170 cached targets, from Debian's source package.
//!
//! Its second build retrieves all but a few targets, whose sources contain the name of the checkout's directory.
//! How many that are depends on which libraries the machine has, so a plain directory says what to expect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::every::{self, Kind};
use crate::support::mounted::Mounted;
use crate::support::shared::{Machine, Shared};
use crate::support::venv::Venv;
use crate::support::{installed, test_tools, workspace};

/// Sets the CacheDir and notes what is built. `execute=0` is how SCons asks only for the command's text.
const SITE_INIT: &str = "
import os
import SCons.Node.FS
from SCons.Script import CacheDir

CacheDir(os.environ['CACHE'])
original = SCons.Node.FS.File.build

def build(self, execute=1, **arguments):
    if execute and not self.get_path().startswith('.sconf_temp'):
        with open(os.environ['COMMANDS'], 'a') as log:
            log.write(self.get_path() + '\\n')
    return original(self, execute=execute, **arguments)

SCons.Node.FS.File.build = build
";

#[test]
fn over_every_kind_of_remote_the_second_machine_retrieves_of_gpsd_what_a_warm_plain_directory_gives()
 {
    let workspace = workspace();
    let plain = Shared::plain(&workspace.path().join("plain")).machine();
    let all = build(&workspace.path().join("plain-cold"), &plain);
    assert!(
        all.len() > 150,
        "gpsd has fewer targets than it should: {}",
        all.len()
    );
    let unavoidable = build(&workspace.path().join("plain-warm"), &plain);
    assert!(
        unavoidable.len() < 20,
        "a plain directory gives no hits: {unavoidable:?}"
    );

    // One machine that pushes to a remote of every kind, and one that retrieves for each of them.
    let kinds = every::kinds();
    let tiers: Vec<_> = kinds.iter().map(Kind::tier).collect();
    let mount = |wrapper, remote: &str| {
        let workspace = crate::support::workspace();
        Machine::Mount(Mounted::wrapped(wrapper, workspace, remote, ""))
    };
    let a = mount(every::wrapper(&kinds), &tiers.join(" "));
    assert_eq!(all, build(&workspace.path().join("mount-cold"), &a));
    a.flush();
    drop(a);
    for (n, kind) in kinds.iter().enumerate() {
        let b = mount(kind.wrapper(), &kind.tier());
        let built = build(&workspace.path().join(format!("mount-warm-{n}")), &b);
        assert_eq!(unavoidable, built, "{}", kind.name);
        println!(
            "gpsd over {}: {} targets, {} of them retrieved by the second machine",
            kind.name,
            all.len(),
            all.len() - built.len()
        );
    }
}

/// Builds a fresh copy of gpsd and says which targets were really built.
fn build(checkout: &Path, machine: &Machine) -> BTreeSet<String> {
    let source = installed(test_tools().join("gpsd/complete"), "gpsd").with_file_name("source");
    let copied = Command::new("cp")
        .arg("-r")
        .args([&source, checkout])
        .status();
    assert!(
        copied.unwrap().success(),
        "{} can be copied",
        source.display()
    );
    fs::create_dir(checkout.join("site_scons")).unwrap();
    fs::write(checkout.join("site_scons/site_init.py"), SITE_INIT).unwrap();

    let log = checkout.with_extension("built");
    let output = Venv::of("4.8.1")
        .command()
        .args(["-j4", "target_python=python3"])
        .current_dir(checkout)
        .env("CACHE", machine.path())
        .env("COMMANDS", &log)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}
