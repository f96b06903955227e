"""A job over all its shards.

The ledger of shard 0 is that of the whole job. Whoever writes the job folds into it what shards have upserted, before
any shard starts and when all have ended; so it never matters which shard, or how many, a document was in before. Each
shard begins with that ledger and writes receipts and vectors under its own number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from tasks.checkpoints import keys
from tasks.checkpoints.job import JobCheckpoints
from tasks.checkpoints.lock import one_writer
from tasks.checkpoints.storage import CheckpointStorage
from tasks.ledger import Ledger

Warn = Callable[[str], None]


class WholeJob:
    """All shards of one job, for its one writer. ``shards`` are those of this run; earlier ones may have had more."""

    def __init__(
        self, storage: CheckpointStorage, job: str, shards: int, warn: Warn, *, keeps_vectors: bool = False
    ) -> None:
        self.job = job
        self.resumed = False
        self.shards = shards
        self._storage = storage
        self._warn = warn
        self._keeps_vectors = keeps_vectors
        self._begin()

    def _begin(self) -> None:
        self.first = self._shard(0)
        self._others: list[JobCheckpoints] = []

    @property
    def ledger(self) -> Ledger:
        """What the job had upserted when it was last loaded."""
        return self.first.ledger

    async def load(self) -> None:
        """Read what earlier runs left, of all shards that there ever were, and fold it.

        Raises:
            JobBusyError: a shard of an earlier run is still at work somewhere.
        """
        await self.first.load()
        known = max(self.first.shards, self.shards)
        async with _nobody_else(self._storage, self.job, range(known) if self.first.shards > 1 else range(0)):
            if self.first.shards > 1:
                self._begin()  # what it saw before the lock was had may be old
                await self.first.load()
            await self._load_others(known)
        self.resumed = bool(len(self.ledger) or any(each.vectors.sequences for each in self._all))

    async def reload(self) -> None:
        """Read what the shards of this run have upserted."""
        self._begin()
        await self.first.load()
        await self._load_others(max(self.first.shards, self.shards))

    async def rebuild(self) -> None:
        """Forget what was upserted, as if the job had never run; vectors that are on disk stay."""
        self.resumed = False
        await self.first.rebuild()

    async def compact(self, *, keeps_vectors: bool = False) -> None:
        """When a run has seen its whole source: fold the receipts, and drop the vectors that nobody needs any more.

        ``keeps_vectors`` where documents were not tried whose vectors may be on disk.
        """
        if self.shards == 1:
            self.first.needs_vectors |= keeps_vectors
            await self.first.compact()
            dropped = [] if self.first.needs_vectors else self._others
        else:
            needs = keeps_vectors or self._keeps_vectors or any(each.has_kept_vectors for each in self._all)
            dropped = [] if needs else self._all
        for each in dropped:
            await each.drop_all_vectors()
        if self.shards > 1:
            await self.first.sweep()

    def landed(self) -> Ledger:
        """The ledger with what the shards of this run have confirmed; of several when they were reloaded."""
        return self.first.landed()

    @property
    def _all(self) -> list[JobCheckpoints]:
        return [self.first, *self._others]

    async def _load_others(self, known: int) -> None:
        self._others = [self._shard(number) for number in range(1, known)]
        for other in self._others:
            await other.load()
        if self._others:
            await self.first.fold(self._others, self._shards_to_look_at())
        self.first.vectors.look_also_in([other.vectors for other in self._others])

    def _shards_to_look_at(self) -> int:
        with_vectors = [other.shard + 1 for other in self._others if other.vectors.sequences]
        return max([self.shards, *with_vectors])

    def _shard(self, number: int) -> JobCheckpoints:
        return JobCheckpoints(self._storage, self.job, number, self._warn, keeps_vectors=self._keeps_vectors)


async def open_shard(
    storage: CheckpointStorage, job: str, shard: int, warn: Warn, *, keeps_vectors: bool
) -> JobCheckpoints:
    """One shard of a job whose shards are at work: it sees what the whole job had done before this run.

    A shard that is run again, because its worker was lost, also finds what it had done itself.
    """
    first = JobCheckpoints(storage, job, 0, warn)
    ledger = await first.covered()
    mine = JobCheckpoints(storage, job, shard, warn, keeps_vectors=keeps_vectors)
    await mine.load()
    others = [JobCheckpoints(storage, job, number, warn) for number in range(1, first.shards) if number != shard]
    for other in others:
        await other.covered()
    mine.begin_with(ledger)
    mine.vectors.look_also_in([each.vectors for each in ([first, *others] if shard else others)])
    return mine


@asynccontextmanager
async def _nobody_else(storage: CheckpointStorage, job: str, shards: range) -> AsyncIterator[None]:
    """Hold the lock of every shard: a worker of a run that was killed may not know yet."""
    async with AsyncExitStack() as stack:
        locks = [
            one_writer(
                storage.blobs,
                keys.shard_lock_key(job, shard),
                owner="a new run",
                wait=False,
                on_lost=lambda _: None,
            )
            for shard in shards
        ]
        await asyncio.gather(*(stack.enter_async_context(lock) for lock in locks))
        yield
