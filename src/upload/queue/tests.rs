//! Order, backoff and bounds, in manual time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::signature::Signature;

const T0: Duration = Duration::from_secs(100);
const REMOTE: Blame = Blame::Remote(Duration::ZERO);

fn item(seq: u64) -> Item {
    let sig = Signature::parse(format!("{seq:032x}").as_bytes()).unwrap();
    Item {
        seq,
        place: Place { sig, digits: 2 },
        mode: 0o644,
        bytes: 10,
        ino: 1,
    }
}

fn queue_of(n: u64) -> Queue {
    let mut queue = Queue::default();
    for seq in 1..=n {
        assert!(queue.push(item(seq), T0).is_none());
    }
    queue
}

#[test]
fn oldest_first_and_many_at_once_while_all_is_well() {
    let mut queue = queue_of(3);
    assert_eq!(queue.next(T0), Next::Job(item(1)));
    assert_eq!(queue.next(T0), Next::Job(item(2)));
    queue.done(1);
    queue.done(2);
    assert_eq!(queue.next(T0), Next::Job(item(3)));
    assert_eq!(queue.next(T0), Next::Idle);
    queue.done(3);
    assert!(queue.is_empty());
    assert_eq!(queue.bytes(), 0);
}

#[test]
fn one_upload_probes_a_failing_remote_and_the_wait_is_bounded() {
    let mut queue = queue_of(3);
    let mut now = T0;
    for round in 0..20 {
        let Next::Job(job) = queue.next(now) else {
            panic!("round {round}")
        };
        if round > 0 {
            assert_eq!(queue.next(now), Next::Idle, "only one probes");
        }
        assert_eq!(queue.failed(job.seq, REMOTE, now), round == 0);
        let Next::Wait(wait) = queue.next(now) else {
            panic!("round {round}")
        };
        assert!(wait <= REMOTE_MOST);
        now += wait;
    }
    let probe = job(&mut queue, now);
    queue.done(probe);
    assert!(!queue.is_failing());
    let second = job(&mut queue, now);
    queue.done(second);
    job(&mut queue, now);
}

#[test]
fn one_that_failed_in_an_outage_goes_ahead_alone_and_clears_the_others() {
    let mut queue = queue_of(5);
    for round in 0..5 {
        let seq = job(&mut queue, T0 + REMOTE_MOST * round);
        queue.failed(seq, REMOTE, T0 + REMOTE_MOST * round);
    }
    let now = T0 + REMOTE_MOST * 5;
    let probe = job(&mut queue, now);
    queue.done(probe);
    let ahead = job(&mut queue, now);
    assert_eq!(queue.next(now), Next::Idle);
    queue.done(ahead);
    let rest = [(); 3].map(|()| job(&mut queue, now));
    assert!(rest.is_sorted(), "{rest:?}");
}

#[test]
fn one_object_that_is_refused_does_not_hold_up_the_others() {
    let mut queue = queue_of(2);
    assert_eq!(queue.next(T0), Next::Job(item(1)));
    assert!(queue.failed(1, Blame::Object, T0));
    assert_eq!(queue.next(T0), Next::Job(item(2)));
    queue.done(2);
    assert_eq!(queue.next(T0), Next::Wait(OBJECT_FIRST));
    assert_eq!(queue.next(T0 + OBJECT_FIRST), Next::Job(item(1)));
}

#[test]
fn draining_does_not_wait_for_what_was_refused_for_itself() {
    let mut queue = queue_of(2);
    assert!(!queue.is_stuck());
    assert_eq!(queue.next(T0), Next::Job(item(1)));
    queue.failed(1, Blame::Object, T0);
    assert!(!queue.is_stuck(), "the other one has not been tried");
    assert_eq!(queue.next(T0), Next::Job(item(2)));
    assert!(!queue.is_stuck(), "it is under way");
    queue.given_up(2);
    assert!(queue.is_stuck());
    queue.retry_now();
    assert!(!queue.is_stuck());
}

