//! The figures of a mount in the text format of Prometheus, version 0.0.4.
//!
//! Written by hand: the libraries for it want to be the ones who count, and we have counted already. To add a metric: a
//! line in one of the functions below, and its line in MONITORING in `man/cachedirfs.1`.

use std::fmt::{Display, Write};

use crate::control::{RemoteStatus, Status};
use crate::stats::Times;
use crate::stats::histogram::{Distribution, LIMITS_MICROS};

/// What the answer is said to be.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// States of a remote, as the status has them.
const STATES: [&str; 4] = ["ok", "failing", "hangs", "slow"];

type Labels<'a> = &'a [(&'a str, &'a str)];

/// All metrics; `started` is when the mount began, in seconds since 1970.
pub fn render(status: &Status, times: &Times, started: u64) -> String {
    let mut text = Text::default();
    mount(&mut text, status, started);
    lookups(&mut text, status, times);
    uploads(&mut text, status, times);
    disk(&mut text, status);
    remotes(&mut text, &status.remotes);
    text.0
}

fn mount(text: &mut Text, status: &Status, started: u64) {
    text.family(
        "cachedirfs_build_info",
        "gauge",
        "The version of the daemon; always 1.",
    );
    text.sample("cachedirfs_build_info", &[("version", &status.version)], 1);
    text.family(
        "cachedirfs_mount_info",
        "gauge",
        "What is mounted where; always 1.",
    );
    let labels = [
        ("mountpoint", status.mountpoint.as_str()),
        ("remote", &status.remote),
        ("backing", &status.backing),
        ("push", &status.push),
    ];
    text.sample("cachedirfs_mount_info", &labels, 1);
    text.gauge(
        "cachedirfs_start_time_seconds",
        "When the mount began, in seconds since 1970.",
        started,
    );
    text.gauge(
        "cachedirfs_passthrough",
        "Whether the kernel reads and writes backing files itself.",
        u8::from(status.passthrough),
    );
    text.counter(
        "cachedirfs_panics_total",
        "Bugs of ours that were caught.",
        status.counters.panics,
    );
}

fn lookups(text: &mut Text, status: &Status, times: &Times) {
    let c = &status.counters;
    let outcomes = [
        ("hit", c.hits),
        ("miss", c.misses),
        ("recent_miss", c.recent_misses),
        ("late", c.late_fetches),
        ("failed", c.failed_fetches),
        ("corrupt", c.corrupt),
        ("no_room", c.no_room),
    ];
    text.family(
        "cachedirfs_lookups_total",
        "counter",
        "Lookups of entries, by outcome; a hit is an entry opened.",
    );
    text.by("cachedirfs_lookups_total", "outcome", &outcomes);
    text.counter(
        "cachedirfs_hit_bytes_total",
        "Content bytes of entries opened.",
        c.hit_bytes,
    );
    text.counter(
        "cachedirfs_fetched_objects_total",
        "Objects fetched from a remote.",
        c.fetched,
    );
    text.counter(
        "cachedirfs_fetched_bytes_total",
        "Content bytes of fetched objects.",
        c.fetched_bytes,
    );
    let name = "cachedirfs_fetch_duration_seconds";
    text.family(
        name,
        "histogram",
        "How long remotes took for lookups: to the object on the disk, to \"no such object\", to the failure.",
    );
    text.histogram(name, &[("outcome", "fetched")], &times.fetch.get());
    text.histogram(name, &[("outcome", "miss")], &times.miss.get());
    text.histogram(name, &[("outcome", "failed")], &times.failure.get());
}

