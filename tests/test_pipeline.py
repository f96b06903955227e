"""Whole runs against a real Prefect server: what the laws say about a second one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.objects import State

from flows.job import Job
from flows.preflight import Providers
from flows.run import run
from tasks.checkpoints.keys import embed_key, job_record_key, ledger_head_key, ledger_key, lock_key, receipt_key
from tasks.checkpoints.storage import decode_result
from tasks.errors import RefusedError, RequestRejectedError, RunFailedError, UnavailableError
from tasks.fingerprints import Fingerprints
from tasks.load.source import SEGMENT_BYTES, Loaded, Source, open_source
from tasks.records import Document, EmbedRecord, LedgerHead, Reason, Receipt
from tasks.settings import IngestSettings, SourceSettings
from tests.fakes import CountingEmbedder, MemoryStore, pass_all, vector_of

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]


@dataclass
class Mill:
    """One job with its source, run after run; each run has an embedder of its own that counts."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    embedder: CountingEmbedder = field(default_factory=CountingEmbedder)
    warnings: list[str] = field(default_factory=list)
    first_dead_letters: list[Any] = field(default_factory=list)

    def write(self, *items: tuple[str, str] | str) -> None:
        """The source: ids with their texts, or a whole line."""
        lines = [item if isinstance(item, str) else json.dumps({"id": item[0], "text": item[1]}) for item in items]
        (self.folder / "source.jsonl").write_text("\n".join(lines) + "\n")

    def source(self) -> Source:
        return open_source(SourceSettings(location=str(self.folder / "source.jsonl")))

    async def run(
        self,
        source: Source | None = None,
        before: Callable[[Sequence[str]], None] | None = None,
        replaying: Sequence[Reason] | None = None,
        **changed: Any,
    ) -> State[Any]:
        """One run of the job; its final state."""
        self.embedder = CountingEmbedder(before or pass_all)
        given: dict[str, Any] = {"job_id": "job", "batch_size": 2, "checkpoint_interval": 2, "concurrency": 4} | changed
        providers = Providers(source or self.source(), self.embedder, self.store)

        @flow(persist_result=False)
        async def filling() -> Any:
            job = Job(IngestSettings(**given), providers, self.warnings.append, replaying=replaying)
            try:
                async with job.writing():
                    return await run(job)
            finally:
                self.first_dead_letters = job.tally.first_dead_letters

        state: State[Any] = await filling(return_state=True)
        return state

    async def report(self, state: State[Any]) -> dict[str, Any]:
        result: Any = await state.aresult(raise_on_failure=False)
        return dict(result.report if isinstance(result, RunFailedError) else result)


@pytest.fixture
def mill(tmp_path: Path) -> Mill:
    return Mill(tmp_path)


def numbered(count: int, first: int = 0) -> list[tuple[str, str]]:
    return [(f"d{i}", f"text {i}") for i in range(first, first + count)]


def counts(report: dict[str, Any]) -> tuple[int, ...]:
    assert report["documents"] == sum(report[key] for key in ("upserted", "unchanged", "duplicates", "dead_letters"))
    return tuple(report[key] for key in ("documents", "upserted", "unchanged", "duplicates", "dead_letters"))


class BreakingSource(Source):
    """Breaks off after so many segments."""

    def __init__(self, source: Source, segments: int) -> None:
        super().__init__(source.display, source._files)
        self._segments = segments

    def documents(self, segment_size: int, max_bytes: int = SEGMENT_BYTES) -> Iterator[Loaded]:
        for number, loaded in enumerate(super().documents(segment_size, max_bytes)):
            if number == self._segments:
                raise UnavailableError("connection lost")
            yield loaded


def refuse_from(request: int) -> Callable[[Sequence[str]], None]:
    """Pass so many requests, then refuse all."""
    passed = 0

    def before(_: Sequence[str]) -> None:
        nonlocal passed
        passed += 1
        if passed > request:
            raise RefusedError("no room left")

    return before


def reject(*texts: str) -> Callable[[Sequence[str]], None]:
    def before(asked: Sequence[str]) -> None:
        if set(asked) & set(texts):
            raise RequestRejectedError("not this text")

    return before


