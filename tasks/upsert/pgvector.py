"""PostgreSQL with the pgvector extension: a table with a vector column, through psycopg 3."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from psycopg import sql

from tasks.errors import PermanentError, TransientError, UnavailableError, UsageError
from tasks.profiles import PGVECTOR
from tasks.provider_settings import PgVectorSettings
from tasks.records import Document, EncodedRecord, Hit, Record, Vectors
from tasks.upsert import pgvector_table as tables
from tasks.upsert.pgvector_connections import Connections, NotAdmittedError, address
from tasks.upsert.pgvector_rows import (
    ENVELOPE_BYTES,
    copy_data,
    encode_row,
    is_possible,
    read_vector,
    refusal,
    vector_text,
)
from tasks.upsert.port import UpsertLimits

_CONCURRENCY = 4  # requests in flight, each on a connection and a server process of its own
_MAX_IDS = 10_000  # ids in one fetch or delete
_EF_SEARCH = (40, 1_000)  # pgvector's README: candidates that a search of HNSW looks at, its default and its most

_STAGE = sql.SQL(
    "SET LOCAL statement_timeout = '60s';"
    "CREATE TEMP TABLE IF NOT EXISTS millrace_staging (id text, embedding vector, text text, metadata jsonb)"
    " ON COMMIT DELETE ROWS"
)
_COPY = sql.SQL("COPY pg_temp.millrace_staging FROM STDIN (FORMAT BINARY)")
# In the order of the ids: two requests that hold the same ids then wait for each other instead of for ever.
_UPSERT = (
    "INSERT INTO {} AS kept (id, embedding, text, metadata)"
    " SELECT id, embedding, text, metadata FROM pg_temp.millrace_staging ORDER BY id"
    " ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding, text = EXCLUDED.text, metadata = EXCLUDED.metadata"
)
_QUERY = (
    "SELECT id, text, metadata, 1 - ({expression} <=> {vector}::{cast}) FROM {table}"
    " ORDER BY {expression} <=> {vector}::{cast} LIMIT {limit}"
)

logger = logging.getLogger(__name__)


class PgVectorStore:
    """One table. `tasks.upsert.pgvector_rows` says how a document is kept, `pgvector_table` what the table must be."""

    def __init__(self, settings: PgVectorSettings, *, password: str | None = None) -> None:
        self.identity = f"pgvector:{address(settings.dsn)}/{settings.table}"
        self.limits = UpsertLimits(
            max_request_bytes=PGVECTOR.max_request_bytes,
            max_records=PGVECTOR.max_records,
            envelope_bytes=ENVELOPE_BYTES,
            concurrency=_CONCURRENCY,
        )
        self._settings = settings
        self._has_password = password is not None
        self._table = sql.Identifier(settings.table)
        self._connections = Connections(settings.dsn, password)
        self._dimension: int | None = None

    async def open(self, dimension: int | None, *, create: bool) -> None:
        """Find the table, or make it and the extension where ``create`` allows it and the dimension is known.

        Raises:
            UsageError: no extension, no such table, one that does not fit, a server that does not let us in.
            TransientError: the server cannot be reached.
        """
        with self._opening():
            async with self._connections.one() as connection:
                if not await tables.has_extension(connection):
                    if not create:
                        raise UsageError(
                            "PostgreSQL's database lacks the extension vector: CREATE EXTENSION vector, or use --create"
                        )
                    await tables.make_extension(connection)
                if not await tables.has_table(connection, self._settings.table):
                    if not create:
                        raise UsageError(
                            f"PostgreSQL has no table {self._settings.table}: make it first, or use --create"
                        )
                    if dimension is None:
                        return
                    await tables.make_table(connection, self._settings.table, dimension)
                self._dimension = await tables.check_table(connection, self._settings.table, dimension)

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        """No NUL in a string, an id that fits a key, metadata that reads back from JSON as it was."""
        return refusal(document, keep_text=keep_text)

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        """Rows in the binary form of COPY. A vector that is not finite is refused and takes 0 bytes."""
        return [encode_row(record) for record in records]

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        """One transaction: a COPY into a staging table, and from there into the table. It ends with the commit."""
        refused = {record.id: record.payload for record in records if isinstance(record.payload, str)}
        rows = {record.id: record.payload for record in records if record.id not in refused}
        if rows:
            async with self._connections.one() as connection, connection.transaction():
                await connection.execute(_STAGE)
                async with connection.cursor() as cursor:
                    async with cursor.copy(_COPY) as copy:
                        await copy.write(copy_data(rows.values()))
                    await cursor.execute(sql.SQL(_UPSERT).format(self._table))
                    if cursor.rowcount != len(rows):
                        raise UnavailableError(f"PostgreSQL took {cursor.rowcount} of {len(rows)} rows")
        return refused

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        """The nearest rows by cosine; a vector of zeros has no cosine and is never near."""
        if self._dimension is None:
            return []
        index = tables.index_for(self._dimension)
        query = sql.SQL(_QUERY).format(
            expression=index.expression,
            vector=sql.Literal(vector_text(vector)),
            cast=index.cast,
            table=self._table,
            limit=sql.Literal(limit),
        )
        least, most = _EF_SEARCH
        async with self._connections.one() as connection, connection.transaction():
            candidates = sql.Literal(min(max(limit, least), most))
            await connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(candidates))
            found = await (await connection.execute(query)).fetchall()
        return [Hit(id_, score, text, metadata) for id_, text, metadata, score in found if not math.isnan(score)]

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        """The records that exist among these ids."""
        records: list[Record] = []
        query = sql.SQL("SELECT id, embedding, text, metadata FROM {} WHERE id = ANY(%s)").format(self._table)
        for some in self._possible(ids):
            async with self._connections.one() as connection, connection.cursor(binary=True) as cursor:
                await cursor.execute(query, (some,))
                for id_, vector, text, metadata in await cursor.fetchall():
                    records.append(Record(id_, read_vector(vector), text, metadata))
        return records

    async def count(self) -> int:
        """Rows in the table; 0 where it is not made yet."""
        if self._dimension is None:
            return 0
        async with self._connections.one() as connection:
            cursor = await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(self._table))
            row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def delete(self, ids: Sequence[str]) -> None:
        """Remove rows by id."""
        query = sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._table)
        for some in self._possible(ids):
            async with self._connections.one() as connection:
                await connection.execute(query, (some,))

    async def finish(self) -> None:
        """Make the HNSW index where there is none, now that the rows are there. Failing at it loses nothing."""
        if self._dimension is None or not self._settings.index:
            return
        if tables.index_for(self._dimension).operators is None:
            logger.warning(
                "%s is searched without an index: pgvector takes no more than 4,000 dimensions in one", self.identity
            )
            return
        try:
            async with self._connections.one() as connection:
                if await tables.make_index(connection, self._settings.table, self._dimension):
                    logger.info("made the HNSW index of %s", self.identity)
        except (TransientError, PermanentError) as error:
            logger.warning("the HNSW index of %s was put off: %s", self.identity, error)

    async def aclose(self) -> None:
        """Close the connections."""
        self._dimension = None
        await self._connections.aclose()

    def _possible(self, ids: Sequence[str]) -> Iterator[list[str]]:
        possible = [id_ for id_ in ids if is_possible(id_)] if self._dimension is not None else []
        for start in range(0, len(possible), _MAX_IDS):
            yield possible[start : start + _MAX_IDS]

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except NotAdmittedError as error:
            name = self._settings.password
            hint = f"check the password in {name}" if self._has_password else f"set the password in {name}"
            raise UsageError(f"{error}: {hint}, the user and the database") from error.__cause__
        except PermanentError as error:
            raise UsageError(f"{error}: check the database, the table and what this user may do") from error.__cause__
