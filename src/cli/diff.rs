//! `cachedirfs diff`: what changed between two builds, from their event logs.

use std::path::PathBuf;

use crate::events::diff::{Difference, Fate, Totals, diff};
use crate::events::names::Names;
use crate::events::reader::{Log, Part};
use crate::events::why::Reason;

use super::{Env, Exit, Failure, plural, say};

/// Say what changed between two builds, from event logs
///
/// A LOG is a file of events: its last session, FILE:N for the Nth session from its end, or FILE@FROM..TO for what happened
/// between two times, of which each may be left out. The exit status is that of diff(1): 0 when nothing is different,
/// 1 when something is, 2 when that could not be found out.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The earlier build
    #[arg(value_name = "LOG")]
    then: String,
    /// The later build
    #[arg(value_name = "LOG")]
    now: String,
    /// What SCons wrote for --cache-debug=FILE, to name targets; for each build
    #[arg(long, value_name = "FILE")]
    names: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, _: &Env) -> Result<Exit, Failure> {
    let cannot = |why: String| Failure::new(Exit::Usage, format!("cannot compare: {why}"));
    let (then, now) = (
        read(&args.then).map_err(cannot)?,
        read(&args.now).map_err(cannot)?,
    );
    let names = names(&args.names).map_err(cannot)?;
    let difference = diff(&then, &now, &names);
    if args.json {
        say(serde_json::to_string_pretty(&difference).expect("string keys only"));
    } else {
        tell(&difference);
    }
    Ok(if difference.is_none() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn read(text: &str) -> Result<Log, String> {
    let read = |part: Part| {
        part.read()
            .map_err(|err| format!("{}: {err}", part.file.display()))
    };
    Part::parse(text).and_then(read)
}

fn names(files: &[PathBuf]) -> Result<Names, String> {
    let mut names = Names::default();
    for file in files {
        let shown = file.display();
        let text = std::fs::read(file).map_err(|err| format!("{shown}: {err}"))?;
        if names.add(&String::from_utf8_lossy(&text)) == 0 {
            return Err(format!(
                "{shown}: no names; expected what scons --cache-debug={shown} writes"
            ));
        }
    }
    Ok(names)
}

fn tell(difference: &Difference) {
    tell_totals("then", &difference.then);
    tell_totals("now", &difference.now);
    if difference.is_none() {
        return say("nothing is different");
    }
    let now = |fate: &Fate| told(fate.now.as_ref());
    let then = |fate: &Fate| told(fate.then.as_ref());
    tell_list("hit then, missed now", &difference.lost, now);
    tell_list("missed then, hit now", &difference.won, |fate| {
        format!("then {}; now {}", then(fate), now(fate))
    });
    if !difference.changed.is_empty() {
        say(format_args!(
            "inputs or command changed: {}",
            difference.changed.len()
        ));
    }
    for changed in &difference.changed {
        let list = |sigs: &std::collections::BTreeSet<String>| {
            sigs.iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (then, now) = (list(&changed.then), list(&changed.now));
        say(format_args!(
            "  {}: asked for {then} then, {now} now: its inputs changed",
            changed.name
        ));
    }
    tell_list("asked for only then", &difference.only_then, then);
    tell_list("asked for only now", &difference.only_now, now);
}

fn told(reason: Option<&Reason>) -> String {
    reason.map_or(String::new(), |reason| reason.said.clone())
}

fn tell_list(title: &str, list: &[Fate], said: impl Fn(&Fate) -> String) {
    if list.is_empty() {
        return;
    }
    say(format_args!("{title}: {}", list.len()));
    for fate in list {
        let names = fate
            .names
            .iter()
            .map(|name| format!("{name} "))
            .collect::<String>();
        say(format_args!("  {names}{}: {}", fate.signature, said(fate)));
    }
}

fn tell_totals(side: &str, totals: &Totals) {
    let Totals { from, to, .. } = totals;
    say(format_args!("{side}, {from} to {to}"));
    let causes = totals
        .causes
        .iter()
        .map(|(cause, count)| format!("{} {count}", cause.name()));
    say(format_args!(
        "  asked for {}: {}, {}",
        plural(totals.asked, "signature"),
        plural(totals.hits, "hit"),
        match causes.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "no causes".to_owned(),
            some => some,
        }
    ));
    say(format_args!(
        "  fetched {} ({} bytes), pushed {} ({} bytes), uploaded {} ({} bytes), waited {:.3} s",
        totals.fetched,
        totals.fetched_bytes,
        totals.pushed,
        totals.pushed_bytes,
        totals.uploaded,
        totals.uploaded_bytes,
        totals.waited_seconds
    ));
    if totals.dropped > 0 {
        say(format_args!(
            "  {} are missing in the log",
            plural(totals.dropped, "event")
        ));
    }
}
