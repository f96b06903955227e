"""What is particular to LanceDB and Pinecone; what every store does is in the contract."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

import tasks.upsert.lancedb as lancedb_adapter
import tasks.upsert.pinecone as pinecone_adapter
from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    UnavailableError,
    UsageError,
)
from tasks.provider_settings import LanceDBSettings, PineconeSettings
from tasks.records import Document
from tasks.secrets import resolve_secret
from tasks.upsert.lancedb import LanceDBStore
from tasks.upsert.open import build_store
from tasks.upsert.packing import pack
from tasks.upsert.pinecone import PineconeStore
from tests.emulators.faults import Faults
from tests.emulators.pinecone import PineconeEmulator
from tests.upsert.contract import DIMENSION, SECRET, axis, document, put, record

KEY = SECRET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PineconeEmulator]:
    with PineconeEmulator(api_key=KEY) as running:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", running.base_url)
        monkeypatch.setenv("PINECONE_API_KEY", KEY)
        yield running


# LanceDB


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[LanceDBStore]:
    store = LanceDBStore(LanceDBSettings(uri=str(tmp_path / "data"), table="t"))
    await store.open(DIMENSION, create=False)
    yield store
    await store.aclose()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


async def test_nested_metadata_reads_back_from_lancedb(table: LanceDBStore) -> None:
    nested: dict[str, Any] = {"b": {"z": [1, None, {"y": 2.5}]}, "a": None}
    assert table.refuse(Document("x", "", nested), keep_text=True) is None
    await put(table, record("x", **nested))
    assert [found.metadata for found in await table.fetch(["x"])] == [nested]


async def test_a_zero_vector_is_stored_but_never_near(table: LanceDBStore) -> None:
    """Its cosine distance does not exist, so a query leaves it out."""
    assert await put(table, record("zero", np.zeros(DIMENSION, np.float32)), record("one", axis(0))) == {}
    assert await table.count() == 2
    assert [hit.id for hit in await table.query(axis(0), limit=9)] == ["one"]


async def test_the_table_is_made_by_the_first_upsert_at_the_latest(tmp_path: Path) -> None:
    store = LanceDBStore(LanceDBSettings(uri=str(tmp_path), table="t"))
    await store.open(None, create=False)
    await put(store, record("a"))
    assert await store.count() == 1
    await store.aclose()


async def test_a_table_with_other_columns_is_a_usage_error(table: LanceDBStore) -> None:
    assert table._database is not None
    await table._database.create_table("other", pa.table({"id": ["a"], "vector": [[1.0, 2.0]]}))
    other = LanceDBStore(LanceDBSettings(uri=table._settings.uri, table="other"))
    with pytest.raises(UsageError, match="other columns"):
        await other.open(2, create=True)
    await other.aclose()


async def test_a_place_that_is_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LanceDBStore(LanceDBSettings(uri=str(tmp_path / "file" / "data")))
    with pytest.raises(UsageError, match="name another place"):
        await store.open(DIMENSION, create=True)
    await store.aclose()


async def test_a_run_that_wrote_nothing_leaves_the_files_alone(table: LanceDBStore, tmp_path: Path) -> None:
    await put(table, record("a"))
    await table.finish()
    before = files(tmp_path)
    await table.finish()
    assert files(tmp_path) == before


async def fragments(store: LanceDBStore) -> int:
    assert store._table is not None
    statistics: Any = await store._table.stats()
    return int(statistics["fragment_stats"]["num_fragments"])


async def test_upkeep_keeps_the_fragments_few_and_indexes_a_large_table(
    table: LanceDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lancedb_adapter, "_COMPACT_EVERY_UPSERTS", 5)
    monkeypatch.setattr(lancedb_adapter, "_INDEX_EVERY_UPSERTS", 2)
    monkeypatch.setattr(lancedb_adapter, "_INDEX_FROM_ROWS", 40)
    assert table._table is not None
    for number in range(12):
        await put(table, *(record(f"{number}-{row}") for row in range(10)))
    assert await fragments(table) < 6
    assert [index.columns for index in await table._table.list_indices()] == [["id"]]
    await put(table, record("0-0", axis(1), text="again"))
    await table.finish()
    assert await fragments(table) <= 2
    assert await table.count() == 120
    assert [found.text for found in await table.fetch(["0-0"])] == ["again"]


async def test_upkeep_that_fails_does_not_fail_what_is_stored(
    table: LanceDBStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(**_: Any) -> None:
        raise RuntimeError("commit conflict")

    await put(table, record("a"))
    monkeypatch.setattr(table._table, "optimize", fail)
    await table.finish()
    assert "put off" in caplog.text


def test_an_identity_holds_no_password_and_moves_with_its_folder() -> None:
    def identity(uri: str) -> str:
        return LanceDBStore(LanceDBSettings(uri=uri, table="t")).identity

    assert identity("s3://user:password@bucket/path/?token=x") == "lancedb:s3://bucket/path/t"
    assert identity("./data/") == identity("data") == "lancedb:data/t"


# Pinecone


@pytest.fixture
async def index(server: PineconeEmulator) -> AsyncIterator[PineconeStore]:
    server.create_index("i", DIMENSION)
    store = PineconeStore(PineconeSettings(index="i"), api_key=KEY)
    await store.open(DIMENSION, create=False)
    server.reset_counts()
    yield store
    await store.aclose()


async def opening(settings: PineconeSettings, *, key: str = KEY, create: bool = False) -> None:
    store = PineconeStore(settings, api_key=key)
    try:
        await store.open(DIMENSION, create=create)
    finally:
        await store.aclose()


@pytest.mark.parametrize("namespace", ["__default__", 'a "quoted" one'])
async def test_the_sizes_and_the_envelope_are_the_bytes_sent(server: PineconeEmulator, namespace: str) -> None:
    """The Content-Length, to the byte: so a packed request is exactly as large as it was planned."""
    server.create_index("i", DIMENSION)
    store = PineconeStore(PineconeSettings(index="i", namespace=namespace), api_key=KEY)
    await store.open(DIMENSION, create=False)
    for records in ([record("é".encode().hex())], [record(f"{n}", text='ü"\n' * n or None, n=n) for n in range(40)]):
        server.reset_counts()
        encoded = store.encode(records)
        await store.upsert(encoded)
        assert server.upsert_bytes == store.limits.envelope_bytes + sum(one.size_bytes for one in encoded)
    bare = store.encode([record("bare", text=None)])
    server.reset_counts()
    await store.upsert(bare)
    assert server.upsert_bytes == store.limits.envelope_bytes + bare[0].size_bytes
    await store.aclose()


async def test_a_packed_request_fills_the_limit_and_is_taken(server: PineconeEmulator) -> None:
    server.create_index("i", 1536)
    store = PineconeStore(PineconeSettings(index="i"), api_key=KEY)
    await store.open(1536, create=False)
    vectors = np.random.default_rng(0).standard_normal((250, 1536)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    encoded = store.encode([record(f"{n}", vector, text="x" * 2000) for n, vector in enumerate(vectors)])
    requests, too_large = pack(
        [one.size_bytes for one in encoded],
        max_bytes=store.limits.max_request_bytes,
        envelope_bytes=store.limits.envelope_bytes,
        max_records=store.limits.max_records,
    )
    for rows in requests:
        await store.upsert([encoded[row] for row in rows])
    assert not too_large
    assert 85 < len(requests[0]) < 100
    assert 1_970_000 < server.largest_request_bytes <= 2_000_000
    await store.aclose()


async def test_a_zero_vector_is_refused_by_pinecone(index: PineconeStore) -> None:
    assert list(await put(index, record("zero", np.zeros(DIMENSION, np.float32)), record("one"))) == ["zero"]
    assert await index.count() == 1


@pytest.mark.parametrize(
    ("bad", "about"),
    [
        (document("x" * 513), "512"),
        (document("ä"), "ASCII"),
        (document("a\0b"), "ASCII"),
        (document(x=None), "'x'"),
        (document(x={"y": 1}), "'x'"),
        (document(x=["a", 1]), "'x'"),
        (document(x=[1.5]), "'x'"),
        (Document("a", "", {"$x": 1}), "'$x'"),
        (document(text="secret" * 8_000), "40,960"),
        (document(x="é" * 20_480), "40,960"),
        (document(text="x") if False else Document("a", "t", {"text": "mine"}), "field text"),
    ],
)
def test_pinecones_own_rules_are_known_before_sending(bad: Document, about: str) -> None:
    store = PineconeStore(PineconeSettings(index="i"), api_key=KEY)
    reason = store.refuse(bad, keep_text=True)
    assert reason is not None
    assert about in reason
    assert "secret" not in reason


def test_a_field_named_text_is_free_where_the_text_is_not_kept() -> None:
    store = PineconeStore(PineconeSettings(index="i"), api_key=KEY)
    assert store.refuse(Document("a", "t" * 50_000, {"text": "mine"}), keep_text=False) is None


async def test_forty_kilobytes_of_metadata_are_taken_to_the_byte(index: PineconeStore) -> None:
    """What `refuse` lets through, the server takes."""
    fits = document("fits", "x" * (40_960 - len(orjson.dumps({"text": ""}))))
    over = document("over", fits.text + "x")
    assert index.refuse(fits, keep_text=True) is None
    assert index.refuse(over, keep_text=True) is not None
    assert await put(index, record("fits", text=fits.text)) == {}
    with pytest.raises(RequestRejectedError):
        await put(index, record("over", text=over.text))


async def test_a_missing_index_is_a_usage_error_that_names_the_option(server: PineconeEmulator) -> None:
    with pytest.raises(UsageError, match=r"no index named gone.*--create"):
        await opening(PineconeSettings(index="gone"))
    assert server.indexes == {}


async def test_create_makes_a_serverless_cosine_index(server: PineconeEmulator) -> None:
    await opening(PineconeSettings(index="new", cloud="gcp", region="europe-west4"), create=True)
    field = {"type": "dense_vector", "dimension": DIMENSION, "metric": "cosine"}
    assert server.indexes["new"].schema == {"fields": {"_values": field}}
    assert server.indexes["new"].deployment == {
        "deployment_type": "managed",
        "cloud": "gcp",
        "region": "europe-west4",
    }


async def test_an_index_that_is_being_made_is_waited_for(
    server: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinecone_adapter, "_READY_POLL_SECONDS", 0.0)
    server.initializing.add("new")
    opened = asyncio.create_task(opening(PineconeSettings(index="new"), create=True))
    await asyncio.to_thread(server.wait_for, lambda: server.requests > 4)
    assert not opened.done()
    server.initializing.clear()
    await opened


async def test_waiting_for_an_index_is_bounded(server: PineconeEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinecone_adapter, "_READY_WITHIN_SECONDS", 0.0)
    server.initializing.add("new")
    with pytest.raises(UsageError, match="not ready"):
        await opening(PineconeSettings(index="new"), create=True)


async def test_a_bad_key_is_a_usage_error_that_names_the_variable_not_the_key(server: PineconeEmulator) -> None:
    with pytest.raises(UsageError, match="MY_KEY") as caught:
        await opening(PineconeSettings(index="i", api_key="MY_KEY"), key="wrong-secret")
    assert "wrong-secret" not in str(caught.value)


async def test_a_key_that_cannot_be_a_header_is_a_usage_error(server: PineconeEmulator) -> None:
    with pytest.raises(UsageError, match="PINECONE_API_KEY") as caught:
        await opening(PineconeSettings(index="i"), key="sécret\n")
    assert "cret" not in str(caught.value)


async def test_a_document_index_is_a_usage_error(server: PineconeEmulator) -> None:
    server.create_index("docs", DIMENSION).schema = {
        "fields": {"body": {"type": "dense_vector", "dimension": DIMENSION, "metric": "cosine"}}
    }
    with pytest.raises(UsageError, match="document index"):
        await opening(PineconeSettings(index="docs"))


async def test_a_namespace_that_cannot_be_is_a_usage_error(server: PineconeEmulator) -> None:
    with pytest.raises(UsageError, match="ASCII"):
        await opening(PineconeSettings(index="i", namespace="ä"))


async def test_a_euclidean_index_is_taken_with_a_warning_and_ranks_nearest_first(
    server: PineconeEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    server.create_index("i", DIMENSION, "euclidean")
    store = PineconeStore(PineconeSettings(index="i"), api_key=KEY)
    with caplog.at_level(logging.WARNING):
        await store.open(DIMENSION, create=False)
    assert "euclidean" in caplog.text
    await put(store, record("far", axis(0) * 9), record("near", axis(0)))
    hits = await store.query(axis(0), limit=2)
    assert [hit.id for hit in hits] == ["near", "far"]
    assert hits[0].score > hits[1].score
    await store.aclose()


async def test_an_unreachable_control_plane_is_transient(server: PineconeEmulator) -> None:
    server.stop()
    with pytest.raises(UnavailableError):
        await opening(PineconeSettings(index="i"))


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(script=("status_500",)), UnavailableError),
        (Faults(script=("status_503",)), UnavailableError),
        (Faults(script=("status_429",), retry_after_seconds=7), RateLimitedError),
        (Faults(script=("reset_before",)), UnavailableError),
        (Faults(script=("reset_after",)), UnavailableError),
        (Faults(script=("truncate",)), UnavailableError),
        (Faults(poison=("bad",)), RequestRejectedError),
    ],
)
async def test_a_failed_upsert_is_translated_and_sent_once(
    index: PineconeStore, server: PineconeEmulator, faults: Faults, expected: type[MillraceError]
) -> None:
    """The SDK's own retries are off: the emulator counts one request."""
    server.faults = faults
    with pytest.raises(expected) as caught:
        await put(index, record("bad", text="secret text"))
    assert type(caught.value) is expected
    assert server.requests == 1
    assert not any(word in str(caught.value) for word in ("secret", KEY, "injected"))
    assert getattr(caught.value, "retry_after_seconds", None) == (7 if expected is RateLimitedError else None)


