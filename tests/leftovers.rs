//! Leftovers of interrupted pushes, on a machine without a kernel whose clock the test moves.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use cachedirfs::clock::Clock;
use cachedirfs::fs::Kernel;

use crate::support::rig::Rig;

const SIG: &str = "ab112233445566778899aabbccddeeff";
const HOUR: Duration = Duration::from_secs(3600);

/// Makes a file and everything above it, looking old to whoever goes by the time of its content.
fn leave(backing: &Path, path: &str) {
    let path = backing.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

/// Moves the clock to so long after the present, at which the files are made.
fn move_on(rig: &Rig, time: Duration) {
    let to = SystemTime::now() + time;
    rig.clock
        .advance(to.duration_since(rig.clock.wall()).unwrap());
}

#[test]
fn leftovers_of_interrupted_pushes_go_after_a_day_and_unknown_files_never() {
    let leftovers = [
        format!("AB/{SIG}.tmp4711"),
        format!("AB/{SIG}.tmp5f0c4d9e8a7b4c6d9e8f0a1b2c3d4e5f"),
        format!("AB/tmpabc_1234/{SIG}"),
    ];
    let others = [
        format!("AB/{SIG}"),
        format!("AB/{SIG}.tmp.bak"),
        "AB/notes.txt".into(),
        "AB/tmpabc_5678/notes.txt".into(),
        format!("AB/tmpabc_9abc/{SIG}"),
        "AB/tmpabc_9abc/notes.txt".into(),
        format!("AB/other/{SIG}.tmp1"),
        format!("{SIG}.tmp1"),
        format!("scratch/{SIG}.tmp1"),
        format!("tmpabc_1234/{SIG}"),
    ];
    let rig = Rig::prepared(|backing| {
        for path in leftovers.iter().chain(&others) {
            leave(backing, path);
        }
        fs::create_dir(backing.join("AB/tmpempty_00")).unwrap();
    });
    let there = |path: &String| rig.backing().join(path).exists();

    move_on(&rig, 23 * HOUR);
    assert_eq!(rig.fs.collect_leftovers(), 0);
    move_on(&rig, 25 * HOUR);
    // Three files and two directories.
    assert_eq!(rig.fs.collect_leftovers(), 5);
    assert!(!leftovers.iter().any(there));
    assert!(!rig.backing().join("AB/tmpabc_1234").exists());
    assert!(!rig.backing().join("AB/tmpempty_00").exists());
    assert!(others.iter().all(there));
    assert_eq!(rig.fs.collect_leftovers(), 0);
    assert_eq!(rig.stats.snapshot().leftovers, 5);
}

#[test]
fn a_leftover_that_somebody_has_open_stays_and_the_kernel_hears_of_each_that_goes() {
    struct Listens(Arc<Mutex<Vec<String>>>);
    impl Kernel for Listens {
        fn forget_name(&self, _: u64, name: &OsStr) {
            self.0.lock().unwrap().push(name.to_str().unwrap().into());
        }
    }
    let rig = Rig::new();
    rig.lookup_path("AB").unwrap();
    let (open, known) = (format!("AB/{SIG}.tmp1"), format!("AB/{SIG}.tmp2"));
    let (_, handle) = rig.create(&open, 0o644, libc::O_WRONLY).unwrap();
    rig.write(&known, 0o644, b"half").unwrap();
    let heard = Arc::new(Mutex::default());
    rig.fs.set_kernel(Box::new(Listens(Arc::clone(&heard))));

    move_on(&rig, 25 * HOUR);
    assert_eq!(rig.fs.collect_leftovers(), 1);
    assert!(rig.backing().join(&open).exists() && !rig.backing().join(&known).exists());
    assert!(heard.lock().unwrap().contains(&format!("{SIG}.tmp2")));
    assert!(rig.lookup_path(&known).is_err());
    rig.fs.write(handle, 0, b"still written").unwrap();
    rig.fs.release(handle);
    move_on(&rig, 50 * HOUR);
    assert_eq!(rig.fs.collect_leftovers(), 1);
    assert!(!rig.backing().join(&open).exists());
}