async def test_a_source_that_breaks_off_ends_the_run_with_its_error(mill: Mill) -> None:
    """What was embedded is upserted and receipted, and never embedded again."""
    mill.write(*numbered(20))
    state = await mill.run(BreakingSource(mill.source(), 3))
    assert state.is_failed()
    assert state.message == "connection lost; what landed is kept, run again to go on"
    report = await mill.report(state)
    assert {record.text for record in mill.store.records.values()} == set(mill.embedder.answered)
    assert report["upserted"] == len(mill.store.records)

    upserted = report["upserted"]
    report = await mill.report(await mill.run())
    assert counts(report) == (20, 20 - upserted, upserted, 0, 0)
    assert len(mill.embedder.answered) == 20 - upserted
    assert len(mill.store.records) == 20


async def test_an_error_of_batch_ends_the_run_however_much_is_still_to_be_read(mill: Mill) -> None:
    """Load does not wait for room that nobody makes."""

    def fail(*_: object, **__: object) -> str | None:
        raise RefusedError("cannot tell")

    mill.write(*numbered(100))
    mill.store.refuse = fail  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        state = await mill.run()
    assert state.message == "cannot tell; what landed is kept, run again to go on"


async def test_after_a_failed_store_nothing_is_embedded_again(mill: Mill) -> None:
    """The vectors are on disk; another batch size and another order find them too."""
    mill.write(*numbered(16))
    mill.store.before = refuse_from(2)
    state = await mill.run()
    assert state.is_failed()
    assert "no room left" in str(state.message)
    embedded = set(mill.embedder.answered)
    assert len(embedded) > len(mill.store.records)

    state = await mill.run()
    assert state.is_failed()
    assert not embedded & set(mill.embedder.answered)
    embedded |= set(mill.embedder.answered)

    mill.store.before = lambda _: None
    mill.write(*reversed(numbered(16)))
    report = await mill.report(await mill.run(batch_size=3, checkpoint_interval=1))
    assert not embedded & set(mill.embedder.answered)
    assert report["resumed"]
    assert (report["documents"], report["dead_letters"]) == (16, 0)
    assert {id_: record.text for id_, record in mill.store.records.items()} == dict(numbered(16))
    for record in mill.store.records.values():
        assert record.vector.tolist() == vector_of(record.text or "").tolist()


async def test_the_very_same_run_again_takes_every_vector_from_its_checkpoint(mill: Mill) -> None:
    """Where the store let nothing pass, all that was embedded comes from disk, whatever is still missing."""
    mill.write(*numbered(8))
    mill.store.before = refuse_from(0)
    for _ in range(3):
        await mill.run()
    mill.store.before = lambda _: None
    state = await mill.run()
    assert mill.embedder.answered == []
    report = await mill.report(state)
    assert counts(report) == (8, 8, 0, 0, 0)
    assert (report["batches"], report["embedding_requests"], report["model_tokens"]) == (0, 0, 0)


async def test_a_failure_is_never_served_from_a_checkpoint(mill: Mill) -> None:
    """Law 8: the dead letter is tried again, its neighbours are not; whether or not the store failed meanwhile."""
    mill.write(*numbered(8))
    mill.store.before = refuse_from(0)
    await mill.run(before=reject("text 1"))
    mill.store.before = lambda _: None
    state = await mill.run(before=reject("text 1"))
    assert set(map(tuple, mill.embedder.requests)) == {("text 1",)}
    assert counts(await mill.report(state)) == (8, 7, 0, 0, 1)
    assert state.message == "1 dead letters, 0 are allowed"

    state = await mill.run()
    assert mill.embedder.answered == ["text 1"]
    assert counts(await mill.report(state)) == (8, 1, 7, 0, 0)
    assert state.is_completed()
    assert sorted(mill.store.records) == sorted(dict(numbered(8)))


