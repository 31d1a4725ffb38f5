//! Why an entry was there or was not: the story of one signature, as its events tell it.
//!
//! Knows only what is in the records. What is so now has to be asked of the mount.

use serde::Serialize;

use crate::stats::event::{Op, What};

use super::record::{CLOSED, Moment, OPENED, REMOTE, Record};

/// Why a lookup ended as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It was on the disk.
    OnDisk,
    /// A remote had it.
    OnRemote,
    /// Nobody has pushed it, as far as is known here.
    NeverPushed,
    /// It was pushed here after it had been asked for.
    PushedLater,
    /// Somebody else pushed it after it had been asked for.
    PushedElsewhereLater,
    /// It was pushed here and had not reached the remote.
    NotUploaded,
    /// Its upload was given up.
    GivenUp,
    /// It went from the disk to make room, and the remote did not have it.
    Evicted,
    /// Somebody removed it.
    Removed,
    /// The backing disk failed to write it.
    NotWritten,
    /// The remote had it once and has it no more.
    GoneFromRemote,
    /// A recent miss was remembered.
    Remembered,
    /// The remote was in trouble and not asked.
    NotAsked,
    /// The answer came too late.
    Late,
    /// The remote failed.
    Failed,
    /// What the remote has is not what was pushed.
    Corrupt,
    /// The backing disk had no room for it.
    NoRoom,
    /// It was not asked for.
    NotAskedFor,
}

impl Cause {
    /// Whether whoever asked got it.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::OnDisk | Self::OnRemote)
    }

    /// How it is written.
    pub fn name(self) -> String {
        let quoted = serde_json::to_string(&self).expect("a name");
        quoted.trim_matches('"').to_owned()
    }
}

/// Why one lookup ended as it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// When it was answered.
    pub time: Moment,
    /// Why, in a word.
    pub cause: Cause,
    /// And in sentences.
    pub said: String,
}

/// What the events of one signature come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Story {
    /// The last lookup.
    pub last: Option<Reason>,
    /// The last that was a miss, if that was another.
    pub last_miss: Option<Reason>,
    /// Whether it is on the disk, as far as was seen.
    pub here: Option<bool>,
    /// Whether a remote has it, as far as was seen.
    pub on_remote: Option<bool>,
    /// All that happened, a line each; what happened again and again is one.
    pub lines: Vec<String>,
}

/// Whether this says how a lookup ended.
pub fn decides(record: &Record) -> bool {
    let is_of = |what: What| matches!(what.op(), Op::Lookup | Op::Fetch) && what != What::Waited;
    record.what().is_some_and(is_of)
}

/// Tells the story. `records` are those of one signature and those of no entry, in their order.
pub fn story(records: &[&Record]) -> Story {
    let mut story = Story {
        lines: lines(records),
        ..Story::default()
    };
    let decisions: Vec<_> = (0..records.len())
        .filter(|at| decides(records[*at]))
        .collect();
    let reasons = decisions.iter().rev().map(|at| reason(records, *at));
    for reason in reasons {
        let is_miss = !reason.cause.is_hit();
        if story.last.is_none() {
            story.last = Some(reason);
        } else if is_miss {
            story.last_miss = Some(reason);
        }
        if is_miss {
            break;
        }
    }
    for what in records.iter().filter_map(|record| record.what()) {
        match what {
            What::Hit | What::Pushed => story.here = Some(true),
            What::Fetched => (story.here, story.on_remote) = (Some(true), Some(true)),
            What::Uploaded | What::AlreadyThere | What::Diverged => story.on_remote = Some(true),
            What::Miss | What::Corrupt => {
                (story.here, story.on_remote) = (Some(false), Some(false));
            }
            What::Removed => (story.here, story.on_remote) = (Some(false), None),
            What::Waited | What::UploadFailed | What::GivenUp => {}
            _ => story.here = Some(false),
        }
    }
    story
}

/// Why the lookup that `records[at]` decides ended so.
pub fn reason(records: &[&Record], at: usize) -> Reason {
    let record = records[at];
    let (before, after) = (&records[..at], &records[at + 1..]);
    let (cause, said) = match record.what() {
        Some(What::Hit) => (Cause::OnDisk, "it was on the disk".to_owned()),
        Some(What::Fetched) => (Cause::OnRemote, "a remote had it".to_owned()),
        Some(What::Corrupt | What::FetchFailed) if came_in_the_end(after) => {
            let said = "one remote failed it, another one had it".to_owned();
            (Cause::OnRemote, said)
        }
        Some(What::Miss) => missed(before, after),
        _ => hindered(records, at),
    };
    let gone = gone(before).filter(|_| !cause.is_hit());
    let said = match gone {
        Some((_, how)) => format!("it {how}; {said}"),
        None => said,
    };
    Reason {
        time: record.time,
        cause,
        said,
    }
}

