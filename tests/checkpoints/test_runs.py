"""Whole runs of one job after another: dead letters and their replay, what a job is bound to, kept vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import RequestTooLargeError
from tasks.records import Reason
from tests.fakes import MemoryStore
from tests.test_pipeline import Mill, counts, numbered, refuse_from, reject

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]


@pytest.fixture
def mill(tmp_path: Path) -> Mill:
    return Mill(tmp_path)


def too_large(*texts: str) -> Callable[[Sequence[str]], None]:
    def before(asked: Sequence[str]) -> None:
        if set(asked) & set(texts):
            raise RequestTooLargeError("too much for one request")

    return before


def letters(results: Path) -> dict[str, tuple[str, int]]:
    """The job's dead letters on file: reason and attempts by id."""
    file = results / "millrace" / "jobs-v1" / "job" / "dead_letters.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {letter["id"]: (letter["reason"], letter["attempts"]) for letter in found}


async def test_a_replay_sends_the_dead_letters_alone(mill: Mill, results: Path) -> None:
    """By reason; what fails again has one more attempt, what lands leaves the file, what was not asked for stays."""
    mill.write(*numbered(10))
    mill.store.refused = {"d1": "no", "d2": "no"}
    await mill.run(before=too_large("text 5", "text 6"))
    first = {"d1": ("rejected", 1), "d2": ("rejected", 1), "d5": ("too_large", 1), "d6": ("too_large", 1)}
    assert letters(results) == first

    sent, mill.store.refused = len(mill.store.requests), {"d2": "no"}
    state = await mill.run(replaying=[Reason.REJECTED])
    assert counts(await mill.report(state)) == (2, 1, 0, 0, 1)
    assert state.message == "1 dead letters, 0 are allowed"
    assert sorted(id_ for ids in mill.store.requests[sent:] for id_ in ids) == ["d1", "d2"]
    assert mill.embedder.requests == []
    assert letters(results) == {"d2": ("rejected", 2), "d5": ("too_large", 1), "d6": ("too_large", 1)}

    state = await mill.run(before=too_large("text 6"), replaying=[Reason.TOO_LARGE], max_failed="50%")
    assert state.is_completed()
    assert mill.embedder.answered == ["text 5"]
    assert letters(results) == {"d2": ("rejected", 2), "d6": ("too_large", 2)}

    mill.store.refused = {}
    assert counts(await mill.report(await mill.run(replaying=()))) == (2, 2, 0, 0, 0)
    assert mill.embedder.answered == ["text 6"]
    assert letters(results) == {}
    assert counts(await mill.report(await mill.run(replaying=()))) == (0, 0, 0, 0, 0)
    assert {id_: record.text for id_, record in mill.store.records.items()} == dict(numbered(10))


async def test_dead_letters_are_left_alone_when_a_run_is_told_to(mill: Mill, results: Path) -> None:
    """They are counted, they are no failure of this run, and one whose document has changed is tried."""
    mill.write(*numbered(6))
    await mill.run(before=reject("text 1", "text 2"))
    mill.write(*numbered(2), ("d2", "edited text"), *numbered(3, 3))
    state = await mill.run(skip_dead_letters=True)
    assert counts(await mill.report(state)) == (6, 1, 4, 0, 1)
    assert state.is_completed()
    assert mill.embedder.answered == ["edited text"]
    assert letters(results) == {"d1": ("rejected", 1)}


async def test_more_failures_than_are_allowed_fail_the_run_after_all_else_has_landed(mill: Mill) -> None:
    """As a count, and as a share of the documents; at the limit a run is Completed."""
    mill.write(*numbered(20))
    poison = reject("text 3", "text 7")
    for allowed, message in ((1, "2 dead letters, 1 are allowed"), ("5%", "2 dead letters, 1 are allowed")):
        state = await mill.run(before=poison, max_failed=allowed)
        assert (state.is_failed(), state.message) == (True, message)
        assert len(mill.store.records) == 18
    for allowed in (2, "10%"):
        assert (await mill.run(before=poison, max_failed=allowed)).is_completed()


async def test_what_a_job_is_no_longer_bound_to_is_said(mill: Mill) -> None:
    """Every document counts as changed, and the old collection stays as it is."""
    mill.write(*numbered(4))
    await mill.run()
    first, mill.store = mill.store, MemoryStore(name="other")
    assert counts(await mill.report(await mill.run())) == (4, 4, 0, 0, 0)
    (warning,) = mill.warnings
    assert warning == ("job job: the collection was memory:fake and is memory:other; every document counts as changed")
    assert len(first.records) == 4


async def test_an_emptied_collection_is_noticed_and_rebuilt(mill: Mill) -> None:
    """Before anything is skipped: the run says what to do, and doing it fills the collection again."""
    mill.write(*numbered(6))
    await mill.run()
    mill.store.records.clear()
    state = await mill.run()
    assert state.is_failed()
    assert "memory:fake holds 0 records, the job's ledger has 6 documents: use --rebuild" in str(state.message)
    assert mill.embedder.requests == []

    assert counts(await mill.report(await mill.run(rebuild=True))) == (6, 6, 0, 0, 0)
    assert counts(await mill.report(await mill.run())) == (6, 0, 6, 0, 0)
    assert sorted(mill.store.records) == sorted(dict(numbered(6)))


async def test_kept_vectors_fill_a_second_store_for_free(mill: Mill, results: Path) -> None:
    """Under the same job; another job finds those of segments that are cut alike. Without the option all go."""
    mill.write(*numbered(8))
    await mill.run(keep_vectors=True)
    assert vector_files(results)
    mill.store = MemoryStore(name="of another job")
    assert counts(await mill.report(await mill.run(job_id="alike"))) == (8, 8, 0, 0, 0)
    assert mill.embedder.requests == []
    mill.store = MemoryStore(name="other")
    assert counts(await mill.report(await mill.run(batch_size=3, keep_vectors=True))) == (8, 8, 0, 0, 0)
    assert mill.embedder.requests == []
    await mill.run()
    assert vector_files(results) == []


async def test_an_edit_of_metadata_alone_uses_the_vector_that_is_on_disk(mill: Mill) -> None:
    """Where it is not there any more the text is embedded again; the record is upserted either way."""
    mill.write(*numbered(4))
    mill.store.before = refuse_from(0)
    await mill.run()
    await mill.run()
    mill.store.before = lambda _: None
    mill.write(*(json.dumps({"id": id_, "text": text, "metadata": {"n": 1}}) for id_, text in numbered(4)))
    assert counts(await mill.report(await mill.run())) == (4, 4, 0, 0, 0)
    assert mill.embedder.answered == []

    mill.write(*(json.dumps({"id": id_, "text": text, "metadata": {"n": 2}}) for id_, text in numbered(4)))
    assert counts(await mill.report(await mill.run())) == (4, 4, 0, 0, 0)
    assert sorted(mill.embedder.answered) == sorted(dict(numbered(4)).values())
    assert {record.metadata["n"] for record in mill.store.records.values()} == {2}


def vector_files(results: Path) -> list[Any]:
    return [path for path in (results / "millrace" / "vectors-v1").rglob("*") if path.is_file()]
