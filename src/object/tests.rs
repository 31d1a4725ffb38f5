use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::signature::Signature;

const DIGITS: &[u8] = b"ab3456789012345678901234567890cd";

fn sig() -> Signature {
    Signature::parse(DIGITS).unwrap()
}

fn options(key: Option<Key>) -> EncodeOptions {
    EncodeOptions {
        level: 3,
        key,
        spool_dir: std::env::temp_dir(),
    }
}

fn encoded(content: &[u8], key: Option<Key>) -> Vec<u8> {
    let content = Content::Bytes(content.to_vec());
    bytes_of(&encode(sig(), Meta::file(0o755), &content, &options(key)).unwrap())
}

fn bytes_of(payload: &Payload) -> Vec<u8> {
    let mut bytes = Vec::new();
    payload.reader().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, payload.len());
    bytes
}

fn blob(bytes: &[u8]) -> Blob {
    let len = Some(bytes.len() as u64);
    Blob {
        body: Box::new(io::Cursor::new(bytes.to_vec())),
        len,
        hint: None,
    }
}

fn decoded_as(bytes: &[u8], options: DecodeOptions<'_>) -> io::Result<(Meta, Vec<u8>)> {
    let mut object = decode(&sig(), blob(bytes), options).map_err(ObjectError::into_io)?;
    let mut content = Vec::new();
    object.content.read_to_end(&mut content)?;
    Ok((object.meta, content))
}

fn decoded(bytes: &[u8]) -> io::Result<(Meta, Vec<u8>)> {
    decoded_as(
        bytes,
        DecodeOptions {
            key: None,
            format: Format::Object,
        },
    )
}

fn is_corrupt<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| matches!(error.downcast(), Ok(ObjectError::Corrupt(_))))
}

#[test]
fn the_bytes_of_the_header_never_change() {
    let header = Header::new(
        sig(),
        Meta::file(0o755),
        0x0102,
        [0x11; 32],
        Some(&Key::new([7; 32])),
    );
    let hex: String = header
        .to_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let golden = [
        "5c2a4d18",         // skippable frame
        "7d000000",         // its size
        "4341434845444653", // CACHEDFS
        "01",               // version
        "00",               // file
        "ed01",             // 0755
        "0201000000000000", // length
        "20",               // 32 digits
        "6162333435363738393031323334353637383930313233343536373839306364",
        "1111111111111111111111111111111111111111111111111111111111111111",
        "5f972168d4f5f43d",
        "a1f0893f5b2d197f4228bc6f51c95ca4a3ffa00c260d0445430278c448fea52a",
    ];
    assert_eq!(hex, golden.concat());
    assert_eq!(read_header(&header.to_bytes()).unwrap(), Some(header));
}

#[test]
fn what_was_encoded_comes_back_with_its_meta() {
    for content in [&b""[..], b"x", &[b'a'; 100_000]] {
        assert_eq!(
            decoded(&encoded(content, None)).unwrap(),
            (Meta::file(0o755), content.to_vec())
        );
    }
    let target = Content::Bytes(b"../lib.so.1".to_vec());
    let link = bytes_of(&encode(sig(), Meta::Symlink, &target, &options(None)).unwrap());
    assert_eq!(
        decoded(&link).unwrap(),
        (Meta::Symlink, b"../lib.so.1".to_vec())
    );
}

#[test]
fn a_big_file_at_the_highest_level_needs_no_more_window_than_we_allow() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("big");
    let line: Vec<u8> = (0..=255).collect();
    std::fs::write(&path, line.repeat(20 << 12)).unwrap();
    let content = Content::File(File::open(&path).unwrap(), 20 << 20);
    let options = EncodeOptions {
        level: 19,
        ..options(None)
    };
    let payload = encode(sig(), Meta::file(0o644), &content, &options).unwrap();
    let (_, back) = decoded(&bytes_of(&payload)).unwrap();
    assert!(back == std::fs::read(&path).unwrap());
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing but the content"
    );
}

