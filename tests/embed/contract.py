"""What every embedder must do, whatever it is made of. `test_contract.py` runs this over each one's bed."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from tasks.embed.port import Embedder
from tasks.errors import RateLimitedError, RefusedError, RequestRejectedError, UnavailableError, UsageError
from tasks.halving import send_halving
from tests.embed.beds import SECRET, Bed, build
from tests.emulators.faults import Faults

TEXTS = ["the mill turns the stone", "water drives the wheel", "the mill turns the stone", "flour"]
POISON = "quicksilver"


def needs(part: Any, what: str) -> None:
    """Skip where the embedder has no such thing."""
    if part is None:
        pytest.skip(f"this embedder has no {what}")


class EmbedderContract:
    """Subclasses give `bed`."""

    @pytest.fixture
    def bed(self) -> Bed:
        pytest.fail("a contract is run over a bed")

    @pytest.fixture
    async def embedder(self, bed: Bed) -> AsyncIterator[Embedder]:
        embedder = bed.build()
        await embedder.open()
        yield embedder
        await embedder.aclose()

    # Vectors

    async def test_a_row_for_each_text_in_order(self, embedder: Embedder) -> None:
        """Equal texts have equal rows, other texts others."""
        rows = (await embedder.embed(TEXTS)).vectors
        assert rows.shape == (4, embedder.dimension)
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()
        assert np.allclose(rows[0], rows[2], atol=1e-6)
        assert len(np.unique(rows.round(5), axis=0)) == 3

    async def test_a_row_depends_on_its_text_alone(self, embedder: Embedder) -> None:
        """Not on its neighbours, nor on what was embedded before or beside it, but for the last digits."""
        alone = [(await embedder.embed([text])).vectors[0] for text in TEXTS]
        together, backwards = await asyncio.gather(embedder.embed(TEXTS), embedder.embed(TEXTS[::-1]))
        assert np.allclose(together.vectors, alone, atol=1e-6)
        assert np.allclose(together.vectors, backwards.vectors[::-1], atol=1e-6)

    async def test_order_and_pairing_hold_in_the_largest_request(self, embedder: Embedder) -> None:
        """As many texts as a request may hold, of all lengths, each with the vector that it has alone."""
        texts = [f"{number} {'grain ' * (number % 7)}" for number in range(min(embedder.limits.max_inputs, 256))]
        rows = (await embedder.embed(texts)).vectors
        assert len(rows) == len(texts)
        for number in (0, 1, len(texts) // 2, len(texts) - 1):
            assert np.allclose(rows[number], (await embedder.embed([texts[number]])).vectors[0], atol=1e-6)

    async def test_a_query_finds_its_own_text(self, embedder: Embedder) -> None:
        """Documents and queries lie in one space."""
        rows = (await embedder.embed(TEXTS)).vectors
        query = await embedder.embed_query(TEXTS[1])
        assert query.shape == (embedder.dimension,)
        assert int(np.argmax(rows @ query)) == 1

    async def test_rows_can_be_compared_by_cosine(self, embedder: Embedder) -> None:
        """No row is zero, not even that of a text that says nothing."""
        rows = (await embedder.embed(["the", "?", "\N{GRINNING FACE}"])).vectors
        assert (np.linalg.norm(rows, axis=1) > 0).all()

    async def test_the_dimension_is_known_before_anything_is_paid_for(self, embedder: Embedder, bed: Bed) -> None:
        """An index may have to be made first."""
        assert embedder.dimension
        assert embedder.dimension > 0
        assert bed.server is None or bed.server.texts == 0

    # Identity and limits

    async def test_the_identity_is_one_printable_string(self, embedder: Embedder) -> None:
        """It stands in keys and in messages, and holds no key."""
        assert embedder.identity.isprintable()
        assert not set(embedder.identity) & set(" /\\")
        assert SECRET not in embedder.identity

    async def test_the_identity_stays_what_it_is(self, embedder: Embedder, bed: Bed) -> None:
        """After a request, and in another process that has the same settings."""
        before = embedder.identity
        await embedder.embed(TEXTS)
        again = bed.build()
        await again.open()
        await again.aclose()
        assert embedder.identity == again.identity == before

    async def test_what_changes_a_vector_changes_the_identity(self, embedder: Embedder, bed: Bed) -> None:
        """Model and dimensions."""
        identities = {embedder.identity}
        for settings in bed.others:
            other = build(settings)
            await other.open()
            identities.add(other.identity)
            await other.aclose()
        assert len(identities) == 1 + len(bed.others)

    def test_model_tokens_are_counted_offline(self, bed: Bed) -> None:
        """Never negative, never more than bytes; before it is opened, too."""
        embedder = bed.build()
        for text in ("", *TEXTS, "na\u00efve", "<|endoftext|>", "\N{GRINNING FACE}"):
            assert 0 <= embedder.model_tokens(text) <= len(text.encode())

    async def test_what_is_billed_is_counted(self, embedder: Embedder, bed: Bed) -> None:
        """As the provider says; nothing where nothing is billed."""
        answer = await embedder.embed(TEXTS)
        assert answer.model_tokens == (0 if bed.server is None else bed.server.model_tokens)
        assert (answer.model_tokens > 0) == (bed.server is not None)

    def test_the_limits_let_something_pass(self, bed: Bed) -> None:
        """At least one text a request."""
        assert bed.build().limits.max_inputs >= 1

    async def test_one_text_more_than_the_limit_is_refused_by_the_server(self, embedder: Embedder, bed: Bed) -> None:
        """So the limit is the server's own: what is packed to it passes, and not one more would."""
        needs(bed.server, "server")
        assert bed.server is not None
        texts = ["x"] * embedder.limits.max_inputs
        assert len((await embedder.embed(texts)).vectors) == bed.server.largest_request_texts == len(texts)
        with pytest.raises(RequestRejectedError):
            await embedder.embed([*texts, "x"])

    # What goes wrong

    async def test_what_goes_wrong_on_the_way_is_transient(self, embedder: Embedder, bed: Bed) -> None:
        """One request, one error, as the SDK tries nothing again; the next request works."""
        needs(bed.server, "server")
        assert bed.server is not None
        for fault in bed.faults:
            bed.server.reset_counts()
            bed.server.faults = Faults(script=(fault,))
            with pytest.raises(RateLimitedError if fault == "status_429" else UnavailableError):
                await embedder.embed(TEXTS)
            assert bed.server.requests == 1
            assert (await embedder.embed(TEXTS)).vectors.shape == (4, embedder.dimension)

    async def test_the_servers_own_wait_is_kept(self, embedder: Embedder, bed: Bed) -> None:
        """Retry-After."""
        needs(bed.server, "server")
        assert bed.server is not None
        bed.server.faults = Faults(script=("status_429",), retry_after_seconds=7)
        with pytest.raises(RateLimitedError) as raised:
            await embedder.embed(TEXTS)
        assert raised.value.retry_after_seconds == 7

    async def test_a_poison_text_costs_itself_alone(self, embedder: Embedder, bed: Bed) -> None:
        """Halving finds it, its neighbours are embedded once, and neither it nor the key is in the error."""
        needs(bed.server, "server")
        assert bed.server is not None
        bed.server.faults = Faults(poison=(POISON,))
        texts = [f"text {number}" for number in range(8)]
        texts[5] = f"{POISON} in the flour"
        landed: list[int] = []

        async def send(rows: Any) -> None:
            await embedder.embed([texts[row] for row in rows])
            landed.extend(rows)

        failures = await send_halving(range(8), send)
        assert list(failures) == [5]
        assert sorted(landed) == [0, 1, 2, 3, 4, 6, 7]
        assert bed.server.paid_again == 0
        shown = "".join(traceback.format_exception(failures[5]))
        assert POISON not in shown
        assert SECRET not in shown

    async def test_a_wrong_key_is_found_before_anything_is_paid(self, bed: Bed) -> None:
        """The message names the variable, not the key."""
        needs(bed.bad_key, "key")
        assert bed.bad_key is not None
        embedder = build(bed.bad_key)
        with pytest.raises(UsageError, match="MILLRACE_BAD_KEY") as raised:
            await embedder.open()
        assert SECRET not in "".join(traceback.format_exception(raised.value))
        with pytest.raises(RefusedError):
            await embedder.embed(TEXTS)
        await embedder.aclose()

    async def test_an_unknown_model_is_found_before_anything_is_paid(self, bed: Bed) -> None:
        """Where the server says so."""
        needs(bed.unknown_model, "server that lists its models")
        assert bed.unknown_model is not None
        embedder = build(bed.unknown_model)
        with pytest.raises(UsageError):
            await embedder.open()
        await embedder.aclose()

    async def test_a_server_that_is_not_there_is_transient(self, bed: Bed) -> None:
        """Preflight says so in its own words."""
        needs(bed.unreachable, "server")
        assert bed.unreachable is not None
        embedder = bed.unreachable()
        with pytest.raises(UnavailableError):
            await embedder.open()
        with pytest.raises(UnavailableError):
            await embedder.embed(TEXTS)
        await embedder.aclose()

    async def test_opening_costs_nothing_and_passes_over_a_passing_fault(self, bed: Bed) -> None:
        """A busy server is a server; the run's own retries wait for it."""
        needs(bed.server, "server")
        assert bed.server is not None
        bed.server.faults = Faults(script=("status_429", "status_503"))
        embedder = bed.build()
        await embedder.open()
        await embedder.open()
        assert bed.server.texts == 0
        await embedder.aclose()
