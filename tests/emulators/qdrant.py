"""Qdrant's REST API, as much of it as the official client asks here, on one loopback address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from tests.emulators.faults import Faults, Kind
from tests.emulators.http import Request, Response, json_response
from tests.emulators.qdrant_store import BadRequest, Collection, SentPoint, point_key
from tests.emulators.server import Emulator, Refused

MAX_REQUEST_BYTES = 32 * 1024 * 1024  # Qdrant's config.yaml: max_request_size_mb


def qdrant_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as Qdrant answers it."""
    return json_response({"status": {"error": message}, "time": 0.0}, status, headers)


def qdrant_ok(result: Any) -> Response:
    """A result as Qdrant answers it."""
    return json_response({"result": result, "status": "ok", "time": 0.0})


class QdrantEmulator(Emulator):
    """Collections under ``/collections``. ``api_key`` None asks for no key.

    ``upserts`` counts per point how often it was upserted; ``upsert_requests``, ``upserted``, ``upsert_bytes``,
    ``largest_request_bytes`` and ``largest_request_records`` count upserts that were stored. An upsert that does not
    wait is acknowledged, and stored never: who takes that for stored has lost it.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        port: int = 0,
        latency_seconds: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.api_key = api_key
        self.max_request_bytes = max_request_bytes
        self.collections: dict[str, Collection] = {}
        super().__init__(port=port, latency_seconds=latency_seconds, faults=faults)

    def reset_counts(self) -> None:
        super().reset_counts()
        self.upserts: Counter[str] = Counter()
        self.upserted = 0
        self.upsert_requests = 0
        self.upsert_bytes = 0
        self.largest_request_bytes = 0
        self.largest_request_records = 0

    def state(self) -> dict[str, Any]:
        own = ["upserted", "upsert_requests", "upsert_bytes", "largest_request_bytes", "largest_request_records"]
        stored = {name: len(collection.points) for name, collection in self.collections.items()}
        return {**super().state(), **{name: getattr(self, name) for name in own}, "stored": stored}

    def check_admission(self, request: Request) -> None:
        if self.api_key is not None and request.headers.get("api-key") != self.api_key:
            raise Refused(qdrant_error(401, "Must provide an API key or an Authorization bearer token"))

    def fault_response(self, status: int) -> Response:
        seconds = self.faults.retry_after_seconds if status == 429 else None
        return qdrant_error(status, "injected", {} if seconds is None else {"retry-after": f"{seconds:g}"})

    def answer(self, request: Request, fault: Kind) -> Response:
        if len(request.body) > self.max_request_bytes:
            raise Refused(qdrant_error(413, f"Payload reached size limit: {self.max_request_bytes}"))
        first, name, *rest = [*request.path.strip("/").split("/"), ""][:4]
        if first != "collections" or not name:
            raise Refused(qdrant_error(404, f"No such path: {request.path}"))
        try:
            sent = orjson.loads(request.body) if request.body else {}
            verb = f"{request.method} {'/'.join(part for part in rest if part)}".strip()
            return qdrant_ok(self._do(verb, name, sent, request))
        except BadRequest as error:
            raise Refused(qdrant_error(error.status, error.message)) from None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Refused(qdrant_error(400, f"Format error in JSON body: {error}")) from None

    def _do(self, verb: str, name: str, sent: Any, request: Request) -> Any:
        if verb == "GET exists":
            return {"exists": name in self.collections}
        if verb == "PUT":
            return self._create(name, sent)
        if name not in self.collections:
            raise BadRequest(f"Not found: Collection `{name}` doesn't exist!", 404)
        collection = self.collections[name]
        if verb == "PUT points":
            return self._upsert(collection, request.body, sent, waits=request.query.get("wait") == ["true"])
        if verb not in _ACTS:
            raise BadRequest(f"{verb} is not emulated", 404)
        return _ACTS[verb](collection, sent)

    def _create(self, name: str, sent: Any) -> bool:
        if name in self.collections:
            raise BadRequest(f"Wrong input: Collection `{name}` already exists!", 409)
        vectors = sent["vectors"]
        self.collections[name] = Collection({"": vectors} if "size" in vectors else vectors)
        return True

    def _upsert(self, collection: Collection, body: bytes, sent: Any, *, waits: bool) -> dict[str, Any]:
        points = [
            SentPoint(point["id"], _named(point["vector"]), point.get("payload") or {}) for point in sent["points"]
        ]
        if any(self.faults.poisoned(str(point.payload.get("id"))) for point in points):
            raise BadRequest("Wrong input: a point of this request is refused")
        if not waits:
            return {"operation_id": self.requests, "status": "acknowledged"}
        collection.upsert(points)
        self.upserts.update(str(point.id) for point in points)
        self.upserted += len(points)
        self.upsert_requests += 1
        self.upsert_bytes += len(body)
        self.largest_request_bytes = max(self.largest_request_bytes, len(body))
        self.largest_request_records = max(self.largest_request_records, len(points))
        return {"operation_id": self.requests, "status": "completed"}


def described(collection: Collection) -> dict[str, Any]:
    """A collection as ``GET /collections/{name}`` answers it."""
    optimizer = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
    optimizer |= {"indexing_threshold": collection.indexing_threshold, "flush_interval_sec": 5}
    return {
        "status": "green",
        "optimizer_status": "ok",
        "points_count": len(collection.points),
        "segments_count": 1,
        "payload_schema": {},
        "config": {
            "params": {"vectors": collection.only or dict(collection.vectors)},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
            "optimizer_config": optimizer,
        },
    }


def shown(collection: Collection, key: str) -> dict[str, Any]:
    """A point as it is answered, with its payload and its vectors."""
    point = collection.points[key]
    vectors = {name: vector.tolist() for name, vector in point.vectors.items()}
    return {"id": key, "payload": point.payload, "vector": vectors.get("", vectors)}


def _change(collection: Collection, sent: Any) -> bool:
    collection.set_threshold(sent["optimizers_config"]["indexing_threshold"])
    return True


def _delete(collection: Collection, sent: Any) -> dict[str, Any]:
    for id_ in sent["points"]:
        collection.points.pop(point_key(id_), None)
    return {"operation_id": 1, "status": "completed"}


def _retrieve(collection: Collection, sent: Any) -> list[dict[str, Any]]:
    return [shown(collection, key) for key in map(point_key, sent["ids"]) if key in collection.points]


def _query(collection: Collection, sent: Any) -> dict[str, Any]:
    asked = sent["query"]["nearest"] if isinstance(sent["query"], dict) else sent["query"]
    nearest = collection.nearest(sent.get("using") or "", asked, sent["limit"])
    return {"points": [shown(collection, key) | {"score": score, "version": 0} for key, score in nearest]}


_ACTS: dict[str, Callable[[Collection, Any], Any]] = {
    "GET": lambda collection, _: described(collection),
    "PATCH": _change,
    "POST points": _retrieve,
    "POST points/count": lambda collection, _: {"count": len(collection.points)},
    "POST points/delete": _delete,
    "POST points/query": _query,
}


def _named(vector: Any) -> Mapping[str, Sequence[float]]:
    if isinstance(vector, list):
        return {"": vector}
    if isinstance(vector, dict):
        return vector
    raise BadRequest(f"Format error in JSON body: vector of type {type(vector).__name__}")
