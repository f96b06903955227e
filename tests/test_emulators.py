"""The official SDKs get right answers, right refusals and every fault from the emulators."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import orjson
import pinecone
import pytest
from numpy.typing import NDArray

from tests.emulators.faults import KINDS, Faults, FaultSource, Kind
from tests.emulators.openai import OpenAIEmulator, count_model_tokens, vector_for, vectors_for
from tests.emulators.pinecone import PineconeEmulator
from tests.emulators.process import EmulatorProcess, drive

MODEL = "text-embedding-3-small"
NO_RETRIES = pinecone.RetryConfig(max_retries=0)


@pytest.fixture
def embeddings() -> Iterator[OpenAIEmulator]:
    """OpenAI."""
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture
async def client(embeddings: OpenAIEmulator) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's SDK, without its retries."""
    async with openai.AsyncOpenAI(api_key=embeddings.api_key, base_url=embeddings.base_url, max_retries=0) as client:
        yield client


@pytest.fixture
def store() -> Iterator[PineconeEmulator]:
    """Pinecone, with an index of 8 dimensions named docs."""
    with PineconeEmulator() as emulator:
        emulator.create_index("docs", 8)
        yield emulator


async def connect(store: PineconeEmulator, name: str = "docs") -> pinecone.AsyncIndex:
    """The SDK's data plane client for an index, without the SDK's retries."""
    async with pinecone.AsyncPinecone(api_key=store.api_key, host=store.base_url, retry_config=NO_RETRIES) as control:
        index = await control.index(name)
    # AsyncIndex takes no retry_config; its HTTP client is made from this at the first request.
    index._http._config = replace(index._http._config, retry_config=NO_RETRIES)
    return index


@pytest.fixture
async def index(store: PineconeEmulator) -> AsyncIterator[pinecone.AsyncIndex]:
    """Pinecone's SDK for that index, without its retries."""
    async with await connect(store) as index:
        yield index


def decode(embedding: Any) -> NDArray[np.float32]:
    """The vector of one item of an answer in base64."""
    return np.frombuffer(base64.b64decode(embedding), dtype="<f4")


def record(record_id: str, metadata: dict[str, Any] | None = None, dimension: int = 8) -> pinecone.Vector:
    """A record whose vector is its id's."""
    return pinecone.Vector(id=record_id, values=vector_for(record_id, dimension).tolist(), metadata=metadata)


# What OpenAI answers


async def test_a_text_gets_its_own_vector_in_either_format(client: openai.AsyncOpenAI) -> None:
    """Base64 and float carry the same float32 values, those of `vector_for`."""
    texts = ["one", "two", "drei \u00fc"]
    for encoding_format in ("base64", "float"):
        answer = await client.embeddings.create(model=MODEL, input=texts, encoding_format=encoding_format)
        assert [item.index for item in answer.data] == [0, 1, 2]
        items = [item.embedding for item in answer.data]
        got = [decode(item) if encoding_format == "base64" else np.array(item, np.float32) for item in items]
        assert np.array_equal(np.stack(got), vectors_for(texts, 1536))


async def test_dimensions_are_honoured(client: openai.AsyncOpenAI) -> None:
    """The vectors have as many numbers as asked for, and the SDK's own decoding of base64 gives them as they were."""
    answer = await client.embeddings.create(model=MODEL, input="one", dimensions=16)
    assert np.array_equal(np.array(answer.data[0].embedding, np.float32), vector_for("one", 16))


