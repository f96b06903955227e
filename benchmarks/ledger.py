"""How long a ledger takes to load, and how much memory: from receipts, as after a kill, and from the compacted file.

``python benchmarks/ledger.py`` writes receipts of 1,000 documents each into a folder, as runs leave them, and loads
them in a process of its own, as the next run does; then it compacts them and loads again. A document is 16 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tasks.checkpoints import keys  # noqa: E402 - run as a script, the path above comes first
from tasks.checkpoints.blobs import FolderBlobs  # noqa: E402
from tasks.checkpoints.job import JobCheckpoints  # noqa: E402
from tasks.checkpoints.storage import CheckpointStorage, result_store  # noqa: E402
from tasks.records import Receipt  # noqa: E402

SEGMENT_DOCUMENTS = 1000
RESIDENT_PAGES = Path("/proc/self/statm")
ALLOWED_SECONDS, ALLOWED_DOCUMENTS = 2.0, 1_000_000


class Load(msgspec.Struct, frozen=True):
    """One load in a process of its own. ``grown_bytes`` is what its peak is above what it had before the load."""

    documents: int
    loaded_from: str
    seconds: float
    grown_bytes: int
    ledger_bytes: int


def checkpoints_in(folder: Path) -> JobCheckpoints:
    """The job's, as a new run opens them."""
    return JobCheckpoints(CheckpointStorage.over(FolderBlobs(folder), sys.exit), "bench", 0, sys.exit)


async def write_receipts(folder: Path, documents: int) -> None:
    """Leave what a run of so many documents leaves when it is killed at its end."""
    store = result_store(CheckpointStorage.over(FolderBlobs(folder), sys.exit))
    chance = np.random.default_rng(7)
    for sequence in range(documents // SEGMENT_DOCUMENTS):
        entries = chance.integers(0, 1 << 63, (SEGMENT_DOCUMENTS, 2), np.uint64)
        receipt = Receipt(sequence, entries.tobytes(), [], 10, 1_000_000)
        await store.awrite(receipt, key=keys.receipt_key("bench", 0, sequence))


async def load(folder: Path, documents: int, loaded_from: str) -> Load:
    """Load once, in this process."""
    checkpoints, before = checkpoints_in(folder), resident_bytes()
    started = time.perf_counter()
    ledger = await checkpoints.load()
    seconds = time.perf_counter() - started
    if len(ledger) != documents:
        raise RuntimeError(f"{len(ledger):,} of {documents:,} documents")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Load(documents, loaded_from, round(seconds, 3), peak - before, 16 * documents)


async def compact(folder: Path) -> None:
    """As the run after a kill does at its end."""
    checkpoints = checkpoints_in(folder)
    await checkpoints.load()
    await checkpoints.compact()


def resident_bytes() -> int:
    """What of this process is in memory now; 0 where the system does not say."""
    if not RESIDENT_PAGES.exists():
        return 0
    return int(RESIDENT_PAGES.read_text().split()[1]) * resource.getpagesize()


def best(folder: Path, documents: int, loaded_from: str, times: int) -> Load:
    """The quickest of some loads, each in a process of its own."""
    command = [sys.executable, __file__, "--load", str(folder), str(documents), loaded_from]
    answers = [subprocess.run(command, check=True, capture_output=True).stdout for _ in range(times)]
    return min((msgspec.json.decode(answer, type=Load) for answer in answers), key=lambda each: each.seconds)


def show(loads: list[Load]) -> None:
    """Print the table."""
    table = Table(title="load of a ledger", title_justify="left")
    for name in ("from", "documents", "seconds", "documents/s", "memory MB", "ledger MB"):
        table.add_column(name, justify="left" if name == "from" else "right")
    for each in loads:
        table.add_row(
            each.loaded_from,
            f"{each.documents:,}",
            f"{each.seconds:.2f}",
            f"{each.documents / each.seconds:,.0f}",
            f"{each.grown_bytes / 1e6:,.0f}",
            f"{each.ledger_bytes / 1e6:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def measure(documents: int, folder: Path, times: int) -> list[Load]:
    """Loads from receipts and from the compacted file."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        asyncio.run(write_receipts(place, documents))
        receipts = best(place, documents, "receipts", times)
        asyncio.run(compact(place))
        return [receipts, best(place, documents, "compacted file", times)]
    finally:
        shutil.rmtree(place)


def main() -> None:
    """Measure every size, print the table, write the results; fails where a million documents take too long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--times", type=int, default=3, help="loads of each, of which the quickest counts")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where results go")
    parser.add_argument("--load", nargs=3, metavar=("FOLDER", "DOCUMENTS", "FROM"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        folder, documents, loaded_from = asked.load
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(load(Path(folder), int(documents), loaded_from))))
        return
    with tempfile.TemporaryDirectory(prefix="millrace-ledger-") as folder:
        loads = [each for documents in asked.documents for each in measure(documents, Path(folder), asked.times)]
    conditions: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    conditions["system"] = f"{platform.system()} {platform.machine()}"
    asked.json.write_bytes(msgspec.json.format(msgspec.json.encode({"conditions": conditions, "loads": loads})) + b"\n")
    show(loads)
    if slow := [each for each in loads if each.documents == ALLOWED_DOCUMENTS and each.seconds > ALLOWED_SECONDS]:
        sys.exit(f"{slow[0].documents:,} documents take {slow[0].seconds} s from {slow[0].loaded_from}")


if __name__ == "__main__":
    main()
