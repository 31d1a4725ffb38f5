//! Scratch space is an honest file system. One behaviour a test; each also runs on a plain directory, which
//! shows that the test asks for what the disk gives.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::support::mounted::Mounted;
use crate::support::{is_root, workspace};

macro_rules! behaviours {
    ($($name:ident),* $(,)?) => {
        mod plain_directory { $(#[test] fn $name() {
            super::$name(crate::support::workspace().path());
        })* }
        mod mount { $(#[test] fn $name() {
            super::on_a_mount("", super::$name);
        })* }
        mod mount_without_passthrough { $(#[test] fn $name() {
            super::on_a_mount("passthrough=off", super::$name);
        })* }
    };
}

behaviours! {
    a_file_reads_back_as_written,
    appends_land_at_the_end,
    truncation_shortens_and_extends_with_zeros,
    a_hole_reads_as_zeros,
    mappings_and_reads_and_writes_see_each_other,
    an_executable_runs,
    rename_replaces_and_moves_across_directories,
    rename_noreplace_refuses_an_existing_name,
    rename_exchange_swaps,
    a_directory_replaces_only_an_empty_directory,
    hard_links_are_counted,
    symlinks_hold_any_text,
    an_unlinked_file_lives_while_it_is_open,
    a_renamed_file_stays_open,
    fifos_and_sockets_are_nodes,
    a_fifo_carries_bytes,
    directories_nest_beyond_path_max,
    long_names_and_odd_bytes_are_kept,
    a_listing_under_change_names_what_stays_exactly_once,
    statfs_is_that_of_a_disk,
    chmod_chown_and_utimens_are_visible,
    exclusive_creation_has_one_winner,
    a_file_without_read_permission_can_be_written_by_its_creator,
    extended_attributes_are_empty_or_unsupported,
    locks_exclude_each_other,
    space_can_be_allocated_ahead,
}

fn on_a_mount(options: &str, behaviour: fn(&Path)) {
    let remote = workspace();
    let mounted = Mounted::with_options(&format!("file://{}", remote.path().display()), options);
    let scratch = mounted.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    behaviour(&scratch);
}

fn a_file_reads_back_as_written(dir: &Path) {
    for size in [0, 1, 4096, 131_072, 131_073, 3 << 20] {
        let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        fs::write(dir.join("file"), &content).unwrap();
        assert!(
            fs::read(dir.join("file")).unwrap() == content,
            "{size} bytes"
        );
        assert_eq!(size as u64, fs::metadata(dir.join("file")).unwrap().len());
    }
}

fn appends_land_at_the_end(dir: &Path) {
    let open = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.join("log"))
            .unwrap()
    };
    let (mut one, mut two) = (open(), open());
    for n in 0..100 {
        writeln!(if n % 2 == 0 { &mut one } else { &mut two }, "{n}").unwrap();
    }
    let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
    assert_eq!(expected, fs::read_to_string(dir.join("log")).unwrap());
}

fn truncation_shortens_and_extends_with_zeros(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, "0123456789").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4).unwrap();
    assert_eq!("0123", fs::read_to_string(&path).unwrap());
    file.set_len(8).unwrap();
    assert_eq!(b"0123\0\0\0\0", &fs::read(&path).unwrap()[..]);
    // By path, without a handle.
    rustix::fs::ftruncate(File::options().write(true).open(&path).unwrap(), 1).unwrap();
    assert_eq!(1, fs::metadata(&path).unwrap().len());
    drop(File::create(&path).unwrap());
    assert_eq!(0, fs::metadata(&path).unwrap().len());
}

fn a_hole_reads_as_zeros(dir: &Path) {
    let path = dir.join("sparse");
    let mut file = File::create(&path).unwrap();
    file.seek(SeekFrom::Start(1 << 30)).unwrap();
    file.write_all(b"end").unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((1 << 30) + 3, meta.len());
    assert!(
        meta.blocks() < 1024,
        "a hole takes no space: {} blocks",
        meta.blocks()
    );
    let mut piece = [1; 16];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut piece, (1 << 30) - 13)
        .unwrap();
    assert_eq!(b"\0\0\0\0\0\0\0\0\0\0\0\0\0end", &piece);
}

