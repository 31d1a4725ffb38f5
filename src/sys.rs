//! Every `unsafe` block of the program: thin, safe wrappers over libc calls that the standard
//! library does not offer. No policy here.
#![allow(unsafe_code)]

pub mod backing;
pub mod exec;

// --- daemon, control socket, logging and mounting: what `cli`, `daemon`, `control` and `logging` need ---

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What a C call said: `-1` becomes the error of the moment.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// The effective user of this process.
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether this process has CAP_SYS_ADMIN in effect; taken for granted where /proc does not tell.
pub fn may_administer() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_none_or(|bits| bits & (1 << CAP_SYS_ADMIN) != 0)
}

/// Gives this process mounts of its own, that nobody else sees: as root, or in a user namespace in which the user is who
/// he is, but may mount.
pub fn own_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut namespaces = UnshareFlags::NEWNS;
    if !may_administer() {
        namespaces |= UnshareFlags::NEWUSER;
    }
    // SAFETY: no table of descriptors is unshared.
    unsafe { unshare_unsafe(namespaces) }?;
    if namespaces.contains(UnshareFlags::NEWUSER) {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{0} {0} 1", uid.as_raw()))?;
        std::fs::write("/proc/self/gid_map", format!("{0} {0} 1", gid.as_raw()))?;
    }
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Whether this process can have mounts of its own and mount a FUSE file system on `mountpoint` in them. Tried by a child, since
/// there is no way back: a kernel may let anybody make the namespaces and forbid everything in them.
pub fn may_have_own_mounts(mountpoint: &Path) -> io::Result<()> {
    let child = match fork()? {
        Forked::Parent(child) => child,
        Forked::Child => {
            let tried = own_mounts().and_then(|()| mount_unanswered(mountpoint));
            let code = tried.map_or_else(|err| err.raw_os_error().unwrap_or(libc::EIO), |()| 0);
            // SAFETY: ends this copy of the process at once, without running what is the parent's to run.
            unsafe { libc::_exit(code) }
        }
    };
    match child.wait()?.code() {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        None => Err(io::Error::other("the attempt was killed")),
    }
}

/// Mounts a FUSE file system that nobody answers for. It goes when the process does.
fn mount_unanswered(mountpoint: &Path) -> io::Result<()> {
    use rustix::mount::{MountFlags, mount};
    let device = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount(
        "cachedirfs",
        mountpoint,
        "fuse",
        flags,
        &*CString::new(options)?,
    )?)
}

/// The number of a user by name, from the user database.
pub fn user_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut strings = vec![0; NAME_BUFFER];
    let mut result = std::ptr::null_mut();
    // SAFETY: every pointer is to live memory of the stated size; the name ends in NUL.
    let failed = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            found.as_mut_ptr(),
            strings.as_mut_ptr(),
            strings.len(),
            &mut result,
        )
    };
    if failed != 0 || result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null points at `found`, which the call filled in.
    Some(unsafe { found.assume_init() }.pw_uid)
}

/// The home directory of a user by number, from the user database.
pub fn home_of(uid: u32) -> Option<std::path::PathBuf> {
    let mut found = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut strings = vec![0; NAME_BUFFER];
    let mut result = std::ptr::null_mut();
    // SAFETY: every pointer is to live memory of the stated size.
    let failed = unsafe {
        libc::getpwuid_r(
            uid,
            found.as_mut_ptr(),
            strings.as_mut_ptr(),
            strings.len(),
            &mut result,
        )
    };
    if failed != 0 || result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null points at `found`, which the call filled in, and its texts at `strings`, which are alive.
    let home = unsafe { CStr::from_ptr(found.assume_init().pw_dir) };
    let home = std::ffi::OsStr::from_bytes(home.to_bytes());
    (!home.is_empty()).then(|| home.into())
}

/// The number of a group by name, from the group database.
pub fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::group>::uninit();
    let mut strings = vec![0; NAME_BUFFER];
    let mut result = std::ptr::null_mut();
    // SAFETY: every pointer is to live memory of the stated size; the name ends in NUL.
    let failed = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            found.as_mut_ptr(),
            strings.as_mut_ptr(),
            strings.len(),
            &mut result,
        )
    };
    if failed != 0 || result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null points at `found`, which the call filled in.
    Some(unsafe { found.assume_init() }.gr_gid)
}

