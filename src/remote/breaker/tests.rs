use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::clock::ManualClock;
use crate::object::Arrived;
use crate::remote::scripted::{Scripted, sig};

const SECOND: Duration = Duration::from_secs(1);

fn breaker(inner: &Arc<Scripted>, in_background: bool) -> (Breaker, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let options = BreakerOptions {
        failures: 1,
        in_background,
        ..BreakerOptions::default()
    };
    let inner: Arc<dyn Remote> = inner.clone();
    (Breaker::new(inner, clock.clone(), options), clock)
}

fn transient() -> RemoteError {
    RemoteError::Transient("timed out".to_owned())
}

#[test]
fn while_open_the_remote_is_not_asked() {
    let inner = Scripted::shared([Err(transient()), Ok(true), Ok(true)]);
    let (breaker, clock) = breaker(&inner, false);
    assert!(breaker.exists(&sig()).is_err());
    assert!(
        breaker
            .get(&sig())
            .is_err_and(|error| error.to_string().contains("not asked, failing"))
    );
    assert_eq!(inner.calls(), 1);
    clock.advance(SECOND);
    assert!(breaker.exists(&sig()).unwrap() && breaker.exists(&sig()).unwrap());
}

#[test]
fn in_the_background_no_caller_is_the_probe() {
    let inner = Scripted::shared([Err(transient()), Ok(false), Ok(true)]);
    let (breaker, clock) = breaker(&inner, true);
    assert!(breaker.exists(&sig()).is_err());
    breaker.probe();
    clock.advance(SECOND * 100);
    assert!(breaker.exists(&sig()).is_err());
    assert_eq!(inner.calls(), 1);
    breaker.probe();
    assert!(breaker.trouble().is_none() && breaker.exists(&sig()).unwrap());
    breaker.probe();
    assert_eq!(
        inner.calls(),
        3,
        "a probe of a remote that is well asks nothing"
    );
}

#[test]
fn a_body_that_breaks_off_is_a_failure() {
    let (breaker, _) = breaker(&Scripted::shared([Ok(true), Err(transient())]), false);
    let mut object = breaker.get(&sig()).unwrap().unwrap();
    assert!(breaker.trouble().is_none());
    let error = io::copy(&mut object.content, &mut io::sink()).unwrap_err();
    assert!(RemoteError::from_io(error).is_transient());
    assert!(breaker.trouble().is_some());
}

#[test]
fn a_refused_write_does_not_cost_the_hits_but_a_refused_read_opens_it() {
    let refused = || Err(RemoteError::Refused("403".to_owned()));
    let (breaker, _) = breaker(&Scripted::shared([refused(), refused()]), false);
    assert!(
        breaker
            .put(&sig(), Meta::Symlink, &Content::Bytes(Vec::new()))
            .is_err()
    );
    assert!(breaker.trouble().is_none());
    assert!(breaker.get(&sig()).is_err());
    assert!(breaker.trouble().is_some());
}

#[test]
fn corrupt_full_or_our_own_trouble_is_no_failure_of_the_remote() {
    for error in [
        RemoteError::Corrupt("hash".to_owned()),
        RemoteError::Full("507".to_owned()),
        RemoteError::Local("spool".to_owned()),
    ] {
        let (breaker, _) = breaker(&Scripted::shared([Err(error)]), false);
        assert!(
            breaker
                .put(&sig(), Meta::Symlink, &Content::Bytes(Vec::new()))
                .is_err()
        );
        assert!(breaker.trouble().is_none());
    }
}

/// Nobody can be asked behind a certificate that is not trusted, and only a probe finds out that it was renewed.
#[test]
fn a_certificate_that_is_not_trusted_opens_it_and_a_renewed_one_closes_it() {
    let untrusted = || RemoteError::Untrusted("expired".to_owned());
    for write in [false, true] {
        let inner = Scripted::shared([Err(untrusted()), Err(untrusted()), Ok(true), Ok(true)]);
        let (breaker, clock) = breaker(&inner, true);
        if write {
            assert!(breaker.delete(&sig()).is_err());
        } else {
            assert!(breaker.exists(&sig()).is_err());
        }
        assert!(
            breaker
                .trouble()
                .is_some_and(|why| why.reason.contains("expired"))
        );
        clock.sleep(SECOND * 2);
        breaker.probe();
        assert!(breaker.trouble().is_some(), "still not renewed");
        clock.sleep(SECOND * 4);
        breaker.probe();
        assert!(breaker.trouble().is_none());
        assert!(breaker.exists(&sig()).unwrap());
    }
}

