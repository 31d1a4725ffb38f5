use std::fs::File;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::object::Content;

fn payload(bytes: &[u8]) -> Payload {
    let content = Content::Bytes(bytes.to_vec());
    let hash = content.hash().unwrap();
    Payload::raw(Meta::file(0o644), &content, hash).unwrap()
}

fn keys(store: &Directory) -> Vec<String> {
    let mut keys = Vec::new();
    store
        .list(&mut |found| keys.push(found.key.to_owned()))
        .unwrap();
    keys
}

#[test]
fn only_the_last_part_of_the_path_is_made() {
    let dir = TempDir::new().unwrap();
    let look = |path: &str| Directory::at(dir.path().join(path), 0).exists("AB/x");
    assert!(!look("new").unwrap());
    let error = look("no/such").unwrap_err();
    assert!(error.is_transient(), "{error:?}");
}

#[test]
fn a_percent_in_the_url_is_decoded() {
    let dir = TempDir::new().unwrap();
    let url = format!("file://{}/with%20space", dir.path().display());
    let store = Directory::open(&Url::parse(&url).unwrap(), 0).unwrap();
    store.put("AB/x", &payload(b"1"), true).unwrap();
    assert!(dir.path().join("with space/AB/x").is_file());
    assert_eq!(store.describe(), url + "/");
}

#[test]
fn a_second_put_never_replaces_the_first() {
    let dir = TempDir::new().unwrap();
    let store = Directory::at(dir.path().to_owned(), 0);
    assert_eq!(
        store.put("AB/x", &payload(b"1"), true).unwrap(),
        Written::Stored
    );
    assert_eq!(
        store.put("AB/x", &payload(b"2"), true).unwrap(),
        Written::Exists
    );
    assert_eq!(fs::read(dir.path().join("AB/x")).unwrap(), b"1");
    assert_eq!(
        store.put("AB/x", &payload(b"3"), false).unwrap(),
        Written::Stored
    );
    assert_eq!(fs::read(dir.path().join("AB/x")).unwrap(), b"3");
    assert_eq!(keys(&store), ["AB/x"]);
    assert_eq!(fs::read_dir(dir.path().join(TEMP_DIR)).unwrap().count(), 0);
}

/// An NFS server that went away leaves its empty mount point on the local disk.
#[test]
fn an_unmounted_directory_is_neither_written_nor_a_miss() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("mnt");
    let store = Directory::at(root.clone(), 0);
    assert!(!store.exists("AB/x").unwrap());
    fs::remove_dir_all(&root).unwrap();
    for present in [false, true] {
        if present {
            fs::create_dir(&root).unwrap();
        }
        assert!(
            store
                .put("AB/x", &payload(b"1"), true)
                .unwrap_err()
                .is_transient()
        );
        assert!(store.get("AB/x").err().unwrap().is_transient());
        assert!(store.exists("AB/x").unwrap_err().is_transient());
        assert!(store.list(&mut |_| ()).unwrap_err().is_transient());
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn temporary_files_are_collected_after_a_day() {
    let dir = TempDir::new().unwrap();
    let store = Directory::at(dir.path().to_owned(), 0);
    assert!(!store.exists("AB/x").unwrap());
    let temp = dir.path().join(TEMP_DIR);
    for (name, age) in [("old", TEMP_AGE * 2), ("young", TEMP_AGE / 2)] {
        let file = File::create(temp.join(name)).unwrap();
        let now = file.metadata().unwrap().modified().unwrap();
        file.set_modified(now - age).unwrap();
    }
    store.put("AB/x", &payload(b"1"), true).unwrap();
    assert!(!temp.join("old").exists() && temp.join("young").exists());
    assert_eq!(keys(&store), ["AB/x"]);
}

#[test]
fn a_symlink_in_a_cachedir_is_read_and_not_followed() {
    let dir = TempDir::new().unwrap();
    let store = Directory::at(dir.path().to_owned(), 0);
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("x")).unwrap();
    let mut blob = store.get("x").unwrap().unwrap();
    let mut target = Vec::new();
    blob.body.read_to_end(&mut target).unwrap();
    assert_eq!(
        (blob.hint, &target[..]),
        (Some(Meta::Symlink), &b"/etc/passwd"[..])
    );
}

#[test]
fn what_is_no_file_is_corrupt_and_nobody_waits_for_it() {
    let dir = TempDir::new().unwrap();
    let store = Directory::at(dir.path().to_owned(), 0);
    fs::create_dir(dir.path().join("dir")).unwrap();
    let made = Command::new("mkfifo").arg(dir.path().join("fifo")).status();
    assert!(made.unwrap().success());
    for name in ["dir", "fifo"] {
        let error = store.get(name).err().unwrap();
        assert!(
            matches!(error, RemoteError::Corrupt(_)),
            "{name}: {error:?}"
        );
    }
}
