//! Becoming another program while descriptors stay.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Descriptors that the next program will have. They go when this is dropped.
#[derive(Debug, Default)]
pub struct Kept(Vec<OwnedFd>);

impl Kept {
    /// The number under which the next program finds a copy of this descriptor.
    pub fn keep(&mut self, fd: impl AsFd) -> io::Result<RawFd> {
        // Unlike all others, it does not close on exec.
        let copy = rustix::io::dup(fd)?;
        let number = copy.as_raw_fd();
        self.0.push(copy);
        Ok(number)
    }

    /// The same of every descriptor of the file at `path` that this process has open.
    pub fn keep_all_of(&mut self, path: &Path) -> io::Result<Vec<RawFd>> {
        let own = Path::new("/proc/self/fd");
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(own)? {
            let name = entry?.file_name();
            let is_it = std::fs::read_link(own.join(&name)).is_ok_and(|target| target == path);
            if let (true, Some(number)) = (is_it, name.to_str().and_then(|name| name.parse().ok()))
            {
                // SAFETY: it is borrowed for the call only; one that was closed meanwhile is an error.
                numbers.push(unsafe { BorrowedFd::borrow_raw(number) });
            }
        }
        numbers.into_iter().map(|fd| self.keep(fd)).collect()
    }
}

/// What [`Kept::keep`] kept in the program before. Each number may be taken once.
pub fn take_over(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: it changes the flags of a descriptor, or says that there is none.
    super::check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by this function's contract nobody in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `fd` a descriptor of what `by` describes. Whoever reads `fd` after that reads the other.
pub fn replace(fd: impl AsFd, by: impl AsFd) -> io::Result<()> {
    let (from, to) = (by.as_fd().as_raw_fd(), fd.as_fd().as_raw_fd());
    // SAFETY: both are open for the call; the number stays with its owner.
    super::check(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }).map(drop)
}

/// Becomes `program`. Blocked signals stay blocked. It returns only if that fails.
pub fn become_program(
    program: &Path,
    args: &[OsString],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> io::Result<Infallible> {
    let text = |text: &OsStr| CString::new(text.as_bytes());
    let path = text(program.as_os_str())?;
    let args = args
        .iter()
        .map(|arg| text(arg))
        .collect::<Result<Vec<_>, _>>()?;
    let pairs = environment.map(|(name, value)| {
        let mut pair = name;
        pair.push("=");
        pair.push(value);
        text(&pair)
    });
    let environment = pairs.collect::<Result<Vec<_>, _>>()?;
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        let ended = std::iter::once(std::ptr::null());
        texts
            .iter()
            .map(|text| text.as_ptr())
            .chain(ended)
            .collect()
    };
    let (args_there, environment_there) = (pointers(&args), pointers(&environment));
    // SAFETY: both lists end with a null pointer, and all that they point to is alive until the call returns.
    unsafe {
        libc::execve(
            path.as_ptr(),
            args_there.as_ptr(),
            environment_there.as_ptr(),
        )
    };
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_replaced_descriptor_is_the_other() {
        let (read, _write) = crate::sys::pipe().unwrap();
        let (other, write) = crate::sys::pipe().unwrap();
        replace(&read, &other).unwrap();
        std::fs::File::from(write).write_all(b"x").unwrap();
        let mut seen = String::new();
        drop(other);
        std::fs::File::from(read).read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "x");
    }

    #[test]
    fn what_is_not_open_cannot_be_taken_over() {
        assert!(take_over(1 << 20).is_err());
        let mut kept = Kept::default();
        let number = kept.keep(std::fs::File::open("/").unwrap()).unwrap();
        std::mem::forget(kept);
        take_over(number).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_cannot_be_become() {
        let error = become_program(Path::new("/nowhere/at/all"), &[], std::iter::empty());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