async def test_what_the_store_refuses_is_tried_again_and_not_embedded_again(mill: Mill) -> None:
    """Its vectors are kept over the compaction of a whole run, and over the next."""
    mill.write(*numbered(8))
    mill.store.refused = {"d1": "no", "d6": "no"}
    for expected in ((8, 6, 0, 0, 2), (8, 0, 6, 0, 2)):
        report = await mill.report(await mill.run(max_failed="50%"))
        assert counts(report) == expected
    assert mill.embedder.answered == []
    assert sorted((letter.id, letter.reason) for letter in mill.first_dead_letters) == [
        ("d1", Reason.REJECTED),
        ("d6", Reason.REJECTED),
    ]
    mill.store.refused = {}
    assert counts(await mill.report(await mill.run())) == (8, 2, 6, 0, 0)
    assert mill.embedder.answered == []


async def test_a_segment_of_which_nothing_could_be_embedded_does_not_end_the_run(mill: Mill) -> None:
    """Its documents are dead letters, the others land."""
    mill.write(*numbered(12))
    state = await mill.run(before=reject("text 4", "text 5", "text 6", "text 7"))
    assert counts(await mill.report(state)) == (12, 8, 0, 0, 4)
    assert len(mill.store.records) == 8


async def test_a_damaged_checkpoint_costs_its_work_and_nothing_else(mill: Mill, results: Path) -> None:
    """Damaged records, vectors and ledger are misses with a warning; the result is the same."""
    mill.write(*numbered(8))
    mill.store.before = refuse_from(1)
    await mill.run()
    for path in results.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-3])
    mill.store.before = lambda _: None
    state = await mill.run()
    assert counts(await mill.report(state)) == (8, 8, 0, 0, 0)
    assert any("is ignored" in warning for warning in mill.warnings)
    assert sorted(mill.store.records) == sorted(dict(numbered(8)))


