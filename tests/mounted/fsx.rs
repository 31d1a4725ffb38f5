//! fsx: random reads, writes, truncations and mappings of one file, checked against a copy in memory.

use std::path::Path;
use std::process::Command;

use crate::support::mounted::Mounted;
use crate::support::{installed, test_tools, workspace};

/// Every operation that fsx has, with the odd close, sync and invalidation between them.
const OPERATIONS: &str = "
[weights]
close_open = 2
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 1
";

/// Large files in large pieces: several requests an operation, where the daemon does the reading.
const LARGE: &str = "
flen = 16777216
[opsize]
max = 1048576
[weights]
close_open = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 2
";

fn run(directory: &Path) {
    for (config, operations, seeds) in [(OPERATIONS, "5000", 1..=4), (LARGE, "400", 5..=6)] {
        let workspace = workspace();
        let file = workspace.path().join("fsx.toml");
        std::fs::write(&file, config).unwrap();
        for seed in seeds {
            let output = Command::new(installed(test_tools().join("cargo/bin/fsx"), "fstests"))
                .args(["-N", operations, "-S", &seed.to_string(), "-f"])
                .args([
                    &file,
                    Path::new("-P"),
                    workspace.path(),
                    &directory.join(format!("fsx-{seed}")),
                ])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "seed {seed}, {config}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

#[test]
fn all_of_fsx_passes_on_a_plain_directory() {
    run(workspace().path());
}

#[test]
fn all_of_fsx_passes_on_scratch_space() {
    let workspace = workspace();
    let mounted = Mounted::new(&format!("file://{}", workspace.path().display()));
    run(mounted.path());
}

#[test]
fn all_of_fsx_passes_without_passthrough() {
    let workspace = workspace();
    let mounted = Mounted::with_options(
        &format!("file://{}", workspace.path().display()),
        "passthrough=off",
    );
    run(mounted.path());
}
