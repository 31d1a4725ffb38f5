//! The forms of commands: arguments, values of flags, synopses, exit statuses; and what every page has.

use std::collections::BTreeSet;

use super::{commands, root, said, section, set, sources, text};

/// Pages, and the sections that whoever runs a program looks for.
const PAGES: [&str; 2] = ["man/cachedirfs.1", "man/mount.cachedirfs.8"];
const SECTIONS: [&str; 7] = [
    "ENVIRONMENT",
    "SIGNALS",
    "FILES",
    "EXIT STATUS",
    "EXAMPLES",
    "DIAGNOSTICS",
    "SEE ALSO",
];

/// A command and what of it is compared.
struct Form {
    /// Arguments in order, in small letters.
    arguments: Vec<String>,
    /// Flags that take a value, with what stands for it.
    values: BTreeSet<(String, String)>,
}

/// `REMOTE`, `<REMOTE>`, `[PATH]`, `<COMMAND>...`: `remote` and so on. Of alternatives each.
fn placeholders(word: &str) -> impl Iterator<Item = String> {
    let bare = word.trim_matches(|c: char| "<>[].,".contains(c));
    bare.split('|')
        .filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase()))
        .map(str::to_ascii_lowercase)
}

fn form_in_help(command: &str) -> Form {
    let help = said(&[command, "--help"]);
    let usage = help.lines().find_map(|line| line.strip_prefix("Usage: "));
    // `[OPTIONS]` stands for all flags; those that are needed stand there themselves.
    let words = usage
        .unwrap()
        .split(' ')
        .filter(|word| *word != "[OPTIONS]");
    let mut arguments = Vec::new();
    let mut words = words.skip(2).peekable();
    while let Some(word) = words.next() {
        if word.starts_with("--") && word.len() > 2 {
            words.next();
        } else {
            arguments.extend(placeholders(word));
        }
    }
    // A value that may be left out is one, too.
    let help = help.replace("[=<", " <");
    let lines = help.lines().map(str::trim_start);
    let flags = lines.filter(|line| line.starts_with('-'));
    let values = flags.filter_map(|line| {
        let (names, rest) = line.split_once(" <")?;
        let (value, _) = rest.split_once('>')?;
        let name = names.split(", ").last()?;
        // Of a list one part stands for all.
        let value = value.split(',').next()?;
        (!names.contains("  ")).then(|| (name.to_owned(), value.to_ascii_lowercase()))
    });
    Form {
        arguments,
        values: values.collect(),
    }
}

/// Lines of the item of a command in COMMANDS, its head first.
fn item<'a>(page: &'a str, command: &str) -> Vec<&'a str> {
    let head = format!(".It Cm {command}");
    let is_head = |line: &str| line == head || line.starts_with(&format!("{head} "));
    let names = commands();
    let is_other = |line: &&str| {
        let name = line
            .strip_prefix(".It Cm ")
            .map(|rest| rest.split(' ').next());
        !name
            .flatten()
            .is_some_and(|name| names.iter().any(|n| n == name))
    };
    let mut lines = section(page, "COMMANDS")
        .into_iter()
        .skip_while(|line| !is_head(line));
    let first = lines.next().unwrap();
    let rest = lines.take_while(is_other);
    [first].into_iter().chain(rest).collect()
}

fn form_in_man(page: &str, command: &str) -> Form {
    let lines = item(page, command);
    let words = lines[0].split(' ').skip(3);
    let is_name = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase());
    let mut values = BTreeSet::new();
    for line in lines.iter().filter_map(|line| line.strip_prefix(".It Fl ")) {
        let line = line.replace(" Ns Op = Ns Ar ", " Ar ");
        let Some((names, value)) = line.split_once(" Ar ") else {
            continue;
        };
        let name = names.split(' ').next_back().unwrap();
        let value = value.split(' ').next().unwrap().to_ascii_lowercase();
        values.insert((format!("-{name}"), value));
    }
    Form {
        arguments: words.filter(is_name).map(str::to_owned).collect(),
        values,
    }
}

/// The synopsis of a command.
fn synopsis<'a>(page: &'a str, command: &str) -> Vec<&'a str> {
    let lines = section(page, "SYNOPSIS");
    let head = format!(".Cm {command}");
    let lines = lines.into_iter().skip_while(|line| *line != head).skip(1);
    lines.take_while(|line| *line != ".Nm").collect()
}

