"""Documents written as source files, one writer per format, and what a whole source reads back as."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard
from pyarrow import parquet

from tasks.load.source import open_source
from tasks.records import DeadLetter, Document
from tasks.settings import SourceSettings

Item = dict[str, Any]
"""``id``, ``text`` and, where there is some, ``metadata``."""


def as_jsonl(items: Sequence[Item]) -> bytes:
    """An object a line."""
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items)


def as_json(items: Sequence[Item]) -> bytes:
    """An array under `documents`, behind another key."""
    return json.dumps({"version": 1, "documents": list(items)}, indent=1).encode()


def as_delimited(items: Sequence[Item], delimiter: str = ",") -> bytes:
    """A header and a row each; metadata keys are columns."""
    names = list(dict.fromkeys(name for item in items for name in item.get("metadata", {})))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_NOTNULL if hasattr(csv, "QUOTE_NOTNULL") else 0)
    writer.writerow(["id", "text", *names])
    writer.writerows([item["id"], item["text"], *map(item.get("metadata", {}).get, names)] for item in items)
    return text.getvalue().encode()


def as_parquet(items: Sequence[Item]) -> bytes:
    """A table; metadata keys are columns."""
    names = list(dict.fromkeys(name for item in items for name in item.get("metadata", {})))
    columns = {name: [item.get("metadata", {}).get(name) for item in items] for name in names}
    ids, texts = [item["id"] for item in items], pa.array([item["text"] for item in items], pa.string())
    id_type = pa.int64() if ids and all(isinstance(value, int) for value in ids) else pa.string()
    table = pa.table({"id": pa.array(ids, id_type), "text": texts, **columns})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Sequence[Item]], bytes]] = {
    "jsonl": as_jsonl,
    "json": as_json,
    "csv": as_delimited,
    "tsv": lambda items: as_delimited(items, "\t"),
    "parquet": as_parquet,
}


def in_members(data: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    """The data as two members or frames, one after the other."""
    return compress(data[: len(data) // 2]) + compress(data[len(data) // 2 :])


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: in_members(data, gzip.compress),
    ".zst": lambda data: in_members(data, zstandard.compress),
}


def read(location: str | Path, segment_size: int = 1000, **settings: Any) -> tuple[list[Document], list[DeadLetter]]:
    """Everything of a source, after checking that the places are whole and that both passes agree on them."""
    documents: list[Document] = []
    dead_letters: list[DeadLetter] = []
    by_place: dict[int, str] = {}
    end = 0
    with open_source(SourceSettings(location=str(location), **settings)) as source:
        for loaded in source.documents(segment_size):
            assert loaded.first == end
            end = loaded.last + 1
            assert len(loaded.documents) + len(loaded.dead_letters) == end - loaded.first
            assert all(loaded.first <= place <= loaded.last for place in loaded.places)
            by_place |= zip(loaded.places, (document.id for document in loaded.documents), strict=True)
            documents += loaded.documents
            dead_letters += loaded.dead_letters
        ids = [each for chunk in source.ids() for each in chunk]
    assert len(ids) == end
    assert {place: ids[place] for place in by_place} == by_place
    return documents, dead_letters


def contents(documents: Sequence[Document]) -> list[tuple[str, str, dict[str, Any]]]:
    """What a document is, without where it came from."""
    return [(document.id, document.text, document.metadata) for document in documents]
