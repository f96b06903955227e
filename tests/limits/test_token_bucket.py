"""The token bucket: no rolling minute above the limit, and hardly anything below it."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import RequestTooLargeError
from tasks.limits.token_bucket import TokenBucket
from tests.limits.virtual_time import VirtualTime

Admitted = list[tuple[float, int]]


def most_in_a_minute(admitted: Admitted) -> int:
    """The greatest sum over any closed 60 seconds; one that begins with an admission is as great as any."""
    most, end, inside = 0, 0, 0
    for start, (moment, cost) in enumerate(admitted):
        while end < len(admitted) and admitted[end][0] <= moment + 60:
            inside += admitted[end][1]
            end += 1
        most = max(most, inside)
        inside -= cost
        assert start <= end
    return most


def demand(bucket: TokenBucket, costs: list[int], seconds: float = 600.0) -> Admitted:
    """What a caller is admitted who always wants more, the costs over and over, from 0 on and before ``seconds``."""
    admitted: Admitted = []
    now, number = 0.0, 0
    while True:
        cost = costs[number % len(costs)]
        now += bucket.reserve(cost, now)
        if now >= seconds:
            return admitted
        admitted.append((now, cost))
        number += 1


def test_a_cost_above_the_limit_fails_at_once() -> None:
    """It could never pass."""
    bucket = TokenBucket(100_000, "model tokens")
    with pytest.raises(RequestTooLargeError, match="100,001 model tokens in one request never fit 100,000 a minute"):
        bucket.reserve(100_001, 0.0)
    assert bucket.reserve(100_000, 0.0) == 0.0


def test_a_limit_below_one_is_refused() -> None:
    """It would wait for ever."""
    with pytest.raises(ValueError, match="lets nothing pass"):
        TokenBucket(0)


@settings(deadline=None)
@given(per_minute=st.integers(60, 20_000))
def test_ten_minutes_of_demand_use_98_percent(per_minute: int) -> None:
    """Single requests, from an idle bucket on."""
    bucket = TokenBucket(per_minute)
    admitted = demand(bucket, [max(1, per_minute // 1000)])
    assert most_in_a_minute(admitted) <= per_minute
    assert sum(cost for _, cost in admitted) >= 0.98 * 10 * per_minute


@pytest.mark.parametrize("per_minute", [1, 2, 3, 5, 10, 30, 59])
def test_tiny_limits_are_spaced_out(per_minute: int) -> None:
    """Even one request a minute uses what ten minutes allow, one at a time."""
    admitted = demand(TokenBucket(per_minute), [1])
    assert most_in_a_minute(admitted) <= per_minute
    assert len(admitted) >= 0.98 * 10 * per_minute
    moments = [moment for moment, _ in admitted]
    assert all(later - earlier >= 60 / per_minute for earlier, later in pairwise(moments))


@settings(deadline=None)
@given(per_minute=st.integers(10_000, 1_000_000), shares=st.lists(st.floats(0.0001, 0.01), min_size=1, max_size=50))
def test_model_tokens_of_usual_requests_use_97_percent(per_minute: int, shares: list[float]) -> None:
    """A hundredth of the limit is the grain that may be left at a window's end."""
    admitted = demand(TokenBucket(per_minute), [max(1, int(share * per_minute)) for share in shares])
    assert most_in_a_minute(admitted) <= per_minute
    assert sum(cost for _, cost in admitted) >= 0.97 * 10 * per_minute


@settings(deadline=None)
@given(
    per_minute=st.integers(1, 1000),
    asked=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 90)), min_size=1, max_size=200),
)
def test_no_rolling_minute_is_above_the_limit(per_minute: int, asked: list[tuple[float, float]]) -> None:
    """Any costs up to the limit itself, after any pauses of demand, booked ahead; and in the order of asking."""
    bucket = TokenBucket(per_minute)
    admitted: Admitted = []
    now = 0.0
    for share, idle in asked:
        cost = max(1, round(share * per_minute))
        now += idle
        admitted.append((now + bucket.reserve(cost, now), cost))
    assert most_in_a_minute(admitted) <= per_minute
    assert admitted == sorted(admitted, key=lambda each: each[0])


def test_a_request_near_the_limit_passes_once_a_minute() -> None:
    """90,000 model tokens of 100,000 leave no room for a second one."""
    admitted = demand(TokenBucket(100_000), [90_000])
    assert admitted[0][0] == 0.0
    assert len(admitted) == 10
    assert all(later - earlier > 60 for (earlier, _), (later, _) in pairwise(admitted))


def test_an_idle_bucket_gives_no_double_minute() -> None:
    """However long nobody asked, the first minute has one limit in it."""
    bucket = TokenBucket(600)
    bucket.reserve(1, 0.0)
    waits = [bucket.reserve(1, 10_000.0) for _ in range(601)]
    assert waits[:9] == [0.0] * 9
    assert waits[600] > 60


def test_a_pause_holds_everything_back() -> None:
    """A server's Retry-After; a shorter one that comes later changes nothing."""
    bucket = TokenBucket(600)
    bucket.pause_until(30.0)
    bucket.pause_until(20.0)
    assert bucket.reserve(1, 10.0) == 20.0


async def test_acquire_is_first_come_first_served() -> None:
    """A small cost does not overtake a great one that came before it."""
    time = VirtualTime()
    bucket = TokenBucket(100, clock=time.clock, sleep=time.sleep)
    served: list[tuple[int, float]] = []

    async def take(cost: int) -> None:
        await bucket.acquire(cost)
        served.append((cost, time.now))

    async with asyncio.TaskGroup() as group:
        for cost in (60, 90, 1, 2):
            group.create_task(take(cost))
    assert [cost for cost, _ in served] == [60, 90, 1, 2]
    assert served[0][1] == 1_000.0
    assert served[1][1] > 1_060.0


async def test_a_late_wake_up_counts_at_its_real_moment() -> None:
    """A loop that stalls for seconds cannot squeeze two minutes' requests into one."""
    time = VirtualTime()
    admitted: Admitted = []

    async def sleep_too_long(seconds: float) -> None:
        stall = 7.0 if len(admitted) % 40 == 39 else 0.0
        await time.sleep(seconds + stall)

    bucket = TokenBucket(60, clock=time.clock, sleep=sleep_too_long)
    for _ in range(400):
        await bucket.acquire()
        admitted.append((time.now, 1))
    assert most_in_a_minute(admitted) <= 60


async def test_a_cancelled_waiter_costs_nothing() -> None:
    """Its turn and its budget go to the next."""
    time = VirtualTime()
    asleep = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if asleep.is_set():
            await time.sleep(seconds)
        else:
            asleep.set()
            await asyncio.Event().wait()

    bucket = TokenBucket(100, clock=time.clock, sleep=sleep)
    await bucket.acquire(100)
    first, second, third = (asyncio.ensure_future(bucket.acquire(100)) for _ in range(3))
    await asleep.wait()
    second.cancel()
    first.cancel()
    await third
    assert 1_060.0 < time.now < 1_062.0


def test_threads_share_a_bucket() -> None:
    """Each with its own event loop; together they are admitted what one would be."""
    time = VirtualTime()
    bucket = TokenBucket(1_000, clock=time.clock, sleep=time.sleep)
    admitted: Admitted = []

    async def take() -> None:
        for _ in range(100):
            await bucket.acquire(10)
            admitted.append((time.now, 10))

    async def take_in_two_tasks() -> None:
        await asyncio.gather(take(), take())

    threads = [threading.Thread(target=lambda: asyncio.run(take_in_two_tasks())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 800
    assert most_in_a_minute(sorted(admitted)) <= 1_000
