//! systemd: the unit of ours and those that it makes of an fstab, looked at by its own tools, and used by a real one that is
//! process 1 of a container.

use std::path::Path;

use super::fstab::Machine;

/// Installs a unit file and the program below `root`, as the package does.
const ROOT: &str = r#"
mkdir -p root/etc/systemd/system root/etc/cachedirfs root/usr/bin root/usr/lib/systemd/system root/usr/sbin root/root
cp "$SOURCE/scripts/systemd/cachedirfs@.service" root/usr/lib/systemd/system/
cp "$CACHEDIRFS" root/usr/bin/cachedirfs
for program in systemd-nspawn systemd-analyze /usr/lib/systemd/system-generators/systemd-fstab-generator; do
    command -v $program >/dev/null || { echo "$program is missing, run: scripts/setup system"; exit 1; }
done
"#;

fn run(machine: &Machine, script: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).display();
    machine.succeeds(&format!("SOURCE={source}\n{ROOT}{script}"))
}

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd/cachedirfs@.service");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn systemd_has_nothing_to_say_about_the_unit() {
    let said = run(
        &Machine::new(),
        r#"echo remote >root/etc/cachedirfs/x.toml
        cp -a /usr/lib/systemd/system root/usr/lib/systemd/
        ln -s usr/bin root/bin; cp /bin/kill root/usr/bin
        systemd-analyze verify --man=no --root=root cachedirfs@x.service 2>&1
        systemd-analyze security --no-pager --offline=yes --threshold=50 root/usr/lib/systemd/system/cachedirfs@.service"#,
    );
    let about_ours: Vec<_> = said.lines().filter(|l| l.contains("cachedirfs@")).collect();
    let score = |line: &str| line.contains("Overall exposure level") && line.contains(" 4.6 OK");
    assert!(
        matches!(about_ours[..], [line] if score(line)),
        "{about_ours:?}"
    );
}

/// These give a service mounts of its own: what it mounts would be seen by nobody else. Tried one by one with systemd 252.
#[test]
fn the_unit_has_no_setting_that_hides_its_mount() {
    let hiding = [
        "ProtectSystem=",
        "ProtectHome=",
        "ProtectKernel",
        "ProtectControlGroups=",
        "ProtectProc=",
        "ProcSubset=",
        "PrivateTmp=",
        "PrivateDevices=",
        "PrivateMounts=",
        "PrivateIPC=",
        "PrivateUsers=",
        "MountFlags=",
        "Root",
        "TemporaryFileSystem=",
        "Bind",
        "ReadOnlyPaths=",
        "ReadWritePaths=",
        "InaccessiblePaths=",
        "NoExecPaths=",
        "LogNamespace=",
        "DynamicUser=",
    ];
    let unit = unit();
    let found: Vec<_> = unit
        .lines()
        .filter(|line| hiding.iter().any(|setting| line.starts_with(setting)))
        .collect();
    assert!(
        found.is_empty() && unit.contains("Type=notify"),
        "{found:?}"
    );
}

