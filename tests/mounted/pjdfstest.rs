//! pjdfstest: nearly 400 cases of what POSIX asks of a file system, compared with the disk below.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::support::mounted::Mounted;
use crate::support::{installed, is_root, test_tools, workspace};

/// What cannot work over FUSE, with the reason.
const EXPECTED_FAILURES: [(&str, &str); 1] = [(
    "link::link_count_max",
    "skipped: glibc knows the limit of links by the type of the file system, and none for FUSE",
)];

/// `naptime` must be longer than the kernel's tick, by which ext4 stamps. Every Debian has these users.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped,
    /// With what pjdfstest says about it.
    Failed(String),
}

#[test]
fn nothing_fails_on_scratch_space_that_passes_on_the_disk() {
    assert!(is_root(), "pjdfstest acts as several users and needs root");
    let workspace = workspace();
    let disk = run(workspace.path());
    let passed = disk
        .values()
        .filter(|outcome| **outcome == Outcome::Passed)
        .count();
    assert!(
        passed > 350,
        "pjdfstest did not really run on the disk: {passed} passed\n{disk:#?}"
    );

    let remote = crate::support::workspace();
    let mounted = Mounted::new(&format!("file://{}", remote.path().display()));
    let scratch = mounted.path().join("pjdfstest");
    std::fs::create_dir(&scratch).unwrap();
    let mount = run(&scratch);

    let mut complaints = Vec::new();
    for (case, on_disk) in &disk {
        let expected = EXPECTED_FAILURES.iter().find(|(name, _)| name == case);
        match (on_disk, mount.get(case), expected) {
            (Outcome::Passed, Some(Outcome::Passed), Some((_, reason))) => {
                complaints.push(format!(
                    "{case}: works now, but is expected to fail: {reason}"
                ));
            }
            (Outcome::Passed, Some(Outcome::Passed), None) | (Outcome::Passed, _, Some(_)) => {}
            (Outcome::Passed, got, None) => complaints.push(format!("{case}: {got:?}")),
            _ => {}
        }
    }
    println!(
        "pjdfstest: {passed} pass on the disk, {} of them named as impossible over FUSE",
        EXPECTED_FAILURES.len()
    );
    assert!(
        complaints.is_empty(),
        "{} cases pass on the disk and not on the mount:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

fn run(directory: &Path) -> BTreeMap<String, Outcome> {
    let workspace = workspace();
    let config = workspace.path().join("pjdfstest.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let output = Command::new(installed(
        test_tools().join("cargo/bin/pjdfstest"),
        "fstests",
    ))
    .args([
        "-c".as_ref(),
        config.as_os_str(),
        "-p".as_ref(),
        directory.as_os_str(),
    ])
    .env("RUST_BACKTRACE", "0")
    .env("NO_COLOR", "1")
    .output()
    .unwrap();
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// A line a case, `name   ok|skipped|FAILED`, and indented explanations below.
fn parse(output: &str) -> BTreeMap<String, Outcome> {
    let mut cases = BTreeMap::new();
    let mut failed: Option<String> = None;
    for line in output.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [name, outcome @ ("ok" | "skipped" | "FAILED")]
                if !line.starts_with(char::is_whitespace) =>
            {
                failed = (outcome == "FAILED").then(|| name.to_owned());
                let outcome = match outcome {
                    "ok" => Outcome::Passed,
                    "skipped" => Outcome::Skipped,
                    _ => Outcome::Failed(String::new()),
                };
                cases.insert(name.to_owned(), outcome);
            }
            _ => {
                let explained = failed.as_ref().and_then(|name| cases.get_mut(name));
                if let Some(Outcome::Failed(why)) = explained {
                    why.push_str(line.trim());
                    why.push(' ');
                }
            }
        }
    }
    cases
}
