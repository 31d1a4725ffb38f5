//! The status page of a mount under load, as a browser has it: its figures are those of the status, it fits a phone, and it
//! asks nobody else.

use std::path::PathBuf;
use std::time::Duration;

use cachedirfs::control::human::{bytes, grouped, percent, span, took};
use cachedirfs::control::{RemoteStatus, Status};
use cachedirfs::metrics::history::{History, Sample, Span};
use cachedirfs::metrics::page;
use serde_json::Value;

use super::chromium::Chromium;
use super::{LIMIT, Stage};
use crate::support::wait_until;

/// Figures that grow while nobody does anything.
const OF_TIME: [&str; 3] = [
    "/uptime_seconds",
    "/pending/oldest_seconds",
    "/since_seconds",
];

/// The figures of the page: which field, its value, what is read.
const FIGURES: &str =
    "[...document.querySelectorAll('main data')].map(d => [d.dataset.of, d.value, d.textContent])";

/// What is left of tables and tiles without them.
const REST: &str = "[...document.querySelectorAll('.tiles dd, td, .one p:last-child')].map(e => { \
    const c = e.cloneNode(true); c.querySelectorAll('data').forEach(d => d.remove()); return c.textContent; }).join(' ')";

/// Where pictures go, for somebody to look at: a directory named by the environment, or one that is gone at the end.
fn gallery() -> (PathBuf, Option<tempfile::TempDir>) {
    match std::env::var_os("CACHEDIRFS_TEST_PICTURES") {
        Some(dir) => (dir.into(), None),
        None => {
            let dir = tempfile::tempdir().unwrap();
            (dir.path().to_owned(), Some(dir))
        }
    }
}

/// A stage where something was hit, missed, fetched, pushed and uploaded, and where now a remote fails and uploads wait.
fn stage() -> Stage {
    let stage = Stage::new();
    stage.load(0, 40);
    stage.fetch(10);
    stage.mounted.flush();
    stage.break_remote();
    stage.load(100, 10);
    stage
}

/// How people read it, by what the field is.
fn read(of: &str, value: &str) -> String {
    let number = || value.parse().unwrap();
    match of {
        "hit_percent" | "used_percent" => format!("{value}%"),
        _ if of.ends_with("_seconds") => span(number()),
        _ if of.ends_with("_micros") => took(number()),
        _ if of.ends_with("bytes") || ["/limit", "/min_free", "/bytes_used"].contains(&of) => {
            bytes(number())
        }
        "/pid" => value.to_owned(),
        _ => grouped(number()),
    }
}

/// What the status has for it.
fn expected(status: &Value, of: &str) -> String {
    let count = |name: &str| status["counters"][name].as_u64().unwrap();
    let absences = [
        "misses",
        "failed_fetches",
        "late_fetches",
        "corrupt",
        "no_room",
    ];
    let asked = count("hits") + absences.iter().map(|name| count(name)).sum::<u64>();
    match of {
        "/counters/asked" | "asked" => asked.to_string(),
        "hit_percent" => percent(count("hits"), asked),
        "used_percent" => percent(
            status["bytes_used"].as_u64().unwrap(),
            status["limit"].as_u64().unwrap(),
        ),
        _ => status
            .pointer(of)
            .unwrap_or_else(|| panic!("{of} in {status:#}"))
            .to_string(),
    }
}

/// The first figure that is not that of the status.
fn difference(figures: &Value, status: &Value) -> Option<String> {
    let figures = figures.as_array().unwrap();
    let text = |figure: &Value, at: usize| figure[at].as_str().unwrap().to_owned();
    figures.iter().find_map(|figure| {
        let (of, value, shown) = (text(figure, 0), text(figure, 1), text(figure, 2));
        let expected = expected(status, &of);
        let of_time = OF_TIME.iter().any(|end| of.ends_with(end));
        let same = if of_time {
            expected
                .parse::<u64>()
                .unwrap()
                .abs_diff(value.parse().unwrap())
                <= 10
        } else {
            expected == value
        };
        let right = same && shown == read(&of, &value);
        (!right).then(|| format!("{of} is {value}, read as {shown:?}; the status has {expected}"))
    })
}

