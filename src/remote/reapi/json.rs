//! `ActionResult` in JSON: what SCons with pull request 3971 PUTs to `/ac/`, and what a server that does not look into
//! it gives back. (bazel-remote turns it into protobuf.) From `SCons/RemoteCache.py` of that pull request,
//! `_get_task_metadata`:
//!
//! ```text
//! {"outputFiles": [{"path": "a.o", "digest": {"hash": "64 hex digits", "sizeBytes": 6}, "isExecutable": false}]}
//! ```
//!
//! Numbers of 64 bits may be strings, as protobuf's own mapping spells them. What is not here is passed over.

use serde::Deserialize;

use crate::remote::reapi::message::{ActionResult, Digest, OutputFile};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonResult {
    output_files: Vec<JsonFile>,
    #[serde(default)]
    exit_code: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonFile {
    path: String,
    digest: JsonDigest,
    #[serde(default)]
    is_executable: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonDigest {
    hash: String,
    #[serde(default)]
    size_bytes: Number,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(i64),
    Text(String),
}

impl Default for Number {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Number {
    /// What is no number is the size of no blob.
    fn value(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            Self::Text(text) => text.parse().unwrap_or(-1),
        }
    }
}

/// The message that `text` spells.
pub(super) fn parse(text: &[u8]) -> Option<ActionResult> {
    let result: JsonResult = serde_json::from_slice(text).ok()?;
    let files = result.output_files.into_iter().map(|file| OutputFile {
        path: file.path,
        digest: Some(Digest {
            size_bytes: file.digest.size_bytes.value(),
            hash: file.digest.hash,
        }),
        is_executable: file.is_executable,
        ..OutputFile::default()
    });
    Some(ActionResult {
        output_files: files.collect(),
        exit_code: result.exit_code,
        ..ActionResult::default()
    })
}
