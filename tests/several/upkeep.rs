//! What is done for remotes besides uploads: touch and reshare.

use std::fs::{self, File, FileTimes};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{Oracle, PATIENCE, Push, Shape, held, push};
use crate::support::mounted::Mounted;
use crate::support::{wait_until, workspace};

const A_WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

struct Cache {
    remote: PathBuf,
    _workspace: tempfile::TempDir,
}

impl Cache {
    fn new() -> Self {
        let workspace = workspace();
        Self {
            remote: workspace.path().join("remote"),
            _workspace: workspace,
        }
    }

    fn url(&self) -> String {
        format!("file://{}", self.remote.display())
    }

    fn object(&self, push: Push) -> PathBuf {
        self.remote.join(push.entry())
    }

    fn age(&self, push: Push) {
        let file = File::options().write(true).open(self.object(push)).unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::now() - 2 * A_WEEK))
            .unwrap();
    }

    fn is_aged(&self, push: Push) -> bool {
        let modified = fs::metadata(self.object(push)).unwrap().modified().unwrap();
        modified.elapsed().unwrap_or_default() > A_WEEK
    }
}

fn use_it(machine: &Mounted, push: Push) {
    assert_eq!(push.fault(machine.path()), None);
}

#[test]
fn what_is_used_is_touched_once_in_so_many_days_also_after_a_remount() {
    let cache = Cache::new();
    let oracle = Oracle::default();
    // What was pushed before anybody kept account is due at once.
    let mut machine = Mounted::new(&cache.url());
    push(&machine, &oracle, 1..4);
    machine.flush();
    for n in 1..4 {
        cache.age(Push(n));
    }
    machine.remount_with("touch=7d");
    use_it(&machine, Push(1));
    wait_until("it is touched", PATIENCE, || !cache.is_aged(Push(1)));
    assert!(cache.is_aged(Push(2)), "nobody used it");
    cache.age(Push(1));
    use_it(&machine, Push(1));
    // One after the other: whatever the first use did is done when the second is.
    use_it(&machine, Push(2));
    wait_until("the next is touched", PATIENCE, || {
        machine.counter("touched") == 2
    });
    assert!(cache.is_aged(Push(1)), "touched again in the same mount");
    machine.remount();
    use_it(&machine, Push(1));
    use_it(&machine, Push(3));
    wait_until("another is touched", PATIENCE, || {
        machine.counter("touched") == 1
    });
    assert!(
        !cache.is_aged(Push(3)) && cache.is_aged(Push(1)),
        "touched again after a remount"
    );
    machine.remount_with("touch=1s");
    wait_until("after that time it is touched again", PATIENCE, || {
        use_it(&machine, Push(1));
        !cache.is_aged(Push(1))
    });
}

#[test]
fn what_was_pushed_or_fetched_just_now_is_not_touched() {
    let cache = Cache::new();
    let (a, oracle) = (
        Mounted::with_options(&cache.url(), "touch=7d"),
        Oracle::default(),
    );
    push(&a, &oracle, 1..3);
    a.flush();
    let b = Mounted::with_options(&cache.url(), "touch=7d");
    for machine in [&a, &b] {
        oracle.check(machine.path(), "there");
    }
    // One that is due comes after those, and nothing else was touched before it.
    let lacks = Push(3);
    lacks.perform(&b.backing(), Shape::Uuid).unwrap();
    use_it(&b, lacks);
    wait_until("it is put", PATIENCE, || b.counter("reshared") == 1);
    assert_eq!((a.counter("touched"), b.counter("touched")), (0, 0));
}

#[test]
fn what_is_gone_when_it_is_touched_is_put_again() {
    let cache = Cache::new();
    let (mut machine, oracle) = (Mounted::new(&cache.url()), Oracle::default());
    push(&machine, &oracle, 1..3);
    machine.flush();
    machine.remount_with("touch=7d");
    fs::remove_file(cache.object(Push(1))).unwrap();
    use_it(&machine, Push(1));
    wait_until("it is put again", PATIENCE, || {
        machine.counter("reshared") == 1
    });
    assert_eq!(held(&cache.remote).len(), 2);
}

#[test]
fn what_is_used_and_the_remote_lacks_is_shared_again_where_that_is_wanted() {
    let cache = Cache::new();
    let (mut machine, oracle) = (Mounted::new(&cache.url()), Oracle::default());
    push(&machine, &oracle, 1..4);
    machine.flush();
    for n in 1..4 {
        fs::remove_file(cache.object(Push(n))).unwrap();
    }
    machine.remount_with("reshare,ro");
    use_it(&machine, Push(1));
    machine.remount_with("reshare");
    use_it(&machine, Push(2));
    wait_until("it is put again", PATIENCE, || {
        machine.counter("reshared") == 1
    });
    assert_eq!(held(&cache.remote), [Push(2).signature()].into());
    fs::remove_file(cache.object(Push(2))).unwrap();
    use_it(&machine, Push(2));
    use_it(&machine, Push(3));
    wait_until("the next is put again", PATIENCE, || {
        machine.counter("reshared") == 2
    });
    assert_eq!(
        held(&cache.remote),
        [Push(3).signature()].into(),
        "once a mount"
    );
    let second = Mounted::new(&cache.url());
    use_it(&second, Push(3));
}
