//! Two machines that share one cache.

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use crate::support::mounted::Mounted;
use crate::support::scons::{BIG, NEVER_CACHED, Project};
use crate::support::shared::Shared;
use crate::support::tree::{self, Node};
use crate::support::venv::LATEST;
use crate::support::workspace;

/// Runs a body once with a plain directory, which shows that the body is right, and once with a file remote.
macro_rules! shared_cache {
    ($($name:ident),* $(,)?) => {
        mod plain_directory { $(#[test] fn $name() {
            let workspace = crate::support::workspace();
            super::$name(&crate::support::shared::Shared::plain(&workspace.path().join("cache")));
        })* }
        mod file_remote { $(#[test] fn $name() {
            let workspace = crate::support::workspace();
            super::$name(&crate::support::shared::Shared::files(&workspace.path().join("remote")));
        })* }
    };
}
pub(crate) use shared_cache;

shared_cache! {
    the_second_machine_builds_nothing,
    a_256_mib_product_arrives_whole,
    one_machine_uses_what_the_other_built_for_a_changed_source,
    two_machines_building_at_once_agree,
}

pub(crate) fn the_second_machine_builds_nothing(shared: &Shared) {
    let workspace = workspace();
    let (a, b) = (shared.machine(), shared.machine());
    let built = Project::checkout(workspace.path().join("a"));
    built.build(LATEST, a.path(), &["-j8"]).succeeded();
    a.flush();

    let retrieved = Project::checkout(workspace.path().join("b"));
    retrieved.build(LATEST, b.path(), &["-j8"]).retrieved_all();
    tree::assert_same(
        &writable(built.products()),
        &retrieved.products(),
        "retrieved on the second machine",
    );
}

pub(crate) fn a_256_mib_product_arrives_whole(shared: &Shared) {
    let workspace = workspace();
    let (a, b) = (shared.machine(), shared.machine());
    let built = Project::checkout(workspace.path().join("a"));
    built.build(LATEST, a.path(), &["big=1", BIG]).succeeded();
    a.flush();

    let retrieved = Project::checkout(workspace.path().join("b"));
    let build = retrieved
        .build(LATEST, b.path(), &["big=1", BIG])
        .succeeded();
    assert!(
        build.commands.is_empty(),
        "built again: {:?}\n{}",
        build.commands,
        build.output
    );
    let big = &retrieved.products()[BIG.as_ref() as &std::path::Path];
    assert!(
        matches!(
            big,
            Node::File {
                length: 268_435_456,
                ..
            }
        ),
        "{big:?}"
    );
    assert_eq!(&built.products()[BIG.as_ref() as &std::path::Path], big);
}

pub(crate) fn one_machine_uses_what_the_other_built_for_a_changed_source(shared: &Shared) {
    let workspace = workspace();
    let (a, b) = (shared.machine(), shared.machine());
    let (on_a, on_b) = (
        Project::checkout(workspace.path().join("a")),
        Project::checkout(workspace.path().join("b")),
    );
    on_a.build(LATEST, a.path(), &["-j8"]).succeeded();
    a.flush();
    on_b.build(LATEST, b.path(), &["-j8"]).retrieved_all();

    fs::write(workspace.path().join("b/words.in"), "quince\n").unwrap();
    let changed = on_b.build(LATEST, b.path(), &["-j8"]).succeeded();
    let generated = ["gen/all", "gen/code.c", "gen/table"].map(str::to_owned);
    assert_eq!(BTreeSet::from(generated), changed.commands);
    b.flush();

    fs::write(workspace.path().join("a/words.in"), "quince\n").unwrap();
    let followed = on_a.build(LATEST, a.path(), &["-j8"]).succeeded();
    assert!(
        followed.commands.is_empty(),
        "A built what B had pushed: {:?}",
        followed.commands
    );
    assert_eq!(
        "int quince;\nquince\n0555\n",
        fs::read_to_string(workspace.path().join("a/gen/all")).unwrap()
    );
}

pub(crate) fn two_machines_building_at_once_agree(shared: &Shared) {
    let workspace = workspace();
    let (a, b) = (shared.machine(), shared.machine());
    let (on_a, on_b) = (
        Project::checkout(workspace.path().join("a")),
        Project::checkout(workspace.path().join("b")),
    );
    let arguments = ["-j8", "more=40"];
    thread::scope(|scope| {
        scope.spawn(|| on_a.build(LATEST, a.path(), &arguments).succeeded());
        scope.spawn(|| on_b.build(LATEST, b.path(), &arguments).succeeded());
    });
    tree::assert_same(
        &writable(on_a.products()),
        &writable(on_b.products()),
        "built at once",
    );
    a.flush();
    b.flush();

    let c = shared.machine();
    let on_c = Project::checkout(workspace.path().join("c"));
    let build = on_c.build(LATEST, c.path(), &arguments).retrieved_all();
    assert_eq!(BTreeSet::from([NEVER_CACHED.to_owned()]), build.commands);
    tree::assert_same(
        &writable(on_a.products()),
        &on_c.products(),
        "retrieved by a third machine",
    );
}

#[test]
fn the_status_tells_what_each_machine_did() {
    let workspace = workspace();
    let remote = format!("file://{}/remote", workspace.path().display());
    let a = Mounted::new(&remote);
    Project::checkout(workspace.path().join("a"))
        .build(LATEST, a.path(), &["-j8"])
        .succeeded();
    a.flush();
    let pushed = a.counter("pushed");
    assert!(pushed > 20, "{:#}", a.status());
    assert_eq!(
        (pushed, 0),
        (a.counter("uploaded"), a.counter("fetched")),
        "{:#}",
        a.status()
    );

    let b = Mounted::new(&remote);
    Project::checkout(workspace.path().join("b"))
        .build(LATEST, b.path(), &["-j8"])
        .retrieved_all();
    // The relative link is asked for and fetched, found dangling, built, and pushed again.
    assert!(
        (pushed - 1..=pushed).contains(&b.counter("fetched")),
        "{:#}",
        b.status()
    );
    assert!(b.counter("pushed") <= 1, "{:#}", b.status());
    assert!(
        b.counter("hits") >= b.counter("fetched"),
        "{:#}",
        b.status()
    );
}

/// SCons makes what it retrieves writable for the owner, also from a plain directory.
pub(crate) fn writable(mut tree: tree::Tree) -> tree::Tree {
    for (path, node) in &mut tree {
        if let Node::File { mode, .. } = node
            && path.to_string_lossy() != "words.in"
        {
            *mode |= 0o200;
        }
    }
    tree
}
