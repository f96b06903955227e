"""What a job finds again, wherever it was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.checkpoints import keys
from tasks.checkpoints.blobs import Blobs
from tasks.checkpoints.job import JobCheckpoints, ReceiptLostError
from tasks.checkpoints.storage import CheckpointStorage, result_store
from tasks.checkpoints.vectors import VectorParts
from tasks.ledger import from_bytes
from tasks.records import EmbedRecord, Receipt, Segment
from tasks.settings import MAX_SEGMENTS_IN_FLIGHT
from tests.checkpoints.blobs import KilledError, MemoryBlobs, MortalBlobs

Pairs = Sequence[tuple[int, int]]


def open_job(blobs: Blobs, warn: Callable[[str], Any] = pytest.fail, job: str = "job") -> JobCheckpoints:
    """As a new process would."""
    return JobCheckpoints(CheckpointStorage.over(blobs, warn), job, 0, warn)


async def loaded(blobs: Blobs, warn: Callable[[str], Any] = pytest.fail, job: str = "job") -> JobCheckpoints:
    checkpoints = open_job(blobs, warn, job)
    await checkpoints.load()
    return checkpoints


def entries_of(checkpoints: JobCheckpoints) -> dict[int, int]:
    return dict(from_bytes(checkpoints.ledger.to_bytes()).tolist())


def receipt(sequence: int, pairs: Pairs, *, keeps_vectors: bool = False) -> Receipt:
    return Receipt(sequence, np.array(pairs, "<u8").tobytes(), [], 1, 1, keeps_vectors)


async def leave_receipt(blobs: Blobs, given: Receipt, job: str = "job") -> None:
    """As Prefect does when the upsert task completes."""
    storage = CheckpointStorage.over(blobs, pytest.fail)
    await result_store(storage).awrite(given, key=keys.receipt_key(job, 0, given.sequence))


async def leave_vector(blobs: Blobs, sequence: int, part: int = 0) -> bytes:
    """As an answer that was embedded and no more; its text's key."""
    key = f"{sequence:012d}/{part:03d}".encode()
    await VectorParts(blobs, "job", 0, pytest.fail).write(sequence, part, [key], np.full((1, 2), sequence, np.float32))
    return key


async def upsert(checkpoints: JobCheckpoints, blobs: Blobs, pairs: Pairs, *, keeps_vectors: bool = False) -> int:
    """One segment of a run that goes well; its sequence number."""
    given = receipt(checkpoints.take_sequence(), pairs, keeps_vectors=keeps_vectors)
    await leave_receipt(blobs, given)
    await checkpoints.confirm(given)
    return given.sequence


def left_over(blobs: MemoryBlobs) -> list[str]:
    return sorted(blobs.content)


async def test_a_receipt_that_was_not_saved_is_not_believed() -> None:
    """Prefect completes a task whose result it could not write."""
    checkpoints = await loaded(MemoryBlobs())
    with pytest.raises(ReceiptLostError, match="receipt 0 of job job"):
        await checkpoints.confirm(receipt(checkpoints.take_sequence(), [(1, 1)]))


async def test_a_receipt_that_reads_otherwise_is_not_believed() -> None:
    """Another segment's, or another run's."""
    blobs = MemoryBlobs()
    checkpoints = await loaded(blobs)
    await leave_receipt(blobs, receipt(0, [(2, 2)]))
    with pytest.raises(ReceiptLostError):
        await checkpoints.confirm(receipt(0, [(1, 1)]))


