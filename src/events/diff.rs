//! What changed between two builds: two parts of event logs, compared signature by signature.
//!
//! A signature is asked for when somebody looked it up. The first answer counts: what a build missed and then pushed
//! itself was a miss.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::signature::Signature;
use crate::stats::event::{Op, What};

use super::names::Names;
use super::reader::Log;
use super::record::{DROPPED, Moment, Record};
use super::why::{Cause, Reason, decides, reason};

/// One build in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Its first event.
    pub from: Moment,
    /// Its last.
    pub to: Moment,
    /// Signatures that were asked for.
    pub asked: u64,
    /// Of those, on the disk or on a remote.
    pub hits: u64,
    /// Signatures by why they were there or not.
    pub causes: BTreeMap<Cause, u64>,
    /// Objects that came from remotes.
    pub fetched: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Entries pushed here.
    pub pushed: u64,
    /// Their bytes.
    pub pushed_bytes: u64,
    /// Objects that remotes took.
    pub uploaded: u64,
    /// Their bytes.
    pub uploaded_bytes: u64,
    /// Seconds that lookups waited for remotes, all together; those of a parallel build overlap.
    pub waited_seconds: f64,
    /// Events that are missing in the log.
    pub dropped: u64,
}

/// A signature and how each build fared with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// Its targets, where they are known.
    pub names: Vec<String>,
    /// The signature.
    pub signature: String,
    /// In the first build; absent if it did not ask for it.
    pub then: Option<Reason>,
    /// In the second.
    pub now: Option<Reason>,
}

/// A target that the two builds asked for under different signatures.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Changed {
    /// The target.
    pub name: String,
    /// Signatures of the first build.
    pub then: BTreeSet<String>,
    /// Those of the second.
    pub now: BTreeSet<String>,
}

/// What is different.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// The first build.
    pub then: Totals,
    /// The second.
    pub now: Totals,
    /// Hit then, missed now.
    pub lost: Vec<Fate>,
    /// Missed then, hit now.
    pub won: Vec<Fate>,
    /// Targets whose inputs or command changed; only with names.
    pub changed: Vec<Changed>,
    /// Asked for only then, but for those of what changed.
    pub only_then: Vec<Fate>,
    /// Asked for only now, likewise.
    pub only_now: Vec<Fate>,
}

impl Difference {
    /// Whether both builds asked for the same and fared alike.
    pub fn is_none(&self) -> bool {
        let lists = [&self.lost, &self.won, &self.only_then, &self.only_now];
        lists.iter().all(|list| list.is_empty()) && self.changed.is_empty()
    }
}

/// Compares two builds. What is known of an entry from before or after them, in the same logs, is used to say why.
pub fn diff(then: &Log, now: &Log, names: &Names) -> Difference {
    let (fates_then, fates_now) = (fates(then), fates(now));
    let mut difference = Difference {
        then: totals(then, &fates_then),
        now: totals(now, &fates_now),
        ..Difference::default()
    };
    let all: BTreeSet<_> = fates_then.keys().chain(fates_now.keys()).copied().collect();
    for sig in all {
        let fate = Fate {
            names: names.of(&sig).map(str::to_owned).collect(),
            signature: sig.to_string(),
            then: fates_then.get(&sig).cloned(),
            now: fates_now.get(&sig).cloned(),
        };
        let is_hit = |reason: &Option<Reason>| reason.as_ref().map(|r| r.cause.is_hit());
        let list = match (is_hit(&fate.then), is_hit(&fate.now)) {
            (Some(true), Some(false)) => &mut difference.lost,
            (Some(false), Some(true)) => &mut difference.won,
            (Some(_), None) => &mut difference.only_then,
            (None, Some(_)) => &mut difference.only_now,
            _ => continue,
        };
        list.push(fate);
    }
    pair_up(&mut difference);
    for list in [
        &mut difference.lost,
        &mut difference.won,
        &mut difference.only_then,
        &mut difference.only_now,
    ] {
        list.sort_by(|a, b| (&a.names, &a.signature).cmp(&(&b.names, &b.signature)));
    }
    difference
}

/// What was asked for only in one of the builds, but for a target that both asked for, has changed.
fn pair_up(difference: &mut Difference) {
    let by_name = |list: &[Fate]| {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for fate in list {
            for name in &fate.names {
                found
                    .entry(name.clone())
                    .or_default()
                    .insert(fate.signature.clone());
            }
        }
        found
    };
    let then = by_name(&difference.only_then);
    let mut now = by_name(&difference.only_now);
    for (name, then) in then {
        if let Some(now) = now.remove(&name) {
            difference.changed.push(Changed { name, then, now });
        }
    }
    let changed: BTreeSet<_> = difference.changed.iter().map(|c| &c.name).collect();
    let is_told = |fate: &Fate| fate.names.iter().any(|name| changed.contains(name));
    difference.only_then.retain(|fate| !is_told(fate));
    difference.only_now.retain(|fate| !is_told(fate));
}

