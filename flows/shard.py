"""One shard of a run: the whole way through the stages, in whatever process it is put."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import msgspec
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Failed
from prefect.transactions import CommitMode, atransaction

from flows.display import logger, quiet_runs
from flows.gates import Gates
from flows.history import choose
from flows.leases import embedder_slots
from flows.pipeline import SEGMENTS_QUEUED, Pipeline
from flows.preflight import Providers
from flows.storage import StorageAddress, flow_run_context, storage_at
from tasks.batch import Batcher, BatchRules
from tasks.checkpoints import keys
from tasks.checkpoints.job import JobCheckpoints
from tasks.checkpoints.letters import read_dead_letters
from tasks.checkpoints.lock import one_writer
from tasks.checkpoints.storage import CheckpointStorage, result_store
from tasks.checkpoints.whole import open_shard
from tasks.dead_letters import Choice, Skipping
from tasks.embed.open import build_embedder
from tasks.embed.stage import SegmentEmbedder
from tasks.errors import JobBusyError, MillraceError, StoppedError
from tasks.fingerprints import Fingerprints
from tasks.limits.memory import MemoryGuard
from tasks.load.source import SEGMENT_BYTES, Source
from tasks.load.stage import Scan, SegmentSize, load
from tasks.records import Reason
from tasks.settings import IngestSettings
from tasks.tally import Counts, Tally
from tasks.upsert.open import build_store
from tasks.upsert.stage import SegmentUpserter

MAX_SEGMENTS_EMBEDDING = 100
SEGMENTS_UPSERTING = 2
"""One that sends while the other is encoded or waits for its last answer."""
STOP_POLL_SECONDS = 1.0
ASSUMED_DIMENSION = 4096
"""Of an embedder that tells only with its first answer; few models have more."""


class Equipment(msgspec.Struct, eq=False):
    """What the shards of one process share."""

    providers: Providers
    gates: Gates
    storage: CheckpointStorage
    choice: Choice
    tally: Tally
    memory: MemoryGuard


class ShardWork(msgspec.Struct, frozen=True, eq=False):
    """What a shard needs to know, wherever it runs. ``run`` names the run that it is a part of, ``owner`` for people.

    ``settings`` are this shard's: its part of the run's ``concurrency``. ``dimension`` is the vectors', once known.
    """

    job: str
    number: int
    shards: int
    settings: IngestSettings
    source: Source
    scan: Scan
    storage: StorageAddress
    run: str
    owner: str
    concurrency: int
    dimension: int | None
    replaying: tuple[Reason, ...] | None


class ShardOutcome(msgspec.Struct, frozen=True, eq=False):
    """How a shard ended. ``seen`` are the fingerprints of dead letters that were left; ``error`` broke it off."""

    number: int
    counts: Counts
    retries: dict[str, int]
    seen: list[int]
    error: MillraceError | None

    def __repr__(self) -> str:
        """Short, as Prefect logs it when the shard failed."""
        return f"ShardOutcome({self.number})"


class Shard:
    """The stages of one shard, set up for what the scan saw of it."""

    def __init__(self, equipment: Equipment, settings: IngestSettings, checkpoints: JobCheckpoints, scan: Scan) -> None:
        embedder, store = equipment.providers.embedder, equipment.providers.store
        gates = equipment.gates
        self._segment_size = segment_size(settings, embedder.dimension)
        self._memory = equipment.memory
        self._gates = gates
        self._items = scan.items
        batcher = Batcher(
            checkpoints=checkpoints,
            fingerprints=Fingerprints(embedder=embedder.identity, store=store.identity, keep_text=settings.keeps_text),
            superseded=scan.superseded,
            rules=BatchRules(
                batch_size=min(settings.batch_size, embedder.limits.max_inputs),
                max_tokens_per_input=_least(embedder.limits.max_tokens_per_input, settings.tpm),
                max_tokens_per_request=_least(embedder.limits.max_tokens_per_request, settings.tpm),
            ),
            count_tokens=embedder.model_tokens,
            refuse=lambda document: store.refuse(document, keep_text=settings.keeps_text),
            choice=equipment.choice,
        )
        self._pipeline = Pipeline(
            checkpoints=checkpoints,
            batcher=batcher,
            embedder=SegmentEmbedder(
                embedder,
                gates.embed,
                gates.embed_retries,
                checkpoints.vectors,
                counts_tokens=settings.tpm is not None,
            ),
            upserter=SegmentUpserter(
                store,
                gates.upsert,
                gates.upsert_retries,
                job=checkpoints.job,
                shard=checkpoints.shard,
                keep_text=settings.keeps_text,
            ),
            tally=equipment.tally,
            embeds=segments_embedding(settings, self._segment_size.documents),
            upserts=SEGMENTS_UPSERTING,
        )

    async def run(self, source: Source) -> None:
        """Let the shard's part of the source through. Raises as `Pipeline.run`."""
        pipeline = self._pipeline
        await pipeline.run(load(source, self._segment_size, self._items, self._memory, pipeline.is_halted))

    def halt(self, error: Exception) -> None:
        """Start nothing more; what is under way finishes."""
        self._pipeline.halt(error)
        self._gates.close()


