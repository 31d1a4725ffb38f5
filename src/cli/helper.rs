//! The form in which mount(8) and umount(8) call their helpers: this program by the names `mount.cachedirfs`,
//! `mount.fuse.cachedirfs`, `umount.cachedirfs` and `umount.fuse.cachedirfs`.
//!
//! Arguments and exit status are those of mount(8), section EXTERNAL HELPERS. `fuse.cachedirfs` is the type that the
//! mount table shows, so that is the name by which umount(8) looks for a helper.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::configure::Typed;
use super::{Env, Exit, Failure, complain, mount, real_path, remount, umount};
use crate::config::{foreign, list, options};

/// Which program we are called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Mount,
    Umount,
}

/// Exit status of mount(8) for a command line that is wrong.
const INCORRECT: u8 = 1;

/// The form that goes with the name of the program, if it is a helper's.
pub(super) fn form(program: &OsStr) -> Option<Form> {
    let name = Path::new(program).file_name()?.to_str()?;
    match name.split_once('.')? {
        ("mount", "cachedirfs" | "fuse.cachedirfs") => Some(Form::Mount),
        ("umount", "cachedirfs" | "fuse.cachedirfs") => Some(Form::Umount),
        _ => None,
    }
}

/// Mount a remote cache on a directory, for mount(8)
#[derive(Parser)]
#[command(name = "mount.cachedirfs", version, after_help = options::help(), max_term_width = 100)]
struct MountArgs {
    /// URL of the remote
    remote: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Options, as below
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Take options that are not known, too
    #[arg(short)]
    sloppy: bool,
    /// Check everything, and mount nothing
    #[arg(short)]
    fake: bool,
    /// Taken and ignored: there is no /etc/mtab any more
    #[arg(short)]
    no_mtab: bool,
    /// Say what is done, and what became of options that other file systems know
    #[arg(short)]
    verbose: bool,
    /// Mount in this namespace: a process number or the file of a namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// Taken and ignored
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// Unmount, and wait for what was pushed to reach the remote; for umount(8)
#[derive(Parser)]
#[command(name = "umount.cachedirfs", version, max_term_width = 100)]
struct UmountArgs {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Do not wait for uploads: what is left goes with the next mount
    #[arg(short)]
    force: bool,
    /// Detach it even if it is in use, and do not wait
    #[arg(short)]
    lazy: bool,
    /// Taken and ignored: there is no /etc/mtab any more
    #[arg(short)]
    no_mtab: bool,
    /// Taken and ignored: what cannot be unmounted stays as it is
    #[arg(short)]
    read_only: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// Unmount in this namespace: a process number or the file of a namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// Taken and ignored
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

/// Does what the helper is called for, with these arguments.
pub(super) fn run(form: Form, args: impl Iterator<Item = OsString>, env: &Env) -> ExitCode {
    let end = match form {
        Form::Mount => MountArgs::try_parse_from(args).map(|args| mount_as(args, env)),
        Form::Umount => UmountArgs::try_parse_from(args).map(|args| umount_as(&args, env)),
    };
    match end {
        Err(usage) => {
            // Help and version are errors to clap, too.
            let asked_for = !usage.use_stderr();
            super::print_usage(&usage);
            ExitCode::from(if asked_for { 0 } else { INCORRECT })
        }
        Ok(Ok(Exit::Done)) => ExitCode::SUCCESS,
        Ok(Ok(exit)) => ExitCode::from(status(exit)),
        Ok(Err(failure)) => {
            complain(&failure.message);
            ExitCode::from(status(failure.exit))
        }
    }
}

fn status(exit: Exit) -> u8 {
    match exit {
        Exit::Usage => INCORRECT,
        exit => exit as u8,
    }
}

fn mount_as(args: MountArgs, env: &Env) -> Result<Exit, Failure> {
    enter(args.namespace.as_deref())?;
    let mut options = args.options;
    if list::has(&options, "remount") {
        let (remote, lists) = (args.remote, options.join(","));
        let mounted = remount::Helped {
            remote,
            mountpoint: real_path(&args.mountpoint, &env.host.cwd),
            options: lists,
            fake: args.fake,
            verbose: args.verbose,
        };
        return remount::help(&mounted, env);
    }
    if args.sloppy {
        for given in &mut options {
            let (known, unknown) = list::known(given);
            *given = known;
            for option in unknown {
                complain(format_args!(
                    "option `{option}` is not known here and is left out"
                ));
            }
        }
    }
    if args.verbose {
        for option in options.iter().flat_map(|list| foreign::foreign(list)) {
            complain(format_args!("option `{}`: {}", option.name, option.here));
        }
    }
    let request = mount::Request {
        typed: Typed {
            remote: Some(args.remote),
            mountpoint: Some(real_path(&args.mountpoint, &env.host.cwd)),
            options,
        },
        foreground: false,
        fake: args.fake,
        verbose: args.verbose,
    };
    mount::start(&request, env)
}

fn umount_as(args: &UmountArgs, env: &Env) -> Result<Exit, Failure> {
    enter(args.namespace.as_deref())?;
    let request = umount::Args {
        mountpoint: args.mountpoint.clone(),
        lazy: args.lazy,
        verbose: args.verbose,
        drain_timeout: args.force.then_some(0),
    };
    let exit = umount::run(&request, env)?;
    if args.verbose {
        complain(format_args!("{}: unmounted", args.mountpoint.display()));
    }
    Ok(exit)
}

/// Goes into another mount namespace.
fn enter(namespace: Option<&Path>) -> Result<(), Failure> {
    let Some(namespace) = namespace else {
        return Ok(());
    };
    let is_process = namespace
        .to_str()
        .is_some_and(|text| text.parse::<u32>().is_ok());
    let file = match is_process {
        true => Path::new("/proc").join(namespace).join("ns/mnt"),
        false => namespace.to_path_buf(),
    };
    let entered = File::open(&file).and_then(|file| {
        let kind = Some(LinkNameSpaceType::Mount);
        Ok(move_into_link_name_space(file.as_fd(), kind)?)
    });
    entered.map_err(|err| {
        let why = format!("cannot enter the namespace {}: {err}", file.display());
        Failure::new(Exit::Mount, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_helpers_make_one() {
        for (program, expected) in [
            ("/sbin/mount.cachedirfs", Some(Form::Mount)),
            ("mount.fuse.cachedirfs", Some(Form::Mount)),
            ("/usr/sbin/umount.fuse.cachedirfs", Some(Form::Umount)),
            ("umount.cachedirfs", Some(Form::Umount)),
            ("/usr/bin/cachedirfs", None),
            ("mount.nfs", None),
            ("cachedirfs.mount", None),
            ("", None),
        ] {
            assert_eq!(form(OsStr::new(program)), expected, "{program}");
        }
    }

    #[test]
    fn arguments_are_taken_as_mount_8_gives_them() {
        let words =
            "mount.cachedirfs file:///c /mnt -fnv -s -o rw,size=1G -N 17 -t fuse.cachedirfs";
        let args = MountArgs::try_parse_from(words.split(' ')).unwrap();
        assert!(args.fake && args.no_mtab && args.verbose && args.sloppy);
        assert_eq!(args.options, ["rw,size=1G"]);
        let words = "umount.cachedirfs /mnt -flnrv -N /proc/17/ns/mnt -t fuse.cachedirfs";
        let args = UmountArgs::try_parse_from(words.split(' ')).unwrap();
        assert!(args.force && args.lazy && args.no_mtab && args.read_only && args.verbose);
    }
}
