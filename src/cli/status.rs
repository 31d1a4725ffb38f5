//! `cachedirfs status`: how one mount is doing, or all of them.

mod watch;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::control::Status;
use crate::control::client::{Client, ClientError};
use crate::control::line::line;
use crate::control::mounts::{MountTable, Mounted};

use super::{Env, Exit, Failure, complain, real_path, say};

/// Show how mounts are doing
#[derive(clap::Args)]
pub(super) struct Args {
    /// A mountpoint, or any path in a mount; all mounts when left out
    path: Option<PathBuf>,
    /// As JSON: one object for a path, a list for all mounts
    #[arg(long)]
    json: bool,
    /// In one line, for the log of a build
    #[arg(long, conflicts_with_all = ["json", "divergent", "given_up"])]
    ci: bool,
    /// Again and again, with what happens a second; every 2 seconds if none are given
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        requires = "path",
        conflicts_with_all = ["json", "ci", "divergent", "given_up"],
        value_parser = clap::value_parser!(u64).range(1..=86400)
    )]
    watch: Option<u64>,
    /// List the pushes that differ from what the remote holds, the last thousand since the mount
    #[arg(long, requires = "path")]
    divergent: bool,
    /// List the uploads that were given up, the last thousand since the mount
    #[arg(long, requires = "path", conflicts_with = "divergent")]
    given_up: bool,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let table = MountTable::read()
        .map_err(|err| Failure::new(Exit::Failed, format!("cannot read the mount table: {err}")))?;
    match &args.path {
        Some(path) => one(&table, &real_path(path, &env.host.cwd), args, env),
        None => all(&table, args, env),
    }
}

fn one(table: &MountTable, path: &Path, args: &Args, env: &Env) -> Result<Exit, Failure> {
    let Some(mounted) = table.containing(path).filter(|m| m.is_ours()) else {
        return Err(Failure::new(
            Exit::Failed,
            format!("{}: no cachedirfs is mounted there", path.display()),
        ));
    };
    if let Some(seconds) = args.watch {
        return watch::run(mounted, Duration::from_secs(seconds), env);
    }
    let client = || Client::connect(mounted, &env.run_dir());
    let shown = if args.divergent {
        collect(|after| client()?.divergent(after), |one| one.number)
            .map(|list| show_list(&list, args.json))
    } else if args.given_up {
        collect(|after| client()?.given_up(after), |one| one.number)
            .map(|list| show_list(&list, args.json))
    } else {
        ask(mounted, env).map(|status| show(&status, args))
    };
    shown.map_err(|err| Failure::new(Exit::Failed, trouble(mounted, &err)))?;
    Ok(Exit::Done)
}

/// A whole list, asked for piece by piece.
fn collect<T>(
    next: impl Fn(u64) -> Result<Vec<T>, ClientError>,
    number: fn(&T) -> u64,
) -> Result<Vec<T>, ClientError> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let mut piece = next(after)?;
        match piece.last().map(number).filter(|last| *last > after) {
            Some(last) => after = last,
            None => return Ok(all),
        }
        all.append(&mut piece);
    }
}

fn show_list<T: Serialize + Display>(list: &[T], json: bool) {
    if json {
        show_json(&list);
    } else {
        list.iter().for_each(say);
    }
}

/// Shows all that answer, and complains about the rest.
fn all(table: &MountTable, args: &Args, env: &Env) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    let mut found = Vec::new();
    for mounted in table.ours() {
        match ask(mounted, env) {
            Ok(status) => found.push(status),
            Err(err) => {
                complain(trouble(mounted, &err));
                exit = Exit::Failed;
            }
        }
    }
    if args.json {
        show_json(&found);
    } else if args.ci {
        let line = |status: &Status| say(format_args!("{}: {}", status.mountpoint, line(status)));
        found.iter().for_each(line);
    } else {
        found.iter().for_each(say);
    }
    Ok(exit)
}

fn ask(mounted: &Mounted, env: &Env) -> Result<Status, ClientError> {
    Client::connect(mounted, &env.run_dir())?.status()
}

fn trouble(mounted: &Mounted, err: &ClientError) -> String {
    let mountpoint = mounted.mountpoint.display();
    match err {
        ClientError::Unreachable(_) | ClientError::Broken(_) => {
            format!(
                "{mountpoint}: {err}; if it is dead, mount {} there again or: cachedirfs umount {mountpoint}",
                mounted.source
            )
        }
        _ => format!("{mountpoint}: {err}"),
    }
}

fn show(status: &Status, args: &Args) {
    if args.json {
        show_json(status);
    } else if args.ci {
        say(line(status));
    } else {
        say(status.to_string().trim_end());
    }
}

fn show_json(value: &impl Serialize) {
    say(serde_json::to_string_pretty(value).expect("a status has string keys only"));
}
