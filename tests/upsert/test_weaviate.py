"""What is particular to Weaviate, through the real client, against a server of ours on the client's own protocol."""

from __future__ import annotations

import asyncio
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import weaviate
from pydantic import TypeAdapter, ValidationError
from weaviate.classes.query import Filter
from weaviate.proto.v1 import batch_pb2

import tasks.upsert.weaviate_connection as connection_module
from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestTooLargeError,
    UnavailableError,
    UsageError,
)
from tasks.provider_settings import StoreSettings, WeaviateSettings
from tasks.records import Document
from tasks.upsert.open import build_store
from tasks.upsert.packing import pack
from tasks.upsert.port import Store
from tasks.upsert.weaviate import WeaviateStore
from tasks.upsert.weaviate_objects import encode_record, object_id, reason_without_document
from tests.emulators.faults import Faults
from tests.emulators.weaviate import SERVICE, WeaviateEmulator
from tests.emulators.weaviate_store import UNNAMED
from tests.upsert.contract import DIMENSION, SECRET, axis, document, put, record

TEXTS = [{"name": name, "dataType": ["text"]} for name in ("document_id", "text", "metadata")]
"""The properties of the layout, as another client would declare them."""

KEPT_QUIET = "nobody else may see this"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeaviateEmulator]:
    with WeaviateEmulator(api_key=SECRET) as running:
        monkeypatch.setenv("WEAVIATE_API_KEY", SECRET)
        yield running


def settings(server: WeaviateEmulator, **other: Any) -> WeaviateSettings:
    given = {"url": server.url, "grpc_port": server.grpc_port, "collection": "Docs"} | other
    return WeaviateSettings(**given)


async def opening(server: WeaviateEmulator, *, create: bool = False, **other: Any) -> WeaviateStore:
    """Open a store, which the caller closes, unless it fails."""
    store = build_store(settings(server, **other))
    assert isinstance(store, WeaviateStore)
    try:
        await store.open(DIMENSION, create=create)
    except MillraceError:
        await store.aclose()
        raise
    return store


@pytest.fixture
async def store(server: WeaviateEmulator) -> AsyncIterator[WeaviateStore]:
    opened = await opening(server, create=True)
    server.reset_counts()
    yield opened
    await opened.aclose()


# What is sent


async def test_the_sizes_are_the_bytes_of_the_message(store: WeaviateStore, server: WeaviateEmulator) -> None:
    """To the byte, whatever the lengths: so a packed request is exactly as large as it was planned."""
    for records in ([record("é")], [record(f"{n}", text='ü"\n' * n * 9 or None, n=n) for n in range(60)]):
        server.reset_counts()
        encoded = store.encode(records)
        await store.upsert(encoded)
        assert server.largest_request_bytes == store.limits.envelope_bytes + sum(one.size_bytes for one in encoded)


async def test_a_packed_request_fills_ten_megabytes_and_is_taken(server: WeaviateEmulator) -> None:
    store = build_store(settings(server))
    await store.open(3072, create=True)
    vectors = np.random.default_rng(0).standard_normal((900, 3072)).astype(np.float32)
    encoded = store.encode([record(f"{n}", vector, text="x" * 2000) for n, vector in enumerate(vectors)])
    requests, too_large = pack(
        [one.size_bytes for one in encoded],
        max_bytes=store.limits.max_request_bytes,
        envelope_bytes=store.limits.envelope_bytes,
        max_records=1000,
    )
    for rows in requests:
        assert await store.upsert([encoded[row] for row in rows]) == {}
    assert not too_large
    assert 9_980_000 < server.largest_request_bytes <= 10_000_000
    assert await store.count() == 900
    await store.aclose()


async def test_an_object_has_a_uuid_of_its_id_and_keeps_the_id(store: WeaviateStore, server: WeaviateEmulator) -> None:
    await put(store, record("a b/ü", n=1))
    ((uuid, stored),) = server.collections["Docs"].objects.items()
    assert uuid == object_id("a b/ü")
    assert UUID(uuid).version == 5
    assert stored.properties == {"document_id": "a b/ü", "text": "text", "metadata": '{"n":1}'}


def test_the_uuid_of_an_id_never_changes() -> None:
    """Objects that are stored would no longer be found."""
    assert object_id("doc-1") == "61677630-0cfb-5816-a01c-1f6ba766bac8"