#[test]
fn units_that_are_made_of_an_fstab_say_what_it_says() {
    let machine = Machine::new();
    machine.fstab(
        "https://host/cache /mnt/boot cachedirfs _netdev,nofail,size=50G 0 0\n\
         https://host/cache /mnt/must cachedirfs _netdev 0 0\n\
         https://host/cache /mnt/lazy cachedirfs noauto,x-systemd.automount,x-systemd.idle-timeout=10min,\
         x-systemd.mount-timeout=3min,x-systemd.requires-mounts-for=/srv/big,_netdev 0 0\n\
         file:///srv/my\\040cache /mnt/my\\040cache fuse.cachedirfs _netdev,nofail 0 0\n",
    );
    let said = run(
        &machine,
        r#"mkdir normal early late
        SYSTEMD_FSTAB="$PWD/fstab" /usr/lib/systemd/system-generators/systemd-fstab-generator normal early late
        cp -a /usr/lib/systemd/system root/usr/lib/systemd/
        cp normal/*.mount normal/*.automount root/etc/systemd/system/
        systemd-analyze verify --man=no --root=root mnt-boot.mount mnt-must.mount mnt-lazy.automount 'mnt-my\x20cache.mount' 2>&1
        for unit in normal/*mount; do sed "s|^|$unit: |" "$unit"; done
        ls normal/remote-fs.target.*/*"#,
    );
    for line in [
        "normal/mnt-boot.mount: What=https://host/cache",
        "normal/mnt-boot.mount: Type=cachedirfs",
        "normal/mnt-boot.mount: Options=_netdev,nofail,size=50G",
        "normal/mnt-must.mount: Before=remote-fs.target",
        "normal/mnt-lazy.automount: TimeoutIdleSec=10min",
        "normal/mnt-lazy.mount: TimeoutSec=3min",
        "normal/mnt-lazy.mount: RequiresMountsFor=/srv/big",
        "normal/mnt-my cache.mount: What=file:///srv/my cache",
        "normal/mnt-my cache.mount: Type=fuse.cachedirfs",
        "normal/remote-fs.target.requires/mnt-must.mount",
        "normal/remote-fs.target.wants/mnt-boot.mount",
        "normal/remote-fs.target.requires/mnt-lazy.automount",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    assert!(
        !said.contains("boot.mount: Before=remote-fs.target"),
        "{said}"
    );
}

/// Boots a systemd of which `/usr` is this machine's, with the program in it, and nothing else is: no network, nothing that
/// is not asked for. `inside` runs a command there.
const BOOT: &str = r#"
[ -e /dev/autofs ] || { echo 'this kernel has no autofs (/dev/autofs)'; exit 1; }
for dir in bin sbin lib lib64; do ln -s usr/$dir root/$dir; done
mkdir -p root/var root/run root/tmp root/dev root/proc root/sys root/srv/remote
for name in mount umount; do
    for type in cachedirfs fuse.cachedirfs; do ln -s /usr/bin/cachedirfs root/usr/sbin/$name.$type; done
done
# The program's directory may be on a file system that cannot be the upper one.
mkdir layers; mount -t tmpfs tmpfs layers
mkdir layers/work; cp -a root/usr layers/upper
mount -t overlay overlay -o lowerdir=/usr,upperdir=layers/upper,workdir=layers/work root/usr
echo 'root:x:0:0:root:/root:/bin/sh' >root/etc/passwd
cp /etc/group /etc/nsswitch.conf root/etc
cp -a /etc/alternatives /etc/ld.so.* /etc/ssl root/etc
echo uninitialized >root/etc/machine-id
mkdir -p root/etc/systemd/system-preset root/etc/systemd/system/multi-user.target.wants
echo 'disable *' >root/etc/systemd/system-preset/00.preset
ln -s /usr/lib/systemd/system/remote-fs.target root/etc/systemd/system/multi-user.target.wants
sed "s|HERE|/srv|" fstab >root/etc/fstab
# Control groups of its own: two containers in one would take each other's for theirs.
groups=
for hierarchy in $(sed -n 's/^[0-9]*:name=systemd:\(.*\)/systemd\1/p; s/^0::\(.*\)/unified\1 \1/p' /proc/self/cgroup); do
    group=/sys/fs/cgroup/$hierarchy/cachedirfs-test-$$
    [ -e "${group%/*}/cgroup.procs" ] && mkdir "$group" || continue
    sh -c 'echo $PPID >"$1"/cgroup.procs' sh "$group"
    groups="$groups $group"
done
systemd-nspawn --quiet -D root --machine "cachedirfs-test-$$" --register=no --keep-unit --private-network \
    --bind=/dev/fuse --bind=/dev/autofs --console=pipe --boot systemd.unit=multi-user.target </dev/null >console 2>&1 &
nspawn=$!
halt() {
    [ $? = 0 ] || inside journalctl --no-pager -n 50 || true
    kill $nspawn; wait $nspawn || true
    for group in $groups; do
        sh -c 'echo $PPID >"${1%/*}"/cgroup.procs' sh "$group"
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
}
trap halt EXIT
soon() { n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 600 ] || { echo "waited in vain: $1"; cat console; exit 1; }; sleep 0.05; done; }
soon 'init=$(cat /proc/$nspawn/task/$nspawn/children | tr -d " ") && [ "$init" ] && grep -qx systemd /proc/$init/comm'
inside() { nsenter -t $init -a env -i PATH=/usr/sbin:/usr/bin LC_ALL=C "$@"; }
soon 'inside systemctl is-system-running --wait 2>/dev/null | grep -q "running\|degraded"'
there() { inside grep -c " $1 .* fuse.cachedirfs " /proc/1/mountinfo || true; }
pid_of() { inside cachedirfs status --json "$1" | grep -m 1 '"pid":' | tr -dc 0-9; }
main_pid() { inside systemctl show --value -p MainPID "$1"; }
"#;

/// Writes a configuration and a drop-in of the unit: name, remote, more options, settings.
const SERVICE: &str = r#"
service() {
    mkdir -p root/etc/systemd/system/cachedirfs@$1.service.d root/mnt/$1
    printf 'remote = "%s"\nmountpoint = "/mnt/%s"\n%s\n' "$2" "$1" "$3" >root/etc/cachedirfs/$1.toml
    printf '[Service]\n%s\n' "$4" >root/etc/systemd/system/cachedirfs@$1.service.d/test.conf
}
"#;