fn mappings_and_reads_and_writes_see_each_other(dir: &Path) {
    let path = dir.join("mapped");
    fs::write(&path, vec![b'.'; 3 * 4096]).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut mapping = Mapping::new(&file, 3 * 4096);
    mapping.bytes()[5000] = b'm';
    file.write_all_at(b"w", 9000).unwrap();
    assert_eq!(
        b'w',
        mapping.bytes()[9000],
        "the mapping sees what was written"
    );
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(b"m", &byte, "a read sees what the mapping was given");
    assert_eq!(
        b'm',
        fs::read(&path).unwrap()[5000],
        "also through another handle"
    );
    drop((mapping, file));
    let content = fs::read(&path).unwrap();
    assert_eq!(
        (b'm', b'w', b'.'),
        (content[5000], content[9000], content[0])
    );
}

fn an_executable_runs(dir: &Path) {
    let path = dir.join("program");
    fs::copy("/bin/true", &path).unwrap();
    assert!(
        std::process::Command::new(&path)
            .status()
            .unwrap()
            .success()
    );
}

fn rename_replaces_and_moves_across_directories(dir: &Path) {
    fs::create_dir(dir.join("from")).unwrap();
    fs::create_dir(dir.join("to")).unwrap();
    fs::write(dir.join("from/a"), "new").unwrap();
    fs::write(dir.join("to/b"), "old").unwrap();
    fs::rename(dir.join("from/a"), dir.join("to/b")).unwrap();
    assert_eq!("new", fs::read_to_string(dir.join("to/b")).unwrap());
    assert_eq!(
        ErrorKind::NotFound,
        fs::metadata(dir.join("from/a")).unwrap_err().kind()
    );
    fs::rename(dir.join("to"), dir.join("from/inner")).unwrap();
    assert_eq!("new", fs::read_to_string(dir.join("from/inner/b")).unwrap());
    assert_eq!(
        ErrorKind::InvalidInput,
        fs::rename(dir.join("from"), dir.join("from/inner/x"))
            .unwrap_err()
            .kind()
    );
}

fn rename_noreplace_refuses_an_existing_name(dir: &Path) {
    fs::write(dir.join("a"), "a").unwrap();
    fs::write(dir.join("b"), "b").unwrap();
    let rename = |to: &str| {
        rustix::fs::renameat_with(
            CWD,
            dir.join("a"),
            CWD,
            dir.join(to),
            RenameFlags::NOREPLACE,
        )
    };
    assert_eq!(Err(Errno::EXIST), rename("b"));
    assert_eq!("b", fs::read_to_string(dir.join("b")).unwrap());
    assert_eq!(Ok(()), rename("c"));
    assert_eq!("a", fs::read_to_string(dir.join("c")).unwrap());
}

fn rename_exchange_swaps(dir: &Path) {
    fs::write(dir.join("a"), "a").unwrap();
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/b"), "b").unwrap();
    let swap = |one: &str, two: &str| {
        rustix::fs::renameat_with(
            CWD,
            dir.join(one),
            CWD,
            dir.join(two),
            RenameFlags::EXCHANGE,
        )
    };
    swap("a", "d/b").unwrap();
    assert_eq!(("b", "a"), (&*read(dir, "a"), &*read(dir, "d/b")));
    swap("a", "d").unwrap();
    assert_eq!(("a", "b"), (&*read(dir, "a/b"), &*read(dir, "d")));
    assert_eq!(Err(Errno::NOENT), swap("a", "nothing"));
}

