"""Embed and upsert, a segment at a time: what is on disk when, and what of a failure is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tasks.checkpoints.keys import vectors_key
from tasks.checkpoints.vectors import VectorParts, decode_part
from tasks.embed.stage import SegmentEmbedder
from tasks.errors import RefusedError, RequestRejectedError, RequestTooLargeError, UnavailableError
from tasks.fingerprints import Fingerprints
from tasks.ledger import from_bytes
from tasks.limits.gate import Gate
from tasks.records import Document, Embedding, Reason, Segment
from tasks.retries import Retries
from tasks.upsert.port import UpsertLimits
from tasks.upsert.stage import SegmentUpserter
from tests.checkpoints.blobs import MemoryBlobs
from tests.fakes import DIMENSION, CountingEmbedder, MemoryStore, vector_of

FINGERPRINTS = Fingerprints(embedder="fake", store="memory", keep_text=True)


def segment(*ids: str, batch_size: int = 2, sequence: int = 5) -> Segment:
    """As the batch stage leaves it when nothing is known."""
    documents = [Document(id_, f"text of {id_}", {"n": i}) for i, id_ in enumerate(ids)]
    made = Segment(0, len(ids) - 1, [], range(len(ids)), [], sequence=sequence, pending=documents)
    made.vector_keys = FINGERPRINTS.vector_keys(documents)
    made.entries = FINGERPRINTS.entries(documents, made.vector_keys)
    made.embedded = np.zeros(len(ids), np.bool_)
    made.batches = [list(range(i, min(i + batch_size, len(ids)))) for i in range(0, len(ids), batch_size)]
    return made


def fill(given: Segment, rows: Sequence[int] | None = None) -> Segment:
    """As the embed stage leaves it."""
    given.vectors = np.stack([vector_of(document.text) for document in given.pending])
    given.embedded = np.isin(np.arange(len(given.pending)), range(len(given.pending)) if rows is None else rows)
    return given


def expected(given: Segment, *ids: str) -> list[list[int]]:
    """The ledger entries of these documents."""
    assert given.entries is not None
    rows = [row for row, document in enumerate(given.pending) if document.id in ids]
    found: list[list[int]] = given.entries[rows].tolist()
    return found


def retries(attempts: int = 1) -> Retries:
    return Retries(attempts=attempts, uniform=lambda floor, _: floor)


def parts(blobs: MemoryBlobs, job: str = "job") -> VectorParts:
    return VectorParts(blobs, job, 0, pytest.fail)


def embedding(embedder: CountingEmbedder, blobs: MemoryBlobs, attempts: int = 1) -> SegmentEmbedder:
    return SegmentEmbedder(embedder, Gate(4), retries(attempts), parts(blobs), counts_tokens=True)


def upserting(store: MemoryStore, attempts: int = 1, *, keep_text: bool = True) -> SegmentUpserter:
    return SegmentUpserter(store, Gate(4), retries(attempts), job="job", shard=0, keep_text=keep_text)


def on_disk(blobs: MemoryBlobs) -> set[bytes]:
    return {key for content in blobs.content.values() for key in decode_part(content)[0]}


def failing_on(text: str, error: Exception) -> Callable[[Sequence[str]], None]:
    """Raise for every request that holds this."""

    def before(asked: Sequence[str]) -> None:
        if any(text in each for each in asked):
            raise error

    return before


class TestEmbed:
    """Texts become vectors, on disk as soon as they are there."""

    async def test_a_refusal_of_everything_keeps_what_was_answered(self) -> None:
        """The run stops, and pays nothing of it again."""
        blobs, one = MemoryBlobs(), segment("a", "b", "c", "d", "e")
        embedder = CountingEmbedder(failing_on("text of c", RefusedError("quota")))
        with pytest.raises(RefusedError, match="quota"):
            await embedding(embedder, blobs).embed_segment(one)
        assert len(embedder.requests) == 3
        assert on_disk(blobs) == {one.vector_keys[row] for row in (0, 1, 4)}

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (RequestRejectedError("400"), Reason.REJECTED),
            (RequestTooLargeError("413"), Reason.TOO_LARGE),
            (UnavailableError("503"), Reason.EXHAUSTED),
        ],
    )
    async def test_a_batch_that_fails_gives_back_its_other_vectors(self, error: Exception, reason: Reason) -> None:
        """The bad document alone is a dead letter, without its text."""
        blobs, one = MemoryBlobs(), segment("a", "b", "c", "d", "e", batch_size=4)
        embedder = CountingEmbedder(failing_on("text of c", error))
        record = await embedding(embedder, blobs).embed_segment(one)
        assert [(letter.id, letter.reason) for letter in record.dead_letters] == [("c", reason)]
        assert "text of" not in record.dead_letters[0].message
        assert one.embedded is not None
        assert one.embedded.tolist() == [True, True, False, True, True]
        assert on_disk(blobs) == {key for row, key in enumerate(one.vector_keys) if row != 2}
        assert sorted(embedder.answered) == ["text of a", "text of b", "text of d", "text of e"]
        assert (record.embedded, record.embedding_requests, record.parts) == (4, 3, 3)

    async def test_where_everything_fails_there_is_still_a_record(self) -> None:
        """No vectors, and a dead letter each."""
        blobs, one = MemoryBlobs(), segment("a", "b", "c")
        embedder = CountingEmbedder(failing_on("text", RequestRejectedError("400")))
        record = await embedding(embedder, blobs).embed_segment(one)
        assert (record.embedded, record.parts, len(record.dead_letters)) == (0, 0, 3)
        assert one.vectors is None
        assert blobs.content == {}

    async def test_an_answer_of_another_dimension_stops_the_run(self) -> None:
        """Earlier vectors have another one: the store would refuse them all."""
        one = segment("a", "b")
        one.vectors = np.zeros((2, DIMENSION + 1), np.float32)
        with pytest.raises(RefusedError, match="dimensions"):
            await embedding(CountingEmbedder(), MemoryBlobs()).embed_segment(one)

    async def test_each_answer_is_on_disk_before_the_segment_ends(self) -> None:
        """While another request is still under way."""
        blobs, answered = MemoryBlobs(), asyncio.Event()
        one = segment("a", "b", "slow")

        class Slow(CountingEmbedder):
            async def embed(self, texts: Sequence[str]) -> Embedding:
                if texts == ["text of slow"]:
                    await answered.wait()
                return await super().embed(texts)

        running = asyncio.ensure_future(embedding(Slow(), blobs).embed_segment(one))
        while not blobs.content:  # noqa: ASYNC110 - turns of the loop, no time
            await asyncio.sleep(0)
        assert on_disk(blobs) == set(one.vector_keys[:2])
        assert not running.done()
        answered.set()
        record = await running
        assert on_disk(blobs) == set(one.vector_keys)
        assert record.parts == 2

    async def test_parts_reach_the_disk_in_order(self) -> None:
        """The first missing part is the end, so no slow write is overtaken: a kill would hide what is behind."""
        order = list[str]()

        class Uneven(MemoryBlobs):
            async def write(self, key: str, content: bytes, *, durable: bool) -> None:
                for _ in range(0 if order else 50):
                    await asyncio.sleep(0)
                order.append(key)
                await super().write(key, content, durable=durable)

        blobs = Uneven()
        await embedding(CountingEmbedder(), blobs).embed_segment(segment("a", "b", "c", "d", "e", "f"))
        assert order == [vectors_key("job", 0, 5, part) for part in range(3)]

    async def test_a_transient_error_is_tried_again(self) -> None:
        """And counted by the record as one request that was answered."""
        errors: list[Exception] = [UnavailableError("503"), UnavailableError("503")]

        def before(_: Sequence[str]) -> None:
            if errors:
                raise errors.pop()

        embedder = CountingEmbedder(before)
        record = await embedding(embedder, MemoryBlobs(), attempts=3).embed_segment(segment("a", "b"))
        assert (len(embedder.requests), record.embedding_requests, record.model_tokens) == (3, 1, 6)
        assert record.dead_letters == []

    async def test_what_is_on_disk_already_is_not_asked_for(self) -> None:
        """The batch stage planned no request for it; the record counts it all the same."""
        one = segment("a", "b", "c")
        one.vectors, one.embedded, one.batches = np.ones((3, DIMENSION), np.float32), np.ones(3, np.bool_), []
        embedder = CountingEmbedder()
        record = await embedding(embedder, MemoryBlobs()).embed_segment(one)
        assert embedder.requests == []
        assert (record.embedded, record.parts) == (3, 0)

    async def test_every_vector_stands_in_its_texts_row(self) -> None:
        """Whatever the batches."""
        one = segment("a", "b", "c", "d", "e", batch_size=2)
        one.batches = [[4, 0], [3], [1, 2]]
        await embedding(CountingEmbedder(), MemoryBlobs()).embed_segment(one)
        assert np.array_equal(one.vectors, [vector_of(document.text) for document in one.pending])  # type: ignore[arg-type]


class TestRecall:
    """A checkpoint points at vectors that may be anywhere, or gone."""

    async def test_a_part_that_is_gone_or_damaged_is_not_recalled(self) -> None:
        """The segment is embedded again."""
        for damaged in (None, b"garbage"):
            blobs, warnings = MemoryBlobs(), list[str]()
            record = await embedding(CountingEmbedder(), blobs).embed_segment(segment("a", "b", "c"))
            blobs.content.pop(vectors_key("job", 0, 5, 1))
            if damaged:
                blobs.content[vectors_key("job", 0, 5, 1)] = damaged
            found = VectorParts(blobs, "job", 0, warnings.append)
            stage = SegmentEmbedder(CountingEmbedder(), Gate(1), retries(), found, counts_tokens=False)
            assert not await stage.recall(segment("a", "b", "c", sequence=9), record)
            assert len(warnings) == bool(damaged)

    async def test_a_record_of_another_job_fills_the_segment(self) -> None:
        """Another store is filled for free."""
        blobs = MemoryBlobs()
        other = SegmentEmbedder(CountingEmbedder(), Gate(4), retries(), parts(blobs, "other"), counts_tokens=False)
        record = await other.embed_segment(segment("a", "b", "c"))
        one = segment("a", "b", "c", sequence=9)
        assert await embedding(CountingEmbedder(), blobs).recall(one, record)
        assert np.array_equal(one.vectors, [vector_of(document.text) for document in one.pending])  # type: ignore[arg-type]

    async def test_a_record_that_lacks_a_text_is_not_enough(self) -> None:
        """One of them had failed."""
        blobs = MemoryBlobs()
        stage = embedding(CountingEmbedder(failing_on("text of b", RequestRejectedError("400"))), blobs)
        record = await stage.embed_segment(segment("a", "b", "c"))
        assert not await stage.recall(segment("a", "b", "c", sequence=9), record)


def small(**changed: Any) -> UpsertLimits:
    given = {"max_request_bytes": None, "max_records": 2, "envelope_bytes": 0, "concurrency": 4} | changed
    return UpsertLimits(**given)


class TestUpsert:
    """A receipt holds what the store confirmed, and nothing else."""

    async def test_a_store_that_refuses_everything_gives_no_receipt(self) -> None:
        """The other requests, under way, still end."""
        store = MemoryStore(failing_on("c", RefusedError("no collection")), small())
        with pytest.raises(RefusedError, match="no collection"):
            await upserting(store).upsert_segment(fill(segment("a", "b", "c", "d", "e")))
        assert sorted(store.records) == ["a", "b", "e"]

    async def test_a_segment_of_which_nothing_was_embedded_has_an_empty_receipt(self) -> None:
        """Nothing is sent, and nothing breaks."""
        store, one = MemoryStore(), segment("a", "b")
        receipt = await upserting(store).upsert_segment(one)
        assert (receipt.entries, receipt.dead_letters, receipt.upsert_requests) == (b"", [], 0)
        assert not receipt.keeps_vectors
        assert store.requests == []

    async def test_a_record_that_the_store_refuses_is_a_dead_letter(self) -> None:
        """By its own reason; its neighbours in the request are stored and receipted, its vector is kept."""
        store, one = MemoryStore(limits=small()), fill(segment("a", "b", "c"))
        store.refused = {"b": "metadata value of a kind that it has no room for"}
        receipt = await upserting(store).upsert_segment(one)
        assert from_bytes(receipt.entries).tolist() == expected(one, "a", "c")
        assert [(x.id, x.reason, x.message) for x in receipt.dead_letters] == [
            ("b", Reason.REJECTED, store.refused["b"])
        ]
        assert receipt.keeps_vectors
        assert sorted(store.records) == ["a", "c"]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (RequestRejectedError("400"), Reason.REJECTED),
            (RequestTooLargeError("413"), Reason.TOO_LARGE),
            (UnavailableError("503"), Reason.EXHAUSTED),
        ],
    )
    async def test_a_poison_record_is_found_by_halving(self, error: Exception, reason: Reason) -> None:
        """Though the store only says that something is wrong with the request."""
        store, one = MemoryStore(failing_on("c", error), small(max_records=5)), fill(segment("a", "b", "c", "d", "e"))
        receipt = await upserting(store).upsert_segment(one)
        assert from_bytes(receipt.entries).tolist() == expected(one, "a", "b", "d", "e")
        assert [(letter.id, letter.reason) for letter in receipt.dead_letters] == [("c", reason)]
        assert sorted(store.records) == ["a", "b", "d", "e"]

    async def test_a_record_that_is_too_large_alone_is_never_sent(self) -> None:
        """It is known before."""
        store, one = MemoryStore(limits=small(max_request_bytes=60)), segment("a", "b", "c")
        one.pending[1] = Document("b", "long " * 20, {})
        receipt = await upserting(store).upsert_segment(fill(one))
        assert [(letter.id, letter.reason) for letter in receipt.dead_letters] == [("b", Reason.TOO_LARGE)]
        assert from_bytes(receipt.entries).tolist() == expected(one, "a", "c")
        assert store.requests == [["a"], ["c"]]
        assert receipt.keeps_vectors

    async def test_where_everything_is_refused_the_receipt_has_no_entries(self) -> None:
        """Every document has its dead letter."""
        store, one = MemoryStore(), fill(segment("a", "b"))
        store.refused = {"a": "no", "b": "no"}
        receipt = await upserting(store).upsert_segment(one)
        assert (receipt.entries, len(receipt.dead_letters), receipt.keeps_vectors) == (b"", 2, True)

    async def test_only_what_was_embedded_is_stored(self) -> None:
        """The others have their dead letter already."""
        store, one = MemoryStore(), fill(segment("a", "b", "c"), rows=[0, 2])
        receipt = await upserting(store).upsert_segment(one)
        assert sorted(store.records) == ["a", "c"]
        assert from_bytes(receipt.entries).tolist() == expected(one, "a", "c")
        assert receipt.dead_letters == []

    async def test_requests_and_bytes_are_what_was_sent(self) -> None:
        """Attempts that failed were sent too."""
        errors = [UnavailableError("503")]

        def before(_: Sequence[str]) -> None:
            if errors:
                raise errors.pop()

        store, one = MemoryStore(before, small(envelope_bytes=7)), fill(segment("a", "b", "c"))
        receipt = await upserting(store, attempts=2).upsert_segment(one)
        size = 4 * DIMENSION + len("a") + len("text of a")
        assert receipt.upsert_requests == len(store.requests) == 3
        assert receipt.bytes_sent in {3 * 7 + 5 * size, 3 * 7 + 4 * size}
        assert receipt.dead_letters == []

    @pytest.mark.parametrize("keep_text", [True, False])
    async def test_a_record_is_its_document_and_its_vector(self, keep_text: bool) -> None:  # noqa: FBT001
        """With the text, or without."""
        store, one = MemoryStore(), fill(segment("a", "b"))
        await upserting(store, keep_text=keep_text).upsert_segment(one)
        stored = store.records["b"]
        assert (stored.id, stored.metadata, stored.text) == ("b", {"n": 1}, "text of b" if keep_text else None)
        assert np.array_equal(stored.vector, vector_of("text of b"))
