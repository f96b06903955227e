"""The one retry layer: what is tried again, how long is waited, what is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import stamina
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.breaker import Breaker
from tasks.errors import (
    ProviderDownError,
    RateLimitedError,
    RequestRejectedError,
    StoppedError,
    TransientError,
    UnavailableError,
)
from tasks.limits.gate import Gate
from tasks.retries import LONGEST_WAIT_SECONDS, Retries, wait_seconds
from tests.limits.virtual_time import run_virtually


def longest(_: float, ceiling: float) -> float:
    """A draw at the ceiling."""
    return ceiling


def shortest(floor: float, _: float) -> float:
    """A draw at the floor."""
    return floor


def failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    """Raises one after the other, then returns."""
    remaining = list(errors)

    async def act() -> str:
        if remaining:
            raise remaining.pop(0)
        return "done"

    return act


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Stamina asks for the waits and does not wait."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("error", [RequestRejectedError("400"), StoppedError("stop"), ValueError("a bug")])
async def test_only_a_transient_error_is_tried_again(error: Exception) -> None:
    """Everything else passes at once, itself."""
    retries = Retries()
    with pytest.raises(type(error)) as raised:
        await retries.call("embed", failing(error, error))
    assert raised.value is error
    assert not retries.counts


@pytest.mark.usefixtures("no_waiting")
async def test_the_last_error_comes_out_when_the_attempts_are_spent() -> None:
    """Three attempts are two retries."""
    errors = [UnavailableError("1"), RateLimitedError("2"), UnavailableError("3")]
    retries = Retries(attempts=3)
    with pytest.raises(UnavailableError, match="3"):
        await retries.call("embed", failing(*errors))
    assert retries.counts == {"embed.unavailable": 1, "embed.rate_limited": 1}


@pytest.mark.usefixtures("no_waiting")
async def test_retries_are_counted_by_stage_and_kind() -> None:
    """Over all the calls of a run."""
    retries = Retries()
    assert await retries.call("embed", failing(RateLimitedError("429"), RateLimitedError("429"))) == "done"
    assert await retries.call("upsert", failing(UnavailableError("503"))) == "done"
    assert retries.counts == {"embed.rate_limited": 2, "upsert.unavailable": 1}


@pytest.mark.usefixtures("no_waiting")
async def test_the_seconds_are_bounded() -> None:
    """A wait that would go beyond them is not begun; the error comes out at once."""
    error = RateLimitedError("429", retry_after_seconds=50)
    retries = Retries(total_seconds=120, uniform=shortest)
    with pytest.raises(RateLimitedError):
        await retries.call("embed", failing(*[error] * 6))
    assert retries.counts["embed.rate_limited"] == 2
    with pytest.raises(ProviderDownError, match="come back in 3,600 seconds"):
        await retries.call("embed", failing(RateLimitedError("429", retry_after_seconds=3_600)))


async def test_each_wait_is_real() -> None:
    """Stamina waits what was decided: nothing here, as the jitter is drawn at its floor."""
    retries = Retries(uniform=shortest)
    assert await retries.call("embed", failing(UnavailableError("1"), UnavailableError("2"))) == "done"


def test_a_stopped_run_does_not_wait_to_the_end() -> None:
    """The gate's closing ends the backoff."""

    async def stopped_after_a_second() -> float:
        clock = asyncio.get_running_loop().time
        started = clock()
        gate = Gate(1)
        retries = Retries(waiting=gate.until_closed)
        error = UnavailableError("503", retry_after_seconds=60)
        waiting = asyncio.ensure_future(retries.call("embed", failing(error)))
        await asyncio.sleep(1)
        gate.close()
        with pytest.raises(StoppedError):
            await waiting
        return clock() - started

    assert run_virtually(stopped_after_a_second()) == pytest.approx(1)


def test_who_is_stopped_because_the_provider_is_down_says_so() -> None:
    """The breaker closes the gate; those who wait there report its reason, not that they were stopped."""

    async def given_up_after_a_second() -> None:
        gate = Gate(1)
        breaker = Breaker("the store", given_up_in_a_row=1, on_open=gate.close)
        retries = Retries(waiting=gate.until_closed, breaker=breaker)
        error = UnavailableError("503", retry_after_seconds=60)
        waiting = asyncio.ensure_future(retries.call("upsert", failing(error)))
        await asyncio.sleep(1)
        breaker.gave_up(UnavailableError("it answered 503"))
        with pytest.raises(ProviderDownError, match="the store is down"):
            await waiting

    run_virtually(given_up_after_a_second())


@pytest.mark.usefixtures("no_waiting")
async def test_the_attempt_itself_is_not_a_wait() -> None:
    """A request on its way is not cut off by what ends a wait."""
    inside = False

    @asynccontextmanager
    async def waiting() -> AsyncIterator[None]:
        nonlocal inside
        inside = True
        yield
        inside = False

    async def act() -> bool:
        return inside

    assert await Retries(waiting=waiting).call("embed", act) is False


@pytest.mark.usefixtures("no_waiting")
async def test_a_retry_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The report has the counts."""
    with caplog.at_level(logging.INFO):
        await Retries().call("embed", failing(UnavailableError("503")))
    assert caplog.records == []


@settings(deadline=None)
@given(failures=st.integers(1, 50), seconds=st.floats(0, 1_000))
def test_the_servers_own_wait_beats_the_curve(failures: int, seconds: float) -> None:
    """Never earlier than it said, and hardly later."""
    error = TransientError("429", retry_after_seconds=seconds)
    assert wait_seconds(error, failures, shortest) == seconds
    assert seconds < wait_seconds(error, failures, longest) <= seconds + 0.25


def test_the_curve_doubles_up_to_its_ceiling_with_full_jitter() -> None:
    """Anything from zero to the ceiling."""
    error = TransientError("503")
    assert [wait_seconds(error, failures, longest) for failures in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 30]
    assert wait_seconds(error, 1_000, longest) == LONGEST_WAIT_SECONDS
    assert wait_seconds(error, 5, shortest) == 0