#[test]
fn systemd_starts_mounts_restarts_drains_and_stops_the_service() {
    let machine = Machine::new();
    machine.fstab("");
    run(
        &machine,
        &format!(
            "{SERVICE}
            service a file:///srv/late/remote 'pending_max = 100' WatchdogSec=3s
            service b file:///srv/remote 'key_file = \"credential:key\"' LoadCredential=key:/root/key
            od -An -N 32 -tx1 /dev/urandom | tr -d ' \\n' >root/root/key; chmod 600 root/root/key
            {BOOT}{}",
            r#"inside systemctl start cachedirfs@a cachedirfs@b
            is $(there /mnt/a) 1
            inside systemctl show -p StatusText cachedirfs@a | grep 'file:///srv/late/remote on /mnt/a'
            # The journal has the lines with their priority and without a time stamp of ours.
            inside journalctl -o cat -u cachedirfs@a | grep -x 'file:///srv/late/remote is mounted on /mnt/a'
            inside sh -c 'mkdir -p /mnt/a/AB /mnt/b/AB; for d in a b; do cd /mnt/$d/AB; echo product >t; mv t ab345678901234567890123456789012; done'

            # Nothing that was pushed is lost with a daemon that is killed, and it comes back by itself.
            first=$(main_pid cachedirfs@a)
            inside kill -9 $first
            soon '[ $(main_pid cachedirfs@a) != $first ] && inside systemctl -q is-active cachedirfs@a'
            is $(there /mnt/a) 1
            is "$(inside cat /mnt/a/AB/ab345678901234567890123456789012)" product
            inside cachedirfs status --json /mnt/a | grep -q '"objects": 1'

            # One that hangs does, too.
            second=$(main_pid cachedirfs@a)
            inside kill -STOP $second
            soon '[ $(main_pid cachedirfs@a) != $second ] && inside systemctl -q is-active cachedirfs@a'
            inside journalctl -u cachedirfs@a | grep -qi 'watchdog timeout'
            is $(there /mnt/a) 1
            is $(inside pgrep -cx cachedirfs) 4

            # Another version goes on with it, and is watched like the one before.
            third=$(main_pid cachedirfs@a)
            inside cachedirfs upgrade /mnt/a
            is $(main_pid cachedirfs@a) $third
            soon '[ $(inside pgrep -cx cachedirfs) = 4 ]'

            # A reload has what its file says now count, and ends nothing.
            inside sed -i 's/^pending_max = 100$/pending_max = 200/' /etc/cachedirfs/a.toml
            inside systemctl reload cachedirfs@a
            soon 'inside journalctl -o cat -u cachedirfs@a | grep -q "pending_max = 200 (was 100)"'
            inside systemctl -q is-active cachedirfs@a
            is $(main_pid cachedirfs@a) $third
            is $(there /mnt/a) 1

            # It drains while it stops.
            inside systemctl stop --no-block cachedirfs@a
            soon '[ $(there /mnt/a) = 0 ]'
            soon 'inside systemctl show -p StatusText cachedirfs@a | grep -q draining'
            mkdir -p root/srv/late/remote
            soon '! inside systemctl -q is-active cachedirfs@a && inside systemctl show -p ActiveState cachedirfs@a | grep -q =inactive'
            [ -e root/srv/late/remote/AB/ab345678901234567890123456789012 ]

            # With the key that systemd handed over.
            inside systemctl stop cachedirfs@b
            [ -e root/srv/remote/AB/ab345678901234567890123456789012 ]
            inside cachedirfs verify file:///srv/remote -o key_file=/root/key
            is $(inside pgrep -cx cachedirfs || true) 0"#
        ),
    );
}

#[test]
fn systemd_boots_with_the_network_down_and_automounts() {
    let machine = Machine::new();
    machine.fstab(
        "http://cache.invalid/c /mnt/boot cachedirfs _netdev,nofail,backing=/var/cache/one 0 0\n\
         http://cache.invalid/c /mnt/must cachedirfs _netdev,backing=/var/cache/two 0 0\n\
         file:///srv/remote /mnt/lazy cachedirfs x-systemd.automount,x-systemd.idle-timeout=2s,_netdev,backing=/var/cache/three 0 0\n",
    );
    run(
        &machine,
        &format!(
            "{BOOT}{}",
            r#"inside systemctl is-active remote-fs.target mnt-boot.mount mnt-must.mount mnt-lazy.automount
            is $(there /mnt/boot) 1; is $(there /mnt/must) 1; is $(there /mnt/lazy) 0
            inside sh -c 'mkdir -p /mnt/lazy/AB; cd /mnt/lazy/AB; echo product >t; mv t ab345678901234567890123456789012'
            is $(there /mnt/lazy) 1
            first=$(pid_of /mnt/lazy)
            inside kill -9 $first
            soon '[ $(there /mnt/lazy) = 0 ]'
            is "$(inside cat /mnt/lazy/AB/ab345678901234567890123456789012)" product
            [ $(pid_of /mnt/lazy) != $first ]
            soon '[ $(there /mnt/lazy) = 0 ]'
            inside systemctl is-active mnt-lazy.automount
            [ -e root/srv/remote/AB/ab345678901234567890123456789012 ]
            is "$(inside cat /mnt/lazy/AB/ab345678901234567890123456789012)" product"#
        ),
    );
}