async def test_a_collection_is_made_for_vectors_of_our_own(server: WeaviateEmulator) -> None:
    await (await opening(server, create=True, filterable={"year": "int"})).aclose()
    schema = server.collections["Docs"].schema
    assert list(schema["vectorConfig"]) == ["default"]
    vector = schema["vectorConfig"]["default"]
    assert (vector["vectorizer"], vector["vectorIndexConfig"]["distance"]) == ({"none": {}}, "cosine")
    indexed = {one["name"]: (one["indexFilterable"], one["indexSearchable"]) for one in schema["properties"]}
    assert indexed == {
        "document_id": (True, False),
        "text": (False, True),
        "metadata": (False, False),
        "year": (True, False),
    }


async def test_a_collection_that_another_process_makes_first_is_taken(
    server: WeaviateEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = await asyncio.gather(opening(server, create=True), opening(server, create=True))
    for one in both:
        await one.aclose()
    assert server.refused[422] == 1


# Metadata that can be filtered by


@pytest.fixture
async def filterable(server: WeaviateEmulator) -> AsyncIterator[WeaviateStore]:
    kinds = {"year": "int", "rating": "number", "is_new": "boolean", "day": "date", "tags": "text[]", "pages": "int[]"}
    opened = await opening(server, create=True, filterable=kinds)
    yield opened
    await opened.aclose()


async def test_a_declared_field_is_filterable_and_the_rest_reads_back_all_the_same(
    filterable: WeaviateStore, server: WeaviateEmulator
) -> None:
    """A person's own query, through the client's public interface."""
    metadata: dict[str, Any] = {
        "year": 2021,
        "rating": 4,
        "is_new": True,
        "day": "2021-05-06T00:00:00Z",
        "tags": ["x"],
        "pages": [1],
    }
    metadata |= {"other": {"nested": [1, None, {"deep": 2.5}]}}
    await put(filterable, record("a", **metadata), record("b", year=1999, tags=[], rating=None), record("c"))
    async with weaviate.use_async_with_custom(
        "127.0.0.1", server._port, False, "127.0.0.1", server.grpc_port, False, auth_credentials=SECRET,
        skip_init_checks=True,
    ) as client:  # fmt: skip
        docs = client.collections.use("Docs")
        newer = await docs.query.fetch_objects(filters=Filter.by_property("year").greater_or_equal(2000))
        tagged = await docs.query.fetch_objects(filters=Filter.by_property("tags").contains_any(["x", "y"]))
    assert [one.properties["document_id"] for one in newer.objects] == ["a"]
    assert [one.properties["document_id"] for one in tagged.objects] == ["a"]
    found = {one.id: one.metadata for one in await filterable.fetch(["a", "b", "c"])}
    assert found == {"a": metadata, "b": {"year": 1999, "tags": [], "rating": None}, "c": {}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("year", "1999"),
        ("year", 19.5),
        ("year", True),
        ("year", 2**60),
        ("rating", "4"),
        ("is_new", 1),
        ("day", 3),
        ("tags", "x"),
        ("tags", ["x", 1]),
        ("pages", [1.5]),
    ],
)
async def test_a_value_that_does_not_fit_its_declaration_is_known_before_it_is_embedded(
    filterable: WeaviateStore, field: str, value: Any
) -> None:
    reason = filterable.refuse(Document("a", "text", {field: value}), keep_text=True)
    assert reason is not None
    assert repr(field) in reason


async def test_what_only_the_server_can_judge_costs_that_object_alone(filterable: WeaviateStore) -> None:
    """A date that is none: an error inside an answer that is in order."""
    assert filterable.refuse(document(day="not a date"), keep_text=True) is None
    refused = await put(filterable, record("a"), record("bad", day="not a date", text="secret text"), record("b"))
    assert list(refused) == ["bad"]
    assert "date property 'day'" in refused["bad"]
    assert await filterable.count() == 2


