//! Several remotes behind one mount, with real mounts, real servers and real SCons.

mod builds;
mod dead;
mod upkeep;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::mounted::Mounted;
use crate::support::oracle::{Oracle, Push, Shape};

/// Far more than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The signatures that a directory of objects holds.
fn held(remote: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in fs::read_dir(remote).into_iter().flatten() {
        let prefix = prefix.unwrap();
        if prefix.file_name().len() != 2 {
            continue;
        }
        for object in fs::read_dir(prefix.path()).unwrap() {
            let name = object.unwrap().file_name().into_string().unwrap();
            if name.len() >= 32 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                found.insert(name);
            }
        }
    }
    found
}

fn push(machine: &Mounted, oracle: &Oracle, numbers: std::ops::Range<u64>) {
    for push in numbers.map(Push) {
        let pushed = push.perform(machine.path(), Shape::Uuid);
        pushed.unwrap_or_else(|e| panic!("no outage fails a push: {e}"));
        oracle.acknowledge(push);
    }
}

fn pending(machine: &Mounted) -> u64 {
    machine.status()["pending"]["objects"].as_u64().unwrap()
}
