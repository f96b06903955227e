"""What one emulated Pinecone index stores, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

MAX_RECORDS = 1000  # operation limits, upsert
MAX_IDS = 1000  # operation limits, fetch and delete
MAX_METADATA_BYTES = 40_960  # "metadata size is 41804 bytes, which exceeds the limit of 40960 bytes per vector"
MAX_ID_LENGTH = 512  # identifier limits
MAX_NAMESPACE_LENGTH = 512  # identifier limits
MAX_TOP_K = 10_000
DEFAULT_NAMESPACE = "__default__"
ZEROS = re.compile(rb"[\[\]\s,.0eE+-]*")

INVALID_ARGUMENT, NOT_FOUND = 3, 5  # gRPC codes, as the data plane's errors carry them


class BadRequest(Exception):  # noqa: N818 - carries an answer
    """A request the data plane refuses, with its HTTP status and gRPC code."""

    def __init__(self, message: str, status: int = 400, code: int = INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


class SentVector(msgspec.Struct, rename="camel", gc=False):
    """One record as it is sent; ``values`` and ``metadata`` stay bytes until they are needed."""

    id: str
    values: msgspec.Raw = msgspec.Raw(b"[]")
    metadata: msgspec.Raw = msgspec.Raw(b"null")


class SentUpsert(msgspec.Struct, gc=False):
    """The body of an upsert request."""

    vectors: list[SentVector]
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A stored record; ``vector`` is None where the emulator does not keep values."""

    vector: NDArray[np.float32] | None
    metadata: dict[str, Any] | None


def check_id(record_id: str) -> None:
    """Refuse an id that is not 1 to 512 ASCII characters without NUL."""
    if not 1 <= len(record_id) <= MAX_ID_LENGTH:
        raise BadRequest(f"Vector ID must be 1 to {MAX_ID_LENGTH} characters, got {len(record_id)}")
    if not record_id.isascii() or "\0" in record_id:
        raise BadRequest(f"Vector ID must be ASCII without NUL, but is {record_id!r}")


def check_ids(ids: list[str]) -> None:
    """Refuse no ids at all, more than 1,000, and an id that cannot be."""
    if not 1 <= len(ids) <= MAX_IDS:
        raise BadRequest(f"The number of IDs must be 1 to {MAX_IDS}, got {len(ids)}")
    for record_id in ids:
        check_id(record_id)


def check_namespace(namespace: str) -> str:
    """The namespace's own name; empty is the default one."""
    if len(namespace) > MAX_NAMESPACE_LENGTH or not namespace.isascii() or "\0" in namespace:
        raise BadRequest(f"Namespace must be up to {MAX_NAMESPACE_LENGTH} ASCII characters without NUL")
    return namespace or DEFAULT_NAMESPACE


def check_metadata(raw: msgspec.Raw) -> dict[str, Any] | None:
    """The metadata decoded; refuses more than 40 KB, nesting, null, and lists of anything but strings."""
    size = len(bytes(raw))
    if size > MAX_METADATA_BYTES:
        raise BadRequest(
            f"metadata size is {size} bytes, which exceeds the limit of {MAX_METADATA_BYTES} bytes per vector"
        )
    metadata = orjson.loads(bytes(raw))
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise BadRequest("Metadata must be an object")
    for name, value in metadata.items():
        if name.startswith("$"):
            raise BadRequest(f"Metadata field names must not start with '$', got '{name}'")
        if isinstance(value, int) and not isinstance(value, bool):
            metadata[name] = float(value)  # metadata guide: numbers are stored as 64-bit floating point
        if isinstance(value, str | int | float):
            continue
        if isinstance(value, list) and all(isinstance(element, str) for element in value):
            continue
        shown = orjson.dumps(value).decode()[:16]
        allowed = "a string, number, boolean or list of strings"
        raise BadRequest(f"Metadata value must be {allowed}, got '{shown}' for field '{name}'")
    return metadata


