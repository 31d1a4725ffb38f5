//! The mount table, as far as it concerns us. Reading it asks nothing of the mounts themselves, so it works on
//! dead ones and never triggers an automount. Only [`is_dead`] asks.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::sys;

/// What our mounts are called in the mount table.
pub const FS_TYPE: &str = "fuse.cachedirfs";

/// The device number of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Device number.
    pub device: Device,
    /// Where.
    pub mountpoint: PathBuf,
    /// Type with subtype.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
    /// Who mounted it, if it is a FUSE file system.
    pub owner: Option<u32>,
}

impl Mounted {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether an automounter mounts on access what is there, or in there.
    pub fn is_automounter(&self) -> bool {
        self.fs_type == "autofs"
    }
}

/// The mount table, in the order in which the mounts were made.
#[derive(Clone, Debug)]
pub struct MountTable(Vec<Mounted>);

impl MountTable {
    /// Reads this process' own.
    pub fn read() -> std::io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Parses the text of /proc/PID/mountinfo. Lines that make no sense are passed over.
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
    }

    /// What one sees at exactly `mountpoint`: the last that was mounted there.
    pub fn at(&self, mountpoint: &Path) -> Option<&Mounted> {
        self.0.iter().rev().find(|m| m.mountpoint == mountpoint)
    }

    /// The mount that `path` is in.
    pub fn containing(&self, path: &Path) -> Option<&Mounted> {
        path.ancestors().find_map(|dir| self.at(dir))
    }

    /// Whether an automounter mounts at `mountpoint`, over a trigger there or in a directory of its own; whatever is mounted
    /// there by now.
    pub fn is_automounted(&self, mountpoint: &Path) -> bool {
        let around = mountpoint.parent().and_then(|dir| self.containing(dir));
        let here = self.0.iter().filter(|m| m.mountpoint == mountpoint);
        here.chain(around).any(Mounted::is_automounter)
    }

    /// All of ours, each mountpoint once.
    pub fn ours(&self) -> impl Iterator<Item = &Mounted> {
        self.0
            .iter()
            .filter(|m| m.is_ours() && self.at(&m.mountpoint) == Some(m))
    }
}

/// Whether the daemon behind the FUSE mount at `mountpoint` is gone. One that lives but hangs is waited for.
pub fn is_dead(mountpoint: &Path) -> bool {
    sys::file_system_size(mountpoint).is_err_and(|err| {
        matches!(
            err.raw_os_error(),
            Some(libc::ENOTCONN | libc::ECONNABORTED)
        )
    })
}

/// `36 35 0:50 / /mnt/c rw,relatime shared:1 - fuse.cachedirfs SOURCE rw,user_id=0,…`: optional fields end with a lone dash.
fn parse_line(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|f| *f == b"-")?;
    let [fs_type, source, options] = *fields.get(dash + 1..dash + 4)?.first_chunk()?;
    Some(Mounted {
        device: device(fields[2])?,
        mountpoint: PathBuf::from(unescape(fields[4])),
        fs_type: unescape(fs_type).to_string_lossy().into_owned(),
        source: unescape(source).to_string_lossy().into_owned(),
        owner: owner(options),
    })
}

fn device(field: &[u8]) -> Option<Device> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some(Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

fn owner(options: &[u8]) -> Option<u32> {
    let options = std::str::from_utf8(options).ok()?;
    options
        .split(',')
        .find_map(|o| o.strip_prefix("user_id=")?.parse().ok())
}

/// The kernel writes blank, tab, newline, backslash and `#` as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail
            .first_chunk::<3>()
            .filter(|_| *first == b'\\')
            .and_then(octal);
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    u8::from_str_radix(std::ffi::OsStr::from_bytes(digits).to_str()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = br"22 27 0:21 / /proc rw,relatime - proc proc rw
30 27 0:40 / /mnt/c rw shared:1 - autofs systemd-1 rw
36 30 0:50 / /mnt/c rw,nosuid shared:1 master:2 - fuse.cachedirfs https://host/a\040b rw,user_id=0,group_id=0
37 27 0:51 / /mnt/a\040b\134c rw - fuse.cachedirfs file:///r rw,user_id=1000,group_id=1000
38 27 0:52 / /mnt/over rw - fuse.cachedirfs file:///r rw,user_id=0
39 38 0:53 / /mnt/over rw - tmpfs tmpfs rw
41 27 0:54 / /mnt/auto rw - autofs /etc/auto.c rw,indirect
nonsense
40 27 x:y / /bad rw - fuse a b
";

    #[test]
    fn the_topmost_mount_counts_and_escapes_are_taken_out() {
        let table = MountTable::parse(TABLE);
        let c = table.at(Path::new("/mnt/c")).unwrap();
        assert!(c.is_ours());
        assert_eq!(
            (c.device.to_string().as_str(), c.source.as_str(), c.owner),
            ("0:50", "https://host/a b", Some(0))
        );
        assert_eq!(table.at(Path::new("/mnt/over")).unwrap().fs_type, "tmpfs");
        assert!(table.at(Path::new("/bad")).is_none());
        assert!(
            table.is_automounted(Path::new("/mnt/c"))
                && table.is_automounted(Path::new("/mnt/auto/c"))
        );
        for other in ["/mnt/over", "/mnt/c/d"] {
            assert!(!table.is_automounted(Path::new(other)), "{other}");
        }
        let inside = table.containing(Path::new("/mnt/a b\\c/XX/y")).unwrap();
        assert_eq!(inside.owner, Some(1000));
        let ours: Vec<_> = table.ours().map(|m| m.device.minor).collect();
        assert_eq!(ours, [50, 51]);
    }

    #[test]
    fn a_line_that_is_cut_or_flipped_is_another_mount_or_none() {
        let line = br"36 30 0:50 / /m\040c rw,nosuid - fuse.cachedirfs file:///r rw,user_id=0";
        let whole = parse_line(line).unwrap();
        for len in 0..line.len() {
            if let Some(found) = parse_line(&line[..len]) {
                assert_eq!(found.mountpoint, whole.mountpoint, "{len}");
            }
        }
        for bit in 0..line.len() * 8 {
            let mut flipped = line.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Parsed or not: no panic, and never a device that is not said.
            if let Some(found) = parse_line(&flipped) {
                let text = String::from_utf8_lossy(&flipped);
                assert!(text.contains(&format!(":{}", found.device.minor)), "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn names_come_back_from_the_kernels_way_of_writing_them(name in prop::collection::vec(1u8.., 1..20)) {
            let escaped: Vec<u8> = name.iter().flat_map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                b => vec![*b],
            }).collect();
            let unescaped = unescape(&escaped);
            prop_assert_eq!(unescaped.as_bytes(), &name[..]);
        }

        #[test]
        fn any_bytes_are_a_mount_table(text: Vec<u8>, line in r"[0-9 :/\\-]{0,80}") {
            MountTable::parse(&text);
            MountTable::parse(line.as_bytes());
        }
    }
}