async def test_a_damaged_receipt_is_a_miss_with_one_warning() -> None:
    """Its documents are upserted again; those of its neighbours are not."""
    blobs, warnings = MemoryBlobs(), list[str]()
    for sequence in range(3):
        await leave_receipt(blobs, receipt(sequence, [(sequence, 1)]))
    blobs.content[keys.receipt_key("job", 0, 1)] = b"garbage"
    checkpoints = await loaded(blobs, warnings.append)
    assert entries_of(checkpoints) == {0: 1, 2: 1}
    assert checkpoints.take_sequence() == 3
    assert len(warnings) == 1


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
async def test_a_damaged_ledger_makes_everything_new(damage: str) -> None:
    """With a warning; numbers go on, so that nothing old is taken for new, and the next compaction mends it."""
    blobs, warnings = MemoryBlobs(), list[str]()
    checkpoints = await loaded(blobs)
    for number in range(5):
        await upsert(checkpoints, blobs, [(number, 1)])
    await checkpoints.compact()
    key = keys.ledger_key("job", 0, 1)
    content = blobs.content.pop(key)
    if damage != "gone":
        blobs.content[key] = content[:-16] if damage == "cut" else b"\xff" + content[1:]

    checkpoints = await loaded(blobs, warnings.append)
    assert len(checkpoints.ledger) == 0
    assert warnings == ["the ledger of job job is damaged: what it covered is upserted again"]
    assert await upsert(checkpoints, blobs, [(1, 2), (2, 2)]) == 5
    await checkpoints.compact()
    assert entries_of(await loaded(blobs)) == {1: 2, 2: 2}


async def test_a_new_job_has_nothing() -> None:
    """And its numbers begin at 0."""
    checkpoints = await loaded(MemoryBlobs())
    assert (len(checkpoints.ledger), checkpoints.resumed, checkpoints.take_sequence()) == (0, False, 0)


async def test_jobs_do_not_see_each_other() -> None:
    """Though they share a storage."""
    blobs = MemoryBlobs()
    await leave_receipt(blobs, receipt(0, [(1, 1)]), job="other")
    assert not (await loaded(blobs)).resumed
    assert (await loaded(blobs, job="other")).resumed


async def test_a_run_that_changes_nothing_writes_nothing() -> None:
    """The everyday rerun."""
    blobs = MemoryBlobs()
    checkpoints = await loaded(blobs)
    await upsert(checkpoints, blobs, [(1, 1)])
    await checkpoints.compact()
    before = dict(blobs.content)
    checkpoints = await loaded(MortalBlobs(blobs, 0))
    await checkpoints.compact()
    assert blobs.content == before
    assert checkpoints.resumed


async def test_a_run_of_which_nothing_was_stored_compacts() -> None:
    """A receipt may be empty: every record was refused."""
    blobs = MemoryBlobs()
    checkpoints = await loaded(blobs)
    await upsert(checkpoints, blobs, [])
    await checkpoints.compact()
    again = await loaded(blobs)
    assert len(again.ledger) == 0
    assert again.take_sequence() == 1


async def test_compaction_leaves_two_files() -> None:
    """Whatever the runs before had left, over any number of runs."""
    blobs = MemoryBlobs()
    for run in range(3):
        checkpoints = await loaded(blobs)
        for number in range(4):
            await upsert(checkpoints, blobs, [(number, run), (10 * run + number, run)])
        assert len(blobs.content) == 4 + (2 if run else 0)
        await checkpoints.compact()
        assert left_over(blobs) == [keys.ledger_key("job", 0, run + 1), keys.ledger_head_key("job", 0)]
        assert await entries(blobs) == entries_of(checkpoints)
    assert (await entries(blobs))[3] == 2


async def entries(blobs: Blobs) -> dict[int, int]:
    return entries_of(await loaded(blobs))


STEP = st.tuples(
    st.integers(1, MAX_SEGMENTS_IN_FLIGHT) | st.just(1),
    st.none() | st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=3),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=5), st.lists(STEP, max_size=5))
