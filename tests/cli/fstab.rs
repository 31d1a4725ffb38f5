//! mount(8), umount(8) and fstab, through the helpers: the real programs, in a mount namespace of the test's own in which
//! this program stands in `/usr/sbin` under the names of the helpers.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::mounted::CACHEDIRFS;
use crate::support::workspace;

/// Puts links to everything in `/usr/sbin`, and the helpers, in front of it.
const INSTALL: &str = r#"
# What others have mounted is not this machine's: umount -a would ask their daemons.
grep ' - fuse.cachedirfs ' /proc/self/mountinfo | while read -r _ _ _ _ dir _; do umount --internal-only --lazy "$dir"; done
# Nor are their sockets, nor automount's.
mount -t tmpfs tmpfs /run
mkdir sbin.real sbin
mount --bind /usr/sbin sbin.real
for program in sbin.real/*; do ln -s "$PWD/$program" "sbin/${program##*/}"; done
for helper in mount umount; do
    for type in cachedirfs fuse.cachedirfs; do ln -s "$CACHEDIRFS" "sbin/$helper.$type"; done
done
mount --bind sbin /usr/sbin
"#;

/// An entry, pushed as SCons does.
const PUSH: &str = r#"
push() {
    mkdir -p "$1/AB"
    echo product >"$1/AB/ab345678901234567890123456789012.tmp1"
    mv "$1/AB/ab345678901234567890123456789012.tmp1" "$1/AB/ab345678901234567890123456789012"
}
mounted() { grep -c " $PWD/$1 .* fuse.cachedirfs " /proc/self/mountinfo || true; }
is() { [ "$1" = "$2" ] || { echo "is $1, should be $2"; exit 1; }; }
"#;

/// Runs a script in a directory with `remote`, `mnt` and `mnt2`; whatever it leaves mounted goes with its namespace.
pub(super) struct Machine(TempDir);

