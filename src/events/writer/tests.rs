use super::*;
use crate::clock::ManualClock;
use crate::events::reader::{read, sessions};
use crate::signature::Signature;
use crate::stats::event::What;
use std::os::unix::fs::symlink;
use std::time::Duration;
use tempfile::TempDir;

struct Rig {
    dir: TempDir,
    clock: Arc<ManualClock>,
    stats: Arc<Stats>,
}

impl Rig {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            clock: Arc::default(),
            stats: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("events")
    }

    fn try_open(&self, path: PathBuf, size: u64, files: u64) -> Result<Events, EventsError> {
        let options = Options {
            file: path,
            size,
            files,
        };
        let session = Session {
            pid: 7,
            began: Moment::at(self.clock.wall()),
            ..Session::default()
        };
        let backing = self.dir.path().join("backing");
        let (clock, stats) = (self.clock.clone(), self.stats.clone());
        Events::open(options, session, 0o022, &[&backing], clock, stats)
    }

    fn open(&self, size: u64, files: u64) -> Events {
        self.try_open(self.path(), size, files).unwrap()
    }

    fn refusal(&self, path: PathBuf) -> String {
        let opened = self.try_open(path, 1 << 20, 1);
        opened.err().unwrap().to_string()
    }

    fn hits(&self, events: &Events, count: u64) {
        for n in 0..count {
            self.clock.advance(Duration::from_secs(1));
            let sig = Signature::parse(format!("{n:032x}").as_bytes()).unwrap();
            events.note(&Event::new(What::Hit, &sig));
        }
    }

    fn ends(&self, events: &Events) {
        events.end("all is well".to_owned(), self.stats.snapshot());
        events.run();
    }

    fn names(&self) -> Vec<String> {
        let listed = fs::read_dir(self.dir.path()).unwrap();
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = listed.map(name).collect();
        names.sort();
        names
    }
}

fn outcomes(records: &[Record]) -> Vec<&str> {
    records.iter().map(|r| r.outcome.as_ref()).collect()
}

#[test]
fn a_session_has_a_beginning_and_an_end() {
    let rig = Rig::new();
    let events = rig.open(1 << 20, 3);
    rig.hits(&events, 2);
    events.remote_opened("http://host/c", "hangs", "no answer");
    events.remote_closed("http://host/c", Duration::from_secs(3));
    rig.ends(&events);
    let all = read(&rig.path()).unwrap();
    assert_eq!(outcomes(&all), [BEGIN, "hit", "hit", OPENED, CLOSED, END]);
    assert_eq!(all[0].session.as_ref().unwrap().pid, 7);
    assert_eq!(all[1].time.until(all[2].time), Duration::from_secs(1));
    assert_eq!(all[3].why.as_deref(), Some("hangs: no answer"));
    assert_eq!(all[5].summary.as_deref(), Some("all is well"));
    let mode = fs::metadata(rig.path()).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o640);
}

#[test]
fn files_are_rotated_bounded_and_each_says_of_what_session_it_is() {
    let rig = Rig::new();
    let events = rig.open(1000, 2);
    rig.hits(&events, 100);
    rig.ends(&events);
    assert_eq!(rig.names(), ["events", "events.1", "events.2"]);
    for name in rig.names() {
        let len = fs::metadata(rig.dir.path().join(&name)).unwrap().len();
        assert!(len <= 1000 + 500, "{name} has {len} bytes");
    }
    let all = read(&rig.path()).unwrap();
    assert_eq!(all[0].outcome, CONTINUED);
    let hits: Vec<_> = all.iter().filter(|r| r.outcome == "hit").collect();
    assert!(hits.windows(2).all(|two| two[0].time < two[1].time));
    assert_eq!(sessions(&all).len(), 1);
}

#[test]
fn without_more_files_the_one_begins_anew() {
    let rig = Rig::new();
    let events = rig.open(1000, 0);
    rig.hits(&events, 50);
    rig.ends(&events);
    assert_eq!(rig.names(), ["events"]);
    assert_eq!(read(&rig.path()).unwrap().last().unwrap().outcome, END);
}