/// Room for one record of the user or group database; a group with more members than fit is not found.
const NAME_BUFFER: usize = 64 * 1024;

/// Asks the file system at `path` for its total size in bytes. Unlike `stat`, it is never answered from
/// the kernel's memory: a FUSE mount whose daemon is gone says ENOTCONN.
pub fn file_system_size(path: &Path) -> io::Result<u64> {
    let path = c_path(path)?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL, the buffer is of the right type.
    check(unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the buffer.
    let found = unsafe { found.assume_init() };
    Ok(found.f_blocks.saturating_mul(found.f_frsize))
}

/// Unmounts `path` itself, never what a symlink there points to; `lazy` detaches it from the tree even if it is in use.
pub fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    let path = c_path(path)?;
    let how = if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path ends in NUL.
    check(unsafe { libc::umount2(path.as_ptr(), how | libc::UMOUNT_NOFOLLOW) }).map(drop)
}

/// Who [`fork`] returned to.
#[derive(Debug)]
pub enum Forked {
    /// The process that was there before, with the number of the new one.
    Parent(Child),
    /// The new process.
    Child,
}

/// A process that [`fork`] made.
#[derive(Debug)]
pub struct Child(libc::pid_t);

impl Child {
    /// Waits for its end.
    pub fn wait(&self) -> io::Result<std::process::ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: the pointer is to a live integer.
            match check(unsafe { libc::waitpid(self.0, &mut status, 0) }) {
                Ok(_) => return Ok(std::os::unix::process::ExitStatusExt::from_raw(status)),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }
}

/// Splits the process in two. Refused once there is a second thread: its locks would stay locked in the child.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "cannot fork: more than one thread runs already",
        ));
    }
    // SAFETY: this is the only thread, so the child is a whole copy and may go on like its parent.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Child(pid))),
    }
}

/// Makes this process the leader of a session without a terminal.
pub fn new_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Closes every descriptor above standard error but `keep`, which gets the number 3: what a shell script left open
/// (a lock, a pipe of a CI runner) must not live as long as a daemon.
///
/// To be called before this process itself has opened anything it means to keep.
pub fn close_inherited(keep: OwnedFd) -> io::Result<OwnedFd> {
    const FIRST: libc::c_int = 3;
    if keep.as_raw_fd() != FIRST {
        // SAFETY: both numbers are valid; whatever was 3 was inherited and nobody here owns it.
        check(unsafe { libc::dup3(keep.as_raw_fd(), FIRST, libc::O_CLOEXEC) })?;
        drop(keep);
    } else {
        // Ownership of number 3 moves to the value made below.
        std::mem::forget(keep);
    }
    // SAFETY: nothing above 3 has an owner in this process, by this function's contract. A kernel before 5.9
    // answers ENOSYS: the descriptors stay open, which is untidy and no more.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST + 1, libc::c_uint::MAX, 0) };
    // SAFETY: number 3 is open and nobody else owns it now.
    Ok(unsafe { OwnedFd::from_raw_fd(FIRST) })
}

/// Points standard input, output and error at /dev/null.
pub fn stdio_to_null() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for stdio in 0..=2 {
        // SAFETY: both are valid descriptors; the standard ones are replaced, never closed.
        check(unsafe { libc::dup2(null.as_raw_fd(), stdio) })?;
    }
    Ok(())
}

/// A pipe: what is written to the second can be read from the first. Both close on exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the pointer is to two integers.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the call succeeded, so both are open and ours.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// The signals that ask a daemon to end, taken out of normal delivery and read from a descriptor.
#[derive(Debug)]
pub struct EndSignals(OwnedFd);

