use super::*;
use std::sync::Condvar;
use std::thread;

use crate::clock::{ManualClock, SystemClock};
use crate::remote::blob::BlobRemote;
use crate::remote::breaker::{Breaker, BreakerOptions};
use crate::remote::memory::Memory;
use crate::remote::{Ailment, RemoteOptions};

/// Far more than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a tier has for its answer in these tests.
const TURN: Duration = Duration::from_millis(60);

/// How a remote behaves.
#[derive(Clone, Debug)]
enum Mood {
    Well,
    Fails(RemoteError),
    Hangs,
    Panics,
}

/// A store in memory whose calls can be made to fail and to hang.
struct Moody {
    inner: BlobRemote<Memory>,
    memory: Memory,
    name: &'static str,
    mood: Mutex<Mood>,
    changed: Condvar,
    gets: Mutex<u32>,
    puts: Mutex<u32>,
}

impl Moody {
    fn shared(name: &'static str) -> Arc<Self> {
        let memory = Memory::default();
        Arc::new(Self {
            inner: BlobRemote::new(memory.clone(), &RemoteOptions::default()),
            memory,
            name,
            mood: Mutex::new(Mood::Well),
            changed: Condvar::new(),
            gets: Mutex::default(),
            puts: Mutex::default(),
        })
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.changed.notify_all();
    }

    fn pass(&self) -> Result<(), RemoteError> {
        let mood = self.mood.lock().unwrap();
        let hangs = |mood: &mut Mood| matches!(mood, Mood::Hangs);
        let mood = self.changed.wait_while(mood, hangs).unwrap();
        match &*mood {
            Mood::Fails(error) => Err(error.clone()),
            Mood::Panics => panic!("a bug in the remote"),
            _ => Ok(()),
        }
    }

    fn asked(&self) -> (u32, u32) {
        (*self.gets.lock().unwrap(), *self.puts.lock().unwrap())
    }

    fn has(&self) -> bool {
        self.inner.exists(&sig()).unwrap()
    }
}

impl Remote for Moody {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        *self.gets.lock().unwrap() += 1;
        self.pass()?;
        self.inner.get(sig)
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        *self.puts.lock().unwrap() += 1;
        self.pass()?;
        self.inner.put(sig, meta, content)
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.pass()?;
        self.inner.exists(sig)
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        self.pass()?;
        self.inner.delete(sig)
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        self.pass()?;
        self.inner.list(each)
    }

    fn describe(&self) -> String {
        self.name.to_owned()
    }
}

/// A thread a job.
struct Spawner;

impl Runner for Spawner {
    fn run(&self, job: Job) -> Result<(), Job> {
        thread::spawn(job);
        Ok(())
    }
}

/// No thread is left.
struct Nobody;

impl Runner for Nobody {
    fn run(&self, job: Job) -> Result<(), Job> {
        Err(job)
    }
}

struct Two {
    near: Arc<Moody>,
    far: Arc<Moody>,
    breaker: Arc<Breaker>,
    tiers: Arc<Tiers>,
}

impl Two {
    fn new() -> Self {
        Self::with(true, Arc::new(Spawner))
    }

    fn with(near_writes: bool, runner: Arc<dyn Runner>) -> Self {
        let (near, far) = (Moody::shared("near:"), Moody::shared("far:"));
        let options = BreakerOptions {
            in_background: true,
            ..BreakerOptions::default()
        };
        let clock = Arc::new(ManualClock::default());
        let behind =
            |remote: &Arc<Moody>| Arc::new(Breaker::new(remote.clone(), clock.clone(), options));
        let breaker = behind(&near);
        let tier = |remote: Arc<dyn Remote>, writes| Tier {
            remote,
            writes,
            patience: TURN,
        };
        let tiers = vec![tier(breaker.clone(), near_writes), tier(behind(&far), true)];
        let tiers = Tiers::new(
            tiers,
            runner,
            SystemClock::shared(),
            "near: far:".to_owned(),
        );
        Self {
            near,
            far,
            breaker,
            tiers: Arc::new(tiers),
        }
    }