/// Titles, captions and figures, and the picture's.
#[test]
fn every_number_of_the_page_is_that_of_the_status() {
    let stage = stage();
    let mut chromium = Chromium::start();
    let mut found = None;
    wait_until("page and status are of the same moment", LIMIT, || {
        chromium.open(&format!("http://{}/", stage.address));
        found = difference(&chromium.value(FIGURES), &stage.mounted.status());
        if let Some(found) = &found {
            eprintln!("{found}");
        }
        found.is_none()
    });
    let figures = chromium.value(FIGURES);
    assert!(figures.as_array().unwrap().len() > 30, "{figures}");
    let rest = chromium.value(REST);
    let rest = rest.as_str().unwrap();
    assert!(
        !rest.contains(|c: char| c.is_ascii_digit()),
        "a figure that is not said to be one: {rest}"
    );

    // The pictures: what their parts say adds up to what happened.
    let status = stage.mounted.status();
    let count = |name: &str| status["counters"][name].as_u64().unwrap();
    let titles =
        chromium.value("[...document.querySelectorAll('svg title')].map(t => t.textContent)");
    let titles: Vec<_> = titles
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap().to_owned())
        .collect();
    let hits = titles.iter().filter_map(|t| {
        t.split_once('(')?
            .1
            .split_once(" of ")?
            .0
            .parse::<u64>()
            .ok()
    });
    assert_eq!(hits.sum::<u64>(), count("hits"), "{titles:?}");
    let captions = chromium
        .value("[...document.querySelectorAll('figcaption')].map(c => c.textContent).join('\\n')");
    let captions = captions.as_str().unwrap();
    assert!(
        captions.contains(&format!("uploaded {}", bytes(count("uploaded_bytes")))),
        "{captions}"
    );
    let alert =
        chromium.value("document.querySelector('main > section.wrong:not(#gone)').textContent");
    assert!(alert.as_str().unwrap().contains("is not asked"), "{alert}");
}

/// A phone and a desk, light and dark, an hour and a day: nothing sticks out, nothing is blocked or fails, nobody else is asked.
#[test]
fn it_fits_every_screen_and_asks_nobody_else() {
    let stage = stage();
    let (gallery, _kept) = gallery();
    let mut chromium = Chromium::start();
    let mut grounds = Vec::new();
    for width in [360, 1280] {
        for scheme in ["light", "dark"] {
            chromium.screen(width, scheme);
            for (name, path) in [("hour", "/"), ("day", "/?day")] {
                chromium.open(&format!("http://{}{path}", stage.address));
                let widest = chromium.value("document.documentElement.scrollWidth");
                assert_eq!(widest, width, "{name} sticks out at {width}");
                let cut = chromium.value(
                    "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)",
                );
                assert_eq!(cut.as_array().map(Vec::len), Some(0), "{cut}");
                let picture = gallery.join(format!("status-{name}-{width}-{scheme}.png"));
                chromium.picture(&picture);
                assert!(picture.metadata().unwrap().len() > 10_000);
            }
            let ground = chromium.value("getComputedStyle(document.body).backgroundColor");
            grounds.push(ground.as_str().unwrap().to_owned());
            let small = chromium.value(
                "Math.min(...[...document.querySelectorAll('main *')].filter(e => e.children.length == 0 && e.textContent.trim() && !e.closest('svg')).map(e => parseFloat(getComputedStyle(e).fontSize)))",
            );
            assert!(small.as_f64().unwrap() >= 12.0, "letters of {small} px");
        }
    }
    assert_eq!(grounds[0], grounds[2]);
    assert_ne!(grounds[0], grounds[1], "dark is not light");
    let of = |method: &str| {
        chromium
            .events
            .iter()
            .filter(|e| e["method"] == method)
            .collect::<Vec<_>>()
    };
    let asked = of("Network.requestWillBeSent");
    assert!(asked.len() >= 8);
    for request in asked {
        let url = request["params"]["request"]["url"].as_str().unwrap();
        assert!(
            url.starts_with(&format!("http://{}/", stage.address)) || url.starts_with("data:"),
            "{url}"
        );
    }
    for complaint in [
        "Log.entryAdded",
        "Runtime.exceptionThrown",
        "Network.loadingFailed",
    ] {
        assert!(of(complaint).is_empty(), "{:?}", of(complaint));
    }
}