#[test]
fn a_second_push_supersedes_one_that_nobody_has_begun() {
    let mut queue = queue_of(1);
    let again = Item { seq: 2, ..item(1) };
    assert_eq!(queue.push(again, T0), Some(item(1)));
    assert_eq!(queue.next(T0), Next::Job(again));
    let third = Item { seq: 3, ..item(1) };
    assert_eq!(queue.push(third, T0), None, "what is in flight stays");
    queue.done(2);
    assert_eq!(queue.next(T0), Next::Job(third));
}

#[test]
fn an_upload_that_fails_after_its_entry_was_pushed_again_is_not_tried_again() {
    let mut queue = queue_of(1);
    assert_eq!(queue.next(T0), Next::Job(item(1)));
    let again = Item { seq: 2, ..item(1) };
    queue.push(again, T0);
    queue.failed(1, Blame::Object, T0);
    assert_eq!(queue.take_outdated(1), Some(item(1)));
    assert_eq!(queue.take_outdated(2), None, "it is the newest");
    assert_eq!(queue.next(T0), Next::Job(again));
    assert_eq!(queue.len(), 1);
}

/// Who waited for it was told after the second attempt, minutes later.
#[test]
fn an_upload_that_was_refused_is_not_untried() {
    let mut queue = queue_of(1);
    assert!(queue.is_untried(1));
    assert_eq!(queue.next(T0), Next::Job(item(1)));
    assert!(queue.is_untried(1), "it is under way");
    queue.failed(1, Blame::Object, T0);
    assert!(!queue.is_untried(1));
}

#[test]
fn a_flush_forgets_all_waits() {
    let mut queue = queue_of(2);
    assert_eq!(queue.next(T0), Next::Job(item(1)));
    queue.failed(1, Blame::Object, T0);
    assert_eq!(queue.next(T0), Next::Job(item(2)));
    queue.failed(2, REMOTE, T0);
    assert!(matches!(queue.next(T0), Next::Wait(_)));
    queue.retry_now();
    assert!(matches!(queue.next(T0), Next::Job(_)));
}

fn large(seq: u64) -> Item {
    Item {
        bytes: LARGE,
        ..item(seq)
    }
}

fn limits(count: u64, bytes: u64) -> Limits {
    Limits {
        count,
        bytes,
        large_at_once: 2,
    }
}

