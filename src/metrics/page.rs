//! The status page: one document, made here as a whole, that asks for nothing else.
//!
//! What is wrong comes first. The pictures are SVG; a few lines of script replace the page every ten seconds, without it the
//! browser loads it again. Every text from outside goes through [`escaped`], and every figure is a `<data>` whose
//! `data-of` says which field of `/status.json` it is, so that a test can compare them all.

mod charts;

use std::fmt::{Display, Write};

use crate::control::human::{bytes, grouped, percent, span, took};
use crate::control::{Latency, RemoteStatus, Status};

use super::history::{History, Sample, Span};

/// All of its looks. No style stands in an attribute: the policy of the page lets none count.
pub const STYLE: &str = include_str!("page/style.css");
/// Loads it anew now and then.
pub const SCRIPT: &str = include_str!("page/refresh.js");

/// What the browser may do with it: these two and nothing else. The hashes are SHA-256 of [`STYLE`] and [`SCRIPT`].
pub const POLICY: &str = "default-src 'none'; \
    style-src 'sha256-V2+7gxi7KN9N+jNFqWiuqmJMFnHkr/4Im1MZ7u3V5MI='; \
    script-src 'sha256-goM8Ch7S3N9MYWCzSOYjABlzOOMrzn3gyTfcLMzLs7Q='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page; `now` is how it stands.
pub fn render(status: &Status, history: &History, span: Span, now: Sample) -> String {
    let mut main = String::new();
    header(&mut main, status);
    wrong(&mut main, status);
    tiles(&mut main, status);
    charts::all(&mut main, &history.parts(span, now), span);
    disk(&mut main, status);
    remotes(&mut main, &status.remotes);
    tables(&mut main, status);
    footer(&mut main, status, now);
    let title = escaped(&status.mountpoint);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} – cachedirfs</title>\n<link rel=\"icon\" href=\"data:,\">\n\
         <noscript><meta http-equiv=\"refresh\" content=\"30\"></noscript>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n{main}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// A text as HTML shows it, also in an attribute.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            // Whatever a terminal or an editor would act on, and what turns the direction of writing.
            c if c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                safe.push('\u{fffd}');
            }
            c => safe.push(c),
        }
    }
    safe
}

/// A figure: the field that it is, its value, and how people read it.
fn figure(of: impl Display, value: impl Display, text: impl Display) -> String {
    format!("<data data-of=\"{of}\" value=\"{value}\">{text}</data>")
}

fn number(of: impl Display, value: u64) -> String {
    figure(of, value, grouped(value))
}

fn size(of: impl Display, value: u64) -> String {
    figure(of, value, bytes(value))
}

fn time(of: impl Display, seconds: u64) -> String {
    figure(of, seconds, span(seconds))
}

fn counter(name: &str, value: u64) -> String {
    number(format_args!("/counters/{name}"), value)
}

/// Nothing fails to be written to a text.
fn put(page: &mut String, html: impl Display) {
    let _ = writeln!(page, "{html}");
}

fn header(page: &mut String, status: &Status) {
    let (mountpoint, remote) = (escaped(&status.mountpoint), escaped(&status.remote));
    put(
        page,
        format_args!(
            "<header><h1>{mountpoint}</h1>\n<p class=\"soft remote\">{remote}</p></header>\n\
             <section id=\"gone\" class=\"wrong\" role=\"alert\"><h2>The mount does not answer any more</h2>\
             <p>What is below is how it last was.</p></section>"
        ),
    );
}

/// What is wrong now, then what went wrong since the mount, or that nothing is.
fn wrong(page: &mut String, status: &Status) {
    let mut now = Vec::new();
    for remote in status.remotes.iter().filter(|remote| remote.state != "ok") {
        let reason = remote.trouble.as_deref().unwrap_or("no reason given");
        let (name, state) = (escaped(&remote.name), escaped(&remote.state));
        now.push(format!(
            "The remote {name} is not asked ({state}): {}",
            escaped(reason)
        ));
    }
    if let Some(trouble) = &status.disk_trouble {
        now.push(format!(
            "The backing disk cannot be used: {}",
            escaped(trouble)
        ));
    }
    if !now.is_empty() {
        list(page, "wrong", "Wrong now", &now);
    }
    let troubles = status.troubles();
    let since: Vec<_> = troubles
        .iter()
        .map(|one| format!("{} {}", counter(one.counter, one.number), one.noun))
        .collect();
    if !since.is_empty() {
        list(page, "notes", "Went wrong since the mount", &since);
    } else if now.is_empty() {
        put(
            page,
            "<section class=\"well\" role=\"status\"><h2>All is well</h2><p class=\"soft\">Nothing has gone wrong since the mount.</p></section>",
        );
    }
}