/// It follows the mount by itself, and says so when the mount has gone.
#[test]
fn it_follows_the_mount_to_its_end() {
    let mut stage = Stage::new();
    let mut chromium = Chromium::start();
    chromium.open(&format!("http://{}/", stage.address));
    let pushed = "Number(document.querySelector('data[data-of=\"/counters/pushed\"]').value)";
    assert_eq!(chromium.value(pushed), 0);
    stage.load(0, 3);
    wait_until("it shows what happened", LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        chromium.value(pushed) == 3
    });
    let seen = "getComputedStyle(document.getElementById('gone')).display";
    assert_eq!(chromium.value(seen), "none");
    stage.mounted.terminate();
    wait_until("it says that the mount is gone", LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        chromium.value(seen) == "block"
    });
}

/// A day of a busy mount, with texts of somebody who means harm: it fits a phone, and nothing of it is run.
#[test]
fn a_long_day_and_hostile_texts_fit_too() {
    let hostile =
        "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>\"'&".repeat(3);
    let mut status = Status {
        mountpoint: hostile.clone(),
        remote: hostile.clone(),
        backing: "/very/long".repeat(20),
        limit: 20 << 40,
        entries: 12_345_678,
        remotes: vec![RemoteStatus {
            name: hostile.clone(),
            state: "failing".into(),
            trouble: Some(hostile),
            ..RemoteStatus::default()
        }],
        ..Status::default()
    };
    let mut history = History::default();
    let mut random = fastrand::Rng::with_seed(1);
    for at in (0..86_400_u64).step_by(10) {
        let (busy, c) = (random.u64(0..20), &mut status.counters);
        let busy = busy * u64::from((at + 3_000) % 14_400 < 9_000);
        c.hits += busy * 90;
        c.misses += busy * random.u64(0..30);
        c.hit_bytes += busy << 24;
        c.fetched_bytes += busy << 23;
        c.uploaded_bytes += (busy * random.u64(0..9)) << 20;
        c.diverged += busy / 19;
        status.bytes_used = (at << 28).min(19 << 40);
        status.pending.objects = (status.pending.objects + busy * 5).saturating_sub(60);
        history.add(Sample::of(
            &status,
            Duration::from_secs(at),
            1_790_000_000 + at,
        ));
    }
    let now = Sample::of(&status, Duration::from_secs(86_400), 1_790_086_400);
    let (gallery, _kept) = gallery();
    let mut chromium = Chromium::start();
    for (name, span) in [("hour", Span::Hour), ("day", Span::Day)] {
        let file = gallery.join(format!("busy-{name}.html"));
        std::fs::write(&file, page::render(&status, &history, span, now)).unwrap();
        for (width, scheme) in [(360, "light"), (1280, "dark")] {
            chromium.screen(width, scheme);
            chromium.open(&format!("file://{}", file.display()));
            assert_eq!(
                chromium.value("document.documentElement.scrollWidth"),
                width
            );
            chromium.picture(&gallery.join(format!("busy-{name}-{width}-{scheme}.png")));
        }
    }
    assert_eq!(chromium.value("typeof window.hacked"), "undefined");
    assert_eq!(chromium.value("document.images.length"), 0);
    let bars = chromium.value("document.querySelectorAll('rect.hit').length");
    assert!(bars.as_u64().unwrap() > 50, "{bars}");
}
