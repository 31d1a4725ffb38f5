//! Configuration files, the environment and flags: what counts, and where it comes from. `--print-config` says it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Output;

use cachedirfs::config::options::{OPTIONS, OptionSpec};
use tempfile::TempDir;

use super::{DONE, MOUNT, Place, USAGE, can_mount, ended, program, soon};
use crate::support::is_root;

/// A configuration file in a directory that goes with it.
struct File(TempDir);

impl File {
    fn new(text: &str) -> Self {
        let file = Self(TempDir::new().unwrap());
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("x.toml")
    }

    fn option(&self) -> String {
        format!("config={}", self.path().display())
    }

    /// What becomes of the file when it is used.
    #[track_caller]
    fn refused(&self) -> String {
        let said = ended(&print(&["-o", &self.option()], &[]), USAGE);
        let prefix = format!("cachedirfs: {}", self.path().display());
        said.replace(&prefix, "FILE")
            .replace(&self.path().display().to_string(), "FILE")
            .trim()
            .to_owned()
    }
}

fn print(args: &[&str], environment: &[(&str, &str)]) -> Output {
    program()
        .args(["mount", "--print-config"])
        .args(args)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// What is printed: value and origin by name.
#[track_caller]
fn printed(args: &[&str], environment: &[(&str, &str)]) -> BTreeMap<String, (String, String)> {
    let output = print(args, environment);
    ended(&output, DONE);
    let mut found = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (line, origin) = line.rsplit_once("  # ").unwrap();
        let line = line.trim().trim_start_matches("# ");
        let (name, value) = line.split_once(" = ").unwrap();
        let pair = (value.to_owned(), origin.to_owned());
        assert!(
            found.insert(name.to_owned(), pair).is_none(),
            "{name} twice"
        );
    }
    found
}

const TYPED: [&str; 2] = ["https://host/c", "/mnt/nowhere"];

/// A value that is not the default, as it is typed and as a file has it.
fn sample(option: &OptionSpec, default: &str) -> (String, String) {
    let text = match option.value {
        None if default == "true" => return ("off".into(), "false".into()),
        None => return ("on".into(), "true".into()),
        Some("N" | "USER" | "GROUP") => return ("7".into(), "7".into()),
        Some("DIR" | "FILE") => "/srv/some where/x",
        Some("SIZE") => "3M",
        Some("TIME") => "77s",
        Some("OCTAL") => "027",
        Some("URL") => "https://end",
        Some("LEVEL") => "trace",
        Some("on|off|sync") => "sync",
        Some("upper|lower|flat") => "flat",
        Some("object|raw") => "raw",
        Some(_) => "127.0.0.1:9",
    };
    (text.into(), format!("\"{text}\""))
}

/// The options that a file and a list can both say; `remote` and `config` have tests of their own.
fn tried() -> impl Iterator<Item = &'static OptionSpec> {
    let own = ["remote", "config"];
    OPTIONS
        .iter()
        .filter(move |option| !own.contains(&option.name))
}

#[test]
fn every_option_says_what_counts_and_where_it_comes_from() {
    let defaults = printed(&TYPED, &[]);
    for option in tried() {
        let name = option.name;
        let (default, origin) = &defaults[name];
        assert_eq!(origin, "default", "{name}");
        let (typed, literal) = sample(option, default);
        assert_ne!(*default, literal, "{name}: the sample is the default");

        let list = format!("{name}={typed}");
        let by_flag = &printed(&[TYPED[0], TYPED[1], "-o", &list], &[])[name];
        assert_eq!(
            *by_flag,
            (literal.clone(), "command line".to_owned()),
            "{name}"
        );

        let by_environment = &printed(&TYPED, &[("CACHEDIRFS_OPTIONS", &list)])[name];
        let variable = "environment CACHEDIRFS_OPTIONS".to_owned();
        assert_eq!(
            *by_environment,
            (literal.clone(), variable.clone()),
            "{name}"
        );

        let file = File::new(&format!("# a comment\n{name} = {literal}\n"));
        let place = format!("{}:2", file.path().display());
        let by_file = [TYPED[0], TYPED[1], "-o", &file.option()];
        assert_eq!(
            printed(&by_file, &[])[name],
            (literal.clone(), place),
            "{name}"
        );
        let over_file = &printed(&by_file, &[("CACHEDIRFS_OPTIONS", &list)])[name];
        assert_eq!(
            *over_file,
            (literal.clone(), variable),
            "{name}: over the file"
        );
        let all = [TYPED[0], TYPED[1], "-o", &file.option(), "-o", &list];
        let over_all = &printed(&all, &[("CACHEDIRFS_OPTIONS", &list)])[name];
        assert_eq!(over_all.1, "command line", "{name}: over all");
    }
    for flag in ["nosuid", "nodev", "noexec", "noatime"] {
        let opposite = if defaults[flag].0 == "true" {
            "false"
        } else {
            "true"
        };
        let file = File::new(&format!("{flag} = {opposite}\n"));
        let said = &printed(&[TYPED[0], TYPED[1], "-o", &file.option()], &[])[flag];
        assert_eq!(said.0, opposite, "{flag}");
        let back = format!(
            "{},{}",
            file.option(),
            if opposite == "true" { &flag[2..] } else { flag }
        );
        let said = &printed(&[TYPED[0], TYPED[1], "-o", &back], &[])[flag];
        assert_eq!(*said, (defaults[flag].0.clone(), "command line".to_owned()));
    }
}