#[test]
fn a_file_that_changes_while_it_is_encoded_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, "four").unwrap();
    let content = |len| Content::File(File::open(&path).unwrap(), len);
    let header = Header::new(
        sig(),
        Meta::file(0o644),
        4,
        content(4).hash().unwrap(),
        None,
    );
    for changed in ["diff", "fou", "four and more"] {
        std::fs::write(&path, changed).unwrap();
        let made = encode_as(&header, &content(4), &options(None));
        assert!(
            matches!(made, Err(ObjectError::Changed)),
            "{changed}: {made:?}"
        );
        let raw = Payload::raw(header.meta, &content(4), header.hash).unwrap();
        assert!(
            io::copy(&mut raw.reader(), &mut io::sink()).is_err(),
            "{changed}"
        );
    }
    assert!(matches!(content(99).hash(), Err(ObjectError::Changed)));
}

#[test]
fn an_object_under_another_signature_is_corrupt() {
    let other = Signature::parse(&[b'0'; 64]).unwrap();
    let found = decode(
        &other,
        blob(&encoded(b"x", None)),
        DecodeOptions {
            key: None,
            format: Format::Raw,
        },
    );
    assert!(matches!(found.err(), Some(ObjectError::Corrupt(_))));
}

#[test]
fn with_a_key_only_objects_of_its_holders_are_believed() {
    let (ours, theirs) = (Key::new([1; 32]), Key::new([2; 32]));
    let accepted = |bytes: &[u8]| {
        decoded_as(
            bytes,
            DecodeOptions {
                key: Some(&ours),
                format: Format::Raw,
            },
        )
    };
    assert_eq!(
        accepted(&encoded(b"x", Some(ours.clone()))).unwrap().1,
        b"x"
    );
    for forged in [
        encoded(b"x", Some(theirs)),
        encoded(b"x", None),
        b"raw content".to_vec(),
    ] {
        assert!(is_corrupt(accepted(&forged)));
    }
    let without_key = decoded(&encoded(b"x", Some(ours.clone())));
    assert_eq!(without_key.unwrap().1, b"x");
}

#[test]
fn raw_objects_are_taken_as_they_are() {
    let mode = |bytes: &[u8]| decoded(bytes).unwrap().0.mode();
    assert_eq!(mode(b"#!/bin/sh\n"), 0o755);
    assert_eq!(mode(b"\x7fELF.."), 0o755);
    assert_eq!(mode(b"\n"), 0o644);
    let hinted = Blob {
        hint: Some(Meta::file(0o600)),
        ..blob(b"#!")
    };
    let object = decode(
        &sig(),
        hinted,
        DecodeOptions {
            key: None,
            format: Format::Object,
        },
    )
    .unwrap();
    assert_eq!(object.meta, Meta::file(0o600));
    let foreign_frame = [
        &0x184D_2A5C_u32.to_le_bytes()[..],
        &[4, 0, 0, 0],
        b"pzstandard",
    ]
    .concat();
    assert_eq!(decoded(&foreign_frame).unwrap().1, foreign_frame);
}

#[test]
fn an_empty_blob_or_a_login_page_is_no_object_unless_the_store_is_raw() {
    let raw = DecodeOptions {
        key: None,
        format: Format::Raw,
    };
    for page in [
        &b""[..],
        b"\xef\xbb\xbf\n <!DOCTYPE HTML><p>log in",
        b"<html lang=en>",
    ] {
        assert!(is_corrupt(decoded(page)), "{page:?}");
        assert_eq!(decoded_as(page, raw).unwrap().1, page);
    }
}

#[test]
fn a_raw_object_of_another_length_than_announced_is_corrupt() {
    for len in [2, 4] {
        let mut object = decode(
            &sig(),
            Blob {
                len: Some(len),
                ..blob(b"raw")
            },
            DecodeOptions {
                key: None,
                format: Format::Object,
            },
        )
        .unwrap();
        let mut got = Vec::new();
        assert!(is_corrupt(object.content.read_to_end(&mut got)));
        assert!(got.len() as u64 <= len);
    }
}

