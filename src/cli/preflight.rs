//! What is looked at before a mount is tried, so that what is wrong is said in terms of what to do about it.
//!
//! Nothing here waits for another file system: a dead mount is recognised from the mount table and from one call
//! that it fails at once, and an automount trigger is never touched, since that would wait for ourselves.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::control::mounts::{MountTable, Mounted, is_dead};
use crate::sys;

use super::umount::detach;
use super::{complain, topmost};

/// Names shown of a mountpoint that is not empty.
const NAMES_SHOWN: usize = 3;

/// Types of file systems whose server may be gone, so that whoever looks at a path in them may wait for ever.
/// Those that begin with `fuse` are others.
const SERVED: &[&str] = &[
    "9p",
    "afs",
    "autofs",
    "ceph",
    "cifs",
    "gfs2",
    "glusterfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
];

/// Checks everything; returns what is worth a warning once it is mounted, or why it cannot be.
pub(super) fn check(config: &Config, path: Option<&OsStr>) -> Result<Vec<String>, String> {
    let mountpoint = &config.mountpoint;
    make_way(mountpoint)?;
    is_directory(mountpoint)?;
    // If that pulled an automounter's trigger, it is mounted now.
    make_way(mountpoint)?;
    apart(config)?;
    fuse_device()?;
    if !sys::may_administer() {
        user_may_mount(config.allow_other, path)?;
    }
    Ok(not_empty(mountpoint)
        .into_iter()
        .chain(remotes_missing(config))
        .collect())
}

/// The same before a mount that is there is changed.
pub(super) fn check_change(config: &Config) -> Result<Vec<String>, String> {
    apart(config)?;
    Ok(remotes_missing(config).collect())
}

/// A living mount of ours is in the way; a dead one is detached, which is said at once since it is done.
fn make_way(mountpoint: &Path) -> Result<(), String> {
    while let Some(mounted) = topmost(mountpoint)?.filter(Mounted::is_ours) {
        if !is_dead(mountpoint) {
            return Err(format!(
                "{} is mounted there already; nothing was done (to mount anew: cachedirfs umount {})",
                mounted.source,
                mountpoint.display()
            ));
        }
        detach(mountpoint, true).map_err(|err| {
            format!(
                "a dead mount of {} is there and cannot be detached: {err}",
                mounted.source
            )
        })?;
        complain(format_args!(
            "detached a dead mount of {} from {}",
            mounted.source,
            mountpoint.display()
        ));
    }
    Ok(())
}

/// Whether what is to be mounted there stands over the trigger of an automounter, or in a directory of one.
pub(super) fn is_automounted(mountpoint: &Path) -> bool {
    MountTable::read().is_ok_and(|table| table.is_automounted(mountpoint))
}

fn is_directory(mountpoint: &Path) -> Result<(), String> {
    let shown = mountpoint.display();
    match std::fs::metadata(mountpoint) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err("it is not a directory".into()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Err(format!(
            "there is no such directory; make it with: mkdir -p {shown}"
        )),
        Err(err) if err.raw_os_error() == Some(libc::ENOTCONN) => Err(format!(
            "a dead mount of another file system is there; detach it with: umount -l {shown}"
        )),
        Err(err) => Err(err.to_string()),
    }
}

/// The mount must not hold what the daemon works with: it would wait for itself.
fn apart(config: &Config) -> Result<(), String> {
    let mountpoint = &config.mountpoint;
    let backing = would_be(&config.backing);
    let shown = config.backing.display();
    if backing.starts_with(mountpoint) {
        return Err(format!(
            "the backing directory {shown} is inside the mountpoint; choose another with -o backing=DIR"
        ));
    }
    if mountpoint.starts_with(&backing) {
        return Err(format!(
            "it is inside the backing directory {shown}; choose another with -o backing=DIR"
        ));
    }
    for remote in local_remotes(config) {
        remote_apart(config, &remote, &backing)?;
    }
    Ok(())
}

/// The directories of all `file:` remotes.
fn local_remotes(config: &Config) -> impl Iterator<Item = PathBuf> {
    let shards = config.tiers.iter().flat_map(|tier| &tier.shards);
    shards.filter_map(|shard| shard.url.local_dir())
}

