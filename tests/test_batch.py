"""Batch: what goes further, in which requests, and what ends here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.batch import Batcher, BatchRules, plan_batches
from tasks.checkpoints.blobs import FolderBlobs
from tasks.checkpoints.job import JobCheckpoints
from tasks.checkpoints.storage import CheckpointStorage
from tasks.fingerprints import Fingerprints
from tasks.ledger import Ledger, newest
from tasks.model_tokens import most_tokens
from tasks.records import Document, Reason, Segment
from tests.fakes import DIMENSION, vector_of

FINGERPRINTS = Fingerprints(embedder="e", store="s", keep_text=True)


class Counter:
    """Counts a token a word, and how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, text: str) -> int:
        self.asked.append(text)
        return len(text.split())


def rules(batch_size: int = 100, per_input: int | None = None, per_request: int | None = None) -> BatchRules:
    return BatchRules(batch_size, per_input, per_request)


def refuse_bad(document: Document) -> str | None:
    """A store that has something against an id."""
    return "its id is bad" if document.id == "bad" else None


@pytest.fixture
def checkpoints(tmp_path: Path) -> JobCheckpoints:
    """Of a job that never ran."""
    return JobCheckpoints(CheckpointStorage.over(FolderBlobs(tmp_path), pytest.fail), "job", 0, pytest.fail)


def batcher(checkpoints: JobCheckpoints, *, superseded: tuple[int, ...] = (), **changed: Any) -> Batcher:
    given: dict[str, Any] = {"rules": rules(), "count_tokens": Counter(), "refuse": refuse_bad} | changed
    places = np.array(superseded, np.int64)
    return Batcher(checkpoints=checkpoints, fingerprints=FINGERPRINTS, superseded=places, **given)


def segment(*documents: Document, first: int = 0) -> Segment:
    return Segment(first, first + len(documents) - 1, list(documents), range(first, first + len(documents)), [])


def documents(*ids: str) -> list[Document]:
    return [Document(id_, f"text of {id_}", {}, "s.jsonl", i) for i, id_ in enumerate(ids, 1)]


async def test_a_document_that_the_store_would_refuse_is_a_dead_letter(checkpoints: JobCheckpoints) -> None:
    """Before it is paid for, with the store's own reason."""
    one = segment(*documents("a", "bad", "b"))
    await batcher(checkpoints).batch_segment(one)
    assert [document.id for document in one.pending] == ["a", "b"]
    [letter] = one.dead_letters
    assert (letter.id, letter.position, letter.reason, letter.message) == ("bad", 2, Reason.INVALID, "its id is bad")


async def test_a_text_that_is_too_long_is_a_dead_letter(checkpoints: JobCheckpoints) -> None:
    """It alone, at exactly one model token too many; the message holds numbers and no text."""
    counter = Counter()
    one = segment(
        Document("a", "one two three", {}), Document("b", "one two three secret", {}), Document("c", "one", {})
    )
    await batcher(checkpoints, rules=rules(per_input=3), count_tokens=counter).batch_segment(one)
    assert [document.id for document in one.pending] == ["a", "c"]
    [letter] = one.dead_letters
    assert (letter.id, letter.reason) == ("b", Reason.TOO_LARGE)
    assert letter.message == "4 model tokens, the embedder's limit is 3"
    assert counter.asked == ["one two three", "one two three secret"]


@pytest.mark.parametrize(
    "document",
    [Document("x", "\ud800", {}), Document("x", "t", {"a": "\ud800"}), Document("x", "t", {"a": object()})],
    ids=["text", "metadata", "not JSON"],
)
async def test_what_cannot_be_written_is_a_dead_letter(checkpoints: JobCheckpoints, document: Document) -> None:
    """Its neighbours go on under their own keys."""
    alone, mixed = segment(*documents("a", "b")), segment(documents("a")[0], document, documents("a", "b")[1])
    await batcher(checkpoints).batch_segment(alone)
    await batcher(checkpoints).batch_segment(mixed)
    assert [(letter.id, letter.reason) for letter in mixed.dead_letters] == [("x", Reason.INVALID)]
    assert mixed.pending == alone.pending
    assert mixed.vector_keys == alone.vector_keys
    assert np.array_equal(mixed.entries, alone.entries)  # type: ignore[arg-type]


