"""Small real embedder and store, in memory: they count what they are asked and fail where a test says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from tasks.embed.port import EmbedLimits
from tasks.records import Document, Embedding, EncodedRecord, Hit, Record, Vectors
from tasks.upsert.port import UpsertLimits

DIMENSION = 4


def vector_of(text: str, dimension: int = DIMENSION) -> Vectors:
    """The vector that the fake gives to a text, shape (dimension,): from the text alone."""
    return np.frombuffer(blake2b(text.encode(), digest_size=dimension).digest(), np.uint8).astype(np.float32) + 1


def pass_all(_: object) -> None:
    """Fail nowhere."""


class CountingEmbedder:
    """``requests`` has the texts of every request asked; ``before`` may raise, given them."""

    def __init__(
        self, before: Callable[[Sequence[str]], None] = pass_all, limits: EmbedLimits | None = None, name: str = "fake"
    ) -> None:
        self.identity = f"{name}:{DIMENSION}:v1"
        self.dimension: int | None = DIMENSION
        self.limits = limits or EmbedLimits(max_inputs=100)
        self.before = before
        self.requests: list[list[str]] = []
        self.answered: list[str] = []

    async def open(self) -> None:
        """Nothing to find out."""

    async def embed(self, texts: Sequence[str]) -> Embedding:
        self.requests.append(list(texts))
        self.before(texts)
        self.answered += texts
        return Embedding(np.stack([vector_of(text) for text in texts]), sum(map(self.model_tokens, texts)))

    async def embed_query(self, text: str) -> Vectors:
        return vector_of(text)

    def model_tokens(self, text: str) -> int:
        return len(text.split())

    async def aclose(self) -> None:
        """Nothing to close."""


class MemoryStore:
    """``records`` is what is stored; ``refused`` has ids and reasons.

    ``before`` may raise, given a request's ids; so may ``after``, when they are stored: the answer is lost.
    """

    def __init__(
        self, before: Callable[[Sequence[str]], None] = pass_all, limits: UpsertLimits | None = None, name: str = "fake"
    ) -> None:
        self.identity = f"memory:{name}"
        self.limits = limits or UpsertLimits(max_request_bytes=None, max_records=10, envelope_bytes=0, concurrency=4)
        self.before = before
        self.after: Callable[[Sequence[str]], None] = pass_all
        self.refused: dict[str, str] = {}
        self.requests: list[list[str]] = []
        self.records: dict[str, Record] = {}

    async def open(self, dimension: int | None, *, create: bool) -> None:
        assert dimension in {None, DIMENSION}

    def refuse(self, document: Document, *, keep_text: bool) -> str | None:
        return "its id is bad" if document.id.startswith("bad") else None

    def encode(self, records: Sequence[Record]) -> list[EncodedRecord]:
        return [EncodedRecord(r.id, r, r.vector.nbytes + len(r.id) + len(r.text or "")) for r in records]

    async def upsert(self, records: Sequence[EncodedRecord]) -> Mapping[str, str]:
        ids = [record.id for record in records]
        self.requests.append(ids)
        self.before(ids)
        self.records |= {record.id: record.payload for record in records if record.id not in self.refused}
        self.after(ids)
        return {id_: self.refused[id_] for id_ in ids if id_ in self.refused}

    async def query(self, vector: Vectors, *, limit: int) -> list[Hit]:
        scores = {r.id: float(r.vector @ vector / np.linalg.norm(r.vector)) for r in self.records.values()}
        best = sorted(scores, key=lambda id_: -scores[id_])[:limit]
        return [Hit(id_, scores[id_], self.records[id_].text, self.records[id_].metadata) for id_ in best]

    async def fetch(self, ids: Sequence[str]) -> list[Record]:
        return [self.records[id_] for id_ in ids if id_ in self.records]

    async def count(self) -> int:
        return len(self.records)

    async def delete(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self.records.pop(id_, None)

    async def finish(self) -> None:
        """Nothing to tidy up."""

    async def aclose(self) -> None:
        """Nothing to close."""
