//! Every SCons retrieves what every other one pushed.

use std::fs;
use std::thread;

use crate::support::scons::Project;
use crate::support::shared::Shared;
use crate::support::tree::{self, Tree};
use crate::support::venv::VERSIONS;
use crate::support::workspace;

/// Each version fills a remote of its own; then each other version, on a machine that has seen nothing,
/// retrieves all of it. `shared` makes a remote from a name.
pub(crate) fn every_version_retrieves_what_every_other_pushed(
    shared: impl Fn(&str) -> Shared + Sync,
) {
    let reference = reference();
    // Two at a time: a SCons run is mostly one busy thread, and so is the daemon.
    let (left, right) = VERSIONS.split_at(VERSIONS.len() / 2);
    thread::scope(|scope| {
        for pushers in [left, right] {
            let (shared, reference) = (&shared, &reference);
            scope.spawn(move || {
                pushers
                    .iter()
                    .for_each(|pusher| push_and_retrieve(pusher, &shared(pusher), reference));
            });
        }
    });
}

fn push_and_retrieve(pusher: &str, shared: &Shared, reference: &Tree) {
    let workspace = workspace();
    let first = shared.machine();
    let built = Project::checkout(workspace.path().join("first"));
    let build = built.build(pusher, first.path(), &["-j8"]).succeeded();
    assert!(
        build.commands.len() > 15,
        "{pusher} had nothing to retrieve\n{}",
        build.output
    );
    first.flush();

    for retriever in VERSIONS.iter().filter(|version| **version != pusher) {
        let second = shared.machine();
        let checkout = workspace.path().join(format!("retrieved-by-{retriever}"));
        let project = Project::checkout(checkout.clone());
        project
            .build(retriever, second.path(), &["-j8"])
            .retrieved_all();
        let what = format!("pushed by {pusher}, retrieved by {retriever}");
        tree::assert_same(reference, &project.products(), &what);
        fs::remove_dir_all(checkout).unwrap();
    }
}

/// What a second checkout looks like that was filled from a plain directory. It differs from the first one:
/// SCons makes what it retrieves writable.
fn reference() -> Tree {
    let workspace = workspace();
    let cache = Shared::plain(&workspace.path().join("cache")).machine();
    Project::checkout(workspace.path().join("built"))
        .build("4.8.1", cache.path(), &[])
        .succeeded();
    let project = Project::checkout(workspace.path().join("retrieved"));
    project.build("4.8.1", cache.path(), &[]).retrieved_all();
    project.products()
}

#[test]
fn every_version_retrieves_what_every_other_pushed_to_a_plain_directory() {
    let workspace = workspace();
    every_version_retrieves_what_every_other_pushed(|name| {
        Shared::plain(&workspace.path().join(name))
    });
}

#[test]
fn every_version_retrieves_what_every_other_pushed_to_a_file_remote() {
    let workspace = workspace();
    every_version_retrieves_what_every_other_pushed(|name| {
        Shared::files(&workspace.path().join(name))
    });
}
