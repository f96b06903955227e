"""LanceDB, embedded: a table in a folder, or under an object store's URL. Nothing to start."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import lancedb
import numpy as np
import orjson
import pyarrow as pa
from lancedb.index import BTree

from tasks.errors import MillraceError, RequestRejectedError, UnavailableError, UsageError
from tasks.profiles import LANCEDB
from tasks.provider_settings import LanceDBSettings
from tasks.records import Document, EncodedRecord, Hit, Record, Vectors
from tasks.upsert.json_rules import json_refusal, json_text
from tasks.upsert.port import UpsertLimits

if TYPE_CHECKING:
    from lancedb import AsyncConnection, AsyncTable

_MAX_IDS = 1_000  # ids in one predicate
_KEEP_VERSIONS = timedelta(minutes=10)  # another process may be reading one of them

# Milliseconds a merge of 1,000 rows takes, 384 dimensions and 1 KB of text each, lancedb 0.40 on 4 cores, NVMe:
#   table of       100,000 rows   1,000,000 rows (64 dimensions)
#   no upkeep      13-17          57-80      (each fragment adds 0.05)
#   compacted      9-12           30
#   index, fresh   6-8            6-8        (each merge after it was made adds 1: unindexed rows are read whole)
# Growing to 800,000 rows: compacted every 250 merges 15-27 ms, and with an index from 250,000 rows, made anew every 25
# merges, 18-28 ms and then falling. An index from the start made merges slower (35-70 ms at 100,000 rows), compaction
# every 20 rewrote the table each time (619 MB on disk for 156). Making the index costs 0.2 s a million rows,
# compaction up to 6 s, and fragments of a million rows are left alone by it.
_COMPACT_EVERY_UPSERTS = 250
_INDEX_FROM_ROWS = 250_000
_INDEX_EVERY_UPSERTS = 25

_ERRORS: tuple[tuple[type[Exception], type[MillraceError]], ...] = (
    (ValueError, RequestRejectedError),  # LanceDB's word for data or a predicate that does not fit
    (OSError, UnavailableError),
    (RuntimeError, UnavailableError),  # everything else, a commit that another writer overtook among it
)

logger = logging.getLogger(__name__)


class LanceDBStore:
    """One table with the columns ``id``, ``vector`` (float32), ``text`` (or null) and ``metadata`` (JSON, keys sorted).

    Requests take one writer at a time: every upsert is a commit of its own.
    """

    def __init__(self, settings: LanceDBSettings) -> None:
        self.identity = f"lancedb:{_place(settings.uri)}/{settings.table}"
        self.limits = UpsertLimits(
            max_request_bytes=None, max_records=LANCEDB.max_records, envelope_bytes=0, concurrency=1
        )
        self._settings = settings
        self._database: AsyncConnection | None = None
        self._table: AsyncTable | None = None
        self._upserts = 0
        self._indexed = False

    async def open(self, dimension: int | None, *, create: bool) -> None:
        """Open the table, or make it as soon as the dimension is known; an embedded table needs no ``create``.

        Raises:
            UsageError: the table has other columns or another dimension, or the place cannot be used.
            UnavailableError: the object store cannot be reached.
        """
        del create
        try:
            if self._database is None:
                _make_folder(self._settings.uri)
                self._database = await lancedb.connect_async(self._settings.uri)
            if self._table is None:
                self._table = await self._existing()
            if self._table is None and dimension is not None:
                self._table = await self._database.create_table(
                    self._settings.table, schema=_schema(dimension), exist_ok=True
                )
            if self._table is not None:
                self._check(await self._table.schema(), dimension)
        except ValueError as error:
            raise UsageError(f"LanceDB does not take {self.identity}: name another place") from error
        except (OSError, RuntimeError) as error:
            raise UnavailableError(f"cannot open {self.identity}: {type(error).__name__}") from error

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        """An id, and metadata that reads back from JSON as it was; the text must be valid Unicode."""
        return json_refusal(document, keep_text=keep_text)

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """Rows for Arrow; the size is what the row holds. A vector that is not finite is refused and takes 0 bytes."""
        return [_encode(record) for record in records]

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        """One merge by id, one commit."""
        refused = {record.id: record.payload for record in records if isinstance(record.payload, str)}
        rows = {record.id: record.payload for record in records if record.id not in refused}
        if not rows:
            return refused
        if self._table is None:
            await self.open(len(next(iter(rows.values()))[0]), create=True)
        assert self._table is not None
        with _translated():
            data = await asyncio.to_thread(_arrow, rows, (await self._table.schema()))
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            await merge.execute(data)
        self._upserts += 1
        await self._keep_house(compact=self._upserts % _COMPACT_EVERY_UPSERTS == 0)
        return refused

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        """An exact search; the score is 1 - cosine distance."""
        if self._table is None:
            return []
        with _translated():
            nearest = self._table.query().nearest_to(np.asarray(vector, np.float32)).distance_type("cosine")
            found = await nearest.select(["id", "text", "metadata", "_distance"]).limit(limit).to_arrow()
        return [
            Hit(row["id"], 1.0 - row["_distance"], row["text"], orjson.loads(row["metadata"]))
            for row in found.to_pylist()
        ]

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The records that exist among these ids."""
        records: list[Record] = []
        if self._table is None:
            return records
        for predicate in _predicates(ids):
            with _translated():
                found = await self._table.query().where(predicate).to_arrow()
            records += _records(found)
        return records

    async def count(self) -> int:
        """Rows in the table; 0 where it is not made yet."""
        if self._table is None:
            return 0
        with _translated():
            return int(await self._table.count_rows())

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove rows by id, a commit for each thousand."""
        if self._table is None:
            return
        for predicate in _predicates(ids):
            with _translated():
                await self._table.delete(predicate)
            self._upserts += 1

    async def finish(self) -> None:
        """Compact, index and drop versions older than ten minutes; nothing where nothing was written."""
        if self._upserts:
            await self._keep_house(compact=True)
        self._upserts = 0

    async def aclose(self) -> None:
        """Let go of the table and the connection."""
        table, self._table = self._table, None
        database, self._database = self._database, None
        if table is not None:
            table.close()  # type: ignore[no-untyped-call]
        if database is not None:
            database.close()  # type: ignore[no-untyped-call]

    async def _existing(self) -> AsyncTable | None:
        assert self._database is not None
        try:
            return await self._database.open_table(self._settings.table)
        except ValueError:  # no table of that name
            return None

    def _check(self, schema: pa.Schema, dimension: int | None) -> None:
        vector = schema.field("vector").type if "vector" in schema.names else pa.null()
        stored = vector.list_size if pa.types.is_fixed_size_list(vector) else None
        if stored is None or schema.remove_metadata() != _schema(stored):
            raise UsageError(f"{self.identity} has other columns than id, vector, text, metadata: name another table")
        if dimension is not None and stored != dimension:
            raise UsageError(
                f"{self.identity} has {stored} dimensions, the embedder makes {dimension}: "
                "name another table or embedder"
            )

    async def _keep_house(self, *, compact: bool) -> None:
        try:
            if compact:
                await self._compact()
            elif self._indexed and self._upserts % _INDEX_EVERY_UPSERTS == 0:
                await self._index()
        except (OSError, RuntimeError, ValueError) as error:
            # The rows are committed; another process's commit may have overtaken this one, and the next turn will do.
            logger.warning("upkeep of %s was put off: %s", self.identity, type(error).__name__)

    async def _compact(self) -> None:
        assert self._table is not None
        await self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)
        self._indexed = await self._table.count_rows() >= _INDEX_FROM_ROWS
        if self._indexed:
            await self._index()

    async def _index(self) -> None:
        assert self._table is not None
        await self._table.create_index("id", config=BTree(), replace=True)


def _make_folder(uri: str) -> None:
    """LanceDB makes it too, but does not say why it could not."""
    if "://" not in uri:
        try:
            Path(uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {uri}: {error.strerror}; name another place") from error


def _place(uri: str) -> str:
    """The URI without user or password; a folder as it was given, so that a project can be moved as a whole."""
    if "://" not in uri:
        return os.path.normpath(uri)
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}".rstrip("/")


def _schema(dimension: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dimension)),
            pa.field("text", pa.string()),
            pa.field("metadata", pa.string()),
        ]
    )


def _encode(record: Record) -> EncodedRecord:
    if not np.isfinite(record.vector).all():
        return EncodedRecord(record.id, "its vector has a value that is not finite", 0)
    metadata = json_text(record.metadata).decode()
    size = record.vector.nbytes + len(record.id.encode()) + len((record.text or "").encode()) + len(metadata.encode())
    return EncodedRecord(record.id, (record.vector, record.text, metadata), size)


def _arrow(rows: Mapping[str, tuple[Vectors, str | None, str]], schema: pa.Schema) -> pa.Table:
    vectors, texts, metadata = zip(*rows.values(), strict=True)
    flat = pa.array(np.concatenate(vectors, dtype=np.float32))
    columns = [
        pa.array(list(rows), pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type),
        pa.array(texts, pa.string()),
        pa.array(metadata, pa.string()),
    ]
    return pa.table(columns, schema=schema)


def _records(found: pa.Table) -> list[Record]:
    column = found.column("vector").combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(found), column.type.list_size)
    others = found.select(["id", "text", "metadata"]).to_pylist()
    return [
        Record(row["id"], vector, row["text"], orjson.loads(row["metadata"]))
        for row, vector in zip(others, vectors, strict=True)
    ]


def _predicates(ids: Sequence[str]) -> Iterator[str]:
    """SQL that names the ids, a thousand at a time; a quote inside an id is doubled, nothing else is special there."""
    for start in range(0, len(ids), _MAX_IDS):
        quoted = ", ".join("'" + id_.replace("'", "''") + "'" for id_ in ids[start : start + _MAX_IDS])
        yield f"id IN ({quoted})"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        kind = next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))
        raise kind(f"LanceDB failed: {type(error).__name__}") from error