async def test_a_receipt_that_lies_under_a_new_number_is_not_taken_for_its_own(mill: Mill, results: Path) -> None:
    """A walk may miss one, as after a failed read; the documents are sent all the same."""
    mill.write(*numbered(4))
    await mill.run()
    head = results / ledger_head_key("job", 0)
    head.unlink()
    stale = Receipt(0, b"\x01" * 64, [], 1, 1)
    hidden = "millrace/hidden"
    other = Mill(mill.folder, MemoryStore(name="other"))

    def plant(_: Sequence[str]) -> None:
        path = results / receipt_key("job", 0, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(result_file(stale, hidden))

    report = await other.report(await other.run(before=plant))
    assert report["upserted"] == 4
    assert len(other.store.records) == 4


def result_file(receipt: Receipt, key: str) -> bytes:
    """As Prefect writes one."""
    from prefect._internal.result_records import ResultRecord, ResultRecordMetadata  # noqa: PLC0415

    from tasks.checkpoints.storage import SERIALIZER  # noqa: PLC0415

    return ResultRecord(
        metadata=ResultRecordMetadata(serializer=SERIALIZER, storage_key=key), result=receipt
    ).serialize()


async def test_every_document_ends_as_exactly_one_thing(mill: Mill) -> None:
    """Law 1 over unchanged, edited, new, duplicate, malformed, refused, unembeddable and unstorable documents."""
    mill.write(*numbered(6))
    assert counts(await mill.report(await mill.run())) == (6, 6, 0, 0, 0)

    mill.store.refused = {"unstorable": "no"}
    mill.write(
        *numbered(4),
        ("d4", "edited text"),
        ("d5", "soon overwritten"),
        "{not json",
        ("bad id", "text"),
        ("poison", "poison text"),
        ("unstorable", "fine text"),
        ("new", "new text"),
        ("d5", "the later one"),
        ("d0", "text 0"),
        ("new", "new text"),
    )
    state = await mill.run(before=reject("poison text"), max_failed=4)
    assert counts(await mill.report(state)) == (14, 3, 4, 3, 4)
    assert state.is_completed()
    assert {letter.reason for letter in mill.first_dead_letters} == {Reason.MALFORMED, Reason.INVALID, Reason.REJECTED}
    stored = {id_: record.text for id_, record in mill.store.records.items()}
    assert stored == {**dict(numbered(4)), "d4": "edited text", "d5": "the later one", "new": "new text"}
    assert "soon overwritten" not in mill.embedder.answered


async def test_the_second_run_embeds_nothing(mill: Mill) -> None:
    """Law 2, and nothing is sent to the store either."""
    mill.write(*numbered(30))
    report = await mill.report(await mill.run())
    assert (counts(report), report["resumed"]) == ((30, 30, 0, 0, 0), False)
    assert len(mill.embedder.answered) == 30
    requests = len(mill.store.requests)
    report = await mill.report(await mill.run(batch_size=7))
    assert (counts(report), report["resumed"]) == ((30, 0, 30, 0, 0), True)
    assert mill.embedder.requests == []
    assert len(mill.store.requests) == requests
    assert mill.warnings == []


async def test_another_store_or_embedder_makes_every_document_changed(mill: Mill) -> None:
    """Under the same job; the ledger knows the record's shape, not only the id."""
    mill.write(*numbered(4))
    await mill.run()
    mill.store = MemoryStore(name="other")
    assert counts(await mill.report(await mill.run())) == (4, 4, 0, 0, 0)
    assert counts(await mill.report(await mill.run(no_text=True))) == (4, 4, 0, 0, 0)
    assert {record.text for record in mill.store.records.values()} == {None}


async def test_another_job_over_the_same_texts_uses_what_is_on_disk(mill: Mill) -> None:
    """As long as the first job has not dropped it."""
    mill.write(*numbered(8))
    mill.store.before = refuse_from(0)
    await mill.run()
    await mill.run()
    first = mill.embedder
    mill.store = MemoryStore(name="other")
    state = await mill.run(job_id="other")
    assert counts(await mill.report(state)) == (8, 8, 0, 0, 0)
    assert len(first.answered) + len(mill.embedder.answered) < 16
    assert len(mill.embedder.answered) == 0


def checkpoints(results: Path) -> dict[str, Any]:
    """Every result file, decoded by us; raw files as they are."""
    found: dict[str, Any] = {}
    for path in results.rglob("*"):
        if path.is_file():
            key, content = path.relative_to(results).as_posix(), path.read_bytes()
            found[key] = decode_result(content) if content.startswith(b"{") else content
    return found


async def test_results_lie_under_their_own_keys_and_nothing_else_is_kept(mill: Mill, results: Path) -> None:
    """While the run goes on: receipts and embed records of our serializer; at its end the ledger alone."""
    mill.write(*numbered(8))
    during: dict[str, Any] = {}
    mill.store.before = lambda _: during.update(checkpoints(results))
    await mill.run(checkpoint_interval=1, concurrency=1)
    assert isinstance(during[receipt_key("job", 0, 0)], Receipt)
    documents = [Document(id_, text, {}) for id_, text in numbered(2)]
    fingerprints = Fingerprints(embedder=mill.embedder.identity, store=mill.store.identity, keep_text=True)
    assert isinstance(during[embed_key(fingerprints.vector_keys(documents))], EmbedRecord)
    assert all(key.startswith("millrace/") for key in during)

    after = checkpoints(results)
    assert sorted(after) == sorted(
        [job_record_key("job"), lock_key("job"), ledger_key("job", 0, 1), ledger_head_key("job", 0)]
    )
    head = after[ledger_head_key("job", 0)]
    assert isinstance(head, LedgerHead)
    assert (head.documents, head.next_sequence, head.keeps_vectors) == (8, 4, [])
    assert {oct(path.stat().st_mode & 0o777) for path in (results / "millrace").rglob("*") if path.is_dir()} == {
        "0o700"
    }


async def test_the_route_does_not_matter(mill: Mill) -> None:
    """Law 7: small batches, big ones, one request at a time or many, give the same records."""
    items = [*numbered(25), ("d3", "a later text"), ("d7", "another")]
    mill.write(*items)
    stored = []
    for number, (batch_size, interval, concurrency) in enumerate([(1, 1, 1), (3, 2, 8), (100, 10, 100)]):
        mill.store = MemoryStore()
        await mill.run(
            job_id=f"job{number}", batch_size=batch_size, checkpoint_interval=interval, concurrency=concurrency
        )
        assert max(map(len, mill.embedder.requests)) <= batch_size
        stored.append({id_: (record.text, record.vector.tolist()) for id_, record in mill.store.records.items()})
    assert stored[0] == stored[1] == stored[2]
    assert {id_: text for id_, (text, _) in stored[0].items()} == dict(items)
