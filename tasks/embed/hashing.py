"""Feature hashing: vectors from the words themselves, offline and without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from tasks.embed.port import EmbedLimits
from tasks.profiles import HASHING
from tasks.provider_settings import HashingSettings
from tasks.records import Embedding, Vectors

VERSION = 1
"""Raised by hand when the same text would get another vector."""
MAX_ANSWER_NUMBERS = 2**24
"""64 MiB of float32 a request at most, so that the longest vectors take smaller requests."""


class HashingEmbedder:
    """Words and pairs of neighbouring words, without English stop words, hashed into ``dimension`` signed buckets.

    Lexical, not semantic: texts are near when they share words, and a synonym counts for nothing. Rows have length 1.
    A text without a single feature (empty, stop words only) gets the vector whose components are all equal, so that a
    cosine is defined; it is about equally far from everything.
    """

    def __init__(self, settings: HashingSettings) -> None:
        self.identity = f"hashing:{settings.dimension}:v{VERSION}"
        self.dimension: int | None = settings.dimension
        self.limits = EmbedLimits(max_inputs=max(1, min(HASHING.max_inputs, MAX_ANSWER_NUMBERS // settings.dimension)))
        self._vectorizer = HashingVectorizer(
            n_features=settings.dimension,
            ngram_range=(1, 2),
            stop_words="english",
            norm="l2",
            alternate_sign=True,
            dtype=np.float32,
        )

    async def open(self) -> None:
        """Nothing to find out."""

    async def embed(self, texts: Sequence[str]) -> Embedding:
        """Embed in a thread, so that the loop goes on; nothing is billed."""
        return Embedding(await asyncio.to_thread(self._vectors, texts), model_tokens=0)

    async def embed_query(self, text: str) -> Vectors:
        """A query's words are hashed as a document's."""
        row: Vectors = (await self.embed([text])).vectors[0]
        return row

    def model_tokens(self, text: str) -> int:  # noqa: ARG002 - the port's
        """No model, no model tokens."""
        return 0

    async def aclose(self) -> None:
        """Nothing to close."""

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        rows: Vectors = self._vectorizer.transform(texts).toarray()
        # Not only empty texts: two features of opposite sign in one bucket leave nothing either.
        rows[~rows.any(axis=1)] = 1 / np.sqrt(rows.shape[1])
        return rows
