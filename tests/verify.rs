//! `cachedirfs verify`: what is wrong is found, named, and set aside; what is right is left alone.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cachedirfs::remote::blob::BlobRemote;
use cachedirfs::remote::memory::Memory;
use cachedirfs::remote::{Remote, RemoteOptions};
use cachedirfs::signature::Signature;

use crate::support::mounted::{CACHEDIRFS, Mounted};
use crate::support::oracle::{Push, Shape};
use crate::support::servers::Server;
use crate::support::{wait_until, workspace};

const CLEAN: i32 = 0;
const WRONG: i32 = 1;
const IMPOSSIBLE: i32 = 2;
/// Numbers of pushes whose content is neither empty nor large.
const PUSHES: [u64; 4] = [1, 2, 3, 4];

/// Exit status, standard output and standard error.
fn verify(what: &str, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(CACHEDIRFS);
    let output = command.args(["verify", what]).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[track_caller]
fn ends(what: &str, args: &[&str], status: i32, summary: &str) -> String {
    let (code, said, complained) = verify(what, args);
    assert_eq!(code, status, "{said}{complained}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains(summary), "{said}{complained}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Changes a byte in the middle, past the mount.
fn rot(path: &Path) {
    let mode = path.metadata().unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// A backing directory into which two entries were pushed and two fetched, and the remote.
struct Machine {
    mounted: Mounted,
    remote: String,
    workspace: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let workspace = workspace();
        let remote = format!("file://{}", workspace.path().display());
        let other = Mounted::new(&remote);
        for n in &PUSHES[..2] {
            Push(*n).perform(other.path(), Shape::Uuid).unwrap();
        }
        other.flush();
        let mounted = Mounted::new(&remote);
        for n in &PUSHES[..2] {
            assert_eq!(Push(*n).fault(mounted.path()), None);
        }
        for n in &PUSHES[2..] {
            Push(*n).perform(mounted.path(), Shape::Directory).unwrap();
        }
        mounted.flush();
        Self {
            mounted,
            remote,
            workspace,
        }
    }

    fn backing(&self) -> PathBuf {
        self.mounted.backing()
    }

    fn entry(&self, n: u64) -> PathBuf {
        self.backing().join(Push(n).entry())
    }
}

#[test]
fn what_was_pushed_and_what_was_fetched_is_known_after_a_clean_stop() {
    let mut machine = Machine::new();
    machine.mounted.unmount();
    let backing = machine.backing();
    let summary = "4 objects checked";
    let said = ends(text(&backing), &[], CLEAN, summary);
    assert!(
        said.contains("0 wrong, 0 without a recorded hash, 0 unreadable"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_rotten_entry_and_a_short_one_are_named_set_aside_and_fetched_again() {
    let mut machine = Machine::new();
    machine.mounted.unmount();
    let backing = machine.backing();
    rot(&machine.entry(1));
    let short = machine.entry(3);
    fs::File::options()
        .write(true)
        .open(&short)
        .unwrap()
        .set_len(1)
        .unwrap();

    let said = ends(text(&backing), &[], WRONG, "2 wrong, 0 without");
    for n in [1, 3] {
        let path = Push(n).entry();
        assert!(said.contains(&format!("{}: it", path.display())), "{said}");
    }
    let said = ends(
        text(&backing),
        &["--repair"],
        WRONG,
        "2 wrong (2 in quarantine)",
    );
    let aside = backing.join(".cachedirfs/quarantine");
    let names = fs::read_dir(&aside).unwrap().count();
    assert_eq!(names, 2, "{said}");
    let kept = aside.join(format!("2-{}", Push(3).signature()));
    assert_eq!(fs::read(kept).unwrap().len(), 1);
    ends(text(&backing), &[], CLEAN, "2 objects checked");

    machine.mounted.remount();
    for n in PUSHES {
        assert_eq!(Push(n).fault(machine.mounted.path()), None);
    }
}

#[test]
fn a_live_mount_can_be_verified_and_is_not_repaired() {
    let machine = Machine::new();
    let backing = machine.backing();
    // Pushes are synced and recorded within a second or two; what was fetched takes longer.
    wait_until("the pushes are recorded", Duration::from_secs(30), || {
        let (code, said, _) = verify(text(&backing), &[]);
        assert_eq!(code, CLEAN, "{said}");
        said.starts_with("2 objects checked")
    });
    let (code, said, why) = verify(text(&backing), &["--repair"]);
    let pid = machine.mounted.pid().to_string();
    assert_eq!((code, said.as_str()), (IMPOSSIBLE, ""), "{why}");
    assert!(why.contains(&pid) && why.contains("umount"), "{why}");
    assert_eq!(Push(1).fault(machine.mounted.path()), None);
}

#[test]
fn what_waits_for_its_upload_is_checked_too_and_never_uploaded_when_it_is_wrong() {
    let workspace = workspace();
    let remote = format!("file://{}", workspace.path().display());
    let mut mounted = Mounted::with_options(&remote, "drain_timeout=0");
    // Nobody can write to it for a while.
    fs::remove_dir(workspace.path().join(".cachedirfs-tmp")).unwrap();
    for n in PUSHES {
        Push(n).perform(mounted.path(), Shape::Uuid).unwrap();
    }
    mounted.terminate();
    let backing = mounted.backing();
    ends(text(&backing), &[], CLEAN, "8 objects checked");
    rot(&backing.join(Push(2).entry()));
    ends(
        text(&backing),
        &["--repair"],
        WRONG,
        "2 wrong (2 in quarantine)",
    );
    let pending = fs::read_dir(backing.join(".cachedirfs/pending")).unwrap();
    assert_eq!(pending.count(), 3);
    mounted.remount();
    mounted.flush();
    let shared = |n: u64| workspace.path().join(Push(n).entry()).exists();
    assert_eq!(PUSHES.map(shared), [true, false, true, true]);
}

#[test]
fn a_plain_cachedir_has_no_hashes_until_they_are_recorded() {
    let dir = workspace();
    let nothing = verify(text(dir.path()), &["--repair"]);
    assert_eq!(nothing.0, IMPOSSIBLE, "{nothing:?}");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "it made something"
    );
    fs::write(dir.path().join("config"), r#"{"prefix_len": 2}"#).unwrap();
    for n in PUSHES {
        Push(n).perform(dir.path(), Shape::Uuid).unwrap();
    }
    let unknown = "0 objects checked";
    let said = ends(text(dir.path()), &[], CLEAN, unknown);
    assert!(said.contains("4 without a recorded hash"), "{said}");
    assert!(!dir.path().join(".cachedirfs").exists());
    ends(text(dir.path()), &["--repair"], CLEAN, "4 without");
    ends(text(dir.path()), &[], CLEAN, "4 objects checked");
    rot(&dir.path().join(Push(4).entry()));
    ends(text(dir.path()), &[], WRONG, "1 wrong");
}

#[test]
fn a_rotten_object_in_a_directory_is_set_aside_and_a_miss_from_then_on() {
    let machine = Machine::new();
    let object = machine.workspace.path().join(Push(1).entry());
    ends(&machine.remote, &[], CLEAN, "4 objects checked");
    rot(&object);
    let said = ends(&machine.remote, &[], WRONG, "1 wrong");
    assert!(said.starts_with(&Push(1).signature()), "{said}");
    ends(
        &machine.remote,
        &["--repair"],
        WRONG,
        "1 wrong (1 in quarantine)",
    );
    assert!(!object.exists());
    let aside = machine.workspace.path().join(".cachedirfs-quarantine");
    assert!(aside.join(Push(1).signature()).exists());
    ends(&machine.remote, &[], CLEAN, "3 objects checked");
}

#[test]
fn raw_objects_are_unverifiable_and_with_a_key_those_of_strangers_are_wrong() {
    let machine = Machine::new();
    let raw = machine.workspace.path().join(Push(9).entry());
    fs::create_dir_all(raw.parent().unwrap()).unwrap();
    fs::write(&raw, "as a CacheDir has it").unwrap();
    ends(&machine.remote, &[], CLEAN, "1 unverifiable");
    let key = workspace();
    let file = key.path().join("key");
    fs::write(&file, "5e".repeat(32)).unwrap();
    let option = format!("key_file={}", file.display());
    ends(&machine.remote, &["-o", &option], WRONG, "5 wrong");
}

#[test]
fn a_rotten_object_on_a_server_is_set_aside_and_a_miss_from_then_on() {
    let server = Server::apache();
    let mounted = Mounted::new(&server.url());
    for n in PUSHES {
        Push(n).perform(mounted.path(), Shape::Uuid).unwrap();
    }
    mounted.flush();
    rot(&server.root().join(Push(1).entry()));
    // Where the server makes no directories for a PUT, the object stays where it is, and that is said.
    let said = ends(&server.url(), &["--repair"], WRONG, "1 wrong");
    assert!(said.contains("moved to quarantine/"), "{said}");
    ends(&server.url(), &[], CLEAN, "3 objects checked");
}

#[test]
fn what_is_set_aside_on_a_dumb_store_is_kept_whole_and_found_by_no_reader() {
    let (memory, sig) = (Memory::default(), Signature::parse(&[b'a'; 32]).unwrap());
    let remote = BlobRemote::new(memory.clone(), &RemoteOptions::default());
    assert_eq!(remote.quarantine(&sig).unwrap(), None);
    memory.set(&format!("AA/{sig}"), b"damaged");
    let to = remote.quarantine(&sig).unwrap().unwrap();
    assert_eq!(memory.bytes(&to).unwrap(), b"damaged");
    assert!(remote.get(&sig).unwrap().is_none());
    let mut listed = Vec::new();
    remote.list(&mut |found| listed.push(found)).unwrap();
    assert_eq!(listed, []);
}

#[test]
fn a_bad_command_line_is_told_apart_from_bad_objects() {
    let dir = workspace();
    let gone = dir.path().join("gone");
    for (what, args) in [
        (text(&gone), &[][..]),
        (text(dir.path()), &[]),
        ("gopher://host/x", &[]),
        (text(dir.path()), &["-o", "ro"]),
    ] {
        let (code, said, why) = verify(what, args);
        assert_eq!((code, said.as_str()), (IMPOSSIBLE, ""), "{what}: {why}");
        assert_eq!(why.lines().count(), 1, "{what}: {why}");
    }
}
