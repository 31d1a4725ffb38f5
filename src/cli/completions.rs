//! `cachedirfs completions`: the script by which a shell completes our command line, and what that script asks for.
//!
//! A script knows no command and no option. It hands the words to this program, which finds how the last one can go on
//! in the same definitions that read a command line. What a value is, is told by the name that `--help` shows for it, so
//! this module knows no command but by that; nor does it ask a mount or a remote anything.

use std::ffi::{OsStr, OsString};

use clap::{Arg, CommandFactory, ValueEnum};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter, complete,
};

use crate::config::options::OPTIONS;
use crate::control::mounts::MountTable;
use crate::remote;

use super::{Env, Exit, Failure, say};

const INSTALL: &str = "\
Where the scripts go, if the package did not put them there:
  bash  ~/.local/share/bash-completion/completions/cachedirfs
  zsh   _cachedirfs in a directory of $fpath
  fish  ~/.config/fish/completions/cachedirfs.fish";

/// Print the script by which a shell completes commands, options and mounts
#[derive(clap::Args)]
#[command(after_help = INSTALL)]
pub(super) struct Args {
    /// Which shell
    shell: Shell,
    /// What the script asks: how the last of the words can go on, for this shell
    #[arg(last = true, hide = true)]
    words: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("completions/cachedirfs.bash"),
            Self::Zsh => include_str!("completions/cachedirfs.zsh"),
            Self::Fish => include_str!("completions/cachedirfs.fish"),
        }
    }

    /// A candidate in a line, as the script takes it.
    fn line(self, candidate: &CompletionCandidate) -> Option<String> {
        let value = candidate.get_value().to_str()?;
        if value.contains(char::is_control) {
            return None;
        }
        let help = candidate.get_help().map(ToString::to_string);
        let help = help.as_deref().and_then(|text| text.lines().next());
        Some(match (self, help) {
            (Self::Bash, _) => escaped(value),
            (_, Some(help)) => format!("{value}\t{help}"),
            (_, None) => value.to_owned(),
        })
    }
}

pub(super) fn run(args: Args, env: &Env) -> Result<Exit, Failure> {
    if args.words.is_empty() {
        say(args.shell.script().trim_end());
        return Ok(Exit::Done);
    }
    let last = args.words.len() - 1;
    let mut command = with_values(super::Args::command());
    // Where nothing can follow, there is nothing to say.
    let found = complete(&mut command, args.words, last, Some(&env.host.cwd)).unwrap_or_default();
    found
        .iter()
        .filter_map(|candidate| args.shell.line(candidate))
        .for_each(say);
    Ok(Exit::Done)
}

/// With a backslash before what bash would not leave as it is. The script completes no word that has quotes already.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        if " \\'\"`$&;|<>()*?[]{}!#".contains(c) {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// The definitions, with what the values of arguments can be.
fn with_values(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|command| {
        let makes_mounts = command.get_name() == "mount";
        command.mut_args(|arg| match completer(&arg, makes_mounts) {
            Some(completer) => arg.add(completer),
            None => arg,
        })
    })
}

fn completer(arg: &Arg, makes_mounts: bool) -> Option<ArgValueCompleter> {
    if !arg.get_action().takes_values() {
        return None;
    }
    let shown = arg.get_value_names()?.first()?.as_str();
    Some(match shown {
        "OPTION,..." => ArgValueCompleter::new(option_list),
        "REMOTE" | "FROM" | "TO" => ArgValueCompleter::new(remotes),
        "BACKING|REMOTE" => ArgValueCompleter::new(|current: &OsStr| {
            let mut found = remotes(current);
            found.extend(PathCompleter::dir().complete(current));
            found
        }),
        "MOUNTPOINT" if !makes_mounts => ArgValueCompleter::new(mountpoints),
        "PATH" => ArgValueCompleter::new(|current: &OsStr| {
            let mut found = mountpoints(current);
            found.extend(PathCompleter::any().complete(current));
            found
        }),
        "MOUNTPOINT" | "DIR" => ArgValueCompleter::new(PathCompleter::dir()),
        "FILE" | "LOG" | "COMMAND" | "SIGNATURE" => ArgValueCompleter::new(PathCompleter::any()),
        _ => return None,
    })
}

/// Where something of ours is mounted.
fn mountpoints(current: &OsStr) -> Vec<CompletionCandidate> {
    let Ok(table) = MountTable::read() else {
        return Vec::new();
    };
    let ours = table.ours().filter(|mounted| {
        let path = mounted.mountpoint.as_os_str().as_encoded_bytes();
        path.starts_with(current.as_encoded_bytes())
    });
    ours.map(|mounted| {
        CompletionCandidate::new(&mounted.mountpoint).help(Some(mounted.source.clone().into()))
    })
    .collect()
}

