"""Connections to PostgreSQL, kept between requests, and what its errors mean here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import orjson
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.types.json import set_json_loads

from tasks.errors import (
    MillraceError,
    RefusedError,
    RequestRejectedError,
    UnavailableError,
    UsageError,
)

Connection = psycopg.AsyncConnection[Any]

_CONNECT_SECONDS = 10
# PostgreSQL, appendix A: the first two characters of an SQLSTATE are its class. Classes that are not named here (08
# connection, 40 conflict of transactions, 53 resources, 55 locks, 57 operator, 58 and XX the server's own faults) pass.
_CLASSES: dict[str, type[MillraceError]] = {
    "0A": RefusedError,  # a feature that the server lacks
    "22": RequestRejectedError,  # data that does not fit
    "23": RequestRejectedError,  # a constraint of the table's own
    "25": RefusedError,  # a server that only reads
    "28": RefusedError,  # who one is
    "3D": RefusedError,  # no such database
    "3F": RefusedError,  # no such schema
    "42": RefusedError,  # no such table or column, no right to use it
    "44": RequestRejectedError,  # the condition of a view
    "54": RequestRejectedError,  # a limit, such as a key's length
    "P0": RequestRejectedError,  # a trigger's refusal
}


class NotAdmittedError(RefusedError):
    """The server asked for a password and did not let us in."""


class Connections:
    """Opened when they are asked for, and reused; how many is the gate's business."""

    def __init__(self, dsn: str, password: str | None) -> None:
        self._dsn = dsn
        self._password = password
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        """A connection in autocommit; one that broke is not used again.

        Raises:
            TransientError: the server cannot be reached, or could not do it now.
            PermanentError: it refuses.
        """
        with translated():
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            finally:
                if connection.info.transaction_status is TransactionStatus.IDLE:
                    self._idle.append(connection)
                else:
                    await connection.close()  # broken, or in the middle of who knows what

    async def aclose(self) -> None:
        """Close those that are idle; closing twice is harmless."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    async def _connect(self) -> Connection:
        given: dict[str, Any] = conninfo_to_dict(self._dsn)
        if self._password is not None:
            given["password"] = self._password
        connection = await psycopg.AsyncConnection.connect(
            **{"connect_timeout": _CONNECT_SECONDS, "application_name": "millrace", **given, "client_encoding": "utf8"},
            autocommit=True,
            prepare_threshold=None,  # a pooler in between may hand the next transaction to another server process
        )
        set_json_loads(orjson.loads, connection)
        return connection


def address(dsn: str) -> str:
    """Host, port and database without user or password, as far as the DSN names them.

    Raises:
        UsageError: not a connection string.
    """
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise UsageError("not a connection string of PostgreSQL: postgresql://user@host:port/database") from error
    host, port, database = (str(parts.get(name) or "") for name in ("host", "port", "dbname"))
    return f"{host}{':' + port if port else ''}/{database}"


@contextmanager
def translated() -> Iterator[None]:
    """A block in which the vendor's errors become ours."""
    try:
        yield
    except psycopg.Error as error:
        raise _translate(error) from error


def _translate(error: psycopg.Error) -> MillraceError:
    if error.sqlstate is not None:
        kind = _CLASSES.get(error.sqlstate[:2], UnavailableError)
        return kind(f"PostgreSQL answered {error.sqlstate} ({type(error).__name__})")
    # While connecting the library has no SQLSTATE to give, but it knows whether a password was asked for.
    if error.pgconn is not None and error.pgconn.used_password:
        return NotAdmittedError("PostgreSQL did not let us in")
    if isinstance(error, (psycopg.DataError, psycopg.ProgrammingError)):
        return RequestRejectedError(f"PostgreSQL's client refused a value ({type(error).__name__})")
    return UnavailableError(f"PostgreSQL gave no answer ({type(error).__name__})")