fn a_directory_replaces_only_an_empty_directory(dir: &Path) {
    for name in ["one", "empty", "full"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    fs::write(dir.join("full/file"), "").unwrap();
    fs::rename(dir.join("one"), dir.join("empty")).unwrap();
    let error = fs::rename(dir.join("empty"), dir.join("full")).unwrap_err();
    assert_eq!(ErrorKind::DirectoryNotEmpty, error.kind());
    assert_eq!(
        ErrorKind::DirectoryNotEmpty,
        fs::remove_dir(dir.join("full")).unwrap_err().kind()
    );
    assert_eq!(2, fs::metadata(dir.join("empty")).unwrap().nlink());
}

fn hard_links_are_counted(dir: &Path) {
    let links = |name: &str| fs::metadata(dir.join(name)).unwrap().nlink();
    fs::write(dir.join("one"), "x").unwrap();
    assert_eq!(1, links("one"));
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    assert_eq!((2, 2), (links("one"), links("two")));
    let ino = |name: &str| fs::metadata(dir.join(name)).unwrap().ino();
    assert_eq!(ino("one"), ino("two"));
    OpenOptions::new()
        .append(true)
        .open(dir.join("two"))
        .unwrap()
        .write_all(b"y")
        .unwrap();
    assert_eq!("xy", read(dir, "one"));
    fs::remove_file(dir.join("one")).unwrap();
    assert_eq!(1, links("two"));
    let file = File::open(dir.join("two")).unwrap();
    fs::remove_file(dir.join("two")).unwrap();
    assert_eq!(0, file.metadata().unwrap().nlink());
}

fn symlinks_hold_any_text(dir: &Path) {
    for (name, text) in [
        ("to", "target"),
        ("dangling", "no/such/../thing"),
        ("long", &"x/".repeat(2000)[..3999]),
    ] {
        symlink(text, dir.join(name)).unwrap();
        assert_eq!(Path::new(text), fs::read_link(dir.join(name)).unwrap());
        assert_eq!(
            text.len() as u64,
            fs::symlink_metadata(dir.join(name)).unwrap().len()
        );
    }
    fs::write(dir.join("target"), "reached").unwrap();
    assert_eq!("reached", read(dir, "to"));
    assert_eq!(
        ErrorKind::NotFound,
        fs::read(dir.join("dangling")).unwrap_err().kind()
    );
}

fn an_unlinked_file_lives_while_it_is_open(dir: &Path) {
    let path = dir.join("file");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    file.write_all(b"still ").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"here").unwrap();
    assert_eq!(10, file.metadata().unwrap().len());
    fs::write(&path, "another").unwrap();
    let mut content = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut content).unwrap();
    assert_eq!("still here", content);
    file.set_len(5).unwrap();
    assert_eq!(5, file.metadata().unwrap().len());
    assert_eq!("another", read(dir, "file"));
}

fn a_renamed_file_stays_open(dir: &Path) {
    let mut file = File::create(dir.join("before")).unwrap();
    file.write_all(b"one ").unwrap();
    fs::rename(dir.join("before"), dir.join("after")).unwrap();
    file.write_all(b"two").unwrap();
    assert_eq!("one two", read(dir, "after"));
    assert_eq!(7, file.metadata().unwrap().len());
}

fn fifos_and_sockets_are_nodes(dir: &Path) {
    let make = |name, kind| {
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), 0).unwrap();
    };
    make("fifo", FileType::Fifo);
    make("node", FileType::Socket);
    drop(std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap());
    assert!(
        fs::metadata(dir.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    for name in ["node", "socket"] {
        assert!(
            fs::metadata(dir.join(name))
                .unwrap()
                .file_type()
                .is_socket(),
            "{name}"
        );
        assert!(
            File::open(dir.join(name)).is_err(),
            "{name} cannot be opened"
        );
    }
    let listed: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_type().unwrap())
        .collect();
    assert_eq!(1, listed.iter().filter(|kind| kind.is_fifo()).count());
    assert_eq!(2, listed.iter().filter(|kind| kind.is_socket()).count());
}

fn a_fifo_carries_bytes(dir: &Path) {
    let path = dir.join("fifo");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| fs::write(&path, "through").unwrap());
        assert_eq!("through", fs::read_to_string(&path).unwrap());
    });
}

