//! The packages: built by `scripts/package` around the program under test, judged by lintian, installed into a fresh
//! Debian 12, and used from there.
//!
//! That Debian is made by `scripts/setup debian`. Tests see it through an overlay in a mount namespace of their own, without
//! a network, so that it stays as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use cachedirfs::config::options::OPTIONS;
use tempfile::TempDir;

use crate::support::mounted::CACHEDIRFS;
use crate::support::{installed, is_root, test_tools, workspace};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command prints; it must succeed.
#[track_caller]
fn output(command: &mut Command, part: &str) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|err| {
        panic!("{command:?}: {err}; run: scripts/setup {part}");
    });
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout
}

/// The .deb and the .rpm, built once.
fn packages() -> &'static [PathBuf] {
    static BUILT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut script = Command::new(repository().join("scripts/package"));
        script.args(["--fast", "--binary", CACHEDIRFS, "--output"]);
        script
            .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages"))
            .args(["deb", "rpm"]);
        let said = output(&mut script, "package");
        said.lines().map(PathBuf::from).collect()
    })
}

fn package(extension: &str) -> &'static Path {
    let built = packages().iter();
    let mut of_kind = built.filter(|path| path.extension().is_some_and(|e| e == extension));
    of_kind.next().unwrap()
}

/// What every package installs, in whatever directory its system has for it.
fn has_everything(files: &BTreeSet<String>, units: &str, zsh: &str) {
    let expected = [
        "/usr/bin/cachedirfs",
        "/usr/sbin/mount.cachedirfs",
        "/usr/sbin/mount.fuse.cachedirfs",
        "/usr/sbin/umount.cachedirfs",
        "/usr/sbin/umount.fuse.cachedirfs",
        "/usr/share/man/man1/cachedirfs.1.gz",
        "/usr/share/man/man5/cachedirfs.5.gz",
        "/usr/share/man/man8/mount.cachedirfs.8.gz",
        "/usr/share/man/man8/umount.cachedirfs.8.gz",
        "/usr/share/man/man8/umount.fuse.cachedirfs.8.gz",
        "/usr/share/bash-completion/completions/cachedirfs",
        "/usr/share/fish/vendor_completions.d/cachedirfs.fish",
        "/usr/share/doc/cachedirfs/README.md",
        "/usr/share/doc/cachedirfs/crates.txt",
        "/etc/cachedirfs/example.toml",
        zsh,
    ];
    let mut expected: Vec<_> = expected.map(str::to_owned).into();
    for (dir, into) in [
        ("scripts/systemd", units),
        ("scripts/grafana", "/usr/share/doc/cachedirfs/grafana"),
    ] {
        let ours = fs::read_dir(repository().join(dir)).into_iter().flatten();
        let names = ours.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        expected.extend(names.map(|name| format!("{into}/{name}")));
    }
    let missing: Vec<_> = expected
        .iter()
        .filter(|file| !files.contains(*file))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {files:?}");
}

#[test]
fn the_deb_has_everything_in_its_place() {
    let listed = output(
        Command::new("dpkg-deb")
            .arg("--contents")
            .arg(package("deb")),
        "package",
    );
    for line in listed.lines() {
        assert!(line.contains(" root/root "), "{line}");
    }
    let names = listed.lines().filter_map(|line| {
        let path = line.split_whitespace().nth(5)?;
        path.strip_prefix('.').map(str::to_owned)
    });
    has_everything(
        &names.collect(),
        "/lib/systemd/system",
        "/usr/share/zsh/vendor-completions/_cachedirfs",
    );
    assert!(listed.contains("/usr/sbin/mount.cachedirfs -> ../bin/cachedirfs\n"));
}

#[test]
fn lintian_has_nothing_serious_to_say() {
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning"]);
    let said = output(lintian.arg(package("deb")), "debian");
    assert_eq!(said, "");
}

/// Every line of the example that shows an option names one that there is.
#[test]
fn the_example_of_a_configuration_names_what_there_is() {
    let example = fs::read_to_string(repository().join("scripts/packaging/example.toml")).unwrap();
    let shown = example.lines().filter_map(|line| line.strip_prefix("# "));
    let keys: Vec<_> = shown
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, _)| key)
        .collect();
    assert!(keys.contains(&"remote") && keys.len() > 4, "{keys:?}");
    for key in keys {
        let is_known = OPTIONS.iter().any(|option| option.name == key);
        assert!(is_known || key == "mountpoint", "{key}");
    }
}

