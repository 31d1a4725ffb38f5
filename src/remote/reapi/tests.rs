//! The message of an entry, byte by byte, and what readers make of others.

use std::sync::Mutex;

use prost::Message;

use super::*;
use crate::object::Header;

const SIG: &str = "5d41402abc4b2a76b9719d911017c592";

fn sig() -> Signature {
    Signature::parse(SIG.as_bytes()).unwrap()
}

fn header(meta: Meta, content: &[u8], key: Option<&Key>) -> Header {
    let hash = *blake3::hash(content).as_bytes();
    Header::new(sig(), meta, content.len() as u64, hash, key)
}

/// cachedirfs(5), ACTION CACHES.
#[test]
fn the_recipe_of_keys_stays_as_it_is() {
    let key = action_key(&sig());
    assert_eq!(key.size, 52);
    assert_eq!(
        key.hash(),
        "b85fb41cd0a1266b9c27a4051e1962378f1cd26ffcf88a5a52057a3ebfca78bb"
    );
    assert_eq!(
        pr3971_key(&sig()).hash(),
        Digest::of(format!("scons-metadata-version-1;os-platform=linux;{SIG}").as_bytes()).hash()
    );
}

#[test]
fn the_message_of_an_entry_stays_as_it_is() {
    let meta = Meta::file(0o755);
    let header = header(meta, b"hello\n", None);
    let result = entry::file(&sig(), meta, Digest::of(b"hello\n"), Some(&header));
    let bytes = result.encode_to_vec();
    let mut golden = vec![0x12, 0x71, 0x0a, 0x20];
    golden.extend_from_slice(SIG.as_bytes());
    golden.extend_from_slice(&[0x12, 0x44, 0x0a, 0x40]);
    golden.extend_from_slice(b"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    golden.extend_from_slice(&[
        0x10, 0x06, 0x20, 0x01, 0x3a, 0x05, 0x1a, 0x03, 0x08, 0xed, 0x03,
    ]);
    golden.extend_from_slice(&[0x2a, 0x85, 0x01]);
    golden.extend_from_slice(&header.to_bytes());
    golden.extend_from_slice(&[0x4a, 0x0c, 0x0a, 0x0a]);
    golden.extend_from_slice(b"cachedirfs");
    assert_eq!(bytes, golden);
    assert_eq!(ActionResult::decode(&bytes[..]).unwrap(), result);
}

fn read(result: ActionResult) -> Result<Option<Meta>, RemoteError> {
    Entry::read(&sig(), result, None).map(|entry| entry.map(|entry| entry.meta()))
}

#[test]
fn what_others_wrote_is_an_entry_if_it_has_one_output() {
    let digest = Digest::of(b"x");
    let file = |mode| entry::file(&sig(), Meta::file(mode), digest, None);
    assert_eq!(read(file(0o711)).unwrap(), Some(Meta::file(0o711)));
    let mut plain = file(0o755);
    plain.output_files[0].node_properties = None;
    assert_eq!(read(plain.clone()).unwrap(), Some(Meta::file(0o755)));
    plain.output_files[0].is_executable = false;
    assert_eq!(read(plain.clone()).unwrap(), Some(Meta::file(0o644)));

    let mut failed = plain.clone();
    failed.exit_code = 1;
    assert_eq!(read(failed).unwrap(), None);
    assert_eq!(read(ActionResult::default()).unwrap(), None);
    assert_eq!(read(entry::removed()).unwrap(), None);

    let mut two = plain.clone();
    two.output_files.push(two.output_files[0].clone());
    let mut both = plain.clone();
    both.output_symlinks = entry::symlink(&sig(), "x".to_owned(), None).output_symlinks;
    let mut hashless = plain;
    hashless.output_files[0].digest = None;
    let nowhere = entry::symlink(&sig(), String::new(), None);
    let long = entry::symlink(&sig(), "x".repeat(4096), None);
    for wrong in [two, both, hashless, nowhere, long] {
        assert!(matches!(read(wrong), Err(RemoteError::Corrupt(_))));
    }
}

#[test]
fn a_header_has_to_say_what_the_rest_says() {
    let meta = Meta::file(0o644);
    let good = || {
        entry::file(
            &sig(),
            meta,
            Digest::of(b"x"),
            Some(&header(meta, b"x", None)),
        )
    };
    assert_eq!(read(good()).unwrap(), Some(meta));
    let mut other_length = good();
    other_length.output_files[0].digest = Some(Digest::of(b"xx").to_message());
    let mut other_kind = entry::symlink(&sig(), "x".to_owned(), None);
    other_kind.stdout_raw = good().stdout_raw;
    let mut cut = good();
    cut.stdout_raw.pop();
    let mut longer = good();
    longer.stdout_raw.push(0);
    for wrong in [other_length, other_kind, cut, longer] {
        assert!(matches!(read(wrong), Err(RemoteError::Corrupt(_))));
    }
    let other = Signature::parse(&[b'a'; 32]).unwrap();
    assert!(matches!(
        Entry::read(&other, good(), None),
        Err(RemoteError::Corrupt(_))
    ));
}

