"""A cache of the Remote Execution API that does what the test says: on gRPC's own implementation, not on ours.

  reapi_liar.py PORT DIR

Behaviour is a set of words in DIR/lies, read anew for every call; what it was asked stands in DIR/asked, a line a call.
"""

import os
import sys
import threading
from concurrent import futures

import grpc
import zstandard
from buildgrid._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re
from buildgrid._protos.build.bazel.remote.execution.v2 import remote_execution_pb2_grpc as re_grpc
from buildgrid._protos.google.bytestream import bytestream_pb2 as bs
from buildgrid._protos.google.bytestream import bytestream_pb2_grpc as bs_grpc
from buildgrid._protos.google.rpc import error_details_pb2, status_pb2

PORT, DIR = int(sys.argv[1]), sys.argv[2]
PIECE = 64 << 10
LOCK = threading.Lock()
ACTIONS, BLOBS, PARTIAL = {}, {}, {}


def lies():
    with open(os.path.join(DIR, "lies")) as file:
        return file.read().split()


def asked(what, context):
    us = dict(context.invocation_metadata()).get("build.bazel.remote.execution.v2.requestmetadata-bin", b"")
    tool = re.RequestMetadata.FromString(us).tool_details
    with LOCK, open(os.path.join(DIR, "asked"), "a") as file:
        file.write(f"{what} by {tool.tool_name}\n")
    said = lies()
    if "hangs" in said:
        threading.Event().wait(30)
    if "busy" in said:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.seconds = 7
        status = status_pb2.Status(code=8, message="too much")
        status.details.add().Pack(info)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
    if "echoes" in said:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        context.abort(grpc.StatusCode.INTERNAL, f"bad token: {sent}")
    return said


class Capabilities(re_grpc.CapabilitiesServicer):
    def GetCapabilities(self, request, context):
        said = asked("capabilities", context)
        answer = re.ServerCapabilities()
        cache = answer.cache_capabilities
        cache.digest_functions.append(2 if "sha1" in said else 1)
        cache.action_cache_update_capabilities.update_enabled = True
        cache.max_batch_total_size_bytes = 10000 if "low" in said else 0
        if "zstd" in said:
            cache.supported_compressors.append(1)
            cache.supported_batch_update_compressors.append(1)
        return answer


class ActionCache(re_grpc.ActionCacheServicer):
    def GetActionResult(self, request, context):
        said = asked("get action", context)
        result = ACTIONS.get(request.action_digest.hash)
        if result is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such action")
        if "hangs-inlining" in said and request.inline_output_files:
            threading.Event().wait(30)
        copy = re.ActionResult()
        copy.CopyFrom(result)
        for file in copy.output_files:
            if file.path in request.inline_output_files and "inlines" in said:
                file.contents = BLOBS[file.digest.hash]
            if "inlines-wrong" in said:
                file.contents = b"x" * file.digest.size_bytes
        return copy

    def UpdateActionResult(self, request, context):
        asked("update action", context)
        ACTIONS[request.action_digest.hash] = request.action_result
        return request.action_result


class Cas(re_grpc.ContentAddressableStorageServicer):
    def FindMissingBlobs(self, request, context):
        asked("find missing", context)
        missing = [digest for digest in request.blob_digests if digest.hash not in BLOBS]
        return re.FindMissingBlobsResponse(missing_blob_digests=missing)

    def BatchUpdateBlobs(self, request, context):
        said = asked(f"batch update {[r.compressor for r in request.requests]}", context)
        answer = re.BatchUpdateBlobsResponse()
        for update in request.requests:
            data = update.data
            if update.compressor == 1:
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            blob = answer.responses.add(digest=update.digest)
            if "full" in said:
                blob.status.code = 8
            else:
                BLOBS[update.digest.hash] = data
        return answer

    def BatchReadBlobs(self, request, context):
        said = asked("batch read", context)
        answer = re.BatchReadBlobsResponse()
        # Nobody asked about this one, and it comes first.
        other = answer.responses.add(data=b"another")
        other.digest.hash, other.digest.size_bytes = "a" * 64, 7
        for digest in request.digests:
            if "silent" in said:
                continue
            blob = answer.responses.add(digest=digest)
            data = BLOBS.get(digest.hash)
            if data is None:
                blob.status.code = 5
                continue
            if "flips" in said:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if "short" in said:
                data = data[:-1]
            if 1 in request.acceptable_compressors:
                blob.compressor, data = 1, zstandard.compress(data)
                if "bomb" in said:
                    data = zstandard.compress(bytes(1 << 30))
            blob.data = data
        return answer


class ByteStream(bs_grpc.ByteStreamServicer):
    def Read(self, request, context):
        parts = request.resource_name.split("/")
        said = asked(f"read {'zstd' if 'zstd' in parts else 'plain'} from {request.read_offset}", context)
        data = BLOBS.get(parts[-2])
        if data is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        if "flips" in said:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if "short" in said:
            data = data[:-1]
        if "long" in said:
            data = data + b"x"
        data = data[request.read_offset:]
        if "zstd" in parts:
            data = zstandard.compress(data)
        # Each stream gets half of what is left; "stuck" none of it.
        end = 0 if "stuck" in said else len(data) // 2 if "cuts" in said and len(data) > PIECE else len(data)
        for at in range(0, end, PIECE):
            yield bs.ReadResponse(data=data[at:min(at + PIECE, end)])
        while "empties" in said:
            yield bs.ReadResponse()
        if end < len(data):
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    def Write(self, requests, context):
        said, name, data = None, None, bytearray()
        for request in requests:
            if name is None:
                name = request.resource_name
                kind = "zstd" if "/zstd/" in name else "plain"
                said = asked(f"write {kind} from {request.write_offset}", context)
                data = PARTIAL.setdefault(name, bytearray())
                if request.write_offset != len(data):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not where it ended")
                if "has-it" in said:
                    return bs.WriteResponse(committed_size=int(name.split("/")[-1]))
                began = len(data)
            data += request.data
            if "cuts" in said and not request.finish_write and len(data) - began >= 3 << 20:
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            if "full" in said:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
            if request.finish_write:
                break
        if "takes-less" in said:
            return bs.WriteResponse(committed_size=len(data) - 1)
        parts = name.split("/")
        blob = bytes(data)
        if "zstd" in parts:
            blob = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
        BLOBS[parts[-2]] = blob
        return bs.WriteResponse(committed_size=len(data))

    def QueryWriteStatus(self, request, context):
        said = asked("query", context)
        if "forgets" in said:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such write")
        return bs.QueryWriteStatusResponse(committed_size=len(PARTIAL.get(request.resource_name, b"")))


server = grpc.server(futures.ThreadPoolExecutor(32))
re_grpc.add_CapabilitiesServicer_to_server(Capabilities(), server)
re_grpc.add_ActionCacheServicer_to_server(ActionCache(), server)
re_grpc.add_ContentAddressableStorageServicer_to_server(Cas(), server)
bs_grpc.add_ByteStreamServicer_to_server(ByteStream(), server)
server.add_insecure_port(f"127.0.0.1:{PORT}")
server.start()
server.wait_for_termination()