/// Whether what somebody waited for was had from another remote.
fn came_in_the_end(after: &[&Record]) -> bool {
    let ends = after.iter().filter_map(|r| r.what());
    let mut ends = ends.filter(|what| matches!(what, What::Fetched | What::Waited | What::Miss));
    ends.next() == Some(What::Fetched)
}

/// Why the remote did not have it.
fn missed(before: &[&Record], after: &[&Record]) -> (Cause, String) {
    let last = |wanted: &[What]| last_of(before, wanted);
    let next = |wanted: What| after.iter().find(|r| r.what() == Some(wanted));
    let removed = gone(before).map(|(cause, _)| cause);
    if let Some(there) = last(&[What::Uploaded, What::AlreadyThere, What::Fetched]) {
        let said = format!(
            "the remote had it at {} and did not have it any more",
            there.time
        );
        return (
            removed
                .filter(|c| *c == Cause::Removed)
                .unwrap_or(Cause::GoneFromRemote),
            said,
        );
    }
    if let Some(pushed) = last(&[What::Pushed]) {
        let since = format!("it was pushed here at {}, but", pushed.time);
        let (cause, said) = match last(&[What::GivenUp, What::UploadFailed, What::Diverged]) {
            Some(r) if r.what() == Some(What::GivenUp) => (
                Cause::GivenUp,
                format!("its upload was given up at {}{}", r.time, because(r)),
            ),
            Some(r) if r.what() == Some(What::UploadFailed) => (
                Cause::NotUploaded,
                format!("its upload failed at {}{}", r.time, because(r)),
            ),
            _ => (Cause::NotUploaded, "it had not been uploaded".to_owned()),
        };
        let said = format!("{since} {said}; the remote did not have it");
        return (removed.unwrap_or(cause), said);
    }
    let none = "the remote did not have it";
    match (next(What::Pushed), next(What::Fetched)) {
        (Some(pushed), fetched) if fetched.is_none_or(|f| pushed.time <= f.time) => (
            removed.unwrap_or(Cause::PushedLater),
            format!(
                "{none}: nobody had pushed it before it was pushed here at {}",
                pushed.time
            ),
        ),
        (_, Some(fetched)) => (
            removed.unwrap_or(Cause::PushedElsewhereLater),
            format!(
                "{none} yet: somebody else pushed it later, it came from a remote at {}",
                fetched.time
            ),
        ),
        (_, None) => (
            removed.unwrap_or(Cause::NeverPushed),
            format!("{none}: nobody has pushed it, as far as is known here"),
        ),
    }
}

/// Why it could not be found out, or could not be had.
fn hindered(records: &[&Record], at: usize) -> (Cause, String) {
    let (record, before) = (records[at], &records[..at]);
    let why = because(record);
    match record.what() {
        Some(What::RecentMiss) => {
            let roots = [What::Miss, What::Corrupt, What::FetchFailed];
            let root = before
                .iter()
                .rposition(|r| r.what().is_some_and(|w| roots.contains(&w)));
            let told = root.map(|at| reason(records, at));
            let since = told.map(|r| format!(" since {}: {}", r.time, r.said));
            let said = format!(
                "it was remembered as absent (negative_ttl){}",
                since.unwrap_or_default()
            );
            (Cause::Remembered, said)
        }
        Some(What::NotAsked) => {
            let since = open_since(before);
            (
                Cause::NotAsked,
                format!("the remote was not asked{why}{since}"),
            )
        }
        Some(What::Late) => {
            let waited = record.seconds.unwrap_or_default().as_secs_f64();
            let said = format!(
                "the remote had not sent it after {waited:.1} s (lookup_timeout, min_speed)"
            );
            (Cause::Late, said + &open_since(before))
        }
        Some(What::Corrupt) => (
            Cause::Corrupt,
            format!("what the remote holds is not what was pushed{why}"),
        ),
        Some(What::NoRoom) => (
            Cause::NoRoom,
            format!("the backing disk had no room for it{why}"),
        ),
        _ => (Cause::Failed, format!("it could not be fetched{why}")),
    }
}

fn last_of<'a>(records: &[&'a Record], wanted: &[What]) -> Option<&'a Record> {
    let is_it = |r: &&&Record| r.what().is_some_and(|what| wanted.contains(&what));
    records.iter().rev().find(is_it).copied()
}

