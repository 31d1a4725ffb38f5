//! The backing directory is a CacheDir: with the daemon stopped SCons works on it, and an existing CacheDir becomes one.

use std::fs;
use std::process::Command;

use crate::support::mounted::Mounted;
use crate::support::scons::Project;
use crate::support::venv::VERSIONS;
use crate::support::workspace;

#[test]
fn scons_retrieves_everything_from_the_backing_directory_of_a_stopped_daemon() {
    let workspace = workspace();
    let mut mounted = Mounted::new(&format!("file://{}/remote", workspace.path().display()));
    Project::checkout(workspace.path().join("built"))
        .build("4.8.1", mounted.path(), &["-j8"])
        .succeeded();
    mounted.unmount();
    for version in VERSIONS {
        let project = Project::checkout(workspace.path().join(version));
        project
            .build(version, &mounted.backing(), &["-j8"])
            .retrieved_all();
    }
}

#[test]
fn an_existing_cachedir_becomes_the_backing_directory_as_it_is() {
    for version in VERSIONS {
        let workspace = workspace();
        let cache = workspace.path().join("cache");
        Project::checkout(workspace.path().join("built"))
            .build(version, &cache, &["-j8"])
            .succeeded();

        let remote = format!("file://{}/remote", workspace.path().display());
        let mut mounted = Mounted::new(&remote);
        mounted.unmount();
        fs::remove_dir_all(mounted.backing()).unwrap();
        let moved = Command::new("mv")
            .args([&cache, &mounted.backing()])
            .status();
        assert!(moved.unwrap().success());
        mounted.remount();
        let project = Project::checkout(workspace.path().join("retrieved"));
        project
            .build(version, mounted.path(), &["-j8"])
            .retrieved_all();
    }
}