async def test_nothing_is_declared_by_what_happens_to_come_first(store: WeaviateStore) -> None:
    """Weaviate's auto-schema would take the first `x` for a date, and refuse the others."""
    values = ["2021-05-06T00:00:00Z", 5, True, ["x"], None, {"y": 1}]
    assert await put(store, *(record(f"{n}", x=value) for n, value in enumerate(values))) == {}
    found = {one.id: one.metadata["x"] for one in await store.fetch([f"{n}" for n in range(6)])}
    assert [found[f"{n}"] for n in range(6)] == values


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("store is read-only", True),
        ("invalid text property 'author' on class 'Docs'", True),
        ("cannot take 'a text about rivers'", False),
        ("quoted in part: text about ri", False),
        ("field is 'in the metadata here'", False),
        ("", True),
    ],
)
def test_a_servers_reason_is_shown_unless_it_quotes_the_document(message: str, shown: bool) -> None:  # noqa: FBT001
    sent = record("a", text="a text about rivers", author="in the metadata here")
    payload = encode_record(sent, "Docs", None, {}).payload
    assert isinstance(payload, batch_pb2.BatchObject)
    reason = reason_without_document(message, payload)
    assert (message in reason) == shown or not message
    assert reason.startswith("Weaviate refused it")


def test_a_short_text_is_not_shown_either() -> None:
    payload = encode_record(record("a", text="pst"), "Docs", None, {}).payload
    assert "pst" not in reason_without_document("cannot take pst", payload)


# Collections that are there already


async def test_a_vector_without_a_name_is_filled_and_searched(server: WeaviateEmulator) -> None:
    """Of a collection that an older client made."""
    server.create_collection("Docs", properties=TEXTS, vectorIndexConfig={"distance": "dot"})
    store = await opening(server)
    await put(store, record("far", -axis(0)), record("near", axis(0) * 3))
    assert set(server.collections["Docs"].objects[object_id("near")].vectors) == {UNNAMED}
    assert [(hit.id, hit.score) for hit in await store.query(axis(0), limit=9)] == [("near", 3.0), ("far", -1.0)]
    assert [one.vector.tolist() for one in await store.fetch(["near"])] == [(axis(0) * 3).tolist()]
    await store.aclose()


TWO: dict[str, Any] = {name: {"vectorizer": {"none": {}}} for name in ("title", "body")}


@pytest.mark.parametrize(
    ("definition", "asked", "about"),
    [
        ({}, {}, "no property document_id of type text"),
        ({"properties": [*TEXTS[:2], {"name": "metadata", "dataType": ["int"]}]}, {}, "no property metadata"),
        ({"properties": TEXTS}, {"filterable": {"year": "int"}}, "no property year of type int"),
        ({"properties": TEXTS, "multiTenancyConfig": {"enabled": True}}, {}, "tenants"),
        ({"properties": TEXTS, "vectorIndexConfig": {"distance": "l2-squared"}}, {}, "measures by l2-squared"),
        ({"properties": TEXTS, "vectorConfig": TWO}, {}, "body, title; name one of them by vector_name"),
        ({"properties": TEXTS, "vectorConfig": TWO}, {"vector_name": "other"}, "body, title; name one"),
        ({"properties": TEXTS}, {"vector_name": "body"}, "only one without a name"),
        ({"properties": TEXTS, "vectorIndexType": "later-than-this-client"}, {}, "does not know"),
    ],
)
async def test_a_collection_that_does_not_fit_is_a_usage_error(
    server: WeaviateEmulator, definition: dict[str, Any], asked: dict[str, Any], about: str
) -> None:
    server.create_collection("Docs", **definition)
    with pytest.raises(UsageError, match=about):
        await opening(server, **asked)


async def test_one_of_several_vectors_is_filled(server: WeaviateEmulator) -> None:
    server.create_collection("Docs", properties=TEXTS, vectorConfig=TWO)
    store = await opening(server, vector_name="body")
    await put(store, record("a", axis(1)))
    assert set(server.collections["Docs"].objects[object_id("a")].vectors) == {"body"}
    assert [hit.id for hit in await store.query(axis(1), limit=1)] == ["a"]
    await store.aclose()


async def test_the_dimension_is_that_of_what_is_stored(store: WeaviateStore, server: WeaviateEmulator) -> None:
    """Whatever has become of the description in the meantime."""
    await put(store, record("a"))
    server.collections["Docs"].schema["description"] = "Something else."
    with pytest.raises(UsageError, match="8 dimensions, the embedder makes 16"):
        await store.open(16, create=False)


