"""Whole runs over a provider that is down: bounded requests, one error, and nothing paid for twice afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import stamina

from tasks.breaker import GIVEN_UP_IN_A_ROW
from tasks.errors import RateLimitedError, TransientError, UnavailableError
from tasks.retries import ATTEMPTS
from tests.test_pipeline import Mill, counts, numbered

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("results")]

DOCUMENTS = 400
CONCURRENCY = 4
UPSERTS_AT_ONCE = 4
"""Of the fake store."""


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Stamina asks for the waits and does not wait."""
    with stamina.set_testing(True, attempts=ATTEMPTS, cap=True):
        yield


@pytest.fixture
def mill(tmp_path: Path) -> Mill:
    made = Mill(tmp_path)
    made.write(*numbered(DOCUMENTS))
    return made


def down_after(requests: int, error: TransientError) -> Callable[[Sequence[str]], None]:
    """Answer so many requests, then none."""
    asked = 0

    def before(_: Sequence[str]) -> None:
        nonlocal asked
        asked += 1
        if asked > requests:
            raise error

    return before


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            UnavailableError("it answered 503"),
            f"the embedder is down: {GIVEN_UP_IN_A_ROW} requests in a row were given up on (it answered 503)",
        ),
        (
            RateLimitedError("it answered 429", retry_after_seconds=3_600),
            "the embedder asks to come back in 3,600 seconds (it answered 429)",
        ),
    ],
)
async def test_an_embedder_that_is_down_stops_the_run(mill: Mill, error: TransientError, why: str) -> None:
    """Failed with one line and no dead letters; the rerun embeds what is missing and nothing else."""
    state = await mill.run(before=down_after(20, error), batch_size=10, concurrency=CONCURRENCY)
    assert state.is_failed()
    assert state.message == f"{why}; what landed is kept, run again to go on"
    first = mill.embedder
    assert len(first.requests) <= 20 + (GIVEN_UP_IN_A_ROW + CONCURRENCY) * ATTEMPTS
    assert len(first.answered) == 200
    report = await mill.report(state)
    assert report["dead_letters"] == 0
    assert report["upserted"] == len(mill.store.records)

    again = await mill.report(await mill.run(batch_size=10))
    assert not set(first.answered) & set(mill.embedder.answered)
    assert len(first.answered) + len(mill.embedder.answered) == DOCUMENTS
    assert counts(again) == (DOCUMENTS, DOCUMENTS - report["upserted"], report["upserted"], 0, 0)


async def test_a_store_that_is_down_stops_the_run(mill: Mill) -> None:
    """What was embedded meanwhile stays on disk, and the rerun sends it without paying for it again."""
    mill.store.before = down_after(4, UnavailableError("it answered 503"))
    state = await mill.run(batch_size=10, concurrency=CONCURRENCY)
    assert state.is_failed()
    assert str(state.message).startswith(f"the store is down: {GIVEN_UP_IN_A_ROW} requests in a row")
    assert len(mill.store.requests) <= 4 + (GIVEN_UP_IN_A_ROW + UPSERTS_AT_ONCE) * ATTEMPTS
    first = mill.embedder
    assert len(first.answered) < DOCUMENTS
    assert (await mill.report(state))["dead_letters"] == 0

    mill.store.before = lambda _: None
    report = await mill.report(await mill.run(batch_size=10))
    assert not set(first.answered) & set(mill.embedder.answered)
    assert len(first.answered) + len(mill.embedder.answered) == DOCUMENTS
    assert (report["documents"], report["dead_letters"]) == (DOCUMENTS, 0)
    assert sorted(mill.store.records) == sorted(dict(numbered(DOCUMENTS)))


async def test_an_outage_that_the_attempts_outlast_costs_nothing(mill: Mill) -> None:
    """Failures of a few requests, then answers: no document is lost, and the run completes."""
    failures = ATTEMPTS - 1  # whichever requests they hit, one of them has an attempt left

    def before(_: Sequence[str]) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise UnavailableError("it answered 503")

    state = await mill.run(before=before, batch_size=10, concurrency=CONCURRENCY)
    assert state.is_completed()
    report = await mill.report(state)
    assert counts(report) == (DOCUMENTS, DOCUMENTS, 0, 0, 0)
    assert report["retries"] == {"embed.unavailable": ATTEMPTS - 1}