def test_vectors_are_distinct_unit_vectors_however_they_are_asked_for() -> None:
    """A text's vector is the same alone as among others, and no two texts share one."""
    texts = [str(number) for number in range(2000)]
    vectors = vectors_for(texts, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert len(np.unique(vectors, axis=0)) == len(texts)
    assert all(np.array_equal(vector_for(text, 64), vector) for text, vector in zip(texts, vectors, strict=True))


async def test_raw_answers_carry_the_rate_headers(client: openai.AsyncOpenAI) -> None:
    """``with_raw_response`` shows the limits beside the vectors."""
    raw = await client.embeddings.with_raw_response.create(model=MODEL, input=["one"], encoding_format="base64")
    names = {
        f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
    }
    assert names <= set(raw.headers)
    assert raw.parse().usage.total_tokens == 1


async def test_exact_usage_counts_model_tokens(client: openai.AsyncOpenAI, embeddings: OpenAIEmulator) -> None:
    """Usage is exact where a test asks for it."""
    embeddings.exact_usage = True
    texts = ["the quick brown fox", "jumps"]
    answer = await client.embeddings.create(model=MODEL, input=texts)
    assert answer.usage.total_tokens == sum(count_model_tokens(text) for text in texts) == embeddings.model_tokens


async def test_every_text_answered_is_counted_as_paid(client: openai.AsyncOpenAI, embeddings: OpenAIEmulator) -> None:
    """The second answer for a text shows."""
    await client.embeddings.create(model=MODEL, input=["one", "two"], dimensions=8)
    await client.embeddings.create(model=MODEL, input=["two"], dimensions=8)
    assert (embeddings.times_paid("one"), embeddings.times_paid("two"), embeddings.paid_again) == (1, 2, 1)


# What OpenAI refuses


async def test_a_wrong_key_is_refused(embeddings: OpenAIEmulator) -> None:
    """The SDK raises its authentication error."""
    async with openai.AsyncOpenAI(api_key="sk-wrong", base_url=embeddings.base_url, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.embeddings.create(model=MODEL, input="one")
    assert caught.value.code == "invalid_api_key"


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI) -> None:
    """The SDK raises not found, by the code of a model."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="text-embedding-9", input="one")
    assert caught.value.code == "model_not_found"


LONG = " word" * 8192

REFUSED_INPUTS = [
    pytest.param([], id="no text"),
    pytest.param([""], id="an empty text"),
    pytest.param(["x"] * 2049, id="2,049 texts"),
    pytest.param([LONG + " word"], id="8,193 model tokens"),
    pytest.param([LONG] * 37, id="303,104 model tokens in all"),
]


@pytest.mark.parametrize("texts", REFUSED_INPUTS)
async def test_a_request_over_a_limit_is_refused(
    client: openai.AsyncOpenAI, embeddings: OpenAIEmulator, texts: list[str]
) -> None:
    """The SDK raises bad request and nothing is paid."""
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model=MODEL, input=texts)
    assert (embeddings.texts, embeddings.refused) == (0, {400: 1})


@pytest.mark.parametrize("texts", [["x"] * 2048, [LONG], [LONG] * 36], ids=["2,048 texts", "8,192 tokens", "294,912"])
async def test_a_request_at_a_limit_is_answered(client: openai.AsyncOpenAI, texts: list[str]) -> None:
    """The limits themselves are allowed."""
    answer = await client.embeddings.create(model=MODEL, input=texts, dimensions=8)
    assert len(answer.data) == len(texts)


async def test_an_account_without_quota_is_refused_as_such() -> None:
    """It is a 429 whose code tells it from a rate limit."""
    with OpenAIEmulator() as emulator:
        emulator.insufficient_quota = True
        async with openai.AsyncOpenAI(api_key=emulator.api_key, base_url=emulator.base_url, max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.embeddings.create(model=MODEL, input="one")
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize("limits", [{"requests_per_minute": 2}, {"tokens_per_minute": 2}])
async def test_the_rate_limit_slides(limits: dict[str, float]) -> None:
    """The third request of a minute is refused with the wait, and answered once the first has left the window."""
    now = [100.0]
    with OpenAIEmulator(clock=lambda: now[0], **limits) as emulator:  # type: ignore[arg-type]
        async with openai.AsyncOpenAI(api_key=emulator.api_key, base_url=emulator.base_url, max_retries=0) as client:
            for _ in range(2):
                await client.embeddings.create(model=MODEL, input="four", dimensions=8)
                now[0] += 20
            with pytest.raises(openai.RateLimitError) as caught:
                await client.embeddings.create(model=MODEL, input="four", dimensions=8)
            assert caught.value.response.headers["retry-after"] == "20"
            now[0] += 20
            await client.embeddings.create(model=MODEL, input="four", dimensions=8)


# What goes wrong at OpenAI

OPENAI_FAULTS: list[tuple[Kind, type[openai.APIError], int]] = [
    ("status_500", openai.InternalServerError, 0),
    ("status_503", openai.InternalServerError, 0),
    ("status_429", openai.RateLimitError, 0),
    ("reset_before", openai.APIConnectionError, 0),
    ("reset_after", openai.APIConnectionError, 1),
    ("truncate", openai.APIConnectionError, 1),
]


@pytest.mark.parametrize(("kind", "expected", "paid"), OPENAI_FAULTS)
async def test_openai_fault_raises(
    client: openai.AsyncOpenAI, embeddings: OpenAIEmulator, kind: Kind, expected: type[openai.APIError], paid: int
) -> None:
    """Each fault is the SDK's matching error, and is paid for only where the work was done."""
    embeddings.faults = Faults(script=(kind,), retry_after_seconds=7)
    with pytest.raises(expected) as caught:
        await client.embeddings.create(model=MODEL, input=["one"], encoding_format="base64")
    assert type(caught.value) is expected
    assert (embeddings.times_paid("one"), embeddings.injected) == (paid, {kind: 1})
    if isinstance(caught.value, openai.RateLimitError):
        assert caught.value.response.headers["retry-after"] == "7"
    await client.embeddings.create(model=MODEL, input=["one"], encoding_format="base64")


async def test_shuffled_items_keep_their_index(client: openai.AsyncOpenAI, embeddings: OpenAIEmulator) -> None:
    """By index the items are right, by place they are not."""
    texts = [str(number) for number in range(9)]
    embeddings.faults = Faults(shuffle=1.0)
    answer = await client.embeddings.create(model=MODEL, input=texts, encoding_format="base64")
    assert [item.index for item in answer.data] != list(range(9))
    for item in answer.data:
        assert np.array_equal(decode(item.embedding), vector_for(texts[item.index], 1536))


async def test_spoilt_answers_reach_the_client(client: openai.AsyncOpenAI, embeddings: OpenAIEmulator) -> None:
    """A missing item, one given twice, a NaN and a short vector are all answered with 200: only the caller can see."""
    embeddings.faults = Faults(script=("drop_item", "duplicate_item", "nan", "wrong_dimension"))
    answers = [
        await client.embeddings.create(model=MODEL, input=["one", "two"], dimensions=8, encoding_format="base64")
        for _ in range(4)
    ]
    dropped, duplicated, nan, short = answers
    assert [item.index for item in dropped.data] == [0]
    assert [item.index for item in duplicated.data] == [0, 0]
    assert np.isnan(decode(nan.data[0].embedding)).any()
    assert decode(short.data[0].embedding).shape == (7,)


async def test_a_poisoned_text_refuses_its_whole_request(
    client: openai.AsyncOpenAI, embeddings: OpenAIEmulator
) -> None:
    """The texts beside it are not paid either."""
    embeddings.faults = Faults(poison=("POISON",))
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model=MODEL, input=["one", "a POISON b"])
    await client.embeddings.create(model=MODEL, input=["one"])
    assert embeddings.times_paid("one") == 1