async def test_an_object_of_another_writer_is_found_by_its_uuid(store: WeaviateStore, server: WeaviateEmulator) -> None:
    await put(store, record("a", axis(0)))
    stored = server.collections["Docs"].objects
    stranger = "00000000-0000-0000-0000-000000000001"
    stored[stranger] = type(stored[object_id("a")])({}, {"default": axis(1)})
    assert [(hit.id, hit.text, hit.metadata) for hit in await store.query(axis(1), limit=1)] == [(stranger, None, {})]


async def test_a_collections_name_begins_with_a_capital_as_weaviate_has_it(server: WeaviateEmulator) -> None:
    store = await opening(server, create=True, collection="docs")
    assert list(server.collections) == ["Docs"]
    assert store.identity == f"weaviate:127.0.0.1:{server._port}/Docs"
    await store.aclose()


# What goes wrong


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(script=("status_500",)), UnavailableError),
        (Faults(script=("status_503",)), UnavailableError),
        (Faults(script=("status_429",)), RateLimitedError),
        (Faults(script=("reset_before",)), UnavailableError),
        (Faults(script=("reset_after",)), UnavailableError),
    ],
)
async def test_a_failed_upsert_is_translated_and_sent_once(
    store: WeaviateStore, server: WeaviateEmulator, faults: Faults, expected: type[MillraceError]
) -> None:
    """The SDK's own retries are out of the way: the emulator counts one request."""
    server.faults = faults
    with pytest.raises(MillraceError) as caught:
        await put(store, record("a", text=KEPT_QUIET))
    assert type(caught.value) is expected
    assert server.requests == 1
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(word in shown for word in (KEPT_QUIET, SECRET, "injected"))


@pytest.mark.parametrize("method", ["Search", "Aggregate", "BatchDelete"])
async def test_every_other_call_is_sent_once_too(store: WeaviateStore, server: WeaviateEmulator, method: str) -> None:
    server.faults = Faults(script=("status_503",) * 9)
    calls = {"Search": store.query(axis(0), limit=1), "Aggregate": store.count(), "BatchDelete": store.delete(["a"])}
    asked = calls.pop(method)
    for unasked in calls.values():
        unasked.close()
    with pytest.raises(UnavailableError):
        await asked
    assert server.by_path == {SERVICE + method: 1}


@pytest.mark.parametrize(("status", "expected"), [("status_503", UnavailableError), ("status_429", RateLimitedError)])
async def test_a_failed_rest_request_is_translated_and_sent_once(
    server: WeaviateEmulator, status: Any, expected: type[MillraceError]
) -> None:
    server.faults = Faults(script=("none", "none", status))  # the client asks for /v1/meta, and so do we
    with pytest.raises(expected):
        await opening(server)
    assert server.by_path == {"/v1/meta": 2, "/v1/schema/Docs": 1}