#[test]
fn every_truncation_is_an_error() {
    let whole = encoded(b"some content, some content", None);
    for len in 0..whole.len() {
        assert!(
            is_corrupt(decoded(&whole[..len])),
            "{len} of {}",
            whole.len()
        );
    }
}

#[test]
fn trailing_garbage_is_an_error() {
    for garbage in [
        &b"x"[..],
        b"garbage",
        &zstd::encode_all(&b"more"[..], 1).unwrap(),
    ] {
        assert!(is_corrupt(decoded(
            &[&encoded(b"content", None), garbage].concat()
        )));
    }
}

#[test]
fn no_flipped_bit_yields_wrong_content_or_meta() {
    let content = b"some content that compresses, some content that compresses";
    let whole = encoded(content, None);
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(got) = decoded(&flipped) {
            assert_eq!(got, (Meta::file(0o755), content.to_vec()), "bit {bit}");
        }
    }
}

/// One byte at a time, as the worst of connections gives it, and without a length.
struct Drops(io::Cursor<Vec<u8>>);

impl Read for Drops {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len().min(1);
        self.0.read(&mut buf[..room])
    }
}

fn decoded_in_drops(
    sig: &Signature,
    bytes: &[u8],
    options: DecodeOptions<'_>,
) -> io::Result<(Meta, Vec<u8>)> {
    let blob = Blob {
        body: Box::new(Drops(io::Cursor::new(bytes.to_vec()))),
        len: None,
        hint: None,
    };
    let mut object = decode(sig, blob, options).map_err(ObjectError::into_io)?;
    let mut content = Vec::new();
    object.content.read_to_end(&mut content)?;
    Ok((object.meta, content))
}

/// Files and links, long signatures, with and without a key, in stores of either kind: a damaged object must never
/// pass for a raw one.
#[test]
fn no_object_of_any_kind_yields_anything_else_when_it_is_cut_or_one_bit_is_flipped() {
    let key = Key::new([3; 32]);
    for (digits, meta, content) in [
        (&[b'a'; 32][..], Meta::file(0o644), &b""[..]),
        (
            &[b'7'; 128],
            Meta::file(0o755),
            b"#!/bin/sh\necho and more\n",
        ),
        (&[b'c'; 64], Meta::Symlink, b"../lib/libsums.so.1"),
    ] {
        let sig = Signature::parse(digits).unwrap();
        let pushed = Content::Bytes(content.to_vec());
        for (key, format) in [
            (None, Format::Object),
            (None, Format::Raw),
            (Some(&key), Format::Object),
        ] {
            let whole = bytes_of(&encode(sig, meta, &pushed, &options(key.cloned())).unwrap());
            let expected = DecodeOptions { key, format };
            let decoded = |bytes: &[u8]| decoded_in_drops(&sig, bytes, expected);
            assert_eq!(decoded(&whole).unwrap(), (meta, content.to_vec()));
            // Nothing at all is an empty file to a raw store.
            for len in 1..whole.len() {
                assert!(is_corrupt(decoded(&whole[..len])), "{sig} cut to {len}");
            }
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                if let Ok(got) = decoded(&flipped) {
                    assert_eq!(got, (meta, content.to_vec()), "{sig} bit {bit}");
                }
            }
        }
    }
}

/// zstd files may be concatenated; ours are what the header says, in one frame or in several.
#[test]
fn content_in_several_frames_is_the_content() {
    let header = |content: &[u8]| {
        let hash = *blake3::hash(content).as_bytes();
        Header::new(sig(), Meta::file(0o644), content.len() as u64, hash, None).to_bytes()
    };
    let frame = |content: &[u8]| zstd::encode_all(content, 1).unwrap();
    let skipped = [&0x184D_2A50_u32.to_le_bytes()[..], &[3, 0, 0, 0], b"any"].concat();
    let two = [header(b"one two"), frame(b"one "), skipped, frame(b"two")].concat();
    assert_eq!(decoded(&two).unwrap().1, b"one two");
    let twice = [encoded(b"one", None), encoded(b"one", None)].concat();
    assert!(is_corrupt(decoded(&twice)));
}