def test_faults_follow_their_seed() -> None:
    """The same seed deals the same faults in the same order, about as often as asked."""

    def deal(seed: int) -> list[Kind]:
        source = FaultSource(Faults(seed=seed, status_500=0.1, truncate=0.2))
        return [source.deal("/v1/embeddings") for _ in range(1000)]

    assert deal(1) == deal(1) != deal(2)
    assert 60 < deal(1).count("status_500") < 140
    assert 150 < deal(1).count("truncate") < 250


def test_impossible_faults_are_refused() -> None:
    """More than certain, and a fault that is not one."""
    with pytest.raises(ValueError, match="more than 1"):
        Faults(status_500=0.6, truncate=0.6)
    with pytest.raises(ValueError, match="not a fault"):
        Faults(script=("earthquake",))  # type: ignore[arg-type]
    assert {field for field in KINDS if hasattr(Faults(), field)} == set(KINDS)


async def test_the_provider_goes_down_half_way_and_recovers(
    client: openai.AsyncOpenAI, embeddings: OpenAIEmulator
) -> None:
    """After two answers every one is 503, until it recovers."""
    embeddings.fail_after(2)
    for _ in range(2):
        await client.embeddings.create(model=MODEL, input="one", dimensions=8)
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            await client.embeddings.create(model=MODEL, input="one", dimensions=8)
    embeddings.recover()
    await client.embeddings.create(model=MODEL, input="one", dimensions=8)
    assert embeddings.refused == {503: 2}


