//! `uid=`, `gid=` and `umask=`, and users who share a mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::mounted::Mounted;
use crate::support::{is_root, workspace};

const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

/// Two entries of one prefix directory.
const SIGNATURES: [&str; 2] = [
    "5d41402abc4b2a76b9719d911017c592",
    "5d00000000000000000000000000000f",
];

fn entry(number: usize) -> PathBuf {
    Path::new("5D").join(SIGNATURES[number])
}

/// A shell script by a user, in the mount.
fn run(user: u32, mounted: &Mounted, script: &str) -> Output {
    assert!(is_root(), "acting as other users needs root");
    let mut shell = Command::new("sh");
    shell
        .args(["-ec", &format!("cd $0\n{script}")])
        .arg(mounted.path())
        .uid(user)
        .gid(user);
    shell.output().unwrap()
}

#[track_caller]
fn does(user: u32, mounted: &Mounted, script: &str) {
    let output = run(user, mounted, script);
    assert!(output.status.success(), "{user}: {script}: {output:?}");
}

/// What is shown of a path: owner, group, permissions.
fn shown(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// As SCons 4.11 does it.
fn push(number: usize, umask: &str) -> String {
    let name = SIGNATURES[number];
    format!(
        "umask {umask}; test -d 5D || mkdir 5D; mkdir -m 700 5D/tmp-of-{number}
         echo content {number} >5D/tmp-of-{number}/{name}; chmod 755 5D/tmp-of-{number}/{name}
         mv 5D/tmp-of-{number}/{name} 5D/{name}; rmdir 5D/tmp-of-{number}; touch -a 5D/{name}"
    )
}

#[test]
fn owner_group_and_umask_are_shown_as_given_and_cannot_be_changed() {
    let remote = workspace();
    let url = format!("file://{}", remote.path().display());
    let mounted = Mounted::with_options(&url, "uid=65534,gid=1,umask=027");
    let at = |name: &str| shown(&mounted.path().join(name));
    assert_eq!(at(""), (NOBODY, DAEMON, 0o750));
    assert_eq!(at("config"), (NOBODY, DAEMON, 0o640));

    does(NOBODY, &mounted, &push(0, "022"));
    does(NOBODY, &mounted, "echo x >scratch; ln -s x link; mkdir d");
    let sig = entry(0);
    let sig = sig.to_str().unwrap();
    for (name, mode) in [
        ("5D", 0o750),
        (sig, 0o750),
        ("scratch", 0o640),
        ("d", 0o750),
        ("link", 0o777),
    ] {
        assert_eq!(at(name), (NOBODY, DAEMON, mode), "{name}");
    }

    // Not even root; but to what it is anyway.
    for (user, owner) in [(NOBODY, "1"), (0, "1"), (0, "0:0"), (0, ":0")] {
        let output = run(user, &mounted, &format!("chown {owner} {sig}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("Operation not permitted"),
            "{user}, {owner}: {said}"
        );
    }
    does(0, &mounted, &format!("chown 65534:1 {sig}"));

    // The kernel checks what is shown: of the group one may read, of the others not even enter.
    let others = run(2, &mounted, "ls");
    assert!(!others.status.success(), "{others:?}");
    does(DAEMON, &mounted, &format!("cat {sig}"));
    assert!(!run(DAEMON, &mounted, "echo >file").status.success());

    // It is only shown: elsewhere the entry is what it was.
    mounted.flush();
    let second = Mounted::new(&url);
    assert_eq!(shown(&second.path().join(sig)).2, 0o755);
}

/// SCons issue 2684: on a plain directory, the first user's umask keeps the second one out of the prefix.
fn two_users_push_into_one_prefix(options: &str) {
    let remote = workspace();
    let url = format!("file://{}", remote.path().display());
    let mounted = Mounted::with_options(&url, options);
    does(NOBODY, &mounted, &push(0, "022"));
    does(DAEMON, &mounted, &push(1, "077"));
    let reads = format!("cat {} {}", entry(0).display(), entry(1).display());
    for user in [NOBODY, DAEMON] {
        does(user, &mounted, &reads);
    }
    mounted.flush();
    let second = Mounted::with_options(&url, options);
    for user in [NOBODY, DAEMON] {
        let output = run(user, &second, &reads);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "content 0\ncontent 1\n",
            "{output:?}"
        );
    }
}

#[test]
fn the_second_users_push_succeeds() {
    two_users_push_into_one_prefix("");
}

/// Who is not the owner that is shown may not change modes, as on a FAT file system: unless nobody checks.
#[test]
fn the_second_users_push_succeeds_where_one_owner_is_shown_and_nobody_checks() {
    two_users_push_into_one_prefix("uid=65534,nodefault_permissions");
}