/// What a bomb unpacks to is not what it says it is, and is seen as it comes: nothing is kept.
#[test]
fn a_bomb_is_corrupt_after_as_many_bytes_as_it_announced() {
    let gib = io::repeat(0).take(1 << 30);
    let bomb = zstd::encode_all(gib, 1).unwrap();
    assert!(bomb.len() < 1 << 20);
    let header = Header::new(sig(), Meta::file(0o644), 5 << 20, [0; 32], None);
    let bytes = [header.to_bytes(), bomb].concat();
    let any = DecodeOptions {
        key: None,
        format: Format::Object,
    };
    let mut object = decode(&sig(), blob(&bytes), any).unwrap();
    let (mut got, mut chunk) = (0, vec![0; 64 << 10]);
    let error = loop {
        match object.content.read(&mut chunk) {
            Ok(n) => got += n,
            Err(error) => break error,
        }
    };
    assert!(is_corrupt::<()>(Err(error)) && got <= 5 << 20, "{got}");
}

/// A header that lies about the length, with a right check, as a hostile writer would make it.
fn claiming(len: u64, content: &[u8]) -> Vec<u8> {
    let hash = *blake3::hash(content).as_bytes();
    let header = Header::new(sig(), Meta::file(0o644), len, hash, None);
    [header.to_bytes(), zstd::encode_all(content, 1).unwrap()].concat()
}

#[test]
fn a_lie_about_the_length_is_an_error_and_never_more_bytes() {
    assert!(is_corrupt(decoded(&claiming(1 << 40, b"tiny"))));
    let bomb = claiming(10, &[0; 1 << 20]);
    let mut object = decode(
        &sig(),
        blob(&bomb),
        DecodeOptions {
            key: None,
            format: Format::Object,
        },
    )
    .unwrap();
    let mut got = Vec::new();
    assert!(is_corrupt(object.content.read_to_end(&mut got)));
    assert!(got.len() <= 10);
    assert!(
        object.content.read(&mut [0; 10]).is_err(),
        "it stays broken"
    );
}

#[test]
fn a_frame_that_wants_a_huge_window_is_corrupt() {
    let content = vec![7; 64 << 20];
    let mut zip = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zip.window_log(27).unwrap();
    io::copy(&mut &content[..], &mut zip).unwrap();
    let hash = *blake3::hash(&content).as_bytes();
    let header = Header::new(sig(), Meta::file(0o644), content.len() as u64, hash, None);
    assert!(is_corrupt(decoded(
        &[header.to_bytes(), zip.finish().unwrap()].concat()
    )));
}

#[test]
fn a_store_that_fails_midway_is_not_called_corrupt() {
    struct Cut;
    impl Read for Cut {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let whole = encoded(&[b'a'; 1000], None);
    let body = Box::new(io::Cursor::new(whole[..whole.len() - 3].to_vec()).chain(Cut));
    let blob = Blob {
        body,
        len: None,
        hint: None,
    };
    let mut object = decode(
        &sig(),
        blob,
        DecodeOptions {
            key: None,
            format: Format::Object,
        },
    )
    .unwrap();
    let error = io::copy(&mut object.content, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

proptest! {
    #[test]
    fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
        let _ = decoded(&bytes);
        let _ = read_header(&bytes);
    }

    #[test]
    fn any_bytes_behind_our_preamble_decode_without_a_panic(bytes: Vec<u8>) {
        let start = &encoded(b"", None)[..16];
        prop_assert!(is_corrupt(decoded(&[start, &bytes].concat())));
    }

    #[test]
    fn any_damage_yields_the_content_or_an_error(
        content: Vec<u8>, at: proptest::sample::Index, patch in proptest::collection::vec(any::<u8>(), 1..8),
    ) {
        let whole = encoded(&content, None);
        let at = at.index(whole.len());
        let patched: Vec<u8> = whole[..at].iter().chain(&patch).chain(whole.iter().skip(at + patch.len())).copied().collect();
        if let Ok((meta, got)) = decoded(&patched) {
            prop_assert_eq!((meta, got), (Meta::file(0o755), content));
        }
    }
}