# The gate, seen by clients in threads of their own, as a process under test would be


def post(emulator: OpenAIEmulator, text: str) -> int | None:
    """The status of an embedding request over a connection of its own; None where the connection was cut."""
    connection = http.client.HTTPConnection("127.0.0.1", int(emulator.url.rpartition(":")[2]), timeout=10)
    body = orjson.dumps({"model": MODEL, "input": [text]})
    try:
        connection.request("POST", "/v1/embeddings", body, {"Authorization": f"Bearer {emulator.api_key}"})
        return connection.getresponse().status
    except ConnectionError:
        return None
    finally:
        connection.close()


def post_in_background(emulator: OpenAIEmulator, text: str, statuses: dict[str, int | None]) -> threading.Thread:
    """Ask in a thread; the status is in ``statuses`` once the thread ends."""
    thread = threading.Thread(target=lambda: statuses.update({text: post(emulator, text)}))
    thread.start()
    return thread


@pytest.mark.parametrize(("when", "paid_while_held"), [("before", 0), ("after", 1)])
def test_the_gate_holds_a_request_at_a_known_boundary(when: Any, paid_while_held: int) -> None:
    """One request passes, the next is held before or after its work, and goes on when released."""
    statuses: dict[str, int | None] = {}
    with OpenAIEmulator() as emulator:
        emulator.hold(after=1, when=when)
        assert post(emulator, "passes") == 200
        thread = post_in_background(emulator, "held", statuses)
        emulator.wait_held(1)
        assert (emulator.times_paid("held"), emulator.in_flight, statuses) == (paid_while_held, 1, {})
        emulator.release()
        thread.join()
        assert (statuses, emulator.times_paid("held"), emulator.max_in_flight) == ({"held": 200}, 1, 1)


def test_a_held_request_can_be_dropped_undone() -> None:
    """As if the provider had never seen it."""
    statuses: dict[str, int | None] = {}
    with OpenAIEmulator() as emulator:
        emulator.hold()
        thread = post_in_background(emulator, "held", statuses)
        emulator.wait_held(1)
        emulator.release(drop=True)
        thread.join()
        assert (statuses, emulator.times_paid("held")) == ({"held": None}, 0)


def test_waiting_for_what_does_not_come_times_out() -> None:
    """With the counters in the message."""
    with OpenAIEmulator() as emulator, pytest.raises(TimeoutError, match="requests"):
        emulator.wait_for(lambda: emulator.requests == 1, timeout_seconds=0.001)


def test_a_stopped_server_comes_back_on_its_port() -> None:
    """What it counted is still there."""
    emulator = OpenAIEmulator()
    with emulator:
        assert post(emulator, "one") == 200
        url = emulator.url
    assert post(emulator, "one") is None
    with emulator:
        assert post(emulator, "one") == 200
    assert (emulator.url, emulator.times_paid("one")) == (url, 2)


# HTTP