impl EndSignals {
    /// Blocks SIGTERM, SIGINT and SIGHUP in this thread and in all that it will start.
    pub fn block() -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the set in before anything else reads it; the signal numbers are valid.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        // SAFETY: `check` lets only a valid, fresh descriptor through.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(fd)?) }))
    }

    /// Delivers them as before again. One that came meanwhile and was not taken arrives now.
    pub fn unblock(self) {
        // SAFETY: the set is filled in before it is used, as in `block`.
        unsafe {
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        }
    }

    /// The next signal that has arrived, by number; `None` when there is none.
    pub fn take(&self) -> Option<u32> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has the size that is passed.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        // SAFETY: a read of a signalfd of that length filled the whole buffer.
        (usize::try_from(got) == Ok(size)).then(|| unsafe { info.assume_init() }.ssi_signo)
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that is readable once [`Event::set`] was called, for ever.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// One that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes numbers only.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the call succeeded, so it is open and ours.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes back that it is set.
    pub fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: the buffer is the eight bytes that an eventfd gives. It fails when it is not set, which is as well.
        unsafe {
            libc::read(
                self.0.as_raw_fd(),
                std::ptr::from_mut(&mut count).cast(),
                size_of::<u64>(),
            )
        };
    }

    /// Sets it.
    pub fn set(&self) {
        let one = 1_u64;
        // SAFETY: the buffer is the eight bytes that an eventfd takes. It only fails when it is set 2^64 times.
        unsafe {
            libc::write(
                self.0.as_raw_fd(),
                std::ptr::from_ref(&one).cast(),
                size_of::<u64>(),
            )
        };
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` is readable or hung up, at most `timeout`; says which are, in their order.
pub fn poll_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let ask = |fd: &BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polled: Vec<_> = fds.iter().map(ask).collect();
    let millis = timeout.map_or(-1, |t| {
        t.as_millis()
            .saturating_add(1)
            .try_into()
            .unwrap_or(libc::c_int::MAX)
    });
    let count = polled.len().try_into().map_err(io::Error::other)?;
    // SAFETY: the pointer is to `count` entries, and every descriptor is borrowed for the call.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), count, millis) }) {
        Ok(_) => Ok(polled.iter().map(|p| p.revents != 0).collect()),
        Err(err) if err.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(err) => Err(err),
    }
}

/// Who is at the other end of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected (or listened).
    pub uid: u32,
    /// Its process; 0 when it lives in a process namespace that we cannot see.
    pub pid: u32,
}

/// Asks the kernel who is at the other end of `socket`.
pub fn peer(socket: &UnixStream) -> io::Result<Peer> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).expect("twelve bytes");
    let into = std::ptr::from_mut(&mut cred).cast();
    // SAFETY: the buffer has the length that is passed.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            into,
            &mut len,
        )
    })?;
    Ok(Peer {
        uid: cred.uid,
        pid: u32::try_from(cred.pid).unwrap_or(0),
    })
}

/// A descriptor of process `pid` that becomes readable when it ends.
pub fn process_end(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd.try_into().map_err(io::Error::other)?)?;
    // SAFETY: the call succeeded, so it is open and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Microseconds of CLOCK_MONOTONIC, as systemd counts them.
pub fn monotonic_micros() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live structure of the right type. Every Linux has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000 + nanos / 1000
}

/// Opens the connection to syslog; every line will carry `ident` and the process number.
pub fn open_syslog(ident: &'static CStr) {
    // SAFETY: openlog keeps the pointer, which is static.
    unsafe { libc::openlog(ident.as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
}

/// Sends a line to syslog.
pub fn syslog(level: log::Level, line: &str) {
    let priority = match level {
        log::Level::Error => libc::LOG_ERR,
        log::Level::Warn => libc::LOG_WARNING,
        log::Level::Info => libc::LOG_INFO,
        log::Level::Debug | log::Level::Trace => libc::LOG_DEBUG,
    };
    let line = CString::new(line.replace('\0', "\\0")).expect("NULs were replaced");
    // SAFETY: the format takes exactly one string, which ends in NUL.
    unsafe { libc::syslog(priority, c"%s".as_ptr(), line.as_ptr()) };
}

/// Has the kernel write the data of a file, and with `wait` waits until it has. Nothing is synced by that, neither the
/// file's length nor its name: fsync(2) afterwards finds little left to do, and many of them share one commit of the journal.
pub fn write_out(file: impl AsFd, wait: bool) -> io::Result<()> {
    let around = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let flags = libc::SYNC_FILE_RANGE_WRITE | if wait { around } else { 0 };
    // SAFETY: takes numbers only; the descriptor is open.
    check(unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_home_of_the_user_database() {
        let database = std::fs::read_to_string("/etc/passwd").unwrap();
        let root = database.lines().find(|line| line.starts_with("root:"));
        let home = root.and_then(|line| line.split(':').nth(5)).unwrap();
        assert_eq!(home_of(0), Some(home.into()));
        assert_eq!(home_of(4_000_000_000), None);
    }
}
