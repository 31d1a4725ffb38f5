//! Content to payload: hash it, write the header, compress it and see that it still hashes the same.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::object::read::{FileReader, Verified};
use crate::object::{Content, Header, Key, ObjectError};
use crate::signature::{Meta, Signature};

/// Content up to this is encoded in memory, more goes through an unlinked file in the spool directory:
/// most outputs are small, and a handful of uploads at a time must not take gigabytes.
const IN_MEMORY_MAX: u64 = 4 << 20;

/// How objects are written.
#[derive(Clone, Debug)]
pub struct EncodeOptions {
    /// Level of zstd, 1 to 19.
    pub level: i32,
    /// The key that authenticates them.
    pub key: Option<Key>,
    /// Where payloads of more than 4 MiB wait, as files without a name.
    pub spool_dir: PathBuf,
}

/// What is uploaded: it knows its length and can be read again from the start.
#[derive(Debug)]
pub struct Payload {
    body: Body,
    len: u64,
    /// What it is and what it must hash to, for a raw one.
    raw: Option<(Meta, [u8; 32])>,
}

#[derive(Debug)]
enum Body {
    Bytes(Arc<[u8]>),
    File(Arc<File>),
}

impl Payload {
    /// The content as it is, for stores of raw objects. It is checked again while it is read.
    pub fn raw(meta: Meta, content: &Content, hash: [u8; 32]) -> Result<Self, ObjectError> {
        let body = match content {
            Content::Bytes(bytes) => Body::Bytes(bytes.as_slice().into()),
            Content::File(file, _) => {
                Body::File(Arc::new(file.try_clone().map_err(ObjectError::Local)?))
            }
        };
        Ok(Self {
            body,
            len: content.len(),
            raw: Some((meta, hash)),
        })
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the store should remember about it, if it can: nothing when its header does.
    pub fn hint(&self) -> Option<Meta> {
        self.raw.map(|(meta, _)| meta)
    }

    /// Reads it from the start. Many can read at once.
    pub fn reader(&self) -> Box<dyn Read + Send> {
        let bytes: Box<dyn Read + Send> = match &self.body {
            Body::Bytes(bytes) => Box::new(io::Cursor::new(Arc::clone(bytes))),
            Body::File(file) => Box::new(FileReader::new(Arc::clone(file))),
        };
        match self.raw {
            Some((_, hash)) => Box::new(Verified::new(bytes, self.len, Some(hash), |_| {
                ObjectError::Changed
            })),
            None => bytes,
        }
    }
}

/// The object that holds `content` under `sig`.
pub fn encode(
    sig: Signature,
    meta: Meta,
    content: &Content,
    options: &EncodeOptions,
) -> Result<Payload, ObjectError> {
    let hash = content.hash()?;
    let header = Header::new(sig, meta, content.len(), hash, options.key.as_ref());
    encode_as(&header, content, options)
}

/// The object of `content` that was hashed into `header` before. [`ObjectError::Changed`] when it is
/// other content by now.
pub fn encode_as(
    header: &Header,
    content: &Content,
    options: &EncodeOptions,
) -> Result<Payload, ObjectError> {
    if content.len() <= IN_MEMORY_MAX {
        let mut bytes = Vec::new();
        write(header, content, options.level, &mut bytes)?;
        return Ok(Payload {
            len: bytes.len() as u64,
            body: Body::Bytes(bytes.into()),
            raw: None,
        });
    }
    let mut file = spool(&options.spool_dir)?;
    write(header, content, options.level, &mut file)?;
    let len = file.metadata().map_err(ObjectError::Local)?.len();
    Ok(Payload {
        len,
        body: Body::File(Arc::new(file)),
        raw: None,
    })
}

/// A file without a name: nothing is left behind, however we end.
fn spool(dir: &Path) -> Result<File, ObjectError> {
    tempfile::tempfile_in(dir).map_err(|error| {
        let text = format!("make a spool file in {}: {error}", dir.display());
        ObjectError::Local(io::Error::new(error.kind(), text))
    })
}

fn write(
    header: &Header,
    content: &Content,
    level: i32,
    mut to: impl Write,
) -> Result<(), ObjectError> {
    to.write_all(&header.to_bytes())
        .map_err(ObjectError::local)?;
    let mut checked = Verified::new(content.reader(), header.len, Some(header.hash), |_| {
        ObjectError::Changed
    });
    let mut zip = zstd::Encoder::new(to, level).map_err(ObjectError::local)?;
    // The size in the frame lets `zstd -d` and `zstd -l` know it, and small windows be chosen.
    zip.set_pledged_src_size(Some(header.len))
        .map_err(ObjectError::local)?;
    io::copy(&mut checked, &mut zip).map_err(ObjectError::local)?;
    zip.finish()
        .and_then(|mut to| to.flush())
        .map_err(ObjectError::local)
}