/// How it went from the disk, if it had been there.
fn gone(before: &[&Record]) -> Option<(Cause, String)> {
    use What::{Evicted, Fetched, Hit, NotWritten, Pushed, Removed, Unlinked};
    let changes = [Evicted, Removed, Unlinked, NotWritten, Pushed, Fetched, Hit];
    let last = last_of(before, &changes)?;
    let (cause, how) = match last.what()? {
        Evicted => (Cause::Evicted, "was evicted to make room"),
        Removed => (Cause::Removed, "was removed by cachedirfs rm"),
        Unlinked => (Cause::Removed, "was removed in the mount"),
        NotWritten => (
            Cause::NotWritten,
            "was dropped because the disk failed to write it",
        ),
        _ => return None,
    };
    Some((cause, format!("{how} at {}{}", last.time, because(last))))
}

/// Which remotes were in trouble.
fn open_since(before: &[&Record]) -> String {
    let mut open: Vec<&Record> = Vec::new();
    for record in before {
        if record.is(REMOTE, OPENED) {
            open.push(record);
        } else if record.is(REMOTE, CLOSED)
            || record.session.is_some() && !record.is("session", "continued")
        {
            open.retain(|r| record.remote.is_some() && r.remote != record.remote);
        }
    }
    let said = open.iter().map(|r| {
        let name = r.remote.as_deref().unwrap_or("the remote");
        format!("; {name} was in trouble since {}{}", r.time, because(r))
    });
    said.collect()
}

fn because(record: &Record) -> String {
    record
        .why
        .as_ref()
        .map_or(String::new(), |why| format!(" ({why})"))
}

/// A line for each event of the entry.
fn lines(records: &[&Record]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut repeated: Option<(What, &Record, usize)> = None;
    let mut flush = |repeated: &mut Option<(What, &Record, usize)>| {
        if let Some((what, record, times)) = repeated.take() {
            let again = if times > 1 {
                format!(", {times} times from then on")
            } else {
                String::new()
            };
            lines.push(format!("{} {}{again}", record.time, said(what, record)));
        }
    };
    for record in records {
        let Some(what) = record.what().filter(|what| *what != What::Waited) else {
            continue;
        };
        match &mut repeated {
            Some((before, _, times)) if *before == what => *times += 1,
            _ => {
                flush(&mut repeated);
                repeated = Some((what, record, 1));
            }
        }
    }
    flush(&mut repeated);
    lines
}

