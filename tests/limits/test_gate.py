"""The gate: concurrency, budget, and an end to both."""

from __future__ import annotations

import asyncio

import pytest

from tasks.errors import RateLimitedError, RequestTooLargeError, StoppedError
from tasks.limits.budget import Budget
from tasks.limits.gate import Gate
from tests.limits.test_token_bucket import most_in_a_minute
from tests.limits.virtual_time import VirtualTime


async def never(_: float) -> None:
    """A sleep without end."""
    await asyncio.Event().wait()


async def hold(gate: Gate, release: asyncio.Event, model_tokens: int = 0) -> None:
    """Stay inside until released."""
    async with gate.slot(model_tokens=model_tokens):
        await release.wait()


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_closed_gate_lets_nobody_in() -> None:
    """The run was told to stop."""
    gate = Gate(1)
    gate.close()
    with pytest.raises(StoppedError):
        async with gate.slot():
            pass
    assert gate.most_in_flight == 0


async def test_closing_wakes_those_who_wait_for_a_slot() -> None:
    """The one inside goes on to its end."""
    gate, release = Gate(1), asyncio.Event()
    inside, *waiting = (asyncio.ensure_future(hold(gate, release)) for _ in range(5))
    await settle()
    gate.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoppedError] * 4
    assert gate.in_flight == 1
    release.set()
    await inside
    assert gate.in_flight == 0


async def test_closing_wakes_those_who_wait_for_the_budget() -> None:
    """Also where the budget is shared with a gate that stays open, and that one goes on."""
    budget = Budget(1, sleep=never)
    await budget.acquire()
    other, gate, release = Gate(5, budget), Gate(5, budget), asyncio.Event()
    stays = asyncio.ensure_future(hold(other, release))
    await settle()
    waiting = [asyncio.ensure_future(hold(gate, release)) for _ in range(3)]
    await settle()
    gate.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoppedError] * 3
    assert not stays.done()
    stays.cancel()
    await asyncio.gather(stays, return_exceptions=True)


async def test_closing_ends_a_wait_between_attempts() -> None:
    """The block that only waits."""
    gate = Gate(1)

    async def back_off() -> None:
        async with gate.until_closed():
            await asyncio.sleep(3_600)

    waiting = asyncio.ensure_future(back_off())
    await settle()
    gate.close()
    with pytest.raises(StoppedError):
        await waiting


async def test_a_time_out_of_the_block_is_its_own() -> None:
    """Only the gate's closing is StoppedError."""
    with pytest.raises(TimeoutError):
        async with Gate(1).until_closed():
            raise TimeoutError


async def test_no_more_than_the_concurrency_are_inside() -> None:
    """And the most ever inside is counted."""
    gate, release = Gate(3), asyncio.Event()
    tasks = [asyncio.ensure_future(hold(gate, release)) for _ in range(10)]
    await settle()
    assert gate.in_flight == 3
    release.set()
    await asyncio.gather(*tasks)
    assert (gate.in_flight, gate.most_in_flight) == (0, 3)


async def test_a_request_that_never_fits_gives_its_slot_back() -> None:
    """The next one needs it."""
    gate = Gate(1, Budget(None, 10))
    with pytest.raises(RequestTooLargeError):
        async with gate.slot(model_tokens=11):
            pass
    async with gate.slot(model_tokens=10):
        assert gate.in_flight == 1


async def test_a_failed_or_cancelled_holder_gives_its_slot_back() -> None:
    """Whatever happens inside."""
    gate = Gate(1)
    with pytest.raises(ZeroDivisionError):
        async with gate.slot():
            raise ZeroDivisionError
    holder = asyncio.ensure_future(hold(gate, asyncio.Event()))
    waiter = asyncio.ensure_future(hold(gate, asyncio.Event()))
    await settle()
    waiter.cancel()
    holder.cancel()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    async with gate.slot():
        assert gate.in_flight == 1


async def test_a_slot_is_taken_before_the_budget() -> None:
    """Nobody spends the budget and then waits for a slot."""
    time = VirtualTime()
    gate, release = Gate(1, Budget(2, clock=time.clock, sleep=time.sleep)), asyncio.Event()
    holder, waiter = (asyncio.ensure_future(hold(gate, release)) for _ in range(2))
    await settle()
    assert time.slept == []
    release.set()
    await asyncio.gather(holder, waiter)
    assert len(time.slept) == 1


async def test_a_pause_reaches_the_budget() -> None:
    """Also where there are no limits."""
    time = VirtualTime()
    gate = Gate(1, Budget(clock=time.clock, sleep=time.sleep))
    gate.pause(5.0)
    async with gate.slot():
        assert time.now == 1_005.0


async def test_one_refusal_holds_everybody_back() -> None:
    """A server's 429 is news for all requests, with the server's own wait."""
    time = VirtualTime()
    gate = Gate(5, Budget(clock=time.clock, sleep=time.sleep))
    with pytest.raises(RateLimitedError):
        async with gate.slot():
            raise RateLimitedError("429", retry_after_seconds=20.0)
    async with gate.slot():
        assert time.now == 1_020.0


async def test_leaving_the_gate_in_peace_ends_the_search_after_a_refusal() -> None:
    """Also for those who have nothing to tell; then many go at once again."""
    time = VirtualTime()
    gate, release = Gate(5, Budget(clock=time.clock, sleep=time.sleep)), asyncio.Event()
    with pytest.raises(RateLimitedError):
        async with gate.slot():
            raise RateLimitedError("429", retry_after_seconds=1.0)
    async with gate.slot():
        pass
    holders = [asyncio.ensure_future(hold(gate, release)) for _ in range(5)]
    await settle()
    assert gate.in_flight == 5
    release.set()
    await asyncio.gather(*holders)


async def test_model_tokens_are_reserved_as_they_are_billed() -> None:
    """Half of what is counted offline: after a few answers twice as many requests pass."""
    time = VirtualTime()
    gate = Gate(1, Budget(None, 6_000, clock=time.clock, sleep=time.sleep))
    started = time.now
    for _ in range(240):
        async with gate.slot(model_tokens=100) as passage:
            passage.answered(model_tokens=50)
    assert time.now - started == pytest.approx(120, rel=0.05)


async def test_what_is_billed_above_the_count_is_paid_back() -> None:
    """A count that is too low breaks no minute once the first answer is there."""
    time = VirtualTime()
    gate = Gate(1, Budget(None, 6_000, clock=time.clock, sleep=time.sleep))
    billed = []
    for _ in range(300):
        async with gate.slot(model_tokens=30) as passage:
            billed.append((time.now, 60))
            passage.answered(model_tokens=60)
    assert most_in_a_minute(billed) <= 6_000


async def test_inputs_count_where_a_provider_counts_them() -> None:
    """96 texts of 2,000 a minute: twenty requests, whatever their model tokens."""
    time = VirtualTime()
    gate = Gate(1, Budget(None, None, 2_000, clock=time.clock, sleep=time.sleep))
    admitted = []
    for _ in range(60):
        async with gate.slot(inputs=96):
            admitted.append((time.now, 96))
    assert most_in_a_minute(admitted) <= 2_000
    with pytest.raises(RequestTooLargeError):
        async with gate.slot(inputs=2_001):
            pass
