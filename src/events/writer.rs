//! Writing the event log: the queue, the loop that empties it, and the file with its rotation.
//!
//! Whoever has an event puts it into a bounded queue and never waits. One loop takes out what there is, and writes it at
//! once. When the file cannot be written, what was to go there is lost, which is counted, and said in the log once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select_biased};
use rustix::fs::FlockOperation;
use rustix::process::geteuid;

use crate::clock::Clock;
use crate::stats::event::Event;
use crate::stats::{Snapshot, Stats};

use super::reader::numbered;
use super::record::{
    BEGIN, CLOSED, CONTINUED, DROPPED, END, Moment, OPENED, REMOTE, Record, SESSION, Session,
    shortened,
};

/// Records that may wait to be written; more are dropped. Each takes less than 400 bytes, and its reason.
const QUEUE: usize = 16 * 1024;
/// Bytes that are written at once, unless a single record is longer.
const BATCH: usize = 64 * 1024;
/// How often it is seen whether somebody moved the file away.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time between two writes, unless there is more than is written at once.
const PAUSE: Duration = Duration::from_millis(20);
/// Permissions of the file, from which the umask takes.
const MODE: u32 = 0o640;

/// Why there can be no event log.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the event log {}: {why}", file.display())]
pub struct EventsError {
    file: PathBuf,
    why: String,
}

/// Where the log goes and how large it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The file.
    pub file: PathBuf,
    /// Bytes of one file.
    pub size: u64,
    /// Files that are kept besides.
    pub files: u64,
}

/// The event log of one mount.
pub struct Events {
    queue: (Sender<Record>, Receiver<Record>),
    orders: (Sender<Order>, Receiver<Order>),
    /// Records that are missing and of which the log does not say so yet.
    missing: AtomicU64,
    clock: Arc<dyn Clock>,
    stats: Arc<Stats>,
    file: Mutex<LogFile>,
}

enum Order {
    Reopen,
    /// Write what waits, and say so.
    Flush(Sender<()>),
    End(Box<Record>),
}

impl Events {
    /// Opens the log of a mount. It may not be in any of the directories `outside`: what is written there makes events.
    pub fn open(
        options: Options,
        session: Session,
        umask: u32,
        outside: &[&Path],
        clock: Arc<dyn Clock>,
        stats: Arc<Stats>,
    ) -> Result<Self, EventsError> {
        let path = options.file.clone();
        let cannot = |why: String| EventsError { file: path, why };
        if let Some(dir) = outside.iter().find(|dir| is_within(&options.file, dir)) {
            let why = format!("it is in {}; name a file outside of it", dir.display());
            return Err(cannot(why));
        }
        let mut file = LogFile {
            mode: MODE & !umask,
            options,
            session,
            open: None,
            looked: Moment::at(clock.wall()),
            begun: false,
            failing: false,
        };
        file.reopen().map_err(|e| cannot(e.to_string()))?;
        Ok(Self {
            queue: bounded(QUEUE),
            orders: bounded(2),
            missing: AtomicU64::new(0),
            clock,
            stats,
            file: Mutex::new(file),
        })
    }

    /// Something happened to an entry.
    pub fn note(&self, event: &Event<'_>) {
        self.put(Record::of(event, self.now()));
    }

    /// A remote is not asked any more.
    pub fn remote_opened(&self, name: &str, ailment: &str, why: &str) {
        self.put(Record {
            remote: Some(name.to_owned()),
            why: Some(shortened(&format_args!("{ailment}: {why}"))),
            ..Record::new(self.now(), REMOTE, OPENED)
        });
    }

    /// It answers again.
    pub fn remote_closed(&self, name: &str, after: Duration) {
        self.put(Record {
            remote: Some(name.to_owned()),
            seconds: Some(Duration::from_millis(
                u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            )),
            ..Record::new(self.now(), REMOTE, CLOSED)
        });
    }

    /// Has the loop open the file anew: somebody moved it away.
    pub fn reopen(&self) {
        // If it is full, it is going to be done.
        self.orders.0.try_send(Order::Reopen).ok();
    }

