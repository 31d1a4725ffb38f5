//! The status in one line, for the log of a build. "Saved" is the content of the entries that were read here: what a build
//! would have had to make itself.

use super::Status;
use super::human::{bytes, span};

/// What a mount has done so far: hits and what they saved, what was pushed, what waits, and what is wrong.
pub fn line(status: &Status) -> String {
    let counters = &status.counters;
    let asked = counters.asked();
    let mut parts = vec![match (counters.hits * 100).checked_div(asked) {
        None => "no lookups".to_owned(),
        Some(percent) => format!("hits {percent}% ({} of {asked})", counters.hits),
    }];
    if counters.hits > 0 {
        parts.push(format!("saved {}", bytes(counters.hit_bytes)));
    }
    parts.push(format!("fetched {}", bytes(counters.fetched_bytes)));
    parts.push(format!(
        "uploaded {} ({})",
        counters.uploaded,
        bytes(counters.uploaded_bytes)
    ));
    if status.pending.objects > 0 {
        parts.push(format!(
            "pending {} ({})",
            status.pending.objects,
            bytes(status.pending.bytes)
        ));
    }
    if counters.diverged > 0 {
        parts.push(format!("divergent {}", counters.diverged));
    }
    if counters.given_up > 0 {
        parts.push(format!("given up {}", counters.given_up));
    }
    if status.remote_trouble.is_some() {
        let since = span(status.remote_since_seconds);
        parts.push(format!("remote {} for {since}", status.remote_state));
    }
    if let Some(trouble) = &status.disk_trouble {
        parts.push(format!("DISK {trouble}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_counts_and_no_more() {
        let mut status = Status::default();
        assert_eq!(line(&status), "no lookups, fetched 0 B, uploaded 0 (0 B)");
        status.counters.hits = 3;
        status.counters.misses = 1;
        status.counters.hit_bytes = 3 << 20;
        status.counters.fetched_bytes = 2048;
        status.counters.uploaded = 1;
        status.counters.uploaded_bytes = 10;
        assert_eq!(
            line(&status),
            "hits 75% (3 of 4), saved 3.0 MiB, fetched 2.0 KiB, uploaded 1 (10 B)"
        );
        status.pending.objects = 2;
        status.pending.bytes = 5;
        status.counters.diverged = 1;
        status.remote_state = "failing".to_owned();
        status.remote_trouble = Some("refused".to_owned());
        status.remote_since_seconds = 90;
        assert_eq!(
            line(&status),
            "hits 75% (3 of 4), saved 3.0 MiB, fetched 2.0 KiB, uploaded 1 (10 B), pending 2 (5 B), divergent 1, remote failing for 1 min 30 s"
        );
    }
}