def test_everything_is_found_over_the_gaps_of_kills(
    before: list[tuple[int, list[tuple[int, int]] | None, bool]],
    after: list[tuple[int, list[tuple[int, int]] | None, bool]],
) -> None:
    """Up to MAX-1 numbers in a row may have neither receipt nor vectors; before a compaction and after one."""

    async def claim() -> None:
        blobs, known = MemoryBlobs(), dict[int, int]()
        checkpoints = await loaded(blobs)
        next_sequence = 0
        for steps in (before, after):
            vectors = list[bytes]()
            for gap, pairs, has_vectors in steps:
                sequence = next_sequence + gap - 1
                if pairs is not None:
                    await leave_receipt(blobs, receipt(sequence, pairs))
                    known |= dict(pairs)
                elif has_vectors:
                    vectors.append(await leave_vector(blobs, sequence))
                else:
                    continue
                next_sequence = sequence + 1
            checkpoints = await loaded(blobs)
            assert entries_of(checkpoints) == known
            assert all(key in checkpoints.vectors for key in vectors)
            assert checkpoints.resumed == bool(known or vectors)
            await checkpoints.compact()
            assert len(blobs.content) in {0, 2}
        assert entries_of(await loaded(blobs)) == known
        assert checkpoints.take_sequence() == next_sequence

    asyncio.run(claim())


async def crashed_twice(vectors_at: int, receipt_at: int) -> MemoryBlobs:
    """A compacted run, a killed one that left receipts and vectors, and another whose receipt lies far behind."""
    blobs = MemoryBlobs()
    checkpoints = await loaded(blobs)
    for number in range(3):
        await upsert(checkpoints, blobs, [(number, 1), (number + 100, 1)])
    await checkpoints.compact()
    for sequence in (3, 4):
        await leave_receipt(blobs, receipt(sequence, [(sequence, 2), (1, sequence)]))
    for part in range(2):
        await leave_vector(blobs, vectors_at, part)
    await leave_receipt(blobs, receipt(receipt_at, [(1, receipt_at)]))
    return blobs


async def last_run(blobs: MemoryBlobs, changes: int) -> bool:
    """A run that goes through its source, and is killed in its compaction after so many changes; whether it was."""
    checkpoints = await loaded(mortal := MortalBlobs(blobs, 1_000))
    await upsert(checkpoints, blobs, [(2, 9)])
    mortal.changes = changes
    return await is_killed(checkpoints.compact())


async def only_compacts(blobs: MemoryBlobs, changes: int) -> bool:
    """The run after it, of which nothing is new; whether it was killed."""
    checkpoints = open_job(MortalBlobs(blobs, changes))
    return await is_killed(checkpoints.load()) or await is_killed(checkpoints.compact())


async def is_killed(act: Awaitable[object]) -> bool:
    try:
        await act
    except KilledError:
        return True
    return False


def copy_of(blobs: MemoryBlobs) -> MemoryBlobs:
    copy = MemoryBlobs()
    copy.content = dict(blobs.content)
    return copy


async def test_a_kill_at_any_point_of_a_compaction_loses_nothing() -> None:
    """And a second kill at any point of the next one neither."""
    origin, expected = await crashed_twice(6, 8), {0: 1, 1: 8, 2: 9, 3: 2, 4: 2, 100: 1, 101: 1, 102: 1}
    kills = 0
    while await last_run(killed := copy_of(origin), kills):
        seconds = 0
        while await only_compacts(twice := copy_of(killed), seconds):
            assert await entries(twice) == expected
            seconds += 1
        assert await entries(twice) == expected
        assert (await loaded(killed)).take_sequence() == 10
        kills += 1
    assert await entries(killed) == expected
    assert left_over(killed) == [keys.ledger_key("job", 0, 2), keys.ledger_head_key("job", 0)]
    assert kills > 10


@pytest.mark.parametrize("changes", [0, 1, 2, 3, 100, 200, 240])
async def test_a_killed_compaction_does_not_widen_a_gap(changes: int) -> None:
    """Vectors without a receipt lead the walk to the receipts behind them: they go last."""
    blobs = await crashed_twice(120, 240)
    await last_run(blobs, changes)
    assert (await entries(blobs))[1] == 240


async def test_no_number_is_used_twice_after_a_kill() -> None:
    """Of what a run takes, everything that left a trace is below the next run's first."""
    blobs = MemoryBlobs()
    await leave_vector(blobs, 3)
    await leave_receipt(blobs, receipt(1, [(1, 1)]))
    assert (await loaded(blobs)).take_sequence() == 4