async def test_a_control_plane_request_is_sent_once(server: PineconeEmulator) -> None:
    server.faults = Faults(script=("status_503",))
    with pytest.raises(UnavailableError):
        await opening(PineconeSettings(index="i"))
    assert server.requests == 1


async def test_a_request_over_the_servers_size_says_so(index: PineconeStore, server: PineconeEmulator) -> None:
    server.max_request_bytes = 100
    with pytest.raises(RequestTooLargeError):
        await put(index, record("a"))


async def test_a_key_revoked_or_an_index_deleted_during_the_run_stops_it(
    index: PineconeStore, server: PineconeEmulator
) -> None:
    server.api_key = "another"
    with pytest.raises(RefusedError):
        await put(index, record("a"))
    server.api_key = KEY
    server.indexes.clear()
    with pytest.raises(RefusedError):
        await put(index, record("a"))


async def test_a_confirmation_of_fewer_records_is_not_taken_as_stored(
    index: PineconeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pinecone.models.vectors.responses import UpsertResponse  # noqa: PLC0415

    async def short(**_: Any) -> UpsertResponse:
        return UpsertResponse(upserted_count=1)

    monkeypatch.setattr(index._opened(), "upsert", short)
    with pytest.raises(UnavailableError, match="1 of 2"):
        await put(index, record("a"), record("b"))


async def test_ten_requests_in_flight_keep_their_connections(index: PineconeStore, server: PineconeEmulator) -> None:
    await asyncio.gather(*(put(index, record(f"{number}")) for number in range(40)))
    assert server.upserted == 40


# Keys and the registry


def test_a_key_comes_from_the_environment_without_its_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "key\n")
    assert resolve_secret("SOME_API_KEY") == "key"


def test_a_missing_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PINECONE_API_KEY", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UsageError) as caught:
        build_store(PineconeSettings(index="i"))
    assert str(caught.value) == (
        "PINECONE_API_KEY is not set: export it or make a Prefect Secret block named pinecone-api-key"
    )


def test_the_registry_builds_the_store_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    assert build_store(LanceDBSettings(uri="d", table="t")).identity == "lancedb:d/t"
    store = build_store(PineconeSettings(index="i", namespace="n", api_key="MY_KEY", max_request_bytes=50_000))
    assert store.identity == "pinecone:i/n"
    assert (store.limits.max_request_bytes, store.limits.max_records, store.limits.concurrency) == (50_000, 1000, 10)