    /// Has the loop write what waits, and waits for that, but no longer than so.
    pub fn flush(&self, patience: Duration) {
        let (done, is_done) = bounded(1);
        if self.orders.0.try_send(Order::Flush(done)).is_ok() {
            is_done.recv_timeout(patience).ok();
        }
    }

    /// Has the loop write what waits, and how the mount ended, and end. What happens from now on is lost.
    pub fn end(&self, summary: String, counters: Snapshot) {
        let last = Record {
            summary: Some(summary),
            counters: Some(Box::new(counters)),
            ..Record::new(self.now(), SESSION, END)
        };
        let sent = self.orders.0.try_send(Order::End(Box::new(last)));
        if sent.is_err() {
            log::debug!("the event log is left without its end");
        }
    }

    /// Writes what comes until [`Events::end`].
    pub fn run(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if !file.begun {
            self.write(Vec::new(), 0, &mut file);
        }
        loop {
            select_biased! {
                recv(self.orders.1) -> order => match order {
                    Ok(Order::Reopen) => {
                        file.open = None;
                        self.write(Vec::new(), 0, &mut file);
                    }
                    Ok(Order::Flush(done)) => {
                        self.write_all(&mut file);
                        done.try_send(()).ok();
                    }
                    Ok(Order::End(last)) => {
                        self.write_all(&mut file);
                        self.write(last.line(), 1, &mut file);
                        return;
                    }
                    Err(_) => return,
                },
                recv(self.queue.1) -> next => match next {
                    Ok(next) => {
                        self.write_batch(&next, &mut file);
                        // Whoever has an event meanwhile does not have to wake us.
                        if self.queue.1.is_empty() {
                            self.clock.sleep(PAUSE);
                        }
                    }
                    Err(_) => return,
                },
            }
        }
    }

    fn write_all(&self, file: &mut LogFile) {
        while let Ok(next) = self.queue.1.try_recv() {
            self.write_batch(&next, file);
        }
    }

    fn put(&self, record: Record) {
        match self.queue.0.try_send(record) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost(1),
        }
    }

    fn lost(&self, records: u64) {
        self.stats.events_dropped.add(records);
        self.missing.fetch_add(records, Ordering::Relaxed);
    }

    /// Writes a record, and what else waits.
    fn write_batch(&self, first: &Record, file: &mut LogFile) {
        let (mut lines, mut records) = (first.line(), 1);
        let most = usize::try_from(file.options.size / 2)
            .unwrap_or(BATCH)
            .min(BATCH);
        while lines.len() < most {
            let Ok(next) = self.queue.1.try_recv() else {
                break;
            };
            lines.append(&mut next.line());
            records += 1;
        }
        self.write(lines, records, file);
    }

    fn write(&self, lines: Vec<u8>, records: u64, file: &mut LogFile) {
        let missing = self.missing.swap(0, Ordering::Relaxed);
        let mut text = Vec::new();
        if missing > 0 {
            let gap = Record {
                count: Some(missing),
                ..Record::new(self.now(), DROPPED, DROPPED)
            };
            text = gap.line();
        }
        text.extend(lines);
        let path = file.options.file.display().to_string();
        match file.write(&text, self.now()) {
            Ok(()) if file.failing => {
                file.failing = false;
                log::info!("the event log {path} is written again; {missing} events are missing");
            }
            Ok(()) => {}
            Err(error) => {
                self.missing.fetch_add(missing, Ordering::Relaxed);
                self.lost(records);
                if !file.failing {
                    log::warn!(
                        "cannot write the event log {path}, events are dropped until it can be: {error}"
                    );
                }
                file.failing = true;
            }
        }
    }

    fn now(&self) -> Moment {
        Moment::at(self.clock.wall())
    }
}

/// The file, and what it needs to be begun anew.
struct LogFile {
    options: Options,
    mode: u32,
    session: Session,
    open: Option<Open>,
    /// When it was seen that the file is where it was opened.
    looked: Moment,
    /// The beginning of the session is written.
    begun: bool,
    failing: bool,
}

struct Open {
    file: File,
    len: u64,
    /// It ends in the middle of a line, of which more cannot be made.
    torn: bool,
    /// Nothing of this session is in it yet.
    fresh: bool,
}