def talk(emulator: OpenAIEmulator, *pieces: bytes) -> bytes:
    """Everything the server answers to these bytes, sent piece by piece, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", int(emulator.url.rpartition(":")[2])), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_chunked_bodies_and_pipelined_requests_are_read() -> None:
    """A body in chunks, cut anywhere, and a second request before the first is answered."""
    with OpenAIEmulator() as emulator:
        head = f"POST /v1/embeddings HTTP/1.1\r\nAuthorization: Bearer {emulator.api_key}\r\n".encode()
        body = orjson.dumps({"model": MODEL, "input": ["one"], "dimensions": 8})
        chunks = b"".join(b"%x;note\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        plain = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        answer = talk(emulator, chunked[:20], chunked[20:130], chunked[130:] + plain)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert emulator.times_paid("one") == 2


def test_what_is_not_http_is_cut() -> None:
    """The connection ends instead of waiting for ever."""
    with OpenAIEmulator() as emulator, contextlib.suppress(ConnectionResetError):
        assert talk(emulator, b"nonsense\r\n\r\n") == b""


# What Pinecone answers


@pytest.mark.parametrize("form", ["dimension", "schema"])
async def test_an_index_is_created_described_listed_and_deleted(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of creating make an index for vectors: ``dimension`` is sugar for the reserved field ``_values``."""
    with PineconeEmulator() as store:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", store.base_url)
        async with pinecone.AsyncPinecone(api_key=store.api_key, retry_config=NO_RETRIES) as control:
            if form == "dimension":
                spec = pinecone.ServerlessSpec(cloud="aws", region="us-east-1")
                await control.indexes.create(name="docs", dimension=8, metric="dotproduct", spec=spec)
            else:
                field = {"type": "dense_vector", "dimension": 8, "metric": "dotproduct"}
                deployment = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}
                await control.indexes.create(name="docs", schema={"fields": {"_values": field}}, deployment=deployment)
            model = await control.indexes.describe("docs")
            assert (model.dimension, model.metric, model.host) == (8, "dotproduct", store.host("docs"))
            with pytest.raises(pinecone.ConflictError):
                await control.indexes.create(name="docs", dimension=8, timeout=-1)
            assert [found.name async for found in control.indexes.list()] == ["docs"]
            await control.indexes.delete("docs")
            assert not await control.indexes.exists("docs")


async def test_an_index_with_a_field_of_its_own_name_takes_no_vectors(store: PineconeEmulator) -> None:
    """The server rejects the vector operations on a document index."""
    async with pinecone.AsyncPinecone(api_key=store.api_key, host=store.base_url) as control:
        field = {"type": "dense_vector", "dimension": 8, "metric": "cosine"}
        await control.indexes.create(name="papers", schema={"fields": {"embedding": field}})
    async with await connect(store, "papers") as index:
        with pytest.raises(pinecone.ApiError) as caught:
            await index.upsert(vectors=[record("a")])
    assert caught.value.status_code == 400


async def test_an_index_still_initializing_says_so(store: PineconeEmulator) -> None:
    """Until the test takes it off the list."""
    store.initializing.add("docs")
    async with pinecone.AsyncPinecone(api_key=store.api_key, host=store.base_url) as control:
        assert not (await control.indexes.describe("docs")).status.ready
        store.initializing.clear()
        assert (await control.indexes.describe("docs")).status.ready


async def test_records_come_back_as_they_were(index: pinecone.AsyncIndex) -> None:
    """Values as float32, metadata with numbers as 64-bit floating point, ids that are not there left out."""
    metadata = {"title": "A", "year": 2024, "is_open": True, "tags": ["x", "y"]}
    answer = await index.upsert(vectors=[record("a", metadata), record("b")], namespace="n")
    assert answer.upserted_count == 2
    found = await index.fetch(ids=["a", "b", "missing"], namespace="n")
    assert set(found.vectors) == {"a", "b"}
    assert np.array_equal(np.array(found.vectors["a"].values, np.float32), vector_for("a", 8))
    assert found.vectors["a"].metadata == metadata
    assert isinstance(found.vectors["a"].metadata["year"], float)


async def test_a_vector_may_be_a_fragment_of_json(index: pinecone.AsyncIndex) -> None:
    """The SDK writes an ``orjson.Fragment`` as it is, so float32's shortest text reaches the server."""
    values: Any = orjson.Fragment(orjson.dumps(vector_for("a", 8), option=orjson.OPT_SERIALIZE_NUMPY))
    await index.upsert(vectors=[pinecone.Vector(id="a", values=values, metadata={"title": "A"})])
    found = (await index.fetch(ids=["a"])).vectors["a"]
    assert np.array_equal(np.array(found.values, np.float32), vector_for("a", 8))
    assert found.metadata == {"title": "A"}


