//! The pictures of the last hours: bars, one for each part of the span, stretched to whatever width there is.
//!
//! Letters would be stretched too, so all text is beside the pictures; each part says its figures when it is pointed at.

use std::fmt::Write;

use crate::control::human::{bytes, grouped, percent, span as said};

use super::super::history::{Part, Span};
use super::put;

/// Height of a picture, in units of its own; a part is [`WIDE`] wide.
const HIGH: u64 = 100;
const WIDE: usize = 10;
/// Between bars.
const GAP: usize = 2;

/// Part of a bar: from where to how high above it, of [`HIGH`], and its class.
struct Bar(u64, u64, &'static str);

/// The choice of the span, and all pictures.
pub(super) fn all(page: &mut String, parts: &[Part], span: Span) {
    let link = |to: &str, name: &str, of: Span| {
        let current = if of == span {
            " aria-current=\"page\""
        } else {
            ""
        };
        format!("<a href=\"{to}\"{current}>{name}</a>")
    };
    let (hour, day) = (
        link("/", "Last hour", Span::Hour),
        link("/?day", "Last 24 hours", Span::Day),
    );
    put(
        page,
        format_args!(
            "<nav aria-label=\"span of the pictures\">{hour} {day}</nav>\n<div class=\"charts\">"
        ),
    );
    hit_rate(page, parts, span);
    traffic(page, parts, span);
    pending(page, parts, span);
    put(page, "</div>");
}

fn hit_rate(page: &mut String, parts: &[Part], span: Span) {
    let (hits, asked) = parts
        .iter()
        .fold((0, 0), |(h, a), part| (h + part.hits, a + part.asked));
    let total = match asked {
        0 => "no lookups".to_owned(),
        _ => format!("{}% of {} lookups", percent(hits, asked), grouped(asked)),
    };
    let bar = |part: &Part| match part.asked {
        0 => Vec::new(),
        // A sliver for what missed everything, to be told from nothing asked.
        asked => vec![
            Bar(0, HIGH, "none"),
            Bar(0, (scaled(part.hits, asked)).max(1), "hit"),
        ],
    };
    let says = |part: &Part| match part.asked {
        0 => "no lookups".to_owned(),
        asked => format!(
            "{}% ({} of {})",
            percent(part.hits, asked),
            grouped(part.hits),
            grouped(asked)
        ),
    };
    let caption = format!("<b>Hit rate</b> {total}");
    picture(
        page,
        "hit rate",
        &caption,
        ("100%", "0%"),
        &bars(parts, span, &bar, &says),
        span,
    );
}

fn traffic(page: &mut String, parts: &[Part], span: Span) {
    let most = parts
        .iter()
        .map(|part| part.fetched_bytes.max(part.uploaded_bytes))
        .max()
        .unwrap_or_default();
    let sum = |of: fn(&Part) -> u64| bytes(parts.iter().map(of).sum());
    let (fetched, uploaded) = (sum(|p| p.fetched_bytes), sum(|p| p.uploaded_bytes));
    let middle = HIGH / 2;
    let bar = |part: &Part| {
        let (up, down) = (
            scaled(part.fetched_bytes, most) / 2,
            scaled(part.uploaded_bytes, most) / 2,
        );
        vec![Bar(middle, up, "in"), Bar(middle - down, down, "out")]
    };
    let says = |part: &Part| {
        format!(
            "{} fetched, {} uploaded",
            bytes(part.fetched_bytes),
            bytes(part.uploaded_bytes)
        )
    };
    let caption = format!(
        "<b>Traffic</b> <span><i class=\"key in\"></i>fetched {fetched}</span><span><i class=\"key out\"></i>uploaded {uploaded}</span>"
    );
    let top = format!("{} fetched", bytes(most));
    let bottom = format!("{} uploaded", bytes(most));
    picture(
        page,
        "traffic",
        &caption,
        (&top, &bottom),
        &bars(parts, span, &bar, &says),
        span,
    );
}

fn pending(page: &mut String, parts: &[Part], span: Span) {
    let most = parts
        .iter()
        .map(|part| part.pending)
        .max()
        .unwrap_or_default();
    let bar = |part: &Part| vec![Bar(0, scaled(part.pending, most), "wait")];
    let says = |part: &Part| format!("{} pending", grouped(part.pending));
    let caption = format!("<b>Pending</b> at most {}", grouped(most));
    let top = grouped(most);
    picture(
        page,
        "pending uploads",
        &caption,
        (&top, "0"),
        &bars(parts, span, &bar, &says),
        span,
    );
}

/// Of [`HIGH`]; what is not nothing can be seen.
fn scaled(value: u64, most: u64) -> u64 {
    if value == 0 || most == 0 {
        return 0;
    }
    let high = u128::from(HIGH) * u128::from(value) / u128::from(most);
    u64::try_from(high).unwrap_or(HIGH).max(2)
}

/// The bars of all parts, each with what it says.
fn bars(
    parts: &[Part],
    span: Span,
    bar: &dyn Fn(&Part) -> Vec<Bar>,
    says: &dyn Fn(&Part) -> String,
) -> String {
    let mut svg = String::new();
    for (at, part) in parts.iter().enumerate().filter(|(_, part)| part.known) {
        let x = at * WIDE;
        for Bar(from, high, class) in bar(part).iter().filter(|Bar(_, high, _)| *high > 0) {
            let (x, wide, y) = (x + GAP / 2, WIDE - GAP, HIGH - from - high);
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\"/>"
            );
        }
        let age = span.part() * u32::try_from(parts.len() - at).unwrap_or(u32::MAX);
        let (age, text) = (said(age.as_secs()), says(part));
        let _ = write!(
            svg,
            "<rect class=\"over\" x=\"{x}\" y=\"0\" width=\"{WIDE}\" height=\"{HIGH}\"><title>{age} ago: {text}</title></rect>"
        );
    }
    svg
}

