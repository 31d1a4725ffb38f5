//! `cachedirfs why`: why an entry was missed, or was there, from the event log and from the mount.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::control::client::Client;
use crate::control::mounts::{MountTable, Mounted};
use crate::control::{Entry, Status};
use crate::events::reader::{is_prefix, only_signature, read_about};
use crate::events::record::Record;
use crate::events::why::{Story, story};
use crate::signature::Signature;

use super::{Env, Exit, Failure, complain, real_path, say};

/// Say why an entry was missed, or where it came from
///
/// From the event log (option events), also from files that were rotated away, and from the mount as it is now. The exit
/// status is 0 when the entry is here or on a remote, as far as can be told, 1 when it is not, 2 when it could not be
/// found out.
#[derive(clap::Args)]
#[command(allow_missing_positional = true)]
pub(super) struct Args {
    /// A mountpoint, or any path in a mount; may be left out where only one is mounted
    mountpoint: Option<PathBuf>,
    /// A signature, its beginning, or a path that ends in one
    #[arg(required = true)]
    signature: PathBuf,
    /// Read this event log; without a mountpoint, no mount is asked
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Have the mount ask each remote now whether it has the entry, and whole
    #[arg(long)]
    ask: bool,
    /// How long to wait for the remotes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// All that was found out.
#[derive(Serialize)]
struct Found<'a> {
    signature: String,
    /// `here`, `remote`, `nowhere` or `unknown`.
    found: &'static str,
    story: &'a Story,
    /// What the mount says now; absent when none was asked.
    now: Option<&'a Entry>,
    /// Remotes that are in trouble now.
    troubles: &'a [String],
}

/// The mount that is asked, and how it is.
struct Asked {
    mounted: Mounted,
    status: Status,
}

pub(super) fn run(args: &Args, env: &Env) -> Result<Exit, Failure> {
    let typed = args.signature.file_name().and_then(OsStr::to_str);
    let typed = typed.unwrap_or_default();
    let cannot = |why: String| {
        let shown = args.signature.display();
        Failure::new(Exit::Usage, format!("cannot say why {shown}: {why}"))
    };
    if !is_prefix(typed) {
        let why = "it is neither a signature nor the beginning of one: lower-case hex digits";
        return Err(cannot(why.to_owned()));
    }
    let asked = mount(args, env).map_err(cannot)?;
    let log = log_of(args, asked.as_ref(), env);
    let records = match &log {
        Some(log) => read_about(log, typed).map_err(|err| {
            cannot(format!(
                "cannot read the event log {}: {err}",
                log.display()
            ))
        })?,
        None => Vec::new(),
    };
    let sig = match only_signature(&records, typed).map_err(cannot)? {
        Some(sig) => sig,
        None => on_disk(asked.as_ref(), typed).map_err(cannot)?,
    };
    let now = match &asked {
        Some(asked) => Some(ask(args, asked, &sig, env).map_err(cannot)?),
        None => None,
    };
    let about = |record: &&Record| record.signature.is_none_or(|of| of == sig);
    let story = story(&records.iter().filter(about).collect::<Vec<_>>());
    let troubles = asked
        .as_ref()
        .map_or(Vec::new(), |asked| troubles(&asked.status));
    let found = Found {
        signature: sig.to_string(),
        found: verdict(&story, now.as_ref()),
        story: &story,
        now: now.as_ref(),
        troubles: &troubles,
    };
    if args.json {
        say(serde_json::to_string_pretty(&found).expect("string keys only"));
    } else {
        tell(&found, log.as_deref());
    }
    Ok(match found.found {
        "unknown" => Exit::Usage,
        "nowhere" => Exit::Failed,
        _ => Exit::Done,
    })
}

/// The mount that is meant, and its status; `None` when only a file is.
fn mount(args: &Args, env: &Env) -> Result<Option<Asked>, String> {
    if args.mountpoint.is_none() && args.events.is_some() && !args.ask {
        return Ok(None);
    }
    let table = MountTable::read().map_err(|err| format!("cannot read the mount table: {err}"))?;
    let in_path = args.signature.components().count() > 1;
    let path = args
        .mountpoint
        .as_ref()
        .or(in_path.then_some(&args.signature));
    let mounted = match path {
        Some(path) => {
            let path = real_path(path, &env.host.cwd);
            let found = table.containing(&path).filter(|m| m.is_ours()).cloned();
            found.ok_or_else(|| format!("no cachedirfs is mounted at {}", path.display()))?
        }
        None => {
            let all: Vec<_> = table.ours().collect();
            match all[..] {
                [only] => only.clone(),
                [] => return Err("no cachedirfs is mounted; name a file with --events".into()),
                _ => return Err("several cachedirfs are mounted; name a mountpoint".into()),
            }
        }
    };
    let status = Client::connect(&mounted, &env.run_dir()).and_then(Client::status);
    match status {
        Ok(status) => Ok(Some(Asked { mounted, status })),
        // What the file says is worth having without it.
        Err(err) if args.events.is_some() && !args.ask => {
            complain(format_args!("{}: {err}", mounted.mountpoint.display()));
            Ok(None)
        }
        Err(err) => Err(format!("{}: {err}", mounted.mountpoint.display())),
    }
}

