"""A global concurrency limit of a real Prefect server, shared by runs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings, temporary_settings

from flows.leases import leased_slots
from flows.local_server import _free_port, _started
from tasks.limits.slots import Slots
from tests.command import ROOT, server_url

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.usefixtures("prefect_server", "own_home"),
]

LIMIT = 10
HOLDER = """
import asyncio, sys
from flows.leases import leased_slots
from tasks.limits.slots import Slots

async def hold(name):
    slots = Slots(10)
    async with leased_slots(name, slots, print, make=None):
        for _ in range(10):
            await slots.acquire()
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold(sys.argv[1]))
"""


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[None]:
    """Where the runs of a test write down what they hold, and nobody else's."""
    with temporary_settings(updates={"home": tmp_path / "home"}):
        yield


@pytest.fixture
async def name() -> str:
    """A limit of ten that an operator made."""
    name = f"millrace-{uuid4().hex}"
    await set_limit(name, LIMIT)
    return name


def hold_and_be_killed(name: str, **environment: str) -> None:
    """A process that leases all slots and ends by SIGKILL."""
    here = {"PREFECT_API_URL": server_url(), "PREFECT_HOME": str(get_current_settings().home), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **here, **environment}
    command = [sys.executable, "-c", HOLDER, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)


async def set_limit(name: str, limit: int) -> None:
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(name, limit)


async def limit_of(name: str) -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(name)).limit


async def active(name: str) -> int:
    async with get_client() as client:
        return (await client.read_global_concurrency_limit_by_name(name)).active_slots


async def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what the event loop brings about, within a bound."""
    tick = threading.Event()
    for _ in range(round(seconds / 0.02)):
        if is_so():
            return
        await asyncio.to_thread(tick.wait, 0.02)
    raise AssertionError("it did not come about")


class Fleet:
    """Runs that always have work: what is in flight in all of them, the most there was, and what each did."""

    def __init__(self, name: str, *, make: bool = False) -> None:
        self.name = name
        self.make = make
        self.in_flight = self.most = 0
        self.done: dict[str, int] = {}
        self.said: list[str] = []

    @asynccontextmanager
    async def run(self, run: str, wanted: int = LIMIT) -> AsyncIterator[Slots]:
        slots, self.done[run] = Slots(wanted), 0
        async with leased_slots(self.name, slots, self.said.append, make=wanted if self.make else None):
            working = [asyncio.create_task(self._work(run, slots)) for _ in range(wanted)]
            try:
                yield slots
            finally:
                for each in working:
                    each.cancel()
                await asyncio.gather(*working, return_exceptions=True)

    async def _work(self, run: str, slots: Slots) -> None:
        tick = threading.Event()
        while True:
            await slots.acquire()
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            try:
                await asyncio.to_thread(tick.wait, 0.01)
            finally:
                self.in_flight -= 1
                slots.release()
            self.done[run] += 1


async def test_two_runs_share_ten_and_both_make_progress(name: str) -> None:
    """Alone a run has all; together each has half; when one ends the other has all again, and at the end nobody any."""
    fleet = Fleet(name)
    async with fleet.run("first") as first:
        await until(lambda: first.capacity == LIMIT)
        async with fleet.run("second") as second:
            await until(lambda: first.capacity == second.capacity == LIMIT // 2)
            before = dict(fleet.done)
            await until(lambda: all(fleet.done[run] > before[run] + 20 for run in fleet.done))
        await until(lambda: first.capacity == LIMIT)
    assert fleet.most == LIMIT
    assert await active(name) == await active(f"{name}-runs") == 0


async def test_the_operators_value_wins_over_the_option_also_when_it_changes(name: str) -> None:
    """It is said once; a lower one takes effect as requests end."""
    fleet = Fleet(name)
    async with fleet.run("first", wanted=20) as slots:
        await until(lambda: slots.capacity == LIMIT)
        await set_limit(name, 3)
        await until(lambda: slots.capacity == 3 >= slots.taken)
        await set_limit(name, 30)
        await until(lambda: slots.capacity == 20)
    assert fleet.said == [f"--concurrency 20 is above the limit {name}, which wins: 10 for all runs"]


async def test_without_a_limit_the_option_holds() -> None:
    """Nothing is leased, where the first run does not make it."""
    slots = Slots(7)
    async with leased_slots(f"millrace-{uuid4().hex}", slots, pytest.fail, make=None):
        assert slots.capacity == 7


async def test_the_first_run_makes_the_limit_and_the_next_one_shares_it() -> None:
    """As large as its own concurrency; a second run that needs more raises it for both."""
    name = f"millrace-{uuid4().hex}"
    fleet = Fleet(name, make=True)
    async with fleet.run("first") as first:
        await until(lambda: first.capacity == LIMIT)
        assert await limit_of(name) == LIMIT
        async with fleet.run("second", wanted=2 * LIMIT) as second:
            await until(lambda: first.capacity == second.capacity == LIMIT)
            assert await limit_of(name) == 2 * LIMIT
    assert await active(name) == await active(f"{name}-runs") == 0
    assert fleet.most <= 2 * LIMIT

    async with fleet.run("third", wanted=4) as third:
        await until(lambda: third.capacity == 4)
        assert await limit_of(name) == 4
    assert fleet.said == []


@pytest.mark.parametrize("value", [3, 4 * LIMIT])
async def test_a_limit_that_a_run_made_is_the_operators_once_he_set_it(value: int) -> None:
    """Lower or higher: no run touches it, and it wins."""
    name = f"millrace-{uuid4().hex}"
    fleet = Fleet(name, make=True)
    async with fleet.run("first") as slots:
        await until(lambda: slots.capacity == LIMIT)
    await set_limit(name, value)
    async with fleet.run("second") as slots:
        await until(lambda: slots.capacity == min(value, LIMIT))
        assert await limit_of(name) == value


async def test_a_limit_that_is_deleted_meanwhile_holds_nobody_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option holds then; when there is a limit again, it does."""
    monkeypatch.setattr("flows.leases.STEADY_POLL_SECONDS", 0.1)
    fleet = Fleet(name)
    async with fleet.run("first", wanted=2 * LIMIT) as slots:
        await until(lambda: slots.capacity == LIMIT)
        async with get_client() as client:
            await client.delete_global_concurrency_limit_by_name(name)
        await until(lambda: slots.capacity == 2 * LIMIT)
        await set_limit(name, 3)
        await until(lambda: slots.capacity == 3 >= slots.taken)


