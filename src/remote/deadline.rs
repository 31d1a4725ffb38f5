//! Deadlines over any remote, also one whose calls cannot be interrupted.
//!
//! A read from a directory on a dead NFS server sits in a system call until the server is back; no timer ends it.
//! So this decorator does not end anything: it keeps account of the calls under way, and [`Deadline::overdue`]
//! names those that take too long. Somebody asks it now and then and tells the breaker, which then keeps
//! everybody else away. What a late call brings in the end is used as if it had been in time.
//!
//! Time that the reader of an object spends between two reads is not the remote's and never counts.
//!
//! This module knows no kind of remote, and calls nobody while its lock is held.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::remote::Trouble;
use crate::remote::{Ailment, Complaint, Content, Listed, Object, Put, Remote, RemoteError};
use crate::signature::{Meta, Signature};

/// How long an upload may take besides the time that its bytes take at the lowest speed: it is compressed,
/// compared, and synced by the other side.
const UPLOAD_GRACE: Duration = Duration::from_secs(60);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineOptions {
    /// Until a lookup is answered: an object begins to come, or there is none.
    pub first_byte: Duration,
    /// One read of an object's content.
    pub stall: Duration,
    /// A whole call with its content, without the time of whoever reads that.
    pub whole: Duration,
    /// Bytes a second that an upload may be slow; 0 for any.
    pub min_speed: u64,
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not answered yet; it should be within this time.
    Asked(Duration),
    /// The content is being read.
    Reading,
    /// The content waits for us.
    Ours,
}

/// A call under way. Time is passed in.
#[derive(Debug)]
struct Call {
    operation: &'static str,
    about: Option<Signature>,
    phase: Phase,
    /// When the phase began.
    since: Duration,
    /// What the remote took in earlier phases.
    before: Duration,
    reported: bool,
}

impl Call {
    fn enter(&mut self, phase: Phase, now: Duration) {
        if self.phase != Phase::Ours {
            self.before += now.saturating_sub(self.since);
        }
        (self.phase, self.since) = (phase, now);
    }

    /// What is late about it.
    fn late(&self, now: Duration, options: &DeadlineOptions) -> Option<String> {
        let takes = now.saturating_sub(self.since);
        let operation = self.operation;
        match self.phase {
            Phase::Ours => None,
            Phase::Asked(limit) if takes >= limit => {
                Some(format!("{operation}: no answer for {} s", takes.as_secs()))
            }
            Phase::Reading if takes >= options.stall => {
                Some(format!("{operation}: no byte for {} s", takes.as_secs()))
            }
            _ if self.before + takes >= options.whole => Some(format!(
                "{operation}: not done after {} s",
                options.whole.as_secs()
            )),
            _ => None,
        }
    }
}

/// A remote whose calls are watched.
pub struct Deadline {
    inner: Arc<dyn Remote>,
    calls: Arc<Calls>,
}

struct Calls {
    clock: Arc<dyn Clock>,
    options: DeadlineOptions,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    calls: HashMap<u64, Call>,
    next: u64,
}

impl Deadline {
    /// `inner`, watched.
    pub fn new(inner: Arc<dyn Remote>, clock: Arc<dyn Clock>, options: DeadlineOptions) -> Self {
        let calls = Calls {
            clock,
            options,
            table: Mutex::default(),
        };
        Self {
            inner,
            calls: Arc::new(calls),
        }
    }

    /// The calls that became overdue since this was asked last.
    pub fn overdue(&self) -> Vec<Complaint> {
        let now = self.calls.clock.now();
        let mut table = self.calls.table();
        let waiting = table.calls.values_mut().filter(|call| !call.reported);
        let late = waiting.filter_map(|call| {
            let reason = call.late(now, &self.calls.options)?;
            call.reported = true;
            Some(Complaint {
                ailment: Ailment::Hangs,
                about: call.about,
                reason,
            })
        });
        late.collect()
    }

    fn begin(&self, operation: &'static str, about: Option<Signature>, limit: Duration) -> Entry {
        let now = self.calls.clock.now();
        let mut table = self.calls.table();
        let number = table.next;
        table.next += 1;
        let call = Call {
            operation,
            about,
            phase: Phase::Asked(limit),
            since: now,
            before: Duration::ZERO,
            reported: false,
        };
        table.calls.insert(number, call);
        drop(table);
        Entry {
            calls: Arc::clone(&self.calls),
            number,
        }
    }