#[test]
fn with_a_key_only_its_holders_are_believed() {
    let (ours, theirs) = (Key::new([1; 32]), Key::new([2; 32]));
    let meta = Meta::file(0o644);
    let by = |key: Option<&Key>| {
        entry::file(
            &sig(),
            meta,
            Digest::of(b"x"),
            Some(&header(meta, b"x", key)),
        )
    };
    assert!(
        Entry::read(&sig(), by(Some(&ours)), Some(&ours))
            .unwrap()
            .is_some()
    );
    let raw = entry::file(&sig(), meta, Digest::of(b"x"), None);
    for forged in [by(Some(&theirs)), by(None), raw] {
        let read = Entry::read(&sig(), forged, Some(&ours));
        assert!(matches!(read, Err(RemoteError::Corrupt(_))));
    }
}

/// What `ActionResult` in `utils/validate/action_result.go` of bazel-remote refuses, in its order.
fn bazel_remote_refuses(result: &ActionResult) -> Option<&'static str> {
    let digest = |digest: &Option<message::Digest>| match digest {
        None => Some("nil Digest"),
        Some(digest) if digest.size_bytes < 0 => Some("negative SizeBytes"),
        Some(digest) if Digest::parse(digest).is_none() => Some("invalid hash"),
        Some(_) => None,
    };
    let path = |path: &str| match path {
        "" => Some("empty path"),
        path if path.starts_with('/') => Some("absolute path"),
        _ => None,
    };
    let files = result.output_files.iter();
    let files = files.map(|file| path(&file.path).or_else(|| digest(&file.digest)));
    let links = result
        .output_file_symlinks
        .iter()
        .chain(&result.output_symlinks);
    let links =
        links.map(|link| path(&link.path).or(link.target.is_empty().then_some("empty target")));
    let empty = result.encoded_len() == 0;
    files
        .chain(links)
        .flatten()
        .next()
        .or(empty.then_some("empty"))
}

#[test]
fn bazel_remote_takes_what_we_write() {
    let meta = Meta::file(0o444);
    let header = header(meta, b"x", None);
    for result in [
        entry::file(&sig(), meta, Digest::of(b"x"), Some(&header)),
        entry::file(&sig(), meta, Digest::of(b""), None),
        entry::symlink(&sig(), "../x".to_owned(), Some(&header)),
        entry::removed(),
    ] {
        assert_eq!(bazel_remote_refuses(&result), None);
        let worker = &result.execution_metadata.as_ref().unwrap().worker;
        assert!(!worker.is_empty(), "server/http.go would put its own in");
    }
    assert!(bazel_remote_refuses(&ActionResult::default()).is_some());
}

#[test]
#[cfg(feature = "http")]
fn an_action_is_protobuf_or_the_json_of_scons() {
    let hash = Digest::of(b"x").hash();
    for size in ["1", "\"1\""] {
        let json = format!(
            r#"{{"outputFiles": [{{"path": "a.o", "digest": {{"hash": "{hash}", "sizeBytes": {size}}}, "isExecutable": true}}]}}"#
        );
        let result = parse_action(json.as_bytes()).unwrap();
        assert_eq!(read(result).unwrap(), Some(Meta::file(0o755)));
    }
    let bytes = entry::removed().encode_to_vec();
    assert_eq!(parse_action(&bytes).unwrap(), entry::removed());
    for wrong in [
        &b"{"[..],
        b"{}",
        b"{\"outputFiles\": 1}",
        b"\xff\xff",
        b"<html>",
    ] {
        assert!(
            matches!(parse_action(wrong), Err(RemoteError::Corrupt(_))),
            "{wrong:?}"
        );
    }
}

#[cfg(feature = "http")]
mod any_bytes {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn are_an_action_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(result) = parse_action(&bytes) {
                drop(read(result));
            }
        }
    }
}

/// A cache in memory that counts what it is asked.
#[derive(Default)]
struct Counting {
    actions: Mutex<Vec<(String, ActionResult)>>,
    blobs: Mutex<Vec<(Digest, Vec<u8>)>>,
    asked: Mutex<Vec<&'static str>>,
}