@pytest.mark.parametrize(
    ("metric", "scores"), [("cosine", [0.8, 0.6]), ("dotproduct", [4.0, 3.0]), ("euclidean", [18.0, 20.0])]
)
async def test_a_query_ranks_by_the_metric(metric: str, scores: list[float]) -> None:
    """Nearest first; euclidean answers the squared distance, where less is nearer."""
    with PineconeEmulator() as store:
        store.create_index("docs", 2, metric)
        async with await connect(store) as index:
            far, near = pinecone.Vector(id="far", values=[3.0, 4.0]), pinecone.Vector(id="near", values=[4.0, 3.0])
            await index.upsert(vectors=[far, near])
            answer = await index.query(vector=[1.0, 0.0], top_k=2)
            by_id = await index.query(id="near", top_k=1, include_values=True)
    assert [match.id for match in answer.matches] == ["near", "far"]
    assert np.allclose([match.score for match in answer.matches], scores)
    assert (by_id.matches[0].id, by_id.matches[0].values) == ("near", [4.0, 3.0])


async def test_deleting_listing_and_counting_agree(index: pinecone.AsyncIndex) -> None:
    """Pages in the order of ids, counts by namespace, and a namespace that is not there is not found."""
    await index.upsert(vectors=[record(f"{number:03}") for number in range(150)])
    await index.delete(ids=["000", "149"])
    pages = [[item.id for item in page.vectors] async for page in index.list(prefix="")]
    assert [len(page) for page in pages] == [100, 48]
    stats = await index.describe_index_stats()
    assert (stats.total_vector_count, stats.dimension, set(stats.namespaces)) == (148, 8, {"__default__"})
    await index.delete(delete_all=True, namespace="__default__")
    assert (await index.describe_index_stats()).total_vector_count == 0
    with pytest.raises(pinecone.NotFoundError):
        await index.delete(ids=["000"], namespace="nowhere")


async def test_upserts_are_counted_by_id(index: pinecone.AsyncIndex, store: PineconeEmulator) -> None:
    """The second upsert of a record shows, and the largest request is known."""
    await index.upsert(vectors=[record("a"), record("b")])
    await index.upsert(vectors=[record("a")])
    assert (store.upserts, store.upsert_requests, store.upserted_again) == ({"a": 2, "b": 1}, 2, 1)
    assert store.largest_request_records == 2
    assert 0 < store.largest_request_bytes < store.upsert_bytes


# What Pinecone refuses


async def test_a_wrong_pinecone_key_is_refused(store: PineconeEmulator) -> None:
    """By the control plane and by the data plane."""
    async with pinecone.AsyncPinecone(api_key="pc-wrong", host=store.base_url) as control:
        with pytest.raises(pinecone.UnauthorizedError):
            await control.indexes.describe("docs")
    async with pinecone.AsyncIndex(host=store.host("docs"), api_key="pc-wrong") as index:
        with pytest.raises(pinecone.UnauthorizedError):
            await index.describe_index_stats()


ONES = [1.0] * 8

REFUSED_VECTORS = [
    pytest.param(pinecone.Vector(id="", values=ONES), "ID must be 1 to 512", id="an empty id"),
    pytest.param(pinecone.Vector(id="x" * 513, values=ONES), "ID must be 1 to 512", id="a long id"),
    pytest.param(pinecone.Vector(id="\u00e9", values=ONES), "must be ASCII", id="an id beyond ASCII"),
    pytest.param(pinecone.Vector(id="a\0b", values=ONES), "without NUL", id="an id with NUL"),
    pytest.param(pinecone.Vector(id="a", values=ONES[1:]), "does not match the dimension", id="a short vector"),
    pytest.param(pinecone.Vector(id="a", values=[0.0, -0.0] * 4), "non-zero", id="zeros"),
    pytest.param(pinecone.Vector(id="a", values=[float("nan")] * 8), "finite", id="NaN"),
    pytest.param(pinecone.Vector(id="a", values=[1e300] * 8), "finite", id="beyond float32"),
    pytest.param(pinecone.Vector(id="a", values=ONES, metadata={"x": None}), "got 'null'", id="null"),
    pytest.param(pinecone.Vector(id="a", values=ONES, metadata={"$x": 1}), "start with", id="a dollar"),
    pytest.param(pinecone.Vector(id="a", values=ONES, metadata={"x": "y" * 40_960}), "40960 bytes", id="40 KB"),
]


