"""OpenAI's embeddings, or those of any server with the same API (``OPENAI_BASE_URL``)."""

from __future__ import annotations

import asyncio
import functools
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import httpx2  # the SDK's own transport
import numpy as np
import openai
import orjson
import pybase64

from tasks.embed.answers import checked
from tasks.embed.port import EmbedLimits
from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    TransientError,
    UnavailableError,
    UsageError,
)
from tasks.limits.headers import read_quota, retry_after_seconds
from tasks.model_tokens import most_tokens
from tasks.profiles import OPENAI
from tasks.provider_settings import OpenAISettings
from tasks.records import Embedding, Vectors

VERSION = 1
"""Raised by hand when the same text would get another vector."""
LIMITS = EmbedLimits(
    max_inputs=OPENAI.max_inputs,
    max_tokens_per_input=OPENAI.max_tokens_per_input,
    max_tokens_per_request=OPENAI.max_tokens_per_request,
)
OWN_HOST = "api.openai.com"
TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
"""Seconds. An answer takes one or two; the SDK's own ten minutes would hide a dead connection."""
INLINE_BYTES = 2_000_000
"""Answers up to this are decoded on the loop (about 2 milliseconds a megabyte), greater ones in a thread."""
UNCOUNTED_CHARACTERS = 1_000_000
"""bpe-openai refuses to count longer texts."""

_OPTIONS = openai.RequestOptions(headers={"Content-Type": "application/json"}, security={"bearer_auth": True})

BY_CODE: dict[str, type[MillraceError]] = {
    "insufficient_quota": RefusedError,
    "billing_not_active": RefusedError,
    "billing_hard_limit_reached": RefusedError,
    "max_tokens_per_request": RequestTooLargeError,
    "context_length_exceeded": RequestTooLargeError,
    "string_above_max_length": RequestTooLargeError,
    "array_above_max_length": RequestTooLargeError,
}
"""The error object's ``code`` or ``type``, where it says more than the status (OpenAI's error codes guide)."""
BY_STATUS: dict[int, type[MillraceError]] = {
    400: RequestRejectedError,
    408: UnavailableError,
    409: UnavailableError,
    413: RequestTooLargeError,
    422: RequestRejectedError,
    425: UnavailableError,
    429: RateLimitedError,
}
"""From 500 on every status is UnavailableError, and all others (401, 403, 404 ...) are RefusedError."""
OF_EVERY_REQUEST = {"model", "dimensions", "encoding_format"}
"""The error object's ``param`` where it is not the texts that are refused."""


class OpenAIEmbedder:
    """Vectors of an OpenAI model, fetched as base64 and kept as arrays from the socket on.

    ``concurrency`` requests get a connection each. ``dimension`` is the setting, the known model's, or learned from the
    first answer. The SDK's own retries are off, and no error holds a text or the key.
    """

    limits = LIMITS

    def __init__(self, settings: OpenAISettings, *, api_key: str, concurrency: int = 10) -> None:
        self._settings = settings
        self.dimension = settings.dimensions or OPENAI.dimension(settings.model)
        self._client = _client(api_key, concurrency)
        self.identity = _identity(settings, self._client.base_url.host)

    async def open(self) -> None:
        """Look the model up, which costs nothing.

        Raises:
            UsageError: the key is refused, or OpenAI has no such model.
            UnavailableError: the server cannot be reached.
        """
        try:
            await self._client.models.with_raw_response.retrieve(self._settings.model)
        except openai.APIStatusError as error:
            # Only what is certain: a key may be good for embeddings alone, and other servers may list no models.
            if error.code == "invalid_api_key":
                raise UsageError(f"the key in {self._settings.api_key} is refused by the embeddings server") from None
            if error.code == "model_not_found":
                raise UsageError(f"the embeddings server has no model named {self._settings.model}") from None
        except openai.OpenAIError as error:
            raise translate(error) from None

    async def embed(self, texts: Sequence[str]) -> Embedding:
        """Embed documents' texts. Raises what the port says, as `translate` decides."""
        try:
            response = await self._client.post(
                "/embeddings", cast_to=httpx2.Response, content=self._request(texts), options=_OPTIONS
            )
        except openai.OpenAIError as error:
            # `from None`: the SDK's error quotes the server, and the server may quote a text or a part of the key.
            raise translate(error) from None
        body = response.content
        if len(body) <= INLINE_BYTES:
            embedding = read_answer(body, len(texts), self.dimension)
        else:
            embedding = await asyncio.to_thread(read_answer, body, len(texts), self.dimension)
        self.dimension = embedding.vectors.shape[1]
        return replace(embedding, quota=read_quota(response.headers))

    def _request(self, texts: Sequence[str]) -> bytes:
        """The body as `embeddings.create` would write it, but without its walk through every text."""
        body: dict[str, Any] = {"input": texts, "model": self._settings.model, "encoding_format": "base64"}
        if self._settings.dimensions is not None:
            body["dimensions"] = self._settings.dimensions
        return orjson.dumps(body)

    async def embed_query(self, text: str) -> Vectors:
        """OpenAI's models know no difference between a query and a document."""
        row: Vectors = (await self.embed([text])).vectors[0]
        return row

    def model_tokens(self, text: str) -> int:
        """Exact for OpenAI's models (cl100k_base, about 20 microseconds a kilobyte); a long text by its bytes."""
        if len(text) >= UNCOUNTED_CHARACTERS:
            return most_tokens(text)
        return len(_encoding().encode_ordinary(text))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


