"""Embed: the texts of a segment become vectors, each answer on disk as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy

from tasks.checkpoints.keys import embed_key
from tasks.checkpoints.vectors import VectorParts
from tasks.embed.port import Embedder
from tasks.errors import MillraceError, RefusedError
from tasks.halving import reason_of, send_halving
from tasks.limits.gate import Gate
from tasks.records import DeadLetter, Embedding, EmbedRecord, Segment, Vectors
from tasks.retries import Retries
from tasks.together import together


class SegmentEmbedder:
    """Embeds segments of one job, all within one gate."""

    def __init__(
        self, embedder: Embedder, gate: Gate, retries: Retries, vectors: VectorParts, *, counts_tokens: bool
    ) -> None:
        self._embedder = embedder
        self._gate = gate
        self._retries = retries
        self._vectors = vectors
        self._counts_tokens = counts_tokens

    async def embed_segment(self, segment: Segment) -> EmbedRecord:
        """Fill ``vectors`` and ``embedded``; what cannot be embedded becomes a dead letter of the record."""
        work = _SegmentWork(segment, self._vectors)
        answers = await together(self._embed_batch(work, rows) for rows in segment.batches)
        failures = {row: error for answer in answers for row, error in answer.items()}
        return work.record([segment.give_up(row, reason_of(error), str(error)) for row, error in failures.items()])

    async def recall(self, segment: Segment, record: EmbedRecord) -> bool:
        """Fill the segment from the vectors that a checkpoint points at; whether all of them are there and sound."""
        rows = {key: row for row, key in enumerate(segment.vector_keys)}
        work = _SegmentWork(segment, self._vectors)
        for part in range(record.parts):
            answer = await self._vectors.read_from(record, part)
            if answer is None:
                return False
            keys, vectors = answer
            found = [(rows[key], i) for i, key in enumerate(keys) if key in rows]
            work.fill([row for row, _ in found], vectors[[i for _, i in found]])
        return segment.embedded is not None and bool(segment.embedded.all())

    async def _embed_batch(self, work: _SegmentWork, rows: Sequence[int]) -> dict[int, MillraceError]:
        async def send(some: Sequence[int]) -> None:
            await self._retries.call("embed", lambda: self._ask(work, some))

        return await send_halving(rows, send)

    async def _ask(self, work: _SegmentWork, rows: Sequence[int]) -> None:
        """Ask once. The slot is held until the answer is on disk: a kill costs no more answers than there are slots."""
        texts = [work.segment.pending[row].text for row in rows]
        tokens = sum(map(self._embedder.model_tokens, texts)) if self._counts_tokens else 0
        async with self._gate.slot(model_tokens=tokens, inputs=len(texts)) as passage:
            answer = await self._embedder.embed(texts)
            passage.answered(answer.model_tokens, answer.quota)
            await work.keep(rows, answer)


class _SegmentWork:
    """One segment while its answers come in."""

    def __init__(self, segment: Segment, vectors: VectorParts) -> None:
        self.segment = segment
        self._store = vectors
        self._writing = asyncio.Lock()
        self._parts = 0
        self._requests = 0
        self._model_tokens = 0
        self._truncated = 0

    async def keep(self, rows: Sequence[int], answer: Embedding) -> None:
        """Put an answer on disk, then into the segment."""
        self._requests += 1
        self._model_tokens += answer.model_tokens
        self._truncated += answer.truncated
        keys = [self.segment.vector_keys[row] for row in rows]
        async with self._writing:  # a part on disk has all parts before it on disk: the first missing one is the end
            await self._store.write(self.segment.sequence, self._parts, keys, answer.vectors)
            self._parts += 1
        self.fill(rows, answer.vectors)

    def fill(self, rows: Sequence[int], vectors: Vectors) -> None:
        """Put vectors into the segment, which has room for all of them from the first on."""
        segment = self.segment
        if segment.vectors is None:
            segment.vectors = np.zeros((len(segment.pending), vectors.shape[1]), np.float32)
        if segment.embedded is None:
            segment.embedded = np.zeros(len(segment.pending), np.bool_)
        if segment.vectors.shape[1] != vectors.shape[1]:
            raise RefusedError(
                f"the embedder answers with {vectors.shape[1]} dimensions, earlier it was {segment.vectors.shape[1]}"
            )
        segment.vectors[rows] = vectors
        segment.embedded[rows] = True

    def record(self, dead_letters: list[DeadLetter]) -> EmbedRecord:
        """What is kept of the segment's embedding."""
        return EmbedRecord(
            job=self._store.job,
            shard=self._store.shard,
            sequence=self.segment.sequence,
            parts=self._parts,
            embedded=0 if self.segment.embedded is None else int(self.segment.embedded.sum()),
            dead_letters=dead_letters,
            embedding_requests=self._requests,
            model_tokens=self._model_tokens,
            truncated=self._truncated,
        )


def _key(_context: Any, parameters: dict[str, Any]) -> str:
    segment: Segment = parameters["segment"]
    return embed_key(segment.vector_keys)


@task(
    task_run_name="embed {segment.span}",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=_key),
    persist_result=True,
    cache_result_in_memory=False,
)
async def embed(segment: Segment, embedder: SegmentEmbedder) -> EmbedRecord:
    """Embed one segment; its result is the checkpoint that says where its vectors lie."""
    return await embedder.embed_segment(segment)
