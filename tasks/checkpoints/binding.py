"""What a job is bound to: embedder, collection, record shape. A change is said, an emptied collection is seen."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol

from tasks.checkpoints import keys
from tasks.checkpoints.storage import CheckpointStorage, result_store
from tasks.errors import UsageError
from tasks.limits.token_bucket import Sleep
from tasks.records import JobRecord, Record

HELD_SHARE = 0.9
"""A collection with less than this share of the ledger's documents does not hold what the ledger says."""
SAMPLES = 20
LOOKS = 5
LOOK_AGAIN_SECONDS = 2.0
"""Pinecone counts and answers some seconds late (data freshness guide)."""


class Collected(Protocol):
    """What of a store is looked at."""

    identity: str

    async def count(self) -> int:
        """Records in it."""
        ...

    async def fetch(self, ids: list[str]) -> list[Record]:
        """Those that exist among these."""
        ...


def now() -> str:
    """ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def changes(before: JobRecord, after: JobRecord) -> list[str]:
    """What the job is no longer bound to as it was, each as a sentence's part; empty where nothing changed."""
    text = {True: "with its text", False: "without its text"}
    pairs = [
        ("the embedder", before.embedder, after.embedder),
        ("the collection", before.store, after.store),
        ("a record", text[before.keeps_text], text[after.keeps_text]),
    ]
    return [f"{what} was {old} and is {new}" for what, old, new in pairs if old != new]


async def check_collection(
    collection: Collected, documents: int, sample_ids: list[str], sleep: Sleep = asyncio.sleep
) -> None:
    """Make sure that the collection holds what the ledger says, before anything is skipped for it.

    Raises:
        UsageError: it holds clearly less, or most of the ids that it once confirmed are not there.
    """
    for look in range(LOOKS):
        if look:
            await sleep(LOOK_AGAIN_SECONDS)
        held = await collection.count()
        found = len(await collection.fetch(sample_ids)) if sample_ids and held else 0
        if held >= HELD_SHARE * documents and 2 * found >= len(sample_ids):
            return
    what = f"holds {held:,} records" if held < HELD_SHARE * documents else "holds other records than this job's"
    raise UsageError(
        f"{collection.identity} {what}, the job's ledger has {documents:,} documents: "
        "use --rebuild to start the ledger anew, or name the collection that was filled"
    )


async def read_record(storage: CheckpointStorage, job: str) -> JobRecord | None:
    """The job's record, or None where it never ran (or the record is damaged, which is said)."""
    record = await storage.record(keys.job_record_key(job))
    return record if isinstance(record, JobRecord) else None


async def write_record(storage: CheckpointStorage, record: JobRecord) -> None:
    """Replace the job's record."""
    await result_store(storage).awrite(record, key=keys.job_record_key(record.job))