fn directories_nest_beyond_path_max(dir: &Path) {
    let name = "d".repeat(200);
    // Close-on-exec, or the daemons of other tests inherit these and keep the mount busy.
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut stack = vec![rustix::fs::open(dir, flags, Mode::empty()).unwrap()];
    for _ in 0..40 {
        let parent = stack.last().expect("the top stays");
        rustix::fs::mkdirat(parent, &*name, Mode::RWXU).unwrap();
        stack.push(rustix::fs::openat(parent, &*name, flags, Mode::empty()).unwrap());
    }
    let deepest = stack.last().expect("the top stays");
    let file = rustix::fs::openat(
        deepest,
        "file",
        OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RWXU,
    )
    .unwrap();
    File::from(file).write_all(b"8000 bytes down").unwrap();
    let again = rustix::fs::openat(
        deepest,
        "file",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    let mut content = String::new();
    File::from(again).read_to_string(&mut content).unwrap();
    assert_eq!("8000 bytes down", content);
    rustix::fs::unlinkat(deepest, "file", AtFlags::empty()).unwrap();
    stack.pop();
    while let Some(parent) = stack.pop() {
        rustix::fs::unlinkat(&parent, &*name, AtFlags::REMOVEDIR).unwrap();
    }
    assert_eq!(0, fs::read_dir(dir).unwrap().count());
}

fn long_names_and_odd_bytes_are_kept(dir: &Path) {
    use std::os::unix::ffi::OsStringExt;
    let names: BTreeSet<OsString> = [
        vec![b'n'; 255],
        b"not \xff utf-8 \x01".to_vec(),
        b" leading and trailing ".to_vec(),
        b"new\nline".to_vec(),
        "größe".into(),
    ]
    .map(OsString::from_vec)
    .into();
    for name in &names {
        fs::write(dir.join(name), "").unwrap();
    }
    assert_eq!(names, listing(dir).into_iter().collect());
    let error = fs::write(dir.join("n".repeat(256)), "").unwrap_err();
    assert_eq!(ErrorKind::InvalidFilename, error.kind());
}

fn a_listing_under_change_names_what_stays_exactly_once(dir: &Path) {
    const STAYING: usize = 500;
    const CHANGING: usize = 10_000;
    let staying: BTreeSet<OsString> = (0..STAYING).map(|n| format!("stays-{n}").into()).collect();
    for name in &staying {
        File::create(dir.join(name)).unwrap();
    }
    let changing = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..CHANGING {
                File::create(dir.join(format!("comes-{n}"))).unwrap();
                if n >= 200 {
                    fs::remove_file(dir.join(format!("comes-{}", n - 200))).unwrap();
                }
            }
            changing.store(false, Ordering::Release);
        });
        while changing.load(Ordering::Acquire) {
            let listed = listing(dir);
            let stayed: Vec<_> = listed
                .iter()
                .filter(|name| name.to_string_lossy().starts_with("stays"))
                .collect();
            assert_eq!(STAYING, stayed.len(), "listed {} names", listed.len());
            assert_eq!(STAYING, stayed.into_iter().collect::<BTreeSet<_>>().len());
        }
    });
    assert_eq!(STAYING + 200, listing(dir).len());
}

fn statfs_is_that_of_a_disk(dir: &Path) {
    let disk = rustix::fs::statvfs(workspace().path()).unwrap();
    let here = rustix::fs::statvfs(dir).unwrap();
    assert!(here.f_blocks > 0 && here.f_bavail > 0 && here.f_files > 0);
    assert_eq!(disk.f_namemax, here.f_namemax);
    assert!(
        here.f_bavail * here.f_frsize <= disk.f_blocks * disk.f_frsize,
        "more room than the disk has: {} blocks",
        here.f_bavail
    );
}

fn chmod_chown_and_utimens_are_visible(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, "x").unwrap();
    for mode in [0o000, 0o444, 0o755, 0o600] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(mode, fs::metadata(&path).unwrap().mode() & 0o7777);
    }
    let file = File::open(&path).unwrap();
    let (accessed, modified) = (
        Duration::new(1_000_000_000, 123_456_789),
        Duration::new(2_000_000_000, 987_654_321),
    );
    let times = fs::FileTimes::new()
        .set_accessed(SystemTime::UNIX_EPOCH + accessed)
        .set_modified(SystemTime::UNIX_EPOCH + modified);
    let before = fs::metadata(&path).unwrap();
    file.set_times(times).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (1_000_000_000, 123_456_789),
        (after.atime(), after.atime_nsec())
    );
    assert_eq!(
        (2_000_000_000, 987_654_321),
        (after.mtime(), after.mtime_nsec())
    );
    assert!((after.ctime(), after.ctime_nsec()) >= (before.ctime(), before.ctime_nsec()));
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"y")
        .unwrap();
    assert_ne!(
        2_000_000_000,
        fs::metadata(&path).unwrap().mtime(),
        "writing sets the time"
    );

    symlink("nowhere", dir.join("link")).unwrap();
    if is_root() {
        std::os::unix::fs::lchown(dir.join("link"), Some(1), Some(2)).unwrap();
        std::os::unix::fs::chown(&path, Some(3), None).unwrap();
        let (link, file) = (
            fs::symlink_metadata(dir.join("link")).unwrap(),
            fs::metadata(&path).unwrap(),
        );
        assert_eq!((1, 2, 3), (link.uid(), link.gid(), file.uid()));
    }
}

