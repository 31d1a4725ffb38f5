//! The status in a form that people read at a glance.

use std::fmt;

use super::{Latencies, RemoteStatus, Status};
use crate::stats::Snapshot;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}", self.remote, self.mountpoint)?;
        if self.remotes.len() > 1 {
            for remote in &self.remotes {
                row(f, "remote", &remote.to_string())?;
            }
        } else {
            row(f, "remote", &self.remote())?;
        }
        row(f, "hits", &self.hits())?;
        if let Some(misses) = self.misses() {
            row(f, "misses", &misses)?;
        }
        row(
            f,
            "fetched",
            &counted(self.counters.fetched, self.counters.fetched_bytes),
        )?;
        if let Some(latencies) = self.latencies.said() {
            row(f, "latency", &latencies)?;
        }
        row(f, "pushed", &self.pushed())?;
        row(f, "pending", &self.pending_text())?;
        row(f, "disk", &self.disk())?;
        if let Some(trouble) = &self.disk_trouble {
            row(f, "DISK", trouble)?;
        }
        if let Some(trouble) = self.trouble() {
            row(f, "trouble", &trouble)?;
        }
        row(f, "kernel", &self.kernel())?;
        if let Some(metrics) = self.metrics() {
            row(f, "metrics", &metrics)?;
        }
        row(
            f,
            "daemon",
            &format!(
                "version {}, pid {}, up {}",
                self.version,
                self.pid,
                span(self.uptime_seconds)
            ),
        )
    }
}

/// A counter that is not zero, and what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its name.
    pub counter: &'static str,
    /// What it stands at.
    pub number: u64,
    /// What it counts: one of them, or several.
    pub noun: &'static str,
}

impl Snapshot {
    /// Lookups that were not served, by the counter that counts them, and why.
    pub fn absences(&self) -> [(u64, &'static str, &'static str); 5] {
        [
            (self.misses, "misses", "not on the remote"),
            (self.failed_fetches, "failed_fetches", "failed or not asked"),
            (self.late_fetches, "late_fetches", "too late"),
            (self.corrupt, "corrupt", "corrupt"),
            (self.no_room, "no_room", "without room"),
        ]
    }

    /// Lookups, but for those that were answered from memory of a miss.
    pub fn asked(&self) -> u64 {
        self.hits + self.absences().iter().map(|(n, ..)| n).sum::<u64>()
    }

    /// How many percent of those were hits, with one decimal; `None` if there were none.
    pub fn hit_percent(&self) -> Option<String> {
        let asked = self.asked();
        (asked > 0).then(|| percent(self.hits, asked))
    }
}

impl Latencies {
    /// Median and p99 of each kind there was.
    fn said(&self) -> Option<String> {
        let kinds = [
            ("fetch", self.fetch),
            ("miss", self.miss),
            ("failure", self.failure),
            ("upload", self.upload),
        ];
        let some = kinds.iter().filter(|(_, seen)| seen.count > 0);
        let said: Vec<_> = some
            .map(|(name, seen)| {
                let (median, p99) = (took(seen.median_micros), took(seen.p99_micros));
                format!("{name} {median} (p99 {p99})")
            })
            .collect();
        (!said.is_empty()).then(|| said.join(", "))
    }
}

impl fmt::Display for RemoteStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, mode, hits) = (&self.name, &self.mode, grouped(self.hits));
        let asked = grouped(self.hits + self.misses);
        write!(f, "{name} ({mode}): {}", self.state)?;
        if let Some(why) = &self.trouble {
            write!(f, " for {}: {why}", span(self.since_seconds))?;
        }
        write!(
            f,
            "; had {hits} of {asked}, took {}",
            grouped(self.uploaded)
        )?;
        match self.errors {
            0 => Ok(()),
            errors => write!(f, ", {}", numbered(errors, "error", "errors")),
        }
    }
}

impl Status {
    fn remote(&self) -> String {
        match &self.remote_trouble {
            None => "ok".into(),
            Some(why) => {
                let (state, since) = (&self.remote_state, span(self.remote_since_seconds));
                format!("{state} for {since}, lookups are misses and uploads wait: {why}")
            }
        }
    }

    fn hits(&self) -> String {
        let (hits, asked) = (self.counters.hits, self.counters.asked());
        match self.counters.hit_percent() {
            None => "none asked for yet".into(),
            Some(percent) => {
                let size = bytes(self.counters.hit_bytes);
                let (hits, asked) = (grouped(hits), grouped(asked));
                format!("{percent}% ({hits} of {asked}), {size} of content")
            }
        }
    }

