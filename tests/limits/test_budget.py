"""Requests and model tokens, taken together."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import RequestTooLargeError
from tasks.limits.budget import Budget
from tests.limits.test_token_bucket import most_in_a_minute
from tests.limits.virtual_time import VirtualTime


async def test_a_request_above_the_model_tokens_fails_and_costs_nothing() -> None:
    """Not even its one request."""
    time = VirtualTime()
    budget = Budget(1, 100, clock=time.clock, sleep=time.sleep)
    with pytest.raises(RequestTooLargeError):
        await budget.acquire(101)
    await budget.acquire(100)
    assert time.slept == []


async def test_without_limits_nobody_waits() -> None:
    """None is no limit."""
    time = VirtualTime()
    budget = Budget(clock=time.clock, sleep=time.sleep)
    for _ in range(1_000):
        await budget.acquire(1_000_000)
    assert time.slept == []


@settings(deadline=None)
@given(
    requests=st.integers(1, 300),
    model_tokens=st.integers(1, 10_000),
    inputs=st.integers(1, 1_000),
    asked=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 20)), min_size=1, max_size=150),
)
def test_no_limit_is_broken(requests: int, model_tokens: int, inputs: int, asked: list[tuple[float, float]]) -> None:
    """Whatever the requests cost; and all are taken at one moment."""
    budget = Budget(requests, model_tokens, inputs)
    admitted = []
    now = 0.0
    for share, idle in asked:
        now += idle
        costs = round(share * model_tokens), round((1 - share) * inputs)
        admitted.append((now + budget.reserve(costs[0], now, inputs=costs[1]), *costs))
    assert most_in_a_minute([(moment, 1) for moment, _, _ in admitted]) <= requests
    assert most_in_a_minute([(moment, cost) for moment, cost, _ in admitted]) <= model_tokens
    assert most_in_a_minute([(moment, cost) for moment, _, cost in admitted]) <= inputs


@pytest.mark.parametrize(("requests", "model_tokens", "cost"), [(60, None, 0), (600, 600, 1), (6_000, 60_000, 600)])
async def test_ten_minutes_use_98_percent_of_the_tighter_limit(
    requests: int, model_tokens: int | None, cost: int
) -> None:
    """The one that is not tight costs nothing."""
    time = VirtualTime(0.0)
    budget = Budget(requests, model_tokens, clock=time.clock, sleep=time.sleep)
    passed = -1
    while time.now < 600:
        await budget.acquire(cost)
        passed += 1
    tightest = min(requests, model_tokens / cost if model_tokens and cost else requests)
    assert passed >= 0.98 * 10 * tightest


async def test_a_pause_holds_back_those_who_wait_already() -> None:
    """They find it when they wake."""
    time = VirtualTime()
    budget = Budget(60, clock=time.clock, sleep=time.sleep)
    await budget.acquire()
    waiting = asyncio.ensure_future(budget.acquire())
    budget.pause(45.0)
    await waiting
    assert time.now == pytest.approx(1_045.0)
