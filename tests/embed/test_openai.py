"""OpenAI's embedder: errors first, then answers that are not whole, then what it sends."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.embed.openai import LIMITS, OpenAIEmbedder, kind_of, read_answer, translate
from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    UnavailableError,
    UsageError,
)
from tasks.model_tokens import most_tokens
from tasks.provider_settings import OpenAISettings
from tests.emulators.faults import Faults, Kind
from tests.emulators.openai import OpenAIEmulator, vectors_for

KEY = "sk-emulator"
TEXTS = ["alpha", "beta", "gamma"]
OFFLINE = OpenAIEmbedder(OpenAISettings(), api_key=KEY)
"""For what needs no server."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEmulator]:
    """One for each test, found through the environment."""
    with OpenAIEmulator(api_key=KEY) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


@pytest.fixture
async def embedder(server: OpenAIEmulator) -> AsyncIterator[OpenAIEmbedder]:
    """With the usual settings."""
    embedder = OpenAIEmbedder(OpenAISettings(), api_key=KEY)
    yield embedder
    await embedder.aclose()


# The table


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {}, RequestRejectedError),
        (400, {"param": "input", "code": "invalid_input"}, RequestRejectedError),
        (400, {"code": "max_tokens_per_request"}, RequestTooLargeError),
        (400, {"param": "dimensions"}, RefusedError),
        (401, {"code": "invalid_api_key"}, RefusedError),
        (402, {}, RefusedError),
        (403, {"code": "unsupported_country_region_territory"}, RefusedError),
        (404, {"code": "model_not_found"}, RefusedError),
        (408, {}, UnavailableError),
        (409, {}, UnavailableError),
        (413, {}, RequestTooLargeError),
        (422, {}, RequestRejectedError),
        (429, {}, RateLimitedError),
        (429, {"code": "rate_limit_exceeded", "type": "tokens"}, RateLimitedError),
        (429, {"code": "insufficient_quota"}, RefusedError),
        (429, {"type": "insufficient_quota"}, RefusedError),
        (500, {}, UnavailableError),
        (529, {}, UnavailableError),
    ],
)
async def test_each_status_has_its_error(status: int, error: dict[str, str], kind: type[MillraceError]) -> None:
    """As the SDK itself raises it, by status and code; an odd error object changes nothing."""
    message = "Invalid input: alpha for key sk-secret"
    bodies: list[Any] = [{"error": {"message": message, **error}}]
    if not error:
        bodies += [
            {},
            [],
            "alpha",
            {"error": "alpha"},
            {"error": {"code": ["alpha"], "type": {}, "param": {"a": "alpha"}}},
        ]
    for body in bodies:
        raised = translate(sdk_error(status, body))
        assert type(raised) is kind
        assert str(status) in str(raised)
        assert "alpha" not in str(raised)
        assert "sk-secret" not in str(raised)


def sdk_error(status: int, body: Any, headers: dict[str, str] | None = None) -> openai.APIStatusError:
    """What the SDK makes of an answer."""
    request = httpx2.Request("POST", "https://api.openai.com/v1/embeddings")
    response = httpx2.Response(status, json=body, headers=headers, request=request)
    return openai.OpenAI(api_key="none")._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (openai.APITimeoutError(httpx2.Request("POST", "http://x")), UnavailableError),
        (openai.APIConnectionError(request=httpx2.Request("POST", "http://x")), UnavailableError),
        (openai.OpenAIError("Missing credentials"), RefusedError),
    ],
)
def test_errors_without_an_answer(error: openai.OpenAIError, kind: type[MillraceError]) -> None:
    """The connection is worth another attempt, a client without credentials is not."""
    assert type(translate(error)) is kind


def test_a_sentence_in_the_code_is_not_quoted() -> None:
    """Some servers put their whole message there."""
    error = translate(sdk_error(400, {"error": {"code": "text 'alpha' is bad", "param": "input[3]"}}))
    assert str(error) == "the embeddings server answered 400, param input[3]"


def test_the_servers_own_wait_is_kept() -> None:
    """Of a 429, and of a 503 too."""
    for status in (429, 503):
        error = translate(sdk_error(status, {}, {"Retry-After-Ms": "1500"}))
        assert isinstance(error, RateLimitedError | UnavailableError)
        assert error.retry_after_seconds == 1.5


@settings(deadline=None)
@given(status=st.integers(400, 599), code=st.text(max_size=9), param=st.text(max_size=9))
def test_every_status_has_one(status: int, code: str, param: str) -> None:
    """Nothing falls through the table."""
    assert issubclass(kind_of(status, code, "", param), MillraceError)


# The same over HTTP


async def test_a_wrong_key_stops_the_run(server: OpenAIEmulator) -> None:
    """And is shown nowhere, not even in the chain of errors."""
    embedder = OpenAIEmbedder(OpenAISettings(), api_key="sk-wrong-key")
    with pytest.raises(RefusedError) as raised:
        await embedder.embed(TEXTS)
    assert "sk-wrong" not in "".join(traceback.format_exception(raised.value))
    await embedder.aclose()


