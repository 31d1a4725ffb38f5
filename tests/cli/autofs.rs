//! The real automount(8) with a direct and an indirect map, in a mount namespace of the test's own.

use super::fstab::Machine;

/// `automount` has a session of its own: for its own process group the kernel pulls no trigger. It ends with the script.
const AUTOMOUNT: &str = r#"
command -v automount >/dev/null || { echo 'automount is missing, run: scripts/setup system'; exit 1; }
mkdir maps
automount() {
    setsid /usr/sbin/automount -f -d -C -p "$PWD/pid" "$PWD/auto.master" >automount.log 2>&1 &
    automount=$!
    trap 'kill $automount; wait $automount || true' EXIT
    until [ "$(grep -c ' - autofs ' automount.table 2>/dev/null)" = 2 ]; do
        sleep 0.02; grep "$PWD.* - autofs " /proc/self/mountinfo >automount.table || true
    done
}
soon() { n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 1000 ] || { echo "waited in vain: $1"; tail automount.log; exit 1; }; sleep 0.02; done; }
field() { "$CACHEDIRFS" status --json "$1" | grep -m 1 "\"$2\":" | tr -dc 0-9; }
"#;

/// One directory by each kind of map, from one remote.
fn machine(timeout: u32, remote: &str) -> Machine {
    let machine = Machine::new();
    let master = format!(
        "/- HERE/auto.direct --timeout={timeout}\nHERE/maps HERE/auto.indirect --timeout={timeout}\n"
    );
    machine.write("auto.master", &master);
    let options = "-fstype=cachedirfs,backing=HERE";
    machine.write(
        "auto.direct",
        &format!("HERE/mnt {options}/one \"{remote}\"\n"),
    );
    machine.write(
        "auto.indirect",
        &format!("cache {options}/two \"{remote}\"\n"),
    );
    machine
}

fn run(machine: &Machine, script: &str) -> String {
    machine.succeeds(&format!("{AUTOMOUNT}{script}"))
}

#[test]
fn both_kinds_of_maps_mount_on_access_expire_when_idle_and_mount_again() {
    let machine = machine(1, "file://HERE/remote");
    let said = run(
        &machine,
        r#"automount
        is $(mounted mnt) 0; is $(mounted maps/cache) 0
        push mnt; ls maps/cache
        is $(mounted mnt) 1; is $(mounted maps/cache) 1
        first=$(field mnt pid)
        soon '[ $(mounted mnt) = 0 ] && [ $(mounted maps/cache) = 0 ]'
        soon '[ ! -e /proc/$first ]'
        [ -e remote/AB/ab345678901234567890123456789012 ]
        is $(cat mnt/AB/ab345678901234567890123456789012) product
        is $(cat maps/cache/AB/ab345678901234567890123456789012) product
        is $(mounted mnt) 1; is $(mounted maps/cache) 1
        # While it is in use it does not expire.
        (cd mnt; soon '[ $(mounted maps/cache) = 0 ]')
        is $(mounted mnt) 1"#,
    );
    assert!(!said.contains("cannot"), "{said}");
}

#[test]
fn asking_how_it_is_keeps_no_mount_from_expiring_and_mounts_nothing() {
    let machine = machine(1, "file://HERE/remote");
    run(
        &machine,
        r#"automount
        ls mnt maps/cache
        soon '! "$CACHEDIRFS" status mnt >/dev/null 2>&1 && ! "$CACHEDIRFS" status maps/cache >/dev/null 2>&1'
        # It may also see, and complain about, mounts that are not of this test.
        "$CACHEDIRFS" status >/dev/null 2>&1 || true
        is $(mounted mnt) 0; is $(mounted maps/cache) 0"#,
    );
}

/// The remote is down, so that what was pushed is still here to be lost.
#[test]
fn a_daemon_that_was_killed_is_replaced_on_the_next_access_with_all_that_was_pushed() {
    let machine = machine(300, "http://127.0.0.1:9/cache");
    run(
        &machine,
        r#"automount
        for dir in mnt maps/cache; do
            push $dir
            first=$(field $dir pid)
            kill -9 $first
            soon '[ $(mounted $dir) = 0 ]'
            is $(cat $dir/AB/ab345678901234567890123456789012) product
            is $(mounted $dir) 1
            is $(field $dir objects) 1
            [ $(field $dir pid) != $first ]
        done
        "$CACHEDIRFS" umount --drain-timeout 0 mnt
        is $(cat mnt/AB/ab345678901234567890123456789012) product"#,
    );
}

/// As `mount.cachedirfs(8)` has them.
#[test]
fn remotes_are_written_in_maps_as_the_man_page_says() {
    let machine = machine(300, "file://HERE/remote");
    machine.write(
        "auto.indirect",
        "a -fstype=cachedirfs,backing=HERE/a :file://HERE/remote\n\
         b -fstype=cachedirfs,backing=HERE/b \"http://127.0.0.1:9/cache\"\n\
         c -fstype=cachedirfs,backing=HERE/c \"http://127.0.0.1:9/c file://HERE/remote|ro\"\n\
         * -fstype=cachedirfs,backing=HERE/star-& http\\://127.0.0.1\\:9/cache/&\n",
    );
    run(
        &machine,
        r#"automount
        source_of() { grep " $PWD/maps/$1 " /proc/self/mountinfo | sed 's/.* fuse.cachedirfs \([^ ]*\) .*/\1/'; }
        ls maps/a maps/b maps/c maps/other
        is "$(source_of a)" "file://$PWD/remote"
        is "$(source_of b)" http://127.0.0.1:9/cache
        is "$(source_of c)" "http://127.0.0.1:9/c\040file://$PWD/remote"
        is "$(source_of other)" http://127.0.0.1:9/cache/other
        [ -d star-other ]"#,
    );
}

/// By hand over a trigger: it is the automounter that mounts.
#[test]
fn a_mount_by_hand_over_a_trigger_finds_it_mounted() {
    let machine = machine(300, "file://HERE/remote");
    let said = run(
        &machine,
        r#"automount
        status=0; setsid -w timeout 20 "$CACHEDIRFS" mount file://$PWD/remote mnt -o backing=$PWD/three || status=$?
        is $status 32
        is $(mounted mnt) 1"#,
    );
    assert!(said.contains("is mounted there already"), "{said}");
}
