"""A lock of several processes: the order of asking, the dead, and no line where nobody waits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tasks.limits.fair_lock import SERVE_SECONDS, FairLock
from tasks.limits.held_files import held_files
from tests.command import ROOT
from tests.limits.virtual_time import run_virtually

HOLDS_AND_WAITS = """
import asyncio, sys
from pathlib import Path
from tasks.limits.fair_lock import FairLock

async def wait(path):
    async with FairLock(path).held():
        pass

async def hold(path):
    async with FairLock(path).held(), asyncio.TaskGroup() as group:
        group.create_task(wait(path))
        while not list(path.parent.glob("*.line/[0-9]*")):
            await asyncio.sleep(0.01)
        print("waits", flush=True)

asyncio.run(hold(Path(sys.argv[1])))
"""


def lock_of(path: Path) -> FairLock:
    return FairLock(path, clock=asyncio.get_running_loop().time)


@pytest.mark.parametrize("processes", [2, 5])
def test_each_is_served_in_turn_however_long_a_turn_is(tmp_path: Path, processes: int) -> None:
    """Nobody has it twice while another one waits, whatever the phase of their polls."""
    served: list[int] = []

    async def process(number: int) -> None:
        lock = lock_of(tmp_path / "lock")
        for _ in range(6):
            async with lock.held():
                served.append(number)
                await asyncio.sleep(1.0 + number / 977)

    async def together() -> None:
        await asyncio.gather(*map(process, range(processes)))

    run_virtually(together())
    rounds = [served[start : start + processes] for start in range(0, len(served), processes)]
    assert rounds == [rounds[0]] * 6
    assert sorted(rounds[0]) == list(range(processes))


def test_short_turns_follow_one_another_without_a_poll_between(tmp_path: Path) -> None:
    """A line costs a poll a turn: who has it keeps it for `SERVE_SECONDS`, then the next one has."""
    turns: list[tuple[float, int]] = []

    async def process(number: int) -> None:
        lock, clock = lock_of(tmp_path / "lock"), asyncio.get_running_loop().time
        while clock() < 1_001:
            async with lock.held():
                turns.append((clock(), number))
                await asyncio.sleep(0.001)

    async def together() -> None:
        await asyncio.gather(process(0), process(1))

    run_virtually(together())
    changes = sum(1 for one, next_one in pairwise(turns) if one[1] != next_one[1])
    assert 1 / SERVE_SECONDS / 2 <= changes <= 1 / SERVE_SECONDS + 1
    assert len(turns) >= 850
    of_first = sum(1 for _, number in turns if number == 0)
    assert 0.4 * len(turns) <= of_first <= 0.6 * len(turns)


async def test_a_killed_process_keeps_neither_the_lock_nor_its_place(tmp_path: Path) -> None:
    """Both went with it: the lock that it held, and the ticket that it waited with."""
    command = [sys.executable, "-c", HOLDS_AND_WAITS, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)  # noqa: ASYNC220 - one line is read from it
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"waits\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    async with asyncio.timeout(5), FairLock(tmp_path / "lock").held():
        assert held_files(tmp_path / "lock.line") == []
        assert list((tmp_path / "lock.line").iterdir()) == []


async def test_who_gives_up_waiting_leaves_the_line(tmp_path: Path) -> None:
    lock = FairLock(tmp_path / "lock")
    async with lock.held():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03), FairLock(tmp_path / "lock").held():
                pytest.fail("it is held")
    assert list((tmp_path / "lock.line").iterdir()) == []


async def test_nobody_who_is_alone_makes_a_line(tmp_path: Path) -> None:
    lock = FairLock(tmp_path / "of" / "new" / "lock")
    for _ in range(3):
        async with lock.held():
            pass
    assert [path.name for path in (tmp_path / "of" / "new").iterdir()] == ["lock"]
