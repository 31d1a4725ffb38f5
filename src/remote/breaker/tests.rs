use super::*;
use crate::clock::ManualClock;
use crate::remote::scripted::{Scripted, sig};

const SECOND: Duration = Duration::from_secs(1);

fn failed() -> Outcome {
    Outcome::Failed {
        reason: "refused".to_owned(),
        wait: None,
    }
}

/// A machine that three failures at time zero opened.
fn opened() -> Machine {
    let mut machine = Machine::new(BreakerOptions::default());
    for n in 1..=3 {
        let permit = machine.admit(Duration::ZERO, false).unwrap();
        let event = machine.end(permit, failed(), Duration::ZERO, 1.0);
        assert_eq!(event.is_some(), n == 3);
    }
    machine
}

#[test]
fn failures_in_a_row_open_it_and_every_call_then_fails_at_once() {
    let mut machine = opened();
    assert!(
        machine
            .admit(SECOND / 2, false)
            .unwrap_err()
            .contains("refused")
    );
    assert_eq!(
        machine.trouble(SECOND * 12).unwrap(),
        "breaker open for 12 s: refused"
    );
}

#[test]
fn an_answer_between_failures_keeps_it_closed() {
    let mut machine = Machine::new(BreakerOptions::default());
    for _ in 0..10 {
        for outcome in [failed(), failed(), Outcome::Answered] {
            let permit = machine.admit(SECOND, false).unwrap();
            assert_eq!(machine.end(permit, outcome, SECOND, 0.5), None);
        }
    }
}

#[test]
fn one_probe_at_a_time_is_let_through_and_its_success_closes_it() {
    let mut machine = opened();
    let probe = machine.admit(SECOND, false).unwrap();
    assert!(machine.admit(SECOND, false).is_err(), "only one");
    let event = machine.end(probe, Outcome::Answered, SECOND * 2, 0.0);
    assert_eq!(event, Some(Event::Closed { after: SECOND * 2 }));
    assert!(machine.trouble(SECOND * 2).is_none() && machine.admit(SECOND * 2, false).is_ok());
}

#[test]
fn a_failed_probe_doubles_the_delay_up_to_its_limit() {
    let mut machine = opened();
    let mut now = SECOND;
    for want in [2, 4, 8, 16, 32, 60, 60] {
        let probe = machine.admit(now, false).unwrap();
        assert_eq!(
            machine.end(probe, failed(), now, 1.0),
            None,
            "one line for one outage"
        );
        now += SECOND * want;
        assert!(machine.admit(now - SECOND / 10, false).is_err(), "{want}");
    }
}

#[test]
fn a_probe_that_was_given_up_leaves_the_next_one_free() {
    let mut machine = opened();
    let probe = machine.admit(SECOND, false).unwrap();
    assert_eq!(machine.end(probe, Outcome::Unknown, SECOND, 0.0), None);
    assert!(machine.admit(SECOND, false).is_ok());
}

#[test]
fn what_began_before_it_opened_neither_closes_nor_delays_it() {
    let mut machine = Machine::new(BreakerOptions::default());
    let permits: Vec<_> = (0..5)
        .map(|_| machine.admit(SECOND, false).unwrap())
        .collect();
    let outcomes = [failed(), failed(), failed(), Outcome::Answered, failed()];
    let events: Vec<_> = permits
        .iter()
        .zip(outcomes)
        .filter_map(|(p, o)| machine.end(*p, o, SECOND, 0.0))
        .collect();
    assert_eq!(events, [Event::Opened("refused".to_owned())]);
    assert!(
        machine.admit(SECOND * 2, false).is_ok(),
        "the first delay still holds"
    );
}

#[test]
fn a_remote_that_asks_for_patience_gets_it_within_the_limit() {
    for (asked, waits) in [(10, 10), (3600, 60)] {
        let mut machine = Machine::new(BreakerOptions {
            failures: 1,
            ..BreakerOptions::default()
        });
        let permit = machine.admit(Duration::ZERO, false).unwrap();
        let busy = Outcome::Failed {
            reason: "429".to_owned(),
            wait: Some(SECOND * asked),
        };
        machine.end(permit, busy, Duration::ZERO, 0.0);
        assert!(machine.admit(SECOND * (waits - 1), false).is_err());
        assert!(machine.admit(SECOND * waits, false).is_ok());
    }
}

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
            .is_err_and(|error| error.to_string().contains("breaker open"))
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
        assert!(breaker.trouble().is_some_and(|why| why.contains("expired")));
        clock.sleep(SECOND * 2);
        breaker.probe();
        assert!(breaker.trouble().is_some(), "still not renewed");
        clock.sleep(SECOND * 4);
        breaker.probe();
        assert!(breaker.trouble().is_none());
        assert!(breaker.exists(&sig()).unwrap());
    }
}