async def test_an_answer_that_does_not_come_is_transient(
    store: WeaviateStore, server: WeaviateEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_TIMEOUT_SECONDS", 0.05)
    server.hold()
    with pytest.raises(UnavailableError, match="DEADLINE_EXCEEDED"):
        await put(store, record("a"))


async def test_a_message_over_the_servers_limit_is_halved_and_one_object_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is gRPC itself that refuses it, with the code that it has for a busy server, too."""
    with WeaviateEmulator(api_key=None, max_message_bytes=3_000, is_reticent=True) as server:
        monkeypatch.delenv("WEAVIATE_API_KEY", raising=False)
        store = await opening(server, create=True)
        with pytest.raises(RequestTooLargeError):
            await put(store, record("a", text="x" * 2_000), record("b", text="x" * 2_000))
        with pytest.raises(RateLimitedError):
            await put(store, record("a", text="x" * 4_000))
        assert await put(store, record("a", text="x" * 2_000)) == {}
        await store.aclose()


async def test_the_servers_own_limit_is_kept_where_it_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVIATE_API_KEY", SECRET)
    with WeaviateEmulator(api_key=SECRET, max_message_bytes=50_000) as server:
        store = await opening(server, create=True)
        assert store.limits.max_request_bytes == 50_000
        await store.aclose()
        store = await opening(server, max_request_bytes=20_000)
        assert store.limits.max_request_bytes == 20_000
        await store.aclose()


async def test_a_key_revoked_during_the_run_stops_it(store: WeaviateStore, server: WeaviateEmulator) -> None:
    server.api_key = "another"
    with pytest.raises(RefusedError):
        await put(store, record("a"))


async def test_a_closed_grpc_port_is_found_when_the_store_is_opened(server: WeaviateEmulator) -> None:
    """REST alone answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(UnavailableError, match="over gRPC"):
        await opening(server, create=True, grpc_port=port)


async def test_a_server_with_anonymous_access_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEAVIATE_API_KEY", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with WeaviateEmulator(api_key=None) as server:
        store = await opening(server, create=True)
        assert await put(store, record("a")) == {}
        await store.aclose()


async def test_a_server_that_wants_a_key_says_where_to_put_it(
    server: WeaviateEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEAVIATE_API_KEY")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UsageError, match="WEAVIATE_API_KEY"):
        await opening(server)


async def test_a_key_that_cannot_be_a_header_is_a_usage_error(
    server: WeaviateEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEAVIATE_API_KEY", "sécret")
    with pytest.raises(UsageError, match="WEAVIATE_API_KEY") as caught:
        await opening(server)
    assert "cret" not in str(caught.value)


async def test_a_server_that_is_too_old_is_a_usage_error(server: WeaviateEmulator) -> None:
    server.version = "1.28.9"
    with pytest.raises(UsageError, match=r"1\.28\.9 is too old"):
        await opening(server)


async def test_ten_upserts_at_once_are_all_stored(store: WeaviateStore, server: WeaviateEmulator) -> None:
    await asyncio.gather(*(put(store, record(f"{number}")) for number in range(40)))
    assert server.upserted == 40
    assert await store.count() == 40


# Settings


def parsed(shorthand: str) -> WeaviateSettings:
    made = TypeAdapter[StoreSettings](StoreSettings).validate_python(shorthand)
    assert isinstance(made, WeaviateSettings)
    return made


def test_the_shorthand_may_name_the_vector_and_the_port() -> None:
    plain = parsed("weaviate:http://localhost:8080/Docs")
    assert (plain.url, plain.collection, plain.grpc_port) == ("http://localhost:8080", "Docs", 50051)
    more = parsed("weaviate:https://host/docs?vector_name=body&grpc_port=50052")
    assert (more.url, more.collection, more.vector_name, more.grpc_port) == ("https://host", "docs", "body", 50052)


@pytest.mark.parametrize(
    "shorthand",
    [
        "weaviate:localhost/Docs",
        "weaviate:http://localhost:8080/a/Docs",
        "weaviate:http://localhost:8080/Do-cs",
        "weaviate:http://localhost:8080/Docs?grpc=1",
        "weaviate:http://me:secret@localhost:8080/Docs",
    ],
)
def test_what_is_no_place_of_weaviates_is_refused(shorthand: str) -> None:
    with pytest.raises(ValidationError):
        parsed(shorthand)


@pytest.mark.parametrize("name", ["id", "text", "document_id", "Year", "a-b"])
def test_a_property_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        WeaviateSettings(url="http://localhost", collection="Docs", filterable={name: "text"})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://abc.c0.europe-west3.gcp.weaviate.cloud", "grpc-abc.c0.europe-west3.gcp.weaviate.cloud"),
        ("https://abc.weaviate.network", "abc.grpc.weaviate.network"),
        ("https://weaviate.example.org", "weaviate.example.org"),
    ],
)
def test_the_cloud_has_a_host_of_its_own_for_grpc(url: str, host: str) -> None:
    client = connection_module._build_client(WeaviateSettings(url=url, collection="Docs"), SECRET)
    assert client._connection._connection_params.grpc.host == host
    assert client._connection._connection_params.http.port == 443


def test_without_the_extra_the_store_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("weaviate.", "tasks.upsert.weaviate"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "weaviate", None)
    with pytest.raises(UsageError, match=r"pip install 'millrace\[weaviate\]'"):
        build_store(WeaviateSettings(url="http://localhost", collection="Docs"))


async def test_a_store_that_is_not_open_says_so() -> None:
    store: Store = WeaviateStore(WeaviateSettings(url="http://localhost", collection="Docs"), api_key=None)
    with pytest.raises(RefusedError, match="not open"):
        await store.query(axis(0), limit=1)
    await store.aclose()