    /// Why entries were not had.
    fn misses(&self) -> Option<String> {
        let c = &self.counters;
        let mut said: Vec<_> = c
            .absences()
            .into_iter()
            .filter(|(n, ..)| *n > 0)
            .map(|(n, _, why)| format!("{} {why}", grouped(n)))
            .collect();
        if c.recent_misses > 0 {
            said.push(format!("{} more were known", grouped(c.recent_misses)));
        }
        (!said.is_empty()).then(|| said.join(", "))
    }

    fn metrics(&self) -> Option<String> {
        match (&self.metrics, &self.metrics_trouble) {
            (Some(address), _) => Some(format!("http://{address}/")),
            (None, trouble) => trouble.clone(),
        }
    }

    fn pushed(&self) -> String {
        if self.push == "off" {
            let why = if self.read_only {
                "read-only"
            } else {
                "push=off"
            };
            return format!("nothing is uploaded: {why}");
        }
        let c = &self.counters;
        let uploaded = counted(c.uploaded, c.uploaded_bytes);
        format!(
            "{}; uploaded {uploaded}; on the remote before {}",
            grouped(c.pushed),
            grouped(c.already_there)
        )
    }

    fn pending_text(&self) -> String {
        if self.pending.objects == 0 {
            return "nothing".into();
        }
        let oldest = span(self.pending.oldest_seconds);
        let fate = if self.push == "off" {
            "; kept for the next mount that uploads"
        } else {
            ""
        };
        format!(
            "{}, the oldest for {oldest}{fate}",
            counted(self.pending.objects, self.pending.bytes)
        )
    }

    fn disk(&self) -> String {
        let filling = if self.index_complete {
            ""
        } else {
            " (still counting)"
        };
        format!(
            "{} of {} ({}%){filling}, {}, at least {} left free, in {}",
            bytes(self.bytes_used),
            bytes(self.limit),
            percent(self.bytes_used, self.limit.max(1)),
            numbered(self.entries, "entry", "entries"),
            bytes(self.min_free),
            self.backing,
        )
    }

    /// What should not have happened since the mount, and did.
    pub fn troubles(&self) -> Vec<Counted> {
        let c = &self.counters;
        let kinds = [
            (
                "failed_fetches",
                c.failed_fetches,
                "failed fetch",
                "failed fetches",
            ),
            ("late_fetches", c.late_fetches, "late fetch", "late fetches"),
            (
                "upload_errors",
                c.upload_errors,
                "upload error",
                "upload errors",
            ),
            (
                "given_up",
                c.given_up,
                "upload given up",
                "uploads given up",
            ),
            ("corrupt", c.corrupt, "corrupt object", "corrupt objects"),
            (
                "no_room",
                c.no_room,
                "object without room",
                "objects without room",
            ),
            ("diverged", c.diverged, "divergent push", "divergent pushes"),
            (
                "not_written",
                c.not_written,
                "entry not written",
                "entries not written",
            ),
            ("disk_errors", c.disk_errors, "disk error", "disk errors"),
            ("panics", c.panics, "panic", "panics"),
        ];
        let some = kinds.into_iter().filter(|(_, number, ..)| *number > 0);
        some.map(|(counter, number, one, many)| Counted {
            counter,
            number,
            noun: if number == 1 { one } else { many },
        })
        .collect()
    }

    fn trouble(&self) -> Option<String> {
        let troubles = self.troubles();
        let said: Vec<_> = troubles
            .iter()
            .map(|one| format!("{} {}", grouped(one.number), one.noun))
            .collect();
        (!said.is_empty()).then(|| said.join(", "))
    }

    fn kernel(&self) -> String {
        match (&self.passthrough_off_because, self.passthrough) {
            (_, true) => "passthrough on".into(),
            (Some(why), false) => format!("passthrough off: {why}"),
            (None, false) => "passthrough off".into(),
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    writeln!(f, "  {name:<8} {text}")
}

fn numbered(number: u64, one: &str, many: &str) -> String {
    let what = if number == 1 { one } else { many };
    format!("{} {what}", grouped(number))
}

fn counted(objects: u64, size: u64) -> String {
    format!("{} ({})", grouped(objects), bytes(size))
}

/// One decimal, rounded down: 100.0 means all.
pub fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With a unit of 1024s.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let power = number.ilog2() / 10;
    let tenths = (u128::from(number) * 10) >> (10 * power);
    let unit = UNITS[usize::try_from(power).expect("at most 6") - 1];
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// Microseconds as people say them: `0.4 ms`, `12 ms`, `1.2 s`, `2 min 5 s`.
pub fn took(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        10_000..1_000_000 => format!("{} ms", micros / 1000),
        1_000_000..60_000_000 => {
            format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000)
        }
        _ => span(micros / 1_000_000),
    }
}

