//! What SCons' own tests and its users expect of a CacheDir's root.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::scons::machines::shared_cache;
use crate::support::oracle::{Push, Shape};
use crate::support::scons::{NEVER_CACHED, Project};
use crate::support::shared::Shared;
use crate::support::venv::{LATEST, VERSIONS};
use crate::support::{is_root, workspace};

shared_cache! {
    after_the_first_build_the_root_lists_config_tag_and_used_prefixes,
    two_levels_down_there_are_only_objects,
    a_stale_config_lock_is_on_a_plain_directory_a_failure_and_on_a_mount_harmless,
    emptying_the_cache_while_a_build_runs_breaks_neither,
    an_emptied_cache_is_filled_again,
    the_utime_of_a_hit_is_visible,
    read_only_entries_are_served,
    a_second_user_pushes_into_prefixes_of_the_first,
    two_users_builds_share_what_they_push,
}

#[test]
fn a_fresh_root_lists_exactly_the_tag_and_config() {
    let workspace = workspace();
    let machine = Shared::files(&workspace.path().join("remote")).machine();
    assert_eq!(
        names(machine.path()),
        BTreeSet::from(["CACHEDIR.TAG".into(), "config".into()])
    );
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(machine.path().join("config")).unwrap()).unwrap();
    assert_eq!(serde_json::json!({"prefix_len": 2}), config);
    let tag = fs::read_to_string(machine.path().join("CACHEDIR.TAG")).unwrap();
    assert!(
        tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55"),
        "{tag}"
    );
}

#[test]
fn no_version_complains_about_a_fresh_root_or_changes_what_it_lists() {
    let workspace = workspace();
    for version in VERSIONS {
        let machine = Shared::files(&workspace.path().join(version)).machine();
        let before = names(machine.path());
        let project = Project::checkout(workspace.path().join(format!("checkout-{version}")));
        let build = project.build(version, machine.path(), &["-n"]).succeeded();
        assert!(
            !build.output.contains("arning"),
            "{version}: {}",
            build.output
        );
        assert_eq!(before, names(machine.path()), "after {version}");
    }
}

pub(crate) fn after_the_first_build_the_root_lists_config_tag_and_used_prefixes(shared: &Shared) {
    let workspace = workspace();
    let machine = shared.machine();
    Project::checkout(workspace.path().join("a"))
        .build(LATEST, machine.path(), &["-j8"])
        .succeeded();
    let mut names = names(machine.path());
    assert!(
        names.remove(&OsString::from("config")) && names.remove(&OsString::from("CACHEDIR.TAG")),
        "{names:?}"
    );
    for name in names {
        let name = name.to_str().expect("a prefix is ASCII");
        assert!(
            name.len() == 2
                && name
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)),
            "{name}"
        );
        assert_ne!(
            0,
            fs::read_dir(machine.path().join(name)).unwrap().count(),
            "{name} is listed and empty"
        );
    }
}

pub(crate) fn two_levels_down_there_are_only_objects(shared: &Shared) {
    let workspace = workspace();
    let machine = shared.machine();
    let mut expected = None;
    for version in VERSIONS {
        let project = Project::checkout(workspace.path().join(version));
        project.build(version, machine.path(), &["-j8"]).succeeded();
        let objects = glob_two_levels(machine.path());
        assert!(
            objects
                .iter()
                .all(|name| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())),
            "after {version}: {objects:?}"
        );
        assert_eq!(
            *expected.get_or_insert_with(|| objects.clone()),
            objects,
            "after {version}"
        );
    }
}

pub(crate) fn a_stale_config_lock_is_on_a_plain_directory_a_failure_and_on_a_mount_harmless(
    shared: &Shared,
) {
    let workspace = workspace();
    let machine = shared.machine();
    Project::checkout(workspace.path().join("before"))
        .build("4.8.1", machine.path(), &[])
        .succeeded();
    // Its creator is gone when the build starts.
    let status = Command::new("sh")
        .args(["-c", ": >config.lock"])
        .current_dir(machine.path())
        .status();
    assert!(status.unwrap().success());
    let build =
        Project::checkout(workspace.path().join("after")).build("4.8.1", machine.path(), &[]);
    assert_eq!(
        machine.is_mount(),
        build.status.success(),
        "{}",
        build.output
    );
}

