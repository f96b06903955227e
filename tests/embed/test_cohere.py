"""Cohere's embedder, beyond the contract: its table of errors, answers that are not whole, and what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import httpx
import numpy as np
import orjson
import pytest
from cohere.core.api_error import ApiError
from hypothesis import given
from hypothesis import strategies as st

from tasks.embed.cohere import CohereEmbedder, kind_of, read_answer, translate
from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    UnavailableError,
)
from tasks.provider_settings import CohereSettings
from tests.emulators.cohere import CohereEmulator, cohere_vectors

KEY = "co-emulator"
TEXTS = ["alpha", "beta", "gamma"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CohereEmulator]:
    """One for each test, found through the environment."""
    with CohereEmulator(api_key=KEY) as server:
        monkeypatch.setenv("CO_API_URL", server.base_url)
        yield server


@pytest.fixture
async def embedder(server: CohereEmulator) -> AsyncIterator[CohereEmbedder]:
    """With the usual settings."""
    embedder = CohereEmbedder(CohereSettings(), api_key=KEY)
    yield embedder
    await embedder.aclose()


# The table


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRejectedError),
        (401, RefusedError),
        (402, RefusedError),
        (403, RefusedError),
        (404, RefusedError),
        (408, UnavailableError),
        (413, RequestTooLargeError),
        (422, RequestRejectedError),
        (429, RateLimitedError),
        (498, RequestRejectedError),
        (499, UnavailableError),
        (500, UnavailableError),
        (501, UnavailableError),
        (503, UnavailableError),
        (504, UnavailableError),
    ],
)
def test_each_status_has_its_error(status: int, kind: type[MillraceError]) -> None:
    """And nothing of the body is shown, whatever it is."""
    for body in ({"message": "alpha is bad for key co-secret"}, "alpha", None):
        raised = translate(ApiError(status_code=status, headers={}, body=body))
        assert type(raised) is kind
        assert str(raised) == f"the embeddings server answered {status}"


@given(status=st.integers(400, 599))
def test_every_status_has_one(status: int) -> None:
    """Nothing falls through the table."""
    assert issubclass(kind_of(status), MillraceError)


@pytest.mark.parametrize("error", [httpx.ReadTimeout("alpha"), httpx.ConnectError("alpha"), ApiError(body="alpha")])
def test_errors_without_an_answer_are_worth_another_attempt(error: ApiError | httpx.HTTPError) -> None:
    """Time-out and connection; their text is not shown."""
    raised = translate(error)
    assert type(raised) is UnavailableError
    assert "alpha" not in str(raised)


# Answers


def body_of(rows: object, **rest: object) -> bytes:
    return orjson.dumps({"id": "x", "embeddings": {"float": rows}, "texts": ["a", "b"], **rest})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b"[]",
        b"{}",
        body_of(None),
        body_of([]),
        body_of([[1.0, 2.0]]),
        body_of([[], []]),
        body_of([[1.0, 2.0], [1.0]]),
        body_of([[1.0, 2.0], [1.0, None]]),
        body_of([[1.0, 2.0], [1.0, "2"]]),
        body_of([[1.0, 2.0], [1.0, 1e39]]),
        body_of([[1.0, 2.0]] * 3),
        body_of([[1.0, 2.0]] * 2)[:-9],
    ],
)
def test_an_answer_that_is_not_whole_is_worth_another_attempt(body: bytes) -> None:
    """Two vectors of two numbers were asked for."""
    with pytest.raises(UnavailableError):
        read_answer(body, 2, 2)


def test_another_dimension_stops_the_run() -> None:
    """In every vector, of more than one."""
    with pytest.raises(RefusedError, match=r"2 dimensions, not 3"):
        read_answer(body_of([[1.0, 2.0]] * 2), 2, 3)


@pytest.mark.parametrize("meta", [{}, {"meta": None}, {"meta": {}}, {"meta": {"billed_units": None}}])
def test_an_answer_without_a_bill_bills_nothing(meta: dict[str, object]) -> None:
    """Other servers leave it out."""
    embedding = read_answer(body_of([[1, 2], [3, 4]], **meta), 2, None)
    assert embedding.model_tokens == 0
    assert embedding.vectors.tolist() == [[1, 2], [3, 4]]


# Over HTTP


async def test_documents_and_queries_are_told_apart(server: CohereEmulator, embedder: CohereEmbedder) -> None:
    """`search_document` here, `search_query` in search, and the vectors are the server's own, bit by bit."""
    rows = (await embedder.embed(TEXTS)).vectors
    query = await embedder.embed_query("alpha")
    assert server.input_types == {"search_document": 3, "search_query": 1}
    assert np.array_equal(rows, cohere_vectors(TEXTS, 1536, "search_document"))
    assert np.array_equal(query, cohere_vectors(["alpha"], 1536, "search_query")[0])
    assert not np.allclose(rows[0], query)
    assert embedder.identity == "cohere:embed-v4.0:default:search_document:v1@127.0.0.1"


