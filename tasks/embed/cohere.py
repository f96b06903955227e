"""Cohere's embeddings, over its v2 API with the official SDK's async client."""

from __future__ import annotations

import os
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httpx  # the SDK's own transport
import msgspec
import numpy as np
from cohere import AsyncClientV2
from cohere.core.api_error import ApiError

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
from tasks.limits.headers import retry_after_seconds
from tasks.model_tokens import most_tokens
from tasks.profiles import COHERE
from tasks.provider_settings import CohereSettings
from tasks.records import Embedding, Vectors

VERSION = 1
"""Raised by hand when the same text would get another vector."""
OWN_HOST = "api.cohere.com"
DOCUMENT, QUERY = "search_document", "search_query"
"""Cohere embeds a text by what it is for; the two lie in one space (embed reference, ``input_type``)."""
TIMEOUT = httpx.Timeout(60.0, connect=10.0)
"""Seconds; the SDK's own five minutes would hide a dead connection."""

BY_STATUS: dict[int, type[MillraceError]] = {
    400: RequestRejectedError,
    408: UnavailableError,
    409: UnavailableError,
    413: RequestTooLargeError,
    422: RequestRejectedError,
    425: UnavailableError,
    429: RateLimitedError,
    498: RequestRejectedError,  # a text holds something that Cohere's list denies
    499: UnavailableError,  # the request was cancelled on the way
}
"""From 500 on every status is UnavailableError, and all others (401, 402, 403, 404 ...) are RefusedError. Cohere's
errors have no code, and a message is never read."""

_BODY = "millrace.body"
_EMPTY_ANSWER = b'{"id":"","embeddings":{}}'


class CohereEmbedder:
    """Vectors of a Cohere model, decoded from the answer's bytes straight into arrays.

    Texts are never cut (``truncate=NONE``): one that is too long is refused by Cohere and becomes a dead letter, as
    its model tokens cannot be counted here. The SDK's own retries are off, and no error holds a text or the key.
    """

    def __init__(self, settings: CohereSettings, *, api_key: str, concurrency: int = 10) -> None:
        self.dimension = settings.dimensions or COHERE.dimension(settings.model)
        self.limits = EmbedLimits(max_inputs=COHERE.max_inputs, inputs_per_minute=settings.inputs_per_minute)
        url = _base_url()
        self.identity = _identity(settings, url.host)
        self._is_own_host = url.host == OWN_HOST
        self._settings = settings
        self._http = _Http(concurrency)
        self._client = AsyncClientV2(
            api_key, base_url=str(url), max_retries=0, httpx_client=self._http, log_warning_experimental_features=False
        )

    async def open(self) -> None:
        """Look the model up, which costs nothing.

        Raises:
            UsageError: the key is refused, or Cohere has no such model.
            UnavailableError: the server cannot be reached.
        """
        try:
            await self._client.models.get(self._settings.model)
        except ApiError as error:
            if error.status_code == HTTPStatus.UNAUTHORIZED:
                raise UsageError(f"the key in {self._settings.api_key} is refused by Cohere (401)") from None
            if error.status_code == HTTPStatus.NOT_FOUND and self._is_own_host:
                raise UsageError(f"Cohere has no model named {self._settings.model}") from None
            # Anything else says that there is a server; whether it embeds is seen when it is asked to.
        except httpx.HTTPError as error:
            raise translate(error) from None

    async def embed(self, texts: Sequence[str]) -> Embedding:
        """Embed documents' texts. Raises what the port says, as `translate` decides."""
        return await self._embed(texts, DOCUMENT)

    async def embed_query(self, text: str) -> Vectors:
        """Embed a search query, as ``search_query``."""
        row: Vectors = (await self._embed([text], QUERY)).vectors[0]
        return row

    def model_tokens(self, text: str) -> int:
        """An upper bound, the text's bytes: Cohere's vocabularies are not to be had offline."""
        return most_tokens(text)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _embed(self, texts: Sequence[str], input_type: str) -> Embedding:
        dimensions = self._settings.dimensions
        options: dict[str, Any] = {} if dimensions is None else {"output_dimension": dimensions}
        try:
            response = await self._client.with_raw_response.embed(
                model=self._settings.model,
                texts=list(texts),
                input_type=input_type,
                embedding_types=["float"],
                truncate="NONE",
                **options,
            )
        except (ApiError, httpx.HTTPError) as error:
            # `from None`: the SDK's error quotes the server, and the server may quote a text or a part of the key.
            raise translate(error) from None
        embedding = read_answer(response.response.extensions[_BODY], len(texts), self.dimension)
        self.dimension = embedding.vectors.shape[1]
        return embedding


