//! The requests and answers of the Remote Execution API v2, ByteStream and `google.rpc` that are used here, by hand.
//! Fields that are not here are skipped when they are read.

use prost::bytes::Bytes;

use crate::remote::reapi::message::{ActionResult, Digest};

/// `DigestFunction.SHA256`.
pub(super) const SHA256: i32 = 1;
/// `Compressor.ZSTD`.
pub(super) const ZSTD: i32 = 1;

/// A method: its path, and the name that errors call it by.
#[derive(Clone, Copy)]
pub(super) struct Method {
    pub(super) path: &'static str,
}

impl Method {
    const fn of(path: &'static str) -> Self {
        Self { path }
    }

    pub(super) fn name(self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

macro_rules! remote_execution {
    ($($name:ident = $path:literal;)*) => {
        $(pub(super) const $name: Method = Method::of(concat!("/build.bazel.remote.execution.v2.", $path));)*
    };
}

remote_execution! {
    GET_CAPABILITIES = "Capabilities/GetCapabilities";
    GET_ACTION_RESULT = "ActionCache/GetActionResult";
    UPDATE_ACTION_RESULT = "ActionCache/UpdateActionResult";
    FIND_MISSING_BLOBS = "ContentAddressableStorage/FindMissingBlobs";
    BATCH_READ_BLOBS = "ContentAddressableStorage/BatchReadBlobs";
    BATCH_UPDATE_BLOBS = "ContentAddressableStorage/BatchUpdateBlobs";
}
pub(super) const READ: Method = Method::of("/google.bytestream.ByteStream/Read");
pub(super) const WRITE: Method = Method::of("/google.bytestream.ByteStream/Write");
pub(super) const QUERY_WRITE_STATUS: Method =
    Method::of("/google.bytestream.ByteStream/QueryWriteStatus");

/// The header that says who asks.
pub(super) const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct RequestMetadata {
    #[prost(message, optional, tag = "1")]
    pub(super) tool_details: Option<ToolDetails>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ToolDetails {
    #[prost(string, tag = "1")]
    pub(super) tool_name: String,
    #[prost(string, tag = "2")]
    pub(super) tool_version: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct GetCapabilitiesRequest {
    #[prost(string, tag = "1")]
    pub(super) instance_name: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ServerCapabilities {
    #[prost(message, optional, tag = "1")]
    pub(super) cache_capabilities: Option<CacheCapabilities>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct CacheCapabilities {
    #[prost(int32, repeated, tag = "1")]
    pub(super) digest_functions: Vec<i32>,
    #[prost(message, optional, tag = "2")]
    pub(super) action_cache_update_capabilities: Option<ActionCacheUpdateCapabilities>,
    #[prost(int64, tag = "4")]
    pub(super) max_batch_total_size_bytes: i64,
    #[prost(int32, repeated, tag = "6")]
    pub(super) supported_compressors: Vec<i32>,
    #[prost(int32, repeated, tag = "7")]
    pub(super) supported_batch_update_compressors: Vec<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct ActionCacheUpdateCapabilities {
    #[prost(bool, tag = "1")]
    pub(super) update_enabled: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct GetActionResultRequest {
    #[prost(string, tag = "1")]
    pub(super) instance_name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) action_digest: Option<Digest>,
    #[prost(bool, tag = "3")]
    pub(super) inline_stdout: bool,
    #[prost(string, repeated, tag = "5")]
    pub(super) inline_output_files: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct UpdateActionResultRequest {
    #[prost(string, tag = "1")]
    pub(super) instance_name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) action_digest: Option<Digest>,
    #[prost(message, optional, tag = "3")]
    pub(super) action_result: Option<ActionResult>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct FindMissingBlobsRequest {
    #[prost(string, tag = "1")]
    pub(super) instance_name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) blob_digests: Vec<Digest>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct FindMissingBlobsResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) missing_blob_digests: Vec<Digest>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct BatchReadBlobsRequest {
    #[prost(string, tag = "1")]
    pub(super) instance_name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) digests: Vec<Digest>,
    #[prost(int32, repeated, tag = "3")]
    pub(super) acceptable_compressors: Vec<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BatchReadBlobsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) responses: Vec<BlobRead>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BlobRead {
    #[prost(message, optional, tag = "1")]
    pub(super) digest: Option<Digest>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<RpcStatus>,
    #[prost(int32, tag = "4")]
    pub(super) compressor: i32,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct BatchUpdateBlobsRequest {
    #[prost(string, tag = "1")]
    pub(super) instance_name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) requests: Vec<BlobUpdate>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct BlobUpdate {
    #[prost(message, optional, tag = "1")]
    pub(super) digest: Option<Digest>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) data: Bytes,
    #[prost(int32, tag = "3")]
    pub(super) compressor: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BatchUpdateBlobsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) responses: Vec<BlobUpdated>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BlobUpdated {
    #[prost(message, optional, tag = "1")]
    pub(super) digest: Option<Digest>,
    #[prost(message, optional, tag = "2")]
    pub(super) status: Option<RpcStatus>,
}

/// `google.bytestream.ReadRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ReadRequest {
    #[prost(string, tag = "1")]
    pub(super) resource_name: String,
    #[prost(int64, tag = "2")]
    pub(super) read_offset: i64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ReadResponse {
    #[prost(bytes = "bytes", tag = "10")]
    pub(super) data: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct WriteRequest {
    #[prost(string, tag = "1")]
    pub(super) resource_name: String,
    #[prost(int64, tag = "2")]
    pub(super) write_offset: i64,
    #[prost(bool, tag = "3")]
    pub(super) finish_write: bool,
    #[prost(bytes = "bytes", tag = "10")]
    pub(super) data: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct WriteResponse {
    #[prost(int64, tag = "1")]
    pub(super) committed_size: i64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct QueryWriteStatusRequest {
    #[prost(string, tag = "1")]
    pub(super) resource_name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct QueryWriteStatusResponse {
    #[prost(int64, tag = "1")]
    pub(super) committed_size: i64,
    #[prost(bool, tag = "2")]
    pub(super) complete: bool,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) retry_delay: Option<ProtoDuration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct ProtoDuration {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}