fn exclusive_creation_has_one_winner(dir: &Path) {
    for round in 0..50 {
        let path = dir.join(format!("lock-{round}"));
        let create = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)
                .is_ok()
        };
        let winners = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(1, winners);
    }
}

fn a_file_without_read_permission_can_be_written_by_its_creator(dir: &Path) {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o000)
        .open(dir.join("secret"))
        .unwrap();
    file.write_all(b"written").unwrap();
    drop(file);
    assert_eq!(7, fs::metadata(dir.join("secret")).unwrap().len());
    assert_eq!(0, fs::metadata(dir.join("secret")).unwrap().mode() & 0o777);
}

/// SCons copies what `listxattr` names onto build products, so it must name nothing; and it must not fail otherwise.
fn extended_attributes_are_empty_or_unsupported(dir: &Path) {
    fs::write(dir.join("file"), "").unwrap();
    let answer = rustix::fs::listxattr(dir.join("file"), &mut [0_u8; 1024]);
    assert!(matches!(answer, Ok(0) | Err(Errno::NOTSUP)), "{answer:?}");
}

fn locks_exclude_each_other(dir: &Path) {
    let path = dir.join("lock");
    let (one, two) = (File::create(&path).unwrap(), File::create(&path).unwrap());
    use rustix::fs::{FlockOperation, flock};
    flock(&one, FlockOperation::LockExclusive).unwrap();
    assert_eq!(
        Err(Errno::WOULDBLOCK),
        flock(&two, FlockOperation::NonBlockingLockExclusive)
    );
    flock(&one, FlockOperation::Unlock).unwrap();
    flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
}

fn space_can_be_allocated_ahead(dir: &Path) {
    let file = File::create(dir.join("file")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(100_000, file.metadata().unwrap().len());
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 200_000).unwrap();
    assert_eq!(100_000, file.metadata().unwrap().len());
}

#[test]
fn inode_numbers_and_content_of_scratch_survive_a_remount() {
    let remote = workspace();
    let mut mounted = Mounted::new(&format!("file://{}", remote.path().display()));
    let scratch = mounted.path().join("scratch");
    fs::create_dir_all(scratch.join("deep/er")).unwrap();
    fs::write(scratch.join("file"), "kept").unwrap();
    fs::write(scratch.join("deep/er/file"), "kept too").unwrap();
    fs::hard_link(scratch.join("file"), scratch.join("deep/second")).unwrap();
    symlink("file", scratch.join("link")).unwrap();
    let numbers = || {
        [
            "",
            "file",
            "deep",
            "deep/er",
            "deep/er/file",
            "deep/second",
            "link",
        ]
        .map(|name| fs::symlink_metadata(scratch.join(name)).unwrap().ino())
    };
    let before = numbers();
    mounted.remount();
    assert_eq!(before, numbers());
    assert_eq!("kept", read(&scratch, "link"));
    assert_eq!("kept too", read(&scratch, "deep/er/file"));
}

#[test]
fn an_inode_number_is_the_same_in_a_listing_and_in_stat() {
    let remote = workspace();
    let mounted = Mounted::new(&format!("file://{}", remote.path().display()));
    fs::create_dir(mounted.path().join("scratch")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(mounted.path().join("scratch").join(name), name).unwrap();
    }
    for directory in [mounted.path(), &mounted.path().join("scratch")] {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            use std::os::unix::fs::DirEntryExt;
            assert_eq!(
                fs::symlink_metadata(entry.path()).unwrap().ino(),
                entry.ino(),
                "{}",
                entry.path().display()
            );
        }
    }
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn listing(dir: &Path) -> Vec<OsString> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

/// A shared, writable mapping of a file's beginning.
struct Mapping {
    address: *mut std::ffi::c_void,
    length: usize,
}

#[allow(unsafe_code)]
impl Mapping {
    fn new(file: &File, length: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let address = unsafe { mmap(std::ptr::null_mut(), length, protection, flags, file, 0) };
        Self {
            address: address.unwrap_or_else(|e| panic!("mmap: {e}")),
            length,
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is that long and lives as long as `self`; nothing shortens the file meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.length) }
    }
}

#[allow(unsafe_code)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and `bytes` cannot be borrowed any more.
        unsafe { rustix::mm::munmap(self.address, self.length) }.unwrap();
    }
}
