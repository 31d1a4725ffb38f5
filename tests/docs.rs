//! README, man pages, `--help` and the program say the same.
//!
//! Each test names the file to change. What is prose is not checked; what can be compared is.

/// Forms of commands, and what every page has.
mod forms;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cachedirfs::config::options::OPTIONS;
use cachedirfs::events::Record;
use cachedirfs::events::record::{Moment, OTHERS};
use cachedirfs::object::{HEADER_MAX, read_header};
use cachedirfs::remote::reapi::{ActionResult, Digest, action_key};
use cachedirfs::remote::{RemoteError, RemoteOptions, open};
use cachedirfs::signature::{Meta, Signature};
use cachedirfs::stats::Snapshot;
use cachedirfs::stats::event::What;

/// A file of the repository.
fn text(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the program prints, with these arguments.
fn said(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cachedirfs"))
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of a section of a man page, without its heading.
fn section<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let heading = format!(".Sh {name}");
    let lines: Vec<_> = page
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with(".Sh "))
        .collect();
    assert!(!lines.is_empty(), "no section {name}");
    lines
}

fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

/// An option as a page explains it: name, placeholder of its value, default.
type Explained = (String, Option<String>, String);

/// `.It Cm name Ns = Ns Ar VALUE` or `.It Cm name , noname`, and the line `Default: ….` of the same item.
fn options_in_man() -> BTreeSet<Explained> {
    let page = text("man/cachedirfs.1");
    let mut found: Vec<Explained> = Vec::new();
    for line in section(&page, "OPTIONS") {
        if let Some(item) = line.strip_prefix(".It Cm ") {
            let words: Vec<_> = item.split(' ').collect();
            let value = match words[..] {
                [_, "Ns", "=", "Ns", "Ar", value] => Some(value.to_owned()),
                [name, ",", negated] => {
                    assert_eq!(negated, format!("no{name}"));
                    None
                }
                _ => panic!("not understood: {line}"),
            };
            found.push((words[0].to_owned(), value, String::new()));
        } else if let Some(default) = line.strip_prefix("Default: ") {
            found.last_mut().unwrap().2 = default.strip_suffix('.').unwrap().to_owned();
        }
    }
    set(found)
}

#[test]
fn every_option_is_in_the_man_page_with_its_value_and_default_and_no_other() {
    let known = OPTIONS.iter().map(|option| {
        let value = option.value.map(str::to_owned);
        (option.name.to_owned(), value, option.default.to_owned())
    });
    assert_eq!(options_in_man(), set(known), "man/cachedirfs.1, OPTIONS");
}

#[test]
fn every_option_is_in_the_help_of_mount_and_check_and_no_other() {
    for command in ["mount", "check"] {
        let help = said(&[command, "--help"]);
        let (_, table) = help.split_once("Options for -o:\n").unwrap();
        let heads = table
            .lines()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| {
                line.strip_prefix("  ")
                    .filter(|rest| !rest.starts_with(' '))
            });
        let known = OPTIONS.iter().map(|option| match option.value {
            Some(value) => format!("{}={value}", option.name),
            None => format!("[no]{}", option.name),
        });
        assert_eq!(
            set(heads.map(str::to_owned)),
            set(known),
            "{command} --help"
        );
    }
}

#[test]
fn the_options_that_the_readme_explains_exist() {
    let readme = text("README.md");
    let (_, rest) = readme.split_once("## Options used most").unwrap();
    let (table, _) = rest.split_once("\n## ").unwrap();
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(first_cell);
    let names = rows.flat_map(|cell| {
        code_in(cell)
            .map(|code| code.split('=').next().unwrap())
            .collect::<Vec<_>>()
    });
    let unknown: Vec<_> = names
        .filter(|name| !OPTIONS.iter().any(|option| option.name == *name))
        .collect();
    assert!(unknown.is_empty(), "README.md explains {unknown:?}");
}

/// The first cell of a row of a Markdown table.
fn first_cell(row: &str) -> &str {
    row.trim_start_matches("| ").split(" | ").next().unwrap()
}

/// What stands between backquotes.
fn code_in(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split('`').skip(1).step_by(2)
}

