//! `cachedirfs remount`, and `mount -o remount`: changes a mount while it is used.

use std::path::{Path, PathBuf};

use crate::config::list;
use crate::control::Remount;
use crate::control::client::Client;
use crate::control::mounts::Mounted;

use super::{Env, Exit, Failure, complain, our_mount, real_path, say};

/// Change a mount while it is used
///
/// What is not said stays as it is. The configuration file of the mount is read again.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// The remote from now on; several are separated by white space
    #[arg(long, value_name = "REMOTE")]
    remote: Option<String>,
    /// Options that are to change, as for mounting it
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Say what was changed
    #[arg(short, long)]
    verbose: bool,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = real_path(&args.mountpoint, &env.host.cwd);
    let mounted = our_mount(&mountpoint).map_err(|why| cannot(&mountpoint, &why))?;
    let changes = change(&mounted, args.remote.clone(), &args.options.join(","), env)?;
    if args.verbose {
        changes.iter().for_each(say);
    }
    Ok(Exit::Done)
}

/// A remount by mount(8).
pub(super) struct Helped {
    pub(super) remote: String,
    pub(super) mountpoint: PathBuf,
    pub(super) options: String,
    pub(super) fake: bool,
    pub(super) verbose: bool,
}

/// Does what mount(8) asks for.
pub(super) fn help(helped: &Helped, env: &Env) -> Result<Exit, Failure> {
    let mountpoint = &helped.mountpoint;
    let mounted = our_mount(mountpoint).map_err(|why| cannot(mountpoint, &why))?;
    let wanted = Wanted::of(&helped.options);
    if wanted.from_table && !wanted.says_anything && is_read_only(&mounted, env) {
        // What mount(8) hands over is the same with `rw` and without it.
        let why = "it is read-only, and mount(8) does not say whether that is to change; say noro instead of rw, or \
                   use: cachedirfs remount";
        return Err(cannot(mountpoint, why));
    }
    if helped.fake {
        return Ok(Exit::Done);
    }
    // What the mount table has is what it was mounted with at first.
    let source = (!wanted.from_table).then(|| helped.remote.clone());
    let changes = change(&mounted, source, &wanted.options, env)?;
    if helped.verbose {
        changes.iter().for_each(complain);
    }
    Ok(Exit::Done)
}

/// What the options mean that mount(8) hands over.
struct Wanted {
    options: String,
    /// They are those of the mount table with what was typed put in; otherwise those of fstab, or typed ones alone.
    from_table: bool,
    /// More than the mount table does.
    says_anything: bool,
}

/// What the mount table says of every FUSE mount, and is no option of ours.
const OF_FUSE: &[&str] = &[
    "user_id", "group_id", "max_read", "blksize", "rootmode", "fd",
];
/// What it may say of one of ours.
const OF_TABLE: &[&str] = &[
    "rw",
    "nosuid",
    "nodev",
    "noexec",
    "noatime",
    "relatime",
    "default_permissions",
    "allow_other",
];
/// Flags that it says when they are set, and how one says that they are not.
const FLAGS: &[(&str, &str)] = &[
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("noexec", "exec"),
    ("noatime", "atime"),
];

impl Wanted {
    fn of(handed: &str) -> Self {
        let handed = list::without(handed, &["remount"]);
        let all = [handed.clone()];
        if !list::has(&all, "user_id") {
            return Self {
                options: handed,
                from_table: false,
                says_anything: true,
            };
        }
        let typed = list::without(&handed, OF_FUSE);
        // Besides, mount(8) remembers what it was told at the first time, such as _netdev.
        let said = list::without(&list::meaningful(&typed), OF_TABLE);
        let says_anything = !said.is_empty();
        // The table has `rw` for all of ours, as `config.lock` can be written in every one.
        let mut options = list::without(&typed, &["rw", "relatime"]);
        for (flag, opposite) in FLAGS {
            if !list::has(&all, flag) {
                options += &format!(",{opposite}");
            }
        }
        Self {
            options,
            from_table: true,
            says_anything,
        }
    }
}

fn is_read_only(mounted: &Mounted, env: &Env) -> bool {
    let status = Client::connect(mounted, &env.run_dir()).and_then(Client::status);
    status.is_ok_and(|status| status.read_only)
}

fn change(
    mounted: &Mounted,
    source: Option<String>,
    options: &str,
    env: &Env,
) -> Result<Vec<String>, Failure> {
    let wanted = Remount {
        source,
        options: list::absolute(options, &env.host.cwd),
    };
    let asked = Client::connect(mounted, &env.run_dir()).and_then(|client| client.remount(wanted));
    asked.map_err(|err| cannot(&mounted.mountpoint, &err.to_string()))
}

fn cannot(mountpoint: &Path, why: &str) -> Failure {
    let shown = mountpoint.display();
    Failure::new(Exit::Mount, format!("cannot remount {shown}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As mount(8) of util-linux 2.38 hands them over.
    #[test]
    fn what_mount_8_merges_in_from_the_mount_table_is_taken_out_again() {
        let table =
            "nosuid,nodev,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other";
        let wanted = Wanted::of(&format!("rw,{table}"));
        assert!(wanted.from_table && !wanted.says_anything);
        let kept = "nosuid,nodev,default_permissions,allow_other";
        assert_eq!(wanted.options, format!("{kept},exec,atime"));
        let wanted = Wanted::of(&format!("ro,{table},size=5G"));
        assert!(wanted.says_anything);
        assert_eq!(wanted.options, format!("ro,{kept},size=5G,exec,atime"));
        let wanted = Wanted::of(&format!("rw,{table},_netdev,x-foo=1"));
        assert!(wanted.from_table && !wanted.says_anything);
        let wanted = Wanted::of("rw,remount,size=7G,_netdev");
        assert!(!wanted.from_table && wanted.says_anything);
        assert_eq!(wanted.options, "rw,size=7G,_netdev");
    }
}