pub(crate) fn emptying_the_cache_while_a_build_runs_breaks_neither(shared: &Shared) {
    let workspace = workspace();
    let filler = shared.machine();
    Project::checkout(workspace.path().join("filler"))
        .build(LATEST, filler.path(), &["-j8"])
        .succeeded();
    filler.flush();
    // Prefixes that only the remote knows must not keep a directory from being removed.
    let machine = shared.machine();
    let building = AtomicBool::new(true);
    thread::scope(|scope| {
        let emptier = scope.spawn(|| {
            let mut rounds = 0;
            while building.load(Ordering::Relaxed) {
                empty(machine.path());
                rounds += 1;
            }
            rounds
        });
        for round in 0..3 {
            let project = Project::checkout(workspace.path().join(format!("round-{round}")));
            let build = project.build(LATEST, machine.path(), &["-j8", "more=30"]);
            if !build.status.success() {
                building.store(false, Ordering::Relaxed);
            }
            build.succeeded();
        }
        building.store(false, Ordering::Relaxed);
        assert!(emptier.join().unwrap() > 0);
    });
}

pub(crate) fn an_emptied_cache_is_filled_again(shared: &Shared) {
    let workspace = workspace();
    let machine = shared.machine();
    Project::checkout(workspace.path().join("first"))
        .build(LATEST, machine.path(), &["-j8"])
        .succeeded();
    for entry in fs::read_dir(machine.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if entry.is_dir() {
            fs::remove_dir_all(&entry)
                .unwrap_or_else(|e| panic!("rmtree {}: {e}", entry.display()));
        }
    }
    assert!(glob_two_levels(machine.path()).is_empty());
    Project::checkout(workspace.path().join("second"))
        .build(LATEST, machine.path(), &["-j8"])
        .succeeded();
    Project::checkout(workspace.path().join("third"))
        .build(LATEST, machine.path(), &["-j8"])
        .retrieved_all();
}

pub(crate) fn the_utime_of_a_hit_is_visible(shared: &Shared) {
    let workspace = workspace();
    let machine = shared.machine();
    Project::checkout(workspace.path().join("first"))
        .build(LATEST, machine.path(), &["-j8"])
        .succeeded();
    let old = SystemTime::now() - Duration::from_secs(3600);
    // SCons calls utime for files only.
    let entries: Vec<_> = entries(machine.path())
        .into_iter()
        .filter(|path| !path.is_symlink())
        .collect();
    for entry in &entries {
        set_mtime(entry, old);
        assert_eq!(
            old,
            fs::metadata(entry).unwrap().modified().unwrap(),
            "{}",
            entry.display()
        );
    }
    let before = SystemTime::now() - Duration::from_secs(2);
    Project::checkout(workspace.path().join("second"))
        .build(LATEST, machine.path(), &["-j8"])
        .retrieved_all();
    let untouched: Vec<_> = entries
        .iter()
        .filter(|path| fs::metadata(path).unwrap().modified().unwrap() < before)
        .collect();
    assert!(
        untouched.is_empty(),
        "SCons used them and called utime: {untouched:?}"
    );
}

pub(crate) fn read_only_entries_are_served(shared: &Shared) {
    let machine = shared.machine();
    for (number, mode) in [(2, 0o444), (3, 0o555)] {
        let push = Push(number);
        assert_eq!(mode, push.mode());
        push.perform(machine.path(), Shape::Uuid).unwrap();
        assert_eq!(
            mode,
            fs::metadata(machine.path().join(push.entry()))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        );
        assert_eq!(None, push.fault(machine.path()));
    }
    machine.flush();
    let second = shared.machine();
    for number in [2, 3] {
        assert_eq!(None, Push(number).fault(second.path()));
        assert_eq!(
            Push(number).mode(),
            fs::metadata(second.path().join(Push(number).entry()))
                .unwrap()
                .mode()
                & 0o777
        );
    }
}

const USERS: [u32; 2] = [64_001, 64_002];

