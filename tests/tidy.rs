//! The arrows and rules of the source tree, as a test over its text.
//!
//! Tests inside the sources are left out: a `#[cfg(test)]` module stands at the end of its file or in one of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Who may use whom, and why. The bottom is on top; whatever is not said is forbidden.
const ARROWS: &[(&str, &[&str], &str)] = &[
    ("signature", &[], "the nouns that everyone shares"),
    ("clock", &[], "the only one that knows what time it is"),
    (
        "stats",
        &["signature"],
        "everybody counts, it looks at nobody",
    ),
    (
        "events",
        &["clock", "signature", "stats"],
        "writes and reads what happened; hands over no entry and asks no remote",
    ),
    ("sys", &[], "system calls without policy"),
    ("stop", &["sys"], "an event that can be waited for"),
    ("name", &["signature"], "an entry's name is a signature"),
    ("object", &["signature"], "the format says of what it is"),
    (
        "remote",
        &["clock", "object", "signature"],
        "knows no disk layout; retry and breaker need time",
    ),
    (
        "store",
        &["clock", "name", "signature", "stats", "sys"],
        "knows no network; sys to have data written out",
    ),
    (
        "fetch",
        &["clock", "name", "remote", "signature", "stats", "store"],
        "from remote to store",
    ),
    (
        "upload",
        &["clock", "name", "remote", "signature", "stats", "store"],
        "from store to remote",
    ),
    (
        "upkeep",
        &["clock", "name", "remote", "signature", "stats", "store"],
        "from store to remote, when there is time",
    ),
    (
        "fs",
        &[
            "clock",
            "fetch",
            "name",
            "signature",
            "stats",
            "store",
            "sys",
            "upload",
        ],
        "knows neither kernel nor remote; sys for descriptors that outlive the program",
    ),
    (
        "fuse",
        &["clock", "fetch", "fs", "sys"],
        "fetch only for the outcome of one, sys for what the kernel is asked by number",
    ),
    (
        "config",
        &["remote"],
        "the options of the remote are the remote's",
    ),
    (
        "control",
        &["clock", "config", "stats", "stop", "sys"],
        "shows the counters; the config says where mounts are found",
    ),
    (
        "metrics",
        &["clock", "control", "stats", "stop"],
        "shows what the status has, and times",
    ),
    ("logging", &["config", "sys"], "the config says where to"),
    (
        "mount",
        &[
            "clock",
            "config",
            "control",
            "events",
            "fetch",
            "fs",
            "fuse",
            "logging",
            "metrics",
            "name",
            "remote",
            "signature",
            "stats",
            "stop",
            "store",
            "sys",
            "upkeep",
            "upload",
        ],
        "builds and joins every part; logging, which changes with the rest",
    ),
    (
        "daemon",
        &["clock", "config", "mount", "stop", "sys"],
        "a mount as a process",
    ),
    (
        "cli",
        &[
            "clock",
            "config",
            "control",
            "daemon",
            "events",
            "logging",
            "mount",
            "remote",
            "signature",
            "store",
            "sys",
        ],
        "on top; the store only to verify one that is not mounted",
    ),
    ("lib", &[], "lists the modules"),
    ("main", &[], "calls cli"),
];

/// What may be said only in some files: patterns of code, files (a prefix of the path below `src/`), and why.
const ONLY_IN: &[(&[&str], &[&str], &str)] = &[
    (&["unsafe "], &["sys"], "every unsafe block is in one place"),
    (
        &[
            "println!",
            "eprintln!",
            "print!(",
            "process::exit",
            "env::var",
        ],
        &["cli", "main.rs"],
        "only the command line prints, exits and reads the environment",
    ),
    (
        &[
            "thread::spawn",
            "thread::Builder",
            "thread::{Builder",
            "thread::scope",
        ],
        &["mount", "daemon.rs", "cli/parallel.rs"],
        "parts expose loops, the mount owns the threads",
    ),
    (
        &[
            "Instant::",
            "SystemTime::now",
            "thread::sleep",
            ".elapsed()",
        ],
        &["clock.rs"],
        "time is handed in",
    ),
    (
        &["fuser::"],
        &["fuse", "mount.rs", "mount/session.rs", "sys/backing.rs"],
        "one thin layer speaks FUSE",
    ),
    (
        &[".unwrap()", "todo!(", "unimplemented!(", "dbg!("],
        &[],
        "a panic in a handler costs an event loop",
    ),
];

