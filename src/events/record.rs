//! One line of the event log, as it is written and as it is read.
//!
//! Knows neither files nor threads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::signature::Signature;
use crate::stats::Snapshot;
use crate::stats::event::{Event, What};

/// Longest reason that is written.
const WHY_MAX: usize = 300;

/// What there is besides what happens to entries: operation and outcome.
pub const OTHERS: &[(&str, &str)] = &[
    (SESSION, BEGIN),
    (SESSION, CONTINUED),
    (SESSION, END),
    (REMOTE, OPENED),
    (REMOTE, CLOSED),
    (DROPPED, DROPPED),
];

/// Of the mount itself.
pub const SESSION: &str = "session";
/// The mount begins.
pub const BEGIN: &str = "begin";
/// A new file for the same mount.
pub const CONTINUED: &str = "continued";
/// The mount has ended.
pub const END: &str = "end";
/// Of a remote.
pub const REMOTE: &str = "remote";
/// Its breaker opened: it is not asked any more.
pub const OPENED: &str = "opened";
/// It answers again.
pub const CLOSED: &str = "closed";
/// Events are missing here.
pub const DROPPED: &str = "dropped";

/// A moment, to the microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When it had happened.
    pub time: Moment,
    /// What was tried.
    pub op: Cow<'static, str>,
    /// What came of it.
    pub outcome: Cow<'static, str>,
    /// The entry.
    #[serde(skip_serializing_if = "Option::is_none", with = "hex")]
    pub signature: Option<Signature>,
    /// Its content's bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none", with = "seconds")]
    pub seconds: Option<Duration>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The remote, without credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// How many events are missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Which mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<Session>>,
    /// What it came to, in a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The same in figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Box<Snapshot>>,
}

/// What mount an event log is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it began.
    pub began: Moment,
    /// The remotes, without credentials.
    pub remote: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// The backing directory.
    pub backing: String,
    /// Options that matter to what happens.
    pub options: BTreeMap<String, String>,
}

impl Moment {
    /// That of a wall clock.
    pub fn at(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// So long after this one; zero if it is before.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_micros(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }

    /// The moment that a text in RFC 3339 says; a fraction, and the whole time of day, may be left out.
    pub fn parse(text: &str) -> Option<Self> {
        let whole = text.parse::<Timestamp>();
        let utc = || {
            let civil = text.parse::<jiff::civil::DateTime>().ok()?;
            civil
                .to_zoned(jiff::tz::TimeZone::UTC)
                .ok()
                .map(|z| z.timestamp())
        };
        Some(Self(whole.ok().or_else(utc)?.as_microsecond()))
    }

    fn stamp(self) -> Timestamp {
        Timestamp::from_microsecond(self.0).unwrap_or_default()
    }
}

/// To the second, as people read it.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stamp().strftime("%Y-%m-%dT%H:%M:%SZ").fmt(f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.stamp().strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no time"))
    }
}

impl Record {
    /// What happened to an entry.
    pub fn of(event: &Event<'_>, time: Moment) -> Self {
        Self {
            signature: Some(*event.sig),
            bytes: event.bytes,
            seconds: event.took.map(whole_micros),
            why: event.why.map(shortened),
            ..Self::new(time, event.what.op().name(), event.what.name())
        }
    }

    /// Nothing but what happened.
    pub fn new(time: Moment, op: &'static str, outcome: &'static str) -> Self {
        Self {
            time,
            op: op.into(),
            outcome: outcome.into(),
            ..Self::default()
        }
    }

    /// What happened, if it happened to an entry.
    pub fn what(&self) -> Option<What> {
        What::named(&self.op, &self.outcome)
    }

    /// Whether it is this of a session or a remote.
    pub fn is(&self, op: &str, outcome: &str) -> bool {
        self.op == op && self.outcome == outcome
    }

    /// The line, with its end.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a record has string keys only");
        line.push(b'\n');
        line
    }

    /// What a line says; `None` if it is none of ours, or only half of one.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(line).ok()?;
        (!record.op.is_empty()).then_some(record)
    }
}

fn whole_micros(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// A reason that fits.
pub(super) fn shortened(why: &(impl fmt::Display + ?Sized)) -> String {
    let mut text = why.to_string();
    if let Some((end, _)) = text.char_indices().nth(WHY_MAX) {
        text.truncate(end);
    }
    text
}

mod hex {
    use super::{Cow, Deserialize, Deserializer, Serializer, Signature};

    pub(super) fn serialize<S: Serializer>(
        sig: &Option<Signature>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match sig {
            Some(sig) => to.serialize_str(sig.as_str()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Signature>, D::Error> {
        let text = Option::<Cow<'de, str>>::deserialize(from)?;
        let parse = |text: Cow<'_, str>| {
            Signature::parse(text.as_bytes())
                .ok_or_else(|| serde::de::Error::custom("no signature"))
        };
        text.map(parse).transpose()
    }
}

/// In seconds with a fraction of whole microseconds.
mod seconds {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => to.serialize_f64(time.as_secs_f64()),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(from)?;
        // Rounded, so that what was written comes back; what is negative or no number counts as zero.
        Ok(seconds.map(|s| Duration::from_micros((s * 1e6).round() as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option::of;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        let what = (0..What::ALL.len()).prop_map(|n| What::ALL[n]);
        let sig = "[0-9a-f]{32,128}";
        let time = 0_i64..4_000_000_000_000_000;
        let took = of(0_u64..10_000_000_000);
        let event = (what, sig, time, of(any::<u64>()), took, of(".{0,40}"));
        event.prop_map(|(what, sig, time, bytes, took, why)| {
            let sig = Signature::parse(sig.as_bytes()).unwrap();
            let mut event = Event::new(what, &sig);
            event.bytes = bytes;
            event.took = took.map(Duration::from_micros);
            event.why = why.as_ref().map(|why| why as &dyn fmt::Display);
            Record::of(&event, Moment(time))
        })
    }

    proptest! {
        #[test]
        fn every_event_that_is_written_is_read_back_the_same(record in record()) {
            let line = record.line();
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one line");
            let read = Record::parse(&line).unwrap();
            prop_assert!(read.what().is_some());
            prop_assert_eq!(&read, &record);
            // Whatever a crash leaves of a line is no record.
            for len in 0..line.len() - 2 {
                prop_assert_eq!(Record::parse(&line[..len]), None);
            }
        }
    }

    #[test]
    fn times_are_written_to_the_microsecond_and_read_as_people_write_them() {
        let record = Record::new(Moment(1_700_000_000_000_042), REMOTE, CLOSED);
        let line = String::from_utf8(record.line()).unwrap();
        assert_eq!(
            line,
            "{\"time\":\"2023-11-14T22:13:20.000042Z\",\"op\":\"remote\",\"outcome\":\"closed\"}\n"
        );
        for text in [
            "2023-11-14T22:13:20Z",
            "2023-11-14T22:13:20",
            "2023-11-14 23:13:20+01",
        ] {
            assert_eq!(
                Moment::parse(text),
                Some(Moment(1_700_000_000_000_000)),
                "{text}"
            );
        }
        assert_eq!(
            Moment::parse("2023-11-14"),
            Some(Moment(1_699_920_000_000_000))
        );
        assert_eq!(Moment::parse("yesterday"), None);
    }

    #[test]
    fn a_long_reason_is_cut_between_two_letters() {
        assert_eq!(shortened(&"ü".repeat(1000)), "ü".repeat(WHY_MAX));
    }
}