def read_answer(body: bytes, expected: int, dimension: int | None) -> Embedding:
    """The vectors of an answer, joined to the texts by ``index``; base64, or lists from servers that know no base64.

    Raises:
        UnavailableError: the answer is not whole: not JSON, a vector missing, twice, cut short or not finite.
        RefusedError: whole, but all vectors have another dimension than the known one.
    """
    try:
        answer = orjson.loads(body)
        items = answer["data"]
        if sorted(item["index"] for item in items) != list(range(expected)):
            raise UnavailableError(f"the answer does not have one vector for each of {expected} texts")
        rows = [_row(item["embedding"]) for item in sorted(items, key=lambda item: int(item["index"]))]
        model_tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UnavailableError("the answer is not an embeddings object") from None
    return Embedding(_joined(rows, dimension), model_tokens)


def translate(error: openai.OpenAIError) -> MillraceError:
    """The vendor's error as one of ours, with the server's own wait where it named one."""
    if not isinstance(error, openai.APIStatusError):  # time-out, connection, or an answer that the SDK cannot read
        kind: type[MillraceError] = UnavailableError if isinstance(error, openai.APIError) else RefusedError
        return kind(f"the embeddings server did not answer ({type(error).__name__})")
    kind = kind_of(error.status_code, str(error.code), str(error.type), str(error.param))
    if issubclass(kind, TransientError):
        return kind(_message(error), retry_after_seconds=retry_after_seconds(error.response.headers))
    return kind(_message(error))


def kind_of(status: int, code: str = "", error_type: str = "", param: str = "") -> type[MillraceError]:
    """What an answer with an error means, most specific first; no message is read."""
    named = BY_CODE.get(code) or BY_CODE.get(error_type)
    if named is not None:
        return named
    kind = UnavailableError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BY_STATUS.get(status, RefusedError)
    return RefusedError if kind is RequestRejectedError and param in OF_EVERY_REQUEST else kind


def _message(error: openai.APIStatusError) -> str:
    named = {name: getattr(error, name) for name in ("code", "type", "param")}
    # Words only: some servers put whole sentences there, and a sentence may quote a text.
    words = [f"{name} {value}" for name, value in named.items() if re.fullmatch(r"[\w.\-\[\]]{1,64}", str(value or ""))]
    return ", ".join([f"the embeddings server answered {error.status_code}", *words])


def _client(api_key: str, concurrency: int) -> openai.AsyncOpenAI:
    connections = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    client = openai.AsyncOpenAI(
        api_key=api_key,
        max_retries=0,
        timeout=TIMEOUT,
        http_client=openai.DefaultAsyncHttpxClient(limits=connections),
    )
    if client.base_url.scheme not in {"http", "https"} or not client.base_url.host:
        raise UsageError("OPENAI_BASE_URL must be a URL such as https://api.openai.com/v1")
    return client


def _identity(settings: OpenAISettings, host: str) -> str:
    """Another server may carry another model under the same name; its port says nothing."""
    identity = f"openai:{settings.model}:{settings.dimensions or 'default'}:v{VERSION}"
    return identity if host == OWN_HOST else f"{identity}@{host}"


def _row(sent: str | list[float]) -> Vectors:
    if isinstance(sent, str):
        return np.frombuffer(pybase64.b64decode(sent, validate=True), dtype="<f4")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which `_joined` refuses
        return np.asarray(sent, dtype=np.float32)


def _joined(rows: list[Vectors], dimension: int | None) -> Vectors:
    sizes = {row.size for row in rows}
    if len(sizes) != 1 or 0 in sizes or any(row.ndim != 1 for row in rows):
        raise UnavailableError("the answer's vectors are not of one length")
    vectors = np.stack(rows).astype(np.float32, copy=False)
    return checked(vectors, dimension)


@functools.cache
def _encoding() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # bpe-openai opens its vocabulary in the old way
        import bpe_openai  # noqa: PLC0415 - 0.4 s, and many runs never count

        return bpe_openai.get_encoding("cl100k_base")