async def test_an_unknown_model_stops_the_run(server: OpenAIEmulator) -> None:
    """404."""
    embedder = OpenAIEmbedder(OpenAISettings(model="no-such-model"), api_key=KEY)
    assert embedder.dimension is None
    with pytest.raises(RefusedError, match="model_not_found"):
        await embedder.embed(TEXTS)
    await embedder.aclose()


async def test_an_exhausted_quota_stops_the_run(server: OpenAIEmulator, embedder: OpenAIEmbedder) -> None:
    """Its status is 429, and waiting would not help."""
    server.insufficient_quota = True
    with pytest.raises(RefusedError):
        await embedder.embed(TEXTS)


async def test_a_refused_text_is_not_shown(server: OpenAIEmulator, embedder: OpenAIEmbedder) -> None:
    """The traceback has no text either; the server sees one request, as the SDK tries nothing again."""
    server.faults = Faults(poison=("beta",))
    with pytest.raises(RequestRejectedError) as raised:
        await embedder.embed(TEXTS)
    assert "beta" not in "".join(traceback.format_exception(raised.value))
    assert raised.value.__cause__ is None  # the SDK's error, whose message is the server's, does not travel on
    assert raised.value.__suppress_context__
    assert server.requests == 1


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("status_429", RateLimitedError),
        ("status_500", UnavailableError),
        ("status_503", UnavailableError),
        ("reset_before", UnavailableError),
        ("reset_after", UnavailableError),
        ("truncate", UnavailableError),
        ("drop_item", UnavailableError),
        ("duplicate_item", UnavailableError),
        ("nan", UnavailableError),
        ("wrong_dimension", UnavailableError),
    ],
)
async def test_what_goes_wrong_on_the_way_is_transient(
    server: OpenAIEmulator, embedder: OpenAIEmbedder, fault: Kind, kind: type[MillraceError]
) -> None:
    """One request, one error; the next request works."""
    for texts in (TEXTS, TEXTS[:2] if fault == "duplicate_item" else TEXTS[:1]):
        server.reset_counts()
        server.faults = Faults(script=(fault,))
        with pytest.raises(kind):
            await embedder.embed(texts)
        assert server.requests == 1
        assert (await embedder.embed(texts)).vectors.shape == (len(texts), 1536)


async def test_a_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connection refused."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    embedder = OpenAIEmbedder(OpenAISettings(), api_key=KEY)
    with pytest.raises(UnavailableError, match="did not answer"):
        await embedder.embed(TEXTS)
    await embedder.aclose()


