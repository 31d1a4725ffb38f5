//! The status in a form that people read at a glance.

use std::fmt;

use super::{RemoteStatus, Status};

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
        row(
            f,
            "fetched",
            &counted(self.counters.fetched, self.counters.fetched_bytes),
        )?;
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

    /// Lookups of entries that could not be served.
    pub(super) fn absent(&self) -> u64 {
        let c = &self.counters;
        c.misses + c.failed_fetches + c.late_fetches + c.corrupt + c.no_room
    }

    fn hits(&self) -> String {
        let hits = self.counters.hits;
        let asked = hits + self.absent();
        if asked == 0 {
            return "none asked for yet".into();
        }
        format!(
            "{}% ({} of {})",
            percent(hits, asked),
            grouped(hits),
            grouped(asked)
        )
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

    fn trouble(&self) -> Option<String> {
        let c = &self.counters;
        let kinds = [
            (c.failed_fetches, "failed fetch", "failed fetches"),
            (c.late_fetches, "late fetch", "late fetches"),
            (c.upload_errors, "upload error", "upload errors"),
            (c.given_up, "upload given up", "uploads given up"),
            (c.corrupt, "corrupt object", "corrupt objects"),
            (c.no_room, "object without room", "objects without room"),
            (c.diverged, "divergent push", "divergent pushes"),
            (c.disk_errors, "disk error", "disk errors"),
            (c.panics, "panic", "panics"),
        ];
        let said: Vec<_> = kinds
            .iter()
            .filter(|(n, ..)| *n > 0)
            .map(|(n, one, many)| numbered(*n, one, many))
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
fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
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

pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let power = number.ilog2() / 10;
    let tenths = (u128::from(number) * 10) >> (10 * power);
    let unit = UNITS[usize::try_from(power).expect("at most 6") - 1];
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

pub(super) fn span(seconds: u64) -> String {
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
    use crate::control::Pending;
    use crate::stats::Snapshot;

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
                misses: 50,
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
            ..Status::default()
        };
        let text = status.to_string();
        for part in [
            "https://host/c on /mnt/c\n",
            "94.1% (941 of 1,000)",
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