def check_values(raw: msgspec.Raw, dimension: int, *, keep: bool) -> NDArray[np.float32] | None:
    """The values as float32; without ``keep`` they are judged by their text alone, which costs a tenth."""
    text = bytes(raw)
    found = text.count(b",") + 1 if text.strip(b"[] ") else 0
    if found != dimension:
        raise BadRequest(f"Vector dimension {found} does not match the dimension of the index {dimension}")
    if b"null" in text or b"N" in text or b"I" in text:
        raise BadRequest("Vector values must be finite numbers")
    if ZEROS.fullmatch(text):
        raise BadRequest("Dense vectors must contain at least one non-zero value")
    if not keep:
        return None
    with np.errstate(over="ignore"):
        values = np.array(orjson.loads(text), dtype=np.float32)
    if not np.isfinite(values).all():
        raise BadRequest("Vector values must be finite numbers")
    if not values.any():
        raise BadRequest("Dense vectors must contain at least one non-zero value")
    return values


def scores(vectors: NDArray[np.float32], query: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    """How near each row is, by the index's metric: euclidean is the squared distance, as Pinecone answers it."""
    result: NDArray[np.float32]
    if metric == "euclidean":
        result = np.square(vectors - query).sum(axis=1)
    elif metric == "cosine":
        result = vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
    else:
        result = vectors @ query
    return result


@dataclass
class StoredIndex:
    """One index: ``namespaces`` maps a namespace to its records by id; the default one is ``__default__``."""

    name: str
    schema: dict[str, Any]
    deployment: dict[str, Any]
    deletion_protection: str = "disabled"
    tags: dict[str, str] | None = None
    namespaces: dict[str, dict[str, StoredRecord]] = field(default_factory=dict)

    def check_serves_vectors(self) -> None:
        """Refuse where the index was made with a schema of its own."""
        _ = self.dense

    @property
    def dense(self) -> dict[str, Any]:
        """The dense field that the vector methods serve; it is there only where ``dimension`` made the index."""
        try:
            dense: dict[str, Any] = self.schema["fields"]["_values"]
        except KeyError:
            raise BadRequest("This index has a schema: use its documents, not the vector operations") from None
        return dense

    @property
    def dimension(self) -> int:
        return int(self.dense["dimension"])

    def read(self, sent: SentUpsert, *, keep: bool) -> list[tuple[str, StoredRecord]]:
        """The records of an upsert, every one of them within the rules."""
        if not 1 <= len(sent.vectors) <= MAX_RECORDS:
            raise BadRequest(f"The number of vectors must be 1 to {MAX_RECORDS}, got {len(sent.vectors)}")
        records = []
        for vector in sent.vectors:
            check_id(vector.id)
            values = check_values(vector.values, self.dimension, keep=keep)
            records.append((vector.id, StoredRecord(values, check_metadata(vector.metadata))))
        return records

    def existing(self, namespace: str) -> dict[str, StoredRecord]:
        """The records of a namespace to delete from; 404 where there is none."""
        name = check_namespace(namespace)
        if name not in self.namespaces:
            raise BadRequest("Namespace not found", 404, NOT_FOUND)
        return self.namespaces[name]

    def nearest(self, namespace: str, query: NDArray[np.float32], top_k: int) -> list[tuple[str, float, StoredRecord]]:
        """The ids, scores and records nearest to the query, nearest first."""
        records = {key: value for key, value in self.namespaces.get(namespace, {}).items() if value.vector is not None}
        if not records:
            return []
        stacked = np.stack([record.vector for record in records.values() if record.vector is not None])
        values = scores(stacked, query, self.dense["metric"])
        order = np.argsort(values if self.dense["metric"] == "euclidean" else -values, kind="stable")[:top_k]
        items = list(records.items())
        return [(items[row][0], float(values[row]), items[row][1]) for row in order.tolist()]

    def as_json(self, host: str, *, is_ready: bool) -> dict[str, Any]:
        """The index as the control plane describes it."""
        return {
            "name": self.name,
            "host": host,
            "schema": self.schema,
            "deployment": self.deployment,
            "deletion_protection": self.deletion_protection,
            "tags": self.tags,
            "status": {"ready": is_ready, "state": "Ready" if is_ready else "Initializing"},
        }
