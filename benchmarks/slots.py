"""What it costs to take the place of a plain semaphore: the gate, and slots leased from a Prefect server.

``python benchmarks/slots.py`` lets twenty workers send requests of a tenth of a second through ten slots, so that the
ideal is 100 requests a second, and counts them; the contestants take turns against one standing Prefect server.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import uuid4

import msgspec
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import concurrency
from prefect.settings import temporary_settings
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.prefect_server import prefect_server  # noqa: E402 - run as a script, the path above comes first
from flows.leases import leased_slots  # noqa: E402
from tasks.limits.gate import Gate  # noqa: E402

SLOTS, WORKERS, REQUEST_SECONDS = 10, 20, 0.1
IDEAL = SLOTS / REQUEST_SECONDS

Slot = Callable[[], AbstractAsyncContextManager[object]]


async def rate(slot: Slot, seconds: float) -> float:
    """Requests a second that end within the time."""
    done, until = 0, time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal done
        while True:
            async with slot():
                await asyncio.sleep(REQUEST_SECONDS)
            if time.perf_counter() >= until:
                return
            done += 1

    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    return done / seconds


async def semaphore(seconds: float) -> float:
    """`asyncio.Semaphore`."""
    slots = asyncio.Semaphore(SLOTS)
    return await rate(lambda: slots, seconds)


async def gate(seconds: float) -> float:
    """The gate of a run, without a limit on the server."""
    return await rate(Gate(SLOTS).slot, seconds)


async def leased(seconds: float) -> float:
    """The gate of a run, its slots leased."""
    own = Gate(SLOTS)
    async with leased_slots(f"millrace-{uuid4().hex}", own.slots, print, make=SLOTS):
        for _ in range(SLOTS):  # all are leased
            await own.slots.acquire()
        for _ in range(SLOTS):
            own.slots.release()
        return await rate(own.slot, seconds)


async def one_by_one(seconds: float) -> float:
    """Prefect's own `concurrency`, taken for each request."""
    name = f"each-{uuid4().hex}"
    async with get_client() as client:
        await client.upsert_global_concurrency_limit_by_name(name, SLOTS)
    return await rate(lambda: concurrency(name, strict=True), seconds)


CONTESTANTS = {
    "asyncio.Semaphore": semaphore,
    "gate": gate,
    "gate, slots leased": leased,
    "prefect.concurrency for each request": one_by_one,
}


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with (
        tempfile.TemporaryDirectory() as folder,
        prefect_server(Path(folder)) as url,
        temporary_settings(updates={"api.url": url, "home": Path(folder)}),
    ):
        for number in range(arguments.rounds):
            for name, contestant in CONTESTANTS.items():
                if number and contestant is one_by_one:
                    continue  # once says it
                rates[name].append(round(asyncio.run(contestant(arguments.seconds)), 2))
                sys.stderr.write(f"{name}: {rates[name][-1]}\n")
    base = statistics.median(rates["asyncio.Semaphore"])
    table = Table(title=f"requests a second, ideal {IDEAL:.0f}", title_justify="left")
    for name in ("", "median", "of the semaphore's", "all"):
        table.add_column(name, justify="right" if name else "left")
    for name, each in rates.items():
        median = statistics.median(each)
        table.add_row(name, f"{median:.1f}", f"{median / base:.2%}", " ".join(f"{one:.1f}" for one in each))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    conditions = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    result = {"conditions": conditions, "seconds": arguments.seconds, "requests_per_second": rates}
    Path(__file__).with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    main()