    fn asked<T>(&self, operation: &'static str, limit: Duration, call: impl FnOnce() -> T) -> T {
        let _entry = self.begin(operation, None, limit);
        call()
    }
}

impl Calls {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call's line in the table.
struct Entry {
    calls: Arc<Calls>,
    number: u64,
}

impl Entry {
    fn enter(&self, phase: Phase) {
        let now = self.calls.clock.now();
        if let Some(call) = self.calls.table().calls.get_mut(&self.number) {
            call.enter(phase, now);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.calls.table().calls.remove(&self.number);
    }
}

impl Remote for Deadline {
    fn get(&self, sig: &Signature) -> Result<Option<Object>, RemoteError> {
        let entry = self.begin("get", Some(*sig), self.calls.options.first_byte);
        let Some(object) = self.inner.get(sig)? else {
            return Ok(None);
        };
        entry.enter(Phase::Ours);
        let content = Box::new(Timed {
            content: object.content,
            entry,
        });
        Ok(Some(Object { content, ..object }))
    }

    fn put(&self, sig: &Signature, meta: Meta, content: &Content) -> Result<Put, RemoteError> {
        let bytes = content.len().checked_div(self.calls.options.min_speed);
        let limit = match bytes
            .and_then(|seconds| Duration::from_secs(seconds).checked_add(UPLOAD_GRACE))
        {
            Some(limit) => limit.min(self.calls.options.whole),
            None => self.calls.options.whole,
        };
        self.asked("put", limit, || self.inner.put(sig, meta, content))
    }

    fn exists(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let limit = self.calls.options.first_byte;
        self.asked("exists", limit, || self.inner.exists(sig))
    }

    fn delete(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let limit = self.calls.options.whole;
        self.asked("delete", limit, || self.inner.delete(sig))
    }

    fn list(&self, each: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
        let limit = self.calls.options.whole;
        self.asked("list", limit, || self.inner.list(each))
    }

    fn touch(&self, sig: &Signature) -> Result<bool, RemoteError> {
        let limit = self.calls.options.whole;
        self.asked("touch", limit, || self.inner.touch(sig))
    }

    fn delete_listed(&self, listed: &Listed) -> Result<bool, RemoteError> {
        let limit = self.calls.options.whole;
        self.asked("delete", limit, || self.inner.delete_listed(listed))
    }

    fn quarantine(&self, sig: &Signature) -> Result<Option<String>, RemoteError> {
        let limit = self.calls.options.whole;
        self.asked("quarantine", limit, || self.inner.quarantine(sig))
    }

    fn prepare(&self) {
        self.inner.prepare();
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn trouble(&self) -> Option<Trouble> {
        self.inner.trouble()
    }

    fn report(&self, complaint: Complaint) {
        self.inner.report(complaint);
    }
}

/// The content of an object, whose reads are watched.
struct Timed {
    content: Box<dyn Read + Send>,
    entry: Entry,
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.entry.enter(Phase::Reading);
        let read = self.content.read(buf);
        self.entry.enter(Phase::Ours);
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::object::Arrived;
    use crate::remote::scripted::sig;

    const SECOND: Duration = Duration::from_secs(1);

    const OPTIONS: DeadlineOptions = DeadlineOptions {
        first_byte: Duration::from_secs(3),
        stall: Duration::from_secs(5),
        whole: Duration::from_secs(60),
        min_speed: 100,
    };

    /// Calls that take as long as the test says, and asks from within what is overdue meanwhile.
    struct Late {
        clock: Arc<ManualClock>,
        takes: Duration,
        seen: Mutex<Option<Arc<Deadline>>>,
        overdue: Mutex<Vec<Complaint>>,
    }

    impl Late {
        fn pass(&self) {
            self.clock.advance(self.takes);
            let deadline = self.seen.lock().unwrap().clone().expect("set by the test");
            self.overdue.lock().unwrap().extend(deadline.overdue());
        }

        fn taken(&self) -> Vec<String> {
            let complaints = std::mem::take(&mut *self.overdue.lock().unwrap());
            complaints.into_iter().map(|c| c.reason).collect()
        }
    }

    impl Remote for Late {
        fn get(&self, _: &Signature) -> Result<Option<Object>, RemoteError> {
            self.pass();
            Ok(None)
        }

        fn put(&self, _: &Signature, _: Meta, _: &Content) -> Result<Put, RemoteError> {
            self.pass();
            Ok(Put::Stored)
        }

        fn exists(&self, _: &Signature) -> Result<bool, RemoteError> {
            self.pass();
            Ok(true)
        }