/// Seconds as people say them.
pub fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Latency, Pending};

    #[test]
    fn numbers_are_in_units_of_people() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0, 1023, 1024, 1536, 20 << 30, u64::MAX].map(bytes),
            [
                "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "20.0 GiB", "15.9 EiB"
            ]
        );
        assert_eq!(
            [0, 450, 9_999, 12_345, 1_250_000, 61_000_000].map(took),
            ["0.0 ms", "0.4 ms", "9.9 ms", "12 ms", "1.2 s", "1 min 1 s"]
        );
        assert_eq!(
            [59, 61, 3660, 90_000].map(span),
            ["59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]
        );
        assert_eq!(
            (percent(999, 1000), percent(u64::MAX, u64::MAX)),
            ("99.9".into(), "100.0".into())
        );
    }

    #[test]
    fn each_of_several_remotes_has_a_line() {
        let one = RemoteStatus {
            name: "https://near/c".into(),
            mode: "rw".into(),
            state: "ok".into(),
            hits: 1200,
            misses: 34,
            uploaded: 5,
            ..RemoteStatus::default()
        };
        let other = RemoteStatus {
            name: "https://far/c".into(),
            mode: "ro".into(),
            state: "hangs".into(),
            trouble: Some("get: no answer".into()),
            since_seconds: 61,
            errors: 1,
            ..RemoteStatus::default()
        };
        let remotes = vec![one, other];
        let text = Status {
            remotes,
            ..Status::default()
        }
        .to_string();
        for line in [
            "  remote   https://near/c (rw): ok; had 1,200 of 1,234, took 5\n",
            "  remote   https://far/c (ro): hangs for 1 min 1 s: get: no answer; had 0 of 0, took 0, 1 error\n",
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
    }

    #[test]
    fn a_status_says_hit_rate_pending_and_trouble() {
        let status = Status {
            remote: "https://host/c".into(),
            mountpoint: "/mnt/c".into(),
            counters: Snapshot {
                hits: 941,
                hit_bytes: 3072,
                misses: 50,
                recent_misses: 7,
                failed_fetches: 9,
                pushed: 3,
                ..Snapshot::default()
            },
            pending: Pending {
                objects: 2,
                bytes: 2048,
                oldest_seconds: 61,
            },
            remote_state: "failing".into(),
            remote_trouble: Some("connection refused".into()),
            remote_since_seconds: 72,
            latencies: Latencies {
                fetch: Latency {
                    count: 2,
                    total_micros: 30_000,
                    median_micros: 12_000,
                    p99_micros: 1_500_000,
                },
                ..Latencies::default()
            },
            metrics: Some("127.0.0.1:9469".into()),
            ..Status::default()
        };
        let text = status.to_string();
        for part in [
            "https://host/c on /mnt/c\n",
            "94.1% (941 of 1,000), 3.0 KiB of content\n",
            "  misses   50 not on the remote, 9 failed or not asked, 7 more were known\n",
            "  latency  fetch 12 ms (p99 1.5 s)\n",
            "  metrics  http://127.0.0.1:9469/\n",
            "2 (2.0 KiB), the oldest for 1 min 1 s",
            "trouble  9 failed fetches\n",
            "remote   failing for 1 min 12 s, lookups are misses and uploads wait: connection refused\n",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let one = Status {
            entries: 1,
            push: "off".into(),
            counters: Snapshot {
                diverged: 1,
                ..Snapshot::default()
            },
            ..status
        };
        let text = one.to_string();
        for part in [
            " 1 entry, ",
            "trouble  1 divergent push\n",
            "1 min 1 s; kept for the next mount that uploads\n",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let fresh = Status::default().to_string();
        assert!(
            fresh.contains("none asked for yet") && !fresh.contains("trouble"),
            "{fresh}"
        );
    }
}
