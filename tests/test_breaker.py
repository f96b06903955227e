"""The circuit breaker: when a provider is taken for down, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
import stamina

from tasks.breaker import GIVEN_UP_IN_A_ROW, Breaker
from tasks.errors import ProviderDownError, RateLimitedError, RefusedError, RequestRejectedError, UnavailableError
from tasks.halving import send_halving
from tasks.retries import ATTEMPTS, Retries
from tasks.settings import IngestSettings

DOWN = UnavailableError("it answered 503")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Stamina asks for the waits and does not wait."""
    with stamina.set_testing(True, attempts=ATTEMPTS, cap=True):
        yield


def failing(error: Exception, calls: list[int]) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        calls.append(len(calls))
        raise error

    return act


def test_so_many_in_a_row_open_it_and_nothing_closes_it_again() -> None:
    """One fewer does not, and the error says who is down, how often, and how it ended."""
    breaker = Breaker("the store", given_up_in_a_row=3)
    for _ in range(2):
        breaker.gave_up(DOWN)
        breaker.check()
    breaker.gave_up(DOWN)
    breaker.answered()
    breaker.gave_up(UnavailableError("another"))
    assert breaker.is_open
    with pytest.raises(ProviderDownError) as raised:
        breaker.check()
    assert str(raised.value) == "the store is down: 3 requests in a row were given up on (it answered 503)"


def test_one_answer_begins_the_row_anew() -> None:
    """A provider that fails often is not down."""
    breaker = Breaker("the embedder", given_up_in_a_row=3)
    for _ in range(10):
        breaker.gave_up(DOWN)
        breaker.gave_up(DOWN)
        breaker.answered()
    assert not breaker.is_open


async def test_a_provider_that_is_down_is_asked_a_bounded_number_of_times() -> None:
    """Halving a batch of 1,000 would ask 1,999 times six; the error stops the run as every refusal does."""
    calls: list[int] = []
    retries = Retries()

    async def send(_: Sequence[int]) -> None:
        await retries.call("embed", failing(DOWN, calls))

    with pytest.raises(RefusedError, match="in a row"):
        await send_halving(range(1_000), send)
    assert len(calls) == GIVEN_UP_IN_A_ROW * ATTEMPTS
    with pytest.raises(ProviderDownError):
        await retries.call("embed", failing(DOWN, calls))
    assert len(calls) == GIVEN_UP_IN_A_ROW * ATTEMPTS


async def test_a_call_between_two_attempts_ends_when_it_opens() -> None:
    """It does not go on to its own last attempt."""
    breaker = Breaker("the embedder", given_up_in_a_row=1)
    calls = 0

    async def act() -> None:
        nonlocal calls
        calls += 1
        breaker.gave_up(DOWN)  # another request, meanwhile
        raise DOWN

    with pytest.raises(ProviderDownError):
        await Retries(breaker=breaker).call("embed", act)
    assert calls == 1


async def test_a_refusal_of_the_content_is_an_answer() -> None:
    """However many documents are poison, the provider is there."""
    breaker = Breaker("the embedder", given_up_in_a_row=2)
    retries = Retries(attempts=1, breaker=breaker)
    for _ in range(5):
        with pytest.raises(UnavailableError):
            await retries.call("embed", failing(DOWN, []))
        with pytest.raises(RequestRejectedError):
            await retries.call("embed", failing(RequestRejectedError("400"), []))
    assert not breaker.is_open


async def test_one_bad_text_never_opens_it() -> None:
    """The worst place is the very front of the largest batch, where every half on the way down fails first."""
    largest = next(item.le for item in IngestSettings.model_fields["batch_size"].metadata if hasattr(item, "le"))
    assert math.log2(largest) + 1 < GIVEN_UP_IN_A_ROW
    retries = Retries(attempts=1)

    async def send(rows: Sequence[int]) -> None:
        async def ask() -> None:
            if 0 in rows:
                raise DOWN

        await retries.call("embed", ask)

    assert list(await send_halving(range(largest), send)) == [0]


async def test_a_longer_wait_than_anybody_has_opens_it_at_once() -> None:
    """An hour's Retry-After stops the run now, and whoever waits meanwhile is told."""
    opened: list[str] = []
    breaker = Breaker("the embedder", on_open=lambda: opened.append("told"))
    calls: list[int] = []
    away = RateLimitedError("it answered 429", retry_after_seconds=3_600)
    for _ in range(2):
        with pytest.raises(ProviderDownError, match="asks to come back in 3,600 seconds"):
            await Retries(breaker=breaker).call("embed", failing(away, calls))
    assert (calls, opened) == ([0], ["told"])
