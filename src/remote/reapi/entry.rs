//! An entry as an `ActionResult`, there and back; and the key that it stands under. Byte by byte in cachedirfs(5).
//!
//! This module talks to no server.

use crate::object::{Header, Key, read_header};
use crate::remote::RemoteError;
use crate::remote::reapi::Digest;
use crate::remote::reapi::message::{
    ActionResult, ExecutedActionMetadata, NodeProperties, OutputFile, OutputSymlink, UInt32Value,
};
use crate::signature::{Meta, Signature};

/// What the key of an entry is the SHA-256 of, before its signature. Another meaning of entries needs another number.
const RECIPE: &[u8] = b"cachedirfs-entry-v1\0";

/// The same of entries that SCons with pull request 3971 wrote.
const PR3971_RECIPE: &[u8] = b"scons-metadata-version-1;os-platform=linux;";

/// Servers that find nobody here write their own idea into the message, and change its bytes.
const WORKER: &str = "cachedirfs";

/// What stands in place of the header of an entry that was removed from a server that cannot remove.
const REMOVED: &[u8] = b"cachedirfs: removed\n";

/// Longest target of a symlink that Linux takes.
const TARGET_MAX: usize = 4095;

/// Permission bits of a raw entry that says no more than whether it can be run.
const MODES: (u32, u32) = (0o644, 0o755);

/// The key of our entry of `sig`: with its length, as if it were the digest of an action.
pub fn action_key(sig: &Signature) -> Digest {
    Digest::of(&[RECIPE, sig.as_bytes()].concat())
}

/// The key that SCons with pull request 3971 gives a task with one target. It is never written.
pub fn pr3971_key(sig: &Signature) -> Digest {
    Digest::of(&[PR3971_RECIPE, sig.as_bytes()].concat())
}

/// What an action cache has for a signature.
#[derive(Debug)]
pub(super) struct Entry {
    /// `None` for one that we did not write.
    pub(super) header: Option<Header>,
    pub(super) output: Output,
}

#[derive(Debug)]
pub(super) enum Output {
    File {
        digest: Digest,
        mode: u32,
        /// Its content, where the server sent it along.
        contents: Option<Vec<u8>>,
    },
    Symlink {
        target: String,
    },
}

impl Entry {
    /// What `result` says, if it is an entry of `sig` at all; `None` for a removed one and for a failed action.
    pub(super) fn read(
        sig: &Signature,
        result: ActionResult,
        key: Option<&Key>,
    ) -> Result<Option<Self>, RemoteError> {
        let corrupt = |what: &str| RemoteError::Corrupt(format!("entry {sig} {what}"));
        let header = read_header(&result.stdout_raw).map_err(RemoteError::from)?;
        let is_exact = |header: &Header| header.to_bytes() == result.stdout_raw;
        if header.as_ref().is_some_and(|header| !is_exact(header)) {
            return Err(corrupt("has more than a header where that stands"));
        }
        if result.exit_code != 0 || !result.output_directories.is_empty() {
            return Ok(None);
        }
        let links = result.output_symlinks.into_iter();
        let mut links = links.chain(result.output_file_symlinks);
        let mut files = result.output_files.into_iter();
        let output = match (files.next(), links.next()) {
            (None, None) => return Ok(None),
            (Some(file), None) => {
                read_file(file).ok_or_else(|| corrupt("has a malformed digest"))?
            }
            (None, Some(link)) => {
                let fits = 1..=TARGET_MAX;
                if !fits.contains(&link.target.len()) || link.target.contains('\0') {
                    return Err(corrupt("is a symlink that cannot be"));
                }
                Output::Symlink {
                    target: link.target,
                }
            }
            (Some(_), Some(_)) => return Err(corrupt("has more than one output")),
        };
        if files.next().is_some() || links.next().is_some() {
            return Err(corrupt("has more than one output"));
        }
        let entry = Self { header, output };
        entry.accept(sig, key).map_err(corrupt)?;
        Ok(Some(entry))
    }

    /// The header has to be that of this signature, by a holder of the key, and to say what the rest says.
    fn accept(&self, sig: &Signature, key: Option<&Key>) -> Result<(), &'static str> {
        let Some(header) = &self.header else {
            return match key {
                Some(_) => Err("has no header, so it is not by a holder of the key"),
                None => Ok(()),
            };
        };
        if header.sig != *sig {
            return Err("is that of another signature");
        }
        if key.is_some_and(|key| !header.is_by(key)) {
            return Err("is not by a holder of the key");
        }
        let (is_link, len) = match &self.output {
            Output::File { digest, .. } => (false, digest.size),
            Output::Symlink { target } => (true, target.len() as u64),
        };
        if (header.meta == Meta::Symlink, header.len) != (is_link, len) {
            return Err("has a header of something else");
        }
        Ok(())
    }

    /// What it is: as the header says, or else as the rest does.
    pub(super) fn meta(&self) -> Meta {
        match (&self.header, &self.output) {
            (Some(header), _) => header.meta,
            (None, Output::File { mode, .. }) => Meta::file(*mode),
            (None, Output::Symlink { .. }) => Meta::Symlink,
        }
    }
}

fn read_file(file: OutputFile) -> Option<Output> {
    let digest = Digest::parse(&file.digest?)?;
    let unix_mode = file.node_properties.and_then(|more| more.unix_mode);
    let guess = if file.is_executable { MODES.1 } else { MODES.0 };
    Some(Output::File {
        digest,
        mode: unix_mode.map_or(guess, |mode| mode.value),
        contents: Some(file.contents).filter(|contents| !contents.is_empty()),
    })
}

/// A file, whose content is in the CAS. Without a header in a raw entry.
pub(super) fn file(
    sig: &Signature,
    meta: Meta,
    digest: Digest,
    header: Option<&Header>,
) -> ActionResult {
    let mode = UInt32Value { value: meta.mode() };
    ActionResult {
        output_files: vec![OutputFile {
            path: sig.to_string(),
            digest: Some(digest.to_message()),
            is_executable: meta.mode() & 0o111 != 0,
            contents: Vec::new(),
            node_properties: Some(NodeProperties {
                unix_mode: Some(mode),
            }),
        }],
        ..result(header.map(Header::to_bytes).unwrap_or_default())
    }
}

/// A symbolic link. Without a header in a raw entry.
pub(super) fn symlink(sig: &Signature, target: String, header: Option<&Header>) -> ActionResult {
    ActionResult {
        output_symlinks: vec![OutputSymlink {
            path: sig.to_string(),
            target,
        }],
        ..result(header.map(Header::to_bytes).unwrap_or_default())
    }
}

/// What a removed entry is overwritten with: a success without any output, which no validation minds.
pub(super) fn removed() -> ActionResult {
    result(REMOVED.to_vec())
}

fn result(stdout_raw: Vec<u8>) -> ActionResult {
    ActionResult {
        stdout_raw,
        execution_metadata: Some(ExecutedActionMetadata {
            worker: WORKER.to_owned(),
        }),
        ..ActionResult::default()
    }
}
