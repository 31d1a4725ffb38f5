//! The messages of the Remote Execution API v2 that an entry is made of, by hand: `remote_execution.proto` names some
//! hundred more that no cache client needs, and a compiler for them would have to be there at every build.
//!
//! Fields that are not here are skipped when they are read.

/// Names a blob: lower-case hex of its SHA-256, and its length.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Digest {
    /// 64 digits.
    #[prost(string, tag = "1")]
    pub hash: String,
    /// Bytes.
    #[prost(int64, tag = "2")]
    pub size_bytes: i64,
}

/// What an action made.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ActionResult {
    /// Regular files.
    #[prost(message, repeated, tag = "2")]
    pub output_files: Vec<OutputFile>,
    /// Directories, which no entry is.
    #[prost(message, repeated, tag = "3")]
    pub output_directories: Vec<OutputDirectory>,
    /// Zero for what succeeded.
    #[prost(int32, tag = "4")]
    pub exit_code: i32,
    /// In an entry of ours: the header of the object.
    #[prost(bytes = "vec", tag = "5")]
    pub stdout_raw: Vec<u8>,
    /// Who made it.
    #[prost(message, optional, tag = "9")]
    pub execution_metadata: Option<ExecutedActionMetadata>,
    /// Symbolic links as they were spelled before 2.1.
    #[prost(message, repeated, tag = "10")]
    pub output_file_symlinks: Vec<OutputSymlink>,
    /// Symbolic links.
    #[prost(message, repeated, tag = "12")]
    pub output_symlinks: Vec<OutputSymlink>,
}

/// A regular file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutputFile {
    /// Relative.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Its content, in the CAS.
    #[prost(message, optional, tag = "2")]
    pub digest: Option<Digest>,
    /// Whether it can be run.
    #[prost(bool, tag = "4")]
    pub is_executable: bool,
    /// Its content, where the server put it in to save a round trip.
    #[prost(bytes = "vec", tag = "5")]
    pub contents: Vec<u8>,
    /// More about it.
    #[prost(message, optional, tag = "7")]
    pub node_properties: Option<NodeProperties>,
}

/// A directory.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OutputDirectory {
    /// Relative.
    #[prost(string, tag = "1")]
    pub path: String,
}

/// A symbolic link.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OutputSymlink {
    /// Relative.
    #[prost(string, tag = "1")]
    pub path: String,
    /// As readlink(2) gives it.
    #[prost(string, tag = "2")]
    pub target: String,
}

/// What a file has besides its content.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeProperties {
    /// Permission bits.
    #[prost(message, optional, tag = "3")]
    pub unix_mode: Option<UInt32Value>,
}

/// `google.protobuf.UInt32Value`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct UInt32Value {
    /// The number.
    #[prost(uint32, tag = "1")]
    pub value: u32,
}

/// How an action was run.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecutedActionMetadata {
    /// By whom.
    #[prost(string, tag = "1")]
    pub worker: String,
}