        fn delete(&self, _: &Signature) -> Result<bool, RemoteError> {
            Ok(false)
        }

        fn list(&self, _: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
            Ok(())
        }

        fn describe(&self) -> String {
            "late:".to_owned()
        }
    }

    fn late(takes: Duration) -> (Arc<Deadline>, Arc<Late>) {
        let clock = Arc::new(ManualClock::default());
        let late = Arc::new(Late {
            clock: clock.clone(),
            takes,
            seen: Mutex::default(),
            overdue: Mutex::default(),
        });
        let deadline = Arc::new(Deadline::new(late.clone(), clock, OPTIONS));
        *late.seen.lock().unwrap() = Some(deadline.clone());
        (deadline, late)
    }

    #[test]
    fn a_lookup_that_is_not_answered_is_named_while_it_is_under_way_and_its_answer_is_used() {
        let (deadline, late) = late(SECOND * 4);
        assert!(deadline.exists(&sig()).unwrap());
        assert_eq!(late.taken(), ["exists: no answer for 4 s"]);
        assert!(deadline.get(&sig()).unwrap().is_none());
        assert_eq!(late.taken(), ["get: no answer for 4 s"]);
        assert!(
            deadline.overdue().is_empty(),
            "nothing is under way any more"
        );
    }

    #[test]
    fn an_upload_may_take_the_time_that_its_bytes_take() {
        let (deadline, late) = late(SECOND * 50);
        let put = |bytes| deadline.put(&sig(), Meta::Symlink, &Content::Bytes(vec![0; bytes]));
        put(1000).unwrap();
        assert!(late.taken().is_empty());
        late.clock.advance(SECOND);
        let (deadline, late) = super::tests::late(SECOND * 61);
        deadline
            .put(&sig(), Meta::Symlink, &Content::Bytes(vec![0; 1000]))
            .unwrap();
        assert_eq!(late.taken().len(), 1);
    }

    /// A content that comes at a byte a read.
    struct Trickle;

    impl Read for Trickle {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            buf[0] = 1;
            Ok(1)
        }
    }

    struct Holds;

    impl Remote for Holds {
        fn get(&self, _: &Signature) -> Result<Option<Object>, RemoteError> {
            Ok(Some(Object {
                hash: None,
                meta: Meta::file(0o644),
                len: None,
                content: Box::new(Trickle),
                arrived: Arrived::default(),
            }))
        }

        fn put(&self, _: &Signature, _: Meta, _: &Content) -> Result<Put, RemoteError> {
            Ok(Put::Stored)
        }

        fn exists(&self, _: &Signature) -> Result<bool, RemoteError> {
            Ok(true)
        }

        fn delete(&self, _: &Signature) -> Result<bool, RemoteError> {
            Ok(true)
        }

        fn list(&self, _: &mut dyn FnMut(Listed)) -> Result<(), RemoteError> {
            Ok(())
        }

        fn describe(&self) -> String {
            "holds:".to_owned()
        }
    }

    #[test]
    fn what_we_do_between_two_reads_does_not_count() {
        let clock = Arc::new(ManualClock::default());
        let deadline = Deadline::new(Arc::new(Holds), clock.clone(), OPTIONS);
        let mut object = deadline.get(&sig()).unwrap().unwrap();
        for _ in 0..10 {
            clock.advance(SECOND * 1000);
            assert!(deadline.overdue().is_empty());
            object.content.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn a_read_that_does_not_return_is_named_once_and_the_sum_of_all_is_limited() {
        let mut call = Call {
            operation: "get",
            about: None,
            phase: Phase::Asked(OPTIONS.first_byte),
            since: Duration::ZERO,
            before: Duration::ZERO,
            reported: false,
        };
        let mut now = SECOND;
        for _ in 0..19 {
            call.enter(Phase::Ours, now);
            now += SECOND * 100;
            assert_eq!(call.late(now, &OPTIONS), None);
            call.enter(Phase::Reading, now);
            now += SECOND * 3;
            assert_eq!(call.late(now, &OPTIONS), None, "{now:?}");
        }
        now += SECOND * 2;
        assert_eq!(
            call.late(now, &OPTIONS).unwrap(),
            "get: no byte for 5 s",
            "the stall is what is said first"
        );
        call.enter(Phase::Ours, now);
        call.enter(Phase::Reading, now);
        assert_eq!(
            call.late(now + SECOND, &OPTIONS).unwrap(),
            "get: not done after 60 s"
        );
    }
}
