"""What each adapter is tested on: itself, and the real engine or our own server behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tasks.provider_settings import (
    LanceDBSettings,
    PgVectorSettings,
    PineconeSettings,
    QdrantSettings,
    WeaviateSettings,
)
from tasks.upsert.open import build_store
from tasks.upsert.port import Store
from tests.emulators.faults import Faults
from tests.emulators.pinecone import PineconeEmulator
from tests.emulators.qdrant import QdrantEmulator
from tests.emulators.qdrant_grpc import QdrantGrpcEmulator
from tests.emulators.weaviate import WeaviateEmulator
from tests.upsert.contract import SECRET, Bed
from tests.upsert.postgres import Postgres

BAD_KEY = "MILLRACE_BAD_KEY"


def closed_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def lancedb_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    folder: Path = request.getfixturevalue("tmp_path")
    yield Bed(make=lambda name: build_store(LanceDBSettings(uri=str(folder / "data"), table=name)), creates_itself=True)


@contextmanager
def pinecone_bed(request: pytest.FixtureRequest, namespace: str = "__default__") -> Iterator[Bed]:
    setting: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")

    def unreachable(name: str) -> Store:
        setting.setenv("PINECONE_CONTROLLER_HOST", f"http://127.0.0.1:{closed_port()}")
        return build_store(PineconeSettings(index=name))

    def refuse(part: str) -> None:
        server.faults = Faults(poison=(part,))

    with PineconeEmulator(api_key=SECRET) as server:
        setting.setenv("PINECONE_CONTROLLER_HOST", server.base_url)
        setting.setenv("PINECONE_API_KEY", SECRET)
        setting.setenv(BAD_KEY, f"no-{SECRET}")
        yield Bed(
            make=lambda name: build_store(PineconeSettings(index=name, namespace=namespace)),
            unreachable=unreachable,
            bad_key=lambda name: build_store(PineconeSettings(index=name, api_key=BAD_KEY)),
            refuse=refuse,
            largest=lambda: (server.largest_request_bytes, server.largest_request_records),
        )


@contextmanager
def pinecone_namespace_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with pinecone_bed(request, "tenant one") as bed:
        yield bed


@contextmanager
def weaviate_bed(request: pytest.FixtureRequest, vector_name: str | None = None) -> Iterator[Bed]:
    setting: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")

    def make(name: str, **other: Any) -> Store:
        given = {"url": server.url, "grpc_port": server.grpc_port, "vector_name": vector_name} | other
        return build_store(WeaviateSettings(collection=name, **given))

    def refuse(part: str) -> None:
        server.faults = Faults(poison=(part,))

    with WeaviateEmulator(api_key=SECRET) as server:
        setting.setenv("WEAVIATE_API_KEY", SECRET)
        setting.setenv(BAD_KEY, f"no-{SECRET}")
        yield Bed(
            make=make,
            unreachable=lambda name: make(name, url=f"http://127.0.0.1:{closed_port()}"),
            bad_key=lambda name: make(name, api_key=BAD_KEY),
            refuse=refuse,
            largest=lambda: (server.largest_request_bytes, server.largest_request_records),
        )


@contextmanager
def weaviate_vector_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    with weaviate_bed(request, "body") as bed:
        yield bed


@contextmanager
def qdrant_memory_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """What is in memory lives as long as the process: each test has collections of its own."""
    prefix = request.node.name
    yield Bed(
        make=lambda name: build_store(QdrantSettings(url=":memory:", collection=f"{prefix}-{name}"[-255:])),
        creates_itself=True,
        normalises=True,
    )


@contextmanager
def qdrant_folder_bed(_: pytest.FixtureRequest) -> Iterator[Bed]:
    """The engine syncs every point to the disk by itself, so its folder is in memory where the machine has one."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Bed(
            make=lambda name: build_store(QdrantSettings(url=f"{folder}/data", collection=name)),
            creates_itself=True,
            normalises=True,
        )


@contextmanager
def qdrant_rest_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    setting: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")

    def refuse(part: str) -> None:
        server.faults = Faults(poison=(part,))

    def make(name: str, url: str = "", key: str = "QDRANT_API_KEY") -> Store:
        return build_store(QdrantSettings(url=url or server.url, collection=name, api_key=key))

    with QdrantEmulator(api_key=SECRET) as server:
        setting.setenv("QDRANT_API_KEY", SECRET)
        setting.setenv(BAD_KEY, f"no-{SECRET}")
        yield Bed(
            make=make,
            normalises=True,
            unreachable=lambda name: make(name, url=f"http://127.0.0.1:{closed_port()}"),
            bad_key=lambda name: make(name, key=BAD_KEY),
            refuse=refuse,
            largest=lambda: (server.largest_request_bytes, server.largest_request_records),
        )


@contextmanager
def qdrant_grpc_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    setting: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")

    def refuse(part: str) -> None:
        server.refused_ids = (part,)

    def make(name: str, port: int = 0, key: str = "QDRANT_API_KEY") -> Store:
        return build_store(
            QdrantSettings(
                url="http://127.0.0.1",
                collection=name,
                prefer_grpc=True,
                grpc_port=port or server.port,
                api_key=key,
            )
        )

    with QdrantGrpcEmulator(api_key=SECRET) as server:
        setting.setenv("QDRANT_API_KEY", SECRET)
        setting.setenv(BAD_KEY, f"no-{SECRET}")
        yield Bed(
            make=make,
            normalises=True,
            unreachable=lambda name: make(name, port=closed_port()),
            bad_key=lambda name: make(name, key=BAD_KEY),
            refuse=refuse,
            largest=lambda: (server.largest_request_bytes, server.largest_request_records),
        )


@contextmanager
def pgvector_bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """Tables of its own for each test, on a real server."""
    setting: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    postgres: Postgres = request.getfixturevalue("postgres")
    number = postgres.number()

    def make(name: str, dsn: str = postgres.dsn, password: str = "PGPASSWORD") -> Store:  # noqa: S107 - a name
        return build_store(PgVectorSettings(dsn=dsn, table=f"{name}_{number}", password=password))

    def refuse(part: str) -> None:
        table, rule = f"collection_{number}", f"CHECK (id NOT LIKE '%{part}%')"
        postgres.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS refused, ADD CONSTRAINT refused {rule}", postgres.dsn
        )

    setting.setenv("PGPASSWORD", SECRET)
    setting.setenv(BAD_KEY, f"no-{SECRET}")
    yield Bed(
        make=make,
        unreachable=lambda name: make(name, dsn=f"postgresql://127.0.0.1:{closed_port()}/none"),
        bad_key=lambda name: make(name, password=BAD_KEY),
        refuse=refuse,
    )
