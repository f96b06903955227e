"""What OpenAI's embeddings endpoint refuses, and the shape of its errors."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import orjson

from tests.emulators.faults import Faults
from tests.emulators.http import Response, json_response
from tests.emulators.server import Refused

MODELS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
MAX_INPUTS = 2048  # API reference, embeddings
MAX_INPUT_TOKENS = 8192  # API reference: text-embedding-3-*, ada-002
MAX_REQUEST_TOKENS = 300_000  # API reference: summed over the inputs of one request


@functools.cache
def _encoding() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import opens its vocabulary the old way, and is slow
        import bpe_openai  # noqa: PLC0415

        return bpe_openai.get_encoding("cl100k_base")


def count_model_tokens(text: str) -> int:
    """The text's length in model tokens; about 25 microseconds a kilobyte."""
    return len(_encoding().encode_ordinary(text))


def error_response(
    status: int,
    message: str,
    *,
    error_type: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error as OpenAI answers it."""
    error = {"message": message, "type": error_type, "param": param, "code": code}
    return json_response({"error": error}, status, headers)


def refuse(status: int, message: str, **error: Any) -> Refused:
    """The same, to raise."""
    return Refused(error_response(status, message, **error))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that passed every check; ``model_tokens`` is what it is billed for."""

    model: str
    texts: list[str]
    dimension: int
    is_base64: bool
    model_tokens: int


def require_model(model: object) -> str:
    """The model's name, or 404."""
    if not isinstance(model, str) or model not in MODELS:
        raise refuse(
            404, f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
        )
    return model


def check(body: bytes, faults: Faults, *, exact_usage: bool) -> Asked:
    """The request within every published limit, or a refusal."""
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError:
        sent = None
    if not isinstance(sent, dict):
        raise refuse(400, "We could not parse the JSON body of your request.")
    model = require_model(sent.get("model"))
    texts = _check_texts(sent.get("input"), faults)
    dimension = sent.get("dimensions", MODELS[model])
    if "dimensions" in sent and model == "text-embedding-ada-002":
        raise refuse(400, "This model does not support specifying dimensions.", param="dimensions")
    if not isinstance(dimension, int) or not 1 <= dimension <= MODELS[model]:
        raise refuse(400, f"Invalid value for 'dimensions': {dimension}.", param="dimensions")
    encoding_format = sent.get("encoding_format", "float")
    if encoding_format not in {"float", "base64"}:
        raise refuse(400, f"Invalid 'encoding_format': {encoding_format}.", param="encoding_format")
    return Asked(model, texts, dimension, encoding_format == "base64", _count_tokens(texts, exact_usage=exact_usage))


def _check_texts(sent: object, faults: Faults) -> list[str]:
    texts = [sent] if isinstance(sent, str) else sent
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise refuse(400, "'$.input' is invalid: the emulator takes a string or a list of strings.", param="input")
    if len(texts) > MAX_INPUTS:
        raise refuse(400, f"Invalid 'input': array too long, at most {MAX_INPUTS}, got {len(texts)}.", param="input")
    if "" in texts:
        raise refuse(400, "'$.input' is invalid: input cannot be an empty string.", param="input")
    if faults.poison and any(faults.poisoned(text) for text in texts):
        raise refuse(400, "Invalid 'input': content refused.", param="input", code="invalid_input")
    return texts


def _count_tokens(texts: list[str], *, exact_usage: bool) -> int:
    sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
    longest, total = max(sizes), sum(sizes)
    if not exact_usage and longest <= MAX_INPUT_TOKENS and total <= MAX_REQUEST_TOKENS:
        return max(1, total // 4)  # a token covers at least one byte: within every limit without counting
    tokens = [count_model_tokens(text) for text in texts]
    if max(tokens) > MAX_INPUT_TOKENS:
        message = f"Invalid 'input[{tokens.index(max(tokens))}]': maximum input length is {MAX_INPUT_TOKENS} tokens."
        raise refuse(400, message, param="input")
    if sum(tokens) > MAX_REQUEST_TOKENS:
        message = f"Requested {sum(tokens)} tokens, max {MAX_REQUEST_TOKENS} tokens per request"
        raise refuse(400, message, error_type="max_tokens_per_request", code="max_tokens_per_request")
    return sum(tokens) if exact_usage else max(1, total // 4)
