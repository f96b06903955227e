"""One budget of several processes: each with a `Budget` and `FileRecord` of its own over one file, in virtual time."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.limits.budget import Budget
from tasks.limits.record import FileRecord
from tests.limits.test_token_bucket import Admitted, most_in_a_minute
from tests.limits.virtual_time import run_virtually

SECONDS = 130.0


async def demand(
    file: Path, limits: tuple[int | None, int | None], costs: list[int], *, slots: int, until: float
) -> Admitted:
    """What one process is admitted by then, whose slots always want more."""
    clock = asyncio.get_running_loop().time
    budget = Budget(*limits, record=FileRecord(file, clock=clock), clock=clock)
    admitted: Admitted = []

    async def slot(number: int) -> None:
        while clock() < until:
            cost = costs[number % len(costs)]
            admitted.append((await budget.acquire(cost), cost))
            number += slots

    tasks = [asyncio.create_task(slot(number)) for number in range(slots)]
    await asyncio.wait(tasks, timeout=until - clock())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return admitted


async def share(
    file: Path, limits: tuple[int | None, int | None], costs: list[list[int]], slots: int = 3
) -> list[Admitted]:
    until = asyncio.get_running_loop().time() + SECONDS
    return await asyncio.gather(*(demand(file, limits, each, slots=slots, until=until) for each in costs))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_keep_one_limit_and_use_it(tmp_path: Path, processes: int) -> None:
    """No rolling minute above it, 98 % of it used, and each has at least half of its fair share."""
    shares = run_virtually(share(tmp_path / "limit", (600, None), [[0]] * processes))
    together = sorted((moment, 1) for each in shares for moment, _ in each)
    assert most_in_a_minute(together) <= 600
    assert len(together) >= 0.98 * 600 * SECONDS / 60
    assert min(map(len, shares)) >= len(together) / processes / 2


@settings(deadline=None, max_examples=4)
@given(costs=st.lists(st.lists(st.floats(0.0005, 0.4), min_size=1, max_size=5), min_size=2, max_size=4))
@example(costs=[[0.25], [0.25], [0.25], [0.34375]])  # turns of 15 seconds each: nine of them are all there is
def test_model_tokens_of_all_processes_keep_the_limit(costs: list[list[float]]) -> None:
    """Whatever their requests cost; and nobody starves, also one whose requests cost a good part of the limit."""
    limit = 20_000
    asked = [[max(1, int(cost * limit)) for cost in each] for each in costs]
    with tempfile.TemporaryDirectory() as folder:
        shares = run_virtually(share(Path(folder) / "limit", (None, limit), asked, slots=2))
    assert most_in_a_minute(sorted(each for admitted in shares for each in admitted)) <= limit
    assert all(shares)


def test_a_process_alone_has_the_whole_limit(tmp_path: Path) -> None:
    """Nothing is set aside for others who do not ask; and what went before a process began counts."""

    async def one_after_another() -> Admitted:
        first = await share(tmp_path / "limit", (600, None), [[0]])
        return first[0] + (await share(tmp_path / "limit", (600, None), [[0]]))[0]

    admitted = [(moment, 1) for moment, _ in run_virtually(one_after_another())]
    assert most_in_a_minute(admitted) <= 600
    assert len(admitted) >= 0.98 * 600 * 2 * SECONDS / 60


def test_a_record_that_cannot_be_read_stands_for_a_full_minute(tmp_path: Path) -> None:
    """It never lets more pass than it should."""
    (tmp_path / "limit").write_bytes(b'{"requests": [torn')
    [admitted] = run_virtually(share(tmp_path / "limit", (600, None), [[0]]))
    assert admitted[0][0] >= 1_060


def test_a_record_of_another_time_holds_nobody_back_for_long(tmp_path: Path) -> None:
    """After a restart of the machine its clock starts anew; what was written counts as of now."""
    run_virtually(share(tmp_path / "limit", (60, None), [[0]]))
    line = (tmp_path / "limit").read_bytes()
    assert line.count(b"\n") >= 1

    async def earlier() -> float:
        loop = asyncio.get_running_loop()
        budget = Budget(
            60, record=FileRecord(tmp_path / "limit", clock=lambda: loop.time() - 900), clock=lambda: loop.time() - 900
        )
        before = loop.time()
        await budget.acquire()
        return loop.time() - before

    assert run_virtually(earlier()) < 62
