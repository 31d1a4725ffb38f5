//! `cachedirfs diff` over real builds: a changed source, an evicted entry, a remote that was down.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cachedirfs::events::Record;
use serde_json::Value;

use crate::support::mounted::Mounted;
use crate::support::oracle::{Push, Shape};
use crate::support::proxy::{Fault, Proxy};
use crate::support::scons::Project;
use crate::support::servers::{Nginx, Server};
use crate::support::venv::{LATEST, VERSIONS};
use crate::support::wait_until;

use super::{Stage, cachedirfs, said};

/// Bytes of the largest product.
const LARGEST: u64 = 1_048_577;

/// The time now, as `diff` takes it.
fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Builds in a fresh checkout; what SCons said of the cache goes to `names`.
fn build(stage: &Stage, version: &str, checkout: &str, cache: &Path, words: &str) {
    let project = Project::checkout(stage.path(checkout));
    fs::write(stage.path(checkout).join("words.in"), words).unwrap();
    let debug = format!(
        "--cache-debug={}",
        stage.path(&format!("{checkout}.names")).display()
    );
    project.build(version, cache, &[&debug]).succeeded();
}

fn diff(args: &[&str]) -> (i32, Value, String) {
    let json = cachedirfs(&[&["diff", "--json"], args].concat());
    let output = cachedirfs(&[&["diff"], args].concat());
    let value = serde_json::from_slice(&json.stdout);
    let value = value.unwrap_or_else(|e| panic!("{e}: {json:?}"));
    (output.status.code().unwrap(), value, said(&output))
}

fn names(list: &Value) -> Vec<String> {
    let mut names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|fate| match &fate["names"] {
            Value::Array(names) => names.clone(),
            _ => vec![fate["name"].clone()],
        })
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_changed_source_is_told_by_the_targets_that_depend_on_it_with_every_version() {
    for version in VERSIONS {
        let stage = Stage::new();
        let mount = stage.mount("");
        build(&stage, version, "zero", mount.path(), "pear\n");
        mount.flush();
        let start = now();
        build(&stage, version, "one", mount.path(), "pear\n");
        let between = now();
        build(&stage, version, "two", mount.path(), "plum\n");
        wait_until("all is written", Duration::from_secs(60), || {
            mount.flush();
            let pushed = mount.counter("pushed");
            let records = stage.records();
            records.iter().filter(|r| r.outcome == "pushed").count() as u64 == pushed
        });
        let log = stage.log().display().to_string();
        let (then, later) = (
            format!("{log}@{start}..{between}"),
            format!("{log}@{between}.."),
        );
        let (one, two) = (stage.path("one.names"), stage.path("two.names"));
        let files = [
            "--names",
            one.to_str().unwrap(),
            "--names",
            two.to_str().unwrap(),
        ];
        let (status, json, told) = diff(&[&[then.as_str(), &later], &files[..]].concat());
        assert_eq!(status, 1, "{told}");
        let changed = names(&json["changed"]);
        assert_eq!(
            changed,
            ["gen/all", "gen/code.c", "gen/table"],
            "{version}: {told}"
        );
        assert!(
            told.contains("  gen/table: asked for ") && told.contains("its inputs changed"),
            "{told}"
        );
        let lost = json["lost"].as_array().unwrap();
        assert!(lost.is_empty(), "{version}: {told}");
        assert!(json["then"]["hits"].as_u64().unwrap() > 20, "{told}");
        assert_eq!(
            json["now"]["causes"]["never-pushed"].as_u64(),
            None,
            "{told}"
        );
        assert_eq!(
            json["now"]["causes"]["pushed-later"], 3,
            "{version}: {told}"
        );

        let (status, _, told) = diff(&[&then, &then]);
        assert!(
            status == 0 && told.contains("nothing is different"),
            "{told}"
        );
    }
}

#[test]
fn entries_that_were_evicted_between_two_builds_are_told_so() {
    let stage = Stage::new();
    let mount = stage.mount("push=off,size=6M,min_free=0");
    build(&stage, LATEST, "zero", mount.path(), "pear\n");
    let start = now();
    build(&stage, LATEST, "one", mount.path(), "pear\n");
    let between = now();
    let mut number = 5;
    // What was used in the last minute stays.
    wait_until("much is evicted", Duration::from_secs(150), || {
        number += 8;
        Push(number).perform(mount.path(), Shape::Uuid).unwrap();
        let went = |r: &&Record| r.outcome == "evicted" && r.bytes >= Some(LARGEST);
        stage.records().iter().any(|r| went(&r))
    });
    build(&stage, LATEST, "two", mount.path(), "pear\n");
    wait_until("all is written", Duration::from_secs(60), || {
        let records = stage.records();
        records.iter().filter(|r| r.outcome == "pushed").count() as u64 == mount.counter("pushed")
    });
    let log = stage.log().display().to_string();
    let (_, json, told) = diff(&[
        &format!("{log}@{start}..{between}"),
        &format!("{log}@{between}.."),
        "--names",
        stage.path("one.names").to_str().unwrap(),
    ]);
    assert!(
        names(&json["lost"]).contains(&"sized/1048577".to_owned()),
        "{told}"
    );
    let causes = &json["now"]["causes"];
    assert!(causes["evicted"].as_u64().unwrap() > 0, "{told}");
    assert!(
        told.contains("hit then, missed now: ") && told.contains("was evicted to make room"),
        "{told}"
    );
}

#[test]
fn a_remote_that_was_down_is_told_so() {
    let stage = Stage::new();
    let server = Server::nginx(Nginx::Open);
    let proxy = Proxy::to(server.port());
    let mount = |log: &str| {
        let log = stage.path(log);
        let options = format!("drain_timeout=0,events={}", log.display());
        Mounted::with_options(&proxy.url("http", "cache"), &options)
    };
    let machine = mount("first");
    build(&stage, LATEST, "zero", machine.path(), "pear\n");
    machine.flush();
    drop(machine);
    let machine = mount("well");
    build(&stage, LATEST, "one", machine.path(), "pear\n");
    drop(machine);
    proxy.set(Fault::Refuse);
    let machine = mount("down");
    build(&stage, LATEST, "two", machine.path(), "pear\n");
    drop(machine);
    let (well, down) = (stage.path("well"), stage.path("down"));
    let (status, json, told) = diff(&[well.to_str().unwrap(), down.to_str().unwrap()]);
    assert_eq!(status, 1);
    let causes = |side: &str, cause: &str| json[side]["causes"][cause].as_u64().unwrap_or(0);
    assert!(causes("then", "on-remote") > 20, "{told}");
    assert!(
        causes("now", "not-asked") + causes("now", "failed") > 20,
        "{told}"
    );
    assert!(
        json["then"]["waited_seconds"].as_f64().unwrap() > 0.0,
        "{told}"
    );
    assert!(told.contains("was not asked"), "{told}");
    let broken = cachedirfs(&["diff", "/nonexistent", well.to_str().unwrap()]);
    assert_eq!(broken.status.code(), Some(2));
}
