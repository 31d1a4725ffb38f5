//! Reading an event log back, with the files that were rotated away, the oldest first.
//!
//! Half a line, as a killed daemon leaves, is passed over. Compressed files are not looked into.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Error};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::signature::{MAX_DIGITS, Signature};

use super::record::{BEGIN, CONTINUED, Moment, Record, SESSION};

/// Longest line that is looked at.
const LINE_MAX: u64 = 1 << 20;

/// What part of a log is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// A session: the last is 1, the one before it 2.
    Session(usize),
    /// From a moment to another.
    Times(Option<Moment>, Option<Moment>),
}

/// All that a log holds, and which part of it is meant.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Everything, the oldest first.
    pub records: Vec<Record>,
    /// The part.
    pub part: Range<usize>,
}

/// A log and which part of it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The file that is written now.
    pub file: PathBuf,
    /// The part.
    pub span: Span,
}

impl Part {
    /// `FILE`, `FILE:N` or `FILE@FROM..TO`; a file of just that name goes before.
    pub fn parse(text: &str) -> Result<Self, String> {
        let part = |file: &str, span| Self {
            file: file.into(),
            span,
        };
        if Path::new(text).exists() {
            return Ok(part(text, Span::Session(1)));
        }
        if let Some((file, (from, to))) = text
            .rsplit_once('@')
            .and_then(|(file, times)| Some((file, times.split_once("..")?)))
        {
            let moment = |text: &str| match text {
                "" => Ok(None),
                text => match Moment::parse(text) {
                    Some(moment) => Ok(Some(moment)),
                    None => Err(format!(
                        "{text} is no time; expected one such as 2026-01-31T12:00:00Z"
                    )),
                },
            };
            return Ok(part(file, Span::Times(moment(from)?, moment(to)?)));
        }
        if let Some((file, number)) = text.rsplit_once(':')
            && let Ok(number @ 1..) = number.parse()
        {
            return Ok(part(file, Span::Session(number)));
        }
        Ok(part(text, Span::Session(1)))
    }

    /// The log, with that part marked. The error says what is missing.
    pub fn read(&self) -> io::Result<Log> {
        let records = read(&self.file)?;
        let file = self.file.display();
        let lacks = |why: String| Error::new(io::ErrorKind::NotFound, why);
        let part = match self.span {
            Span::Times(from, to) => {
                let is_in = |r: &Record| {
                    from.is_none_or(|from| r.time >= from) && to.is_none_or(|to| r.time <= to)
                };
                let first = records.iter().position(is_in);
                let last = records.iter().rposition(is_in);
                let none = || lacks(format!("{file}: no events in that time"));
                let (first, last) = first.zip(last).ok_or_else(none)?;
                first..last + 1
            }
            Span::Session(number) => {
                let mut sessions = sessions(&records);
                let there = sessions.len();
                let none = || lacks(format!("{file} holds {there} sessions, not {number}"));
                let at = there.checked_sub(number).ok_or_else(none)?;
                sessions.swap_remove(at)
            }
        };
        Ok(Log { records, part })
    }
}

/// Divides records by the mounts that they are of. What comes before the first beginning counts as of one mount.
pub fn sessions(records: &[Record]) -> Vec<Range<usize>> {
    let mut sessions: Vec<Range<usize>> = Vec::new();
    let mut current = None;
    for (at, record) in records.iter().enumerate() {
        let session = record.session.as_ref().map(|s| (s.pid, s.began));
        let begins = record.is(SESSION, BEGIN) || record.is(SESSION, CONTINUED);
        let other = begins && session != current;
        if begins {
            current = session;
        }
        match sessions.last_mut() {
            Some(last) if !other => last.end = at + 1,
            _ => sessions.push(at..at + 1),
        }
    }
    sessions
}

/// All records of a log.
pub fn read(file: &Path) -> io::Result<Vec<Record>> {
    let mut all = Vec::new();
    read_lines(file, &mut |line| all.extend(Record::parse(line)))?;
    Ok(all)
}

/// Those of the entries whose signatures begin so, and all that are of no entry.
pub fn read_about(file: &Path, prefix: &str) -> io::Result<Vec<Record>> {
    let mut found = Vec::new();
    let marks = [
        format!("\"signature\":\"{prefix}"),
        "\"signature\":".to_owned(),
    ];
    read_lines(file, &mut |line| {
        let holds = |mark: &String| std::str::from_utf8(line).is_ok_and(|l| l.contains(mark));
        // Nearly all lines are of other entries, and need not be understood.
        if holds(&marks[0]) || !holds(&marks[1]) {
            found.extend(Record::parse(line));
        }
    })?;
    Ok(found)
}

/// The only signature that begins so, of those in `records`. The error lists some when there are several.
pub fn only_signature(records: &[Record], prefix: &str) -> Result<Option<Signature>, String> {
    let begins = records.iter().filter_map(|record| record.signature);
    let found: HashSet<_> = begins
        .filter(|sig| sig.as_str().starts_with(prefix))
        .collect();
    if let Some(whole) = Signature::parse(prefix.as_bytes()) {
        return Ok(Some(whole));
    }
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.into_iter().next()),
        many => {
            let mut some: Vec<_> = found.iter().map(Signature::as_str).collect();
            some.sort_unstable();
            some.truncate(3);
            Err(format!(
                "{prefix} begins {many} signatures ({}, ...); say more of it",
                some.join(", ")
            ))
        }
    }
}

