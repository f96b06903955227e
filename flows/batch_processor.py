"""`BatchProcessor`: any documents through any function, in batches, resumable. The flows' own machinery without a flow.

::

    processor = BatchProcessor(batch_size=10, checkpoint_interval=2)
    processor.process(documents, send, job_id="letters")  # {"processed": 100, "failed": 0, "resumed": False}
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from prefect.filesystems import LocalFileSystem, WritableFileSystem

from flows.history import History
from flows.storage import configured_storage
from tasks.batch import Batcher, BatchRules
from tasks.checkpoints import keys
from tasks.checkpoints.binding import now
from tasks.checkpoints.blobs import blobs_behind
from tasks.checkpoints.job import JobCheckpoints
from tasks.checkpoints.lock import one_writer
from tasks.checkpoints.storage import CheckpointStorage
from tasks.dead_letters import Choice
from tasks.errors import MillraceError, RequestRejectedError
from tasks.fingerprints import Fingerprints
from tasks.halving import reason_of, send_halving
from tasks.limits.gate import Gate
from tasks.load.fields import identify
from tasks.load.stage import Scan, scan_ids
from tasks.records import DeadLetter, Document, JobRecord, Reason, Receipt, Segment
from tasks.retries import Retries
from tasks.settings import JOB_ID_PATTERN
from tasks.tally import Tally
from tasks.together import together

Item = Mapping[str, Any]
ProcessFn = Callable[[list[Any]], Any]

logger = logging.getLogger(__name__)


class Processed(TypedDict):
    """Of the documents given: how many are done (now or by an earlier run), how many failed, and whether one was."""

    processed: int
    failed: int
    resumed: bool


class BatchProcessor:
    """Processes documents in batches of ``batch_size`` and writes a checkpoint after every ``checkpoint_interval``.

    A document is a mapping with an ``id``. One that was processed is skipped until it changes. A batch whose function
    raises is halved until the bad document stands alone, so the function may see a document again; a
    `tasks.errors.TransientError` is tried again as it is. A kill costs the batches since the last checkpoint.
    Failures are on file as the job's dead letters, and every run tries them again.

    ``concurrency`` batches run at once, those of a plain function in threads. Checkpoints lie in ``checkpoint_dir``, a
    folder or a Prefect storage block; by default where Prefect keeps results.
    """

    def __init__(
        self,
        batch_size: int = 100,
        checkpoint_interval: int = 5,
        checkpoint_dir: str | Path | WritableFileSystem | None = None,
        *,
        concurrency: int = 1,
    ) -> None:
        if min(batch_size, checkpoint_interval, concurrency) < 1:
            raise ValueError("batch_size, checkpoint_interval and concurrency are at least 1")
        self.batch_size = batch_size
        self.checkpoint_interval = checkpoint_interval
        self.concurrency = concurrency
        self._checkpoint_dir = checkpoint_dir

    def process(self, documents: Iterable[Item], process_fn: ProcessFn, job_id: str) -> Processed:
        """Call ``process_fn`` with lists of documents, in order, until all are done; see `aprocess` inside a loop.

        Of two documents with one id the later wins; in an iterator, which is read once, both are processed in order.

        Raises:
            JobBusyError: another process works at this job.
            RefusedError: raised by the function to stop everything.
        """
        return asyncio.run(self.aprocess(documents, process_fn, job_id))

    async def aprocess(self, documents: Iterable[Item], process_fn: ProcessFn, job_id: str) -> Processed:
        """As `process`, for a caller that is asynchronous itself."""
        if not re.fullmatch(JOB_ID_PATTERN, job_id):
            raise ValueError(f"job_id {job_id!r} does not match {JOB_ID_PATTERN}")
        storage = await self._storage()
        work = _Work(storage, job_id, process_fn, Gate(self.concurrency))
        lock = one_writer(storage.blobs, keys.lock_key(job_id), owner="BatchProcessor", wait=False, on_lost=work.halt)
        async with lock:
            return await work.run(documents, self._rules(), self.batch_size * self.checkpoint_interval)

    def _rules(self) -> BatchRules:
        return BatchRules(batch_size=self.batch_size, max_tokens_per_input=None, max_tokens_per_request=None)

    async def _storage(self) -> CheckpointStorage:
        place = self._checkpoint_dir
        if place is None:
            return await configured_storage(logger.warning)
        block = place if isinstance(place, WritableFileSystem) else LocalFileSystem(basepath=str(place))
        return CheckpointStorage.over(blobs_behind(block), logger.warning)


class _Work:
    """One call of `BatchProcessor.process`."""

    def __init__(self, storage: CheckpointStorage, job: str, process_fn: ProcessFn, gate: Gate) -> None:
        self._checkpoints = JobCheckpoints(storage, job, 0, logger.warning)
        self._history = History(storage, self._checkpoints, _record(job), logger.warning)
        self._process_fn = process_fn
        self._gate = gate
        self._retries = Retries(waiting=gate.until_closed)
        self._tally = Tally()

    def halt(self, other: str) -> None:
        """Another took the job over: start nothing more."""
        logger.error("another process took the job over (%s)", other)
        self._gate.close()

    async def run(self, documents: Iterable[Item], rules: BatchRules, segment_size: int) -> Processed:
        await self._history.open(None, rebuild=False)
        batcher = Batcher(
            checkpoints=self._checkpoints,
            fingerprints=Fingerprints(embedder="process_fn", store="", keep_text=True),
            superseded=_scan(documents).superseded,
            rules=rules,
            count_tokens=lambda _: 0,
            refuse=lambda _: None,
        )
        is_whole = False
        try:
            for segment, items in _segments(documents, segment_size):
                await batcher.batch_segment(segment)
                self._tally.batched(segment)
                if segment.pending:
                    receipt = await self._process(segment, items)
                    await self._checkpoints.save(receipt)
                    self._tally.receipted(receipt, None)
            await self._checkpoints.compact()
            is_whole = True
        finally:
            await self._history.file_dead_letters(self._tally, Choice(), is_whole=is_whole)
            await self._history.write(self._tally, state="Completed" if is_whole else "Failed")
        tally = self._tally
        done = tally.upserted + tally.unchanged + tally.duplicates
        return {"processed": done, "failed": tally.dead_letter_count, "resumed": self._checkpoints.resumed}

    async def _process(self, segment: Segment, items: dict[int, Item]) -> Receipt:
        async def send(rows: Sequence[int]) -> None:
            batch = [items[segment.pending[row].position] for row in rows]
            await self._retries.call("process", lambda: self._call(batch))

        answers = await together(send_halving(rows, send) for rows in segment.batches)
        failures = {row: error for answer in answers for row, error in answer.items()}
        assert segment.entries is not None
        done = [row for row in range(len(segment.pending)) if row not in failures]
        return Receipt(
            sequence=segment.sequence,
            entries=segment.entries[done].tobytes(),
            dead_letters=[segment.give_up(row, reason_of(e), str(e)) for row, e in sorted(failures.items())],
            upsert_requests=len(segment.batches),
            bytes_sent=0,
        )

    async def _call(self, batch: list[Item]) -> None:
        async with self._gate.slot():
            try:
                if inspect.iscoroutinefunction(self._process_fn):
                    await self._process_fn(batch)
                else:
                    answer = await asyncio.to_thread(self._process_fn, batch)
                    if isinstance(answer, Awaitable):
                        await answer
            except MillraceError:
                raise
            except Exception as error:
                # The message stays out: it may quote the document.
                raise RequestRejectedError(f"the function raised {type(error).__name__}") from error


def _scan(documents: Iterable[Item]) -> Scan:
    """Which documents come again later, where they can be read twice."""
    if not isinstance(documents, Sequence):
        return Scan.empty()
    return scan_ids([[_id(item) for item in documents]])


def _segments(documents: Iterable[Item], size: int) -> Iterator[tuple[Segment, dict[int, Item]]]:
    """Segments, and the documents as they were given, by position."""
    remaining, first = iter(documents), 0
    while chunk := list(itertools.islice(remaining, size)):
        items = dict(enumerate(chunk, first + 1))
        read = {position: _document(item, position) for position, item in items.items()}
        sound = [document for document in read.values() if isinstance(document, Document)]
        letters = [letter for letter in read.values() if isinstance(letter, DeadLetter)]
        places = [document.position - 1 for document in sound]
        yield Segment(first, first + len(chunk) - 1, sound, places, letters), items
        first += len(chunk)


def _document(item: Any, position: int) -> Document | DeadLetter:
    id_ = _id(item)
    if id_ is None:
        return DeadLetter(None, "documents", position, Reason.INVALID, "not a mapping with an id")
    text = item.get("text")
    rest = {name: value for name, value in item.items() if name not in {"id", "text"}}
    if isinstance(text, str):
        return Document(id_, text, rest, "documents", position)
    return Document(id_, "", {**rest, "text": text}, "documents", position)


def _id(item: Any) -> str | None:
    return identify(item.get("id")) if isinstance(item, Mapping) else None


def _record(job: str) -> JobRecord:
    return JobRecord(
        job=job,
        embedder="process_fn",
        store="",
        keeps_text=True,
        parameters="",
        state="Running",
        first_run_at=now(),
        last_run_at=now(),
    )