async def test_vectors_of_a_killed_run_are_found_and_dropped_after_a_full_pass() -> None:
    """Without a single new receipt, too."""
    blobs = MemoryBlobs()
    key = await leave_vector(blobs, 2)
    await leave_vector(blobs, 2, 1)
    checkpoints = await loaded(blobs)
    assert checkpoints.resumed
    known, _ = await checkpoints.vectors.recall([key])
    assert known.tolist() == [True]
    await checkpoints.compact()
    assert left_over(blobs) == [keys.ledger_key("job", 0, 1), keys.ledger_head_key("job", 0)]
    assert (await loaded(blobs)).take_sequence() == 3


async def test_vectors_of_documents_given_up_survive_compaction() -> None:
    """The next run tries those again and pays nothing; when they land, the vectors go."""
    blobs = MemoryBlobs()
    checkpoints = await loaded(blobs)
    key = await leave_vector(blobs, 0)
    await upsert(checkpoints, blobs, [(1, 1)], keeps_vectors=True)
    await checkpoints.compact()
    for _ in range(2):
        checkpoints = await loaded(blobs)
        assert key in checkpoints.vectors
        await upsert(checkpoints, blobs, [(2, 2)], keeps_vectors=True)
        await checkpoints.compact()
    checkpoints = await loaded(blobs)
    assert key in checkpoints.vectors
    await upsert(checkpoints, blobs, [(3, 3)])
    await checkpoints.compact()
    assert left_over(blobs) == [keys.ledger_key("job", 0, 4), keys.ledger_head_key("job", 0)]
    assert key not in (await loaded(blobs)).vectors


async def test_vectors_beside_a_receipt_are_found_and_dropped_after_a_full_pass() -> None:
    """A run was killed before it dropped them, or before its compaction."""
    blobs = MemoryBlobs()
    kept, not_yet_dropped = await leave_vector(blobs, 0), await leave_vector(blobs, 1)
    await leave_receipt(blobs, receipt(0, [(1, 1)], keeps_vectors=True))
    await leave_receipt(blobs, receipt(1, [(2, 2)]))
    checkpoints = await loaded(blobs)
    assert kept in checkpoints.vectors
    assert not_yet_dropped in checkpoints.vectors
    await checkpoints.compact()
    assert left_over(blobs) == [keys.ledger_key("job", 0, 1), keys.ledger_head_key("job", 0)]


def embed_record(sequence: int, job: str = "job") -> EmbedRecord:
    return EmbedRecord(job, 0, sequence, 2, 2, [], 2, 2)


def segment(sequence: int) -> Segment:
    return Segment(0, 1, [], range(2), [], sequence=sequence, vector_keys=[b"k" * 16])


async def test_vectors_are_dropped_with_the_record_that_points_at_them() -> None:
    """When the receipt is there."""
    blobs = MemoryBlobs()
    for part in range(2):
        await leave_vector(blobs, 5, part)
    await blobs.write(keys.embed_key([b"k" * 16]), b"record", durable=True)
    await open_job(blobs).drop_vectors(embed_record(5), segment(5))
    assert left_over(blobs) == []


async def test_vectors_of_another_number_wait_for_the_compaction() -> None:
    """They alone may keep the next walk from ending before them; another job's are its own."""
    blobs = MemoryBlobs()
    for part in range(2):
        await leave_vector(blobs, 5, part)
    await blobs.write(keys.embed_key([b"k" * 16]), b"record", durable=True)
    checkpoints = await loaded(blobs)
    await checkpoints.drop_vectors(embed_record(5, job="other"), segment(6))
    assert len(left_over(blobs)) == 3
    await checkpoints.drop_vectors(embed_record(5), segment(6))
    assert left_over(blobs) == [keys.vectors_key("job", 0, 5, part) for part in range(2)]
    await checkpoints.compact()
    assert left_over(blobs) == [keys.ledger_key("job", 0, 1), keys.ledger_head_key("job", 0)]