fn list(page: &mut String, class: &str, title: &str, items: &[String]) {
    let items: String = items
        .iter()
        .map(|item| format!("<li>{item}</li>\n"))
        .collect();
    let role = if class == "wrong" { "alert" } else { "status" };
    put(
        page,
        format_args!(
            "<section class=\"{class}\" role=\"{role}\"><h2>{title}</h2>\n<ul>\n{items}</ul></section>"
        ),
    );
}

fn tiles(page: &mut String, status: &Status) {
    let (c, pending) = (&status.counters, &status.pending);
    let rate = c.hit_percent();
    let rate = rate.map_or("–".to_owned(), |rate| {
        figure("hit_percent", &rate, format_args!("{rate}%"))
    });
    let waits = match pending.objects {
        0 => "everything is on the remote".to_owned(),
        _ => format!(
            "{}, the oldest for {}",
            size("/pending/bytes", pending.bytes),
            time("/pending/oldest_seconds", pending.oldest_seconds)
        ),
    };
    let used = percent(status.bytes_used, status.limit.max(1));
    let tiles = [
        (
            "Hit rate",
            rate,
            format!(
                "{} of {} lookups",
                counter("hits", c.hits),
                number("asked", c.asked())
            ),
        ),
        (
            "Read here",
            size("/counters/hit_bytes", c.hit_bytes),
            "content of hits".to_owned(),
        ),
        (
            "Fetched",
            size("/counters/fetched_bytes", c.fetched_bytes),
            format!("{} objects", counter("fetched", c.fetched)),
        ),
        (
            "Uploaded",
            size("/counters/uploaded_bytes", c.uploaded_bytes),
            format!(
                "{} objects of {} pushed",
                counter("uploaded", c.uploaded),
                counter("pushed", c.pushed)
            ),
        ),
        (
            "Pending",
            number("/pending/objects", pending.objects),
            waits,
        ),
        (
            "Disk",
            figure("used_percent", &used, format_args!("{used}%")),
            format!("{} entries", number("/entries", status.entries)),
        ),
    ];
    put(page, "<dl class=\"tiles\">");
    for (name, value, more) in tiles {
        put(
            page,
            format_args!("<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>"),
        );
    }
    put(page, "</dl>");
}

fn disk(page: &mut String, status: &Status) {
    let counting = if status.index_complete {
        ""
    } else {
        " (still counting)"
    };
    let (used, limit) = (status.bytes_used, status.limit.max(1));
    put(
        page,
        format_args!(
            "<section><h2>Disk</h2>\n<meter min=\"0\" max=\"{limit}\" value=\"{used}\" aria-label=\"used of the limit\"></meter>\n\
             <p>{} of {}{counting}; {} left free at least; {} evicted ({})</p>\n<p class=\"soft long\">{}</p></section>",
            size("/bytes_used", used),
            size("/limit", status.limit),
            size("/min_free", status.min_free),
            counter("evicted", status.counters.evicted),
            size("/counters/evicted_bytes", status.counters.evicted_bytes),
            escaped(&status.backing),
        ),
    );
}

fn remotes(page: &mut String, remotes: &[RemoteStatus]) {
    put(page, "<section><h2>Remotes</h2>");
    for (n, remote) in remotes.iter().enumerate() {
        let of = |field: &str| format!("/remotes/{n}/{field}");
        let class = if remote.state == "ok" { "ok" } else { "bad" };
        let since = match remote.state.as_str() {
            "ok" => String::new(),
            _ => format!(
                ", not asked for {}",
                time(of("since_seconds"), remote.since_seconds)
            ),
        };
        put(
            page,
            format_args!(
                "<div class=\"one\"><p class=\"remote\"><span class=\"state {class}\">{}</span> {} <span class=\"soft\">{}</span></p>\n\
                 <p class=\"soft\">had {}, had not {}, took {}, {} errors{since}</p></div>",
                escaped(&remote.state),
                escaped(&remote.name),
                escaped(&remote.mode),
                number(of("hits"), remote.hits),
                number(of("misses"), remote.misses),
                number(of("uploaded"), remote.uploaded),
                number(of("errors"), remote.errors),
            ),
        );
    }
    put(page, "</section>");
}

