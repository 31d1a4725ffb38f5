//! A disk whose power can be cut: an ext4 file system in a file, mounted. A copy of the file has exactly what had
//! reached the disk, and mounting the copy is what the next boot does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted image, unmounted and removed when dropped. Each wants a name of its own: mount(8) would take the loop device
/// of another that had the same name, if it is not gone yet, with what that one had in memory.
pub(crate) struct Image {
    file: PathBuf,
    mount_point: PathBuf,
}

impl Image {
    /// A new file system of so many MiB. `at` names the image file; it is mounted beside it.
    pub(crate) fn new(at: &Path, mib: u64) -> Self {
        Self::format(at, mib);
        Self::mount(at)
    }

    /// Makes the image, and does not mount it.
    pub(crate) fn format(at: &Path, mib: u64) {
        File::create(at).unwrap().set_len(mib << 20).unwrap();
        let image = at.to_str().unwrap();
        let lazily = "lazy_itable_init=1,lazy_journal_init=1";
        let args = ["-q", "-F", "-m", "0", "-J", "size=4", "-E", lazily, image];
        run("mkfs.ext4", &args);
    }

    /// Mounts an image; what its journal holds is replayed.
    pub(crate) fn mount(at: &Path) -> Self {
        let mount_point = at.with_extension("mnt");
        fs::create_dir_all(&mount_point).unwrap();
        let (image, point) = (at.to_str().unwrap(), mount_point.to_str().unwrap());
        run("mount", &["-o", "loop", image, point]);
        Self {
            file: at.to_owned(),
            mount_point,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Cuts the power and boots: mounts a copy of what has reached the disk. A power cut is one moment: a copy during
    /// which the kernel wrote is of none, and is made again. Whoever writes without a pause has to be held meanwhile.
    pub(crate) fn power_cut(&self, copy: &Path) -> Self {
        let written = || self.file.metadata().unwrap().modified().unwrap();
        let copied_at_rest = || {
            let before = written();
            fs::copy(&self.file, copy).unwrap();
            written() == before
        };
        assert!((0..100).any(|_| copied_at_rest()), "it never rests");
        Self::mount(copy)
    }

    /// What other programs do all the time: their fsync brings our names to the disk, and not our bytes.
    pub(crate) fn others_sync(&self) {
        let other = File::create(self.mount_point.join("other")).unwrap();
        std::os::unix::fs::FileExt::write_at(&other, b"other", 0).unwrap();
        other.sync_all().unwrap();
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let unmount = |lazily: &[&str]| {
            let mut command = Command::new("umount");
            let output = command.args(lazily).arg(&self.mount_point).output();
            output.is_ok_and(|output| output.status.success())
        };
        // For a moment it may be busy: a test that starts a program hands it our files until it executes.
        let free = (0..200).any(|_| {
            let free = unmount(&[]);
            if !free {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            free
        });
        if !free {
            unmount(&["-l"]);
        }
        // What stays is in the test's own directory.
        let _ = fs::remove_file(&self.file);
    }
}

/// Makes a backing directory one that another boot wrote: power was cut in between.
pub(crate) fn in_another_boot(backing: &Path) {
    let file = backing.join(".cachedirfs/boot");
    if let Ok(text) = fs::read_to_string(&file) {
        let (_, root) = text.split_once(' ').expect("boot id and inode");
        fs::write(
            &file,
            format!("11111111-2222-3333-4444-555555555555 {root}"),
        )
        .unwrap();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}, run: scripts/setup crash"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}