/// Whether this can be the beginning of a signature.
pub fn is_prefix(text: &str) -> bool {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (1..=MAX_DIGITS).contains(&text.len()) && text.bytes().all(hex)
}

fn read_lines(file: &Path, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut line = Vec::new();
    for file in open_all(file)? {
        let mut file = BufReader::with_capacity(1 << 17, file);
        loop {
            line.clear();
            let mut limited = io::Read::take(&mut file, LINE_MAX);
            if limited.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            each(&line);
        }
    }
    Ok(())
}

/// The files of a log, the oldest first. They are opened from the newest on: if one is rotated away meanwhile it is
/// met again under its next name, and taken once.
fn open_all(file: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    for number in 0.. {
        match File::open(numbered(file, number)) {
            Ok(open) => {
                let meta = open.metadata()?;
                if seen.insert((meta.dev(), meta.ino())) {
                    files.push(open);
                }
            }
            // A rotation moves the first away before there is a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && number > 0 => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound && numbered(file, 1).exists() => {
            }
            Err(error) => return Err(error),
        }
    }
    files.reverse();
    Ok(files)
}

/// The name of the file that was rotated away so many times.
pub(super) fn numbered(file: &Path, number: u64) -> PathBuf {
    if number == 0 {
        return file.to_owned();
    }
    let mut name = OsString::from(file);
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::super::record::Session;
    use super::*;
    use crate::stats::event::{Event, What};
    use std::io::Write;
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64) -> Moment {
        Moment::at(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn hit(seconds: u64, digit: u8) -> Record {
        let sig = Signature::parse(&[digit; 32]).unwrap();
        Record::of(&Event::new(What::Hit, &sig), at(seconds))
    }

    fn begin(seconds: u64, began: u64, outcome: &'static str) -> Record {
        let session = Session {
            began: at(began),
            ..Session::default()
        };
        Record {
            session: Some(Box::new(session)),
            ..Record::new(at(seconds), SESSION, outcome)
        }
    }

    fn write(path: &Path, lines: &[Record], rest: &[u8]) {
        let mut file = File::create(path).unwrap();
        for record in lines {
            file.write_all(&record.line()).unwrap();
        }
        file.write_all(rest).unwrap();
    }

    #[test]
    fn a_log_is_read_from_its_oldest_file_on_without_half_lines() {
        let dir = tempfile::TempDir::new().unwrap();
        let log = dir.path().join("log");
        let torn = hit(9, b'9').line();
        write(
            &numbered(&log, 2),
            &[begin(1, 1, BEGIN), hit(2, b'a')],
            &torn[..20],
        );
        write(
            &numbered(&log, 1),
            &[begin(3, 1, CONTINUED), hit(4, b'b')],
            b"no json\n\xff\n",
        );
        write(
            &log,
            &[begin(5, 5, BEGIN), hit(6, b'a')],
            &torn[..torn.len() - 3],
        );
        let times = |records: &[Record]| records.iter().map(|r| r.time).collect::<Vec<_>>();
        let all = read(&log).unwrap();
        assert_eq!(times(&all), [1, 2, 3, 4, 5, 6].map(at));
        let of_a = read_about(&log, "aa").unwrap();
        assert_eq!(times(&of_a), [1, 2, 3, 5, 6].map(at));

        let part = |text: &str| {
            let read = Part::parse(&format!("{}{text}", log.display()))
                .unwrap()
                .read();
            read.map(|log| log.records[log.part].to_vec())
        };
        assert_eq!(times(&part("").unwrap()), [5, 6].map(at));
        assert_eq!(times(&part(":2").unwrap()), [1, 2, 3, 4].map(at));
        assert!(
            part(":3")
                .unwrap_err()
                .to_string()
                .contains("holds 2 sessions")
        );
        let times_of = |text| times(&part(text).unwrap());
        assert_eq!(
            times_of("@1970-01-01T00:00:02Z..1970-01-01T00:00:04Z"),
            [2, 3, 4].map(at)
        );
        assert_eq!(times_of("@1970-01-01T00:00:06Z.."), [at(6)]);
        assert!(
            Part::parse("log@yesterday..")
                .unwrap_err()
                .contains("no time")
        );
    }

    #[test]
    fn a_beginning_of_a_signature_is_enough_where_only_one_begins_so() {
        let records = [hit(1, b'a'), hit(2, b'a'), hit(3, b'b')];
        let a = records[0].signature;
        assert_eq!(only_signature(&records, "aaa"), Ok(a));
        assert_eq!(only_signature(&records, "c"), Ok(None));
        assert!(
            only_signature(&records, "")
                .unwrap_err()
                .contains("2 signatures")
        );
        assert!(is_prefix("0af") && !is_prefix("0AF") && !is_prefix("") && !is_prefix("x"));
    }
}