pub(crate) fn a_second_user_pushes_into_prefixes_of_the_first(shared: &Shared) {
    assert!(is_root(), "acting as two other users needs root");
    let machine = shared.machine();
    if !machine.is_mount() {
        // What an administrator does to share a plain CacheDir; SCons' umask defeats it for prefixes (SCons 2684).
        fs::set_permissions(machine.path(), Permissions::from_mode(0o1777)).unwrap();
        fs::create_dir(machine.path().join("0A")).unwrap();
        fs::set_permissions(machine.path().join("0A"), Permissions::from_mode(0o1777)).unwrap();
    }
    for (user, signature) in USERS
        .into_iter()
        .zip(["0a11111111111111", "0a22222222222222"])
    {
        let script = format!(
            "umask 022; mkdir -p 0A && echo {user} >0A/{signature}{signature}.tmp1 && \
             mv 0A/{signature}{signature}.tmp1 0A/{signature}{signature}"
        );
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(machine.path())
            .uid(user)
            .gid(user)
            .output()
            .unwrap();
        assert!(output.status.success(), "user {user}: {output:?}");
    }
    // And each reads what the other wrote.
    for user in USERS {
        let output = Command::new("sh")
            .args(["-c", "cat 0A/*"])
            .current_dir(machine.path())
            .uid(user)
            .gid(user)
            .output();
        assert_eq!(
            "64001\n64002\n",
            String::from_utf8_lossy(&output.unwrap().stdout)
        );
    }
}

pub(crate) fn two_users_builds_share_what_they_push(shared: &Shared) {
    assert!(is_root(), "acting as two other users needs root");
    let workspace = workspace();
    let machine = shared.machine();
    if !machine.is_mount() {
        fs::set_permissions(machine.path(), Permissions::from_mode(0o1777)).unwrap();
    }
    let [first, second] = USERS;
    let one = Project::checkout(workspace.path().join("one"));
    one.build_as(first, LATEST, machine.path(), &["-j8", "more=200"])
        .succeeded();
    let two = Project::checkout(workspace.path().join("two"));
    let build = two
        .build_as(second, LATEST, machine.path(), &["-j8", "more=200"])
        .succeeded();
    assert!(
        build.commands.is_subset(&of_the_first_user()),
        "{:?}\n{}",
        build.commands,
        build.output
    );

    // 400 objects over 256 prefixes: many are in a directory that the other user has made.
    let three = Project::checkout(workspace.path().join("three"));
    let build = three
        .build_as(second, LATEST, machine.path(), &["-j8", "more=400"])
        .succeeded();
    if machine.is_mount() {
        assert!(!build.output.contains("Unable to copy"), "{}", build.output);
        let four = Project::checkout(workspace.path().join("four"));
        let build = four
            .build_as(first, LATEST, machine.path(), &["-j8", "more=400"])
            .succeeded();
        assert!(
            build.commands.is_subset(&of_the_first_user()),
            "{:?}\n{}",
            build.commands,
            build.output
        );
    }
}

/// What another user cannot retrieve, also from a plain directory: a file of mode 0600, and a link, because SCons
/// makes writable what the link leads to.
fn of_the_first_user() -> BTreeSet<String> {
    ["mode-0600", "absolute-link", NEVER_CACHED]
        .map(str::to_owned)
        .into()
}

fn names(directory: &Path) -> BTreeSet<OsString> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

/// Python's `glob('cache/??/*')`.
fn glob_two_levels(cache: &Path) -> BTreeSet<String> {
    let in_prefix = entries(cache).into_iter();
    in_prefix
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn entries(cache: &Path) -> Vec<std::path::PathBuf> {
    let prefixes = names(cache).into_iter().filter(|name| name.len() == 2);
    let directories = prefixes.map(|name| cache.join(name));
    directories
        .flat_map(|directory| {
            fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
        })
        .collect()
}

/// `rm -rf cache/*`, as often as it likes: what vanishes or appears meanwhile is somebody else's work.
fn empty(cache: &Path) {
    for name in names(cache).into_iter().filter(|name| name.len() == 2) {
        match fs::remove_dir_all(cache.join(&name)) {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY)) => {
                panic!("rmtree {name:?}: {e}")
            }
            _ => {}
        }
    }
}

fn set_mtime(path: &Path, time: SystemTime) {
    let file = File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    file.set_modified(time)
        .unwrap_or_else(|e| panic!("utime {}: {e}", path.display()));
}
