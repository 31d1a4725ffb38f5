//! The dashboard and the alerts, against what a mount really answers and with Prometheus' own parser.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use super::{LIMIT, Stage, names};
use crate::support::wait_until;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts/grafana")
        .join(name)
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(file("cachedirfs.json")).unwrap()).unwrap()
}

/// All strings behind `expr`, and the queries of variables.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" => found.push(text.clone()),
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// The metrics that a text names; the series of a histogram go by its name.
fn named(text: &str, known: &BTreeSet<String>) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text
        .split(|c| !is_part(c))
        .filter(|word| word.starts_with("cachedirfs_"));
    let series = |word: &str| {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| word.strip_suffix(end));
        base.filter(|base| known.contains(*base))
            .unwrap_or(word)
            .to_owned()
    };
    words.map(series).collect()
}

fn check_rules(path: &Path) -> Output {
    let output = Command::new("promtool")
        .args(["check", "rules"])
        .arg(path)
        .output();
    output.unwrap_or_else(|e| panic!("promtool: {e}, run: scripts/setup look"))
}

#[test]
fn every_metric_of_dashboard_and_alerts_is_one_that_a_mount_has() {
    let known = names(&Stage::new().body("/metrics"));
    for name in ["cachedirfs.json", "alerts.yml"] {
        let used = named(&fs::read_to_string(file(name)).unwrap(), &known);
        assert!(used.len() > 5, "{name}: {used:?}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
}

/// What Grafana puts in for variables put in, each query is one that Prometheus understands.
#[test]
fn promtool_understands_every_query_and_the_alerts() {
    let mut found = Vec::new();
    queries(&dashboard(), &mut found);
    assert!(found.len() > 20, "{found:?}");
    let mut rules = String::from("groups:\n- name: dashboard\n  rules:\n");
    for (n, query) in found.iter().enumerate() {
        let query = filled_in(query);
        rules += &format!("  - record: query{n}\n    expr: {}\n", Value::from(query));
    }
    let dir = tempfile::tempdir().unwrap();
    let recorded = dir.path().join("rules.yml");
    fs::write(&recorded, rules).unwrap();
    for path in [recorded, file("alerts.yml")] {
        let output = check_rules(&path);
        assert!(output.status.success(), "{output:?}");
    }
}

/// A query as Grafana would send it.
fn filled_in(query: &str) -> String {
    let query = query
        .replace("$__rate_interval", "5m")
        .replace("$__range", "6h");
    let query = query.replace("$instance", ".*");
    assert!(!query.contains('$'), "{query}");
    query
}

/// A Prometheus of the test's own.
struct Prometheus {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl Prometheus {
    /// One that scrapes `address` every second.
    fn scraping(address: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("prometheus.yml");
        let scrape = format!(
            "scrape_configs:\n- job_name: c\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{address}']\n"
        );
        fs::write(&config, scrape).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("prometheus: {e}, run: scripts/setup look"));
        Self {
            process,
            port,
            _dir: dir,
        }
    }

    /// What it answers to a query now; `None` while it is not there yet.
    fn query(&self, query: &str) -> Option<Value> {
        let encoded =
            percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A real Prometheus scrapes a real mount, and every panel of the dashboard has something to show.
#[test]
fn every_panel_shows_something_of_a_scraped_mount() {
    let stage = Stage::new();
    stage.load(0, 5);
    stage.fetch(3);
    let prometheus = Prometheus::scraping(&stage.address);
    let result = |query: &str| {
        let answer = prometheus.query(query)?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned()
    };
    wait_until("it has scraped what happened", LIMIT, || {
        let entries = result("cachedirfs_entries").unwrap_or_default();
        let scrapes = result("count_over_time(cachedirfs_entries[1m])").unwrap_or_default();
        let is = |list: &[Value], n: &str| list.iter().any(|one| one["value"][1] == n);
        is(&entries, "8") && !is(&scrapes, "1")
    });
    let mut found = Vec::new();
    queries(&dashboard()["panels"], &mut found);
    for query in found.iter().map(|query| filled_in(query)) {
        wait_until(&query, LIMIT, || {
            result(&query).is_some_and(|result| !result.is_empty())
        });
    }
    assert_eq!(result("up").unwrap()[0]["value"][1], "1");
}

/// Fed with series as a mount has them, the alerts are raised when they should be, and not before.
#[test]
fn the_alerts_are_raised() {
    let dir = tempfile::tempdir().unwrap();
    let test = format!(
        r#"rule_files: ["{}"]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - series: 'cachedirfs_remote_up{{instance="a:1",remote="https://r/c",number="1"}}'
    values: '1x9 0x60'
  - series: 'cachedirfs_uploads_total{{instance="a:1",outcome="given_up"}}'
    values: '0x9 3x60'
  - series: 'cachedirfs_pending_oldest_seconds{{instance="a:1"}}'
    values: '0+60x69'
  alert_rule_test:
  - {{eval_time: 12m, alertname: CachedirfsRemoteDown}}
  - eval_time: 16m
    alertname: CachedirfsRemoteDown
    exp_alerts:
    - exp_labels: {{severity: warning, instance: "a:1", remote: "https://r/c", number: "1"}}
      exp_annotations:
        summary: "a:1 does without https://r/c"
        description: "Lookups are misses and uploads wait. `cachedirfs status` on that machine says why."
  - {{eval_time: 5m, alertname: CachedirfsGivenUp}}
  - eval_time: 20m
    alertname: CachedirfsGivenUp
    exp_alerts:
    - exp_labels: {{severity: warning, instance: "a:1", outcome: given_up}}
      exp_annotations:
        summary: "a:1 gave uploads up"
        description: "Nobody else will have them. `cachedirfs status --given-up DIR` lists them."
  - {{eval_time: 60m, alertname: CachedirfsPendingOld}}
  - eval_time: 67m
    alertname: CachedirfsPendingOld
    exp_alerts:
    - exp_labels: {{severity: warning, instance: "a:1"}}
      exp_annotations:
        summary: "a:1 has not uploaded something for 1h 7m 0s"
        description: "It is in the backing directory and is tried again. `cachedirfs status` says what fails."
"#,
        file("alerts.yml").display()
    );
    let path = dir.path().join("test.yml");
    fs::write(&path, test).unwrap();
    let output = Command::new("promtool")
        .args(["test", "rules"])
        .arg(&path)
        .output();
    let output = output.unwrap_or_else(|e| panic!("promtool: {e}, run: scripts/setup look"));
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whoever imports it chooses a data source and mounts, and sees panels that do not lie upon each other.
#[test]
fn the_dashboard_has_its_variables_and_its_panels_their_places() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "mountpoint", "instance"]);
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "two panels at {x},{y}: {panel}");
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            assert!(!panel["targets"].as_array().unwrap().is_empty());
        }
    }
}
