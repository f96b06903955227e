"""One run of one job: what it works with, how it starts, stops and ends."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from flows.findings import of_disk
from flows.gates import Gates
from flows.history import History
from flows.leases import embedder_slots
from flows.preflight import Providers
from flows.runners import Workers
from flows.shard import Equipment, Shard, ShardOutcome, ShardWork, documents_in_flight, shard
from flows.storage import address_of, flow_run_context, flow_storage, place_of
from tasks.checkpoints import keys
from tasks.checkpoints.binding import now
from tasks.checkpoints.lock import one_writer
from tasks.checkpoints.storage import result_store
from tasks.checkpoints.whole import WholeJob
from tasks.dead_letters import Choice, Replaying, Skipping
from tasks.errors import JobBusyError, StoppedError, UsageError
from tasks.limits.memory import MemoryGuard
from tasks.load.source import Source
from tasks.load.stage import Ids, Scan, merged, scan
from tasks.records import JobRecord, Reason
from tasks.settings import IngestSettings
from tasks.tally import Report, Tally


class Job:
    """One run of one job. Gates belong to the event loop that made them.

    ``owner`` tells others who writes the job; ``replaying`` are the reasons of dead letters that are sent alone.
    """

    def __init__(
        self,
        settings: IngestSettings,
        providers: Providers,
        warn: Callable[[str], None],
        *,
        owner: str = "this run",
        replaying: Collection[Reason] | None = None,
    ) -> None:
        self.settings = settings
        self.providers = providers
        self.id = settings.job_id or providers.default_job_id()
        self.verb = "ingest" if replaying is None else "replay"
        self.memory = MemoryGuard(settings.max_memory_percent, on_alone=warn)
        self.gates = Gates(settings, providers.embedder, providers.store)
        self.storage = flow_storage(warn)
        self.checkpoints = WholeJob(self.storage, self.id, settings.shards, warn, keeps_vectors=settings.keep_vectors)
        self.tally = Tally()
        self.history = History(self.storage, self.checkpoints, self._record(), warn)
        self._warn = warn
        self._owner = owner
        self._replaying = replaying
        self._choice = Choice()
        self._retries: Counter[str] = Counter()
        self._run = uuid4().hex
        self._halt: Callable[[Exception], object] | None = None
        self._stopped_for: Exception | None = None

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Be the only writer of this job; tasks called inside keep their results in our storage.

        Raises:
            JobBusyError: another run is, and this one was not told to wait.
        """
        lock = one_writer(
            self.storage.blobs,
            keys.lock_key(self.id),
            owner=self._owner,
            wait=self.settings.wait,
            on_lost=lambda other: self.halt(JobBusyError(f"another run took the job over ({other})")),
        )
        async with lock:
            with flow_run_context().model_copy(update={"result_store": result_store(self.storage)}):
                yield

    async def resume(self) -> None:
        """Find what earlier runs did, and what of the source this one concerns. Raises as `History.open`."""
        await self.history.open(self.providers.store, rebuild=self.settings.rebuild)
        self._choice = self.history.choice(skips=self.settings.skip_dead_letters, replaying=self._replaying)
        await self.history.write(self.tally, state="Running")

    @property
    def has_work(self) -> bool:
        """False for a replay of no dead letters."""
        return not isinstance(self._choice, Replaying) or bool(self._choice.letters)

    def parts(self) -> list[Source]:
        """The source as this run's shards see it; what could not be cut is said."""
        source, shards = self.providers.source, self.settings.shards
        if shards == 1:
            return [source]
        if len(whole := source.whole_files) == source.file_count == 1:
            self._warn(f"{whole[0]} cannot be cut: one shard does all the work")
        elif whole:
            shown = ", ".join(whole[:3]) + (f" and {len(whole) - 3:,} more" if len(whole) > 3 else "")  # noqa: PLR2004
            self._warn(f"cannot be cut, each goes to one shard as a whole: {shown}")
        return source.cut(shards)

    async def scan(self, parts: Sequence[Source], workers: Workers) -> list[Scan]:
        """Read all ids, each part's where it will be worked at: of an id that comes again the last place counts."""
        states = await workers.each(scan, [{"source": part} for part in parts], on_failed=lambda: None)
        found: list[Ids] = [await state.aresult() for state in states]
        scans = merged(found)
        items, lines = 0, Counter[str]()
        for part, ids in zip(parts, found, strict=True):
            part.go_on_behind(items, lines)
            items += ids.items
            lines.update(ids.lines)
            ids.let_go()
        self.tally.total = self._choice.letters if isinstance(self._choice, Replaying) else items
        return scans

    async def check_room(self, items: int, workers: Workers) -> None:
        """Make sure that checkpoints have room, where they lie in a folder.

        Raises:
            UsageError: less is free than they may take.
        """
        settings, folder = self.settings, place_of(self.storage)
        if folder is None or settings.no_preflight or not items:
            return
        dimension = self.providers.embedder.dimension
        kept = items if settings.keep_vectors else workers.parallel * documents_in_flight(settings, dimension)
        found = list(of_disk(shutil.disk_usage(folder).free, documents=items, kept=kept, dimension=dimension or 0))
        if found:
            await self.history.write(self.tally, state="Failed")
            raise UsageError("; ".join(found))

    async def fill(self, parts: Sequence[Source], scans: Sequence[Scan], workers: Workers) -> None:
        """Let the source through, shard by shard.

        Raises:
            Exception: the first error that concerns the whole run.
        """
        equipment = Equipment(self.providers, self.gates, self.storage, self._choice, self.tally, self.memory)
        if not workers.is_here:
            await self._work_at(equipment, parts, scans, workers)
            return
        settings, slots = self.settings, self.gates.embed.slots
        async with embedder_slots(settings.embedder, slots, self._warn, of_run=settings.concurrency):
            await self._work_at(equipment, parts, scans, workers)

    async def _work_at(
        self, equipment: Equipment, parts: Sequence[Source], scans: Sequence[Scan], workers: Workers
    ) -> None:
        if self.settings.shards == 1:
            only = Shard(equipment, self.settings, self.checkpoints.first, scans[0])
            self._halt = only.halt
            await only.run(parts[0])
            return
        work = [
            self._work(number, part, each, workers)
            for number, (part, each) in enumerate(zip(parts, scans, strict=True))
            if each.items
        ]
        here = equipment if workers.is_here else None
        telling: list[asyncio.Task[None]] = []
        self._halt = lambda _: telling.append(asyncio.create_task(self._tell_to_stop()))
        try:
            states = await workers.each(
                shard, [{"work": each, "equipment": here} for each in work], on_failed=self.stop
            )
        except asyncio.CancelledError:
            await self._tell_to_stop()
            raise
        finally:
            self._halt = None
            await asyncio.gather(*telling)
        outcomes: list[Any] = [await state.aresult(raise_on_failure=False) for state in states]
        await self.storage.blobs.delete(keys.stop_key(self.id, self._run))
        await self.checkpoints.reload()
        self._take(outcomes, counts=here is None)

    def stop(self) -> None:
        """Start nothing more; what is under way finishes."""
        self.halt(StoppedError("stopped"))

    def halt(self, error: Exception) -> None:
        """Stop for a reason."""
        if self._halt is not None:
            self._stopped_for = self._stopped_for or error
            self._halt(error)

    async def finish(self) -> None:
        """When the whole source went through: fold the receipts into the ledger, let the store tidy up."""
        await self.checkpoints.compact(keeps_vectors=self._choice.leaves_documents)
        await self.providers.store.finish()

    async def remember(self, *, is_whole: bool, is_done: bool) -> None:
        """Write down what was given up on and how the job stands."""
        await self.history.file_dead_letters(self.tally, self._choice, is_whole=is_whole)
        await self.history.write(self.tally, state="Completed" if is_done else "Failed")

    def report(self) -> Report:
        """The counts as they stand."""
        retries = self.gates.retries + self._retries
        return self.tally.report(job_id=self.id, resumed=self.checkpoints.resumed, retries=retries)

    def _work(self, number: int, part: Source, found: Scan, workers: Workers) -> ShardWork:
        share, more = divmod(self.settings.concurrency, workers.parallel)
        concurrency = max(1, share + (number % workers.parallel < more))
        return ShardWork(
            job=self.id,
            number=number,
            shards=self.settings.shards,
            settings=self.settings.model_copy(update={"concurrency": concurrency}),
            source=part,
            scan=found,
            storage=address_of(self.storage),
            run=self._run,
            owner=self._owner,
            concurrency=self.settings.concurrency,
            dimension=self.providers.embedder.dimension,
            replaying=None if self._replaying is None else tuple(self._replaying),
        )

    def _take(self, outcomes: Sequence[ShardOutcome], *, counts: bool) -> None:
        for outcome in outcomes:
            if isinstance(self._choice, Skipping):
                self._choice.seen.update(outcome.seen)
            if counts:
                self.tally.add(outcome.counts)
                self._retries.update(outcome.retries)
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        for error in [*(each for each in errors if not isinstance(each, StoppedError)), self._stopped_for, *errors]:
            if error is not None:
                raise error

    async def _tell_to_stop(self) -> None:
        await self.storage.blobs.write(keys.stop_key(self.id, self._run), b"stop", durable=False)

    def _record(self) -> JobRecord:
        return JobRecord(
            job=self.id,
            embedder=self.providers.embedder.identity,
            store=self.providers.store.identity,
            keeps_text=self.settings.keeps_text,
            parameters=self.settings.model_dump_json(exclude={"job_id", "rebuild"}),
            state="Running",
            first_run_at=now(),
            last_run_at=now(),
        )
