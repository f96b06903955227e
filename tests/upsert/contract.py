"""What every store must do, whatever is behind it. `test_contract.py` runs this over each adapter's bed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tasks.errors import RequestRejectedError, UnavailableError, UsageError
from tasks.halving import send_halving
from tasks.records import Document, Record, Vectors
from tasks.upsert.packing import pack
from tasks.upsert.port import Store

DIMENSION = 8
MakeStore = Callable[[str], Store]
"""A store over the collection of this name; two of one name share what is stored."""
AWKWARD = np.array([1 / 3, -1e-38, 3e38, 0.1, 2**-140, 16777217, -0.0, 1], np.float32)
SECRET = "pc-secret-key"


@dataclass(frozen=True)
class Bed:
    """One adapter and what is behind it. What is None does not exist there: an embedded store has no server, no key.

    ``refuse`` makes the server refuse records whose id contains this; ``largest`` are the bytes and records of the
    largest upsert request, as the server measured them.
    """

    make: MakeStore
    creates_itself: bool = False
    """An embedded collection needs no ``create``."""
    normalises: bool = False
    """What is kept is the vector at length one."""
    unreachable: MakeStore | None = None
    bad_key: MakeStore | None = None
    refuse: Callable[[str], None] | None = None
    largest: Callable[[], tuple[int, int]] | None = None


def needs(part: Any, what: str) -> None:
    """Skip where the store has no such thing."""
    if part is None:
        pytest.skip(f"this store has no {what}")


def assert_kept(found: Vectors, sent: Vectors, *, normalised: bool) -> None:
    """A vector read back is the one that was sent, bit by bit, or to a few units in the last place at length one."""
    assert found.dtype == np.float32
    if normalised:
        np.testing.assert_allclose(found, sent / np.linalg.norm(sent), rtol=1e-6, atol=1e-7)
    else:
        assert found.tobytes() == sent.tobytes()


def record(id_: str, vector: Vectors | None = None, *, text: str | None = "text", **metadata: Any) -> Record:
    """A record whose vector follows from its id, where none is given."""
    seed = np.random.default_rng(list(id_.encode()))
    chosen = seed.standard_normal(DIMENSION).astype(np.float32) if vector is None else vector
    return Record(id_, chosen, text, metadata)


def document(id_: str = "a", text: str = "text", **metadata: Any) -> Document:
    return Document(id_, text, metadata)


def axis(number: int) -> Vectors:
    """A unit vector along one axis."""
    result: Vectors = np.zeros(DIMENSION, np.float32)
    result[number] = 1
    return result


async def put(store: Store, *records: Record) -> dict[str, str]:
    """Encode and upsert in one request; what was refused."""
    return dict(await store.upsert(store.encode(records)))


class StoreContract:
    """Subclasses give `bed`."""

    @pytest.fixture
    def bed(self) -> Bed:
        pytest.fail("a contract is run over a bed")

    @pytest.fixture
    def make(self, bed: Bed) -> MakeStore:
        return bed.make

    @pytest.fixture
    async def opened(self, make: MakeStore) -> AsyncIterator[Callable[..., Awaitable[Store]]]:
        """Open stores that are closed when the test ends."""
        stores: list[Store] = []

        async def open_store(name: str = "collection", dimension: int | None = DIMENSION) -> Store:
            stores.append(make(name))
            await stores[-1].open(dimension, create=True)
            return stores[-1]

        yield open_store
        for store in stores:
            await store.aclose()

    @pytest.fixture
    async def store(self, opened: Callable[..., Awaitable[Store]]) -> Store:
        return await opened()

    async def test_a_new_collection_is_empty(self, store: Store) -> None:
        assert await store.count() == 0
        assert await store.query(axis(0), limit=3) == []
        assert await store.fetch(["a"]) == []

    async def test_a_record_reads_back_exactly(self, store: Store, bed: Bed) -> None:
        awkward = AWKWARD / 1e30 if bed.normalises else AWKWARD  # the square of the largest must fit a float32
        sent = record("a", awkward, text='ünï "quoted"\n\u2028 text', s="x", n=3, f=0.5, b=True, tags=["p", "q"])
        assert await put(store, sent) == {}
        (found,) = await store.fetch(["a"])
        assert_kept(found.vector, awkward, normalised=bed.normalises)
        assert (found.text, found.metadata) == (sent.text, sent.metadata)

    async def test_each_id_gets_its_own_vector(self, store: Store, bed: Bed) -> None:
        """Order and pairing hold over many records in one request."""
        sent = {f"id-{number}": record(f"id-{number}", text=f"text {number}", n=number) for number in range(500)}
        await put(store, *sent.values())
        found = {one.id: one for one in await store.fetch(list(sent))}
        assert found.keys() == sent.keys()
        for id_, one in found.items():
            assert_kept(one.vector, sent[id_].vector, normalised=bed.normalises)
            assert (one.text, one.metadata) == (sent[id_].text, sent[id_].metadata)

    async def test_an_upsert_by_id_replaces_and_may_be_sent_twice(self, store: Store) -> None:
        await put(store, record("a", axis(0), text="old", v=1, gone=True), record("b", axis(1)))
        for _ in range(2):
            await put(store, record("a", axis(2), text="new", v=2))
        assert await store.count() == 2
        (found,) = await store.fetch(["a"])
        assert (found.vector.tolist(), found.text, found.metadata) == (axis(2).tolist(), "new", {"v": 2})

    async def test_of_one_id_twice_in_a_request_the_later_wins(self, store: Store) -> None:
        await put(store, record("a", text="first"), record("b"), record("a", text="second"))
        assert await store.count() == 2
        assert [found.text for found in await store.fetch(["a"])] == ["second"]

    async def test_a_text_that_is_not_kept_is_none(self, store: Store) -> None:
        await put(store, record("a", text=None, n=1), record("b", text=None))
        assert {(one.id, one.text, one.metadata.get("n")) for one in await store.fetch(["a", "b"])} == {
            ("a", None, 1),
            ("b", None, None),
        }

    async def test_a_query_answers_the_nearest_first_by_cosine(self, store: Store) -> None:
        await put(
            store,
            record("far", -axis(0)),
            record("near", axis(0) * 5, text="found", n=1),
            record("between", axis(0) + axis(1)),
        )
        hits = await store.query(axis(0), limit=2)
        assert [hit.id for hit in hits] == ["near", "between"]
        assert [hit.score for hit in hits] == pytest.approx([1, 0.5**0.5], abs=1e-5)
        assert (hits[0].text, hits[0].metadata) == ("found", {"n": 1})

    async def test_a_deleted_record_is_gone_and_a_stranger_is_no_error(self, store: Store) -> None:
        await store.delete(["nobody"])
        await put(store, record("a"), record("b"), record("c"))
        await store.delete(["a", "nobody", "c"])
        assert await store.count() == 1
        assert [one.id for one in await store.fetch(["a", "b", "c"])] == ["b"]

    async def test_ids_are_data_and_never_a_query(self, store: Store) -> None:
        ids = ["it's", "a' OR '1'='1", "b\\", 'q"q', "-- c", "d%_", "e f", "../g", "h?i=1&j#k", "'"]
        await put(store, *(record(id_) for id_ in ids), record("bystander"))
        for id_ in ids:
            assert [one.id for one in await store.fetch([id_])] == [id_]
            await store.delete([id_])
        assert [one.id for one in await store.fetch([*ids, "bystander"])] == ["bystander"]

    async def test_more_ids_than_a_request_holds_are_fetched_and_deleted(self, store: Store) -> None:
        ids = [f"{number:->60}" for number in range(1500)]
        for start in range(0, len(ids), 500):
            await put(store, *(record(id_) for id_ in ids[start : start + 500]))
        assert len(await store.fetch(ids)) == len(ids)
        await store.delete(ids)
        assert await store.count() == 0

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    async def test_a_vector_that_is_not_finite_is_refused_and_its_neighbours_land(
        self, store: Store, value: float
    ) -> None:
        bad = axis(0)
        bad[3] = value
        refused = await put(store, record("a"), record("bad", bad, text="secret text"), record("b"))
        assert list(refused) == ["bad"]
        assert "finite" in refused["bad"]
        assert "secret" not in refused["bad"]
        assert {one.id for one in await store.fetch(["a", "bad", "b"])} == {"a", "b"}
        assert list(await put(store, record("bad", bad))) == ["bad"]

    async def test_another_dimension_is_a_usage_error_that_names_both(
        self, store: Store, opened: Callable[..., Awaitable[Store]]
    ) -> None:
        with pytest.raises(UsageError, match=r"8 dimensions, the embedder makes 16"):
            await opened(dimension=16)

    async def test_a_dimension_that_comes_later_is_checked_later(
        self, store: Store, opened: Callable[..., Awaitable[Store]]
    ) -> None:
        again = await opened(dimension=None)
        with pytest.raises(UsageError, match=r"8 dimensions, the embedder makes 16"):
            await again.open(16, create=False)
        await again.open(DIMENSION, create=False)

    async def test_a_collection_is_made_once_its_dimension_is_known(
        self, opened: Callable[..., Awaitable[Store]]
    ) -> None:
        store = await opened("later", dimension=None)
        assert await store.count() == 0
        await store.open(DIMENSION, create=True)
        await put(store, record("a"))
        assert await store.count() == 1

    async def test_what_is_stored_outlives_the_connection(
        self, store: Store, opened: Callable[..., Awaitable[Store]]
    ) -> None:
        await put(store, record("a", n=1))
        await store.finish()
        await store.finish()
        await store.aclose()
        again = await opened()
        assert [one.metadata for one in await again.fetch(["a"])] == [{"n": 1}]
        assert again.identity == store.identity

    async def test_what_is_confirmed_is_there_for_another_connection(
        self, store: Store, opened: Callable[..., Awaitable[Store]]
    ) -> None:
        """An upsert that returned is stored, so that a receipt may be written."""
        await put(store, *(record(f"{number}") for number in range(20)))
        other = await opened()
        assert await other.count() == 20
        assert len(await other.fetch([f"{number}" for number in range(20)])) == 20

    async def test_a_record_that_the_server_refuses_costs_itself_alone(self, store: Store, bed: Bed) -> None:
        """Whether the store names it or refuses the whole request: halved, everything else is stored."""
        needs(bed.refuse, "server that refuses")
        assert bed.refuse is not None
        bed.refuse("poison")
        encoded = store.encode([record("poison" if n == 5 else f"{n}", text="secret text") for n in range(12)])
        named: dict[str, str] = {}

        async def send(rows: Sequence[int]) -> None:
            named.update(await store.upsert([encoded[row] for row in rows]))

        alone = await send_halving(range(len(encoded)), send)
        assert all(isinstance(error, RequestRejectedError) for error in alone.values())
        assert [encoded[row].id for row in alone] + list(named) == ["poison"]
        assert not any("secret" in message for message in [*named.values(), *map(str, alone.values())])
        assert await store.count() == 11

    async def test_no_request_exceeds_a_limit_as_the_server_measures_it(self, store: Store, bed: Bed) -> None:
        """Bytes and records: planned from `encode`, packed, and never over."""
        needs(bed.largest, "wire")
        assert bed.largest is not None
        store.limits = limits = replace(store.limits, max_request_bytes=8_000, max_records=30)
        texts = ['ünï "quoted"\n' * (number % 40) for number in range(150)] + ["" for _ in range(100)]
        encoded = store.encode([record(f"id-{number}", text=text, n=number) for number, text in enumerate(texts)])
        requests, too_large = pack(
            [one.size_bytes for one in encoded],
            max_bytes=limits.max_request_bytes,
            envelope_bytes=limits.envelope_bytes,
            max_records=limits.max_records,
        )
        for rows in requests:
            assert await store.upsert([encoded[row] for row in rows]) == {}
        assert not too_large
        largest_bytes, largest_records = bed.largest()
        assert 7_000 < largest_bytes <= 8_000
        assert largest_records == 30
        assert await store.count() == len(texts)

    async def test_a_missing_collection_is_made_only_where_that_is_asked_for(self, bed: Bed) -> None:
        store = bed.make("missing")
        try:
            if bed.creates_itself:
                await store.open(DIMENSION, create=False)
                assert await store.count() == 0
            else:
                with pytest.raises(UsageError, match=r"missing.*--create"):
                    await store.open(DIMENSION, create=False)
                await store.open(DIMENSION, create=True)
                assert await store.count() == 0
        finally:
            await store.aclose()

    async def test_a_key_that_is_refused_is_a_usage_error_without_the_key(self, bed: Bed) -> None:
        needs(bed.bad_key, "key")
        assert bed.bad_key is not None
        store = bed.bad_key("collection")
        with pytest.raises(UsageError, match="MILLRACE_BAD_KEY") as caught:
            await store.open(DIMENSION, create=True)
        assert SECRET not in str(caught.value)
        await store.aclose()

    async def test_a_server_that_is_not_there_is_transient(self, bed: Bed) -> None:
        needs(bed.unreachable, "server")
        assert bed.unreachable is not None
        store = bed.unreachable("collection")
        with pytest.raises(UnavailableError):
            await store.open(DIMENSION, create=True)
        await store.aclose()

    async def test_closing_twice_is_harmless(self, store: Store) -> None:
        await store.aclose()
        await store.aclose()

    def test_an_ordinary_document_is_not_refused(self, make: MakeStore) -> None:
        ordinary = document("doc-1", "tëxt", s="x", n=-(2**53), f=1.5, b=False, tags=["a", "b"], empty=[], none_="")
        assert make("collection").refuse(ordinary, keep_text=True) is None

    @pytest.mark.parametrize(
        ("bad", "about"),
        [
            (document(""), "id"),
            (document("\ud800"), "id"),
            (document("a", x=float("nan")), "finite"),
            (document("a", x=float("inf")), "finite"),
            (document("a", x=2**64), "64 bits"),
            (document("a", x=-(2**63) - 1), "64 bits"),
            (document("a", x="\ud800"), "string"),
            (document("a", "secret \ud800"), "Unicode"),
            (document("a", x=object()), "metadata"),
        ],
    )
    def test_what_no_store_can_hold_is_refused(self, make: MakeStore, bad: Document, about: str) -> None:
        reason = make("collection").refuse(bad, keep_text=True)
        assert reason is not None
        assert about in reason
        assert "secret" not in reason

    def test_a_text_that_is_not_kept_is_not_judged(self, make: MakeStore) -> None:
        assert make("collection").refuse(document("a", "bad \ud800" + "x" * 50_000), keep_text=False) is None