fn said(what: What, record: &Record) -> String {
    let words = match what {
        What::Hit => "hit: it was on the disk",
        What::RecentMiss => "miss: remembered as absent",
        What::NotAsked => "miss: the remote was not asked",
        What::Late => "miss: the remote was too late",
        What::Waited => "waited for",
        What::Miss => "miss: the remote did not have it",
        What::Fetched => "fetched from a remote",
        What::FetchFailed => "miss: it could not be fetched",
        What::Corrupt => "miss: what the remote holds is corrupt",
        What::NoRoom => "miss: no room on the backing disk",
        What::Pushed => "pushed here",
        What::Uploaded => "uploaded",
        What::AlreadyThere => "the remote had it already when it was to be uploaded",
        What::Diverged => "the remote has other content under that signature",
        What::UploadFailed => "its upload failed",
        What::GivenUp => "its upload was given up",
        What::Evicted => "evicted to make room",
        What::Removed => "removed by cachedirfs rm",
        What::Unlinked => "removed in the mount",
        What::NotWritten => "dropped: the backing disk failed to write it",
    };
    let bytes = record
        .bytes
        .map_or(String::new(), |bytes| format!(", {bytes} bytes"));
    let took = record
        .seconds
        .map_or(String::new(), |s| format!(", {:.3} s", s.as_secs_f64()));
    format!("{words}{bytes}{took}{}", because(record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Signature;
    use crate::stats::event::Event;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: usize) -> Moment {
        Moment::at(UNIX_EPOCH + Duration::from_secs(seconds as u64))
    }

    /// These things happen one after the other, a second each; the story of the last lookup.
    fn tell(events: &[What]) -> Story {
        let sig = Signature::parse(&[b'a'; 32]).unwrap();
        let record = |(n, what): (usize, &What)| Record::of(&Event::new(*what, &sig), at(n));
        let records: Vec<_> = events.iter().enumerate().map(record).collect();
        story(&records.iter().collect::<Vec<_>>())
    }

    #[test]
    fn each_cause_is_told_from_what_happened_before_and_after() {
        use What::*;
        let cases: &[(&[What], Cause, &str)] = &[
            (&[Hit], Cause::OnDisk, "on the disk"),
            (&[Fetched], Cause::OnRemote, "a remote had it"),
            (
                &[Corrupt, Fetched, Waited],
                Cause::OnRemote,
                "a remote had it",
            ),
            (&[Miss], Cause::NeverPushed, "nobody has pushed it"),
            (
                &[Miss, Pushed],
                Cause::PushedLater,
                "pushed here at 1970-01-01T00:00:01Z",
            ),
            (
                &[Pushed, Evicted, Miss],
                Cause::Evicted,
                "evicted to make room at 1970-01-01T00:00:01Z",
            ),
            (
                &[Pushed, Uploaded, Evicted, Miss],
                Cause::GoneFromRemote,
                "did not have it any more",
            ),
            (
                &[Pushed, Unlinked, Miss],
                Cause::Removed,
                "removed in the mount",
            ),
            (
                &[Pushed, Uploaded, Removed, Miss],
                Cause::Removed,
                "by cachedirfs rm",
            ),
            (
                &[Pushed, NotWritten, Miss],
                Cause::NotWritten,
                "failed to write it",
            ),
            (&[Pushed, GivenUp, Miss], Cause::GivenUp, "given up"),
            (
                &[Pushed, UploadFailed, Miss],
                Cause::NotUploaded,
                "its upload failed",
            ),
            (&[Pushed, Miss], Cause::NotUploaded, "had not been uploaded"),
            (
                &[Miss, RecentMiss, Pushed],
                Cause::Remembered,
                "nobody had pushed it before",
            ),
            (
                &[Miss, RecentMiss],
                Cause::Remembered,
                "since 1970-01-01T00:00:00Z: the remote did not",
            ),
            (&[NotAsked], Cause::NotAsked, "was not asked"),
            (
                &[Pushed, Evicted, NotAsked],
                Cause::NotAsked,
                "was evicted to make room",
            ),
            (&[Late], Cause::Late, "lookup_timeout"),
            (&[FetchFailed], Cause::Failed, "could not be fetched"),
            (&[Corrupt], Cause::Corrupt, "not what was pushed"),
            (&[NoRoom], Cause::NoRoom, "no room"),
        ];
        for (events, cause, said) in cases {
            let last = tell(events).last.unwrap();
            assert_eq!(last.cause, *cause, "{events:?}");
            assert!(last.said.contains(said), "{events:?}: {}", last.said);
        }
    }

    #[test]
    fn what_was_missed_and_came_later_is_told_with_both() {
        let story = tell(&[
            What::Miss,
            What::Waited,
            What::RecentMiss,
            What::RecentMiss,
            What::Fetched,
        ]);
        assert_eq!(story.last.unwrap().cause, Cause::OnRemote);
        let miss = story.last_miss.unwrap();
        assert_eq!((miss.cause, miss.time), (Cause::Remembered, at(3)));
        assert_eq!((story.here, story.on_remote), (Some(true), Some(true)));
        assert_eq!(story.lines.len(), 3, "{:?}", story.lines);
        assert!(story.lines[1].ends_with(", 2 times from then on"));
        let later = tell(&[What::Miss, What::Fetched]);
        assert_eq!(later.last_miss.unwrap().cause, Cause::PushedElsewhereLater);
    }

    #[test]
    fn nothing_is_told_of_what_did_not_happen() {
        assert_eq!(tell(&[]), Story::default());
        let pushed = tell(&[What::Pushed, What::Uploaded]);
        assert_eq!(
            (pushed.last, pushed.here, pushed.on_remote),
            (None, Some(true), Some(true))
        );
    }

    #[test]
    fn a_remote_that_was_in_trouble_is_named_until_it_is_back() {
        let sig = Signature::parse(&[b'a'; 32]).unwrap();
        let remote = |outcome, n| Record {
            remote: Some("file:///c".to_owned()),
            ..Record::new(at(n), REMOTE, outcome)
        };
        let not_asked = |n| Record::of(&Event::new(What::NotAsked, &sig), at(n));
        let records = [
            remote(OPENED, 0),
            not_asked(1),
            remote(CLOSED, 2),
            not_asked(3),
        ];
        let records: Vec<_> = records.iter().collect();
        let named = reason(&records, 1).said;
        assert!(
            named.contains("file:///c was in trouble since 1970-01-01T00:00:00Z"),
            "{named}"
        );
        assert!(!reason(&records, 3).said.contains("trouble"));
    }
}