/// A Debian 12, as fresh as it was installed. What is done there goes with the test.
struct Debian(TempDir);

impl Debian {
    fn new() -> Self {
        let dir = workspace();
        for name in ["layer", "root"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    /// Runs `before` outside of it, with its root in `root`, then `inside` there.
    #[track_caller]
    fn run(&self, before: &str, inside: &str) -> String {
        let script = format!(
            "set -eu
             mount -t tmpfs tmpfs layer
             mkdir layer/upper layer/work
             mount -t overlay -o lowerdir=\"$DEBIAN\",upperdir=\"$PWD/layer/upper\",workdir=\"$PWD/layer/work\" overlay root
             mount -t proc proc root/proc
             mount --rbind /dev root/dev
             mkdir -m 700 root/var/cache/cachedirfs
             # Of an overlay over two file systems, files and directories have different device numbers.
             mount -t tmpfs tmpfs root/var/cache/cachedirfs
             cp \"$PACKAGE\" root/root/
             {before}
             exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive HOME=/root \
                 chroot root sh -euc \"$INSIDE\""
        );
        let debian = installed(test_tools().join("debian12/complete"), "debian");
        let root = debian.parent().unwrap().join("root").canonicalize();
        let extension = if before.contains("rpm") { "rpm" } else { "deb" };
        // What it starts ends with its first process.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--net"])
            .args(["--pid", "--fork", "--kill-child", "sh", "-c"])
            .arg(format!("({script}) 2>&1"))
            .current_dir(self.0.path())
            .env("DEBIAN", root.unwrap())
            .env("PACKAGE", package(extension))
            .env("INSIDE", format!("{PRELUDE}\n{inside}"));
        output(&mut command, "debian")
    }
}

const PRELUDE: &str = "
is() { [ \"$1\" = \"$2\" ] || { echo \"is $1, should be $2\"; exit 1; }; }
mounted() { grep -c \" $1 .* fuse.cachedirfs \" /proc/self/mountinfo || true; }
entry=AB/ab345678901234567890123456789012
push() {
    mkdir -p \"$1/AB\"
    echo product >\"$1/$entry.tmp1\"
    mv \"$1/$entry.tmp1\" \"$1/$entry\"
}
mkdir -p /srv/cache /mnt/scons
echo 'file:///srv/cache  /mnt/scons  cachedirfs  _netdev,nofail,size=1G  0 0' >>/etc/fstab
";

#[test]
fn a_fresh_debian_12_takes_the_deb_and_mounts_what_stands_in_fstab() {
    if !is_root() {
        return;
    }
    Debian::new().run(
        "",
        "apt-get install -y /root/cachedirfs_*.deb
         test -x /sbin/mount.cachedirfs
         fusermount3 --version
         cachedirfs --version
         cachedirfs check file:///srv/cache
         mount -a
         is $(mounted /mnt/scons) 1
         push /mnt/scons
         # A newer package comes while it is in use.
         exec 4</mnt/scons/$entry
         dpkg -i /root/cachedirfs_*.deb
         is $(cat <&4) product
         is $(cat /mnt/scons/$entry) product
         cachedirfs status --json /mnt/scons | grep '\"upgrades\": 1'
         exec 4<&-
         umount /mnt/scons
         is $(mounted /mnt/scons) 0
         # On another machine.
         rm -rf /var/cache/cachedirfs/*
         mount /mnt/scons
         is $(cat /mnt/scons/$entry) product
         umount -a -t fuse.cachedirfs
         is $(mounted /mnt/scons) 0",
    );
}

#[test]
fn the_manual_and_the_completions_are_found_where_debian_looks_for_them() {
    if !is_root() {
        return;
    }
    Debian::new().run(
        "",
        "dpkg -i /root/cachedirfs_*.deb
         man -w 1 cachedirfs; man -w 5 cachedirfs; man -w 8 cachedirfs && exit 1
         for page in mount.cachedirfs mount.fuse.cachedirfs umount.cachedirfs umount.fuse.cachedirfs; do man -w 8 $page; done
         for page in /usr/share/man/man*/*cachedirfs*; do
             for locale in C C.UTF-8; do
                 said=$(LC_ALL=$locale MANWIDTH=80 man --warnings --local-file $page 2>&1 >/dev/null)
                 is \"$said\" ''
             done
         done
         whatis mount.cachedirfs
         for shell in bash zsh fish; do cachedirfs completions $shell >/tmp/$shell; done
         cmp /tmp/bash /usr/share/bash-completion/completions/cachedirfs
         cmp /tmp/zsh /usr/share/zsh/vendor-completions/_cachedirfs
         cmp /tmp/fish /usr/share/fish/vendor_completions.d/cachedirfs.fish",
    );
}

#[test]
fn a_removed_package_leaves_what_was_configured_and_a_purged_one_what_was_cached() {
    if !is_root() {
        return;
    }
    Debian::new().run(
        "",
        "dpkg -i /root/cachedirfs_*.deb
         cp /etc/cachedirfs/example.toml /etc/cachedirfs/mine.toml
         mount /mnt/scons; push /mnt/scons; umount /mnt/scons
         dpkg -V cachedirfs
         apt-get remove -y cachedirfs
         is \"$(dpkg -L cachedirfs | grep -v '^/\\(etc\\|\\.\\)' || true)\" ''
         test -e /etc/cachedirfs/example.toml
         for gone in /usr/bin/cachedirfs /sbin/mount.cachedirfs /usr/share/man/man1/cachedirfs.1.gz; do
             [ ! -e $gone ] && [ ! -L $gone ]
         done
         dpkg --purge cachedirfs
         [ ! -e /etc/cachedirfs/example.toml ]
         test -e /etc/cachedirfs/mine.toml
         is $(find /var/cache/cachedirfs -name ab345678901234567890123456789012 | wc -l) 1",
    );
}

#[test]
fn the_rpm_has_everything_in_its_place() {
    let listed = output(
        Command::new("rpm")
            .args(["-qp", "--list"])
            .arg(package("rpm")),
        "package",
    );
    has_everything(
        &listed.lines().map(str::to_owned).collect(),
        "/usr/lib/systemd/system",
        "/usr/share/zsh/site-functions/_cachedirfs",
    );
    let owners = output(
        Command::new("rpm")
            .args([
                "-qp",
                "--queryformat",
                "[%{FILEUSERNAME}:%{FILEGROUPNAME}\n]",
            ])
            .arg(package("rpm")),
        "package",
    );
    assert!(owners.lines().all(|owner| owner == "root:root"), "{owners}");
}

/// There is no Fedora to be had here; this is its package, installed by its tool into another system with a glibc.
#[test]
fn the_rpm_is_installed_used_and_removed() {
    if !is_root() {
        return;
    }
    Debian::new().run(
        "rpm --root \"$PWD/root\" --install --nodeps root/root/*.rpm
         is_listed=$(rpm --root \"$PWD/root\" --query cachedirfs)
         rpm --root \"$PWD/root\" --verify --nodeps cachedirfs
         cp -a root/usr/bin/cachedirfs root/root/",
        "mount /mnt/scons
         push /mnt/scons
         umount /mnt/scons
         is $(ls /srv/cache/AB) ab345678901234567890123456789012
         cmp /root/cachedirfs /usr/bin/cachedirfs",
    );
    Debian::new().run(
        "rpm --root \"$PWD/root\" --install --nodeps root/root/*.rpm
         rpm --root \"$PWD/root\" --erase cachedirfs",
        "[ ! -e /usr/bin/cachedirfs ] && [ ! -L /usr/sbin/mount.cachedirfs ] && [ ! -e /etc/cachedirfs ]",
    );
}

/// By hand, since it builds the program anew: `cargo test --test integration -- --ignored the_static_tarball`.
#[test]
#[ignore = "takes a release build"]
fn the_static_tarball_runs_where_nothing_is_installed() {
    let dir = workspace();
    let mut script = Command::new(repository().join("scripts/package"));
    let built = output(
        script.arg("--output").arg(dir.path()).arg("tarball"),
        "package",
    );
    let mut unpack = Command::new("tar");
    unpack.args(["--strip-components", "1", "-xf", built.trim()]);
    output(unpack.current_dir(dir.path()), "package");
    fs::create_dir(dir.path().join("cache")).unwrap();
    for args in [&["--version"][..], &["check", "file:///cache"]] {
        let mut alone = Command::new("chroot");
        output(
            alone.arg(dir.path()).arg("/bin/cachedirfs").args(args),
            "package",
        );
    }
}