class _Http(httpx.AsyncClient):
    """Hands the body of a good answer past the SDK, under ``response.extensions``, and shows the SDK an empty one.

    The SDK would make Python objects of every number twice: 174 milliseconds for 96 vectors of 1,536, here 7.
    """

    def __init__(self, concurrency: int) -> None:
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        super().__init__(timeout=TIMEOUT, limits=limits, follow_redirects=True)

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send, and keep the bytes."""
        response = await super().send(request, **options)
        if response.status_code != HTTPStatus.OK or not request.url.path.endswith("/embed"):
            return response
        kept = {**response.extensions, _BODY: response.content}
        return httpx.Response(HTTPStatus.OK, content=_EMPTY_ANSWER, request=request, extensions=kept)


class _Floats(msgspec.Struct):
    rows: list[list[float]] = msgspec.field(name="float")


class _BilledUnits(msgspec.Struct):
    input_tokens: float = 0


class _Meta(msgspec.Struct):
    billed_units: _BilledUnits | None = None


class _Answer(msgspec.Struct):
    embeddings: _Floats
    meta: _Meta | None = None


_DECODER = msgspec.json.Decoder(_Answer)


def read_answer(body: bytes, expected: int, dimension: int | None) -> Embedding:
    """The vectors of an answer, in the order of the texts, and the model tokens that were billed.

    Not in a thread: decoding (about 3 milliseconds a megabyte) holds Python's lock wherever it runs.

    Raises:
        UnavailableError: the answer is not whole: not JSON, too few or too many vectors, cut short or not finite.
        RefusedError: whole, but all vectors have another dimension than the known one.
    """
    try:
        answer = _DECODER.decode(body)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which `checked` refuses
            vectors: Vectors = np.array(answer.embeddings.rows, dtype=np.float32)
    except (ValueError, TypeError):  # msgspec's errors are ValueErrors, as are rows of unequal length
        raise UnavailableError("the answer is not an embeddings object") from None
    if vectors.ndim != 2 or vectors.shape[0] != expected or not vectors.shape[1]:  # noqa: PLR2004 - rows and columns
        raise UnavailableError(f"the answer does not have one vector for each of {expected} texts")
    units = answer.meta.billed_units if answer.meta else None
    return Embedding(checked(vectors, dimension), int(units.input_tokens) if units else 0)


def translate(error: ApiError | httpx.HTTPError) -> MillraceError:
    """The vendor's error as one of ours, with the server's own wait where it named one."""
    if not isinstance(error, ApiError) or error.status_code is None:
        return UnavailableError(f"the embeddings server did not answer ({type(error).__name__})")
    kind = kind_of(error.status_code)
    message = f"the embeddings server answered {error.status_code}"
    if issubclass(kind, TransientError):
        return kind(message, retry_after_seconds=retry_after_seconds(error.headers or {}))
    return kind(message)


def kind_of(status: int) -> type[MillraceError]:
    """What an answer with this status means."""
    return UnavailableError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else BY_STATUS.get(status, RefusedError)


def _base_url() -> httpx.URL:
    """``CO_API_URL``; the SDK reads it once, when it is imported, which is too early for a run's own environment."""
    try:
        url = httpx.URL(os.environ.get("CO_API_URL") or f"https://{OWN_HOST}")
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageError(f"CO_API_URL must be a URL such as https://{OWN_HOST}")
    return url


def _identity(settings: CohereSettings, host: str) -> str:
    """Another server may carry another model under the same name; its port says nothing."""
    identity = f"cohere:{settings.model}:{settings.dimensions or 'default'}:{DOCUMENT}:v{VERSION}"
    return identity if host == OWN_HOST else f"{identity}@{host}"
