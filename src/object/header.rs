//! The header of an object: its bytes, and telling it from raw content.

use crate::object::{Key, ObjectError};
use crate::signature::{MAX_DIGITS, MODE_MASK, Meta, Signature};

/// Longest header, with the longest signature. No more is ever read before it is judged.
pub const HEADER_MAX: usize = PREAMBLE + FIXED + MAX_DIGITS;

/// Frame magic, frame size and our magic: what tells an object from raw content.
pub(super) const PREAMBLE: usize = 16;

/// The fields behind the preamble without the digits of the signature.
const FIXED: usize = 1 + 1 + 2 + 8 + 1 + HASH + CHECK + HASH;

/// A skippable frame of zstd: `zstd -d` passes over it.
const FRAME_MAGIC: [u8; 4] = 0x184D_2A5C_u32.to_le_bytes();
const MAGIC: [u8; 8] = *b"CACHEDFS";
const VERSION: u8 = 1;
const HASH: usize = 32;
const CHECK: usize = 8;
const KIND_FILE: u8 = 0;
const KIND_SYMLINK: u8 = 1;

/// Of the 12 bytes of the two magics, as many that agree make a header that was damaged rather than
/// raw content. Chance does not reach it, nor another program's skippable frame (4); damage of up to
/// 7 bytes does not get below it.
const RESEMBLES: usize = 5;

/// Longest target of a symlink that Linux takes; a longer one is refused before it is read.
const TARGET_MAX: u64 = 4095;

/// What an object says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The entry that it was pushed as.
    pub sig: Signature,
    /// File with mode, or symlink.
    pub meta: Meta,
    /// Length of the content.
    pub len: u64,
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
    mac: [u8; HASH],
}

/// What a stored blob begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sniffed {
    /// Our header; with its preamble it has this many bytes.
    Headed(usize),
    /// Nothing like it.
    Raw,
    /// Our header, cut off or damaged.
    Damaged,
}

impl Header {
    /// The header of content that was hashed; authenticated when there is a key.
    pub fn new(sig: Signature, meta: Meta, len: u64, hash: [u8; 32], key: Option<&Key>) -> Self {
        let mut header = Self {
            sig,
            meta,
            len,
            hash,
            mac: [0; HASH],
        };
        if let Some(key) = key {
            header.mac = *key.mac(&header.guarded()).as_bytes();
        }
        header
    }

    /// Whether a holder of `key` wrote it. Takes the same time for every wrong answer.
    pub fn is_by(&self, key: &Key) -> bool {
        key.mac(&self.guarded()) == blake3::Hash::from_bytes(self.mac)
    }

    /// Its bytes, beginning with the skippable frame's magic.
    pub fn to_bytes(&self) -> Vec<u8> {
        let guarded = self.guarded();
        let size = u32::try_from(guarded.len() + HASH).expect("HEADER_MAX is small");
        let mut bytes = Vec::with_capacity(HEADER_MAX);
        bytes.extend_from_slice(&FRAME_MAGIC);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&guarded);
        bytes.extend_from_slice(&self.mac);
        bytes
    }

    /// The fields that the MAC covers: all but the frame's own.
    fn guarded(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_MAX);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.push(match self.meta {
            Meta::File { .. } => KIND_FILE,
            Meta::Symlink => KIND_SYMLINK,
        });
        let mode = u16::try_from(self.meta.mode() & MODE_MASK).expect("MODE_MASK fits");
        bytes.extend_from_slice(&mode.to_le_bytes());
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.push(u8::try_from(self.sig.as_bytes().len()).expect("MAX_DIGITS fits a byte"));
        bytes.extend_from_slice(self.sig.as_bytes());
        bytes.extend_from_slice(&self.hash);
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK]);
        bytes
    }

    /// Reads exactly one header.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let corrupt = |what: &str| ObjectError::Corrupt(format!("object header: {what}"));
        let mut fields = Fields(bytes.get(PREAMBLE..).unwrap_or_default());
        let mut next = |len| fields.take(len).ok_or_else(|| corrupt("cut off"));
        if next(1)? != [VERSION] {
            return Err(corrupt("of another version"));
        }
        let kind = next(1)?[0];
        let mode = u32::from(u16::from_le_bytes(array(next(2)?)));
        let len = u64::from_le_bytes(array(next(8)?));
        let digits = usize::from(next(1)?[0]);
        let sig = Signature::parse(next(digits)?).ok_or_else(|| corrupt("not a signature"))?;
        let hash = array(next(HASH)?);
        next(CHECK)?;
        let mac = array(next(HASH)?);
        let meta = meta(kind, mode, len).ok_or_else(|| corrupt("no such kind, mode or length"))?;
        let header = Self {
            sig,
            meta,
            len,
            hash,
            mac,
        };
        // Every valid header has one spelling: this compares sizes, padding and the check at once.
        if header.to_bytes() != bytes {
            return Err(corrupt("damaged"));
        }
        Ok(header)
    }
}

fn meta(kind: u8, mode: u32, len: u64) -> Option<Meta> {
    match kind {
        KIND_FILE if mode & !MODE_MASK == 0 => Some(Meta::file(mode)),
        KIND_SYMLINK if mode == MODE_MASK && len <= TARGET_MAX => Some(Meta::Symlink),
        _ => None,
    }
}

/// What `start`, the first [`PREAMBLE`] bytes of a blob or all of a shorter one, announces.
pub(super) fn sniff(start: &[u8]) -> Sniffed {
    let magic = |at: usize| match at {
        0..4 => Some(FRAME_MAGIC[at]),
        8..16 => Some(MAGIC[at - 8]),
        _ => None,
    };
    let agrees = |(at, byte): (usize, &u8)| magic(at).map(|want| want == *byte);
    let judged: Vec<bool> = start
        .iter()
        .take(PREAMBLE)
        .enumerate()
        .filter_map(agrees)
        .collect();
    let agreeing = judged.iter().filter(|agrees| **agrees).count();
    if start.len() < PREAMBLE {
        let cut_off = !start.is_empty() && agreeing == judged.len();
        return if cut_off || agreeing >= RESEMBLES {
            Sniffed::Damaged
        } else {
            Sniffed::Raw
        };
    }
    if agreeing < RESEMBLES {
        return Sniffed::Raw;
    }
    let size = u32::from_le_bytes(array(&start[4..8])) as usize;
    let total = size.saturating_add(8);
    if agreeing == judged.len() && (PREAMBLE..=HEADER_MAX).contains(&total) {
        Sniffed::Headed(total)
    } else {
        Sniffed::Damaged
    }
}

/// The header that a stored blob begins with; `None` when it is raw. `start` are its first
/// [`HEADER_MAX`] bytes, or all of them if it is shorter.
pub fn read_header(start: &[u8]) -> Result<Option<Header>, ObjectError> {
    match sniff(start) {
        Sniffed::Raw => Ok(None),
        Sniffed::Damaged => Err(damaged()),
        Sniffed::Headed(total) => match start.get(..total) {
            Some(header) => Header::parse(header).map(Some),
            None => Err(ObjectError::Corrupt("object header: cut off".to_owned())),
        },
    }
}

pub(super) fn damaged() -> ObjectError {
    ObjectError::Corrupt("object header: cut off or damaged".to_owned())
}

/// The rest of the fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the field has this length")
}
