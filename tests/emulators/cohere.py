"""Cohere's v2 embed endpoint: its published limits, its error shapes, a vector of its own for every text."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from tests.emulators.faults import Faults, Kind
from tests.emulators.http import Request, Response, json_response
from tests.emulators.server import Emulator, Refused
from tests.emulators.vectors import encode_vector, text_digest, vectors_for
from tests.emulators.window import SlidingWindow

MAX_INPUTS = 96  # embed reference
MODELS = {"embed-v4.0": (1536, 128_000), "embed-english-v3.0": (1024, 512), "embed-multilingual-v3.0": (1024, 512)}
"""Dimension and context length, of Cohere's embed models page."""
DIMENSIONS = (256, 512, 1024, 1536)  # embed-v4.0's output_dimension
INPUT_TYPES = ("search_document", "search_query", "classification", "clustering", "image")
QUERY_WEIGHT = 0.1
"""How far a query's vector lies from a document's of the same text."""


def cohere_vectors(texts: list[str], dimension: int, input_type: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The unit vectors the emulator answers, shape (texts, dimension): near for each input type, but not the same."""
    mixed = vectors_for(texts, dimension) + QUERY_WEIGHT * vectors_for([input_type], dimension)
    unit: np.ndarray[Any, np.dtype[np.float32]] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return unit


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that passed every check."""

    texts: list[str]
    dimension: int
    input_type: str
    model_tokens: int


class CohereEmulator(Emulator):
    """``POST /v2/embed`` and ``GET /v1/models/{model}``.

    ``paid`` counts, by `text_digest`, how often each text was answered with 200, and ``input_types`` how often for
    what; ``truncated`` counts texts that were cut because the request allowed it. A model token is four bytes.
    ``inputs_per_minute`` is over a sliding window of ``window_seconds`` by ``clock``.
    """

    def __init__(
        self,
        *,
        api_key: str = "co-emulator",
        inputs_per_minute: float | None = None,
        window_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        port: int = 0,
        latency_seconds: float = 0.0,
        faults: Faults | None = None,
    ) -> None:
        self.api_key = api_key
        self._window = SlidingWindow(inputs_per_minute or math.inf, window_seconds, clock)
        super().__init__(port=port, latency_seconds=latency_seconds, faults=faults)

    def reset_counts(self) -> None:
        super().reset_counts()
        self.paid: Counter[bytes] = Counter()
        self.input_types: Counter[str] = Counter()
        self.texts = self.model_tokens = self.truncated = 0
        self.largest_request_texts = 0

    def times_paid(self, text: str) -> int:
        """How often the text was answered with 200."""
        return self.paid[text_digest(text)]

    @property
    def paid_again(self) -> int:
        """How many answers went to texts that had been answered before."""
        return self.texts - len(self.paid)

    def state(self) -> dict[str, Any]:
        own = ("texts", "paid_again", "model_tokens", "truncated", "largest_request_texts")
        return {**super().state(), **{name: getattr(self, name) for name in own}}

    def check_admission(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            raise refuse(401, "invalid api token")

    def fault_response(self, status: int) -> Response:
        if status == 429:
            return _rate_limited(self.faults.retry_after_seconds)
        return json_response({"message": "internal server error"}, status)

    def answer(self, request: Request, fault: Kind) -> Response:
        if (request.method, request.path) == ("POST", "/v2/embed"):
            return self._embed(request, fault)
        if request.method == "GET" and request.path.startswith("/v1/models/"):
            model = request.path.rpartition("/")[2]
            if model not in MODELS:
                raise refuse(404, f"model '{model}' not found")
            return json_response({"name": model, "endpoints": ["embed"], "context_length": MODELS[model][1]})
        raise refuse(404, f"no such path: {request.path}")

    def _embed(self, request: Request, fault: Kind) -> Response:
        asked = self._check(request.body)
        if wait := self._window.wait_seconds(len(asked.texts)):
            raise Refused(_rate_limited(wait))
        self._window.spend(len(asked.texts))
        self.largest_request_texts = max(self.largest_request_texts, len(asked.texts))
        self.paid.update(text_digest(text) for text in asked.texts)
        self.input_types[asked.input_type] += len(asked.texts)
        self.texts += len(asked.texts)
        self.model_tokens += asked.model_tokens
        body = b'{"id":"e","embeddings":{"float":[%s]},"texts":%s,"meta":%s,"response_type":"embeddings_by_type"}' % (
            b",".join(_rows(asked, fault)),
            orjson.dumps(asked.texts),
            orjson.dumps({"api_version": {"version": "2"}, "billed_units": {"input_tokens": asked.model_tokens}}),
        )
        return Response(200, body)

    def _check(self, body: bytes) -> Asked:
        sent = _object(body)
        model = sent.get("model")
        if model not in MODELS:
            raise refuse(404, f"model '{model}' not found")
        dimension, most_tokens = MODELS[model]
        if sent.get("input_type") not in INPUT_TYPES:
            raise refuse(400, "invalid request: valid input_type must be provided with the provided model")
        if sent.get("embedding_types", ["float"]) != ["float"]:
            raise refuse(400, "invalid request: the emulator answers floats alone")
        if "output_dimension" in sent:
            dimension = sent["output_dimension"]
            if model != "embed-v4.0" or dimension not in DIMENSIONS:
                raise refuse(400, f"invalid request: output_dimension {dimension} is not supported by {model}")
        texts = self._check_texts(sent.get("texts"))
        tokens = [max(1, len(text.encode()) // 4) for text in texts]
        if max(tokens) > most_tokens:
            if sent.get("truncate", "END") == "NONE":
                raise refuse(400, f"too many tokens: a text has {max(tokens)}, {model} takes {most_tokens}")
            self.truncated += sum(count > most_tokens for count in tokens)
        return Asked(texts, dimension, sent["input_type"], sum(min(count, most_tokens) for count in tokens))

    def _check_texts(self, texts: object) -> list[str]:
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise refuse(400, "invalid request: texts must be a list of strings that is not empty")
        if len(texts) > MAX_INPUTS:
            raise refuse(400, f"invalid request: at most {MAX_INPUTS} texts, {len(texts)} were sent")
        if any(self.faults.poisoned(text) for text in texts):
            raise refuse(400, f"invalid request: a text is refused: {texts}")
        return texts


def refuse(status: int, message: str) -> Refused:
    """A refusal as Cohere answers it, to raise."""
    return Refused(json_response({"id": "00000000-0000-4000-8000-000000000000", "message": message}, status))


def _object(body: bytes) -> dict[str, Any]:
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError:
        sent = None
    if not isinstance(sent, dict):
        raise refuse(400, "invalid request: the body is not a JSON object")
    return sent


def _rate_limited(retry_after_seconds: float | None) -> Response:
    headers = {} if retry_after_seconds is None else {"retry-after": str(math.ceil(retry_after_seconds))}
    return json_response({"message": "too many requests"}, 429, headers)


def _rows(asked: Asked, fault: Kind) -> list[bytes]:
    vectors = cohere_vectors(asked.texts, asked.dimension, asked.input_type)
    rows = [encode_vector(row, is_base64=False) for row in vectors]
    if fault == "wrong_dimension":
        rows[0] = encode_vector(vectors[0][:-1], is_base64=False)
    if fault == "nan":
        vectors[0][0] = np.nan  # null, as JSON has none
        rows[0] = encode_vector(vectors[0], is_base64=False)
    return rows[:-1] if fault == "drop_item" else rows