async def test_a_text_that_is_too_long_is_refused_and_never_cut(server: CohereEmulator) -> None:
    """`truncate=NONE`; a cut would be a silent loss."""
    embedder = CohereEmbedder(CohereSettings(model="embed-english-v3.0"), api_key=KEY)
    with pytest.raises(RequestRejectedError):
        await embedder.embed(["grain " * 1000])
    assert (server.truncated, server.texts) == (0, 0)
    await embedder.aclose()


async def test_shorter_vectors_are_asked_of_the_server(server: CohereEmulator) -> None:
    """`output_dimension`, which only some models have."""
    embedder = CohereEmbedder(CohereSettings(dimensions=256), api_key=KEY)
    assert embedder.dimension == 256
    assert (await embedder.embed(TEXTS)).vectors.shape == (3, 256)
    await embedder.aclose()


async def test_an_unknown_model_learns_its_dimension_from_the_first_answer(server: CohereEmulator) -> None:
    """Such as a model of another server."""
    embedder = CohereEmbedder(CohereSettings(model="embed-multilingual-v3.0"), api_key=KEY)
    embedder.dimension = None
    await embedder.embed(TEXTS)
    assert embedder.dimension == 1024
    await embedder.aclose()


def test_the_limit_counts_texts_a_minute() -> None:
    """Cohere's rate limit is one of inputs; None takes it away."""
    for inputs in (2000, 50, None):
        limits = CohereEmbedder(CohereSettings(inputs_per_minute=inputs), api_key=KEY).limits
        assert (limits.max_inputs, limits.inputs_per_minute) == (96, inputs)


async def test_as_many_connections_as_requests_in_flight(server: CohereEmulator) -> None:
    """They overlap, and each answer finds its own texts."""
    server.hold()
    embedder = CohereEmbedder(CohereSettings(), api_key=KEY, concurrency=8)
    requests = [asyncio.create_task(embedder.embed([f"text {number}"])) for number in range(8)]
    await asyncio.to_thread(server.wait_held, 8)
    server.release()
    answers = await asyncio.gather(*requests)
    for number, answer in enumerate(answers):
        assert np.array_equal(answer.vectors, cohere_vectors([f"text {number}"], 1536, "search_document"))
    await embedder.aclose()


async def test_the_emulator_counts_inputs_over_a_sliding_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of the texts, not of the requests; the wait is what Retry-After says."""
    now = 0.0
    with CohereEmulator(api_key=KEY, inputs_per_minute=5, clock=lambda: now) as server:
        monkeypatch.setenv("CO_API_URL", server.base_url)
        embedder = CohereEmbedder(CohereSettings(), api_key=KEY)
        await embedder.embed(TEXTS)
        now = 10.0
        with pytest.raises(RateLimitedError) as raised:
            await embedder.embed(TEXTS)
        assert raised.value.retry_after_seconds == 50
        now = 61.0
        await embedder.embed(TEXTS)
        assert server.texts == 6
        await embedder.aclose()
