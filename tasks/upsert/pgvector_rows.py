"""What PostgreSQL keeps of a document, and a row in the binary form of COPY.

The columns are ``id`` (text, the key), ``embedding`` (vector), ``text`` (or null) and ``metadata`` (jsonb).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from tasks.records import Document, EncodedRecord, Record, Vectors
from tasks.upsert.json_rules import json_refusal, json_text

COLUMNS = ("id", "embedding", "text", "metadata")
MAX_DIMENSION = 16_000  # pgvector's README: vector
# PostgreSQL, COPY: file formats: signature, flags and the length of an extension; at the end a count of -1 fields.
_HEAD = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TAIL = struct.pack(">h", -1)
ENVELOPE_BYTES = len(_HEAD) + len(_TAIL)

_NULL = struct.pack(">i", -1)
_JSONB_VERSION = b"\x01"
_MAX_ID_BYTES = 2_600  # a third of an 8 KiB page is what a B-tree key may take: PostgreSQL, B-tree


def refusal(document: Document, *, keep_text: bool) -> str | None:
    """Why PostgreSQL cannot keep this document as it is, or None; the message holds nothing of the text."""
    if reason := json_refusal(document, keep_text=keep_text):
        return reason
    if "\0" in document.id or (keep_text and "\0" in document.text):
        return "id or text holds a NUL character, which PostgreSQL does not take"
    if b"\\u0000" in json_text(document.metadata) and _has_nul(document.metadata):
        return "metadata holds a NUL character, which PostgreSQL does not take"
    if (size := len(document.id.encode())) > _MAX_ID_BYTES:
        return f"id takes {size:,} bytes, a key of PostgreSQL takes {_MAX_ID_BYTES:,}"
    return None


def encode_row(record: Record) -> EncodedRecord:
    """The row as COPY sends it, with its exact bytes; a vector that is refused is its reason instead.

    The vector goes from numpy's bytes to the wire's: pgvector's binary form is the dimension, two bytes of nothing,
    and each float32 in network order.
    """
    if not np.isfinite(record.vector).all():
        return EncodedRecord(record.id, "its vector has a value that is not finite", 0)
    vector = struct.pack(">hh", len(record.vector), 0) + record.vector.astype(">f4").tobytes()
    row = b"".join(
        (
            struct.pack(">h", len(COLUMNS)),
            _field(record.id.encode()),
            _field(vector),
            _NULL if record.text is None else _field(record.text.encode()),
            _field(_JSONB_VERSION + json_text(record.metadata)),
        )
    )
    return EncodedRecord(record.id, row, len(row))


def copy_data(rows: Iterable[bytes]) -> bytes:
    """A whole COPY of these rows."""
    return b"".join((_HEAD, *rows, _TAIL))


def read_vector(binary: bytes) -> Vectors:
    """The vector in pgvector's binary form, shape (dimension,)."""
    return np.frombuffer(binary, ">f4", offset=4).astype(np.float32)


def vector_text(vector: Vectors) -> str:
    """The vector in pgvector's text form: each float32 as its shortest text, which reads back exactly."""
    return orjson.dumps(np.ascontiguousarray(vector, np.float32), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def is_possible(id_: str) -> bool:
    """Whether this id could be in a table at all; PostgreSQL refuses a question about any other."""
    try:
        return "\0" not in id_ and id_.encode() != b""
    except UnicodeEncodeError:
        return False


def _field(value: bytes) -> bytes:
    return struct.pack(">i", len(value)) + value


def _has_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_has_nul(key) or _has_nul(inner) for key, inner in value.items())
        case list() | tuple():
            return any(map(_has_nul, value))
    return False