@task(task_run_name="shard {work.number} of {work.shards}", cache_policy=NO_CACHE, persist_result=False)
async def shard(work: ShardWork, equipment: Equipment | None = None) -> Any:
    """Run one shard with the equipment of this process, or in a process of its own with new equipment.

    Returns:
        Its `ShardOutcome`; inside a Failed state where an error broke it off.
    """
    if equipment is not None:
        return _state_of(await work_shard(work, equipment))
    quiet_runs()
    async with equipped(work) as own:
        slots = own.gates.embed.slots
        async with embedder_slots(work.settings.embedder, slots, logger().warning, of_run=work.concurrency):
            return _state_of(await work_shard(work, own))


def _state_of(outcome: ShardOutcome) -> ShardOutcome | State[Any]:
    return outcome if outcome.error is None else Failed(message=str(outcome.error), data=outcome)


async def work_shard(work: ShardWork, equipment: Equipment) -> ShardOutcome:
    """Be the only writer of a shard, and run it until it ends or is told to stop."""
    error: MillraceError | None = None
    try:
        async with _writing(work, equipment.storage) as taken_over:
            checkpoints = await open_shard(
                equipment.storage, work.job, work.number, logger().warning, keeps_vectors=work.settings.keep_vectors
            )
            running = Shard(equipment, work.settings, checkpoints, work.scan)
            async with _told_to_stop(work, equipment.storage, running, taken_over):
                await running.run(work.source)
    except MillraceError as caught:
        error = caught
    choice = equipment.choice
    return ShardOutcome(
        number=work.number,
        counts=equipment.tally.counts(),
        retries=dict(equipment.gates.retries),
        seen=sorted(choice.seen) if isinstance(choice, Skipping) else [],
        error=error,
    )


@asynccontextmanager
async def equipped(work: ShardWork) -> AsyncIterator[Equipment]:
    """The equipment of a process that has none: keys come from its own environment."""
    warn, settings = logger().warning, work.settings
    async with AsyncExitStack() as stack:
        embedder = build_embedder(settings.embedder, concurrency=settings.concurrency)
        stack.push_async_callback(embedder.aclose)
        store = build_store(settings.store)
        stack.push_async_callback(store.aclose)
        if embedder.dimension is None:
            embedder.dimension = work.dimension
        await embedder.open()
        await store.open(embedder.dimension, create=False)
        storage = await storage_at(work.storage, warn)
        letters = await read_dead_letters(storage, work.job, warn)
        yield Equipment(
            providers=Providers(work.source, embedder, store),
            gates=Gates(settings, embedder, store),
            storage=storage,
            choice=choose(letters, skips=settings.skip_dead_letters, replaying=work.replaying),
            tally=Tally(),
            memory=MemoryGuard(settings.max_memory_percent, on_alone=warn),
        )


@asynccontextmanager
async def _writing(work: ShardWork, storage: CheckpointStorage) -> AsyncIterator[asyncio.Event]:
    """Hold the shard's lock, and let the tasks inside keep their results in our storage as soon as they end.

    Whoever held the lock before is dead or will end: a worker that was taken for lost, but lives. The event is set when
    somebody takes it away.
    """
    taken_over = asyncio.Event()
    lock = one_writer(
        storage.blobs,
        keys.shard_lock_key(work.job, work.number),
        owner=f"shard {work.number} of {work.owner}",
        wait=True,
        on_lost=lambda _: taken_over.set(),
    )
    store = {"result_store": result_store(storage)}
    context = TaskRunContext.get()
    assert context is not None
    async with lock:
        with flow_run_context().model_copy(update=store), context.model_copy(update=store):
            # Inside this task's own transaction no checkpoint would be written before its end.
            async with atransaction(commit_mode=CommitMode.EAGER):
                yield taken_over


@asynccontextmanager
async def _told_to_stop(
    work: ShardWork, storage: CheckpointStorage, running: Shard, taken_over: asyncio.Event
) -> AsyncIterator[None]:
    """Stop the shard when its run says so, wherever that is, or when another took the shard over."""

    async def listen() -> None:
        key = keys.stop_key(work.job, work.run)
        while await storage.blobs.read(key) is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(taken_over.wait(), STOP_POLL_SECONDS)
                running.halt(JobBusyError(f"another run took shard {work.number} over"))
                return
        running.halt(StoppedError("stopped"))

    listening = asyncio.create_task(listen())
    try:
        yield
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening


def segment_size(settings: IngestSettings, dimension: int | None) -> SegmentSize:
    """What the settings ask for; fewer whole batches, or less than one, where the vectors would be too large."""
    vector_bytes = 4 * (dimension or ASSUMED_DIMENSION)
    most = max(1, SEGMENT_BYTES // vector_bytes)
    if most > settings.batch_size:
        most -= most % settings.batch_size
    return SegmentSize(min(settings.segment_size, most), vector_bytes)


def segments_embedding(settings: IngestSettings, segment_documents: int) -> int:
    """Segments that must embed at once so that one whose last requests are under way leaves no slot idle."""
    batches = math.ceil(segment_documents / settings.batch_size)
    return min(math.ceil(settings.concurrency / batches) + 1, MAX_SEGMENTS_EMBEDDING)


def documents_in_flight(settings: IngestSettings, dimension: int | None) -> int:
    """The most documents that a shard has between load and receipt."""
    documents = segment_size(settings, dimension).documents
    return (segments_embedding(settings, documents) + SEGMENTS_UPSERTING + SEGMENTS_QUEUED) * documents


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
