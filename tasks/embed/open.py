"""From settings to an embedder. The one place that knows every adapter, each imported only when it is asked for."""

from __future__ import annotations

from tasks.embed.port import Embedder
from tasks.extras import optional
from tasks.provider_settings import (
    AnyEmbedderSettings,
    CohereSettings,
    HashingSettings,
    OpenAISettings,
    SentenceTransformersSettings,
)
from tasks.secrets import resolve_secret


def build_embedder(settings: AnyEmbedderSettings, *, concurrency: int) -> Embedder:
    """The embedder for these settings, for ``concurrency`` requests at once, not opened yet. The caller closes it.

    Raises:
        UsageError: a key is needed and not found, its package is not installed, or the server's address is not one.
    """
    match settings:
        case HashingSettings():
            from tasks.embed.hashing import HashingEmbedder  # noqa: PLC0415 - imports its vendor

            return HashingEmbedder(settings)
        case OpenAISettings():
            from tasks.embed.openai import OpenAIEmbedder  # noqa: PLC0415 - imports its vendor

            return OpenAIEmbedder(settings, api_key=resolve_secret(settings.api_key), concurrency=concurrency)
        case CohereSettings():
            with optional("cohere"):
                from tasks.embed.cohere import CohereEmbedder  # noqa: PLC0415 - imports its vendor

            return CohereEmbedder(settings, api_key=resolve_secret(settings.api_key), concurrency=concurrency)
        case SentenceTransformersSettings():
            from tasks.embed.sentence_transformers import SentenceTransformersEmbedder  # noqa: PLC0415

            return SentenceTransformersEmbedder(settings)