fn uploads(text: &mut Text, status: &Status, times: &Times) {
    let (c, pending) = (&status.counters, &status.pending);
    text.counter(
        "cachedirfs_pushed_total",
        "Entries that came into their place here.",
        c.pushed,
    );
    let outcomes = [
        ("uploaded", c.uploaded),
        ("already_there", c.already_there),
        ("diverged", c.diverged),
        ("given_up", c.given_up),
    ];
    text.family(
        "cachedirfs_uploads_total",
        "counter",
        "Uploads that ended, by outcome; diverged: the remote holds other content.",
    );
    text.by("cachedirfs_uploads_total", "outcome", &outcomes);
    let counters = [
        (
            "cachedirfs_upload_errors_total",
            "Attempts to upload that failed.",
            c.upload_errors,
        ),
        (
            "cachedirfs_uploaded_bytes_total",
            "Content bytes of uploads that a remote took.",
            c.uploaded_bytes,
        ),
        (
            "cachedirfs_given_up_bytes_total",
            "Content bytes of uploads given up.",
            c.given_up_bytes,
        ),
        (
            "cachedirfs_touched_total",
            "Entries in use that the remotes were told of.",
            c.touched,
        ),
        (
            "cachedirfs_reshared_total",
            "Entries in use that the remotes lacked and took.",
            c.reshared,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help, value);
    }
    text.family(
        "cachedirfs_promotions_total",
        "counter",
        "Objects of a lower tier for those above it, by outcome.",
    );
    let outcomes = [("done", c.promoted), ("dropped", c.promotions_dropped)];
    text.by("cachedirfs_promotions_total", "outcome", &outcomes);
    let name = "cachedirfs_upload_duration_seconds";
    text.family(
        name,
        "histogram",
        "How long uploads took that succeeded, one attempt.",
    );
    text.histogram(name, &[], &times.upload.get());
    let gauges = [
        (
            "cachedirfs_pending_objects",
            "Objects that are not on the remote yet.",
            pending.objects,
        ),
        (
            "cachedirfs_pending_bytes",
            "Their content bytes.",
            pending.bytes,
        ),
        (
            "cachedirfs_pending_oldest_seconds",
            "For how long the oldest waits; 0 without any.",
            pending.oldest_seconds,
        ),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help, value);
    }
}

fn disk(text: &mut Text, status: &Status) {
    let c = &status.counters;
    let gauges = [
        ("cachedirfs_entries", "Entries on the disk.", status.entries),
        (
            "cachedirfs_used_bytes",
            "Bytes on the disk, of entries and of what is still to be uploaded.",
            status.bytes_used,
        ),
        (
            "cachedirfs_limit_bytes",
            "Limit of the backing directory.",
            status.limit,
        ),
        (
            "cachedirfs_min_free_bytes",
            "Bytes to be left free on its file system.",
            status.min_free,
        ),
        (
            "cachedirfs_index_complete",
            "Whether all entries on the disk are counted already.",
            status.index_complete.into(),
        ),
        (
            "cachedirfs_disk_up",
            "Whether the backing disk can be used.",
            status.disk_trouble.is_none().into(),
        ),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help, value);
    }
    let counters = [
        (
            "cachedirfs_evictions_total",
            "Entries removed to stay within the limit.",
            c.evicted,
        ),
        (
            "cachedirfs_evicted_bytes_total",
            "Bytes of those.",
            c.evicted_bytes,
        ),
        (
            "cachedirfs_disk_errors_total",
            "Operations that the backing disk failed.",
            c.disk_errors,
        ),
        (
            "cachedirfs_not_written_total",
            "Entries dropped because the backing disk failed to write them.",
            c.not_written,
        ),
        (
            "cachedirfs_leftovers_total",
            "Leftovers of interrupted pushes that were removed.",
            c.leftovers,
        ),
        (
            "cachedirfs_events_dropped_total",
            "Events that did not get into the event log.",
            c.events_dropped,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help, value);
    }
}

/// A remote is told from others by its number, since two may have one URL.
fn remotes(text: &mut Text, remotes: &[RemoteStatus]) {
    let numbers: Vec<_> = (1..=remotes.len()).map(|n| n.to_string()).collect();
    let all: Vec<_> = remotes.iter().zip(&numbers).collect();
    type Value = fn(&RemoteStatus) -> u64;
    let of_each: [(&str, &str, &str, Value); 4] = [
        (
            "cachedirfs_remote_up",
            "gauge",
            "Whether the remote is asked; its breaker is closed.",
            |r| (r.state == "ok").into(),
        ),
        (
            "cachedirfs_remote_down_seconds",
            "gauge",
            "For how long it has not been asked; 0 when it is up.",
            |r| r.since_seconds,
        ),
        (
            "cachedirfs_remote_uploads_total",
            "counter",
            "Objects that it took.",
            |r| r.uploaded,
        ),
        (
            "cachedirfs_remote_errors_total",
            "counter",
            "Calls of it that failed.",
            |r| r.errors,
        ),
    ];
    for (name, kind, help, value) in of_each {
        text.family(name, kind, help);
        for (remote, number) in &all {
            text.sample(
                name,
                &[("remote", &remote.name), ("number", number)],
                value(remote),
            );
        }
    }
    let name = "cachedirfs_remote_lookups_total";
    text.family(name, "counter", "Lookups that it answered, by outcome.");
    for (remote, number) in &all {
        for (outcome, value) in [("hit", remote.hits), ("miss", remote.misses)] {
            let labels = [
                ("remote", remote.name.as_str()),
                ("number", number),
                ("outcome", outcome),
            ];
            text.sample(name, &labels, value);
        }
    }
    let name = "cachedirfs_remote_state";
    text.family(name, "gauge", "1 for the state that it is in.");
    for (remote, number) in &all {
        for state in STATES {
            let labels = [
                ("remote", remote.name.as_str()),
                ("number", number),
                ("state", state),
            ];
            text.sample(name, &labels, u8::from(remote.state == state));
        }
    }
}