fn picture(
    page: &mut String,
    name: &str,
    caption: &str,
    ends: (&str, &str),
    bars: &str,
    span: Span,
) {
    let (wide, (top, bottom)) = (span.parts() * WIDE, ends);
    let from = said(span.part().as_secs() * span.parts() as u64);
    let from = from.trim_end_matches(" 0 min").trim_end_matches(" 0 h");
    put(
        page,
        format_args!(
            "<figure><figcaption>{caption}</figcaption>\n<div class=\"axis\"><span>{top}</span></div>\n\
             <svg viewBox=\"0 0 {wide} {HIGH}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{name} over the last {from}\">\
             <path class=\"frame\" d=\"M0 0H{wide}M0 {HIGH}H{wide}\"/>{bars}</svg>\n\
             <div class=\"axis\"><span>{bottom}</span></div><div class=\"axis\"><span>{from} ago</span><span>now</span></div></figure>"
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_seen_and_nothing_is_not() {
        assert_eq!(
            [
                scaled(0, 9),
                scaled(1, 1_000_000),
                scaled(5, 10),
                scaled(9, 9),
                scaled(1, 0)
            ],
            [0, 2, 50, 100, 0]
        );
        assert_eq!(scaled(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn bars_stand_where_they_belong() {
        let mut parts = vec![Part::default(); 60];
        parts[59] = Part {
            hits: 1,
            asked: 4,
            fetched_bytes: 2048,
            known: true,
            ..Part::default()
        };
        let mut page = String::new();
        all(&mut page, &parts, Span::Hour);
        for part in [
            "<rect class=\"hit\" x=\"591\" y=\"75\" width=\"8\" height=\"25\"/>",
            "<title>1 min 0 s ago: 25.0% (1 of 4)</title>",
            "<rect class=\"in\" x=\"591\" y=\"0\" width=\"8\" height=\"50\"/>",
            "<title>1 min 0 s ago: 2.0 KiB fetched, 0 B uploaded</title>",
            "1 h ago",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert_eq!(
            page.matches("class=\"over\"").count(),
            3,
            "one for each picture"
        );
    }
}
