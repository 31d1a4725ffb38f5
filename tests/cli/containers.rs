//! What `cachedirfs-containers(7)` says, as far as it can be tried with namespaces and capabilities alone.

use super::fstab::Machine;

/// A device that everybody may open, as on most machines.
const DEVICE: &str = "mount -t tmpfs -o mode=755 tmpfs mnt2; mknod -m 666 mnt2/fuse c 10 229
    mount --bind mnt2/fuse /dev/fuse\n";

#[test]
fn without_the_capability_to_mount_run_works_and_mount_does_not() {
    let machine = Machine::new();
    let said = machine.succeeds(&format!(
        "{DEVICE}{}",
        r#"mkdir -m 777 home shared
        container='setpriv --bounding-set -sys_admin --inh-caps -sys_admin'
        is "$($container "$CACHEDIRFS" run "file://$PWD/remote" -o backing=$PWD/one -- sh -c 'cd $CACHEDIRFS_DIR; echo *')" 'CACHEDIR.TAG config'
        status=0; $container "$CACHEDIRFS" mount "file://$PWD/remote" mnt -o noallow_other,backing=$PWD/one || status=$?
        is $status 32
        user='setpriv --reuid 1234 --regid 1234 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all'
        mkdir -p tool; cp "$CACHEDIRFS" tool/cachedirfs
        HOME=$PWD/home $user tool/cachedirfs run "file://$PWD/shared" -- sh -ec '
            mkdir -p $CACHEDIRFS_DIR/AB; cd $CACHEDIRFS_DIR/AB; echo product >t; mv t ab345678901234567890123456789012'
        is "$(ls shared/AB)" ab345678901234567890123456789012"#
    ));
    assert!(said.contains("uploaded 1"), "{said}");
}

#[test]
fn a_container_that_mounts_for_others_is_seen_by_slaves_also_after_it_died() {
    Machine::new().succeeds(
        r#"mkdir vol vol/scons
        mount --bind vol vol; mount --make-shared vol
        container() { unshare --mount --propagation $1 sh -c "echo \$\$ >$2; exec sleep 60" >/dev/null 2>&1 & until [ -s $2 ]; do sleep 0.01; done; }
        container unchanged cache; container slave build; container private other
        trap 'kill $(cat cache build other)' EXIT
        start() { nsenter -m -t $(cat cache) "$CACHEDIRFS" mount "file://$PWD/remote" "$PWD/vol/scons" -o backing=$PWD/one; }
        start
        push "vol/scons"
        product=$PWD/vol/scons/AB/ab345678901234567890123456789012
        is $(nsenter -m -t $(cat build) cat $product) product
        is "$(nsenter -m -t $(cat other) ls $PWD/vol/scons)" ''
        kill -9 $("$CACHEDIRFS" status --json vol/scons | grep -m 1 '"pid":' | tr -dc 0-9)
        until ! nsenter -m -t $(cat build) cat $product 2>/dev/null; do sleep 0.01; done
        start
        is $(nsenter -m -t $(cat build) cat $product) product
        nsenter -m -t $(cat cache) "$CACHEDIRFS" umount $PWD/vol/scons
        is "$(nsenter -m -t $(cat build) ls $PWD/vol/scons)" ''"#,
    );
}
