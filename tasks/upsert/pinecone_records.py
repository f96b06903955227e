"""What Pinecone takes: the rules for a document, and a record in the form in which it is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from pinecone import Vector

from tasks.profiles import PINECONE_ID_CHARACTERS, PINECONE_METADATA_BYTES
from tasks.records import Document, EncodedRecord, Record

_INTEGERS = range(-(2**63), 2**64)  # what JSON encoding carries; Pinecone itself stores numbers as float64
_TEXT = "text"


def envelope_bytes(namespace: str) -> int:
    """Bytes of an upsert request before its first record, less the separator that the first record does not need."""
    return len(orjson.dumps({"vectors": [], "namespace": namespace})) - 1


def refusal(document: Document, *, keep_text: bool) -> str | None:
    """Why Pinecone would refuse this document, or None; the message holds nothing of the text."""
    if reason := id_problem(document.id):
        return reason
    if keep_text and _TEXT in document.metadata:
        return f"metadata has a field {_TEXT} of its own, where the text is kept"
    for field, value in document.metadata.items():
        if reason := _value_problem(field, value):
            return reason
    try:
        size = len(orjson.dumps(_metadata(document.metadata, document.text if keep_text else None)))
    except TypeError:
        return "a string in the document is not valid Unicode"
    if size > PINECONE_METADATA_BYTES:
        kept = " with the text" if keep_text else ""
        return f"metadata{kept} takes {size:,} bytes, Pinecone takes {PINECONE_METADATA_BYTES:,}"
    return None


def encode_record(record: Record) -> EncodedRecord:
    """The record as the SDK sends it, with its exact bytes; a vector that is refused is its reason instead."""
    vector = np.ascontiguousarray(record.vector, dtype=np.float32)
    if not 0 < vector.dot(vector) < math.inf:  # one pass that clears all but the oddest; those are looked at closely
        if not np.isfinite(vector).all():
            return EncodedRecord(record.id, "its vector has a value that is not finite", 0)
        if not vector.any():
            return EncodedRecord(record.id, "its vector is all zeros, which Pinecone does not store", 0)
    values = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
    metadata = _metadata(record.metadata, record.text) or None
    shell: dict[str, Any] = {"id": record.id, "values": []}
    if metadata is not None:
        shell["metadata"] = metadata
    size = len(orjson.dumps(shell)) - len("[]") + len(values) + len(",")
    # The SDK takes a list of floats; a fragment is written as it is, so float32 is neither unpacked nor widened.
    return EncodedRecord(record.id, Vector(record.id, orjson.Fragment(values), None, metadata), size)  # type: ignore[arg-type]


def _metadata(metadata: dict[str, Any], text: str | None) -> dict[str, Any]:
    return metadata if text is None else {**metadata, _TEXT: text}


def split_metadata(stored: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """The text and the document's own metadata, from what is stored."""
    metadata = dict(stored or {})
    text = metadata.pop(_TEXT, None)
    return text, metadata


def id_problem(id_: str) -> str | None:
    """Why Pinecone would refuse this id, or None."""
    if not 1 <= len(id_) <= PINECONE_ID_CHARACTERS:
        return f"id has {len(id_):,} characters, Pinecone takes 1 to {PINECONE_ID_CHARACTERS}"
    if not id_.isascii() or "\0" in id_:
        return "id holds a character that Pinecone does not take: ASCII without NUL"
    return None


def _value_problem(field: str, value: Any) -> str | None:
    if field.startswith("$"):
        return f"metadata field {field!r} starts with $, which Pinecone keeps for filters"
    match value:
        case bool() | str():
            return None
        case int():
            return None if value in _INTEGERS else f"metadata field {field!r} is an integer beyond 64 bits"
        case float():
            return None if math.isfinite(value) else f"metadata field {field!r} is not a finite number"
        case list() if all(isinstance(item, str) for item in value):
            return None
        case _:
            return f"metadata field {field!r} is neither a string, number, boolean nor list of strings"
