//! An oracle of pushes: what every object must contain follows from its signature alone, so remembering
//! the acknowledged signatures is enough to check bytes and mode of everything.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A push whose outcome is known from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Push(pub(crate) u64);

/// How SCons names what it has not yet pushed: by version, a name beside the entry or a directory of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// 3.1 to 4.0: `XX/SIG.tmp<pid>`, and a chmod after the rename.
    Pid,
    /// 4.5 to 4.10: `XX/SIG.tmp<uuid>`.
    Uuid,
    /// 4.11: a temporary directory in `XX`.
    Directory,
}

impl Push {
    pub(crate) fn signature(self) -> String {
        self.digest().to_hex()[..32].to_owned()
    }

    /// `XX/SIG`.
    pub(crate) fn entry(self) -> PathBuf {
        let signature = self.signature();
        Path::new(&signature[..2].to_uppercase()).join(&signature)
    }

    /// Empty, small, odd, and now and then a few MiB.
    pub(crate) fn content(self) -> Vec<u8> {
        let length = match self.0 % 8 {
            0 => 0,
            1..=4 => 1 + self.0 * 37 % 5000,
            5 | 6 => 65536 + self.0 % 3,
            _ => 256 * 1024 + self.0 * 7919 % (2 << 20),
        };
        let mut content = vec![0; usize::try_from(length).unwrap()];
        blake3::Hasher::new()
            .update(&self.0.to_le_bytes())
            .finalize_xof()
            .fill(&mut content);
        content
    }

    pub(crate) fn mode(self) -> u32 {
        [0o644, 0o755, 0o444, 0o555, 0o600][usize::try_from(self.0 % 5).unwrap()]
    }

    /// Does what SCons does. Once this is `Ok`, the push is acknowledged.
    pub(crate) fn perform(self, cache: &Path, shape: Shape) -> io::Result<()> {
        let entry = cache.join(self.entry());
        let prefix = entry.parent().expect("an entry is in a directory");
        match fs::create_dir(prefix) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let directory = prefix.join(format!("tmpabc{:05}", self.0 % 100_000));
        let temporary = match shape {
            Shape::Pid => entry.with_extension(format!("tmp{}", std::process::id())),
            Shape::Uuid => entry.with_extension("tmp5f0c4d9e8a7b4c6d9e8f0a1b2c3d4e5f"),
            Shape::Directory => {
                fs::DirBuilder::new().mode(0o700).create(&directory)?;
                directory.join(self.signature())
            }
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o666)
            .open(&temporary)?;
        // SCons' sendfile does not come in one piece either.
        for piece in self.content().chunks(100_000) {
            file.write_all(piece)?;
        }
        drop(file);
        fs::set_permissions(&temporary, Permissions::from_mode(self.mode()))?;
        fs::rename(&temporary, &entry)?;
        match shape {
            // SCons ignores errors from here on.
            Shape::Pid => drop(fs::set_permissions(
                &entry,
                Permissions::from_mode(self.mode() | 0o200),
            )),
            Shape::Uuid => {}
            Shape::Directory => drop(fs::remove_dir(&directory)),
        }
        Ok(())
    }

    /// What is wrong with the object as this cache gives it.
    pub(crate) fn fault(self, cache: &Path) -> Option<String> {
        let entry = cache.join(self.entry());
        let read = || {
            Ok::<_, io::Error>((
                fs::metadata(&entry)?.permissions().mode() & 0o777,
                fs::read(&entry)?,
            ))
        };
        match read() {
            Err(e) => Some(format!("{}: {e}", entry.display())),
            Ok((_, content)) if content != self.content() => Some(format!(
                "{}: wrong bytes: {} instead of {}",
                entry.display(),
                content.len(),
                self.content().len()
            )),
            // Whether the owner may write is SCons' business: it adds that bit after the rename.
            Ok((mode, _)) if mode | 0o200 != self.mode() | 0o200 => Some(format!(
                "{}: mode {mode:o} instead of {:o}",
                entry.display(),
                self.mode()
            )),
            Ok(_) => None,
        }
    }

    fn digest(self) -> blake3::Hash {
        blake3::Hasher::new_derive_key("cachedirfs test signature")
            .update(&self.0.to_le_bytes())
            .finalize()
    }
}

/// The pushes whose rename returned.
#[derive(Default)]
pub(crate) struct Oracle {
    acknowledged: Mutex<BTreeSet<Push>>,
}

impl Oracle {
    pub(crate) fn acknowledge(&self, push: Push) {
        self.acknowledged.lock().unwrap().insert(push);
    }

    pub(crate) fn acknowledged(&self) -> Vec<Push> {
        self.acknowledged.lock().unwrap().iter().copied().collect()
    }

    /// Fails with every acknowledged object that this cache lacks or gives wrongly.
    #[track_caller]
    pub(crate) fn check(&self, cache: &Path, what: &str) {
        let acknowledged = self.acknowledged();
        let faults: Vec<_> = acknowledged
            .iter()
            .filter_map(|push| push.fault(cache))
            .collect();
        let shown = faults
            .iter()
            .take(20)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n  ");
        assert!(
            faults.is_empty(),
            "{what}: {} of {} wrong:\n  {shown}",
            faults.len(),
            acknowledged.len()
        );
    }
}