#[test]
fn what_is_printed_is_a_configuration_file_that_says_the_same() {
    let file = File::new(
        "remote = [\"https://near/c\", { url = \"https://far/c\", ro = true, layout = \"flat\", key_file = \"k |%\" }]\n\
         mountpoint = \"/mnt/nowhere\"\nsize = 20000000000\nnegative_ttl = 15\npush = false\numask = 0o022\nevent_threads = 5\n",
    );
    let options = format!("{},uid=7,log_level=debug", file.option());
    let output = print(&["-o", &options], &[]);
    ended(&output, DONE);
    let text = String::from_utf8(output.stdout).unwrap();
    let text: String = text
        .lines()
        .filter(|l| !l.starts_with("config ="))
        .fold(String::new(), |all, line| all + line + "\n");
    let again = File::new(&text);
    let (first, second) = (
        printed(&["-o", &options], &[]),
        printed(&["-o", &again.option()], &[]),
    );
    for (name, (value, _)) in &first {
        if name != "config" {
            assert_eq!(*value, second[name].0, "{name}");
        }
    }
    let dir = file.0.path().display();
    let remote =
        format!("[\"https://near/c\", \"https://far/c|key_file={dir}/k%20%7C%25|layout=flat|ro\"]");
    assert_eq!(
        first["remote"],
        (remote, format!("{}:1", file.path().display()))
    );
    assert_eq!(
        (first["umask"].0.as_str(), first["push"].0.as_str()),
        ("\"022\"", "\"off\"")
    );
    assert_eq!(first["size"].0, "\"20000000000\"");
}

#[test]
fn a_remote_that_is_typed_takes_the_place_of_the_files_and_none_does_not() {
    let file = File::new("remote = { url = \"https://far/c\", ro = true }\n");
    let remote = |args: &[&str]| printed(args, &[])["remote"].clone();
    let options = file.option();
    assert_eq!(
        remote(&["none", "/m", "-o", &options]).0,
        "\"https://far/c|ro\""
    );
    assert_eq!(
        remote(&["https://x/", "/m", "-o", &options]),
        ("\"https://x/\"".into(), "command line".into())
    );
    // What stands behind -o remote= comes after either.
    let more = format!("{options},remote=https://last/|ro");
    assert_eq!(
        remote(&["none", "/m", "-o", &more]).0,
        "[\"https://far/c|ro\", \"https://last/|ro\"]"
    );
    let said = ended(&print(&["-o", &options], &[]), USAGE);
    assert_eq!(
        said,
        "cachedirfs: the mountpoint is missing; name one, or a file that does with -o config=FILE\n"
    );
    ended(&print(&[], &[]), USAGE);
}