/// A text that grows.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a metric.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// A sample for each value of one label.
    fn by(&mut self, name: &str, label: &str, values: &[(&str, u64)]) {
        for (of, value) in values {
            self.sample(name, &[(label, of)], value);
        }
    }

    fn sample(&mut self, name: &str, labels: Labels, value: impl Display) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        if labels.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
        }
    }

    fn histogram(&mut self, name: &str, labels: Labels, seen: &Distribution) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (at, class) in seen.classes.iter().enumerate() {
            below += class;
            let limit = LIMITS_MICROS
                .get(at)
                .map_or("+Inf".to_owned(), |limit| seconds(*limit));
            let labels = [labels, &[("le", limit.as_str())]].concat();
            self.sample(&bucket, &labels, below);
        }
        self.sample(&format!("{name}_sum"), labels, seconds(seen.micros));
        self.sample(&format!("{name}_count"), labels, below);
    }

    fn line(&mut self, line: impl Display) {
        // Nothing fails to be written to a text.
        let _ = writeln!(self.0, "{line}");
    }
}

/// Microseconds as seconds, exactly and without zeros at the end.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Snapshot;
    use std::time::Duration;

    fn rendered(status: &Status) -> String {
        render(status, &Times::default(), 7)
    }

    #[test]
    fn every_counter_is_among_the_metrics() {
        let names = serde_json::to_value(Snapshot::default()).unwrap();
        let names = names.as_object().unwrap().keys().cloned();
        let values = names
            .enumerate()
            .map(|(n, name)| (name, (n + 1_000_000).into()));
        let values: serde_json::Map<_, _> = values.collect();
        let status = Status {
            counters: serde_json::from_value(values.clone().into()).unwrap(),
            ..Status::default()
        };
        let text = rendered(&status);
        for (name, value) in values {
            let shown = text
                .lines()
                .filter(|line| line.ends_with(&format!(" {value}")))
                .count();
            assert_eq!(shown, 1, "{name} in:\n{text}");
        }
    }

    #[test]
    fn labels_are_escaped_and_remotes_of_one_url_differ() {
        let remote = RemoteStatus {
            name: "http://h/\"\\\n".into(),
            state: "failing".into(),
            ..RemoteStatus::default()
        };
        let text = rendered(&Status {
            remotes: vec![remote.clone(), remote],
            ..Status::default()
        });
        for n in [1, 2] {
            let line =
                format!(r#"cachedirfs_remote_up{{remote="http://h/\"\\\n",number="{n}"}} 0"#);
            assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
        }
        let state = r#"number="2",state="failing"} 1"#;
        assert!(text.contains(state), "{text}");
    }

    #[test]
    fn a_histogram_adds_up_from_class_to_class() {
        let times = Times::default();
        times.upload.add(Duration::from_micros(300));
        times.upload.add(Duration::from_millis(1500));
        times.upload.add(Duration::from_secs(601));
        let text = render(&Status::default(), &times, 7);
        for line in [
            r#"cachedirfs_upload_duration_seconds_bucket{le="0.00025"} 0"#,
            r#"cachedirfs_upload_duration_seconds_bucket{le="0.0005"} 1"#,
            r#"cachedirfs_upload_duration_seconds_bucket{le="2.5"} 2"#,
            r#"cachedirfs_upload_duration_seconds_bucket{le="600"} 2"#,
            r#"cachedirfs_upload_duration_seconds_bucket{le="+Inf"} 3"#,
            "cachedirfs_upload_duration_seconds_sum 602.5003",
            "cachedirfs_upload_duration_seconds_count 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
        }
        assert_eq!([0, 1, 1_000_000].map(seconds), ["0", "0.000001", "1"]);
    }
}