impl LogFile {
    /// Appends whole lines, after a rotation if they would make it too large.
    fn write(&mut self, lines: &[u8], now: Moment) -> io::Result<()> {
        let is_due = self.looked.until(now) >= LOOK_AGAIN;
        if is_due && self.open.is_some() {
            self.looked = now;
        }
        if self.open.is_none() || is_due && !self.is_in_place() {
            self.reopen()?;
        }
        let (len, size) = (self.len(), self.options.size);
        if len > 0 && len + lines.len() as u64 > size {
            self.rotate()?;
        }
        let (begun, session) = (self.begun, &self.session);
        let Some(open) = &mut self.open else {
            return Err(ErrorKind::NotFound.into());
        };
        let mut text = Vec::new();
        if open.torn {
            text.push(b'\n');
        }
        if open.fresh {
            let head = Record {
                session: Some(Box::new(session.clone())),
                ..Record::new(now, SESSION, if begun { CONTINUED } else { BEGIN })
            };
            text.append(&mut head.line());
        }
        text.extend(lines);
        match append(&open.file, &text) {
            Ok(()) => {
                open.len += text.len() as u64;
                (open.torn, open.fresh, self.begun) = (false, false, true);
                Ok(())
            }
            Err((written, error)) => {
                open.len += written as u64;
                open.torn |= written > 0;
                Err(error)
            }
        }
    }

    /// How long it is; somebody may have cut it.
    fn len(&self) -> u64 {
        let open = self.open.as_ref();
        open.map_or(0, |open| {
            open.file.metadata().map_or(open.len, |meta| meta.len())
        })
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.open = None;
        self.open = Some(open(&self.options.file, self.mode)?);
        Ok(())
    }

    /// Whether nobody moved it away.
    fn is_in_place(&self) -> bool {
        let ours = self.open.as_ref().map(|open| open.file.metadata());
        let there = fs::metadata(&self.options.file);
        ours.is_some_and(|ours| identity(&ours) == identity(&there))
    }

    /// Moves each file to its next name and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        if !self.is_in_place() {
            return self.reopen();
        }
        let path = &self.options.file;
        let kept = self.options.files;
        for number in (0..kept).rev() {
            match fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if kept == 0 {
            fs::remove_file(path)?;
        }
        self.reopen()
    }
}

fn identity(meta: &io::Result<fs::Metadata>) -> Option<(u64, u64)> {
    meta.as_ref().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Writes all, or says how much of it.
fn append(mut file: &File, text: &[u8]) -> Result<(), (usize, Error)> {
    let mut written = 0;
    while written < text.len() {
        match file.write(&text[written..]) {
            Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Opens the file to append to it, and keeps other mounts away. In a directory where everybody may make files, only a
/// file of our own is taken, and no link followed.
fn open(path: &Path, mode: u32) -> io::Result<Open> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    let is_shared = fs::metadata(dir)?.mode() & 0o002 != 0;
    let follow = if is_shared { libc::O_NOFOLLOW } else { 0 };
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(mode)
        // A pipe that nobody reads would keep us.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | follow)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => refused("it is a link in a directory where everybody may write"),
            _ => error,
        })?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(refused("it is no regular file"));
    }
    if is_shared && (meta.uid() != geteuid().as_raw() || meta.nlink() > 1) {
        return Err(refused(
            "it is somebody else's file in a directory where everybody may write",
        ));
    }
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| refused("another mount writes it; name another file"))?;
    let mut last = [b'\n'];
    if meta.len() > 0 {
        file.read_exact_at(&mut last, meta.len() - 1)?;
    }
    Ok(Open {
        file,
        len: meta.len(),
        torn: last != [b'\n'],
        fresh: true,
    })
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, why)
}

/// Whether a file is, or would be, below a directory.
fn is_within(file: &Path, dir: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let file = match (file.canonicalize(), file.parent(), file.file_name()) {
        (Ok(file), ..) => file,
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        _ => file.to_owned(),
    };
    file.starts_with(real(dir))
}

#[cfg(test)]
mod tests;