    fn put(&self, content: &str) -> Result<Put, RemoteError> {
        let content = Content::Bytes(content.as_bytes().to_vec());
        self.tiers.put(&sig(), Meta::file(0o644), &content)
    }

    fn get(&self) -> Result<Option<String>, RemoteError> {
        let Some(mut object) = self.tiers.get(&sig())? else {
            return Ok(None);
        };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut object.content, &mut text)
            .map_err(RemoteError::from_io)?;
        Ok(Some(text))
    }

    fn fill(&self, remote: &Moody, content: &str) {
        let content = Content::Bytes(content.as_bytes().to_vec());
        remote
            .inner
            .put(&sig(), Meta::file(0o644), &content)
            .unwrap();
    }

    fn key(&self) -> String {
        RemoteOptions::default().layout.key(&sig())
    }
}

fn sig() -> Signature {
    Signature::parse(&[b'a'; 32]).unwrap()
}

fn down() -> Mood {
    Mood::Fails(RemoteError::Transient("refused".to_owned()))
}

fn is_partly<T: std::fmt::Debug>(answer: Result<T, RemoteError>) -> bool {
    matches!(answer, Err(RemoteError::Partly(_)))
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_first_tier_that_has_it_gives_it_and_a_miss_is_one_of_all() {
    let two = Two::new();
    assert_eq!(two.get().unwrap(), None);
    assert_eq!((two.near.asked().0, two.far.asked().0), (1, 1));
    two.fill(&two.far, "far");
    assert_eq!(two.get().unwrap().as_deref(), Some("far"));
    two.fill(&two.near, "near");
    assert_eq!(two.get().unwrap().as_deref(), Some("near"));
    assert_eq!(two.far.asked().0, 2, "not asked the third time");
}

#[test]
fn what_an_upper_tier_lacked_is_promoted_unless_that_is_not_written() {
    let two = Two::new();
    two.fill(&two.far, "x");
    let promote = |two: &Two| {
        let content = Content::Bytes(b"x".to_vec());
        two.tiers.promote(&sig(), Meta::file(0o644), &content)
    };
    assert_eq!(two.get().unwrap().as_deref(), Some("x"));
    assert!(two.tiers.is_lacking(&sig()));
    assert_eq!(promote(&two).unwrap(), 1);
    assert!(two.near.has() && !two.tiers.is_lacking(&sig()));
    assert_eq!(promote(&two).unwrap(), 0, "once");

    let read_only = Two::with(false, Arc::new(Spawner));
    read_only.fill(&read_only.far, "x");
    read_only.get().unwrap();
    assert!(!read_only.tiers.is_lacking(&sig()));
    assert_eq!(read_only.put("x").unwrap(), Put::Present);
    assert!(!read_only.near.has());
}

#[test]
fn while_a_tier_is_down_what_the_other_lacks_is_no_miss_and_what_it_has_is_a_hit() {
    let two = Two::new();
    two.near.set(down());
    assert!(is_partly(two.get()));
    two.fill(&two.far, "x");
    for _ in 0..5 {
        assert_eq!(two.get().unwrap().as_deref(), Some("x"));
    }
    assert_eq!(two.near.asked().0, 3, "the breaker is open by then");
    assert!(
        !two.tiers.is_lacking(&sig()),
        "nobody knows whether it lacks it"
    );
    assert!(two.tiers.trouble().is_none() && two.tiers.trouble_about(&sig()).is_none());
    two.far.set(down());
    let all_down = |_| two.tiers.get(&sig()).is_err() && two.tiers.trouble().is_some();
    assert!((0..5).any(all_down), "with all of them it is");
}

#[test]
fn a_tier_that_hangs_is_overtaken_once_and_then_passed_over() {
    let two = Two::new();
    two.fill(&two.far, "x");
    two.near.set(Mood::Hangs);
    assert_eq!(two.get().unwrap().as_deref(), Some("x"));
    assert_eq!(two.breaker.trouble().unwrap().ailment, Ailment::Hangs);
    for _ in 0..5 {
        assert_eq!(two.get().unwrap().as_deref(), Some("x"));
    }
    assert_eq!(two.near.asked().0, 1);
    assert!(is_partly(
        two.tiers
            .get(&Signature::parse(&[b'b'; 32]).unwrap())
            .map(|_| ())
    ));
    two.near.set(Mood::Well);
}

#[test]
fn who_was_overtaken_may_still_be_the_first() {
    let two = Two::new();
    two.fill(&two.near, "near");
    two.near.set(Mood::Hangs);
    two.far.set(Mood::Hangs);
    let got = thread::scope(|scope| {
        let getting = scope.spawn(|| two.get());
        eventually("the next one is asked", || two.far.asked().0 == 1);
        two.near.set(Mood::Well);
        getting.join().unwrap()
    });
    assert_eq!(got.unwrap().as_deref(), Some("near"));
    two.far.set(Mood::Well);
}

#[test]
fn a_complaint_goes_to_the_tier_that_is_asked() {
    let two = Two::new();
    two.far.set(Mood::Hangs);
    thread::scope(|scope| {
        let getting = scope.spawn(|| two.get());
        eventually("the last one is asked", || two.far.asked().0 == 1);
        two.tiers.report(Complaint {
            ailment: Ailment::Hangs,
            about: Some(sig()),
            reason: "nothing comes".to_owned(),
        });
        assert!(two.breaker.trouble().is_none());
        two.far.set(Mood::Well);
        getting.join().unwrap().unwrap();
    });
    assert!(two.tiers.tiers()[1].remote.trouble().is_some());
}

#[test]
fn what_is_corrupt_in_one_tier_comes_from_the_next_and_is_put_right() {
    let two = Two::new();
    two.fill(&two.near, &"content ".repeat(100));
    two.fill(&two.far, "right");
    let mut bytes = two.near.memory.bytes(&two.key()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    two.near.memory.set(&two.key(), &bytes);
    assert!(
        matches!(two.get(), Err(RemoteError::Corrupt(_))),
        "found out at its end"
    );
    assert!(two.tiers.elsewhere(&sig()));
    assert_eq!(two.get().unwrap().as_deref(), Some("right"));
    let content = Content::Bytes(b"right".to_vec());
    two.tiers
        .promote(&sig(), Meta::file(0o644), &content)
        .unwrap();
    two.near
        .memory
        .set(&two.key(), &two.near.memory.bytes(&two.key()).unwrap());
    assert_eq!(
        two.tiers.tiers()[0]
            .remote
            .get(&sig())
            .unwrap()
            .unwrap()
            .len,
        Some(5)
    );

    two.near
        .memory
        .set(&two.key(), b"<!DOCTYPE html><html></html>");
    two.tiers.shared.state().spoiled.clear();
    assert_eq!(
        two.get().unwrap().as_deref(),
        Some("right"),
        "found out at once"
    );
}

#[test]
fn every_tier_that_is_written_gets_it() {
    let two = Two::new();
    assert_eq!(two.put("x").unwrap(), Put::Stored);
    assert!(two.near.has() && two.far.has());
    assert_eq!(two.put("x").unwrap(), Put::Present);
    two.far.inner.delete(&sig()).unwrap();
    assert_eq!(
        two.put("x").unwrap(),
        Put::Stored,
        "in one of them it is new"
    );
    assert!(two.tiers.delete(&sig()).unwrap());
    assert!(!two.near.has() && !two.far.has());
}

#[test]
fn what_is_stored_in_part_is_asked_of_those_that_lack_it_alone() {
    let two = Two::new();
    two.near.set(down());
    assert!(is_partly(two.put("x")));
    assert!(two.far.has());
    assert!(is_partly(two.put("x")));
    assert_eq!(two.far.asked().1, 1);
    two.near.set(Mood::Well);
    assert_eq!(two.put("x").unwrap(), Put::Stored);
    assert!(two.near.has());
    assert_eq!(two.far.asked().1, 1);
}

#[test]
fn another_push_of_the_same_entry_is_asked_of_all_again() {
    let two = Two::new();
    two.near.set(down());
    assert!(is_partly(two.put("x")));
    two.near.set(Mood::Well);
    assert!(matches!(two.put("other"), Ok(Put::Diverged { .. })));
    assert_eq!(two.tiers.describe_holder(&sig()), "far:");
}

#[test]
fn an_upload_does_not_wait_for_a_tier_that_comes_into_trouble_and_what_that_takes_in_the_end_counts()
 {
    let two = Two::new();
    two.near.set(Mood::Hangs);
    let put = thread::scope(|scope| {
        let putting = scope.spawn(|| two.put("x"));
        eventually("it is put", || two.far.has() && two.near.asked().1 == 1);
        two.breaker.report(Complaint {
            ailment: Ailment::Hangs,
            about: None,
            reason: "put: no answer".to_owned(),
        });
        putting.join().unwrap()
    });
    assert!(is_partly(put));
    assert!(is_partly(two.put("x")), "it is still under way");
    assert_eq!(two.near.asked().1, 1);
    two.near.set(Mood::Well);
    eventually("it is put in the end", || two.near.has());
    eventually("that is known", || two.put("x").is_ok());
    assert_eq!(
        (two.near.asked().1, two.far.asked().1),
        (1, 1),
        "nobody was asked twice"
    );
}

#[test]
fn when_nobody_takes_it_the_error_is_one_of_them_and_the_mildest() {
    let two = Two::new();
    two.near.set(down());
    two.far
        .set(Mood::Fails(RemoteError::Full("too large".to_owned())));
    assert!(matches!(two.put("x"), Err(RemoteError::Full(_))));
    two.far.set(down());
    assert!(two.put("x").unwrap_err().is_transient());
}

#[test]
fn what_no_tier_can_hold_is_given_up() {
    let two = Two::new();
    let cannot = || Mood::Fails(RemoteError::Unsupported("a symlink".to_owned()));
    two.near.set(cannot());
    two.far.set(cannot());
    assert!(matches!(two.put("x"), Err(RemoteError::Unsupported(_))));
}

#[test]
fn a_tier_that_cannot_hold_it_is_none_that_it_waits_for() {
    let two = Two::new();
    two.near.set(Mood::Fails(RemoteError::Unsupported(
        "a symlink".to_owned(),
    )));
    assert_eq!(two.put("x").unwrap(), Put::Stored);
    assert!(two.far.has() && !two.near.has());
}

#[test]
fn a_touch_is_heard_by_all_and_says_whether_all_have_it() {
    let two = Two::new();
    two.put("x").unwrap();
    assert!(two.tiers.touch(&sig()).unwrap());
    two.near.inner.delete(&sig()).unwrap();
    assert!(!two.tiers.touch(&sig()).unwrap());
    assert!(two.tiers.exists(&sig()).unwrap());
}

#[test]
fn without_a_thread_calls_are_made_here() {
    let two = Two::with(true, Arc::new(Nobody));
    assert_eq!(two.put("x").unwrap(), Put::Stored);
    two.near.inner.delete(&sig()).unwrap();
    assert_eq!(two.get().unwrap().as_deref(), Some("x"));
}

#[test]
fn a_bug_in_one_tier_is_a_failure_of_that_one() {
    let two = Two::new();
    two.fill(&two.far, "x");
    two.near.set(Mood::Panics);
    assert_eq!(two.get().unwrap().as_deref(), Some("x"));
    assert!(two.put("x").is_err());
    eventually("nobody is asked any more", || {
        two.tiers.shared.state().asked.is_empty()
    });
}

/// What is kept about calls is gone with them.
#[test]
fn nothing_is_remembered_of_lookups_that_have_ended() {
    let two = Two::new();
    two.put("x").unwrap();
    two.get().unwrap();
    drop(two.tiers.get(&sig()).unwrap());
    two.tiers
        .get(&Signature::parse(&[b'b'; 32]).unwrap())
        .unwrap();
    let state = two.tiers.shared.state();
    assert!(state.asked.is_empty() && state.uploads.is_empty());
}
