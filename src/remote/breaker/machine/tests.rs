use super::*;
use crate::remote::scripted::sig;

const SECOND: Duration = Duration::from_secs(1);

fn failed() -> Outcome {
    Outcome::Failed(failure(None))
}

fn failure(wait: Option<Duration>) -> Failure {
    Failure {
        ailment: Ailment::Failing,
        about: None,
        reason: "refused".to_owned(),
        wait,
        grave: false,
    }
}

fn silence() -> Complaint {
    Complaint {
        ailment: Ailment::Hangs,
        about: Some(sig()),
        reason: "no answer".to_owned(),
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
            .reason
            .contains("refused")
    );
    assert_eq!(
        machine.trouble(SECOND * 12).unwrap().to_string(),
        "failing for 12 s: refused"
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
    assert_eq!(
        events,
        [Event::Opened(Ailment::Failing, "refused".to_owned())]
    );
    assert!(
        machine.admit(SECOND * 2, false).is_ok(),
        "the first delay still holds"
    );
}

#[test]
fn a_remote_that_asks_for_patience_gets_it_within_the_limit() {
    for (asked, waits) in [(10, 10), (290, 290), (3600, 300)] {
        let mut machine = Machine::new(BreakerOptions {
            failures: 1,
            ..BreakerOptions::default()
        });
        let permit = machine.admit(Duration::ZERO, false).unwrap();
        let busy = Outcome::Failed(failure(Some(SECOND * asked)));
        machine.end(permit, busy, Duration::ZERO, 0.0);
        assert!(machine.admit(SECOND * (waits - 1), false).is_err());
        assert!(machine.admit(SECOND * waits, false).is_ok());
    }
}

#[test]
fn what_somebody_observed_opens_it_at_once_and_is_told_once() {
    let mut machine = Machine::new(BreakerOptions::default());
    let event = machine.report(silence(), SECOND, 0.0);
    assert_eq!(
        event,
        Some(Event::Opened(Ailment::Hangs, "no answer".to_owned()))
    );
    assert_eq!(machine.report(silence(), SECOND, 0.0), None);
    assert!(machine.admit(SECOND, false).is_err());
}

#[test]
fn after_silence_over_one_object_that_object_is_asked_for_and_the_patience_grows() {
    let mut machine = Machine::new(BreakerOptions::default());
    machine.report(silence(), SECOND, 0.0);
    let within = |millis| {
        Some(Question {
            about: Some(sig()),
            within: Some(Duration::from_millis(millis)),
        })
    };
    assert_eq!(machine.question(SECOND * 2), within(500));
    assert_eq!(machine.question(SECOND * 61), within(1000));
    assert_eq!(machine.question(SECOND * 6001), within(3000));
    assert_eq!(
        opened().question(SECOND * 2),
        Some(Question {
            about: None,
            within: None
        }),
        "after failures any answer will do"
    );
}

#[test]
fn a_relapse_is_probed_as_rarely_as_before_and_a_later_failure_is_a_new_one() {
    for (later, waits) in [(SECOND * 59, 4), (SECOND * 61, 1)] {
        let mut machine = Machine::new(BreakerOptions::default());
        machine.report(silence(), SECOND, 1.0);
        let probe = machine.admit(SECOND * 2, false).unwrap();
        machine.end(probe, failed(), SECOND * 2, 1.0);
        let probe = machine.admit(SECOND * 4, false).unwrap();
        machine.end(probe, Outcome::Answered, SECOND * 4, 1.0);
        let again = SECOND * 4 + later;
        machine.report(silence(), again, 1.0);
        let due = again + SECOND * waits;
        assert!(machine.admit(due - SECOND / 10, false).is_err());
        assert!(machine.admit(due, false).is_ok());
    }
}
