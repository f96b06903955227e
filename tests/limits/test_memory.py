"""Memory: what this process may use, and waiting that ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.limits.control_groups import limiting_groups
from tasks.limits.memory import (
    MAX_BYTES_IN_FLIGHT,
    MemoryGuard,
    bytes_in_flight_allowed,
    percent_in_use,
    used_bytes,
)
from tasks.load.source import SEGMENT_BYTES, Loaded, Source
from tasks.load.stage import SegmentSize, load
from tasks.records import Document, Segment
from tests.limits.virtual_time import VirtualTime

TOTAL = 64_000


def write(root: Path, files: dict[str, str]) -> Path:
    """A system's files under ``root``."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, TOTAL),
        ({"sys/fs/cgroup/memory.max": "max"}, TOTAL),
        ({"sys/fs/cgroup/memory.max": "1000"}, 1_000),
        ({"sys/fs/cgroup/memory.max": "99999"}, TOTAL),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, TOTAL),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000"}, 2_000),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": "500"}, 500),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": "700",
                "sys/fs/cgroup/other/memory.max": "1",
            },
            700,
        ),
        ({"proc/self/cgroup": "4:cpu,memory:/x\n0::/", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "600"}, 600),
        ({"proc/self/cgroup": "0::/../outside", "sys/fs/cgroup/memory.max": "not a number"}, TOTAL),
    ],
)
def test_the_smallest_limit_on_the_way_up_counts(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    """Control groups v2 and v1, this process's group and those above it."""
    groups = limiting_groups(write(tmp_path, files))
    assert min([TOTAL, *(group.limit_bytes for group in groups)]) == limit


def test_this_machine_has_memory_in_use() -> None:
    """Whatever the system, some of it and not all."""
    assert 0 < percent_in_use() < 100


def held(root: Path, used: int, cached: int, limit: int) -> Path:
    """A group (v2) whose processes hold so much of so much."""
    statistics = f"anon 1\ninactive_file {cached // 2}\nactive_file {cached - cached // 2}"
    folder = "sys/fs/cgroup"
    return write(
        root,
        {
            f"{folder}/memory.max": str(limit),
            f"{folder}/memory.current": str(used),
            f"{folder}/memory.stat": statistics,
        },
    )


def test_what_others_in_the_group_hold_counts(tmp_path: Path) -> None:
    """And what of files is cached does not: it goes back by itself."""
    own = used_bytes()
    limit = min(50 * own, psutil.virtual_memory().total)
    full = percent_in_use(held(tmp_path / "full", limit, 0, limit))
    assert full == pytest.approx(100)
    assert percent_in_use(held(tmp_path / "cached", limit, limit, limit)) < 100


def test_the_first_version_of_control_groups_sums_up_the_groups_below(tmp_path: Path) -> None:
    """Its own lines leave them out."""
    folder = "sys/fs/cgroup/memory"
    statistics = "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200"
    files = {"memory.limit_in_bytes": "2000", "memory.usage_in_bytes": "1500", "memory.stat": statistics}
    (group,) = limiting_groups(write(tmp_path, {f"{folder}/{name}": text for name, text in files.items()}))
    assert (group.limit_bytes, group.used_bytes()) == (2000, 1000)


def test_a_group_without_statistics_has_nothing_cached(tmp_path: Path) -> None:
    """Some kernels and sandboxes show less."""
    files = {"sys/fs/cgroup/memory.max": "2000", "sys/fs/cgroup/memory.current": "1500"}
    (group,) = limiting_groups(write(tmp_path, files))
    assert group.used_bytes() == 1500


BALLAST = (
    "import sys; ballast = bytearray(100_000_000); ballast[::4096] = b'x' * len(ballast[::4096]); print(); input()"
)


def test_a_real_child_counts_for_as_long_as_it_lives() -> None:
    """Worker processes hold this run's memory too."""
    alone = used_bytes()
    with subprocess.Popen([sys.executable, "-c", BALLAST], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert used_bytes() > alone + 90_000_000
        child.communicate(b"\n")
    assert used_bytes() < alone + 50_000_000


class Memory:
    """What is in use, one look after the other; the last stays."""

    def __init__(self, *percent: float) -> None:
        self._percent = list(percent)

    def __call__(self) -> float:
        return self._percent.pop(0) if len(self._percent) > 1 else self._percent[0]


async def test_reading_waits_while_something_is_in_flight_and_memory_is_short() -> None:
    """And goes on when it fell, without a word."""
    time, told = VirtualTime(), list[str]()
    guard = MemoryGuard(80, in_use=Memory(90, 95, 85, 80), sleep=time.sleep, on_alone=told.append)
    guard.took()
    await guard.wait()
    assert len(time.slept) == 3
    assert told == []


async def test_with_nothing_in_flight_it_never_waits_and_says_so_once() -> None:
    """Others hold the memory: waiting would never end."""
    time, told = VirtualTime(), list[str]()
    guard = MemoryGuard(80, in_use=Memory(93), sleep=time.sleep, on_alone=told.append)
    for _ in range(3):
        await guard.wait()
    assert time.slept == []
    assert len(told) == 1
    assert told[0].startswith("93% of the memory is in use, more than 80%")


async def test_a_run_that_is_told_to_stop_does_not_wait_for_memory() -> None:
    """What is in flight may never be let go then."""
    time = VirtualTime()
    guard = MemoryGuard(80, in_use=Memory(90), sleep=time.sleep)
    guard.took()
    await guard.wait(unless=lambda: len(time.slept) > 2)
    assert len(time.slept) == 3


async def test_bytes_in_flight_hold_the_reader_back_until_one_is_let_go() -> None:
    """However large the first segment is, it passes."""
    guard = MemoryGuard(100, max_bytes=10, in_use=Memory(1))
    guard.took(7)
    await guard.wait()
    guard.took(7)
    waiting = asyncio.create_task(guard.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    guard.let_go(7)
    await waiting
    guard.let_go(7)
    guard.took(100)
    guard.let_go(100)
    await guard.wait()
    assert (guard.in_flight, guard.bytes_in_flight) == (0, 0)


async def test_a_halt_ends_the_wait_for_bytes() -> None:
    """What is in flight may never be let go then."""
    guard = MemoryGuard(100, max_bytes=10, in_use=Memory(1))
    guard.took(10)
    await guard.wait(unless=lambda: True)


@pytest.mark.parametrize(("limit", "allowed"), [("max", MAX_BYTES_IN_FLIGHT), ("536870912", 2**26)])
def test_less_is_in_flight_where_little_memory_may_be_used(tmp_path: Path, limit: str, allowed: int) -> None:
    """A container of 512 MiB."""
    assert bytes_in_flight_allowed(write(tmp_path, {"sys/fs/cgroup/memory.max": limit})) == allowed


class Items(Source):
    """So many items, one document each."""

    def __init__(self, items: int) -> None:
        super().__init__("items", [])
        self._items = items

    def documents(self, segment_size: int, max_bytes: int = SEGMENT_BYTES) -> Iterator[Loaded]:
        for place in range(self._items):
            yield Loaded(place, place, [Document(str(place), "text", {})], [], range(place, place + 1))


async def most_in_flight(guard: MemoryGuard, items: int, queued: int) -> int:
    """Read all, as a pipeline that lets a segment go when ``queued`` more wait behind it or the reader pauses."""
    waiting: list[Segment] = []
    most = 0

    async def drain(_: float) -> None:
        waiting.pop(0).let_go()

    guard._sleep = drain
    async for segment in load.fn(Items(items), SegmentSize(1), items, guard, lambda: False):
        waiting.append(segment)
        most = max(most, guard.in_flight)
        if len(waiting) > queued:
            waiting.pop(0).let_go()
    return most


@pytest.mark.parametrize(("percent", "most"), [(50.0, 5), (90.0, 1)])
async def test_above_the_mark_one_segment_at_a_time_is_in_flight(percent: float, most: int) -> None:
    """All of them are read all the same; below the mark, as many as the queues hold."""
    told: list[str] = []
    guard = MemoryGuard(80, in_use=lambda: percent, on_alone=told.append)
    assert await most_in_flight(guard, items=20, queued=4) == most
    assert len(told) == (percent > 80)
