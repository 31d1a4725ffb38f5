//! Between our values and FUSE's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::fs::Attr;
use crate::fs::setattr::Stamp;

/// The errno that the kernel is told.
pub(super) fn error(errno: crate::fs::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

/// Attributes as FUSE has them.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    let s = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino),
        size: u64::try_from(s.st_size).unwrap_or(0),
        blocks: u64::try_from(s.st_blocks).unwrap_or(0),
        atime: time(s.st_atime, s.st_atime_nsec),
        mtime: time(s.st_mtime, s.st_mtime_nsec),
        ctime: time(s.st_ctime, s.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind()),
        perm: u16::try_from(attr.perm()).unwrap_or(0),
        nlink: u32::try_from(s.st_nlink).unwrap_or(u32::MAX),
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: u32::try_from(s.st_rdev).unwrap_or(0),
        blksize: u32::try_from(s.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}

/// What stands for "no such name": inode number 0.
pub(super) fn absent_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What kind of file; what FUSE does not know is shown as a regular file.
pub(super) fn kind(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as T;
    match kind {
        T::Directory => FileType::Directory,
        T::Symlink => FileType::Symlink,
        T::Fifo => FileType::NamedPipe,
        T::Socket => FileType::Socket,
        T::CharacterDevice => FileType::CharDevice,
        T::BlockDevice => FileType::BlockDevice,
        T::RegularFile | T::Unknown => FileType::RegularFile,
    }
}

/// A time stamp to set.
pub(super) fn stamp(time: TimeOrNow) -> Stamp {
    match time {
        TimeOrNow::Now => Stamp::Now,
        TimeOrNow::SpecificTime(time) => {
            let (seconds, nanos) = since_epoch(time);
            Stamp::At(seconds, nanos)
        }
    }
}

fn time(seconds: impl TryInto<i64>, nanos: impl TryInto<u32>) -> SystemTime {
    let (seconds, nanos) = (
        seconds.try_into().unwrap_or(0),
        nanos.try_into().unwrap_or(0),
    );
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|t| t.checked_add(Duration::from_nanos(nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

fn since_epoch(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_nanos(),
        ),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => (-seconds, 0),
                nanos => (-seconds - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_both_ways() {
        for (seconds, nanos) in [
            (0, 0),
            (1, 5),
            (-1, 0),
            (-1, 500_000_000),
            (-2, 999_999_999),
        ] {
            assert_eq!(since_epoch(time(seconds, nanos)), (seconds, nanos));
        }
    }
}