impl Counting {
    fn ask(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl ActionCache for &Counting {
    fn action(&self, key: &Digest, _: Option<&str>) -> Result<Option<ActionResult>, RemoteError> {
        self.ask("action");
        let actions = self.actions.lock().unwrap();
        let found = actions.iter().rev().find(|(name, _)| *name == key.hash());
        Ok(found.map(|(_, result)| result.clone()))
    }

    fn set_action(&self, key: &Digest, result: &ActionResult) -> Result<(), RemoteError> {
        self.ask("set action");
        self.actions
            .lock()
            .unwrap()
            .push((key.hash(), result.clone()));
        Ok(())
    }

    fn remove_action(&self, _: &Digest) -> Result<Option<bool>, RemoteError> {
        Ok(None)
    }

    fn blob(&self, digest: &Digest) -> Result<Option<Box<dyn Read + Send>>, RemoteError> {
        self.ask("blob");
        let blobs = self.blobs.lock().unwrap();
        let found = blobs.iter().rev().find(|(name, _)| name == digest);
        Ok(found.map(|(_, bytes)| Box::new(io::Cursor::new(bytes.clone())) as _))
    }

    fn put_blob(&self, digest: &Digest, payload: &Payload) -> Result<(), RemoteError> {
        self.ask("put blob");
        let mut bytes = Vec::new();
        payload.reader().read_to_end(&mut bytes).unwrap();
        self.blobs.lock().unwrap().push((*digest, bytes));
        Ok(())
    }

    fn has_blob(&self, digest: &Digest) -> Result<bool, RemoteError> {
        self.ask("has blob");
        Ok(self
            .blobs
            .lock()
            .unwrap()
            .iter()
            .any(|(name, _)| name == digest))
    }

    fn describe(&self) -> String {
        "counting".to_owned()
    }
}

fn content(remote: &impl Remote) -> Option<Vec<u8>> {
    let mut object = remote.get(&sig()).unwrap()?;
    let mut bytes = Vec::new();
    object.content.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn an_upload_looks_first_and_writes_the_entry_last() {
    let cache = Counting::default();
    let remote = Actions::new(&cache, &RemoteOptions::default());
    let put = |bytes: &[u8]| {
        remote
            .put(&sig(), Meta::file(0o644), &Content::Bytes(bytes.to_vec()))
            .unwrap()
    };
    assert_eq!(put(b"x"), Put::Stored);
    assert_eq!(
        cache.asked(),
        ["action", "has blob", "put blob", "set action"]
    );
    assert_eq!(put(b"x"), Put::Present);
    assert!(matches!(put(b"y"), Put::Diverged { .. }));
    assert_eq!(cache.asked(), ["action", "has blob", "action", "has blob"]);
    cache.blobs.lock().unwrap().clear();
    assert!(!remote.exists(&sig()).unwrap());
    assert_eq!(
        content(&remote),
        None,
        "an entry without its blob is a miss"
    );
    assert_eq!(put(b"x"), Put::Stored);
    assert_eq!(content(&remote).unwrap(), b"x");
}

#[test]
fn what_scons_wrote_is_read_if_asked_for_and_never_written_to() {
    let cache = Counting::default();
    let theirs = entry::file(&sig(), Meta::file(0o755), Digest::of(b"theirs"), None);
    let key = pr3971_key(&sig()).hash();
    cache.actions.lock().unwrap().push((key.clone(), theirs));
    cache
        .blobs
        .lock()
        .unwrap()
        .push((Digest::of(b"theirs"), b"theirs".to_vec()));
    assert_eq!(
        content(&Actions::new(&cache, &RemoteOptions::default())),
        None
    );
    let options = RemoteOptions {
        pr3971: true,
        ..RemoteOptions::default()
    };
    let remote = Actions::new(&cache, &options);
    assert_eq!(content(&remote).unwrap(), b"theirs");
    assert!(remote.exists(&sig()).unwrap());

    assert!(remote.delete(&sig()).unwrap());
    assert_eq!(content(&remote), None, "hidden by an entry of ours");
    assert!(!remote.delete(&sig()).unwrap());
    let ours = Content::Bytes(b"ours".to_vec());
    assert_eq!(
        remote.put(&sig(), Meta::file(0o644), &ours).unwrap(),
        Put::Stored
    );
    assert_eq!(content(&remote).unwrap(), b"ours");
    let written = cache.actions.lock().unwrap();
    assert_eq!(written.iter().filter(|(name, _)| *name == key).count(), 1);

    let keyed = RemoteOptions {
        key: Some(Key::new([1; 32])),
        ..options
    };
    drop(written);
    assert!(
        Actions::new(&cache, &keyed).get(&sig()).is_err(),
        "ours has no MAC"
    );
}

#[test]
fn a_symlink_whose_target_is_not_utf8_is_unsupported() {
    let cache = Counting::default();
    let remote = Actions::new(&cache, &RemoteOptions::default());
    let put = remote.put(&sig(), Meta::Symlink, &Content::Bytes(b"\xff".to_vec()));
    assert!(matches!(put, Err(RemoteError::Unsupported(_))), "{put:?}");
}
