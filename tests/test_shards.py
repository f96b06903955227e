"""A job in shards: whatever their number, and however it changes from run to run, the laws hold over all of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.checkpoints.keys import ledger_head_key, receipt_key
from tasks.checkpoints.storage import decode_result
from tasks.load.source import open_source
from tasks.records import LedgerHead
from tasks.settings import SourceSettings
from tests.test_pipeline import Mill, counts, numbered, refuse_from, reject

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]


@pytest.fixture
def mill(tmp_path: Path) -> Mill:
    return Mill(tmp_path)


def stored(mill: Mill) -> dict[str, str | None]:
    return {id_: record.text for id_, record in mill.store.records.items()}


async def test_the_later_document_wins_across_shards_and_every_one_is_counted(mill: Mill) -> None:
    """Laws 1 and 7: the first shard's documents are superseded by the last one's; lines are those of the whole file."""
    mill.write(*numbered(20), "{not json", *numbered(20, first=20), ("d0", "the later one"), ("d21", "this too"))
    state = await mill.run(shards=4, max_failed=1)
    report = await mill.report(state)
    assert counts(report) == (43, 40, 0, 2, 1)
    assert stored(mill) == {**dict(numbered(40)), "d0": "the later one", "d21": "this too"}
    assert sorted(mill.embedder.answered) == sorted(text for text in stored(mill).values() if text)
    (letter,) = mill.first_dead_letters
    assert letter.position == 21


async def test_receipts_are_written_while_a_shard_still_runs(mill: Mill, results: Path) -> None:
    """Inside the shard's own task run they would wait for its end."""
    mill.write(*numbered(40))
    seen: list[bool] = []
    mill.store.before = lambda _: seen.append((results / receipt_key("job", 0, 0)).exists())
    await mill.run(shards=2, checkpoint_interval=1, concurrency=1)
    assert any(seen[:9])


async def test_another_number_of_shards_embeds_nothing_again(mill: Mill, results: Path) -> None:
    """Law 2, over appended documents too, which move others to another shard; the ledger is always the whole job's."""
    for documents, shards in ((30, 3), (30, 1), (50, 4), (50, 2), (60, 1), (60, 7)):
        mill.write(*numbered(documents))
        before = len(mill.store.records)
        report = await mill.report(await mill.run(shards=shards))
        assert counts(report) == (documents, documents - before, before, 0, 0)
        assert len(mill.embedder.answered) == documents - before
        assert stored(mill) == dict(numbered(documents))
        assert report["resumed"] == bool(before)
        head = decode_result((results / ledger_head_key("job", 0)).read_bytes())
        assert isinstance(head, LedgerHead)
        assert head.documents == documents
    assert mill.warnings == []


async def test_the_newest_version_counts_whichever_shard_it_was_in(mill: Mill) -> None:
    """A document that is edited, moved to another shard and edited back is upserted each time."""
    others = numbered(20)
    for shards, text, is_first in ((1, "one", True), (4, "two", False), (4, "one", True), (2, "two", True)):
        mine = ("mine", text)
        mill.write(*([mine, *others] if is_first else [*others, mine]))
        report = await mill.report(await mill.run(shards=shards))
        assert report["upserted"] == (21 if len(mill.store.requests) and text == "one" and shards == 1 else 1)
        assert mill.store.records["mine"].text == text


@pytest.mark.parametrize("shards", [(3, 2), (2, 1), (1, 3)], ids=str)
async def test_vectors_of_a_broken_off_run_are_found_by_other_shards(mill: Mill, shards: tuple[int, int]) -> None:
    """Law 2 after a store that failed: nothing that is on disk is embedded again."""
    mill.write(*numbered(24))
    mill.store.before = refuse_from(1)
    state = await mill.run(shards=shards[0])
    assert state.is_failed()
    assert "no room left" in str(state.message)
    embedded = set(mill.embedder.answered)
    mill.store.before = lambda _: None
    mill.write(*reversed(numbered(24)))
    report = await mill.report(await mill.run(shards=shards[1]))
    assert not embedded & set(mill.embedder.answered)
    assert (report["documents"], report["dead_letters"]) == (24, 0)
    assert stored(mill) == dict(numbered(24))


async def test_nothing_is_left_behind_but_the_ledgers(mill: Mill, results: Path) -> None:
    """Receipts and vectors of all shards go when the run has seen its whole source."""
    mill.write(*numbered(30))
    mill.store.before = refuse_from(1)
    await mill.run(shards=3)
    mill.store.before = lambda _: None
    await mill.run(shards=2)
    left = {path.relative_to(results / "millrace").parts[0] for path in results.rglob("*") if path.is_file()}
    assert not left & {"receipts-v1", "vectors-v1"}
    assert not list(results.rglob("stops/*"))


async def test_dead_letters_of_all_shards_are_tried_again(mill: Mill) -> None:
    """Law 8, with another number of shards; a run that was told to leave them keeps them on file."""
    mill.write(*numbered(30))
    bad = reject("text 1", "text 29")
    assert counts(await mill.report(await mill.run(before=bad, shards=3, max_failed=2))) == (30, 28, 0, 0, 2)
    report = await mill.report(await mill.run(shards=2, skip_dead_letters=True))
    assert counts(report) == (30, 0, 28, 0, 2)
    assert mill.embedder.requests == []
    report = await mill.report(await mill.run(shards=4))
    assert counts(report) == (30, 2, 28, 0, 0)
    assert sorted(mill.embedder.answered) == ["text 1", "text 29"]


async def test_kept_vectors_fill_another_store_for_free(mill: Mill) -> None:
    """Whatever the shards were."""
    mill.write(*numbered(20))
    await mill.run(shards=3, keep_vectors=True)
    mill.store = type(mill.store)(name="other")
    report = await mill.report(await mill.run(shards=2, keep_vectors=True))
    assert counts(report) == (20, 20, 0, 0, 0)
    assert mill.embedder.requests == []


async def test_a_source_that_cannot_be_cut_goes_to_one_shard_and_is_said(mill: Mill) -> None:
    """The result is the same."""
    lines = [json.dumps({"id": id_, "text": text}) for id_, text in numbered(10)]
    (mill.folder / "packed").mkdir()
    (mill.folder / "packed/source.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    source = open_source(SourceSettings(location=str(mill.folder / "packed")))
    report: dict[str, Any] = await mill.report(await mill.run(source, shards=3))
    assert counts(report) == (10, 10, 0, 0, 0)
    (warning,) = mill.warnings
    assert warning.endswith("source.jsonl.gz cannot be cut: one shard does all the work")
