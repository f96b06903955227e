"""OpenAI's embeddings endpoint: its published limits, its error shapes, a vector of its own for every text."""

from __future__ import annotations

import math
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from tasks.embed.port import TINY_TEXT
from tests.emulators.faults import Faults, Kind
from tests.emulators.http import Request, Response, json_response
from tests.emulators.openai_limits import Asked, check, count_model_tokens, error_response, refuse, require_model
from tests.emulators.server import Emulator, Refused
from tests.emulators.vectors import encode_vector, text_digest, vector_for, vectors_for, vectors_of
from tests.emulators.window import SlidingWindow

__all__ = ["OpenAIEmulator", "count_model_tokens", "text_digest", "vector_for", "vectors_for"]

CACHED_ITEMS = 4096
"""8 KB each at 1536 dimensions in base64."""


class OpenAIEmulator(Emulator):
    """``POST /v1/embeddings`` and ``GET /v1/models/{model}``.

    ``paid`` counts, by `text_digest`, how often each text was answered with 200, even where the connection was then
    cut; ``model_tokens`` sums the usage: bytes / 4 unless ``exact_usage``. Preflight's request, `TINY_TEXT` alone, is
    counted in ``tiny_requests`` instead. The limits per minute are over a sliding window of ``window_seconds`` by
    ``clock``, ``fullest_minute`` the most requests that one took; without ``names_limits`` no answer tells them, and a
    refusal only that it is one. ``insufficient_quota`` refuses everything as an account without money.
    """

    def __init__(
        self,
        *,
        api_key: str = "sk-emulator",
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        window_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        exact_usage: bool = False,
        names_limits: bool = True,
        port: int = 0,
        latency_seconds: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.api_key = api_key
        self.exact_usage = exact_usage
        self.names_limits = names_limits
        self.insufficient_quota = False
        self._request_window = SlidingWindow(requests_per_minute or math.inf, window_seconds, clock)
        self._token_window = SlidingWindow(tokens_per_minute or math.inf, window_seconds, clock)
        self._window_seconds = window_seconds
        self._items: OrderedDict[tuple[bytes, int, bool], bytes] = OrderedDict()
        super().__init__(port=port, latency_seconds=latency_seconds, faults=faults)

    @property
    def base_url(self) -> str:
        """What the SDK takes as ``base_url``."""
        return f"{self.url}/v1"

    def reset_counts(self) -> None:
        super().reset_counts()
        self.paid: Counter[bytes] = Counter()
        self.texts = 0
        self.tiny_requests = 0
        self.model_tokens = 0
        self.largest_request_bytes = 0
        self.largest_request_texts = 0

    def times_paid(self, text: str) -> int:
        """How often the text was answered with 200."""
        return self.paid[text_digest(text)]

    @property
    def paid_again(self) -> int:
        """How many answers went to texts that had been answered before."""
        return self.texts - len(self.paid)

    def state(self) -> dict[str, Any]:
        own = ("texts", "tiny_requests", "paid_again", "model_tokens", "largest_request_bytes", "largest_request_texts")
        window = self._request_window
        first_at = window.last_at if window.first_at is None else window.first_at
        distinct = {"distinct_texts": len(self.paid)}
        rate = {"fullest_minute": window.most_used, "accepting_seconds": window.last_at - first_at}
        return {**super().state(), **distinct, **rate, **{name: getattr(self, name) for name in own}}

    def check_admission(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            raise refuse(401, "Incorrect API key provided.", code="invalid_api_key")
        if self.insufficient_quota:
            message = "You exceeded your current quota, please check your plan and billing details."
            raise refuse(429, message, error_type="insufficient_quota", code="insufficient_quota")

    def fault_response(self, status: int) -> Response:
        if status == 429:
            return self._rate_limited("requests", self.faults.retry_after_seconds)
        return error_response(
            status, "The server had an error while processing your request.", error_type="server_error"
        )

    def answer(self, request: Request, fault: Kind) -> Response:
        route = (request.method, request.path)
        if route == ("POST", "/v1/embeddings"):
            return self._embed(request, fault)
        if request.method == "GET" and request.path.startswith("/v1/models/"):
            model = request.path.rpartition("/")[2]
            require_model(model)
            return json_response({"id": model, "object": "model", "created": 0, "owned_by": "system"})
        raise refuse(404, f"Invalid URL ({request.method} {request.path})")

    def _embed(self, request: Request, fault: Kind) -> Response:
        asked = check(request.body, self.faults, exact_usage=self.exact_usage)
        self._limit(asked.model_tokens)
        self.largest_request_bytes = max(self.largest_request_bytes, len(request.body))
        self.largest_request_texts = max(self.largest_request_texts, len(asked.texts))
        digests = [text_digest(text) for text in asked.texts]
        if asked.texts == [TINY_TEXT]:
            self.tiny_requests += 1
        else:
            self.paid.update(digests)
            self.texts += len(digests)
            self.model_tokens += asked.model_tokens
        items = self._encode(digests, asked)
        data = _arrange(items, fault, self._faults.faults.seed + self.requests)
        if fault in {"nan", "wrong_dimension"}:
            data[0] = b'{"object":"embedding","index":0,"embedding":%s}' % _spoilt(digests[0], asked, fault)
        body = b'{"object":"list","data":[%s],"model":"%s","usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
            b",".join(data),
            asked.model.encode(),
            asked.model_tokens,
            asked.model_tokens,
        )
        return Response(200, body, self._rate_headers())

    # Rates

    def _limit(self, model_tokens: int) -> None:
        request_wait = self._request_window.wait_seconds(1)
        token_wait = self._token_window.wait_seconds(model_tokens)
        if request_wait or token_wait:
            unit = "requests" if request_wait >= token_wait else "tokens"
            raise Refused(self._rate_limited(unit, max(request_wait, token_wait) if self.names_limits else None))
        self._request_window.spend(1)
        self._token_window.spend(model_tokens)

    def _rate_limited(self, unit: str, retry_after_seconds: float | None) -> Response:
        headers = self._rate_headers()
        if retry_after_seconds is not None:
            headers["retry-after-ms"] = str(math.ceil(retry_after_seconds * 1000))
            headers["retry-after"] = str(math.ceil(retry_after_seconds))
        message = f"Rate limit reached on {unit} per minute."
        return error_response(429, message, error_type=unit, code="rate_limit_exceeded", headers=headers)

    def _rate_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if not self.names_limits:
            return headers
        for unit, window in (("requests", self._request_window), ("tokens", self._token_window)):
            limit = int(window.limit) if math.isfinite(window.limit) else 1_000_000_000_000
            used = int(window.used) if math.isfinite(window.limit) else 0
            headers[f"x-ratelimit-limit-{unit}"] = str(limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, limit - used))
            headers[f"x-ratelimit-reset-{unit}"] = f"{math.ceil(self._window_seconds * 1000 * used / limit)}ms"
        return headers

    # The answer

    def _encode(self, digests: list[bytes], asked: Asked) -> list[bytes]:
        keys = [(digest, asked.dimension, asked.is_base64) for digest in digests]
        missing = list(dict.fromkeys(key for key in keys if key not in self._items))
        fresh = dict(zip(missing, _encode_vectors([key[0] for key in missing], asked), strict=True))
        payloads = [fresh[key] if key in fresh else self._items[key] for key in keys]
        self._items.update(fresh)
        while len(self._items) > CACHED_ITEMS:
            self._items.popitem(last=False)
        head = b'{"object":"embedding","index":%d,"embedding":%s}'
        return [head % (index, payload) for index, payload in enumerate(payloads)]


def _encode_vectors(digests: list[bytes], asked: Asked) -> list[bytes]:
    if not digests:
        return []
    return [encode_vector(row, is_base64=asked.is_base64) for row in vectors_of(digests, asked.dimension)]


def _spoilt(digest: bytes, asked: Asked, fault: Kind) -> bytes:
    vector = vectors_of([digest], asked.dimension)[0]
    if fault == "wrong_dimension":
        return encode_vector(vector[:-1], is_base64=asked.is_base64)
    vector[0] = np.nan
    return encode_vector(vector, is_base64=asked.is_base64)  # in a float answer a NaN is null, as JSON has none


def _arrange(items: list[bytes], fault: Kind, seed: int) -> list[bytes]:
    if fault == "shuffle":
        shuffled = items.copy()
        random.Random(seed).shuffle(shuffled)
        return shuffled if shuffled != items else shuffled[::-1]
    if fault == "drop_item":
        return items[:-1]
    if fault == "duplicate_item":
        return [*items[:-1], items[0]]
    return items
