//! SCons' cache options behave as on a plain directory: each scenario runs on both and must look the same.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::scons::{Build, NEVER_CACHED, Project};
use crate::support::shared::{Machine, Shared};
use crate::support::tree;
use crate::support::workspace;

/// One version for each way of treating `config.lock` and of pushing.
const VERSIONS: [&str; 3] = ["3.1.2", "4.8.1", "4.11.1"];

/// What a user can see of one SCons run.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    step: String,
    success: bool,
    commands: BTreeSet<String>,
    /// Sorted, because with -j8 the order is chance.
    output: Vec<String>,
    entries: BTreeSet<String>,
}

/// Runs the steps, each in a checkout of its own, on a cache filled before, and says what was seen.
fn run(version: &str, machine: &Machine, steps: &[&[&str]]) -> Vec<Seen> {
    let workspace = workspace();
    steps
        .iter()
        .enumerate()
        .map(|(number, arguments)| {
            let top = workspace.path().join(format!("checkout-{number}"));
            let build = Project::checkout(top).build(version, machine.path(), arguments);
            seen(format!("{version} {arguments:?}"), build, machine.path())
        })
        .collect()
}

fn seen(step: String, build: Build, cache: &Path) -> Seen {
    let mut output: Vec<_> = build.output.lines().map(str::to_owned).collect();
    output.sort();
    Seen {
        step,
        success: build.status.success(),
        commands: build.commands,
        output,
        entries: entries(cache),
    }
}

/// Whatever is in the prefix directories, objects or leftovers. The absolute link's target is the same for all checkouts.
fn entries(cache: &Path) -> BTreeSet<String> {
    tree::snapshot(cache, |path| path.starts_with(".cachedirfs"))
        .into_iter()
        .filter(|(path, node)| path.components().count() > 1 && *node != tree::Node::Directory)
        .map(|(path, _)| path.display().to_string())
        .collect()
}

/// The same steps on a plain directory and on a mount, over a cache that the project has filled or not.
fn behaves_as_on_a_plain_directory(filled_first: bool, steps: &[&[&str]]) {
    for version in VERSIONS {
        let workspace = workspace();
        let plain = Shared::plain(&workspace.path().join("plain"));
        let remote = Shared::files(&workspace.path().join("remote"));
        let results = [&plain, &remote].map(|shared| {
            let machine = shared.machine();
            if filled_first {
                let filler = workspace.path().join(if machine.is_mount() {
                    "filler-m"
                } else {
                    "filler-p"
                });
                Project::checkout(filler)
                    .build(version, machine.path(), &["-j8"])
                    .succeeded();
            }
            run(version, &machine, steps)
        });
        let [expected, got] = results;
        for (expected, got) in expected.iter().zip(&got) {
            assert_eq!(expected, got, "left: plain directory, right: mount");
            assert!(expected.success, "{expected:?}");
        }
    }
}

#[test]
fn cache_readonly_retrieves_and_pushes_nothing() {
    behaves_as_on_a_plain_directory(
        true,
        &[
            &["-j8", "--cache-readonly"],
            &["-j8", "--cache-readonly", "more=3"],
        ],
    );
    behaves_as_on_a_plain_directory(
        false,
        &[&["-j8", "--cache-readonly"], &["-j8", "--cache-readonly"]],
    );
}

#[test]
fn cache_force_pushes_what_was_built_without_the_cache() {
    for version in VERSIONS {
        let workspace = workspace();
        let caches = [
            Shared::plain(&workspace.path().join("plain")),
            Shared::files(&workspace.path().join("remote")),
        ];
        let results = caches.map(|shared| {
            let machine = shared.machine();
            let project = Project::checkout(workspace.path().join(if machine.is_mount() {
                "m"
            } else {
                "p"
            }));
            let steps: [&[&str]; 3] = [
                &["-j8", "--cache-disable"],
                &["-j8", "--cache-force"],
                &["-j8", "--cache-force"],
            ];
            steps.map(|arguments| {
                let build = project.build(version, machine.path(), arguments);
                seen(format!("{version} {arguments:?}"), build, machine.path())
            })
        });
        let [expected, got] = results;
        assert_eq!(expected, got, "left: plain directory, right: mount");
        assert!(
            expected[0].entries.is_empty() && !expected[1].entries.is_empty(),
            "{expected:?}"
        );
    }
}

#[test]
fn cache_show_prints_the_commands_that_built_what_is_retrieved() {
    behaves_as_on_a_plain_directory(
        true,
        &[&["-j8", "--cache-show"], &["-j8", "--cache-show", "-s"]],
    );
}

#[test]
fn a_dry_run_retrieves_and_pushes_nothing() {
    behaves_as_on_a_plain_directory(
        true,
        &[&["-n"], &["-n", "--cache-show"], &["-n", "-j8", "more=3"]],
    );
    behaves_as_on_a_plain_directory(false, &[&["-n"]]);
}

#[test]
fn disabling_the_cache_touches_no_entry() {
    behaves_as_on_a_plain_directory(true, &[&["-j8", "--cache-disable"]]);
    behaves_as_on_a_plain_directory(false, &[&["-j8", "--cache-disable"]]);
}

#[test]
fn on_a_read_only_mount_builds_succeed_and_retrieve_all_and_write_nothing_to_the_remote() {
    for version in VERSIONS {
        let workspace = workspace();
        let remote = workspace.path().join("remote");
        let shared = Shared::files(&remote);
        let writer = shared.machine();
        Project::checkout(workspace.path().join("writer"))
            .build(version, writer.path(), &["-j8"])
            .succeeded();
        writer.flush();
        let before = tree::snapshot(&remote, |_| false);

        let reader = shared.machine_with("ro");
        for (number, options) in [
            &["-j8", "more=3"][..],
            &["-j8", "more=3", "--cache-readonly"],
        ]
        .iter()
        .enumerate()
        {
            let project = Project::checkout(workspace.path().join(format!("reader-{number}")));
            let build = project.build(version, reader.path(), options).succeeded();
            // What the first run built is kept for this machine, or not: both are fine, it is not on the remote.
            let may_run =
                BTreeSet::from([NEVER_CACHED, "more/0", "more/1", "more/2"].map(str::to_owned));
            assert!(
                build.commands.is_subset(&may_run),
                "{version} {options:?}: {:?}\n{}",
                build.commands,
                build.output
            );
            if number == 1 {
                assert!(
                    !build.output.contains("arning"),
                    "{version} {options:?}\n{}",
                    build.output
                );
            }
        }
        drop(reader);
        tree::assert_same(
            &before,
            &tree::snapshot(&remote, |_| false),
            "the remote behind a read-only mount",
        );
    }
}