fn tables(page: &mut String, status: &Status) {
    let c = &status.counters;
    put(page, "<div class=\"pair\"><section><h2>Lookups</h2><table>");
    let row = |page: &mut String, name: &str, value: String| {
        put(
            page,
            format_args!("<tr><th scope=\"row\">{name}</th><td class=\"n\">{value}</td></tr>"),
        );
    };
    row(page, "hits", counter("hits", c.hits));
    for (number, name, why) in c.absences() {
        row(page, why, counter(name, number));
    }
    row(
        page,
        "known to be absent",
        counter("recent_misses", c.recent_misses),
    );
    put(
        page,
        "</table></section>\n<section><h2>How long remotes took</h2><table>",
    );
    put(
        page,
        "<tr><th scope=\"col\"></th><th scope=\"col\" class=\"n\">calls</th><th scope=\"col\" class=\"n\">median</th><th scope=\"col\" class=\"n\">p99</th></tr>",
    );
    let all = &status.latencies;
    let kinds = [
        ("fetched", "fetch", all.fetch),
        ("not there", "miss", all.miss),
        ("failed", "failure", all.failure),
        ("uploaded", "upload", all.upload),
    ];
    for (name, field, seen) in kinds {
        put(page, latency(name, field, &seen));
    }
    put(page, "</table></section></div>");
}

fn latency(name: &str, field: &str, seen: &Latency) -> String {
    let of = |part: &str| format!("/latencies/{field}/{part}");
    let time = |part: &str, micros: u64| match seen.count {
        0 => "–".to_owned(),
        _ => figure(of(part), micros, took(micros)),
    };
    let (median, p99) = (
        time("median_micros", seen.median_micros),
        time("p99_micros", seen.p99_micros),
    );
    let count = number(of("count"), seen.count);
    format!(
        "<tr><th scope=\"row\">{name}</th><td class=\"n\">{count}</td><td class=\"n\">{median}</td><td class=\"n\">{p99}</td></tr>"
    )
}

fn footer(page: &mut String, status: &Status, now: Sample) {
    let at = i64::try_from(now.figures[0]).ok();
    let at = at
        .and_then(|at| jiff::Timestamp::from_second(at).ok())
        .unwrap_or_default();
    put(
        page,
        format_args!(
            "<footer><p>cachedirfs {}, process {}, up {}, as of <time>{at}</time>; passthrough {}, push {}</p>\n\
             <p><a href=\"/metrics\">/metrics</a> for Prometheus, <a href=\"/status.json\">/status.json</a>, \
             <a href=\"/history.json\">/history.json</a></p></footer>",
            escaped(&status.version),
            figure("/pid", status.pid, status.pid),
            time("/uptime_seconds", status.uptime_seconds),
            if status.passthrough { "on" } else { "off" },
            escaped(&status.push),
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn page(status: &Status, span: Span) -> String {
        let now = Sample::of(status, Duration::from_secs(5), 1_700_000_000);
        render(status, &History::default(), span, now)
    }

    /// What a server may call itself, or say when it fails, is shown as text and is nothing else.
    #[test]
    fn texts_from_outside_stay_texts() {
        let hostile = "<script>alert(1)</script>\" onload='x' &amp; </style>\u{202e}\u{0}\n";
        let remote = RemoteStatus {
            name: hostile.into(),
            mode: hostile.into(),
            state: hostile.into(),
            trouble: Some(hostile.into()),
            ..RemoteStatus::default()
        };
        let status = Status {
            version: hostile.into(),
            remote: hostile.into(),
            mountpoint: hostile.into(),
            backing: hostile.into(),
            push: hostile.into(),
            remotes: vec![remote],
            disk_trouble: Some(hostile.into()),
            ..Status::default()
        };
        for span in [Span::Hour, Span::Day] {
            let page = page(&status, span);
            assert_eq!(page.matches("<script").count(), 1, "ours");
            assert_eq!(page.matches("</style>").count(), 1, "ours");
            assert!(
                !page.contains("onload='x'") && !page.contains('\u{202e}') && !page.contains('\0')
            );
            let shown = page.matches("&lt;script&gt;alert(1)&lt;/script&gt;&quot; onload=&#39;x&#39; &amp;amp; &lt;/style&gt;");
            assert!(shown.count() >= 10);
        }
    }

    #[test]
    fn what_is_wrong_comes_first_and_else_all_is_well() {
        let well = page(&Status::default(), Span::Hour);
        assert!(well.contains("All is well"));
        let status = Status {
            disk_trouble: Some("read-only".into()),
            counters: crate::stats::Snapshot {
                diverged: 2,
                ..Default::default()
            },
            ..Status::default()
        };
        let page = page(&status, Span::Hour);
        let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}"));
        assert!(!page.contains("All is well"));
        assert!(at("cannot be used: read-only") < at("divergent pushes"));
        assert!(at("divergent pushes") < at("Hit rate"));
    }

    #[cfg(all(feature = "http", feature = "grpc"))]
    #[test]
    fn the_policy_lets_our_style_and_script_count() {
        use base64::Engine;
        use sha2::Digest;
        for text in [STYLE, SCRIPT] {
            let hash = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(text));
            assert!(
                POLICY.contains(&format!("'sha256-{hash}'")),
                "{hash} is the hash of {text}"
            );
        }
        assert!(!page(&Status::default(), Span::Hour).contains(" style="));
    }
}