/// Names of commands in the help of the program.
pub(crate) fn commands() -> Vec<String> {
    let help = said(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    lines
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

/// Flags in the help of a command: `-f`, `--foreground`. Those of all commands left out.
pub(crate) fn flags_in_help(command: &str) -> BTreeSet<String> {
    let help = said(&[command, "--help"]);
    let lines = help
        .lines()
        .filter(|line| line.trim_start().starts_with('-'));
    let words = lines.flat_map(|line| {
        line.split([' ', ',', '['])
            .filter(|word| word.starts_with('-'))
    });
    let flags = words.filter(|word| !matches!(*word, "-h" | "--help" | "-"));
    set(flags.map(str::to_owned))
}

/// Flags that the page has an item for below a command.
fn flags_in_man(page: &str, command: &str) -> BTreeSet<String> {
    let lines = section(page, "COMMANDS");
    let heads = commands();
    let head_of = |line: &str| {
        let name = line
            .strip_prefix(".It Cm ")
            .and_then(|item| item.split(' ').next());
        heads.iter().find(|head| name == Some(head)).cloned()
    };
    let mut at = None;
    let mut flags = BTreeSet::new();
    for line in lines {
        at = head_of(line).or(at);
        if at.as_deref() == Some(command) && line.starts_with(".It Fl ") {
            let words = line[7..].split([' ', ',']).collect::<Vec<_>>();
            let is_flag = |at: &usize| *at == 0 || words[at - 1] == "Fl";
            flags.extend(
                (0..words.len())
                    .filter(is_flag)
                    .map(|at| format!("-{}", words[at])),
            );
        }
    }
    flags
}

#[test]
fn every_command_and_flag_is_in_the_man_page_and_no_other() {
    let page = text("man/cachedirfs.1");
    for command in commands() {
        let head = format!(".Cm {command}");
        assert!(
            section(&page, "SYNOPSIS").contains(&head.as_str()),
            "SYNOPSIS lacks {command}"
        );
        let head = format!(".It Cm {command} ");
        assert!(
            section(&page, "COMMANDS")
                .iter()
                .any(|line| line.starts_with(&head)),
            "COMMANDS lacks {command}"
        );
        if command != "help" {
            let flags = flags_in_man(&page, &command);
            // Long names have two dashes: `.Fl -json`.
            assert_eq!(
                flags,
                flags_in_help(&command),
                "man/cachedirfs.1, COMMANDS, {command}"
            );
        }
    }
}

#[test]
fn every_counter_is_in_the_man_page() {
    let page = text("man/cachedirfs.1");
    let status = section(&page, "STATUS");
    let items = status
        .iter()
        .filter_map(|line| line.strip_prefix(".It Sy "));
    let explained = set(items.flat_map(|item| item.split(" , ")));
    let counters = serde_json::to_value(Snapshot::default()).unwrap();
    for name in counters.as_object().unwrap().keys() {
        assert!(
            explained.contains(name.as_str()),
            "man/cachedirfs.1, STATUS lacks {name}"
        );
    }
}

#[test]
fn every_event_and_field_of_the_event_log_is_in_the_man_page_and_no_other_event() {
    let page = text("man/cachedirfs.5");
    let section = section(&page, "THE EVENT LOG");
    let items = section
        .iter()
        .filter_map(|line| line.strip_prefix(".It Sy "));
    let (events, fields): (BTreeSet<_>, BTreeSet<_>) = items.partition(|item| item.contains(' '));
    let of_entries = What::ALL.iter().map(|what| (what.op().name(), what.name()));
    let all = of_entries.chain(OTHERS.iter().copied());
    let written: Vec<_> = all.map(|(op, outcome)| format!("{op} {outcome}")).collect();
    assert_eq!(
        events,
        set(written.iter().map(String::as_str)),
        "man/cachedirfs.5, THE EVENT LOG"
    );

    let whole = Record {
        signature: Signature::parse(&[b'a'; 32]),
        bytes: Some(1),
        seconds: Some(Duration::ZERO),
        why: Some(String::new()),
        remote: Some(String::new()),
        count: Some(1),
        session: Some(Box::default()),
        summary: Some(String::new()),
        counters: Some(Box::default()),
        ..Record::new(Moment::default(), "", "")
    };
    let json = serde_json::to_value(&whole).unwrap();
    let names = set(json.as_object().unwrap().keys().map(String::as_str));
    assert_eq!(fields, names, "man/cachedirfs.5, THE EVENT LOG, members");
    let text = section.join(" ");
    for name in json["session"].as_object().unwrap().keys() {
        assert!(
            text.contains(name),
            "man/cachedirfs.5, THE EVENT LOG lacks {name}"
        );
    }
}

#[test]
fn every_variable_that_is_read_is_in_the_man_page() {
    let page = text("man/cachedirfs.1");
    let source = text("src/cli.rs");
    let environment = section(&page, "ENVIRONMENT").join("\n");
    let quoted = source.split('"').skip(1).step_by(2);
    let is_name = |s: &&str| s.len() > 3 && s.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    let names: Vec<_> = quoted.filter(is_name).collect();
    assert!(names.contains(&"HOME"), "{names:?}");
    for name in names {
        assert!(
            environment.contains(name),
            "man/cachedirfs.1, ENVIRONMENT lacks {name}"
        );
    }
}

/// The bytes of the hexdump in a section of cachedirfs(5), checked against its offsets.
fn golden(name: &str) -> Vec<u8> {
    let page = text("man/cachedirfs.5");
    let mut bytes = Vec::new();
    for line in section(&page, name) {
        let mut words = line.split(' ');
        let offset = words.next().filter(|word| word.len() == 6);
        let Some(at) = offset.and_then(|word| usize::from_str_radix(word, 16).ok()) else {
            continue;
        };
        assert_eq!(at, bytes.len(), "{line}");
        bytes.extend(words.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_hexdump_in_the_man_page_is_an_object() {
    let bytes = golden("OBJECTS");
    let header = read_header(&bytes[..bytes.len().min(HEADER_MAX)])
        .unwrap()
        .unwrap();
    assert_eq!(header.sig.as_str(), "5d41402abc4b2a76b9719d911017c592");
    assert_eq!((header.meta, header.len), (Meta::file(0o755), 6));
    assert_eq!(header.hash, *blake3::hash(b"hello\n").as_bytes());
    assert_eq!(
        header.to_bytes(),
        bytes[..101 + 32],
        "where the content begins"
    );
}

#[test]
fn zstd_decompresses_the_hexdump_in_the_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("object");
    fs::write(&object, golden("OBJECTS")).unwrap();
    let zstd = Command::new("zstd")
        .arg("-dc")
        .stdin(fs::File::open(object).unwrap())
        .output();
    let output = zstd.expect("zstd is missing: apt-get install zstd");
    assert_eq!(
        output.stdout,
        b"hello\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_hexdump_of_an_action_cache_in_the_man_page_is_an_entry_and_its_key_is_right() {
    let bytes = golden("ACTION CACHES");
    let result: ActionResult = prost::Message::decode(&bytes[..]).unwrap();
    assert_eq!(prost::Message::encode_to_vec(&result), bytes);
    let header = read_header(&result.stdout_raw).unwrap().unwrap();
    assert_eq!(
        header.to_bytes(),
        golden("OBJECTS")[..101 + 32],
        "that of the object"
    );
    let file = &result.output_files[0];
    assert_eq!(file.path, header.sig.as_str());
    assert_eq!(file.digest, Some(Digest::of(b"hello\n").to_message()));
    let key = action_key(&header.sig).hash();
    let page = text("man/cachedirfs.5");
    assert!(section(&page, "ACTION CACHES").contains(&format!(".Dl {key}").as_str()));
    assert!(page.contains(&format!("has {} bytes:", bytes.len())));
}

/// Schemes in the first column of the table of remotes.
fn schemes_in_readme() -> BTreeSet<String> {
    let readme = text("README.md");
    let (_, rest) = readme.split_once("### Remotes").unwrap();
    let (table, _) = rest.split_once("\n###").unwrap();
    let cells = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(first_cell);
    set(cells.filter_map(|cell| Some(code_in(cell).next()?.split_once("://")?.0.to_owned())))
}

#[test]
fn the_remotes_in_the_readme_and_the_man_page_are_those_that_open() {
    let schemes = schemes_in_readme();
    let error = open("gopher://host/x", &RemoteOptions::default()).err();
    let Some(RemoteError::Misconfigured(why)) = error else {
        panic!("{error:?}")
    };
    let (_, known) = why.rsplit_once("known are ").unwrap();
    assert_eq!(
        schemes,
        set(known.split(", ").map(str::to_owned)),
        "README.md, Remotes"
    );

    let dir = tempfile::tempdir().unwrap();
    let page = text("man/cachedirfs.1");
    for scheme in schemes {
        let place = match scheme.as_str() {
            "file" => dir.path().to_str().unwrap(),
            "redis" | "rediss" => "localhost/0",
            _ => "localhost/cache",
        };
        // A container of Azure is in an account, which the URL does not name.
        let options = RemoteOptions {
            account: Some("account".to_owned()),
            ..RemoteOptions::default()
        };
        assert!(
            open(&format!("{scheme}://{place}"), &options).is_ok(),
            "{scheme}"
        );
        assert!(
            page.contains(&format!(".It Pa {scheme}://")),
            "man/cachedirfs.1 lacks {scheme}"
        );
    }
}

#[test]
fn mandoc_has_nothing_to_say() {
    let pages = [
        "man/cachedirfs.1",
        "man/cachedirfs.5",
        "man/cachedirfs-containers.7",
        "man/mount.cachedirfs.8",
    ];
    let mut mandoc = Command::new("mandoc");
    mandoc
        .args(["-T", "lint", "-W", "warning"])
        .args(pages)
        .current_dir(root());
    let output = mandoc.stdin(Stdio::null()).output();
    let output = output.expect("mandoc is missing: apt-get install mandoc");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// The flags of `mount.cachedirfs` and `umount.cachedirfs`, as their help has them and as their page has.
#[test]
fn every_flag_of_the_helpers_is_in_their_man_page() {
    let page = text("man/mount.cachedirfs.8");
    let links = tempfile::TempDir::new().unwrap();
    for name in ["mount.cachedirfs", "umount.cachedirfs"] {
        let link = links.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cachedirfs"), &link).unwrap();
        let output = Command::new(&link).arg("--help").output().unwrap();
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let flags: Vec<_> = help
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix('-'))
            .filter_map(|line| line.chars().next())
            .filter(|flag| !"-hVo".contains(*flag))
            .collect();
        assert!(flags.len() >= 6, "{name}: {help}");
        for flag in flags {
            let explained = page.lines().any(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                line.starts_with(".It Fl ") && words.contains(&flag.to_string().as_str())
            });
            assert!(explained, "man/mount.cachedirfs.8 lacks -{flag} of {name}");
        }
    }
}

/// What the README points to within the repository: targets of links, and what looks like a path of ours.
fn local_paths(readme: &str) -> BTreeSet<String> {
    let links = readme
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
    let words = readme.split(|c: char| c.is_whitespace() || "`()|,;:".contains(c));
    let ours = ["scripts/", "src/", "tests/", "man/", "./man/"];
    let paths = words.filter(|word| {
        ours.iter()
            .any(|dir| word.starts_with(dir) && word.len() > dir.len())
    });
    // `src/remote/NAME.rs` stands for any.
    let paths = paths.filter(|path| !path.contains("NAME"));
    set(links
        .chain(paths)
        .map(|path| path.trim_end_matches('.').to_owned()))
}

#[test]
fn what_the_readme_points_to_exists() {
    let paths = local_paths(&text("README.md"));
    assert!(
        paths.contains("LICENSE") && paths.contains("scripts/demo"),
        "{paths:?}"
    );
    let missing: Vec<_> = paths
        .iter()
        .filter(|path| !root().join(path).exists())
        .collect();
    assert!(missing.is_empty(), "README.md points to {missing:?}");
}

/// All source files, one after the other, with continued lines of string literals joined.
fn sources() -> String {
    let mut dirs: Vec<PathBuf> = vec![root().join("src")];
    let mut all = String::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                all += &fs::read_to_string(path).unwrap();
            }
        }
    }
    all
}

#[test]
fn the_log_lines_in_the_man_page_are_in_the_source() {
    let (page, sources) = (text("man/cachedirfs.5"), sources());
    let log = section(&page, "THE LOG");
    let lines: Vec<_> = log
        .iter()
        .filter_map(|line| line.strip_prefix(".It Li "))
        .collect();
    assert!(lines.len() > 10);
    for line in lines {
        // Words in capitals stand for something.
        let mut pieces = vec![String::new()];
        for word in line.split(' ') {
            let bare = word.trim_end_matches([':', ',', ';']);
            if bare != "BLAKE3" && !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_uppercase())
            {
                pieces.push(String::new());
            } else {
                *pieces.last_mut().unwrap() += &format!(" {word}");
            }
        }
        let longest = pieces
            .iter()
            .max_by_key(|piece| piece.len())
            .unwrap()
            .trim();
        assert!(
            sources.contains(longest),
            "man/cachedirfs.5, THE LOG: nothing says {longest:?}"
        );
    }
}