#[test]
fn what_does_not_fit_is_counted_and_said_once() {
    let rig = Rig::new();
    let events = rig.open(1 << 30, 0);
    rig.hits(&events, QUEUE as u64 + 5);
    assert_eq!(rig.stats.events_dropped.get(), 5);
    rig.ends(&events);
    let all = read(&rig.path()).unwrap();
    let gaps: Vec<_> = all.iter().filter(|r| r.op == DROPPED).collect();
    assert_eq!((gaps.len(), gaps[0].count), (1, Some(5)));
    assert_eq!(all.len(), QUEUE + 3);
}

#[test]
fn a_file_that_was_moved_away_is_made_anew_when_asked_and_with_the_next_event() {
    let rig = Rig::new();
    let events = rig.open(1 << 20, 3);
    thread_of(&events, || {
        rig.hits(&events, 1);
        events.flush(Duration::from_secs(60));
        assert_eq!(read(&rig.path()).unwrap().len(), 2);
        fs::rename(rig.path(), rig.dir.path().join("moved")).unwrap();
        events.reopen();
        await_lines(&rig.path(), 1);
        fs::remove_file(rig.path()).unwrap();
        rig.hits(&events, 1);
        events.end(String::new(), rig.stats.snapshot());
    });
    let now = read(&rig.path()).unwrap();
    assert_eq!(outcomes(&now), [CONTINUED, "hit", END]);
    let before = read(&rig.dir.path().join("moved")).unwrap();
    assert_eq!(outcomes(&before), [BEGIN, "hit"]);
}

/// Runs the loop while something is done; that must end it.
fn thread_of(events: &Events, done: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(|| events.run());
        done();
    });
}

fn await_lines(path: &Path, lines: usize) {
    while !fs::read(path).is_ok_and(|t| t.iter().filter(|b| **b == b'\n').count() >= lines) {
        std::thread::yield_now();
    }
}

#[test]
fn after_half_a_line_a_new_one_begins() {
    let rig = Rig::new();
    fs::write(rig.path(), b"{\"time\":\"2023-").unwrap();
    let events = rig.open(1 << 20, 3);
    rig.hits(&events, 1);
    rig.ends(&events);
    assert_eq!(outcomes(&read(&rig.path()).unwrap()), [BEGIN, "hit", END]);
}

#[test]
fn a_file_that_cannot_be_written_costs_events_and_they_are_counted() {
    let rig = Rig::new();
    let events = rig.open(1000, 1);
    // The next name is taken by what cannot be replaced.
    fs::create_dir_all(rig.dir.path().join("events.1/full")).unwrap();
    rig.hits(&events, 100);
    thread_of(&events, || {
        while rig.stats.events_dropped.get() == 0 {
            std::thread::yield_now();
        }
        fs::remove_dir_all(rig.dir.path().join("events.1")).unwrap();
        rig.hits(&events, 1);
        events.end(String::new(), rig.stats.snapshot());
    });
    let all = read(&rig.path()).unwrap();
    let missing: u64 = all.iter().filter_map(|r| r.count).sum();
    assert_eq!(missing, rig.stats.events_dropped.get());
    assert_eq!(all.last().unwrap().outcome, END);
}

#[test]
fn what_others_may_have_laid_out_is_not_written() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::new();
    let dir = rig.dir.path();
    let (link, target) = (dir.join("link"), dir.join("target"));
    fs::write(&target, "precious").unwrap();
    symlink(&target, &link).unwrap();
    fs::hard_link(&target, dir.join("hard")).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(rig.refusal(link.clone()).contains("it is a link"));
    assert!(rig.refusal(dir.join("hard")).contains("somebody else's"));
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(
        rig.try_open(link, 1 << 20, 1).is_ok(),
        "an administrator's link"
    );

    fs::create_dir(dir.join("backing")).unwrap();
    assert!(
        rig.refusal(dir.join("backing/events"))
            .contains("outside of it")
    );
    symlink(dir.join("backing"), dir.join("way")).unwrap();
    assert!(
        rig.refusal(dir.join("way/events"))
            .contains("outside of it")
    );
    assert!(
        rig.refusal(dir.join("nowhere/events"))
            .contains("No such file")
    );
    assert!(rig.refusal(dir.join("backing")).contains("in "));
    let _first = rig.open(1 << 20, 1);
    assert!(rig.refusal(rig.path()).contains("another mount"));
}
