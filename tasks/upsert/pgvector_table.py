"""A table with a vector column: what must be true of it, how it is made, and its index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql

from tasks.errors import UsageError
from tasks.upsert.pgvector_connections import Connection
from tasks.upsert.pgvector_rows import COLUMNS, MAX_DIMENSION

_MAX_VECTOR_INDEX = 2_000  # dimensions that HNSW takes: pgvector's README, vector
_MAX_HALFVEC_INDEX = 4_000  # the same, halfvec

_TYPES = {"id": {"text", "varchar"}, "embedding": {"vector"}, "text": {"text"}, "metadata": {"jsonb"}}

_FIND_COLUMNS = """
SELECT a.attname, t.typname, a.atttypmod, a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
"""
_FIND_KEY = """
SELECT count(*) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = %s::regclass AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
AND i.indnkeyatts = 1 AND a.attname = 'id'
"""
_FIND_INDEX = """
SELECT i.indexrelid::regclass::text, i.indisvalid OR EXISTS
    (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0]
WHERE i.indrelid = %s::regclass AND i.indpred IS NULL AND m.amname IN ('hnsw', 'ivfflat') AND o.opcname = %s
"""


@dataclass(frozen=True, slots=True)
class Index:
    """How vectors of one dimension are searched: by ``expression``, indexed with ``operators`` where there is one."""

    expression: sql.Composable
    cast: sql.Composable
    operators: str | None


def index_for(dimension: int) -> Index:
    """HNSW takes 2,000 dimensions as they are, 4,000 as half-precision copies; beyond that a search is exact and slow.

    The column itself keeps float32 in every case.
    """
    column = sql.Identifier("embedding")
    if dimension <= _MAX_VECTOR_INDEX:
        return Index(column, sql.SQL("vector"), "vector_cosine_ops")
    half = sql.SQL("halfvec({})").format(sql.Literal(dimension))
    if dimension <= _MAX_HALFVEC_INDEX:
        return Index(sql.SQL("({}::{})").format(column, half), half, "halfvec_cosine_ops")
    return Index(column, sql.SQL("vector"), None)


async def has_extension(connection: Connection) -> bool:
    """Whether the type is there and on the search path."""
    row = await _one(connection, "SELECT to_regtype('vector')")
    return row[0] is not None


async def make_extension(connection: Connection) -> None:
    """Install the extension into the database.

    Raises:
        UsageError: the server does not have it.
        PermanentError: this user may not.
    """
    row = await _one(connection, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
    if not row[0]:
        raise UsageError("PostgreSQL's server does not have the extension vector: install pgvector there")
    await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")


async def has_table(connection: Connection, table: str) -> bool:
    """Whether a table of this name is on the search path."""
    row = await _one(connection, "SELECT to_regclass(quote_ident(%s))", table)
    return row[0] is not None


async def make_table(connection: Connection, table: str, dimension: int) -> None:
    """Make the table, unless another process was first.

    Raises:
        UsageError: more dimensions than the type takes.
    """
    if dimension > MAX_DIMENSION:
        raise UsageError(f"pgvector takes {MAX_DIMENSION:,} dimensions, the embedder makes {dimension:,}")
    await connection.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {} (id text PRIMARY KEY, embedding vector({}) NOT NULL, text text,"
            " metadata jsonb NOT NULL)"
        ).format(sql.Identifier(table), sql.Literal(dimension))
    )


async def check_table(connection: Connection, table: str, dimension: int | None) -> int:
    """The dimension of the table's vectors, once everything about it fits.

    Raises:
        UsageError: other columns, no key on ``id``, no dimension or another one.
    """
    name = _quoted(connection, table)
    found = await _all(connection, _FIND_COLUMNS, name)
    types = {column: kind for column, kind, _, _ in found}
    if any(types.get(column) not in kinds for column, kinds in _TYPES.items()):
        raise UsageError(
            f"the table {table} has other columns than id text, embedding vector, text text, metadata jsonb: "
            "name another table"
        )
    if needed := [column for column, _, _, is_needed in found if is_needed and column not in COLUMNS]:
        raise UsageError(f"the table {table} needs a value in {', '.join(needed)}, which a document has not")
    if not (await _one(connection, _FIND_KEY, name))[0]:
        raise UsageError(f"the table {table} has no unique key on id alone: make id its primary key")
    stored = next(modifier for column, _, modifier, _ in found if column == "embedding")
    if stored < 1:
        raise UsageError(f"the table {table} does not say how many dimensions embedding has: make it vector(n)")
    if dimension is not None and stored != dimension:
        raise UsageError(
            f"the table {table} has {stored} dimensions, the embedder makes {dimension}: name another table or embedder"
        )
    return int(stored)


async def make_index(connection: Connection, table: str, dimension: int) -> bool:
    """Make the HNSW index where there is none for this search; False where nothing was to be made.

    It is made without locking the table. One that was left half made is made anew. One process at a time does it.
    """
    index = index_for(dimension)
    name = _quoted(connection, table)
    if index.operators is None:
        return False
    # Not a lock that waits: whoever waits holds a snapshot, for whose end making the index would wait in turn.
    lock = "hashtextextended('millrace ' || %s::regclass::oid, 0)"
    if not (await _one(connection, f"SELECT pg_try_advisory_lock({lock})", name))[0]:
        return False
    try:
        found = await _all(connection, _FIND_INDEX, name, index.operators)
        if any(is_good for _, is_good in found):
            return False
        for half_made, _ in found:
            await connection.execute(f"DROP INDEX CONCURRENTLY {half_made}")
        await connection.execute("SET statement_timeout = 0")
        await connection.execute(
            sql.SQL("CREATE INDEX CONCURRENTLY ON {} USING hnsw ({} {})").format(
                sql.Identifier(table), index.expression, sql.SQL(index.operators)
            )
        )
    finally:
        if not connection.broken:
            await connection.execute("RESET statement_timeout")
            await connection.execute(f"SELECT pg_advisory_unlock({lock})", (name,))
    return True


def _quoted(connection: Connection, table: str) -> str:
    return sql.Identifier(table).as_string(connection)


async def _one(connection: Connection, query: str, *parameters: Any) -> Any:
    return (await _all(connection, query, *parameters))[0]


async def _all(connection: Connection, query: str, *parameters: Any) -> list[Any]:
    cursor = await connection.execute(query, parameters or None)
    return await cursor.fetchall()