async def test_metadata_that_is_too_deep_is_a_dead_letter(checkpoints: JobCheckpoints) -> None:
    """The encoder gives up on it; the run does not."""
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"a": deep}
    one = segment(Document("x", "t", deep), *documents("a"))
    await batcher(checkpoints).batch_segment(one)
    assert [(letter.id, letter.reason) for letter in one.dead_letters] == [("x", Reason.INVALID)]
    assert [document.id for document in one.pending] == ["a"]


async def test_a_segment_of_which_nothing_is_left_takes_no_number(checkpoints: JobCheckpoints) -> None:
    """Numbers are dense, so that a gap means a crash."""
    nothing = segment(*documents("bad", "b"))
    await batcher(checkpoints, superseded=(1,)).batch_segment(nothing)
    assert (nothing.sequence, nothing.pending, nothing.batches) == (-1, [], [])
    something = segment(*documents("a"))
    await batcher(checkpoints).batch_segment(something)
    assert something.sequence == 0


async def test_a_later_document_of_the_same_id_wins(checkpoints: JobCheckpoints) -> None:
    """By its place in the whole source; also where dead letters leave holes."""
    one = Segment(10, 14, documents("a", "b", "a"), [10, 12, 14], [])
    await batcher(checkpoints, superseded=(3, 10, 11, 20)).batch_segment(one)
    assert one.duplicates == 1
    assert [document.position for document in one.pending] == [2, 3]


async def test_what_the_ledger_knows_goes_no_further(checkpoints: JobCheckpoints) -> None:
    """An id with another text does."""
    known = documents("a", "b", "c")
    entries = FINGERPRINTS.entries(known, FINGERPRINTS.vector_keys(known))
    checkpoints.ledger = Ledger(newest(entries))
    edited = Document("b", "another text", {})
    one = segment(known[0], edited, known[2], *documents("d"))
    await batcher(checkpoints).batch_segment(one)
    assert one.unchanged == 2
    assert [document.id for document in one.pending] == ["b", "d"]
    assert one.documents == []


async def test_vectors_on_disk_are_not_asked_for_again(checkpoints: JobCheckpoints) -> None:
    """Whatever the batches were when they were embedded."""
    one = segment(*documents("a", "b", "c"))
    keys = FINGERPRINTS.vector_keys(one.documents)
    rows = np.stack([vector_of("c"), vector_of("a")])
    await checkpoints.vectors.write(7, 0, [keys[2], keys[0]], rows)
    await checkpoints.vectors.remember(7)
    await batcher(checkpoints).batch_segment(one)
    assert one.batches == [[1]]
    assert one.embedded is not None
    assert one.embedded.tolist() == [True, False, True]
    assert np.array_equal(one.vectors, [vector_of("a"), np.zeros(DIMENSION), vector_of("c")])  # type: ignore[arg-type]


TEXTS = st.lists(st.text("a \N{SNOWMAN}", max_size=12), max_size=20)


@given(TEXTS, st.integers(1, 6), st.integers(1, 8))
def test_no_request_is_over_a_limit(texts: list[str], batch_size: int, per_request: int) -> None:
    """Every row is in one request, in order; only a text that is over the limit alone stands alone over it."""
    counter = Counter()
    batches = plan_batches(dict(enumerate(texts)), rules(batch_size, None, per_request), counter)
    assert [row for batch in batches for row in batch] == list(range(len(texts)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or sum(len(texts[row].split()) for row in batch) <= per_request


@given(TEXTS, st.integers(1, 6), st.none() | st.just(10_000))
def test_where_the_bytes_fit_nothing_is_counted(texts: list[str], batch_size: int, per_request: int | None) -> None:
    """A model token covers at least one byte; full batches but for the last."""
    counter = Counter()
    batches = plan_batches(dict(enumerate(texts)), rules(batch_size, None, per_request), counter)
    assert counter.asked == []
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_only_the_batches_that_may_not_fit_are_counted() -> None:
    """Each text of them once."""
    counter = Counter()
    texts = dict(enumerate(["aa", "bb", "cccc cccc", "dddd dddd", "ee", "ff"]))
    assert plan_batches(texts, rules(2, None, 10), counter) == [[0, 1], [2, 3], [4, 5]]
    assert counter.asked == ["cccc cccc", "dddd dddd"]


@given(st.text())
def test_the_bound_on_tokens_is_the_bytes(text: str) -> None:
    """ASCII or not."""
    text = text.encode(errors="replace").decode()
    assert most_tokens(text) == len(text.encode())
