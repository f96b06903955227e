"""Pinecone's control plane and data plane, as SDK 10 speaks to them (API 2026-07), on one loopback address."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import orjson

from tests.emulators import pinecone_operations as operations
from tests.emulators import pinecone_store as store
from tests.emulators.faults import Faults, Kind
from tests.emulators.http import Request, Response, json_response
from tests.emulators.pinecone_store import BadRequest, StoredIndex, StoredRecord
from tests.emulators.server import Emulator, Refused
from tests.emulators.window import SlidingWindow

MAX_REQUEST_BYTES = 2_000_000  # operation limits: 2 MB; as sent
MAX_DIMENSION = 20_000  # operation limits
METRICS = ("cosine", "dotproduct", "euclidean")
GRPC_CODES = {400: 3, 401: 16, 404: 5, 413: 11, 429: 8, 500: 13, 503: 14}
CONTROL_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}

_upsert_decoder = msgspec.json.Decoder(store.SentUpsert)


def data_error(
    status: int, message: str, code: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as the data plane answers it."""
    value = {"code": GRPC_CODES.get(status, 2) if code is None else code, "message": message, "details": []}
    return json_response(value, status, headers)


def control_error(status: int, message: str) -> Response:
    """An error as the control plane answers it."""
    code = CONTROL_CODES.get(status, "UNKNOWN")
    return json_response({"error": {"code": code, "message": message}, "status": status}, status)