fn log_of(args: &Args, asked: Option<&Asked>, env: &Env) -> Option<PathBuf> {
    let named = args.events.as_ref().map(|file| env.host.cwd.join(file));
    named.or_else(|| Some(PathBuf::from(asked?.status.events.as_ref()?)))
}

/// The only entry on the disk that begins so.
fn on_disk(asked: Option<&Asked>, prefix: &str) -> Result<Signature, String> {
    let none = || {
        format!("nothing is known of a signature that begins with {prefix}; say the whole of it")
    };
    let backing = Path::new(&asked.ok_or_else(none)?.status.backing);
    let mut found = std::collections::BTreeSet::new();
    for dir in std::fs::read_dir(backing).into_iter().flatten().flatten() {
        let dir_name = dir.file_name().to_string_lossy().to_ascii_lowercase();
        if !is_prefix(&dir_name) || !(prefix.starts_with(&dir_name) || dir_name.starts_with(prefix))
        {
            continue;
        }
        for file in std::fs::read_dir(dir.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = file.file_name();
            let sig = name
                .to_str()
                .and_then(|name| Signature::parse(name.as_bytes()));
            found.extend(sig.filter(|sig| sig.as_str().starts_with(prefix)));
        }
    }
    match (found.pop_first(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(none()),
        (Some(_), more) => Err(format!(
            "{prefix} begins {} signatures; say more of it",
            more + 1
        )),
    }
}

fn ask(args: &Args, asked: &Asked, sig: &Signature, env: &Env) -> Result<Entry, String> {
    let patience = Duration::from_secs(args.timeout);
    let client = Client::connect(&asked.mounted, &env.run_dir());
    let entry = client.and_then(|client| client.entry(sig.as_str(), args.ask, patience));
    entry.map_err(|err| format!("{}: {err}", asked.mounted.mountpoint.display()))
}

fn verdict(story: &Story, now: Option<&Entry>) -> &'static str {
    let holds = |state: &str| now.is_some_and(|now| now.remotes.iter().any(|r| r.state == state));
    let was_asked = now.is_some_and(|now| !now.remotes.is_empty());
    let here = match now {
        Some(now) => Some(now.here.is_some() || now.pending),
        None => story.here,
    };
    match (here, story.on_remote) {
        (Some(true), _) => "here",
        _ if holds("whole") => "remote",
        // One that did not answer may have it.
        _ if was_asked && holds("failed") => "unknown",
        _ if was_asked => "nowhere",
        (_, Some(true)) => "remote",
        (Some(false), Some(false)) => "nowhere",
        _ => "unknown",
    }
}

fn troubles(status: &Status) -> Vec<String> {
    let ill = status.remotes.iter().filter_map(|remote| {
        let why = remote.trouble.as_ref()?;
        let (name, state, since) = (&remote.name, &remote.state, remote.since_seconds);
        Some(format!(
            "{name} is {state} for {since} s and is not asked: {why}"
        ))
    });
    ill.collect()
}

fn tell(found: &Found<'_>, log: Option<&Path>) {
    say(&found.signature);
    if let Some(last) = &found.story.last {
        let how = if last.cause.is_hit() {
            "a hit"
        } else {
            "a miss"
        };
        say(format_args!(
            "  asked for last at {}: {how}: {}",
            last.time, last.said
        ));
    } else if log.is_some() {
        say("  the event log knows of nobody who asked for it");
    } else {
        say("  there is no event log; mount with -o events=FILE to have one from then on");
    }
    if let Some(miss) = &found.story.last_miss {
        say(format_args!(
            "  missed before, at {}: {}",
            miss.time, miss.said
        ));
    }
    if let Some(now) = found.now {
        tell_now(now);
    }
    for trouble in found.troubles {
        say(format_args!("  now: {trouble}"));
    }
    if !found.story.lines.is_empty() {
        say("  what happened:");
        for line in &found.story.lines {
            say(format_args!("    {line}"));
        }
    }
    say(match found.found {
        "here" => "  it is here",
        "remote" if found.now.is_some_and(|now| !now.remotes.is_empty()) => "  it is on a remote",
        "remote" => "  it was on a remote when that was last heard of; ask it with --ask",
        "nowhere" => "  it is neither here nor on a remote, as far as is known",
        _ => "  where it is is not known; have the remotes asked with --ask",
    });
}

fn tell_now(now: &Entry) {
    say(match now.here {
        Some(bytes) => format!("  now: on the disk, {bytes} bytes"),
        None => "  now: not on the disk".to_owned(),
    });
    if now.pending {
        say("  now: its upload waits or is under way");
    }
    if let Some(left) = now.absent_ms {
        let left = Duration::from_millis(left).as_secs_f64();
        say(format_args!(
            "  now: remembered as absent for {left:.1} s more"
        ));
    }
    for remote in &now.remotes {
        let bytes = remote
            .bytes
            .map_or(String::new(), |bytes| format!(", {bytes} bytes"));
        let why = remote
            .trouble
            .as_ref()
            .map_or(String::new(), |why| format!(": {why}"));
        let (name, state, took) = (&remote.remote, &remote.state, remote.milliseconds);
        say(format_args!(
            "  now: {name}: {state}{bytes} (asked for {took} ms){why}"
        ));
    }
}
