"""Load: documents of the source, a segment at a time. Two passes: `scan` reads ids only, `load` reads documents."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import SourceChangedError
from tasks.fingerprints import hash_ids
from tasks.limits.memory import MemoryGuard
from tasks.load.source import Source
from tasks.records import Segment


class Ids(msgspec.Struct, weakref=True):
    """The ids of one shard: how many items, the hashes of those that have one and their places in the shard, from 0.

    ``lines`` are those of each file, see `Source.lines`. 16 bytes an item, let go once they are merged: Prefect's
    unsent events may keep a task's result alive for a while.
    """

    items: int
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64] | None
    lines: dict[str, int] = {}

    def let_go(self) -> None:
        """Drop the hashes."""
        self.hashes, self.places = np.empty((0, 2), np.uint64), None


class Scan(msgspec.Struct, frozen=True, weakref=True):
    """What the ids alone tell of a shard: its items, and the sorted places (in the source) of ids that come again."""

    items: int
    superseded: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Scan:
        """Of a source without items."""
        return cls(0, np.empty(0, np.int64))


def read_ids(chunks: Iterable[list[str | None]]) -> Ids:
    """Hash ids in the source's order; None is an item without an id."""
    hashes, places, items, is_whole = [], [], 0, True
    for chunk in chunks:
        known = [id_ for id_ in chunk if id_ is not None]
        hashes.append(hash_ids(known))
        if len(known) == len(chunk):
            places.append(np.arange(items, items + len(chunk)))
        else:
            is_whole = False
            places.append(np.array([items + i for i, id_ in enumerate(chunk) if id_ is not None], np.int64))
        items += len(chunk)
    if not hashes:
        return Ids(0, np.empty((0, 2), np.uint64), None)
    return Ids(items, np.concatenate(hashes), None if is_whole else np.concatenate(places))


def merged(shards: Sequence[Ids]) -> list[Scan]:
    """What the ids of consecutive shards tell of each: also of an id whose last place is in a later shard."""
    starts = np.cumsum([0, *(ids.items for ids in shards)])
    hashes = np.concatenate([ids.hashes for ids in shards])
    places = np.concatenate([start + _places(ids) for ids, start in zip(shards, starts[:-1], strict=True)])
    superseded = _superseded(hashes, places)
    bounds = np.searchsorted(superseded, starts)
    return [
        Scan(ids.items, superseded[first:last])
        for ids, first, last in zip(shards, bounds[:-1], bounds[1:], strict=True)
    ]


def scan_ids(chunks: Iterable[list[str | None]]) -> Scan:
    """What the ids of a source tell."""
    return merged([read_ids(chunks)])[0]


def _places(ids: Ids) -> NDArray[np.int64]:
    return np.arange(ids.items) if ids.places is None else ids.places


def _superseded(hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of ids that come again later. Ids are equal when all 16 bytes of their hashes are."""
    order = np.argsort(hashes[:, 0], kind="stable")
    ids = hashes[order, 0]
    twins = np.flatnonzero(ids[1:] == ids[:-1])
    if not len(twins):
        return np.empty(0, np.int64)
    suspects = order[np.unique(np.concatenate((twins, twins + 1)))]
    last: dict[bytes, int] = {}
    earlier: list[int] = []
    for row in np.sort(suspects).tolist():
        if (previous := last.get(key := hashes[row].tobytes())) is not None:
            earlier.append(int(places[previous]))
        last[key] = row
    return np.array(sorted(earlier), np.int64)


@task(task_run_name="scan", cache_policy=NO_CACHE, persist_result=False)
async def scan(source: Source) -> Ids:
    """Read every id of a shard once, off the event loop."""
    ids = await asyncio.to_thread(lambda: read_ids(source.ids()))
    ids.lines = source.lines()
    return ids


class SegmentSize(msgspec.Struct, frozen=True):
    """So many ``documents`` at most, which take ``vector_bytes`` each once they are embedded."""

    documents: int
    vector_bytes: int = 0


@task(task_run_name="load", cache_policy=NO_CACHE, persist_result=False)
async def load(
    source: Source, size: SegmentSize, items: int, memory: MemoryGuard, is_halted: Callable[[], bool]
) -> AsyncGenerator[Segment]:
    """Yield segments until the end or a halt; reading pauses while memory is short, or too much is in flight.

    A segment counts as in flight, its vectors to come included, until it is let go.

    Raises:
        SourceChangedError: the source does not hold the ``items`` that the scan saw.
    """
    loaded = source.documents(size.documents)
    seen = 0
    while (part := await asyncio.to_thread(next, loaded, None)) is not None:
        seen = part.last + 1 - source.first_place
        size_bytes = part.size_bytes + len(part.documents) * size.vector_bytes
        memory.took(size_bytes)
        let_go = functools.partial(memory.let_go, size_bytes)
        segment = Segment(part.first, part.last, part.documents, part.places, part.dead_letters, on_let_go=let_go)
        del part  # or it would keep the documents alive until the next are read
        yield segment
        await memory.wait(unless=is_halted)
        if is_halted():
            return
    if seen != items:
        raise SourceChangedError(
            f"the source held {items:,} items when it was scanned and {seen:,} when it was read; run again"
        )