/// The number of the upload that is to be made at `now`.
fn job(queue: &mut Queue, now: Duration) -> u64 {
    match queue.next(now) {
        Next::Job(item) => item.seq,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hundred_thousand_uploads_stay_small_in_memory() {
    assert!(size_of::<Slot>() <= 72, "{}", size_of::<Slot>());
}

#[test]
fn large_objects_never_take_all_workers() {
    let mut queue = Queue::bounded(limits(100, u64::MAX));
    for seq in 1..=4 {
        queue.push(large(seq), T0);
    }
    queue.push(item(5), T0);
    assert_eq!(job(&mut queue, T0), 1);
    assert_eq!(job(&mut queue, T0), 2);
    assert_eq!(job(&mut queue, T0), 5, "the small one goes past them");
    assert_eq!(queue.next(T0), Next::Idle);
    queue.done(1);
    assert_eq!(job(&mut queue, T0), 3);
}

/// A large upload takes minutes. It was what "one at a time" waited for.
#[test]
fn while_the_remote_fails_nobody_waits_for_a_large_upload_that_is_still_under_way() {
    let mut queue = Queue::bounded(limits(100, u64::MAX));
    queue.push(large(1), T0);
    queue.push(item(2), T0);
    assert_eq!((job(&mut queue, T0), job(&mut queue, T0)), (1, 2));
    queue.failed(2, REMOTE, T0);
    assert_eq!(
        job(&mut queue, T0 + REMOTE_FIRST),
        2,
        "1 is still under way"
    );
    queue.done(2);
    assert!(!queue.is_failing());
}

#[test]
fn a_beginning_that_always_fails_does_not_starve_the_rest() {
    let bad = 200;
    let mut queue = queue_of(bad + 1000);
    let mut now = T0;
    let (mut done, mut under_way) = (0, BTreeSet::new());
    let end = T0 + Duration::from_secs(600);
    while now < end && done < 1000 {
        while under_way.len() < 8
            && let Next::Job(item) = queue.next(now)
        {
            under_way.insert(item.seq);
        }
        now += Duration::from_millis(20);
        for seq in std::mem::take(&mut under_way) {
            if seq <= bad {
                queue.failed(seq, REMOTE, now);
            } else {
                queue.done(seq);
                done += 1;
            }
        }
    }
    assert_eq!(done, 1000, "of those that can be delivered");
    assert_eq!(queue.len() as u64, bad);
}

#[test]
fn after_hours_of_503_the_oldest_go_first_and_nothing_is_lost() {
    let mut queue = queue_of(5000);
    let (mut now, mut asked) = (T0, 0);
    while now < T0 + Duration::from_secs(5 * 3600) {
        match queue.next(now) {
            Next::Job(item) => {
                asked += 1;
                queue.failed(item.seq, REMOTE, now);
            }
            Next::Wait(wait) => now += wait,
            Next::Idle => panic!("it is never given up"),
        }
    }
    assert!((2000..3000).contains(&asked), "{asked} in five hours");
    now += REMOTE_MOST;
    let first = job(&mut queue, now);
    queue.done(first);
    let mut order = Vec::new();
    while let Next::Job(item) = queue.next(now) {
        order.push(item.seq);
        queue.done(item.seq);
    }
    assert_eq!(order.len(), 4999);
    let by_suspects = order.iter().filter(|seq| **seq <= asked).count();
    assert!(by_suspects > 0 && queue.is_empty());
    // Of those that the outage did not touch, the older always goes before the younger; likewise of those that it did.
    let untouched: Vec<_> = order
        .iter()
        .filter(|s| (asked..=5000 - asked).contains(s))
        .collect();
    assert!(untouched.is_sorted(), "{untouched:?}");
}

#[test]
fn a_remote_that_asks_for_time_gets_it_but_not_for_ever() {
    let mut queue = queue_of(1);
    job(&mut queue, T0);
    queue.failed(1, Blame::Remote(Duration::from_secs(20)), T0);
    assert_eq!(queue.next(T0), Next::Wait(Duration::from_secs(20)));
    let now = T0 + Duration::from_secs(20);
    job(&mut queue, now);
    queue.failed(1, Blame::Remote(Duration::from_secs(100_000)), now);
    assert_eq!(queue.next(now), Next::Wait(REMOTE_ASKED_MOST));
}

#[test]
fn a_remote_without_room_is_not_flooded_and_is_used_at_once_when_it_has_room_again() {
    let mut queue = queue_of(2000);
    let (mut now, mut asked) = (T0, 0);
    while now < T0 + Duration::from_secs(3600) {
        match queue.next(now) {
            Next::Job(item) => {
                asked += 1;
                queue.failed(item.seq, Blame::Object, now);
            }
            Next::Wait(wait) => now += wait,
            Next::Idle => panic!("it is never given up"),
        }
    }
    assert!(asked < 600, "{asked} in an hour");
    now += REMOTE_MOST;
    let first = job(&mut queue, now);
    queue.done(first);
    while let Next::Job(item) = queue.next(now) {
        queue.done(item.seq);
    }
    assert!(queue.is_empty(), "{} wait for their turn", queue.len());
}

#[test]
fn what_we_cannot_read_says_nothing_about_the_remote() {
    let mut queue = queue_of(100);
    for _ in 0..50 {
        let seq = job(&mut queue, T0);
        queue.failed(seq, Blame::Ours, T0);
    }
    assert!(!queue.is_failing());
    assert_eq!(job(&mut queue, T0), 51);
}

#[test]
fn above_the_limit_what_was_refused_goes_first_then_the_oldest_and_never_what_is_under_way() {
    let mut queue = Queue::bounded(limits(3, u64::MAX));
    for seq in 1..=3 {
        queue.push(item(seq), T0);
    }
    assert_eq!(job(&mut queue, T0), 1);
    assert_eq!(job(&mut queue, T0), 2);
    queue.failed(2, Blame::Object, T0);
    assert!(queue.cut(usize::MAX).is_empty(), "three are allowed");
    queue.push(item(4), T0);
    queue.push(item(5), T0);
    assert_eq!(queue.cut(usize::MAX), [item(2), item(3)], "1 is under way");
    assert_eq!((queue.len(), queue.bytes()), (3, 30));
}

#[test]
fn the_limit_of_bytes_counts_what_they_take_on_the_disk() {
    let mut queue = Queue::bounded(limits(100, 3 * footprint(10)));
    for seq in 1..=4 {
        queue.push(item(seq), T0);
    }
    assert_eq!(queue.cut(usize::MAX), [item(1)]);
    queue.set_limits(limits(100, 1));
    assert_eq!(
        queue.cut(usize::MAX),
        [item(2), item(3)],
        "the last one is too large, and alone"
    );
}

#[test]
fn what_was_withdrawn_is_not_tried_again() {
    let mut queue = queue_of(2);
    let elsewhere = Item {
        seq: 3,
        place: Place {
            digits: 1,
            ..item(1).place
        },
        ..item(1)
    };
    queue.push(elsewhere, T0);
    assert_eq!(job(&mut queue, T0), 1);
    let sig = item(1).place.sig;
    assert!(queue.is_under_way(&sig));
    assert_eq!(queue.withdraw(&sig), (vec![elsewhere], vec![item(1)]));
    queue.failed(1, REMOTE, T0);
    assert_eq!(queue.take_outdated(1), Some(item(1)));
    assert!(!queue.is_under_way(&sig));
    assert_eq!(queue.len(), 1, "another one is left alone");
}

/// What becomes of one attempt.
#[derive(Clone, Copy, Debug)]
enum End {
    Done,
    Failed(Blame),
}

#[derive(Clone, Debug)]
enum Step {
    /// A push of one of a few entries, of so many bytes.
    Push(u64, u64),
    /// Begin what can be begun.
    Begin,
    /// One that is under way ends.
    End(prop::sample::Index, End),
    Pass(Duration),
    Flush,
    Withdraw(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        3 => Just(End::Done),
        3 => Just(End::Failed(REMOTE)),
        2 => Just(End::Failed(Blame::Object)),
        1 => Just(End::Failed(Blame::Ours)),
    ];
    let bytes = prop_oneof![4 => 0..100_000u64, 1 => Just(LARGE)];
    let step = prop_oneof![
        4 => (0..40u64, bytes).prop_map(|(entry, bytes)| Step::Push(entry, bytes)),
        4 => Just(Step::Begin),
        6 => (any::<prop::sample::Index>(), end).prop_map(|(which, end)| Step::End(which, end)),
        2 => (0..20_000u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        1 => Just(Step::Flush),
        1 => (0..40u64).prop_map(Step::Withdraw),
    ];
    prop::collection::vec(step, 0..300)
}

/// What the test knows of a queue: what is in it, and what of that is under way.
#[derive(Default)]
struct Model {
    inside: BTreeMap<u64, Item>,
    under_way: BTreeSet<u64>,
    withdrawn: BTreeSet<u64>,
}

impl Model {
    fn left(&mut self, items: &[Item]) {
        for item in items {
            assert_eq!(
                self.inside.remove(&item.seq),
                Some(*item),
                "once and as it was"
            );
            assert!(
                !self.under_way.contains(&item.seq),
                "what is under way stays"
            );
        }
    }

    fn check(&self, queue: &Queue) {
        assert_eq!(queue.len(), self.inside.len());
        assert_eq!(
            queue.bytes(),
            self.inside.values().map(|i| i.bytes).sum::<u64>()
        );
        assert_eq!(queue.in_flight, self.under_way);
        let elsewhere = queue.ready.len()
            + queue.ready_large.len()
            + queue.suspects.len()
            + queue.waiting.len()
            + queue.in_flight.len();
        assert_eq!(elsewhere, queue.len(), "each stands in one place");
        let large = self
            .under_way
            .iter()
            .filter(|seq| self.inside[seq].bytes >= LARGE);
        // One more may be a probe.
        assert!(large.count() <= queue.limits.large_at_once + 1);
    }
}

proptest! {
    /// Whatever happens, every push is in the queue, done, or was handed back; the bounds hold; and once the remote
    /// works, everything is delivered within the longest wait of an object.
    #[test]
    fn nothing_is_lost_the_bounds_hold_and_all_is_delivered_in_the_end(steps in steps()) {
        let bounds = limits(12, 200_000);
        let mut queue = Queue::bounded(bounds);
        let (mut model, mut now, mut next) = (Model::default(), T0, 1);
        for step in steps {
            match step {
                Step::Push(entry, bytes) => {
                    let new = Item { seq: next, bytes, ..item(entry) };
                    next += 1;
                    let superseded = queue.push(new, now);
                    model.inside.insert(new.seq, new);
                    model.left(superseded.as_slice());
                    if let Some(old) = superseded {
                        prop_assert_eq!(old.place, new.place);
                    }
                    model.left(&queue.cut(usize::MAX));
                    let over = queue.is_over();
                    prop_assert!(!over || queue.len() == model.under_way.len(), "over the bounds");
                }
                Step::Begin => {
                    while model.under_way.len() < 4 && let Next::Job(job) = queue.next(now) {
                        prop_assert_eq!(model.inside.get(&job.seq), Some(&job));
                        prop_assert!(model.under_way.insert(job.seq), "twice at a time");
                    }
                }
                Step::End(which, end) => {
                    if model.under_way.is_empty() {
                        continue;
                    }
                    let seq = *which.get(&model.under_way.iter().copied().collect::<Vec<_>>());
                    model.under_way.remove(&seq);
                    match end {
                        End::Done => {
                            queue.done(seq);
                            model.inside.remove(&seq);
                        }
                        End::Failed(blame) => {
                            queue.failed(seq, blame, now);
                            let outdated = queue.take_outdated(seq);
                            prop_assert!(outdated.is_some() || !model.withdrawn.contains(&seq));
                            model.left(outdated.as_slice());
                        }
                    }
                }
                Step::Pass(time) => now += time,
                Step::Flush => queue.retry_now(),
                Step::Withdraw(entry) => {
                    let sig = item(entry).place.sig;
                    let (taken, under_way) = queue.withdraw(&sig);
                    model.left(&taken);
                    model.withdrawn.extend(under_way.iter().map(|item| item.seq));
                    let rest = model.inside.values().filter(|item| item.place.sig == sig);
                    prop_assert_eq!(rest.count(), under_way.len());
                }
            }
            model.check(&queue);
        }
        let latest = now + OBJECT_MOST + REMOTE_MOST;
        for seq in std::mem::take(&mut model.under_way) {
            queue.done(seq);
        }
        while !queue.is_empty() {
            match queue.next(now) {
                Next::Job(job) => queue.done(job.seq),
                Next::Wait(time) => now += time,
                Next::Idle => prop_assert!(false, "it is forgotten"),
            }
            prop_assert!(now <= latest, "it took too long");
        }
        prop_assert_eq!((queue.bytes(), queue.on_disk, queue.newest.len()), (0, 0, 0));
    }
}

#[test]
fn what_is_stored_in_part_waits_alone_and_says_that_the_remote_works() {
    let mut queue = queue_of(12);
    for seq in 1..=10 {
        assert_eq!(queue.next(T0), Next::Job(item(seq)));
        queue.failed(seq, Blame::Part, T0);
        assert!(!queue.is_failing(), "{seq}");
    }
    assert_eq!(queue.next(T0), Next::Job(item(11)));
    queue.failed(11, REMOTE, T0);
    assert!(queue.is_failing());
    let now = T0 + REMOTE_FIRST;
    assert_eq!(queue.next(now), Next::Job(item(12)), "a probe");
    queue.failed(12, Blame::Part, now);
    assert!(!queue.is_failing(), "somebody took it");
    assert_eq!(queue.next(now), Next::Job(item(11)));
    queue.failed(11, Blame::Part, now);
    assert!(queue.is_stuck(), "a drain need not wait");
    queue.retry_now();
    let again: Vec<_> = (0..12).map(|_| job(&mut queue, now)).collect();
    assert_eq!(again, (1..=12).collect::<Vec<_>>());
}

#[test]
fn what_is_stored_in_part_is_not_given_up_before_what_is_older() {
    let mut queue = queue_of(2);
    queue.next(T0);
    queue.next(T0);
    queue.failed(2, Blame::Part, T0);
    queue.failed(1, Blame::Part, T0);
    queue.set_limits(Limits {
        count: 1,
        ..Limits::default()
    });
    assert_eq!(queue.cut(10), [item(1)]);
}
