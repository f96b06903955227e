"""The stages joined by bounded queues: while one segment embeds, earlier ones upsert and the next ones load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from prefect.client.schemas.objects import State

from tasks.batch import Batcher, batch
from tasks.checkpoints.job import JobCheckpoints
from tasks.embed.stage import SegmentEmbedder, embed
from tasks.records import EmbedRecord, Receipt, Segment
from tasks.settings import MAX_SEGMENTS_IN_FLIGHT
from tasks.tally import Tally
from tasks.upsert.stage import SegmentUpserter, upsert

T = TypeVar("T")
SEGMENTS_QUEUED = 6
"""At most: one in each of three queues, one in the hands of load, of batch, and of a full queue's writer."""


class Channel(Generic[T]):
    """A bounded queue that ends when every one of its writers has ended."""

    def __init__(self, size: int, writers: int = 1) -> None:
        self._queue: asyncio.Queue[T | None] = asyncio.Queue(size)
        self._writers = writers

    async def put(self, item: T) -> None:
        """Wait for room, then add."""
        await self._queue.put(item)

    async def end(self) -> None:
        """One writer has no more."""
        self._writers -= 1
        if not self._writers:
            await self._queue.put(None)

    async def __aiter__(self) -> AsyncIterator[T]:
        while (item := await self._queue.get()) is not None:
            yield item
        await self._queue.put(None)  # for the other readers


def _a_stored_id(segment: Segment, receipt: Receipt) -> str | None:
    dead = {letter.id for letter in receipt.dead_letters}
    embedded = [] if segment.embedded is None else segment.embedded.tolist()
    stored = (document.id for document, is_embedded in zip(segment.pending, embedded, strict=False) if is_embedded)
    return next((id_ for id_ in stored if id_ not in dead), None)


class Pipeline:
    """Takes a job's segments from load to receipt, ``embeds`` and ``upserts`` of them at once."""

    def __init__(
        self,
        *,
        checkpoints: JobCheckpoints,
        batcher: Batcher,
        embedder: SegmentEmbedder,
        upserter: SegmentUpserter,
        tally: Tally,
        embeds: int,
        upserts: int,
    ) -> None:
        assert embeds + upserts + SEGMENTS_QUEUED <= MAX_SEGMENTS_IN_FLIGHT
        self._embeds = embeds
        self._upserts = upserts
        self._checkpoints = checkpoints
        self._batcher = batcher
        self._embedder = embedder
        self._upserter = upserter
        self._tally = tally
        self._error: Exception | None = None

    def halt(self, error: Exception) -> None:
        """Start nothing more and let what is under way finish; `run` then raises the first such error."""
        self._error = self._error or error

    def is_halted(self) -> bool:
        """Whether nothing more is to be started."""
        return self._error is not None

    async def run(self, segments: AsyncIterator[Segment]) -> None:
        """Let the source through.

        Each generator task is consumed by an asyncio task of its own: an async generator leaks its context to its
        consumer, and under Prefect's transaction of ``load`` every checkpoint would wait for the end of the source.

        Raises:
            Exception: the first error that concerns the whole run.
        """
        loaded: Channel[Segment] = Channel(1)
        batched: Channel[Segment] = Channel(1)
        embedded: Channel[tuple[Segment, EmbedRecord]] = Channel(1, writers=self._embeds)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(segments, loaded))
            group.create_task(self._batch_each(loaded, batched))
            for _ in range(self._embeds):
                group.create_task(self._embed_each(batched, embedded))
            for _ in range(self._upserts):
                group.create_task(self._upsert_each(embedded))
        if self._error is not None:
            raise self._error

    async def _pump(self, segments: AsyncIterator[Segment], out: Channel[Segment]) -> None:
        """Pass on until the generator's own end, also after a halt: Prefect 3.8.8 cannot close one before it."""
        try:
            async for segment in segments:
                # A twin: what a running generator yielded Prefect would draw inside of it, out of sight.
                twin = segment.handed_on()
                if self.is_halted():
                    twin.let_go()
                else:
                    await out.put(twin)
                del twin
        except Exception as error:  # noqa: BLE001 - kept, and raised when everything under way has ended
            self.halt(error)
        await out.end()

    async def _batch_each(self, loaded: Channel[Segment], batched: Channel[Segment]) -> None:
        await self._pump(batch(aiter(loaded), self._batcher), batched)
        async for segment in loaded:  # some only after an error: load must not wait for room for ever
            segment.let_go()

    async def _embed_each(self, batched: Channel[Segment], embedded: Channel[tuple[Segment, EmbedRecord]]) -> None:
        async for segment in batched:
            record = None if self.is_halted() else await self._record_of(segment)
            if record is None:
                segment.let_go()
            else:
                await embedded.put((segment, record))
        await embedded.end()

    async def _record_of(self, segment: Segment) -> EmbedRecord | None:
        """None where nothing of the segment goes on: nothing is pending, or its embedding failed as a whole."""
        self._tally.batched(segment)
        if not segment.pending:
            return None
        try:
            with self._timed("embed"):
                return await self._embed(segment)
        except Exception as error:  # noqa: BLE001 - kept, and raised when everything under way has ended
            self.halt(error)
            return None

    async def _embed(self, segment: Segment) -> EmbedRecord:
        state: State[EmbedRecord] = await embed(segment, self._embedder, return_state=True)  # type: ignore[misc]
        record = await state.aresult()
        is_cached = state.name == "Cached"
        if is_cached and (record.dead_letters or not await self._embedder.recall(segment, record)):
            # A failure is never served from a checkpoint, and vectors that are gone are embedded again.
            record = await embed.with_options(refresh_cache=True)(segment, self._embedder)
            is_cached = False
        self._tally.embedded(record, from_checkpoint=is_cached)
        return record

    async def _upsert_each(self, embedded: Channel[tuple[Segment, EmbedRecord]]) -> None:
        async for segment, record in embedded:
            try:
                with self._timed("upsert"):
                    await self._upsert(segment, record)
            except Exception as error:  # noqa: BLE001 - kept, and raised when everything under way has ended
                self.halt(error)
            segment.let_go()

    async def _upsert(self, segment: Segment, record: EmbedRecord) -> None:
        receipt = await upsert(segment, self._upserter)
        await self._checkpoints.confirm(receipt)
        self._tally.receipted(receipt, _a_stored_id(segment, receipt))
        if not receipt.keeps_vectors:
            await self._checkpoints.drop_vectors(record, segment)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._tally.stage_seconds[stage] += time.monotonic() - started