class PineconeEmulator(Emulator):
    """Indexes over ``/indexes``, and each index's records under the host that describing it answers.

    ``upserts`` counts per id how often it was upserted; ``upsert_requests``, ``upserted`` (records),
    ``largest_request_bytes`` and ``largest_request_records`` count upserts that were stored, even where the connection
    was then cut. ``indexes`` holds what is stored. Indexes named in ``initializing`` are described as not ready.

    A request body over ``max_request_bytes`` is refused with ``oversize_status`` (413; Pinecone is known to answer 400
    too). Without ``keep_values`` values are judged and dropped: for benchmarks. ``requests_per_second`` limits upserts.
    """

    request_id_header = "x-pinecone-request-id"

    def __init__(
        self,
        *,
        api_key: str = "pc-emulator",
        max_request_bytes: int = MAX_REQUEST_BYTES,
        oversize_status: int = 413,
        keep_values: bool = True,
        requests_per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        port: int = 0,
        latency_seconds: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.api_key = api_key
        self.max_request_bytes = max_request_bytes
        self.oversize_status = oversize_status
        self.keep_values = keep_values
        self.indexes: dict[str, StoredIndex] = {}
        self.initializing: set[str] = set()
        self._window = SlidingWindow(requests_per_second or math.inf, 1.0, clock)
        super().__init__(port=port, latency_seconds=latency_seconds, faults=faults)

    @property
    def base_url(self) -> str:
        """What the SDK takes as ``host`` and as ``PINECONE_CONTROLLER_HOST``."""
        return self.url

    def host(self, index: str) -> str:
        """The data plane's address of an index, as describing it answers."""
        return f"{self.url}/hosts/{quote(index, safe='')}"

    def create_index(self, name: str, dimension: int, metric: str = "cosine") -> StoredIndex:
        """An index for the vector operations, without a request."""
        schema = {"fields": {"_values": {"type": "dense_vector", "dimension": dimension, "metric": metric}}}
        deployment = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}
        self.indexes[name] = StoredIndex(name, schema, deployment)
        return self.indexes[name]

    def records(self, index: str, namespace: str = "") -> dict[str, StoredRecord]:
        """What a namespace holds, by id."""
        return self.indexes[index].namespaces.get(namespace or store.DEFAULT_NAMESPACE, {})

    def reset_counts(self) -> None:
        super().reset_counts()
        self.upserts: Counter[str] = Counter()
        self.upserted = 0
        self.upsert_requests = 0
        self.upsert_bytes = 0
        self.largest_request_bytes = 0
        self.largest_request_records = 0

    @property
    def upserted_again(self) -> int:
        """How many upserted records had an id that had been upserted before."""
        return self.upserted - len(self.upserts)

    def state(self) -> dict[str, Any]:
        own = ["upserted", "upserted_again", "upsert_requests", "upsert_bytes"]
        own += ["largest_request_bytes", "largest_request_records"]
        stored = {
            name: {namespace: len(records) for namespace, records in index.namespaces.items()}
            for name, index in self.indexes.items()
        }
        return {**super().state(), **{name: getattr(self, name) for name in own}, "stored": stored}

    def check_admission(self, request: Request) -> None:
        if request.headers.get("api-key") != self.api_key:
            error = control_error if request.path.startswith("/indexes") else data_error
            raise Refused(error(401, "Invalid API key"))

    def fault_response(self, status: int) -> Response:
        seconds = self.faults.retry_after_seconds if status == 429 else None
        return data_error(status, "injected", headers={} if seconds is None else {"retry-after": f"{seconds:g}"})

    def answer(self, request: Request, fault: Kind) -> Response:
        first, *rest = request.path.strip("/").split("/")
        if first == "indexes":
            return self._control(request, rest)
        if first != "hosts" or unquote(rest[0] if rest else "") not in self.indexes:
            raise Refused(data_error(404, f"No index at {request.path}"))
        try:
            return self._data(self.indexes[unquote(rest[0])], "/".join(rest[1:]), request)
        except BadRequest as error:
            raise Refused(data_error(error.status, error.message, error.code)) from None
        except (msgspec.DecodeError, orjson.JSONDecodeError, TypeError, KeyError) as error:
            raise Refused(data_error(400, f"Invalid request: {error}")) from None

    # Control plane

    def _control(self, request: Request, rest: list[str]) -> Response:
        name = rest[0] if rest else ""
        if request.method == "GET" and not name:
            return json_response({"indexes": [self._described(index) for index in self.indexes.values()]})
        if request.method == "POST" and not name:
            return self._create(orjson.loads(request.body or b"{}"))
        if name not in self.indexes:
            raise Refused(control_error(404, f"Resource {name} not found"))
        if request.method == "GET":
            return json_response(self._described(self.indexes[name]))
        if request.method == "DELETE":
            del self.indexes[name]
            return Response(202, b"")
        raise Refused(control_error(400, f"{request.method} {request.path} is not emulated"))

    def _described(self, index: StoredIndex) -> dict[str, Any]:
        return index.as_json(self.host(index.name), is_ready=index.name not in self.initializing)

    def _create(self, sent: dict[str, Any]) -> Response:
        name = sent.get("name") or f"index-{len(self.indexes)}"
        if name in self.indexes:
            raise Refused(control_error(409, f"Resource {name} already exists"))
        for field in sent.get("schema", {}).get("fields", {}).values():
            is_dense = field.get("type") == "dense_vector"
            if is_dense and not (1 <= field["dimension"] <= MAX_DIMENSION and field.get("metric") in METRICS):
                raise Refused(control_error(400, f"Bad dimension or metric: {field}"))
        index = self.create_index(name, 1)
        index.schema = sent["schema"]
        index.deployment = sent.get("deployment") or index.deployment
        index.deletion_protection = sent.get("deletion_protection") or "disabled"
        index.tags = sent.get("tags")
        return json_response(self._described(index), 201)

    # Data plane

    def _data(self, index: StoredIndex, path: str, request: Request) -> Response:
        if len(request.body) > self.max_request_bytes:
            size, limit = len(request.body), self.max_request_bytes
            message = f"Error, message length too large: found {size} bytes, the limit is: {limit} bytes"
            raise BadRequest(message, self.oversize_status, 11)
        index.check_serves_vectors()
        if path == "vectors/upsert":
            return self._upsert(index, request.body)
        query = {name: values[0] for name, values in request.query.items()}
        if path == "vectors/fetch":
            return operations.fetch(index, request.query.get("ids", []), query.get("namespace", ""))
        if path == "vectors/list":
            return operations.list_ids(index, query)
        sent = orjson.loads(request.body) if request.body else {}
        if path == "vectors/delete":
            return operations.delete(index, sent)
        if path == "query":
            return operations.query(index, sent)
        if path == "describe_index_stats":
            return operations.describe_stats(index)
        raise BadRequest(f"{request.method} /{path} is not emulated", 404, store.NOT_FOUND)

    def _upsert(self, index: StoredIndex, body: bytes) -> Response:
        sent = _upsert_decoder.decode(body)
        namespace = store.check_namespace(sent.namespace)
        records = index.read(sent, keep=self.keep_values)
        if self.faults.poison and any(self.faults.poisoned(record_id) for record_id, _ in records):
            raise BadRequest("A record of this request is refused")
        if wait := self._window.wait_seconds(1):
            raise Refused(data_error(429, "Too many requests", headers={"retry-after": str(math.ceil(wait))}))
        self._window.spend(1)
        index.namespaces.setdefault(namespace, {}).update(records)
        self.upserts.update(record_id for record_id, _ in records)
        self.upserted += len(records)
        self.upsert_requests += 1
        self.upsert_bytes += len(body)
        self.largest_request_bytes = max(self.largest_request_bytes, len(body))
        self.largest_request_records = max(self.largest_request_records, len(records))
        return json_response({"upsertedCount": len(records)})