/// Quick with what it does not have; an object begins after a while, and its content takes its time.
struct Lame {
    clock: Arc<ManualClock>,
    answers_after: Mutex<Duration>,
    content: Mutex<Option<RemoteError>>,
    gets: AtomicUsize,
}

impl Remote for Lame {
    fn get(&self, _: &Signature) -> Result<Option<Object>, RemoteError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.clock.advance(*self.answers_after.lock().unwrap());
        let broken = self.content.lock().unwrap().take();
        let content: Box<dyn Read + Send> = match broken {
            Some(error) => Box::new(Fails(Some(error))),
            None => Box::new(io::empty()),
        };
        Ok(Some(Object {
            hash: None,
            meta: Meta::file(0o644),
            len: None,
            content,
            arrived: Arrived::default(),
        }))
    }

    fn put(&self, _: &Signature, _: Meta, _: &Content) -> Result<Put, RemoteError> {
        Ok(Put::Stored)
    }

    fn exists(&self, _: &Signature) -> Result<bool, RemoteError> {
        Ok(false)
    }

    fn delete(&self, _: &Signature) -> Result<bool, RemoteError> {
        Ok(false)
    }

    fn list(&self, _: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        Ok(())
    }

    fn describe(&self) -> String {
        "lame:".to_owned()
    }
}

struct Fails(Option<RemoteError>);

impl Read for Fails {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), |error| Err(error.into_io()))
    }
}

fn lame() -> (Breaker, Arc<Lame>) {
    let clock = Arc::new(ManualClock::default());
    let lame = Arc::new(Lame {
        clock: clock.clone(),
        answers_after: Mutex::default(),
        content: Mutex::default(),
        gets: AtomicUsize::new(0),
    });
    let options = BreakerOptions {
        in_background: true,
        ..BreakerOptions::default()
    };
    (Breaker::new(lame.clone(), clock, options), lame)
}

/// One that answered "no such object" at once and sent contents byte by byte was trusted again at each miss.
#[test]
fn slowness_ends_with_the_object_that_was_slow_and_not_with_a_quick_miss() {
    let (breaker, lame) = lame();
    let slow = || Some(RemoteError::Slow("1 byte a second".to_owned()));
    *lame.content.lock().unwrap() = slow();
    let mut object = breaker.get(&sig()).unwrap().unwrap();
    assert!(io::copy(&mut object.content, &mut io::sink()).is_err());
    let ailment = || breaker.trouble().map(|trouble| trouble.ailment);
    assert_eq!(ailment(), Some(Ailment::Slow));
    lame.clock.advance(SECOND * 100);
    *lame.content.lock().unwrap() = slow();
    breaker.probe();
    assert_eq!(ailment(), Some(Ailment::Slow));
    lame.clock.advance(SECOND * 100);
    breaker.probe();
    assert_eq!(ailment(), None);
    assert_eq!(lame.gets.load(Ordering::SeqCst), 3);
}

#[test]
fn silence_does_not_end_with_an_answer_that_lookups_would_not_have_waited_for() {
    let (breaker, lame) = lame();
    *lame.answers_after.lock().unwrap() = SECOND * 4;
    breaker.report(Complaint {
        ailment: Ailment::Hangs,
        about: Some(sig()),
        reason: "no answer".to_owned(),
    });
    lame.clock.advance(SECOND * 1000);
    breaker.probe();
    let trouble = breaker.trouble().unwrap();
    assert_eq!(trouble.ailment, Ailment::Hangs);
    assert_eq!(trouble.reason, "answered a probe after 4.0 s");
    *lame.answers_after.lock().unwrap() = SECOND * 2;
    lame.clock.advance(SECOND * 1000);
    breaker.probe();
    assert_eq!(breaker.trouble(), None);
}

#[test]
fn who_wants_to_know_is_told_when_it_closes() {
    let inner = Scripted::shared([Err(transient()), Ok(true)]);
    let (breaker, clock) = breaker(&inner, true);
    let told = Arc::new(AtomicUsize::new(0));
    let telling = told.clone();
    breaker.when_closed(Box::new(move |after| {
        assert_eq!(after, SECOND);
        telling.fetch_add(1, Ordering::SeqCst);
    }));
    let opened = Arc::new(AtomicUsize::new(0));
    let telling = opened.clone();
    breaker.when_opened(Box::new(move |ailment, why| {
        assert!(ailment == Ailment::Failing && !why.is_empty());
        telling.fetch_add(1, Ordering::SeqCst);
    }));
    assert!(breaker.exists(&sig()).is_err());
    assert_eq!(opened.load(Ordering::SeqCst), 1);
    clock.advance(SECOND);
    assert_eq!(told.load(Ordering::SeqCst), 0);
    breaker.probe();
    assert_eq!(told.load(Ordering::SeqCst), 1);
}