/// Kinds of remotes, and the directories of `file:`.
fn remotes(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else {
        return Vec::new();
    };
    if let Some(path) = current.strip_prefix("file://") {
        let dirs = PathCompleter::dir().complete(OsStr::new(path)).into_iter();
        return dirs.map(|dir| dir.add_prefix("file://")).collect();
    }
    remote::schemes()
        .map(|scheme| match scheme {
            "file" => "file:///".to_owned(),
            _ => format!("{scheme}://"),
        })
        .filter(|url| url.starts_with(current) && url != current)
        .map(CompletionCandidate::new)
        .collect()
}

/// The last option of a list: its name, or its value if there are words for it or it is a file.
fn option_list(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(list) = current.to_str() else {
        return Vec::new();
    };
    let (before, option) = last_option(list);
    let found = match option.split_once('=') {
        None => option_names(option),
        Some((name, value)) => {
            let name = format!("{name}=");
            let values = option_values(&name, value).into_iter();
            values.map(|value| value.add_prefix(&name)).collect()
        }
    };
    let found = found.into_iter();
    found.map(|one| one.add_prefix(before)).collect()
}

/// A list up to a comma that no backslash takes the meaning from, and what is behind it.
fn last_option(list: &str) -> (&str, &str) {
    let mut start = 0;
    let mut escape = false;
    for (at, c) in list.char_indices() {
        if c == ',' && !escape {
            start = at + 1;
        }
        escape = c == '\\' && !escape;
    }
    list.split_at(start)
}

fn option_names(typed: &str) -> Vec<CompletionCandidate> {
    let mut found = Vec::new();
    for spec in OPTIONS {
        let mut add = |name: String, help: String| {
            if name.starts_with(typed) {
                found.push(CompletionCandidate::new(name).help(Some(help.into())));
            }
        };
        match spec.value {
            Some(_) => add(format!("{}=", spec.name), spec.help.to_owned()),
            None => {
                add(spec.name.to_owned(), spec.help.to_owned());
                // Twice as many names are offered only to who asks for them.
                if typed.starts_with("no") {
                    let name = format!("no{}", spec.name);
                    add(name, format!("not: {}", spec.help));
                }
            }
        }
    }
    found
}

/// What can stand behind `name=`.
fn option_values(name: &str, typed: &str) -> Vec<CompletionCandidate> {
    let Some(spec) = OPTIONS
        .iter()
        .find(|spec| name.strip_suffix('=') == Some(spec.name))
    else {
        return Vec::new();
    };
    match spec.value {
        Some("DIR") => PathCompleter::dir().complete(OsStr::new(typed)),
        Some("FILE") => PathCompleter::any().complete(OsStr::new(typed)),
        Some("LEVEL") => words("off|error|warn|info|debug|trace", typed),
        Some("REMOTE") => remotes(OsStr::new(typed)),
        Some(several) if several.contains('|') => words(several, typed),
        Some(_) => Vec::new(),
        None => words("on|off", typed),
    }
}

/// Those of several words that are no placeholders and begin as what is typed does.
fn words(several: &str, typed: &str) -> Vec<CompletionCandidate> {
    let words = several.split('|').filter(|word| word.starts_with(typed));
    words
        .filter(|word| !word.contains(|c: char| c.is_ascii_uppercase()))
        .map(CompletionCandidate::new)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(found: &[CompletionCandidate]) -> Vec<&str> {
        let values = found.iter().map(|one| one.get_value().to_str().unwrap());
        values.collect()
    }

    #[test]
    fn a_list_is_completed_behind_its_last_comma() {
        let list = |typed: &str| option_list(OsStr::new(typed));
        assert_eq!(
            values(&list("size=1G,backin")),
            ["size=1G,backing="],
            "a name"
        );
        assert_eq!(
            values(&list("ro,push=o")),
            ["ro,push=on", "ro,push=off"],
            "a value"
        );
        assert_eq!(values(&list("fsname=a\\,ro")), [""; 0], "part of a value");
        assert_eq!(values(&list("noallow")), ["noallow_other"]);
        assert_eq!(
            values(&list("layout=")),
            ["layout=upper", "layout=lower", "layout=flat"]
        );
        assert_eq!(list("").len(), OPTIONS.len());
    }

    #[test]
    fn an_escaped_comma_is_none() {
        assert_eq!(last_option("a,b"), ("a,", "b"));
        assert_eq!(last_option("a\\,b"), ("", "a\\,b"));
        assert_eq!(last_option("a\\\\,b"), ("a\\\\,", "b"));
        assert_eq!(last_option(""), ("", ""));
    }

    #[test]
    fn whatever_takes_a_list_of_options_completes_it() {
        let mut command = with_values(super::super::Args::command());
        command.build();
        for command in command.get_subcommands() {
            for arg in command.get_arguments() {
                let shown = arg.get_value_names().and_then(<[_]>::first);
                if shown.is_some_and(|name| name == "OPTION,...") {
                    let has = arg.get::<ArgValueCompleter>().is_some();
                    assert!(has, "{} {arg}", command.get_name());
                }
            }
        }
    }

    #[test]
    fn what_bash_would_take_apart_is_escaped() {
        assert_eq!(escaped("/a b/$c=d,e"), "/a\\ b/\\$c=d,e");
    }
}
