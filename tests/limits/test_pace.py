"""The pace: what a provider refuses or says sets it, without any limit given."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import pytest

from tasks.limits.pace import HEADROOM, Pace
from tasks.records import Allowance, Quota
from tests.emulators.window import SlidingWindow

Takes = Callable[[float], bool]


class Simulation:
    """Senders who always want more, each request ``latency`` seconds long, against a provider in virtual time."""

    def __init__(self, takes: Takes, *, quota: Callable[[], Quota | None] = lambda: None) -> None:
        self.pace = Pace()
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self._takes = takes
        self._quota = quota
        self._events: list[tuple[float, int, float | None]] = []
        self._paused_until = 0.0

    def run(self, until: float, *, concurrency: int, latency: float) -> None:
        """Let time pass; a second run goes on where the first ended."""
        events = self._events = self._events or [(0.0, sender, None) for sender in range(concurrency)]
        while events[0][0] < until:
            now, sender, sent_at = heapq.heappop(events)
            if sent_at is None:
                at = max(self.pace.earliest(now), self._paused_until)
                if at > now:
                    heapq.heappush(events, (at, sender, None))
                    continue
                self.pace.take(now)
                heapq.heappush(events, (now + latency, sender, now))
                continue
            if self._takes(now):
                self.accepted.append(now)
                self.pace.answered(sent_at, now, quota=self._quota())
            else:
                self.refused.append(now)
                self._paused_until = max(self._paused_until, now + self.pace.refused(sent_at, now))
            heapq.heappush(events, (now, sender, None))

    def accepted_between(self, start: float, end: float) -> int:
        return sum(start <= moment < end for moment in self.accepted)

    @property
    def refused_share(self) -> float:
        return len(self.refused) / (len(self.refused) + len(self.accepted))


class WindowOfAMinute:
    """A provider that counts what it accepted in the last minute."""

    def __init__(self, per_minute: int) -> None:
        self.now = 0.0
        self.window = SlidingWindow(per_minute, 60.0, lambda: self.now)

    def __call__(self, now: float) -> bool:
        self.now = now
        if self.window.wait_seconds(1):
            return False
        self.window.spend(1)
        return True

    def quota(self) -> Quota:
        used = int(self.window.used)
        limit = int(self.window.limit)
        return Quota(requests=Allowance(limit, limit - used, 60 * used / limit))


class Bucket:
    """A provider that refills ``per_minute`` steadily into a bucket of ``capacity``."""

    def __init__(self, per_minute: int, capacity: float) -> None:
        self.level, self.updated = capacity, 0.0
        self._capacity, self._per_second = capacity, per_minute / 60

    def __call__(self, now: float) -> bool:
        self.level = min(self._capacity, self.level + (now - self.updated) * self._per_second)
        self.updated = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


@pytest.mark.parametrize("concurrency", [1, 10, 50])
@pytest.mark.parametrize("latency", [0.01, 0.4])
@pytest.mark.parametrize("per_minute", [60, 600])
def test_it_settles_just_under_an_unknown_limit(per_minute: int, latency: float, concurrency: int) -> None:
    """A provider that counts minutes and says nothing but 429: few refusals, and hardly anything left unused."""
    simulation = Simulation(WindowOfAMinute(per_minute))
    simulation.run(480, concurrency=concurrency, latency=latency)
    possible = min(per_minute, 60 / latency * concurrency)
    assert simulation.accepted_between(180, 480) >= 0.95 * 5 * possible
    assert len(simulation.refused) <= concurrency + 20 + 0.005 * len(simulation.accepted)


@pytest.mark.parametrize("capacity", [10, 100, 600])
@pytest.mark.parametrize("latency", [0.01, 0.4])
def test_it_finds_the_rate_of_a_bucket(capacity: float, latency: float) -> None:
    """A provider that refills steadily, whatever its burst."""
    simulation = Simulation(Bucket(600, capacity))
    simulation.run(480, concurrency=10, latency=latency)
    assert simulation.accepted_between(180, 480) >= 0.95 * 5 * 600
    assert simulation.refused_share < 0.03


@pytest.mark.parametrize("latency", [0.01, 0.4])
def test_a_limit_that_the_answers_name_is_never_run_into(latency: float) -> None:
    """Nothing is refused."""
    provider = WindowOfAMinute(600)
    simulation = Simulation(provider, quota=provider.quota)
    simulation.run(600, concurrency=10, latency=latency)
    assert simulation.refused == []
    assert len(simulation.accepted) >= 0.95 * 10 * 600


def test_a_limit_of_a_day_is_spread_until_its_reset() -> None:
    """A reset farther away than a minute is not of a minute."""
    pace = Pace()
    pace.answered(0.0, 1.0, quota=Quota(requests=Allowance(200, 100, 43_200.0)))
    assert pace.per_second == pytest.approx(1 / 60)
    pace.answered(1.0, 2.0, quota=Quota(requests=Allowance(10_000, 8_640, 8_640.0)))
    assert pace.per_second == pytest.approx(1.0)


def test_a_limit_of_model_tokens_counts_by_what_requests_cost() -> None:
    """Unknown costs say nothing."""
    pace, quota = Pace(), Quota(model_tokens=Allowance(600_000, 600_000, 0.0))
    pace.answered(0.0, 1.0, model_tokens=0, quota=quota)
    assert math.isinf(pace.per_second)
    pace.answered(1.0, 2.0, model_tokens=10_000, quota=quota)
    assert pace.per_second == pytest.approx(HEADROOM)


def test_a_limit_that_was_raised_is_found() -> None:
    """Slowly at first; once the provider takes clearly more than at the cut, the pace doubles."""
    provider = WindowOfAMinute(600)
    simulation = Simulation(provider)
    simulation.run(300, concurrency=10, latency=0.01)
    assert simulation.pace.per_second < 11
    provider.window.limit = 6_000
    simulation.run(840, concurrency=10, latency=0.01)
    assert simulation.accepted_between(780, 840) > 5_000
    assert simulation.refused_share < 0.03


def test_refusals_at_random_do_not_strangle_a_run() -> None:
    """A busy server that refuses one in fifty, whatever the pace, still gets most of what it would take."""
    asked = 0

    def takes(_: float) -> bool:
        nonlocal asked
        asked += 1
        return asked % 50 != 0

    simulation = Simulation(takes)
    simulation.run(120, concurrency=10, latency=0.1)
    assert len(simulation.accepted) > 2_500


def test_the_servers_own_wait_holds() -> None:
    """Longer or shorter than ours."""
    pace = Pace()
    assert pace.refused(0.0, 1.0, retry_after_seconds=17.0) == 17.0
    assert pace.refused(0.5, 1.0, retry_after_seconds=0.5) == 0.5


def test_requests_under_way_cut_the_pace_once() -> None:
    """Ten refusals of requests that were sent together are one piece of news."""
    pace = Pace()
    for number in range(3_600):
        pace.answered(number / 60, number / 60)
    for _ in range(10):
        pace.refused(60.0, 60.1)
    assert pace.per_second >= 0.9 * 58


def test_after_a_refusal_one_request_at_a_time_goes() -> None:
    """Until one is accepted, or is lost."""
    pace = Pace()
    pace.refused(0.0, 1.0)
    assert pace.earliest(2.0) == 2.0
    pace.take(2.0)
    assert pace.earliest(2.1) > 2.1
    assert pace.earliest(40.0) == 40.0
    pace.answered(2.0, 2.2)
    assert pace.earliest(2.2) == 2.2