/// How each signature fared that was asked for in the part.
fn fates(log: &Log) -> HashMap<Signature, Reason> {
    let mut of_sig: HashMap<Signature, Vec<usize>> = HashMap::new();
    let mut of_none = Vec::new();
    for (at, record) in log.records.iter().enumerate() {
        match record.signature {
            Some(sig) => of_sig.entry(sig).or_default().push(at),
            None => of_none.push(at),
        }
    }
    let mut fates = HashMap::new();
    for (sig, own) in of_sig {
        let first = own
            .iter()
            .find(|at| log.part.contains(at) && decides(&log.records[**at]));
        let Some(first) = first else { continue };
        let mut about: Vec<_> = own.iter().chain(&of_none).copied().collect();
        about.sort_unstable();
        let at = about.binary_search(first).expect("it is one of them");
        let records: Vec<&Record> = about.iter().map(|at| &log.records[*at]).collect();
        fates.insert(sig, reason(&records, at));
    }
    fates
}

fn totals(log: &Log, fates: &HashMap<Signature, Reason>) -> Totals {
    let records = &log.records[log.part.clone()];
    let mut totals = Totals {
        from: records.first().map(|r| r.time).unwrap_or_default(),
        to: records.last().map(|r| r.time).unwrap_or_default(),
        asked: fates.len() as u64,
        hits: fates.values().filter(|r| r.cause.is_hit()).count() as u64,
        ..Totals::default()
    };
    for reason in fates.values() {
        *totals.causes.entry(reason.cause).or_default() += 1;
    }
    for record in records {
        let bytes = record.bytes.unwrap_or(0);
        let (count, sum) = match record.what() {
            Some(What::Fetched) => (&mut totals.fetched, &mut totals.fetched_bytes),
            Some(What::Uploaded) => (&mut totals.uploaded, &mut totals.uploaded_bytes),
            Some(what) if what.op() == Op::Push => (&mut totals.pushed, &mut totals.pushed_bytes),
            Some(What::Waited | What::Late) => {
                totals.waited_seconds += record.seconds.unwrap_or_default().as_secs_f64();
                continue;
            }
            None if record.op == DROPPED => {
                totals.dropped += record.count.unwrap_or(0);
                continue;
            }
            _ => continue,
        };
        *count += 1;
        *sum += bytes;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::event::Event;
    use std::time::{Duration, UNIX_EPOCH};

    fn sig(digit: char) -> Signature {
        Signature::parse(digit.to_string().repeat(32).as_bytes()).unwrap()
    }

    /// These events, of which the last so many are the part.
    fn log(events: &[(What, char)], part: usize) -> Log {
        let record = |(n, (what, digit)): (usize, &(What, char))| {
            let time = Moment::at(UNIX_EPOCH + Duration::from_secs(n as u64));
            let (sig, took) = (sig(*digit), Duration::from_millis(500));
            Record::of(&Event::new(*what, &sig).bytes(10).took(took), time)
        };
        Log {
            records: events.iter().enumerate().map(record).collect(),
            part: events.len() - part..events.len(),
        }
    }

    fn signatures(list: &[Fate]) -> Vec<char> {
        list.iter()
            .map(|fate| fate.signature.chars().next().unwrap())
            .collect()
    }

    #[test]
    fn what_hit_and_misses_now_is_told_with_the_reason_from_before_the_build() {
        let then = log(
            &[
                (What::Hit, 'a'),
                (What::Hit, 'b'),
                (What::Miss, 'c'),
                (What::Hit, 'd'),
            ],
            4,
        );
        let events = [
            (What::Pushed, 'a'),
            (What::Evicted, 'a'),
            (What::Miss, 'a'),
            (What::Waited, 'a'),
            (What::Pushed, 'a'),
            (What::Hit, 'b'),
            (What::Fetched, 'c'),
            (What::Miss, 'e'),
        ];
        let difference = diff(&then, &log(&events, 6), &Names::default());
        assert_eq!(signatures(&difference.lost), ['a']);
        let now = difference.lost[0].now.as_ref().unwrap();
        assert_eq!(now.cause, Cause::Evicted);
        assert_eq!(signatures(&difference.won), ['c']);
        assert_eq!(signatures(&difference.only_then), ['d']);
        assert_eq!(signatures(&difference.only_now), ['e']);
        let now = &difference.now;
        assert_eq!(
            (now.asked, now.hits, now.pushed, now.fetched_bytes),
            (4, 2, 1, 10)
        );
        assert!((now.waited_seconds - 0.5).abs() < 1e-9);
        assert_eq!(now.causes[&Cause::Evicted], 1);
        assert!(diff(&then, &then, &Names::default()).is_none());
    }

    #[test]
    fn a_target_with_another_signature_has_changed() {
        let (old, new) = (
            log(&[(What::Hit, 'a'), (What::Hit, 'b')], 2),
            log(&[(What::Miss, 'c'), (What::Hit, 'b')], 2),
        );
        let mut names = Names::default();
        for (target, digit) in [("hello.o", 'a'), ("hello.o", 'c'), ("same.o", 'b')] {
            names.add(&format!("CachePush({target}):  pushing to {}", sig(digit)));
        }
        let difference = diff(&old, &new, &names);
        let changed = Changed {
            name: "hello.o".to_owned(),
            then: [sig('a').to_string()].into(),
            now: [sig('c').to_string()].into(),
        };
        assert_eq!(difference.changed, [changed]);
        assert!(difference.only_then.is_empty() && difference.only_now.is_empty());
        assert!(!difference.is_none());
    }
}