@pytest.mark.parametrize(("vector", "message"), REFUSED_VECTORS)
async def test_a_record_against_the_rules_is_refused(
    index: pinecone.AsyncIndex, store: PineconeEmulator, vector: pinecone.Vector, message: str
) -> None:
    """The SDK raises with status 400, and the good record beside it is not stored either."""
    with pytest.raises(pinecone.ApiError, match=message) as caught:
        await index.upsert(vectors=[record("good"), vector])
    assert caught.value.status_code == 400
    assert store.records("docs") == {}


@pytest.mark.parametrize("metadata", [{"x": {"y": 1}}, {"x": [1, 2]}, {"x": [["y"]]}])
async def test_nested_metadata_is_refused_by_the_server_too(store: PineconeEmulator, metadata: dict[str, Any]) -> None:
    """The SDK stops it first; what comes past the SDK is stopped here."""
    body = orjson.dumps({"vectors": [{"id": "a", "values": ONES, "metadata": metadata}]})
    connection = http.client.HTTPConnection("127.0.0.1", int(store.url.rpartition(":")[2]))
    connection.request("POST", "/hosts/docs/vectors/upsert", body, {"Api-Key": store.api_key})
    answer = connection.getresponse()
    assert (answer.status, orjson.loads(answer.read())["code"]) == (400, 3)
    connection.close()


