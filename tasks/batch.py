"""Batch: what of a segment must be embedded, and in which requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.checkpoints.job import JobCheckpoints
from tasks.dead_letters import Choice
from tasks.fingerprints import Entries, Fingerprints
from tasks.model_tokens import most_tokens
from tasks.records import Document, Reason, Segment, dead_letter, select

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What one embedding request may hold; None is no limit."""

    batch_size: int
    max_tokens_per_input: int | None
    max_tokens_per_request: int | None


class Batcher:
    """Decides for one job. ``superseded`` are the places of documents whose id comes again later, sorted."""

    def __init__(
        self,
        *,
        checkpoints: JobCheckpoints,
        fingerprints: Fingerprints,
        superseded: NDArray[np.int64],
        rules: BatchRules,
        count_tokens: CountTokens,
        refuse: Callable[[Document], str | None],
        choice: Choice | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._fingerprints = fingerprints
        self._superseded = superseded
        self._rules = rules
        self._count_tokens = count_tokens
        self._refuse = refuse
        self._choice = choice or Choice()

    async def batch_segment(self, segment: Segment) -> None:
        """Fill the pending fields: neither duplicate nor unchanged, within the rules; vectors from disk if there."""
        if not self._choice.is_everything:
            self._choose(segment)
        documents = self._without_duplicates(segment)
        documents, keys, entries = self._fingerprinted(segment, documents)
        unchanged = self._checkpoints.ledger.holds(entries)
        left = self._choice.leaves(entries) & ~unchanged
        segment.unchanged, segment.left = int(unchanged.sum()), int(left.sum())
        rows = [
            row
            for row in np.flatnonzero(~(unchanged | left)).tolist()
            if self._accepts(segment, documents[row], int(entries[row, 1]))
        ]
        segment.documents = []
        if not rows:
            return
        segment.sequence = self._checkpoints.take_sequence()
        segment.pending = [documents[row] for row in rows]
        segment.vector_keys = [keys[row] for row in rows]
        segment.entries = entries[rows]
        segment.embedded, segment.vectors = await self._checkpoints.vectors.recall(segment.vector_keys)
        texts = {row: segment.pending[row].text for row in np.flatnonzero(~segment.embedded).tolist()}
        segment.batches = plan_batches(texts, self._rules, self._count_tokens)

    def _choose(self, segment: Segment) -> None:
        """Keep of the segment what the run concerns."""
        items = len(segment.documents) + len(segment.dead_letters)
        chosen = np.array([self._choice.concerns(document) for document in segment.documents], np.bool_)
        segment.places = np.asarray(segment.places)[chosen].tolist()
        segment.documents = select(segment.documents, chosen)
        segment.dead_letters = [letter for letter in segment.dead_letters if self._choice.concerns_letter(letter)]
        segment.outside = items - len(segment.documents) - len(segment.dead_letters)

    def _without_duplicates(self, segment: Segment) -> list[Document]:
        if not len(self._superseded):
            return segment.documents
        superseded = np.isin(np.asarray(segment.places), self._superseded, assume_unique=True)
        segment.duplicates = int(superseded.sum())
        return select(segment.documents, ~superseded)

    def _fingerprinted(
        self, segment: Segment, documents: list[Document]
    ) -> tuple[list[Document], list[bytes], Entries]:
        try:
            keys = self._fingerprints.vector_keys(documents)
            return documents, keys, self._fingerprints.entries(documents, keys)
        except (UnicodeEncodeError, TypeError, RecursionError):
            sound = [document for document in documents if self._is_sound(segment, document)]
            keys = self._fingerprints.vector_keys(sound)
            return sound, keys, self._fingerprints.entries(sound, keys)

    def _is_sound(self, segment: Segment, document: Document) -> bool:
        try:
            self._fingerprints.entries([document], self._fingerprints.vector_keys([document]))
        except (UnicodeEncodeError, TypeError, RecursionError):
            message = "its text or metadata cannot be written as UTF-8 JSON"
            segment.dead_letters.append(dead_letter(document, Reason.INVALID, message))
            return False
        return True

    def _accepts(self, segment: Segment, document: Document, fingerprint: int) -> bool:
        if (message := self._refuse(document)) is not None:
            segment.dead_letters.append(dead_letter(document, Reason.INVALID, message, fingerprint))
            return False
        limit = self._rules.max_tokens_per_input
        if limit is None or most_tokens(document.text) <= limit:
            return True
        if (tokens := self._count_tokens(document.text)) <= limit:
            return True
        message = f"{tokens:,} model tokens, the embedder's limit is {limit:,}"
        segment.dead_letters.append(dead_letter(document, Reason.TOO_LARGE, message, fingerprint))
        return False


def plan_batches(texts: dict[int, str], rules: BatchRules, count_tokens: CountTokens) -> list[list[int]]:
    """Rows of each request, in order. Model tokens are only counted where the bytes alone do not fit.

    A single text over ``max_tokens_per_request`` gets a request of its own; it was refused before where it cannot fit.
    """
    rows, limit = list(texts), rules.max_tokens_per_request
    batches: list[list[int]] = []
    for start in range(0, len(rows), rules.batch_size):
        batch = rows[start : start + rules.batch_size]
        if limit is None or sum(most_tokens(texts[row]) for row in batch) <= limit:
            batches.append(batch)
        else:
            batches += _split(batch, [count_tokens(texts[row]) for row in batch], limit)
    return batches


def _split(rows: Sequence[int], tokens: Sequence[int], limit: int) -> list[list[int]]:
    batches: list[list[int]] = []
    held = limit + 1  # so that the first text opens a batch, even one of no tokens
    for row, count in zip(rows, tokens, strict=True):
        if held + count > limit:
            batches.append([])
            held = 0
        batches[-1].append(row)
        held += count
    return batches


@task(task_run_name="batch", cache_policy=NO_CACHE, persist_result=False)
async def batch(segments: AsyncIterator[Segment], batcher: Batcher) -> AsyncGenerator[Segment]:
    """Yield each segment with its pending fields filled."""
    async for segment in segments:
        await batcher.batch_segment(segment)
        yield segment