fn remote_apart(config: &Config, remote: &Path, backing: &Path) -> Result<(), String> {
    let named = remote.display();
    let remote = if may_hang(remote) {
        remote.to_owned()
    } else {
        would_be(remote)
    };
    if remote.starts_with(&config.mountpoint) {
        return Err(format!(
            "the remote file://{named} is inside the mountpoint"
        ));
    }
    if remote.starts_with(backing) || backing.starts_with(&remote) {
        return Err(format!(
            "the remote file://{named} and the backing directory {} are not apart",
            config.backing.display()
        ));
    }
    Ok(())
}

/// Whether looking at this path may wait for a server.
fn may_hang(path: &Path) -> bool {
    let is_served = |kind: &str| SERVED.contains(&kind) || kind.starts_with("fuse");
    MountTable::read().is_ok_and(|table| {
        table
            .containing(path)
            .is_some_and(|mounted| is_served(&mounted.fs_type))
    })
}

/// A directory that is not there may come yet, or may be a misspelling.
fn remotes_missing(config: &Config) -> impl Iterator<Item = String> {
    let is_missing =
        |dir: &PathBuf| !may_hang(dir) && !dir.exists() && !dir.parent().is_some_and(Path::exists);
    local_remotes(config).filter(is_missing).map(|dir| {
        format!(
            "there is no {} yet, nor the directory above it; until it is mounted or made, lookups are misses and what is \
             pushed waits",
            dir.display()
        )
    })
}

/// What a path that need not exist will be without symbolic links.
fn would_be(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

fn fuse_device() -> Result<(), String> {
    let Err(err) = OpenOptions::new().read(true).write(true).open("/dev/fuse") else {
        return Ok(());
    };
    Err(match err.kind() {
        io::ErrorKind::PermissionDenied => "we may not open /dev/fuse; in a container, start it with --device /dev/fuse; \
             elsewhere give users the right with: chmod 666 /dev/fuse"
            .into(),
        io::ErrorKind::NotFound => {
            "there is no /dev/fuse; load it with: modprobe fuse, or start the container with --device /dev/fuse".into()
        }
        _ => format!("cannot open /dev/fuse: {err}; load it with: modprobe fuse"),
    })
}

/// Users mount through fusermount3, which asks /etc/fuse.conf whether they may let others in.
fn user_may_mount(allow_other: bool, path: Option<&OsStr>) -> Result<(), String> {
    let dirs: Vec<_> = path
        .map(|p| std::env::split_paths(p).collect())
        .unwrap_or_default();
    let is_there = |name: &str| dirs.iter().any(|dir| dir.join(name).is_file());
    if !is_there("fusermount3") && !is_there("fusermount") {
        return Err("fusermount3 is not in the PATH, and only root can mount without it; install the package fuse3".into());
    }
    if allow_other && !other_users_allowed() {
        return Err("allow_other is for root only here; \
             put the line user_allow_other into /etc/fuse.conf, or leave the option out"
            .into());
    }
    Ok(())
}

fn other_users_allowed() -> bool {
    let conf = std::fs::read_to_string("/etc/fuse.conf");
    // A file that we cannot read is left to fusermount3 to judge.
    conf.map_or(true, |conf| {
        conf.lines().any(|line| line.trim() == "user_allow_other")
    })
}

/// Writers may have filled the bare directory while nothing was mounted. We mount over it as NFS does,
/// but say so, or nobody would ever look.
fn not_empty(mountpoint: &Path) -> Option<String> {
    if topmost(mountpoint)
        .ok()
        .flatten()
        .is_some_and(|m| m.is_automounter())
    {
        return None;
    }
    let mut names: Vec<_> = std::fs::read_dir(mountpoint)
        .ok()?
        .take(NAMES_SHOWN + 1)
        .flatten()
        .collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    let more = if names.len() > NAMES_SHOWN {
        ", …"
    } else {
        ""
    };
    let shown: Vec<_> = names
        .iter()
        .take(NAMES_SHOWN)
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    (!shown.is_empty()).then(|| {
        format!(
            "{} is not empty; what is in it is hidden while mounted: {}{more}",
            mountpoint.display(),
            shown.join(", ")
        )
    })
}