/// Variables that are meant for us weigh more than the file, those of everybody less.
#[test]
fn variables_of_our_own_outweigh_the_file_and_those_of_others_do_not() {
    let file = File::new("log_level = \"debug\"\nbasic_file = \"/b\"\n");
    let args = [TYPED[0], TYPED[1], "-o", &file.option()];
    let said = printed(
        &args,
        &[("RUST_LOG", "trace"), ("CACHEDIRFS_BEARER_TOKEN", "s3cret")],
    );
    assert_eq!(
        said["log_level"],
        ("\"debug\"".into(), format!("{}:1", file.path().display()))
    );
    assert_eq!(said["basic_file"].0, "none");
    assert_eq!(
        said["bearer_file"],
        (
            "$CACHEDIRFS_BEARER_TOKEN".into(),
            "environment CACHEDIRFS_BEARER_TOKEN".into()
        )
    );
    let said = printed(&args, &[("CACHEDIRFS_LOG", "warn")]);
    assert_eq!(
        said["log_level"],
        ("warn".into(), "environment CACHEDIRFS_LOG".into())
    );
    let said = printed(&TYPED, &[("RUST_LOG", "trace")]);
    assert_eq!(
        said["log_level"],
        ("trace".into(), "environment RUST_LOG".into())
    );
    // Who says on the command line how to log in means only that.
    let said = printed(
        &[
            TYPED[0],
            TYPED[1],
            "-o",
            &file.option(),
            "-o",
            "netrc_file=/n",
        ],
        &[("CACHEDIRFS_BEARER_TOKEN", "s3cret")],
    );
    let values = ["basic_file", "bearer_file", "netrc_file"].map(|name| said[name].0.as_str());
    assert_eq!(values, ["none", "none", "\"/n\""]);
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line_and_no_secret() {
    for (text, expected) in [
        (
            "\n\nsise = \"20G\"",
            "FILE:3: unknown option `sise`; did you mean `size`?",
        ),
        ("ro = \"maybe\"", "FILE:1: option `ro`: expected on or off"),
        (
            "key_file = true",
            "FILE:1: option `key_file`: is no switch; expected a string or a number",
        ),
        (
            "fetch_threads = 0",
            "FILE:1: option `fetch_threads`: expected a number from 1 to 256",
        ),
        (
            "fetch_threads = -1",
            "FILE:1: option `fetch_threads`: more than can be counted, or less than nothing",
        ),
        (
            "size = 1.5",
            "FILE:1: option `size`: expected true or false, a whole number, or a string in quotes",
        ),
        ("size = \"1G\"\nsize = \"2G\"", "FILE:2: duplicate key"),
        ("ro = ", "FILE:1: "),
        (
            "config = \"/x\"",
            "FILE:1: option `config`: a file cannot name another one",
        ),
        (
            "mountpoint = \"mnt\"",
            "FILE:1: `mountpoint`: expected an absolute path in quotes",
        ),
        ("remote = 5", "FILE:1: `remote`: expected a URL in quotes"),
        (
            "remote = [\n  \"https://a/\",\n  { url = \"https://b/\", layuot = \"flat\" },\n]",
            "FILE:3: unknown option `layuot`; did you mean `layout`?",
        ),
        (
            "remote = { ro = true }",
            "FILE:1: `remote`: the table has no url",
        ),
        (
            "remote = { url = \"https://b/\", size = \"1G\" }",
            "FILE:1: option `size`: is an option of the mount, not of one remote",
        ),
        (
            "mountpoint = \"/m\"\nremote = \"https://me:s3cret@host/\"",
            "FILE:2: remote https://host/: holds a password",
        ),
        (
            "remote = \"https://me:s3cret@host/\"\nnonsense nonsense s3cret",
            "FILE:2: ",
        ),
        (
            "mountpoint = \"/m\"\nremote = \"https://host/\"\nuid = \"no such user\"",
            "FILE:3: option `uid`: nobody here is called",
        ),
    ] {
        let said = File::new(text).refused();
        assert!(said.starts_with(expected), "{text}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    let file = File::new("ro = true\n");
    fs::set_permissions(file.path(), PermissionsExt::from_mode(0o646)).unwrap();
    assert!(file.refused().contains("everybody may write"));
    assert!(is_root(), "giving a file away takes root");
    fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
    chown(file.path(), Some(65534), None).unwrap();
    assert!(file.refused().contains("belongs to user 65534"));
    chown(file.path(), Some(0), Some(100)).unwrap();
    fs::set_permissions(file.path(), PermissionsExt::from_mode(0o664)).unwrap();
    let warned = ended(
        &print(&[TYPED[0], TYPED[1], "-o", &file.option()], &[]),
        DONE,
    );
    assert!(warned.contains("the group 100 may write"), "{warned}");
    let missing = print(&["-o", "config=/no/such/file"], &[]);
    assert!(
        ended(&missing, USAGE)
            .contains("cannot read the configuration file /no/such/file: No such file")
    );
}

#[test]
fn a_file_alone_is_enough_to_mount_check_and_run() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let text = format!(
        "remote = \"{}\"\nmountpoint = \"{}\"\nbacking = \"back\"\nsize = \"1G\"\n",
        place.remote(),
        place.text("m")
    );
    fs::write(place.path("x.toml"), text).unwrap();
    let option = "config=x.toml";
    let run = |args: &[&str]| {
        program()
            .args(args)
            .current_dir(place.0.path())
            .output()
            .unwrap()
    };
    ended(&run(&["check", "none", "-o", option]), DONE);
    let output = run(&[
        "run",
        "-q",
        "-o",
        option,
        "--",
        "sh",
        "-c",
        "cd $CACHEDIRFS_DIR && pwd",
    ]);
    ended(&output, DONE);
    assert_ne!(
        String::from_utf8_lossy(&output.stdout).trim(),
        place.text("m"),
        "a place of its own"
    );
    ended(&run(&["mount", "-o", option]), DONE);
    assert!(place.is_mounted() && Path::new(&place.path("back/.cachedirfs")).exists());
    let status = String::from_utf8(place.command("status", &[]).stdout).unwrap();
    assert!(
        status.contains("1.0 GiB") || status.contains("1 GiB"),
        "{status}"
    );
    ended(&place.command("umount", &[]), DONE);
    ended(&run(&["mount", "none", "no-such-dir", "-o", option]), MOUNT);
    soon("it is gone", || !place.is_mounted());
}
