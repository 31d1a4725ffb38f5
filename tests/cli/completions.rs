//! The completion scripts, in the shells that they are for.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use cachedirfs::config::options::OPTIONS;

use super::{Place, can_mount, ended, run};
use crate::docs;
use crate::support::mounted::CACHEDIRFS;
use crate::support::workspace;

/// Calls the function that Tab calls, and prints what it offers: words in `ask`, the last of them unfinished.
const BASH: &str = r#"
source <(cachedirfs completions bash)
is_registered() { [[ $(complete -p cachedirfs) == *"-F _cachedirfs cachedirfs" ]]; }
ask() {
    COMP_LINE="cachedirfs $*" COMP_WORDS=(cachedirfs) words=("$@")
    COMP_POINT=${#COMP_LINE}
    local word
    # As readline does: apart at = and :.
    for word in "$@"; do
        while [[ $word == *[=:]* ]]; do
            local before=${word%%[=:]*}
            [[ -z $before ]] || COMP_WORDS+=("$before")
            word=${word#"$before"}
            COMP_WORDS+=("${word:0:1}")
            word=${word:1}
            [[ -n $word ]] || continue 2
        done
        COMP_WORDS+=("$word")
    done
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _cachedirfs
    printf '%s\n' "${COMPREPLY[@]}"
}
"#;

/// The same; what completes is told to `compadd`, which here prints it.
const ZSH: &str = r#"
autoload -U compinit; compinit -D -u
source <(cachedirfs completions zsh)
is_registered() { [[ $_comps[cachedirfs] == _cachedirfs ]]; }
compadd() { print -l -- "${(@P)@[-1]}"; }
_files() { }
ask() { words=(cachedirfs "$@"); CURRENT=$#words; PREFIX=$words[-1]; _cachedirfs; }
"#;

/// The same by what fish has for it.
const FISH: &str = r#"
cachedirfs completions fish | source
function is_registered; complete -c cachedirfs | string match -q '*__cachedirfs_complete*'; end
function ask; complete -C "cachedirfs $argv" | string replace -r '\t.*' ''; true; end
"#;

const SHELLS: [(&str, &[&str], &str); 3] = [
    ("bash", &["--norc"], BASH),
    ("zsh", &["-f"], ZSH),
    ("fish", &["--no-config"], FISH),
];

/// What a shell says to a script, which may `ask`.
fn says((shell, args, prelude): (&str, &[&str], &str), script: &str) -> Vec<String> {
    let bin = Path::new(CACHEDIRFS).parent().unwrap().display();
    // fish makes directories in it.
    let home = workspace();
    let output = Command::new(shell)
        .args(args)
        .args(["-c", &format!("{prelude}\n{script}")])
        .env("PATH", format!("{bin}:/usr/bin:/bin"))
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{shell}: {error}; run: scripts/setup debian"));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{shell}: {complaint}");
    assert_eq!(complaint, "", "{shell}");
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

fn asks(shell: (&str, &[&str], &str), words: &str) -> BTreeSet<String> {
    says(shell, &format!("ask {words}")).into_iter().collect()
}

#[test]
fn every_shell_takes_its_script() {
    for shell in SHELLS {
        assert_eq!(
            says(shell, "is_registered && echo yes"),
            ["yes"],
            "{}",
            shell.0
        );
    }
}

#[test]
fn every_shell_completes_every_command_and_flag() {
    for shell in SHELLS {
        let found = asks(shell, "''");
        for command in docs::commands() {
            assert!(found.contains(&command), "{}: {command}", shell.0);
        }
        let script: String = docs::commands()
            .iter()
            .filter(|command| *command != "help")
            .map(|command| format!("echo :{command}\nask {command} -\nask {command} --\n"))
            .collect();
        let lines = says(shell, &script).join("\n");
        for part in lines.split(':').skip(1) {
            let (command, flags) = part.split_once('\n').unwrap();
            let found: BTreeSet<_> = flags.lines().map(str::to_owned).collect();
            for flag in docs::flags_in_help(command) {
                assert!(found.contains(&flag), "{}: {command} {flag}", shell.0);
            }
        }
    }
}

#[test]
fn every_shell_completes_names_and_values_of_options() {
    for shell in SHELLS {
        let found = asks(shell, "mount -o ''");
        for option in OPTIONS {
            let equals = if option.value.is_some() { "=" } else { "" };
            let whole = format!("{}{equals}", option.name);
            assert!(found.contains(&whole), "{}: {whole}", shell.0);
        }
        // bash replaces what is behind the last = only.
        let expected = |whole: &str| match shell.0 {
            "bash" => whole.rsplit_once('=').unwrap().1.to_owned(),
            _ => whole.to_owned(),
        };
        let found = asks(shell, "mount -o ro,size=1G,push=s");
        assert_eq!(
            found,
            BTreeSet::from([expected("ro,size=1G,push=sync")]),
            "{}",
            shell.0
        );
        let found = asks(shell, "check -o noallow");
        assert_eq!(
            found,
            BTreeSet::from(["noallow_other".to_owned()]),
            "{}",
            shell.0
        );
    }
}

#[test]
fn every_shell_completes_mounts_directories_and_remotes() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    ended(&place.mount(""), 0);
    let (mounted, parent) = (place.text("m"), place.text(""));
    for shell in SHELLS {
        let behind_colon = |url: &str| match shell.0 {
            "bash" => url.split_once(':').unwrap().1.to_owned(),
            _ => url.to_owned(),
        };
        for command in ["umount", "flush", "status"] {
            let found = asks(shell, &format!("{command} {parent}"));
            assert!(found.contains(&mounted), "{}: {command} {found:?}", shell.0);
        }
        let found = asks(shell, &format!("mount file:///x {mounted}"));
        assert_eq!(
            found,
            BTreeSet::from([format!("{mounted}/")]),
            "{}",
            shell.0
        );
        let found = asks(shell, &format!("check file://{parent}r"));
        let expected = behind_colon(&format!("file://{parent}r/"));
        assert_eq!(found, BTreeSet::from([expected]), "{}", shell.0);
        let found = asks(shell, "check htt");
        assert!(found.contains("https://"), "{}: {found:?}", shell.0);
        let found = asks(shell, &format!("check -o ca_file={parent}r"));
        assert!(
            found
                .iter()
                .any(|file| file.ends_with(&format!("{parent}r/"))),
            "{}: {found:?}",
            shell.0
        );
    }
}

/// Tab, pressed on a terminal.
#[test]
fn tab_completes_what_is_typed() {
    for shell in ["bash --norc -i", "zsh -f -i"] {
        let name = shell.split(' ').next().unwrap();
        let typed =
            "cachedirfs mou\t-o ro,log_le\twarn,pus\tsy\t file:///nonexistent/x /nonexistent/m\n";
        let script = format!(
            "zmodload zsh/zpty
             zpty shell {shell}
             zpty -w shell $'autoload -U compinit; compinit -D -u; PS1=; source <(cachedirfs completions {name}); echo RE''ADY'
             zpty -r shell out '*READY*'
             zpty -n -w shell \"$TYPED\"
             zpty -r shell out '*(cannot mount /nonexistent/m|unknown|expected|rror:)*'
             print -r -- $out"
        );
        let bin = Path::new(CACHEDIRFS).parent().unwrap().display();
        let output = Command::new("timeout")
            .args(["60", "zsh", "-f", "-c", &script])
            .env("PATH", format!("{bin}:/usr/bin:/bin"))
            .env("TYPED", typed)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            said.contains("cannot mount /nonexistent/m"),
            "{name}: {said}"
        );
    }
}

#[test]
fn another_shell_is_refused_with_the_names_of_those_there_are() {
    let said = ended(&run(&["completions", "tcsh"]), super::USAGE);
    assert!(said.contains("bash, zsh, fish"), "{said}");
}
