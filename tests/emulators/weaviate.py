"""Weaviate's REST API and its gRPC service, as client 4.24 speaks to them, each on a loopback port of its own.

Both are answered by the same code on the same thread: a gRPC call is a request whose path is the method's name and
whose body is the message, so counters, faults, latency and the gate hold for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import grpc
import orjson
from weaviate.proto.v1 import aggregate_pb2, batch_delete_pb2, batch_pb2, health_weaviate_pb2, search_get_pb2

from tests.emulators import weaviate_operations as operations
from tests.emulators.faults import Faults, Kind
from tests.emulators.http import Request, Response, json_response
from tests.emulators.server import Emulator, Refused
from tests.emulators.weaviate_store import BadRequest, StoredCollection, read_class

VERSION = "1.38.4"
MAX_MESSAGE_BYTES = 10_485_760
SERVICE = "/weaviate.v1.Weaviate/"
HEALTH = "/grpc.health.v1.Health/Check"
OPEN_PATHS = ("/v1/.well-known/", HEALTH)
CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    422: grpc.StatusCode.UNKNOWN,  # what a Go error without a status becomes
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


def error(status: int, message: str) -> Response:
    """An error as the REST API answers it."""
    return json_response({"error": [{"message": message}]}, status)


class WeaviateEmulator(Emulator):
    """Collections by name. Without an ``api_key`` access is anonymous; auto-schema is off.

    ``upserts`` counts per document id how often it was stored; ``upserted`` (objects), ``upsert_requests``,
    ``largest_request_bytes`` and ``largest_request_records`` count batches that were taken, even where the connection
    was then cut. gRPC itself refuses a message over ``max_message_bytes``; `/v1/meta` tells it unless ``is_reticent``.
    An object whose id contains a ``poison`` string of the faults is refused inside an answer that is in order.
    """

    def __init__(
        self,
        *,
        api_key: str | None = "weaviate-emulator",
        version: str = VERSION,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        is_reticent: bool = False,
        port: int = 0,
        grpc_port: int = 0,
        latency_seconds: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.api_key = api_key
        self.version = version
        self.max_message_bytes = max_message_bytes
        self.is_reticent = is_reticent
        self.grpc_port = grpc_port
        self.collections: dict[str, StoredCollection] = {}
        self._grpc: grpc.Server | None = None
        super().__init__(port=port, latency_seconds=latency_seconds, faults=faults)

    def start(self) -> Self:
        super().start()
        options = [("grpc.max_receive_message_length", self.max_message_bytes), ("grpc.so_reuseport", 0)]
        self._grpc = grpc.server(ThreadPoolExecutor(32), handlers=[_EveryMethod(self._call)], options=options)
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{self.grpc_port}")
        self._grpc.start()
        return self

    def stop(self) -> None:
        if self._grpc is not None:
            self.release(drop=True)  # nothing of what is held is answered any more
            self._grpc.stop(grace=None).wait()
            self._grpc = None
        super().stop()

    def create_collection(self, name: str, **definition: Any) -> StoredCollection:
        """A collection as the REST API would make it, without a request."""
        self.collections[name] = StoredCollection(read_class({"class": name, **definition}))
        return self.collections[name]

    def reset_counts(self) -> None:
        super().reset_counts()
        self.upserts: Counter[str] = Counter()
        self.upserted = 0
        self.upsert_requests = 0
        self.largest_request_bytes = 0
        self.largest_request_records = 0

    def state(self) -> dict[str, Any]:
        own = ["upserted", "upsert_requests", "largest_request_bytes", "largest_request_records"]
        stored = {name: len(collection.objects) for name, collection in self.collections.items()}
        return {**super().state(), **{name: getattr(self, name) for name in own}, "stored": stored}

    def check_admission(self, request: Request) -> None:
        if self.api_key is None or request.path.startswith(OPEN_PATHS):
            return
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            raise Refused(error(401, "unauthorized: invalid api key"))

    def fault_response(self, status: int) -> Response:
        return error(status, "injected")

    def answer(self, request: Request, fault: Kind) -> Response:
        try:
            if request.path == HEALTH:
                serving = health_weaviate_pb2.WeaviateHealthCheckResponse.SERVING
                return _message(health_weaviate_pb2.WeaviateHealthCheckResponse(status=serving))
            if request.path.startswith(SERVICE):
                return self._rpc(request.path.removeprefix(SERVICE), request.body)
            return self._rest(request)
        except BadRequest as refusal:
            raise Refused(error(refusal.status, refusal.message)) from None

    # REST

    def _rest(self, request: Request) -> Response:
        match request.method, request.path.strip("/").split("/"):
            case "GET", ["v1", ".well-known", "ready" | "live"]:
                return Response(200, b"")
            case "GET", ["v1", "meta"]:
                told = {} if self.is_reticent else {"grpcMaxMessageSize": self.max_message_bytes}
                return json_response({"version": self.version, "hostname": self.url, "modules": {}, **told})
            case "GET", ["v1", "schema"]:
                return json_response({"classes": [one.schema for one in self.collections.values()]})
            case "POST", ["v1", "schema"]:
                sent = orjson.loads(request.body)
                if sent.get("class") in self.collections:
                    raise BadRequest(f"class name {sent['class']} already exists")
                return json_response(self.create_collection(sent.pop("class"), **sent).schema)
            case "GET", ["v1", "schema", name] if name in self.collections:
                return json_response(self.collections[name].schema)
            case "DELETE", ["v1", "schema", name]:
                self.collections.pop(name, None)
                return Response(200, b"")
        raise Refused(error(404, f"{request.method} {request.path} is not there"))

    # gRPC

    def _rpc(self, method: str, body: bytes) -> Response:
        match method:
            case "BatchObjects":
                return self._batch(batch_pb2.BatchObjectsRequest.FromString(body), len(body))
            case "Search":
                search = search_get_pb2.SearchRequest.FromString(body)
                return _message(operations.search(self._collection(search.collection), search))
            case "Aggregate":
                aggregate = aggregate_pb2.AggregateRequest.FromString(body)
                return _message(operations.aggregate(self._collection(aggregate.collection), aggregate))
            case "BatchDelete":
                delete = batch_delete_pb2.BatchDeleteRequest.FromString(body)
                return _message(operations.delete(self._collection(delete.collection), delete))
        raise BadRequest(f"{method} is not emulated", 404)

    def _collection(self, name: str) -> StoredCollection:
        if name not in self.collections:
            raise BadRequest(f"could not find class {name} in schema")
        return self.collections[name]

    def _batch(self, sent: batch_pb2.BatchObjectsRequest, size: int) -> Response:
        reply = batch_pb2.BatchObjectsReply()
        for index, one in enumerate(sent.objects):
            try:
                self._store(one)
            except BadRequest as refusal:
                reply.errors.add(index=index, error=refusal.message)
        self.upsert_requests += 1
        self.largest_request_bytes = max(self.largest_request_bytes, size)
        self.largest_request_records = max(self.largest_request_records, len(sent.objects))
        return _message(reply)

    def _store(self, sent: batch_pb2.BatchObject) -> None:
        collection = self._collection(sent.collection)
        uuid, stored = collection.read(sent)
        id_ = str(stored.properties.get("document_id", uuid))
        if self.faults.poisoned(id_):
            raise BadRequest("this object is refused")
        collection.objects[uuid] = stored
        self.upserts[id_] += 1
        self.upserted += 1

    def _call(self, method: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        """One call, on a thread of the gRPC server: answered on the emulator's own, as any request."""
        assert self._server is not None
        headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        answering = self._server.submit(self._handle(Request("POST", method, {}, headers, body)))
        context.add_callback(answering.cancel)  # the caller waits no longer
        try:
            answer = answering.result()
        except CancelledError:
            return b""
        if isinstance(answer, Response) and answer.status == 200:
            return answer.body
        if isinstance(answer, Response):
            context.abort(CODES[answer.status], answer.body.decode())
        context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
        raise AssertionError("abort raises")


class _EveryMethod(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Hands every method's message on as bytes."""

    def __init__(self, call: Callable[[str, bytes, grpc.ServicerContext], bytes]) -> None:
        self._call = call

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(partial(self._call, handler_call_details.method))


def _message(reply: Any) -> Response:
    return Response(200, reply.SerializeToString())