async def test_what_a_killed_run_held_is_given_back_by_the_next_one(name: str) -> None:
    """At once, on the same machine."""
    await asyncio.to_thread(hold_and_be_killed, name)
    assert await active(name) == LIMIT
    fleet = Fleet(name)
    async with fleet.run("next") as slots:
        await until(lambda: slots.capacity == LIMIT, seconds=5)
        assert await active(f"{name}-runs") == 1


async def test_a_run_that_ends_while_it_leases_leaves_nothing(name: str) -> None:
    """What the server grants after that is given back too."""
    tick = threading.Event()
    for milliseconds in range(0, 40, 2):
        async with leased_slots(name, Slots(LIMIT), print, make=None):
            await asyncio.to_thread(tick.wait, milliseconds / 1000)
    assert await active(name) == await active(f"{name}-runs") == 0


async def test_a_run_without_a_slot_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; it may be that a restarted server counts slots that nobody holds."""
    monkeypatch.setattr("flows.leases.STARVED_SECONDS", 0.0)
    fleet = Fleet(name)
    async with get_client() as client:
        await client.increment_concurrency_slots([name], LIMIT, "concurrency")
        async with fleet.run("first") as slots:
            await until(lambda: bool(fleet.said))
            await client.release_concurrency_slots([name], LIMIT, 1.0)
            await until(lambda: slots.capacity == LIMIT)
    repair = f"prefect gcl update {name} --active-slots 0"
    assert fleet.said == [f"10 of the 10 slots of the limit {name} are taken; if no other run is there: {repair}"]


@pytest.mark.slow
async def test_a_server_that_forgot_its_leases_counts_them_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does by default when it is restarted: the run takes its slots anew, and none is left behind."""
    monkeypatch.setattr("flows.leases.RENEW_SECONDS", 0.2)
    port = _free_port()
    monkeypatch.setattr("flows.local_server._free_port", lambda: port)
    name, forgetful = f"millrace-{uuid4().hex}", "prefect.server.concurrency.lease_storage.memory"
    changed = {"server.concurrency.lease_storage": forgetful, "api.url": f"http://127.0.0.1:{port}/api"}
    with temporary_settings(updates=changed), ExitStack() as first_server, ExitStack() as second_server:
        await asyncio.to_thread(first_server.enter_context, _started())
        await set_limit(name, LIMIT)
        async with Fleet(name).run("first") as slots:
            await until(lambda: slots.capacity == LIMIT)
            sizes: list[int] = [LIMIT]
            resize = slots.resize

            def seen(size: int) -> None:
                sizes.append(size)
                resize(size)

            monkeypatch.setattr(slots, "resize", seen)
            await asyncio.to_thread(first_server.close)
            await asyncio.to_thread(second_server.enter_context, _started())
            await until(lambda: min(sizes) < LIMIT)
            await until(lambda: slots.capacity == LIMIT)
            assert (await active(name), await active(f"{name}-runs")) == (LIMIT, 1)


@pytest.mark.slow
async def test_what_a_run_that_was_killed_elsewhere_held_comes_back(name: str, tmp_path: Path) -> None:
    """Within a minute and the server's next look; until then the next run waits."""
    with _started() as url, temporary_settings(updates={"api.url": url}):  # the tests' own looks for no dead ones
        await set_limit(name, LIMIT)
        await asyncio.to_thread(hold_and_be_killed, name, PREFECT_HOME=str(tmp_path))
        assert await active(name) == LIMIT
        fleet = Fleet(name)
        async with fleet.run("first") as slots:
            assert slots.capacity == 0
            await until(lambda: slots.capacity == LIMIT, seconds=120)