impl Machine {
    pub(super) fn new() -> Self {
        let dir = workspace();
        for name in ["remote", "mnt", "mnt2"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn fstab(&self, lines: &str) {
        self.write("fstab", lines);
    }

    /// Writes a file in which HERE stands for the directory.
    pub(super) fn write(&self, name: &str, text: &str) {
        let here = self.path().display().to_string();
        fs::write(self.path().join(name), text.replace("HERE", &here)).unwrap();
    }

    fn run(&self, script: &str) -> Output {
        let script = format!("set -eu\n{INSTALL}{PUSH}{script}");
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .current_dir(self.path())
            .env("CACHEDIRFS", CACHEDIRFS)
            .output()
            .unwrap()
    }

    #[track_caller]
    pub(super) fn succeeds(&self, script: &str) -> String {
        let output = self.run(script);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{}: {said}", output.status);
        said
    }
}

#[test]
fn mount_a_mounts_what_stands_in_fstab_and_umount_a_drains_and_unmounts_it() {
    let machine = Machine::new();
    // As it stood there for NFS, but for the source and the type.
    machine.fstab(
        "file://HERE/remote  HERE/mnt  cachedirfs  rw,_netdev,nofail,hard,timeo=600,x-systemd.automount,size=1G,backing=HERE/one  0 0\n\
         file://HERE/remote  HERE/mnt2  fuse.cachedirfs  defaults,noatime,backing=HERE/two  0 0\n\
         file://HERE/remote  HERE/mnt3  cachedirfs  noauto  0 0\n",
    );
    machine.succeeds(
        "mount -a -T fstab
         is $(mounted mnt) 1; is $(mounted mnt2) 1
         push mnt
         umount mnt
         is $(mounted mnt) 0
         is $(cat mnt2/AB/ab345678901234567890123456789012) product
         mount -T fstab mnt
         umount -a -t fuse.cachedirfs
         is $(mounted mnt) 0; is $(mounted mnt2) 0",
    );
    assert!(
        machine
            .path()
            .join("remote/AB/ab345678901234567890123456789012")
            .exists()
    );
}

/// What mount(8) hands over is the entry in fstab with what was typed; or, without one, the mount table's.
#[test]
fn remounting_by_mount_8_changes_what_was_said_and_nothing_else() {
    let machine = Machine::new();
    fs::create_dir(machine.path().join("other")).unwrap();
    let line = |remote: &str, options: &str| {
        format!(
            "file://HERE/{remote}  HERE/mnt  cachedirfs  backing=HERE/one,_netdev,x-foo=1{options}  0 0\n"
        )
    };
    machine.fstab(&line("remote", ",ro,size=1G"));
    fs::write(
        machine.path().join("changed"),
        line("other", ",size=2G").replace("HERE", &machine.path().display().to_string()),
    )
    .unwrap();
    let said = machine.succeeds(
        "shows() { $CACHEDIRFS status mnt | grep -q \"$1\" || { $CACHEDIRFS status mnt; echo no $1; exit 1; }; }
         mount -T fstab mnt; shows ' of 1.0 GiB'; shows 'read-only'
         # Without fstab: what the mount table says of it says nothing about ro.
         mount -o remount,size=3G mnt; shows ' of 3.0 GiB'; shows 'read-only'
         status=0; mount -o remount,rw mnt || status=$?; is $status 32
         mount -o remount,noro mnt; ! $CACHEDIRFS status mnt | grep 'read-only'
         mount -o remount,ro,noexec mnt; shows 'read-only'
         grep -q \"$PWD/mnt .*noexec\" /proc/self/mountinfo
         mount -o remount,noatime,size=5G mnt; grep -q \"$PWD/mnt .*noexec\" /proc/self/mountinfo
         mount -o remount,exec,noro mnt; ! grep \"$PWD/mnt .*noexec\" /proc/self/mountinfo
         push mnt; $CACHEDIRFS flush mnt; [ -e remote/AB/ab345678901234567890123456789012 ]
         # With fstab, its line counts, and what is typed more.
         mount -T fstab -o remount,push=off mnt; shows 'read-only'; shows ' of 1.0 GiB'
         mount -T fstab -v -o remount,rw mnt; ! $CACHEDIRFS status mnt | grep 'read-only'
         # The line was edited: another remote, another size.
         mount -T changed -o remount,push=on mnt; shows 'other on '; shows ' of 2.0 GiB'
         rm mnt/AB/ab345678901234567890123456789012
         push mnt; $CACHEDIRFS flush mnt; [ -e other/AB/ab345678901234567890123456789012 ]
         status=0; mount -o remount,uid=5,size=9G mnt || status=$?; is $status 32; shows ' of 2.0 GiB'
         status=0; mount -f -o remount,size=9G mnt; shows ' of 2.0 GiB'
         mount -t cachedirfs -o remount,size=4G file://$PWD/remote $PWD/mnt; shows 'remote on '; shows ' of 4.0 GiB'
         umount mnt",
    );
    for part in [
        "say noro instead of rw",
        "ro = false (was true)",
        "cannot change `uid`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// The configuration file by way of fstab, with the remote in either.
#[test]
fn an_entry_may_leave_everything_to_a_file() {
    let machine = Machine::new();
    let here = machine.path().display().to_string();
    let text =
        format!("remote = \"file://{here}/remote\"\nbacking = \"{here}/one\"\nsize = \"1G\"\n");
    fs::write(machine.path().join("x.toml"), text).unwrap();
    machine.fstab(
        "none  HERE/mnt  cachedirfs  config=HERE/x.toml,_netdev  0 0\n\
         file://HERE/remote  HERE/mnt2  cachedirfs  config=HERE/x.toml,backing=HERE/two,size=2G  0 0\n",
    );
    machine.succeeds(
        "mount -a -T fstab
         $CACHEDIRFS status mnt | grep -q ' of 1.0 GiB'; $CACHEDIRFS status mnt2 | grep -q ' of 2.0 GiB'
         push mnt; $CACHEDIRFS flush mnt
         is $(cat mnt2/AB/ab345678901234567890123456789012) product
         sed -i 's/size = .*/size = \"3G\"/' x.toml
         mount -T fstab -o remount mnt; $CACHEDIRFS status mnt | grep -q ' of 3.0 GiB'
         mount -T fstab -o remount mnt2; $CACHEDIRFS status mnt2 | grep -q ' of 2.0 GiB'
         umount -a -t fuse.cachedirfs",
    );
}

/// A comma in a value is escaped for us, and mount(8) has to let that through; a space is escaped for fstab.
#[test]
fn commas_and_spaces_in_values_arrive_as_they_are_meant() {
    let machine = Machine::new();
    for name in ["re,mo te", "m,nt"] {
        fs::create_dir(machine.path().join(name)).unwrap();
    }
    machine.fstab(
        "file://HERE/re,mo%20te  HERE/m,nt  cachedirfs  backing=HERE/b\\,a\\,\\040c,fsname=x\\,y  0 0\n",
    );
    machine.succeeds(
        "mount -a -T fstab
         push m,nt; umount m,nt
         [ -e 're,mo te/AB/ab345678901234567890123456789012' ]
         [ -e 'b,a, c/AB/ab345678901234567890123456789012' ]
         mount -t cachedirfs \"file://$PWD/re,mo%20te\" m,nt -o \"backing=$PWD/b\\,a\\, c,fsname=x\\,y\"
         is $(cat m,nt/AB/ab345678901234567890123456789012) product
         grep -q ' fuse.cachedirfs x,y ' /proc/self/mountinfo
         umount m,nt",
    );
}

#[test]
fn mount_over_a_dead_mount_repairs_it() {
    let machine = Machine::new();
    machine.fstab("file://HERE/remote  HERE/mnt  cachedirfs  backing=HERE/one  0 0\n");
    let said = machine.succeeds(
        "mount -T fstab mnt
         push mnt
         kill -9 $($CACHEDIRFS status --json mnt | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p')
         until ! ls mnt 2>/dev/null; do sleep 0.01; done
         mount -T fstab mnt
         is $(mounted mnt) 1
         is $(cat mnt/AB/ab345678901234567890123456789012) product
         umount mnt
         [ -e remote/AB/ab345678901234567890123456789012 ]",
    );
    assert!(said.contains("detached a dead mount"), "{said}");
}

/// As at boot: with `nofail` or without, a network that is down is no reason not to mount. A mistake in the entry is one with both.
#[test]
fn at_boot_with_the_network_down_everything_mounts_and_mistakes_are_told() {
    let machine = Machine::new();
    machine.fstab(
        "http://no-such-host.invalid/c  HERE/mnt  cachedirfs  _netdev,nofail,backing=HERE/one  0 0\n\
         http://127.0.0.1:9/c  HERE/mnt2  cachedirfs  _netdev,backing=HERE/two  0 0\n",
    );
    machine.succeeds(
        "unshare --net mount -a -T fstab
         is $(mounted mnt) 1; is $(mounted mnt2) 1
         ! ls mnt/AB/ab345678901234567890123456789012 2>/dev/null
         push mnt
         is $(cat mnt/AB/ab345678901234567890123456789012) product
         umount -a -t fuse.cachedirfs -O no_netdev
         is $(mounted mnt) 1
         umount -f mnt mnt2; is $(mounted mnt) 0; is $(mounted mnt2) 0
         # What was pushed waits for the network.
         is $(ls one/.cachedirfs/pending | wc -l) 1",
    );
    for (options, status) in [("nofail", 32), ("defaults", 32)] {
        let line = format!(
            "file://HERE/remote  HERE/no-such-dir  cachedirfs  {options},backing=HERE/x  0 0\n"
        );
        let machine = Machine::new();
        machine.fstab(&line);
        machine.succeeds(&format!(
            "status=0; mount -a -T fstab || status=$?; is $status {status}"
        ));
    }
}

#[test]
fn an_entry_whose_remote_is_down_mounts_all_the_same() {
    let machine = Machine::new();
    machine
        .fstab("http://127.0.0.1:9/cache  HERE/mnt  cachedirfs  _netdev,backing=HERE/one  0 0\n");
    machine.succeeds(
        "mount -a -T fstab
         is $(mounted mnt) 1
         ! ls mnt/AB/ab345678901234567890123456789012 2>/dev/null
         umount mnt",
    );
}

#[test]
fn a_space_in_a_path_is_written_as_in_any_fstab() {
    let machine = Machine::new();
    fs::create_dir(machine.path().join("two words")).unwrap();
    machine
        .fstab("file://HERE/remote  HERE/two\\040words  cachedirfs  backing=HERE/b\\040b  0 0\n");
    machine.succeeds(
        "mount -a -T fstab
         push 'two words'
         umount 'two words'
         [ -e 'b b/AB/ab345678901234567890123456789012' ]",
    );
}

#[test]
fn fake_verbose_and_sloppy_mean_what_they_mean_to_mount_8() {
    let machine = Machine::new();
    let said = machine.succeeds(
        "mount -f -v -t cachedirfs file://$PWD/remote mnt -o soft,backing=$PWD/one
         is $(mounted mnt) 0
         mount -s -t cachedirfs file://$PWD/remote mnt -o frobnicate=1,size=1G,backing=$PWD/one
         is $(mounted mnt) 1
         umount -v mnt",
    );
    for part in [
        "`soft`: a remote that does not answer is a miss",
        "`frobnicate=1` is not known",
        "unmounted",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn mistakes_end_with_the_status_that_mount_8_documents() {
    let machine = Machine::new();
    let said = machine.succeeds(
        "status=0; mount -t cachedirfs file://$PWD/remote mnt -o frobnicate || status=$?; is $status 1
         status=0; mount -t cachedirfs gopher://x mnt -o backing=$PWD/one || status=$?; is $status 32
         status=0; mount -t cachedirfs file://$PWD/remote mnt9 || status=$?; is $status 32
         status=0; mount.cachedirfs || status=$?; is $status 1
         mount.cachedirfs -V >/dev/null; umount.cachedirfs --help >/dev/null",
    );
    assert!(said.contains("unknown option `frobnicate`"), "{said}");
}

/// As umount(8) does with a mount that it was told to enter the namespace of.
#[test]
fn another_namespace_can_be_mounted_in() {
    let machine = Machine::new();
    machine.succeeds(
        "unshare --mount --propagation private sh -c 'echo $$ >pid; exec sleep 60' >/dev/null 2>&1 &
         trap 'kill $(cat pid)' EXIT
         until [ -s pid ]; do sleep 0.01; done
         mount -N $(cat pid) -t cachedirfs file://$PWD/remote $PWD/mnt -o backing=$PWD/one
         is $(mounted mnt) 0
         is $(grep -c \" $PWD/mnt .* fuse.cachedirfs \" /proc/$(cat pid)/mountinfo) 1
         umount -N $(cat pid) $PWD/mnt
         is $(grep -c \" $PWD/mnt .* fuse.cachedirfs \" /proc/$(cat pid)/mountinfo || true) 0",
    );
}

/// overlayfs gives directories a device number of its own, and files that of the file system they are on, unless all of it is
/// one: fetched entries were there, and could not be looked up.
#[test]
fn an_overlay_holds_a_backing_directory_unless_it_is_over_several_file_systems() {
    let machine = Machine::new();
    let said = machine.succeeds(
        "mkdir one; mount -t tmpfs tmpfs one; mkdir one/lower one/upper one/work one/root
         mount -t overlay overlay one/root -o lowerdir=$PWD/one/lower,upperdir=$PWD/one/upper,workdir=$PWD/one/work
         mount -t cachedirfs file://$PWD/remote mnt -o backing=$PWD/one/root/first
         push mnt
         umount mnt
         mount -t cachedirfs file://$PWD/remote mnt -o backing=$PWD/one/root/second
         is $(cat mnt/AB/ab345678901234567890123456789012) product
         umount mnt
         mkdir lower two one/upper2 one/work2
         mount -t overlay overlay two -o lowerdir=$PWD/lower,upperdir=$PWD/one/upper2,workdir=$PWD/one/work2
         status=0
         mount -t cachedirfs file://$PWD/remote mnt -o backing=$PWD/two/third || status=$?
         is $status 32",
    );
    let expected = "it is on an overlay over several file systems, where two files can have one inode number; \
                    choose another with backing=";
    assert!(said.contains(expected), "{said}");
}