async def test_nothing_logs_a_text_or_the_key(
    server: OpenAIEmulator, embedder: OpenAIEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where everything is logged."""
    with caplog.at_level(logging.DEBUG):
        await embedder.embed(["secret-text"])
        server.faults = Faults(poison=("secret-text",))
        with pytest.raises(RequestRejectedError):
            await embedder.embed(["secret-text"])
    logged = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "httpx2" in logged
    assert "secret-text" not in logged
    assert KEY not in logged


@pytest.mark.parametrize("base_url", ["nonsense", "ftp://example.com/v1", "http:///v1"])
def test_a_base_url_that_is_none_is_a_usage_error(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is started."""
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    with pytest.raises(UsageError, match="OPENAI_BASE_URL"):
        OpenAIEmbedder(OpenAISettings(), api_key=KEY)


# Answers


def answer(items: list[tuple[Any, Any]], **fields: Any) -> bytes:
    """A body with an item for each index and embedding."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in items]
    return orjson.dumps({"object": "list", "data": data, "usage": {"total_tokens": 7}, **fields})


def encoded(*numbers: float) -> str:
    """A vector as base64."""
    return base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"null",
        b'{"data": null}',
        b'{"data": [1, 2]}',
        answer([]),
        answer([(0, [1.0])]),
        answer([(0, [1.0]), (0, [1.0])]),
        answer([(0, [1.0]), (2, [1.0])]),
        answer([(0, [1.0]), (1, [1.0]), (2, [1.0])]),
        answer([(0, [1.0]), (None, [1.0])]),
        answer([(0, [1.0]), ("1", [1.0])]),
        answer([(0, [1.0]), (1, [1.0, 2.0])]),
        answer([(0, []), (1, [])]),
        answer([(0, None), (1, None)]),
        answer([(0, 1.0), (1, 1.0)]),
        answer([(0, [[1.0]]), (1, [[1.0]])]),
        answer([(0, [1.0]), (1, [None])]),
        answer([(0, [1.0]), (1, [1e39])]),
        answer([(0, ["alpha"]), (1, [1.0])]),
        answer([(0, encoded(1.0)), (1, encoded(math.nan))]),
        answer([(0, encoded(1.0)), (1, encoded(math.inf))]),
        answer([(0, encoded(1.0)), (1, encoded(1.0)[:-3])]),
        answer([(0, encoded(1.0)), (1, "AAA=")]),
        answer([(0, encoded(1.0)), (1, "!!!!")]),
        answer([(0, encoded(1.0)), (1, "\u00e9")]),
    ],
)
def test_an_answer_that_is_not_whole_is_transient(body: bytes) -> None:
    """Two texts were asked for; a row may never stand for another text."""
    with pytest.raises(UnavailableError):
        read_answer(body, 2, None)


def test_all_vectors_of_another_dimension_stop_the_run() -> None:
    """Every request would fail; a single vector might be cut short and is worth another attempt."""
    with pytest.raises(RefusedError, match="1 dimensions, not 2"):
        read_answer(answer([(0, [1.0]), (1, [1.0])]), 2, 2)
    with pytest.raises(UnavailableError):
        read_answer(answer([(0, [1.0])]), 1, 2)


def test_rows_are_joined_by_index() -> None:
    """Whatever their order, base64 and lists alike."""
    for form in (encoded, lambda *numbers: list(numbers)):
        embedding = read_answer(answer([(1, form(3, 4)), (0, form(1, 2))]), 2, None)
        assert embedding.vectors.tolist() == [[1, 2], [3, 4]]
        assert embedding.vectors.dtype == np.float32
        assert embedding.vectors.flags.writeable
        assert embedding.model_tokens == 7


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": None}])
def test_a_server_without_usage_bills_nothing(usage: Any) -> None:
    """Some compatible servers leave it out."""
    assert read_answer(answer([(0, [1.0])], usage=usage), 1, None).model_tokens == 0


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_pairing_survives_any_order(order: list[int]) -> None:
    """Row i belongs to text i."""
    rows = read_answer(answer([(index, encoded(index, 1.0)) for index in order]), 6, 2).vectors
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


async def test_a_shuffled_answer_over_http(server: OpenAIEmulator, embedder: OpenAIEmbedder) -> None:
    """Each text has the vector that the server made for it."""
    server.faults = Faults(script=("shuffle",))
    embedding = await embedder.embed(TEXTS)
    assert np.array_equal(embedding.vectors, vectors_for(TEXTS, 1536))
    assert embedding.model_tokens == server.model_tokens


async def test_a_great_answer_is_read_in_a_thread(server: OpenAIEmulator, embedder: OpenAIEmbedder) -> None:
    """The same rows come out."""
    texts = [f"text {number}" for number in range(400)]
    assert np.array_equal((await embedder.embed(texts)).vectors, vectors_for(texts, 1536))


# What it says of itself


async def test_the_dimension_is_set_known_or_learned(server: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a set one is asked for."""
    assert OpenAIEmbedder(OpenAISettings(model="text-embedding-3-large"), api_key=KEY).dimension == 3072
    short = OpenAIEmbedder(OpenAISettings(dimensions=256), api_key=KEY)
    assert (await short.embed(TEXTS)).vectors.shape == (3, 256)
    await short.aclose()
    learning = OpenAIEmbedder(OpenAISettings(model="text-embedding-3-small"), api_key=KEY)
    learning.dimension = None
    await learning.embed(TEXTS)
    assert learning.dimension == 1536
    await learning.aclose()


@pytest.mark.parametrize(
    ("base_url", "identity"),
    [
        (None, "openai:text-embedding-3-small:default:v1"),
        ("https://api.openai.com/v1", "openai:text-embedding-3-small:default:v1"),
        ("http://localhost:8080/v1", "openai:text-embedding-3-small:default:v1@localhost"),
    ],
)
def test_another_server_is_another_identity(
    base_url: str | None, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may carry another model under the same name; its port says nothing."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if base_url:
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    assert OpenAIEmbedder(OpenAISettings(), api_key=KEY).identity == identity


@settings(deadline=None)
@given(st.text(max_size=200))
def test_model_tokens_are_at_most_the_bytes(text: str) -> None:
    """So a batch whose bytes fit is not counted."""
    assert OFFLINE.model_tokens(text) <= most_tokens(text) == len(text.encode())


def test_model_tokens_are_exact() -> None:
    """cl100k_base, as OpenAI's own examples count; special tokens in a text are text. A vast text is bounded only."""
    count = OFFLINE.model_tokens
    assert count("tiktoken is great!") == 6
    assert count("antidisestablishmentarianism") == 6
    assert count("<|endoftext|>") == 7
    assert count("a" * 1_000_000) == 1_000_000


async def test_a_request_at_the_documented_limits_passes(server: OpenAIEmulator, embedder: OpenAIEmbedder) -> None:
    """The server enforces them."""
    await embedder.embed(["x"] * LIMITS.max_inputs)
    with pytest.raises(RequestRejectedError):
        await embedder.embed(["x"] * (LIMITS.max_inputs + 1))


async def test_concurrent_requests_have_connections(server: OpenAIEmulator) -> None:
    """As many as were asked for, at once."""
    embedder = OpenAIEmbedder(OpenAISettings(), api_key=KEY, concurrency=20)
    server.hold()
    waiting = [asyncio.ensure_future(embedder.embed([str(number)])) for number in range(20)]
    await asyncio.to_thread(server.wait_held, 20)
    server.release()
    await asyncio.gather(*waiting)
    assert server.max_in_flight == 20
    await embedder.aclose()