@pytest.mark.parametrize("keep_values", [True, False])
async def test_a_request_may_take_two_million_bytes_and_no_more(*, keep_values: bool) -> None:
    """At the limit it is stored; a byte more is the SDK's payload error."""
    with PineconeEmulator(keep_values=keep_values) as store:
        store.create_index("docs", 8)
        async with await connect(store) as index:
            vectors = [pinecone.Vector(id=str(number), values=ONES, metadata={"x": ""}) for number in range(100)]
            await index.upsert(vectors=vectors)
            missing = store.max_request_bytes - store.largest_request_bytes
            for number, vector in enumerate(vectors):
                vector.metadata = {"x": "y" * (missing // 100 + (number < missing % 100))}
            await index.upsert(vectors=vectors)
            assert store.largest_request_bytes == 2_000_000
            vectors[0].id = "00"
            with pytest.raises(pinecone.PayloadTooLargeError):
                await index.upsert(vectors=vectors)
            assert store.upserted == 200


async def test_an_upsert_takes_a_thousand_records_and_no_more(index: pinecone.AsyncIndex) -> None:
    """So do fetch and delete with ids."""
    ids = [str(number) for number in range(1001)]
    vectors = [pinecone.Vector(id=record_id, values=ONES) for record_id in ids]
    with pytest.raises(pinecone.ApiError):
        await index.upsert(vectors=vectors)
    await index.upsert(vectors=vectors[:1000])
    with pytest.raises(pinecone.ApiError):
        await index.fetch(ids=ids)
    assert len((await index.fetch(ids=ids[:1000])).vectors) == 1000
    with pytest.raises(pinecone.ApiError):
        await index.delete(ids=ids)
    await index.delete(ids=ids[:1000])


@pytest.mark.parametrize("namespace", ["n" * 513, "caf\u00e9", "a\0b"])
async def test_a_namespace_against_the_rules_is_refused(index: pinecone.AsyncIndex, namespace: str) -> None:
    """Up to 512 ASCII characters without NUL."""
    with pytest.raises(pinecone.ApiError, match="Namespace"):
        await index.upsert(vectors=[record("a")], namespace=namespace)


# What goes wrong at Pinecone

PINECONE_FAULTS: list[tuple[Kind, type[pinecone.PineconeError], int]] = [
    ("status_500", pinecone.ServiceError, 0),
    ("status_503", pinecone.ServiceError, 0),
    ("status_429", pinecone.RateLimitError, 0),
    ("reset_before", pinecone.PineconeConnectionError, 0),
    ("reset_after", pinecone.PineconeConnectionError, 1),
    ("truncate", pinecone.PineconeConnectionError, 1),
]


@pytest.mark.parametrize(("kind", "expected", "stored"), PINECONE_FAULTS)
async def test_pinecone_fault_raises(
    index: pinecone.AsyncIndex, store: PineconeEmulator, kind: Kind, expected: type[Exception], stored: int
) -> None:
    """Each fault is the SDK's matching error after a single request, and stores only where the work was done."""
    store.reset_counts()
    store.faults = Faults(script=(kind,), retry_after_seconds=7)
    with pytest.raises(expected) as caught:
        await index.upsert(vectors=[record("a")])
    assert (store.requests, len(store.records("docs"))) == (1, stored)
    if isinstance(caught.value, pinecone.RateLimitError):
        assert caught.value.retry_after == 7
    await index.upsert(vectors=[record("a")])


async def test_without_the_switch_the_sdk_tries_again_by_itself(store: PineconeEmulator) -> None:
    """AsyncIndex has no retry setting of its own: left alone it hides a fault behind a second request."""
    store.faults = Faults(script=("status_429",), retry_after_seconds=0)
    async with pinecone.AsyncIndex(host=store.host("docs"), api_key=store.api_key) as index:
        await index.upsert(vectors=[record("a")])
    assert store.requests == 2


async def test_faults_can_be_confined_to_a_path(index: pinecone.AsyncIndex, store: PineconeEmulator) -> None:
    """Upserts fail while fetches are answered."""
    store.faults = Faults(status_503=1.0, only=("/vectors/upsert",))
    with pytest.raises(pinecone.ServiceError):
        await index.upsert(vectors=[record("a")])
    assert (await index.fetch(ids=["a"])).vectors == {}


async def test_a_poisoned_id_refuses_its_whole_request(index: pinecone.AsyncIndex, store: PineconeEmulator) -> None:
    """Nothing of the request is stored."""
    store.faults = Faults(poison=("bad",))
    with pytest.raises(pinecone.ApiError) as caught:
        await index.upsert(vectors=[record("a"), record("bad-1")])
    assert caught.value.status_code == 400
    await index.upsert(vectors=[record("a")])
    assert set(store.records("docs")) == {"a"}


async def test_upserts_over_the_rate_are_throttled() -> None:
    """The wait comes with the refusal, and the rate recovers with the clock."""
    now = [100.0]
    with PineconeEmulator(requests_per_second=1, clock=lambda: now[0]) as store:
        store.create_index("docs", 8)
        async with await connect(store) as index:
            await index.upsert(vectors=[record("a")])
            with pytest.raises(pinecone.RateLimitError) as caught:
                await index.upsert(vectors=[record("b")])
            assert caught.value.retry_after == 1
            now[0] += 1
            await index.upsert(vectors=[record("b")])


# As a process of its own


async def test_the_emulator_runs_as_a_process_and_is_driven_over_http() -> None:
    """Its first line is the URL; faults are set and counters read by HTTP; SIGTERM ends it in order."""
    with EmulatorProcess("pinecone", "--index", "docs:8", "--drop-values") as process:
        with pytest.raises(ValueError, match="not a field"):
            process.set_faults(earthquake=1)
        process.set_faults(script=["status_503"], only=["upsert"])
        async with pinecone.AsyncIndex(host=f"{process.base_url}/hosts/docs", api_key="pc-emulator") as index:
            index._http._config = replace(index._http._config, retry_config=NO_RETRIES)
            with pytest.raises(pinecone.ServiceError):
                await index.upsert(vectors=[record("a")])
            await index.upsert(vectors=[record("a")])
        state = process.until("upserted", 1)
        assert (state["stored"], state["injected"]) == ({"docs": {"__default__": 1}}, {"status_503": 1})
        with pytest.raises(TimeoutError):
            process.until("upserted", 2, timeout_seconds=0)
        assert process.stop() == 0


def test_the_gate_is_driven_over_http() -> None:
    """Held, seen as held, and released from outside."""
    statuses: dict[str, int | None] = {}
    with OpenAIEmulator() as emulator:
        drive(emulator.url, "hold", {"after": 0, "when": "before"})
        thread = post_in_background(emulator, "held", statuses)
        assert drive(emulator.url, "until?counter=held&at_least=1")["held"] == 1
        assert drive(emulator.url, "release", {})["requests"] == 1
        thread.join()
        assert drive(emulator.url, "reset", {})["requests"] == 0
    assert statuses == {"held": 200}