/// Most lines of a file …
const LINES: usize = 600;
/// … but for these, and why.
const LONGER: &[(&str, usize, &str)] = &[(
    "fuse.rs",
    700,
    "one impl of a trait with forty methods cannot be divided over files",
)];

/// A source file, with tests, comments and the insides of strings taken out of its code.
struct Source {
    /// Below `src/`.
    path: String,
    text: String,
    code: String,
}

impl Source {
    /// The module at the top of the tree that it belongs to.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files_in(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_in(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Files that are modules of tests.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let marked = text.match_indices("#[cfg(test)]\nmod ");
    let name = |(at, mark): (usize, &str)| text[at + mark.len()..].split(';').next();
    let file = |name: &str| path.with_extension("").join(format!("{name}.rs"));
    marked.filter_map(name).map(file).collect()
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    files_in(&src(), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    let tests: Vec<_> = paths.iter().flat_map(|p| test_files(p, &read(p))).collect();
    let mut sources = Vec::new();
    for path in paths.iter().filter(|path| !tests.contains(path)) {
        let text = read(path);
        sources.push(Source {
            path: path.strip_prefix(src()).unwrap().display().to_string(),
            code: code(&text),
            text,
        });
    }
    sources
}

/// The code of a file without its tests, comments and the insides of strings.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(str::trim_start);
    let lines = lines.filter(|line| !line.starts_with("//"));
    lines.map(|line| without_strings(line) + "\n").collect()
}

fn without_strings(line: &str) -> String {
    let mut inside = false;
    let mut before = ' ';
    let mut kept = String::new();
    for c in line.chars() {
        if c == '"' && before != '\\' {
            inside = !inside;
        } else if !inside {
            kept.push(c);
        }
        before = c;
    }
    kept.split("// ").next().unwrap_or_default().to_owned()
}

/// The modules that a text names with `crate::`, also in braces.
fn used(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, crate_) in code.match_indices("crate::") {
        let rest = &code[at + crate_.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group)),
            None => found.push(head(rest)),
        }
    }
    found
}

fn head(path: &str) -> String {
    let word = |c: &char| c.is_ascii_lowercase() || *c == '_';
    path.trim_start().chars().take_while(word).collect()
}

/// The first word of each path in a group of imports.
fn heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = vec![head(group)];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(head(&group[at + 1..])),
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// Fails with every complaint, each on its line.
fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn modules_use_only_what_is_below_them() {
    let arrows: BTreeMap<_, _> = ARROWS.iter().map(|(who, whom, _)| (*who, *whom)).collect();
    let mut complaints = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some(allowed) = arrows.get(module) else {
            complaints.push(format!("{module} is not in the table"));
            continue;
        };
        for used in used(&source.code) {
            if used != module && !allowed.contains(&used.as_str()) {
                complaints.push(format!("{} uses crate::{used}", source.path));
            }
        }
    }
    none(&complaints);
}

#[test]
fn the_arrows_point_one_way() {
    let below = |at: usize| &ARROWS[..at];
    for (at, (who, whom, _)) in ARROWS.iter().enumerate() {
        for used in *whom {
            let found = below(at).iter().any(|(below, ..)| below == used);
            assert!(
                found,
                "{who} uses {used}, which is not below it in the table"
            );
        }
    }
}

#[test]
fn what_has_its_place_is_nowhere_else() {
    let mut complaints = Vec::new();
    for source in sources() {
        for (patterns, places, why) in ONLY_IN {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for pattern in patterns.iter().filter(|p| source.code.contains(**p)) {
                complaints.push(format!("{} says {pattern}, but {why}", source.path));
            }
        }
    }
    none(&complaints);
}

#[test]
fn every_module_says_what_it_is() {
    let undocumented = sources()
        .into_iter()
        .filter(|s| !s.text.starts_with("//! "));
    none(&undocumented.map(|s| s.path).collect::<Vec<_>>());
}

#[test]
fn no_file_is_long() {
    let most = |path: &str| {
        let longer = LONGER.iter().find(|(file, ..)| *file == path);
        longer.map_or(LINES, |(_, lines, _)| *lines)
    };
    let long = |s: &Source| s.text.lines().count() > most(&s.path);
    let found = sources().into_iter().filter(long);
    none(
        &found
            .map(|s| format!("{} is too long", s.path))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn imports_are_found_alone_and_in_braces() {
    let text = "use crate::a::B;\nuse crate::{c::{D, E}, f};\nlet x = crate::g::h();";
    assert_eq!(used(text), ["a", "c", "f", "g"]);
}