#[test]
fn every_argument_and_value_is_named_in_the_man_page_as_in_the_help() {
    let page = text("man/cachedirfs.1");
    for command in commands().iter().filter(|name| *name != "help") {
        let (help, mut man) = (form_in_help(command), form_in_man(&page, command));
        // What follows a command is its own.
        man.arguments.retain(|word| word != "argument");
        assert_eq!(
            man.arguments, help.arguments,
            "man/cachedirfs.1, COMMANDS, {command}"
        );
        assert_eq!(
            man.values, help.values,
            "man/cachedirfs.1, COMMANDS, {command}"
        );
        let words: BTreeSet<_> = synopsis(&page, command)
            .iter()
            .flat_map(|line| line.split(' '))
            .collect();
        for argument in &help.arguments {
            assert!(
                words.contains(argument.as_str()),
                "man/cachedirfs.1, SYNOPSIS, {command} lacks {argument}"
            );
        }
    }
}

#[test]
fn every_flag_is_in_the_synopsis() {
    let page = text("man/cachedirfs.1");
    for command in commands().iter().filter(|name| *name != "help") {
        let help = said(&[command, "--help"]);
        let lines = help.lines().map(str::trim_start);
        for line in lines.filter(|line| line.starts_with('-') && !line.starts_with("-h,")) {
            let names = line.split("  ").next().unwrap().split(", ");
            let names: Vec<_> = names
                .map(|name| &name.split([' ', '[']).next().unwrap()[1..])
                .collect();
            let is_there = |line: &&&str| {
                line.split(' ').any(|word| names.contains(&word)) && line.contains("Fl ")
            };
            assert!(
                synopsis(&page, command).iter().any(|line| is_there(&line)),
                "man/cachedirfs.1, SYNOPSIS, {command} lacks {names:?}"
            );
        }
    }
}

/// Numbers that a list of exit statuses begins its items with.
fn statuses<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeSet<u8> {
    let heads = lines.flat_map(|line| line.split("  ").next().unwrap_or("").split(", "));
    heads.filter_map(|head| head.parse().ok()).collect()
}

#[test]
fn the_exit_statuses_of_the_help_are_those_of_the_man_page() {
    let help = said(&["--help"]);
    let (_, help) = help.split_once("Exit status:\n").unwrap();
    let in_help = statuses(help.lines().map(str::trim_start));
    let page = text("man/cachedirfs.1");
    let items = section(&page, "EXIT STATUS");
    let in_man = statuses(items.iter().filter_map(|line| line.strip_prefix(".It ")));
    assert!(in_man.len() >= 4, "{in_man:?}");
    assert_eq!(in_man, in_help, "man/cachedirfs.1, EXIT STATUS");

    let page = text("man/mount.cachedirfs.8");
    let items = section(&page, "EXIT STATUS");
    let of_helpers = statuses(items.iter().filter_map(|line| line.strip_prefix(".It ")));
    assert_eq!(of_helpers, set([0, 1, 32]), "man/mount.cachedirfs.8");
}

#[test]
fn every_page_has_the_sections_that_one_looks_for() {
    for path in PAGES {
        let page = text(path);
        for name in SECTIONS {
            assert!(!section(&page, name).is_empty(), "{path}: {name}");
        }
        let titles = section(&page, "EXAMPLES");
        let titles = titles.iter().filter(|line| line.starts_with(".Ss "));
        assert!(titles.count() >= 4, "{path}: examples have titles");
    }
}

/// Also those that the remotes read, by the clouds' own names.
#[test]
fn every_variable_that_is_named_in_the_source_is_in_a_man_page() {
    let pages = [text("man/cachedirfs.1"), text("man/cachedirfs.5")].concat();
    let sources = sources();
    let quoted = sources.split('"').filter(|word| {
        let begins = [
            "AWS_",
            "AZURE_",
            "GOOGLE_",
            "GCE_",
            "CACHEDIRFS_",
            "XDG_",
            "RUST_",
        ];
        begins
            .iter()
            .any(|begin| word.starts_with(begin) && word.len() > begin.len())
            && word
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    });
    let named: BTreeSet<_> = quoted.collect();
    assert!(named.contains("AWS_REGION"), "{named:?}");
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !pages.contains(**name))
        .collect();
    assert!(missing.is_empty(), "no man page has {missing:?}");
}

/// All pages, however many there are.
#[test]
fn mandoc_finds_nothing_in_the_style_of_any_page() {
    for entry in std::fs::read_dir(root().join("man")).unwrap() {
        let path = entry.unwrap().path();
        let mut mandoc = std::process::Command::new("mandoc");
        let output = mandoc
            .args(["-T", "lint", "-W", "style"])
            .arg(&path)
            .output();
        let output = output.expect("mandoc is missing, run: scripts/setup servers");
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        // Which other pages are installed here is no matter, and lines are as long as in the sources.
        let passed = [
            "longer than 80 bytes",
            "referenced manual not found",
            "mandoc.db",
        ];
        let said: Vec<_> = output
            .lines()
            .filter(|line| !passed.iter().any(|text| line.contains(text)))
            .collect();
        assert!(said.is_empty(), "{said:#?}");
    }
}
